"""One sampler on one problem: ``python -m benchmarks.peer_samplers --problem sine --package ...``.

Every sampler is given the priors and a vectorised likelihood where it takes one, its own defaults
elsewhere, and no knowledge of which parameters are periodic. A call is one row of theta.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from importlib import metadata

import numpy as np

from benchmarks.sequential import Draws, Result
from benchmarks.single_problems import PROBLEMS, CountedLikelihood, MissingDataError, load

DISTRIBUTIONS = {"nautilus": "nautilus-sampler"}  # where it is not the package's name


def run_dynesty(problem, likelihood, seed):
    """Static nested sampling, one point at a time: uniform draws in few dimensions, else walks."""
    import dynesty

    settings = {"nlive": 500, "sample": "unif" if problem.n_dim <= 3 else "rwalk", "dlogz": 0.01}
    sampler = dynesty.NestedSampler(
        likelihood,
        problem.prior_transform,
        problem.n_dim,
        nlive=settings["nlive"],
        sample=settings["sample"],
        rstate=np.random.default_rng(seed),
    )
    sampler.run_nested(dlogz=settings["dlogz"], print_progress=False)
    found = sampler.results
    draws = Draws(found.samples, found.importance_weights(), found.logz[-1], found.logzerr[-1])
    return draws, settings


def run_nautilus(problem, likelihood, seed):
    """Importance nested sampling with neural regression; its error of log Z is 1 / sqrt(ESS)."""
    import nautilus

    settings = {"n_live": 1000, "n_eff": 10_000}
    sampler = nautilus.Sampler(
        problem.prior_transform,
        likelihood,
        n_dim=problem.n_dim,
        n_live=settings["n_live"],
        vectorized=True,
        seed=seed,
    )
    sampler.run(n_eff=settings["n_eff"], verbose=False)
    theta, log_weights, _ = sampler.posterior()
    weights = np.exp(log_weights - log_weights.max())
    return Draws(theta, weights, sampler.log_z, sampler.n_eff**-0.5), settings


def run_ultranest(problem, likelihood, seed):
    """Reactive nested sampling; the seed is numpy's global one, the only one it reads."""
    import ultranest

    np.random.seed(seed)  # noqa: NPY002
    settings = {"min_num_live_points": 400}
    sampler = ultranest.ReactiveNestedSampler(
        list(problem.names), likelihood, problem.prior_transform, log_dir=None, vectorized=True
    )
    logging.getLogger("ultranest").setLevel(logging.WARNING)  # it sets its own level when made
    found = sampler.run(**settings, show_status=False, viz_callback=False)
    weighted = found["weighted_samples"]
    draws = Draws(weighted["points"], weighted["weights"], found["logz"], found["logzerr"])
    return draws, settings


def run_pocomc(problem, likelihood, seed):
    """Preconditioned Monte Carlo with its normalizing flow."""
    import pocomc

    sampler = pocomc.Sampler(
        pocomc.Prior(list(problem.priors.values())),
        likelihood,
        vectorize=True,
        random_state=seed,
    )
    sampler.run(progress=False)
    theta, weights, _, _ = sampler.posterior(trim_importance_weights=False)
    return Draws(theta, weights, *sampler.evidence()), {}


PACKAGES = {
    "dynesty": run_dynesty,
    "nautilus": run_nautilus,
    "ultranest": run_ultranest,
    "pocomc": run_pocomc,
}


def fit(problem, package, seed):
    """Run one package on one problem, and return the `Result`."""
    likelihood = CountedLikelihood(problem)
    start = time.perf_counter()
    draws, settings = PACKAGES[package](problem, likelihood, seed)
    seconds = time.perf_counter() - start
    return Result(
        problem=problem.name,
        package=package,
        version=metadata.version(DISTRIBUTIONS.get(package, package)),
        settings=settings,
        seed=seed,
        n_calls=likelihood.n_calls,
        **draws.summary(),
        seconds=seconds,
        masses=problem.masses(draws.theta, draws.weights),
    )


def main():
    """Run what the command line says, and append one line to the file."""
    options = _arguments()
    try:
        problem = load(options.problem)
    except MissingDataError as missing:
        sys.exit(f"{options.problem} is left out: {missing}")
    fit(problem, options.package, options.seed).append_to(options.out)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", required=True, choices=sorted(PROBLEMS))
    parser.add_argument("--package", required=True, choices=sorted(PACKAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
