"""Predictive checks: whether the model of a posterior could have made the data."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.weights.resample import systematic_resample
from nbi_plus.problem.random import (
    generator,
    keyed_uniform,
    paired_keys,
    preserved_random_state,
)
from nbi_plus.problem.target import DataSets, LatentTarget, Target

_N_DRAWS = 100  # of the posterior
_N_MORE = 40  # sets of data for each, where few of the first were as unlikely as the real ones
_SUSPECT = 0.03
_TINY = 1e-15
MISFIT = 1e-3  # p-value, of either tail, of data that the model does not describe
_NUMBERS = 2**24  # simulated at once


def checked(target: LatentTarget, outcome: Outcome, keys: Tensor, seed: int) -> Outcome:
    """Return the outcome with posterior-predictive p-values of the data, and who is a misfit.

    ``fit_p_value`` is the mean over the posterior of the probability that other data would be no
    likelier than these (Gelman, Meng and Stern 1996); a small value says that the model does not
    describe the data. So does a small probability that they would be no less likely: errors are
    larger than the scatter, or not errors. Both are NaN where no draw has a weight.

    Averages over a posterior are narrower than what is averaged, for the data chose the parameters:
    each tail is held against 0.001 as it is, which flags fewer of good objects (counted in
    `tests/test_verdict.py`).

    Parameters
    ----------
    target : LatentTarget
        One that makes no data leaves the outcome as it is.
    outcome : Outcome
        Of b objects.
    keys : Tensor of int64, shape (b,)
        What the randomness of each object is keyed by.
    seed : int
    """
    if not target.makes_data:
        return outcome
    pool, weights = outcome.pool, outcome.summary.weights
    tails = torch.full((len(weights), 2), math.nan, dtype=torch.float64, device=weights.device)
    alive = (weights.sum(1) > 0).nonzero()[:, 0]
    step = max(1, _NUMBERS // (_N_DRAWS * target.n_numbers))
    for rows in alive.split(step) if len(alive) else ():
        comb = keyed_uniform(seed, "fit draws", keys[rows], (1,))[:, 0]
        pick = systematic_resample(weights[rows], _N_DRAWS, comb)
        z = pool.z[rows].gather(1, pick[..., None].expand(-1, -1, pool.z.shape[-1]))
        behind = target.sets_of_data(z, pool.index[rows])
        tails[rows] = _together(_mean_tails(behind, keys[rows], seed), behind.owner, len(rows))
    if not target.noise.reads_model:  # and so no model is the data themselves
        return with_tails(outcome, tails)
    return replace(with_tails(outcome, tails), chi2_best=_deviance(target, outcome, alive))


def with_tails(outcome: Outcome, tails: Tensor) -> Outcome:
    """Return the outcome with the p-values (b, 2) of both tails judged."""
    return replace(outcome, fit_p_value=tails[:, 0], misfit=(tails < MISFIT).any(1))


def _deviance(target: LatentTarget, outcome: Outcome, alive: Tensor) -> Tensor:
    """Return how far the draw of highest posterior is from the data, (b,); NaN without weights.

    Twice the logarithm of how much likelier a model would be that is the data themselves: for
    Gaussian noise, chi-square.
    """
    found = torch.full_like(outcome.summary.ess, math.nan)
    pool = outcome.pool.select(alive)
    height = torch.where(
        outcome.summary.weights[alive] > 0, pool.log_prior + pool.log_likelihood, -math.inf
    )
    best = height.argmax(1, keepdim=True)
    z = pool.z.gather(1, best[..., None].expand(-1, -1, pool.z.shape[-1]))
    target, z, index, owner = target.sets_of_data(z, pool.index)
    theta = target.prior.complete(target.prior.from_latent(z[:, 0])).to(target.data.x.dtype)
    data = target.data.select(index)
    itself = target.noise.log_likelihood(theta, target.noise.saturated(data), data)
    reached = torch.zeros_like(best[:, 0], dtype=itself.dtype).index_add(0, owner, itself)
    found[alive] = 2 * (reached - pool.log_likelihood.gather(1, best)[:, 0])
    return torch.where(found.isfinite(), found, math.nan)


def averaged(tails: Tensor, weights: Tensor, *, exact: bool) -> Tensor:
    """Return the p-values (b, 2) of draws with tails (b, S, 2) and weights (b, S); NaN is left out.

    Where they are exact, the normal scores of the lower tail are averaged instead: a mean of small
    numbers is made by the largest ones, and misses a quarter of errors 1.6 times too large.
    """
    known = weights * ~tails.isnan().any(-1)
    shares = (known / known.sum(1, keepdim=True))[..., None]
    mean = (shares * tails.nan_to_num()).sum(1)
    if exact:
        scores = torch.special.ndtri(tails.nan_to_num()[..., 1:].clamp(_TINY, 1.0 - _TINY))
        mean[:, 1:] = torch.special.ndtr((shares * scores).sum(1))
    return mean


def _together(tails: Tensor, owner: Tensor, n: int) -> Tensor:
    """Return the p-values (n, 2) of all sets of data of each of n objects.

    Of several sets both the mean of the normal scores and the smallest p-value count, each with
    half of the chance: all can be a little off, or one by much.
    """
    if len(owner) == n:
        return tails
    counts = torch.zeros(n, 1, dtype=tails.dtype, device=tails.device)
    counts = counts.index_add(0, owner, torch.ones_like(tails[:, :1]))
    scores = torch.special.ndtri(tails.clamp(_TINY, 1.0 - _TINY))
    mean = torch.zeros(n, 2, dtype=tails.dtype, device=tails.device).index_add(0, owner, scores)
    places = owner[:, None].expand_as(tails)
    least = torch.ones_like(mean).scatter_reduce(0, places, tails, "amin")
    least = -torch.expm1(counts * torch.log1p(-least.clamp(max=1.0 - _TINY)))
    return (2 * torch.minimum(torch.special.ndtr(mean / counts.sqrt()), least)).clamp(max=1.0)


def _mean_tails(behind: DataSets, keys: Tensor, seed: int) -> Tensor:
    """Return the p-values (m, 2) of sets of data, for draws z (m, n, D) of equal weight."""
    target, z, index, owner = behind
    models = target.simulate(z, index)
    theta = target.prior.complete(target.prior.from_latent(z))
    if target.noise.exact_p_value:
        data = target.data.select(index.repeat_interleave(z.shape[1]))
        none = generator(seed, "fit", z.device)
        found = target.noise.p_values(theta.flatten(0, 1), models.flatten(0, 1), data, none)
        tails = torch.stack(found, 1).reshape(*z.shape[:2], 2)
        return averaged(tails, torch.full_like(tails[..., 0], 1.0 / z.shape[1]), exact=True)
    # one set at a time, for its other data come from one generator: neighbours must not matter
    own_keys, n_sets = keys[owner], len(owner) // len(keys)
    if len(owner) > len(keys):  # what all sets have in common would not average out
        own_keys = paired_keys(own_keys, index)
    each = zip(theta, models, index.tolist(), own_keys.tolist(), strict=True)
    return torch.stack([_tails(target, *own, seed, n_sets) for own in each])


def _tails(
    target: Target, theta: Tensor, models: Tensor, index: int, key: int, seed: int, n_sets: int
) -> Tensor:
    """Return the p-values (2,) of one of n sets of data, from data made by its noise.

    None is zero: of few data that are made none may be as unlikely. The least of n must be told
    from what is n times rarer.
    """
    data = target.data.select(torch.full((len(models),), index, device=models.device))
    rng = generator(seed, f"fit {key}", models.device)

    def look(n: int) -> Tensor:
        found = [torch.stack(target.noise.p_values(theta, models, data, rng), 1) for _ in range(n)]
        found = torch.cat(found)
        n_known = (~found.isnan().any(1)).sum()
        mean = (found.nansum(0) + 1) / (n_known + 2)
        return torch.where(n_known > 0, mean, math.nan)

    with preserved_random_state():
        found = look(1)
        if found.min() < _SUSPECT:
            found = look(_N_MORE)
        if n_sets > 1 and found.min() < 4 * MISFIT:
            found = look(_N_MORE * n_sets)
        return found
