"""nbi (PyPI) on a benchmark problem; benchmarks.amortized runs it in nbi's own environment."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile

os.environ.setdefault("MPLBACKEND", "Agg")  # nbi imports pyplot

import numpy as np
import torch
from nbi import NBI
from scipy.stats import uniform

from benchmarks.runner import Clock, Contestant, main

SHM = "/dev/shm"
SCALED_FROM = 5000  # simulations, as in nbi
# Of its demonstration for many objects; smaller ones, or one Gaussian as the base, did worse here.
FLOW = {"n_dims": 3, "flow_hidden": 128, "num_blocks": 5, "n_mog": 4}
FEATURIZER = {
    "type": "resnet-gru",
    "norm": "weight_norm",
    "dim_in": 1,
    "dim_out": 128,
    "depth": 3,
}


class FairNBI(NBI):
    """nbi with its data scaled as its documentation says, and a clock."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.laps = []
        self.clock = Clock()

    def _init_scales(self):
        # nbi 0.4.1 divides the data by the scatter over time of the *mean* curve: 0.04 here, where
        # every phase occurs, so that the network would see values of +-70. Its documentation says
        # "zero mean and unit variance". Handing it scaled data is no way round: it would scale
        # them again.
        n_batches = SCALED_FROM // self.train_loader.batch_size
        batches = list(itertools.islice(self.train_loader, n_batches))
        x, y = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
        self.x_mean, self.x_std = x.mean((0, 2))[:, None], x.std((0, 2))[:, None]
        self.y_mean, self.y_std = y.mean(0, keepdims=True), y.std(0, keepdims=True)

    def save_state_dict(self):
        super().save_state_dict()
        self.laps.append(self.clock.lap(lambda: f"{self.directory}/0/{self.epoch}.pth"))


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
        self.engine.clock = self.clock
        with self.clock.paused():
            paths = self._write_simulations()
        with _silence():
            self.engine.fit(
                x=paths,
                y=self.data.theta_train,
                n_sims=len(paths),  # its smallest learning rate follows from this
                noise=self.x_err,  # drawn afresh whenever a curve is read
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
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


if __name__ == "__main__":
    main(Peer)
