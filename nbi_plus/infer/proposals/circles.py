"""Circles: where to cut a periodic parameter, so that no mode of an object lies on the cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.weights.summary import normalise

_N_BINS = 64
_KERNEL = 0.08  # width of the smoothing, as a share of the circle
_CUT_Z = 6.0  # a billionth of the circle lies further out, where rounding would decide the side
_NOWHERE = 99.0  # beyond the support of every prior


@dataclass(frozen=True)
class Cut:
    """Latent coordinates in which each object's circles are cut where it has no mass.

    A rotation by ``start`` keeps the uniform prior of a circle, so that ratios of densities to the
    prior are the same on both sides.

    Attributes
    ----------
    columns : tuple of int
        The periodic parameters.
    start : Tensor, shape (B, len(columns))
        Where the circle is cut, as a share of it.
    """

    columns: tuple[int, ...]
    start: Tensor

    @classmethod
    def of(cls, z: Tensor, weights: Tensor, columns: tuple[int, ...]) -> Cut:
        """Return the cuts where the smoothed weight of the draws z (B, S, D) is least."""
        u = torch.special.ndtr(z[..., list(columns)])
        bins = (u * _N_BINS).long().clamp(0, _N_BINS - 1)
        mass = torch.zeros(len(z), _N_BINS, len(columns), dtype=z.dtype, device=z.device)
        mass.scatter_add_(1, bins, weights[..., None].expand_as(u).contiguous())
        lag = torch.arange(_N_BINS, device=z.device, dtype=z.dtype) / _N_BINS
        lag = torch.minimum(lag, 1 - lag)
        kernel = torch.exp(-0.5 * (lag / _KERNEL).square())
        rolled = torch.stack([kernel.roll(i) for i in range(_N_BINS)])
        smooth = torch.einsum("ij,bjc->bic", rolled, mass)
        return cls(columns, (smooth.argmin(1) + 0.5) / _N_BINS)

    def to(self, z: Tensor) -> Tensor:
        """Return coordinates (B, S, D) of this cut."""
        return self._rotate(z, -self.start)

    def back(self, z: Tensor) -> Tensor:
        """Undo `to`."""
        return self._rotate(z, self.start)

    def select(self, rows: Tensor) -> Cut:
        """Return the cuts of some of the objects."""
        return Cut(self.columns, self.start[rows])

    def _rotate(self, z: Tensor, by: Tensor) -> Tensor:
        if not self.columns:
            return z
        at = list(self.columns)
        u = torch.special.ndtr(z[..., at]) + by[:, None]
        moved = torch.special.ndtri((u - u.floor()).clamp(1e-300, 1 - 2.0**-53))
        result = z.clone()
        result[..., at] = moved
        return result


def stretch(before: Tensor, after: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Return how much wider (..., D) each column is after a turn of the circles than before."""
    wider, at = torch.ones_like(before), list(columns)
    wider[..., at] = (0.5 * (after[..., at].square() - before[..., at].square())).exp()
    return wider


def change(before: Tensor, after: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Return what a log-density (...) before a turn of the circles gains to be one after it."""
    at = list(columns)
    return 0.5 * (before[..., at].square() - after[..., at].square()).sum(-1)


@dataclass(frozen=True)
class CutProposal:
    """A proposal fitted in the coordinates of a cut, as a density of ordinary latent draws."""

    inner: LatentProposal
    cut: Cut

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D); those at the very cut are nowhere: their weight is zero."""
        moved = self.inner.draw(keys, n, seed, stage)
        at_cut = (moved[..., list(self.cut.columns)].abs() > _CUT_Z).any(-1, keepdim=True)
        return torch.where(at_cut, _NOWHERE, self.cut.back(moved))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities (B, S) of draws z (B, S, D)."""
        moved, at = self.cut.to(z), list(self.cut.columns)
        moved[..., at] = moved[..., at].clamp(-_CUT_Z, _CUT_Z)
        return self.inner.log_prob(moved) + change(moved, z, self.cut.columns)

    def select(self, rows: Tensor) -> CutProposal:
        """Return the proposals of some of the objects."""
        return CutProposal(self.inner.select(rows), self.cut.select(rows))

    def wider(self, by: float) -> CutProposal:
        """Return the same with a wider inner proposal."""
        return CutProposal(self.inner.wider(by), self.cut)


def unwrapped(z: Tensor, log_weights: Tensor, circles: tuple[int, ...]) -> Tensor:
    """Return coordinates (B, S, D) in which no object's posterior is torn apart by its circles.

    Parameters
    ----------
    z : Tensor, shape (B, S, D)
    log_weights : Tensor, shape (B, S)
    circles : tuple of int
        The periodic parameters.
    """
    if not circles:
        return z
    inside = log_weights > -torch.inf
    weights = normalise(log_weights)
    whole = torch.where(inside[..., None], z, 0.0)
    return Cut.of(whole, weights, circles).to(whole)


def circular_columns(periods: tuple[float | None, ...]) -> tuple[int, ...]:
    """Return which latent columns are circles."""
    return tuple(i for i, period in enumerate(periods) if period is not None)
