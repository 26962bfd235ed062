"""Peaks: where the densities of many objects are highest, and how wide they are there.

Weights judge the places that a proposal visited; this looks for places. From each start uphill,
then the distinct optima, then the curvature at each.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.arguments import of_kind, seed_of
from nbi_plus.batched import pick
from nbi_plus.infer.proposals.circles import Cut, change, columns_of, stretch
from nbi_plus.infer.samplers.ascent import Ascent, AutogradSlope, DifferenceSlope, Slope
from nbi_plus.infer.samplers.gradients import Gradients, LogProb
from nbi_plus.problem.random import content_keys, keyed_normal
from nbi_plus.torch_state import door

_JITTER = 1e-4  # of a start: none stands on a saddle
_SAME = 4.0  # squared distance of two places of one peak, in the shape of the higher one
_SAME_AT_FIRST = 1.0  # the same in a rougher shape
_SAME_HEIGHT = 0.1
_FAR_APART = 25.0  # as _SAME: ends on the flank of a peak must not crowd out lower peaks elsewhere
_ROUNDS = 3  # of curvature at the ends, and of going on from there
_FAR = 0.01  # what one more step would gain, by the curvature: such ends are no tops
PLACES = ("z", "log_prob", "factor", "settled")
_THINNEST = 1e-13  # least curvature, of the largest: less is rounding, and no Cholesky factor


@dataclass(frozen=True)
class PeaksConfig:
    """Chosen state of the search.

    Attributes
    ----------
    max_steps : int
        Of the way up from each start.
    max_peaks : int
        Kept of each object, the highest first.
    depth : float
        Peaks that are lower than the highest by more than this are left out.
    curvature_min : float
        Least curvature along any direction. In the latent space half that of the prior: what the
        data leave open is as wide as the prior allows.
    max_gradients : float
        Of each object.
    """

    max_steps: int = 120
    max_peaks: int = 16
    depth: float = 25.0
    curvature_min: float = 0.5
    max_gradients: float = math.inf

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_peaks", "depth", "curvature_min", "max_gradients"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, but is {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Peaks:
    """Distinct optima of B objects, the highest first.

    Attributes
    ----------
    z : Tensor, shape (B, M, D)
        NaN where an object has fewer than M.
    log_prob : Tensor, shape (B, M)
        -inf there.
    factor : Tensor, shape (B, M, D, D)
        Lower Cholesky factors of the covariance (Laplace); identity there.
    n_gradients : Tensor of int64, shape (B,)
        Gradients; evaluations of the density where there are none.
    settled : Tensor of bool, shape (B, M)
        Whether the top was reached; else the way up was not over.
    """

    z: Tensor
    log_prob: Tensor
    factor: Tensor
    n_gradients: Tensor
    settled: Tensor

    @property
    def found(self) -> Tensor:
        """Which places are peaks, bool (B, M)."""
        return self.log_prob > -math.inf

    @property
    def log_mass(self) -> Tensor:
        """Logarithm of the integral of each peak's normal approximation, (B, M)."""
        volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.log_prob + volume + 0.5 * self.z.shape[-1] * math.log(2 * math.pi)

    @classmethod
    def none(cls, n: int, n_peaks: int, like: Tensor) -> Peaks:
        """Return room for peaks of n objects, which have none; ``like`` (..., D) is as places."""
        d = like.shape[-1]
        options = {"dtype": like.dtype, "device": like.device}
        return cls(
            torch.full((n, n_peaks, d), math.nan, **options),
            torch.full((n, n_peaks), -math.inf, **options),
            torch.eye(d, **options).repeat(n, n_peaks, 1, 1),
            torch.zeros(n, dtype=torch.int64, device=like.device),
            torch.zeros(n, n_peaks, dtype=torch.bool, device=like.device),
        )

    def put(self, rows: Tensor, other: Peaks) -> None:
        """Put the peaks of other objects, no more than there is room for, into some rows."""
        m = min(other.z.shape[1], self.z.shape[1])
        for name in PLACES:
            getattr(self, name)[rows, :m] = getattr(other, name)[:, :m]
        self.n_gradients[rows] = other.n_gradients

    def beside(self, other: Peaks) -> Peaks:
        """Return these and other places of the same objects, those that are there first."""
        there = torch.cat([self.found, other.found], 1)
        order = (~there).long().argsort(stable=True, dim=1)
        every = torch.arange(len(order), device=order.device)[:, None]
        both = {
            k: torch.cat([getattr(self, k), getattr(other, k)], 1)[every, order] for k in PLACES
        }
        return Peaks(**both, n_gradients=self.n_gradients + other.n_gradients)

    def select(self, rows: Tensor) -> Peaks:
        """Return those of some of the objects."""
        return pick(self, rows)


@door
@torch.no_grad()
def find(
    log_prob: LogProb, starts: Tensor, *, seed: int = 0, circles: tuple[int, ...] = (),
    differentiable: bool = True, rows: int | None = None, max_seconds: float = math.inf,
    config: PeaksConfig | None = None,
) -> Peaks:  # fmt: skip
    """Return the peaks that are uphill from the starts of many objects.

    Parameters
    ----------
    log_prob : callable
        ``log_prob(z, index)``: z (b, C, D) of the objects ``index`` (b,) -> (b, C). Where it is not
        finite the density is zero.
    starts : Tensor, shape (B, S, D)
    seed : int
    circles : tuple of int
        Columns of z of which the standard normal distribution function is an angle, as a share of
        the circle.
    differentiable : bool
        Whether torch can differentiate ``log_prob``. Without gradients every step costs 2 D + 1
        evaluations, and every peak 4 D^2 more.
    rows : int, optional
        Rows of one call of ``log_prob`` at most: bounds memory.
    max_seconds : float
        After which the ways up end where they are.
    config : PeaksConfig, optional

    Returns
    -------
    Peaks

    Examples
    --------
    >>> def log_prob(z, index):
    ...     up, down = (-0.5 * ((z - m) / 0.1).square().sum(-1) for m in (1.0, -1.0))
    ...     return torch.logaddexp(up, down - 1.0)
    >>> starts = torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(0)).double()
    >>> peaks = find(log_prob, starts)
    >>> peaks.z.round(decimals=3).tolist(), peaks.factor[0, 0].abs().round(decimals=3).tolist()
    ([[[1.0, 1.0], [-1.0, -1.0]]], [[0.1, 0.0], [0.0, 0.1]])
    """
    config = PeaksConfig() if config is None else config
    seed = seed_of("seed", seed)
    of_kind("starts", starts, Tensor, "Give a torch tensor.")
    if starts.ndim != 3 or not starts.shape[1] or not starts.dtype.is_floating_point:
        raise ValueError(
            f"starts must have shape (B, S, D) and be of floating point, but are {starts.dtype} of "
            f"shape {tuple(starts.shape)}."
        )
    starts = starts.to(torch.float64)
    search = _Search.of(log_prob, starts, circles, differentiable, rows, config)
    search = replace(search, deadline=time.perf_counter() + max_seconds)
    if not starts.isfinite().any():
        raise ValueError("starts must hold finite places, but hold none.")
    return search(seed)


@dataclass(frozen=True)
class _Search:
    """B objects with S starts each, whose rows are numbered one object after the other.

    Every row has its own coordinates v, in which its circles are cut opposite its start.
    """

    slope: Slope
    starts: Tensor
    cut: Cut
    config: PeaksConfig
    differentiable: bool
    deadline: float = math.inf

    @classmethod
    def of(
        cls, log_prob: LogProb, starts: Tensor, circles: tuple[int, ...], differentiable: bool,
        rows: int | None, config: PeaksConfig,
    ) -> _Search:  # fmt: skip
        n, n_starts, _ = starts.shape
        flat = starts.nan_to_num(nan=0.0).flatten(0, 1)
        start = torch.special.ndtr(columns_of(flat, circles)) - 0.5
        cut = Cut(circles, start - start.floor())
        owner = torch.arange(n, device=starts.device).repeat_interleave(n_starts)

        def density(v: Tensor, which: Tensor) -> Tensor:
            if not circles:
                return log_prob(v, owner[which])
            z = cut.select(which).back(v)
            return log_prob(z, owner[which]) + change(z, v, circles)

        n_rows = rows or launch.of(starts.device).gradient_rows
        slope = (
            AutogradSlope(Gradients(density, n_rows))
            if differentiable
            else DifferenceSlope(density, n_rows)
        )
        return cls(slope, starts, cut, config, differentiable)

    def __call__(self, seed: int) -> Peaks:
        n, n_starts, d = self.starts.shape
        if self.differentiable:
            own = self.starts.nan_to_num(nan=0.0).flatten(0, 1)
            every = torch.arange(n * n_starts, device=own.device)
            self.slope.gradients.check(own[:, None], every)
        ascent = self._begun(seed)
        factor = torch.eye(d, dtype=self.starts.dtype, device=self.starts.device)
        factor = factor.repeat(n * n_starts, 1, 1)
        kept, shaped = torch.zeros_like(ascent.stopped), torch.zeros_like(ascent.stopped)
        going = torch.ones_like(kept)
        for i in range(_ROUNDS):
            # with the exact curvature fewer steps are enough, and a cusp has no end
            self._ascend(ascent, going, max(self.config.max_steps // (2 if i else 1), 1))
            rough = torch.linalg.cholesky_ex(ascent.inverse)[0]
            near = self._distinct(ascent, rough, _SAME_AT_FIRST, _SAME_HEIGHT)
            far = self._distinct(ascent, rough, _FAR_APART, math.inf)
            first = torch.cat([near, far], 1)
            among = torch.zeros_like(kept).index_fill(0, first[first >= 0], value=True)
            kept = torch.where(going, among, kept)
            rows = (kept & ~shaped).nonzero()[:, 0]
            if not len(rows):
                break
            left = self._shape(ascent, rows, rough[rows], factor)
            if time.perf_counter() > self.deadline:
                left = left[:0]
            shaped[rows] = True
            shaped[left] = False
            # objects that are done stay as they are, whatever others still need
            going = torch.zeros(n, dtype=torch.bool, device=kept.device)
            going = going.index_fill(0, left // n_starts, value=True).repeat_interleave(n_starts)
            if not len(left):
                break
        ascent.log_prob = torch.where(kept, ascent.log_prob, -math.inf)
        chosen = self._distinct(ascent, factor, _SAME, math.inf)
        return self._gathered(ascent, factor, chosen)

    def _begun(self, seed: int) -> Ascent:
        """Return all rows at their starts."""
        n, n_starts, d = self.starts.shape
        flat = self.starts.nan_to_num(nan=0.0).flatten(0, 1)
        v = self.cut.to(flat[:, None])[:, 0]
        v = v + _JITTER * keyed_normal(seed, "peaks", content_keys(flat), (d,))
        ascent = Ascent.begin(self.slope, v)
        ascent.log_prob[~self.starts.isfinite().all(-1).flatten()] = -math.inf
        ascent.stopped |= ascent.log_prob == -math.inf
        return ascent

    def _ascend(self, ascent: Ascent, going: Tensor, n_steps: int) -> None:
        """Move the rows that are ``going`` (bool) to where their way up ends, or so many steps."""
        n, n_starts, d = self.starts.shape
        most = self.config.max_gradients / self.slope.cost(d)
        for _ in range(n_steps):
            if time.perf_counter() > self.deadline:
                break
            moving = ascent.moving & going
            if most < math.inf:
                spent = ascent.n_slopes.view(n, n_starts).sum(1)
                moving &= (spent < most).repeat_interleave(n_starts)
            rows = moving.nonzero()[:, 0]  # a GPU is waited for here, and so but once a step
            if not len(rows):
                break
            ascent.step(self.slope, rows)

    def _shape(self, ascent: Ascent, rows: Tensor, rough: Tensor, factor: Tensor) -> Tensor:
        """Find the factors of some rows, move these to their tops, and return who has far to go.

        Curvatures are differences of gradients along the axes of the rough factor, where they are
        about one.
        """
        k, d = len(rows), rough.shape[1]
        v, height, grad = ascent.v[rows], ascent.log_prob[rows], ascent.grad[rows]
        widest = self.config.curvature_min**-0.5
        size = rough.norm(dim=1)  # of every axis
        rough = rough * (widest / size.clamp(min=1e-300)).clamp(max=1.0)[:, None]
        away = self.slope.step * rough.mT
        both = torch.cat([v[:, None] + away, v[:, None] - away], 1)
        near = rows.repeat_interleave(2 * d)
        inverse = (rough @ rough.mT).repeat_interleave(2 * d, 0)
        value, slopes = self.slope(both.flatten(0, 1), near, inverse)
        up, down = (slopes.view(k, 2 * d, d) @ rough).split(d, 1)
        bent = -(up - down) / (2 * self.slope.step)
        usable = value.isfinite().view(k, -1).all(1) & bent.isfinite().flatten(1).all(1)
        eye = torch.eye(d, dtype=v.dtype, device=v.device)
        bent = torch.where(usable[:, None, None], 0.5 * (bent + bent.mT), eye)
        covariance = self._covariance(bent, rough)
        step = (covariance @ grad[..., None])[..., 0]
        top, top_grad = self.slope(v + step, rows, covariance)
        better = top > height
        ascent.v[rows] = torch.where(better[:, None], v + step, v)
        ascent.log_prob[rows] = torch.where(better, top, height)
        grad = torch.where(better[:, None], top_grad, grad)
        ascent.grad[rows], ascent.inverse[rows] = grad, covariance
        ascent.n_slopes[rows] += 2 * d + 1
        factor[rows] = torch.linalg.cholesky(covariance)
        decrement = 0.5 * (grad * (covariance @ grad[..., None])[..., 0]).sum(-1)
        far = decrement > _FAR
        ascent.settled[rows] = ascent.settled[rows] & ~far
        return rows[far & ~ascent.stopped[rows]]

    def _covariance(self, bent: Tensor, rough: Tensor) -> Tensor:
        """Return covariances of curvatures (k, D, D) in the coordinates of a factor.

        No direction is wider than the least curvature allows, and none that bends upwards narrow.
        """
        eye = torch.eye(rough.shape[1], dtype=rough.dtype, device=rough.device)
        inner = torch.linalg.solve_triangular(rough, eye, upper=False)
        precision = inner.mT @ bent @ inner
        finite = precision.isfinite().flatten(1).all(1)[:, None, None]
        precision = torch.where(finite, precision, eye)
        level, axes = torch.linalg.eigh(0.5 * (precision + precision.mT))
        level = level.clamp(min=self.config.curvature_min)
        level = torch.maximum(level, _THINNEST * level.amax(1, keepdim=True))
        covariance = (axes / level[:, None]) @ axes.mT
        return 0.5 * (covariance + covariance.mT)

    def _distinct(self, ascent: Ascent, factor: Tensor, same: float, level: float) -> Tensor:
        """Return the rows (B, M) of distinct peaks, the highest first; -1 where there are no more.

        Places are one peak if they are near in the shape of the higher one, and about as high.
        """
        n, n_starts, d = self.starts.shape
        z = self.cut.back(ascent.v[:, None]).view(n, n_starts, d)
        height = ascent.log_prob.view(n, n_starts)
        first = torch.arange(n, device=z.device) * n_starts
        lowest = height.amax(1, keepdim=True) - self.config.depth
        left = torch.where(height >= lowest, height, -math.inf)
        chosen = []
        for _ in range(min(self.config.max_peaks, n_starts)):
            best, at = left.max(1)
            if bool((best == -math.inf).all()):
                break
            row = first + at
            chosen.append(torch.where(best > -math.inf, row, -1))
            turned = self.cut.select(row)
            here = turned.to(z.gather(1, at[:, None, None].expand(-1, 1, d)))
            away = (turned.to(z) - here).transpose(1, 2)
            u = torch.linalg.solve_triangular(factor[row], away, upper=False)
            one = (u.square().sum(1) < same) & (height >= best[:, None] - level)
            left = torch.where(one, -math.inf, left).scatter(1, at[:, None], -math.inf)
        if not chosen:
            return torch.full((n, 1), -1, device=z.device)
        return torch.stack(chosen, 1)

    def _gathered(self, ascent: Ascent, factor: Tensor, chosen: Tensor) -> Peaks:
        """Return the chosen rows in the coordinates that the starts came in."""
        d = self.starts.shape[2]
        there, rows = chosen >= 0, chosen.clamp(min=0).flatten()
        v, turned = ascent.v[rows][:, None], self.cut.select(rows)
        z = turned.back(v)[:, 0]
        v = v[:, 0]
        shape = stretch(v, z, self.cut.columns)[..., None] * factor[rows]
        log_prob = ascent.log_prob[rows] + change(v, z, self.cut.columns)
        eye = torch.eye(d, dtype=z.dtype, device=z.device)
        yes = there.flatten()
        m = chosen.shape
        return Peaks(
            z=torch.where(yes[:, None], z, math.nan).view(*m, d),
            log_prob=torch.where(yes, log_prob, -math.inf).view(m),
            factor=torch.where(yes[:, None, None], shape, eye).view(*m, d, d),
            n_gradients=(ascent.n_slopes * self.slope.cost(d)).view(len(self.starts), -1).sum(1),
            settled=(ascent.settled[rows] & yes).view(m),
        )
