"""Certificates: pooled draws answer, fresh draws that nothing was fitted to vouch for them."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from nbi_plus.infer.posterior.accounts import CUT_OFF
from nbi_plus.infer.posterior.outcome import Outcome, Pool
from nbi_plus.infer.proposals.base import LatentProposal, PriorProposal
from nbi_plus.infer.proposals.circles import unwrapped
from nbi_plus.infer.proposals.cross_fit import Pair
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.weights.clean import CleanWeights, clean
from nbi_plus.infer.weights.psis import psis
from nbi_plus.infer.weights.summary import (
    Evidence,
    Gate,
    Grade,
    WeightSummary,
    effective_sample_size,
    log_evidence,
    summarise,
)
from nbi_plus.problem.target import Evaluation

AMORTIZED = "amortized"  # the rung of draws that nothing weighs
_MISSED, _MANY_SIGMA = 0.05, 4.0  # of log Z, and in errors: what fresh draws may fall short of
MISSING = "fresh draws miss mass that earlier ones hold"
_SCATTER = 0.4  # two standard errors, (1 + k) / sqrt(95), of the k-hat of a thousand draws
_COLUMNS = ("z", "log_prior", "log_likelihood", "failed")


def evidence_of(pair: Pair, fresh: Stream | None) -> Evidence | None:
    """Return the evidence from draws that no proposal they are weighted with was fitted to.

    Those are the cross-fitted streams, fresh draws among them; the fresh draws alone, where there
    are no others or these are not reliable; or none.
    """
    found = None if fresh is None else _evidence(fresh.log_weights, fresh.failed)
    if pair.n_shared < len(pair.a.proposals):
        source = pair.unbiased()
        failed = torch.cat([source.a.failed, source.b.failed], 1)
        both, alone = _evidence(source.log_weights, failed), found
        if alone is None:
            return both
        good = both.evidence_reliable | ~alone.evidence_reliable
        pairs = ((getattr(both, f.name), getattr(alone, f.name)) for f in fields(Evidence))
        found = Evidence(*(torch.where(good, one, other) for one, other in pairs))
    return found


def _evidence(log_weights: Tensor, failed: Tensor) -> Evidence:
    n_draws = (~failed).sum(1)
    return log_evidence(log_weights, psis(log_weights, n_draws)[1], n_draws)


def outcome_of(
    pair: Pair, fresh: Stream | None, gate: Gate, *, rung: str, index: Tensor,
    circles: tuple[int, ...], seed: int,
) -> Outcome:  # fmt: skip
    """Return the pooled draws of B objects, graded by their fresh ones.

    Every draw counts once in the moments, weighted with the mixture of its stream.

    Parameters
    ----------
    pair : Pair
        All draws, the fresh ones among them.
    fresh : Stream or None
        Draws of the frozen proposals; without any nothing is certified.
    gate : Gate
        Of the family of the frozen proposals.
    rung : str
    index : Tensor of int64, shape (B,)
        Which objects of the target they are.
    circles : tuple of int
        The periodic parameters.
    seed : int
    """
    streams = (pair.a, pair.b)
    columns = {k: torch.cat([getattr(s, k) for s in streams], 1) for k in _COLUMNS}
    log_q = torch.cat([s.log_mixture for s in streams], 1)
    pool = Pool(index=index, log_q=log_q, **columns)
    cleaned, summary = weigh(pool, circles, seed)
    grade = torch.zeros_like(cleaned.failure)
    if fresh is not None:
        judged = summary_of(fresh, circles)
        # a pool whose own tail is too heavy is no answer, however good its last draws are
        sound = ~summary.heavy_tail & (summary.ess >= gate.ess_min)
        sound &= (summary.k_hat_moment <= gate.moment_max(judged.efficiency)) & ~_missed(
            summary, judged
        )
        good = sound & (cleaned.failure == 0)
        grade = torch.where(good, gate.grade(judged), Grade.F).to(torch.uint8)
    evidence = evidence_of(pair, fresh)
    if evidence is not None:
        summary = replace(summary, **{f.name: getattr(evidence, f.name) for f in fields(Evidence)})
    return Outcome(rung, gate.family, pool, cleaned, summary, grade)


def weigh(pool: Pool, circles: tuple[int, ...], seed: int) -> tuple[CleanWeights, WeightSummary]:
    """Return the weights of a pool's draws and what they are worth, torn apart by no circle."""
    cleaned = clean(pool.log_likelihood, pool.log_prior, pool.log_q, ~pool.failed)
    z = unwrapped(pool.z, cleaned.log_weights, circles)
    return cleaned, summarise(cleaned.log_weights, z, ~pool.failed, seed=seed)


def grade_fresh(fresh: Stream, gate: Gate, *, circles: tuple[int, ...]) -> Tensor:
    """Return the grades (B,) of fresh draws."""
    return gate.grade(summary_of(fresh, circles))


def summary_of(fresh: Stream, circles: tuple[int, ...]) -> WeightSummary:
    """Return what fresh draws are worth, torn apart by no circle."""
    z = unwrapped(fresh.z, fresh.log_weights, circles)
    return summarise(fresh.log_weights, z, ~fresh.failed)


def _missed(pooled: WeightSummary, fresh: WeightSummary) -> Tensor:
    """Say where the pool holds mass that the frozen proposals never visit, as a hinted mode."""
    error = torch.hypot(pooled.log_evidence_err, fresh.log_evidence_err)
    gain = pooled.log_evidence - fresh.log_evidence
    return gain > _MISSED + _MANY_SIGMA * error


def fresh_outcome(
    proposal: LatentProposal, z: Tensor, found: Evaluation, gate: Gate, *,
    circles: tuple[int, ...], seed: int,
) -> Outcome:  # fmt: skip
    """Return the outcome of fresh draws of a frozen proposal alone, by the gate of its family."""
    index = torch.arange(len(z), device=z.device)
    pool = Pool(index, z, proposal.log_prob(z), found.log_prior, found.log_likelihood, found.failed)
    cleaned, summary = weigh(pool, circles, seed)
    return Outcome("refined", gate.family, pool, cleaned, summary, gate.grade(summary))


def unweighted_outcome(proposal: LatentProposal, z: Tensor) -> Outcome:
    """Return the outcome of draws z (B, S, D) of a proposal that no likelihood can weigh."""
    pool = unweighted_pool(proposal, z)
    equal, none = torch.zeros_like(pool.log_q), torch.zeros_like(pool.index)
    nothing, failure = pool.failed, none.to(torch.uint8)
    cleaned = CleanWeights(equal, none + z.shape[1], none, nothing.any(1), nothing, failure)
    return Outcome(AMORTIZED, "network", pool, cleaned, summarise(equal), failure)


def unweighted_pool(proposal: LatentProposal, z: Tensor) -> Pool:
    """Return draws z (B, S, D) with their densities, but without likelihoods."""
    log_q = proposal.log_prob(z)
    log_prior = PriorProposal(z.shape[-1]).log_prob(z)
    index = torch.arange(len(z), device=z.device)
    nothing = torch.zeros_like(log_q, dtype=torch.bool)
    return Pool(index, z, log_q, log_prior, torch.full_like(log_q, torch.nan), nothing)


def why_not(outcome: Outcome, fresh: Stream, gate: Gate, circles: tuple[int, ...]) -> str:
    """Return what stands against an answer that did not pass.

    Parameters
    ----------
    outcome : Outcome
        All draws, of one object.
    fresh : Stream
        Those that judge.
    gate : Gate
        Of the family of their proposals.
    circles : tuple of int
        The periodic parameters.
    """
    if outcome.cut_off.any():
        return CUT_OFF
    judged = summary_of(fresh, circles)
    own = gate.reasons(judged)[0]
    if own:
        return f"fresh draws: {own}"
    pooled, most = outcome.summary, gate.moment_max(judged.efficiency)
    rules = {
        "k_hat above its threshold": pooled.heavy_tail,
        f"ess below {gate.ess_min:g}": pooled.ess < gate.ess_min,
        "k_hat of the moments too high": pooled.k_hat_moment > most,
    }
    told = "; ".join(words for words, broken in rules.items() if broken.any())
    return f"all draws: {told}" if told else MISSING


def may_be_luck(fresh: Stream, gate: Gate, circles: tuple[int, ...]) -> bool:
    """Say whether tails of fresh draws are too heavy by so little that more of them may pass."""
    judged = summary_of(fresh, circles)
    by_weight = (judged.k_hat - judged.k_hat_threshold) * judged.heavy_tail
    by_moment = judged.k_hat_moment - gate.moment_max(judged.efficiency)
    return bool(max(by_weight, by_moment) < _SCATTER)


def only_now(fresh: Stream, gate: Gate, left: int, n_per_round: int, wanted: float) -> bool:
    """Say whether more draws like ``fresh`` can pass, and none would after another round.

    ``left`` calls are left, and ``wanted`` effective draws are what the fit of that round needs.
    """
    efficiency = float(fresh.efficiency)
    now = gate.needed(efficiency, float(effective_sample_size(fresh.log_weights)))
    later = gate.needed(efficiency) + max(n_per_round, wanted / max(efficiency, 1e-9))
    return efficiency >= gate.efficiency_min and now <= left < later
