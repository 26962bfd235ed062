"""Masses of peaks: what the neighbourhood of each weighs, beside what an answer holds there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.circles import Cut, change, stretch
from nbi_plus.infer.samplers.peaks import Peaks
from nbi_plus.problem.random import keyed_normal

_INSIDE = 0.95  # of a normal: the ellipsoid around a peak
_SURE = 4.5  # errors that a missing mass must be worth
_MOST = 0.3  # an answer holds one peak's region by as much, or it does not say its evidence
_LEAST = 0.15  # of a peak's mass: an approximation may be off by so much


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
        Place and standard deviations, in coordinates that tear no circle apart.
    mean, variance : Tensor, shape (b, D)
        Of the answer, in these.
    """

    there: Tensor
    mass: Tensor
    error: Tensor
    held: Tensor
    centre: Tensor
    spread: Tensor
    mean: Tensor
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
        total = 1 + lack.sum(1)
        mean = (self.mean + (lack * self.centre).sum(1)) / total
        square = (lack * (self.centre.square() + self.spread.square())).sum(1)
        square = (square + self.variance + self.mean.square()) / total
        new, old = (v.clamp(min=1e-300).sqrt() for v in (square - mean.square(), self.variance))
        moved = (mean - self.mean).abs() / torch.maximum(new, old) > mean_max
        wider = (old / new - 1).abs() > std_max
        return (lack.sum(1)[:, 0] > mass_max) | moved.any(1) | wider.any(1)

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
    around = _PeakNormals.of(found, context.circles)
    there, n_dim = found.found, found.z.shape[-1]
    z = around.draw(keys, n_local, context.seed, f"{stage} local")
    height = _heights(z, there, outcome, context)
    distance, log_q = around.seen(z.flatten(1, 2))
    usable = there[..., None].expand(-1, -1, n_local).flatten(1)
    count = there.sum(1).clamp(min=1)
    log_q = log_q.logsumexp(1) - count[:, None].log()
    reach = float(chi2.ppf(_INSIDE, n_dim))
    log_w = torch.where(usable, height.flatten(1) - log_q, -math.inf)[:, None]
    log_w = torch.where(distance < reach, log_w, -math.inf)
    n_draws = (count * n_local)[:, None]
    log_mass = log_w.logsumexp(2) - n_draws.log()
    share = (log_w - log_w.amax(2, keepdim=True)).exp().nan_to_num(nan=0.0)
    first, second = share.sum(2) / n_draws, share.square().sum(2) / n_draws
    relative = ((second / first.square() - 1).clamp(min=0.0) / n_draws).sqrt()

    weights = outcome.summary.weights
    own = around.seen(outcome.pool.bounded)[0]
    held = (weights[:, None] * (own < reach)).sum(2)
    evidence, error = _evidence(outcome, log_mass, relative, held)
    mass = torch.where(there, (log_mass - evidence[:, None]).clamp(max=50.0).exp(), 0.0)
    ess = outcome.summary.ess.clamp(min=1.0)[:, None]
    inside = held.clamp(max=1.0)
    chance = torch.maximum(inside * (1 - inside), 1 / ess) / ess
    error = (mass.square() * (relative.square() + error[:, None].square()) + chance).sqrt()
    whole = Cut.of(outcome.pool.bounded, weights, context.circles)
    draws, centre = whole.to(outcome.pool.bounded), found.z.nan_to_num(nan=0.0)
    turned = whole.to(centre)
    spread = found.factor.square().sum(-1).sqrt() * stretch(centre, turned, context.circles)
    mean = (weights[..., None] * draws).sum(1)
    variance = (weights[..., None] * (draws - mean[:, None]).square()).sum(1)
    return PeakMasses(
        there, mass, error.nan_to_num(nan=math.inf), held, turned, spread, mean, variance
    )


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
        start = torch.special.ndtr(z[:, list(circles)]) - 0.5
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
