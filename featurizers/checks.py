"""Checks of options that say the rule, what came, and what to do."""

from __future__ import annotations

from collections.abc import Collection

from featurizers.layers import POOLS


def check_at_least(name: str, value: object, least: int) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, but is {value!r}. Change it.")


def check_kernel(name: str, value: int) -> None:
    """Raise unless ``value`` is odd and positive, which keeps a filter centred on its step."""
    check_at_least(name, value, 1)
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd, but is {value}. Take {value - 1} or {value + 1}.")


def check_name(name: str, value: object, known: Collection[object]) -> None:
    """Raise unless ``value`` is among the known ones."""
    if value not in known:
        listed = ", ".join(repr(item) for item in known)
        raise ValueError(f"{name} must be one of {listed}, but is {value!r}. Choose one of these.")


def check_keys(name: str, keys: Collection[str], known: Collection[str]) -> None:
    """Raise unless every key is among the known ones."""
    unknown = sorted(str(key) for key in keys if key not in known)
    if unknown:
        raise ValueError(
            f"{name} must be among {', '.join(sorted(known))}, but has {', '.join(unknown)}. "
            "Rename or remove what is not listed."
        )


def check_pool(value: str) -> None:
    """Raise unless ``value`` joins names of poolings by plus signs."""
    for part in value.split("+"):
        check_name("pool", part, POOLS)
