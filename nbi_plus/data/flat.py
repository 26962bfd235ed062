"""Flat data: many objects' points in one row of arrays, object after object.

Memory grows with the number of points; a `Batch` pads and masks the objects it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.data.hashing import bits, keys_of, named, texts_of
from nbi_plus.data.ingested import Ingest
from nbi_plus.data.units import base_factor
from nbi_plus.markup import Shown, facts

Index = int | slice | Sequence[int] | NDArray[np.integer]
Some = TypeVar("Some", bound="FlatData")

_N_SHOWN = 5  # ids


@dataclass(frozen=True, eq=False)
class FlatData(Shown):
    """Points of many objects, with what belongs to each; what `Observations` are inside.

    Attributes
    ----------
    values, errors, valid : ndarray, shape (C, n_points)
        Flat data, standard deviations (or None) and mask of all objects.
    offsets : ndarray of int, shape (N + 1,)
        Object ``i`` owns the points ``offsets[i]:offsets[i + 1]``.
    points : dict of ndarray, shape (n_points,) or (L,)
        Coordinates; of shape (L,) when `shared_grid`. Their type says what they are: floats,
        int64 codes of categories (``band``), or flags (``upper_limit``: True for a non-detection).
    scalars : dict of ndarray, shape (N,)
        One number per object.
    ids : ndarray, shape (N,)
        Names of the objects.
    shared_grid : bool
        Whether all objects share one set of coordinates.
    n_masked : ndarray of int, shape (N,)
        How many points were masked, or left out of a table, because something was not finite.
    categories : dict of tuple of str
        The names behind the codes of a coordinate.
    units : dict of str
        Units of ``x``, coordinates and scalars, where they are known.
    origins : ndarray, shape (N,)
        What was subtracted from the times of each object; zeros when not given.
    n_duplicates : ndarray of int, shape (N,)
        How many points of a table were left out for being others again; zeros when not given.
    ingest : Ingest
        What was done to a table or a survey on its way in, all of it: parts keep it whole.
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64] | None
    valid: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    points: dict[str, NDArray]
    scalars: dict[str, NDArray[np.float64]]
    ids: NDArray
    shared_grid: bool
    n_masked: NDArray[np.int64]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    origins: NDArray[np.float64] | None = None
    n_duplicates: NDArray[np.int64] | None = None
    ingest: Ingest = field(default_factory=Ingest)

    def __post_init__(self) -> None:
        if self.origins is None:
            object.__setattr__(self, "origins", np.zeros(len(self)))
        if self.n_duplicates is None:
            object.__setattr__(self, "n_duplicates", np.zeros(len(self), np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self: Some, index: Index) -> Some:
        chosen = self._rows(index)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        return replace(
            self,
            values=self.values[:, where],
            errors=None if self.errors is None else self.errors[:, where],
            valid=self.valid[:, where],
            offsets=offsets,
            points={k: v if self.shared_grid else v[where] for k, v in self.points.items()},
            scalars={k: v[chosen] for k, v in self.scalars.items()},
            ids=self.ids[chosen],
            n_masked=self.n_masked[chosen],
            origins=self.origins[chosen],
            n_duplicates=self.n_duplicates[chosen],
        )

    def __iter__(self: Some) -> Iterator[Some]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        names = ", ".join([*self.points, *self.scalars]) or "none"
        return (
            f"{type(self).__name__}({len(self)} objects, {self.n_channels} channels, "
            f"{self.values.shape[1]} points, coordinates: {names})"
        )

    def _repr_html_(self) -> str:
        n, counts = len(self), self.n_points
        spread = f"{counts.min()} to {counts.max()} each" if n else "none"
        told = {"channels": self.n_channels, "points": f"{counts.sum()}, {spread}",
                "masked": int(self.n_masked.sum()) or None,
                "errors": "given" if self.errors is not None else "none"}  # fmt: skip
        told |= {name: self._range(name) for name in (*self.points, *self.scalars)}
        told |= {"ids": ", ".join(map(str, self.ids[:_N_SHOWN])) + (n > _N_SHOWN) * ", ..."}
        return facts(told, f"{type(self).__name__} of {n} objects")

    def _range(self, name: str) -> str:
        """Return the kinds of a category, or the ends of a coordinate."""
        values = self.points.get(name, self.scalars.get(name))
        if name in self.categories:
            return ", ".join(self.categories[name])
        known = values[np.isfinite(values)]
        ends = f"{known.min():.10g} to {known.max():.10g}" if len(known) else "not known"
        return f"{ends} {self.units.get(name, '')}".rstrip()

    @property
    def n_channels(self) -> int:
        """Number of channels C."""
        return len(self.values)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of points of each object, masked ones included, shape (N,)."""
        return np.diff(self.offsets)

    @property
    def n_points(self) -> NDArray[np.int64]:
        """Number of valid points of each object, shape (N,)."""
        seen = np.concatenate([[0], np.cumsum(self.valid.any(0))])
        return seen[self.offsets[1:]] - seen[self.offsets[:-1]]

    @property
    def owner(self) -> NDArray[np.int64]:
        """The object that each point belongs to, shape (n_points,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def keys(self) -> NDArray[np.int64]:
        """A number for each object that depends on its id alone, shape (N,)."""
        return keys_of(self.ids)

    @property
    def hashes(self) -> NDArray[np.str_]:
        """A text of 16 digits for each object that depends on its data alone, shape (N,).

        On the values, errors, mask, coordinates and scalars, in their order: not on its id, on
        other objects, padding, points that are masked in every channel, the codes of categories,
        the origin of times, or the unit that a quantity is given in. Nine digits of each number
        count.
        """
        flat, x = self.laid_out(), self._factor("x")
        columns = [flat.valid.astype(np.int64), bits(flat.values * x, flat.valid)]
        if flat.errors is not None:
            columns.append(bits(flat.errors * x, flat.valid))
        columns += [flat._whole(name)[None] for name in sorted(flat.points)]
        own = {k: bits(v * self._factor(k), True) for k, v in sorted(flat.scalars.items())}
        seen = flat.valid.any(0)
        ends = np.concatenate([[0], np.cumsum(seen)])[flat.offsets]
        each = np.stack(list(own.values()), 1) if own else np.zeros((len(flat), 0), np.int64)
        about = [len(flat.values), flat.errors is not None, sorted(flat.points), sorted(own)]
        return texts_of(np.concatenate(columns).T[seen], each, ends, about)

    def _whole(self, name: str) -> NDArray[np.int64]:
        """Return a coordinate (n_points,) as whole numbers: absolute times, names of categories."""
        values = self.points[name]
        if name in self.categories:
            return named(self.categories[name], values)
        if values.dtype.kind != "f":
            return values.astype(np.int64)
        absolute = values + self.origins[self.owner] if name == "t" else values
        return bits(absolute * self._factor(name), True)

    def _factor(self, name: str) -> float:
        return base_factor(self.units[name]) if name in self.units else 1.0

    @property
    def x(self) -> NDArray[np.float64]:
        """Padded data, shape (N, C, L)."""
        return self.batch().x.numpy()

    @property
    def x_err(self) -> NDArray[np.float64] | None:
        """Padded standard deviations, shape (N, C, L), or None."""
        error = self.batch().x_err
        return None if error is None else error.numpy()

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Padded mask, shape (N, C, L): True for a real point."""
        return self.batch().mask.numpy()

    @property
    def coords(self) -> dict[str, NDArray]:
        """Coordinates, shape (L,) when shared by all objects, else padded (N, L)."""
        return {k: v.numpy() for k, v in self.batch().coords.items()}

    def batch(self, index: Index | None = None) -> Batch:
        """Return objects padded to their longest, as tensors on the CPU; numbers are float64."""
        chosen = self._rows(slice(None) if index is None else index)
        lengths = self.lengths[chosen]
        column = np.arange(lengths.max(initial=0))
        inside = column < lengths[:, None]
        last = np.maximum(lengths - 1, 0)[:, None]
        where = self.offsets[chosen][:, None] + np.minimum(column, last)
        where = np.minimum(where, self.valid.shape[1] - 1)  # an object may have no points at all
        mask = self.valid[:, where] & inside
        coords = {k: v if self.shared_grid else v[where] for k, v in self.points.items()}
        return Batch(
            x=_tensor(np.where(mask, self.values[:, where], 0.0)),
            x_err=None
            if self.errors is None
            else _tensor(np.where(mask, self.errors[:, where], 1.0)),
            mask=_tensor(mask),
            coords={k: torch.tensor(v) for k, v in coords.items()},
            scalars={k: torch.tensor(v[chosen]) for k, v in self.scalars.items()},
            categories=dict(self.categories),
        )

    def chunks(self: Some, n: int) -> Iterator[Some]:
        """Yield successive parts of at most ``n`` objects."""
        if not n >= 1:
            raise ValueError(f"n must be at least 1 object, but is {n}.")
        return (self[i : i + n] for i in range(0, len(self), n))

    def laid_out(self: Some) -> Some:
        """Return the same data with coordinates of shape (n_points,), shared by none."""
        if not self.shared_grid:
            return self
        points = {k: np.tile(v, len(self)) for k, v in self.points.items()}
        return replace(self, points=points, shared_grid=False)

    def take_points(self: Some, rows: NDArray[np.int64]) -> Some:
        """Return the points at ``rows``, an index (n,) that goes from object to object."""
        flat = self.laid_out()
        lengths = np.bincount(self.owner[rows], minlength=len(self))
        return replace(
            flat,
            values=self.values[:, rows],
            errors=None if self.errors is None else self.errors[:, rows],
            valid=self.valid[:, rows],
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            points={k: v[rows] for k, v in flat.points.items()},
        )

    def _rows(self, index: Index) -> NDArray[np.int64]:
        return np.atleast_1d(np.arange(len(self))[index])


def _tensor(array: NDArray) -> Tensor:
    """Turn (C, n, L) into a tensor (n, C, L)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(1, 0, 2)))
