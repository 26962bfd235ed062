"""A regression in PyMC on a likelihood that was learned: needs ``pip install "nbi-plus[pymc]"``.

``python examples/ratio_regression.py`` learns single trials once, and samples two models with NUTS:
one mean for all trials, and a mean that depends on a condition, without training again. Here the
law is normal, so that PyMC's own can stand beside.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pymc as pm
import torch
from scipy.stats import uniform

import nbi_plus as nbi
from nbi_plus.pymc import NeuralDistribution

PRIOR = {"mu": uniform(-5, 10), "sigma": uniform(0.1, 4.9)}


def trial(theta):
    """Return one draw of N(mu, sigma) for each row of theta (n, 2)."""
    return theta[:, :1] + theta[:, 1:] * torch.randn((len(theta), 1), dtype=theta.dtype)


def one_mean(data, x):
    """Declare one mean and one width for all trials."""
    mu = pm.TruncatedNormal("mu", 0, 5, lower=-5, upper=5)
    sigma = pm.TruncatedNormal("sigma", 1.5, 0.5, lower=0.5, upper=3)
    data("x", mu=mu, sigma=sigma, observed=x)


def two_conditions(data, x):
    """Declare a mean that is shifted in the second half of the trials."""
    condition = np.arange(len(x)) >= len(x) // 2
    intercept, slope = pm.Normal("b0", 0, 1.5), pm.Normal("b1", 0, 1.5)
    sigma = pm.TruncatedNormal("sigma", 1.5, 0.5, lower=0.5, upper=3)
    data("x", mu=intercept + slope * condition, sigma=sigma, observed=x)


def sampled(declare, data, x, draws):
    """Return draws of each parameter (S,), seconds, and the share that was never learned."""
    with pm.Model():
        declare(data, x)
        begin = time.perf_counter()
        found = pm.sample(draws, tune=draws, chains=4, cores=1, random_seed=0, progressbar=False)
        seconds = time.perf_counter() - begin
    outside = found.posterior.get("x_outside")
    values = {k: np.asarray(v).ravel() for k, v in found.posterior.items() if k != "x_outside"}
    return values, seconds, 0.0 if outside is None else float(outside.mean())


def main(n_sims=6400, n_epochs=100, draws=1000):
    engine = nbi.RatioEngine(trial, PRIOR, n_contrast=64, seed=0)
    engine.fit(n_sims, n_epochs=n_epochs, online=True, batch_size=128)
    rng = np.random.default_rng(0)
    problems = {
        one_mean: rng.normal(2.0, 1.5, 50),
        two_conditions: rng.normal(1.0 + 2.0 * (np.arange(100) >= 50), 1.0),
    }
    answers = {}
    for declare, x in problems.items():
        own, seconds, outside = sampled(declare, NeuralDistribution(engine), x, draws)
        exact, exact_seconds, _ = sampled(declare, pm.Normal, x, draws)
        answers[declare.__name__] = own
        print(f"{declare.__name__}: {seconds:.0f} s, exact {exact_seconds:.0f} s; "
              f"{outside:.1%} of the trials beyond the training")  # fmt: skip
        for name, values in own.items():
            wanted = exact[name]
            print(f"  {name}: {values.mean():.3f} +- {values.std():.3f}, exact "
                  f"{wanted.mean():.3f} +- {wanted.std():.3f}")  # fmt: skip
    return answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=6400)
    parser.add_argument("--n-epochs", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1000)
    main(**vars(parser.parse_args()))
