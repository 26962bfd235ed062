"""Rearranging: points folded, binned, and counted from an origin of their object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.flat import FlatData, Some
from nbi_plus.data.ingest import numbers

_SURE = 3.0  # a peak is looked for among points of this signal to noise


def fold(obs: Some, period: ArrayLike | str, epoch: ArrayLike) -> Some:
    """Return objects with a coordinate ``phase`` in [0, 1), by which their points are sorted."""
    flat = obs.laid_out()
    t = _times(flat, "fold")
    each = obs.scalars[_known(period, obs.scalars)] if isinstance(period, str) else period
    periods = _one_each("period", each, flat)
    if not (periods > 0).all():
        raise ValueError(f"period must be positive, but is down to {periods.min():g}.")
    epochs = _one_each("epoch", epoch, flat) - flat.origins
    owner = flat.owner
    phase = np.mod((t - epochs[owner]) / periods[owner], 1.0)
    phase[phase >= 1.0] = 0.0  # the remainder of a tiny negative number rounds to 1
    folded = replace(flat, points=flat.points | {"phase": phase})
    return folded.take_points(np.lexsort((phase, owner)))


def bin_points(obs: Some, dt: ArrayLike) -> Some:
    """Return means of the points of each object, category and bin ``[k dt, (k + 1) dt)``."""
    width = float(numbers("dt", dt, obs.units.get("t")))
    if not (width > 0 and np.isfinite(width)):
        raise ValueError(f"dt must be a positive time, but is {width:g}.")
    flat = obs.laid_out()
    flat = flat.take_points(np.flatnonzero(flat.valid.any(0)))
    t = _times(flat, "bin")
    which = _bins(flat, np.floor(t / width))
    weights = flat.valid.astype(np.float64) if flat.errors is None else flat.valid / flat.errors**2
    first = which.order[which.starts]
    binned = _means(flat.take_points(first), flat, which, weights)
    return binned.take_points(np.lexsort((binned.points["t"], binned.owner)))


class _Bins(NamedTuple):
    """Points sorted by bin (n,), and where each bin starts (n_bins,)."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def sum(self, values: NDArray) -> NDArray:
        """Return the sums of values (..., n) over bins."""
        if not len(self.starts):
            return values[..., :0]
        return np.add.reduceat(values[..., self.order], self.starts, axis=-1)


def _bins(flat: FlatData, number: NDArray[np.float64]) -> _Bins:
    """Return bins of points that share object, bin number, categories and flags."""
    limits = flat.points.get("upper_limit", np.zeros(len(number), bool))
    alone = np.where(limits, np.arange(1, len(number) + 1), 0)  # what is no mean stays one point
    labels = [v for v in flat.points.values() if v.dtype.kind in "ib"]
    keys = [flat.owner, number, *labels, alone]
    order = np.lexsort(keys[::-1])
    new = np.zeros(len(order), bool)
    new[:1] = True
    for key in keys:
        new[1:] |= np.diff(key[order].astype(np.float64)) != 0
    return _Bins(order, np.flatnonzero(new))


def _means(binned: Some, flat: FlatData, which: _Bins, weights: NDArray[np.float64]) -> Some:
    """Return ``binned``, one point a bin, with weighted means of data (C, n) and coordinates."""
    total = which.sum(weights)
    valid = total > 0
    safe = np.where(valid, total, 1.0)
    mean = which.sum(weights * flat.values) / safe
    joint = weights.sum(0)
    alone = np.diff(which.starts, append=len(which.order)) == 1  # no rounding where nothing is done
    points = {
        k: np.where(alone, v, which.sum(joint * flat.points[k]) / total.sum(0))
        if v.dtype.kind == "f"
        else v
        for k, v in binned.points.items()
    }
    error = None if flat.errors is None else np.where(alone, binned.errors, safe**-0.5)
    return replace(
        binned,
        values=np.where(valid, np.where(alone, binned.values, mean), 0.0),
        errors=None if error is None else np.where(valid, error, 1.0),
        valid=valid,
        points=points,
    )


def relative_to(obs: Some, origin: str | ArrayLike) -> Some:
    """Return objects whose times count from an origin of their own, noted in ``origins``."""
    flat = obs.laid_out()
    t = _times(flat, "relative_to")
    if isinstance(origin, str):
        finder = _FINDERS[_known(origin, _FINDERS)]
        origins = finder(flat, t) + flat.origins
    else:
        origins = _one_each("origin", origin, flat)
    shifted = t - (origins - flat.origins)[flat.owner]
    return replace(flat, points=flat.points | {"t": shifted}, origins=origins)


def _first(flat: FlatData, t: NDArray[np.float64]) -> NDArray[np.float64]:
    return _leading(flat, t, np.where(flat.valid.any(0), t, np.inf))


def _peak(flat: FlatData, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the time of the largest value among those of good signal to noise, if any are."""
    if flat.units.get("x", "").startswith("mag"):
        raise ValueError(
            "relative_to('peak') must have fluxes, but x is in magnitudes. Read them with "
            "zero_point=."
        )
    usable = flat.valid & ~flat.points.get("upper_limit", np.zeros(len(t), bool))
    sure = usable if flat.errors is None else usable & (flat.values >= _SURE * flat.errors)
    has_sure = np.bincount(flat.owner, sure.any(0), minlength=len(flat)) > 0
    chosen = np.where(has_sure[flat.owner], sure, usable)
    return _leading(flat, t, -np.where(chosen, flat.values, -np.inf).max(0))


def _median(flat: FlatData, t: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.lexsort((t, ~flat.valid.any(0), flat.owner))  # each object's valid points, in time
    n = flat.n_points
    low, high = flat.offsets[:-1] + np.maximum(n - 1, 0) // 2, flat.offsets[:-1] + n // 2
    padded = np.append(t[order], 0.0)
    return np.where(n > 0, (padded[low] + padded[high]) / 2, 0.0)


def _leading(
    flat: FlatData, t: NDArray[np.float64], score: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the time of each object's lowest score, 0 where the object has no points, (N,)."""
    order = np.append(np.lexsort((score, flat.owner)), len(t))
    found = np.append(t, 0.0)[order[flat.offsets[:-1]]]
    return np.where(flat.n_points > 0, found, 0.0)


_FINDERS = {"first": _first, "median": _median, "peak": _peak}


def buckets(lengths: NDArray[np.int64], max_points: int) -> Iterator[NDArray[np.int64]]:
    """Yield objects of like lengths (N,), as many as fill at most ``max_points`` when padded."""
    if not max_points >= 1:
        raise ValueError(f"max_points must be at least 1, but is {max_points}.")
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        n = max(1, int(max_points // max(lengths[order[start]], 1)))
        yield order[start : start + n]
        start += n


def _times(flat: FlatData, method: str) -> NDArray[np.float64]:
    if "t" not in flat.points:
        raise ValueError(
            f"{method} must have a coordinate 't', but there are {list(flat.points)}. Make the "
            "observations with t=."
        )
    return flat.points["t"]


def _one_each(name: str, value: ArrayLike, flat: FlatData) -> NDArray[np.float64]:
    """Return a number for each object, in the unit of the times, shape (N,)."""
    bare = numbers(name, value, flat.units.get("t"))
    if bare.shape not in ((), (len(flat),)) or not np.isfinite(bare).all():
        raise ValueError(
            f"{name} must be one finite number or {len(flat)}, one for each object, but is {bare}."
        )
    return np.broadcast_to(bare, (len(flat),)).copy()


def _known(name: str, known: Mapping[str, object]) -> str:
    if name not in known:
        raise ValueError(f"{name!r} must be one of {list(known)}, but is not.")
    return name
