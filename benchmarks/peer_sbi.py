"""sbi (PyPI) on a benchmark problem; benchmarks.amortized runs it in sbi's own environment."""

from __future__ import annotations

import copy
import tempfile
import warnings

import numpy as np
import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import CNNEmbedding
from sbi.utils import BoxUniform
from sbi.utils.tracking import TensorBoardTracker
from torch.utils.tensorboard import SummaryWriter

from benchmarks.problems import stream
from benchmarks.runner import N_DRAWS, Clock, Contestant, main

CHUNK = 10  # objects sampled together
CNN = {
    "num_conv_layers": 3,
    "out_channels_per_layer": [32, 64, 128],
    "num_linear_units": 128,
    "output_dim": 64,
}


class ClockedNPE(NPE):
    """sbi's NPE that keeps the weights and the clock of every epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.laps = []
        self.clock = Clock()

    def _summarize_epoch(self, *args, **kwargs):
        super()._summarize_epoch(*args, **kwargs)
        self.laps.append(self.clock.lap(lambda: copy.deepcopy(self._neural_net.state_dict())))


class Peer(Contestant):
    """sbi as it comes ("sbi"), and the best of the variants tried ("sbi-cnn").

    Both have one draw of noise per simulation, sbi's standard way: it takes pairs, no noise model.
    """

    distribution = "sbi"

    def __init__(self, name, problem, data, budget):
        super().__init__(name, problem, data, budget)
        self.configuration = "density_estimator='maf'"
        if name == "sbi-cnn":
            self.configuration = f"density_estimator=posterior_nn('nsf', CNNEmbedding({CNN}))"

    def fit(self):
        torch.manual_seed(0)
        problem, data = self.problem, self.data
        prior = BoxUniform(torch.tensor(problem.low), torch.tensor(problem.high))
        x = problem.add_noise(data.x_train, stream("fixed noise"), data.theta_train)
        self.folder = tempfile.TemporaryDirectory()  # else its logs go to the working directory
        trainer = ClockedNPE(
            prior,
            density_estimator=self._network(),
            show_progress_bars=False,
            tracker=TensorBoardTracker(SummaryWriter(self.folder.name)),
        )
        trainer.clock = self.clock
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the epochs ran out before it stopped by itself
            self.network = trainer.append_simulations(_tensor(data.theta_train), _tensor(x)).train(
                training_batch_size=self.budget.batch,
                max_num_epochs=self.budget.epochs - 1,  # it trains one more than it is told
                stop_after_epochs=self.budget.epochs,  # spend the budget; it keeps its best epoch
            )
        self.posterior = trainer.build_posterior(self.network)
        self.network = self.posterior.posterior_estimator  # build_posterior has made a copy
        self.final = copy.deepcopy(self.network.state_dict())
        with self.clock.paused():
            self.way = self._fastest_way()
        return trainer.laps

    def restore(self, state):
        self.network.load_state_dict(self.final if state is None else state)

    def log_q(self, theta, x):
        with torch.no_grad():
            log_q = self.network.log_prob(_tensor(theta)[None], condition=_tensor(x))
        return log_q[0].numpy().astype(float)

    def draw(self, x, n):
        x = _tensor(x)[None]
        with torch.no_grad():
            theta = self.network.sample(torch.Size([n]), condition=x)
            log_q = self.network.log_prob(theta, condition=x)
        return theta[:, 0].numpy().astype(float), log_q[:, 0].numpy().astype(float)

    def predict(self, x, n):
        self.way(_tensor(x), n)

    def _fastest_way(self):
        """Return the faster of sbi's two ways here: that depends on the network and its leakage."""
        x = _tensor(self.data.x_validation[: 2 * CHUNK])
        seconds = {}
        for way in (self._one_by_one, self._in_chunks):
            clock = Clock()
            way(x, N_DRAWS)
            seconds[way] = clock.lap().cpu_seconds
        return min(seconds, key=seconds.get)

    def _one_by_one(self, x, n):
        for row in x:
            self.posterior.sample((n,), row, show_progress_bars=False)

    def _in_chunks(self, x, n):
        for rows in x.split(CHUNK):
            self.posterior.sample_batched((n,), rows, show_progress_bars=False)

    def _network(self):
        if self.name == "sbi-cnn":
            embedding = CNNEmbedding((self.problem.n_points,), **CNN)
            return posterior_nn("nsf", embedding_net=embedding)
        return "maf"


def _tensor(a):
    return torch.from_numpy(np.asarray(a)).float()


if __name__ == "__main__":
    main(Peer)
