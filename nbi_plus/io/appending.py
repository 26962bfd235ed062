"""Appending: a new file that grows at its end, by system calls that can fail and be understood."""

from __future__ import annotations

import io
import os
from pathlib import Path

from nbi_plus.io.disk import open_handle, write_at


class NewFile(io.RawIOBase):
    """A file that must not exist, for writers of any format; what fails is an OSError of theirs."""

    def __init__(self, path: Path) -> None:
        self._handle: int | None = open_handle(path, new=True)
        self._at = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes there are."""
        return self._at

    def fileno(self) -> int:
        """Return the handle, for what is to be written elsewhere than at the end."""
        return self._handle

    def write(self, data: bytes | memoryview) -> int:
        """Return how many bytes were written: all, or dropped where the file is closed.

        Arrow's writers write their last bytes when they are deleted, however they have failed.
        """
        view = memoryview(data).cast("B")
        if self._handle is not None:
            write_at(self._handle, view, self._at)
            self._at += view.nbytes
        return view.nbytes

    def close(self) -> None:
        """Close the file, if it is open; its handle may belong to another one afterwards."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
        super().close()
