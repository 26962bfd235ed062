"""Uniformity: whether ranks are those of exact posteriors, by tests, bands and shares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]

LEVELS = (0.5, 0.68, 0.9, 0.95)
GRID = np.linspace(0.0, 1.0, 101)
_N_SETS = 1000  # uniform sets behind the band
_CONFIDENCE = 0.95


def figures_of(ranks: Array) -> dict[str, Any]:
    """Return what follows from ranks (N, D) alone."""
    deviation, p_values = _kolmogorov_smirnov(ranks)
    coverage, low, high = _coverage(ranks)
    return {
        "p_values": holm(p_values), "max_deviation": deviation, "grid": GRID,
        "ecdf_difference": _ecdf(ranks) - GRID, "levels": LEVELS,
        "coverage": coverage, "coverage_low": low, "coverage_high": high,
    }  # fmt: skip


def clopper_pearson(
    hits: NDArray[np.int64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the exact 95 % intervals of shares, of counts of hits among n.

    Examples
    --------
    >>> [ends.round(3).tolist() for ends in clopper_pearson(np.array([0, 5, 10]), 10)]
    [[0.0, 0.187, 0.692], [0.308, 0.813, 1.0]]
    """
    tail = 0.5 * (1 - _CONFIDENCE)
    # none has the lower end 0, all the upper end 1
    low = np.where(hits == 0, 0.0, stats.beta.ppf(tail, np.maximum(hits, 1), n - hits + 1))
    high = np.where(hits == n, 1.0, stats.beta.isf(tail, hits + 1, np.maximum(n - hits, 1)))
    return low, high


def holm(p_values: ArrayLike) -> Array:
    """Return p-values adjusted for their number (Holm's step-down), shape (D,).

    Examples
    --------
    >>> holm([0.01, 0.5, 0.04]).tolist()
    [0.03, 0.5, 0.08]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def ecdf_band(n: int, seed: int = 0) -> Array:
    """Return the simultaneous 95 % band of ECDF(u) - u for n uniform values, shape (2, G).

    The band is made of pointwise binomial quantiles, at the level at which 95 % of simulated
    uniform sets lie inside everywhere on the grid.

    Parameters
    ----------
    n : int
    seed : int
        Of the 1000 simulated sets.
    """
    inner = GRID[1:-1]
    rng = np.random.default_rng(seed)
    # counts in the cells of the grid: all that an ECDF on it knows of n uniform values
    cells = rng.multinomial(n, np.full(len(GRID) - 1, 1 / (len(GRID) - 1)), size=_N_SETS)
    counts = np.cumsum(cells, 1)[:, :-1]
    least = counts.min(0)
    seen = least + np.arange((counts - least).max() + 1)[:, None]
    table = np.minimum(stats.binom.cdf(seen, n, inner), stats.binom.sf(seen - 1, n, inner))
    tails = np.take_along_axis(table, counts - least, 0)
    tail = np.quantile(tails.min(1), 1 - _CONFIDENCE)
    low, high = stats.binom.ppf(tail, n, inner), stats.binom.isf(tail, n, inner)
    return np.pad(np.stack([low, high]) / n - inner, ((0, 0), (1, 1)))


def _kolmogorov_smirnov(ranks: Array) -> tuple[Array, Array]:
    """Return the distance from uniform and its p-value for each column of (N, D)."""
    n = len(ranks)
    ordered = np.sort(ranks, 0)
    step = np.arange(n)[:, None] / n
    distance = np.maximum(ordered - step, step + 1 / n - ordered).max(0)
    return distance, stats.kstwo.sf(distance, n)


def _ecdf(ranks: Array) -> Array:
    """Return the distribution function of each column of (N, D) on the grid, shape (D, G)."""
    return np.stack([np.searchsorted(c, GRID, side="right") for c in np.sort(ranks, 0).T]) / len(
        ranks
    )


def _coverage(ranks: Array) -> tuple[Array, Array, Array]:
    """Return the share of ranks in each central interval, with its 95 % interval, each (D, 4)."""
    n = len(ranks)
    inside = np.stack([(np.abs(ranks - 0.5) <= 0.5 * level).sum(0) for level in LEVELS], -1)
    low, high = clopper_pearson(inside, n)
    return inside / n, low, high
