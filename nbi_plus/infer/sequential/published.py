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
from nbi_plus.infer.sequential.config import Answer, First, RoundsConfig
from nbi_plus.infer.sequential.journal import Step, Tape
from nbi_plus.infer.sequential.ledger import Ledger
from nbi_plus.infer.sequential.locator import Locator
from nbi_plus.infer.sequential.rounds import Rounds, Stop
from nbi_plus.infer.sequential.snpe_is import SnpeIS
from nbi_plus.infer.sequential.workspace import Bench, Halt
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
    tape : Tape
    config : RoundsConfig
    gate : Gate
    key : Tensor of int64, shape (1,)
        What the object's randomness is keyed by.
    seed : int
    """

    def __init__(  # noqa: PLR0913 - as Search, and the method
        self, method: str, ledger: Ledger, locator: Locator, tape: Tape, config: RoundsConfig,
        gate: Gate, key: Tensor, seed: int,
    ) -> None:  # fmt: skip
        self._method, self._gate = method, gate
        self._bench = Bench(ledger, locator, tape, config, key, seed)

    def __call__(self, first: First) -> Answer:
        """Return the answer: certified, or with the reason why not."""
        if first.modes is not None:
            raise ValueError(
                f"modes must be None for method {self._method!r}, which cannot look there, but "
                "were given. Use method='amis'."
            )
        if self._method == "snpe-is":
            return SnpeIS(self._bench)(first)
        return AllRounds(self._bench, _SCHEMES[self._method](), self._gate)(first)


class Scheme(Protocol):
    """Where the simulations of a round come from, and the loss that this asks for.

    ``pools`` says whether they count in the answer, as draws of a known density.
    """

    name: str
    pools: bool

    def loss(self, all_of_prior: bool) -> Loss:
        """Return the loss for simulations that are all draws of the prior, or not."""

    def step(self, bench: Bench, network: PosteriorNetwork, n: int, stage: str) -> Step:
        """Return ``n`` draws; their proposal too, where ``pools``."""


class APT:
    """Automatic posterior transformation: the network's own posterior, and the atomic loss."""

    name = "apt"
    pools = True

    def loss(self, all_of_prior: bool) -> Loss:
        """Return the atomic loss as soon as a draw is not the prior's."""
        return nll if all_of_prior else AtomicLoss()

    def step(self, bench: Bench, network: PosteriorNetwork, n: int, stage: str) -> Step:
        """Return draws of the network, a part of them from a wider base."""
        return bench.drawn((bench.proposal(network),), n, stage, network)


class TSNPE:
    """Truncated proposals: the prior, where the network has mass, which plain NLL allows."""

    name = "tsnpe"
    pools = False

    def loss(self, all_of_prior: bool) -> Loss:  # noqa: ARG002
        """Return the negative log-likelihood."""
        return nll

    def step(self, bench: Bench, network: PosteriorNetwork, n: int, stage: str) -> Step:
        """Return draws of the truncated prior, whose normalisation is not known."""
        plain = bench.proposal(network, share=0.0)
        truncated = TruncatedPrior.of(plain, bench.key, bench.seed, stage)
        z = truncated.draw(bench.key, n, bench.seed, stage).z
        return Step((), z, network.state_dict())


_SCHEMES = {scheme.name: scheme for scheme in (APT, TSNPE)}


class AllRounds:
    """A network trained on the simulations of all rounds, and at last weighed, if that is possible.

    With a likelihood, fresh draws of the final network's defensive proposal certify the answer;
    draws of earlier rounds count beside them where their proposal has a density. Without one, the
    answer is draws of the final network.

    Parameters
    ----------
    bench : Bench
    scheme : Scheme
    gate : Gate
    """

    def __init__(self, bench: Bench, scheme: Scheme, gate: Gate) -> None:
        # networks of one object are flows fitted to it
        self._bench, self._scheme, self._gate = bench, scheme, gate_of("flow", gate)
        self._weighs = bench.ledger.has_likelihood
        self._circles = circular_columns(bench.ledger.target.prior.periods)
        if self._weighs:
            bench.reserve = min(bench.config.certify_draws, bench.config.budget // 2)
        self._network: PosteriorNetwork | None = None
        self._all_of_prior = True
        self._pair: Pair | None = None
        self._fresh: Stream | None = None

    def __call__(self, first: First) -> Answer:
        """Return the answer."""
        try:
            stop = self._run(first)
        except Halt as halt:
            stop = halt.stop
        if self._weighs:
            return self._weighted(stop)
        return self._unweighted(stop)

    def _run(self, first: First) -> Stop:
        bench = self._bench
        self._start(first)
        while (end := bench.end_of_rounds()) is None:
            self._round(bench.affordable(bench.config.n_per_round))
            if self._enough():
                return Stop.ESS_REACHED
        if self._weighs:
            return self._certify()
        self._learn("final", lambda net: bench.drawn((bench.proposal(net),), 2, "final", net))
        return end

    # --- rounds ----------------------------------------------------------------------------------

    def _start(self, first: First) -> None:
        bench = self._bench
        if first.simulations is not None:
            z, models, failed = (v[None] for v in first.simulations)
            prior = (PriorProposal(z.shape[-1]),) if self._scheme.pools else ()
            self._add("prior", Step(prior, z, {}), bench.ledger.adopt(z, models, failed))
            return
        self._network, self._all_of_prior = first.network, False
        n = bench.config.n_per_round
        draw = partial(self._scheme.step, bench, first.network, n, "start")
        step = bench.tape.step("start", draw)
        self._add("start", step, bench.evaluate(step.z, keep=True))

    def _round(self, n: int) -> None:
        bench, stage = self._bench, f"{self._scheme.name} {len(self._bench.rows)}"
        propose = partial(self._scheme.step, bench, n=n, stage=stage)
        step = self._learn(stage, propose)
        self._all_of_prior = False
        self._add(self._scheme.name, step, bench.evaluate(step.z, keep=True))

    def _learn(self, stage: str, propose: Callable[[PosteriorNetwork], Step]) -> Step:
        """Return what a network proposes that was trained on everything there is."""

        def make() -> Step:
            pool, usable = self._bench.simulations()
            loss = self._scheme.loss(self._all_of_prior)
            return propose(
                self._bench.locator.train_on_all(pool, usable, self._network, stage, loss)
            )

        step = self._bench.tape.step(stage, make)
        self._network = self._bench.locator.rebuild(step.state)
        return step

    def _add(self, phase: str, step: Step, found: Evaluation) -> None:
        """Note a round; its draws are fresh ones of a proposal that was fitted before them."""
        n = step.z.shape[1]
        if self._weighs and step.proposals:
            self._fresh = None
            self._add_fresh(phase, step.proposals[0], step.z, found)
        elif self._weighs:
            self._bench.note(phase, n, efficiency=_efficiency(_log_likelihood(found)))
        else:
            self._bench.note(phase, n)

    # --- the answer ------------------------------------------------------------------------------

    def _certify(self) -> Stop:
        """Weigh fresh draws of the final network, until they are as many as was wanted."""
        bench = self._bench
        n = bench.last(bench.config.certify_draws)
        step = self._learn(
            "final", lambda net: bench.drawn((bench.proposal(net),), n, "final", net)
        )
        self._fresh, frozen = None, step.proposals[0]
        self._add_fresh("certify", frozen, step.z, bench.evaluate(step.z))
        while self._short() > 0 and self._efficiency() >= self._gate.efficiency_min:
            wanted = bench.config.spare * self._short() / self._efficiency()
            n, name = bench.last(math.ceil(wanted)), f"top up {len(bench.rows)}"
            z = bench.tape.step(name, partial(bench.drawn, (frozen,), n, name)).z
            self._add_fresh("certify", frozen, z, bench.evaluate(z))
        return Stop.ESS_REACHED if self._grade() > Grade.F else Stop.NO_PROGRESS

    def _add_fresh(
        self, phase: str, proposal: LatentProposal, z: Tensor, found: Evaluation
    ) -> None:
        fresh, pair = self._fresh, self._pair
        self._fresh = (fresh.add if fresh else Stream.start)(proposal, z, found)
        self._pair = (pair.share if pair else Pair.start)(proposal, z, found)
        self._bench.note_pair(phase, z.shape[1], self._pair, self._fresh)

    def _grade(self) -> int:
        return int(grade_fresh(self._fresh, self._gate, circles=self._circles))

    def _efficiency(self) -> float:
        return _efficiency(self._fresh.log_weights)

    def _short(self) -> float:
        """Return how many effective draws are missing, in all or for the gate."""
        in_all = self._bench.config.ess_target - float(self._pair.ess)
        fresh = self._gate.ess_min - self._efficiency() * self._fresh.z.shape[1]
        return max(in_all, fresh, 0.0)

    def _enough(self) -> bool:
        """Say whether the draws so far are the answer already."""
        return self._pair is not None and self._short() == 0 and self._grade() == Grade.A

    def _weighted(self, stop: Stop) -> Answer:
        bench = self._bench
        if self._pair is None:
            raise self._too_early(stop)
        outcome = outcome_of(
            self._pair, self._fresh, self._gate, rung="sequential",
            index=torch.zeros_like(bench.key), seed=bench.seed, circles=self._circles,
        )  # fmt: skip
        reached = bool(outcome.passed) and float(outcome.summary.ess) >= bench.config.ess_target
        return self._answer(
            outcome, self._fresh.proposals[-1], Stop.ESS_REACHED if reached else stop
        )

    def _unweighted(self, stop: Stop) -> Answer:
        bench = self._bench
        if self._network is None:
            raise self._too_early(stop)
        frozen = bench.proposal(self._network, share=0.0)
        n = max(bench.config.certify_draws, math.ceil(bench.config.ess_target))
        z = frozen.draw(bench.key, n, bench.seed, "answer")
        return self._answer(unweighted_outcome(frozen, z), frozen, stop)

    def _answer(self, outcome: Outcome, frozen: LatentProposal, stop: Stop) -> Answer:
        return Answer(outcome, frozen, Rounds(tuple(self._bench.rows), stop), self._network)

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
