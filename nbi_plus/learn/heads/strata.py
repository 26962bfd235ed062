"""Strata: a few points, each with a share, that stand for many data where ratios are averaged.

The mean of exp(eta . t) over a stratum is more than that of its mean t, by about twice the variance
of the square root: data are halved where roots of their ratios vary most.
"""

from __future__ import annotations

import heapq
from itertools import count

import torch
from torch import Tensor

_N_AXES = 8
_LARGEST = 10.0  # a log-ratio: those beyond are outliers, and would have all strata


def strata(statistics: Tensor, log_ratios: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return centres (n, M) and log-shares (n,) of statistics of data (N, M), N at least n.

    Parameters
    ----------
    statistics : Tensor, shape (N, M)
    log_ratios : Tensor, shape (N, J)
        Of these data, at parameters where means shall be right.
    n : int
    """
    places = _places(log_ratios)
    order = count()

    def part(rows: Tensor) -> tuple[float, int, int, Tensor]:
        spread = places[rows].var(0, correction=0)
        return -float(spread.sum()) * len(rows), next(order), int(spread.argmax()), rows

    heap = [part(torch.arange(len(places), device=places.device))]
    while len(heap) < n:
        *_, axis, rows = heapq.heappop(heap)
        own = places[rows, axis]
        low = own < own.mean()
        if not low.any():  # all that are left are alike
            low = torch.arange(len(rows), device=rows.device) < len(rows) // 2
        for some in (rows[low], rows[~low]):
            heapq.heappush(heap, part(some))
    parts = [rows for *_, rows in heap]
    sizes = torch.tensor([len(rows) for rows in parts], device=places.device)
    shares = sizes.to(places.dtype) / len(places)
    return torch.stack([statistics[rows].mean(0) for rows in parts]), shares.log()


def _places(log_ratios: Tensor) -> Tensor:
    """Return roots of ratios (N, J) along their principal axes, (N, A)."""
    roots = (0.5 * log_ratios.clamp(max=_LARGEST)).exp()
    roots = roots - roots.mean(0)
    _, axes = torch.linalg.eigh(roots.T @ roots / len(roots))
    return roots @ axes[:, -_N_AXES:]
