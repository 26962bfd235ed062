"""Columns: what any kind of table holds, as numpy arrays that say what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NO_TEXT = ("", "None", "nan", "NaN", "<NA>", "--")
_MJD_0 = np.datetime64("1858-11-17")


@dataclass(frozen=True)
class Column:
    """One column of n rows.

    Attributes
    ----------
    values : ndarray, shape (n,)
        Numbers or flags; for texts, the place of each in `texts`.
    missing : ndarray of bool, shape (n,)
        Where there is no value, or NaN.
    texts : ndarray of str or None
        The different texts of the column, sorted.
    unit : str or None
    """

    values: NDArray
    missing: NDArray[np.bool_]
    texts: NDArray[np.str_] | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Table:
    """A table whose columns are made when they are asked for.

    Attributes
    ----------
    names : tuple of str
    n_rows : int
    load : callable
        Takes names, returns a dict of `Column`.
    owner : ndarray of int, shape (n_rows,), or None
        The row of a nested table that a row was unfolded from.
    label : str or None
        What the table itself calls its object, where it has but one.
    source : str or None
        The name of the file that it is in, which names the object otherwise.
    layout : mapping
        What `Observations.write` noted about its columns; empty for other tables.
    """

    names: tuple[str, ...]
    n_rows: int
    load: Callable[[Sequence[str]], dict[str, Column]]
    owner: NDArray[np.int64] | None = None
    label: str | None = None
    source: str | None = None
    layout: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ValueError(
                f"table must have one column for each name, but has {twice} more than once. "
                "Rename or drop them."
            )


def column(
    name: str, values: ArrayLike, missing: ArrayLike | None = None, unit: str | None = None
) -> Column:
    """Return a column of an array: numbers, flags, texts, or dates, which become days (MJD).

    Examples
    --------
    >>> column("band", ["r", "g", "r"]).values
    array([1, 0, 1])
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(
            f"column {name!r} must hold one value a row, but has shape {array.shape}. Lay it out "
            "as one row for each point."
        )
    gaps = np.zeros(len(array), bool) if missing is None else np.asarray(missing, bool)
    if array.dtype.kind == "O":
        array = _plain(name, array)
    if array.dtype.kind in "SU":
        return _of_texts(array, gaps, unit)
    if array.dtype.kind == "M":
        return Column((array - _MJD_0) / np.timedelta64(1, "D"), gaps | np.isnat(array), unit="d")
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"column {name!r} must hold numbers, flags or texts, but has type {array.dtype}."
        )
    gaps = gaps | np.isnan(array) if array.dtype.kind == "f" else gaps
    return Column(array.astype(array.dtype.newbyteorder("="), copy=False), gaps, unit=unit)


def coded(codes: NDArray, texts: ArrayLike, missing: NDArray, unit: str | None = None) -> Column:
    """Return a column of texts by their places among ``texts``, which may repeat or be padded."""
    stripped = np.char.strip(np.asarray(texts).astype(str)) if len(texts) else np.array([""])
    names, place = np.unique(stripped, return_inverse=True)
    values = place[np.where(missing, 0, codes)]
    return Column(values, missing | np.isin(names, _NO_TEXT)[values], names, unit)


def _of_texts(array: NDArray, missing: NDArray, unit: str | None) -> Column:
    if not len(array):
        return coded(np.zeros(0, np.int64), array, missing, unit)
    # neighbours are often alike, and comparing them is cheaper than sorting all
    new = np.concatenate([[True], array[1:] != array[:-1]])
    found, codes = np.unique(array[new], return_inverse=True)
    texts = np.char.decode(found, "utf-8") if found.dtype.kind == "S" else found
    return coded(codes[np.cumsum(new) - 1], texts, missing, unit)


def _plain(name: str, array: NDArray) -> NDArray:
    """Return an array of objects as texts, if any is a text, or else as numbers."""
    if {str, bytes} & set(map(type, array)):
        return array.astype(str)
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"column {name!r} must hold numbers, flags or texts, but holds objects ({error}). "
            "Convert it first."
        ) from error
