"""Masses of places: what the neighbourhood of each weighs, beside what an answer holds there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.proposals.circles import Cut, change, columns_of, stretch
from nbi_plus.infer.samplers.peaks import Peaks
from nbi_plus.problem.random import keyed_normal

_INSIDE = 0.95  # of a normal: the ellipsoid around a peak
_SURE = 4.5  # errors that a missing mass must be worth
_MOST = 0.3  # an answer holds one peak's region by as much, or it does not say its evidence
_LEAST = 0.15  # of a peak's mass: an approximation may be off by so much
_SCARCE = 10.0  # times more of the posterior than of the draws: a place that these hardly visit
_EXPLAINED = 1.0  # nats that a place may be higher than the normal of a peak
_LIKELY = 2.0  # errors that the mass of such places must be worth: right answers have none at all


@dataclass(frozen=True)
class PeakMasses:
    """Of M peaks of b objects.

    Attributes
    ----------
    there : Tensor of bool, shape (b, M)
    mass, error : Tensor, shape (b, M)
        Of the ellipsoid around the peak, in units of the answer's evidence, and its standard error.
    held : Tensor, shape (b, M)
        The answer's own weight there.
    centre, spread : Tensor, shape (b, M, D)
        Place, seen from the answer's mean, and standard deviations, in coordinates that tear no
        circle apart.
    variance : Tensor, shape (b, D)
        Of the answer, in these.
    """

    there: Tensor
    mass: Tensor
    error: Tensor
    held: Tensor
    centre: Tensor
    spread: Tensor
    variance: Tensor

    @property
    def short(self) -> Tensor:
        """What is missing of each peak (b, M), 0 where that is not sure."""
        lack = self.mass - self.held
        sure = self.there & (lack > _SURE * self.error) & (lack > _LEAST * self.mass)
        return torch.where(sure, lack, 0.0)

    def missing(self, mass_max: float, mean_max: float, std_max: float) -> Tensor:
        """Say who misses more than this mass, or moments that move by more, bool (b,)."""
        lack = self.short[..., None]
        first = (lack * self.centre).sum(1)
        second = (lack * (self.centre.square() + self.spread.square())).sum(1)
        moved = _moved(self.variance, lack.sum(1), first, second, mean_max, std_max)
        return (lack.sum(1)[:, 0] > mass_max) | moved

    def words(self, most: int) -> list[str]:
        """Return for each object how many peaks there are, and what the first ones weigh."""
        rows = zip(self.there, self.mass.tolist(), self.held.tolist(), strict=True)
        return [_told(int(there.sum()), mass[:most], held[:most]) for there, mass, held in rows]


def _told(n: int, mass: list[float], held: list[float]) -> str:
    if not n:
        return "No peak was found."
    each = [f"{m:.3g} (held {h:.3g})" for m, h in zip(mass[:n], held[:n], strict=True)]
    more = f" and {n - len(each)} more" if n > len(each) else ""
    return f"{n} peak{'s' * (n > 1)} of mass {', '.join(each)}{more}."


@torch.no_grad()
def weighed(
    found: Peaks, outcome: Outcome, keys: Tensor, context: RungContext, n_local: int, stage: str
) -> PeakMasses:
    """Return what the peaks weigh, by ``n_local`` draws around each, all under one mixture.

    Peaks that lie within each other share their draws, so that each region's mass is right.

    Parameters
    ----------
    found : Peaks
        Of b objects.
    outcome : Outcome
        Their answers.
    keys : Tensor of int64, shape (b,)
    context : RungContext
    n_local : int
    stage : str
        Of the randomness.
    """
    local = _Local.of(found, outcome, keys, context, n_local, stage)
    reach = float(chi2.ppf(_INSIDE, found.z.shape[-1]))
    log_w = torch.where(local.distance < reach, local.log_weights[:, None], -math.inf)
    log_mass = log_w.logsumexp(2) - local.n_draws.to(log_w).log()
    share = (log_w - log_w.amax(2, keepdim=True)).exp().nan_to_num(nan=0.0)
    first, second = share.sum(2) / local.n_draws, share.square().sum(2) / local.n_draws
    relative = ((second / first.square() - 1).clamp(min=0.0) / local.n_draws).sqrt()

    weights = outcome.summary.weights
    own, there = local.around.seen(outcome.pool.bounded)[0], found.found
    held = (weights[:, None] * (own < reach)).sum(2)
    evidence, error = _evidence(outcome, log_mass, relative, held)
    mass = torch.where(there, (log_mass - evidence[:, None]).clamp(max=50.0).exp(), 0.0)
    ess = outcome.summary.ess.clamp(min=1.0)[:, None]
    inside = held.clamp(max=1.0)
    chance = torch.maximum(inside * (1 - inside), 1 / ess) / ess
    error = (mass.square() * (relative.square() + error[:, None].square()) + chance).sqrt()
    cut, mean, variance = _centred(outcome, context.circles)
    centre = found.z.nan_to_num(nan=0.0)
    turned = cut.to(centre)
    spread = found.factor.square().sum(-1).sqrt() * stretch(centre, turned, context.circles)
    return PeakMasses(
        there, mass, error.nan_to_num(nan=math.inf), held, turned - mean, spread, variance
    )


@dataclass(frozen=True)
class Shortfall:
    """What b answers lack where their proposals hardly draw.

    Attributes
    ----------
    mass, error : Tensor, shape (b,)
        In units of the answer's evidence.
    first, second : Tensor, shape (b, D)
        Moments of that mass about the answer's mean, in coordinates that tear no circle apart.
    variance : Tensor, shape (b, D)
        Of the answer, in these.
    """

    mass: Tensor
    error: Tensor
    first: Tensor
    second: Tensor
    variance: Tensor

    def missing(self, mass_max: float, mean_max: float, std_max: float) -> Tensor:
        """Say who misses more than this mass, or moments that move by more, bool (b,)."""
        likely = self.mass > _LIKELY * self.error
        lack = self.mass[:, None]
        moved = _moved(self.variance, lack, self.first, self.second, mean_max, std_max)
        return likely & ((self.mass > mass_max) | moved)


@torch.no_grad()
def lacking(
    found: Peaks, proposal: LatentProposal, outcome: Outcome, keys: Tensor, context: RungContext,
    n_local: int, stage: str,
) -> Shortfall:  # fmt: skip
    """Return what answers lack of the mass around some places that their proposals hardly reach.

    A place counts where the posterior is ten times denser than the draws are; what the answer
    holds of such places, from earlier proposals, is no lack.

    Parameters
    ----------
    found : Peaks
        Places of b objects.
    proposal : LatentProposal
        What fresh draws of these objects came from.
    outcome, keys, context, n_local, stage
        As for `weighed`.
    """
    local = _Local.of(found, outcome, keys, context, n_local, stage)
    s, pool = outcome.summary, outcome.pool
    evidence = s.log_evidence_psis[:, None]

    def scarce(height: Tensor, z: Tensor) -> Tensor:
        return height - evidence - proposal.log_prob(z) > math.log(_SCARCE)

    z = local.z.flatten(1, 2)
    # an ordinary place stands for what is not there: its weight is zero
    z = torch.where(local.log_weights[..., None] > -math.inf, z, pool.bounded[:, :1])
    counts = scarce(local.height.flatten(1), z)
    log_mass = local.log_weights - evidence - local.n_draws.to(evidence).log()
    mass = torch.where(counts, log_mass.clamp(max=50.0).exp(), 0.0)
    held = (s.weights * scarce(pool.log_prior + pool.log_likelihood, pool.bounded)).sum(1)
    total = mass.sum(1)
    lack = (total - held).clamp(min=0.0)
    own = mass * (lack / total.clamp(min=1e-300))[:, None]
    cut, mean, variance = _centred(outcome, context.circles)
    away = cut.to(z) - mean
    first, second = ((own[..., None] * v).sum(1) for v in (away, away.square()))
    return Shortfall(lack, mass.square().sum(1).sqrt(), first, second, variance)


def _centred(outcome: Outcome, circles: tuple[int, ...]) -> tuple[Cut, Tensor, Tensor]:
    """Return coordinates that tear no circle apart, and there the mean (b, 1, D) and variance."""
    weights = outcome.summary.weights
    cut = Cut.of(outcome.pool.bounded, weights, circles)
    z = cut.to(outcome.pool.bounded)
    mean = (weights[..., None] * z).sum(1, keepdim=True)
    return cut, mean, (weights[..., None] * (z - mean).square()).sum(1)


def _moved(
    variance: Tensor, lack: Tensor, first: Tensor, second: Tensor, mean_max: float, std_max: float
) -> Tensor:
    """Say whose means or standard deviations move by more than is allowed, bool (b,).

    When mass ``lack`` (b, 1) joins, of moments (b, D) about the mean.
    """
    mean = first / (1 + lack)
    whole = (second + variance) / (1 + lack) - mean.square()
    new, old = (v.clamp(min=1e-300).sqrt() for v in (whole, variance))
    moved = mean.abs() / torch.maximum(new, old) > mean_max
    wider = (old / new - 1).abs() > std_max
    return moved.any(1) | wider.any(1)


def _heights(z: Tensor, there: Tensor, outcome: Outcome, context: RungContext) -> Tensor:
    """Return log posterior densities (b, M, n) of draws around the peaks that are there."""
    objects, which = there.nonzero(as_tuple=True)
    height = torch.full_like(z[..., 0], -math.inf)
    if len(objects):
        index = outcome.pool.index[objects]
        height[objects, which] = context.target.log_prob(z[objects, which], index)
    return height


def _evidence(
    outcome: Outcome, log_mass: Tensor, relative: Tensor, held: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the evidence and its error (b,).

    What the answer holds most of, and the mass of that peak, say it without the scatter of few
    heavy weights, which other peaks would then seem to share. Where it holds much of none, its own.
    """
    best = held.argmax(1, keepdim=True)
    most, error = (v.gather(1, best)[:, 0] for v in (held, relative))
    by_peak = log_mass.gather(1, best)[:, 0] - most.clamp(min=1e-6).log()
    s = outcome.summary
    use_own = (most < _MOST) & s.log_evidence.isfinite()
    evidence = torch.where(use_own, s.log_evidence_psis, by_peak)
    return evidence, torch.where(use_own, s.log_evidence_err, error).nan_to_num(nan=0.0)


@dataclass(frozen=True)
class _Local:
    """Draws around M places of b objects, n of each, all under one mixture.

    Attributes
    ----------
    around : _PeakNormals
    z : Tensor, shape (b, M, n, D)
    height : Tensor, shape (b, M, n)
        Unnormalised log posterior density.
    log_weights : Tensor, shape (b, M n)
        Raw; -inf for places that are not there.
    distance : Tensor, shape (b, M, M n)
        Squared, of every draw from every place.
    n_draws : Tensor, shape (b, 1)
    """

    around: _PeakNormals
    z: Tensor
    height: Tensor
    log_weights: Tensor
    distance: Tensor
    n_draws: Tensor

    @classmethod
    def of(
        cls, found: Peaks, outcome: Outcome, keys: Tensor, context: RungContext, n_local: int,
        stage: str,
    ) -> _Local:  # fmt: skip
        """Draw around the places, and evaluate."""
        around = _PeakNormals.of(found, context.circles)
        z = around.draw(keys, n_local, context.seed, f"{stage} local")
        height = _heights(z, found.found, outcome, context)
        distance, log_q = around.seen(z.flatten(1, 2))
        usable = found.found[..., None].expand(-1, -1, n_local).flatten(1)
        count = found.found.sum(1, keepdim=True).clamp(min=1)
        log_w = height.flatten(1) - (log_q.logsumexp(1) - count.to(log_q).log())
        log_w = torch.where(usable, log_w, -math.inf)
        return cls(around, z, height, log_w, distance, count * n_local)


def explained(found: Peaks, z: Tensor, height: Tensor, circles: tuple[int, ...]) -> Tensor:
    """Say which places z (b, S, D) of a height (b, S) are part of some peak: as low, or lower."""
    _, log_q = _PeakNormals.of(found, circles).seen(z)
    return (found.log_mass[..., None] + log_q > height[:, None] - _EXPLAINED).any(1)


@dataclass(frozen=True)
class _PeakNormals:
    """Normals at the peaks, each in coordinates that cut its circles opposite of it.

    Attributes
    ----------
    there : Tensor of bool, shape (b, M)
    cut : Cut
        Of b M rows.
    centre, factor : Tensor, shapes (b M, D) and (b M, D, D)
        In these coordinates.
    """

    there: Tensor
    cut: Cut
    centre: Tensor
    factor: Tensor

    @classmethod
    def of(cls, found: Peaks, circles: tuple[int, ...]) -> _PeakNormals:
        """Return the normals of all peaks; what stands for those that are not there is harmless."""
        z, factor = found.z.nan_to_num(nan=0.0).flatten(0, 1), found.factor.flatten(0, 1)
        start = torch.special.ndtr(columns_of(z, circles)) - 0.5
        cut = Cut(circles, start - start.floor())
        centre = cut.to(z[:, None])[:, 0]
        factor = stretch(z, centre, circles)[..., None] * factor
        return cls(found.found, cut, centre, factor)

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return n draws of each peak, (b, M, n, D)."""
        b, m = self.there.shape
        noise = keyed_normal(seed, stage, keys, (m, n, self.centre.shape[-1])).flatten(0, 1)
        v = self.centre[:, None] + noise @ self.factor.mT
        return self.cut.back(v).view(b, m, n, -1)

    def seen(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared distances of draws z (b, S, D) from every peak, and densities, (b, M, S).

        Of peaks that are not there the densities are zero.
        """
        b, m = self.there.shape
        d = z.shape[-1]
        rows = z[:, None].expand(-1, m, -1, -1).flatten(0, 1)
        v = self.cut.to(rows)
        away = (v - self.centre[:, None]).mT
        u = torch.linalg.solve_triangular(self.factor, away, upper=False)
        distance = u.square().sum(1)
        volume = self.factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        log_q = -0.5 * distance - volume[:, None] - 0.5 * d * math.log(2 * math.pi)
        log_q = log_q + change(v, rows, self.cut.columns)
        log_q = torch.where(self.there.flatten()[:, None], log_q, -math.inf)
        return distance.view(b, m, -1), log_q.view(b, m, -1)
