"""Repeats: rows of a table that are one point, seen twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbi_plus.arguments import one_of
from nbi_plus.data.tables.columns import Column, Table
from nbi_plus.data.tables.grouping import Grouping
from nbi_plus.data.tables.surveys import Roles, telling

_LOG = logging.getLogger("nbi_plus")
_WAYS = ("merge", "keep", "refuse")
_PLACES = ("t", "wavelength")
_OURS = (*_PLACES, "band", "instrument")  # coordinates that repeats have in common


class Points(NamedTuple):
    """Data and errors (C, n) of a table, coordinates, and which rows are used, in which order."""

    x: NDArray[np.float64]
    x_err: NDArray[np.float64] | None
    coords: Mapping[str, NDArray]
    rows: NDArray[np.int64]


def find_repeats(
    table: Table, roles: Roles, objects: Grouping, points: Points, way: str
) -> NDArray[np.bool_]:
    """Return which rows are left out, being an earlier one of the same object again.

    They have its time, wavelength, band, instrument, data and errors, whatever their other
    coordinates; without time and wavelength, those count too.

    Parameters
    ----------
    table : Table
    roles : Roles
    objects : Grouping
    points : Points
    way : {"merge", "keep", "refuse"}

    Returns
    -------
    ndarray of bool, shape (n_rows,)
    """
    found = np.zeros(table.n_rows, bool)
    if way == "keep" or not points.coords:
        return found
    placed = set(_PLACES) & set(points.coords)
    own = {k: v for k, v in points.coords.items() if k in _OURS or not placed}
    place, rows = next((own.pop(k) for k in _PLACES if k in own), None), points.rows
    if table.layout:  # what we wrote is in its own order
        rows = rows[np.lexsort((0 * rows if place is None else place[rows], objects.owner[rows]))]
    owner, place = objects.owner[rows], None if place is None else place[rows]
    errors = [] if points.x_err is None else [*points.x_err]
    others = [values[rows] for values in (*own.values(), *points.x, *errors)]
    again = repeats(owner, place, others)
    more = [n for n in telling(table.names) if n not in roles.columns]
    if more and again.any():  # only then are columns without a role worth loading
        others += [_numbers(column)[rows] for column in table.load(more).values()]
        again = repeats(owner, place, others)
    found[rows[again]] = True
    if way == "refuse" and again.any():
        raise ValueError(
            f"table must hold each point once, but {int(again.sum())} have the time, band, data "
            f"and errors of another (first: of object {objects.ids[owner[again]][0]!s}). Give "
            'duplicates="merge" or "keep".'
        )
    return found


def repeats(
    owner: NDArray[np.int64], place: NDArray | None, others: Sequence[NDArray]
) -> NDArray[np.bool_]:
    """Return which rows are as an earlier one; NaN is as NaN.

    Parameters
    ----------
    owner : ndarray of int, shape (n,)
        The object of each row.
    place : ndarray or None, shape (n,)
        Times, by which the rows of an object are sorted.
    others : sequence of ndarray, shape (n,)
        What else repeats have in common.

    Examples
    --------
    >>> repeats(np.zeros(3, int), np.array([1.0, 1.0, 2.0]), [np.array([5.0, 5.0, 5.0])]).tolist()
    [False, True, False]
    """
    found = np.zeros(len(owner), bool)
    near = np.diff(owner) == 0
    if place is not None:
        near &= np.diff(place) == 0
    if not near.any():
        return found  # as in most tables: no object has two points at one time
    near = np.concatenate([[False], near])
    rows = np.flatnonzero(near | np.append(near[1:], False))
    run = np.cumsum(~near)[rows]
    codes = [run, *(_code(values[rows]) for values in others)]
    order = np.lexsort(codes[::-1])  # which keeps the order of what is equal
    same = np.ones(len(rows) - 1, bool)
    for code in codes:
        same &= np.diff(code[order]) == 0
    found[rows[order[1:][same]]] = True
    return found


def check_way(duplicates: str | None) -> None:
    """Refuse an unknown word for what becomes of repeats."""
    if duplicates is not None:
        one_of("duplicates", duplicates, _WAYS)


def report_repeats(counts: NDArray[np.int64]) -> None:
    """Log how many repeats were left out of the objects, if any."""
    if counts.any():
        _LOG.warning('%d points of %d objects were seen twice, and are used once. Give duplicates='
                     '"keep" if they are different measurements.', counts.sum(),
                     (counts > 0).sum())  # fmt: skip


def _code(values: NDArray) -> NDArray:
    """Return whole numbers that are equal where values are, NaN being equal to NaN."""
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    known = np.where(np.isnan(values), np.nan, values.astype(np.float64) + 0.0)  # no -0
    return known.view(np.int64)


def _numbers(column: Column) -> NDArray:
    return np.where(column.missing, np.nan, column.values.astype(np.float64))
