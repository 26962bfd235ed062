"""Peak search: where one object's posterior is highest, uphill from the best draws so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbi_plus.infer.proposals.cross_fit import Pair
from nbi_plus.infer.proposals.laplace import laplace_mixture
from nbi_plus.infer.samplers import peaks
from nbi_plus.infer.sequential.journal import Step
from nbi_plus.infer.sequential.workspace import Workspace
from nbi_plus.problem.random import stage_key
from nbi_plus.problem.target import Z_MAX

_APART = 0.5  # of two starts, in latent units
_STARTS = (4, 20)  # at least and at most ...
_STARTS_EACH = 4  # ... and for each parameter
_STEPS = 30  # of a way up, when the budget is shared among starts
_MOST_STEPS = 20  # of a way up, for each parameter; a cusp has no end
_MAX_PEAKS, _DEPTH = 10, 15.0
_CURVATURES = 3  # how often a peak's curvature is taken, at most


def look_for_peaks(
    work: Workspace, pair: Pair, circles: tuple[int, ...], n: int, stage: str
) -> Step:
    """Return ``n`` draws of a Laplace mixture around the peaks, or no proposal if none was found.

    The search costs at most half of what the budget has left for rounds.
    """
    n_dim, target = pair.a.z.shape[-1], work.ledger.target
    most = work.left(work.reserve) // 2
    slope = 1 if target.differentiable else 2 * n_dim + 1
    shape = _CURVATURES * (2 * n_dim + 1) * slope  # of one peak: the search spends these besides
    most_starts = min(_STARTS[1], _STARTS_EACH * n_dim)
    n_starts = max(_STARTS[0], min(most_starts, most // (_STEPS * slope + shape)))
    starts = _starts(pair, n_starts)
    nothing = Step((), pair.a.z[:, :0], {}, "mixture")
    left = most - min(n_starts, _MAX_PEAKS) * shape
    if not len(starts) or left < len(starts) * slope:
        return nothing
    found = peaks.find(
        work.ledger.log_prob,
        starts[None],
        seed=stage_key(work.seed, stage),
        circles=circles,
        differentiable=target.differentiable,
        config=peaks.PeaksConfig(
            max_steps=min(_MOST_STEPS * n_dim, peaks.PeaksConfig.max_steps),
            max_peaks=_MAX_PEAKS,
            depth=_DEPTH,
            max_gradients=left,
        ),
    )
    spent = int(found.n_gradients.sum())
    inside = found.found & (found.z.abs() < Z_MAX).all(-1)
    if not inside.any():
        return nothing._replace(n_looked=spent)
    log_mass = torch.where(inside, found.log_mass, -math.inf)
    mixture = laplace_mixture(found.z, found.factor, log_mass, circles)
    return work.drawn((mixture,), n, stage)._replace(family="mixture", n_looked=spent)


def _starts(pair: Pair, n: int) -> Tensor:
    """Return the ``n`` best draws (n, D) that are apart; the next best ones where these are few."""
    z = torch.cat([pair.a.z, pair.b.z], 1)[0]
    height = torch.cat([s.log_likelihood + s.log_prior for s in (pair.a, pair.b)], 1)[0]
    failed = torch.cat([pair.a.failed, pair.b.failed], 1)[0]
    usable = height.isfinite() & ~failed
    z = z[usable][height[usable].argsort(descending=True)]
    near = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    order = []
    for i in range(len(z)):  # each choice decides what is left; they are few
        if len(order) == n:
            break
        if not near[i]:
            order.append(i)
            near |= (z - z[i]).norm(dim=-1) < _APART
    rest = [i for i in range(len(z)) if i not in set(order)]
    return z[(order + rest)[:n]]
