"""Layered importance sampling: what Markov chains found becomes a proposal, and is weighed.

A mixture is fitted to the chains, and fresh draws of it are weighed (Martino et al. 2017). That
gives what chains cannot: the evidence, the weights of modes that no chain crosses between, and a
certificate. Where the mixture cannot follow the posterior, converged chains are the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.batched import pick
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import Rung, RungContext
from nbi_plus.infer.posterior.certificate import fresh_outcome
from nbi_plus.infer.posterior.outcome import Chains, Outcome, Pool
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.proposals.circles import Cut
from nbi_plus.infer.proposals.cross_fit import (
    PEAKS_SHARE,
    MixtureFamily,
    OnCircles,
    fit_defended,
    with_share,
)
from nbi_plus.infer.proposals.mixture import COARSE, MixtureConfig
from nbi_plus.infer.weights.clean import CleanWeights
from nbi_plus.infer.weights.summary import Grade, summarise
from nbi_plus.problem.target import Evaluation

WEIGHING = 8.0  # times what the first rung took: so long it takes
_MANY_SIGMA = 4.0  # between the means of two methods


@dataclass(frozen=True)
class LayeredConfig:
    """Chosen state of the weighing of chains.

    Attributes
    ----------
    n_certify : int
        Fresh draws of the mixture.
    peaks_share : float
        Of these draws from around the peaks that are known.
    mixture, wide : MixtureConfig
        Of the proposal and of its wide part.
    """

    n_certify: int = 4096
    peaks_share: float = PEAKS_SHARE
    mixture: MixtureConfig = MixtureConfig(
        n_components=8, n_points=1500, n_steps=15, n_starts=1, dof=5, wide_share=0.05
    )
    wide: MixtureConfig = COARSE

    def family(self, n_dim: int) -> MixtureFamily:
        """Return what is fitted to chains of so many parameters."""
        return MixtureFamily(self.mixture.in_dims(n_dim), self.wide.in_dims(n_dim))


def weigh_chains(
    objects: OpenObjects, chains: Chains, context: RungContext, config: LayeredConfig, rung: Rung
) -> Iterator[OpenObjects]:
    """Yield objects that together hold every object once, after their chains were weighed.

    Parameters
    ----------
    objects : OpenObjects
    chains : Chains
        Of the same objects.
    context : RungContext
    config : LayeredConfig
    rung : Rung
        Whose chains they are.
    """
    with context.meter.timed(objects.index):
        weighing = _weigh(objects, chains, context, config, rung)
    outcome = weighing.outcome
    context.report.note(outcome)
    # those of earlier rungs, too, when chains run as a check
    certified = [o for o in (*objects.tried, outcome) if o.passed.any()]
    clash = [o.passed & _disagree(chains, o, context.circles) for o in certified]
    none = torch.zeros_like(chains.converged)
    chains = replace(chains, disagree=chains.converged & torch.stack([none, *clash]).any(0))
    objects, outcome = replace(objects, chains=chains), replace(outcome, chains=chains)
    fallback = chains.converged & ~outcome.passed
    if outcome.passed.any():
        rows = outcome.passed.nonzero()[:, 0]
        yield objects.select(rows).after(outcome.select(rows))
    if fallback.any():
        rows = fallback.nonzero()[:, 0]
        yield objects.select(rows).after(_chain_outcome(weighing, chains, rung).select(rows))
    open_ones = ~outcome.passed & ~fallback
    if open_ones.any():
        rows = open_ones.nonzero()[:, 0]
        left, fresh = objects.select(rows), weighing.select(rows)
        # chains start from the pool: what was fitted to them is not independent of its draws
        with context.meter.timed(left.index):
            pair = left.pair.share(fresh.proposal, fresh.outcome.pool.z, fresh.found)
        yield replace(left, pair=pair).after(outcome.select(rows))


@dataclass(frozen=True)
class _Weighing:
    """What fresh draws of a mixture came to, and the draws of the chains it was fitted to."""

    proposal: LatentProposal
    found: Evaluation
    outcome: Outcome
    chain_draws: Pool

    def select(self, rows: Tensor) -> _Weighing:
        return _Weighing(
            self.proposal.select(rows), pick(replace(self.found, errors=()), rows),
            self.outcome.select(rows), self.chain_draws.select(rows),
        )  # fmt: skip


def _weigh(
    objects: OpenObjects, chains: Chains, context: RungContext, config: LayeredConfig, rung: Rung
) -> _Weighing:
    z = chains.z.flatten(1, 2)
    keys, seed, stage = objects.keys, context.seed, context.stage(f"{rung.name} weights")
    known = context.evaluate(z, objects.index)
    log_target = known.log_likelihood + known.log_prior
    usable = log_target.isfinite()
    equal = torch.zeros_like(log_target).masked_fill(~usable, -torch.inf)
    flat = torch.where(usable, -0.5 * log_target, -torch.inf)
    family = OnCircles(config.family(objects.n_dim), context.circles)
    proposal = fit_defended(z, equal, flat, family, keys, seed, stage)
    around = objects.around_peaks(context.circles)
    if around is not None:
        # chains that never crossed to a mode must not be the only ones to say what it weighs
        proposal = with_share(proposal, around, config.peaks_share)
    fresh = proposal.draw(keys, config.n_certify, seed, stage)
    found = context.evaluate(fresh, objects.index)
    outcome = fresh_outcome(
        proposal, fresh, found, family.gate(context.gate), circles=context.circles, seed=seed
    )
    pool = replace(outcome.pool, index=objects.index)
    nothing = torch.full_like(log_target, torch.nan)
    chain_draws = Pool(
        objects.index, z, nothing, known.log_prior, known.log_likelihood, known.failed
    )
    outcome = replace(outcome, rung=f"{rung.name} weights", pool=pool, status=rung.status)
    return _Weighing(proposal, found, outcome, chain_draws)


def _disagree(chains: Chains, outcome: Outcome, circles: tuple[int, ...]) -> Tensor:
    """Say where chains and weights, both good, have incompatible means, shape (b,)."""
    z, weights = outcome.pool.z, outcome.summary.weights
    cut = Cut.of(z, weights, circles)
    z = torch.where(weights[..., None] > 0, z, 0.0)
    z, draws = cut.to(z), cut.to(chains.z.flatten(1, 2))
    mean = (weights[..., None] * z).sum(1)
    variance = (weights[..., None] * (z - mean[:, None]).square()).sum(1)
    error = (variance / outcome.summary.ess[:, None] + draws.var(1) / chains.ess).sqrt()
    return ((draws.mean(1) - mean).abs() > _MANY_SIGMA * error).any(-1)


def _chain_outcome(weighing: _Weighing, chains: Chains, rung: Rung) -> Outcome:
    """Return the draws of converged chains as an outcome of equal weights, without evidence."""
    pool = weighing.chain_draws
    equal, none = torch.zeros_like(pool.log_q), torch.zeros_like(pool.index)
    failure, no = none.to(torch.uint8), torch.zeros_like(pool.failed)
    cleaned = CleanWeights(equal, none + equal.shape[1], none, no.any(1), no, failure)
    s = summarise(equal)
    unknown = torch.full_like(s.ess, torch.nan)
    ess = torch.minimum(chains.ess.amin(-1), s.ess)
    summary = replace(
        s, ess=ess, ess_low=ess, efficiency=ess / s.ess, k_hat=unknown, k_hat_moment=unknown,
        log_evidence=unknown, log_evidence_err=unknown, log_evidence_psis=unknown,
        evidence_reliable=no.any(1), evidence_soft=no.any(1),
    )  # fmt: skip
    grade = torch.full_like(failure, Grade.A)
    return Outcome(rung.name, "chains", pool, cleaned, summary, grade, rung.status, chains)
