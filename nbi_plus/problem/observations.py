"""Observations: many objects' data in one container.

Points are stored flat, object after object, so that memory grows with the number of points; a
`Batch` pads and masks the objects it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.io.units import factor, split_unit
from nbi_plus.problem.batch import Batch
from nbi_plus.problem.packing import Categories, Packed, coordinate, numbers, pack

Index = int | slice | Sequence[int] | NDArray[np.integer]


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
        Coordinates; of shape (L,) when `shared_grid`. Their type says what they are: floats,
        int64 codes of categories (``band``), or flags (``upper_limit``: True for a non-detection).
    scalars : dict of ndarray, shape (N,)
        One number per object.
    ids : ndarray, shape (N,)
        Names of the objects.
    shared_grid : bool
        Whether all objects share one set of coordinates.
    n_masked : ndarray of int, shape (N,)
        How many points were masked because flux or error was not finite.
    categories : dict of tuple of str
        The names behind the codes of a coordinate.
    units : dict of str
        Units of ``x``, coordinates and scalars, where they are known.
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

    @classmethod
    def from_arrays(
        cls,
        x: ArrayLike | Sequence[ArrayLike],
        x_err: ArrayLike | Sequence[ArrayLike] | None = None,
        *,
        mask: ArrayLike | Sequence[ArrayLike] | None = None,
        scalars: Mapping[str, ArrayLike] | None = None,
        ids: Sequence[object] | None = None,
        categories: Categories | None = None,
        units: Mapping[str, str] | None = None,
        **coords: ArrayLike | Sequence[ArrayLike],
    ) -> Observations:
        """Make Observations of arrays, on a grid or of different lengths.

        Parameters
        ----------
        x : array_like, shape (N, L) or (N, C, L), or a list of N arrays (L_i,) or (C, L_i)
            Data of N objects. A NaN or infinite value is masked and counted. What has a unit
            (``Quantity``) is converted to ``units``, and errors to the unit of x.
        x_err : array_like, shape broadcastable to x, optional
            Standard deviations, positive.
        mask : array_like of bool, shape (N, L) or (N, C, L), optional
            True for a real point; a 2-D mask holds for all channels.
        scalars : mapping of name to array_like of shape (N,), optional
            One number per object, such as ``redshift``.
        ids : sequence, optional
            Names of the objects; 0, 1, ... when not given.
        categories : mapping of name to sequence of str, optional
            The order of categories, as ``{"band": ["g", "r"]}``; default: sorted by name.
        units : mapping of str, optional
            Units wanted of ``x``, coordinates and scalars, as ``{"t": "d", "x": "mJy"}``.
        **coords : array_like, shape (L,) or (N, L), or a list of N arrays (L_i,)
            Coordinates such as ``t``, ``wavelength`` or ``band``; texts are categories, booleans
            flags.

        Returns
        -------
        Observations

        Examples
        --------
        >>> obs = Observations.from_arrays([[1.0, 2.0], [3.0, float("nan")]], 0.1, t=[0.0, 1.0])
        >>> len(obs), obs.n_masked.tolist()
        (2, [0, 1])
        """
        wanted = dict(units or {})
        x, wanted["x"] = split_unit("x", x, wanted.get("x"))
        x_err = split_unit("x_err", x_err, wanted["x"])[0]
        bare = {}
        for name, value in coords.items():
            bare[name], wanted[name] = split_unit(name, value, wanted.get(name))
        numbered = {}
        for name, value in (scalars or {}).items():
            numbered[name], wanted[name] = split_unit(name, value, wanted.get(name))
        packed = pack(x, x_err, mask, bare)
        _check_errors(packed)
        known = {k: v for k, v in wanted.items() if v is not None}
        return cls.from_flat(packed, numbered, ids, categories, known)

    @classmethod
    def from_flat(
        cls,
        packed: Packed,
        scalars: Mapping[str, ArrayLike],
        ids: Sequence[object] | None,
        categories: Categories | None = None,
        units: Mapping[str, str] | None = None,
    ) -> Observations:
        """Make Observations of points laid out object after object; what is not finite is masked.

        A point whose error is not positive counts as not finite.
        """
        n = len(packed.lengths)
        offsets = np.concatenate([[0], np.cumsum(packed.lengths)])
        finite = np.isfinite(packed.x)
        if packed.x_err is not None:
            finite &= np.isfinite(packed.x_err) & (packed.x_err > 0)
        keep = packed.mask & finite
        lost = np.concatenate([[0], np.cumsum((packed.mask & ~finite).sum(0))])
        named = {k: coordinate(k, v, (categories or {}).get(k)) for k, v in packed.points.items()}
        return cls(
            values=np.where(keep, packed.x, 0.0),
            errors=None if packed.x_err is None else np.where(keep, packed.x_err, 1.0),
            valid=keep,
            offsets=offsets,
            points={k: v for k, (v, _) in named.items()},
            scalars={k: _scalar(k, v, n) for k, v in scalars.items()},
            ids=_ids(ids, n),
            shared_grid=packed.shared_grid,
            n_masked=lost[offsets[1:]] - lost[offsets[:-1]],
            categories={k: names for k, (_, names) in named.items() if names is not None},
            units=dict(units or {}),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Index) -> Observations:
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
        )

    def __iter__(self) -> Iterator[Observations]:
        return (self[i] for i in range(len(self)))

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
    def owner(self) -> NDArray[np.int64]:
        """The object that each point belongs to, shape (n_points,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

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

    def chunks(self, n: int) -> Iterator[Observations]:
        """Yield successive parts of at most ``n`` objects."""
        if not n >= 1:
            raise ValueError(f"n must be at least 1 object, but is {n}.")
        return (self[i : i + n] for i in range(0, len(self), n))

    def like(self, categories: Categories, units: Mapping[str, str]) -> Observations:
        """Return the same data in other units, and with the codes of other lists of categories.

        Parameters
        ----------
        categories : mapping of name to sequence of str
            Of coordinates; each must name all that is found here.
        units : mapping of str
            Wanted of ``x``, coordinates and scalars. What has no unit is taken to be in it.
        """
        points, named = dict(self.points), dict(self.categories)
        for name, wanted in categories.items():
            if name in named and tuple(wanted) != named[name]:
                texts = np.array(named[name])[points[name]]
                points[name], named[name] = coordinate(name, texts, wanted)
        scale = {k: factor(self.units.get(k, v), v, k) for k, v in units.items()}
        changed = {k for k, v in scale.items() if v != 1.0}
        by = scale.get("x", 1.0)
        return replace(
            self,
            values=self.values * by,
            errors=None if self.errors is None else np.where(self.valid, self.errors * by, 1.0),
            points={k: v * scale[k] if k in changed else v for k, v in points.items()},
            scalars={k: v * scale[k] if k in changed else v for k, v in self.scalars.items()},
            categories=named,
            units=self.units | dict(units),
        )

    def _rows(self, index: Index) -> NDArray[np.int64]:
        return np.atleast_1d(np.arange(len(self))[index])


def _check_errors(packed: Packed) -> None:
    """Refuse errors of real points that are zero or negative."""
    if packed.x_err is None:
        return
    finite = np.isfinite(packed.x) & np.isfinite(packed.x_err) & packed.mask
    if np.any(finite & (packed.x_err <= 0)):
        raise ValueError(
            f"x_err must be positive, but has values down to {packed.x_err[finite].min():g}. "
            "Mask bad points with mask=, or give their errors as NaN."
        )


def _scalar(name: str, value: ArrayLike, n: int) -> NDArray[np.float64]:
    array = numbers(name, value)
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


def _tensor(array: NDArray) -> Tensor:
    """Turn (C, n, L) into a tensor (n, C, L)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(1, 0, 2)))
