"""nbi_plus on a benchmark problem, as it comes: networks and optimizer are the defaults."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from scipy.stats import uniform

import nbi_plus
from benchmarks.runner import N_DRAWS, Contestant, main
from nbi_plus.io.archive import read_archive

# The same number of draws as everybody, and no second helping for hard objects.
LADDER = nbi_plus.Ladder(n_draws=N_DRAWS, top_up_draws=N_DRAWS)


class Ours(Contestant):
    """An Engine given the same simulations; noise is drawn afresh for every batch."""

    distribution = "nbi-plus"
    configuration = "Engine defaults"
    weighted = True
    version = nbi_plus.__version__  # it may run from its repository, not installed

    def __init__(self, name, problem, data, budget):
        super().__init__(name, problem, data, budget)
        self.folder = tempfile.TemporaryDirectory()
        self.engine = nbi_plus.Engine(
            problem.simulate,
            {
                label: uniform(low, high - low)
                for label, low, high in zip(problem.labels, problem.low, problem.high, strict=True)
            },
            noise=nbi_plus.GaussianNoise(sigma=problem.sigma, jitter=problem.jitter),
            device="cpu",
            n_jobs=budget.threads,
            ladder=LADDER,
            path=self.folder.name,
        )

    def fit(self):
        laps = []

        def end_of_epoch(_history):
            laps.append(self.clock.lap(self._checkpoint))

        self.engine.fit(
            theta=self.data.theta_train,
            x=self.data.x_train,
            n_epochs=self.budget.epochs,
            batch_size=self.budget.batch,
            train={"patience": self.budget.epochs},
            callback=end_of_epoch,
            progress=False,
        )
        with self.clock.paused():
            self.final = copy.deepcopy(self.engine.model_.network.state_dict())
            self.uncorrected = self._without_simulator()
        return laps

    def restore(self, state):
        self.engine.model_.network.load_state_dict(self.final if state is None else state)

    def log_q(self, theta, x):
        return self.engine.log_prob(theta, x)

    def draw(self, x, n):
        theta = self.engine.sample(x, n_samples=n)
        return theta, self.engine.log_prob(theta, x)

    def predict(self, x, n):
        return self.uncorrected.predict_many(nbi_plus.Observations.from_arrays(x), n_samples=n)

    def predict_weighted(self, x, n):
        return self.engine.predict_many(nbi_plus.Observations.from_arrays(x), n_samples=n)

    def _without_simulator(self):
        """Return the fitted engine that cannot weight: it answers many objects with plain draws."""
        path = Path(self.folder.name) / "engine.nbi"
        self.engine.save(path)
        return nbi_plus.Engine.load(path, device="cpu", ladder=LADDER)

    def _checkpoint(self):
        """Return the averaged weights of this epoch, which are what `fit` chooses among."""
        (path,) = Path(self.folder.name).glob("training-*.h5")
        arrays = read_archive(path, "training").arrays
        prefix = "average/"
        return {
            name.removeprefix(prefix): torch.as_tensor(value)
            for name, value in arrays.items()
            if name.startswith(prefix)
        }


if __name__ == "__main__":
    main(Ours)
