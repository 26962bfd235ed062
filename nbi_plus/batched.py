"""Batched: frozen dataclasses of tensors whose first axis runs over objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_ALIKE = 8  # rows: of so many together, and of multiples, a CPU rounds each as it does the others


def pick(value: T, rows: Tensor | slice) -> T:
    """Return some of the objects: every tensor of a dataclass is indexed by ``rows``.

    What is no tensor stays as it is, ``None`` among it; dataclasses within are entered.
    """
    if isinstance(value, Tensor):
        return value[rows]
    if not is_dataclass(value):
        return value
    return replace(value, **{f.name: pick(getattr(value, f.name), rows) for f in fields(value)})


def among(value: T, chosen: Tensor) -> T:
    """Return the objects that are ``chosen`` (B,), by no copy where all are."""
    rows = chosen.nonzero()[:, 0]
    return value if len(rows) == len(chosen) else pick(value, rows)


def join(values: Sequence[T]) -> T:
    """Return the objects of all values, which must be alike in everything that is no tensor."""
    first: Any = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if not is_dataclass(first):
        return first
    joined = {f.name: join([getattr(v, f.name) for v in values]) for f in fields(first)}
    return replace(first, **joined)


def filled(n: int, device: torch.device | None = None) -> Tensor:
    """Return the rows 0 to n - 1, and the last one again until they are a multiple of eight.

    Of a few rows that are left over, a product of matrices rounds differently in its last digit;
    filled up, what is computed for an object does not depend on who stands beside it.

    Examples
    --------
    >>> filled(3).tolist()
    [0, 1, 2, 2, 2, 2, 2, 2]
    """
    return torch.arange(n + -n % _ALIKE, device=device).clamp(max=n - 1)
