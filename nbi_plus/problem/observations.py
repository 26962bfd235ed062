"""Observations: many objects' data in one container, and the padded batch that is computed on.

Points are stored flat, object after object, so that memory grows with the number of points; a
`Batch` pads and masks the objects it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Index = int | slice | Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class Batch:
    """Some objects' data on one device, padded to one length.

    Attributes
    ----------
    x : Tensor, shape (n, C, L)
        Data; 0 where masked.
    x_err : Tensor or None, shape (n, C, L)
        Standard deviations; 1 where masked.
    mask : Tensor of bool, shape (n, C, L)
        True for a real point.
    coords : dict of Tensor, shape (n, L) or (L,)
        Coordinates such as ``t``; one row is shared by all objects where they share their grid. The
        padding repeats an object's last point, where a simulator can be evaluated.
    scalars : dict of Tensor, shape (n,)
        One number per object, such as a redshift.
    """

    x: Tensor
    x_err: Tensor | None
    mask: Tensor
    coords: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, index: Tensor | slice) -> Batch:
        """Return the objects at ``index``."""
        return Batch(
            x=self.x[index],
            x_err=None if self.x_err is None else self.x_err[index],
            mask=self.mask[index],
            coords={k: v if v.ndim == 1 else v[index] for k, v in self.coords.items()},
            scalars={k: v[index] for k, v in self.scalars.items()},
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Batch:
        """Return the batch on another device; ``dtype`` changes ``x`` and ``x_err`` alone."""
        return Batch(
            x=self.x.to(device=device, dtype=dtype),
            x_err=None if self.x_err is None else self.x_err.to(device=device, dtype=dtype),
            mask=self.mask.to(device),
            coords={k: v.to(device) for k, v in self.coords.items()},
            scalars={k: v.to(device) for k, v in self.scalars.items()},
        )

    def with_data(self, x: Tensor) -> Batch:
        """Return the same objects with other data, 0 where masked."""
        return replace(
            self, x=torch.where(self.mask, x, torch.zeros((), dtype=x.dtype, device=x.device))
        )

    def arguments(self) -> dict[str, Tensor]:
        """Return what a simulator may ask for by name: coordinates and scalars."""
        return {**self.coords, **self.scalars}

    def per_object(self) -> frozenset[str]:
        """Return the names among `arguments` that have one row per object."""
        rows = {k for k, v in self.coords.items() if v.ndim == 2}
        return frozenset(rows | set(self.scalars))


@dataclass(frozen=True, eq=False)
class Observations:
    """Data of many objects, each with its own points, errors and coordinates.

    Made by a constructor such as `from_arrays`; indexing and slicing give Observations.

    Attributes
    ----------
    values, errors, valid : ndarray, shape (C, n_points)
        Flat data, standard deviations (or None) and mask of all objects.
    offsets : ndarray of int, shape (N + 1,)
        Object ``i`` owns the points ``offsets[i]:offsets[i + 1]``.
    points : dict of ndarray, shape (n_points,) or (L,)
        Coordinates; of shape (L,) when `shared_grid`.
    scalars : dict of ndarray, shape (N,)
        One number per object.
    ids : ndarray, shape (N,)
        Names of the objects.
    shared_grid : bool
        Whether all objects share one set of coordinates.
    n_masked : ndarray of int, shape (N,)
        How many points were masked because flux or error was not finite.
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64] | None
    valid: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    points: dict[str, NDArray[np.float64]]
    scalars: dict[str, NDArray[np.float64]]
    ids: NDArray
    shared_grid: bool
    n_masked: NDArray[np.int64]

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        scalars: Mapping[str, ArrayLike] | None = None,
        ids: Sequence[object] | None = None,
        **coords: ArrayLike,
    ) -> Observations:
        """Make Observations of arrays on a grid.

        Parameters
        ----------
        x : array_like, shape (N, L) or (N, C, L)
            Data of N objects. A NaN or infinite value is masked and counted.
        x_err : array_like, shape broadcastable to x, optional
            Standard deviations, positive.
        mask : array_like of bool, shape (N, L) or (N, C, L), optional
            True for a real point; a 2-D mask holds for all channels.
        scalars : mapping of name to array_like of shape (N,), optional
            One number per object, such as ``redshift``.
        ids : sequence, optional
            Names of the objects; 0, 1, ... when not given.
        **coords : array_like, shape (L,) or (N, L)
            Coordinates such as ``t``, ``wavelength`` or ``band``.

        Returns
        -------
        Observations

        Examples
        --------
        >>> obs = Observations.from_arrays([[1.0, 2.0], [3.0, float("nan")]], 0.1, t=[0.0, 1.0])
        >>> len(obs), obs.n_masked.tolist()
        (2, [0, 1])
        """
        data = _numbers("x", x)
        if data.ndim not in (2, 3) or 0 in data.shape:
            raise ValueError(
                f"x must have shape (N, L) or (N, C, L) with no empty axis, but has {data.shape}. "
                "Give one object as x[None]."
            )
        data = data[:, None, :] if data.ndim == 2 else data
        error = None if x_err is None else _like("x_err", x_err, data)
        good = np.ones(data.shape, bool) if mask is None else _like("mask", mask, data).astype(bool)
        finite = np.isfinite(data) if error is None else np.isfinite(data) & np.isfinite(error)
        if error is not None and np.any(good & finite & (error <= 0)):
            worst = error[good & finite].min()
            raise ValueError(
                f"x_err must be positive, but has values down to {worst:g}. "
                "Mask bad points with mask=, or give their errors as NaN."
            )
        keep = good & finite
        n, _, length = data.shape
        points, shared = _grid(coords, n, length)
        return cls(
            values=_flat(np.where(keep, data, 0.0)),
            errors=None if error is None else _flat(np.where(keep, error, 1.0)),
            valid=_flat(keep),
            offsets=np.arange(n + 1) * length,
            points=points,
            scalars={k: _scalar(k, v, n) for k, v in (scalars or {}).items()},
            ids=_ids(ids, n),
            shared_grid=shared,
            n_masked=(good & ~finite).sum((1, 2)),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Index) -> Observations:
        chosen = self._rows(index)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        points = self.points if self.shared_grid else {k: v[where] for k, v in self.points.items()}
        return Observations(
            values=self.values[:, where],
            errors=None if self.errors is None else self.errors[:, where],
            valid=self.valid[:, where],
            offsets=offsets,
            points=points,
            scalars={k: v[chosen] for k, v in self.scalars.items()},
            ids=self.ids[chosen],
            shared_grid=self.shared_grid,
            n_masked=self.n_masked[chosen],
        )

    def __repr__(self) -> str:
        names = ", ".join([*self.points, *self.scalars]) or "none"
        return (
            f"Observations({len(self)} objects, {self.n_channels} channels, "
            f"{self.values.shape[1]} points, coordinates: {names})"
        )

    @property
    def n_channels(self) -> int:
        """Number of channels C."""
        return len(self.values)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of points of each object, masked ones included, shape (N,)."""
        return np.diff(self.offsets)

    @property
    def keys(self) -> NDArray[np.int64]:
        """A number for each object that depends on its id alone, shape (N,)."""
        digests = [blake2b(str(i).encode(), digest_size=8).digest() for i in self.ids.tolist()]
        return np.frombuffer(b"".join(digests), np.int64).copy()

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
    def coords(self) -> dict[str, NDArray[np.float64]]:
        """Coordinates, shape (L,) when shared by all objects, else padded (N, L)."""
        return {k: v.numpy() for k, v in self.batch().coords.items()}

    def batch(self, index: Index | None = None) -> Batch:
        """Return objects padded to their longest, as float64 tensors on the CPU."""
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
        )

    def _rows(self, index: Index) -> NDArray[np.int64]:
        return np.atleast_1d(np.arange(len(self))[index])


def _numbers(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """Return a float64 copy, or say what came instead of numbers."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name} must be a regular array, but its rows differ: {error}."
        ) from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, but has dtype {array.dtype}.")
    return array.astype(np.float64)


def _like(name: str, value: ArrayLike, data: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``value`` with the shape (N, C, L) of ``data``; two axes mean (N, L)."""
    array = _numbers(name, value)
    if array.ndim == 2 and data.ndim == 3:
        array = array[:, None, :]
    try:
        return np.broadcast_to(array, data.shape).copy()
    except ValueError:
        raise ValueError(
            f"{name} must have a shape that fits x {data.shape}, but has {np.shape(value)}."
        ) from None


def _grid(
    coords: Mapping[str, ArrayLike], n: int, length: int
) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """Return flat or shared coordinates, and whether they are shared by all objects."""
    arrays = {k: _numbers(k, v) for k, v in coords.items()}
    for name, array in arrays.items():
        if array.shape not in ((length,), (n, length)):
            raise ValueError(
                f"{name} must have shape ({length},) or ({n}, {length}), but has {array.shape}."
            )
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} must be finite, but {int((~np.isfinite(array)).sum())} are not."
            )
    if all(a.ndim == 1 for a in arrays.values()):
        return arrays, True
    return {k: np.broadcast_to(a, (n, length)).reshape(-1).copy() for k, a in arrays.items()}, False


def _scalar(name: str, value: ArrayLike, n: int) -> NDArray[np.float64]:
    array = _numbers(name, value)
    if array.shape != (n,) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be {n} finite numbers, one per object, but is {array}.")
    return array


def _ids(ids: Sequence[object] | None, n: int) -> NDArray:
    names = np.arange(n) if ids is None else np.asarray(ids)
    if names.shape != (n,) or len(np.unique(names)) != n:
        raise ValueError(
            f"ids must be {n} different names, but has shape {names.shape}, "
            f"{len(np.unique(names))} of them different."
        )
    return names


def _flat(array: NDArray) -> NDArray:
    """Turn (N, C, L) into (C, N * L)."""
    return np.ascontiguousarray(array.transpose(1, 0, 2)).reshape(array.shape[1], -1)


def _tensor(array: NDArray) -> Tensor:
    """Turn (C, n, L) into a tensor (n, C, L)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(1, 0, 2)))
