"""Starting: chains begin around the peaks uphill of their starts, where these can be trusted.

Chains that know nothing of the scales spend their budget on the way. A mode says where and how
wide, but not always: where a density runs off, or is a funnel, it is a worse start than any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.batched import pick
from nbi_plus.infer.proposals.laplace import laplace_mixture
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.samplers import peaks
from nbi_plus.infer.samplers.gradients import Gradients
from nbi_plus.infer.samplers.peaks import Peaks, PeaksConfig
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.problem.random import keyed_normal

_MAX_STEPS = 200
_CURVATURE_MIN = 1e-12  # of generic coordinates nobody knows how wide a posterior may be
_FLOORED = 0.9  # of the greatest width, or spread of widths, that a shape can have
_SPREAD = 3e6
_SHARE = 0.25  # of the budget
_DEPTH = 25.0  # in log mass, and in height of what is no peak
_WIDTH = 1.3  # of the starts, in standard deviations: wider than the posterior, as R-hat wants
_DRAWS = 2  # around each peak for each superchain
_DROP, _SLACK, _HIGHER = 3.0, 3.0, 1.0  # times a normal's fall, and more; above the top
_IN_KEEPING = 0.75  # of these draws


@dataclass(frozen=True)
class Starting:
    """Where the chains of B objects start.

    Attributes
    ----------
    z : Tensor, shape (B, C, D)
    whitening : Whitening
    centres : Tensor, shape (B, M, D)
        Of the modes of objects with several; NaN for others.
    near : Tensor of bool, shape (B,)
        Who starts from peaks.
    n_gradients : Tensor of int64, shape (B,)
    jumps : StudentMixture or None
        Between the modes of objects with several.
    """

    z: Tensor
    whitening: Whitening
    centres: Tensor
    near: Tensor
    n_gradients: Tensor
    jumps: StudentMixture | None = None

    @classmethod
    def as_given(cls, z0: Tensor, whitening: Whitening) -> Starting:
        """Return the starts as they are."""
        none = torch.zeros(len(z0), dtype=torch.int64, device=z0.device)
        return cls(z0, whitening, z0.new_empty(len(z0), 0, z0.shape[2]), none > 0, none)

    @classmethod
    def around_peaks(
        cls, gradients: Gradients, z0: Tensor, n_super: int, keys: Tensor, seed: int, budget: float
    ) -> Starting:
        """Return starts around the peaks uphill, or as given where no peaks can be trusted.

        Superchains are shared out among the peaks by their mass; each has one at least.
        """
        n_each = z0.shape[1] // n_super
        own = z0[:, ::n_each]
        config = PeaksConfig(_MAX_STEPS, n_super, math.inf, _CURVATURE_MIN, _SHARE * budget)

        def density(z: Tensor, index: Tensor) -> Tensor:
            return gradients.log_prob(z.to(z0.dtype), index).to(torch.float64)

        found = peaks.find(density, own, seed=seed, rows=gradients.rows, config=config)
        around = _Around.of(found, Gradients(density, gradients.rows), n_super, keys, seed)
        near, log_mass = around.judged(found)
        seats = _seats(log_mass, n_super)
        points = around.points(seats, n_super)
        fallback = Whitening.of_starts(own)
        chosen = _whitening(found, seats.to(found.z) / n_super)
        several = near & (seats > 0).sum(1).gt(1)
        centres = torch.where((several[:, None] & (seats > 0))[..., None], found.z, math.nan)
        z = points.to(z0.dtype).repeat_interleave(n_each, 1)
        return cls(
            z=torch.where(near[:, None, None], z, z0),
            whitening=Whitening(
                torch.where(near[:, None, None], chosen.mean.to(z0.dtype), fallback.mean),
                torch.where(near[:, None, None], chosen.factor.to(z0.dtype), fallback.factor),
            ),
            centres=centres.to(z0.dtype),
            near=near,
            n_gradients=found.n_gradients + around.n_gradients,
            jumps=laplace_mixture(found.z, found.factor, log_mass) if several.any() else None,
        )

    def select(self, rows: Tensor) -> Starting:
        """Return those of some of the objects; jumps stay those of all."""
        return pick(replace(self, jumps=None), rows)

    @property
    def may_jump(self) -> Tensor:
        """Say which objects have several modes, bool (B,)."""
        return self.centres.isfinite().all(-1).any(1)


@dataclass(frozen=True)
class _Around:
    """Draws z (B, M, S, D) around each peak, and whether they are ``good`` (B, M, S).

    Those of a normal fall as far below the peak as their distance says.
    """

    z: Tensor
    good: Tensor
    n_gradients: Tensor

    @classmethod
    def of(
        cls, found: Peaks, gradients: Gradients, n_super: int, keys: Tensor, seed: int
    ) -> _Around:
        n, m, d = found.z.shape
        noise = keyed_normal(seed, "hmc starts", keys, (m, _DRAWS * n_super, d)) * _WIDTH
        z = found.z.nan_to_num(nan=0.0)[:, :, None] + noise @ found.factor.mT
        index = torch.arange(n, device=z.device).repeat_interleave(m)
        flat = z.flatten(0, 1)
        rows = found.found.flatten().nonzero()[:, 0]
        value = torch.full_like(flat[..., 0], -math.inf)
        value[rows] = gradients(flat[rows], index[rows], Whitening.none(flat[rows]))[0]
        drop = found.log_prob[..., None] - value.unflatten(0, (n, m))
        fall = 0.5 * noise.square().sum(-1)
        good = (drop <= _DROP * fall + _SLACK) & (drop >= -_HIGHER)
        return cls(z, good, found.found.sum(1) * z.shape[2])

    def judged(self, found: Peaks) -> tuple[Tensor, Tensor]:
        """Return who has peaks to be trusted, (B,), and the log masses of these peaks (B, M).

        An end that is no peak, and not far lower, may be the way to anything: nobody is near then.
        """
        widths = torch.linalg.svdvals(found.factor)
        bent = widths[..., 0] < _FLOORED * _CURVATURE_MIN**-0.5
        bent &= widths[..., 0] < _SPREAD * widths[..., -1]
        trusted = found.settled & bent & (self.good.double().mean(-1) >= _IN_KEEPING)
        mass = torch.where(trusted, found.log_mass, -math.inf)
        least = mass.amax(1, keepdim=True) - _DEPTH
        height = torch.where(trusted, found.log_prob, -math.inf).amax(1, keepdim=True)
        lower = (found.log_prob < height - _DEPTH) & (found.log_mass < least)
        near = trusted.any(1) & ~(found.found & ~trusted & ~lower).any(1)
        return near, torch.where(mass >= least, mass, -math.inf)

    def points(self, seats: Tensor, n_super: int) -> Tensor:
        """Return one start (B, K, D) for each superchain: good draws first."""
        b, _, _, d = self.z.shape
        order = (~self.good).byte().argsort(dim=-1, stable=True)
        ends = seats.cumsum(1)
        place = torch.arange(n_super, device=seats.device).expand(b, -1).contiguous()
        mode = torch.searchsorted(ends, place, right=True).clamp(max=seats.shape[1] - 1)
        rank = place - (ends - seats).gather(1, mode)
        own = order.gather(1, mode[..., None].expand(-1, -1, order.shape[2]))
        draw = own.gather(2, rank.clamp(0, order.shape[2] - 1)[..., None])[..., 0]
        each = self.z.gather(1, mode[..., None, None].expand(-1, -1, *self.z.shape[2:]))
        return each.gather(2, draw[..., None, None].expand(-1, -1, 1, d))[:, :, 0]


def _seats(log_mass: Tensor, n_super: int) -> Tensor:
    """Return how many superchains (B, M) every mode gets: one, and more by its mass."""
    there = log_mass > -math.inf
    mass = (log_mass - log_mass.amax(1, keepdim=True)).exp().nan_to_num(nan=0.0)
    seats = there.long()
    for _ in range(n_super - 1):
        quotient = torch.where(there, mass / (seats + 1), -1.0)
        free = (seats.sum(1) < n_super) & there.any(1)
        seats = seats.scatter_add(1, quotient.argmax(1, keepdim=True), free.long()[:, None])
    return seats


def _whitening(found: Peaks, shares: Tensor) -> Whitening:
    """Return coordinates about as wide as the modes, whose shares of the superchains are (B, M).

    Modes are compared in the shape of the first, which may be badly conditioned.
    """
    mean = (shares[..., None] * found.z.nan_to_num(nan=0.0)).sum(1, keepdim=True)
    first = found.factor[:, :1]
    inner = torch.linalg.solve_triangular(first, found.factor, upper=False)
    cov = (shares[..., None, None] * (inner @ inner.mT)).sum(1)
    pooled, failed = torch.linalg.cholesky_ex(cov)
    eye = torch.eye(cov.shape[1], dtype=cov.dtype, device=cov.device)
    pooled = torch.where((failed > 0)[:, None, None], eye, pooled)
    return Whitening(mean, first[:, 0] @ pooled)
