"""Leaks: whether answering many times keeps memory, files or threads, and what a survey needs.

``python -m benchmarks.leaks`` prints, as JSON, resident memory while one process answers 1000
objects one by one, open files and threads before and after a fit, predictions, a save and a load,
and the peak of memory of 1000 objects of which none is settled by the network's own draws.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm

import nbi_plus as nbi

MIB = 2**20
N_POINTS = 20
DESIGN = np.stack([np.ones(N_POINTS), np.linspace(-1.0, 1.0, N_POINTS)])
_WARM = 50  # answers until every cache is filled


def status_of(field: str) -> float:
    """Return a figure of this process in MiB, as Linux counts it: VmRSS, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def resident() -> float:
    """Return resident memory in MiB without what the allocator keeps for later: 12 MiB or so."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status_of("VmRSS")


def holdings() -> dict[str, int]:
    """Return how many files and threads this process has."""
    gc.collect()
    threads = len(os.listdir("/proc/self/task"))
    return {"files": len(os.listdir("/proc/self/fd")), "threads": threads,
            "python threads": threading.active_count()}  # fmt: skip


def line(theta: torch.Tensor) -> torch.Tensor:
    """Return straight lines (n, L)."""
    return theta @ torch.as_tensor(DESIGN, dtype=theta.dtype, device=theta.device)


def engine(n_epochs: int, ladder: nbi.Ladder | None = None, noise: float = 0.3) -> nbi.Engine:
    """Return an engine fitted to lines."""
    prior = {"a": norm(0, 1), "b": norm(0, 1)}
    made = nbi.Engine(line, prior, noise=noise, featurizer="mlp", ladder=ladder)
    return made.fit(n_sims=1000, n_epochs=n_epochs, truth_test=False)


def data(n: int) -> np.ndarray:
    """Return data (n, L) of lines."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 2)) @ DESIGN + 0.3 * rng.normal(size=(n, N_POINTS))


def one_by_one(n: int) -> dict[str, float]:
    """Return resident memory after a few answers, and after ``n``."""
    made, seen = engine(5, nbi.Ladder(escalate="never", audit=None)), {}
    for i, x in enumerate(data(n), 1):
        made.predict(x)
        if i in (_WARM, n) or i % 200 == 0:
            seen[str(i)] = resident()
    return seen | {"growth": seen[str(n)] - seen[str(_WARM)]}


def whole_lives(n: int) -> dict[str, dict[str, int]]:
    """Return what is held after one engine's whole life, and after ``n`` more."""
    x = data(1)[0]

    def live() -> None:
        with tempfile.TemporaryDirectory() as folder:
            made = engine(1, nbi.Ladder(escalate="never", audit=None)).set_params(path=folder)
            made.fit(n_sims=200, n_epochs=1, truth_test=False)
            made.predict(x)
            made.save(Path(folder) / "engine.nbi")
            nbi.Engine.load(Path(folder) / "engine.nbi", simulator=line).predict(x)

    live()
    before = holdings()
    for _ in range(n):
        live()
    return {"before": before, "after": holdings()}


def climbing(n: int) -> dict[str, float]:
    """Return memory before, and its peak, of ``n`` objects that all climb the ladder."""
    made = engine(1, noise=0.02)  # hardly trained: its draws miss posteriors as narrow as these
    before = status_of("VmRSS")
    found = made.predict_many(nbi.Observations.from_arrays(data(n)), n_samples=2000, keep=0)
    settled = [rungs[-1].name for rungs in found.rungs]
    return {
        "before": before,
        "peak": status_of("VmHWM"),
        "settled by the network": settled.count("reweight") + settled.count("top up"),
        **{f"last rung {name}": settled.count(name) for name in sorted(set(settled))},
    }


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--predicts", type=int, default=1000)
    parser.add_argument("--lives", type=int, default=3)
    parser.add_argument("--objects", type=int, default=1000, help="that climb; 0 leaves them out")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", nbi.UntrustedWarning)
    told = {"resident MiB": one_by_one(chosen.predicts), "held": whole_lives(chosen.lives)}
    if chosen.objects:
        told["climbing MiB"] = climbing(chosen.objects)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
