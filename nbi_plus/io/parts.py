"""Parts: arrays of one archive that belong together, stored under ``part/name``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def joined(parts: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """Return the values of all parts, by the names that an archive has for them.

    Examples
    --------
    >>> joined({"coords": {"t": 1, "band": 2}, "object": {"x": 3}})
    {'coords/t': 1, 'coords/band': 2, 'object/x': 3}
    """
    return {f"{part}/{name}": value for part, own in parts.items() for name, value in own.items()}


def split(
    values: Mapping[str, Value], expected: Iterable[str] | None = None
) -> dict[str, dict[str, Value]]:
    """Undo `joined`; parts of a part, say ``frozen/flow/mean``, stay joined.

    Parameters
    ----------
    values : mapping
        Those whose names have no slash belong to no part, and are left out.
    expected : iterable of str, optional
        All parts that there can be: each is returned, if empty, and any other is a KeyError.

    Examples
    --------
    >>> split({"z": 0, "coords/t": 1, "frozen/flow/mean": 2})
    {'coords': {'t': 1}, 'frozen': {'flow/mean': 2}}
    """
    found: dict[str, dict[str, Value]] = {part: {} for part in expected or ()}
    for name, value in values.items():
        part, slash, own = name.partition("/")
        if slash:
            into = found.setdefault(part, {}) if expected is None else found[part]
            into[own] = value
    return found
