"""What the runners share: a contestant is trained, judged on the common objects, and reported as JSON; no torch."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.problems import PROBLEMS, load

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


class Contestant(ABC):
    """One package: trained once, asked for log q(theta | x) after every epoch, then for posteriors.

    Attributes
    ----------
    distribution : str
        Name of the installed package.
    configuration : str
        Its networks and settings, in one line.
    """

    distribution: str
    configuration: str
    simulation_seconds: float | None = None  # for packages that run the simulator themselves

    def __init__(self, problem, data, budget):
        self.problem, self.data, self.budget = problem, data, budget

    @abstractmethod
    def fit(self):
        """Train, and return per epoch a pair (training seconds so far, state for `restore`)."""

    @abstractmethod
    def restore(self, state):
        """Take the network of one epoch; None is the one that `fit` chose in the end."""

    @abstractmethod
    def log_q(self, theta, x):
        """Return log q(theta_i | x_i) (n,) in the units of theta, of the pairs (n, D), (n, L)."""

    @abstractmethod
    def draw(self, x, n):
        """Return n raw draws (n, D) of the posterior of one object x (L,) and their log q (n,).

        Draws outside the prior may be left out: `n` minus what comes counts as weight zero.
        """

    @abstractmethod
    def predict(self, x, n):
        """Answer the objects x (m, L) with n unweighted draws each, the fastest way the package has."""

    def predict_weighted(self, x, n):
        """Answer the objects x (m, L) with n weighted draws each; False where a package has no weights."""
        return False


def main(contestant_class):
    """Run one contestant as its command line says, and write the JSON."""
    path, budget, out = _arguments()
    problem = PROBLEMS[budget.problem]
    data = load(path).first(budget.n_sims)
    contestant = contestant_class(problem, data, budget)
    start = time.perf_counter()
    epochs = contestant.fit()
    wall = time.perf_counter() - start
    report = {
        "package": contestant.distribution,
        "version": version(contestant.distribution),
        "configuration": contestant.configuration,
        "budget": asdict(budget),
        "machine": _machine(),
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "simulation_seconds": contestant.simulation_seconds,
        "training_seconds": epochs[-1][0],
        "fit_wall_seconds": wall,
        **_judge(contestant, epochs),
        **_time_predict(contestant),
        "peak_rss_mb": _peak_rss_mb(),
    }
    Path(out).write_text(json.dumps(report, indent=1))


def _judge(contestant, epochs):
    """Return the densities and weights, all outside the timed part."""
    data = contestant.data
    history = []
    for seconds, state in epochs:
        contestant.restore(state)
        log_q = contestant.log_q(data.theta_validation, data.x_validation)
        history.append({"seconds": seconds, "nll_validation": -float(np.mean(log_q))})
    contestant.restore(None)
    log_q = contestant.log_q(data.theta_test, data.x_test)
    log_q_validation = contestant.log_q(data.theta_validation, data.x_validation)
    return {
        "history": history,
        "nll_validation": -float(np.mean(log_q_validation)),
        "nll_test": -float(np.mean(log_q)),
        "nll_test_error": float(np.std(log_q) / np.sqrt(len(log_q))),
        **_weigh(contestant, log_q),
    }


def _weigh(contestant, log_q_truth):
    """Return what importance weights against the exact posterior say of the raw draws."""
    problem, data = contestant.problem, contestant.data
    log_weights = np.full((len(data.x_test), N_DRAWS), -np.inf)
    for row, x in zip(log_weights, data.x_test, strict=True):
        theta, log_q = contestant.draw(x, N_DRAWS)
        target = problem.log_likelihood(theta, x) + problem.log_prior(theta)
        row[: len(theta)] = target - log_q
    top = log_weights.max(1)
    weights = np.exp(log_weights - top[:, None])
    efficiency = weights.sum(1) ** 2 / (weights**2).sum(1) / N_DRAWS
    log_evidence = np.log(weights.mean(1)) + top
    ratio = np.exp(log_evidence - data.log_evidence_test)
    inside = (weights > 0).mean(1)
    # What the same density is worth once it is cut at the prior's edge and normalised again.
    return {
        "nll_test_inside_prior": -float(np.mean(log_q_truth - np.log(inside))),
        "draws_outside_prior": 1 - float(inside.mean()),
        "ess_median": float(np.median(efficiency) * N_DRAWS),
        "ess_quantile_05": float(np.quantile(efficiency, 0.05) * N_DRAWS),
        "evidence_ratio": float(ratio.mean()),
        "evidence_ratio_error": float(ratio.std() / np.sqrt(len(ratio))),
        "log_evidence": log_evidence.tolist(),
    }


def _time_predict(contestant):
    x = contestant.data.x_test[:N_TIMED]
    contestant.predict(x[:2], N_DRAWS)  # the first call pays for what is made once
    seconds = _seconds(contestant.predict, x)
    weighted = None
    if contestant.predict_weighted(x[:2], N_DRAWS) is not False:
        weighted = N_TIMED / _seconds(contestant.predict_weighted, x)
    return {"objects_per_second": N_TIMED / seconds, "objects_per_second_weighted": weighted}


def _seconds(predict, x):
    start = time.perf_counter()
    predict(x, N_DRAWS)
    return time.perf_counter() - start


def _machine():
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def _peak_rss_mb():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--problem", default="sine", choices=sorted(PROBLEMS))
    for name in ("n-sims", "epochs", "batch", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    got = parser.parse_args()
    return got.data, Budget(got.problem, got.n_sims, got.epochs, got.batch, got.threads), got.out
