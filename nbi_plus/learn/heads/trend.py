"""Trends: where data lie on average, as straight lines of their parameters.

A network that learns what is left need not find out how data move with their parameters, which of
few simulations it does badly. Lines are those of latent parameters and of their quantiles: one of
the two is straight where a prior is normal, the other where it is uniform.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FEWEST = 20  # simulations for each coefficient
_OUTLYING = 10.0  # times the median distance from the median: no point pulls from farther off
_NORMAL = 0.5**0.5


class Trend(nn.Module):
    """Straight lines for C columns of data given D latent parameters; level until learned.

    Parameters
    ----------
    n_dims, n_columns : int
        D and C.
    """

    def __init__(self, n_dims: int, n_columns: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.zeros(2 * n_dims, n_columns, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        """Return the trend (..., C) at latent parameters z (..., D)."""
        return _terms(z) @ self.slopes.to(torch.float64)

    @torch.no_grad()
    def learn(self, z: Tensor, x: Tensor) -> None:
        """Learn it by least squares of parameters z (n, D) and data x (n, C), if these are many."""
        terms, x = _terms(z), x.to(torch.float64)
        if len(x) < _FEWEST * terms.shape[1]:
            return
        middle = x.median(0).values
        far = _OUTLYING * (x - middle).abs().median(0).values
        x = x.clamp(middle - far, middle + far)
        found = torch.linalg.pinv(terms - terms.mean(0)) @ (x - x.mean(0))  # two terms may be alike
        self.slopes.copy_(found)


def _terms(z: Tensor) -> Tensor:
    z = z.to(torch.float64)
    return torch.cat([z, torch.erf(z * _NORMAL)], -1)
