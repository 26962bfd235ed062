"""Rounds: an exact answer for one object from few simulations (locate, adapt, certify)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nbi_plus.infer.posterior.certificate import outcome_of
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.base import LatentProposal, PriorProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.cross_fit import FlowFamily, MixtureFamily, OnCircles, Pair, best_fit
from nbi_plus.infer.proposals.mixture import MixtureConfig, Wide
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.samplers.peaks import Peaks
from nbi_plus.infer.sequential.climb import LEAST_CALLS, climb
from nbi_plus.infer.sequential.config import RoundsConfig, RoundZero, SequentialOutcome
from nbi_plus.infer.sequential.floor import Floor
from nbi_plus.infer.sequential.journal import Journal, Step
from nbi_plus.infer.sequential.ledger import Ledger
from nbi_plus.infer.sequential.locator import Locator
from nbi_plus.infer.sequential.peak_search import PeakSearch
from nbi_plus.infer.sequential.reasons import may_be_luck, why_not
from nbi_plus.infer.sequential.rounds import Rounds, Stop
from nbi_plus.infer.sequential.summits import Summits
from nbi_plus.infer.sequential.workspace import Halt, Workspace
from nbi_plus.infer.weights.summary import Gate, Grade, effective_sample_size, gate_of
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.problem.target import Evaluation

# fits to draws of few places know little of bent tails, and no weight says so; least after peaks
_WIDE, _WIDE_AT_PEAKS = Wide(stretch=1.5), Wide(share=0.15, stretch=1.5)
_WIDE_FIRST, _N_FIRST = Wide(share=0.3, stretch=2.0), 2
_RISEN = 3.0  # in log density above all that was known when peaks were looked for
_POOR, _VAGUE = 0.1, 0.15  # efficiency of what does not know a posterior's place, or its shape
_HOPELESS = 3  # rounds of adapting without any gain, far from what passes
_PILOT = 5  # of the calls that are left, one part for draws that say how good the peaks are
_GOOD = 0.7  # of a Laplace mixture: a fit to its few draws would be worse


class Search:
    """One sequential fit; call it once, and `again` with what an audit of its answer has found.

    Parameters
    ----------
    ledger : Ledger
        Evaluates draws.
    locator : Locator
    journal : Journal
        Remembers proposals and draws.
    config : RoundsConfig
    gate : Gate
    key : Tensor of int64, shape (1,)
        What the object's randomness is keyed by.
    seed : int
    """

    def __init__(
        self, ledger: Ledger, locator: Locator, journal: Journal, config: RoundsConfig, gate: Gate,
        key: Tensor, seed: int,
    ) -> None:  # fmt: skip
        reserve = min(config.certify_draws, config.budget // 2)
        self._work = Workspace(ledger, locator, journal, config, key, seed, reserve)
        self._gate = gate
        self._circles = circular_columns(ledger.target.prior.periods)
        families = MixtureFamily(MixtureConfig(n_points=config.fit_points)), FlowFamily()
        self._families = tuple(OnCircles(family, self._circles) for family in families)
        self._pair: Pair | None = None
        self._fresh: Stream | None = None
        self._network: PosteriorNetwork | None = None
        self._floor: Floor | None = None
        self._seen = -math.inf  # the highest density when peaks were looked for
        self._climbed: Outcome | None = None
        self._summit: LatentProposal | None = None
        self._tried = False  # whether a certificate of the last proposals was asked for
        self._family = "network"  # or the prior: neither was fitted to the object

    def __call__(self, first: RoundZero) -> SequentialOutcome:
        """Return the answer: certified, or with the reason why not."""
        return self._answer(partial(self._run, first))

    def again(self, peaks: Peaks) -> SequentialOutcome:
        """Return the answer after draws around peaks, some of which the last one missed."""
        self._climbed = self._summit = None
        return self._answer(partial(self._go_on, peaks))

    def _answer(self, run: Callable[[], Stop]) -> SequentialOutcome:
        try:
            stop = run()
        except Halt as halt:
            stop = halt.stop
        if self._pair is None:
            raise TimeoutError("max_seconds must allow for one round, but it is over before that.")
        outcome = self._climbed if self._climbed is not None else self._outcome()
        if outcome.passed and float(outcome.summary.ess) >= self._work.config.ess_target:
            stop = Stop.ESS_REACHED  # the budget ended with the last draw that was wanted
        frozen = self._summit or (self._fresh or self._pair.a).proposals[-1]
        rounds = Rounds(tuple(self._work.rows), stop)
        return SequentialOutcome(outcome, frozen, rounds, self._network)

    def _run(self, first: RoundZero) -> Stop:
        self._start(first)
        self._locate()
        return self._settle()

    def _go_on(self, peaks: Peaks) -> Stop:
        known = Summits.of(peaks)
        self._note("audit", 0, f"{len(known)} found, of which the draws miss some")
        self._draw_around(known, "missed")
        return self._settle()

    def _settle(self) -> Stop:
        """Adapt and certify until the answer passes, or nothing more can be tried."""
        mixtures, families = self._families[:1], self._families[:1]
        for attempt in range(self._work.config.max_attempts):
            worth = self._adapt(families)
            if worth:
                self._certify()
                if self._outcome().passed and self._top_up():
                    return Stop.ESS_REACHED
            if families != mixtures and self._climb():
                return Stop.NO_PROGRESS
            # where good mixtures failed better ones may pass; flows do what mixtures cannot follow
            families = mixtures if worth and attempt == 0 else self._families
        return Stop.NO_PROGRESS

    # --- phases ----------------------------------------------------------------------------------

    def _start(self, first: RoundZero) -> None:
        """Evaluate round 0."""
        n = self._work.config.n_per_round
        if first.simulations is not None:
            z, models, failed = (v[None] for v in first.simulations)
            found = self._work.ledger.adopt(z, models, failed)
            self._pair = Pair.start(PriorProposal(z.shape[-1]), z, found)
            self._note("prior", z.shape[1])
        if first.network is not None:
            self._network = first.network
            self._begin("start", self._work.proposal(first.network), n)
        if first.look is not None:
            self._begin("modes", first.look.proposal, n // 2)
            self._family = "mixture"

    def _begin(self, name: str, proposal: LatentProposal, n: int) -> None:
        step = self._work.journal.step(name, partial(self._work.drawn, (proposal,), n, name))
        self._share(name, step)

    def _locate(self) -> None:
        """Find the place: by peaks where there are gradients, else and failing that by networks."""
        work = self._work
        if work.config.goes_uphill(work.ledger.target) and not self._is_located():
            self._look_for_peaks()
            if self._floor is None:  # of the whole round of the prior a network learns more
                search, n = PeakSearch(work, self._circles), work.config.n_per_round
                self._adopt(search.with_scouts(self._pair, n, "prior"))
        if self._floor is None or work.config.locate == "network":
            self._train_networks()
        work.ledger.forget()

    def _is_located(self) -> bool:
        c, n_dim = self._work.config, self._pair.a.z.shape[-1]
        return float(self._pair.ess) >= max(c.locate_ess[0] * n_dim, c.locate_ess[1])

    def _look_for_peaks(self) -> None:
        """Draw around the peaks that are uphill from the best draws, if there are any."""
        work, stage = self._work, f"peaks {len(self._work.rows)}"
        search = PeakSearch(work, self._circles)
        pair, known = search(self._pair, stage)
        self._adopt(pair)
        spent = known.n_looked
        work.ledger.spend(*((0, spent) if work.ledger.target.differentiable else (spent, 0)))
        self._seen = max([float(self._pair.highest), *known.log_prob[0].tolist()])
        self._note("peaks", spent, f"{len(known)} found" if len(known) else "none found")
        if len(known):
            self._draw_around(known, stage)

    def _draw_around(self, known: Summits, stage: str) -> None:
        """Draw around peaks; from now on they keep a share of all draws."""
        work = self._work
        n = max(min(work.config.n_per_round // 2, work.left() // _PILOT), 2)
        steps = PeakSearch(work, self._circles).draws(known, n, stage)
        pilot = next(steps)
        judged = Stream.start(pilot.proposals[0], pilot.z, self._share("laplace", pilot))
        if float(judged.efficiency) < _VAGUE and not self._is_located():
            return  # a network may tell more
        for step in steps:
            judged = judged.more(step.z, self._share("laplace", step, more=True))
        self._floor = Floor.of(pilot.proposals[0], self._circles)
        self._fresh, self._family, self._tried = judged, pilot.family, False

    def _adopt(self, pair: Pair) -> None:
        """Go on with streams that hold more draws of the prior, perhaps."""
        n_new, self._pair = pair.n_draws - self._pair.n_draws, pair
        if n_new > 0:
            self._note("prior", n_new)

    def _train_networks(self) -> None:
        """Train networks on the pool until enough of all draws are effective."""
        work, c = self._work, self._work.config
        n = 0
        kept_back = work.reserve
        while not self._is_located():
            effective = float(self._pair.ess)
            lost = effective < self._pair.a.z.shape[-1]
            work.reserve = 0 if lost else kept_back  # there is nothing to certify yet
            end = work.end_of_rounds()
            if end is not None:
                if lost:
                    raise Halt(Stop.NOT_LOCATED if effective > 0 else Stop.NO_SUPPORT)
                break
            n += 1
            name, size = f"locate {n}", work.affordable(c.n_per_round)
            make = partial(work.located, self._pair, self._network, size, name)
            step = work.journal.step(name, make)
            self._network, self._family = work.locator.rebuild(step.state), "flow"
            self._share("locate", step)

    def _adapt(self, families: tuple[OnCircles, ...]) -> bool:
        """Fit to each stream what its twin knows, while the efficiency grows.

        Returned is whether what came of it is worth a certificate.
        """
        work, c = self._work, self._work.config
        if self._fresh is not None and not self._tried and float(self._fresh.efficiency) >= _GOOD:
            return True
        best, stale = float(self._fresh.efficiency) if self._tried else 0.0, 0
        for _ in range(c.max_adapt):
            work.reserve = self._reserve()
            end = work.end_of_rounds()
            if end is not None:
                if self._tried:  # more draws of these proposals may pass
                    self._draw_fresh(c.certify_draws)
                    raise Halt(end)
                return True
            if self._now_or_never():
                return True
            stage, half = f"adapt {len(work.rows)}", work.affordable(c.n_per_round) // 2
            step = work.journal.step(stage, partial(self._adapted, stage, half, families))
            self._family, self._fresh, self._tried = step.family, None, False
            self._pair = self._pair.extend(step.proposals, step.z, work.evaluate(step.z))
            self._note(f"adapt ({self._family})", step.z.shape[1], self._reshare())
            if self._is_lost():
                self._look_for_peaks()  # there is higher ground than what was uphill at first
                best, stale = 0.0, 0
                continue
            efficiency = float(self._pair.efficiency())
            stale = stale + 1 if efficiency < c.gain * best else 0
            best = max(best, efficiency)
            # what cannot pass the gate is not worth a certificate
            hopeful = efficiency >= self._rules.efficiency_min
            if hopeful and (stale >= 2 or self._enough() or self._is_last(efficiency)):
                return True
            if stale >= _HOPELESS:
                return False
        return True

    def _is_lost(self) -> bool:
        """Say whether draws that fit badly met a density far above what was known."""
        risen = float(self._pair.highest) > self._seen + _RISEN
        return self._floor is not None and risen and float(self._pair.efficiency()) < _POOR

    def _climb(self) -> bool:
        """Go on to chains, where there are gradients; return whether they settled it."""
        work = self._work
        if not work.ledger.target.differentiable or work.left() < LEAST_CALLS:
            return False
        found = climb(work, self._pair, self._outcome(), self._gate)
        work.ledger.spend(found.n_calls, found.n_gradients)
        if not found.outcome.passed.any():
            self._note("hmc", found.n_calls + found.n_gradients, found.reason)
            return False
        self._climbed, self._summit = found.outcome, found.frozen
        work.note_outcome("hmc", found.n_calls + found.n_gradients, found.outcome)
        return True

    def _certify(self) -> None:
        """Add fresh draws of the frozen proposals, which nothing was fitted to.

        A thousand draws tell k-hat to a fifth only. Where they are efficient, three times as many
        tell a heavy tail from an unlucky one for less than another proposal costs.
        """
        n = self._work.config.certify_draws
        self._draw_fresh(n)
        hopeful = float(self._fresh.efficiency) >= self._rules.efficiency_min
        if self._outcome().passed or not hopeful:
            return
        if may_be_luck(self._fresh, self._rules, self._circles):
            self._draw_fresh(2 * n)

    def _top_up(self) -> bool:
        """Draw on from the frozen proposals until the answer is as precise as was wanted.

        The pool at most doubles each time. Where its tail fails the gate, a few more draws are
        worth a try; after that, other proposals are. Returned is whether it passed.
        """
        c, tried = self._work.config, False
        while not (passed := bool(self._outcome().passed)) or self._short() > 0:
            n = c.certify_draws
            if passed:
                n = math.ceil(c.spare * self._short() / float(self._fresh.efficiency))
            elif tried:
                return False
            tried |= not passed
            self._draw_fresh(min(n, self._pair.n_draws))
        return True

    # --- steps -----------------------------------------------------------------------------------

    def _adapted(self, stage: str, n_each: int, families: tuple[OnCircles, ...]) -> Step:
        work = self._work
        family, proposals = best_fit(self._pair, families, work.key, work.seed, stage, self._wide())
        if self._floor is not None:
            proposals = tuple(map(self._floor.under, proposals))
        step = work.drawn(proposals, 2 * n_each, stage)
        return step._replace(family=family.name)

    def _wide(self) -> Wide:
        if self._floor is None:
            return _WIDE
        n_before = sum(row.phase.startswith("adapt") for row in self._work.rows)
        return _WIDE_FIRST if n_before < _N_FIRST else _WIDE_AT_PEAKS

    def _reshare(self) -> str:
        """Give starved peaks a larger share of what comes next; return what is to be said."""
        if self._floor is None:
            return ""
        self._floor, told = self._floor.after(self._pair)
        return told

    def _share(self, phase: str, step: Step, *, more: bool = False) -> Evaluation:
        """Add draws of a proposal that was fitted to both streams, or to none; of the last one."""
        proposal, found = step.proposals[0], self._work.evaluate(step.z, keep=True)
        pair = self._pair
        add = Pair.start if pair is None else pair.share
        self._pair = pair.more(step.z, found) if more else add(proposal, step.z, found)
        self._note(phase, step.z.shape[1])
        return found

    def _draw_fresh(self, n: int) -> None:
        """Add draws of the frozen proposals to the answer, and to what certifies it."""
        work, name = self._work, f"certify {len(self._work.rows)}"
        last = self._pair.to_judge
        step = work.journal.step(name, partial(work.drawn, last, work.last(n), name))
        found = work.evaluate(step.z)
        self._pair, self._fresh = self._pair.judged(step.z, found, self._fresh)
        self._tried = True
        outcome, own = self._outcome(), (self._fresh, self._rules, self._circles)
        told = "" if outcome.passed else why_not(outcome, *own)
        self._note("certify", step.z.shape[1], told)

    # --- judgements ------------------------------------------------------------------------------

    @property
    def _rules(self) -> Gate:
        """The gate of the last proposals."""
        return gate_of(self._family, self._gate)

    def _short(self) -> float:
        return max(self._work.config.ess_target - float(self._pair.ess), 0.0)

    def _enough(self) -> bool:
        """Say whether the pool would pass already, so that a certificate is all that is missing."""
        return self._short() == 0 and int(self._rules.grade(self._outcome().summary)) == Grade.A

    def _is_last(self, efficiency: float) -> bool:
        """Say whether another half of a round would leave too little for a certificate."""
        n, left = self._rules.needed(efficiency), self._work.left()
        return n <= left < n + self._work.config.n_per_round // 2

    def _reserve(self) -> int:
        """Return what rounds must leave for a certificate; nothing where none could pass."""
        n = self._rules.needed(float(self._pair.efficiency()))
        return min(self._work.config.certify_draws, n) if n <= self._work.left() else 0

    def _now_or_never(self) -> bool:
        """Say whether draws of the present proposals can pass, and none would after a round."""
        if self._fresh is None or self._tried:
            return False
        work, efficiency = self._work, float(self._fresh.efficiency)
        hopeful = efficiency >= self._rules.efficiency_min
        now = self._rules.needed(efficiency, float(effective_sample_size(self._fresh.log_weights)))
        # a fit to fewer effective draws than it wants is worse than what it is fitted to
        wanted = self._families[0].wanted_ess(self._pair.n_draws, self._pair.a.z.shape[-1])
        to_learn = max(work.config.n_per_round, wanted / max(efficiency, 1e-9))
        return hopeful and now <= work.left() < self._rules.needed(efficiency) + to_learn

    def _outcome(self) -> Outcome:
        return outcome_of(
            self._pair, self._fresh, self._rules, rung="sequential",
            index=torch.zeros_like(self._work.key), circles=self._circles, seed=self._work.seed,
        )  # fmt: skip

    def _note(self, phase: str, n: int, reason: str = "") -> None:
        self._work.note_pair(phase, n, self._pair, self._fresh, reason)
