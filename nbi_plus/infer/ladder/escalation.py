"""Ascents: objects that the network's draws did not settle, escalated together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.batched import join
from nbi_plus.infer.ladder.ladder import HINTS, Ladder, NetworkProposal, climb, climbers_of
from nbi_plus.infer.ladder.open_objects import Climbers, Course
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.accounts import Cost, Meter, Trail
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.predictive import checked
from nbi_plus.infer.posterior.status import Rung
from nbi_plus.problem.target import Target


@dataclass(frozen=True)
class Party:
    """Objects that are answered together.

    Attributes
    ----------
    objects : verdict.Objects
        Of N objects.
    positions : ndarray of int, shape (N,)
        Where they stand among all that were asked for.
    features : Tensor, shape (N, F)
    course : Course
    modes : Tensor or None, shape (N, M, D)
        Latent places that are worth a look.
    """

    objects: verdict.Objects
    positions: NDArray[np.int64]
    features: Tensor
    course: Course
    modes: Tensor | None = None


@dataclass(frozen=True)
class Unfinished:
    """Where an object stands that no rung certified: what the next attempt starts from.

    Attributes
    ----------
    party : Party
    climbers : Climbers
        Of all those of the party that came the same way.
    row : int
        Which of them it is.
    request : verdict.Request
        How its answer was wanted.
    """

    party: Party
    climbers: Climbers
    row: int
    request: verdict.Request


@dataclass(frozen=True)
class Part:
    """Answers for some of the objects that were asked for, and where these stand."""

    posteriors: Posteriors
    positions: NDArray[np.int64]


def in_order(parts: Sequence[Part]) -> Posteriors:
    """Return the answers of all parts in the order in which they were asked for."""
    order = np.argsort(np.concatenate([part.positions for part in parts]), kind="stable")
    return Posteriors.concatenate([part.posteriors for part in parts])[order]


def settled(outcome: Outcome, party: Party, request: verdict.Request) -> Part:
    """Return the answers for objects that go no further."""
    course, index = party.course, outcome.pool.index
    keys = party.objects.keys[index]
    outcome = checked(course.meter.target, outcome, keys, request.seed)
    posteriors = verdict.corrected([outcome], party.objects, request, course.trail)
    return Part(posteriors, party.positions[index.cpu().numpy()])


def escalate(
    party: Party, outcomes: Sequence[Outcome], proposal: NetworkProposal, ladder: Ladder,
    request: verdict.Request,
) -> Iterator[Part]:  # fmt: skip
    """Yield the answers for a party after the whole ladder.

    Parameters
    ----------
    party : Party
    outcomes : sequence of Outcome
        Of the network's draws; together they hold every object of the party once.
    proposal : FlowProposal or TranslatedFlow
    ladder : Ladder
    request : verdict.Request
    """
    groups = []
    for outcome in outcomes:
        index = outcome.pool.index
        keys = party.objects.keys[index]
        modes = party.modes[index] if outcome.rung == HINTS else None
        groups.append(climbers_of(outcome, proposal, party.features[index], keys, modes))
    yield from _answers(climb(groups, party.course, ladder), party, request)


def try_again(waiting: Sequence[Unfinished], ladder: Ladder) -> Iterator[Part]:
    """Yield answers for objects that no rung certified, after one more climb with a new budget.

    Draws, proposals and chains of the earlier climb are used again. Positions are those among
    ``waiting``.
    """
    together: dict[int, list[int]] = {}
    for i, own in enumerate(waiting):
        together.setdefault(id(own.climbers), []).append(i)
    for numbers in together.values():
        first = waiting[numbers[0]]
        rows = torch.tensor([waiting[i].row for i in numbers], device=first.climbers.index.device)
        again = first.climbers.select(rows)
        old = first.party.course
        meter = Meter.of(old.meter.target, old.meter.read(slice(None)), is_free=True)
        trail = Trail.of(meter, ladder.gate, old.trail.lines)
        course = replace(old, meter=meter, trail=trail, gate=ladder.gate, budget=ladder.budget)
        positions = np.full(len(first.party.positions), -1)
        positions[again.index.cpu().numpy()] = numbers
        party = replace(first.party, course=course, positions=positions)
        again = replace(again, attempt=again.attempt + 1)
        request = replace(first.request, gate=ladder.gate)
        yield from _answers(climb([again], course, ladder), party, request)


def merged(parties: Sequence[tuple[Party, Outcome]], target: Target) -> Course:
    """Return the course of objects from several parties, with what they cost and tried so far."""
    courses = [(party.course, outcome.pool.index) for party, outcome in parties]
    first = courses[0][0]
    cost: Cost = join([course.meter.read(index) for course, index in courses])
    lines: list[list[Rung]] = [
        course.trail.lines[i] for course, index in courses for i in index.tolist()
    ]
    meter = Meter.of(target, cost)
    return replace(first, meter=meter, trail=Trail.of(meter, first.gate, lines))


def _answers(groups: Iterable[Climbers], party: Party, request: verdict.Request) -> Iterator[Part]:
    for group in groups:
        # the others' draws are let go
        left = group.where(group.can_improve) if group.can_improve.any() else None
        rows = {} if left is None else {i: row for row, i in enumerate(left.index.tolist())}
        for outcome in group.answers():
            part = settled(outcome, party, request)
            if request.keep is None:
                places = (rows.get(i) for i in outcome.pool.index.tolist())
                own = (None if row is None else Unfinished(party, left, row, request)
                       for row in places)  # fmt: skip
                part = Part(replace(part.posteriors, unfinished=tuple(own)), part.positions)
            yield part
