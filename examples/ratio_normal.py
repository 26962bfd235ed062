"""Many trials of a simulator without a likelihood: here a normal law, so that the answer is known.

``python examples/ratio_normal.py`` trains on single trials in about twenty CPU seconds and compares
with the exact posteriors of sets of 10, 50 and 500; ``--likelihood`` learns a density instead.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi

PRIOR = {"mu": uniform(-5, 10), "sigma": uniform(0.1, 4.9)}


def trial(theta):
    """Return one draw of N(mu, sigma) for each row of theta (n, 2)."""
    return theta[:, :1] + theta[:, 1:] * torch.randn((len(theta), 1), dtype=theta.dtype)


def exact(x, n=801):
    """Return means and standard deviations (2,) of mu and sigma given trials x (T,), on a grid."""
    reach = 8 * x.std() / len(x) ** 0.5
    grid = (
        np.linspace(max(x.mean() - reach, -5), min(x.mean() + reach, 5), n),
        np.linspace(0.1, 5, n),
    )
    mu, sigma = np.meshgrid(*grid, indexing="ij")
    square = len(x) * ((x.mean() - mu) ** 2 + x.var())
    height = -len(x) * np.log(sigma) - 0.5 * square / sigma**2
    weight = np.exp(height - height.max())
    weight /= weight.sum()
    mean = np.array([(weight * v).sum() for v in (mu, sigma)])
    square = np.array([(weight * v**2).sum() for v in (mu, sigma)])
    return mean, np.sqrt(square - mean**2)


def main(n_sims=6400, n_epochs=100, n_sets=10, likelihood=False):
    ratio = nbi.RatioEngine(trial, PRIOR, n_contrast=64, seed=0)
    engine = nbi.LikelihoodEngine(trial, PRIOR, seed=0) if likelihood else ratio
    begin = time.process_time()
    engine.fit(n_sims, n_epochs=n_epochs, online=True, batch_size=128)
    print(f"trained in {time.process_time() - begin:.0f} CPU s")
    if not likelihood:
        print("out of balance by {:.3f} +- {:.3f}".format(*engine.imbalance()))
    learned = engine.log_likelihood if likelihood else engine.log_ratio
    mu, sigma = np.meshgrid(np.linspace(-1, 3, 21), np.linspace(0.6, 2.9, 21))
    theta = np.stack([mu.ravel(), sigma.ravel()], 1)
    for x in (2.0, 0.0, -3.0):
        height = norm.logpdf(x, *theta.T)
        off = learned(theta, [x]) - height
        print(f"x = {x:g}: learned - exact logarithm scatters by {off.std():.3f} over the grid, "
              f"{off[height > -8].std():.3f} where the latter is above -8")  # fmt: skip
    rng, answers = np.random.default_rng(0), {}
    for n in (10, 50, 500):
        sets = rng.normal(2.0, 1.5, (n_sets, n))
        begin = time.perf_counter()
        answers[n] = found = engine.predict_many(sets[..., None])
        seconds = (time.perf_counter() - begin) / n_sets
        means, sds = np.moveaxis(np.array([exact(own) for own in sets]), 1, 0)
        off, wide = (found.mean - means) / sds, found.std / sds - 1
        n_learned = sum(s is nbi.Status.LEARNED for s in found.status)
        print(f"{n} trials: {n_learned} of {n_sets} LEARNED, {seconds:.2f} s each; means off by "
              f"{np.sqrt((off**2).mean(0)).round(3)} sd, sds by "
              f"{np.sqrt((wide**2).mean(0)).round(3)} (rms)")  # fmt: skip
    return answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=6400)
    parser.add_argument("--n-epochs", type=int, default=100)
    parser.add_argument("--n-sets", type=int, default=10)
    parser.add_argument("--likelihood", action="store_true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        main(**vars(parser.parse_args()))
