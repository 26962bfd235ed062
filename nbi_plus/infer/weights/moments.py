"""Moments: weighted means, spreads and quantiles of many objects at once."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = (0.16, 0.5, 0.84, 0.025, 0.975)


def moments(theta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and std (b, D), and quantiles (b, 5, D), of draws (b, S, D), weights (b, S)."""
    finite = torch.where(weights[..., None] > 0, theta, 0.0)
    mean = (weights[..., None] * finite).sum(1)
    var = (weights[..., None] * (finite - mean[:, None]).square()).sum(1)
    ordered, order = theta.transpose(1, 2).sort(-1)
    steps = weights[:, None].expand_as(ordered).gather(-1, order)
    middle = steps.cumsum(-1) - 0.5 * steps
    levels = (
        torch.tensor(LEVELS, dtype=theta.dtype, device=theta.device)
        * weights.sum(-1)[:, None, None]
    )
    right = torch.searchsorted(middle, levels.expand(*ordered.shape[:2], -1).contiguous())
    right = right.clamp(1, ordered.shape[-1] - 1)
    left = (right - 1).clamp(min=0)  # of one draw there is nothing to the left
    low, high = ordered.gather(-1, left), ordered.gather(-1, right)
    a, b = middle.gather(-1, left), middle.gather(-1, right)
    share = ((levels - a) / (b - a).clamp(min=1e-300)).clamp(0.0, 1.0)
    return mean, var.sqrt(), (low + share * (high - low)).transpose(1, 2)
