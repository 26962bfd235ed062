"""What a store of simulations holds: its manifest, and one row of each column."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.io.archive import PLAIN_DTYPES
from nbi_plus.io.header import encode_header

KIND = "simulations"
_RESERVED = (
    "header",
    "state",
    "done",
    "checksums",
    "start",
    "self",
)  # datasets, and arguments of write
_DTYPES = {dtype.name: dtype for dtype in PLAIN_DTYPES}
_LONG = 200


class StoreError(ValueError):
    """A file of simulations is broken, in use, or was written for something else."""


@dataclass(frozen=True)
class ColumnLayout:
    """One row of a column.

    Attributes
    ----------
    shape : tuple of int
        Its shape; () is a number.
    dtype : str
        Its dtype, by the name that numpy gives it.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """How many bytes a row takes."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Layout:
    """What is fixed when a store is made, except its capacity.

    Attributes
    ----------
    manifest : dict
        JSON that says what the rows depend on.
    columns : dict of str to Column
        What the user stores.
    """

    manifest: dict[str, object]
    columns: dict[str, ColumnLayout]

    @property
    def written(self) -> dict[str, ColumnLayout]:
        """What comes with each row: the user's columns, and its state."""
        return {**self.columns, "state": ColumnLayout((), "uint8")}

    @property
    def stored(self) -> dict[str, ColumnLayout]:
        """What is stored of each row: all that, and a checksum of each."""
        return {**self.written, "checksums": ColumnLayout((len(self.written),), "uint32")}

    @property
    def stored_before(self) -> dict[str, ColumnLayout]:
        """What earlier versions stored of each row."""
        return {**self.written, "done": ColumnLayout((), "uint8")}

    def names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Return names of what is written, or of all columns if None is given."""
        names = tuple(self.columns if names is None else names)
        if unknown := set(names) - set(self.written):
            known = tuple(self.columns)
            raise ValueError(f"names must be of {known}, but has {sorted(unknown)}. Rename them.")
        return names

    def header(self) -> bytes:
        """Return the header of a file of this layout."""
        columns = {
            name: {"shape": column.shape, "dtype": column.dtype}
            for name, column in self.columns.items()
        }
        return encode_header(KIND, {"manifest": self.manifest, "columns": columns})

    def rows(self, arrays: Mapping[str, ArrayLike]) -> dict[str, NDArray]:
        """Return the arrays of k rows as they are stored, or say which does not fit."""
        wanted = self.written
        if arrays.keys() != wanted.keys():
            raise ValueError(
                f"columns must be {sorted(wanted)}, but are {sorted(arrays)}. Give each of them."
            )
        rows = {name: np.asarray(arrays[name]) for name in wanted}
        for name, column in wanted.items():
            shape = (rows["state"].size, *column.shape)
            if rows[name].shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape}, but has {rows[name].shape}. "
                    "Give each row of state its row."
                )
            if not np.can_cast(rows[name].dtype, column.dtype, "safe"):
                raise ValueError(
                    f"{name} must fit into {column.dtype} without loss, but is {rows[name].dtype}. "
                    f"Convert it with astype({column.dtype!r})."
                )
        return {
            name: rows[name].astype(column.dtype, copy=False) for name, column in wanted.items()
        }


def make_layout(
    manifest: Mapping[str, object],
    columns: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
) -> Layout:
    """Return the layout of columns with these shapes, float64 where no dtype is given."""
    if unknown := set(dtypes) - set(columns):
        raise ValueError(
            f"dtypes must be those of {tuple(columns)}, but name {sorted(unknown)}. Rename them."
        )
    encode_header(KIND, manifest, "manifest")
    return Layout(
        json.loads(json.dumps(dict(manifest))),  # as it will be read: tuples become lists
        {n: _column(n, shape, dtypes.get(n, "float64")) for n, shape in columns.items()},
    )


def layout_of(meta: Mapping[str, object]) -> Layout:
    """Return the layout that the header of a file describes."""
    shapes = {name: column["shape"] for name, column in meta["columns"].items()}
    dtypes = {name: column["dtype"] for name, column in meta["columns"].items()}
    return make_layout(meta["manifest"], shapes, dtypes)


def _column(name: str, shape: tuple[int, ...], dtype: str) -> ColumnLayout:
    if not name.isidentifier() or name in _RESERVED:
        raise ValueError(
            f"columns must be named by identifiers other than {_RESERVED}, but one is {name!r}. "
            "Rename it."
        )
    if dtype not in _DTYPES:
        raise ValueError(f"{name} must have a dtype of {sorted(_DTYPES)}, but has {dtype!r}.")
    return ColumnLayout(tuple(positive(f"shape of {name}", size) for size in shape), dtype)


def positive(name: str, value: int) -> int:
    """Return a count as int, if it is one and not zero."""
    value = operator.index(value)
    if value < 1:
        raise ValueError(f"{name} must be positive, but is {value}. Use 1 or more.")
    return value


def check_same(source: str, stored: Layout, wanted: Layout) -> None:
    """Refuse a file that was written for something else, saying for what."""
    shapes = [{name: c.shape for name, c in it.columns.items()} for it in (stored, wanted)]
    dtypes = [{name: c.dtype for name, c in it.columns.items()} for it in (stored, wanted)]
    found = (
        _difference(stored.manifest, wanted.manifest, "")
        or _difference(*shapes, "row shape")
        or _difference(*dtypes, "dtype")
    )
    if found:
        label, old, new = found
        raise StoreError(
            f"{source} was written for {label} {old}, but this run has {new}. "
            "Use another path, or delete it."
        )


def _difference(old: object, new: object, label: str) -> tuple[str, str, str] | None:
    """Return where two JSON values differ first, and what each has there."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (label, _say(old), _say(new))
    for key in {**new, **old}:
        inner = f"{label}.{key}" if label else key
        if key not in old or key not in new:
            return inner, _say(old.get(key, "nothing")), _say(new.get(key, "nothing"))
        if found := _difference(old[key], new[key], inner):
            return found
    return None


def _say(value: object) -> str:
    text = repr(tuple(value) if isinstance(value, list) else value)
    return text if len(text) <= _LONG else text[:_LONG] + "..."
