"""Truths: whether a network misses places of a problem, by simulated objects of known truth.

The truth of a simulated object is an exact draw of its posterior. Among the n effective draws of a
right answer it has the largest weight once in n times, not more. Where truths were missed, the
audit is tried on the same objects: what it does not find either, it will not find in others.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from scipy.stats import poisson
from torch import Tensor

from nbi_plus import launch
from nbi_plus.arguments import whole
from nbi_plus.infer.ladder.audit import PeakAudit
from nbi_plus.infer.ladder.earlier import Earlier
from nbi_plus.infer.ladder.ladder import Ladder, NetworkProposal
from nbi_plus.infer.ladder.peak_masses import explained
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior.certificate import weigh
from nbi_plus.infer.posterior.outcome import Outcome, Pool
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.several import proposal_of
from nbi_plus.infer.weights.clean import CleanWeights
from nbi_plus.infer.weights.summary import WeightSummary, gate_of
from nbi_plus.learn.model import Trained
from nbi_plus.problem.setup import Problem
from nbi_plus.problem.target import Target
from nbi_plus.trust.simulated import KnownObjects, known_objects

_LOG = logging.getLogger("nbi_plus")

N_OBJECTS = 200
_N_DRAWS = 2048
_N_FIRST = 8  # objects whose answers are timed, and count
_SHARE = 0.1  # of the time of the training that the test may take
_FAILED = 0.01
_N_QUICK = 64  # draws that tell which truths are suspect
_LEAST = 10.0  # seconds that a test may take where suspects were missed, or as long as the training
_ENOUGH = 30
_N_LOOKED = 32  # objects of missed truths that the audit is tried on
_HOPELESS = 8  # objects of which none was found
SCOUTS = 1, 16  # times those of the audit: more, where it finds only some of what was missed
_UNSEEN = 0.0075  # of the mass of certified answers: several times as many lack a part of theirs
_STAGE = "truth test"


@dataclass(frozen=True)
class TruthTest:
    """What the truths of simulated objects say of certified answers.

    Attributes
    ----------
    n_certified : int
        Objects that the network's draws alone certify.
    n_above : int
        Those whose truth has a larger weight than every draw.
    expected : float
        How many these are on average where answers are right: the sum of 1 / ess.
    p_value : float
        Probability of so many or more, by Poisson's law.
    n_looked, n_unseen : int
        Of the objects of a failed test that are above, how many an audit looked at, and in how
        many of these it found nothing.
    scouts : int
        Times those of the audit, so many scouts found the others. Doubted answers get as many,
        where that helps.
    """

    n_certified: int
    n_above: int
    expected: float
    p_value: float
    n_looked: int = 0
    n_unseen: int = 0
    scouts: int = 1

    @property
    def failed(self) -> bool:
        """Whether this problem has places that the network does not propose."""
        return self.p_value < _FAILED

    @property
    def doubts(self) -> bool | None:
        """Whether answers must be doubted; None where too few were asked for silence to count."""
        return True if self.failed else None if self.n_certified < _ENOUGH else False

    @property
    def unseen_share(self) -> float:
        """Mass of certified answers in places which the audit does not find either.

        By Jeffreys' rule: that one of few was not found proves more than one in many.
        """
        if not self.n_looked:
            return 0.0
        missing = max(self.n_above - self.expected, 0.0) / self.n_certified
        return missing * (self.n_unseen + 0.5) / (self.n_looked + 1)

    @property
    def blind(self) -> bool:
        """Whether an audit proves nothing here."""
        return self.failed and self.unseen_share > _UNSEEN

    def doubting(self, ladder: Ladder) -> Ladder:
        """Return the ladder with an audit as it is needed after this test."""
        if ladder.audit is None or not self.failed:
            return ladder
        return replace(ladder, audit=ladder.audit.doubled(1 if self.blind else self.scouts))

    def __str__(self) -> str:
        said = {True: "failed", False: "passed", None: "of too few"}[self.doubts]
        told = (
            f"truth test {said}: {self.n_above} of {self.n_certified} truths outweigh every draw "
            f"of their certified answers, {self.expected:.2g} expected (p = {self.p_value:.2g})"
        )
        if not self.n_looked:
            return told
        seen = f"{self.n_looked - self.n_unseen} of {self.n_looked}"
        more = "" if self.scouts == 1 else f", with {self.scouts} times the scouts,"
        return f"{told}; the audit{more} found what was missing in {seen} of these"


class _Weighed(NamedTuple):
    """Draws of the network about simulated objects, and the log-weights (b,) of their truths."""

    target: Target
    pool: Pool
    weights: CleanWeights
    summary: WeightSummary
    log_truth: Tensor


@dataclass(frozen=True)
class _Missed:
    """Certified answers about objects whose truth (b, 1, D) outweighs every draw."""

    outcome: Outcome
    keys: Tensor
    truth: Tensor
    context: RungContext

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Tensor | slice) -> _Missed:
        rows = torch.arange(len(self), device=self.keys.device)[rows]
        own = self.outcome.select(rows), self.keys[rows], self.truth[rows]
        return _Missed(*own, self.context)

    def unseen(self, audit: PeakAudit) -> Tensor:
        """Return the rows of those in which an audit overlooks the place of the truth."""
        context, index = self.context, self.outcome.pool.index
        context.report.note(self.outcome)  # as passed, whatever an earlier look found
        found = audit(self.outcome, self.keys, context)
        height = context.target.log_prob(self.truth, index)
        seen = explained(found.peaks, self.truth, height, context.circles)[:, 0]
        return (found.passed & ~seen).nonzero()[:, 0]


class _Answers(NamedTuple):
    """Answers about some simulated objects: of how many truths ``expected`` are above by chance."""

    n_certified: int
    expected: float
    missed: _Missed


def _told(answers: list[_Answers]) -> TruthTest:
    n_above = sum(len(own.missed) for own in answers)
    expected = sum(own.expected for own in answers)
    n_certified = sum(own.n_certified for own in answers)
    return TruthTest(n_certified, n_above, expected, chance(n_above, expected))


def chance(n: int, expected: float) -> float:
    """Return the probability of n or more, by Poisson's law."""
    return float(poisson.sf(n - 1, expected)) if n else 1.0


@dataclass(frozen=True)
class TruthTrial:
    """How a network is tried.

    Attributes
    ----------
    problem : Problem
        With a simulator.
    model : Trained
    ladder : Ladder
        Whose defensive part, gate and audit are tried with it.
    device : torch.device
    seed : int
    """

    problem: Problem
    model: Trained
    ladder: Ladder
    device: torch.device
    seed: int

    def run(self, n: int, seconds: float = math.inf) -> TruthTest | None:
        """Return the test of n objects; of fewer, or none, where it would take ``seconds``.

        Where time is short, those are asked first that a few draws make suspect. If one of these
        was missed the test takes ten seconds, or as long as the training.
        """
        n_first = min(n, _N_FIRST)
        n_calls = n * (1 + _N_QUICK) + 2 * n_first * _N_DRAWS
        if self.problem.simulator.seconds_per_row * n_calls > seconds:
            return None
        rows = torch.arange(n, device=self.device)
        stages = _STAGE, f"{_STAGE} noise"
        made = known_objects(self.problem, self.problem.conditions, rows, self.seed, *stages)
        began = time.perf_counter()
        answers = [self._answers(made, rows[:n_first])]
        each = (time.perf_counter() - began) / n_first
        if each * n > seconds:
            suspects = self._answers(made, self._suspects(made, rows)[:n_first])
            if len(answers[0].missed) or len(suspects.missed):
                seconds = max(seconds / _SHARE, _LEAST)
        rest = rows[n_first : math.floor(min(seconds / each, n))]
        answers += [self._answers(made, part) for part in self._parts(rest, _N_DRAWS)]
        test = _told(answers)
        return self._audited(test, answers) if test.failed and self.ladder.audit else test

    def _parts(self, rows: Tensor, n_draws: int) -> Iterator[Tensor]:
        at_once = max(1, launch.of(self.device).batch_draws // n_draws)
        return (part for part in rows.split(at_once) if len(part))

    @torch.no_grad()
    def _suspects(self, made: KnownObjects, rows: Tensor) -> Tensor:
        """Return the rows by how suspect a few draws make their truths, the most suspect first.

        These outweigh efficient draws by far. Who has inefficient ones is given no certificate.
        """
        found = []
        for part in self._parts(rows, _N_QUICK):
            own = self._weighed(made, part, _N_QUICK)
            excess = own.log_truth - own.weights.log_weights.logsumexp(1)
            found.append(excess * own.summary.ess)
        return rows[torch.cat(found).argsort(descending=True)]

    @torch.no_grad()
    def _audited(self, test: TruthTest, answers: list[_Answers]) -> TruthTest:
        """Return the test with what audits, as doubted answers get them, find in those above.

        A truth in a place that an audit found, and found light, was not overlooked.
        """
        missed, n_looked = [], 0
        for own in answers:
            missed.append(own.missed[: _N_LOOKED - n_looked])
            n_looked += len(missed[-1])
        for scouts in SCOUTS:
            audit = self.ladder.audit.doubled(scouts)
            missed = [own[own.unseen(audit)] for own in missed if len(own)]
            n_unseen = sum(map(len, missed))
            if not n_unseen or n_unseen == n_looked >= _HOPELESS:
                break
        return replace(test, n_looked=n_looked, n_unseen=n_unseen, scouts=scouts)

    @cached_property
    def _flow(self) -> NetworkProposal:
        ladder = self.ladder
        return proposal_of(self.model, ladder.defensive_share, ladder.defensive_width)

    def _weighed(self, made: KnownObjects, rows: Tensor, n_draws: int) -> _Weighed:
        problem, index = self.problem, torch.arange(len(rows), device=self.device)
        data, truth = made.data.select(rows), made.truth[rows]
        target = Target(problem.prior, problem.simulator, problem.noise, data)
        features = self.model.features(data)
        draws = self._flow.draw(features, rows, n_draws, self.seed, _STAGE)
        found = target.evaluate(draws.z, index)
        own = target.log_prob(truth, index) - self._flow.log_prob(truth, features).to(torch.float64)
        pool = Pool(index, draws.z, draws.log_q, found.log_prior, found.log_likelihood,
                    found.failed)  # fmt: skip
        circles = circular_columns(problem.prior.periods)
        return _Weighed(target, pool, *weigh(pool, circles, self.seed), own[:, 0])

    @torch.no_grad()
    def _answers(self, made: KnownObjects, rows: Tensor) -> _Answers:
        """Return the network's answers about simulated objects of these numbers."""
        own = self._weighed(made, rows, _N_DRAWS)
        grade = gate_of("network", self.ladder.gate).grade(own.summary)
        outcome = Outcome("truths", "network", own.pool, own.weights, own.summary, grade,
                          Status.REWEIGHTED)  # fmt: skip
        is_missed = outcome.passed & (own.log_truth > own.weights.log_weights.amax(1))
        accounts = Earlier.nothing(len(rows), self.device).accounts(self.ladder.gate)
        context = RungContext(
            own.target, *accounts, self.ladder.gate, self.ladder.budget, self.seed
        )
        return _Answers(
            n_certified=int(outcome.passed.sum()),
            expected=float((1 / own.summary.ess.clamp(min=1.0))[outcome.passed].sum()),
            missed=_Missed(outcome, rows, made.truth[rows], context)[is_missed.nonzero()[:, 0]],
        )


def truth_test(
    trial: TruthTrial, wanted: bool | int | None, has_likelihood: bool, seconds: float
) -> TruthTest | None:
    """Return the truth test of a fit, or None where there was none.

    Parameters
    ----------
    trial : TruthTrial
    wanted : bool or int, optional
        Whether, or with how many objects. None: where it costs at most a tenth of the training.
    has_likelihood : bool
        Without one nothing can be tested.
    seconds : float
        That the training took.
    """
    simulator = trial.problem.simulator
    can = has_likelihood and simulator is not None and not simulator.stochastic
    if wanted is False or (wanted is None and not can):
        return None
    if not can:
        raise ValueError(
            "truth_test must have a likelihood and a simulator that gives one answer, but one of "
            "them is missing. Fit with truth_test=None."
        )
    n = N_OBJECTS if wanted is None or wanted is True else whole("truth_test", wanted)
    result = trial.run(n, _SHARE * seconds if wanted is None else math.inf)
    if result is not None and result.failed:
        _LOG.warning(
            "%s. This problem has places that the network does not propose. Train longer, give "
            "modes= to look at, or fit with a PeakAudit of more starts and scouts; %s flagged "
            "UNCALIBRATED.",
            result,
            "all answers are" if result.blind else "answers whose audit does not pass are",
        )
    return result
