"""Refining: the ladder's rung that adapts a proposal to each object, for many at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.infer.amis import MixtureFamily, OnCircles, Pair, adapt
from nbi_plus.infer.certificate import outcome_of
from nbi_plus.infer.circles import circular_columns
from nbi_plus.infer.mixtures import MANY_DIMS, MixtureConfig
from nbi_plus.infer.outcome import Outcome, Pool
from nbi_plus.infer.proposals import LatentProposal
from nbi_plus.infer.streams import Stream
from nbi_plus.infer.weights import Gate, Grade, summarise
from nbi_plus.problem.target import Evaluation, Target


@dataclass(frozen=True)
class RefineConfig:
    """Chosen state of the rung.

    Attributes
    ----------
    n_rounds : int
        Most rounds of adapting; 0 leaves the rung out.
    n_each : int
        Draws of each of the two streams in a round.
    n_certify : int
        Fresh draws that must pass the gate.
    mixture, wide : MixtureConfig
        Of the proposal and of its wide part: cheaper fits than one object alone would get.
    """

    n_rounds: int = 4
    n_each: int = 500
    n_certify: int = 2048
    mixture: MixtureConfig = MixtureConfig(
        n_components=6, n_points=1000, n_steps=15, n_starts=1, dof=5, wide_share=0.1
    )
    wide: MixtureConfig = MixtureConfig(
        n_components=2, n_points=500, n_steps=10, n_starts=1, dof=5, wide_share=0.1
    )

    def family(self, n_dim: int) -> MixtureFamily:
        """Return what is fitted to objects of so many parameters."""
        if n_dim > MANY_DIMS:
            one = replace(self.mixture, n_components=1)
            return MixtureFamily(one, replace(self.wide, n_components=1))
        return MixtureFamily(self.mixture, self.wide)


@dataclass(frozen=True)
class _Open:
    """Objects with as many draws each, that are still open after so many rounds."""

    pair: Pair
    index: Tensor
    keys: Tensor
    n_rounds: int = 0
    tried: bool = False

    def select(self, chosen: Tensor) -> _Open:
        """Return the objects for which ``chosen`` (b,) is true."""
        rows = chosen.nonzero()[:, 0]
        return replace(
            self, pair=self.pair.select(rows), index=self.index[rows], keys=self.keys[rows]
        )


@torch.no_grad()
def refine(
    pool: Pool, proposal: LatentProposal, keys: Tensor, target: Target, config: RefineConfig,
    gate: Gate, seed: int,
) -> Iterator[Outcome]:  # fmt: skip
    """Yield outcomes that together hold every object of the pool once.

    An object is certified when its pooled draws look good enough, and goes on once if its fresh
    draws do not.

    Parameters
    ----------
    pool : Pool
        Draws of the network for b objects; they count, too.
    proposal : LatentProposal
        What they came from.
    keys : Tensor of int64, shape (b,)
    target : Target
    config : RefineConfig
    gate : Gate
    seed : int
    """
    circles = circular_columns(target.prior.periods)
    family = OnCircles(config.family(target.prior.n_dim), circles)
    found = Evaluation(pool.log_prior, pool.log_likelihood, pool.failed)
    # the network was not fitted to these draws: they may count for the evidence
    pair = replace(Pair.start(proposal, pool.z, found), n_shared=0)
    groups = [_Open(pair, pool.index, keys)]
    while groups:
        group = groups.pop()
        n = group.n_rounds + 1
        pair = adapt(
            group.pair, target.evaluate, family, group.index, group.keys, config.n_each, seed,
            f"refine {n}",
        )  # fmt: skip
        group = replace(group, pair=pair, n_rounds=n)
        ends = n == config.n_rounds
        looks_good = _looks_good(pair, gate) & (not group.tried)
        ready = looks_good | ends
        if not ready.all():
            groups.append(group.select(~ready))
        if ready.any():
            tried, outcome = _certified(group.select(ready), target, config, gate, seed)
            done = outcome.passed | ends
            if done.any():
                yield outcome.select(done.nonzero()[:, 0])
            if not done.all():
                groups.append(tried.select(~done))


def _looks_good(pair: Pair, gate: Gate) -> Tensor:
    """Say which objects (b,) would pass the gate if nothing had been fitted to their draws."""
    pooled = gate.grade(summarise(pair.log_weights)) > Grade.F
    return pooled & (pair.efficiency() >= gate.eff_min_mix)


def _certified(
    group: _Open, target: Target, config: RefineConfig, gate: Gate, seed: int
) -> tuple[_Open, Outcome]:
    """Return the objects with fresh draws added, and what these say."""
    frozen = group.pair.frozen
    z = frozen.draw(group.keys, config.n_certify, seed, f"refine certify {group.n_rounds}")
    found = target.evaluate(z, group.index)
    fresh = Stream.start(frozen, z, found)
    pair = group.pair.extend(group.pair.proposals, z, found)
    outcome = outcome_of(
        pair, fresh, gate, is_mixture=True, rung="refine", index=group.index,
        circles=circular_columns(target.prior.periods), seed=seed,
    )  # fmt: skip
    return replace(group, pair=pair, tried=True), outcome
