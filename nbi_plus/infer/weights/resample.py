"""Resampling: draws of equal weight from weighted ones."""

from __future__ import annotations

import torch
from torch import Tensor


def systematic_resample(weights: Tensor, n: int, uniform: Tensor) -> Tensor:
    """Return the indices of ``n`` draws of equal weight, chosen by one comb per object.

    A draw appears ``n`` times its weight, rounded up or down; one of zero weight never does.

    Parameters
    ----------
    weights : Tensor, shape (S,) or (B, S)
        Not negative, with a positive sum; need not be normalised.
    n : int
        Draws wanted of each object. More than its ESS repeats itself.
    uniform : Tensor, shape () or (B,)
        Where each comb starts, in [0, 1).

    Returns
    -------
    Tensor of int64, shape (n,) or (B, n)
        In ascending order.

    Examples
    --------
    >>> systematic_resample(torch.tensor([0.5, 0.0, 0.5]), 4, torch.tensor(0.5)).tolist()
    [0, 0, 2, 2]
    """
    total = weights.sum(-1)
    if not bool((total > 0).all()):
        raise ValueError(
            f"weights must have a positive sum, but {int((~(total > 0)).sum())} of "
            f"{total.numel()} objects have none. Leave out the objects that have no support."
        )
    edges = weights.double().cumsum(-1)
    edges = edges / edges[..., -1:]
    teeth = torch.arange(n, device=weights.device, dtype=torch.float64)
    points = (teeth + uniform.to(teeth)[..., None]) / n
    return torch.searchsorted(edges, points.clamp(max=1.0 - 2.0**-53), right=True)
