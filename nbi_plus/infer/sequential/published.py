"""Classic methods: sequential fits by training alone, to compare with or to do without weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from nbi_plus.infer.posterior.certificate import grade_fresh, outcome_of, unweighted_outcome
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.base import LatentProposal, PriorProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.cross_fit import Pair
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.proposals.truncated import TruncatedPrior
from nbi_plus.infer.sequential.config import RoundsConfig, RoundZero, SequentialOutcome
from nbi_plus.infer.sequential.journal import Journal, Step
from nbi_plus.infer.sequential.ledger import Ledger
from nbi_plus.infer.sequential.locator import Locator
from nbi_plus.infer.sequential.rounds import Rounds, Stop
from nbi_plus.infer.sequential.snpe_is import SnpeIS
from nbi_plus.infer.sequential.workspace import Halt, Workspace
from nbi_plus.infer.weights.summary import Gate, Grade, effective_sample_size, gate_of
from nbi_plus.learn.losses import AtomicLoss, Loss, nll
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.problem.target import Evaluation


class Classic:
    """One sequential fit by a published method; call it once.

    Parameters
    ----------
    method : {"snpe-is", "apt", "tsnpe"}
    ledger : Ledger
    locator : Locator
    journal : Journal
    config : RoundsConfig
    gate : Gate
    key : Tensor of int64, shape (1,)
        What the object's randomness is keyed by.
    seed : int
    """

    def __init__(  # noqa: PLR0913 - as Search, and the method
        self, method: str, ledger: Ledger, locator: Locator, journal: Journal, config: RoundsConfig,
        gate: Gate, key: Tensor, seed: int,
    ) -> None:  # fmt: skip
        self._method, self._gate = method, gate
        self._work = Workspace(ledger, locator, journal, config, key, seed)

    def __call__(self, first: RoundZero) -> SequentialOutcome:
        """Return the answer: certified, or with the reason why not."""
        if first.look is not None:
            raise ValueError(
                f"modes must be None for method {self._method!r}, which cannot look there, but "
                "were given. Use method='amis'."
            )
        if self._method == "snpe-is":
            return SnpeIS(self._work)(first)
        return AllRounds(self._work, _SCHEMES[self._method](), self._gate)(first)


class Scheme(Protocol):
    """Where the simulations of a round come from, and the loss that this asks for.

    ``pools`` says whether they count in the answer, as draws of a known density.
    """

    name: str
    pools: bool

    def loss(self, all_of_prior: bool) -> Loss:
        """Return the loss for simulations that are all draws of the prior, or not."""

    def step(self, work: Workspace, network: PosteriorNetwork, n: int, stage: str) -> Step:
        """Return ``n`` draws; their proposal too, where ``pools``."""


class APT:
    """Automatic posterior transformation: the network's own posterior, and the atomic loss."""

    name = "apt"
    pools = True

    def loss(self, all_of_prior: bool) -> Loss:
        """Return the atomic loss as soon as a draw is not the prior's."""
        return nll if all_of_prior else AtomicLoss()

    def step(self, work: Workspace, network: PosteriorNetwork, n: int, stage: str) -> Step:
        """Return draws of the network, a part of them from a wider base."""
        return work.drawn((work.proposal(network),), n, stage, network)


class TSNPE:
    """Truncated proposals: the prior, where the network has mass, which plain NLL allows."""

    name = "tsnpe"
    pools = False

    def loss(self, all_of_prior: bool) -> Loss:  # noqa: ARG002
        """Return the negative log-likelihood."""
        return nll

    def step(self, work: Workspace, network: PosteriorNetwork, n: int, stage: str) -> Step:
        """Return draws of the truncated prior, whose normalisation is not known."""
        plain = work.proposal(network, share=0.0)
        truncated = TruncatedPrior.of(plain, work.key, work.seed, stage)
        z = truncated.draw(work.key, n, work.seed, stage).z
        return Step((), z, network.state_dict())


_SCHEMES = {scheme.name: scheme for scheme in (APT, TSNPE)}


class AllRounds:
    """A network trained on the simulations of all rounds, and at last weighed, if that is possible.

    With a likelihood, fresh draws of the final network's defensive proposal certify the answer;
    draws of earlier rounds count beside them where their proposal has a density. Without one, the
    answer is draws of the final network.

    Parameters
    ----------
    work : Workspace
    scheme : Scheme
    gate : Gate
    """

    def __init__(self, work: Workspace, scheme: Scheme, gate: Gate) -> None:
        # networks of one object are flows fitted to it
        self._work, self._scheme, self._gate = work, scheme, gate_of("flow", gate)
        self._weighs = work.ledger.has_likelihood
        self._circles = circular_columns(work.ledger.target.prior.periods)
        if self._weighs:
            work.reserve = min(work.config.certify_draws, work.config.budget // 2)
        self._network: PosteriorNetwork | None = None
        self._all_of_prior = True
        self._pair: Pair | None = None
        self._fresh: Stream | None = None

    def __call__(self, first: RoundZero) -> SequentialOutcome:
        """Return the answer."""
        try:
            stop = self._run(first)
        except Halt as halt:
            stop = halt.stop
        if self._weighs:
            return self._weighted(stop)
        return self._unweighted(stop)

    def _run(self, first: RoundZero) -> Stop:
        work = self._work
        self._start(first)
        while (end := work.end_of_rounds()) is None:
            self._round(work.affordable(work.config.n_per_round))
            if self._enough():
                return Stop.ESS_REACHED
        if self._weighs:
            return self._certify()
        self._learn("final", lambda net: work.drawn((work.proposal(net),), 2, "final", net))
        return end

    # --- rounds ----------------------------------------------------------------------------------

    def _start(self, first: RoundZero) -> None:
        work = self._work
        if first.simulations is not None:
            z, models, failed = (v[None] for v in first.simulations)
            prior = (PriorProposal(z.shape[-1]),) if self._scheme.pools else ()
            self._add("prior", Step(prior, z, {}), work.ledger.adopt(z, models, failed))
            return
        self._network, self._all_of_prior = first.network, False
        n = work.config.n_per_round
        draw = partial(self._scheme.step, work, first.network, n, "start")
        step = work.journal.step("start", draw)
        self._add("start", step, work.evaluate(step.z, keep=True))

    def _round(self, n: int) -> None:
        work, stage = self._work, f"{self._scheme.name} {len(self._work.rows)}"
        propose = partial(self._scheme.step, work, n=n, stage=stage)
        step = self._learn(stage, propose)
        self._all_of_prior = False
        self._add(self._scheme.name, step, work.evaluate(step.z, keep=True))

    def _learn(self, stage: str, propose: Callable[[PosteriorNetwork], Step]) -> Step:
        """Return what a network proposes that was trained on everything there is."""

        def make() -> Step:
            pool, usable = self._work.simulations()
            loss = self._scheme.loss(self._all_of_prior)
            return propose(
                self._work.locator.train_on_all(pool, usable, self._network, stage, loss)
            )

        step = self._work.journal.step(stage, make)
        self._network = self._work.locator.rebuild(step.state)
        return step

    def _add(self, phase: str, step: Step, found: Evaluation) -> None:
        """Note a round; its draws are fresh ones of a proposal that was fitted before them."""
        if self._weighs and step.proposals:
            self._fresh = None
            self._add_fresh(phase, step.proposals[0], step.z, found)
        elif self._weighs:
            self._work.note(phase, efficiency=_efficiency(_log_likelihood(found)))
        else:
            self._work.note(phase)

    # --- the answer ------------------------------------------------------------------------------

    def _certify(self) -> Stop:
        """Weigh fresh draws of the final network, until they are as many as was wanted."""
        work = self._work
        n = work.last(work.config.certify_draws)
        step = self._learn("final", lambda net: work.drawn((work.proposal(net),), n, "final", net))
        self._fresh, frozen = None, step.proposals[0]
        self._add_fresh("certify", frozen, step.z, work.evaluate(step.z))
        while self._short() > 0 and self._efficiency() >= self._gate.efficiency_min:
            wanted = work.config.spare * self._short() / self._efficiency()
            n, name = work.last(math.ceil(wanted)), f"top up {len(work.rows)}"
            z = work.journal.step(name, partial(work.drawn, (frozen,), n, name)).z
            self._add_fresh("certify", frozen, z, work.evaluate(z))
        return Stop.ESS_REACHED if self._grade() > Grade.F else Stop.NO_PROGRESS

    def _add_fresh(
        self, phase: str, proposal: LatentProposal, z: Tensor, found: Evaluation
    ) -> None:
        fresh, pair = self._fresh, self._pair
        self._fresh = (fresh.add if fresh else Stream.start)(proposal, z, found)
        self._pair = (pair.share if pair else Pair.start)(proposal, z, found)
        self._work.note_pair(phase, self._pair, self._fresh)

    def _grade(self) -> int:
        return int(grade_fresh(self._fresh, self._gate, circles=self._circles))

    def _efficiency(self) -> float:
        return _efficiency(self._fresh.log_weights)

    def _short(self) -> float:
        """Return how many effective draws are missing, in all or for the gate."""
        in_all = self._work.config.ess_target - float(self._pair.ess)
        fresh = self._gate.ess_min - self._efficiency() * self._fresh.z.shape[1]
        return max(in_all, fresh, 0.0)

    def _enough(self) -> bool:
        """Say whether the draws so far are the answer already."""
        return self._pair is not None and self._short() == 0 and self._grade() == Grade.A

    def _weighted(self, stop: Stop) -> SequentialOutcome:
        work = self._work
        if self._pair is None:
            raise self._too_early(stop)
        outcome = outcome_of(
            self._pair, self._fresh, self._gate, rung="sequential",
            index=torch.zeros_like(work.key), seed=work.seed, circles=self._circles,
        )  # fmt: skip
        reached = bool(outcome.passed) and float(outcome.summary.ess) >= work.config.ess_target
        return self._answer(
            outcome, self._fresh.proposals[-1], Stop.ESS_REACHED if reached else stop
        )

    def _unweighted(self, stop: Stop) -> SequentialOutcome:
        work = self._work
        if self._network is None:
            raise self._too_early(stop)
        frozen = work.proposal(self._network, share=0.0)
        n = max(work.config.certify_draws, math.ceil(work.config.ess_target))
        z = frozen.draw(work.key, n, work.seed, "answer")
        return self._answer(unweighted_outcome(frozen, z), frozen, stop)

    def _answer(self, outcome: Outcome, frozen: LatentProposal, stop: Stop) -> SequentialOutcome:
        return SequentialOutcome(
            outcome, frozen, Rounds(tuple(self._work.rows), stop), self._network
        )

    def _too_early(self, stop: Stop) -> Exception:
        kind = TimeoutError if stop is Stop.TIME else RuntimeError
        return kind(
            f"method {self._scheme.name!r} must come to draws of its final network, but ended "
            f"before: {stop.value} Allow for more; with path= a new fit goes on from here."
        )


def _log_likelihood(found: Evaluation) -> Tensor:
    """Return the weights of draws of the prior, or a part of it, up to a factor."""
    usable = found.log_likelihood.isfinite() & ~found.failed
    return torch.where(usable, found.log_likelihood, -torch.inf)


def _efficiency(log_weights: Tensor) -> float:
    return float(effective_sample_size(log_weights)) / log_weights.shape[1]
