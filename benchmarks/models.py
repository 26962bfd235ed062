"""Throughput of the shipped forward models: curves of 200 points a second on a CPU.

``python -m benchmarks.models --threads 2 --rows 512`` prints a row for each model, in both
precisions, forward alone and with the gradient of a sum. Blocks of some hundred rows keep a model's
intermediate arrays in the cache. The machine's load stands beneath the table; where others load it,
``--threads 1 --cpu`` counts the seconds of a processor that this process really had.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch

from nbi_plus.models.microlensing import PointLensParallax, point_lens
from nbi_plus.models.radial_velocity import Orbits
from nbi_plus.models.spectrum import EmissionLines, emission_line
from nbi_plus.models.supernova import BazinBands, bazin
from nbi_plus.models.transit import quadratic_transit
from nbi_plus.models.variability import damped_random_walk

LENGTH = 200
T = torch.linspace(0.0, 100.0, LENGTH, dtype=torch.float64)
NORMALS = torch.randn(4096, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BAND = torch.arange(LENGTH) % 3
LENS = [(20, 80), (0.1, 1), (5, 20)]
ECCENTRIC = 2 * [(-0.6, 0.6)]
STAR = [(5, 10), (0, 0.9), (0.1, 0.5), (0.1, 0.4)]  # a, b, u1, u2

# model, ranges of its parameters, and its other arguments
MODELS = {
    "point lens": (point_lens, [*LENS, (1, 2), (0, 1)], (T,)),
    "point lens, parallax": (
        PointLensParallax(269.0, -29.0, t0_par=50.0, offset=2457000.0),
        [*LENS, *2 * [(-0.3, 0.3)], (1, 2), (0, 1)],
        (T,),
    ),
    "Bazin": (bazin, [(20, 80), (1, 5), (10, 30), (1, 2), (0, 1)], (T,)),
    "Bazin, 3 bands": (
        BazinBands(3),
        [(20, 80), (1, 5), (10, 30), *3 * [(1, 2)]],
        (T, BAND),
    ),
    "emission line": (
        emission_line,
        [(1, 2), (20, 80), (1, 5), (1, 2), (0, 1)],
        (T,),
    ),
    "3 emission lines": (
        EmissionLines((20.0, 40.0, 60.0), resolution=100.0),
        [(0, 0.3), (100, 3000), *3 * [(1, 2)], (0, 1), (0, 1)],
        (T,),
    ),
    "radial velocity": (Orbits(), [(5, 50), (0, 10), *ECCENTRIC, (1, 10)], (T,)),
    "transit, 6 % in": (
        quadratic_transit,
        [(45, 55), (100, 200), (0.05, 0.15), *STAR],
        (T,),
    ),
    "transit, 50 % in": (
        quadratic_transit,
        [(45, 55), (900, 1600), (0.05, 0.15), *STAR],
        (T,),
    ),
    "transit, eccentric": (
        quadratic_transit,
        [(45, 55), (100, 200), (0.05, 0.15), *STAR, *ECCENTRIC],
        (T,),
    ),
    "damped random walk": (
        damped_random_walk,
        [(0, 1), (1, 2), (3, 30)],
        (T, NORMALS),
    ),
}


def setting(name, n, dtype):
    """Return a model and all its arguments."""
    f, ranges, others = MODELS[name]
    low, high = np.array(ranges, float).T
    theta = np.random.default_rng(0).uniform(low, high, (n, len(low)))
    coords = [v[:n] if v.ndim == 2 else v for v in others]
    coords = [v.to(dtype) if v.is_floating_point() else v for v in coords]
    return f, torch.tensor(theta, dtype=dtype), coords


def rate(call, n, seconds, clock):
    """Return the best of 5 rates of n rows a call."""
    call()
    start = clock()
    call()
    repeats = max(1, int(seconds / (clock() - start)))
    best = np.inf
    for _ in range(5):
        start = clock()
        for _ in range(repeats):
            call()
        best = min(best, (clock() - start) / repeats)
    return n / best


def measure(name, n, dtype, seconds, clock):
    """Return curves a second, forward and with a gradient."""
    f, theta, coords = setting(name, n, dtype)
    leaf = theta.clone().requires_grad_()

    def forward():
        with torch.no_grad():
            f(theta, *coords)

    def both():
        torch.autograd.grad(f(leaf, *coords).sum(), leaf)

    return rate(forward, n, seconds, clock), rate(both, n, seconds, clock)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each of 5 timings")
    parser.add_argument("--cpu", action="store_true", help="count the seconds of processors")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    torch.set_num_threads(options.threads)
    before, time_of = os.getloadavg()[0], "a processor" if options.cpu else "the clock"
    print("| thousand curves/s | float64 | with gradient | float32 | with gradient |")
    print("|---|---|---|---|---|")
    for name in MODELS:
        rates = [
            r / 1e3
            for dtype in (torch.float64, torch.float32)
            for r in measure(name, options.rows, dtype, options.seconds, clock)
        ]
        print(f"| {name} | " + " | ".join(f"{r:.0f}" for r in rates) + " |", flush=True)
    print(
        f"\n{options.threads} threads, time of {time_of}, blocks of {options.rows} rows, "
        f"torch {torch.__version__}, load {before:.1f} and then {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
