"""The last rung of a budget of time: what is left of it goes into more draws."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior.certificate import outcome_of
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.weights.summary import gate_of
from nbi_plus.problem.target import Target

_SHARE = 0.5  # of what is left for one step: it may take twice as long as it should
_OVER = 0.1  # of the budget: so little is not begun with


@dataclass(frozen=True)
class LastRung:
    """Chosen state of the rung.

    No other rung fits into what is left of the time. The last proposals are drawn from until it is
    spent, that of an audit, too: an answer that nothing certifies has no use for one.

    Attributes
    ----------
    n_first : int
        Draws of the first step; a step makes at most twice as many as the one before.
    n_most : int
        Draws of one object.
    """

    n_first: int = 512
    n_most: int = 65_536
    name: ClassVar[str] = "last draws"
    status: ClassVar[Status] = Status.REFINED

    def applies(self, target: Target) -> bool:  # noqa: ARG002 - the contract
        """Say that any target can be drawn for."""
        return True

    @torch.no_grad()
    def run(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects that together hold every object once, after this rung."""
        can = self._can_go_on(objects, context)
        if not can.all():
            late = context.left(objects.index).seconds <= 0
            if len(objects.tried) == 1:
                context.report.note_late(objects.index[late])
            yield objects.where(~can)
        if can.any():
            yield from self._drawn(objects.where(can), context)

    def _drawn(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        gate = gate_of(objects.tried[-1].family, context.gate)
        n_most = min(self.n_most, launch.of(objects.index.device).batch_draws // len(objects))
        n, step, fresh = min(self.n_first, n_most), 0, None
        while len(objects):
            step, began = step + 1, time.perf_counter()
            with context.meter.timed(objects.index):
                stage = context.stage(f"{self.name} {step}")
                z = objects.pair.frozen.draw(objects.keys, n, context.seed, stage)
                found = context.evaluate(z, objects.index)
                pair, fresh = objects.pair.judged(z, found, fresh)
                outcome = outcome_of(
                    pair, fresh, gate, rung=self.name, index=objects.index,
                    circles=context.circles, seed=context.seed,
                )  # fmt: skip
            each = (time.perf_counter() - began) / len(objects)
            objects = replace(objects, pair=pair)
            stays = ~outcome.passed & self._can_go_on(objects, context)
            stays &= fresh.z.shape[1] < n_most
            if not stays.all():
                rows = (~stays).nonzero()[:, 0]
                leaving = outcome.select(rows)
                context.report.note(leaving, otherwise="the time was spent")
                yield objects.select(rows).after(leaving)
            rows = stays.nonzero()[:, 0]
            objects, fresh = objects.select(rows), fresh.select(rows)
            if len(rows):
                left = float(context.left(objects.index).seconds.amin())
                n = 2 * max(1, int(0.5 * n * min(2.0, _SHARE * left / each)))

    @staticmethod
    def _can_go_on(objects: OpenObjects, context: RungContext) -> Tensor:
        """Say who has (b,) simulations left, and time."""
        left = context.left(objects.index)
        return (left.calls > 0) & (left.seconds > _OVER * context.budget.seconds)
