"""HMC as a rung: chains that start from the weighted draws of each object, then are weighed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from nbi_plus.infer.ladder.layered import WEIGHING, LayeredConfig, weigh_chains
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import OptionalRung, RungContext
from nbi_plus.infer.ladder.starts import Start, finite_draws
from nbi_plus.infer.posterior.outcome import Chains
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.samplers import hmc
from nbi_plus.infer.samplers.gradients import Gradients, LogProb
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.problem.random import stage_key

_LOG = logging.getLogger("nbi_plus")

_PROBE_DRAWS = 256
_PROBE_MEDIAN, _PROBE_WORST = 0.01, 0.05  # error of single precision: of half the draws, of 99 %
_SLOPE = 0.05  # relative error of its gradient


@dataclass(frozen=True)
class HmcRung(OptionalRung):
    """Chosen state of the rung.

    Attributes
    ----------
    n_super, n_each : int
        Superchains of each object, and chains of each; 0 superchains leave the rung out.
    ess_target : float
        Effective draws of every parameter.
    jump_accept : float
        Chains jump between modes where so large a share of such jumps should be accepted.
    single : bool
        Compute in single precision for those objects where a probe finds it good enough.
    sampler : HmcConfig
    weights : LayeredConfig
        How the chains are weighed.
    """

    n_super: int = 8
    n_each: int = 8
    ess_target: float = 1000.0
    jump_accept: float = 0.02
    single: bool = False
    sampler: hmc.HmcConfig = field(default_factory=hmc.HmcConfig)
    weights: LayeredConfig = field(default_factory=LayeredConfig)
    name: ClassVar[str] = "hmc"
    status: ClassVar[Status] = Status.HMC
    needs_gradients: ClassVar[bool] = True

    @property
    def wanted(self) -> bool:
        """Whether there are chains."""
        return self.n_super > 0

    def run(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects that together hold every object once, after this rung.

        Objects of which no draw has a finite density cannot start, and come back as they were.
        """
        can = finite_draws(objects).any(1)
        seconds = 2 * WEIGHING * context.first_seconds(objects.index)
        can &= context.can_afford(objects.index, "gradients", "calls", seconds=seconds)
        if not can.all():
            yield objects.where(~can)
        if not can.any():
            return
        objects = objects.where(can)
        with context.meter.timed(objects.index):
            start = Start.of(objects, context)
            z0 = start.places(objects, self.n_super, context).repeat_interleave(self.n_each, 1)
        with context.meter.timed(objects.index):
            chains, reasons = _chains(objects, start, z0, context, self)
        context.report.note_chains(self.name, objects.index, chains, reasons)
        yield from weigh_chains(objects, chains, context, self.weights, self)


def _chains(
    objects: OpenObjects, start: Start, z0: Tensor, context: RungContext, config: HmcRung
) -> tuple[Chains, list[str]]:
    """Return chains of objects that can start, and why they did not converge."""
    left = context.left(objects.index)
    found = hmc.sample(
        _density(start, objects, context, config.single), z0, config.n_super,
        seed=stage_key(context.seed, context.stage("hmc")), mean=start.whitening.mean[:, 0],
        factor=start.whitening.factor, ess_target=config.ess_target, keys=objects.keys,
        jumps=start.jumps, may_jump=start.acceptance >= config.jump_accept,
        rows=context.gradient_rows, max_seconds=context.seconds_left(objects.index, WEIGHING),
        config=replace(config.sampler, max_gradients=int(left.gradients.clamp(max=2**53).min())),
    )  # fmt: skip
    context.meter.add_gradients(objects.index, found.n_gradients)
    divergent = found.n_divergent > config.sampler.divergent_max * found.n_steps * z0.shape[1]
    shape = found.samples.shape[1:3]
    chains = Chains(
        z=start.cut.back(found.samples.flatten(1, 2)).unflatten(1, shape),
        r_hat=found.r_hat,
        ess=found.ess,
        n_steps=found.n_steps,
        divergent=divergent,
        converged=found.converged,
        disagree=torch.zeros_like(divergent),
    )
    return chains, _reasons(found, divergent, config)


def _density(start: Start, objects: OpenObjects, context: RungContext, single: bool) -> LogProb:
    """Return the log-density, in single precision for the objects that can bear it."""
    target, rows = context.target, context.gradient_rows
    exact = start.density(objects, target.evaluate)
    if not single:
        return exact
    quick = start.density(objects, target.single().evaluate)
    good = _single_is_enough(start.best(objects, _PROBE_DRAWS), exact, quick, rows)
    _LOG.debug("single precision is enough for %d of %d objects", int(good.sum()), len(good))

    def log_prob(z: Tensor, index: Tensor) -> Tensor:
        value = torch.empty_like(z[..., 0])
        for density, own in ((quick, good[index]), (exact, ~good[index])):
            rows = own.nonzero()[:, 0]
            if len(rows):
                value = value.index_copy(0, rows, density(z[rows], index[rows]))
        return value

    return log_prob


def _single_is_enough(z: Tensor, exact: LogProb, quick: LogProb, rows: int) -> Tensor:
    """Say for which objects (b,) single precision moves density and gradient by little at z."""
    own = torch.arange(len(z), device=z.device)
    as_is = Whitening.none(z)
    (high, slope), (low, rough) = (Gradients(f, rows)(z, own, as_is) for f in (exact, quick))
    level = [v - v.median(1, keepdim=True).values for v in (high, low)]
    error = (level[0] - level[1]).abs().nan_to_num(torch.inf)
    off = (slope - rough).norm(dim=-1) / slope.norm(dim=-1).clamp(min=1.0)
    levels = torch.tensor([0.5, 0.99], dtype=z.dtype, device=z.device)
    middle, worst = error.quantile(levels, 1)
    return (middle < _PROBE_MEDIAN) & (worst < _PROBE_WORST) & (off.quantile(0.99, 1) < _SLOPE)


def _reasons(found: hmc.HmcResult, divergent: Tensor, config: HmcRung) -> list[str]:
    """Return why chains did not converge, in words."""
    sampler, sampled = config.sampler, ~found.travelling
    rules = {
        "chains still on their way": found.travelling,
        f"R-hat above {sampler.r_hat_max:g}": sampled & (found.r_hat.amax(1) > sampler.r_hat_max),
        f"ess below {config.ess_target:g}": sampled & (found.ess.amin(1) < config.ess_target),
        "trajectories diverge": divergent,
    }
    table = torch.stack(list(rules.values()), 1).tolist()
    why = ["; ".join(w for w, on in zip(rules, row, strict=True) if on) for row in table]
    each = zip(why, found.converged.tolist(), strict=True)
    return [
        "" if good else reason or "density or tails not settled within the budget"
        for reason, good in each
    ]
