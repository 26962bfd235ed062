"""Sources: what a survey reads, as tables of arrow, piece by piece and never whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.observations import Observations
from nbi_plus.data.tables.columns import NOTE, Column
from nbi_plus.data.tables.table_files import (
    FITS_NOTE,
    FORMATS,
    format_of,
    found_files,
    hdf5_columns,
    stem,
    texts_of_hdf5,
)
from nbi_plus.data.tables.tables import arrow_of_frame, as_table
from nbi_plus.io.archive import native, open_hdf5
from nbi_plus.io.fingerprint import digest
from nbi_plus.survey.manifest import NAMELESS

if TYPE_CHECKING:
    import pyarrow

_ROWS = 65_536  # of a table that are in memory at once, beside the objects that they are of
_ENDS, _END_BYTES = 100, 2**16  # objects or rows, and bytes, by which a source is known again


@dataclass(frozen=True)
class Piece:
    """Some rows of a source, in order.

    Attributes
    ----------
    table : pyarrow.Table
        Units stand in the metadata of its fields.
    file : str
        The name of the file that they are of, without its suffix; "" for what is in memory.
    """

    table: pyarrow.Table
    file: str = ""


@dataclass(frozen=True)
class Unread:
    """Files whose objects nobody can name, and why; each stands for one object of its name."""

    ids: NDArray
    reason: str

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> Unread:
        return Unread(self.ids[rows], self.reason)


@dataclass(frozen=True)
class SurveySource:
    """What a survey reads.

    Attributes
    ----------
    said : dict
        What it is, in words and numbers of JSON: a survey goes on only with the same.
    pieces : callable
        Takes the names of columns or None, returns an iterator of `Piece`; None for `sets`.
    sets : callable
        Returns an iterator of `Observations`, and of what is `Unread`; None for `pieces`.
    n_rows : int or None
        How many rows or, of `sets`, objects there are, where that is known without reading them.
    """

    said: dict[str, object]
    pieces: Callable[[Sequence[str] | None], Iterator[Piece]] | None = None
    sets: Callable[[], Iterator[Observations | Unread]] | None = None
    n_rows: int | None = None

    @cached_property
    def schema(self) -> pyarrow.Schema:
        """Names, types and notes of its columns, as its first rows have them."""
        import pyarrow as pa

        first = next(self.pieces(None), None)
        return pa.schema([]) if first is None else first.table.schema


def open_source(source: object) -> SurveySource:
    """Return what a survey reads: files, data in memory, or what others read piece by piece.

    Parameters
    ----------
    source : path, glob, list of paths, Observations or iterator of them, table or collection
        Parquet, FITS, HDF5 and CSV files; pandas, nested-pandas, astropy and arrow tables; Dask
        frames and LSDB catalogues, partition after partition.
    """
    if isinstance(source, (str, Path)):
        return _of_files(found_files("source", source, tuple(FORMATS)))
    if isinstance(source, Observations):
        said = {"kind": "observations", "objects": len(source), "data": _of_ends(source)}
        return SurveySource(said, sets=lambda: iter((source,)), n_rows=len(source))
    if _is_collection(source):
        return _of_collection(source)
    if _are(source, (str, Path)):
        return _of_files([Path(path) for path in source])
    if isinstance(source, Iterator):
        return SurveySource(NAMELESS, sets=lambda: source)
    if _are(source, (Observations,)):
        said = {"kind": "sets of observations", "data": [[len(o), _of_ends(o)] for o in source]}
        return SurveySource(said, sets=lambda: iter(source), n_rows=sum(map(len, source)))
    return _of_table(source)


def _of_ends(obs: Observations) -> str:
    """Return the fingerprint of the first and last objects of a set."""
    ends = np.unique(np.r_[: min(_ENDS, len(obs)), max(len(obs) - _ENDS, 0) : len(obs)])
    return digest([obs[ends].hashes.tobytes()])


def _are(source: object, kinds: tuple[type, ...]) -> bool:
    """Say whether it is a sequence of such things alone."""
    sequence = isinstance(source, Sequence) and len(source) > 0
    return sequence and all(isinstance(item, kinds) for item in source)


def _is_collection(source: object) -> bool:
    """Say whether it is a frame of Dask or a catalogue of LSDB: both count their partitions."""
    return hasattr(source, "npartitions") and hasattr(source, "partitions")


# --- files ---------------------------------------------------------------------------------------


def _of_files(paths: list[Path]) -> SurveySource:
    for path in paths:
        format_of(path)  # says which suffixes there are
    said = said_of_files(paths)

    def pieces(names: Sequence[str] | None) -> Iterator[Piece]:
        for path in paths:
            for table in _READERS[format_of(path).name](path, names):
                yield Piece(table, stem(path))

    return SurveySource(said, pieces, n_rows=_n_rows(paths))


def said_of_files(paths: Sequence[Path]) -> dict[str, object]:
    """Return what files are, or say that one does not exist."""
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"source must be existing files, but there is no file {path}.")
    return {"kind": "files", "files": [[p.name, p.stat().st_size, _of_bytes(p)] for p in paths]}


def _n_rows(paths: list[Path]) -> int | None:
    """Return how many rows files have, where all of them say so at once."""
    import pyarrow.parquet

    if any(format_of(path).name != "parquet" for path in paths):
        return None
    try:
        return sum(pyarrow.parquet.read_metadata(path).num_rows for path in paths)
    except (OSError, ValueError):  # not sound: whoever reads it says so
        return None


def _of_bytes(path: Path) -> str:
    """Return the fingerprint of the first and last bytes of a file, which notes of formats fill."""
    with path.open("rb") as file:
        head = file.read(_END_BYTES)
        file.seek(max(path.stat().st_size - _END_BYTES, 0))
        return digest([head, file.read()])


def _parquet(path: Path, names: Sequence[str] | None) -> Iterator[pyarrow.Table]:
    import pyarrow as pa
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        wanted = None if names is None else [n for n in names if n in schema.names]
        if not file.metadata.num_rows:
            yield schema.empty_table()
        for i in range(file.num_row_groups):  # asked for together, all that were read are kept
            for batch in file.iter_batches(_ROWS, row_groups=[i], columns=wanted):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)


def _fits(path: Path, names: Sequence[str] | None) -> Iterator[pyarrow.Table]:
    from astropy.io import fits

    with fits.open(path, memmap=not path.name.endswith(".gz")) as file:
        hdu = next((h for h in file if isinstance(h, fits.BinTableHDU)), None)
        if hdu is None:
            raise ValueError(f"{path.name} must hold a binary table, but holds none.")
        data, known = hdu.data, {c.name: (c.unit, c.null) for c in hdu.columns}
        note = hdu.header.get(FITS_NOTE) or file[0].header.get(FITS_NOTE)
        wanted = [n for n in known if names is None or n in names]
        for start in range(0, max(len(data), 1), _ROWS):
            part = data[start : start + _ROWS]
            columns = {n: _of_fits(part[n], known[n][1]) for n in wanted}
            yield _arrow(columns, {n: known[n][0] for n in wanted}, note)


def _of_fits(values: NDArray, null: int | None) -> pyarrow.Array:
    import pyarrow as pa

    if values.dtype.kind == "O" or values.ndim > 1:  # a list of points in each row
        return pa.array([native(np.asarray(v)) for v in values])
    values = np.asarray(values)
    if values.dtype.kind in "SU":
        return pa.array(np.char.strip(values.astype(str)))
    return pa.array(native(values), mask=None if null is None else values == null)


def _hdf5(path: Path, names: Sequence[str] | None) -> Iterator[pyarrow.Table]:
    with open_hdf5(path) as file:
        place, found = hdf5_columns(file)
        node = file[place]
        wanted = [n for n in found if names is None or n in names]
        fields = isinstance(node, h5py.Dataset)
        units = {} if fields else {n: node[n].attrs.get("unit") for n in wanted}
        n_rows = len(node) if fields else len(node[wanted[0]])
        for start in range(0, max(n_rows, 1), _ROWS):
            rows = slice(start, start + _ROWS)
            part = node[rows] if fields else {n: node[n] for n in wanted}
            columns = {n: _of_hdf5(part[n], slice(None) if fields else rows) for n in wanted}
            yield _arrow(columns, units, file.attrs.get(NOTE))


def _of_hdf5(data: h5py.Dataset | NDArray, rows: slice) -> pyarrow.Array:
    import pyarrow as pa

    values = np.asarray(texts_of_hdf5(data, rows))
    return pa.array(values.astype(str) if values.dtype.kind in "SO" else values)


def _csv(path: Path, names: Sequence[str] | None) -> Iterator[pyarrow.Table]:
    import pyarrow as pa
    import pyarrow.csv

    types = _csv_types(path)
    wanted = [n for n in types if names is None or n in names]
    options = pyarrow.csv.ConvertOptions(include_columns=wanted, column_types=types)
    with pyarrow.csv.open_csv(path, convert_options=options) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _csv_types(path: Path) -> dict[str, pyarrow.DataType]:
    """Return types that hold every row of a file: the first rows may look like whole numbers."""
    import pyarrow as pa
    import pyarrow.csv

    wider = {pa.null(): pa.int64(), pa.int64(): pa.float64()}
    with pyarrow.csv.open_csv(path) as reader:
        types = {field.name: field.type for field in reader.schema}
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(types, pa.string()), strings_can_be_null=True
    )
    with pyarrow.csv.open_csv(path, convert_options=options) as reader:
        for batch in reader:
            for name in types:
                while not _can_be(batch[name], types[name]):
                    types[name] = wider.get(types[name], pa.string())
    return types


def _can_be(texts: pyarrow.Array, kind: pyarrow.DataType) -> bool:
    import pyarrow as pa

    try:
        texts.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _ecsv(path: Path, names: Sequence[str] | None) -> Iterator[pyarrow.Table]:
    from astropy.table import Table

    yield from _parts_of(_arrow_of(Table.read(path, format="ascii.ecsv"), names))


_READERS = {"parquet": _parquet, "FITS": _fits, "HDF5": _hdf5, "CSV": _csv, "ECSV": _ecsv}


# --- memory and collections ----------------------------------------------------------------------


def _of_table(source: object) -> SurveySource:
    as_table(source)  # says which tables there are
    whole = arrow_of_frame(source)
    if whole is None:
        whole = _arrow_of(source, None)

    def pieces(wanted: Sequence[str] | None) -> Iterator[Piece]:
        return map(Piece, _parts_of(_selected(whole, wanted)))

    said = {"kind": "table", "rows": whole.num_rows, "columns": whole.column_names,
            "data": _of_rows(whole)}  # fmt: skip
    return SurveySource(said, pieces, n_rows=whole.num_rows)


def _of_rows(*tables: pyarrow.Table) -> str:
    """Return the fingerprint of the first and last rows of tables."""
    ends = [(t.slice(0, _ENDS), t.slice(max(t.num_rows - _ENDS, 0))) for t in tables]
    return digest(repr(end.to_pydict()).encode() for pair in ends for end in pair)


def _selected(table: pyarrow.Table, names: Sequence[str] | None) -> pyarrow.Table:
    return table.select([n for n in table.column_names if names is None or n in names])


def _of_collection(source: Any) -> SurveySource:  # noqa: ANN401 - of dask or lsdb, which are optional
    n = source.npartitions

    def part(i: int) -> pyarrow.Table:
        return arrow_of_frame(source.partitions[i].compute())

    def pieces(wanted: Sequence[str] | None) -> Iterator[Piece]:
        for i in range(n):
            yield from map(Piece, _parts_of(_selected(part(i), wanted)))

    names = list(map(str, source.columns))
    said = {"kind": "collection", "partitions": n, "columns": names,
            "data": _of_rows(*(part(i) for i in sorted({0, n - 1})))}  # fmt: skip
    return SurveySource(said, pieces)


def _parts_of(table: pyarrow.Table) -> Iterator[pyarrow.Table]:
    for start in range(0, max(table.num_rows, 1), _ROWS):  # of none, the columns
        yield table.slice(start, _ROWS)


def _arrow_of(source: object, names: Iterable[str] | None) -> pyarrow.Table:
    table = as_table(source)
    columns = table.load([n for n in table.names if names is None or n in names])
    return _arrow({k: _of_column(c) for k, c in columns.items()},
                  {k: c.unit for k, c in columns.items()})  # fmt: skip


def _of_column(column: Column) -> pyarrow.Array:
    import pyarrow as pa

    if column.texts is None:
        return pa.array(column.values, mask=column.missing)
    return pa.array(np.asarray(column.texts)[column.values], mask=column.missing)


def _arrow(
    columns: dict[str, pyarrow.Array], units: dict[str, str | None], note: str | None = None
) -> pyarrow.Table:
    """Return a table of columns with units, and the note of a file that we wrote."""
    import pyarrow as pa

    fields = [
        pa.field(k, v.type, metadata={"unit": units[k]} if units.get(k) else None)
        for k, v in columns.items()
    ]
    schema = pa.schema(fields, metadata={NOTE: note} if note else None)
    return pa.table(list(columns.values()), schema=schema)
