"""Table files: parquet, FITS, HDF5, CSV and ECSV, read column by column and written whole.

A file that we write notes beside its columns what they are (its *layout*: JSON under ``nbi_plus``),
so that it can be read without naming them; CSV has no place for that, and none for units.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from nbi_plus.arguments import path_of
from nbi_plus.data.tables.columns import NOTE, Column, Table, column, noted
from nbi_plus.data.tables.tables import arrow_column, of_arrow, of_astropy, solid, unit_of_field
from nbi_plus.io.archive import ArchiveError, open_hdf5

if TYPE_CHECKING:
    import pyarrow

Columns = Mapping[str, NDArray]
FITS_NOTE = "NBIPLUS"  # names in a FITS header have eight letters
_FITS_KEYS = ("OBJECT", FITS_NOTE)


class Format(NamedTuple):
    """How a kind of file is read and written."""

    name: str
    read: Callable[[Path], Table]
    write: Callable[[Path, Columns, Mapping[str, str], str], None]


def read_table(path: Path | str) -> Table:
    """Return the table in a file, of which only the columns asked for will be loaded."""
    path = path_of("path", path)
    form = format_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be an existing file, but there is no file {path}.")
    with _sound(path, form, (OSError, EOFError, TypeError, ValueError)):
        table = form.read(path)

    def load(names: Sequence[str]) -> dict[str, Column]:
        with _sound(path, form, (OSError, EOFError)):
            return table.load(names)

    return replace(table, load=load, source=stem(path))


def write_table(
    path: Path | str,
    columns: Columns,
    units: Mapping[str, str],
    layout: Mapping[str, object],
    *,
    overwrite: bool,
) -> None:
    """Write columns of equal length: beside the final name, which the file then takes at once.

    Parameters
    ----------
    path : path-like
        Its suffix says the format.
    columns : mapping of name to ndarray of shape (n,)
        Numbers, flags or texts.
    units : mapping of str
        Of columns.
    layout : mapping
        What `read_table` is to give back beside the columns.
    overwrite : bool
        Whether an existing file may be replaced.
    """
    path = path_of("path", path)
    form = format_of(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"path must be a new file, but {path} exists. Give overwrite=True to replace it."
        )
    draft = path.with_name(f".{uuid.uuid4().hex}{suffix_of(path)}")
    try:
        form.write(draft, columns, units, json.dumps(layout))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def format_of(path: Path) -> Format:
    """Return the format that the name of a file stands for."""
    suffix = suffix_of(path)
    if suffix in FORMATS:
        return FORMATS[suffix]
    raise ValueError(
        f"path must end in one of {', '.join(FORMATS)}, but is {path.name!r}. Read other tables "
        'with astropy, as Table.read(path, format="ascii"), and give them to from_table.'
    )


def stem(path: Path) -> str:
    """Return the name of a file without its suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def suffix_of(path: Path) -> str:
    """Return the suffix of a file in lower case, with that before ``.gz``."""
    ends = [s.lower() for s in path.suffixes[-2:]]
    return "".join(ends) if ends[-1:] == [".gz"] else "".join(ends[-1:])


def found_files(what: str, pattern: Path | str, ends: Sequence[str]) -> list[Path]:
    """Return the file, those that a glob fits, or those in a folder with one of these ends."""
    path = Path(pattern)
    if path.is_dir():
        inside = {p: p.relative_to(path).parts for p in path.rglob("*")}
        found = sorted(
            p for p, parts in inside.items() if p.name.lower().endswith(tuple(ends))
            and not any(k.startswith(("_", ".")) for k in parts)
        )  # fmt: skip
    else:
        found = [path] if path.exists() else sorted(Path(p) for p in glob.glob(str(pattern)))
    if not found:
        raise FileNotFoundError(
            f"{what} must name at least one file, but there is none of {str(pattern)!r}."
        )
    return found


@contextmanager
def _sound(path: Path, form: Format, signs: tuple[type[Exception], ...]) -> Iterator[None]:
    """Say of a file that cannot be read which it is, on errors that are signs of that."""
    try:
        yield
    except (ArchiveError, PermissionError):
        raise
    except signs as error:
        raise ValueError(
            f"{path.name} must be a sound {form.name} file, but cannot be read "
            f"({type(error).__name__}: {error}). Copy it again, or write it anew."
        ) from error


def _parquet() -> Any:  # noqa: ANN401 - pyarrow is optional
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            'A parquet file needs pyarrow. Install it with: pip install "nbi-plus[survey]"'
        ) from error
    return parquet


def _read_parquet(path: Path) -> Table:
    with _parquet().ParquetFile(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    if any(schema.field(i).type.num_fields for i in range(len(schema))):
        return of_arrow(_parquet().read_table(path))
    note = (schema.metadata or {}).get(NOTE.encode())

    def load(names: Sequence[str]) -> dict[str, Column]:
        found = {}
        with _parquet().ParquetFile(path) as file:
            for name in names:  # one at a time, so that memory holds one copy more, not all
                values = solid(file.read(columns=[name])[name])
                found[name] = arrow_column(name, values, unit_of_field(schema.field(name)))
        return found

    return Table(tuple(schema.names), n_rows, load, layout=noted(note))


def arrow_of_parquet(path: Path, unread: str) -> pyarrow.Table:
    """Return the table in a file, without the columns whose names begin with ``unread``."""
    with _sound(path, FORMATS[".parquet"], (OSError, EOFError, TypeError, ValueError)):
        names = _parquet().read_schema(path).names
        return _parquet().read_table(path, columns=[n for n in names if not n.startswith(unread)])


def _write_parquet(path: Path, columns: Columns, units: Mapping[str, str], layout: str) -> None:
    parquet = _parquet()
    import pyarrow as pa

    arrays = {k: pa.array(v) for k, v in columns.items()}
    arrays |= {k: v.dictionary_encode() for k, v in arrays.items() if v.type == pa.string()}
    fields = [pa.field(k, v.type, metadata={"unit": units[k]} if k in units else None)
              for k, v in arrays.items()]  # fmt: skip
    schema = pa.schema(fields, metadata={NOTE: layout})
    parquet.write_table(pa.table(list(arrays.values()), schema=schema), path)


def _read_fits(path: Path) -> Table:
    from astropy.io import fits

    with fits.open(path) as file:
        place = next((i for i, hdu in enumerate(file) if isinstance(hdu, fits.BinTableHDU)), None)
        if place is None:
            raise ValueError("it holds no binary table")
        label, note = (file[place].header.get(k) or file[0].header.get(k) for k in _FITS_KEYS)
        found = {c.name: (c.unit or None, c.null) for c in file[place].columns}
        n_rows = len(file[place].data)  # which a file that is cut short does not have

    def load(names: Sequence[str]) -> dict[str, Column]:
        with fits.open(path) as file:
            data = file[place].data
            return {k: _fits_column(k, np.array(data[k]), *found[k]) for k in names}

    return Table(tuple(found), n_rows, load, label=label or None, layout=noted(note))


def _fits_column(name: str, values: NDArray, unit: str | None, null: int | None) -> Column:
    whole = null is not None and values.dtype.kind in "iu"
    return column(name, values, values == null if whole else None, unit)


def _write_fits(path: Path, columns: Columns, units: Mapping[str, str], layout: str) -> None:
    from astropy.io import fits

    kinds = {"f": "D", "i": "K", "b": "L"}
    made = [
        fits.Column(
            name,
            kinds.get(array.dtype.kind) or f"{max(array.dtype.itemsize // 4, 1)}A",
            units.get(name),
            array=array,
        )
        for name, array in columns.items()
    ]
    hdu = fits.BinTableHDU.from_columns(made)
    hdu.header[FITS_NOTE] = layout
    hdu.writeto(path)


def _read_hdf5(path: Path) -> Table:
    with open_hdf5(path) as file:
        place, found = hdf5_columns(file)
        note = file.attrs.get(NOTE)
        units = {k: file[place][k].attrs.get("unit") for k in found if found[k]}

    def load(names: Sequence[str]) -> dict[str, Column]:
        with open_hdf5(path) as file:
            node = file[place]
            return {k: column(k, texts_of_hdf5(node[k]), None, units.get(k)) for k in names}

    sizes = {size for size in found.values() if size}
    if len(sizes) > 1:
        raise ValueError(f"its columns have different lengths: {found}")
    with open_hdf5(path) as file:
        n_rows = sizes.pop() if sizes else len(file[place])
    return Table(tuple(found), n_rows, load, layout=noted(note))


def hdf5_columns(file: h5py.File) -> tuple[str, dict[str, int | None]]:
    """Return where the columns are: datasets of one group, or fields (None) of one dataset."""
    node = file
    while len(node) == 1 and isinstance(next(iter(node.values())), h5py.Group):
        node = next(iter(node.values()))
    sets = {k: v for k, v in node.items() if isinstance(v, h5py.Dataset)}
    records = [v for v in sets.values() if v.dtype.names]
    if len(records) == 1:
        return records[0].name, dict.fromkeys(records[0].dtype.names)
    flat = {k: v.shape[0] for k, v in sets.items() if v.ndim == 1 and not v.dtype.names}
    if not flat:
        raise ValueError("it holds no columns: neither one table nor datasets of one axis")
    return node.name, flat


def texts_of_hdf5(data: h5py.Dataset | NDArray, rows: slice = slice(None)) -> NDArray:
    """Return rows of a dataset, texts of any length as texts, not bytes."""
    flexible = h5py.check_vlen_dtype(data.dtype) is str
    return data.asstr()[rows] if flexible and isinstance(data, h5py.Dataset) else data[rows]


def _write_hdf5(path: Path, columns: Columns, units: Mapping[str, str], layout: str) -> None:
    with h5py.File(path, "w-") as file:
        file.attrs[NOTE] = layout
        for name, array in columns.items():
            is_text = array.dtype.kind == "U"
            file[name] = np.char.encode(array, "utf-8") if is_text else array
            if name in units:
                file[name].attrs["unit"] = units[name]


def _read_text(path: Path, kind: str) -> Table:
    from astropy.table import Table as AstropyTable

    table = AstropyTable.read(path, format=kind)
    return of_astropy(table, noted(table.meta.get(NOTE)))


def _read_csv(path: Path) -> Table:
    return _read_text(path, "ascii.csv")


def _read_ecsv(path: Path) -> Table:
    return _read_text(path, "ascii.ecsv")


def _write_csv(path: Path, columns: Columns, units: Mapping[str, str], layout: str) -> None:
    del units, layout  # CSV has no place for them
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*(v.tolist() for v in columns.values()), strict=True))


def _write_ecsv(path: Path, columns: Columns, units: Mapping[str, str], layout: str) -> None:
    from astropy.table import Table as AstropyTable
    from astropy.units import Unit

    table = AstropyTable(dict(columns), meta={NOTE: layout})
    for name, unit in units.items():
        table[name].unit = Unit(unit, parse_strict="silent")
    table.write(path, format="ascii.ecsv")


_FITS = Format("FITS", _read_fits, _write_fits)
_HDF5 = Format("HDF5", _read_hdf5, _write_hdf5)
_CSV = Format("CSV", _read_csv, _write_csv)
FORMATS = {
    ".parquet": Format("parquet", _read_parquet, _write_parquet),
    ".fits": _FITS, ".fit": _FITS, ".fits.gz": _FITS, ".fit.gz": _FITS,
    ".h5": _HDF5, ".hdf5": _HDF5,
    ".csv": _CSV, ".csv.gz": _CSV,
    ".ecsv": Format("ECSV", _read_ecsv, _write_ecsv),
}  # fmt: skip
