"""Writing: the parts of a survey as one catalogue, row after row and never whole in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import h5py
import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.tables.tables import unit_of_field
from nbi_plus.io.appending import NewFile
from nbi_plus.io.disk import raw_bytes
from nbi_plus.io.planned import plan_file
from nbi_plus.io.sealed import SEAL, is_sealed, sealed
from nbi_plus.survey.parts import SURVEY, SurveyError, write_tables
from nbi_plus.survey.sources import open_source

if TYPE_CHECKING:
    import pyarrow

Tables = Callable[[], Iterator["pyarrow.Table"]]
_VO = b"IVOA.VOTable-Parquet."
_NAMESPACE = "http://www.ivoa.net/xml/VOTable/v1.3"
_FITS_NOTE, _FITS_SEAL, _HDF5_NAME = "NBISURV", "NBISEAL", "catalogue"
_FITS_CODES = {"f8": "D", "f4": "E", "i8": "K", "i4": "J", "i2": "I", "b1": "L", "u1": "B"}
_LONGEST = 255 - len(".unfinished")
SUFFIXES = (".parquet", ".h5", ".hdf5", ".fits")


def check_out(out: Path, n_draws: int) -> None:
    """Refuse a path whose suffix says no format that a catalogue can have."""
    if n_draws and out.suffix not in ("", ".parquet"):
        raise ValueError(
            f"out must end in .parquet, or be a folder, to keep draws, but is {out.name!r}."
        )
    if out.suffix and len(os.fsencode(out.name)) > _LONGEST:
        raise ValueError(
            f"out must have a name of at most {_LONGEST} bytes, for files beside it have longer "
            f"ones, but has {len(os.fsencode(out.name))}."
        )
    if out.suffix and out.suffix not in SUFFIXES and not out.is_dir():
        raise ValueError(
            f"out must end in one of {', '.join(SUFFIXES)}, or be a folder, but is {out.name!r}."
        )


def check_columns(out: Path, schema: pyarrow.Schema) -> None:
    """Refuse columns that a format has no place for, before anything is answered."""
    import pyarrow as pa

    if out.suffix in ("", ".parquet"):
        return
    for one in schema:
        kinds = pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating
        known = any(is_of(one.type) for is_of in kinds)
        if known and out.suffix == ".fits":
            known = np.dtype(one.type.to_pandas_dtype()).str[1:] in _FITS_CODES
        if not (known or pa.types.is_string(one.type)):
            raise ValueError(
                f"carry must name columns that {out.suffix} has a type for, but {one.name!r} is of "
                f"{one.type}. Write .parquet, or convert it."
            )
        if out.suffix == ".fits" and not one.name.isascii():
            raise ValueError(
                f"carry must name columns in ASCII for FITS, but names {one.name!r}. Write "
                ".parquet, or rename it."
            )


def write_catalogue(
    out: Path, tables: Tables, schema: pyarrow.Schema, manifest: Mapping[str, object]
) -> None:
    """Write a catalogue at once: an older one stays until the new one is complete.

    Parameters
    ----------
    out : Path
        Its suffix says the format.
    tables : callable
        Returns an iterator of the rows; it is called twice where texts have fixed widths.
    schema : pyarrow.Schema
    manifest : mapping
        What was surveyed and by what.
    """
    writers = {".parquet": _parquet, ".fits": _fits, ".h5": _hdf5, ".hdf5": _hdf5}
    with sealed(out, SurveyError) as file:
        writers[out.suffix](file, tables, schema, json.dumps(manifest))


def manifest_of(out: Path) -> dict[str, object]:
    """Return what a finished catalogue was made of."""
    readers = {".parquet": _parquet_note, ".fits": _fits_note, ".h5": _hdf5_note}
    whole = is_sealed(out, SurveyError)
    try:
        if not whole:
            raise KeyError("it has no checksum")
        return json.loads(readers[out.suffix.replace("hdf5", "h5")](out))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SurveyError(
            f"{out.name} must be a catalogue of a survey, but is something else. Use another path, "
            "or delete it."
        ) from error


def rows_of(out: Path) -> Iterator[pyarrow.Table]:
    """Yield the rows of a finished catalogue, some at a time."""
    return (piece.table for piece in open_source(out).pieces(None))


# --- parquet -------------------------------------------------------------------------------------


def _parquet(file: NewFile, tables: Tables, schema: pyarrow.Schema, note: str) -> None:
    widths = _text_widths(tables(), schema)
    rows = (table.select(schema.names).cast(schema) for table in tables())
    write_tables(file, rows, schema, {SURVEY: note.encode(), **_votable_header(schema, widths)})


def _parquet_note(path: Path) -> bytes:
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(path).metadata[SURVEY]


def _votable_header(schema: pyarrow.Schema, widths: Mapping[str, int]) -> dict[bytes, bytes]:
    """Return the metadata by which a parquet file tells units, UCDs and descriptions: VOParquet."""
    root = ElementTree.Element("VOTABLE", version="1.4", xmlns=_NAMESPACE)
    table = ElementTree.SubElement(ElementTree.SubElement(root, "RESOURCE"), "TABLE")
    kinds = {"double": "double", "float": "float", "bool": "boolean", "int64": "long",
             "int32": "int", "int16": "short", "uint8": "unsignedByte"}  # fmt: skip
    for one in schema:
        told = {k.decode(): v.decode() for k, v in (one.metadata or {}).items()}
        kind = kinds.get(str(one.type))
        own = {"name": one.name, "ID": one.name, "datatype": kind or "unicodeChar"}
        own |= {} if kind else {"arraysize": str(widths[one.name]) if one.name in widths else "*"}
        own |= {k: told[k] for k in ("unit", "ucd") if told.get(k)}
        described = ElementTree.SubElement(ElementTree.SubElement(table, "FIELD", own),
                                           "DESCRIPTION")  # fmt: skip
        described.text = told.get("description", "")
    ElementTree.SubElement(table, "PARQUET", type="Parquet-local-XML")
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
    return {_VO + b"version": b"1.0", _VO + b"encoding": b"utf-8", _VO + b"content": text.encode()}


# --- FITS and HDF5: records of fixed width -------------------------------------------------------


def _records(table: pyarrow.Table, kind: np.dtype) -> NDArray:
    """Return rows as records; numbers that are missing are NaN, 0 or False, texts empty."""
    import pyarrow as pa

    out = np.zeros(table.num_rows, kind)
    for name in kind.names:
        values = table[name].combine_chunks()
        if pa.types.is_string(values.type):
            texts = np.array(values.fill_null("").to_pylist(), object)
            out[name] = np.char.encode(texts.astype(str), "utf-8") if len(texts) else texts
        else:
            blank = np.nan if kind[name].kind == "f" else kind[name].type(0).item()
            out[name] = values.fill_null(blank).to_numpy(zero_copy_only=False)
    return out


def _record_type(widths: Mapping[str, int], schema: pyarrow.Schema) -> np.dtype:
    """Return the type of the records, as wide as their longest texts."""
    return np.dtype([
        (f.name, f"S{widths[f.name]}" if f.name in widths else f.type.to_pandas_dtype())
        for f in schema
    ])  # fmt: skip


def _text_widths(tables: Iterable[pyarrow.Table], schema: pyarrow.Schema) -> dict[str, int]:
    """Return how many bytes the longest text of each column of texts has, one at least."""
    import pyarrow as pa
    import pyarrow.compute as pc

    widths = {f.name: 1 for f in schema if pa.types.is_string(f.type)}
    for table in tables:
        for name, width in widths.items():
            widths[name] = max(width, pc.max(pc.binary_length(table[name])).as_py() or 0)
    return widths


def _fits(file: NewFile, tables: Tables, schema: pyarrow.Schema, note: str) -> None:
    n_rows = sum(table.num_rows for table in tables())
    from astropy.io import fits

    kind = _record_type(_text_widths(tables(), schema), schema)
    columns = []
    for name in kind.names:
        own = kind[name]
        code = f"{own.itemsize}A" if own.kind == "S" else _FITS_CODES[own.str[1:]]
        columns.append(fits.Column(name, code, unit_of_field(schema.field(name))))
    header = fits.BinTableHDU.from_columns(columns, nrows=0, name=_HDF5_NAME).header
    header["NAXIS2"] = n_rows
    header[_FITS_NOTE] = note
    header[_FITS_SEAL] = SEAL
    for i, name in enumerate(kind.names, 1):
        told = schema.field(name).metadata or {}
        header[f"TCOMM{i}"] = told.get(b"description", b"").decode()
        if told.get(b"ucd"):
            header[f"TUCD{i}"] = told[b"ucd"].decode()
    for own in (fits.PrimaryHDU().header, header):
        file.write(own.tostring().encode("ascii"))
    big = _big_endian(kind)
    for table in tables():
        rows = _records(table, kind)
        stored = rows.astype(big)
        for name in kind.names:
            if kind[name].kind == "b":  # FITS has letters for these
                stored[name] = np.where(rows[name], ord("T"), ord("F"))
        file.write(raw_bytes(stored))
    file.write(b"\0" * (-file.tell() % 2880))


def _big_endian(kind: np.dtype) -> np.dtype:
    each = {name: "u1" if kind[name].kind == "b" else kind[name].newbyteorder(">")
            for name in kind.names}  # fmt: skip
    return np.dtype(list(each.items()))


def _fits_note(path: Path) -> str:
    from astropy.io import fits

    return fits.getheader(path, 1)[_FITS_NOTE]


def _hdf5(file: NewFile, tables: Tables, schema: pyarrow.Schema, note: str) -> None:
    n_rows = sum(table.num_rows for table in tables())
    from astropy.table import Table, meta
    from astropy.units import Unit

    kind = _record_type(_text_widths(tables(), schema), schema)
    empty = Table(np.zeros(0, kind), meta={"nbi_plus.survey": note})
    for field in schema:
        told: Any = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        empty[field.name].description = told.get("description")
        empty[field.name].meta["ucd"] = told.get("ucd", "")
        if told.get("unit"):
            empty[field.name].unit = Unit(told["unit"], parse_strict="silent")
    lines = np.array([line.encode() for line in meta.get_yaml_from_table(empty)])
    told = f"{_HDF5_NAME}.__table_column_meta__"
    shapes = {_HDF5_NAME: ((n_rows,), kind), told: (lines.shape, lines.dtype)}
    notes = {("/", "nbi_plus.survey"): note, ("/", "nbi_plus.seal"): SEAL.encode()}
    plan, at = plan_file(shapes, notes=notes), 0
    plan.begin(file.fileno())
    plan.write(file.fileno(), told, lines)
    for table in tables():
        plan.write(file.fileno(), _HDF5_NAME, _records(table, kind), at)
        at += table.num_rows


def _hdf5_note(path: Path) -> str:
    with h5py.File(path, "r") as file:
        return str(file.attrs["nbi_plus.survey"])
