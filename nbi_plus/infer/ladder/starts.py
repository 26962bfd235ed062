"""Starts: where Markov chains of each object begin, in which coordinates, and how they may jump."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.batched import pick
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.proposals.circles import Cut
from nbi_plus.infer.proposals.mixture import MixtureConfig, fit_mixture, temper
from nbi_plus.infer.samplers.gradients import LogProb
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.infer.weights.resample import systematic_resample
from nbi_plus.infer.weights.summary import normalise
from nbi_plus.problem.random import keyed_uniform
from nbi_plus.problem.target import Evaluation

_JUMPS = MixtureConfig(n_components=6, n_points=1000, n_steps=15, n_starts=1, dof=5, wide_share=0.2)


def finite_draws(objects: OpenObjects) -> Tensor:
    """Say which draws (b, S) of the pool have a density to start from."""
    each = [
        torch.isfinite(s.log_likelihood) & torch.isfinite(s.log_prior) & ~s.failed
        for s in (objects.pair.a, objects.pair.b)
    ]
    return torch.cat(each, 1)


@dataclass(frozen=True)
class Start:
    """What the weighted draws of b objects say before chains begin.

    Attributes
    ----------
    cut : Cut
        Where the circles are cut: chains live in these coordinates.
    whitening : Whitening
    jumps : LatentProposal
        A mixture, for independence steps.
    log_weights, height : Tensor, shape (b, S)
        Of the pool; -inf for draws without a finite density.
    acceptance : Tensor, shape (b,)
        Share of jumps that would be accepted.
    """

    cut: Cut
    whitening: Whitening
    jumps: LatentProposal
    log_weights: Tensor
    height: Tensor
    acceptance: Tensor

    @classmethod
    def of(cls, objects: OpenObjects, context: RungContext) -> Start:
        """Learn from the pool of objects of which each has a draw of finite density."""
        finite = finite_draws(objects)
        log_weights = torch.where(finite, objects.pair.log_weights, -torch.inf)
        height = [s.log_likelihood + s.log_prior for s in (objects.pair.a, objects.pair.b)]
        weights = _learning_weights(log_weights, finite, objects.n_dim)
        z = torch.where(weights[..., None] > 0, objects.z, 0.0)
        cut = Cut.of(z, weights, context.circles, sums=True)
        height = torch.where(finite, torch.cat(height, 1), -torch.inf)
        z, stage = cut.to(z), context.stage("jumps")
        config = _JUMPS.in_dims(objects.n_dim)
        jumps = fit_mixture(z, weights, objects.keys, config, context.seed, stage)
        accepted = _acceptance(jumps, z, objects, log_weights, height, context)
        return cls(cut, Whitening.of(z, weights), jumps, log_weights, height, accepted)

    def places(self, objects: OpenObjects, n: int, context: RungContext) -> Tensor:
        """Return ``n`` draws of each object, shape (b, n, D), in the coordinates of the cut.

        By flattened weights while these last, then the likeliest of the rest; where the pool holds
        fewer, the first ones again.
        """
        weights, _ = temper(self.log_weights, 8.0 * n)
        stage = context.stage("starts")
        uniform = keyed_uniform(context.seed, stage, objects.keys, weights.shape[1:])
        # the largest of log w + Gumbel noise are draws without replacement
        score = weights.log() - (-uniform.log()).log()
        later = self.height.clamp(-1e11, 1e11) - 1e12
        score = torch.where(weights > 0, score, later)
        score = torch.where(self.height > -torch.inf, score, -torch.inf)
        best, chosen = score.topk(min(n, score.shape[1]), 1)
        chosen = torch.where(best > -torch.inf, chosen, chosen[:, :1])
        chosen = chosen[:, torch.arange(n, device=chosen.device) % chosen.shape[1]]
        return self.cut.to(objects.z.gather(1, chosen[..., None].expand(-1, -1, objects.n_dim)))

    def best(self, objects: OpenObjects, n: int) -> Tensor:
        """Return the ``n`` draws (b, n, D) of highest density, in the coordinates of the cut."""
        chosen = self.height.topk(min(n, self.height.shape[1]), 1).indices
        return self.cut.to(objects.z.gather(1, chosen[..., None].expand(-1, -1, objects.n_dim)))

    def density(
        self, objects: OpenObjects, evaluate: Callable[[Tensor, Tensor], Evaluation]
    ) -> LogProb:
        """Return the log-density of the objects in the coordinates of the cut."""

        def log_prob(z: Tensor, index: Tensor) -> Tensor:
            found = evaluate(self.cut.select(index).back(z), objects.index[index])
            # a rotation of a circle keeps its prior: here it is a standard normal again
            prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
            usable = (found.log_prior > -math.inf) & ~found.failed
            return torch.where(usable, prior + found.log_likelihood, -math.inf)

        return log_prob

    def select(self, rows: Tensor) -> Start:
        """Return those of some of the objects."""
        return Start(
            self.cut.select(rows),
            pick(self.whitening, rows),
            self.jumps.select(rows),
            self.log_weights[rows],
            self.height[rows],
            self.acceptance[rows],
        )


def _learning_weights(log_weights: Tensor, finite: Tensor, n_dim: int) -> Tensor:
    """Return weights (b, S) flat enough to learn from; equal ones where too few are positive."""
    weights, _ = temper(log_weights, max(20 * n_dim, 150))
    few = (weights.square().sum(1, keepdim=True) * 2 * n_dim > 1) | ~(weights > 0).any(1, True)
    return torch.where(few, finite / finite.sum(1, keepdim=True), weights)


def _acceptance(
    jumps: LatentProposal, z: Tensor, objects: OpenObjects, log_weights: Tensor, height: Tensor,
    context: RungContext,
) -> Tensor:  # fmt: skip
    """Return the share (b,) of jumps that would be accepted, from the draws of the pool.

    Chains stand where the posterior is, jumps come from their mixture: the pool is resampled to
    both.
    """
    log_q = jumps.log_prob(z)
    log_pool = torch.cat([objects.pair.a.log_mixture, objects.pair.b.log_mixture], 1)
    to_jumps = normalise((log_q - log_pool).masked_fill(height == -torch.inf, -torch.inf))
    stage = context.stage("pairs")
    comb = keyed_uniform(context.seed, stage, objects.keys, (2,))
    n = z.shape[1]
    usable = torch.full_like(to_jumps, 1 / n)
    here, there = (
        systematic_resample(torch.where(w.sum(1, keepdim=True) > 0, w, usable), n, comb[:, i])
        for i, w in enumerate((normalise(log_weights), to_jumps))
    )
    shuffle = keyed_uniform(context.seed, stage + " order", objects.keys, (n,)).argsort(1)
    ratio = height - log_q
    gain = ratio.gather(1, there).gather(1, shuffle) - ratio.gather(1, here)
    return torch.where(gain.isnan(), -torch.inf, gain).clamp(max=0.0).exp().mean(1)
