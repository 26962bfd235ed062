"""Batched HMC: chains of many objects in one tensor, every object with its own step and metric.

The trajectory is learned by the ChEES criterion (Hoffman, Radul and Sountsov 2021), the step by
dual averaging, and the coordinates are whitened anew twice while the chains warm up. Chains are
grouped into superchains, so that many short chains can be judged (Margossian et al. 2024). Where
nothing is known of the scales, chains start around the peaks uphill of their starts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.arguments import of_kind, seed_of, whole
from nbi_plus.batched import among, join, pick
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.samplers.compiling import Compiler
from nbi_plus.infer.samplers.diagnostics import bulk_ess, folded, nested_r_hat, tail_ess
from nbi_plus.infer.samplers.gradients import Gradients, LogProb
from nbi_plus.infer.samplers.lane import Lane, Transition
from nbi_plus.infer.samplers.starting import Starting
from nbi_plus.infer.samplers.warming import (
    Stretch,
    affordable,
    arrived,
    enter,
    laps,
    ready_to_sample,
    refitted,
)
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.problem.random import content_keys
from nbi_plus.torch_state import door

_NUMBERS_JUDGED = 2**19
_N_LANES = 3


@dataclass(frozen=True)
class HmcConfig:
    """Chosen state of the sampler.

    Attributes
    ----------
    windows : tuple of int
        Steps of warming up; after each but the last the coordinates are whitened anew.
    block : int
        Steps of sampling between two looks at convergence.
    max_steps, max_gradients : int
        Steps of sampling, and gradients, of one object at most (a gradient for each chain).
    max_leaps : int
        Leapfrog steps of one trajectory.
    max_laps : int
        How often warming up may be repeated while chains are still on their way. A lap takes about
        half of the gradients that are left at most.
    climbs : bool
        Start around peaks, where no ``mean`` and ``factor`` are given.
    target_accept : float
        Harmonic mean over the chains of an object.
    rate : float
        Of learning the trajectory.
    jump_every : int
        Steps between two jumps, where there is a proposal to jump with.
    r_hat_max : float
    ess_per_super : float
        Effective draws a superchain must have before R-hat is believed.
    divergent_max : float
        Largest share of divergent trajectories of converged chains.
    slow : float
        An object whose trajectories are so many times longer than the median goes to a slower
        lane, where it keeps none waiting.
    compile_after : float
        Gradients, of all objects together, after which they are compiled where that is faster;
        infinity for never. Last digits then differ from those of plain code, and with them the
        draws that follow, so that such long runs need not repeat on another machine.
    """

    windows: tuple[int, ...] = (30, 30, 40)
    block: int = 25
    max_steps: int = 400
    max_gradients: int = 200_000
    max_leaps: int = 64
    max_laps: int = 4
    climbs: bool = True
    target_accept: float = 0.651
    rate: float = 0.025
    jump_every: int = 5
    r_hat_max: float = 1.01
    ess_per_super: float = 130.0
    divergent_max: float = 0.01
    slow: float = 4.0
    compile_after: float = 2e6

    def __post_init__(self) -> None:
        if not (self.windows and min(self.windows) >= 1 and self.block >= 4):
            raise ValueError(
                f"windows must be positive and block at least 4, but are {self.windows} and "
                f"{self.block}."
            )


@dataclass(frozen=True)
class HmcResult:
    """Chains of B objects, and whether they converged.

    Attributes
    ----------
    samples : Tensor, shape (B, C, N, D)
        Draws after warming up, thinned to the same N for every object; where a budget ended
        sooner, some stand there twice.
    log_prob : Tensor, shape (B, C, N)
    r_hat : Tensor, shape (B, D)
        Nested R-hat, of the draws or of their distances from the median, whichever is larger.
    ess, ess_tail : Tensor, shape (B, D)
        Effective draws, of all draws made: for means and variances, for 5 % and 95 % quantiles.
    n_gradients, n_divergent, n_steps : Tensor of int64, shape (B,)
        In all; after warming up; after warming up.
    accept, step : Tensor, shape (B,)
        Mean acceptance, and step in whitened coordinates.
    converged : Tensor of bool, shape (B,)
    whitening : Whitening
        The last one: to go on with.
    travelling : Tensor of bool, shape (B,)
        Whose chains were still on their way when laps or budget ended. They were not sampled:
        draws, R-hat and acceptance are those of their last window, and none is effective.
    """

    samples: Tensor
    log_prob: Tensor
    r_hat: Tensor
    ess: Tensor
    ess_tail: Tensor
    n_gradients: Tensor
    n_divergent: Tensor
    n_steps: Tensor
    accept: Tensor
    step: Tensor
    converged: Tensor
    whitening: Whitening
    travelling: Tensor


@door
@torch.no_grad()
def sample(  # noqa: PLR0913 - of options only the first two must be known
    log_prob: LogProb, z0: Tensor, n_super: int = 8, *, seed: int = 0, mean: Tensor | None = None,
    factor: Tensor | None = None, ess_target: float = 1000.0, keys: Tensor | None = None,
    jumps: LatentProposal | None = None, may_jump: Tensor | None = None,
    rows: int | None = None, max_seconds: float = math.inf, config: HmcConfig | None = None,
) -> HmcResult:  # fmt: skip
    """Sample many densities at once.

    Objects leave when they have converged; those that do not stop at their budget. What an object
    gets depends on the seed and its own start alone, not on the objects beside it.

    Parameters
    ----------
    log_prob : callable
        ``log_prob(z, index)``: z (b, C, D) of the objects ``index`` (b,) -> (b, C), by functions of
        torch. Where it is not finite, or raises, the density is zero.
    z0 : Tensor, shape (B, C, D)
        Starts; ``C / n_super`` consecutive chains form a superchain and should start alike. Without
        ``mean`` and ``factor``, chains start around the peaks uphill of the first of each
        superchain, unless the density there is far from normal.
    n_super : int
    seed : int
    mean, factor : Tensor, shapes (B, D) and (B, D, D), optional
        Rough centre and Cholesky factor of the covariance. Default: what the peaks say, else the
        spread of the starts.
    ess_target : float
        Effective draws of every parameter.
    keys : Tensor of int64, shape (B,), optional
        What the randomness of each object is keyed by. Default: its start.
    jumps : LatentProposal, optional
        Of all B objects: independence steps between modes. Default: between the peaks of objects
        with several.
    may_jump : Tensor of bool, shape (B,), optional
        Which objects take them. Default: all.
    rows : int, optional
        Rows of one call of ``log_prob`` at most: bounds memory.
    max_seconds : float
    config : HmcConfig, optional

    Returns
    -------
    HmcResult

    Examples
    --------
    >>> def log_prob(z, index):
    ...     return -0.5 * (z - index[:, None, None]).square().sum(-1)
    >>> starts = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0)).double()
    >>> result = sample(log_prob, starts.repeat_interleave(8, 1), seed=1)
    >>> result.samples.shape, result.converged.tolist()
    (torch.Size([2, 64, 50, 3]), [True, True])
    """
    config = HmcConfig() if config is None else config
    _check(z0, n_super)
    seed = seed_of("seed", seed)
    n, n_chains, d = z0.shape
    device = z0.device
    keys = content_keys(z0) if keys is None else keys
    most = launch.of(device)
    rows = rows or most.gradient_rows
    gradients = Gradients(log_prob, rows, Compiler(log_prob, config.compile_after))
    gradients.check(z0, torch.arange(n, device=device))
    if mean is not None and factor is not None:
        start = Starting.as_given(z0, Whitening(mean[:, None], factor))
    elif config.climbs:
        start = Starting.around_peaks(gradients, z0, n_super, keys, seed, config.max_gradients)
    else:
        start = Starting.as_given(z0, Whitening.of_starts(z0[:, :: n_chains // n_super]))
    allowed = start.may_jump if jumps is None else torch.ones_like(start.near)
    allowed = allowed if may_jump is None else allowed & may_jump
    kernel = Transition(gradients, seed, config.max_leaps, config.target_accept, config.rate,
                    start.jumps if jumps is None else jumps, config.jump_every)  # fmt: skip
    goal = _Goal(n_super, ess_target, config, time.perf_counter() + max_seconds)
    each = 8 * n_chains * (config.max_steps + config.block) * (d + 1)
    at_once = max(1, most.chain_bytes // each)
    done = []
    for index in torch.arange(n, device=device).split(at_once):
        own = start.select(index)
        lane = enter(own, index, keys[index], allowed[index], kernel)
        done += _run(lane, own.near, kernel, goal)
    order = torch.cat([lane.index for lane, _ in done]).argsort()
    return pick(join([result for _, result in done]), order)


@dataclass(frozen=True)
class _Goal:
    """When to stop, and how chains are judged."""

    n_super: int
    ess_target: float
    config: HmcConfig
    deadline: float

    def n_kept(self, n_chains: int) -> int:
        """Return the draws of each chain that a result holds: twice what the target needs."""
        config = self.config
        blocks = math.ceil(2 * self.ess_target / (n_chains * config.block))
        return min(blocks * config.block, config.max_steps)

    def judge(self, lane: Lane) -> HmcResult:
        """Return what the chains of a lane have come to, looking at as many as fit a cache."""
        step = max(1, _NUMBERS_JUDGED // max(math.prod(lane.draws.shape[1:]), 1))
        starts = range(0, max(len(lane), 1), step)
        return join([self._judge(pick(lane, slice(i, i + step))) for i in starts])

    def _judge(self, lane: Lane) -> HmcResult:
        config, tally = self.config, lane.tally
        # one parameter after the other in memory: all sums run along chains
        numbers = lane.draws.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        z = numbers[..., :-1]
        r_hat = torch.maximum(nested_r_hat(z, self.n_super), nested_r_hat(folded(z), self.n_super))
        energy = nested_r_hat(numbers[..., -1:], self.n_super)[:, 0]
        bulk, tail = bulk_ess(z), tail_ess(z)
        wanted = max(self.ess_target, config.ess_per_super * self.n_super)
        n_trials = (tally.n_steps * z.shape[1]).to(z)
        converged = (
            (r_hat <= config.r_hat_max).all(-1)
            & (energy <= config.r_hat_max)
            & (bulk.amin(-1) >= wanted)
            & (tail.amin(-1) >= min(self.ess_target, 400.0))
            & (tally.n_divergent <= config.divergent_max * n_trials)
        )
        last, n_kept = z.shape[2] - 1, self.n_kept(z.shape[1])
        kept = torch.linspace(0, last, n_kept, dtype=torch.float64, device=z.device)
        draws = lane.draws[:, :, kept.round().long()]
        return HmcResult(
            draws[..., :-1], draws[..., -1], r_hat, bulk, tail, tally.n_gradients,
            tally.n_divergent, tally.n_steps, tally.accepted / tally.n_steps,
            lane.tuning.log_step.exp(), converged, lane.whitening, torch.zeros_like(converged),
        )  # fmt: skip

    def give_up(self, lane: Lane) -> HmcResult:
        """Return what a lane is of which the chains have not arrived."""
        found, none = self.judge(lane), torch.zeros_like(lane.index)
        return replace(
            found, ess=0 * found.ess, ess_tail=0 * found.ess, n_divergent=none, n_steps=none,
            converged=none > 0, travelling=none == 0,
        )  # fmt: skip

    def is_spent(self, lane: Lane) -> Tensor:
        """Say whose gradients, or time, are spent, shape (B,)."""
        late = time.perf_counter() > self.deadline
        return (lane.tally.n_gradients >= self.config.max_gradients) | late

    def is_over(self, lane: Lane) -> Tensor:
        """Say who may sample no longer, shape (B,)."""
        return self.is_spent(lane) | (lane.tally.n_steps >= self.config.max_steps)


def _run(
    lane: Lane, near: Tensor, kernel: Transition, goal: _Goal
) -> Iterator[tuple[Lane, HmcResult]]:
    """Yield lanes of finished objects and their results, until none is left.

    The fastest lane goes first; lanes of one speed that have come as far as each other merge.
    Objects that are ``near`` (B,) skip the windows that learn coordinates.
    """
    config = goal.config
    all_laps = laps(config.windows, config.max_laps)
    sampling = len(all_laps)
    skipped = len(laps(config.windows[:-1], 1)) if config.windows[1:] else 0
    waiting: dict[tuple[int, int], list[Lane]] = {}
    for at, rows in ((0, ~near), (skipped, near)):
        if rows.any():
            waiting.setdefault((0, at), []).append(among(lane, rows))
    while waiting:
        speed, at = min(waiting)
        lane = join(waiting.pop((speed, at)))
        if at < sampling:
            stretch, last = all_laps[at], at + 1 == sampling
            ready, lost, going = _warmed(lane, stretch, last, kernel, goal)
            if len(lost):
                yield lost, goal.give_up(lost)
            further = refitted(going, kernel) if stretch.refits else going
            after = [(sampling, ready_to_sample(ready)), (at + 1, further)]
        else:
            first = config.max_laps * sum(config.windows) + 1 + (at - sampling) * config.block
            lane = kernel.stretch(lane, first, range(1, config.block + 1), adapts=False)
            over = goal.is_over(lane)
            if bool(over.any()) or lane.draws.shape[2] >= goal.n_kept(lane.draws.shape[1]):
                found = goal.judge(lane)
                over |= found.converged
                if over.any():
                    yield among(lane, over), among(found, over)
            after = [(at + 1, among(lane, ~over))]
        for then, own in after:
            for more, part in _by_speed(own, config, speed):
                waiting.setdefault((more, then), []).append(part)


def _warmed(
    lane: Lane, stretch: Stretch, last: bool, kernel: Transition, goal: _Goal
) -> tuple[Lane, Lane, Lane]:
    """Return who may sample after a stretch, who never arrived, and who goes on."""
    config = goal.config
    most = affordable(lane, stretch, config.max_gradients, config.max_leaps)
    lane = kernel.stretch(lane, stretch.first, stretch.window, most, adapts=True)
    ended = goal.is_spent(lane) | last
    ready = ended | stretch.ends_lap
    if ready.any():
        ready &= arrived(lane, goal.n_super)
    parts = (ready, ended & ~ready, ~(ended | ready))
    there, lost, going = (among(lane, part) for part in parts)
    return there, lost, going


def _by_speed(lane: Lane, config: HmcConfig, speed: int) -> Iterator[tuple[int, Lane]]:
    """Yield the objects of a lane, those of much longer trajectories apart."""
    if not len(lane):
        return
    leaps = lane.tuning.n_leaps(1.0, torch.full_like(lane.index, config.max_leaps))
    slow = leaps > config.slow * leaps.median().to(torch.float64)
    if speed == _N_LANES - 1 or not slow.any():
        yield speed, lane
        return
    yield speed, among(lane, ~slow)
    yield speed + 1, among(lane, slow)


def _check(z0: Tensor, n_super: int) -> None:
    of_kind("z0", z0, Tensor, "Give a torch tensor.")
    whole("n_super", n_super, 2)
    if z0.ndim != 3 or z0.shape[1] % n_super or not z0.shape[0]:
        raise ValueError(
            f"z0 must have shape (B, C, D) with C a multiple of n_super = {n_super}, but has "
            f"{tuple(z0.shape)}."
        )
    if not (n_super >= 2 and z0.dtype.is_floating_point and bool(torch.isfinite(z0).all())):
        raise ValueError(
            f"z0 must be finite and of floating point, with n_super of at least 2, but is "
            f"{z0.dtype} with n_super = {n_super}."
        )
