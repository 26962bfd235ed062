"""Whitening: the affine coordinates of each object in which its posterior is about round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-6  # of the mean variance
_SHRINK = 0.05


@dataclass(frozen=True)
class Whitening:
    """Coordinates u of which ``z = mean + factor @ u``.

    Attributes
    ----------
    mean : Tensor, shape (B, 1, D)
    factor : Tensor, shape (B, D, D)
        Lower triangular.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, z: Tensor, weights: Tensor) -> Whitening:
        """Return coordinates that standardise draws z (B, S, D) of normalised weights (B, S)."""
        z = torch.where(weights[..., None] > 0, z, 0.0)
        mean = (weights[..., None] * z).sum(1, keepdim=True)
        centred = z - mean
        cov = torch.einsum("bs,bsi,bsj->bij", weights, centred, centred)
        return cls(mean, _cholesky(cov, _RIDGE))

    @classmethod
    def none(cls, z: Tensor) -> Whitening:
        """Return the coordinates in which u is z (B, n, D)."""
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        return cls(torch.zeros_like(z[:, :1]), eye.expand(len(z), -1, -1))

    @classmethod
    def of_starts(cls, starts: Tensor) -> Whitening:
        """Return rough coordinates from few starting points (B, K, D), each axis on its own."""
        mean = starts.mean(1, keepdim=True)
        sd = starts.std(1) if starts.shape[1] > 1 else torch.zeros_like(starts[:, 0])
        return cls(mean, torch.where(sd > 0, sd, torch.ones_like(sd)).diag_embed())

    def to(self, z: Tensor) -> Tensor:
        """Return u (B, n, D) of z (B, n, D)."""
        centred = (z - self.mean).transpose(1, 2)
        return torch.linalg.solve_triangular(self.factor, centred, upper=False).transpose(1, 2)

    def back(self, u: Tensor) -> Tensor:
        """Undo `to`."""
        return self.mean + u @ self.factor.transpose(1, 2)

    def gradient(self, grad_z: Tensor) -> Tensor:
        """Return the gradient with respect to u, of one with respect to z."""
        return grad_z @ self.factor

    def refit(self, z: Tensor, n_effective: float) -> Whitening:
        """Return coordinates that standardise draws z (B, n, D) of chains.

        Shrinks to a ball in the present coordinates: shrinking to the axes of z instead would
        destroy the metric of a badly conditioned posterior.
        """
        u = self.to(z)
        mean = u.mean(1, keepdim=True)
        centred = u - mean
        cov = centred.transpose(1, 2) @ centred / u.shape[1]
        d = u.shape[-1]
        factor = _cholesky(cov, _SHRINK * d / (d + n_effective))
        return Whitening(self.back(mean), self.factor @ factor)


def _cholesky(cov: Tensor, share: float) -> Tensor:
    """Return Cholesky factors of covariances drawn towards a ball by a ``share``.

    Where the draws have no spread at all, that of the ball is one.
    """
    d = cov.shape[-1]
    size = cov.diagonal(dim1=1, dim2=2).mean(-1)
    usable = torch.isfinite(cov).all(-1).all(-1) & (size > 0)
    eye = torch.eye(d, dtype=cov.dtype, device=cov.device)
    cov = torch.where(usable[:, None, None], cov, eye)
    size = torch.where(usable, size, torch.ones_like(size))
    mixed = (1 - share) * cov + share * size[:, None, None] * eye
    factor, failed = torch.linalg.cholesky_ex(mixed)
    axes = mixed.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt().diag_embed()
    return torch.where((failed > 0)[:, None, None], axes, factor)
