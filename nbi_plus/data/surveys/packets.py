"""Packets: rows of objects with nested lists of unequal lengths, from dicts, frames or files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.tables.columns import Column, column
from nbi_plus.data.tables.table_files import arrow_of_parquet, found_files, suffix_of
from nbi_plus.data.tables.tables import (
    arrow_column,
    arrow_of_frame,
    fields_of,
    is_of_lists,
    lengths_of,
    solid,
)

if TYPE_CHECKING:
    import pyarrow

UNREAD = "cutout"  # images of kilobytes that no light curve needs
_JSON, _AVRO, _PARQUET = (".json", ".json.gz"), (".avro", ".avro.gz"), (".parquet",)
PACKET_FILES = (*_AVRO, *_JSON, *_PARQUET)


class Part(NamedTuple):
    """The rows of one nested list, or structure, of all packets.

    `owner` is the packet of each row, `names` are its fields and `load` takes one of them.
    """

    owner: NDArray[np.int64]
    names: tuple[str, ...]
    load: Callable[[str], Column]


@dataclass(frozen=True)
class DictPackets:
    """Packets that came as dicts."""

    packets: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.packets)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All fields of packets."""
        return tuple(dict.fromkeys(name for packet in self.packets for name in packet))

    @cached_property
    def nested(self) -> tuple[str, ...]:
        """The fields that hold lists or structures, or nothing in any packet."""
        kinds = (Mapping, list, tuple, np.ndarray, type(None))
        return tuple(n for n in self.names
                     if all(isinstance(p.get(n), kinds) for p in self.packets))  # fmt: skip

    def is_one(self, name: str) -> bool:
        """Say whether a field holds at most one row of each packet: a structure, not a list."""
        return all(isinstance(p.get(name), (Mapping, type(None))) for p in self.packets)

    def part(self, name: str = "") -> Part:
        """Return the rows of a nested field; without a name, the packets themselves."""
        listed = [_rows(name, packet) for packet in self.packets]
        rows = [row for each in listed for row in each]
        owner = np.repeat(np.arange(len(listed)), [len(each) for each in listed])
        names = tuple(dict.fromkeys(field for row in rows for field in row))
        return Part(owner, names, lambda field: _of_values(field, [r.get(field) for r in rows]))


@dataclass(frozen=True)
class ArrowPackets:
    """Packets that came as the rows of a table with nested columns."""

    table: pyarrow.Table

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def names(self) -> tuple[str, ...]:
        """All fields of packets."""
        return tuple(self.table.column_names)

    @cached_property
    def nested(self) -> tuple[str, ...]:
        """The fields that hold lists or structures, or nothing in any packet."""
        schema = self.table.schema
        kinds = (schema.field(name).type for name in self.names)
        return tuple(name for name, kind in zip(self.names, kinds, strict=True)
                     if kind.num_fields or str(kind) == "null")  # fmt: skip

    def is_one(self, name: str) -> bool:
        """Say whether a field holds at most one row of each packet: a structure, not a list."""
        return not is_of_lists(self.table.schema.field(name).type)

    def part(self, name: str = "") -> Part:
        """Return the rows of a nested field; without a name, the packets themselves."""
        if not name:
            plain = {n: self.table[n] for n in self.names if n not in self.nested}
            load = partial(_load, {k: solid(v) for k, v in plain.items()})
            return Part(np.arange(len(self)), tuple(plain), load)
        values = solid(self.table[name])
        if is_of_lists(values.type):
            lists = {k: v for k, v in fields_of(values) if k}  # none: empty lists in all rows
            lengths = next((lengths_of(v) for v in lists.values()), np.zeros(len(self), int))
            flat = {k: v.flatten() for k, v in lists.items()}
            return Part(np.repeat(np.arange(len(self)), lengths), tuple(flat), partial(_load, flat))
        rows = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
        names = [values.type.field(i).name for i in range(values.type.num_fields)]
        fields = dict(zip(names, values.take(rows).flatten(), strict=True)) if names else {}
        return Part(rows, tuple(fields), partial(_load, fields))


Packets = DictPackets | ArrowPackets


def open_packets(source: object) -> list[Packets]:
    """Return the packets in a source.

    Parameters
    ----------
    source : path, glob, folder, dict, frame, or a sequence or iterator of paths or of dicts
        Files of Avro, JSON and Parquet; frames of pandas, nested-pandas and pyarrow.
    """
    if isinstance(source, (str, Path)):
        return _of_files(found_files("source", source, PACKET_FILES))
    if isinstance(source, Mapping):
        return [DictPackets([source])]
    table = arrow_of_frame(source)
    if table is not None:
        return [ArrowPackets(table)]
    items = list(source) if isinstance(source, (Sequence, Iterator)) else None
    if items and all(isinstance(item, (str, Path)) for item in items):
        each = (found_files("source", item, PACKET_FILES) for item in items)
        return _of_files([path for paths in each for path in paths])
    if items and all(isinstance(item, Mapping) for item in items):
        return [DictPackets(items)]
    came = type(source).__name__ if not items else sorted({type(item).__name__ for item in items})
    raise TypeError(
        "source must be paths of Avro, JSON or Parquet files, decoded packets (dicts) or a frame "
        f"of pandas, nested-pandas or pyarrow, but is {'empty' if items == [] else came}."
    )


def _of_files(paths: Sequence[Path]) -> list[Packets]:
    decoded: list[Mapping[str, Any]] = []
    tables: list[Packets] = []
    for path in paths:
        suffix = suffix_of(path)
        if suffix in _PARQUET:
            tables.append(ArrowPackets(arrow_of_parquet(path, UNREAD)))
        elif suffix in (*_AVRO, *_JSON):
            read = _from_avro if suffix in _AVRO else _from_json
            decoded += [_without_images(packet) for packet in read(path)]
        else:
            raise ValueError(
                f"source must be files that end in one of {PACKET_FILES}, but "
                f"{path.name!r} does not. Decode it, and give the dicts or a frame."
            )
    return [*([DictPackets(decoded)] if decoded else []), *tables]


def _without_images(packet: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in packet.items() if not k.startswith(UNREAD)}


def _from_avro(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        import fastavro
    except ImportError as error:
        raise ImportError(
            f"{path.name} is an Avro file, which needs fastavro. Install it with: pip install "
            '"nbi-plus[alerts]"'
        ) from error
    with _opened(path) as file:
        try:
            return list(fastavro.reader(file))
        except (ValueError, EOFError, KeyError, StopIteration) as error:
            raise ValueError(
                f"{path.name} must be a sound Avro file with its schema, but cannot be read "
                f"({type(error).__name__}: {error}). Copy it again, or decode it yourself."
            ) from error


def _from_json(path: Path) -> Iterable[Mapping[str, Any]]:
    with _opened(path) as file:
        found = json.load(file)
    listed = [found] if isinstance(found, Mapping) else found
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
        raise ValueError(
            f"{path.name} must hold one packet or a list of packets, but holds {found!r:.50}."
        )
    return listed


def _opened(path: Path) -> Any:  # noqa: ANN401 - two kinds of binary files
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _rows(name: str, packet: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of one field: of a structure, of a list of them, of a structure of lists."""
    value = packet.get(name) if name else packet
    if value is None:
        return []
    if isinstance(value, Mapping):
        if not name or not any(isinstance(v, (list, tuple, np.ndarray)) for v in value.values()):
            return [value]
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if isinstance(value, (list, tuple, np.ndarray)):
        rows = [row for row in value if row is not None]
        if all(isinstance(row, Mapping) for row in rows):
            return rows
    raise TypeError(f"{name!r} must be a structure, or a list of structures, but is {value!r:.50}.")


def _of_values(name: str, values: Sequence[Any]) -> Column:
    """Return a column of plain values, of which some may be missing."""
    missing = np.array([value is None for value in values], bool)
    known = [value for value in values if value is not None]
    kinds = {type(value) for value in known}
    if any(issubclass(kind, (str, bytes)) for kind in kinds):
        return column(name, np.array(["" if v is None else str(v) for v in values]), missing)
    filled = np.array([False if value is None else value for value in values])
    return column(name, filled if known else np.full(len(values), np.nan), missing)


def _load(fields: Mapping[str, pyarrow.Array], name: str) -> Column:
    return arrow_column(name, fields[name])
