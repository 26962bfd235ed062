"""Density: what conditional densities of latent parameters have in common, whatever their shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor, nn

from nbi_plus.learn.heads.config import FlowConfig
from nbi_plus.learn.heads.frozen import frozen

_LOG_2PI = math.log(2 * math.pi)
_Own = TypeVar("_Own", bound="LatentDensity")


class LatentDensity(nn.Module, ABC):
    """A conditional density q(z | context) of D latent parameters, after an affine whitening.

    Parameters
    ----------
    n_dims : int
        D.
    config : FlowConfig
    """

    averages = False  # see `Estimator`

    def __init__(self, n_dims: int, config: FlowConfig) -> None:
        super().__init__()
        self.n_dims, self.config = n_dims, config
        self.register_buffer("mean", torch.zeros(n_dims, dtype=torch.float64))
        self.register_buffer("chol", torch.eye(n_dims, dtype=torch.float64))

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype that networks compute in; whitening is always float64."""

    @abstractmethod
    def log_probs(
        self, z: Tensor, context: Tensor, scales: tuple[float, ...]
    ) -> tuple[Tensor, ...]:
        """Return log q (B, S) of z (B, S, D) for several scales of the base, from one pass."""

    @abstractmethod
    def draw(
        self, noise: Tensor, context: Tensor, choice: Tensor | None, scales: tuple[float, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return draws z (B, S, D), float64, of base noise (B, S, D), and their log q (B, S).

        The densities are those of each scale of the base, in the network's own precision.

        Parameters
        ----------
        noise : Tensor, shape (B, S, D)
            Standard normal, or scaled for a wider base.
        context : Tensor, shape (B, F)
        choice : Tensor or None, shape (B, S, D)
            Uniform noise, which mixtures need.
        scales : tuple of float
        """

    @torch.no_grad()
    def whiten(self, z: Tensor, weights: Tensor | None = None) -> None:
        """Set the affine map so that draws z (n, D) get mean 0 and covariance 1."""
        z = z.to(torch.float64)
        w = (
            torch.full((len(z),), 1.0 / len(z), dtype=z.dtype, device=z.device)
            if weights is None
            else weights
        )
        mean = w @ z
        cov = (z - mean).T @ ((z - mean) * w[:, None])
        # relative to each variance, since some parameters may be known far better than others
        ridge = 1e-10 * cov.diagonal().clamp(min=1e-30)
        self.mean.copy_(mean)
        self.chol.copy_(torch.linalg.cholesky(cov + ridge.diag()))

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Return log q(z | context), shape (B, S), of z (B, S, D) given context (B, F)."""
        return self.log_probs(z, context, (1.0,))[0]

    def sample(self, noise: Tensor, context: Tensor, choice: Tensor | None = None) -> Tensor:
        """Return the draws of `draw` alone."""
        return self.draw(noise, context, choice, (1.0,))[0]

    def exact(self: _Own) -> _Own:
        """Return a float64 copy, for densities that become weights."""
        return frozen(self)

    def white(self, z: Tensor) -> Tensor:
        """Return whitened z (B, S, D), in the network's precision."""
        centred = (z.to(torch.float64) - self.mean).transpose(-1, -2)
        white = torch.linalg.solve_triangular(self.chol, centred, upper=False).transpose(-1, -2)
        return white.to(self.dtype)

    def coloured(self, u: Tensor) -> Tensor:
        """Return z (B, S, D), float64, of whitened u."""
        return u.to(torch.float64) @ self.chol.T + self.mean

    def _log_volume(self) -> Tensor:
        """Return the log-determinant of `coloured`."""
        return self.chol.diagonal().log().sum().to(self.dtype)


class NormalBase(nn.Module):
    """The standard normal."""

    def log_probs(
        self, u: Tensor, context: Tensor, scales: tuple[float, ...]  # noqa: ARG002
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Return log N(u; 0, scale^2), shape (B, S), of u (B, S, D) for each scale."""
        n, square = u.shape[-1], u.square().sum(-1)
        return tuple(
            -0.5 * square / scale**2 - n * (math.log(scale) + 0.5 * _LOG_2PI) for scale in scales
        )

    def draw(
        self, noise: Tensor, choice: Tensor | None, context: Tensor, scales: tuple[float, ...]  # noqa: ARG002
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
        """Return the noise (B, S, D), already scaled, itself, and its log-densities."""
        return noise, self.log_probs(noise, context, scales)
