"""nbi's own SNPE-IS, one object: ``python -m benchmarks.peer_nbi_sequential --problem sine``.

The settings are those of its demonstration for one object: 2560 simulations a round, at most five
rounds, 300 epochs, batches of 128, learning rate 5e-4, patience 50; it stops when a round's
effective sample size falls. The network and the scaling of the data are those of `peer_nbi`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import metadata

import numpy as np
import torch

from benchmarks.peer_nbi import FEATURIZER, FLOW, SHM, FairNBI
from benchmarks.sequential import Draws, Result
from benchmarks.single_problems import load

PATIENCE = 50
# The noise must be known, and independent of the parameters.
CHOICES = ("sine", "bimodal", "microlensing")


class SequentialNBI(FairNBI):
    """nbi without its figures, keeping of its files only the epochs that it may go back to."""

    def save_state_dict(self):
        super().save_state_dict()
        with suppress(FileNotFoundError):
            os.remove(f"{self.directory}/{self.round}/{self.epoch - PATIENCE - 3}.pth")

    def corner(self, *_args, **_kwargs):
        pass


def fit(problem, seed, n_epochs, n_sims=2560, n_rounds=5):
    """Run nbi on one problem, and return the `Result`."""
    settings = {"n_sims": n_sims, "n_rounds": n_rounds, "n_epochs": n_epochs, "batch_size": 128}
    settings |= {"lr": 5e-4, "early_stop_patience": PATIENCE, "early_stop_train": True}
    # nbi writes and reads one file per simulation: memory serves it best.
    files = tempfile.TemporaryDirectory(dir=SHM if os.path.isdir(SHM) else None)
    with files as folder, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        start = time.perf_counter()
        engine = SequentialNBI(
            flow=FLOW | {"n_dims": problem.n_dim},
            featurizer=dict(FEATURIZER),
            simulator=lambda theta: problem.simulator(theta[None])[0],
            priors=list(problem.priors.values()),
            labels=list(problem.names),
            path=folder,
            n_jobs=1,
        )
        # The first round's draws are all that a seed can change: nbi sets its own afterwards.
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        with redirect_stderr(nowhere):  # its progress bars
            engine.fit(x_obs=problem.x_obs, noise=problem.sigma, plot=False, workers=1, **settings)
        seconds = time.perf_counter() - start
    theta, weights = engine.result()
    return Result(
        problem=problem.name,
        package="nbi",
        version=metadata.version("nbi"),
        settings=settings,
        seed=seed,
        n_calls=sum(len(y) for y in engine.y_all),
        **Draws(theta, weights).summary(),
        seconds=seconds,
        masses=problem.masses(theta, weights),
        ess_by_round=[float(ess) for ess in engine.neff],
    )


def main():
    """Run what the command line says, and append one line to the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", required=True, choices=CHOICES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    fit(load(options.problem), options.seed, options.epochs).append_to(options.out)


if __name__ == "__main__":
    main()
