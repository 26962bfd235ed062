r"""Checksums of rows: 32 bits for each row of each column, of its bytes and its number.

With the 32-bit words :math:`w_j` of a row and fixed random 64-bit keys :math:`k_j` of its column,
the sum is the upper half of :math:`k_0 + \sum_j k_{j+1} w_j` modulo :math:`2^{64}`, or 1 where that
is 0. The number of the row makes the first two words, so that a row in the place of another does
not agree. A change passes with a chance of :math:`2^{-32}`. It is one product of integers for many
rows, where a CRC would need a call for each of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nbi_plus.io.blocks import RowSource, rows_per_block

_WORD = 4
_N_NUMBER = 2  # words of a row's number


def row_checksums(columns: Mapping[str, NDArray], numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the checksums of rows; none is 0, which stands for rows that were never written.

    Parameters
    ----------
    columns : mapping of str to ndarray, shape (k, ...)
        As they are stored.
    numbers : ndarray of int64, shape (k,)
        Which rows they are.

    Returns
    -------
    ndarray of uint32, shape (k, n_columns)

    Examples
    --------
    >>> row_checksums({"x": np.zeros((2, 3))}, np.array([0, 1])).shape
    (2, 1)
    """
    sums = [_of_column(name, values, numbers) for name, values in columns.items()]
    return np.stack(sums, 1) if sums else np.zeros((len(numbers), 0), np.uint32)


def whole_rows(
    data: Mapping[str, RowSource], names: tuple[str, ...], sums: RowSource
) -> tuple[NDArray[np.bool_], int]:
    """Return which rows (n,) agree with their checksums, and how many were written but do not.

    Parameters
    ----------
    data : mapping of str to RowSource, shape (n, ...)
    names : tuple of str, length k
        What the checksums are of, in order.
    sums : RowSource, shape (n, k)
    """
    n_rows = sums.shape[0]
    whole, n_bad = np.zeros(n_rows, bool), 0
    step = rows_per_block(sum(_row_bytes(data[name]) for name in names))
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        stored = sums[rows]
        written = stored.any(1)
        if written.any():
            numbers = np.arange(rows.start, rows.stop)
            found = row_checksums({name: data[name][rows] for name in names}, numbers)
            whole[rows] = (found == stored).all(1)
            n_bad += int(np.count_nonzero(written & ~whole[rows]))
    return whole, n_bad


def _row_bytes(data: RowSource) -> int:
    return int(np.prod(data.shape[1:])) * data.dtype.itemsize


def _of_column(name: str, values: NDArray, numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
    n_bytes = _row_bytes(values)
    n_words = -(-n_bytes // _WORD)
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(len(numbers), n_bytes)
    if n_bytes % _WORD:
        padded = np.zeros((len(raw), n_words * _WORD), np.uint8)
        padded[:, :n_bytes] = raw
        raw = padded
    number = numbers.astype("<u8")[:, None].view("<u4")
    keys = _keys(name, 1 + _N_NUMBER + n_words)
    mixed = np.einsum("ij,j->i", raw.view("<u4"), keys[1 + _N_NUMBER :], dtype=np.uint64)
    mixed += np.einsum("ij,j->i", number, keys[1 : 1 + _N_NUMBER], dtype=np.uint64)
    mixed += keys[:1]
    return np.maximum(mixed >> np.uint64(32), np.uint64(1)).astype(np.uint32)


@lru_cache(maxsize=16)
def _keys(name: str, n: int) -> NDArray[np.uint64]:
    """Return the keys of a column: splitmix64 of a counter that the name begins."""
    keys = np.arange(n, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
    keys *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    keys.setflags(write=False)
    return keys
