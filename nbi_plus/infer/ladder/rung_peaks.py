"""Peaks as a rung: a mixture around the peaks of each object, weighed, and refitted if near."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import OptionalRung, RungContext
from nbi_plus.infer.ladder.rung_refine import RefineRung
from nbi_plus.infer.posterior.certificate import MISSING, outcome_of, summary_of
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.proposals.base import Blend
from nbi_plus.infer.proposals.cross_fit import MixtureFamily, OnCircles
from nbi_plus.infer.proposals.laplace import laplace_mixture
from nbi_plus.infer.proposals.mixture import MixtureConfig
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.samplers import peaks
from nbi_plus.infer.samplers.peaks import PeaksConfig
from nbi_plus.infer.weights.summary import Gate

# what the first rung took: the least that the rung takes, what follows the ascents, and a refit
_LEAST, _AFTER, _REFIT = 4.0, 2.0, 6.0


@dataclass(frozen=True)
class PeaksRung(OptionalRung):
    """Chosen state of the rung.

    Attributes
    ----------
    n_starts : int
        Ascents of each object; 0 leaves the rung out.
    n_draws, n_more : int
        Fresh draws of the first proposal, or a quarter of what the first rung made if that is more.
        Where these are efficient and too few, as many again, up to so many times: a few hundred
        draws tell k-hat to a third only.
    n_refits, n_refit_draws : int
        How often the mixture is fitted anew to the weighted draws of an object that is near, and
        fresh draws of each fit.
    near : float
        The least efficiency of an object that is.
    first_share : float
        Of the draws from the object's first proposal, so that nothing it knew is lost.
    mixture, wide : MixtureConfig
        Of what is refitted, and of its wide part.
    search : PeaksConfig
    """

    n_starts: int = 16
    n_draws: int = 512
    n_more: int = 3
    n_refits: int = 2
    n_refit_draws: int = 1024
    near: float = 0.03
    first_share: float = 0.1
    mixture: MixtureConfig = RefineRung.mixture
    wide: MixtureConfig = RefineRung.wide
    search: PeaksConfig = PeaksConfig(depth=15.0)
    name: ClassVar[str] = "peaks"
    status: ClassVar[Status] = Status.REFINED
    needs_gradients: ClassVar[bool] = True

    @property
    def wanted(self) -> bool:
        """Whether there are ascents."""
        return self.n_starts > 0

    @torch.no_grad()
    def run(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects that together hold every object once, after this rung.

        Objects without a peak come back as they were.
        """
        least = _LEAST * context.first_seconds(objects.index)
        can = context.can_afford(objects.index, "gradients", "calls", seconds=least)
        if not can.all():
            yield objects.where(~can)
        if not can.any():
            return
        objects = objects.where(can)
        with context.meter.timed(objects.index):
            objects = self._looked(objects, context)
        there = objects.peaks.found.any(1)
        if not there.all():
            yield objects.where(~there)
        if there.any():
            yield from self._settled(objects.where(there), context)

    def _looked(self, objects: OpenObjects, context: RungContext) -> OpenObjects:
        """Return the objects with the peaks above their draws, and those known before.

        An audit has looked harder; and its places need not be peaks.
        """
        if context.again:
            return objects
        land, stage = objects.landscape, context.stage(self.name)
        half = self.n_starts // 2
        places = [
            land.highest(self.n_starts - half),
            land.best_of_cells(half, context.seed, stage),
        ]
        if objects.peaks is not None:
            places.insert(0, objects.peaks.z)
        found = peaks.find(
            context.density(objects.index), torch.cat(places, 1), seed=context.seed,
            circles=context.circles, rows=context.gradient_rows,
            max_seconds=context.seconds_left(objects.index, _AFTER), config=self.search,
        )  # fmt: skip
        context.meter.add_gradients(objects.index, found.n_gradients)
        return replace(objects, peaks=found)

    def _settled(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects after drawing from around their peaks, and from what these draws teach."""
        gate = self._family(objects, context).gate(context.gate)
        waiting = [self._first(objects, context)]
        while waiting:
            trial = waiting.pop()
            outcome = trial.outcome(gate, self.name, context)
            short = ~outcome.passed & (trial.fresh.efficiency >= gate.efficiency_min)
            short &= trial.n_more < self.n_more
            near = ~outcome.passed & ~short & (trial.fresh.efficiency >= self.near)
            seconds = _REFIT * context.first_seconds(trial.objects.index)
            near &= (trial.n_refits < self.n_refits) & context.can_afford(
                trial.objects.index, "calls", seconds=seconds
            )
            done = ~short & ~near
            if done.any():
                rows = done.nonzero()[:, 0]
                judged = summary_of(trial.fresh.select(rows), context.circles)
                why = [f"fresh draws: {own}" if own else MISSING for own in gate.reasons(judged)]
                context.report.note(outcome.select(rows), otherwise=why)
                yield trial.objects.select(rows).after(outcome.select(rows))
            if short.any():
                waiting.append(self._more(trial.where(short), context))
            if near.any():
                waiting.append(self._refitted(trial.where(near), context))

    def _first(self, objects: OpenObjects, context: RungContext) -> _Trial:
        """Draw from around the peaks, and from the first proposal."""
        stage, seen, share = context.stage(self.name), objects.peaks, self.first_share
        with context.meter.timed(objects.index):
            around = laplace_mixture(seen.z, seen.factor, seen.log_mass, context.circles)
            proposal = Blend((around, objects.pair.a.proposals[0]), (1 - share, share))
            n = max(self.n_draws, context.n_draws // 4)
            z = proposal.draw(objects.keys, n, context.seed, stage)
            pair = objects.pair.share(proposal, z, context.evaluate(z, objects.index))
            return _Trial(replace(objects, pair=pair), pair.latest)

    def _more(self, trial: _Trial, context: RungContext) -> _Trial:
        """Draw once more from the same proposals."""
        objects, stage = (
            trial.objects,
            context.stage(f"{self.name} {trial.n_refits} more {trial.n_more}"),
        )
        with context.meter.timed(objects.index):
            n = max(self.n_draws, context.n_draws // 4)
            z = objects.pair.frozen.draw(objects.keys, n, context.seed, stage)
            found = context.evaluate(z, objects.index)
            pair, fresh = objects.pair.judged(z, found, trial.fresh)
        return replace(
            trial, objects=replace(objects, pair=pair), fresh=fresh, n_more=trial.n_more + 1
        )

    def _refitted(self, trial: _Trial, context: RungContext) -> _Trial:
        """Draw from mixtures fitted to all weighted draws, in two streams."""
        n, family = trial.n_refits + 1, self._family(trial.objects, context)
        stage = f"{self.name} refit {n}"
        objects = context.adapted(trial.objects, family, self.n_refit_draws // 2, stage)
        return _Trial(objects, objects.pair.latest, n)

    def _family(self, objects: OpenObjects, context: RungContext) -> OnCircles:
        n_dim = objects.n_dim
        mixtures = MixtureFamily(self.mixture.in_dims(n_dim), self.wide.in_dims(n_dim))
        return OnCircles(mixtures, context.circles)


@dataclass(frozen=True)
class _Trial:
    """Objects, fresh draws of their last proposals, and how they came to these."""

    objects: OpenObjects
    fresh: Stream
    n_refits: int = 0
    n_more: int = 0

    def outcome(self, gate: Gate, rung: str, context: RungContext) -> Outcome:
        """Return what all draws come to, judged by the fresh ones."""
        own = self.objects
        with context.meter.timed(own.index):
            return outcome_of(
                own.pair, self.fresh, gate, rung=rung, index=own.index, circles=context.circles,
                seed=context.seed,
            )  # fmt: skip

    def where(self, chosen: Tensor) -> _Trial:
        """Return the objects for which ``chosen`` (b,) is true."""
        rows = chosen.nonzero()[:, 0]
        return replace(self, objects=self.objects.select(rows), fresh=self.fresh.select(rows))
