"""What the runners share: a contestant is trained, judged, reported as JSON. Without torch."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.problems import N_TEST, PROBLEMS, load

N_DRAWS = 1000  # per object, the same for every package
N_TIMED = 100  # objects in each timing of predict


@dataclass(frozen=True)
class Budget:
    """What every package may spend; of n_sims each takes its own validation part, as it likes."""

    problem: str
    n_sims: int
    epochs: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Lap:
    """The end of one epoch."""

    seconds: float  # on the wall since training began
    cpu_seconds: float  # of this process: what the wall shows on an idle machine
    state: Any  # what `Contestant.restore` wants


class Clock:
    """Seconds since it was made, on the wall and of this process, less the pauses."""

    def __init__(self):
        self._start = _now()

    def lap(self, snapshot=lambda: None):
        """Return the lap that ends now, with the state that ``snapshot()`` takes meanwhile."""
        seconds = (_now() - self._start).tolist()
        with self.paused():
            return Lap(*seconds, snapshot())

    @contextlib.contextmanager
    def paused(self):
        """Leave out what happens inside the with block."""
        before = _now()
        try:
            yield
        finally:
            self._start = self._start + _now() - before


class Contestant(ABC):
    """One package: trained once, asked for log q(theta | x) after every epoch, then for posteriors.

    Attributes
    ----------
    distribution : str
        Name of the installed package.
    configuration : str
        Its networks and settings, in one line.
    weighted : bool
        Whether it has importance weights of its own: whether `predict_weighted` can be timed.
    n_weighed : int
        Objects of the test whose draws are weighed here; fewer where densities of draws are slow.
    """

    distribution: str
    configuration: str
    weighted = False
    n_weighed = N_TEST
    simulation_seconds: float | None = None  # for packages that run the simulator themselves

    @property
    def version(self):
        """The version that is installed."""
        return metadata.version(self.distribution)

    def __init__(self, name, problem, data, budget):
        self.name, self.problem, self.data, self.budget = name, problem, data, budget
        self.clock = Clock()  # set anew when `fit` begins

    @abstractmethod
    def fit(self):
        """Train, and return the laps of `self.clock`, one per epoch."""

    @abstractmethod
    def restore(self, state):
        """Take the network of one lap; None is the one that `fit` chose in the end."""

    @abstractmethod
    def log_q(self, theta, x):
        """Return log q(theta_i | x_i) (n,) in the units of theta, of the pairs (n, D), (n, L)."""

    @abstractmethod
    def draw(self, x, n):
        """Return raw draws (k, D) of the posterior of one object x (L,), and their log q (k,).

        Draws outside the prior may be left out: the n - k that are missing count as weight zero.
        """

    @abstractmethod
    def predict(self, x, n):
        """Answer the objects x (m, L) with n unweighted draws each, the fastest way there is."""

    def predict_weighted(self, x, n):
        """Answer the objects x (m, L) with n weighted draws each."""
        raise NotImplementedError(f"{self.distribution} has no importance weights.")


def main(contestant_class):
    """Run one contestant as its command line says, and write the JSON."""
    options, budget = _arguments()
    data = load(options.data).first(budget.n_sims)
    load_before = os.getloadavg()[0]
    contestant = contestant_class(options.name, PROBLEMS[budget.problem], data, budget)
    contestant.clock = Clock()
    laps = contestant.fit()
    whole = contestant.clock.lap()
    load_after = os.getloadavg()[0]
    report = {
        "name": options.name,
        "package": contestant.distribution,
        "version": contestant.version,
        "configuration": contestant.configuration,
        "budget": asdict(budget),
        "machine": _machine() | {"load_before": load_before, "load_after": load_after},
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "simulation_seconds": contestant.simulation_seconds,
        "training_seconds": whole.seconds,
        "training_cpu_seconds": whole.cpu_seconds,
        **_time_predict(contestant),
        # Read here, so that no judging of ours is counted as memory of theirs.
        "peak_rss_mb": _peak_rss_mb(),
        "history": [_validate(contestant, lap) for lap in laps],
        **_judge(contestant),
    }
    Path(options.out).write_text(json.dumps(report, indent=1))


def _validate(contestant, lap):
    contestant.restore(lap.state)
    log_q = contestant.log_q(contestant.data.theta_validation, contestant.data.x_validation)
    return {
        "seconds": lap.seconds,
        "cpu_seconds": lap.cpu_seconds,
        "nll_validation": -float(np.mean(log_q)),
    }


def _judge(contestant):
    """Return what the final network is worth on the objects that nothing has seen."""
    data = contestant.data
    contestant.restore(None)
    log_q_validation = contestant.log_q(data.theta_validation, data.x_validation)
    log_q = contestant.log_q(data.theta_test, data.x_test)
    n = contestant.n_weighed
    pairs = zip(data.x_test[:n], data.theta_test[:n], strict=True)
    weighed = [_weighed(contestant, x, truth) for x, truth in pairs]
    log_weights, below = (np.array(each) for each in zip(*weighed, strict=True))
    top = log_weights.max(1)
    weights = np.exp(log_weights - top[:, None])
    ess = weights.sum(1) ** 2 / (weights**2).sum(1)
    log_evidence = np.log(weights.mean(1)) + top
    ratio = np.exp(log_evidence - data.log_evidence_test[:n])
    inside = np.isfinite(log_weights).mean(1)
    return {
        "nll_validation": -float(np.mean(log_q_validation)),
        "nll_test": -float(np.mean(log_q)),
        "nll_test_error": float(np.std(log_q) / np.sqrt(len(log_q))),
        # The same density, cut at the edge of the prior and normalised again.
        "nll_test_inside_prior": float(np.mean(np.log(inside)) - np.mean(log_q)),
        "draws_outside_prior": 1 - float(inside.mean()),
        "ess_median": float(np.median(ess)),
        "ess_quantile_05": float(np.quantile(ess, 0.05)),
        # 1 within its error if log q is a normalised density in theta that covers the posterior.
        "evidence_ratio": float(ratio.mean()),
        "evidence_ratio_error": float(ratio.std() / np.sqrt(len(ratio))),
        # of plain draws: how often central intervals hold the truth, over objects and parameters
        "coverage": {f"{p:.0%}": float((abs(below - 0.5) <= p / 2).mean()) for p in (0.68, 0.95)},
        "log_evidence": log_evidence.tolist(),
    }


def _weighed(contestant, x, truth):
    """Return log weights (N_DRAWS,), and which shares (D,) of the draws lie below the truth."""
    theta, log_q = contestant.draw(x, N_DRAWS)
    problem = contestant.problem
    log_weights = np.full(N_DRAWS, -np.inf)
    log_weights[: len(theta)] = problem.log_likelihood(theta, x) + problem.log_prior(theta) - log_q
    return log_weights, (theta < truth).mean(0)


def _time_predict(contestant):
    contestant.restore(None)
    ways = {"predict": contestant.predict}
    if contestant.weighted:
        ways["predict_weighted"] = contestant.predict_weighted
    return {way: _rate(function, contestant.data.x_test) for way, function in ways.items()}


def _rate(predict, x):
    predict(x[N_TIMED : N_TIMED + 2], N_DRAWS)  # the first call pays for what is made once
    clock = Clock()
    predict(x[:N_TIMED], N_DRAWS)
    lap = clock.lap()
    return {
        "objects_per_second": N_TIMED / lap.seconds,
        "objects_per_cpu_second": N_TIMED / lap.cpu_seconds,
    }


def _now():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() + children.ru_utime + children.ru_stime
    return np.array([time.perf_counter(), cpu])


def _machine():
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
    }


def _peak_rss_mb():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _arguments():
    parser = argparse.ArgumentParser()
    for name in ("name", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--problem", required=True, choices=sorted(PROBLEMS))
    for name in ("n-sims", "epochs", "batch", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    got = parser.parse_args()
    return got, Budget(got.problem, got.n_sims, got.epochs, got.batch, got.threads)
