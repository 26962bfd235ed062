"""Modes: whether the posterior of an object falls into separate parts."""

from __future__ import annotations

import torch
from torch import Tensor

_N_BINS = 64
_REACH = 4.0  # standard deviations on either side of the mean
_KERNEL = 2.0  # width of the smoothing, in bins: a quarter of a standard deviation
_VALLEY = 0.3  # share of the lower peak that the density between two modes stays below
_LEAST_MASS = 0.05  # on either side of the valley


def separate_modes(z: Tensor, weights: Tensor) -> Tensor:
    """Say which objects have a marginal with two peaks and a deep valley between them, bool (B,).

    Modes that overlap in every single parameter are not seen.

    Parameters
    ----------
    z : Tensor, shape (B, S, D)
        In coordinates that no circle tears apart.
    weights : Tensor, shape (B, S)
        Normalised, or all zero.

    Examples
    --------
    >>> z = torch.tensor([-1.0, -0.99, 0.99, 1.0], dtype=torch.float64)[None, :, None]
    >>> separate_modes(z, torch.full((1, 4), 0.25, dtype=torch.float64)).tolist()
    [True]
    """
    z = torch.where(weights[..., None] > 0, z, 0.0)
    mean = (weights[..., None] * z).sum(1, keepdim=True)
    sd = (weights[..., None] * (z - mean).square()).sum(1, keepdim=True).sqrt()
    place = ((z - mean) / sd.clamp(min=1e-300) / _REACH + 1) / 2
    bins = (place * _N_BINS).long().clamp(0, _N_BINS - 1)
    mass = torch.zeros(len(z), _N_BINS, z.shape[2], dtype=z.dtype, device=z.device)
    mass.scatter_add_(1, bins, weights[..., None].expand_as(z).contiguous())
    at = torch.arange(_N_BINS, device=z.device, dtype=z.dtype)
    kernel = torch.exp(-0.5 * ((at[:, None] - at) / _KERNEL).square())
    density = torch.einsum("ij,bjd->bid", kernel, mass)
    left, right = density.cummax(1).values, density.flip(1).cummax(1).values.flip(1)
    below = mass.cumsum(1)
    whole = weights.sum(1)[:, None, None]
    matters = (below > _LEAST_MASS) & (whole - below > _LEAST_MASS)
    valley = density < _VALLEY * torch.minimum(left, right)
    return (valley & matters).any(1).any(1)
