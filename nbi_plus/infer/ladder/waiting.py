"""Waiting: objects that the network's draws did not settle, until enough are there to climb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.batched import join, pick
from nbi_plus.data.joining import concatenate
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.escalation import Answered, Group
from nbi_plus.infer.posterior.accounts import Cost, Meter, ReportLog
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.posterior.status import RungReport
from nbi_plus.infer.weights.summary import Gate

MOST_BYTES = 2**28  # of objects that wait for others


@dataclass(frozen=True)
class Waiting:
    """Some objects after the first rung, of which nothing else has to be known to go on.

    Attributes
    ----------
    observations : Observations
        Of b objects.
    positions : ndarray of int, shape (b,)
        Where they stand among all that were asked for.
    features : Tensor, shape (b, F)
    outcome : Outcome
        Of one rung.
    cost, free : Cost
        What they have cost, and what of that is in no budget.
    lines : tuple of tuple of RungReport
    """

    observations: Observations
    positions: NDArray[np.int64]
    features: Tensor
    outcome: Outcome
    cost: Cost
    free: Cost
    lines: tuple[tuple[RungReport, ...], ...]

    @classmethod
    def of(cls, group: Group, outcome: Outcome, observations: Observations) -> Waiting:
        """Return the objects of an outcome, of a group of all that were asked for."""
        index, context = outcome.pool.index, group.context
        positions = group.positions[index.cpu().numpy()]
        return cls(
            observations[positions], positions, group.features[index], outcome,
            context.meter.read(index), pick(context.meter.free, index),
            tuple(tuple(context.report.lines[i]) for i in index.tolist()),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def n_bytes(self) -> int:
        """The memory that they take while they wait."""
        seen = self.observations
        points = [seen.values, seen.errors, seen.valid, *seen.points.values()]
        return sum(v.nbytes for v in points if v is not None) + _n_bytes(self.outcome)

    def at(self, positions: NDArray[np.int64]) -> Waiting:
        """Return the same objects as some of others that are asked for."""
        return replace(self, positions=positions)

    def select(self, rows: NDArray[np.int64]) -> Waiting:
        """Return some of the objects."""
        own = torch.as_tensor(rows, device=self.features.device)
        return Waiting(
            self.observations[rows], self.positions[rows], self.features[own],
            self.outcome.select(own), pick(self.cost, own), pick(self.free, own),
            tuple(self.lines[i] for i in rows),
        )  # fmt: skip


@dataclass(frozen=True)
class Begun:
    """Objects that were asked for, after the first rung: those it settled, and the others."""

    answered: tuple[Answered, ...]
    waiting: tuple[Waiting, ...] = ()


@dataclass(frozen=True)
class Gathered:
    """Objects that climb together; those of one rung stand beside each other.

    Attributes
    ----------
    observations : Observations
        Of N objects.
    positions : ndarray of int, shape (N,)
    features : Tensor, shape (N, F)
    outcomes : tuple of Outcome
        One of each rung, which together hold every object once.
    accounts : tuple of Meter, ReportLog
    """

    observations: Observations
    positions: NDArray[np.int64]
    features: Tensor
    outcomes: tuple[Outcome, ...]
    accounts: tuple[Meter, ReportLog]

    @classmethod
    def of(cls, waiting: Sequence[Waiting], gate: Gate) -> Gathered:
        """Return all objects that waited."""
        some = sorted(waiting, key=lambda own: own.outcome.rung)
        features = torch.cat([own.features for own in some])
        outcomes, first = [], 0
        for _, same in groupby((own.outcome for own in some), key=lambda o: o.rung):
            outcome = join(list(same))
            n = len(outcome.grade)
            index = torch.arange(first, first + n, device=features.device)
            outcomes.append(replace(outcome, pool=replace(outcome.pool, index=index)))
            first += n
        meter = Meter.of(join([own.cost for own in some]), join([own.free for own in some]))
        lines = [list(report) for own in some for report in own.lines]
        return cls(
            concatenate([own.observations for own in some]),
            np.concatenate([own.positions for own in some]), features, tuple(outcomes),
            (meter, ReportLog.of(meter, gate, lines)),
        )  # fmt: skip


def _n_bytes(value: object) -> int:
    """Return the memory of all tensors of a dataclass."""
    if isinstance(value, Tensor):
        return value.element_size() * value.nelement()
    if not is_dataclass(value):
        return 0
    return sum(_n_bytes(getattr(value, f.name)) for f in fields(value))
