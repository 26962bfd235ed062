"""Climbing: what proposals could not settle goes on to chains, as on the ladder of many objects."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.ladder.rung_hmc import HmcRung
from nbi_plus.infer.posterior.accounts import Budget, Cost, Meter, ReportLog
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.cross_fit import MixtureFamily, OnCircles, Pair, fit_defended
from nbi_plus.infer.samplers.hmc import HmcConfig
from nbi_plus.infer.sequential.workspace import Workspace
from nbi_plus.infer.weights.summary import Gate

LEAST_CALLS = 4000  # fewer warm no chains up
_WARMING = (15, 15, 20)
_CHAINS = HmcRung(n_super=4, n_each=2, sampler=HmcConfig(windows=_WARMING, max_laps=2))
# Of the calls that are left. A lap of warming up is never broken off, and the draws of the chains
# are simulated again to be weighed: what they may take at first is a third of what they can cost.
_FOR_STEPS, _FOR_WEIGHTS = 0.3, 0.15


@dataclass(frozen=True)
class Climbed:
    """What chains found for one object.

    Attributes
    ----------
    outcome : Outcome
        The best that is known of it: of the chains, or what it was before.
    frozen : LatentProposal or None
        Fitted to the draws of the chains, or of their mixture; None where these did not pass.
    n_calls, n_gradients : int
        What it cost: calls without and with a gradient.
    reason : str
        What stands against the chains.
    """

    outcome: Outcome
    frozen: LatentProposal | None
    n_calls: int
    n_gradients: int
    reason: str


def climb(work: Workspace, pair: Pair, before: Outcome, gate: Gate) -> Climbed:
    """Return what HMC makes of the pool of one object, within the budget that is left."""
    context = _context(work, gate)
    rung = _rung(work)
    objects = OpenObjects(before.pool.index, work.key, pair, (before,))
    after = next(iter(rung.run(objects, context)))
    outcome = next(after.answers())
    cost = context.meter.read(before.pool.index)
    told = [line.reason for line in context.report.lines[0] if line.reason]
    good = bool(outcome.passed)
    frozen, reason = (_frozen(outcome, work), "") if good else (None, "; ".join(told))
    return Climbed(outcome, frozen, int(cost.calls), int(cost.gradients), reason)


def _rung(work: Workspace) -> HmcRung:
    """Return chains that the budget can bear."""
    n_chains, left = _CHAINS.n_super * _CHAINS.n_each, work.left()
    leaps = int(_FOR_STEPS * left / (sum(_WARMING) * n_chains))
    sampler = _CHAINS.sampler
    return replace(
        _CHAINS,
        ess_target=min(_CHAINS.ess_target, work.config.ess_target),
        sampler=replace(sampler, max_leaps=max(1, min(sampler.max_leaps, leaps))),
        weights=replace(_CHAINS.weights, n_certify=int(_FOR_WEIGHTS * left)),
    )


def _context(work: Workspace, gate: Gate) -> RungContext:
    nothing = torch.zeros_like(work.key)
    free = Cost(nothing, nothing.clone(), nothing.double())
    meter = Meter.of(free, free)
    deadline = work.ledger.deadline
    seconds = math.inf if deadline is None else max(deadline - time.perf_counter(), 0.0)
    budget = Budget(work.left(), int(_FOR_STEPS * work.left()), seconds)
    report = ReportLog.of(meter, gate)
    return RungContext(work.ledger.target, meter, report, gate, budget, work.seed)


def _frozen(outcome: Outcome, work: Workspace) -> LatentProposal:
    """Return a proposal fitted to weighted draws: more can be drawn from it."""
    pool, circles = outcome.pool, circular_columns(work.ledger.target.prior.periods)
    height = pool.log_likelihood + pool.log_prior
    log_weights = torch.where(height.isfinite(), outcome.cleaned.log_weights, -math.inf)
    flat = torch.where(log_weights > -math.inf, log_weights - 0.5 * height, -math.inf)
    family = OnCircles(MixtureFamily(), circles)
    return fit_defended(pool.z, log_weights, flat, family, work.key, work.seed, "after chains")
