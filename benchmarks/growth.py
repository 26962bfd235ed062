"""How cost and memory grow: with objects, points, parameters, and lengths of light curves.

``python -m benchmarks.growth`` prints a row for each size: CPU milliseconds, their ratio to the row
before and whether the law allows it, and memory. Every row is a process of its own with one thread,
whose peak of resident memory Linux counts (``VmHWM``) while the row is timed: in all, and above
what stood there after a first small call. What an object costs must not depend on how many there
are or how many lengths they have, and what a point costs not on how many there are, all within
20 %: falling is allowed. With D parameters a fit may grow as D squared, as the covariances do that
it fits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.infer.proposals.mixture import MixtureConfig, fit_mixture
from nbi_plus.infer.weights.summary import effective_sample_size
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.target import Target

SLACK = 1.2  # what a ratio may be above the law
TURNS = 5  # of which the quickest counts
N_DRAWS = 100  # of each unweighted answer
N_WEIGHED = 1000  # of each object whose draws are weighed
N_WARM = 200  # objects of a first call, whose memory is not counted


@dataclass(frozen=True)
class Part:
    """A part of the work, its sizes, and how its cost may grow.

    Attributes
    ----------
    make : callable
        ``make(size)`` returns what is timed, called with a size or less, and how many units of
        cost one call has.
    unit : str
        What the milliseconds are of.
    sizes : tuple of int
    power : int
        With which power of the size the cost of a unit may grow.
    turns : int
    """

    make: Callable
    unit: str
    sizes: tuple[int, ...]
    power: int = 0
    turns: int = TURNS


@dataclass(frozen=True)
class Cost:
    """What one row came to: milliseconds of a unit, MiB at the peak and before."""

    ms: float
    peak: float
    before: float


def wave(theta, t):
    phase, amplitude, omega = theta.T[..., None]
    return amplitude * torch.sin(omega * t + phase)


PRIOR = nbi.Prior({"phase": uniform(0, 6), "amplitude": uniform(1, 4), "omega": uniform(10, 20)})


def curves(n, n_points, seed):
    """Return parameters (n, 3) and noisy sines on one grid."""
    rng = np.random.default_rng(seed)
    theta, t = PRIOR.sample(n, rng), np.linspace(0, 1, n_points)
    x = wave(torch.as_tensor(theta), torch.as_tensor(t)).numpy()
    return theta, nbi.Observations.from_arrays(x + rng.normal(size=x.shape), t=t)


def ragged(lengths, seed):
    """Return noisy sines at times of their own, so many points each."""
    rng = np.random.default_rng(seed)
    theta = torch.as_tensor(PRIOR.sample(len(lengths), rng))
    t = [np.sort(rng.random(n)) for n in lengths]
    x = [wave(one[None], torch.as_tensor(own))[0].numpy() + rng.normal(size=len(own))
         for one, own in zip(theta, t, strict=True)]  # fmt: skip
    return nbi.Observations.from_arrays(x, t=t)


def unweighted(engine, objects):
    """Return the same network without its simulator, answering so many of the objects."""
    bare = nbi.Engine(None, PRIOR, noise=1.0, device="cpu")
    bare.fitted_ = replace(engine.fitted_, simulator=None)

    def call(n):  # a slice would be a copy
        some = objects[:n] if n < len(objects) else objects
        return bare.predict_many(some, n_samples=N_DRAWS, keep=0)

    return call


def network(**data):
    """Return an engine whose network is as good as untrained."""
    engine = nbi.Engine(wave, PRIOR, noise=1.0, device="cpu")
    return engine.fit(n_sims=256, n_epochs=1, truth_test=False, **data)


# --- parts ---------------------------------------------------------------------------------------


def objects(size):
    """Unweighted answers of 100 draws to objects of 50 points, of which the summaries are kept."""
    many = curves(size, 50, seed=1)[1]
    return unweighted(network(t=many.points["t"]), many), size


def lengths(size):
    """Unweighted answers to 400 objects of 250 points on average, with so many distinct lengths."""
    own = np.resize(np.linspace(51, 450, size).round().astype(int) if size > 1 else [250], 400)
    many = ragged(own, seed=1)
    return unweighted(network(observations=ragged([250] * 20, seed=2)), many), len(many)


def target(size):
    """Log posterior densities of 1000 draws for 4 objects of so many points."""
    batch = curves(4, size, seed=1)[1].batch()
    noise = nbi.GaussianNoise(1.0).bind(False, PRIOR.names)
    own = Target(PRIOR, bind_simulator(wave, PRIOR, batch), noise, batch)
    z = torch.randn(4, N_WEIGHED, 3, dtype=torch.float64, generator=generator())
    index = torch.arange(4)
    return lambda n: own.log_prob(z[:, :n], index), 4 * N_WEIGHED * size


def features(size):
    """Features of 16 objects of so many points, by the default network."""
    batch = curves(16, size, seed=1)[1].batch()
    own = network(t=batch.coords["t"].numpy()).model_.network
    return lambda n: own.features(batch.select(slice(0, n))), 16 * size


def weighted(size):
    """Weighted answers of 2048 draws to 8 objects of so many points, by the network alone."""
    many = curves(8, size, seed=1)[1]
    engine = network(t=many.points["t"])
    engine.ladder = nbi.Ladder(escalate="never", audit=None)
    return lambda n: engine.predict_many(many[:n], keep=0), 8 * size


def fit(size):
    """Fit mixtures of 4 components to 1000 draws of 16 objects."""
    z, weights = draws(size)
    config = MixtureConfig(n_components=4)
    return lambda n: fit_mixture(z[:n], weights[:n], torch.arange(16)[:n], config, 0, "fit"), 16


def weigh(size):
    """Draw 1000 times from mixtures of 4 components for 16 objects, and weigh the draws."""
    z, weights = draws(size)
    found = fit_mixture(z, weights, torch.arange(16), MixtureConfig(n_components=4), 0, "fit")
    prior = nbi.Prior({f"p{i}": norm(0, 1) for i in range(size)})
    batch = nbi.Observations.from_arrays(np.zeros((16, 50))).batch()
    columns = torch.randn(size, 50, dtype=torch.float64, generator=generator())
    noise = nbi.GaussianNoise(1.0).bind(False, prior.names)
    simulator = bind_simulator(lambda theta: theta @ columns, prior, batch)
    own = Target(prior, simulator, noise, batch)

    def call(n):
        index = torch.arange(16)[:n]
        fresh = found.select(index).draw(index, N_WEIGHED, 1, "weigh")
        log_weights = own.log_prob(fresh, index) - found.select(index).log_prob(fresh)
        return effective_sample_size(log_weights)

    return call, 16


def draws(n_dim):
    """Return draws of two correlated normals for 16 objects, all of the same weight."""
    rng = generator()
    root = torch.randn(16, n_dim, n_dim, dtype=torch.float64, generator=rng) / n_dim**0.5
    z = torch.randn(16, N_WEIGHED, n_dim, dtype=torch.float64, generator=rng) @ root
    z[:, ::2] += 2
    return z, torch.full((16, N_WEIGHED), 1 / N_WEIGHED, dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


POINTS, DIMS = (50, 500, 5000), (2, 5, 10, 20)
PARTS = {
    "objects": Part(objects, "an object", (1000, 10_000, 100_000), turns=1),
    "target": Part(target, "a point", POINTS),
    "features": Part(features, "a point", POINTS),
    "weighted": Part(weighted, "a point", POINTS),
    "fit": Part(fit, "an object", DIMS, power=2),
    "weigh": Part(weigh, "an object", DIMS, power=2),
    "lengths": Part(lengths, "an object", (1, 20, 400)),
}


# --- measuring -----------------------------------------------------------------------------------


def measure(name, size):
    """Return what one row costs, in this process."""
    part = PARTS[name]
    call, n_units = part.make(size)
    call(N_WARM)
    before, seconds = memory("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is there now
    for _ in range(part.turns):
        began = time.process_time()
        call(max(size, N_WEIGHED))
        seconds.append(time.process_time() - began)
    return Cost(1e3 * min(seconds) / n_units, memory("VmHWM"), before)


def memory(figure):
    """Return a figure of this process in MiB, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(figure)).split()[1]) / 1024


def in_a_process(name, size):
    command = [sys.executable, "-m", "benchmarks.growth", "--one", name, str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def table(name, sizes):
    """Print the rows of one part."""
    part, before = PARTS[name], None
    for size in sizes:
        cost, ratio, law = in_a_process(name, size), "", ""
        if before is not None:
            grown = cost.ms / before[1].ms
            allowed = SLACK * (size / before[0]) ** part.power
            ratio, law = f"{grown:.2f}", "yes" if grown <= allowed else "NO"
        print(f"| {name} | {size} | {cost.ms:.3g} of {part.unit} | {ratio} | {law} | "
              f"{cost.peak:.0f} | {cost.peak - cost.before:.0f} |", flush=True)  # fmt: skip
        before = size, cost


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--most", type=int, default=100_000, help="leave larger sizes out")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        return print(json.dumps(asdict(measure(options.one[0], int(options.one[1])))))
    for name in options.parts:
        print(f"# {name}: {PARTS[name].make.__doc__}", flush=True)
    print("| part | size | CPU ms | ratio | within the law | peak / MiB | above the start / MiB |")
    print("|---|---|---|---|---|---|---|")
    for name in options.parts:
        table(name, [size for size in PARTS[name].sizes if size <= options.most])
    return None


if __name__ == "__main__":
    main()
