"""SNANA: light curves in pairs of FITS files, in text files, and in frames of their columns."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.ingested import Act
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
    without,
)
from nbi_plus.data.tables.columns import Column, column
from nbi_plus.data.tables.table_files import found_files, suffix_of
from nbi_plus.data.tables.tables import as_table, is_table

ZERO_POINT = 27.5  # of FLUXCAL, whatever the zero point of the image
_FITS, _TEXT = (".fits", ".fits.gz", ".fit", ".fit.gz"), (".dat", ".dat.gz", ".txt", ".txt.gz")
_NONE = -9.0, -99.0, -999.0, -9999.0, -777.0  # what stands for no value in a header
_NO_FLUX = -777.0, -999.0, -9999.0  # fluxes may be -9; their errors then say if they are
_ENDS = -777.0  # the date of the row after a light curve
_POINTS = {"t": ("MJD",), "band": ("BAND", "FLT"), "x": ("FLUXCAL",), "x_err": ("FLUXCALERR",)}
_PLACED = ("RA", "DEC", "DECL")  # degrees, which may be -9

Fields = dict[str, Column]


def read_snana(source: object, wishes: SurveyWishes) -> SurveyCurves:
    """Return light curves in FLUXCAL, brought to the zero point that is asked for."""
    parts, about, ends = [], [], 0
    n_objects = 0
    for ids, owner, rows, heads in _objects(source):
        n_objects += len(ids)
        points, n_ends = _points(ids[owner], rows, wishes)
        ends += n_ends
        parts.append(points)
        about.append(_about(ids, heads, wishes))
    acts = [Act("read", n_objects, "objects", f"of the kind snana, {sum(map(len, parts))} points")]
    if ends:
        acts.append(Act("left out", ends, "rows", "ends of light curves (MJD -777), no dates"))
    points, flagged = cut(joined(parts), wishes.quality, {})
    points, limits = limited(points, wishes.limits, fluxes=True)
    ids, scalars = latest(about)
    zero = ZERO_POINT if wishes.zero_point is None else float(wishes.zero_point)
    asked = wishes.limits is not None and wishes.limits is not False
    return SurveyCurves(points, "mjd", zero, None, (), (*acts, *flagged, *limits), scalars, ids,
                        flagged=asked)  # fmt: skip


def _points(
    ids: NDArray, rows: Mapping[str, Column], wishes: SurveyWishes
) -> tuple[SurveyPoints, int]:
    """Return the points in rows of photometry, and how many rows are none."""
    found = {role: rows[one_of("photometry", list(rows), known)]
             for role, known in _POINTS.items()}  # fmt: skip
    t, x, x_err = (numbers(found[role]) for role in ("t", "x", "x_err"))
    x = without(x, *_NO_FLUX)
    flags = {k: rows[k] for k in asked_flags(wishes.quality) if k in rows}
    points = SurveyPoints(ids, t, texts(found["band"]), x, x_err, np.full(len(t), ZERO_POINT),
                          np.zeros(len(t), bool), flags)  # fmt: skip
    no_date = t <= 0
    return points.take(~no_date), int(no_date.sum())


def _about(ids: NDArray, heads: Mapping[str, Column], wishes: SurveyWishes) -> About:
    values = {}
    for role, name in (wishes.scalars or {}).items():
        if name not in heads:
            raise ValueError(
                f"scalars must name fields of the headers, but {name!r} is none. They are "
                f"{list(heads)}."
            )
        values[role] = numbers(heads[name])
        if name not in _PLACED:
            values[role] = without(values[role], *_NONE)
    return About(ids, np.zeros(len(ids)), values)


def _objects(source: object) -> Iterator[tuple[NDArray, NDArray[np.int64], Fields, Fields]]:
    """Yield ids, the object of each row of photometry, the photometry, and the headers."""
    paths = _paths(source)
    if paths is None:
        yield _of_frame(source)
        return
    heads = []
    for path in paths:
        if suffix_of(path) in _TEXT:
            yield _of_text(path)
        else:
            heads.append(_head_of(path))
    for head in dict.fromkeys(heads):
        yield _of_fits(head)


def _paths(source: object) -> list[Path] | None:
    if isinstance(source, (str, Path)):
        return found_files("source", source, (*_FITS, *_TEXT))
    if (
        isinstance(source, (list, tuple))
        and source
        and all(isinstance(one, (str, Path)) for one in source)
    ):
        return [p for one in source for p in found_files("source", one, (*_FITS, *_TEXT))]
    if isinstance(source, (list, tuple)) or not is_table(source):
        raise TypeError(
            "source must be paths of SNANA's HEAD and PHOT files or text files, or a table with "
            f"SNID and photometry, but is {type(source).__name__}."
        )
    return None


def _of_frame(source: object) -> tuple[NDArray, NDArray[np.int64], Fields, Fields]:
    if isinstance(source, Mapping):
        check_columns(source)
    table = as_table(source)
    name = one_of("source", table.names, ("SNID", "CID"))
    load = table.load(table.names)
    ids, first, owner = np.unique(names_of_objects(load[name]), return_index=True,
                                  return_inverse=True)  # fmt: skip
    heads = {k: replace(c, values=c.values[first], missing=c.missing[first])
             for k, c in load.items()}  # fmt: skip
    return ids, owner, load, heads


def _head_of(path: Path) -> Path:
    """Return the HEAD file of a FITS file, which may be it or its PHOT file."""
    from astropy.io import fits

    header = fits.getheader(path, 0)
    if "PHOTFILE" in header:
        return path
    beside = _beside(path.parent, path.name.replace("PHOT", "HEAD"))
    if "PHOT" in path.name and beside is not None:
        return beside
    raise ValueError(
        f"{path.name} must be a HEAD file, which names its PHOTFILE, or a PHOT file with its HEAD "
        "file beside it. Put both in one folder, and give the HEAD file."
    )


def _beside(folder: Path, name: str) -> Path | None:
    """Return a file in a folder, compressed or not."""
    bare = name.removesuffix(".gz")
    return next((folder / one for one in (name, bare, f"{bare}.gz") if (folder / one).is_file()),
                None)  # fmt: skip


def _of_fits(head: Path) -> tuple[NDArray, NDArray[np.int64], Fields, Fields]:
    """Return what a HEAD file and the PHOT file that it names hold, by its pointers."""
    from astropy.io import fits

    heads = _fits_columns(head)
    name = str(fits.getheader(head, 0)["PHOTFILE"]).strip()
    phot = _beside(head.parent, name)
    if phot is None:
        raise FileNotFoundError(
            f"{head.name} must stand beside its PHOTFILE, but there is no file {name} in "
            f"{head.parent}."
        )
    rows = _fits_columns(phot)
    ids = names_of_objects(heads[one_of(head.name, list(heads), ("SNID",))])
    first, last = (numbers(heads[one_of(head.name, list(heads), (k,))]).astype(np.int64)
                   for k in ("PTROBS_MIN", "PTROBS_MAX"))  # fmt: skip
    lengths = np.maximum(last - first + 1, 0)
    n_rows = len(next(iter(rows.values())).values)
    wrong = (lengths > 0) & ((first < 1) | (last > n_rows))
    if wrong.any():
        raise ValueError(
            f"PTROBS_MIN and PTROBS_MAX must point into the {n_rows} rows of {phot.name}, but "
            f"{int(wrong.sum())} do not (first: SNID {ids[wrong.argmax()]}). Copy both files again."
        )
    owner = np.repeat(np.arange(len(ids)), lengths)
    starts = np.cumsum(lengths) - lengths
    where = first[owner] - 1 + np.arange(len(owner)) - starts[owner]
    taken = {k: replace(c, values=c.values[where], missing=c.missing[where])
             for k, c in rows.items()}  # fmt: skip
    return ids, owner, taken, heads


def _fits_columns(path: Path) -> Fields:
    """Return the columns of one value a row of the first table in a file."""
    from astropy.io import fits

    with fits.open(path, memmap=False) as file:
        table = next((hdu for hdu in file if isinstance(hdu, fits.BinTableHDU)), None)
        if table is None or not len(table.data):
            raise ValueError(
                f"{path.name} must hold a table with rows, but holds none. Write it anew."
            )
        data = {name: np.array(table.data[name]) for name in table.columns.names}
    return {name: column(name, values) for name, values in data.items() if values.ndim == 1}


def _of_text(path: Path) -> tuple[NDArray, NDArray[np.int64], Fields, Fields]:
    """Return the objects in a text file: keys and values, then rows of observations."""
    opened = gzip.open if path.suffix == ".gz" else open
    heads: list[dict[str, str]] = []
    names: list[str] = []
    rows: list[list[str]] = []
    owner: list[int] = []
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            name, colon, value = line.partition(":")
            words = value.split()
            if not colon or " " in name.strip() or not words:
                continue
            if name == "VARLIST" or name.startswith("VARNAMES"):
                names = words
            elif name == "OBS":
                rows.append(words)
                owner.append(len(heads) - 1)
            elif name == "SNID":
                heads.append({name: words[0]})
            elif heads:
                heads[-1].setdefault(name.strip(), words[0])
    wrong = next((row for row in rows if len(row) != len(names)), None)
    if not heads or not rows or wrong is not None:
        raise ValueError(
            f"{path.name} must be a text file of SNANA, with SNID:, VARLIST: and rows OBS: of as "
            f"many values, but has {len(heads)} objects, the names {names} and "
            f"{len(rows)} rows{'' if wrong is None else f', one of them {wrong}'}."
        )
    photometry = {k: _column(k, [row[i] for row in rows]) for i, k in enumerate(names)}
    keys = dict.fromkeys(k for head in heads for k in head)
    about = {k: _column(k, [head.get(k, "") for head in heads]) for k in keys}
    return texts(about["SNID"]), np.array(owner), photometry, about


def _column(name: str, values: Sequence[str]) -> Column:
    """Return a column of numbers, if all are, else of texts."""
    made: Any = np.array(values)
    if name != "SNID":
        try:
            made = np.array([value if value else "nan" for value in values], np.float64)
        except ValueError:
            made = np.array(values)
    return column(name, made)
