"""Circles: where to cut periodic parameters, or sums of two, so that no mode lies on the cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.weights.summary import normalise

_N_BINS = 64
_KERNEL = 0.08  # width of the smoothing, as a share of the circle
_CUT_Z = 6.0  # a billionth of the circle lies further out, where rounding would decide the side
_NOWHERE = 99.0  # beyond the support of every prior
_N_HARMONICS = 8  # of a circle: what is narrower than an eighth of it counts as narrow


@dataclass(frozen=True)
class Cut:
    """Latent coordinates in which each object's circles are cut where it has no mass.

    Sums of circles and rotations by ``start`` keep the uniform prior of each, so that ratios of
    densities to the prior are the same on both sides.

    Attributes
    ----------
    columns : tuple of int
        The periodic parameters.
    start : Tensor, shape (B, C) for C columns
        Where the circle is cut, as a share of it.
    sums : Tensor, shape (B, C, C), optional
        What stands in place of circle i is circle i plus ``sums[:, i, j]`` times circle j: +-1 for
        one j that itself stays, else 0. Where two angles are loose and their sum is known.
    """

    columns: tuple[int, ...]
    start: Tensor
    sums: Tensor | None = None

    @classmethod
    def of(cls, z: Tensor, weights: Tensor, columns: tuple[int, ...], *, sums: bool = False) -> Cut:
        """Return the cuts where the smoothed weight of the draws z (B, S, D) is least.

        With ``sums``, a sum or difference of two circles that is narrower than both takes the place
        of the looser one.
        """
        u = torch.special.ndtr(columns_of(z, columns))
        summed = _narrow_sums(u, weights) if sums and len(columns) > 1 else None
        if summed is not None:
            u = u + u @ summed.mT
            u = u - u.floor()
        bins = (u * _N_BINS).long().clamp(0, _N_BINS - 1)
        mass = torch.zeros(len(z), _N_BINS, len(columns), dtype=z.dtype, device=z.device)
        mass.scatter_add_(1, bins, weights[..., None].expand_as(u).contiguous())
        lag = torch.arange(_N_BINS, device=z.device, dtype=z.dtype) / _N_BINS
        lag = torch.minimum(lag, 1 - lag)
        kernel = torch.exp(-0.5 * (lag / _KERNEL).square())
        rolled = torch.stack([kernel.roll(i) for i in range(_N_BINS)])
        smooth = torch.einsum("ij,bjc->bic", rolled, mass)
        return cls(columns, (smooth.argmin(1).to(smooth) + 0.5) / _N_BINS, summed)

    def to(self, z: Tensor) -> Tensor:
        """Return coordinates (B, S, D) of this cut."""
        if not self.columns:
            return z
        u = torch.special.ndtr(columns_of(z, self.columns))
        if self.sums is not None:
            u = u + u @ self.sums.mT
        return self._with_circles(z, u - self.start[:, None])

    def back(self, z: Tensor) -> Tensor:
        """Undo `to`."""
        if not self.columns:
            return z
        u = torch.special.ndtr(columns_of(z, self.columns)) + self.start[:, None]
        if self.sums is not None:
            u = u - u @ self.sums.mT
        return self._with_circles(z, u)

    def select(self, rows: Tensor) -> Cut:
        """Return the cuts of some of the objects."""
        return Cut(self.columns, self.start[rows], None if self.sums is None else self.sums[rows])

    def _with_circles(self, z: Tensor, u: Tensor) -> Tensor:
        """Return z with its circles at u (B, S, C), in turns."""
        result = z.clone()
        turned = (u - u.floor()).clamp(1e-300, 1 - 2.0**-53)
        _set_columns(result, self.columns, torch.special.ndtri(turned))
        return result


def _narrow_sums(u: Tensor, weights: Tensor) -> Tensor | None:
    """Return `Cut.sums` for circles u (B, S, C), a share each; None where no object has any.

    Narrowness is the power of the first harmonics: 0 of a uniform circle, `_N_HARMONICS` of a
    point.
    """
    n, _, n_circles = u.shape
    order = torch.arange(1, _N_HARMONICS + 1, device=u.device, dtype=u.dtype)

    def narrowness(share: Tensor) -> Tensor:
        turn = 2 * math.pi * order * share[..., None]
        parts = [(weights[..., None] * f).sum(1).square() for f in (turn.cos(), turn.sin())]
        return (parts[0] + parts[1]).sum(1)

    own = torch.stack([narrowness(u[..., i]) for i in range(n_circles)], 1)
    pairs = [(i, j, sign) for i in range(n_circles) for j in range(i) for sign in (1.0, -1.0)]
    tried = torch.stack([narrowness(u[..., i] + sign * u[..., j]) for i, j, sign in pairs], 1)
    sums, free = u.new_zeros(n, n_circles, n_circles), torch.ones_like(own, dtype=torch.bool)
    every = torch.arange(n, device=u.device)
    first, second, signs = (torch.tensor(v, device=u.device) for v in zip(*pairs, strict=True))
    for _ in range(n_circles // 2):  # pairs share no circle, so that sums are undone by differences
        may = free[:, first] & free[:, second]
        may &= tried > torch.maximum(own[:, first], own[:, second])
        best, at = torch.where(may, tried, -math.inf).max(1)
        i, j = first[at], second[at]
        taken = best > -math.inf
        loose = own[every, i] <= own[every, j]
        to, by = torch.where(loose, i, j), torch.where(loose, j, i)
        sums[every, to, by] += torch.where(taken, signs[at].to(u.dtype), 0.0)
        free[every, i] &= ~taken
        free[every, j] &= ~taken
    return sums if bool(sums.any()) else None


def columns_of(z: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Return some columns (..., C) of z (..., D); a list as an index would be sent to a GPU."""
    return torch.stack([z[..., column] for column in columns], -1) if columns else z[..., :0]


def _set_columns(z: Tensor, columns: tuple[int, ...], values: Tensor) -> None:
    for column, own in zip(columns, values.unbind(-1), strict=True):
        z[..., column] = own


def stretch(before: Tensor, after: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Return how much wider (..., D) each column is after a turn of the circles than before."""
    wider = torch.ones_like(before)
    for at in columns:
        wider[..., at] = (0.5 * (after[..., at].square() - before[..., at].square())).exp()
    return wider


def change(before: Tensor, after: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Return what a log-density (...) before a turn of the circles gains to be one after it."""
    old, new = columns_of(before, columns), columns_of(after, columns)
    return 0.5 * (old.square() - new.square()).sum(-1)


@dataclass(frozen=True)
class CutProposal:
    """A proposal fitted in the coordinates of a cut, as a density of ordinary latent draws."""

    inner: LatentProposal
    cut: Cut

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D); those at the very cut are nowhere: their weight is zero."""
        moved = self.inner.draw(keys, n, seed, stage)
        at_cut = (columns_of(moved, self.cut.columns).abs() > _CUT_Z).any(-1, keepdim=True)
        return torch.where(at_cut, _NOWHERE, self.cut.back(moved))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities (B, S) of draws z (B, S, D)."""
        moved = self.cut.to(z)
        inside = columns_of(moved, self.cut.columns).clamp(-_CUT_Z, _CUT_Z)
        _set_columns(moved, self.cut.columns, inside)
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
