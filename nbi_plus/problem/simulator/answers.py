"""Answers: what a simulator gave for a block of rows, and for which it failed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

OK = 0  # simulated
FAILED = 1  # raised, or took too long, twice
NONFINITE = 2  # simulated, but with NaN or infinities in its output


@dataclass(frozen=True)
class SimulationBlock:
    """What a simulator answered for a block of rows.

    Attributes
    ----------
    x : ndarray of float64, shape (n, C, L)
        NaN where a row failed.
    state : ndarray of uint8, shape (n,)
        ``OK``, ``FAILED`` or ``NONFINITE``.
    errors : list of (int, str)
        Row of the block and error, for the failed rows.
    """

    x: NDArray[np.float64]
    state: NDArray[np.uint8]
    errors: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def failed(cls, n: int, shape: tuple[int, int], error: str) -> SimulationBlock:
        """Return a block in which every row failed for the same reason."""
        state = np.full(n, FAILED, np.uint8)
        return cls(np.full((n, *shape), np.nan), state, [(i, error) for i in range(n)])
