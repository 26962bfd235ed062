"""Lanes: chains of objects that take their steps together."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from operator import neg

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.samplers.gradients import Gradients
from nbi_plus.infer.samplers.tuning import Proposed, Tuning
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.problem.random import keyed_normal, keyed_uniform

_DIVERGED = -1000.0  # change of the energy


@dataclass(frozen=True)
class Places:
    """Where chains stand: u (B, C, D), log-density (B, C) and its gradient (B, C, D)."""

    u: Tensor
    log_prob: Tensor
    grad: Tensor

    def where(self, accepted: Tensor, other: Places) -> Places:
        """Return the other places where ``accepted`` (B, C)."""
        return Places(
            torch.where(accepted[..., None], other.u, self.u),
            torch.where(accepted, other.log_prob, self.log_prob),
            torch.where(accepted[..., None], other.grad, self.grad),
        )


@dataclass(frozen=True)
class Tally:
    """What the chains of B objects did, each of shape (B,)."""

    n_gradients: Tensor
    n_divergent: Tensor
    accepted: Tensor
    n_steps: Tensor

    @classmethod
    def zero(cls, n: int, like: Tensor) -> Tally:
        """Return a tally of nothing yet."""
        none = torch.zeros(n, dtype=torch.int64, device=like.device)
        return cls(none, none, torch.zeros(n, dtype=like.dtype, device=like.device), none)


@dataclass(frozen=True)
class Lane:
    """B objects in lockstep.

    Attributes
    ----------
    index, keys : Tensor of int64, shape (B,)
        Which objects they are, and what their randomness is keyed by.
    places : Places
    whitening : Whitening
    tuning : Tuning
    tally : Tally
        Of the present phase.
    draws : Tensor, shape (B, C, n, D + 1)
        z and log-density after every step of the present window.
    may_jump : Tensor of bool, shape (B,)
    centres : Tensor, shape (B, M, D)
        Of the modes of objects that have several; NaN for others.
    """

    index: Tensor
    keys: Tensor
    places: Places
    whitening: Whitening
    tuning: Tuning
    tally: Tally
    draws: Tensor
    may_jump: Tensor
    centres: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def z(self) -> Tensor:
        """Where the chains stand, (B, C, D)."""
        return self.whitening.back(self.places.u)

    def gathered(self, z: Tensor) -> Tensor:
        """Return z (B, n, D) with all modes on one place: as wide as the modes, not their distance.

        Coordinates that knew the distance of modes would be a poor metric within each.
        """
        known = self.centres.isfinite().all(-1)
        if not known.any():
            return z
        centres = torch.where(known[..., None], self.centres, 0.0)
        at = self.whitening.to(centres)[:, None] - self.whitening.to(z)[:, :, None]
        away = torch.where(known[:, None], at.square().sum(-1), math.inf)
        home = centres.gather(1, away.argmin(2, keepdim=True).expand_as(z))
        return torch.where(known.any(1)[:, None, None], z - home + self.whitening.mean, z)


@dataclass(frozen=True)
class _Plan:
    """How far the trajectories of B objects go in one step: ``jitter`` of their full length.

    ``n_leaps`` (B,) are their leapfrog steps; ``order`` (B,) has the longest first, and ``counts``
    are their numbers, known to Python.
    """

    jitter: float
    n_leaps: Tensor
    order: Tensor
    counts: list[int]

    @classmethod
    def frozen(cls, tuning: Tuning, jitters: list[float], most: Tensor) -> list[_Plan]:
        """Return those of steps in which the tuning stays; to know them means to wait, once."""
        leaps = [tuning.n_leaps(jitter, most) for jitter in jitters]
        orders = [n.argsort(descending=True) for n in leaps]
        counts = torch.stack([n[o] for n, o in zip(leaps, orders, strict=True)]).tolist()
        return [cls(*each) for each in zip(jitters, leaps, orders, counts, strict=True)]


@dataclass(frozen=True)
class Transition:
    """One transition of chains: a jittered HMC trajectory, and now and then a jump.

    Attributes
    ----------
    gradients : Gradients
    seed : int
    max_leaps : int
    target_accept, rate : float
    jumps : LatentProposal or None
        Of all objects that `Lane.index` counts.
    jump_every : int
    """

    gradients: Gradients
    seed: int
    max_leaps: int
    target_accept: float
    rate: float
    jumps: LatentProposal | None
    jump_every: int

    def stretch(
        self, lane: Lane, first: int, window: range, most: Tensor | None = None, *, adapts: bool
    ) -> Lane:
        """Return a lane after steps ``window`` (counted from 1 in its window), draws recorded.

        ``first`` is the number of the first step since the start; randomness is keyed by it.
        ``most`` (B,) are the leapfrog steps of a trajectory that each object can afford.
        """
        n, n_chains, d = lane.places.u.shape
        stage = f"hmc {first}"
        momenta = keyed_normal(self.seed, stage, lane.keys, (len(window), n_chains, d))
        uniforms = keyed_uniform(self.seed, stage + " accept", lane.keys, (len(window), n_chains))
        like = lane.places.u.dtype
        most = torch.full_like(lane.index, self.max_leaps) if most is None else most
        jitters = [_radical_inverse(first + i) for i in range(len(window))]
        plans = None if adapts else _Plan.frozen(lane.tuning, jitters, most)
        jumping = None if self.jumps is None else lane.may_jump.nonzero()[:, 0]
        n_before = lane.draws.shape[2]
        draws = lane.draws.new_empty(n, n_chains, n_before + len(window), d + 1)
        draws[:, :, :n_before] = lane.draws
        for i, t in enumerate(window):
            plan = plans[i] if plans else _Plan.frozen(lane.tuning, jitters[i : i + 1], most)[0]
            lane, trial = self._step(lane, momenta[:, i].to(like), uniforms[:, i].log(), plan)
            if adapts:
                tuning = lane.tuning.update(trial, t, self.target_accept, self.rate, most)
                lane = replace(lane, tuning=tuning)
            if jumping is not None and len(jumping) and (first + i) % self.jump_every == 0:
                lane = self._jump(lane, jumping, first + i)
            draws[:, :, n_before + i, :d] = lane.z
            draws[:, :, n_before + i, d] = lane.places.log_prob
        return replace(lane, draws=draws)

    def _step(
        self, lane: Lane, momentum: Tensor, log_uniform: Tensor, plan: _Plan
    ) -> tuple[Lane, Proposed]:
        """Return a lane after one trajectory, and what that had proposed."""
        reached, last = self._leapfrog(lane, momentum, plan)
        gain = reached.log_prob - 0.5 * last.square().sum(-1)
        gain = gain - (lane.places.log_prob - 0.5 * momentum.square().sum(-1))
        gain = torch.where(torch.isfinite(gain), gain, -math.inf)
        freed = torch.isneginf(lane.places.log_prob) & torch.isfinite(reached.log_prob)
        gain = torch.where(freed, 0.0, gain)  # out of where the density is zero any way is up
        accept = gain.clamp(max=0.0).exp()
        old, n_chains = lane.tally, momentum.shape[1]
        tally = Tally(
            old.n_gradients + plan.n_leaps * n_chains,
            old.n_divergent + (gain < _DIVERGED).sum(1),
            old.accepted + accept.mean(1),
            old.n_steps + 1,
        )
        places = lane.places.where(log_uniform < gain, reached)
        trial = Proposed(lane.places.u, reached.u, last, accept, plan.jitter)
        return replace(lane, places=places, tally=tally), trial

    def _leapfrog(self, lane: Lane, momentum: Tensor, plan: _Plan) -> tuple[Places, Tensor]:
        """Return where trajectories end, and their momenta there.

        The objects of the longest trajectories stand first, so that those still moving are a slice.
        """
        order, counts = plan.order, plan.counts
        u, log_prob, grad = (getattr(lane.places, k)[order] for k in ("u", "log_prob", "grad"))
        p, index = momentum[order], lane.index[order]
        step = lane.tuning.log_step.exp()[order, None, None]
        mean, factor = lane.whitening.mean[order], lane.whitening.factor[order]
        half, n = 0.5 * step, len(counts)
        p.addcmul_(half, grad)
        for n_leaps in range(1, counts[0] + 1):
            u[:n].addcmul_(step[:n], p[:n])
            value, slope = self.gradients(u[:n], index[:n], Whitening(mean[:n], factor[:n]))
            moving = bisect_left(counts, -n_leaps, hi=n, key=neg)
            # two half kicks without a move between them are one
            p[:moving].addcmul_(step[:moving], slope[:moving])
            if moving < n:
                ended = slice(moving, n)
                p[ended].addcmul_(half[ended], slope[ended])
                log_prob[ended], grad[ended], n = value[ended], slope[ended], moving
        back = order.argsort()
        return Places(u[back], log_prob[back], grad[back]), p[back]

    def _jump(self, lane: Lane, rows: Tensor, number: int) -> Lane:
        """Return a lane after a step of independence Metropolis for some of the objects."""
        keys, index, places = lane.keys[rows], lane.index[rows], lane.places
        whitening = Whitening(lane.whitening.mean[rows], lane.whitening.factor[rows])
        proposal = self.jumps.select(index)
        n_chains = places.u.shape[1]
        z = proposal.draw(keys, n_chains, self.seed, f"jump {number}").to(places.u.dtype)
        # draws come in the order of their components: each chain must have a chance of each
        shuffle = keyed_uniform(self.seed, f"jump {number} order", keys, (n_chains,)).argsort(1)
        z = z.gather(1, shuffle[..., None].expand_as(z))
        u = whitening.to(z)
        log_prob, grad = self.gradients(u, index, whitening)
        here = lane.z[rows]
        ratio = log_prob - proposal.log_prob(z) - places.log_prob[rows] + proposal.log_prob(here)
        uniform = keyed_uniform(self.seed, f"jump {number} accept", keys, (n_chains,))
        own = Places(places.u[rows], places.log_prob[rows], places.grad[rows])
        moved = own.where(uniform.log() < ratio, Places(u, log_prob, grad))
        whole = Places(*(getattr(places, k).index_copy(0, rows, getattr(moved, k))
                         for k in ("u", "log_prob", "grad")))  # fmt: skip
        cost = torch.zeros_like(lane.tally.n_gradients).index_fill(0, rows, n_chains)
        tally = replace(lane.tally, n_gradients=lane.tally.n_gradients + cost)
        return replace(lane, places=whole, tally=tally)


def _radical_inverse(i: int) -> float:
    """Return the i-th term (from 1) of van der Corput's sequence: the bits of i, mirrored."""
    value, share = 0.0, 0.5
    while i:
        value += share * (i & 1)
        i, share = i >> 1, share / 2
    return value
