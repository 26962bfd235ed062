"""Run nbi (PyPI) on a benchmark problem; run by benchmarks.amortized inside nbi's own environment."""

from __future__ import annotations

import contextlib
import os
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")  # nbi imports pyplot

import numpy as np
import torch
from nbi import NBI
from scipy.stats import uniform

from benchmarks.runner import Clock, Contestant, main

SHM = "/dev/shm"
FLOW = {"n_dims": 3, "flow_hidden": 32, "num_blocks": 4}
FEATURIZER = {"type": "resnet-gru", "norm": "weight_norm", "dim_in": 1, "depth": 3}


class FairNBI(NBI):
    """nbi with its data scaled as its documentation says, and a clock."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.laps = []
        self.clock = None

    def _init_scales(self):
        # nbi 0.4.1 divides the data by the scatter of the *mean* curve over time: 0.05 here, where
        # every phase occurs, so that the network would see values of +-60. Its documentation says
        # "zero mean and unit variance"; handing it scaled data cannot help, it would scale again.
        super()._init_scales()
        batches = [x.numpy() for x, _ in self.train_loader]
        self.x_std = np.concatenate(batches).std((0, 2))[:, None]

    def save_state_dict(self):
        super().save_state_dict()
        self.laps.append(self.clock.lap(f"{self.directory}/0/{self.epoch}.pth"))


class Peer(Contestant):
    """The ResNet-GRU and MAF of nbi's demonstration, with fresh noise in every epoch."""

    distribution = "nbi"
    weighted = True

    def __init__(self, name, problem, data, budget):
        super().__init__(name, problem, data, budget)
        self.configuration = f"{FEATURIZER} {FLOW}"
        # nbi writes and reads one file per simulation, in predict too: memory serves it best.
        self.folder = tempfile.TemporaryDirectory(dir=SHM if os.path.isdir(SHM) else None)
        self.x_err = np.full(problem.n_points, problem.sigma)
        self.engine = FairNBI(
            flow=dict(FLOW),
            featurizer=dict(FEATURIZER),
            simulator=problem.simulate,
            priors=[uniform(a, b - a) for a, b in zip(problem.low, problem.high, strict=True)],
            labels=list(problem.labels),
            path=self.folder.name,
            n_jobs=budget.threads,
        )

    def fit(self):
        paths = self._write_simulations()
        self.engine.clock = Clock()
        with _silence():
            self.engine.fit(
                x=paths,
                y=self.data.theta_train,
                n_sims=len(paths),  # its smallest learning rate follows from this
                noise=self._noise,
                n_epochs=self.budget.epochs,
                batch_size=self.budget.batch,
                workers=self.budget.threads,  # at least one: its loader cannot do without
                plot=False,
            )
        self.engine.network.eval()
        self.final = self.engine.get_state_dict()
        return self.engine.laps

    def restore(self, state):
        weights = self.final if state is None else torch.load(state)
        self.engine.get_network().load_state_dict(weights)

    def log_q(self, theta, x):
        with torch.no_grad():
            return self._log_q(theta, self._features(x))

    def draw(self, x, n):
        theta = self._predict_one(x, n)
        with torch.no_grad():
            return theta, self._log_q(theta, self._features(x[None]).expand(len(theta), -1))

    def predict(self, x, n):
        return [self._predict_one(row, n) for row in x]

    def predict_weighted(self, x, n):
        with _silence():
            return [self.engine.predict(row, x_err=self.x_err, n_samples=n) for row in x]

    def _predict_one(self, x, n):
        with _silence():
            return self.engine.predict(x, n_samples=n)

    def _features(self, x):
        x = torch.from_numpy(self.engine.scale_x(x[:, None, :])).float()
        return self.engine.get_network().featurizer(x)

    def _log_q(self, theta, features):
        y = torch.from_numpy(self.engine.scale_y(theta)).float()
        nll = self.engine.get_network()(features, y, is_feature=True)[:, 0].numpy()
        # nbi's own log_prob is in scaled parameters; the Jacobian makes it a density in theta.
        return -nll.astype(float) - np.log(self.engine.y_std).sum()

    def _noise(self, x, y):
        return x + self.problem.sigma * np.random.normal(size=x.shape), y

    def _write_simulations(self):
        """Write one file per simulation, the only form in which nbi takes them."""
        os.makedirs(f"{self.folder.name}/given")
        paths = [f"{self.folder.name}/given/{i}.npy" for i in range(len(self.data.x_train))]
        for path, row in zip(paths, self.data.x_train, strict=True):
            np.save(path, row)
        return np.array(paths)


@contextlib.contextmanager
def _silence():
    """Send what nbi prints about every object to nowhere."""
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


if __name__ == "__main__":
    main(Peer)
