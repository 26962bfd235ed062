"""Rows of large datasets in any order, read in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.io.disk import raw_bytes, read_at, write_at

_BLOCK_BYTES = 4 * 2**20  # what is moved in one call
_GAP_BYTES = 64 * 2**10  # to read so much in vain costs less than another call
_BLOCKS_PER_POOL = 64


class RowSource(Protocol):
    """What `FileRows`, an HDF5 dataset and an ndarray have in common."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, rows: slice) -> NDArray:
        """Return neighbouring rows."""


class FileRows:
    """Rows at a fixed place of an open file, read and written by slices as those of an ndarray."""

    def __init__(self, handle: int, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._handle = handle
        self._offset = offset
        self._row_bytes = math.prod(shape[1:]) * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> NDArray:
        """Return neighbouring rows, not to be written to."""
        start, stop, _ = rows.indices(self.shape[0])
        n_rows = max(stop - start, 0)
        place = self._offset + start * self._row_bytes
        raw = read_at(self._handle, n_rows * self._row_bytes, place)
        return np.frombuffer(raw, self.dtype).reshape(n_rows, *self.shape[1:])

    def __setitem__(self, rows: slice, values: ArrayLike) -> None:
        """Write neighbouring rows, all that the slice names."""
        place = self._offset + rows.indices(self.shape[0])[0] * self._row_bytes
        write_at(self._handle, raw_bytes(np.asarray(values, self.dtype)), place)


def rows_per_block(row_bytes: int) -> int:
    """Return how many rows of this size are moved in one call."""
    return max(1, _BLOCK_BYTES // max(1, row_bytes))


def row_numbers(rows: slice | Sequence[int] | NDArray, n: int) -> NDArray[np.int64]:
    """Return row numbers (k,) of a dataset of `n` rows, or say why they are none."""
    rows = np.arange(*rows.indices(n)) if isinstance(rows, slice) else np.asarray(rows)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise ValueError(
            f"rows must be integers of shape (k,), but are {rows.dtype} of shape {rows.shape}. "
            "Use numpy.flatnonzero for a mask."
        )
    if rows.size and not 0 <= rows.min() <= rows.max() < n:
        raise IndexError(
            f"rows must lie in 0..{n - 1}, but span {rows.min()}..{rows.max()}. Count from 0."
        )
    return rows.astype(np.int64)


def gather(data: RowSource, rows: NDArray[np.int64]) -> NDArray:
    """Return rows of a dataset in the order given, going through the file once.

    Parameters
    ----------
    data : RowSource, shape (n, ...)
        What is read.
    rows : ndarray of int64, shape (k,)
        Row numbers, in any order, also repeated.

    Returns
    -------
    ndarray, shape (k, ...)

    Examples
    --------
    >>> gather(np.arange(10) ** 2, np.array([7, 2, 2]))
    array([49,  4,  4])
    """
    out = np.empty((len(rows), *data.shape[1:]), data.dtype)
    row_bytes = max(1, out.nbytes // max(1, len(rows)))
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    far = np.diff(ascending) > max(1, _GAP_BYTES // row_bytes)
    other_block = np.diff(ascending // rows_per_block(row_bytes)) > 0
    edges = np.flatnonzero(far | other_block) + 1
    for i, j in pairwise((0, *edges, len(rows))):
        part = ascending[i:j]
        if len(part):
            out[order[i:j]] = data[part[0] : part[-1] + 1][part - part[0]]
    return out


def shuffled_pools(
    rows: NDArray[np.int64], row_bytes: int, buffer_bytes: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield all of `rows` in pools: blocks of neighbours in random order, mixed within a pool.

    Parameters
    ----------
    rows : ndarray of int64, shape (k,)
        Row numbers.
    row_bytes : int
        What will be read for each of them.
    buffer_bytes : int
        Room for two pools: the one in use, and the one that is read meanwhile.
    seed : int
        The same seed gives the same order.

    Yields
    ------
    ndarray of int64, shape (at most n_pool,)
    """
    rng = np.random.default_rng(seed)
    n_pool = max(1, buffer_bytes // (2 * max(1, row_bytes)))
    n_block = max(1, n_pool // _BLOCKS_PER_POOL)
    n_starts = n_pool // n_block
    rows = np.sort(rows)
    starts = rng.permutation(np.arange(0, len(rows), n_block))
    for i in range(0, len(starts), n_starts):
        blocks = [rows[start : start + n_block] for start in starts[i : i + n_starts]]
        yield rng.permutation(np.concatenate(blocks))
