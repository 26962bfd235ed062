"""Predictive checks: whether the model of a posterior could have made the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbi_plus.infer.outcome import Outcome
from nbi_plus.infer.resample import systematic_resample
from nbi_plus.problem.random import generator, keyed_uniform, preserved_random_state
from nbi_plus.problem.target import Target

_N_DRAWS = 100  # of the posterior
_N_MORE = 40  # sets of data for each, where few of the first were as unlikely as the real ones
_SUSPECT = 0.03
_NUMBERS = 2**24  # simulated at once


def fit_p_values(target: Target, outcome: Outcome, keys: Tensor, seed: int) -> Tensor:
    """Return posterior-predictive p-values of the data, shape (b,).

    The mean over the posterior of the probability that other data would be no likelier than these
    (Gelman, Meng and Stern 1996); a small value says that the model does not describe the data.
    NaN where no draw has a weight.

    Parameters
    ----------
    target : Target
    outcome : Outcome
        Of b objects.
    keys : Tensor of int64, shape (b,)
        What the randomness of each object is keyed by.
    seed : int
    """
    pool, weights = outcome.pool, outcome.summary.weights
    result = torch.full_like(outcome.summary.ess, math.nan)
    alive = (weights.sum(1) > 0).nonzero()[:, 0]
    step = max(1, _NUMBERS // (_N_DRAWS * math.prod(target.data.x.shape[1:])))
    for rows in alive.split(step) if len(alive) else ():
        comb = keyed_uniform(seed, "fit draws", keys[rows], (1,))[:, 0]
        pick = systematic_resample(weights[rows], _N_DRAWS, comb)
        z = pool.z[rows].gather(1, pick[..., None].expand(-1, -1, pool.z.shape[-1]))
        result[rows] = _mean_p_values(target, z, pool.index[rows], keys[rows], seed)
    return result


def _mean_p_values(target: Target, z: Tensor, index: Tensor, keys: Tensor, seed: int) -> Tensor:
    """Return the p-values (b,) of draws z (b, n, D) of equal weight."""
    models = target.simulate(z, index)
    theta = target.prior.complete(target.prior.from_latent(z))
    if target.noise.exact_p_value:
        data = target.data.select(index.repeat_interleave(z.shape[1]))
        none = generator(seed, "fit", z.device)
        p = target.noise.p_value(theta.flatten(0, 1), models.flatten(0, 1), data, none)
        return p.reshape(z.shape[:2]).nanmean(1)
    # one object at a time, for its other data come from one generator: neighbours must not matter
    each = zip(theta, models, index.tolist(), keys.tolist(), strict=True)
    return torch.stack([_p_value(target, *own, seed) for own in each])


def _p_value(
    target: Target, theta: Tensor, models: Tensor, index: int, key: int, seed: int
) -> Tensor:
    """Return the p-value of one object, from data made by its noise."""
    data = target.data.select(torch.full((len(models),), index, device=models.device))
    rng = generator(seed, f"fit {key}", models.device)

    def look(n: int) -> Tensor:
        found = [target.noise.p_value(theta, models, data, rng) for _ in range(n)]
        return torch.stack(found).nanmean()

    with preserved_random_state():
        first = look(1)
        return look(_N_MORE) if first < _SUSPECT else first
