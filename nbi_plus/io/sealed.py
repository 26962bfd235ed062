"""Sealed files: of formats that others read, too, and with a checksum of all their bytes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbi_plus.io.appending import NewFile
from nbi_plus.io.disk import disk_errors, open_handle, write_at
from nbi_plus.io.fingerprint import checksum
from nbi_plus.io.placing import place, remove_leftovers, temporary_beside

SEAL = "nbi:" + 64 * "0"  # its place, as long as the value of a FITS card may be
_SEAL = re.compile(rb"nbi:([0-9a-f]{64})")
_PIECE = 2**20


@contextmanager
def sealed(path: Path, raised: type[Exception]) -> Iterator[NewFile]:
    """Let a file be written that must hold `SEAL` once; it gets its name when it is complete.

    An older file stays until then.

    Parameters
    ----------
    path : Path
    raised : type of exception
        On a disk that is full or broken.
    """
    temporary = temporary_beside(path)
    remove_leftovers(path, older_than=math.inf)
    try:
        with disk_errors(path.name, raised):
            with NewFile(temporary) as file:
                yield file
            _seal(temporary)
            place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_sealed(path: Path, raised: type[Exception]) -> bool:
    """Return whether a file holds a checksum; raise if that is not the one of its bytes."""
    found, seals = _read(path)
    if seals and list(seals.values()) != [found]:
        raise raised(
            f"{path.name} must hold the bytes that were written, but their checksum is another. "
            "The file is damaged, or was changed: copy it again, or write it anew."
        )
    return bool(seals)


def _seal(path: Path) -> None:
    checksum, seals = _read(path)
    (at,) = seals
    handle = open_handle(path)
    try:
        write_at(handle, SEAL[:4].encode() + checksum, at)
    finally:
        os.close(handle)


def _read(path: Path) -> tuple[bytes, dict[int, bytes]]:
    """Return the checksum of all bytes but seals, and where these stand and what they say."""
    seals: dict[int, bytes] = {}
    return checksum(_unsealed(path, seals)).encode(), seals


def _unsealed(path: Path, seals: dict[int, bytes]) -> Iterator[bytes]:
    """Yield the bytes of a file with blank seals, and note these.

    Bytes are looked at in windows that share the length of a seal.
    """
    blank, shared = SEAL.encode(), len(SEAL) - 1
    at, window = 0, bytearray()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            window += piece
            for seal in _SEAL.finditer(window):
                seals.setdefault(at + seal.start(), seal[1])
            for place_of in seals:
                if place_of >= at:
                    window[place_of - at : place_of - at + len(blank)] = blank
            done = max(len(window) - shared, 0)
            yield bytes(window[:done])
            del window[:done]
            at += done
    yield bytes(window)
