"""The JSON header of every file: what it is, whatever describes it, and what seals it.

A header is strict, bounded JSON of this form::

    {"sha256": ..., "format": "nbi-plus", "kind": ..., "schema": 3, "meta": {...}, "arrays": {...}}

The checksum comes first, and is that of all bytes behind it; ``arrays`` has one for each array.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nbi_plus.io.fingerprint import checksum

SCHEMA = 3  # 2: support of the prior, hash of the data, truth test, audits; 3: checksums
MAX_HEADER = 16 * 2**20
MAX_DEPTH = 64  # of lists and dicts in each other
MAX_VALUES = 1_000_000  # a list or number of two bytes takes a hundred in memory
_SEALED = 3  # the first schema with checksums
_SEAL = re.compile(rb'\{"sha256": "([0-9a-f]{64})", ')
_KEYS = {"format", "kind", "schema", "meta"}


class ArchiveError(ValueError):
    """A file, or what should go into one, breaks the rules of the format."""


class OtherKindError(ArchiveError):
    """A sound file holds something else than was asked for."""


@dataclass(frozen=True)
class Header:
    """What a header says.

    Attributes
    ----------
    meta : dict
    arrays : dict of str
        The checksum of each array by its name.
    schema : int
        Files before the third have no checksums.
    """

    meta: dict[str, object]
    arrays: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def sealed(self) -> bool:
        """Whether there are checksums."""
        return self.schema >= _SEALED


def encode_header(
    kind: str,
    meta: Mapping[str, object],
    label: str = "meta",
    arrays: Mapping[str, str] | None = None,
) -> bytes:
    """Return the header of a file of this kind.

    Parameters
    ----------
    kind : str
        What the file is, say "model".
    meta : mapping
        None, bool, int, finite float, str, and lists, tuples and dicts (str keys) of these.
    label : str
        What an error calls ``meta``.
    arrays : mapping of str, optional
        The checksum of each array, where the header is to hold them.

    Returns
    -------
    bytes
        JSON in ASCII, at most `MAX_HEADER` of them.

    Examples
    --------
    >>> decode_header(encode_header("model", {"sizes": (3, 4)}), "model", "a.nbi").meta
    {'sizes': [3, 4]}
    """
    if _is_too_deep(meta):
        raise ArchiveError(f"{label} must have at most {MAX_DEPTH} levels, but has more.")
    _check_json(meta, label)
    head = {"format": "nbi-plus", "kind": kind, "schema": SCHEMA, "meta": dict(meta)}
    head["arrays"] = dict(arrays or {})
    body = json.dumps(head, allow_nan=False, default=np.generic.item).encode("ascii")[1:]
    raw = b'{"sha256": "%s", %s' % (checksum([body]).encode(), body)
    if len(raw) > MAX_HEADER or _n_values(raw) > MAX_VALUES:
        raise ArchiveError(
            f"{label} must take at most {MAX_HEADER} bytes and {MAX_VALUES} values as JSON, but "
            f"takes {len(raw)} and about {_n_values(raw)}. Keep its numbers as arrays."
        )
    return raw


def decode_header(raw: bytes, kind: str, source: str) -> Header:
    """Return what a header says, refusing all that `encode_header` does not write.

    Parameters
    ----------
    raw : bytes
        The header.
    kind : str
        The kind that the file must have.
    source : str
        What an error calls the file.
    """
    seal = _SEAL.match(raw)
    if seal and checksum([raw[seal.end() :]]).encode() != seal[1]:
        raise ArchiveError(
            f"{source} must have the header that was written, but its checksum is another. "
            "The file is damaged: copy it again, or write it anew."
        )
    head = _strict_json(raw, source)
    if not isinstance(head, dict) or head.get("format") != "nbi-plus":
        raise _refusal(source, "a header of format 'nbi-plus'", head, "Give a file of nbi-plus.")
    if head.get("kind") != kind:
        refused = _refusal(source, f"the kind {kind!r}", head.get("kind"), "Give one of that kind.")
        raise OtherKindError(str(refused))
    schema, meta, arrays = head.get("schema"), head.get("meta"), head.get("arrays", {})
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise _refusal(source, f"a schema of at most {SCHEMA}", schema, "Update nbi-plus.")
    keys = _KEYS | {"sha256", "arrays"} if schema >= _SEALED else _KEYS
    if set(head) != keys or (schema >= _SEALED) != bool(seal):
        # an older schema has no checksums, and a newer one is nothing without
        raise _refusal(source, f"the parts {sorted(keys)}", sorted(head), FOREIGN)
    if not isinstance(meta, dict):
        raise _refusal(source, "a dict as meta", meta, FOREIGN)
    if not isinstance(arrays, dict) or not all(isinstance(v, str) for v in arrays.values()):
        raise _refusal(source, "a checksum for each array", arrays, FOREIGN)
    return Header(meta, arrays, schema)


FOREIGN = "Give a file that nbi-plus wrote."


def _n_values(raw: bytes) -> int:
    """Return how many values JSON holds at most, before anything is made of it."""
    return sum(raw.count(sign) for sign in b",[{")


def _is_too_deep(value: object) -> bool:
    """Say whether lists and dicts lie in each other deeper than they may."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = [v.values() if isinstance(v, Mapping) else v for v in level if _holds(v)]
        level = [item for items in inside for item in items]
    return bool(level)


def _holds(value: object) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _check_json(value: object, label: str) -> None:
    """Refuse what JSON would not give back as it was, but for the kind of a number of numpy."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ArchiveError(
                    f"{label} must have str keys, but has {key!r}. Use {str(key)!r}."
                )
            _check_json(item, f"{label}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_json(item, f"{label}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ArchiveError(f"{label} must be finite, but is {value}. Use None, or an array.")
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise ArchiveError(
            f"{label} must be None, bool, int, float, str, list or dict, "
            f"but is a {type(value).__name__}. Convert it, or keep it as an array."
        )


def _strict_json(raw: bytes, source: str) -> object:
    """Parse JSON without NaN and infinities, however they are spelled."""

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is not finite")
        return value

    if _n_values(raw) > MAX_VALUES:
        rule = f"at most {MAX_VALUES} values in its header"
        raise _refusal(source, rule, _n_values(raw), FOREIGN)
    try:
        found = json.loads(raw.decode("utf-8"), parse_float=finite, parse_constant=finite)
        if _is_too_deep(found):
            raise ValueError(f"more than {MAX_DEPTH} levels")
        return found
    except (ValueError, RecursionError) as error:
        raise ArchiveError(
            f"{source} must have a header of strict JSON, but has another ({error}). "
            "Give a file that nbi-plus wrote."
        ) from error


def _refusal(source: str, rule: str, came: object, advice: str) -> ArchiveError:
    # reprlib shortens, and escapes, whatever a crafted file may hold
    return ArchiveError(f"{source} must have {rule}, but has {reprlib.repr(came)}. {advice}")
