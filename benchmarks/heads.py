"""Densities as heads: held-out log q of each kind after equal processor seconds of training.

    python -m benchmarks.heads --seconds 8

Five problems of 10 000 simulations, one featurizer. The epochs of each training are as many as fit
into the seconds, by the time that three epochs take; the score is of 1000 fresh simulations.
``--muon on`` and ``--muon off`` compare optimizers, after some seconds or ``--epochs``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, uniform

import nbi_plus as nbi

Simulate = Callable[[NDArray, np.random.Generator], NDArray]
HEADS = ("maf", "nsf", "mdn", "fm")
N_SIMS, N_TESTED = 10_000, 1000
T = np.linspace(0, 1, 30)
DESIGN = np.random.default_rng(1).normal(size=(10, 12))


def moons(theta: NDArray, rng: np.random.Generator) -> NDArray:
    """Return crescents whose place is seen but for a sign (two-dimensional)."""
    angle, r = np.pi * (rng.random(len(theta)) - 0.5), 0.1 + 0.01 * rng.normal(size=len(theta))
    x = r * np.cos(angle) + 0.25 - np.abs(theta.sum(1)) / np.sqrt(2)
    return np.stack([x, r * np.sin(angle) + (theta[:, 1] - theta[:, 0]) / np.sqrt(2)], 1)


def sine(theta: NDArray, rng: np.random.Generator) -> NDArray:
    """Return noisy sines of an amplitude, a frequency and a phase."""
    a, f, phase = theta.T[..., None]
    return a * np.sin(2 * np.pi * (f * T + phase)) + 0.3 * rng.normal(size=(len(theta), len(T)))


def squares(theta: NDArray, rng: np.random.Generator) -> NDArray:
    """Return squares, which know no sign: four modes."""
    return np.repeat(theta**2, 2, 1) + 0.2 * rng.normal(size=(len(theta), 4))


def lens(theta: NDArray, rng: np.random.Generator) -> NDArray:
    """Return magnitudes of a point lens."""
    t0, log_u0, log_te = theta.T[..., None]
    square = np.exp(2 * log_u0) + ((T - t0) / np.exp(log_te)) ** 2
    flux = (square + 2) / np.sqrt(square * (square + 4))
    return 2.5 * np.log10(flux) + 0.05 * rng.normal(size=(len(theta), len(T)))


def gaussian(theta: NDArray, rng: np.random.Generator) -> NDArray:
    """Return linear data of ten parameters."""
    return theta @ DESIGN + 0.5 * rng.normal(size=(len(theta), 12))


PROBLEMS: dict[str, tuple[dict, Simulate]] = {
    "two moons": ({"a": uniform(-1, 2), "b": uniform(-1, 2)}, moons),
    "sine": ({"a": uniform(0.5, 1.5), "f": uniform(1, 2), "p": uniform(0, 1)}, sine),
    "four modes": ({"a": norm(0, 1), "b": norm(0, 1)}, squares),
    "point lens": ({"t0": uniform(0.3, 0.4), "u0": uniform(-3, 3), "tE": uniform(-3, 2)}, lens),
    "Gaussian, 10-d": ({f"p{i}": norm(0, 1) for i in range(10)}, gaussian),
}  # fmt: skip


def score(
    problem: str, head: str, seconds: float, n_epochs: int | None, seed: int, muon: bool | None
) -> tuple[float, str]:
    """Return the mean held-out log q in the latent space, and what it took."""
    given, simulate = PROBLEMS[problem]
    prior, rng = nbi.Prior(given), np.random.default_rng(seed)
    theta = prior.sample(N_SIMS + N_TESTED, rng)
    x = simulate(theta, rng)
    noisy = nbi.CustomNoise(lambda model, obs, theta, rng: model)  # noqa: ARG005
    engine = nbi.Engine(None, prior, noise=noisy, featurizer="mlp", flow=head, seed=seed)

    def trained(n_epochs: int) -> float:
        began = time.process_time()
        engine.fit(
            theta[:N_SIMS], x[:N_SIMS], n_epochs=n_epochs, batch_size=256, truth_test=False,
            train={"patience": n_epochs, "muon": muon}, progress=False,
        )  # fmt: skip
        return time.process_time() - began

    if n_epochs is None:
        one, four = trained(1), trained(4)
        n_epochs = max(1, 1 + int((seconds - one) / ((four - one) / 3)))
    took = f"{n_epochs}, {trained(n_epochs):.1f} s"
    tested = theta[N_SIMS:]
    jacobian = prior.log_prob(tested) - prior.log_prob_latent(prior.to_latent(tested))
    return float((engine.log_prob(tested, x[N_SIMS:]) - jacobian).mean()), took


def main() -> None:
    """Print a table in Markdown."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=8.0)
    options.add_argument("--epochs", type=int, help="instead of seconds")
    options.add_argument("--muon", choices=("on", "off"), help="default: as trainings have it")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS)
    options.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    given = options.parse_args()
    muon = {"on": True, "off": False}.get(given.muon)
    budget = given.seconds, given.epochs, given.seed, muon
    print("| problem | " + " | ".join(given.heads) + " |")
    print("|---" * (1 + len(given.heads)) + "|")
    for problem in given.problems:
        found = [score(problem, head, *budget) for head in given.heads]
        cells = " | ".join(f"{-value:.2f} ({n})" for value, n in found)
        print(f"| {problem} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
