"""Refining: the rung that adapts a proposal to each object, for many at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nbi_plus.infer.ladder.open_objects import Climbers, Course
from nbi_plus.infer.posterior.certificate import outcome_of
from nbi_plus.infer.proposals.base import PriorProposal
from nbi_plus.infer.proposals.cross_fit import (
    Family,
    FlowFamily,
    MixtureFamily,
    OnCircles,
    Pair,
    adapt,
)
from nbi_plus.infer.proposals.flow_fit import DensityConfig
from nbi_plus.infer.proposals.mixture import COARSE, MixtureConfig
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.weights.summary import Gate, summarise


@dataclass(frozen=True)
class RefineConfig:
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
        n_components=6, n_points=1000, n_steps=15, n_starts=1, dof=5, wide_share=0.1
    )
    wide: MixtureConfig = COARSE

    def family(self, n_dim: int) -> MixtureFamily:
        """Return what is fitted to objects of so many parameters."""
        return MixtureFamily(self.mixture.in_dims(n_dim), self.wide.in_dims(n_dim))


@dataclass(frozen=True)
class FlowRung:
    """Chosen state of the rung that adapts flows: for shapes that no mixture follows.

    Attributes
    ----------
    n_rounds, n_each, n_scouts, n_certify, ess_min
        As for `RefineConfig`; the scouts of the mixtures' rung are in the pool already, and a flow
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

    def family(self, n_dim: int) -> FlowFamily:  # noqa: ARG002 - as `RefineConfig.family`
        """Return what is fitted."""
        return FlowFamily(self.density)


@dataclass(frozen=True)
class _Open:
    """Climbers that have been adapted to for so many rounds."""

    climbers: Climbers
    n_rounds: int = 0
    tried: bool = False

    def where(self, chosen: Tensor) -> _Open:
        """Return the objects for which ``chosen`` (b,) is true."""
        return replace(self, climbers=self.climbers.where(chosen))


@torch.no_grad()
def refine(
    climbers: Climbers, course: Course, config: RefineConfig | FlowRung, rung: str
) -> Iterator[Climbers]:
    """Yield climbers that together hold every object once, after this rung.

    An object is certified when its pooled draws look good enough, and goes on once if its fresh
    draws do not.

    Parameters
    ----------
    climbers : Climbers
    course : Course
    config : RefineConfig or FlowRung
    rung : str
        Its name in the report.
    """
    family = OnCircles(config.family(climbers.n_dim), course.circles)
    gate = family.gate(course.gate)
    begins = (climbers.pair.ess >= config.ess_min) & course.can_afford(climbers.index, "calls")
    if not begins.all():
        yield climbers.where(~begins)
    if not begins.any():
        return
    groups = [_Open(_scouted(climbers.where(begins), course, config, rung))]
    while groups:
        group = groups.pop()
        over = ~course.can_afford(group.climbers.index, "calls")
        if over.any():
            yield _out_of_budget(group.where(over).climbers, course, gate, rung)
        if over.all():
            continue
        group = _adapted(group.where(~over), course, family, config, rung)
        ends = group.n_rounds == config.n_rounds
        ready = _looks_good(group.climbers.pair, gate) & (not group.tried) | ends
        if not ready.all():
            groups.append(group.where(~ready))
        if ready.any():
            tried = _certified(group.where(ready), course, gate, config.n_certify, rung)
            done = tried.passed | ends
            if done.any():
                course.trail.note(tried.where(done).tried[-1], otherwise="fresh draws did not pass")
                yield tried.where(done)
            if not done.all():
                # a certificate that failed is no outcome yet: its draws only join the pool
                before = replace(tried, tried=tried.tried[:-1]).where(~done)
                groups.append(_Open(before, group.n_rounds, tried=True))


def _scouted(
    climbers: Climbers, course: Course, config: RefineConfig | FlowRung, rung: str
) -> Climbers:
    """Return the objects with draws of the prior in their pool."""
    n, prior = config.n_scouts, PriorProposal(climbers.n_dim)
    if n == 0 or prior in climbers.pair.a.proposals:
        return climbers
    with course.meter.timed(climbers.index):
        z = prior.draw(climbers.keys, n, course.seed, f"{rung} scouts")
        found = course.meter.evaluate(z, climbers.index)
        pair = climbers.pair.extend((prior, prior), z, found)
    return replace(climbers, pair=pair)


def _adapted(
    group: _Open, course: Course, family: Family, config: RefineConfig | FlowRung, rung: str
) -> _Open:
    n, own = group.n_rounds + 1, group.climbers
    with course.meter.timed(own.index):
        pair = adapt(
            own.pair, course.meter.evaluate, family, own.index, own.keys, config.n_each,
            course.seed, own.stage(f"{rung} {n}"),
        )  # fmt: skip
    return replace(group, climbers=replace(own, pair=pair), n_rounds=n)


def _looks_good(pair: Pair, gate: Gate) -> Tensor:
    """Say which objects (b,) would pass the gate if nothing had been fitted to their draws."""
    pooled = summarise(pair.log_weights)
    sound = ~pooled.heavy_tail & (pooled.ess >= gate.ess_min)
    return sound & (pair.efficiency() >= gate.efficiency_min)


def _certified(group: _Open, course: Course, gate: Gate, n: int, rung: str) -> Climbers:
    """Return the objects with ``n`` fresh draws added, and what these say."""
    own = group.climbers
    frozen = own.pair.frozen
    stage = own.stage(f"{rung} certify {group.n_rounds}")
    with course.meter.timed(own.index):
        z = frozen.draw(own.keys, n, course.seed, stage)
        found = course.meter.evaluate(z, own.index)
        fresh = Stream.start(frozen, z, found)
        pair = own.pair.extend(own.pair.proposals, z, found)
        outcome = outcome_of(
            pair, fresh, gate, rung=rung, index=own.index, circles=course.circles, seed=course.seed
        )
    return replace(own, pair=pair).after(outcome)


def _out_of_budget(climbers: Climbers, course: Course, gate: Gate, rung: str) -> Climbers:
    """Return the objects with what their draws come to, which nothing certifies."""
    outcome = outcome_of(
        climbers.pair, None, gate, rung=rung, index=climbers.index, circles=course.circles,
        seed=course.seed,
    )  # fmt: skip
    course.trail.note(outcome, otherwise="the budget was spent")
    return climbers.after(outcome)
