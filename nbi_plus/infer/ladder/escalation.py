"""Escalation: objects that the network's draws did not settle climb the ladder together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.infer.ladder.earlier import HINTS, can_be_tried_again
from nbi_plus.infer.ladder.ladder import Ladder, NetworkProposal, climb, open_objects_of
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.predictive import checked
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.progress import Work


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
    """

    objects: verdict.Objects
    positions: NDArray[np.int64]
    features: Tensor
    context: RungContext


@dataclass(frozen=True)
class Answered:
    """Answers for some of the objects that were asked for, and where these stand.

    ``unfinished`` are those of them that no rung certified, with draws, if these were wanted.
    """

    posteriors: Posteriors
    positions: NDArray[np.int64]
    unfinished: Posteriors | None = None


def in_order(parts: Iterable[Answered], n: int) -> Posteriors:
    """Return the answers of all parts, for n objects, in the order in which they were asked for."""
    return Posteriors.placed(((part.posteriors, part.positions) for part in parts), n)


def counted(parts: Iterable[Answered], work: Work) -> Iterator[Answered]:
    """Yield the parts, and tell the work of them."""
    for part in parts:
        yield part
        work.step(len(part.positions))


def settled(outcome: Outcome, group: Group, request: verdict.Request) -> Answered:
    """Return the answers for objects that go no further."""
    context, index = group.context, outcome.pool.index
    keys = group.objects.keys[index]
    outcome = checked(context.target, outcome, keys, request.seed)
    posteriors = verdict.corrected([outcome], group.objects, request, context.report)
    open_rows = np.flatnonzero(can_be_tried_again(posteriors)) if request.keep_unfinished else ()
    unfinished = None
    if len(open_rows):
        kept = replace(request, keep=request.keep_unfinished)
        rows = torch.as_tensor(open_rows, device=index.device)
        unfinished = verdict.corrected([outcome.select(rows)], group.objects, kept, context.report)
    return Answered(posteriors, group.positions[index.cpu().numpy()], unfinished)


def escalate(
    group: Group, outcomes: Sequence[Outcome], proposal: NetworkProposal,
    look: LatentProposal | None, ladder: Ladder, request: verdict.Request,
) -> Iterator[Answered]:  # fmt: skip
    """Yield the answers for a group after the whole ladder.

    Parameters
    ----------
    group : Group
    outcomes : sequence of Outcome
        Of the network's draws; together they hold every object of the group once.
    proposal : FlowProposal, MemberProposals or TranslatedFlow
    look : LatentProposal or None
        Where draws came from besides, for the outcomes of the rung `HINTS`.
    ladder : Ladder
    request : verdict.Request
    """
    waiting = []
    for outcome in outcomes:
        index = outcome.pool.index
        keys = group.objects.keys[index]
        own = look.select(index) if outcome.rung == HINTS else None
        waiting.append(open_objects_of(outcome, proposal, group.features[index], keys, own))
    yield from climbed(waiting, group, ladder, request)


def climbed(
    waiting: list[OpenObjects], group: Group, ladder: Ladder, request: verdict.Request
) -> Iterator[Answered]:
    """Yield the answers for open objects, which together hold a group, after the whole ladder."""
    again: list[OpenObjects] = []
    for objects, outcome, reopened in _answers(waiting, group, ladder):
        if reopened.any():
            again.append(objects.again(outcome).where(reopened))
            outcome = outcome.select((~reopened).nonzero()[:, 0])
        if len(outcome.grade):
            yield settled(outcome, group, request)
    once_more = replace(group, context=replace(group.context, again=True))
    for _, outcome, _ in _answers(again, once_more, ladder):
        yield settled(outcome, once_more, request)


def _answers(
    waiting: list[OpenObjects], group: Group, ladder: Ladder
) -> Iterator[tuple[OpenObjects, Outcome, Tensor]]:
    """Yield objects after their last rung, their outcomes, and where a look has undone these."""
    for objects in climb(waiting, group.context, ladder):
        for outcome in objects.answers():
            own, passed = objects.of(outcome), outcome.passed
            if ladder.audit is not None:
                # the frozen proposals are of the last rung's draws; chains find the ends themselves
                is_last = outcome.rung == own.tried[-1].rung and not outcome.status.from_chains
                last = own.pair.frozen if is_last else None
                outcome = ladder.audit(outcome, own.keys, group.context, proposal=last)
            yield own, outcome, passed & ~outcome.passed
