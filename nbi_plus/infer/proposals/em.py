"""Expectation and maximisation of mixtures of normals, as products of matrices.

The log-density of a normal is linear in the features (1, x, x x^T), and so are the mass, the mean
and the scatter of what it is responsible for: a step is one product with the features of all draws,
and another with their transpose. Of whitened draws, nothing is lost by that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from nbi_plus.batched import join, pick
from nbi_plus.infer.weights.resample import systematic_resample

_FLOOR = 1e-4  # variance below which no component falls, in whitened units
_EMPTY = 1e-4  # share that keeps an emptied component alive
_TINY = 1e-12  # mass that every component has at the origin
_EVERY = 3  # steps between two looks at the likelihood
_FEW = 0.7  # of the objects of a batch, below which those that ended are taken out of it
TOLERANCE = 1e-4  # rise of the mean log-density in one step; two that part rise by more


@dataclass(frozen=True)
class FeaturedDraws:
    """Distinct whitened draws of B objects, what each counts, and their features.

    Attributes
    ----------
    features : Tensor, shape (B, P, S)
        1, the D coordinates, and their products x_i x_j with i <= j.
    counts : Tensor, shape (B, S)
        Shares of all draws; zero where an object has fewer than S.
    prior : Tensor, shape (B,)
        What the shared covariance counts in that of a component: D + 2 effective draws.
    """

    features: Tensor
    counts: Tensor
    prior: Tensor

    @classmethod
    def resampled(cls, white: Tensor, weights: Tensor, n: int, comb: Tensor) -> FeaturedDraws:
        """Return ``n`` draws of equal weight from weighted ones (B, S, D), each of them once."""
        n_draws, d = white.shape[1:]
        ess = weights.sum(1).square() / weights.square().sum(1)
        chosen = systematic_resample(weights, n, comb)
        counts = torch.zeros_like(weights)
        counts.scatter_add_(1, chosen, torch.full_like(chosen, 1 / n, dtype=counts.dtype))
        there = counts > 0
        most = int(there.sum(1).max())
        # chosen ones move to the front, the others all to one place behind them
        place = torch.where(there, there.cumsum(1) - 1, most)
        at = place.new_zeros(len(white), most + 1)
        at.scatter_(1, place, torch.arange(n_draws, device=white.device).expand_as(place))
        at = at[:, :most]
        filled = torch.arange(most, device=white.device) < there.sum(1, keepdim=True)
        at = torch.where(filled, at, 0)
        points = white.gather(1, at[..., None].expand(-1, -1, d)).transpose(1, 2)
        return cls(_features(points), counts.gather(1, at) * filled, (d + 2) / ess)

    @property
    def points(self) -> Tensor:
        """The draws themselves, shape (B, D, S)."""
        n_dim = _n_dim(self.features.shape[1])
        return self.features[:, 1 : 1 + n_dim]

    def far_apart(self, k: int, uniform: Tensor) -> Tensor:
        """Return starting means (B, R, k, D) far apart, by uniforms (B, R, k).

        k-means++ of Arthur and Vassilvitskii (2007).
        """
        points, counts = self.points[:, None], self.counts[:, None]
        distance = torch.ones_like(counts).expand(-1, uniform.shape[1], -1)
        chosen = []
        for i in range(k):
            edges = (counts * (distance + 1e-30)).cumsum(-1)
            at = torch.searchsorted(edges, uniform[..., i : i + 1] * edges[..., -1:])
            at = at.clamp(max=edges.shape[-1] - 1)[:, :, None]
            places = points.expand(-1, at.shape[1], -1, -1)
            chosen.append(places.gather(3, at.expand(-1, -1, points.shape[2], -1)))
            nearest = (points - chosen[-1]).square().sum(2)
            distance = nearest if i == 0 else torch.minimum(distance, nearest)
        return torch.cat(chosen, 3).transpose(2, 3)


@dataclass(frozen=True)
class NormalMixtures:
    """R mixtures of K normals for each of B objects.

    Attributes
    ----------
    shares : Tensor, shape (B, R, K)
    means : Tensor, shape (B, R, K, D)
    cov : Tensor, shape (B, R, K, D, D)
    """

    shares: Tensor
    means: Tensor
    cov: Tensor

    @classmethod
    def around(cls, means: Tensor) -> NormalMixtures:
        """Return mixtures of equal components, half as wide as all draws together."""
        k, d = means.shape[-2:]
        wide = 0.5 * torch.eye(d, dtype=means.dtype, device=means.device)
        return cls(
            torch.full_like(means[..., 0], 1.0 / k), means, wide.expand(*means.shape[:-1], d, d)
        )

    @classmethod
    def of_moments(cls, moments: Tensor, prior: Tensor) -> NormalMixtures:
        """Return the likeliest mixtures, given the mean features (B, R, K, P) of each component.

        Covariances are drawn towards the mean one of all components: towards that of all draws,
        components of far modes would be much too wide.
        """
        d = _n_dim(moments.shape[-1])
        mass = moments[..., 0] + _TINY
        means = moments[..., 1 : 1 + d] / mass[..., None]
        around_origin = moments.index_select(-1, _Pairs.of(moments, d).both_ways)
        # around the mean, which is that of the draws and of a tiny mass at the origin
        first = (mass + _TINY)[..., None] * means
        scatter = around_origin.unflatten(-1, (d, d)) - first[..., None] * means[..., None, :]
        within = scatter.sum(2, keepdim=True)
        within.diagonal(dim1=-2, dim2=-1).add_(_FLOOR)
        prior = prior[:, None, None, None, None]
        cov = (scatter + prior * within) / (mass[..., None, None] + prior)
        kept = mass + _EMPTY
        return cls(kept / kept.sum(-1, keepdim=True), means, cov)

    @property
    def coefficients(self) -> Tensor:
        """What features are multiplied with for log-densities, but for a constant: (B, R, K, P)."""
        factors = torch.linalg.cholesky(self.cov)
        precision = torch.cholesky_inverse(factors)
        slope = (precision @ self.means[..., None])[..., 0]
        volume = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        height = self.shares.log() - volume - 0.5 * (slope * self.means).sum(-1)
        pairs = _Pairs.of(precision, precision.shape[-1])
        bend = precision.flatten(-2).index_select(-1, pairs.flat) * pairs.factor
        return torch.cat([height[..., None], slope, bend], -1)

    def where(self, chosen: Tensor, others: NormalMixtures) -> NormalMixtures:
        """Return these for ``chosen`` objects (B,), and the others for the rest."""
        pairs = zip(vars(self).values(), vars(others).values(), strict=True)
        return NormalMixtures(
            *(torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs)
        )

    def best(self, height: Tensor) -> NormalMixtures:
        """Return the one of highest ``height`` (B, R) of each object, as R = 1."""
        rows = torch.arange(len(height), device=height.device)
        chosen = height.argmax(1)
        return NormalMixtures(*(v[rows, chosen][:, None] for v in vars(self).values()))


def maximise(
    draws: FeaturedDraws, start: NormalMixtures, n_steps: int, tolerance: float = TOLERANCE
) -> tuple[NormalMixtures, Tensor]:
    """Return mixtures of higher likelihood, and the mean log-density (B, R) before the last step.

    An object's steps end when none of its mixtures rises by ``tolerance`` a step any more.
    """
    if start.shares.shape[-1] == 1:
        n_steps = 1  # one normal is where it ends, wherever it starts
    n = len(draws.counts)
    work = _Climb(
        torch.arange(n, device=draws.counts.device),
        torch.ones(n, dtype=torch.bool, device=draws.counts.device),
        start,
        torch.full_like(start.shares[..., 0], -torch.inf),
    )
    parked = []
    for i in range(1, n_steps + 1):
        looks = i % _EVERY == 0 or i == n_steps
        work = work.after(*_step(draws, work.found, looks), tolerance * _EVERY)
        n_open = int(work.open.sum()) if looks else len(work.open)
        if n_open < _FEW * len(work.open):
            parked.append(pick(work, ~work.open))
            draws, work = pick(draws, work.open), pick(work, work.open)
        if not n_open:
            break
    work = join([*parked, work])
    order = work.rows.argsort()
    return pick(work.found, order), work.height[order]


@dataclass(frozen=True)
class _Climb:
    """Objects ``rows`` (b,) on their way; those that are not ``open`` (b,) take no more steps."""

    rows: Tensor
    open: Tensor
    found: NormalMixtures
    height: Tensor

    def after(self, found: NormalMixtures, height: Tensor | None, tolerance: float) -> _Climb:
        """Return what a step leads to; ``height`` (b, R) is None where nobody looks."""
        if not self.open.all():
            found = found.where(self.open, self.found)
        if height is None:
            return replace(self, found=found)
        rises = (height - self.height > tolerance).any(1)
        height = torch.where(self.open[:, None], height, self.height)
        return replace(self, open=self.open & rises, found=found, height=height)


def _step(
    draws: FeaturedDraws, found: NormalMixtures, looks: bool
) -> tuple[NormalMixtures, Tensor | None]:
    """Return the mixtures after one step, and their mean log-density (B, R) before it if wanted."""
    features, counts = draws.features, draws.counts[:, None]
    shape = *found.shares.shape, counts.shape[-1]
    score = (found.coefficients.flatten(1, 2) @ features).view(shape)
    top = score.amax(2, keepdim=True)
    duty = score.sub_(top).exp_()
    total = duty.sum(2)
    height = (counts * (total.log() + top[:, :, 0])).sum(-1) if looks else None
    duty *= (counts / total)[:, :, None]
    moments = (duty.flatten(1, 2) @ features.mT).view(*shape[:-1], -1)
    return NormalMixtures.of_moments(moments, draws.prior), height


@dataclass(frozen=True)
class _Pairs:
    """The products x_i x_j with i <= j of D coordinates.

    Attributes
    ----------
    flat : Tensor of int64, shape (D (D + 1) / 2,)
        Where they stand in a matrix, row after row.
    factor : Tensor, shape (D (D + 1) / 2,)
        Of the elements of a precision; i < j stands for j < i, too.
    both_ways : Tensor of int64, shape (D^2,)
        Where the elements of a matrix stand among the features.
    """

    flat: Tensor
    factor: Tensor
    both_ways: Tensor

    @classmethod
    def of(cls, like: Tensor, d: int) -> _Pairs:
        return _pairs(d, like.device)


@lru_cache(maxsize=64)
def _pairs(d: int, device: torch.device) -> _Pairs:
    first, second = torch.triu_indices(d, d, device=device)
    place = torch.zeros(d, d, dtype=torch.int64, device=device)
    place[first, second] = place[second, first] = torch.arange(len(first), device=device) + 1 + d
    factor = 0.5 * (first == second).to(torch.float64) - 1.0
    return _Pairs(first * d + second, factor, place.flatten())


def n_features(n_dim: int) -> int:
    """Return how many features a draw of ``n_dim`` coordinates has.

    Examples
    --------
    >>> n_features(2)  # 1, x, y, x^2, x y, y^2
    6
    """
    return (n_dim + 1) * (n_dim + 2) // 2


def _features(points: Tensor) -> Tensor:
    """Return 1, x and x_i x_j with i <= j (B, P, S) of points (B, D, S)."""
    ones = torch.ones_like(points[:, :1])
    products = [points[:, i : i + 1] * points[:, i:] for i in range(points.shape[1])]
    return torch.cat([ones, points, *products], 1)


def _n_dim(n_features: int) -> int:
    """Return D, where 1 + D + D (D + 1) / 2 features are."""
    return round(((8 * n_features + 1) ** 0.5 - 3) / 2)
