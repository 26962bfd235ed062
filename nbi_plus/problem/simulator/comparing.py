"""Comparing: a row has one answer, whatever rows are beside it and wherever it is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbi_plus.problem.simulator.calling import SimulationError

N_FEW = 8  # rows of a block that are compared: some of each part of it
_SINGLE = 1e-5  # what another number of rows, or another machine, may do to single precision
_BESIDE = (
    "simulator must give each row whatever other rows there are, but {bad} of {n} rows are off by "
    "up to {worst:g} when {many} rows go in at once (first: row {first}). Does it work through "
    "them in pieces, or keep something between them? See err.failed, or pass one row at a time: "
    "nbi.Simulator(f, vectorized=False)."
)
_ELSEWHERE = (
    "simulator must give each row in whatever process it runs, but {bad} of {n} rows that another "
    "one simulated are off by up to {worst:g} from what this one finds (first: row {first}). Does "
    "it read a global, a file or an environment variable that is different there? Let the function "
    "carry what it needs, or use n_jobs=1. See err.failed."
)


@dataclass
class Compared:
    """What a bound simulator was found to be, which grows as it is used.

    Attributes
    ----------
    rows : int
        The most rows at once whose answers agreed with those of a few rows.
    elsewhere : bool
        Whether other processes were seen to give the same answers as this one.
    """

    rows: int
    elsewhere: bool = False


def few_of(n: int, most: int = N_FEW) -> list[int]:
    """Return some of ``n`` places, from the last to the first."""
    return np.unique(np.linspace(n - 1, 0, min(n, most)).astype(int))[::-1].tolist()


def agreement(
    a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float
) -> NDArray[np.bool_]:
    """Say where outputs agree, relative to the largest value along the last axis."""
    finite = np.isfinite(a) & np.isfinite(b)
    a_finite, b_finite = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    scale = np.max(np.abs(a_finite), axis=-1, keepdims=True)
    near = np.abs(a_finite - b_finite) <= tolerance * scale
    return np.where(finite, near, (a == b) | (np.isnan(a) & np.isnan(b)))


def same(a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float) -> bool:
    """Tell whether outputs agree everywhere."""
    return bool(agreement(a, b, tolerance).all())


def largest_gap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the largest difference of two outputs, infinite where only one is finite."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    return float(np.where(np.isfinite(a) != np.isfinite(b), np.inf, np.nan_to_num(gap)).max())


def check_beside(
    rows: Sequence[int], theta: NDArray, x: NDArray, alone: NDArray, many: int
) -> None:
    """Raise a SimulationError where rows (n, C, L) of a large block differ from a few alone."""
    _check(_BESIDE, rows, theta, x, alone, many)


def check_elsewhere(rows: Sequence[int], theta: NDArray, x: NDArray, here: NDArray) -> None:
    """Raise a SimulationError where rows (n, C, L) of another process differ from this one's."""
    _check(_ELSEWHERE, rows, theta, x, here, len(rows))


def _check(
    rule: str, rows: Sequence[int], theta: NDArray, x: NDArray, other: NDArray, many: int
) -> None:
    bad = np.flatnonzero(~agreement(other, x, _SINGLE).all((1, 2)))
    if not len(bad):
        return
    failed = [
        {"row": int(rows[i]), "theta": theta[i],
         "error": f"off by {largest_gap(x[i], other[i]):g}"}
        for i in bad
    ]  # fmt: skip
    worst, first = largest_gap(x[bad], other[bad]), min(one["row"] for one in failed)
    raise SimulationError(
        rule.format(bad=len(bad), n=len(rows), worst=worst, many=many, first=first), failed
    )
