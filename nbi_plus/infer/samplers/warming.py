"""Warming up: how chains of many objects get to where they can be counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.infer.samplers.diagnostics import nested_r_hat
from nbi_plus.infer.samplers.lane import Lane, Places, Tally, Transition
from nbi_plus.infer.samplers.starting import Starting
from nbi_plus.infer.samplers.tuning import Tuning

_STRETCH = 10  # steps after which stragglers may change lanes
_DRIFT = 0.5  # of the log-density between both ends of a window, in its standard deviations
_APART = 2.0  # R-hat of the log-density: modes of unlike height may differ, lost chains do more
_WIDER = 3.0  # variance along any direction, in coordinates where it should be one


@dataclass(frozen=True)
class Stretch:
    """Some steps: their first number, their place in the window, and what follows them.

    ``n_left`` steps of the lap were left before them; ``refits`` whitens anew; ``ends_lap`` lets
    objects sample that have arrived.
    """

    first: int
    window: range
    n_left: int
    refits: bool
    ends_lap: bool


def laps(windows: tuple[int, ...], n_laps: int) -> list[Stretch]:
    """Return the stretches of all laps; each lap is made of windows of so many steps."""
    found, first, n_lap = [], 1, sum(windows)
    for i, size in enumerate(windows * n_laps):
        ends_lap = (i + 1) % len(windows) == 0
        for start in range(0, size, _STRETCH):
            window = range(start + 1, min(start + _STRETCH, size) + 1)
            last = window.stop == size + 1
            n_left = n_lap - (first - 1) % n_lap
            found.append(Stretch(first, window, n_left, last, last and ends_lap))
            first += len(window)
    return found


def enter(
    start: Starting, index: Tensor, keys: Tensor, may_jump: Tensor, kernel: Transition
) -> Lane:
    """Return a lane of objects at their starts."""
    z0, whitening = start.z, start.whitening
    u, n_dim = whitening.to(z0), z0.shape[-1]
    places = Places(u, *kernel.gradients(u, index, whitening))
    tuning = Tuning.start(len(z0), 0.5 * n_dim**-0.25, z0)
    tally = replace(Tally.zero(len(z0), z0), n_gradients=start.n_gradients)
    nothing = z0.new_empty(len(z0), z0.shape[1], 0, n_dim + 1)
    return Lane(index, keys, places, whitening, tuning, tally, nothing, may_jump, start.centres)


def affordable(lane: Lane, stretch: Stretch, max_gradients: int, max_leaps: int) -> Tensor:
    """Return the leapfrog steps (B,) of a trajectory at most, for a lap not to eat the budget.

    Jittered trajectories take half of them on average, and so a lap takes half of what is left.
    """
    left = max_gradients - lane.tally.n_gradients
    return (left // (lane.places.u.shape[1] * stretch.n_left)).clamp(1, max_leaps)


def arrived(lane: Lane, n_super: int) -> Tensor:
    """Say whose chains have arrived, shape (B,).

    Within the last window their density neither rises nor falls, no superchain's is far from the
    others', and no direction has become much wider than the coordinates of that window say.
    """
    quarter = max(lane.draws.shape[2] // 4, 1)
    early, late = (
        lane.draws[:, :, part].flatten(1, 2) for part in (slice(0, quarter), slice(-quarter, None))
    )
    rise = (late[..., -1].mean(1) - early[..., -1].mean(1)).abs()
    u = lane.whitening.to(lane.gathered(late[..., :-1]))
    u = u - u.mean(1, keepdim=True)
    widest = torch.linalg.eigvalsh(u.transpose(1, 2) @ u / u.shape[1]).amax(-1)
    apart = nested_r_hat(lane.draws[..., -1:], n_super)[:, 0]
    steady = (rise <= _DRIFT * late[..., -1].std(1)) & (widest <= _WIDER)
    return steady & (apart <= _APART)


def ready_to_sample(lane: Lane) -> Lane:
    """Return a lane that has warmed up: tuning frozen, nothing counted but gradients."""
    tally = replace(Tally.zero(len(lane), lane.places.u), n_gradients=lane.tally.n_gradients)
    return replace(lane, draws=lane.draws[:, :, :0], tuning=lane.tuning.frozen, tally=tally)


def refitted(lane: Lane, kernel: Transition) -> Lane:
    """Return a lane in new coordinates, learned from the second half of its window."""
    if not len(lane):
        return lane
    n, n_chains, n_steps = lane.draws.shape[:3]
    recent = lane.gathered(lane.draws[:, :, n_steps // 2 :, :-1].flatten(1, 2))
    whitening = lane.whitening.refit(recent, max(n_chains, recent.shape[1] / 4))
    u = whitening.to(lane.z)
    places = Places(u, *kernel.gradients(u, lane.index, whitening))
    tuning = Tuning.start(n, 0.9 * u.shape[-1] ** -0.25, u)
    tally = replace(lane.tally, n_gradients=lane.tally.n_gradients + n_chains)
    return replace(lane, places=places, whitening=whitening, tuning=tuning, tally=tally,
                   draws=lane.draws[:, :, :0])  # fmt: skip
