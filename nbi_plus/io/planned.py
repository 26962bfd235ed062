"""HDF5 files that are laid out in memory, and written without HDF5.

HDF5 does not survive a disk that fills up: it may end the process, at once or when it closes the
file. Here it makes no more than the metadata, for datasets that each lie in one piece at a place
known beforehand; the bytes of both are then written by system calls whose errors are ordinary.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from nbi_plus.io.appending import NewFile
from nbi_plus.io.disk import raw_bytes, take_space, write_at

_PAGE = 4096


class _Pages(io.RawIOBase):
    """A sparse file in memory, for HDF5 to write to: what was never written takes no room."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Return the place that the next call reads or writes at."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """Return that place."""
        return self._at

    def truncate(self, size: int | None = None) -> int:
        """Return the length of the file, which is changed; what HDF5 cuts off it never wrote."""
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: bytes | memoryview) -> int:
        """Return how many bytes were written: all."""
        left = memoryview(data).cast("B")
        while left:
            page, start = divmod(self._at, _PAGE)
            part = left[: _PAGE - start]
            self.pages.setdefault(page, bytearray(_PAGE))[start : start + len(part)] = part
            left, self._at = left[len(part) :], self._at + len(part)
        self.size = max(self.size, self._at)
        return memoryview(data).nbytes

    def readinto(self, buffer: memoryview) -> int:
        """Return how many bytes were read: as many as there are."""
        left = memoryview(buffer).cast("B")[: max(self.size - self._at, 0)]
        n_bytes = len(left)
        while left:
            page, start = divmod(self._at, _PAGE)
            part = self.pages.get(page, bytes(_PAGE))[start : start + len(left)]
            left[: len(part)] = part
            left, self._at = left[len(part) :], self._at + len(part)
        return n_bytes


@dataclass(frozen=True)
class FilePlan:
    """A laid out file.

    Attributes
    ----------
    pages : dict of int to bytearray
        The bytes of its metadata, by page.
    offsets : dict of str to int or None
        Where the bytes of each dataset begin; None for those without any.
    size : int
        Its length.
    """

    pages: dict[int, bytearray]
    offsets: dict[str, int | None]
    size: int

    def begin(self, handle: int) -> None:
        """Take the room of all of a new file, zeros so far, and write its metadata."""
        take_space(handle, self.size)
        for page, data in sorted(self.pages.items()):
            start = page * _PAGE
            write_at(handle, memoryview(data)[: self.size - start], start)

    def write(self, handle: int, name: str, array: NDArray, start: int = 0) -> None:
        """Write the whole of a dataset, or its rows from one on."""
        if array.size:
            row = array.nbytes // len(array) if start else 0
            write_at(handle, raw_bytes(array), self.offsets[name] + start * row)


def plan_file(
    datasets: Mapping[str, tuple[tuple[int, ...], np.dtype]], groups: Sequence[str] = (),
    notes: Mapping[tuple[str, str], str | bytes] | None = None,
) -> FilePlan:  # fmt: skip
    """Return the plan of a file with datasets of these shapes and dtypes, which share no byte.

    Notes are attributes, by the name of what they belong to ("/" is the file) and their own.
    """
    pages = _Pages()
    with h5py.File(pages, "w", libver="earliest") as file:
        for name in groups:
            file.create_group(name)
        offsets = {name: _place(file, name, *data) for name, data in datasets.items()}
        for (owner, name), note in (notes or {}).items():
            file[owner].attrs[name] = note
    return FilePlan(pages.pages, offsets, pages.size)


def write_file(path: Path, arrays: Mapping[str, NDArray], groups: Sequence[str] = ()) -> None:
    """Write arrays to a new file, each as a dataset in one piece."""
    plan = plan_file({name: (array.shape, array.dtype) for name, array in arrays.items()}, groups)
    with NewFile(path) as file:
        plan.begin(file.fileno())
        for name, array in arrays.items():
            plan.write(file.fileno(), name, array)


def _place(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> int | None:
    """Make a dataset that takes its place now and never moves; return where its bytes begin."""
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_layout(h5d.CONTIGUOUS)
    plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # the same content has the same bytes
    stored, space = h5t.py_create(np.dtype(dtype), logical=True), h5s.create_simple(shape)
    return h5d.create(file.id, name.encode(), stored, space, plan).get_offset()
