"""Grouping: the rows of a table as objects, whatever order they come in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.tables.columns import Column


class Grouping(NamedTuple):
    """Which object each row belongs to.

    Attributes
    ----------
    ids : ndarray, shape (N,)
        In order of appearance.
    owner : ndarray of int, shape (n_rows,)
        The place of each row's object among them.
    """

    ids: NDArray
    owner: NDArray[np.int64]

    def count(self, rows: NDArray) -> NDArray[np.int64]:
        """Return how many of ``rows``, an index or flags, each object has, shape (N,)."""
        return np.bincount(self.owner[rows], minlength=len(self.ids))

    def in_order(
        self, time: NDArray[np.float64] | None, keep: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Return the rows to keep, object after object, by time or as they came."""
        rows = np.flatnonzero(keep)
        own = self.owner[rows]
        if time is None:
            return rows[np.argsort(own, kind="stable")]
        now, step = time[rows], np.diff(own)
        if ((step > 0) | ((step == 0) & (np.diff(now) >= 0))).all():
            return rows  # as most archives give them
        return rows[np.lexsort((now, own))]

    def one_each(self, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the one value that a column has in all rows of each object, shape (N,)."""
        first = np.empty(len(self.ids))
        first[self.owner[::-1]] = values[::-1]
        differs = values != first[self.owner]
        if differs.any():
            row = int(differs.argmax())
            own = self.owner[row]
            raise ValueError(
                f"{name} must be one finite number for each object, but is {values[row]:g} beside "
                f"{first[own]:g} in rows of {self.ids[own]!s}. Leave it out of scalars, or name it "
                "as a coordinate."
            )
        return first


def group(values: NDArray, texts: NDArray | None = None) -> Grouping:
    """Return the objects of rows with the same value; a value may be a place among texts.

    Examples
    --------
    >>> group(np.array([7, 5, 7]))
    Grouping(ids=array([7, 5]), owner=array([0, 1, 0]))
    """
    found, codes = np.unique(values, return_inverse=True)
    first = np.empty(len(found), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of equal places, the last assigned stays
    order = np.argsort(first)
    ids = whole(found) if texts is None else texts[found]
    return Grouping(ids[order], np.argsort(order)[codes])


def group_by(name: str, column: Column) -> Grouping:
    """Return the objects that a column of ids tells apart."""
    if column.missing.any():
        raise ValueError(
            f"id must be given in every row, but {name!r} has none in {int(column.missing.sum())} "
            f"of {len(column.missing)} (first: row {int(column.missing.argmax())}). Drop these "
            "rows."
        )
    return group(column.values, column.texts)


def one_group(name: str | int, n_rows: int) -> Grouping:
    """Return all rows as one object."""
    return Grouping(np.array([name]), np.zeros(n_rows, np.int64))


def whole(ids: NDArray) -> NDArray:
    """Return numbers of objects as whole ones: a column with gaps once may hold floats."""
    if ids.dtype.kind != "f":
        return ids
    wrong = (ids != np.round(ids)) | (np.abs(ids) >= 2**53)
    if wrong.any():
        raise ValueError(
            f"id must hold texts or whole numbers, but holds {ids[wrong][0]}. Say which column is "
            "the id, or id=False for one object."
        )
    return ids.astype(np.int64)
