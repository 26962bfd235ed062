"""Files of simulations: made, found again and made larger, each under its name at once."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from nbi_plus.io.archive import (
    IN_USE,
    checked_datasets,
    hdf5_errors,
    open_hdf5,
    read_header,
    refusal,
)
from nbi_plus.io.blocks import FileRows, RowSource, rows_per_block
from nbi_plus.io.checksums import row_checksums, whole_rows
from nbi_plus.io.disk import disk_errors, lock, open_handle
from nbi_plus.io.header import ArchiveError
from nbi_plus.io.layout import KIND, Layout, StoreError, layout_of
from nbi_plus.io.placing import is_at, place, place_new, remove_leftovers, temporary_beside
from nbi_plus.io.planned import plan_file

_LOG = logging.getLogger("nbi_plus")
_RENAMES_OPEN_FILES = os.name != "nt"  # Windows does not


@dataclass(frozen=True)
class StoredRows:
    """The rows of a store, in an open file or in memory.

    Attributes
    ----------
    data : mapping of str to RowSource
        What is stored of each row, to be read and written in place.
    done : ndarray of bool, shape (capacity,)
        Which rows are written, and were whole when the file was opened.
    handle : int or None
        The file.
    """

    data: Mapping[str, RowSource]
    done: NDArray[np.bool_]
    handle: int | None = None

    def close(self) -> None:
        """Let go of the file, if there is one."""
        if self.handle is not None:
            os.close(self.handle)

    def abandon(self) -> None:
        """Let go of it where nobody can be told of an error, or where none can do harm."""
        with suppress(OSError):
            self.close()


@contextmanager
def store_errors(path: Path | str | None) -> Iterator[None]:
    """Turn the errors of files and disks into `StoreError`."""
    try:
        with disk_errors("the store" if path is None else Path(path).name, StoreError):
            yield
    except ArchiveError as error:
        raise StoreError(str(error)) from error


def in_memory(layout: Layout, capacity: int, source: StoredRows | None = None) -> StoredRows:
    """Return rows that no file holds, among them those of `source`."""
    columns = layout.stored.items()
    data = {name: np.zeros((capacity, *column.shape), column.dtype) for name, column in columns}
    return _filled(StoredRows(data, np.zeros(capacity, bool)), source)


def make_file(
    path: Path, layout: Layout, capacity: int, source: StoredRows | None = None
) -> StoredRows:
    """Make a file, all of its room taken, with the rows of `source`; return it open and locked.

    The source is closed when the file has its name, and left as it is by an error before.
    """
    header = np.frombuffer(layout.header(), np.uint8)
    shapes = {n: ((capacity, *c.shape), np.dtype(c.dtype)) for n, c in layout.stored.items()}
    plan = plan_file({"header": (header.shape, header.dtype), **shapes})

    def rows_in(handle: int) -> StoredRows:
        data = {n: FileRows(handle, plan.offsets[n], *shapes[n]) for n in shapes}
        return StoredRows(data, np.zeros(capacity, bool), handle)

    temporary = temporary_beside(path)
    with ExitStack() as done, ExitStack() as opened:
        done.callback(temporary.unlink, missing_ok=True)
        handle = open_handle(temporary, new=True)
        opened.callback(os.close, handle)
        lock(handle)  # before it has its name, so that no other process can be first
        plan.begin(handle)
        plan.write(handle, "header", header)
        rows = _filled(rows_in(handle), source)
        if not _RENAMES_OPEN_FILES:
            opened.close()
            if source is not None:
                source.abandon()
        try:
            (place_new if source is None else place)(temporary, path)
        except (FileExistsError, FileNotFoundError) as error:  # another process was quicker
            raise StoreError(IN_USE.format(path.name)) from error
        if source is not None and _RENAMES_OPEN_FILES:
            source.abandon()  # all of its rows are in the new file
        remove_leftovers(path, older_than=0.0)
        if not _RENAMES_OPEN_FILES:
            rows = StoredRows(rows_in(handle := open_handle(path)).data, rows.done, handle)
        opened.pop_all()
        return rows


def open_file(path: Path) -> tuple[StoredRows, Layout]:
    """Open a store to write to it, if it is one; anything else at that path is left as it was."""
    with ExitStack() as opened, store_errors(path):
        with hdf5_errors(path), open_hdf5(path) as file:
            handle = open_handle(path)
            opened.callback(os.close, handle)
            lasts = os.path.samestat(os.fstat(handle), os.fstat(file.id.get_vfd_handle()))
            layout, datasets = read_layout(file)
            places = {n: (d.id.get_offset(), d.shape, d.dtype) for n, d in datasets.items()}
        with hdf5_errors(path):
            lock(handle)
        if not (lasts and is_at(handle, path)):  # another process made it grow meanwhile
            raise StoreError(IN_USE.format(path.name))
        remove_leftovers(path, older_than=0.0)
        data = {name: FileRows(handle, *place) for name, place in places.items()}
        done, n_bad = believed(path.name, layout, data)
        if n_bad:
            _LOG.warning(
                "%d of %d rows of %s do not agree with their checksums; they count as missing, and "
                "are simulated again", n_bad, len(done), path,
            )  # fmt: skip
        rows = StoredRows(data, done, handle)
        if "checksums" not in data:
            rows = make_file(path, layout, len(done), _with_checksums(layout, rows))
        opened.pop_all()
        return rows, layout


def believed(
    name: str, layout: Layout, data: Mapping[str, RowSource]
) -> tuple[NDArray[np.bool_], int]:
    """Return which rows of a file are done, and how many do not agree with their checksums."""
    if "checksums" in data:
        return whole_rows(data, tuple(layout.written), data["checksums"])
    warnings.warn(
        f"{name} was written by an earlier version of nbi-plus, without checksums: its rows are "
        "believed as they are. Opening it to write gives them some.",
        UserWarning,
        stacklevel=5,
    )
    return data["done"][:] != 0, 0


def read_layout(file: h5py.File) -> tuple[Layout, dict[str, h5py.Dataset]]:
    """Return the layout of an open file and its datasets, if they agree.

    These are what the layout stores, or what earlier versions did: `done` instead of `checksums`.
    """
    with hdf5_errors(file.filename):
        layout = layout_of(read_header(file, KIND))
        stored = layout.stored_before if "done" in set(file) else layout.stored
        if set(file) != {"header", *stored}:
            raise refusal(file, f"must hold {tuple(stored)}", f"holds {len(file)} others")
        datasets = checked_datasets(file, stored)
        capacity = datasets["state"].shape[0]
        for name, column in stored.items():
            data, shape = datasets[name], (capacity, *column.shape)
            in_place = data.id.get_offset() is not None  # contiguous and allocated
            if data.shape != shape or data.dtype != np.dtype(column.dtype) or not in_place:
                rule = f"must have {name} as {column.dtype} of shape {shape}, in one piece"
                raise refusal(file, rule, f"has {data.dtype} of shape {data.shape}")
        extents = sorted((d.id.get_offset(), d.id.get_storage_size()) for d in datasets.values())
        if any(start + size > after for (start, size), (after, _) in pairwise(extents)):
            raise refusal(file, "must hold each dataset in bytes of its own", "two share some")
        return layout, datasets


def _filled(rows: StoredRows, source: StoredRows | None) -> StoredRows:
    """Copy the rows of a source, up to the last one that is done."""
    if source is None:
        return rows
    n = int(np.flatnonzero(source.done).max(initial=-1)) + 1
    for name, data in rows.data.items():
        row_bytes = data.dtype.itemsize * int(np.prod(data.shape[1:]))
        step = rows_per_block(row_bytes)
        for start in range(0, n, step):
            block = slice(start, min(start + step, n))
            data[block] = source.data[name][block]
    rows.done[:n] = source.done[:n]
    return rows


def _with_checksums(layout: Layout, old: StoredRows) -> StoredRows:
    """Return rows of an earlier version with checksums beside them, in memory."""
    capacity, names = len(old.done), tuple(layout.written)
    sums = np.zeros((capacity, len(names)), np.uint32)
    step = rows_per_block(sum(column.nbytes for column in layout.written.values()))
    for start in range(0, capacity, step):
        block = slice(start, min(start + step, capacity))
        columns = {name: old.data[name][block] for name in names}
        sums[block] = row_checksums(columns, np.arange(block.start, block.stop))
    sums[~old.done] = 0
    return StoredRows({**old.data, "checksums": sums}, old.done, old.handle)
