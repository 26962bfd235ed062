"""Ensembles as a rung: for black boxes, and where chains stay in their modes; one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from nbi_plus.batched import join
from nbi_plus.infer.ladder.layered import WEIGHING, LayeredConfig, weigh_chains
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import OptionalRung, RungContext
from nbi_plus.infer.ladder.starts import Start, finite_draws
from nbi_plus.infer.posterior.outcome import Chains
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.samplers import ensemble
from nbi_plus.problem.random import stage_key


@dataclass(frozen=True)
class EnsembleRung(OptionalRung):
    """Chosen state of the rung.

    Attributes
    ----------
    sampler : EnsembleConfig
        0 walkers leave the rung out.
    calls_share : float
        Of the calls that are left, which walkers may take: later rungs need some.
    jump_accept : float
        Walkers jump between modes where so large a share of such jumps should be accepted.
    weights : LayeredConfig
        How the chains are weighed.
    """

    sampler: ensemble.EnsembleConfig = field(default_factory=ensemble.EnsembleConfig)
    calls_share: float = 0.9
    jump_accept: float = 0.02
    weights: LayeredConfig = field(default_factory=LayeredConfig)
    name: ClassVar[str] = "ensemble"
    status: ClassVar[Status] = Status.ENSEMBLE

    @property
    def wanted(self) -> bool:
        """Whether there are walkers."""
        return self.sampler.n_walkers > 0

    def run(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects that together hold every object once, after this rung.

        Objects with fewer draws of finite density than walkers cannot start, and come back as they
        were.
        """
        n_walkers = max(self.sampler.n_walkers, 4 * objects.n_dim)
        n_walkers += n_walkers % 2
        seconds = 2 * WEIGHING * context.first_seconds(objects.index)
        can = context.can_afford(objects.index, "calls", seconds=seconds)
        can &= finite_draws(objects).sum(1) >= n_walkers
        if not can.all():
            yield objects.where(~can)
        if not can.any():
            return
        objects = objects.where(can)
        with context.meter.timed(objects.index):
            start = Start.of(objects, context)
            z0 = start.places(objects, n_walkers, context)
        chains = []
        for i in range(len(objects)):  # emcee samples one object at a time
            rows = torch.tensor([i], device=z0.device)
            with context.meter.timed(objects.index[rows]):
                chains.append(_walk(objects.select(rows), start.select(rows), z0[i], context, self))
        joined = join(chains)
        why = ["" if c else "autocorrelation time too long" for c in joined.converged.tolist()]
        context.report.note_chains(self.name, objects.index, joined, why)
        yield from weigh_chains(objects, joined, context, self.weights, self)


def _walk(
    objects: OpenObjects, start: Start, z0: Tensor, context: RungContext, config: EnsembleRung
) -> Chains:
    """Return the chains of one object."""
    density = start.density(objects, context.evaluate)
    own = torch.zeros(1, dtype=torch.int64, device=z0.device)
    jumps = start.jumps if bool(start.acceptance >= config.jump_accept) else None
    left = context.left(objects.index)
    deadline = time.perf_counter() + context.seconds_left(objects.index, WEIGHING)
    found = ensemble.sample(
        lambda z: density(z[None], own)[0], z0, jumps=jumps,
        max_calls=config.calls_share * float(left.calls),
        seed=stage_key(context.seed, f"{context.stage('ensemble')} {int(objects.keys)}"),
        over=lambda: time.perf_counter() > deadline, config=config.sampler,
    )  # fmt: skip
    samples = found.samples
    no = torch.zeros(1, dtype=torch.bool, device=z0.device)
    draws = start.cut.back(samples.flatten(0, 1)[None]).unflatten(1, samples.shape[:2])
    ess = found.ess[None]
    n_kept = config.sampler.n_kept
    short = n_kept - draws.shape[2]
    if short > 0:  # a walk that a budget cut short: as many draws as of the others, repeated
        again = torch.arange(n_kept, device=z0.device) * draws.shape[2] // n_kept
        draws = draws[:, :, again]
    n_steps = torch.tensor([found.n_steps], device=z0.device)
    converged = torch.tensor([found.converged], device=z0.device)
    unknown = torch.full_like(ess, torch.nan)
    return Chains(draws, unknown, ess, n_steps, no, converged, no)
