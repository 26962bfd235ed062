"""Psychometric functions: how often each of many subjects chose right, of how many trials.

``python examples/psychometric.py`` trains one network for the designs of sessions like those of
mice that tell which side a grating is on (nine contrasts, sides that are equally likely or 4 to 1),
and answers for a hundred sessions: a posterior with a verdict each. Choices scatter more than coins
do: their counts are beta-binomial. The network is a deep set of (contrast, trials, choices).
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np
import torch
from scipy.stats import beta, halfnorm

import nbi_plus as nbi

CONTRAST = np.array([-1.0, -0.25, -0.125, -0.0625, 0.0, 0.0625, 0.125, 0.25, 1.0])
# chances to choose right or left whatever is seen, overdispersion, bias, and width of the curve
PRIOR = {
    "gamma": beta(1, 10), "lapse": beta(1, 10), "nu": beta(1, 10),
    "mu": beta(2, 2, loc=-1, scale=2), "sigma": halfnorm(),
}  # fmt: skip
FIRST, LONGEST = 90, 700  # trials of sessions with equal sides, and of all
RARE = 0.2  # how often the other side is shown, where sides are not equal


def curve(theta, contrast):
    """Return the probability of right (n, L) at contrasts (L,) or (n, L)."""
    gamma, lapse, _, mu, sigma = theta.T[..., None]
    return gamma + (1 - gamma - lapse) * torch.special.ndtr((contrast - mu) / sigma)


def designs(n, seed):
    """Return trials (n, 9) of sessions: a third with equal sides, the others with one rare."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    total = np.where(kind == 0, FIRST, rng.integers(FIRST // 2, LONGEST, n))
    right = np.array([0.5, RARE, 1 - RARE])[kind][:, None]
    share = np.where(CONTRAST < 0, 1 - right, right)
    share[:, CONTRAST == 0] = 1.0  # it is shown on either side
    return np.maximum(rng.multinomial(total, share / share.sum(1, keepdims=True)), 1)


def sessions(n_trials, n_right=None):
    """Return Observations of sessions (N, 9), without data where nobody has chosen yet."""
    every = np.broadcast_to(CONTRAST, n_trials.shape)
    x = np.zeros(n_trials.shape) if n_right is None else n_right.astype(float)
    return nbi.Observations.from_arrays(x, contrast=every, n=n_trials.astype(float))


def learned(n_sims, n_epochs, seed=0, noise=None):
    """Return an engine for all such designs."""
    noise = nbi.BetaBinomialNoise("n", "nu") if noise is None else noise
    engine = nbi.Engine(curve, PRIOR, noise=noise, featurizer="set", seed=seed)
    return engine.fit(
        n_sims,
        n_epochs=n_epochs,
        batch_size=256,
        observations=sessions(designs(3000, seed)),
        perturb=False,
    )


def main(n_sims=10_000, n_epochs=30, n_sets=100, seed=0):
    """Train, answer, and return truths and posteriors."""
    begin = time.process_time()
    engine = learned(n_sims, n_epochs, seed)
    print(f"trained in {time.process_time() - begin:.0f} CPU s")
    truths = engine.prior_.sample(n_sets, seed + 1)
    empty = sessions(designs(n_sets, seed + 1))
    rng, theta = torch.Generator().manual_seed(seed), torch.as_tensor(truths)
    p = curve(theta, torch.as_tensor(CONTRAST))[:, None]
    n_right = engine.noise_.augment(p.numpy(), empty, truths, rng)[:, 0]
    begin = time.perf_counter()
    found = engine.predict_many(sessions(designs(n_sets, seed + 1), n_right))
    print(f"{n_sets} sessions in {time.perf_counter() - begin:.1f} s")
    print("settled:", dict(Counter(status.name for status in found.status)))
    inside = [
        (p.quantile(0.05) <= own) & (own <= p.quantile(0.95))
        for p, own in zip(found, truths, strict=True)
    ]
    shares = {k: float(v) for k, v in zip(PRIOR, np.mean(inside, 0), strict=True)}
    print("90 % intervals hold the truth:", shares)
    print(found[0].summary())
    return truths, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=10_000)
    parser.add_argument("--n-epochs", type=int, default=30)
    parser.add_argument("--n-sets", type=int, default=100)
    main(**vars(parser.parse_args()))
