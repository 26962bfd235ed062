"""Arguments: counts, numbers, seeds and paths that people hand over, checked at the doors."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_MOST = 2**31 - 1  # more is a slip, and would fill any memory
_SEEDS = 2**63 - 1
_Kind = TypeVar("_Kind")


def whole(name: str, value: Any, least: int = 1, most: int = _MOST) -> int:  # noqa: ANN401
    """Return a whole number in [least, most], or say that it must be one.

    Examples
    --------
    >>> whole("n_draws", np.int64(3))
    3
    """
    right = isinstance(value, Integral) and not isinstance(value, bool)
    if not (right and least <= value <= most):
        raise ValueError(
            f"{name} must be a whole number of at least {least}"
            f"{f' and at most {most}' if right and value > most else ''}, but is {_shown(value)}."
        )
    return int(value)


def real(name: str, value: Any) -> float:  # noqa: ANN401
    """Return one real number, maybe NaN or infinite, or say that it must be one.

    Examples
    --------
    >>> real("df", np.array(4))
    4.0
    """
    with suppress(TypeError, ValueError, OverflowError):  # what came is no number: told below
        if not isinstance(value, (str, bytes)) and np.ndim(value) == 0:
            return float(value)
    raise TypeError(f"{name} must be one real number, but is {_shown(value)}.")


def seed_of(name: str, value: Any) -> int:  # noqa: ANN401
    """Return a seed, a whole number that 63 bits hold, or say that it must be one."""
    return whole(name, value, 0, _SEEDS)


def generator_of(name: str, rng: Any) -> np.random.Generator:  # noqa: ANN401
    """Return a generator of numpy, made of a seed unless it is one; None takes a fresh one."""
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    if isinstance(rng, Integral) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(int(rng))
    raise TypeError(
        f"{name} must be None, a seed or a numpy.random.Generator, but is {_shown(rng)}."
    )


def path_of(name: str, value: Any) -> Path:  # noqa: ANN401
    """Return a path, or say that it must be one."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in os.fspath(value):
        raise TypeError(f"{name} must be a path, a str or a pathlib.Path, but is {_shown(value)}.")
    return Path(value)


def new_file(name: str, value: Any) -> Path:  # noqa: ANN401
    """Return the path of a file to write, which is no folder, or say that it must be one."""
    path = path_of(name, value)
    if path.is_dir():
        raise IsADirectoryError(
            f"{name} must be the name of a file, but {_shown(value)} is a folder."
        )
    return path


def new_folder(name: str, value: Any) -> Path:  # noqa: ANN401
    """Return the path of a folder to keep things in, which is no file, or say that it must be."""
    path = path_of(name, value)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{name} must be a folder, but {_shown(value)} is a file.")
    return path


def of_kind(name: str, value: Any, kind: type[_Kind], remedy: str) -> _Kind:  # noqa: ANN401
    """Return a value of some class, or say that it must be one, and the ``remedy``."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, but is {_shown(value)}. {remedy}")
    return value


def one_of(name: str, value: Any, known: Collection[str]) -> str:  # noqa: ANN401
    """Return a word that is known, or say which are."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {list(known)}, but is {_shown(value)}.")
    return value


def _shown(value: object) -> str:
    """Return what came, in a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
