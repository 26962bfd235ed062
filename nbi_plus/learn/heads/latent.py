"""Latent parameters as what a network reads: where they lie, and how far they reach."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from nbi_plus.learn.heads.frozen import frozen

_Own = TypeVar("_Own", bound="LatentInput")


class LatentInput(nn.Module):
    """A module of D latent parameters, which knows those of the training.

    Parameters
    ----------
    n_dims : int
        D.
    """

    averages = False  # see `Estimator`

    def __init__(self, n_dims: int) -> None:
        super().__init__()
        self.n_dims = n_dims
        self.register_buffer("mean", torch.zeros(n_dims, dtype=torch.float64))
        self.register_buffer("width", torch.ones(n_dims, dtype=torch.float64))
        self.register_buffer("reach", torch.zeros(2, n_dims, dtype=torch.float64))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that networks compute in."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def whiten(self, z: Tensor) -> None:
        """Learn where draws z (n, D) lie, and how far they reach."""
        z = z.to(torch.float64)
        self.mean.copy_(z.mean(0))
        self.width.copy_(z.std(0, correction=0).clamp(min=1e-30))
        self.reach.copy_(torch.stack([z.amin(0), z.amax(0)]))

    def white(self, z: Tensor) -> Tensor:
        """Return z (..., D) with the mean 0 and the width 1 of the training."""
        return ((z.to(torch.float64) - self.mean) / self.width).to(self.dtype)

    def exact(self: _Own) -> _Own:
        """Return a float64 copy, for sums over many trials."""
        return frozen(self)


def perceptron(n_in: int, hidden: int, n_layers: int, n_out: int) -> nn.Sequential:
    """Return a plain network of so many hidden layers."""
    widths = [n_in, *[hidden] * n_layers]
    layers = [[nn.Linear(a, b), nn.SiLU()] for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*(part for pair in layers for part in pair), nn.Linear(widths[-1], n_out))
