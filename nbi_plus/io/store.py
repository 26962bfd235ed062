"""Simulations on disk: one HDF5 file a run, which a kill at any moment leaves whole.

The root of the file holds plain datasets, one row for each simulation::

    header     uint8 (n,), JSON: the manifest (what the rows depend on) and the columns
    state      uint8 (capacity,): 0 is a good simulation; other values say what went wrong
    done       uint8 (capacity,): 1 where the row is written
    <column>   (capacity, ...)

All are allocated when the file is made, so that its metadata never change. A row is written in its
place, and marked as done only when it has reached the file. A file is made, and made larger, beside
its final name, which it then takes at once. (HDF5 notes in the header of the file whether it is
open for writing, but heeds that only in later versions of its format than the one used here.)
"""

from __future__ import annotations

import copy
import operator
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from nbi_plus.io.archive import (
    IN_USE,
    checked_datasets,
    hdf5_errors,
    native,
    open_hdf5,
    read_header,
    read_plain,
    refusal,
)
from nbi_plus.io.blocks import gather, row_numbers, rows_per_block, shuffled_pools
from nbi_plus.io.header import ArchiveError
from nbi_plus.io.layout import (
    KIND,
    ColumnLayout,
    Layout,
    StoreError,
    check_same,
    layout_of,
    make_layout,
    positive,
)
from nbi_plus.io.placing import is_at, place, place_new, remove_leftovers, temporary_beside

_RENAMES_OPEN_FILES = os.name != "nt"  # Windows does not


class SimulationStore:
    """Rows of simulations, each written once, in one HDF5 file or in memory.

    Made by `open`. It writes to ``path`` alone and, while it makes or grows that file, to a hidden
    file beside it. After a kill, `open` finds every row that was done and `missing` names the
    others; a power cut may lose what the operating system had not yet written. One process at a
    time can have the file open.

    Attributes
    ----------
    path : Path or None
        The file; None for a store in memory.

    Examples
    --------
    >>> with SimulationStore.open(None, {}, {"x": (2,)}, capacity=4) as store:
    ...     store.write(1, np.zeros(2, np.uint8), x=np.ones((2, 2)))
    ...     store.missing(4).tolist(), float(store.read([2, 1])["x"].sum())
    ([0, 3], 4.0)
    """

    def __init__(self, path: Path | None, file: h5py.File, layout: Layout) -> None:
        self.path = path
        self._file = file
        self._layout = layout
        self._close = weakref.finalize(self, file.close)

    @classmethod
    def open(
        cls,
        path: Path | str | None,
        manifest: Mapping[str, object],
        columns: Mapping[str, tuple[int, ...]],
        capacity: int,
        dtypes: Mapping[str, str] | None = None,
    ) -> SimulationStore:
        """Open the store at `path` to write to it, or make it.

        Parameters
        ----------
        path : Path, str or None
            The file. None keeps the rows in memory.
        manifest : mapping
            JSON that says what the rows depend on. A file with another one is refused.
        columns : mapping of str to tuple of int
            The shape of one row of each column, say ``{"theta": (3,), "x": (1, 50)}``.
        capacity : int
            For how many rows there must be room; a smaller file grows, a larger one stays.
        dtypes : mapping of str to str, optional
            Bool, integer or float dtypes of columns; float64 where none is given.
        """
        names = {name: np.dtype(dtype).name for name, dtype in (dtypes or {}).items()}
        layout, capacity = make_layout(manifest, columns, names), positive("capacity", capacity)
        path = None if path is None else Path(path).resolve()
        if path is None or not path.exists():
            return cls(path, _make(path, layout, capacity), layout)
        file, found = _open_existing(path)
        store = cls(path, file, found)
        try:
            check_same(path.name, found, layout)
            store.grow(capacity)
        except BaseException:
            store.close()
            raise
        return store

    @property
    def manifest(self) -> dict[str, object]:
        """What the rows depend on."""
        return copy.deepcopy(self._layout.manifest)

    @property
    def columns(self) -> dict[str, tuple[int, ...]]:
        """The shape of one row of each column."""
        return {name: column.shape for name, column in self._layout.columns.items()}

    @property
    def capacity(self) -> int:
        """For how many rows there is room."""
        return len(self._data("done"))

    @property
    def n_done(self) -> int:
        """How many rows are written."""
        return int(np.count_nonzero(self._data("done")[:]))

    @property
    def nbytes(self) -> int:
        """How many bytes the written rows take."""
        return self.n_done * sum(column.nbytes for column in self._layout.stored.values())

    def missing(self, n: int) -> NDArray[np.int64]:
        """Return which of the first `n` rows are not done, ascending."""
        return np.flatnonzero(self._first("done", n) == 0)

    def good_rows(self, n: int) -> NDArray[np.int64]:
        """Return which of the first `n` rows are done with state 0, ascending."""
        return np.flatnonzero((self._first("done", n) != 0) & (self._first("state", n) == 0))

    def write(self, start: int, state: NDArray[np.uint8], **columns: NDArray) -> None:
        """Write the rows from `start` on, and mark them as done when they are in the file.

        Parameters
        ----------
        start : int
            The first row.
        state : ndarray of uint8, shape (k,)
            0 for a good simulation.
        **columns : ndarray, shape (k, ...)
            Every column, in a dtype that fits into the column's without loss.
        """
        rows = self._layout.rows({"state": state, **columns})
        start, stop = operator.index(start), operator.index(start) + len(rows["state"])
        if not 0 <= start <= stop <= self.capacity:
            raise ValueError(
                f"rows must lie in 0..{self.capacity - 1}, but are {start}..{stop - 1}. Call grow."
            )
        if np.any(done := self._data("done")[start:stop]):
            raise ValueError(
                f"rows {start}..{stop - 1} must be new, but {np.count_nonzero(done)} are done. "
                "Write the rows that missing names."
            )
        self._check_in_place()
        for name, array in rows.items():
            self._data(name)[start:stop] = array
        self._file.flush()  # the rows are in the file before it says so
        self._data("done")[start:stop] = 1
        self._file.flush()

    def read(
        self, rows: slice | Sequence[int] | NDArray, names: Sequence[str] | None = None
    ) -> dict[str, NDArray]:
        """Return rows that are done, in the order asked for.

        Parameters
        ----------
        rows : slice or array_like of int, shape (k,)
            Row numbers, in any order, also repeated.
        names : sequence of str, optional
            Columns, or "state". All columns if not given.

        Returns
        -------
        dict of str to ndarray, shape (k, ...)
        """
        rows = self._done_rows(rows)
        return {name: native(gather(self._data(name), rows)) for name in self._layout.names(names)}

    def stream(
        self,
        rows: slice | Sequence[int] | NDArray,
        names: Sequence[str] | None = None,
        *,
        buffer_bytes: int,
        seed: int,
    ) -> Iterator[dict[str, NDArray]]:
        """Return an iterator over shuffled pools of rows, each of `rows` once, in bounded memory.

        Parameters
        ----------
        rows, names
            As for `read`.
        buffer_bytes : int
            Room for two pools: the one in use, and the one that is read meanwhile.
        seed : int
            The same seed gives the same order.
        """
        rows, names = self._done_rows(rows), self._layout.names(names)
        row_bytes = sum(self._layout.stored[name].nbytes for name in names)
        pools = shuffled_pools(rows, row_bytes, positive("buffer_bytes", buffer_bytes), seed)
        return (self.read(pool, names) for pool in pools)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` rows; a store that has it is left as it is."""
        if positive("capacity", capacity) <= self.capacity:
            return
        self._check_in_place()
        file = _make(self.path, self._layout, capacity, self._file)
        self.close()
        self._file, self._close = file, weakref.finalize(self, file.close)

    def close(self) -> None:
        """Close the file; what a store in memory held is gone."""
        with _store_errors(), hdf5_errors(self.path or "the store"):
            self._close()

    def __enter__(self) -> SimulationStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _data(self, name: str) -> h5py.Dataset:
        if not self._file:
            raise StoreError(f"The store {self.path} must be open, but is closed. Open it again.")
        return self._file[name]

    def _first(self, name: str, n: int) -> NDArray[np.uint8]:
        if not 0 <= n <= self.capacity:
            raise ValueError(f"n must lie in 0..{self.capacity}, but is {n}. Call grow first.")
        return self._data(name)[:n]

    def _check_in_place(self) -> None:
        if self.path is not None and not is_at(self._file.id.get_vfd_handle(), self.path):
            raise StoreError(
                f"{self.path.name} must stay in its place, but was moved, deleted or replaced. "
                "Open it again."
            )

    def _done_rows(self, rows: slice | Sequence[int] | NDArray) -> NDArray[np.int64]:
        rows = row_numbers(rows, self.capacity)
        undone = rows[gather(self._data("done"), rows) == 0]
        if undone.size:
            raise ValueError(f"rows must be done, but {undone[0]} is not. Take them of good_rows.")
        return rows


def read_columns(path: Path | str, names: Sequence[str]) -> dict[str, NDArray]:
    """Return datasets of an HDF5 file, such as theta and x simulated elsewhere.

    Parameters
    ----------
    path : Path or str
        A file with plain datasets of these names in its root; or a `SimulationStore`, of which the
        good rows are read.
    names : sequence of str
        The datasets.

    Returns
    -------
    dict of str to ndarray, shape (n, ...)
    """
    with _store_errors(), hdf5_errors(path), open_hdf5(path) as file:
        if {"header", "state", "done"} <= set(file):
            layout = _read_layout(file)
            good = np.flatnonzero((file["done"][:] != 0) & (file["state"][:] == 0))
            if unknown := set(names) - set(layout.columns):
                came = f"has {tuple(layout.columns)}"
                raise refusal(file, f"must have columns {sorted(unknown)}", came, "Rename them.")
            return {name: native(gather(file[name], good)) for name in names}
        datasets = checked_datasets(file, names)
        shapes = {name: data.shape for name, data in datasets.items()}
        if () in shapes.values() or len({shape[0] for shape in shapes.values()}) > 1:
            came = f"has the shapes {shapes}"
            raise refusal(file, "must have as many rows in each dataset", came, "Cut the longer.")
        return {name: read_plain(data) for name, data in datasets.items()}


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except ArchiveError as error:
        raise StoreError(str(error)) from error


# --- files ---------------------------------------------------------------------------------------


def _open_existing(path: Path) -> tuple[h5py.File, Layout]:
    """Open a store to write to it, if it is one; anything else at that path is left as it was."""
    with _store_errors():
        with open_hdf5(path) as file:
            layout = _read_layout(file)
        file = open_hdf5(path, "r+")
    if not is_at(file.id.get_vfd_handle(), path):  # another process made it grow meanwhile
        file.close()
        raise StoreError(IN_USE.format(path.name))
    remove_leftovers(path, older_than=0.0)
    return file, layout


def _read_layout(file: h5py.File) -> Layout:
    """Return the layout of an open file, if its header and its datasets agree."""
    with hdf5_errors(file.filename):
        layout = layout_of(read_header(file, KIND))
        if set(file) != {"header", *layout.stored}:
            raise refusal(file, f"must hold {tuple(layout.stored)}", f"holds {len(file)} others")
        datasets = checked_datasets(file, layout.stored)
        capacity = datasets["done"].shape[0]
        for name, column in layout.stored.items():
            data, shape = datasets[name], (capacity, *column.shape)
            in_place = data.id.get_offset() is not None  # contiguous and allocated
            if data.shape != shape or data.dtype != np.dtype(column.dtype) or not in_place:
                rule = f"must have {name} as {column.dtype} of shape {shape}, in one piece"
                raise refusal(file, rule, f"has {data.dtype} of shape {data.shape}")
        return layout


def _make(
    path: Path | None, layout: Layout, capacity: int, source: h5py.File | None = None
) -> h5py.File:
    """Make a file with the rows of `source`, give it its name at once, and return it open."""
    if path is None:
        name = uuid.uuid4().hex  # HDF5 takes two files in memory of one name for the same
        file = h5py.File(name, "w", driver="core", backing_store=False, libver="earliest")
        return _fill(file, layout, capacity, source)
    temporary = temporary_beside(path)
    try:
        with h5py.File(temporary, "w-", libver="earliest") as file:
            _fill(file, layout, capacity, source)
        # opened before it has its name, so that no other process can lock it first
        file = open_hdf5(temporary, "r+") if _RENAMES_OPEN_FILES else None
        if source is not None and not _RENAMES_OPEN_FILES:
            source.close()
        (place_new if source is None else place)(temporary, path)
        remove_leftovers(path, older_than=0.0)
        return file or open_hdf5(path, "r+")
    except (FileExistsError, FileNotFoundError) as error:  # another process made it meanwhile
        raise StoreError(IN_USE.format(path.name)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _fill(file: h5py.File, layout: Layout, capacity: int, source: h5py.File | None) -> h5py.File:
    """Allocate all that a store needs for `capacity` rows, and copy the rows of `source`."""
    file.create_dataset("header", data=np.frombuffer(layout.header(), dtype=np.uint8))
    for name, column in layout.stored.items():
        _allocate(file, name, column, capacity)
    # up to the last row that is done
    n = 0 if source is None else np.flatnonzero(source["done"][:]).max(initial=-1) + 1
    for name, column in layout.stored.items():
        step = rows_per_block(column.nbytes)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            file[name][rows] = source[name][rows]
    return file


def _allocate(file: h5py.File, name: str, column: ColumnLayout, capacity: int) -> None:
    """Make a dataset that takes its place in the file now and never moves; `done` is zero."""
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_layout(h5d.CONTIGUOUS)
    plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5d.FILL_TIME_ALLOC if name == "done" else h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # or each write would change the metadata
    dtype = h5t.py_create(np.dtype(column.dtype), logical=True)
    space = h5s.create_simple((capacity, *column.shape))
    h5d.create(file.id, name.encode(), dtype, space, plan)
