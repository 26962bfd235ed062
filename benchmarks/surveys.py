"""Surveys: objects a second and peak memory, for few objects and many.

``python -m benchmarks.surveys --objects 10000 100000`` simulates light curves of point lenses at
mixed cadences, writes them to a parquet file, and answers them in a process of its own, without a
simulator: the network alone. With ``--ladder N`` N of them climb the whole ladder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import nbi_plus as nbi
from nbi_plus.models.microlensing import point_lens

_BATCH = 5000  # objects that are simulated at once


def prior():
    """Return that of the events."""
    from scipy.stats import loguniform, uniform

    return nbi.Prior({"t0": uniform(20, 60), "u0": loguniform(0.02, 1.0), "tE": loguniform(3, 40)})


def write(path, n_objects, seed):
    """Write a survey: 30 to 200 points over a hundred nights, errors of 1 to 5 %."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, writer = np.random.default_rng(seed), None
    for first in range(0, n_objects, _BATCH):
        n = min(_BATCH, n_objects - first)
        lengths = rng.integers(30, 200, n)
        own = np.repeat(np.arange(n), lengths)
        t = rng.uniform(0, 100, len(own))
        t = t[np.lexsort((t, own))]
        theta = torch.tensor(prior().sample(n, rng)[own])
        flux = np.asarray(point_lens(theta, torch.tensor(t[:, None])))[:, 0]
        error = rng.uniform(0.01, 0.05, n)[own]
        table = pa.table({"id": first + own, "t": t, "flux": flux + error * rng.normal(size=len(t)),
                          "flux_err": error})  # fmt: skip
        writer = pq.ParquetWriter(path, table.schema) if writer is None else writer
        writer.write_table(table, row_group_size=100_000)
    writer.close()


def trained(path, seed):
    """Return an engine of a few thousand simulations at the cadences of a survey."""
    seen = nbi.Observations.read(path)
    seen = seen[np.arange(min(len(seen), 500))]
    engine = nbi.Engine(point_lens, prior(), noise=nbi.GaussianNoise(), seed=seed)
    return engine.fit(5000, n_epochs=5, observations=seen, progress=False)


def peak_mib():
    """Return the most memory that this process had; `getrusage` begins with that of its parent."""
    told = Path("/proc/self/status").read_text().split()
    return int(told[told.index("VmHWM:") + 1]) / 1024


def answer(options):
    """Answer one survey, and print what it took as a line of JSON."""
    simulator = point_lens if options.weigh else None
    engine = nbi.Engine.load(options.engine, simulator)
    start = peak_mib()
    began, cpu = time.perf_counter(), time.process_time()
    summary = engine.predict_survey(options.source, options.out, n_samples=100, progress=False)
    print(json.dumps({
        "objects": summary.n_objects, "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu, "start_mib": start,
        "peak_mib": peak_mib(),
        "weighed": options.weigh, "rungs": summary.rungs, "status": summary.status,
    }))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--ladder", type=int, default=0, help="objects that are weighed, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weigh", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.source is not None:
        answer(options)
        return
    print(f"{'objects':>8} {'a second':>9} {'CPU s':>8} {'start MiB':>10} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write(here / "train.parquet", 500, options.seed + 1)
        trained(here / "train.parquet", options.seed).save(here / "e.nbi")
        asked = [(n, []) for n in options.objects]
        asked += [(options.ladder, ["--weigh"])] if options.ladder else []
        for n, how in asked:
            write(here / "survey.parquet", n, options.seed)
            command = [sys.executable, "-m", "benchmarks.surveys", *how]
            command += ["--source", here / "survey.parquet", "--engine", here / "e.nbi"]
            command += ["--out", here / f"out{n}{len(how)}.parquet"]
            told = subprocess.run(command, check=True, capture_output=True, text=True)
            tell(n, json.loads(told.stdout.splitlines()[-1]))


def tell(n, own):
    """Print what one survey took."""
    figures = f"{n:>8} {n / own['seconds']:>9.0f} {own['cpu']:>8.1f} {own['start_mib']:>10.0f}"
    print(f"{figures} {own['peak_mib']:>9.0f}  {own['status']}")
    for name, rung in own["rungs"].items() if own["weighed"] else ():
        costs = f"{rung['calls']:.0f} calls, {rung['gradients']:.0f} gradients"
        print(
            f"  {name:<12} {rung['objects']:>7.0f} objects, {costs}, {1e3 * rung['seconds']:.0f} ms"
        )


if __name__ == "__main__":
    main()
