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
    columns : tuple of int, shape (C,)
        Which latent parameters are circles, with a uniform prior each.
    n_context, hidden, n_layers : int
    """

    def __init__(
        self, columns: tuple[int, ...], n_context: int, hidden: int, n_layers: int
    ) -> None:
        super().__init__()
        self.columns = list(columns)
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
        off = self._angles(z) - middles(vectors.detach()).to(z.dtype)
        values = values.clone()
        values[:, self.columns] = (
            torch.remainder(off + math.pi, 2 * math.pi).sub(math.pi).to(values)
        )
        return values

    def placed(self, vectors: Tensor, values: Tensor, z: Tensor) -> Tensor:
        """Return z (n, K, D) with circles where ``values`` (n, K, D) say, from the middles."""
        turns = (middles(vectors)[:, None] + values[..., self.columns]) / (2 * math.pi)
        z = z.clone()
        z[..., self.columns] = torch.special.ndtri((turns - turns.floor()).clamp(_EDGE, 1 - _EDGE))
        return z

    def _angles(self, z: Tensor) -> Tensor:
        return 2 * math.pi * torch.special.ndtr(z[..., self.columns])


def middles(vectors: Tensor) -> Tensor:
    """Return the angles (n, C) of vectors (n, C, 2)."""
    return torch.atan2(vectors[..., 1], vectors[..., 0])
