"""The contract of a rung, one way of answering for objects that are still open."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.posterior.accounts import Budget, Cost, Meter, ReportLog
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.proposals.base import Blend
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.cross_fit import PEAKS_SHARE, ProposalFamily, with_share
from nbi_plus.infer.samplers.gradients import LogProb
from nbi_plus.infer.weights.summary import Gate
from nbi_plus.problem.target import Evaluation, LatentTarget

_VERDICT = 2.0  # times what the first rung took: so long data and verdict of one object take


class Rung(Protocol):
    """One way of answering, with its chosen state.

    Attributes
    ----------
    name : str
        How its lines in the report begin.
    status : Status
        Of the objects that it certifies.
    """

    name: str
    status: Status

    def applies(self, target: LatentTarget) -> bool:
        """Say whether it can do anything for objects of this target."""

    def run(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects that together hold every object once, after this rung.

        Those it tried come back with one more `Outcome` (`OpenObjects.after`) and a line in
        ``context.report``; those it cannot help come back as they were.
        """


class OptionalRung:
    """A rung that can be switched off, and may be of no use without gradients.

    Attributes
    ----------
    wanted : bool
        Whether its chosen state leaves it anything to do.
    needs_gradients : bool
    """

    wanted: bool
    needs_gradients: ClassVar[bool] = False

    def applies(self, target: LatentTarget) -> bool:
        """Say whether it is wanted, and torch can differentiate the target if it must."""
        return self.wanted and (target.differentiable or not self.needs_gradients)


@dataclass(frozen=True)
class RungContext:
    """What every rung needs besides its objects.

    Attributes
    ----------
    target : LatentTarget
        What is believed of N objects.
    meter : Meter
        What was spent on them.
    report : ReportLog
    gate : Gate
    budget : Budget
    seed : int
    attempt : int
        How often the ladder was climbed before: another attempt takes other random numbers.
    n_draws : int
        How many draws of each object the first rung made: what was wanted of the answer.
    again : bool
        Whether it is climbed once more because an audit found places that were missed.
    kept_back : float
        The time of an audit, in units of that of the first rung.
    """

    target: LatentTarget
    meter: Meter
    report: ReportLog
    gate: Gate
    budget: Budget
    seed: int
    attempt: int = 0
    n_draws: int = 0
    again: bool = False
    kept_back: float = 0.0

    @property
    def circles(self) -> tuple[int, ...]:
        """The periodic parameters."""
        return circular_columns(self.target.prior.periods)

    def evaluate(self, z: Tensor, index: Tensor) -> Evaluation:
        """Return what the target is at draws z (b, n, D), and count the simulations."""
        found = self.target.evaluate(z, index)
        self.meter.add_calls(index, (found.log_prior > -math.inf).sum(1))
        return found

    def adapted(
        self, objects: OpenObjects, family: ProposalFamily, n_each: int, name: str
    ) -> OpenObjects:
        """Return the objects after one round of both streams: fitted, drawn from and evaluated.

        Peaks that are known keep a share of the draws. ``n_each`` are drawn for each stream;
        ``name`` is of this use of randomness.
        """
        index, keys, stage = objects.index, objects.keys, self.stage(name)
        with self.meter.timed(index):
            proposals = objects.pair.fit(family, keys, self.seed, stage)
            around = objects.around_peaks(self.circles)
            if around is not None:
                proposals = tuple(with_share(own, around, PEAKS_SHARE) for own in proposals)
            z = Blend(proposals, (0.5, 0.5)).draw(keys, 2 * n_each, self.seed, stage)
            pair = objects.pair.extend(proposals, z, self.evaluate(z, index))
        return replace(objects, pair=pair)

    def density(self, index: Tensor) -> LogProb:
        """Return the log-density of some objects, of which ``log_prob(z, i)`` takes the rows i.

        Nothing is counted: who differentiates it knows how often.
        """
        return lambda z, rows: self.target.log_prob(z, index[rows])

    @property
    def gradient_rows(self) -> int:
        """How many rows of one gradient fit into the cache of a CPU, or a GPU's memory."""
        numbers = launch.of(self.target.data.x.device).gradient_numbers
        return max(64, numbers // self.target.n_numbers)

    def applying(self, rungs: Iterable[Rung]) -> list[Rung]:
        """Return the rungs that can do anything for objects of this target."""
        return [rung for rung in rungs if rung.applies(self.target)]

    def stage(self, name: str) -> str:
        """Return the name of a use of randomness in this attempt."""
        name = f"{name} again" if self.again else name
        return f"{name} attempt {self.attempt}" if self.attempt else name

    def can_afford(self, index: Tensor, *what: str, seconds: float | Tensor = 0.0) -> Tensor:
        """Say which objects (b,) have ``"calls"`` or ``"gradients"`` left, and time for a step.

        ``seconds`` are what the step should take; what an audit takes is kept back.
        """
        left = self.left(index)
        in_time = left.seconds - self.reserve(index) > seconds
        return torch.stack([in_time, *(getattr(left, name) > 0 for name in what)]).all(0)

    def reserve(self, index: Tensor) -> Tensor:
        """Return the time (b,) that is kept back for an audit.

        Where that would be more than half of the budget it is that of a verdict alone: no answer is
        certified there, and there is more use in better draws.
        """
        first = self.first_seconds(index)
        audit = self.kept_back * first
        return torch.where(audit > 0.5 * self.budget.seconds, _VERDICT * first, audit)

    def can_audit(self, index: Tensor) -> Tensor:
        """Say for which objects (b,) there is time for an audit."""
        return self.left(index).seconds > self.kept_back * self.first_seconds(index)

    def first_seconds(self, index: Tensor) -> Tensor:
        """Return what the first rung took for each object (b,): by it other steps are guessed.

        Without a limit of time there is nothing to guess, and it is 0.
        """
        found = torch.zeros(len(index), dtype=torch.float64, device=index.device)
        if math.isinf(self.budget.seconds):
            return found
        for row, i in enumerate(index.tolist()):
            found[row] = next((line.seconds for line in self.report.lines[i]), 0.0)
        return found

    def seconds_left(self, index: Tensor, times: float) -> float:
        """Return the time for a step of some objects together, before an audit and others follow.

        ``times`` what the first rung took is left for these others.
        """
        after = self.reserve(index) + times * self.first_seconds(index)
        return float((self.left(index).seconds - after).clamp(min=0.0).sum())

    def left(self, index: Tensor) -> Cost:
        """Return what is left of the budget of some objects."""
        return self.meter.left(index, self.budget)
