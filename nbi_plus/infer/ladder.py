"""The ladder: rungs that correct the network's draws until each object passes its gate.

A rung is a function ``run(target, pool) -> Outcome`` over the objects that are still open. Here
stand the first two, reweighting and topping up; `refine` is the third.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nbi_plus.infer.certificate import weigh
from nbi_plus.infer.circles import circular_columns
from nbi_plus.infer.outcome import Outcome, Pool
from nbi_plus.infer.proposals import Conditioned, FlowProposal
from nbi_plus.infer.refine import RefineConfig, refine
from nbi_plus.infer.weights import Gate
from nbi_plus.problem.target import Target

ROWS_AT_ONCE = 2**16  # draws of all objects of one batch: bounds the memory of a survey


@dataclass(frozen=True)
class Ladder:
    """Chosen state of the ladder.

    Attributes
    ----------
    n_draws : int
        Draws evaluated for each object at least.
    gate : Gate
    defensive_share, defensive_width : float
        The part of the draws from the same flow with a wider base, and how much wider.
    top_up_draws : int
        To how many draws an object is topped up that nearly passed.
    top_up_seconds : float
        Only while one simulation costs less than this.
    refine : RefineConfig
        The rung that adapts a proposal to each object that did not pass.
    """

    n_draws: int = 2048
    gate: Gate = field(default_factory=Gate)
    defensive_share: float = 0.2
    defensive_width: float = 2.0
    top_up_draws: int = 16_384
    top_up_seconds: float = 1e-4
    refine: RefineConfig = field(default_factory=RefineConfig)


@torch.no_grad()
def climb(
    target: Target,
    proposal: FlowProposal,
    features: Tensor,
    keys: Tensor,
    ladder: Ladder,
    seed: int,
) -> Iterator[Outcome]:
    """Yield outcomes that together hold every object once, under the last rung it took.

    They come one by one, so that the draws of no more than one need be in memory.

    Parameters
    ----------
    target : Target
        Of B objects.
    proposal : FlowProposal
    features : Tensor, shape (B, F)
    keys : Tensor of int64, shape (B,)
        What the randomness of each object is keyed by.
    ladder : Ladder
    seed : int
    """
    index = torch.arange(len(features), device=features.device)
    pool = _draw(target, proposal, features, keys, index, ladder.n_draws, seed, "predict")
    circles = circular_columns(target.prior.periods)
    first = grade("reweight", pool, ladder, seed, circles)
    cheap = target.simulator.seconds_per_row <= ladder.top_up_seconds
    more = ladder.top_up_draws - ladder.n_draws
    near = _nearly_passed(first, ladder.gate) & (cheap and more > 0)
    hopeful = first.can_improve & ~near & (ladder.refine.n_rounds > 0)
    done = ~near & ~hopeful
    if done.any():
        yield first.select(done.nonzero()[:, 0])
    at_once = max(1, ROWS_AT_ONCE // ladder.top_up_draws)
    for rows in near.nonzero()[:, 0].split(at_once):
        if len(rows):
            added = _draw(target, proposal, features, keys, rows, more, seed, "top up")
            joined = Pool.join(first.pool.select(rows), added)
            yield grade("top up", joined, ladder, seed, circles)
    rows = hopeful.nonzero()[:, 0]
    if len(rows):
        start = Conditioned(proposal, features[rows])
        yield from refine(
            first.pool.select(rows), start, keys[rows], target, ladder.refine, ladder.gate, seed
        )


def grade(
    rung: str, pool: Pool, ladder: Ladder, seed: int, circles: tuple[int, ...] = ()
) -> Outcome:
    """Weigh the draws of a pool and judge them."""
    cleaned, summary = weigh(pool, circles, seed)
    return Outcome(rung, pool, cleaned, summary, ladder.gate.grade(summary))


def _draw(
    target: Target, proposal: FlowProposal, features: Tensor, keys: Tensor, index: Tensor, n: int,
    seed: int, stage: str,
) -> Pool:  # fmt: skip
    draws = proposal.draw(features[index], keys[index], n, seed, stage)
    found = target.evaluate(draws.z, index)
    return Pool(index, draws.z, draws.log_q, found.log_prior, found.log_likelihood, found.failed)


def _nearly_passed(outcome: Outcome, gate: Gate) -> Tensor:
    """Say which objects more draws of the same proposal can certify (grade B)."""
    s = outcome.summary
    near = (s.efficiency >= gate.eff_min_low) & ~s.heavy_tail
    return outcome.can_improve & near


def unweighted(proposal: FlowProposal, features: Tensor, keys: Tensor, n: int, seed: int) -> Pool:
    """Return the network's own draws, where there is no likelihood to weigh them with."""
    draws = proposal.draw(features, keys, n, seed, "predict")
    log_prior = -0.5 * (draws.z.square() + math.log(2 * math.pi)).sum(-1)
    nothing = torch.full_like(draws.log_q, math.nan)
    index = torch.arange(len(features), device=features.device)
    return Pool(
        index, draws.z, draws.log_q, log_prior, nothing, torch.zeros_like(nothing, dtype=torch.bool)
    )
