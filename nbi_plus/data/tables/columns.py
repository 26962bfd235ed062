"""Columns: what any kind of table holds, as numpy arrays that say what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.ingest import ingest, is_time, times

_NO_TEXT = ("", "None", "nan", "NaN", "<NA>", "--")
NOTE = "nbi_plus"  # where a table that we wrote says what its columns are


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
    clock : str or None
        What its times count from, as formats of astropy's Time are called, where the column knows.
    """

    values: NDArray
    missing: NDArray[np.bool_]
    texts: NDArray[np.str_] | None = None
    unit: str | None = None
    clock: str | None = None


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
    about : mapping
        What else the table says of itself: the meta of an astropy table.
    """

    names: tuple[str, ...]
    n_rows: int
    load: Callable[[Sequence[str]], dict[str, Column]]
    owner: NDArray[np.int64] | None = None
    label: str | None = None
    source: str | None = None
    layout: Mapping[str, object] = field(default_factory=dict)
    about: Mapping[str, object] = field(default_factory=dict)

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
    """Return a column of numbers, flags, texts, or times, with or without a unit and a mask.

    Dates become days (MJD), a ``Time`` the numbers of its format.

    Examples
    --------
    >>> column("band", ["r", "g", "r"]).values
    array([1, 0, 1])
    """
    array, bad, unit, clock = _opened(name, values, unit)
    if array.ndim != 1:
        raise ValueError(
            f"column {name!r} must hold one value a row, but has shape {array.shape}. Lay it out "
            "as one row for each point."
        )
    gaps = np.zeros(len(array), bool) if missing is None else np.asarray(missing, bool)
    gaps = gaps if bad is None else gaps | bad
    if array.dtype.kind in "SU":
        return _of_texts(array, gaps, unit)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"column {name!r} must hold numbers, flags or texts, but has type {array.dtype}."
        )
    gaps = gaps | np.isnan(array) if array.dtype.kind == "f" else gaps
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Column(native, gaps, unit=unit, clock=clock)


def noted(text: str | bytes | None) -> dict[str, object]:
    """Return the layout that stands in the note of a table, if any."""
    layout = json.loads(text) if text else {}
    if not isinstance(layout, dict):
        raise ValueError(f"its note {NOTE!r} must be an object of JSON, but is {layout!r:.50}")
    return layout


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


def _opened(
    name: str, values: ArrayLike, unit: str | None
) -> tuple[NDArray, NDArray[np.bool_] | None, str | None, str | None]:
    """Return the bare array, what is masked in it, its unit and its clock."""
    if is_time(values):
        return times(values)
    array, came = ingest(name, values)
    bad = None if np.ma.getmask(array) is np.ma.nomask else np.ma.getmaskarray(array)
    clock = "mjd" if came == "d" and _are_dates(values) else None
    return np.asarray(np.ma.getdata(array)), bad, unit or came or None, clock


def _are_dates(values: ArrayLike) -> bool:
    kind = getattr(getattr(values, "dtype", None), "kind", "O")
    first = next((v for v in values if v is not None), None) if kind == "O" else None
    return kind == "M" or callable(getattr(first, "isoformat", None))
