"""Fingerprints: texts that change with what they are of, short ones for the names of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH = 16


def fingerprint(described: Mapping[str, object], contents: Iterable[bytes] = ()) -> str:
    """Return the fingerprint of JSON and bytes; what JSON does not know counts by its repr.

    Examples
    --------
    >>> fingerprint({"seed": 1, "rounds": 2}) == fingerprint({"rounds": 2, "seed": 1})
    True
    """
    text = json.dumps(described, sort_keys=True, default=repr)
    return digest(chain([text.encode()], contents))


def digest(contents: Iterable[bytes]) -> str:
    """Return the fingerprint of bytes, one after another."""
    return checksum(contents)[:_LENGTH]


def checksum(contents: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of bytes, one after another, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    for content in contents:
        found.update(content)
    return found.hexdigest()


def content(tensor: Tensor | None) -> bytes:
    """Return the bytes of a tensor's numbers; none of None."""
    return b"" if tensor is None else tensor.detach().cpu().contiguous().numpy().tobytes()
