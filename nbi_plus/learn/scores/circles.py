r"""Circles: estimates of angles, told from the direction in which the posterior lies.

Of an angle :math:`\varphi` a network learns the mean of :math:`(\cos\varphi, \sin\varphi)`, by
squares. Where that points is the middle, which no cut of the circle moves; what a rule estimates
is how far the angle is from there, the short way round.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nbi_plus.learn.heads.latent import perceptron

_EDGE = 1e-12  # of a circle: an infinite z is no place


class Circles(nn.Module):
    """The middles of C angles given features.

    Parameters
    ----------
    n_dims : int
        D.
    columns : tuple of int, shape (C,)
        Which latent parameters are circles, with a uniform prior each.
    n_context, hidden, n_layers : int
    """

    def __init__(
        self, n_dims: int, columns: tuple[int, ...], n_context: int, hidden: int, n_layers: int
    ) -> None:
        super().__init__()
        if max(columns) >= n_dims or len(set(columns)) < len(columns):
            raise ValueError(f"circles must be among {n_dims} columns, but are {columns}.")
        self.columns = list(columns)
        of_circles = torch.tensor([d in columns for d in range(n_dims)])
        self.register_buffer("of_circles", of_circles, persistent=False)
        self.net = perceptron(n_context, hidden, n_layers, 2 * len(columns))

    def forward(self, context: Tensor) -> Tensor:
        """Return the mean vectors (n, C, 2) given features (n, F)."""
        return self.net(context).unflatten(-1, (len(self.columns), 2))

    def loss(self, vectors: Tensor, z: Tensor) -> Tensor:
        """Return the squares (n,) by which mean vectors miss the angles of z (n, D)."""
        angle = self._angles(z)
        wanted = torch.stack([angle.cos(), angle.sin()], -1)
        return (vectors - wanted.to(vectors.dtype)).square().sum((1, 2))

    def told_from(self, vectors: Tensor, z: Tensor, values: Tensor) -> Tensor:
        """Return ``values`` (n, D) of z, with the angles from the middles in place of circles."""
        off = self._angles(z) - angles_of(vectors.detach()).to(z.dtype)
        values = values.clone()
        values[:, self.columns] = (
            torch.remainder(off + math.pi, 2 * math.pi).sub(math.pi).to(values)
        )
        return values

    def bounded(self, values: Tensor) -> Tensor:
        """Return estimates (n, K, D), of circles within half a turn of the middles."""
        within = math.pi * torch.tanh(values / math.pi)
        return torch.where(self.of_circles, within, values)

    def middles(self, context: Tensor) -> Tensor:
        """Return latent places (n, C) of the middles, float64."""
        turns = angles_of(self(context)).to(torch.float64) / (2 * math.pi)
        return torch.special.ndtri((turns - turns.floor()).clamp(_EDGE, 1 - _EDGE))

    def _angles(self, z: Tensor) -> Tensor:
        return 2 * math.pi * torch.special.ndtr(z[..., self.columns])


def angles_of(vectors: Tensor) -> Tensor:
    """Return the angles (n, C) of vectors (n, C, 2)."""
    return torch.atan2(vectors[..., 1], vectors[..., 0])
