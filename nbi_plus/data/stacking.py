"""Stacking: objects as one table of points, which says of itself how to be read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.flat import FlatData
from nbi_plus.data.long_format import ORIGIN
from nbi_plus.data.tables.surveys import COORDINATES


def stack(obs: FlatData) -> tuple[dict[str, NDArray], dict[str, str], dict[str, object]]:
    """Return columns of one row for each point, their units, and what they are.

    Masked data are NaN. An object without points gets one row without coordinates.
    """
    flat = obs.laid_out()
    owner = np.repeat(np.arange(len(obs)), np.maximum(obs.lengths, 1))
    source = np.full(len(owner), -1)  # what is appended, for objects without points
    source[obs.lengths[owner] > 0] = np.arange(obs.valid.shape[1])
    coords = {k: _coordinate(k, v, source, obs) for k, v in flat.points.items()}
    named = _channels("x", obs.values, obs.valid, source)
    named |= _channels("x_err", obs.errors, obs.valid, source)
    scalars = {k: v[owner] for k, v in obs.scalars.items()}
    origins = {ORIGIN: obs.origins[owner]} if obs.origins.any() else {}
    ids = obs.ids[owner]
    columns = {"id": ids if ids.dtype.kind in "iu" else ids.astype(str)}
    for more in (coords, named, scalars, origins):
        _check_free(columns, more)
        columns |= more
    units = {k: obs.units[_said(k)] for k in columns if _said(k) in obs.units}
    return columns, units, _layout(obs, list(named))


def _coordinate(name: str, values: NDArray, source: NDArray, obs: FlatData) -> NDArray:
    """Return a coordinate of rows: texts of categories, and what is missing at the place -1."""
    if name in obs.categories:
        return np.array([*obs.categories[name], ""])[np.append(values, -1)[source]]
    missing = np.nan if values.dtype.kind == "f" else 0
    return np.append(values, np.array(missing, values.dtype))[source]


def _channels(
    name: str, data: NDArray | None, valid: NDArray[np.bool_], source: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return rows of data (C, n_points) as columns: name, or name_0, name_1, ... of channels."""
    if data is None:
        return {}
    gaps = np.full((len(data), 1), np.nan)
    rows = np.concatenate([np.where(valid, data, np.nan), gaps], 1)[:, source]
    if len(rows) == 1:
        return {name: rows[0]}
    return {f"{name}_{i}": row for i, row in enumerate(rows)}


def _said(name: str) -> str:
    """Return what a column's unit is noted under."""
    if name == ORIGIN:
        return "t"
    return "x" if name.startswith(("x_err", "x_")) or name == "x" else name


def _check_free(columns: dict[str, NDArray], more: dict[str, NDArray]) -> None:
    taken = sorted(set(columns) & set(more))
    if taken:
        raise ValueError(
            f"coordinates and scalars must have names other than {taken}, which the table uses. "
            "Rename them."
        )


def _layout(obs: FlatData, data: list[str]) -> dict[str, object]:
    x = [name for name in data if not name.startswith("x_err")]
    absent = {name: False for name in COORDINATES if name not in obs.points}
    errors = data[len(x) :] or False
    return {
        "columns": {"id": "id", "x": x, "x_err": errors} | absent | {k: k for k in obs.points},
        "scalars": list(obs.scalars),
        "categories": {k: list(v) for k, v in obs.categories.items()},
        "shared_grid": obs.shared_grid,
    }
