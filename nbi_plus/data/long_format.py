"""The long format: one row for each point, laid out as objects and back."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.flat import FlatData
from nbi_plus.data.ingested import Act, Ingest
from nbi_plus.data.packing import Categories, Packed
from nbi_plus.data.tables.clocks import are_dates, on_clock, with_clock
from nbi_plus.data.tables.columns import Column, Table
from nbi_plus.data.tables.grouping import Grouping, group, group_by, one_group
from nbi_plus.data.tables.repeats import Points, check_way, find_repeats, report_repeats
from nbi_plus.data.tables.surveys import Names, Roles, find_roles
from nbi_plus.data.tables.zero_points import ZeroPoints, find_zero_points, scaling
from nbi_plus.data.units import factor

ORIGIN = "t_origin"
_LOG = logging.getLogger("nbi_plus")


class Wishes(NamedTuple):
    """What a reader asks for: scalars (name to column), categories, units, a zero point, ..."""

    scalars: Mapping[str, str]
    categories: Categories
    units: Mapping[str, str]
    zero_point: float | None = None
    zp: str | bool | None = None
    time: str | None = None
    duplicates: str | None = None


class LongFormat(NamedTuple):
    """What `Observations` are made of, and the rows dropped of and repeated in each object (N,)."""

    packed: Packed
    scalars: dict[str, NDArray[np.float64]]
    ids: NDArray
    categories: dict[str, Sequence[str]]
    units: dict[str, str]
    dropped: NDArray[np.int64]
    repeated: NDArray[np.int64]
    clock: str | None
    origins: NDArray[np.float64] | None = None


def unstack(table: Table, given: Mapping[str, Names], wishes: Wishes) -> LongFormat:
    """Return the rows of a table as objects in order of appearance, each sorted by time.

    Parameters
    ----------
    table : Table
    given : mapping of role to column
        See `nbi_plus.data.tables.surveys.find_roles`.
    wishes : Wishes

    Returns
    -------
    LongFormat
        Rows without a finite coordinate or without a band are dropped, and so are repeats unless
        they are to be kept; those of what we wrote ourselves are, by default.
    """
    check_way(wishes.duplicates)
    if not table.n_rows:
        raise ValueError("table must have at least one row, but has none.")
    roles = find_roles(table.names, given)
    _check_wishes(wishes, roles, table.names)
    origin = [ORIGIN] if table.layout and ORIGIN in table.names else []
    zero = _zero_points(table, roles, wishes)
    named = (*roles.columns, *wishes.scalars.values(), *origin, *zero.columns)
    columns = _timed(roles, table.load([*dict.fromkeys(named)]), wishes.time)
    objects = _objects(table, roles, columns)
    if given.get("id") is None:
        _report_guess(roles.id, len(objects.ids), table)
    band = columns.get(roles.coords.get("band"))
    scale = scaling(zero, columns, roles.x, band, wishes.zero_point)
    x, x_err, units = _data(roles, columns, wishes, scale)
    coords, categories, keep = _coordinates(roles, columns, wishes, units)
    scalars = {
        k: objects.one_each(k, _number(k, c, columns[c], wishes.units.get(k), units))
        for k, c in wishes.scalars.items()
    }
    times = [_number(c, c, columns[c], units.get("t"), {}) for c in origin]
    by = None if table.layout else coords.get("t", coords.get("wavelength"))
    rows = objects.in_order(by, keep)  # what we wrote keeps the order that it had
    way = wishes.duplicates or ("keep" if table.layout else "merge")
    again = find_repeats(table, roles, objects, Points(x, x_err, coords, rows), way)
    rows = rows[~again[rows]]
    packed = Packed(
        x=x[:, rows],
        x_err=None if x_err is None else x_err[:, rows],
        mask=np.ones((len(x), len(rows)), bool),
        lengths=objects.count(rows),
        points={k: v[rows] for k, v in coords.items()},
        shared_grid=False,
    )
    origins = [objects.one_each(ORIGIN, values) for values in times]
    lost, repeated = objects.count(~keep), objects.count(again)
    clock = columns[roles.coords["t"]].clock if "t" in coords else None
    return LongFormat(
        packed, scalars, objects.ids, categories, units, lost, repeated, clock, *origins
    )


def report(n_points: int, n_dropped: int, obs: FlatData, clock: str | None) -> None:
    """Log what times were read, and how much of a table is not used, if anything."""
    if obs.points.get("t", np.zeros(0)).size:
        first, last = obs.points["t"].min(), obs.points["t"].max()
        by = clock or "bare numbers"
        if obs.units.get("t", "d") != "d" or are_dates(first, last, by):
            _LOG.info("t: times from %.10g to %.10g (%s).", first, last, by)
        else:
            _LOG.warning("t: times from %.10g to %.10g (%s) are no dates that people observe at. "
                         "Do the numbers count from something else?", first, last, by)  # fmt: skip
    report_repeats(obs.n_duplicates)
    n_masked = int(obs.n_masked.sum()) - n_dropped
    if n_masked or n_dropped:
        _LOG.warning(
            "Of %d points, %d are masked (data or error not finite, or error not positive) and "
            "%d left out (without time or band).", n_points, n_masked, n_dropped,
        )  # fmt: skip


def table_acts(table: Table, found: LongFormat, n_masked: int) -> Ingest:
    """Return what was done to the rows of a table."""
    n_points, n_objects = len(found.packed.mask.T), len(found.ids)
    acts = (
        Act("read", table.n_rows, "rows"),
        Act("duplicates", int(found.repeated.sum()), "points", "the same again: used once"),
        Act("left out", int(found.dropped.sum()), "points", "without time or band"),
        Act("masked", n_masked, "points", "data or error not finite, or error not positive"),
        Act("kept", n_points - n_masked, "points", f"of {n_objects} objects"),
    )
    return Ingest(tuple(act for act in acts if act.n or act.act not in ("left out", "masked")))


def _report_guess(name: str | None, n: int, table: Table) -> None:
    """Log a guess of the id that makes objects of all rows or of each."""
    if name is None and table.owner is None and table.label is None:
        _LOG.warning("No column is known as the id: all rows are one object. Give id=, or "
                     "id=False if they are. The columns are %s.", list(table.names))  # fmt: skip
    elif n == table.n_rows > 1:
        _LOG.warning("Each row of the column %r, guessed as the id, is another object. Give id= "
                     "if that is not meant.", name)  # fmt: skip


def _objects(table: Table, roles: Roles, columns: Mapping[str, Column]) -> Grouping:
    """Return the objects: by id, by the row of a nested table, or all rows as one."""
    if roles.id is not None:
        return group_by(roles.id, columns[roles.id])
    if table.owner is not None:
        return group(table.owner)
    return one_group(table.label or table.source or 0, table.n_rows)


def _zero_points(table: Table, roles: Roles, wishes: Wishes) -> ZeroPoints:
    """Return the columns of zero points among those without another meaning."""
    taken = {*roles.columns, *wishes.scalars.values()}
    came = False if table.layout and wishes.zp is None else wishes.zp
    return find_zero_points([n for n in table.names if n not in taken], roles.x, came)


def _timed(roles: Roles, columns: dict[str, Column], wanted: str | None) -> dict[str, Column]:
    """Return the columns with the times by the clock that is wanted, or their own."""
    name = roles.coords.get("t")
    if name is None and wanted is not None:
        raise ValueError(f"time={wanted!r} must be asked of times, but there are none. Give t=.")
    if name is None or columns[name].texts is not None:
        return columns
    times = with_clock(name, columns[name])
    return columns | {name: times if wanted is None else on_clock(name, times, wanted)}


def _data(
    roles: Roles, columns: Mapping[str, Column], wishes: Wishes, scale: NDArray | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, dict[str, str]]:
    """Return data and errors (C, n) in one unit, and that unit; fluxes by a scale, if given."""
    is_mag = wishes.zero_point is not None and scale is None
    units: dict[str, str] = {}
    wanted = "mag" if is_mag else wishes.units.get("x")
    x = np.array([_number("x", c, columns[c], wanted or units.get("x"), units) for c in roles.x])
    x_err = None
    if roles.x_err:
        x_err = np.array([_error(c, columns[c], units) for c in roles.x_err])
        if len(x_err) != len(x):
            raise ValueError(
                f"x_err must have a column for each of {roles.x}, but has {roles.x_err}."
            )
    if is_mag:
        x, x_err = to_flux(x, x_err, wishes.zero_point)
        units = {"x": wishes.units["x"]} if "x" in wishes.units else {}
    if scale is not None:
        x, x_err = x * scale, None if x_err is None else x_err * scale
    return x, x_err, units


def _error(name: str, column: Column, units: Mapping[str, str]) -> NDArray[np.float64]:
    """Return errors in the unit of the data, which a magnitude's name says less exactly."""
    if column.unit is not None and "x" not in units:
        raise ValueError(
            f"x must be in the unit of its error {name!r}, {column.unit!r}, but has none. Give "
            f'units={{"x": {column.unit!r}}}, or drop the unit of the error.'
        )
    return _number("x_err", name, column, _plain(units["x"]) if "x" in units else None, {})


def _number(
    role: str, name: str, column: Column, wanted: str | None, units: dict[str, str]
) -> NDArray[np.float64]:
    """Return a column as numbers, NaN where missing, in the wanted unit; note that in ``units``."""
    if column.texts is not None and not column.missing.all():
        _refuse_texts(role, name, column)
    values = np.where(column.missing, np.nan, column.values.astype(np.float64))
    unit = wanted or column.unit
    if unit is None:
        return values
    came = column.unit or unit
    units[role] = unit
    by = 1.0 if unit in (came, _plain(came)) else factor(came, unit, role)
    return values if by == 1.0 else values * by


def _plain(unit: str) -> str:
    """Return "mag" for magnitudes of any system: their differences are the same."""
    return "mag" if unit.startswith("mag(") else unit


def _refuse_texts(role: str, name: str, column: Column) -> None:
    """Show the first text that is no number, or else the first of all."""
    real = ~column.missing
    bad = real & ~np.array([_is_number(text) for text in column.texts])[column.values]
    row = int(bad.argmax() if bad.any() else real.argmax())
    text = str(column.texts[column.values[row]])
    raise TypeError(
        f"{role} must be a column of numbers, but in {name!r} row {row} holds the text {text!r}. "
        f"Convert the column, as with table[{name!r}].astype(float), or say which column is {role}."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _coordinates(
    roles: Roles, columns: Mapping[str, Column], wishes: Wishes, units: dict[str, str]
) -> tuple[dict[str, NDArray], dict[str, Sequence[str]], NDArray[np.bool_]]:
    """Return coordinates, the names of categories, and which rows have all coordinates."""
    coords, categories = {}, {}
    keep = np.ones(len(next(iter(columns.values())).values), bool)
    for role, name in roles.coords.items():
        column = columns[name]
        if role == "upper_limit" or (column.values.dtype == bool and role != "band"):
            coords[role] = _flags(role, name, column)
        elif role == "band" or role in wishes.categories or _is_of_texts(role, column):
            wished = wishes.categories.get(role)
            coords[role], categories[role] = _categories(role, column, wished)
            keep &= ~column.missing
        else:
            coords[role] = _number(role, name, column, wishes.units.get(role), units)
            keep &= np.isfinite(coords[role])
    return coords, categories, keep


def _is_of_texts(role: str, column: Column) -> bool:
    return column.texts is not None and role not in ("t", "wavelength")


def _flags(role: str, name: str, column: Column) -> NDArray[np.bool_]:
    """Return flags, False where missing; 0 and 1, "true" and "false" are flags, too."""
    values = column.values
    if column.texts is not None:
        known = {"true": 1, "t": 1, "1": 1, "false": 0, "f": 0, "0": 0}
        values = np.array([known.get(text.lower(), 2) for text in column.texts])[values]
    wrong = ~column.missing & ~np.isin(values, (0, 1))
    if wrong.any():
        raise ValueError(
            f"{role} must be a column of flags, but row {int(wrong.argmax())} of {name!r} holds "
            "neither true nor false."
        )
    return ~column.missing & (values == 1)


def _categories(
    role: str, column: Column, wished: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the codes of a column of texts, or of whole numbers by their names."""
    texts, codes = column.texts, column.values
    if texts is None:
        found, codes = np.unique(np.where(column.missing, 0, codes), return_inverse=True)
        texts = np.array([np.format_float_positional(value, trim="-") for value in found])
    used = np.bincount(codes[~column.missing], minlength=len(texts)) > 0
    names = tuple(map(str, wished)) if wished else tuple(texts[used].tolist())
    unknown = sorted(set(texts[used].tolist()) - set(names))
    if unknown:
        raise ValueError(
            f"{role} must be one of {names}, but has {unknown}. Leave those rows out, or name them "
            "in the categories."
        )
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(text, 0) for text in texts])[codes], names


def _check_wishes(wishes: Wishes, roles: Roles, names: Sequence[str]) -> None:
    """Refuse scalars that are no columns, and units of what is not there."""
    missing = [c for c in wishes.scalars.values() if c not in names]
    known = {"x", *roles.coords, *wishes.scalars}
    unknown = sorted(set(wishes.units) - known)
    if unknown:
        raise ValueError(
            f"units must be of {sorted(known)}, but {unknown} are none of these. Name the role, "
            'as {"x": "mJy"}, not the column.'
        )
    if missing:
        raise ValueError(
            f"scalars must name columns, but {missing} are none. The columns are {list(names)}."
        )


def to_flux(
    mag: NDArray[np.float64], mag_err: NDArray[np.float64] | None, zero_point: float
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    r"""Return fluxes and errors of magnitudes m: :math:`f = 10^{-0.4 (m - m_0)}`.

    Errors are carried over to first order, :math:`\sigma_f = f \sigma_m \ln(10) / 2.5`. What is not
    finite becomes NaN (an infinite magnitude is no measurement of zero flux).

    Parameters
    ----------
    mag, mag_err : ndarray, shape (...)
        Magnitudes and standard deviations, or None.
    zero_point : float
        The magnitude of flux 1: 8.9 for AB magnitudes and Jy, 31.4 for AB magnitudes and nJy.

    Returns
    -------
    flux, flux_err : ndarray, shape (...)

    Examples
    --------
    >>> to_flux(np.array([8.9, 6.4]), None, 8.9)[0]
    array([ 1., 10.])
    """
    if not math.isfinite(zero_point):
        raise ValueError(f"zero_point must be a finite magnitude, but is {zero_point}.")
    flux = np.where(np.isfinite(mag), 10 ** (-0.4 * (mag - zero_point)), np.nan)
    return flux, None if mag_err is None else flux * mag_err * (math.log(10) / 2.5)
