"""Run sbi (PyPI) on a benchmark problem; run by benchmarks.amortized inside sbi's own environment."""

from __future__ import annotations

import copy
import time
import warnings

import numpy as np
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

from benchmarks.problems import stream
from benchmarks.runner import Contestant, main


class ClockedNPE(NPE):
    """sbi's NPE that keeps the weights and the clock of every epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.epochs = []
        self.start = time.perf_counter()

    def _summarize_epoch(self, *args, **kwargs):
        super()._summarize_epoch(*args, **kwargs)
        now = time.perf_counter()
        self.epochs.append((now - self.start, copy.deepcopy(self._neural_net.state_dict())))
        self.start += time.perf_counter() - now  # our copy is not sbi's time


class Peer(Contestant):
    """sbi's default: a MAF on the raw data, with one fixed draw of noise per simulation."""

    distribution = "sbi"
    configuration = "NPE(prior), density_estimator='maf'"

    def fit(self):
        torch.manual_seed(0)
        problem, data = self.problem, self.data
        prior = BoxUniform(torch.tensor(problem.low), torch.tensor(problem.high))
        x = problem.add_noise(data.x_train, stream("fixed noise"))
        trainer = ClockedNPE(prior, show_progress_bars=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the epochs ran out before it stopped by itself
            self.network = trainer.append_simulations(_tensor(data.theta_train), _tensor(x)).train(
                training_batch_size=self.budget.batch,
                max_num_epochs=self.budget.epochs - 1,  # it trains one more than it is told
                stop_after_epochs=self.budget.epochs,  # spend the budget; it keeps its best epoch
            )
        self.posterior = trainer.build_posterior(self.network)
        self.final = copy.deepcopy(self.network.state_dict())
        return trainer.epochs

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
        return self.posterior.sample_batched((n,), _tensor(x), show_progress_bars=False)


def _tensor(a):
    return torch.from_numpy(np.asarray(a)).float()


if __name__ == "__main__":
    main(Peer)
