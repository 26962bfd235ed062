"""Simulations on disk: one HDF5 file a run, which a kill at any moment leaves whole.

The root of the file holds plain datasets, one row for each simulation::

    header     uint8 (n,), JSON: the manifest (what the rows depend on) and the columns
    state      uint8 (capacity,): 0 is a good simulation; other values say what went wrong
    checksums  uint32 (capacity, n_columns + 1): of each column of a row, and of its state
    <column>   (capacity, ...)

All of its room is taken when the file is made, and its metadata never change. A row is written in
its place, and its checksums after it: it is done when these agree, so that a row that was half
written, or that the disk has changed since, counts as missing and is simulated again. A file is
made, and made larger, beside its final name, which it then takes at once.
"""

from __future__ import annotations

import copy
import operator
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from nbi_plus.io.archive import (
    checked_datasets,
    hdf5_errors,
    native,
    open_hdf5,
    refusal,
)
from nbi_plus.io.blocks import gather, row_numbers, shuffled_pools
from nbi_plus.io.checksums import row_checksums
from nbi_plus.io.disk import sync
from nbi_plus.io.layout import Layout, StoreError, check_same, make_layout, positive
from nbi_plus.io.placing import is_at
from nbi_plus.io.store_files import (
    StoredRows,
    believed,
    in_memory,
    make_file,
    open_file,
    read_layout,
    store_errors,
)


class SimulationStore:
    """Rows of simulations, each written once, in one HDF5 file or in memory.

    Made by `open`. It writes to ``path`` alone and, while it makes or grows that file, to a hidden
    file beside it. After a kill, `open` finds every row that was done and `missing` names the
    others, also those that do not agree with their checksums any more. A power cut may lose what
    was written since the store was last closed. A disk that is full or broken is a `StoreError`,
    after which the rows that are done can be read, and others written. One process at a time can
    have the file open.

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

    def __init__(self, path: Path | None, rows: StoredRows, layout: Layout) -> None:
        self.path = path
        self._layout = layout
        self._hold(rows)

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
        if path is None:
            return cls(path, in_memory(layout, capacity), layout)
        if not path.exists():
            with store_errors(path):
                return cls(path, make_file(path, layout, capacity), layout)
        rows, found = open_file(path)
        store = cls(path, rows, found)
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
        return len(self._open_rows().done)

    @property
    def n_done(self) -> int:
        """How many rows are written."""
        return int(np.count_nonzero(self._open_rows().done))

    @property
    def nbytes(self) -> int:
        """How many bytes the written rows take."""
        return self.n_done * sum(column.nbytes for column in self._layout.stored.values())

    def missing(self, n: int) -> NDArray[np.int64]:
        """Return which of the first `n` rows are not done, ascending."""
        return np.flatnonzero(~self._first_done(n))

    def good_rows(self, n: int) -> NDArray[np.int64]:
        """Return which of the first `n` rows are done with state 0, ascending."""
        done = np.flatnonzero(self._first_done(n))
        return done[self.read(done, ["state"])["state"] == 0]

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
        held = self._open_rows()
        if np.any(done := held.done[start:stop]):
            raise ValueError(
                f"rows {start}..{stop - 1} must be new, but {np.count_nonzero(done)} are done. "
                "Write the rows that missing names."
            )
        self._check_in_place()
        sums = row_checksums(rows, np.arange(start, stop))
        with store_errors(self.path):
            for name, array in rows.items():
                held.data[name][start:stop] = array
            held.data["checksums"][start:stop] = sums  # the rows are in the file before it says so
        held.done[start:stop] = True

    def read(
        self, rows: slice | Sequence[int] | NDArray, names: Sequence[str] | None = None
    ) -> dict[str, NDArray]:
        """Return rows that are done, in the order asked for, if they agree with their checksums.

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
        rows, names, held = self._done_rows(rows), self._layout.names(names), self._open_rows()
        with store_errors(self.path):
            found = {name: gather(held.data[name], rows) for name in names}
            sums = gather(held.data["checksums"], rows)
        places = [list(self._layout.written).index(name) for name in names]
        changed = (row_checksums(found, rows) != sums[:, places]).any(1)
        if changed.any():
            raise StoreError(
                f"{self.path} must give back the rows that were written, but "
                f"{np.count_nonzero(changed)} of {len(rows)} have changed since it was opened "
                f"(first: row {rows[changed][0]}). Run again: they are simulated again."
            )
        return {name: native(array) for name, array in found.items()}

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
        with store_errors(self.path):
            if self.path is None:
                rows = in_memory(self._layout, capacity, self._rows)
            else:
                rows = make_file(self.path, self._layout, capacity, self._rows)
        self._abandon.detach()
        self._hold(rows)

    def close(self) -> None:
        """Close the file when it is on disk; what a store in memory held is gone."""
        if self._rows is None:
            return
        rows, self._rows = self._rows, None
        self._abandon.detach()
        with store_errors(self.path):
            try:
                if rows.handle is not None:
                    sync(rows.handle, self.path.parent)
            finally:
                rows.close()

    def __enter__(self) -> SimulationStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _hold(self, rows: StoredRows) -> None:
        self._rows: StoredRows | None = rows
        self._abandon = weakref.finalize(self, rows.abandon)

    def _open_rows(self) -> StoredRows:
        if self._rows is None:
            raise StoreError(f"The store {self.path} must be open, but is closed. Open it again.")
        return self._rows

    def _first_done(self, n: int) -> NDArray[np.bool_]:
        if not 0 <= n <= self.capacity:
            raise ValueError(f"n must lie in 0..{self.capacity}, but is {n}. Call grow first.")
        return self._open_rows().done[:n]

    def _check_in_place(self) -> None:
        if self.path is not None and not is_at(self._open_rows().handle, self.path):
            raise StoreError(
                f"{self.path.name} must stay in its place, but was moved, deleted or replaced. "
                "Open it again."
            )

    def _done_rows(self, rows: slice | Sequence[int] | NDArray) -> NDArray[np.int64]:
        rows = row_numbers(rows, self.capacity)
        undone = rows[~self._open_rows().done[rows]]
        if undone.size:
            raise ValueError(f"rows must be done, but {undone[0]} is not. Take them of good_rows.")
        return rows


def read_columns(path: Path | str, names: Sequence[str]) -> dict[str, NDArray]:
    """Return datasets of an HDF5 file, such as theta and x simulated elsewhere.

    Parameters
    ----------
    path : Path or str
        A file with plain datasets of these names in its root; or a `SimulationStore`, of which the
        good rows are read, with a warning if some do not agree with their checksums.
    names : sequence of str
        The datasets.

    Returns
    -------
    dict of str to ndarray, shape (n, ...)
    """
    rows, _ = good_rows(path, names)
    return read_rows(path, names, rows)


def good_rows(
    path: Path | str, names: Sequence[str]
) -> tuple[NDArray[np.int64], dict[str, tuple[int, ...]]]:
    """Return the rows of an HDF5 file that `read_columns` reads, and the shapes of its datasets."""
    with store_errors(path), hdf5_errors(path), open_hdf5(path) as file:
        datasets = _datasets(file, names)
        shapes = {name: datasets[name].shape for name in names}
        if _is_store(file):
            return _believed_rows(file), shapes
        if () in shapes.values() or len({shape[0] for shape in shapes.values()}) > 1:
            came = f"has the shapes {shapes}"
            raise refusal(file, "must have as many rows in each dataset", came, "Cut the longer.")
        return np.arange(shapes[names[0]][0]), shapes


def told_of(path: Path | str) -> dict[str, object]:
    """Return what the rows of a store depend on; nothing is known of a file of others."""
    with store_errors(path), hdf5_errors(path), open_hdf5(path) as file:
        return dict(read_layout(file)[0].manifest) if _is_store(file) else {}


def read_rows(
    path: Path | str, names: Sequence[str], rows: NDArray[np.int64]
) -> dict[str, NDArray]:
    """Return some rows of datasets of an HDF5 file, in any order, in bounded memory."""
    with store_errors(path), hdf5_errors(path), open_hdf5(path) as file:
        datasets = _datasets(file, names)
        least = min(len(datasets[name]) for name in names)
        if len(rows) and rows.max() >= least:
            came = f"has {least} rows now"
            raise refusal(file, "must stay as it was while it is read", came, "Run again.")
        return {name: native(gather(datasets[name], rows)) for name in names}


def _is_store(file: h5py.File) -> bool:
    return {"header", "state"} <= set(file) and bool({"checksums", "done"} & set(file))


def _datasets(file: h5py.File, names: Sequence[str]) -> Mapping[str, h5py.Dataset]:
    """Return the datasets of a store, or those of a file of others, if these are sound."""
    if not _is_store(file):
        return checked_datasets(file, names)
    layout, data = read_layout(file)
    if unknown := set(names) - set(layout.columns):
        came = f"has {tuple(layout.columns)}"
        raise refusal(file, f"must have columns {sorted(unknown)}", came, "Rename them.")
    return data


def _believed_rows(file: h5py.File) -> NDArray[np.int64]:
    """Return the good rows of a store that is open for reading."""
    layout, data = read_layout(file)
    name = Path(file.filename).name
    done, n_bad = believed(name, layout, data)
    if n_bad:
        warnings.warn(
            f"{n_bad} rows of {name} do not agree with their checksums, and are left out.",
            UserWarning,
            stacklevel=4,
        )
    return np.flatnonzero(done & (data["state"][:] == 0))
