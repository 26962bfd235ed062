"""Learned ratios and likelihoods on two tasks of sbibm, beside the published NRE and NLE.

``python -m benchmarks.learned --data FOLDER`` learns each task from 10 000 simulations of single
trials, whose noise is drawn once, answers for its observations, and prints the C2ST against the
reference posteriors. FOLDER holds ``sbibm``: observations, draws and the results of Lueckmann et
al. (2021), whose figures for as many simulations stand beside.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch

import nbi_plus as nbi
from tests.sbibm import GAUSSIAN_LINEAR_UNIFORM, TWO_MOONS, Observation, c2st

TASKS = {task.name: task for task in (TWO_MOONS, GAUSSIAN_LINEAR_UNIFORM)}
PUBLISHED = {"ratio": "NRE", "likelihood": "NLE"}
N_SIMS, BUDGET = 10_000, "10⁴"
EPOCHS = {"ratio": 40, "likelihood": 40}
DRAWS, MOVES = 10_000, 60  # as many as the reference has, and steps that part those drawn twice


def engine_of(kind, task, flow, seed):
    """Return the engine with what was chosen for such data."""
    if kind == "ratio":
        return nbi.RatioEngine(None, task.prior, n_contrast=64, seed=seed)
    return nbi.LikelihoodEngine(None, task.prior, flow=flow, seed=seed)


def simulated(task, n, seed):
    """Return parameters (n, D) and one trial (n, L) of each."""
    theta = torch.as_tensor(task.prior.sample(n, seed))
    nothing = nbi.Observations.from_arrays(np.zeros((1, task.n_dim))).batch()
    rng = torch.Generator().manual_seed(seed)
    x = task.noise.bind(False, task.prior.full_names).augment(
        task.simulator(theta)[:, None], nothing, theta, rng
    )
    return theta.numpy(), x[:, 0].numpy()


def published(folder, task, kind):
    """Return the published C2ST of each observation, by its number."""
    with (folder / "sbibm" / "results_main_paper.csv").open() as file:
        return {
            int(row["num_observation"]): float(row["C2ST"])
            for row in csv.DictReader(file)
            if (row["task"], row["algorithm"], row["num_simulations"])
            == (task.name, PUBLISHED[kind], BUDGET)
        }


def observations(folder, task):
    """Return the observations of a task that the folder holds."""
    found = sorted((folder / "sbibm" / task.name).glob("num_observation_*"))
    return [Observation(task, int(p.name.rpartition("_")[2]), folder) for p in found]


def parted(engine, x, posterior, seed):
    """Return draws (n, D) of equal weight, none of them twice.

    Drawn again by their weights, some are repeated, which a classifier would see. Metropolis steps
    along differences of the others, many of them short, leave their distribution as it is.
    """
    prior, rng = engine.prior_, np.random.default_rng(seed)
    density, _, _ = engine.fitted_.summed([x[None]])
    first = torch.zeros(1, dtype=torch.int64)

    def height(z):
        with torch.no_grad():
            found = density.log_prob(torch.as_tensor(z)[None], first)[0].numpy()
        return found - 0.5 * (z**2).sum(1)

    z = prior.to_latent(posterior.resample(DRAWS, rng))
    n, (_, n_dim) = len(z) // 2, z.shape
    now = height(z)
    for step in range(2 * MOVES):
        own = np.arange(n) + n * (step % 2)
        one, other = rng.integers(n, size=(2, n)) + n * (1 - step % 2)
        scale = 2.38 / (2 * n_dim) ** 0.5 * 10 ** rng.uniform(-2, 0, (n, 1))
        new = z[own] + scale * (z[one] - z[other])
        there = height(new)
        taken = np.log(rng.random(n)) < there - now[own]
        z[own[taken]], now[own[taken]] = new[taken], there[taken]
    return prior.from_latent(z)


def main(
    data, task=tuple(TASKS), kind=tuple(PUBLISHED), flow=None, epochs=None, seed=0, n_sims=N_SIMS
):
    folder = Path(data)
    for own in (TASKS[name] for name in task):
        theta, x = simulated(own, n_sims, seed)
        for what in kind:
            engine = engine_of(what, own, flow, seed)
            begin = time.process_time()
            engine.fit(theta, x, n_epochs=EPOCHS[what] if epochs is None else epochs)
            seconds = time.process_time() - begin
            theirs, ours = published(folder, own, what), {}
            print(f"{own.name}, {what}: trained in {seconds:.0f} CPU s", flush=True)
            for one in observations(folder, own):
                posterior = engine.predict(one.x[None], 2 * DRAWS)
                ours[one.number] = c2st(parted(engine, one.x, posterior, seed), one.draws, seed)
                told = f"{posterior.status.name}, ess {posterior.ess:.0f}"
                print(
                    f"  {one.label}: C2ST {ours[one.number]:.3f} ({told}), published "
                    f"{PUBLISHED[what]} {theirs[one.number]:.3f}", flush=True,
                )  # fmt: skip
            print(
                f"{own.name}, {what}: median {median(ours.values()):.3f}; published of the same "
                f"{median(theirs[k] for k in ours):.3f}, of all ten {median(theirs.values()):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=tuple(TASKS))
    parser.add_argument("--kind", nargs="+", choices=PUBLISHED, default=tuple(PUBLISHED))
    parser.add_argument("--flow", choices=("maf", "nsf"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-sims", type=int, default=N_SIMS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        main(**vars(parser.parse_args()))
