"""Light curves: tables of ZTF's data releases and of sncosmo, one row a point or lists in rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.ingested import Act
from nbi_plus.data.long_format import to_flux
from nbi_plus.data.surveys.points import (
    About,
    SurveyCurves,
    SurveyPoints,
    SurveyWishes,
    asked_flags,
    check_columns,
    cut,
    joined,
    latest,
    limited,
    names_of_objects,
    numbers,
    one_of,
    texts,
)
from nbi_plus.data.tables.columns import Column, Table
from nbi_plus.data.tables.table_files import FORMATS, found_files, read_table, suffix_of
from nbi_plus.data.tables.tables import arrow_of_frame, as_table, is_of_lists, of_arrays, of_arrow
from nbi_plus.data.tables.zero_points import most_common

_FAINTEST = 90.0  # beyond which numbers are no magnitudes
_TEXTS = (".dat", ".txt", ".lc")  # as sncosmo writes light curves
_UNUSABLE = {"catflags": 32768}
_BANDS = ("g", "r", "i")
_NUMBERED = {"1": "g", "2": "r", "3": "i", "zg": "g", "zr": "r", "zi": "i"}
_RELEASE = {
    "id": ("objectid", "objid", "oid"),
    "t": ("hmjd", "mjd"),
    "band": ("filterid", "fid", "filtercode"),
    "x": ("mag",),
    "x_err": ("magerr",),
}
_SNCOSMO = {
    "t": ("time", "date", "jd", "mjd", "mjdobs"),
    "band": ("band", "bandpass", "filter", "flt"),
    "x": ("flux", "f"),
    "x_err": ("fluxerr", "fe", "fluxerror"),
    "zp": ("zp", "zpt", "zeropoint"),
    "zpsys": ("zpsys", "zpmagsys", "magsys"),
}
_IDS = ("id", "snid", "objectid", "objid", "name")


def read_release(source: object, wishes: SurveyWishes) -> SurveyCurves:
    """Return light curves of a data release of ZTF: in magnitudes, or in fluxes as asked."""
    tables = list(_tables(source, wishes.nested))
    parts, about = [], []
    for table in tables:
        part, whose = _released(table, wishes)
        parts.append(part)
        about.append(whose)
    acts = [Act("read", sum(map(len, parts)), "points", "of the kind ztf-dr")]
    points, flagged = cut(joined(parts), wishes.quality, _UNUSABLE)
    fluxes = wishes.zero_point is not None
    points, limits = limited(points, wishes.limits, fluxes)
    ids, scalars = latest(about)
    done = (*acts, *flagged, *limits)
    unit = None if fluxes else "mag"
    return SurveyCurves(
        points, "mjd", wishes.zero_point, unit, _BANDS, done, scalars, ids, _are_asked(wishes)
    )


def _released(table: Table, wishes: SurveyWishes) -> tuple[SurveyPoints, About]:
    """Return the points of one table, and what is asked of its objects."""
    found = {role: one_of("source", table.names, known) for role, known in _RELEASE.items()}
    flags = [n for n in table.names if n in (*_UNUSABLE, *asked_flags(wishes.quality))]
    load = table.load(list(dict.fromkeys([*found.values(), *flags, *_named(table, wishes)])))
    mag, error = (numbers(load[found[role]]) for role in ("x", "x_err"))
    x, zero = np.where(np.abs(mag) < _FAINTEST, mag, np.nan), wishes.zero_point
    x, error = (x, error) if zero is None else to_flux(x, error, zero)
    bands = texts(load[found["band"]]).tolist()
    points = SurveyPoints(
        ids=_ids(load[found["id"]], found["id"]),
        t=numbers(load[found["t"]]),
        band=np.array([_NUMBERED.get(band, band) for band in bands], str),
        x=x,
        x_err=error,
        zp=np.full(table.n_rows, np.nan if zero is None else zero),
        limit=np.zeros(table.n_rows, bool),
        flags={name: load[name] for name in flags},
    )
    return points, _about(points, table, load, wishes)


def read_sncosmo(source: object, wishes: SurveyWishes) -> SurveyCurves:
    """Return light curves in tables of sncosmo, whose rows have their own zero points."""
    tables = list(_tables(source, wishes.nested))
    parts, about = [], []
    for i, table in enumerate(tables):
        found = {role: one_of("source", table.names, known) for role, known in _SNCOSMO.items()}
        name = next((n for n in table.names if n.lower() in _IDS), None)
        flags = [n for n in table.names if n in asked_flags(wishes.quality)]
        own = [] if name is None else [name]
        load = table.load(list(dict.fromkeys([*found.values(), *own, *flags,
                                              *_named(table, wishes)])))  # fmt: skip
        label = table.label or table.source or i
        points = SurveyPoints(
            ids=np.full(table.n_rows, label) if name is None else _ids(load[name], name),
            t=numbers(load[found["t"]]),
            band=texts(load[found["band"]]),
            x=numbers(load[found["x"]]),
            x_err=numbers(load[found["x_err"]]),
            zp=numbers(load[found["zp"]]),
            limit=np.zeros(table.n_rows, bool),
            flags={name: load[name] for name in flags},
            system=texts(load[found["zpsys"]]),
        )
        parts.append(points)
        about.append(_about(points, table, load, wishes))
    _check_labels(parts, tables)
    acts = [
        Act("read", sum(map(len, parts)), "points", f"of the kind sncosmo, {len(parts)} tables")
    ]
    points, flagged = cut(joined(parts), wishes.quality, {})
    zero = most_common(points.zp) if wishes.zero_point is None else float(wishes.zero_point)
    points, limits = limited(points, wishes.limits, fluxes=True)
    ids, scalars = latest(about)
    return SurveyCurves(points, None, zero, None, (), (*acts, *flagged, *limits), scalars, ids,
                        flagged=_are_asked(wishes))  # fmt: skip


def _check_labels(parts: Sequence[SurveyPoints], tables: Sequence[Table]) -> None:
    """Refuse two tables that call their one object alike, where no column says the id."""
    names = [str(p.ids[0]) for p, t in zip(parts, tables, strict=True)
             if len(p) and not {n.lower() for n in t.names} & set(_IDS)]  # fmt: skip
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"source must be tables of different objects, but several are called {twice[:3]}. Give "
            "each a column 'id', or another meta['name']."
        )


def _are_asked(wishes: SurveyWishes) -> bool:
    return wishes.limits is not None and wishes.limits is not False


def _ids(column: Column, name: str) -> NDArray:
    if column.missing.any():
        raise ValueError(
            f"source must say the object of each row, but {name!r} is missing in "
            f"{int(column.missing.sum())} of {len(column.missing)}. Drop these rows."
        )
    return names_of_objects(column)


def _named(table: Table, wishes: SurveyWishes) -> list[str]:
    """Return the columns of scalars that there are; others may stand in the table's notes."""
    return [name for name in (wishes.scalars or {}).values() if name in table.names]


def _about(
    points: SurveyPoints, table: Table, load: Mapping[str, Column], wishes: SurveyWishes
) -> About:
    """Return what is asked of the objects of a table, row by row."""
    values = {}
    for role, name in (wishes.scalars or {}).items():
        if name in load:
            values[role] = numbers(load[name])
        elif name in table.about:
            values[role] = np.full(len(points), float(table.about[name]))
        else:
            raise ValueError(
                f"scalars must name columns, or notes in the meta, of the tables, but {name!r} is "
                f"none. The columns are {list(table.names)}, the notes {list(table.about)}."
            )
    return About(points.ids, np.where(np.isfinite(points.t), points.t, -np.inf), values)


def _tables(source: object, nested: str | Sequence[str] | None) -> Iterator[Table]:
    """Yield the tables in a source, lists in rows of objects laid out as rows of points."""
    if isinstance(source, (str, Path)):
        for path in found_files("source", source, (*FORMATS, *_TEXTS)):
            yield _of_text(path) if suffix_of(path) in _TEXTS else read_table(path)
    elif isinstance(source, (list, tuple, Iterator)):
        listed = list(source)
        if not listed:
            raise ValueError("source must be at least one table, but is empty.")
        for one in listed:
            yield from _tables(one, nested)
    elif isinstance(source, Mapping):
        check_columns(source)
        yield as_table({k: _bare(v) for k, v in source.items()})
    else:
        yield _of_frame(source, nested)


def _bare(value: Any) -> Any:  # noqa: ANN401 - a column of whatever kind
    """Return a list with gaps (None) as one of numbers, if it is."""
    if not isinstance(value, (list, tuple)) or None not in value:
        return value
    known = [v for v in value if v is not None]
    if any(isinstance(v, (str, bytes)) for v in known):
        return ["" if v is None else v for v in value]
    return [np.nan if v is None else v for v in value]


def _of_frame(source: object, nested: str | Sequence[str] | None) -> Table:
    arrow = arrow_of_frame(source)
    if arrow is None or not any(is_of_lists(field.type) for field in arrow.schema):
        return as_table(source)
    chosen = [nested] if isinstance(nested, str) else nested
    lists = [field.name for field in arrow.schema if is_of_lists(field.type)]
    missing = [name for name in chosen or () if name not in lists]
    if missing:
        raise ValueError(
            f"nested must name lists of the frame, but {missing} are none. There are {lists}."
        )
    kept = lists if chosen is None else chosen
    return of_arrow(arrow.select([n for n in arrow.column_names if n in kept or n not in lists]))


def _of_text(path: Path) -> Table:
    """Return a light curve in the plain text of sncosmo: notes (@), names (#), then rows."""
    notes: dict[str, str] = {}
    names: list[str] = []
    rows: list[list[str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            name, _, value = line[1:].strip().partition(" ")
            notes[name] = value.strip()
        elif not names and line.strip():
            names = line.lstrip("#").split()
        elif line.strip() and not line.startswith("#"):
            rows.append(line.split())
    if not rows or any(len(row) != len(names) for row in rows):
        raise ValueError(
            f"{path.name} must be a table of sncosmo with the columns {list(_SNCOSMO)}, but has "
            f"{names} and {len(rows)} rows, not all that long. Write it by sncosmo, or as ECSV."
        )
    columns = {k: [_read(v) for v in vs] for k, vs in
               zip(names, zip(*rows, strict=True), strict=True)}  # fmt: skip
    table = of_arrays({k: np.array(v) for k, v in columns.items()})
    label = next((notes[k] for k in notes if k.lower() in _IDS), None)
    return Table(table.names, table.n_rows, table.load, label=label, source=path.stem, about=notes)


def _read(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
