"""Fingerprints: short texts that change with what they are of, for the names of files."""

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
    found = hashlib.sha256()
    for content in contents:
        found.update(content)
    return found.hexdigest()[:_LENGTH]


def content(tensor: Tensor | None) -> bytes:
    """Return the bytes of a tensor's numbers; none of None."""
    return b"" if tensor is None else tensor.detach().cpu().contiguous().numpy().tobytes()
