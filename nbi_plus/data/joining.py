"""Joining: several data sets as one, object after object or channel after channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.flat import FlatData, Some
from nbi_plus.data.ingest import ingest
from nbi_plus.data.ingested import together
from nbi_plus.data.packing import Categories, coordinate, scalar
from nbi_plus.data.units import factor


def alike(obs: Some, categories: Categories, units: Mapping[str, str]) -> Some:
    """Return the same data in other units, and with the codes of other lists of categories."""
    points, named = dict(obs.points), dict(obs.categories)
    for name, wanted in categories.items():
        if name in named and tuple(wanted) != named[name]:
            texts = np.array(named[name])[points[name]]
            points[name], named[name] = coordinate(name, texts, wanted)
    units = agreed_units(obs.units, units)
    scale = {k: factor(obs.units.get(k, v), v, k) for k, v in units.items()}
    changed = {k for k, v in scale.items() if v != 1.0}
    by = scale.get("x", 1.0)
    return replace(
        obs,
        values=obs.values * by,
        errors=None if obs.errors is None else np.where(obs.valid, obs.errors * by, 1.0),
        points={k: v * scale[k] if k in changed else v for k, v in points.items()},
        scalars={k: v * scale[k] if k in changed else v for k, v in obs.scalars.items()},
        categories=named,
        units=obs.units | dict(units),
        origins=obs.origins * scale.get("t", 1.0),
    )


def agreed_units(
    found: Mapping[str, str | None], units: Mapping[str, str | None]
) -> dict[str, str]:
    """Return the units wanted; refuse what is found in a unit where there is known to be none.

    Times that say they are days are what bare times are taken for.
    """
    for name, wanted in units.items():
        came = found.get(name) or ""
        if wanted is None and came != "" and (name, came) != ("t", "d"):
            raise ValueError(
                f"{name} must be bare numbers, as in the fit, but is in {came!r}. Fit with data in "
                "units, or give the numbers alone, in the unit that the fit had."
            )
    return {k: v for k, v in units.items() if v is not None}


def concatenate(parts: Sequence[Some]) -> Some:
    """Return the objects of all parts, in the units of the first."""
    if not parts:
        raise ValueError("parts must be at least one data set, but there are none.")
    _check_alike(parts)
    ids = np.concatenate([part.ids for part in parts])
    _check_different(ids)
    same = [alike(part, _all_categories(parts), _all_units(parts)) for part in parts]
    shared = all(_same_grid(same[0], part) for part in same)
    same = same if shared else [part.laid_out() for part in same]
    first = same[0]
    points = first.points if shared else {
        k: np.concatenate([part.points[k] for part in same]) for k in first.points
    }  # fmt: skip
    lengths = np.concatenate([part.lengths for part in same])
    return replace(
        first,
        values=np.concatenate([part.values for part in same], 1),
        errors=None if first.errors is None else np.concatenate([p.errors for p in same], 1),
        valid=np.concatenate([part.valid for part in same], 1),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        points=points,
        scalars={k: np.concatenate([p.scalars[k] for p in same]) for k in first.scalars},
        ids=ids,
        shared_grid=shared,
        n_masked=np.concatenate([part.n_masked for part in same]),
        origins=np.concatenate([part.origins for part in same]),
        n_duplicates=np.concatenate([part.n_duplicates for part in same]),
        ingest=together(part.ingest for part in parts),
    )


def with_scalars(obs: Some, scalars: Mapping[str, ArrayLike], units: Mapping[str, str]) -> Some:
    """Return objects with more numbers of their own, or other ones, in the units wanted."""
    found, noted = dict(obs.scalars), dict(obs.units)
    for name, value in scalars.items():
        bare, unit = ingest(name, value, units.get(name))
        found[name] = scalar(name, bare, len(obs))
        noted |= {} if unit is None else {name: unit}
    return replace(obs, scalars=found, units=noted)


def joint(parts: Mapping[str, Some]) -> Some:
    """Return data sets of the same objects as the channels of one."""
    if not parts:
        raise ValueError("parts must be at least one data set, but there are none.")
    first = next(iter(parts.values()))
    matched = {name: _matched(name, part, first) for name, part in parts.items()}
    _check_errors(matched)
    categories, units = _all_categories(matched.values()), _all_units(matched.values())
    units.pop("x", None)  # each channel has its own
    same = {
        name: alike(part, categories, _of(part, units)).laid_out() for name, part in matched.items()
    }
    every = list(same.values())
    rows, lengths = _interleaved(every)
    values, errors, valid = (together[:, rows] for together in _channels(every))
    units_of_x = {part.units.get("x") for part in every} - {None}
    agreed = {"x": units_of_x.pop()} if len(units_of_x) == 1 else {}
    return replace(
        every[0],
        values=values,
        errors=None if every[0].errors is None else errors,
        valid=valid,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        points={
            k: _filled(k, every, rows, lengths)
            for k in dict.fromkeys(k for part in every for k in part.points)
        },
        scalars=_merged_scalars(same),
        categories=categories,
        units=units | agreed,
        n_masked=sum(part.n_masked for part in every),
        n_duplicates=sum(part.n_duplicates for part in every),
        ingest=together(part.ingest for part in every),
    )


def shared_again(obs: Some) -> Some:
    """Return objects that all have the same coordinates as sharing them."""
    n = len(obs)
    length = int(obs.lengths[0]) if n else 0
    if not n or (obs.lengths != length).any():
        return obs
    grids = {k: v.reshape(n, length) for k, v in obs.points.items()}
    if any((grid != grid[0]).any() for grid in grids.values()):
        return obs
    return replace(obs, points={k: grid[0] for k, grid in grids.items()}, shared_grid=True)


def _check_alike(parts: Sequence[FlatData]) -> None:
    """Refuse parts that differ in channels, errors, coordinates or scalars."""
    for what, of in (
        ("the same number of channels", lambda p: p.n_channels),
        ("errors in all or in none", lambda p: p.errors is not None),
        ("the same coordinates", lambda p: sorted(p.points)),
        ("the same scalars", lambda p: sorted(p.scalars)),
        ("coordinates of the same kind", lambda p: {k: v.dtype.kind for k, v in p.points.items()}),
    ):
        came = [of(part) for part in parts]
        other = next((i for i, one in enumerate(came) if one != came[0]), None)
        if other is not None:
            raise ValueError(
                f"parts must have {what}, but part 0 has {came[0]} and part {other} has "
                f"{came[other]}."
            )


def _check_different(ids: NDArray) -> None:
    found, counts = np.unique(ids, return_counts=True)
    twice = found[counts > 1].tolist()
    if twice:
        raise ValueError(
            f"ids must be different in all parts, but {len(twice)} are not, such as {twice[:3]}. "
            "Give ids= where the parts are made."
        )


def _check_errors(parts: Mapping[str, FlatData]) -> None:
    without = [name for name, part in parts.items() if part.errors is None]
    if without and len(without) < len(parts):
        raise ValueError(
            f"parts must all have errors or none, but {without} have none. Give them errors."
        )


def _same_grid(one: FlatData, other: FlatData) -> bool:
    return (
        one.shared_grid
        and other.shared_grid
        and one.valid.shape[1] * len(other) == other.valid.shape[1] * len(one)
        and all(np.array_equal(v, other.points[k]) for k, v in one.points.items())
    )


def _all_categories(parts: Iterable[FlatData]) -> dict[str, tuple[str, ...]]:
    """Return the categories of all parts by name, those of the first part first."""
    merged: dict[str, dict[str, None]] = {}
    for part in parts:
        for name, texts in part.categories.items():
            merged.setdefault(name, {}).update(dict.fromkeys(texts))
    return {name: tuple(texts) for name, texts in merged.items()}


def _all_units(parts: Iterable[FlatData]) -> dict[str, str]:
    """Return the first unit known of each name."""
    units: dict[str, str] = {}
    for part in parts:
        units = dict(part.units) | units
    return units


def _of(part: FlatData, units: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in units.items() if k in part.points or k in part.scalars}


def _matched(name: str, part: Some, first: FlatData) -> Some:
    """Return a part with its objects in the order of the first part."""
    own, wanted = part.ids.astype(str), first.ids.astype(str)
    order, place = np.argsort(own), np.argsort(wanted)
    if len(own) != len(wanted) or (own[order] != wanted[place]).any():
        other = sorted(set(own.tolist()) ^ set(wanted.tolist()))
        raise ValueError(
            f"parts must have the same objects, but {len(other)} ids are not in both {name!r} and "
            f"the first part, such as {other[:3]}. Select the common ones by index."
        )
    matched = part[order[np.argsort(place)]]
    if not np.array_equal(matched.origins, first.origins):
        raise ValueError(
            f"parts must count their times from the same origins, but {name!r} differs. Join "
            "before relative_to."
        )
    return matched


def _interleaved(parts: Sequence[FlatData]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order by object, then part, of all parts' points one after another."""
    owner = np.concatenate([part.owner for part in parts])
    lengths = sum(part.lengths for part in parts)
    return np.argsort(owner, kind="stable"), lengths


def _channels(parts: Sequence[FlatData]) -> tuple[NDArray, NDArray, NDArray]:
    """Return data, errors and mask (sum of C, sum of n_points), each part in its own block."""
    shape = (sum(p.n_channels for p in parts), sum(p.valid.shape[1] for p in parts))
    values, errors, valid = np.zeros(shape), np.ones(shape), np.zeros(shape, bool)
    row = column = 0
    for part in parts:
        block = slice(row, row + part.n_channels), slice(column, column + part.valid.shape[1])
        values[block], valid[block] = part.values, part.valid
        errors[block] = 1.0 if part.errors is None else part.errors
        row, column = block[0].stop, block[1].stop
    return values, errors, valid


def _filled(
    name: str, parts: Sequence[FlatData], rows: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray:
    """Return a coordinate of all points: where a part has none, the object's last one, or zero."""
    kind = next(part.points[name].dtype for part in parts if name in part.points)
    sizes = [part.valid.shape[1] for part in parts]
    own = [
        part.points.get(name, np.zeros(size, kind)) for part, size in zip(parts, sizes, strict=True)
    ]
    has = np.repeat([name in part.points for part in parts], sizes)[rows]
    values = np.concatenate(own)[rows]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    last = np.full(len(lengths), -1)
    last[owner[has]] = np.flatnonzero(has)
    source = np.where(has, np.arange(len(values)), last[owner])
    return np.append(values, np.zeros(1, kind))[source]


def _merged_scalars(parts: Mapping[str, FlatData]) -> dict[str, NDArray[np.float64]]:
    merged: dict[str, NDArray[np.float64]] = {}
    for part_name, part in parts.items():
        for name, values in part.scalars.items():
            if not np.array_equal(merged.setdefault(name, values), values):
                raise ValueError(
                    f"{name} must be the same in all parts, but {part_name!r} has other values. "
                    "Rename or drop it."
                )
    return merged
