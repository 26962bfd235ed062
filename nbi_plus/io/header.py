"""The JSON header of every file: what it is, and whatever describes it, as strict, bounded JSON."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping

SCHEMA = 2  # 2: support of the prior, hash of the data, truth test, audits; files of 1 are read
MAX_HEADER = 16 * 2**20


class ArchiveError(ValueError):
    """A file, or what should go into one, breaks the rules of the format."""


def encode_header(kind: str, meta: Mapping[str, object], label: str = "meta") -> bytes:
    """Return the header of a file of this kind.

    Parameters
    ----------
    kind : str
        What the file is, say "model".
    meta : mapping
        None, bool, int, finite float, str, and lists, tuples and dicts (str keys) of these.
    label : str
        What an error calls ``meta``.

    Returns
    -------
    bytes
        JSON in ASCII, at most `MAX_HEADER` of them.

    Examples
    --------
    >>> decode_header(encode_header("model", {"sizes": (3, 4)}), "model", "a.nbi")
    {'sizes': [3, 4]}
    """
    _check_json(meta, label)
    head = {"format": "nbi-plus", "kind": kind, "schema": SCHEMA, "meta": dict(meta)}
    raw = json.dumps(head, allow_nan=False).encode("ascii")
    if len(raw) > MAX_HEADER:
        raise ArchiveError(
            f"{label} must take at most {MAX_HEADER} bytes as JSON, but takes {len(raw)}. "
            "Keep its numbers as arrays."
        )
    return raw


def decode_header(raw: bytes, kind: str, source: str) -> dict[str, object]:
    """Return the meta in a header, refusing all that `encode_header` does not write.

    Parameters
    ----------
    raw : bytes
        The header.
    kind : str
        The kind that the file must have.
    source : str
        What an error calls the file.
    """
    head = _strict_json(raw, source)
    if not isinstance(head, dict) or head.get("format") != "nbi-plus":
        raise _refusal(source, "a header of format 'nbi-plus'", head, "Give a file of nbi-plus.")
    if head.get("kind") != kind:
        raise _refusal(source, f"the kind {kind!r}", head.get("kind"), "Give a file of that kind.")
    schema, meta = head.get("schema"), head.get("meta")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise _refusal(source, f"a schema of at most {SCHEMA}", schema, "Update nbi-plus.")
    if not isinstance(meta, dict):
        raise _refusal(source, "a dict as meta", meta, "Give a file that nbi-plus wrote.")
    return meta


def _check_json(value: object, label: str) -> None:
    """Refuse what JSON would not give back as it was."""
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

    try:
        return json.loads(raw.decode("utf-8"), parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(
            f"{source} must have a header of strict JSON, but has another ({error}). "
            "Give a file that nbi-plus wrote."
        ) from error


def _refusal(source: str, rule: str, came: object, advice: str) -> ArchiveError:
    # reprlib shortens, and escapes, whatever a crafted file may hold
    return ArchiveError(f"{source} must have {rule}, but has {reprlib.repr(came)}. {advice}")
