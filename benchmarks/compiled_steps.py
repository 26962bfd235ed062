"""Whether compiling pays in training: ``python -m benchmarks.compiled_steps``.

Steps of the sine's network, ResNet-GRU and masked autoregressive flow, on one core: as they are,
with the flow compiled, and with all of it. Printed are CPU milliseconds a step, by turns, and the
CPU seconds that the first two steps took, compilers among them, which find nothing on disk.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import tempfile
import time

import numpy as np
import torch
from scipy.stats import uniform

import nbi_plus as nbi
from nbi_plus.learn.losses import nll
from nbi_plus.learn.optimizer import FlatOptimizer

N_ROWS, N_STEPS, TURNS = 2048, 8, 10


def wave(theta, t):
    phase, amplitude, omega = theta.T[..., None]
    return amplitude * torch.sin(omega * t + phase)


def problem():
    """Return an engine whose network is as good as untrained, latent parameters and data."""
    prior = nbi.Prior(
        {"phase": uniform(0, 6), "amplitude": uniform(1, 4), "omega": uniform(10, 20)}
    )
    t = np.linspace(0, 1, 50)
    engine = nbi.Engine(wave, prior, noise=1.0, device="cpu")
    engine.fit(n_sims=256, n_epochs=1, t=t, truth_test=False)
    rng = np.random.default_rng(1)
    theta = prior.sample(N_ROWS, rng)
    x = wave(torch.as_tensor(theta), torch.as_tensor(t)).numpy() + rng.normal(size=(N_ROWS, 50))
    observed = nbi.Observations.from_arrays(x, t=t).batch()
    return engine.model_.network, torch.as_tensor(prior.to_latent(theta)), observed


class Steps:
    """Training steps of a copy of a network, of which parts are compiled or none."""

    def __init__(self, network, z, batch, parts):
        self.z, self.batch = z, batch
        self.network = copy.deepcopy(network).requires_grad_(True).train()
        self.optimizer = FlatOptimizer(self.network, copy.deepcopy(self.network), 1e-4, 5.0)
        self.features = self._compiled(self.network) if "features" in parts else self.network
        self.loss = self._compiled(nll) if "flow" in parts else nll
        self.n_done = 0

    def __call__(self, size):
        """Take one step."""
        start = self.n_done * size % N_ROWS
        rows, self.n_done = slice(start, start + size), self.n_done + 1
        z, batch = self.z[rows], self.batch.select(rows)
        good = torch.ones(size, dtype=torch.bool)
        loss = self.loss(self.network.flow, z, self.features(batch), good).mean()
        self.optimizer.backward(loss)
        self.optimizer.step(1e-3, loss.detach())
        self.optimizer.follow(0.01)

    def _compiled(self, function):
        return torch.compile(function, dynamic=False)


def cpu_seconds():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def spent(steps, size, n):
    """Return the CPU seconds of n steps."""
    began = cpu_seconds()
    for _ in range(n):
        steps(size)
    return cpu_seconds() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": empty, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        table(options.batch)


def table(sizes):
    """Print a row for each size of a batch and each way."""
    given = problem()
    ways = {"nothing": (), "the flow": ("flow",), "all": ("flow", "features")}
    contenders = {way: Steps(*given, parts) for way, parts in ways.items()}
    print("| batch | compiled | first two steps, CPU s | a step, CPU ms |\n|---|---|---|---|")
    for size in sizes:
        first = {way: spent(steps, size, 2) for way, steps in contenders.items()}
        turns = [
            {way: spent(steps, size, N_STEPS) for way, steps in contenders.items()}
            for _ in range(TURNS)
        ]
        for way in ways:
            ms = 1e3 * np.median([turn[way] for turn in turns]) / N_STEPS
            print(f"| {size} | {way} | {first[way]:.1f} | {ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
