"""Rounds: an exact answer for one object from few simulations (locate, adapt, certify)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nbi_plus.infer.posterior.certificate import may_be_luck, only_now, outcome_of, why_not
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.base import LatentProposal, PriorProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.cross_fit import FlowFamily, MixtureFamily, OnCircles, Pair, best_fit
from nbi_plus.infer.proposals.mixture import MixtureConfig, Wide
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.samplers.peaks import Peaks
from nbi_plus.infer.sequential.auditor import Auditor
from nbi_plus.infer.sequential.climb import LEAST_CALLS, Climbed, climb
from nbi_plus.infer.sequential.config import RoundsConfig, RoundZero, SequentialOutcome
from nbi_plus.infer.sequential.floor import Floor
from nbi_plus.infer.sequential.journal import Journal, Step
from nbi_plus.infer.sequential.ledger import Ledger
from nbi_plus.infer.sequential.locator import Locator
from nbi_plus.infer.sequential.peak_search import PeakSearch
from nbi_plus.infer.sequential.rounds import Rounds, Stop
from nbi_plus.infer.sequential.summits import Summits
from nbi_plus.infer.sequential.workspace import Halt, Workspace
from nbi_plus.infer.weights.summary import Gate, Grade, gate_of
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.problem.target import Evaluation

# fits to draws of few places know little of bent tails, and no weight says so
_WIDE = Wide(stretch=1.5)
_RISEN = 3.0  # in log density above all that was known when peaks were looked for
_POOR, _VAGUE = 0.1, 0.15  # efficiency of what does not know a posterior's place, or its shape
_HOPELESS = 3  # rounds of adapting without any gain, far from what passes
_PILOT = 5  # of the calls that are left, one part for draws that say how good the peaks are
_LOOKS = 5  # for places where the proposals end, as long as each finds some
_GOOD = 0.7  # of a Laplace mixture: a fit to its few draws would be worse


class Search:
    """One sequential fit; call it once, and `again` with what an audit of its answer has found.

    Parameters
    ----------
    ledger, locator, journal, config, key, seed
        As for `nbi_plus.infer.sequential.workspace.Workspace`.
    gate : Gate
    auditor : Auditor
    """

    def __init__(
        self, ledger: Ledger, locator: Locator, journal: Journal, config: RoundsConfig, gate: Gate,
        key: Tensor, seed: int, auditor: Auditor,
    ) -> None:  # fmt: skip
        reserve = min(config.certify_draws, config.budget // 2)
        self._work = Workspace(ledger, locator, journal, config, key, seed, reserve)
        self._gate, self._auditor = gate, auditor
        self._circles = circular_columns(ledger.target.prior.periods)
        self._search = PeakSearch(self._work, self._circles)
        families = MixtureFamily(MixtureConfig(n_points=config.fit_points)), FlowFamily()
        self._families = tuple(OnCircles(family, self._circles) for family in families)
        self._pair: Pair | None = None
        self._fresh: Stream | None = None
        self._network: PosteriorNetwork | None = None
        self._floor: Floor | None = None
        self._looks_left = 0
        self._seen = -math.inf  # the highest density when peaks were looked for
        self._top: Climbed | None = None  # of chains, where they settled it
        self._was_audited = False
        self._tried = False  # whether a certificate of the last proposals was asked for
        self._family = "network"  # or the prior: neither was fitted to the object

    def __call__(self, first: RoundZero) -> SequentialOutcome:
        """Return the answer: certified, or with the reason why not."""
        return self._answer(partial(self._start, first))

    def again(self, peaks: Peaks) -> SequentialOutcome:
        """Return the answer after draws around peaks, some of which the last one missed."""
        self._top = None
        return self._answer(partial(self._go_on, Summits.of(peaks)))

    def _answer(self, begin: Callable[[], None]) -> SequentialOutcome:
        try:
            begin()
            stop = self._settle()
        except Halt as halt:
            stop = halt.stop
        if self._pair is None:
            raise TimeoutError("max_seconds must allow for one round, but it is over before that.")
        outcome = self._outcome() if self._top is None else self._top.outcome
        if outcome.passed and float(outcome.summary.ess) >= self._work.config.ess_target:
            stop = Stop.ESS_REACHED  # the budget ended with the last draw that was wanted
        frozen = self._top.frozen if self._top else (self._fresh or self._pair.a).proposals[-1]
        rounds = Rounds(tuple(self._work.rows), stop)
        return SequentialOutcome(outcome, frozen, rounds, self._network)

    def _go_on(self, known: Summits) -> None:
        self._note("audit", f"{len(known)} found, of which the draws miss some")
        self._draw_around(known, "missed")

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
        """Evaluate round 0, and locate."""
        n = self._work.config.n_per_round
        if first.simulations is not None:
            z, models, failed = (v[None] for v in first.simulations)
            found = self._work.ledger.adopt(z, models, failed)
            self._pair = Pair.start(PriorProposal(z.shape[-1]), z, found)
            self._note("prior")
        if first.network is not None:
            self._network = first.network
            self._begin("start", self._work.proposal(first.network), n)
        if first.look is not None:
            self._begin("modes", first.look.proposal, n // 2)
            self._family = "mixture"
        self._locate()

    def _begin(self, name: str, proposal: LatentProposal, n: int) -> None:
        step = self._work.journal.step(name, partial(self._work.drawn, (proposal,), n, name))
        self._share(name, step)

    def _locate(self) -> None:
        """Find the place: by peaks where calls are cheap, else and failing that by networks."""
        work = self._work
        if work.goes_uphill() and not self._is_located():
            self._look_for_peaks()
            if self._floor is None:
                self._look_for_missing()
            if self._floor is None:  # of the whole round of the prior a network learns more
                self._adopt(self._search.with_scouts(self._pair, work.config.n_per_round, "prior"))
        if self._floor is None or work.config.locate == "network":
            self._train_networks()
        work.ledger.forget()

    def _is_located(self) -> bool:
        c, n_dim = self._work.config, self._pair.a.z.shape[-1]
        return float(self._pair.ess) >= max(c.locate_ess[0] * n_dim, c.locate_ess[1])

    def _look_for_peaks(self) -> None:
        """Draw around the peaks that are uphill from the best draws, if there are any."""
        work, stage = self._work, f"peaks {len(self._work.rows)}"
        pair, known = self._search(self._pair, stage)
        self._adopt(pair)
        work.ledger.spend_looking(known.n_looked)
        self._seen = max([float(self._pair.highest), *known.log_prob[0].tolist()])
        self._note("peaks", f"{len(known) or 'none'} found")
        if len(known):
            self._draw_around(known, stage)

    def _draw_around(self, known: Summits, stage: str) -> None:
        """Draw around peaks; from now on they keep a share of all draws."""
        work = self._work
        n = work.last(max(min(work.config.n_per_round // 2, work.left() // _PILOT), 2))
        steps = self._search.draws(known, n, stage)
        pilot = next(steps)
        judged = Stream.start(pilot.proposals[0], pilot.z, self._share("laplace", pilot))
        if float(judged.efficiency) < _VAGUE and not self._is_located():
            return  # a network may tell more
        for step in steps:
            judged = judged.more(step.z, self._share("laplace", step, more=True))
        self._floor = Floor.of(known, self._circles).holding(self._floor, self._pair)
        self._looks_left = _LOOKS
        self._fresh, self._family, self._tried = judged, pilot.family, False

    def _look_beyond(self) -> bool:
        """Put a floor under places where the proposals end too early; say whether there are any."""
        ends = self._search.beyond(self._pair, f"ends {len(self._work.rows)}")
        self._work.ledger.spend_looking(ends.n_looked)
        self._note("ends", f"{len(ends) or 'none'} found")
        self._looks_left = self._looks_left - 1 if len(ends) else 0
        self._floor = self._floor.beside(ends)
        return len(ends) > 0

    def _adopt(self, pair: Pair) -> None:
        """Go on with streams that hold more draws of the prior, perhaps."""
        has_more, self._pair = pair.n_draws > self._pair.n_draws, pair
        if has_more:
            self._note("prior")

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
            # starved peaks get a larger share of what comes next
            self._floor, told = self._floor.after(self._pair) if self._floor else (None, "")
            self._note(f"adapt ({self._family})", told)
            if self._look_further():
                best, stale = 0.0, 0
                continue
            efficiency = float(self._pair.efficiency())
            stale = stale + 1 if efficiency < c.gain * best else 0
            best = max(best, efficiency)
            # what cannot pass the gate is not worth a certificate
            hopeful = efficiency >= self._rules.efficiency_min
            enough = self._enough() and not told  # who starves is given more draws first
            if hopeful and (stale >= 2 or enough or self._is_last(efficiency)):
                return True
            if stale >= _HOPELESS:
                return False
        return True

    def _look_further(self) -> bool:
        """Look where bad draws cannot be, and beyond good ones; say if there is more to draw."""
        efficiency = float(self._pair.efficiency())
        if self._floor is not None and efficiency < _POOR:
            if self._look_for_missing():
                return True
            risen = float(self._pair.highest) > self._seen + _RISEN
            if risen:
                self._look_for_peaks()
            return risen
        if efficiency < self._rules.efficiency_min or self._is_last(efficiency):
            return False
        return (self._looks_left > 0 and self._look_beyond()) or self._look_for_missing()

    def _look_for_missing(self) -> bool:
        """Draw around what an audit finds missing, the only early one; say if there is any."""
        if self._was_audited:
            return False
        self._was_audited = True
        make = partial(self._auditor.step, self._outcome(), self._pair.frozen)
        missed = self._auditor.recall(self._work.journal.step("early audit", make))
        if missed is not None:
            self._go_on(missed)
        return missed is not None

    def _climb(self) -> bool:
        """Go on to chains, where there are gradients; return whether they settled it."""
        work = self._work
        if not work.ledger.target.differentiable or work.left() < LEAST_CALLS:
            return False
        found = climb(work, self._pair, self._outcome(), self._gate)
        work.ledger.spend(found.n_calls, found.n_gradients)
        if not found.outcome.passed.any():
            self._note("hmc", found.reason)
            return False
        self._top = found
        work.note_outcome("hmc", found.outcome)
        return True

    def _certify(self) -> None:
        """Add fresh draws of the frozen proposals, which nothing was fitted to.

        Three times as many may tell a heavy tail from an unlucky one, for less than a new proposal.
        """
        n, rules = self._work.config.certify_draws, self._rules
        self._draw_fresh(n)
        near = may_be_luck(self._fresh, rules, self._circles) and not self._outcome().passed
        if near and float(self._fresh.efficiency) >= rules.efficiency_min:
            self._draw_fresh(2 * n)

    def _top_up(self) -> bool:
        """Draw on from the frozen proposals until the answer is as precise as was wanted.

        The pool at most doubles each time. Where its tail fails, a few more draws are worth a try.
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
        family, proposals = best_fit(self._pair, families, work.key, work.seed, stage, _WIDE)
        if self._floor is not None:
            proposals = tuple(map(self._floor.under, proposals))
        step = work.drawn(proposals, 2 * n_each, stage)
        return step._replace(family=family.name)

    def _share(self, phase: str, step: Step, *, more: bool = False) -> Evaluation:
        """Add draws of a proposal that was fitted to both streams, or to none; of the last one."""
        proposal, found = step.proposals[0], self._work.evaluate(step.z, keep=True)
        pair = self._pair
        add = Pair.start if pair is None else pair.share
        self._pair = pair.more(step.z, found) if more else add(proposal, step.z, found)
        self._note(phase)
        return found

    def _draw_fresh(self, n: int) -> None:
        """Add draws of the frozen proposals to the answer, and to what certifies it."""
        work, name = self._work, f"certify {len(self._work.rows)}"
        make = partial(work.drawn, self._pair.to_judge, work.last(n), name)
        step = work.journal.step(name, make)
        found = work.evaluate(step.z)
        self._pair, self._fresh = self._pair.judged(step.z, found, self._fresh)
        self._tried = True
        outcome = self._outcome()
        told = "" if outcome.passed else why_not(outcome, self._fresh, self._rules, self._circles)
        self._note("certify", told)

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
        # a fit to fewer effective draws than it wants is worse than what it is fitted to
        wanted = self._families[0].wanted_ess(self._pair.n_draws, self._pair.a.z.shape[-1])
        n_per_round = self._work.config.n_per_round
        return only_now(self._fresh, self._rules, self._work.left(), n_per_round, wanted)

    def _outcome(self) -> Outcome:
        return outcome_of(
            self._pair, self._fresh, self._rules, rung="sequential",
            index=torch.zeros_like(self._work.key), circles=self._circles, seed=self._work.seed,
        )  # fmt: skip

    def _note(self, phase: str, reason: str = "") -> None:
        self._work.note_pair(phase, self._pair, self._fresh, reason)
