"""SNPE-IS as published (Zhang et al. 2023, algorithm 1), to reproduce and to compare with."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nbi_plus.infer.posterior.outcome import Outcome, Pool
from nbi_plus.infer.proposals.base import LatentProposal, PriorProposal
from nbi_plus.infer.proposals.circles import circular_columns, unwrapped
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.sequential.config import RoundZero, SequentialOutcome
from nbi_plus.infer.sequential.journal import Step
from nbi_plus.infer.sequential.rounds import Rounds, Stop
from nbi_plus.infer.sequential.workspace import Halt, Workspace
from nbi_plus.infer.weights.clean import clean
from nbi_plus.infer.weights.summary import effective_sample_size, normalise, summarise
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.problem.target import Evaluation

_LOG = logging.getLogger("nbi_plus")
CAUTION = (
    "snpe-is is never certified: plain NLL over rounds learns prior x likelihood^r and so narrows "
    "the posterior, while k-hat and the effective sample size look fine, and weights of proposals "
    "without a defensive part prove nothing. Use method='amis'."
)


class SnpeIS:
    """One fit; call it once.

    Each round trains on the simulations of the round before alone, proposes from the plain network,
    and weighs its draws with that proposal; rounds are pooled by their effective sample sizes.

    Parameters
    ----------
    work : Workspace
    """

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._rounds: list[Stream] = []
        self._networks: list[PosteriorNetwork | None] = []

    def __call__(self, first: RoundZero) -> SequentialOutcome:
        """Return the pooled answer, uncertified."""
        _LOG.warning("%s", CAUTION)
        try:
            stop = self._run(first)
        except Halt as halt:
            stop = halt.stop
        if not self._rounds:
            raise TimeoutError("max_seconds must allow for one round, but it is over before that.")
        network = self._networks[-2 if stop is Stop.DEGRADED else -1]
        prior = PriorProposal(self._rounds[0].z.shape[-1])
        # fresh draws can be judged, for these have a defensive part
        frozen = prior if network is None else self._work.proposal(network)
        table = Rounds(tuple(self._work.rows), stop, CAUTION)
        circles = circular_columns(self._work.ledger.target.prior.periods)
        outcome = pooled(self._rounds, circles, self._work.seed)
        return SequentialOutcome(outcome, frozen, table, network)

    def _run(self, first: RoundZero) -> Stop:
        self._start(first)
        while (end := self._end()) is None:
            self._round()
        return end

    def _end(self) -> Stop | None:
        if self._n_effective() >= self._work.config.ess_target:
            return Stop.ESS_SUMMED
        return Stop.DEGRADED if self._fell() else self._work.end_of_rounds()

    def _round(self) -> None:
        work, name = self._work, f"snpe-is {len(self._rounds)}"
        n = work.affordable(work.config.n_per_round)
        step = work.journal.step(name, partial(self._trained, name, n))
        work.ledger.forget()
        found = work.evaluate(step.z, keep=True)
        network = work.locator.rebuild(step.state)
        self._add("snpe-is", step.proposals[0], step.z, found, network)

    def _start(self, first: RoundZero) -> None:
        work = self._work
        if first.simulations is not None:
            z, models, failed = (v[None] for v in first.simulations)
            found = work.ledger.adopt(z, models, failed)
            self._add("prior", PriorProposal(z.shape[-1]), z, found, None)
            return
        plain = (work.proposal(first.network, share=0.0),)
        draw = partial(work.drawn, plain, work.config.n_per_round, "start")
        step = work.journal.step("start", draw)
        found = work.evaluate(step.z, keep=True)
        self._add("start", step.proposals[0], step.z, found, first.network)

    def _trained(self, name: str, n: int) -> Step:
        work = self._work
        network = work.locator.train_on_all(*work.simulations(), self._networks[-1], name)
        return work.drawn((work.proposal(network, share=0.0),), n, name, network)

    def _add(
        self, phase: str, proposal: LatentProposal, z: Tensor, found: Evaluation,
        network: PosteriorNetwork | None,
    ) -> None:  # fmt: skip
        stream = Stream.start(proposal, z, found)
        self._rounds.append(stream)
        self._networks.append(network)
        own = summarise(stream.log_weights)
        self._work.note(
            phase, ess=self._n_effective(),
            efficiency=_efficiency(stream), k_hat=float(own.k_hat),
        )  # fmt: skip

    def _n_effective(self) -> float:
        return float(sum(effective_sample_size(s.log_weights) for s in self._rounds))

    def _fell(self) -> bool:
        """Say whether the last network did worse than the one before it."""
        if len(self._rounds) < 2 or self._networks[-2] is None:
            return False
        return _efficiency(self._rounds[-1]) < _efficiency(self._rounds[-2])


def pooled(rounds: list[Stream], circles: tuple[int, ...], seed: int) -> Outcome:
    """Return the draws of all rounds, each normalised among its own and weighed by its ESS."""
    columns = ("z", "log_mixture", "log_prior", "log_likelihood", "failed")
    every = {k: torch.cat([getattr(s, k) for s in rounds], 1) for k in columns}
    index = torch.zeros(1, dtype=torch.int64, device=every["z"].device)
    pool = Pool(index, *every.values())
    cleaned = clean(pool.log_likelihood, pool.log_prior, pool.log_q, ~pool.failed)
    shares = torch.cat([_share(s.log_weights) for s in rounds], 1)
    shares = shares.masked_fill(cleaned.failure[:, None] != 0, -torch.inf)
    summary = summarise(shares, unwrapped(pool.z, shares, circles), ~pool.failed, seed=seed)
    ess = effective_sample_size(shares)
    summary = replace(
        summary,
        weights=normalise(shares),  # as published, without smoothing
        ess=ess,
        efficiency=ess / summary.n_draws.clamp(min=1),
        log_evidence=torch.full_like(ess, torch.nan),
        log_evidence_err=torch.full_like(ess, torch.nan),
        evidence_reliable=torch.zeros_like(summary.evidence_reliable),
    )
    grade = torch.zeros_like(cleaned.failure)
    cleaned = replace(cleaned, log_weights=shares)
    return Outcome("sequential", "flow", pool, cleaned, summary, grade)


def _share(log_weights: Tensor) -> Tensor:
    """Return the log-weights of one round, summing up to its effective sample size."""
    total = log_weights.logsumexp(1, keepdim=True)
    if not total.isfinite().all():
        return log_weights  # nothing but zeros
    return log_weights - total + effective_sample_size(log_weights).log()[:, None]


def _efficiency(stream: Stream) -> float:
    return float(effective_sample_size(stream.log_weights)) / stream.z.shape[1]
