"""Packing: arrays as people have them, checked and laid out flat, object after object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.ingest import Bare, ingest, numbers

Categories = Mapping[str, Sequence[str]]
_MOST_CODES = 64  # a band of larger numbers is a wavelength or the like


class Packed(NamedTuple):
    """Flat data: x and error (C, P), mask (C, P), lengths (N,), coordinates (P,) or (L,)."""

    x: NDArray[np.float64]
    x_err: NDArray[np.float64] | None
    mask: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    points: dict[str, NDArray]
    shared_grid: bool


def pack(
    x: ArrayLike | Sequence[ArrayLike],
    x_err: ArrayLike | Sequence[ArrayLike] | None,
    mask: ArrayLike | Sequence[ArrayLike] | None,
    coords: Mapping[str, ArrayLike | Sequence[ArrayLike]],
) -> Packed:
    """Return flat data of arrays (N, L) or (N, C, L), or of N arrays (L_i,) or (C, L_i)."""
    if is_ragged(x):
        return _pack_ragged(x, x_err, mask, coords)
    return _pack_grid(x, x_err, mask, coords)


def blank(
    coords: Mapping[str, ArrayLike | Sequence[ArrayLike]],
) -> NDArray[np.float64] | list[NDArray[np.float64]]:
    """Return data of 0 at the points of coordinates (L,), (N, L) or N times (L_i,)."""
    ragged = [value for value in coords.values() if is_ragged(value)]
    if ragged:
        return [np.zeros(len(row)) for row in ragged[0]]
    shapes = [np.shape(value) for value in coords.values()]
    if not any(shapes):
        raise ValueError(
            "x must be given where there is no coordinate of the points, but neither is. Give a "
            "design as t=..., of shape (L,) or (N, L)."
        )
    return np.zeros(max(np.atleast_2d(np.zeros(shape)).shape for shape in shapes))


def is_ragged(x: ArrayLike | Sequence[ArrayLike]) -> bool:
    """Say whether x is a sequence of arrays of different lengths."""
    if not isinstance(x, (list, tuple)):
        return isinstance(x, np.ndarray) and x.dtype == object and x.ndim == 1
    return all(np.ndim(row) in (1, 2) for row in x) and len({np.shape(row) for row in x}) > 1


def coordinate(
    name: str, value: ArrayLike, categories: Sequence[str] | None, *, coded: bool = False
) -> tuple[NDArray, tuple[str, ...] | None]:
    """Return a coordinate in the type that says what it is, and the names of its categories.

    Texts, and numbers for which ``categories`` names the meaning, become int64 codes; booleans
    stay flags; whole numbers of a ``band`` are codes already; all else is float64. Where categories
    are themselves called by numbers, whole numbers are such names, unless they are ``coded``.

    Examples
    --------
    >>> coordinate("band", ["r", "g", "r"], None)
    (array([1, 0, 1]), ('g', 'r'))
    """
    array, _ = ingest(name, value)
    if array.dtype.kind in "OSU":
        return _codes(name, np.ma.getdata(array), categories)
    if array.dtype.kind == "b":
        return np.ma.filled(array, False).copy(), None
    values = numbers(name, array)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, but {int((~np.isfinite(values)).sum())} are not.")
    if categories is None and not (
        name == "band" and _are_codes(values) and values.max(initial=0) < _MOST_CODES
    ):
        return values, None
    names = tuple(map(str, categories or range(int(values.max(initial=0)) + 1)))
    if not coded and all(one.isdigit() for one in names) and _are_codes(values):
        return _codes(name, values.astype(np.int64), names)
    if not (_are_codes(values) and values.max(initial=0) < len(names)):
        raise ValueError(
            f"{name} must hold codes from 0 to {len(names) - 1} of its categories {names}, but has "
            f"values from {values.min():g} to {values.max():g}."
        )
    return values.astype(np.int64), names


def check_errors(packed: Packed) -> None:
    """Refuse errors of real points that are zero or negative."""
    if packed.x_err is None:
        return
    finite = np.isfinite(packed.x) & np.isfinite(packed.x_err) & packed.mask
    if np.any(finite & (packed.x_err <= 0)):
        raise ValueError(
            f"x_err must be positive, but has values down to {packed.x_err[finite].min():g}. "
            "Mask bad points with mask=, or give their errors as NaN."
        )


def scalar(name: str, value: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return one finite number for each of n objects."""
    array = numbers(name, value)
    if array.shape != (n,) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be {n} finite numbers, one per object, but is {array}.")
    return array


def different(ids: Sequence[object] | None, n: int) -> NDArray:
    """Return the names of n objects, by default their numbers."""
    names = np.arange(n) if ids is None else np.asarray(ids)
    if names.dtype.kind == "O" and not all(isinstance(i, (str, Integral)) for i in names.flat):
        raise TypeError(f"ids must be texts or whole numbers, but are {names.tolist()!r:.80}.")
    if names.shape != (n,) or len(np.unique(names)) != n:
        raise ValueError(
            f"ids must be {n} different names, but has shape {names.shape}, "
            f"{len(np.unique(names))} of them different."
        )
    return names


def as_given(values: NDArray, names: Sequence[str] | None) -> NDArray:
    """Return a coordinate in numbers that `coordinate` takes back, with the same categories."""
    if names is None or not all(one.isdigit() for one in names):
        return values
    return np.array([int(one) for one in names])[values]


def _codes(
    name: str, array: NDArray, categories: Sequence[str] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    texts = array.astype(str)
    found, codes = np.unique(texts, return_inverse=True)
    if categories is None:
        return codes.reshape(texts.shape), tuple(found.tolist())
    names = tuple(map(str, categories))
    unknown = sorted(set(found.tolist()) - set(names))
    if unknown:
        raise ValueError(
            f"{name} must be one of {names}, but has {unknown}. Leave those points out, or name "
            "them in the categories."
        )
    place = np.array([names.index(one) for one in found], np.int64)
    return place[codes].reshape(texts.shape), names


def _are_codes(values: NDArray[np.float64]) -> bool:
    return bool(((values == values.round()) & (values >= 0)).all())


def _pack_grid(
    x: ArrayLike, x_err: ArrayLike | None, mask: ArrayLike | None, coords: Mapping[str, ArrayLike]
) -> Packed:
    data = numbers("x", x)
    if data.ndim not in (2, 3) or 0 in data.shape:
        raise ValueError(
            f"x must have shape (N, L) or (N, C, L) with no empty axis, but has {data.shape}. "
            "Give one object as x[None]."
        )
    data = data[:, None, :] if data.ndim == 2 else data
    error = None if x_err is None else _like("x_err", x_err, data)
    good = np.ones(data.shape, bool) if mask is None else _like("mask", mask, data).astype(bool)
    n, _, length = data.shape
    arrays = {}
    for name, value in coords.items():
        array, _ = ingest(name, value)
        if isinstance(array, list) or array.shape not in ((length,), (n, length)):
            came = [a.shape for a in array] if isinstance(array, list) else array.shape
            raise ValueError(
                f"{name} must have shape ({length},) or ({n}, {length}), but has {came}."
            )
        arrays[name], unknown = _placed(array)
        good &= ~np.atleast_2d(unknown)[:, None, :]
    shared = all(a.ndim == 1 for a in arrays.values())
    if not shared:
        arrays = {k: np.broadcast_to(a, (n, length)).reshape(-1) for k, a in arrays.items()}
    return Packed(
        x=_flat(data),
        x_err=None if error is None else _flat(error),
        mask=_flat(good),
        lengths=np.full(n, length),
        points=arrays,
        shared_grid=shared,
    )


def _pack_ragged(
    x: Sequence[ArrayLike],
    x_err: ArrayLike | Sequence[ArrayLike] | None,
    mask: ArrayLike | Sequence[ArrayLike] | None,
    coords: Mapping[str, Sequence[ArrayLike]],
) -> Packed:
    rows = [np.atleast_2d(numbers("x", row)) for row in x]
    if len({len(row) for row in rows}) != 1:
        raise ValueError(
            "x must have the same channels for every object, but has "
            f"{sorted({len(row) for row in rows})} of them."
        )
    lengths = np.array([row.shape[1] for row in rows])
    data = np.concatenate(rows, 1)
    error = None if x_err is None else _joined("x_err", x_err, lengths, data)
    good = np.ones(data.shape, bool)
    if mask is not None:
        good = _joined("mask", mask, lengths, data).astype(bool)
    points = {}
    for name, value in coords.items():
        points[name], unknown = _one_for_each(name, value, lengths)
        good &= ~unknown
    return Packed(
        x=data,
        x_err=error,
        mask=good,
        lengths=lengths,
        points=points,
        shared_grid=False,
    )


def _joined(
    name: str, value: ArrayLike | Sequence[ArrayLike], lengths: NDArray, data: NDArray
) -> NDArray[np.float64]:
    """Return errors or masks of ragged objects in the shape (C, P) of the data."""
    if np.ndim(value[0] if isinstance(value, (list, tuple)) else value) == 0:
        return np.broadcast_to(numbers(name, value), data.shape).copy()
    parts = [np.atleast_2d(numbers(name, part)) for part in value]
    came = np.array([part.shape[1] for part in parts])
    if not np.array_equal(came, lengths):
        raise ValueError(f"{name} must have the lengths of x, but has {came[:5].tolist()}...")
    return np.broadcast_to(np.concatenate(parts, 1), data.shape).copy()


def _one_for_each(
    name: str, value: Sequence[ArrayLike], lengths: NDArray
) -> tuple[NDArray, NDArray[np.bool_]]:
    parts = [ingest(name, part)[0] for part in value]
    came = [len(part) if part.ndim == 1 else -1 for part in parts]
    if came != lengths.tolist():
        raise ValueError(
            f"{name} must be one array for each object with the lengths of x, "
            f"{lengths[:5].tolist()}..., but has lengths {came[:5]}..."
        )
    placed = [_placed(part) for part in parts]
    return tuple(np.concatenate(column) for column in zip(*placed, strict=True))


def _placed(array: Bare) -> tuple[NDArray, NDArray[np.bool_]]:
    """Return a coordinate (..., L) and where it is masked: there it takes another point's value."""
    unknown = np.ma.getmaskarray(array)
    values = np.ma.getdata(array)
    if not unknown.any():
        return values, unknown
    first = np.take_along_axis(values, (~unknown).argmax(-1)[..., None], -1)
    return np.where(unknown, first, values), unknown


def _like(name: str, value: ArrayLike, data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``value`` with the shape (N, C, L) of ``data``; two axes mean (N, L)."""
    array = numbers(name, value)
    if array.ndim == 2 and data.ndim == 3:
        array = array[:, None, :]
    try:
        return np.broadcast_to(array, data.shape).copy()
    except ValueError:
        raise ValueError(
            f"{name} must have a shape that fits x {data.shape}, but has {np.shape(value)}."
        ) from None


def _flat(array: NDArray) -> NDArray:
    """Turn (N, C, L) into (C, N * L)."""
    return np.ascontiguousarray(array.transpose(1, 0, 2)).reshape(array.shape[1], -1)
