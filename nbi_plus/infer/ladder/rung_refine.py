"""Refining: the rungs that draw from what is adapted to each object, for many at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import OptionalRung, RungContext
from nbi_plus.infer.posterior.certificate import outcome_of
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.proposals.base import PriorProposal
from nbi_plus.infer.proposals.cross_fit import (
    FlowFamily,
    MixtureFamily,
    OnCircles,
    Pair,
    ProposalFamily,
)
from nbi_plus.infer.proposals.flow_fit import DensityConfig
from nbi_plus.infer.proposals.mixture import COARSE, MixtureConfig
from nbi_plus.infer.weights.summary import Gate, gate_of, summarise
from nbi_plus.problem.target import Target

_SHARE = 0.5  # of the time that is left, for one step: it may take twice as long as it should
_OVER = 0.2  # of a budget of time: so little is not begun with, as a step has a cost of its own
_GROWS = 1.5  # times what the last round took: the next has more draws to learn from
_AFTER = 10.0  # times what the first rung took: the draws of a round, and a certificate


@dataclass(frozen=True)
class RefineRung(OptionalRung):
    """Chosen state of the rung.

    Attributes
    ----------
    n_rounds : int
        Most rounds of adapting; 0 leaves the rung out.
    n_each : int
        Draws of each of the two streams in a round.
    n_scouts : int
        Draws of the prior that join the pool, so that a mode is seen that the network left out.
    n_certify : int
        Fresh draws that must pass the gate.
    ess_min : float
        Effective draws that an object must have for the rung to begin.
    mixture, wide : MixtureConfig
        Of the proposal and of its wide part: cheaper fits than one object alone would get.
    """

    n_rounds: int = 8
    n_each: int = 500
    n_scouts: int = 2048
    n_certify: int = 2048
    ess_min: float = 0.0
    mixture: MixtureConfig = MixtureConfig(
        n_components=(6, 24, 80), n_points=4000, n_starts=1, dof=5, wide_share=0.1
    )
    wide: MixtureConfig = COARSE
    name: ClassVar[str] = "refine"
    round_times: ClassVar[float] = 6.0  # what the first rung took, of a round before any was timed
    status: ClassVar[Status] = Status.REFINED

    @property
    def wanted(self) -> bool:
        """Whether there are rounds."""
        return self.n_rounds > 0

    def run(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects that together hold every object once, after this rung."""
        return refine(objects, context, self)

    def family(self, n_dim: int) -> MixtureFamily:
        """Return what is fitted to objects of so many parameters."""
        return MixtureFamily(self.mixture.in_dims(n_dim), self.wide.in_dims(n_dim))


@dataclass(frozen=True)
class FlowRung(OptionalRung):
    """Chosen state of the rung that adapts flows: for shapes that no mixture follows.

    Attributes
    ----------
    n_rounds, n_each, n_scouts, n_certify, ess_min
        As for `RefineRung`; the scouts of the mixtures' rung are in the pool already, and a flow
        learns nothing from a handful of draws.
    density : DensityConfig
        How a flow is trained, for one object after the other.
    """

    n_rounds: int = 2
    n_each: int = 1000
    n_scouts: int = 0
    n_certify: int = 2048
    ess_min: float = 20.0
    density: DensityConfig = field(default_factory=DensityConfig)
    name: ClassVar[str] = "flow"
    round_times: ClassVar[float] = 30.0
    status: ClassVar[Status] = Status.REFINED

    @property
    def wanted(self) -> bool:
        """Whether there are rounds."""
        return self.n_rounds > 0

    def run(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects that together hold every object once, after this rung."""
        return refine(objects, context, self)

    def family(self, n_dim: int) -> FlowFamily:  # noqa: ARG002 - as `RefineRung.family`
        """Return what is fitted."""
        return FlowFamily(self.density)


@dataclass(frozen=True)
class _Open:
    """Objects that have been adapted to for so many rounds, the last of which took so long."""

    objects: OpenObjects
    n_rounds: int = 0
    tried: bool = False
    seconds: float = 0.0

    def where(self, chosen: Tensor) -> _Open:
        """Return the objects for which ``chosen`` (b,) is true."""
        return replace(self, objects=self.objects.where(chosen))


@torch.no_grad()
def refine(
    objects: OpenObjects, context: RungContext, rung: RefineRung | FlowRung
) -> Iterator[OpenObjects]:
    """Yield objects that together hold every object once, after this rung.

    An object is certified when its pooled draws look good enough, and goes on once if its fresh
    draws do not.

    Parameters
    ----------
    objects : OpenObjects
    context : RungContext
    rung : RefineRung or FlowRung
    """
    family = OnCircles(rung.family(objects.n_dim), context.circles)
    gate = family.gate(context.gate)
    seconds = rung.round_times * context.first_seconds(objects.index)
    begins = context.can_afford(objects.index, "calls", seconds=seconds)
    begins &= objects.pair.ess >= rung.ess_min
    if not begins.all():
        yield objects.where(~begins)
    if not begins.any():
        return
    groups = [_Open(_scouted(objects.where(begins), context, rung))]
    while groups:
        group = groups.pop()
        seconds = _GROWS * group.seconds
        over = ~context.can_afford(group.objects.index, "calls", seconds=seconds)
        if over.any():
            yield _out_of_budget(group.where(over).objects, context, gate, rung)
        if over.all():
            continue
        group = _adapted(group.where(~over), context, family, rung)
        ends = group.n_rounds == rung.n_rounds
        with context.meter.timed(group.objects.index):
            ready = _looks_good(group.objects.pair, gate) & (not group.tried) | ends
        if not ready.all():
            groups.append(group.where(~ready))
        if ready.any():
            tried = _certified(group.where(ready), context, gate, rung)
            done = tried.passed | ends
            if done.any():
                context.report.note(
                    tried.where(done).tried[-1], otherwise="fresh draws did not pass"
                )
                yield tried.where(done)
            if not done.all():
                # a certificate that failed is no outcome yet: its draws only join the pool
                before = replace(tried, tried=tried.tried[:-1]).where(~done)
                groups.append(_Open(before, group.n_rounds, True, group.seconds))


def _scouted(
    objects: OpenObjects, context: RungContext, rung: RefineRung | FlowRung
) -> OpenObjects:
    """Return the objects with draws of the prior in their pool."""
    n, prior = rung.n_scouts, PriorProposal(objects.n_dim)
    if n == 0 or prior in objects.pair.a.proposals:
        return objects
    with context.meter.timed(objects.index):
        z = prior.draw(objects.keys, n, context.seed, f"{rung.name} scouts")
        found = context.evaluate(z, objects.index)
        pair = objects.pair.extend((prior, prior), z, found)
    return replace(objects, pair=pair)


def _adapted(
    group: _Open, context: RungContext, family: ProposalFamily, rung: RefineRung | FlowRung
) -> _Open:
    n, began, n_objects = group.n_rounds + 1, time.perf_counter(), len(group.objects)
    left = context.seconds_left(group.objects.index, _AFTER) / n_objects
    within = family.within(left / (2 * (rung.n_rounds - group.n_rounds)))  # a fit for each stream
    objects = context.adapted(group.objects, within, rung.n_each, f"{rung.name} {n}")
    seconds = (time.perf_counter() - began) / n_objects
    return replace(group, objects=objects, n_rounds=n, seconds=seconds)


def _looks_good(pair: Pair, gate: Gate) -> Tensor:
    """Say which objects (b,) would pass the gate if nothing had been fitted to their draws."""
    pooled = summarise(pair.log_weights)
    sound = ~pooled.heavy_tail & (pooled.ess >= gate.ess_min)
    return sound & (pair.efficiency() >= gate.efficiency_min)


def _certified(
    group: _Open, context: RungContext, gate: Gate, rung: RefineRung | FlowRung
) -> OpenObjects:
    """Return the objects with fresh draws added, and what these say."""
    own = group.objects
    stage = context.stage(f"{rung.name} certify {group.n_rounds}")
    with context.meter.timed(own.index):
        z = own.pair.frozen.draw(own.keys, rung.n_certify, context.seed, stage)
        found = context.evaluate(z, own.index)
        pair, fresh = own.pair.judged(z, found)
        outcome = outcome_of(
            pair,
            fresh,
            gate,
            rung=rung.name,
            index=own.index,
            circles=context.circles,
            seed=context.seed,
        )
    return replace(own, pair=pair).after(outcome)


def _out_of_budget(
    objects: OpenObjects, context: RungContext, gate: Gate, rung: RefineRung | FlowRung
) -> OpenObjects:
    """Return the objects with what their draws come to, which nothing certifies."""
    with context.meter.timed(objects.index):
        outcome = outcome_of(
            objects.pair, None, gate, rung=rung.name, index=objects.index,
            circles=context.circles, seed=context.seed,
        )  # fmt: skip
    context.report.note(outcome, otherwise="the budget was spent")
    return objects.after(outcome)


@dataclass(frozen=True)
class LastRung:
    """Chosen state of the last rung of a budget of time.

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
