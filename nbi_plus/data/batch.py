"""Batch: some objects' data on one device, padded to one length."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


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
        Coordinates, whose type says what they are: floats such as ``t``, int64 codes of categories
        such as ``band``, bool flags such as ``upper_limit``. One row is shared by all objects where
        they share their grid. The padding repeats an object's last point, where a simulator can be
        evaluated.
    scalars : dict of Tensor, shape (n,)
        One number per object, such as a redshift.
    categories : dict of tuple of str
        The names behind the codes of a coordinate.
    """

    x: Tensor
    x_err: Tensor | None
    mask: Tensor
    coords: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Tensor] = field(default_factory=dict)
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, index: Tensor | slice) -> Batch:
        """Return the objects at ``index``."""
        return replace(
            self,
            x=self.x[index],
            x_err=None if self.x_err is None else self.x_err[index],
            mask=self.mask[index],
            coords={k: v if v.ndim == 1 else v[index] for k, v in self.coords.items()},
            scalars={k: v[index] for k, v in self.scalars.items()},
        )

    def cut(self, length: int) -> Batch:
        """Return the first ``length`` steps, beyond which the objects must have no points."""
        return replace(
            self,
            x=self.x[..., :length],
            x_err=None if self.x_err is None else self.x_err[..., :length],
            mask=self.mask[..., :length],
            coords={k: v[..., :length] for k, v in self.coords.items()},
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Batch:
        """Return the batch on another device; ``dtype`` changes ``x`` and ``x_err`` alone."""
        return replace(
            self,
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

    @property
    def coverage(self) -> Tensor:
        """Each channel's mean log error, NaN without points, and the number of points.

        Shape (n, C + 1), float64; the errors are 0 where they are not known.
        """
        n_points = self.mask.sum(-1).to(torch.float64)
        log_err = torch.zeros_like(n_points)
        if self.x_err is not None:
            log_err = (self.x_err.to(torch.float64).log() * self.mask).sum(-1) / n_points
        return torch.cat([log_err, n_points.sum(-1, keepdim=True)], -1)

    def arguments(self) -> dict[str, Tensor]:
        """Return what a simulator may ask for by name: coordinates and scalars."""
        return {**self.coords, **self.scalars}

    def per_object(self) -> frozenset[str]:
        """Return the names among `arguments` that have one row per object."""
        rows = {k for k, v in self.coords.items() if v.ndim == 2}
        return frozenset(rows | set(self.scalars))
