"""Ascents: objects that the network's draws did not settle, escalated together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.batched import join
from nbi_plus.infer.ladder.ladder import HINTS, Ladder, NetworkProposal, climb, open_objects_of
from nbi_plus.infer.ladder.open_objects import OpenObjects, RungContext
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.accounts import Cost, Meter, ReportLog
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.predictive import checked
from nbi_plus.infer.posterior.status import RungReport
from nbi_plus.problem.target import Target


@dataclass(frozen=True)
class Group:
    """Objects that are answered together.

    Attributes
    ----------
    objects : verdict.Objects
        Of N objects.
    positions : ndarray of int, shape (N,)
        Where they stand among all that were asked for.
    features : Tensor, shape (N, F)
    context : RungContext
    modes : Tensor or None, shape (N, M, D)
        Latent places that are worth a look.
    """

    objects: verdict.Objects
    positions: NDArray[np.int64]
    features: Tensor
    context: RungContext
    modes: Tensor | None = None


@dataclass(frozen=True)
class Unfinished:
    """Where an object stands that no rung certified: what the next attempt starts from.

    Attributes
    ----------
    group : Group
    objects : OpenObjects
        Of all those of the group that came the same way.
    row : int
        Which of them it is.
    request : verdict.Request
        How its answer was wanted.
    """

    group: Group
    objects: OpenObjects
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


def settled(outcome: Outcome, group: Group, request: verdict.Request) -> Part:
    """Return the answers for objects that go no further."""
    context, index = group.context, outcome.pool.index
    keys = group.objects.keys[index]
    outcome = checked(context.meter.target, outcome, keys, request.seed)
    posteriors = verdict.corrected([outcome], group.objects, request, context.report)
    return Part(posteriors, group.positions[index.cpu().numpy()])


def escalate(
    group: Group, outcomes: Sequence[Outcome], proposal: NetworkProposal, ladder: Ladder,
    request: verdict.Request,
) -> Iterator[Part]:  # fmt: skip
    """Yield the answers for a group after the whole ladder.

    Parameters
    ----------
    group : Group
    outcomes : sequence of Outcome
        Of the network's draws; together they hold every object of the group once.
    proposal : FlowProposal or TranslatedFlow
    ladder : Ladder
    request : verdict.Request
    """
    groups = []
    for outcome in outcomes:
        index = outcome.pool.index
        keys = group.objects.keys[index]
        modes = group.modes[index] if outcome.rung == HINTS else None
        groups.append(open_objects_of(outcome, proposal, group.features[index], keys, modes))
    yield from _answers(climb(groups, group.context, ladder), group, request)


def try_again(waiting: Sequence[Unfinished], ladder: Ladder) -> Iterator[Part]:
    """Yield answers for objects that no rung certified, after one more climb with a new budget.

    Draws, proposals and chains of the earlier climb are used again. Positions are those among
    ``waiting``.
    """
    together: dict[int, list[int]] = {}
    for i, own in enumerate(waiting):
        together.setdefault(id(own.objects), []).append(i)
    for numbers in together.values():
        first = waiting[numbers[0]]
        rows = torch.tensor([waiting[i].row for i in numbers], device=first.objects.index.device)
        again = first.objects.select(rows)
        old = first.group.context
        meter = Meter.of(old.meter.target, old.meter.read(slice(None)), is_free=True)
        report = ReportLog.of(meter, ladder.gate, old.report.lines)
        context = replace(old, meter=meter, report=report, gate=ladder.gate, budget=ladder.budget)
        positions = np.full(len(first.group.positions), -1)
        positions[again.index.cpu().numpy()] = numbers
        group = replace(first.group, context=context, positions=positions)
        again = replace(again, attempt=again.attempt + 1)
        request = replace(first.request, gate=ladder.gate)
        yield from _answers(climb([again], context, ladder), group, request)


def merged(groups: Sequence[tuple[Group, Outcome]], target: Target) -> RungContext:
    """Return the context of objects from several groups, with what they cost and tried so far."""
    courses = [(group.context, outcome.pool.index) for group, outcome in groups]
    first = courses[0][0]
    cost: Cost = join([context.meter.read(index) for context, index in courses])
    lines: list[list[RungReport]] = [
        context.report.lines[i] for context, index in courses for i in index.tolist()
    ]
    meter = Meter.of(target, cost)
    return replace(first, meter=meter, report=ReportLog.of(meter, first.gate, lines))


def _answers(
    climbing: Iterable[OpenObjects], group: Group, request: verdict.Request
) -> Iterator[Part]:
    for objects in climbing:
        # the others' draws are let go
        left = objects.where(objects.can_improve) if objects.can_improve.any() else None
        rows = {} if left is None else {i: row for row, i in enumerate(left.index.tolist())}
        for outcome in objects.answers():
            part = settled(outcome, group, request)
            if request.keep is None:
                places = (rows.get(i) for i in outcome.pool.index.tolist())
                own = (None if row is None else Unfinished(group, left, row, request)
                       for row in places)  # fmt: skip
                part = Part(replace(part.posteriors, unfinished=tuple(own)), part.positions)
            yield part
