"""Cadences: when, how well and in which band simulated objects are observed.

Each simulation imitates a real object of a bank, whose times, errors, bands and gaps stay together,
and varies it, so that a network does not learn the bank by heart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.random import keyed_uniform
from nbi_plus.problem.simulator.dense import DenseGrid

TIME = "t"  # the coordinate that may be shifted
_LEAST_POINTS = 3  # that dropping leaves, of an object that has them


@dataclass(frozen=True)
class Perturbation:
    """How far a simulation's cadence may differ from that of the object it imitates.

    Each kind of change is made to a random half of the simulations, independently.

    Attributes
    ----------
    drop : float
        Largest share of the points left out at random.
    gap : float
        Largest share of the points left out in a row.
    error_scale : float
        Largest factor that all errors of an object are multiplied with, or divided by.
    shift : float
        Largest shift of all times of an object, as a share of the span from its first to its last.
    """

    drop: float = 0.3
    gap: float = 0.2
    error_scale: float = 1.5
    shift: float = 0.02

    def __post_init__(self) -> None:
        for name in ("drop", "gap"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), but is {getattr(self, name)!r}.")
        if not 0 <= self.shift <= 1:
            raise ValueError(f"shift must lie in [0, 1], but is {self.shift!r}.")
        if not 1 <= self.error_scale < math.inf:
            raise ValueError(f"error_scale must be at least 1, but is {self.error_scale!r}.")

    def apply(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Return objects with some points masked and their errors scaled; times stay.

        Parameters
        ----------
        batch : Batch
        rng : torch.Generator
            On the device of the batch.
        """
        n, _, length = batch.mask.shape

        def some(low: float, high: float) -> Tensor:
            u, chosen = torch.rand((2, n, 1), generator=rng, device=batch.mask.device)
            return torch.where(chosen < 0.5, low + (high - low) * u, 0.0)

        seen = batch.mask.any(1)
        keep = torch.rand((n, length), generator=rng, device=seen.device) >= some(0, self.drop)
        place = (seen.cumsum(1) - 1) / seen.sum(1, keepdim=True).clamp(min=1)
        width = some(0, self.gap)
        begin = torch.rand((n, 1), generator=rng, device=seen.device) * (1 + width) - width
        keep &= (place < begin) | (place >= begin + width)
        enough = (seen & keep).sum(1, keepdim=True) >= _LEAST_POINTS
        mask = batch.mask & (keep | ~enough)[:, None]
        factor = some(-1, 1).mul(math.log(self.error_scale)).exp()[..., None]
        x_err = None if batch.x_err is None else torch.where(mask, batch.x_err * factor, 1.0)
        return replace(batch, mask=mask, x_err=x_err).with_data(batch.x)


@dataclass(frozen=True)
class Cadences:
    """A bank of real objects, and how simulations imitate them.

    Attributes
    ----------
    bank : Batch
        Errors, masks, coordinates and scalars.
    fixed : bool
        Whether a simulation was made at its owner's coordinates, and must keep them; otherwise each
        imitates a random object at every epoch.
    perturbation : Perturbation or None
    grid : DenseGrid or None
        Where simulations were made, to be interpolated at the points of the object.
    any_length : bool
        Whether the network takes objects of any length.
    """

    bank: Batch
    fixed: bool = False
    perturbation: Perturbation | None = None
    grid: DenseGrid | None = None
    any_length: bool = True
    _spans: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_spans", spans(self.bank))

    def __len__(self) -> int:
        return len(self.bank)

    def to(self, device: torch.device, dtype: torch.dtype) -> Cadences:
        """Return the same on another device."""
        grid = None if self.grid is None else self.grid.to(device)
        return replace(self, bank=self.bank.to(device, dtype), grid=grid)

    def imitate(
        self, owner: Tensor, shift: Tensor | None, model: Tensor, rng: torch.Generator
    ) -> tuple[Batch, Tensor]:
        """Return the conditions of each simulation, and its noise-free data at their points.

        Parameters
        ----------
        owner : Tensor of int64, shape (n,)
            Object that each simulation was made for.
        shift : Tensor or None, shape (n,)
            What its times were shifted by.
        model : Tensor, shape (n, C, L)
        rng : torch.Generator

        Returns
        -------
        conditions : Batch
        model : Tensor, shape (n, C, L)
        """
        device = model.device
        pick = torch.randint(len(self.bank), owner.shape, generator=rng, device=device)
        whom = owner if self.fixed else pick
        seen = self.bank.select(whom)
        if self.grid is None:
            seen = seen if shift is None else _moved(seen, shift)
        else:
            if self.bank.scalars:  # it was simulated with these
                seen = replace(seen, scalars=self.bank.select(owner).scalars)
            seen = self._moved_on_grid(seen, whom, rng)
            model = self.grid.interpolate(model, seen)
        if self.perturbation is not None:
            seen = self.perturbation.apply(seen, rng)
        return trimmed(seen, model) if self.any_length and _own_points(seen) else (seen, model)

    def _moved_on_grid(self, seen: Batch, whom: Tensor, rng: torch.Generator) -> Batch:
        """Return the objects with their times shifted anew, where the grid still covers them."""
        if self.perturbation is None or not _own_times(seen):
            return seen
        u = torch.rand(whom.shape, generator=rng, device=whom.device)
        shift = shift_by(u, self._spans[whom], self.perturbation.shift)
        inside = self.grid.covers(seen.coords[TIME] + shift[:, None])
        return _moved(seen, torch.where(inside, shift, 0.0))


def _own_points(batch: Batch) -> bool:
    return any(v.ndim == 2 for v in batch.coords.values())


def _own_times(batch: Batch) -> bool:
    return TIME in batch.coords and batch.coords[TIME].ndim == 2


def _moved(batch: Batch, shift: Tensor) -> Batch:
    """Return the objects with their times shifted, if they have times of their own."""
    if not _own_times(batch):
        return batch
    return replace(batch, coords=batch.coords | {TIME: batch.coords[TIME] + shift[:, None]})


def spans(batch: Batch) -> Tensor:
    """Return how long each object was observed, shape (n,); 0 where times are shared."""
    if not _own_times(batch):
        return torch.zeros(len(batch), dtype=torch.float64, device=batch.mask.device)
    t, seen = batch.coords[TIME], batch.mask.any(1)
    first = t.masked_fill(~seen, math.inf).amin(1)
    last = t.masked_fill(~seen, -math.inf).amax(1)
    return torch.where(seen.any(1), last - first, 0.0)


def shift_by(u: Tensor, span: Tensor, share: float) -> Tensor:
    """Return shifts of times of uniform numbers: none for half of them, else at most ``share``."""
    return torch.where(u < 0.5, (4 * u - 1) * share * span, 0.0)


def shifts(bank: Batch, rows: Tensor, owner: Tensor, share: float, seed: int) -> Tensor:
    """Return the shifts, shape (n,), of numbered simulations made at their owners' times."""
    return shift_by(keyed_uniform(seed, "shift", rows, ()), spans(bank)[owner], share)


def trimmed(batch: Batch, model: Tensor) -> tuple[Batch, Tensor]:
    """Return the same without the steps at the end that no object has.

    Not on a GPU, where looking would wait for it and the steps cost little.
    """
    if model.device.type != "cpu":
        return batch, model
    used = batch.mask.any(0).any(0).nonzero()
    end = int(used[-1]) + 1 if len(used) else 1
    if end == model.shape[-1]:
        return batch, model
    shorter = replace(
        batch,
        x=batch.x[..., :end],
        x_err=None if batch.x_err is None else batch.x_err[..., :end],
        mask=batch.mask[..., :end],
        coords={k: v[..., :end] for k, v in batch.coords.items()},
    )
    return shorter, model[..., :end]
