"""The ladder: rungs that correct the network's draws until each object passes its gate.

The first rungs, reweighting and topping up, are the network's own draws; every later one takes the
objects that are still open, with all that is known of them, and hands back who passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.arguments import of_kind, one_of, whole
from nbi_plus.infer.ladder.audit import PeakAudit
from nbi_plus.infer.ladder.earlier import HINTS
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import Rung, RungContext
from nbi_plus.infer.ladder.rung_ensemble import EnsembleRung
from nbi_plus.infer.ladder.rung_hmc import HmcRung
from nbi_plus.infer.ladder.rung_peaks import PeaksRung
from nbi_plus.infer.ladder.rung_refine import FlowRung, LastRung, RefineRung
from nbi_plus.infer.posterior.accounts import Budget
from nbi_plus.infer.posterior.certificate import weigh
from nbi_plus.infer.posterior.outcome import Outcome, Pool
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.posterior.translated import TranslatedFlow
from nbi_plus.infer.proposals.base import Conditioned, FlowProposal, LatentProposal
from nbi_plus.infer.proposals.cross_fit import Pair, take
from nbi_plus.infer.proposals.several import MemberProposals
from nbi_plus.infer.weights.clean import log_mixture
from nbi_plus.infer.weights.summary import Gate, gate_of
from nbi_plus.problem.target import Evaluation
from nbi_plus.progress import say

_N_HINTED = 2048  # draws from the places that are worth a look
_BEYOND = "the posterior can go on where the old prior allowed no draws"
_ESCALATE = ("auto", "never", "always")
_CONTRACT = ("name", "status", "applies", "run")

NetworkProposal = FlowProposal | MemberProposals | TranslatedFlow


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
    escalate : {"auto", "never", "always"}
        Whether objects go on that did not pass with the network's own draws; "always" sends those
        that passed on to the chains, too, as a check.
    budget : Budget
        What one object may cost at most.
    peaks : PeaksRung, optional
        The rung that looks for peaks, where there are gradients, and draws around them. Default:
        `PeaksRung` where ``refine`` has rounds, else none.
    refine : RefineRung
        The rung that adapts a mixture to each object.
    hmc : HmcRung
        Chains, where simulator, prior and noise have gradients in torch.
    flow : FlowRung
        The rung that adapts a flow to each object.
    ensemble : EnsembleRung
        emcee: without gradients the last rung, else for what chains did not settle.
    audit : PeakAudit or None
        Looks for places that certified answers do not hold.
    rungs : tuple of Rung, optional
        All rungs after the network's own draws, in their order, instead of these five and, with a
        budget of time, of the draws that what is left of it goes into.
    """

    n_draws: int = 2048
    gate: Gate = field(default_factory=Gate)
    defensive_share: float = 0.2
    defensive_width: float = 2.0
    top_up_draws: int = 16_384
    top_up_seconds: float = 1e-4
    escalate: str = "auto"
    budget: Budget = field(default_factory=Budget)
    peaks: PeaksRung | None = None
    refine: RefineRung = field(default_factory=RefineRung)
    hmc: HmcRung = field(default_factory=HmcRung)
    flow: FlowRung = field(default_factory=FlowRung)
    ensemble: EnsembleRung = field(default_factory=EnsembleRung)
    audit: PeakAudit | None = field(default_factory=PeakAudit)
    rungs: tuple[Rung, ...] | None = None

    def __post_init__(self) -> None:
        whole("n_draws", self.n_draws)
        whole("top_up_draws", self.top_up_draws, 0)
        one_of("escalate", self.escalate, _ESCALATE)
        if self.rungs is not None:
            of_kind("rungs", self.rungs, tuple, "Write (rung, ...).")
        for rung in self.rungs or ():
            missing = [name for name in _CONTRACT if not hasattr(rung, name)]
            if isinstance(rung, type) or missing:
                raise TypeError(
                    f"rungs must be objects with {', '.join(_CONTRACT)}, but hold {rung!r}. See "
                    "nbi_plus.infer.ladder.Rung."
                )

    def rungs_for(self, context: RungContext) -> list[Rung]:
        """Return the rungs after the network's own draws, in their order."""
        if self.escalate == "never":
            return []
        if self.rungs is not None:
            return context.applying(self.rungs)
        peaks = self.peaks or (PeaksRung() if self.refine.n_rounds else PeaksRung(n_starts=0))
        # walkers take more calls than a flow, and less time: those of gradients are cheap
        last = (self.ensemble, self.flow) if self.hmc.applies(context.target) else (
            self.flow, self.ensemble)  # fmt: skip
        last += (LastRung(),) if math.isfinite(self.budget.seconds) else ()
        return context.applying([peaks, self.refine, self.hmc, *last])

    def goes_on(self, outcome: Outcome) -> Tensor:
        """Say which objects (b,) the network's own draws do not settle."""
        return outcome.can_improve | (outcome.passed & (self.escalate == "always"))


@torch.no_grad()
def reweight(
    proposal: NetworkProposal, features: Tensor, keys: Tensor, context: RungContext, ladder: Ladder,
    look: LatentProposal | None = None,
) -> Iterator[Outcome]:  # fmt: skip
    """Yield outcomes that together hold every object once, weighted with the network's draws.

    They come one by one, so that the draws of no more than one need be in memory. Draws of another
    proposal join before anything is judged: a network that misses a place would pass without.

    Parameters
    ----------
    proposal : FlowProposal, MemberProposals or TranslatedFlow
    features : Tensor, shape (B, F)
    keys : Tensor of int64, shape (B,)
        What the randomness of each object is keyed by.
    context : RungContext
    ladder : Ladder
    look : LatentProposal, optional
        Of places that are worth a look.
    """

    def draw(index: Tensor, n: int, stage: str) -> Pool:
        made = proposal.draw(features[index], keys[index], n, context.seed, context.stage(stage))
        found = context.evaluate(made.z, index)
        return Pool(index, made.z, made.log_q, found.log_prior, found.log_likelihood, found.failed)

    index = torch.arange(len(features), device=features.device)
    with context.meter.timed(index):
        pool = draw(index, ladder.n_draws, "predict")
        if look is not None:
            pool = _with_hints(pool, Conditioned(proposal, features), keys, look, context)
        rung, family = ("reweight", "network") if look is None else (HINTS, "mixture")
        first = _graded(rung, family, pool, context, proposal)
    context.report.note(first, otherwise=_BEYOND)
    cheap = context.target.seconds_per_row <= ladder.top_up_seconds
    more = ladder.top_up_draws - ladder.n_draws
    near = _nearly_passed(first, ladder.gate) & (cheap and more > 0 and look is None)
    if not near.all():
        yield first.select((~near).nonzero()[:, 0])
    at_once = max(1, launch.of(features.device).batch_draws // max(ladder.top_up_draws, 1))
    for rows in near.nonzero()[:, 0].split(at_once):
        if len(rows):
            with context.meter.timed(rows):
                joined = Pool.join(first.pool.select(rows), draw(rows, more, "top up"))
                outcome = _graded("top up", "network", joined, context, proposal)
            context.report.note(outcome, otherwise=_BEYOND)
            yield outcome


def open_objects_of(
    outcome: Outcome, proposal: NetworkProposal, features: Tensor, keys: Tensor,
    look: LatentProposal | None = None,
) -> OpenObjects:  # fmt: skip
    """Return the objects of an outcome with the network as their first proposal.

    Parameters
    ----------
    outcome : Outcome
        Of b objects, from `reweight` with the same arguments.
    proposal : FlowProposal, MemberProposals or TranslatedFlow
    features : Tensor, shape (b, F)
    keys : Tensor of int64, shape (b,)
    look : LatentProposal, optional
    """
    pool, network = outcome.pool, Conditioned(proposal, features)
    found = Evaluation(pool.log_prior, pool.log_likelihood, pool.failed)
    if look is None:
        pair = Pair.start(network, pool.z, found, pool.log_q)
    else:
        own, more = slice(None, -_N_HINTED), slice(-_N_HINTED, None)
        pair = Pair.start(network, pool.z[:, own], take(found, own))
        pair = pair.extend((look, look), pool.z[:, more], take(found, more))
    # nothing was fitted to these draws: they may count for the evidence
    return OpenObjects(pool.index, keys, replace(pair, n_shared=0), (outcome,), peaks=outcome.peaks)


def _with_hints(
    pool: Pool, network: Conditioned, keys: Tensor, look: LatentProposal, context: RungContext
) -> Pool:
    """Return the network's draws and those of another proposal, of one mixture."""
    z = look.draw(keys, _N_HINTED, context.seed, context.stage("modes"))
    found = context.evaluate(z, pool.index)
    nothing = torch.empty_like(found.log_prior)
    more = Pool(pool.index, z, nothing, found.log_prior, found.log_likelihood, found.failed)
    joined = Pool.join(pool, more)
    log_q = torch.stack([q.log_prob(joined.z) for q in (network, look)])
    counts = torch.tensor([pool.z.shape[1], _N_HINTED])
    return replace(joined, log_q=log_mixture(log_q, counts))


@torch.no_grad()
def climb(groups: list[OpenObjects], context: RungContext, ladder: Ladder) -> Iterator[OpenObjects]:
    """Yield objects that together hold every object of the groups once, after their last rung.

    Each rung runs on the objects that are still open; with ``escalate="always"`` the first chains
    run on all. Who needs no further rung leaves at once, and takes the memory of its draws along.
    """
    rungs = ladder.rungs_for(context) if groups else []
    chains = [i for i, rung in enumerate(rungs) if rung.status.from_chains]
    check = chains[0] if chains and ladder.escalate == "always" else -1
    for i, rung in enumerate(rungs):
        takes_all, checked_later = i == check, i < check
        after: list[OpenObjects] = []
        while groups:
            group = groups.pop(0)
            enters = group.can_improve | takes_all
            say(f"{int(enters.sum())} at rung {rung.name}")
            if not enters.all():
                after.append(group.where(~enters))
            for left in rung.run(group.where(enters), context) if enters.any() else ():
                stays = left.can_improve | checked_later
                if not stays.all():
                    yield left.where(~stays)
                if stays.any():
                    after.append(left.where(stays))
        groups = after
    yield from groups


def _graded(
    rung: str, family: str, pool: Pool, context: RungContext, proposal: NetworkProposal
) -> Outcome:
    cleaned, summary = weigh(pool, context.circles, context.seed)
    grade = gate_of(family, context.gate).grade(summary)
    outcome = Outcome(rung, family, pool, cleaned, summary, grade, Status.REWEIGHTED)
    return outcome.unless(proposal.ends_inside(pool.z, summary.weights, summary.ess))


def _nearly_passed(outcome: Outcome, gate: Gate) -> Tensor:
    """Say which objects more draws of the same proposal can certify (grade B)."""
    s = outcome.summary
    near = (s.efficiency >= gate.eff_min_low) & ~s.heavy_tail
    return outcome.can_improve & near & ~outcome.ends_inside
