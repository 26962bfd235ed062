"""One star, two planets on known periods: amplitudes, a trend and the jitter of radial velocities.

``python examples/velocities.py`` fits 32 simulated velocities in rounds, with a few thousand
simulations and in about a minute on one core, compares the evidence for one planet and for two, and
writes ``velocities-rounds.png`` and ``velocities-corner.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import loguniform, norm, uniform

import nbi_plus as nbi

PERIODS = (20.885, 42.363)  # days, as known from transits
RNG = np.random.default_rng(24)
T = np.sort(RNG.uniform(0, 400, 32))  # days
ERROR = RNG.uniform(1.4, 2.0, 32)  # m/s
TRUTH = np.array([4.5, 3.5, -0.01, -1.0, 3.0])  # k1, k2, trend, offset, jitter


def velocity(theta):
    """Return the velocities (n, 32) of theta (n, 5); the jitter is the noise model's business."""
    k1, k2, trend, offset = theta[:, :4].T[..., None]
    phases = [2 * np.pi * T / period for period in PERIODS]
    return k1 * np.sin(phases[0]) + k2 * np.sin(phases[1]) + offset + trend * (T - 200)


def one_planet(theta):
    """Return the velocities (n, 32) of theta (n, 4), without the outer planet."""
    return velocity(np.insert(theta, 1, 0.0, axis=1))


def main(n_sims=1000, ess_target=2000, out="."):
    """Fit both models, print the tables, and write the pictures."""
    amplitude = loguniform(0.01, 1000)
    shared = {"trend": norm(0, 1), "offset": uniform(-50, 100), "jitter": uniform(0, 15)}
    models = {
        "two planets": (velocity, {"k1": amplitude, "k2": amplitude, **shared}),
        "one planet": (one_planet, {"k1": amplitude, **shared}),
    }
    scatter = np.hypot(ERROR, TRUTH[-1])
    observed = velocity(TRUTH[None])[0] + scatter * RNG.normal(size=len(T))
    noise = nbi.GaussianNoise(ERROR, jitter="jitter")
    found = {}
    for name, (simulator, prior) in models.items():
        engine = nbi.Engine(simulator, nbi.Prior(prior), noise=noise, seed=0)
        engine.fit(n_sims=n_sims, n_rounds=20, x_obs=observed, ess_target=ess_target)
        found[name] = engine.posterior_
        print(f"{name}\n{engine.rounds_}\n{engine.posterior_.summary()}\n")
        if name == "two planets":
            nbi.plots.rounds(engine.rounds_).savefig(Path(out) / "velocities-rounds.png")
            corner = nbi.plots.corner(engine.posterior_, truths=TRUTH)
            corner.savefig(Path(out) / "velocities-corner.png")
    two, one = (found[name] for name in models)
    error = np.hypot(two.log_evidence_err, one.log_evidence_err)
    print(f"ln Z(two) - ln Z(one) = {two.log_evidence - one.log_evidence:.2f} +- {error:.2f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=1000)
    parser.add_argument("--ess-target", type=float, default=2000)
    parser.add_argument("--out", default=".")
    options = parser.parse_args()
    main(options.n_sims, options.ess_target, options.out)
