"""Bytes at their place in one open file, by system calls that can fail and be understood."""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_POSITIONED = os.name != "nt"  # Windows reads and writes where the file's pointer stands
_ONE_POINTER = threading.Lock()
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_LACKING = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}
_MOST = 2**30  # bytes that one call is asked for; Linux moves less than 2**31


@contextmanager
def disk_errors(name: str, raised: type[Exception]) -> Iterator[None]:
    """Turn the errors of a disk that is full or broken into one that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise raised(
                f"{name} must have room on its disk, but: {error.strerror}. Free some, or use "
                "another path, and run again: what was complete is kept."
            ) from error
        if error.errno == errno.EIO:
            raise raised(
                f"{name} must lie on a sound disk, but: {error.strerror}. Copy the file to "
                "another disk, and go on there."
            ) from error
        raise


def open_handle(path: Path, *, new: bool = False) -> int:
    """Return a handle that reads and writes a file, which must be there, or must be new."""
    made = os.O_CREAT | os.O_EXCL if new else 0
    return os.open(path, os.O_RDWR | made | getattr(os, "O_BINARY", 0), 0o666)


def lock(handle: int) -> None:
    """Keep others from opening the file; raise BlockingIOError if one of them has it open.

    HDF5 heeds the lock, and sets the same. Where there are none, nobody is kept away.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _LACKING:
            raise


def take_space(handle: int, n_bytes: int) -> None:
    """Make a new file so long, and take the room for it now, where the file system can."""
    os.ftruncate(handle, n_bytes)
    try:
        if n_bytes:
            os.posix_fallocate(handle, 0, n_bytes)
    except AttributeError:  # macOS, Windows
        return
    except OSError as error:
        if error.errno not in _LACKING:
            raise


def read_at(handle: int, n_bytes: int, offset: int) -> bytes:
    """Return bytes of the file; an end of the file among them is an error of the disk."""
    parts: list[bytes] = []
    while n_bytes:
        part = _pread(handle, min(n_bytes, _MOST), offset)
        if not part:
            raise OSError(errno.EIO, "the file ends early")
        parts.append(part)
        n_bytes, offset = n_bytes - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of the bytes."""
    left = memoryview(data)
    while left:
        n_written = _pwrite(handle, left[:_MOST], offset)
        left, offset = left[n_written:], offset + n_written


def raw_bytes(array: NDArray) -> memoryview:
    """Return the bytes of an array as they are stored."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def sync(handle: int, folder: Path) -> None:
    """Wait until the file is on its disk; warn if the file system cannot tell."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        warnings.warn(
            f"The file system of {folder} does not say when files are on its disk "
            f"({error.strerror}): a power cut may lose the latest. Use another if that matters.",
            RuntimeWarning,
            stacklevel=2,
        )


def _pread(handle: int, n_bytes: int, offset: int) -> bytes:
    if _POSITIONED:
        return os.pread(handle, n_bytes, offset)
    with _ONE_POINTER:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, n_bytes)


def _pwrite(handle: int, data: memoryview, offset: int) -> int:
    if _POSITIONED:
        return os.pwrite(handle, data, offset)
    with _ONE_POINTER:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.write(handle, data)
