"""Files that appear at once: written beside their name, and then given it."""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the folder of `path`, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


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
    """Delete temporary files that killed writers of `path` left more than so many seconds ago."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.\d+-[0-9a-f]{{8}}\.tmp")
    for item in path.parent.iterdir():
        if ours.fullmatch(item.name):
            with suppress(FileNotFoundError):  # its writer is alive, and was quicker
                if item.stat().st_mtime <= time.time() - older_than:
                    item.unlink()


def is_at(handle: int, path: Path) -> bool:
    """Return whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
