"""Files that appear at once: written beside their name, and then given it."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

from nbi_plus.io.disk import open_handle, sync

_LONG = 200  # bytes of a name, which may have 255: longer ones stand hashed in temporary names


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the folder of `path`, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}-{_numbered_by()}-{secrets.token_hex(4)}"
    return path.with_name(f".{_stem(path)}.{writer}.tmp")


def place(temporary: Path, path: Path) -> None:
    """Give a complete file its name, in place of an older one, when it is on disk."""
    _sync(temporary)
    os.replace(temporary, path)


def place_new(temporary: Path, path: Path) -> None:
    """Give a complete file its name; raise FileExistsError if another process was quicker.

    Or FileNotFoundError, if that process has removed what it took for a leftover.
    """
    _sync(temporary)
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
    temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path, older_than: float) -> None:
    """Delete temporary files of writers of `path` that are dead, or began so many seconds ago."""
    ours = re.compile(rf"\.{re.escape(_stem(path))}\.(\d+)-([0-9a-f]{{8}})(-[0-9a-f]{{8}})?\.tmp")
    for item in path.parent.iterdir():
        if writer := ours.fullmatch(item.name):
            with suppress(FileNotFoundError):  # its writer is alive, and was quicker
                dead = writer[2] == _numbered_by() and _is_dead(int(writer[1]))
                if dead or item.stat().st_mtime <= time.time() - older_than:
                    item.unlink()


@cache
def _numbered_by() -> str:
    """Return a short name of what numbers the processes: a machine since its start, a container."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux alone has these
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return blake2b(" ".join(parts).encode(), digest_size=4).hexdigest()


def _is_dead(process: int) -> bool:
    if os.name != "posix":  # there a signal of 0 would end the process
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # alive, but not ours; or not the number of a process
        return False
    return False


def is_at(handle: int, path: Path) -> bool:
    """Return whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _stem(path: Path) -> str:
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONG else blake2b(name, digest_size=16).hexdigest()


def _sync(path: Path) -> None:
    handle = open_handle(path)
    try:
        sync(handle, path.parent)
    finally:
        os.close(handle)
