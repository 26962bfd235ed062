"""Rounds: an exact answer for one object from few simulations (locate, adapt, certify)."""

from __future__ import annotations

import logging
import math
import time
from functools import partial

import torch
from torch import Tensor

from nbi_plus.infer.amis import Family, FlowFamily, MixtureFamily, OnCircles, Pair
from nbi_plus.infer.certificate import evidence_of, grade_fresh, outcome_of
from nbi_plus.infer.circles import circular_columns
from nbi_plus.infer.mixtures import MixtureConfig, around, temper
from nbi_plus.infer.outcome import Outcome
from nbi_plus.infer.plan import Answer, First, RoundsConfig
from nbi_plus.infer.progress import Round, Rounds, Stop, describe
from nbi_plus.infer.proposals import (
    Blend,
    Conditioned,
    FlowProposal,
    LatentProposal,
    PriorProposal,
)
from nbi_plus.infer.streams import Stream
from nbi_plus.infer.tape import Step, Tape
from nbi_plus.infer.weights import Gate, Grade, effective_sample_size, summarise
from nbi_plus.learn.locator import Locator
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.learn.sources import Rows
from nbi_plus.problem.ledger import Ledger, OutOfTime
from nbi_plus.problem.target import Evaluation

_LOG = logging.getLogger("nbi_plus")


class _Halt(Exception):  # noqa: N818 - not an error
    """The fit must end here, with what it has."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.value)
        self.stop = stop


class Search:
    """One sequential fit; call it once.

    Parameters
    ----------
    ledger : Ledger
        Evaluates draws.
    locator : Locator
    tape : Tape
        Remembers proposals and draws.
    config : RoundsConfig
    gate : Gate
    key : Tensor of int64, shape (1,)
        What the object's randomness is keyed by.
    seed : int
    """

    def __init__(
        self, ledger: Ledger, locator: Locator, tape: Tape, config: RoundsConfig, gate: Gate,
        key: Tensor, seed: int,
    ) -> None:  # fmt: skip
        self._ledger, self._locator, self._tape = ledger, locator, tape
        self._config, self._gate, self._key, self._seed = config, gate, key, seed
        prior = ledger.target.prior
        circles = self._circles = circular_columns(prior.periods)
        mixtures = MixtureFamily(MixtureConfig(n_points=4000))
        self._families: tuple[tuple[str, Family], ...] = (
            ("mixture", OnCircles(mixtures, circles)),
            ("flow", OnCircles(FlowFamily(), circles)),
        )
        self._n_dim = prior.n_dim
        self._began = time.perf_counter()
        if config.max_seconds is not None:
            ledger.deadline = self._began + config.max_seconds
        self._rows: list[Round] = []
        self._pair: Pair | None = None
        self._fresh: Stream | None = None
        self._network: PosteriorNetwork | None = None
        self._is_mixture = False

    def __call__(self, first: First) -> Answer:
        """Return the answer: certified, or with the reason why not."""
        try:
            stop = self._run(first)
        except _Halt as halt:
            stop = halt.stop
        if self._pair is None:
            raise TimeoutError("max_seconds must allow for one round, but it is over before that.")
        outcome = outcome_of(
            self._pair, self._fresh, self._gate, is_mixture=self._is_mixture, rung="sequential",
            index=torch.zeros_like(self._key), circles=self._circles, seed=self._seed,
        )  # fmt: skip
        if stop is not Stop.ESS_REACHED and self._reached(outcome):
            stop = Stop.ESS_REACHED  # the budget ended with the last draw that was wanted
        frozen = self._pair.a.proposals[-1] if self._fresh is None else self._fresh.proposals[-1]
        return Answer(
            outcome, frozen, self._is_mixture, Rounds(tuple(self._rows), stop), self._network
        )

    def _run(self, first: First) -> Stop:
        self._start(first)
        self._locate(first.network)
        for name, family in self._families:
            self._adapt(name, family)
            if self._certify():
                return self._top_up()
        return Stop.NO_PROGRESS

    # --- phases ----------------------------------------------------------------------------------

    def _start(self, first: First) -> None:
        """Evaluate round 0."""
        prior = PriorProposal(self._n_dim)
        if first.simulations is not None:
            z, models, failed = (v[None] for v in first.simulations)
            found = self._ledger.adopt(z, models, failed)
            self._pair = Pair.start(prior, z, found)
            self._note("prior", z.shape[1])
        if first.network is not None:
            self._network = first.network
            proposal = self._proposal(first.network)
            self._begin("start", proposal, self._config.n_per_round)
        if first.modes is not None:
            self._begin("modes", around(first.modes), self._config.n_per_round // 2)

    def _begin(self, name: str, proposal: LatentProposal, n: int) -> None:
        step = self._tape.step(name, partial(self._drawn, (proposal,), {}, n, name))
        found = self._evaluate(step.z, keep=True)
        if self._pair is None:
            self._pair = Pair.start(step.proposals[0], step.z, found)
        else:
            self._pair = self._pair.share(step.proposals[0], step.z, found)
        self._note(name, step.z.shape[1])

    def _locate(self, network: PosteriorNetwork | None) -> None:
        """Train networks on the pool until enough of all draws are effective."""
        c, n = self._config, 0
        per_dim, least = c.locate_ess
        while float(self._pair.ess) < max(per_dim * self._n_dim, least):
            if n == c.max_locate or len(self._rows) >= c.n_rounds:
                if float(self._pair.ess) < self._n_dim:
                    raise _Halt(Stop.NO_SUPPORT)
                break
            n += 1
            name = f"locate {n}"
            size = self._affordable(c.n_per_round)
            step = self._tape.step(name, partial(self._located, network, name, size))
            self._network = network = self._locator.rebuild(step.state)
            found = self._evaluate(step.z, keep=True)
            self._pair = self._pair.share(step.proposals[0], step.z, found)
            self._note("locate", step.z.shape[1])
        self._ledger.forget()

    def _adapt(self, name: str, family: Family) -> None:
        """Fit a family to what each stream's twin knows, while the efficiency grows."""
        c, best, stale = self._config, 0.0, 0
        for n in range(1, c.max_adapt + 1):
            if len(self._rows) >= c.n_rounds:
                if self._fresh is not None:  # these proposals have been tried
                    raise _Halt(Stop.ROUNDS)
                return
            stage = f"adapt {name} {n}"
            half = self._affordable(c.n_per_round, spare=self._reserve()) // 2
            step = self._tape.step(stage, partial(self._adapted, family, stage, half))
            self._is_mixture, self._fresh = family.is_mixture, None
            self._pair = self._pair.extend(step.proposals, step.z, self._evaluate(step.z))
            self._note(f"adapt ({name})", step.z.shape[1])
            efficiency = float(self._pair.efficiency())
            stale = stale + 1 if efficiency < c.gain * best else 0
            best = max(best, efficiency)
            if stale == 2 or self._enough():
                return

    def _certify(self) -> bool:
        """Say whether fresh draws of the frozen proposals pass the gate."""
        efficiency = max(float(self._pair.efficiency()), 0.05)
        n = math.ceil(self._config.spare * self._short() / efficiency)
        self._draw_fresh(max(n, self._config.certify_draws))
        return self._gate_passed()

    def _top_up(self) -> Stop:
        """Draw on from the frozen proposals until the answer is as precise as was wanted."""
        while self._short() > 0:
            fresh = self._fresh
            efficiency = float(effective_sample_size(fresh.log_weights)) / fresh.z.shape[1]
            self._draw_fresh(math.ceil(self._config.spare * self._short() / efficiency))
        return Stop.ESS_REACHED if self._gate_passed() else Stop.NO_PROGRESS

    # --- steps -----------------------------------------------------------------------------------

    def _located(self, network: PosteriorNetwork | None, name: str, n: int) -> Step:
        trained = self._train(network, name)
        return self._drawn((self._proposal(trained),), trained.state_dict(), n, name)

    def _adapted(self, family: Family, stage: str, n_each: int) -> Step:
        proposals = self._pair.fit(family, self._key, self._seed, stage)
        return self._drawn(proposals, {}, 2 * n_each, stage)

    def _drawn(
        self, proposals: tuple[LatentProposal, ...], state: dict[str, Tensor], n: int, stage: str
    ) -> Step:
        """Return a step of ``n`` draws, as many of each proposal."""
        shares = (1.0 / len(proposals),) * len(proposals)
        z = Blend(proposals, shares).draw(self._key, n, self._seed, stage)
        return Step(proposals, z, state)

    def _draw_fresh(self, n: int) -> None:
        """Add draws of the frozen proposals to the answer, and to what certifies it."""
        n = max(self._affordable(n) // 2, 1) * 2
        crossed = self._pair.n_shared < len(self._pair.a.proposals)
        last = self._pair.proposals if crossed else self._pair.proposals[:1]
        name = f"certify {len(self._rows)}"
        step = self._tape.step(name, partial(self._drawn, last, {}, n, name))
        found = self._evaluate(step.z)
        frozen = Blend(last, (0.5, 0.5)) if crossed else last[0]
        if self._fresh is None:
            self._fresh = Stream.start(frozen, step.z, found)
        else:
            self._fresh = self._fresh.add(self._fresh.proposals[-1], step.z, found)
        if crossed:
            self._pair = self._pair.extend(last, step.z, found)
        else:
            self._pair = self._pair.share(last[0], step.z, found)
        self._note("certify", n)

    def _train(self, network: PosteriorNetwork | None, stage: str) -> PosteriorNetwork:
        """Train on simulations drawn by tempered weight from all that there are."""
        c = self._config
        z, models = self._ledger.pool()
        weights, _ = temper(self._pair.in_turns()[None], c.bootstrap_ess * c.n_per_round)
        usable = torch.isfinite(models).flatten(1).all(1)
        weights = torch.where(usable, weights[0], 0.0)
        if not weights.sum() > 0:
            if not usable.any():
                raise _Halt(Stop.NO_SUPPORT)
            weights = usable.double()  # nothing is more likely than anything else, yet
        prior = self._ledger.target.prior
        theta = prior.complete(prior.from_latent(z))
        owner = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        dtype = self._locator.parts.dtype(float(models[usable].abs().max()))
        rows = Rows(z, theta, models.to(dtype), owner)
        return self._locator.train(rows, weights, int(c.bootstrap * c.n_per_round), network, stage)

    def _proposal(self, network: PosteriorNetwork) -> Conditioned:
        exact = network.exact_flow()
        return Conditioned(FlowProposal(exact, exact), network.features(self._ledger.target.data))

    def _evaluate(self, z: Tensor, *, keep: bool = False) -> Evaluation:
        try:
            return self._ledger.evaluate(z, keep=keep)
        except OutOfTime:
            raise _Halt(Stop.TIME) from None

    # --- judgements ------------------------------------------------------------------------------

    def _affordable(self, wanted: int, spare: int = 0) -> int:
        """Return how many of the wanted draws the budget allows, ``spare`` ones kept back."""
        left = self._config.budget - self._ledger.n_simulated - spare
        if left < 2:
            raise _Halt(Stop.BUDGET)
        return min(wanted, left)

    def _reserve(self) -> int:
        """Return how many draws adapting must leave for the certificate."""
        return min(self._config.certify_draws, self._config.budget // 4)

    def _short(self) -> float:
        return max(self._config.ess_target - float(self._pair.ess), 0.0)

    def _gate_passed(self) -> bool:
        grade = grade_fresh(
            self._fresh, self._gate, is_mixture=self._is_mixture, circles=self._circles
        )
        return int(grade) > Grade.F

    def _enough(self) -> bool:
        """Say whether the pool would pass already, so that a certificate is all that is missing."""
        if self._pair.n_shared == len(self._pair.a.proposals) or self._short() > 0:
            return False
        return int(self._gate.grade(summarise(self._pair.log_weights))) == Grade.A

    def _reached(self, outcome: Outcome) -> bool:
        return bool(outcome.passed) and float(outcome.summary.ess) >= self._config.ess_target

    def _note(self, phase: str, n: int) -> None:
        pair = self._pair
        pooled = summarise(pair.log_weights)
        evidence = evidence_of(pair, self._fresh)
        row = Round(
            phase, n, pair.n_draws, float(pooled.ess), float(pair.efficiency()),
            float(pooled.k_hat),
            math.nan if evidence is None else float(evidence.log_evidence),
            math.nan if evidence is None else float(evidence.log_evidence_err),
            time.perf_counter() - self._began,
        )  # fmt: skip
        self._rows.append(row)
        _LOG.info("%s", describe(row))
