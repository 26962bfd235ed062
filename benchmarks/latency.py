"""Latency: what objects use of a budget of time that none of them is content with.

``python -m benchmarks.latency`` answers light curves of point lenses one by one, with gradients and
as a black box, under a gate that nothing passes, and prints for each budget what a call took beside
what was asked for, and what of it each rung took. ``--cpu`` reads the processor's clock instead of
the wall's, for the package, too: on a machine that others use.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import nbi_plus as nbi
from benchmarks import surveys
from nbi_plus.infer.ladder import EnsembleConfig, EnsembleRung, HmcRung
from nbi_plus.models.microlensing import point_lens

NEVER = nbi.Gate(eff_min=1.1, eff_min_mix=1.1, ess_min=1e9)


def black_box(theta, t):
    return point_lens(torch.as_tensor(theta), torch.as_tensor(t)).numpy()


def ladder(seconds):
    """Return the ladder that no object leaves before its time is spent."""
    return nbi.Ladder(
        gate=NEVER, budget=nbi.Budget(seconds=seconds), hmc=HmcRung(ess_target=1e9),
        ensemble=EnsembleRung(sampler=EnsembleConfig(ess_min=1e9)),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.3, 1.0, 3.0, 10.0])
    parser.add_argument("--objects", type=int, default=5)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if options.cpu:
        time.perf_counter = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lenses.parquet"
        surveys.write(path, 100, seed=3)
        seen = nbi.Observations.read(path)
        for name, simulator in (("gradients", point_lens), ("black box", black_box)):
            noise = nbi.GaussianNoise()
            engine = nbi.Engine(simulator, surveys.prior(), noise=noise, n_jobs=1)
            engine.fit(2000, n_epochs=2, observations=seen, progress=False, truth_test=False)
            engine.predict_many(seen[[0]], progress=False)  # what a process does once
            print(f"{name}\n{'asked':>6} {'used (least, most)':>22}  rungs, mean s")
            for seconds in options.seconds:
                tell(engine.set_params(ladder=ladder(seconds)), seen, seconds, options.objects)


def tell(engine, seen, seconds, n_objects):
    """Print what objects use of one budget."""
    used, rungs = [], {}
    for i in range(1, n_objects + 1):
        began = time.perf_counter()
        found = engine.predict_many(seen[[i]], progress=False)
        used.append(time.perf_counter() - began)
        for rung in found.rungs[0]:
            rungs[rung.name] = rungs.get(rung.name, 0.0) + rung.seconds / n_objects
    told = ", ".join(f"{name} {took:.2f}" for name, took in rungs.items())
    print(
        f"{seconds:>6.3g} {np.mean(used):>6.2f} ({min(used):.2f}, {max(used):.2f}){'':>4}  {told}"
    )


if __name__ == "__main__":
    main()
