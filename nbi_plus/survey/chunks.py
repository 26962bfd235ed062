"""Chunks: the whole objects of a source, a few thousand at a time, each either read or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.hashing import keys_of
from nbi_plus.data.joining import concatenate
from nbi_plus.data.observations import Observations
from nbi_plus.data.tables.columns import NOTE
from nbi_plus.data.tables.surveys import Names, find_roles, telling, zero_points
from nbi_plus.data.tables.tables import as_table, solid, units_of
from nbi_plus.survey.sources import Piece, SurveySource, Unread

if TYPE_CHECKING:
    import pyarrow

_ID = "survey_id"  # of objects that their table does not name
_BAD_ROWS = (ValueError, TypeError, KeyError, OverflowError, ArithmeticError)
Done = Callable[[NDArray[np.int64]], NDArray[np.bool_]]


@dataclass(frozen=True)
class Chunk:
    """Successive objects of a source, without those that are answered already.

    Attributes
    ----------
    positions : ndarray of int, shape (n,)
        Which objects of the source they are.
    ids : ndarray, shape (n,)
    carried : dict of pyarrow.Array
        Columns that go through, one entry for each.
    observations : Observations or None
        Of those that could be read.
    places : ndarray of int, shape (k,)
        Which of the n objects these are.
    refused : dict of int to str
        Why the others could not.
    start, end : int
        Rows of the source, or objects of sets, that come before it, and with it.
    """

    positions: NDArray[np.int64]
    ids: NDArray
    carried: dict[str, pyarrow.Array]
    observations: Observations | None
    places: NDArray[np.int64]
    refused: dict[int, str] = field(default_factory=dict)
    start: int = 0
    end: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, rows: NDArray[np.int64]) -> Chunk:
        """Return who some of the objects are, without their observations."""
        carried = {name: values.take(rows) for name, values in self.carried.items()}
        return Chunk(self.positions[rows], self.ids[rows], carried, None, np.zeros(0, np.int64))

    @classmethod
    def of_several(cls, some: Sequence[Chunk]) -> Chunk:
        """Return who the objects of all chunks are, without their observations."""
        import pyarrow as pa

        names = some[0].carried
        carried = {k: solid(pa.chunked_array([c.carried[k] for c in some])) for k in names}
        positions, ids = (
            np.concatenate([getattr(c, k) for c in some]) for k in ("positions", "ids")
        )
        return cls(positions, ids, carried, None, np.zeros(0, np.int64))


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read.

    Attributes
    ----------
    columns : mapping of role to column
        As for `Observations.from_table`; what is not named is guessed.
    carry : tuple of str
        Columns that go through.
    scalars : tuple of str
        Numbers of each object that the network wants to know.
    categories : mapping of name to tuple of str
        As the network knows them.
    """

    columns: Mapping[str, Names] = field(default_factory=dict)
    carry: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, Names]:
        """Columns of roles alone."""
        return {k: v for k, v in self.columns.items() if k not in self.scalars}

    @property
    def scalar_columns(self) -> dict[str, str]:
        """The column of each scalar."""
        return {k: str(self.columns.get(k, k)) for k in self.scalars}

    def check_carried(self, names: Sequence[str]) -> None:
        """Refuse columns to carry that are none of these; of observations, these are scalars."""
        missing = [name for name in self.carry if name not in names]
        if missing:
            raise ValueError(
                f"carry must name columns of the source, but {missing[0]!r} is none. They are "
                f"{list(names)}."
            )


class SeenIds:
    """Which ids a source has had so far, in eight bytes each."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, np.int64)

    def add(self, ids: NDArray) -> None:
        """Note the ids of further objects; refuse one that was there before."""
        keys = keys_of(ids)
        found, first = np.unique(keys, return_index=True)
        twice = np.isin(keys, self._keys)
        twice[np.setdiff1d(np.arange(len(keys)), first)] = True
        if twice.any():
            raise ValueError(
                f"source must have the rows of an object together, but those of "
                f"{ids[twice.argmax()]!s} are in several places. Sort it by id."
            )
        self._keys = np.union1d(self._keys, found)


def chunks(source: SurveySource, reading: Reading, size: int, done: Done) -> Iterator[Chunk]:
    """Yield the objects of a source, ``size`` at a time, without those that are done.

    Parameters
    ----------
    source : SurveySource
    reading : Reading
    size : int
    done : callable
        Takes positions (n,) of objects in the source, returns which of them are done.
    """
    parts = _of_sets if source.sets is not None else _of_tables
    first, start, seen = 0, 0, SeenIds()
    for ids, n_rows, make in parts(source, reading, size):
        seen.add(ids)
        positions = np.arange(first, first + len(ids))
        first += len(ids)
        left = np.flatnonzero(~done(positions))
        if len(left):
            yield replace(make(positions, left), start=start, end=start + n_rows)
        start += n_rows


Cuts = Iterator[tuple[NDArray, int, Callable[[NDArray[np.int64], NDArray[np.int64]], Chunk]]]


def _of_sets(source: SurveySource, reading: Reading, size: int) -> Cuts:
    import pyarrow as pa

    def make(part: Observations | Unread, positions: NDArray, left: NDArray) -> Chunk:
        if isinstance(part, Unread):
            nothing = {name: pa.nulls(len(left), pa.float64()) for name in reading.carry}
            refused = dict.fromkeys(range(len(left)), part.reason)
            places = np.zeros(0, np.int64)
            return Chunk(positions[left], part.ids[left], nothing, None, places, refused)
        some = part[left]
        reading.check_carried(list(some.scalars))
        carried = {name: pa.array(some.scalars[name]) for name in reading.carry}
        return Chunk(positions[left], some.ids, carried, some, np.arange(len(some)))

    for whole in source.sets():
        for start in range(0, len(whole), size):
            part = whole[start : start + size]
            yield (
                part.ids,
                len(part),
                lambda positions, left, part=part: make(part, positions, left),
            )


def none_done(positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say of objects that none is finished."""
    return np.zeros(len(positions), bool)


# --- tables --------------------------------------------------------------------------------------


def _of_tables(source: SurveySource, reading: Reading, size: int) -> Cuts:
    named, table, n_rows, units = None, None, 0, {}
    for piece in source.pieces(_needed(source, reading)):
        if named is None:
            named = _Named.of(piece.table, reading)
        rows = named.rows(piece, n_rows)
        n_rows += rows.num_rows
        before, units = units, units_of(rows.schema)
        if table is not None and units != before:  # each table is read in its own
            named.check_carried(before, units)
            yield named.part(table, _runs(table[named.id]))
            table = None
        table = rows if table is None else _together(table, rows)
        runs = _runs(table[named.id])
        while len(runs) - 1 > size:  # the last object may go on in the next piece
            yield named.part(table.slice(0, runs[size]), runs[:size])
            table, runs = table.slice(runs[size]), runs[size:] - runs[size]
    if table is not None and table.num_rows:
        yield named.part(table, _runs(table[named.id]))


def _needed(source: SurveySource, reading: Reading) -> list[str] | None:
    """Return the columns that are read of a table in the long format; None for all."""
    if NOTE.encode() in (source.schema.metadata or {}):
        return None  # a file that we wrote: it says itself what its columns are
    names = source.schema.names
    try:
        roles = find_roles(names, reading.given)
    except ValueError:
        return None  # of nested lists
    zero = zero_points(names, roles.x)
    wanted = (*roles.columns, *reading.scalar_columns.values(), *reading.carry,
              *filter(None, zero), *telling(names))  # fmt: skip
    return list(dict.fromkeys(wanted))


def _together(first: pyarrow.Table, second: pyarrow.Table) -> pyarrow.Table:
    import pyarrow as pa

    return pa.concat_tables([first, second], promote_options="permissive")


def _runs(ids: pyarrow.ChunkedArray) -> NDArray[np.int64]:
    """Return where each run of equal ids begins."""
    import pyarrow as pa

    found = solid(ids)
    if not pa.types.is_dictionary(found.type):
        found = found.dictionary_encode(null_encoding="encode")
    codes = found.indices.to_numpy(zero_copy_only=False)
    return np.flatnonzero(np.concatenate([[len(codes) > 0], codes[1:] != codes[:-1]]))


@dataclass(frozen=True)
class _Named:
    """Tables of one source, of which one column tells the objects apart.

    Attributes
    ----------
    reading : Reading
    id : str
    made : bool
        Whether the column is none of the source's own: a row, or a file, is an object then.
    nested : bool
    numbers : tuple of str
        Columns that must hold numbers.
    """

    reading: Reading
    id: str
    made: bool
    nested: bool
    numbers: tuple[str, ...]

    @classmethod
    def of(cls, first: pyarrow.Table, reading: Reading) -> _Named:
        """Return how the objects are told apart, after a look at the first rows."""
        table = as_table(first)
        known = table.layout.get("columns", {})
        roles = find_roles(table.names, known | reading.given)
        times = [roles.coords[k] for k in ("t", "wavelength") if k in roles.coords]
        numbers = (*roles.x, *roles.x_err, *times, *reading.scalar_columns.values())
        reading.check_carried(first.column_names)
        nested = table.owner is not None
        return cls(reading, roles.id or _ID, roles.id is None, nested, numbers)

    def check_carried(
        self, before: Mapping[str, str | None], now: Mapping[str, str | None]
    ) -> None:
        """Refuse carried columns whose unit changes from file to file: a catalogue has one."""
        for name in self.reading.carry:
            if now.get(name) != before.get(name):
                raise ValueError(
                    f"carry must name columns of one unit, but {name!r} is in {before.get(name)} "
                    f"first and in {now.get(name)} later. Convert the files, or leave it out."
                )

    def rows(self, piece: Piece, before: int) -> pyarrow.Table:
        """Return a piece with the column that tells its objects apart."""
        import pyarrow as pa

        table = _in_numbers(piece.table, self.numbers)
        if not self.made:
            return table
        n = table.num_rows
        ids = np.arange(before, before + n) if self.nested else np.full(n, piece.file or "0")
        return table.append_column(_ID, pa.array(ids))

    def part(
        self, table: pyarrow.Table, starts: NDArray[np.int64]
    ) -> tuple[NDArray, int, Callable[[NDArray[np.int64], NDArray[np.int64]], Chunk]]:
        """Return the ids of a table's objects, its rows, and what makes a chunk of some."""
        ends = np.append(starts[1:], table.num_rows)
        ids = _ids(table[self.id].take(starts))

        def make(positions: NDArray[np.int64], left: NDArray[np.int64]) -> Chunk:
            rows = np.concatenate([np.arange(starts[i], ends[i]) for i in left])
            some = table if len(rows) == table.num_rows else table.take(rows)
            carried = {k: solid(table[k].take(starts[left])) for k in self.reading.carry}
            found, refused = self._read(some, np.append(0, np.cumsum((ends - starts)[left])), 0)
            places = np.concatenate([p for p, _ in found]) if found else np.zeros(0, np.int64)
            observations = concatenate([obs for _, obs in found]) if found else None
            return Chunk(positions[left], ids[left], carried, observations, places, refused)

        return ids, table.num_rows, make

    def _read(
        self, table: pyarrow.Table, offsets: NDArray[np.int64], first: int
    ) -> tuple[list[tuple[NDArray[np.int64], Observations]], dict[int, str]]:
        """Return what can be read, with its places, and why the rest cannot: halves of halves."""
        n = len(offsets) - 1
        try:
            return self._observations(table, n, first)
        except _BAD_ROWS as error:
            if n == 1:
                return [], {first: f"{type(error).__name__}: {error}"[:500]}
        middle = n // 2
        at = int(offsets[middle])
        left = self._read(table.slice(0, at), offsets[: middle + 1], first)
        right = self._read(table.slice(at), offsets[middle:] - at, first + middle)
        return left[0] + right[0], left[1] | right[1]

    def _observations(
        self, table: pyarrow.Table, n: int, first: int
    ) -> tuple[list[tuple[NDArray[np.int64], Observations]], dict[int, str]]:
        reading = self.reading
        columns = {**reading.given, "id": self.id}
        found = Observations.from_table(
            table, scalars=reading.scalar_columns, categories=dict(reading.categories), **columns
        )
        order = _ids(solid(table[self.id]).unique())
        place = {str(key): i for i, key in enumerate(order.tolist())}
        places = np.array([place[str(key)] for key in found.ids.tolist()], np.int64)
        lost = np.setdiff1d(np.arange(n), places)
        return [(first + places, found)], {first + int(i): "it has no points" for i in lost}


def _ids(column: pyarrow.ChunkedArray | pyarrow.Array) -> NDArray:
    """Return ids as they are: of whole numbers, a missing one would make numbers of 53 bits."""
    if not column.null_count:
        return column.to_pandas().to_numpy()
    return np.array(["" if i is None else i for i in column.to_pylist()], object)


def _in_numbers(table: pyarrow.Table, names: Sequence[str]) -> pyarrow.Table:
    """Return a table whose columns of these names hold numbers, NaN where a text is none.

    One row that says "bad" makes a whole column one of texts, and its neighbours are sound.
    """
    import pyarrow as pa

    for place, one in enumerate(table.schema):
        is_text = pa.types.is_string(one.type) or pa.types.is_large_string(one.type)
        if one.name in names and is_text:
            texts = solid(table[one.name]).dictionary_encode()
            known = np.array([_number(text) for text in texts.dictionary.to_pylist()] or [np.nan])
            codes = texts.indices.fill_null(0).to_numpy(zero_copy_only=False)
            gaps = texts.is_null().to_numpy(zero_copy_only=False)
            values = np.where(gaps, np.nan, known[codes])
            table = table.set_column(place, one.with_type(pa.float64()), pa.array(values))
    return table


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
