"""Sizes: numbers of a file's JSON, none of which may ask for more than the file really holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from numpy.typing import NDArray

from nbi_plus.io.header import ArchiveError

_SMALL = 64  # whatever is no larger costs nothing


def refuse_larger(
    label: str, options: object, arrays: Mapping[str, NDArray], free: Collection[str] = ()
) -> None:
    """Refuse options with a number that is larger than every size of the arrays, or no number.

    Parameters
    ----------
    label : str
        What an error calls them.
    options : dict
        JSON, of any depth.
    arrays : mapping of str to ndarray
        What was made by these options; empty arrays take no bytes, and count for nothing.
    free : collection of str
        Names of numbers that are no sizes.

    Examples
    --------
    >>> import numpy as np
    >>> refuse_larger("flow", {"hidden": 80}, {"weight": np.zeros((80, 2))})
    """
    if not isinstance(options, Mapping):
        raise ArchiveError(f"the file must describe its {label}, but does not. Save it again.")
    sizes = [n for a in arrays.values() if a.size for n in a.shape]
    largest = max([_SMALL, len(arrays), *sizes])
    for name, value in _numbers(options):
        if name not in free and not 0 <= value <= largest:
            raise ArchiveError(
                f"{label}.{name} must be at most {largest}, the largest size in the file, but is "
                f"{value}. The file is damaged or forged."
            )


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in nested dicts and lists, and the key that it stands under."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, (int, float)):
        yield name, value
