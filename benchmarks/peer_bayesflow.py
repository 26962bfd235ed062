"""BayesFlow (PyPI) on a benchmark problem; benchmarks.amortized runs it in its own environment."""

from __future__ import annotations

import logging
import os

os.environ |= {"KERAS_BACKEND": "torch", "TQDM_DISABLE": "1"}  # read when these are imported

import bayesflow as bf
import keras
import numpy as np
import torch

from benchmarks.problems import stream
from benchmarks.runner import Contestant, main

logging.getLogger("bayesflow").setLevel(logging.WARNING)


class EndOfEpoch(keras.callbacks.Callback):
    """Keeps the weights and the clock of every epoch."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.laps = clock, []

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002 - as keras calls it
        self.laps.append(self.clock.lap(self.model.get_weights))


class Peer(Contestant):
    """A `BasicWorkflow` with the summary network for such data, noise drawn for every batch."""

    distribution = "bayesflow"
    n_weighed = 100  # log_prob summarises the data once for each draw

    def __init__(self, name, problem, data, budget):
        super().__init__(name, problem, data, budget)
        network = "SetTransformer" if problem.is_set else "TimeSeriesNetwork"
        self.summary = getattr(bf.networks, network)
        self.configuration = f"BasicWorkflow, CouplingFlow, {network}, noise as augmentation"

    def fit(self):
        keras.utils.set_random_seed(0)
        problem, rng = self.problem, stream("fixed noise")

        def noisy(batch):
            return batch | {"x": problem.add_noise(batch["x"], rng, batch["theta"])}

        low, high = np.array(problem.low), np.array(problem.high)
        adapter = (
            bf.Adapter()
            .as_time_series("x")
            .constrain("theta", lower=low, upper=high)
            .convert_dtype("float64", "float32")
            .rename("theta", "inference_variables")
            .rename("x", "summary_variables")
        )
        self.workflow = bf.BasicWorkflow(adapter=adapter, summary_network=self.summary())
        end = EndOfEpoch(self.clock)
        self.workflow.fit_offline(
            {"theta": self.data.theta_train, "x": self.data.x_train},
            epochs=self.budget.epochs, batch_size=self.budget.batch, augmentations=noisy,
            callbacks=[end], verbose=0,
        )  # fmt: skip
        self.network = self.workflow.approximator
        self.final = self.network.get_weights()
        return end.laps

    def restore(self, state):
        self.network.set_weights(self.final if state is None else state)

    def log_q(self, theta, x):
        with torch.no_grad():
            found = self.workflow.log_prob({"theta": np.asarray(theta), "x": np.asarray(x)})
        return np.asarray(found, float).ravel()

    def draw(self, x, n):
        theta = self._sample(x[None], n)[0]
        return theta, self.log_q(theta, np.repeat(x[None], n, 0))

    def predict(self, x, n):
        self._sample(x, n)

    def _sample(self, x, n):
        with torch.no_grad():
            found = self.workflow.sample(num_samples=n, conditions={"x": np.asarray(x)})
        return np.asarray(found["theta"], float)


if __name__ == "__main__":
    main(Peer)
