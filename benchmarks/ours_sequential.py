"""This package's sequential fit of one problem: one line of JSON.

``python -m benchmarks.ours_sequential --problem sine --seed 0 --out results.jsonl``; with
``--gradients`` the simulator is the same one in torch, and a call with a gradient is one call.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import numpy as np
import torch
from astropy.timeseries import LombScargle

import nbi_plus as nbi
from benchmarks.sequential import Draws, Result
from benchmarks.sequential_gradients import in_torch
from benchmarks.single_problems import PROBLEMS, MissingDataError, load

CIRCLES = {"phi0": 2 * math.pi, "L0": 2 * math.pi}  # what an astronomer knows to be an angle
MANY_ROUNDS = 40


def engine_for(problem, seed, gradients=False):
    """Return the engine of a problem; angles are said to be angles."""
    prior = {
        name: nbi.Circular(CIRCLES[name]) if name in CIRCLES else distribution
        for name, distribution in problem.priors.items()
    }
    noise = nbi.GaussianNoise(problem.sigma, jitter=problem.jitter)
    simulator = in_torch(problem) if gradients else problem.simulator
    return nbi.Engine(simulator, prior, noise=noise, seed=seed)


def peaks(problem, n=6):
    """Return modes (n, D): the highest peaks of the periodogram, all else unknown."""
    power = LombScargle(problem.times, problem.x_obs, problem.sigma)
    lowest, highest = (1 / problem.priors["P"].ppf(q) for q in (1.0, 0.0))
    frequency = np.linspace(lowest, highest, 20_000)
    height = power.power(frequency)
    is_peak = np.r_[False, (height[1:-1] > height[:-2]) & (height[1:-1] > height[2:]), False]
    best = frequency[is_peak][np.argsort(height[is_peak])[-n:]]
    modes = np.full((n, problem.n_dim), np.nan)
    modes[:, problem.names.index("P")] = 1 / best
    return modes


def fit(
    problem, seed, n_sims, ess_target, max_sims, periodogram=False, gradients=False, locate="auto"
):
    """Fit in rounds and return the engine."""
    modes = peaks(problem) if periodogram else None
    return engine_for(problem, seed, gradients).fit(
        n_sims=n_sims, n_rounds=MANY_ROUNDS, x_obs=problem.x_obs, ess_target=ess_target,
        max_sims=max_sims, modes=modes, locate=locate,
    )  # fmt: skip


def main():
    """Run what the command line says, and append one line to the file."""
    options = _arguments()
    torch.set_num_threads(1)
    try:
        problem = load(options.problem)
    except MissingDataError as missing:
        sys.exit(f"{options.problem} is left out: {missing}")
    settings = {
        "n_sims": options.n_sims,
        "ess_target": options.ess_target,
        "max_sims": options.max_sims,
        "periodogram": options.periodogram,
        "gradients": options.gradients,
        "locate": options.locate,
    }
    start, cpu_start = time.perf_counter(), time.process_time()
    engine = fit(problem, options.seed, **settings)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    posterior, rounds = engine.posterior_, engine.rounds_
    print(rounds, posterior, sep="\n", file=sys.stderr)
    theta, weights = posterior
    draws = Draws(theta, weights, posterior.log_evidence, posterior.log_evidence_err)
    Result(
        problem=problem.name,
        package="nbi-plus",
        version=nbi.__version__,
        settings={**settings, "status": posterior.status.name, "stop": rounds.stop_reason},
        seed=options.seed,
        n_calls=rounds[-1].n_total,
        **draws.summary(),
        seconds=seconds,
        masses=problem.masses(theta, weights),
        ess_by_round=np.round([row.ess for row in rounds], 1).tolist(),
        cpu_seconds=cpu_seconds,
    ).append_to(options.out)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", required=True, choices=sorted(PROBLEMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-sims", type=int, default=1000)
    parser.add_argument("--ess-target", type=float, default=2000.0)
    parser.add_argument("--max-sims", type=int, default=30_000)
    parser.add_argument("--periodogram", action="store_true", help="start at its peaks, too")
    parser.add_argument("--gradients", action="store_true", help="the simulator in torch")
    parser.add_argument("--locate", default="auto", help="how the place is found")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
