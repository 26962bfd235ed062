"""Parts: what a survey has answered so far, in files that a kill at any moment leaves whole.

The folder holds ``_survey.json``, which says what is surveyed and by what, and parts: parquet files
of some rows of the catalogue each, whose metadata say which objects of the source these are.
Beside a part may stand what its unfinished objects need to be tried again.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbi_plus.io.appending import NewFile
from nbi_plus.io.placing import place
from nbi_plus.io.sealed import SEAL, is_sealed, sealed
from nbi_plus.survey.manifest import (
    MANIFEST,
    SurveyError,
    following,
    read_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    import pyarrow

SURVEY = b"nbi_plus.survey"
_POSITIONS, _NIGHT, _SEAL = b"nbi_plus.positions", b"nbi_plus.night", b"nbi_plus.seal"
_UNFINISHED, _SORTED = "_unfinished-", ".sorted-"


class Parts:
    """The parts of one survey; made by `open`, and held by one process at a time."""

    def __init__(self, folder: Path, manifest: dict[str, object], lock: IO[bytes]) -> None:
        self.folder, self.manifest = folder, manifest
        self._lock, self._night = lock, len(manifest["nights"]) - 1
        self._done = np.zeros(0, bool)
        self.files = sorted(folder.glob("part-*.parquet"))
        for path in self.files:
            night, positions = _told(path)
            if night == self._night:
                self._mark(positions)

    @classmethod
    def open(
        cls, folder: Path, manifest: Mapping[str, object], known: dict[str, object] | None = None,
        *, append: bool, anew: bool = False,
    ) -> Parts:  # fmt: skip
        """Open the parts of a survey to go on with it, or begin.

        Parameters
        ----------
        folder : Path
        manifest : mapping
            What is surveyed, ``source``, and by what, ``survey``: JSON.
        known : dict, optional
            The manifest of a catalogue that the parts will follow.
        append : bool
            Whether a source that the folder does not know may follow those that it has finished.
        anew : bool
            Whether parts that are there are deleted.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            if anew:
                _empty(folder)
            found = read_manifest(folder)
            if found is not None:
                found = _placed(folder, found)
            wanted = following(found or known, manifest, folder.name, append=append)
            if wanted != found:
                write_manifest(folder, wanted)
            for leftover in folder.glob(".*.tmp"):  # of a killed writer: the lock is ours
                leftover.unlink(missing_ok=True)
            return cls(folder, wanted, lock)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def held(cls, folder: Path) -> Parts:
        """Return the parts of a finished survey, to change some of its rows."""
        lock = _locked(folder)
        try:
            return cls(folder, read_manifest(folder), lock)
        except BaseException:
            lock.close()
            raise

    @property
    def n_done(self) -> int:
        """How many objects of this source are answered."""
        return int(self._done.sum())

    @property
    def positions(self) -> NDArray[np.int64]:
        """Which objects of this source are answered, in order."""
        return np.flatnonzero(self._done)

    def done(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which objects of the source are answered."""
        known = np.zeros(len(positions), bool)
        inside = positions < len(self._done)
        known[inside] = self._done[positions[inside]]
        return known

    def write(
        self, table: pyarrow.Table, positions: NDArray[np.int64],
        unfinished: pyarrow.Table | None = None,
    ) -> None:  # fmt: skip
        """Write rows of the catalogue, and which objects of the source they are.

        What the unfinished ones of them need is written before: no row is without it.
        """
        number = 1 + max((_number(path) for path in self.files), default=-1)
        beside = self.folder / f"{_UNFINISHED}{number:06d}.parquet"
        if unfinished is None:
            beside.unlink(missing_ok=True)  # of a killed writer
        else:
            night = np.full(unfinished.num_rows, self._night)
            _write(beside, unfinished.append_column("night", [night]), {})
        path = self.folder / f"part-{number:06d}.parquet"
        _write(path, table, self._metadata(positions))
        self.files.append(path)
        self._mark(positions)

    def finish(self, *, in_order: bool) -> None:
        """Note that the source is answered to its end, maybe with its parts in its order."""
        night = self.manifest["nights"][self._night]
        if in_order and not night["finished"]:
            self._sort()
        night |= {"finished": True, "objects": self.n_done}
        write_manifest(self.folder, self.manifest)

    def tables(self) -> Iterator[pyarrow.Table]:
        """Yield the rows that there are, night after night, in the order of their sources."""
        nights: dict[int, list[tuple[Path, NDArray[np.int64]]]] = {}
        for path in self.files:
            night, positions = _told(path)
            nights.setdefault(night, []).append((path, positions))
        for _, own in sorted(nights.items()):
            yield from (table for table, _ in _merged(own))

    def unfinished(self) -> Iterator[pyarrow.Table]:
        """Yield what unfinished objects need to be tried again."""
        return map(read_part, sorted(self.folder.glob(f"{_UNFINISHED}*.parquet")))

    def replace(self, night: int, rows: Replacing) -> None:
        """Put rows in the places of others of a night, one file after the other."""
        import pyarrow.parquet

        for path in self.files:
            own, positions = _told(path)
            if own == night and rows.any_of(positions):
                table = rows(read_part(path), positions)
                _write(path, table, pyarrow.parquet.read_schema(path).metadata)

    def replace_unfinished(self, table: pyarrow.Table) -> None:
        """Put what is unfinished in the place of what was."""
        old = sorted(self.folder.glob(f"{_UNFINISHED}*.parquet"))
        path = self.folder / f"{_UNFINISHED}{max(map(_number, self.files)):06d}.parquet"
        _write(path, table, {})
        for other in old:
            if other != path:
                other.unlink()

    def _metadata(self, positions: NDArray[np.int64]) -> dict[bytes, bytes]:
        coded = base64.b64encode(zlib.compress(np.diff(positions, prepend=0).tobytes()))
        return {_POSITIONS: coded, _NIGHT: str(self._night).encode(),
                SURVEY: json.dumps(self.manifest).encode()}  # fmt: skip

    def _sort(self) -> None:
        """Put the rows of this night in the order of their source, unless they are."""
        told = ((path, *_told(path)) for path in self.files)
        own = [(path, positions) for path, night, positions in told if night == self._night]
        if all(a[-1] < b[0] for (_, a), (_, b) in pairwise(own)):
            return
        number = 1 + max(map(_number, self.files))
        for i, (table, positions) in enumerate(_merged(own)):
            path = self.folder / f"{_SORTED}{number + i:06d}.parquet"
            _write(path, table, self._metadata(positions))
        self.manifest["replaced"] = [path.name for path, _ in own]
        write_manifest(self.folder, self.manifest)  # from here on the sorted ones count
        self.manifest = _placed(self.folder, self.manifest)
        self.files = sorted(self.folder.glob("part-*.parquet"))

    def remove(self) -> None:
        """Delete the folder: its rows are elsewhere now."""
        _empty(self.folder)
        self.close()
        (self.folder / "_lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody keeps something else there
            self.folder.rmdir()

    def close(self) -> None:
        """Let other processes have it."""
        self._lock.close()

    def _mark(self, positions: NDArray[np.int64]) -> None:
        most = int(positions.max(initial=-1)) + 1
        if most > len(self._done):
            grown = np.zeros(max(most, 2 * len(self._done)), bool)
            grown[: len(self._done)] = self._done
            self._done = grown
        self._done[positions] = True


@dataclass(frozen=True)
class Replacing:
    """Rows that take the places of others, in the order of their positions (n,)."""

    table: pyarrow.Table
    positions: NDArray[np.int64]

    def any_of(self, positions: NDArray[np.int64]) -> bool:
        """Say whether any row is at one of these positions."""
        return bool(np.isin(positions, self.positions).any())

    def __call__(self, old: pyarrow.Table, positions: NDArray[np.int64]) -> pyarrow.Table:
        """Return a table at these positions with its rows replaced."""
        import pyarrow as pa

        new = self.table.select(old.schema.names).cast(old.schema)
        at = np.searchsorted(self.positions, positions)
        there = np.isin(positions, self.positions)
        order = np.where(there, old.num_rows + at, np.arange(old.num_rows))
        return pa.concat_tables([old, new]).take(order).replace_schema_metadata(old.schema.metadata)


def _empty(folder: Path) -> None:
    kinds = ("part-", _UNFINISHED, _SORTED)
    for path in [p for kind in kinds for p in folder.glob(f"{kind}*.parquet")]:
        path.unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)


def _placed(folder: Path, manifest: dict[str, object]) -> dict[str, object]:
    """Return the manifest after sorted parts took the places of those that they replace, if any."""
    replaced = manifest.get("replaced", [])
    for name in replaced:
        (folder / str(name)).unlink(missing_ok=True)
    for path in sorted(folder.glob(f"{_SORTED}*.parquet")):
        if replaced:
            place(path, path.with_name(f"part-{_number(path):06d}.parquet"))
        else:
            path.unlink()  # of a killed writer
    manifest = {k: v for k, v in manifest.items() if k != "replaced"}
    if replaced:
        write_manifest(folder, manifest)
    return manifest


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _write(path: Path, table: pyarrow.Table, told: Mapping[bytes, bytes]) -> None:
    """Write a table at once, with these notes beside its own."""
    with sealed(path, SurveyError) as file:
        write_tables(file, [table], table.schema, told)


def write_tables(
    file: NewFile, tables: Iterable[pyarrow.Table], schema: pyarrow.Schema,
    told: Mapping[bytes, bytes],
) -> None:  # fmt: skip
    """Write tables of one schema as parquet that can be sealed, with these notes."""
    import pyarrow.parquet

    whole = schema.with_metadata({**(schema.metadata or {}), **told, _SEAL: SEAL.encode()})
    with pyarrow.parquet.ParquetWriter(file, whole) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(whole.metadata))


def check_sealed(path: Path) -> None:
    """Refuse a file of a survey that does not hold what was written."""
    if not is_sealed(path, SurveyError):
        raise SurveyError(
            f"{path.name} must be sealed by a checksum, but has none. It is of another version, or "
            "damaged: begin anew, or use another path."
        )


def _merged(
    parts: Sequence[tuple[Path, NDArray[np.int64]]],
) -> Iterator[tuple[pyarrow.Table, NDArray[np.int64]]]:
    """Yield the rows of parts of one night, and their positions, in the order of the source.

    Only those rows are in memory that later parts stand between.
    """
    import pyarrow as pa

    parts = sorted(parts, key=lambda part: part[1][0])
    bounds = [positions[0] for _, positions in parts[1:]] + [np.inf]
    held: list[tuple[pyarrow.Table, NDArray[np.int64]]] = []
    for (path, own), bound in zip(parts, bounds, strict=True):
        held.append((read_part(path), own))
        table = pa.concat_tables([rows for rows, _ in held])
        positions = np.concatenate([places for _, places in held])
        order = np.argsort(positions, kind="stable")
        n = int((positions < bound).sum())
        if n:
            yield table.take(order[:n]), positions[order[:n]]
        held = [(table.take(order[n:]), positions[order[n:]])]


def read_part(path: Path) -> pyarrow.Table:
    """Return the rows of one part."""
    import pyarrow.parquet

    check_sealed(path)
    return pyarrow.parquet.ParquetFile(path).read()


def _told(path: Path) -> tuple[int, NDArray[np.int64]]:
    """Return the night that a part is of, and which objects of its source it holds."""
    import pyarrow.parquet

    try:
        check_sealed(path)
        metadata = pyarrow.parquet.read_schema(path).metadata
        coded = zlib.decompress(base64.b64decode(metadata[_POSITIONS]))
        return int(metadata[_NIGHT]), np.cumsum(np.frombuffer(coded, np.int64))
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise SurveyError(
            f"{path} must be a part of a survey, but cannot be read ({error}). Delete it: its "
            "objects are answered again."
        ) from error


def _locked(folder: Path) -> IO[bytes]:
    """Return an open file that no other process can have at the same time."""
    lock = (folder / "_lock").open("ab")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise SurveyError(
            f"{folder} must be free, but another process is writing to it. Wait for that, or use "
            "another path."
        ) from error
    return lock
