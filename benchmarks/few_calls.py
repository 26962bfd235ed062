"""How much do a thousand calls certify? ``python -m benchmarks.few_calls``.

Curves of two to four parameters in torch, and the problems of `benchmarks.sequential`, each fitted
in rounds with 1000 calls in all, those with a gradient among them. Printed is, for every seed,
what was certified with how many effective draws, and why not.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.stats import loguniform, norm, uniform

import nbi_plus as nbi
from benchmarks.ours_sequential import engine_for
from benchmarks.sequential import PROBLEMS
from benchmarks.single_problems import MissingDataError, load

T = torch.linspace(0.0, 1.0, 50, dtype=torch.float64)
CALLS, WANTED = 1000, 400


def line(theta):
    intercept, slope = theta.T[..., None]
    return intercept + slope * T


def decay(theta):
    height, time, level = theta.T[..., None]
    return height * torch.exp(-T / time) + level


def emission(theta):
    height, centre, width, level = theta.T[..., None]
    return height * torch.exp(-0.5 * ((T - centre) / width).square()) + level


def oscillation(theta):
    height, rate, damping, phase = theta.T[..., None]
    return height * torch.exp(-damping * T) * torch.cos(rate * T + phase)


CURVES = {
    "line": (line, {"intercept": norm(0, 3), "slope": norm(0, 3)}, (0.5, -1.2)),
    "decay": (
        decay, {"height": uniform(0.1, 9.9), "time": loguniform(0.02, 5), "level": norm(0, 2)},
        (2.0, 0.4, 0.3),
    ),
    "emission line": (
        emission,
        {"height": loguniform(0.1, 10), "centre": uniform(0, 1), "width": loguniform(0.02, 0.5),
         "level": norm(0, 1)},
        (1.5, 0.4, 0.06, 0.2),
    ),
    "damped oscillation": (
        oscillation,
        {"height": loguniform(0.1, 10), "rate": uniform(2, 30), "damping": loguniform(0.1, 10),
         "phase": nbi.Circular(2 * np.pi)},
        (2.0, 14.0, 1.5, 1.0),
    ),
}  # fmt: skip


def curve(name, seed):
    """Return the engine of a curve, and its observed points."""
    model, prior, truth = CURVES[name]
    noise = np.random.default_rng(1).normal(size=len(T))
    x_obs = model(torch.tensor([truth], dtype=torch.float64))[0].numpy() + 0.2 * noise
    return nbi.Engine(model, prior, noise=0.2, seed=seed), x_obs


def problem(name, seed):
    """Return the engine of a problem, with gradients, and its observed points."""
    one = load(name)
    return engine_for(one, seed, gradients=True), one.x_obs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for names, make in ((CURVES, curve), (PROBLEMS, problem)):
        for name in names:
            try:
                told = [fitted(*make(name, seed)) for seed in range(options.seeds)]
            except MissingDataError as missing:
                told = [f"left out: {missing}"]
            print(f"{name:20}", *told, sep="; ", flush=True)


def fitted(engine, x_obs):
    """Return what a fit came to, in words."""
    engine.fit(n_sims=100, n_rounds=10, x_obs=x_obs, ess_target=WANTED, max_sims=CALLS)
    posterior, rounds = engine.posterior_, engine.rounds_
    word = "certified" if posterior.certified else rounds.stop_reason
    return f"{word}, {posterior.ess:.0f} of {rounds.n_simulated} calls"


if __name__ == "__main__":
    main()
