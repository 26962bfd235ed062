"""Throughput and memory of this package alone, on a CPU or a GPU.

``python -m benchmarks.throughput --device cpu --objects 2000 10000`` prints training simulations/s,
objects/s of ``predict_many`` with and without weights (of CPU time on a CPU), and the peak memory
after each number of objects (each in a process of its own). ``--profile`` counts copies between
host and device in the training loop.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import uniform

import nbi_plus as nbi
from benchmarks import problems


def wave(theta, t):
    phase, amplitude, omega = theta.T[..., None]
    return amplitude * torch.sin(omega * t + phase)


def trained(device, epochs, seed=0):
    """Return an engine, its training rate in simulations/s, and the grid."""
    t = np.linspace(0, 1, 50)
    sine = problems.Sine()
    sides = zip(sine.labels, sine.low, sine.high, strict=True)
    prior = nbi.Prior({name: uniform(low, high - low) for name, low, high in sides})
    engine = nbi.Engine(wave, prior, noise=1.0, device=device, seed=seed)
    engine.fit(n_sims=20_000, n_epochs=epochs, t=t)
    seconds = [h["seconds"] for h in engine.history_[1:]]  # the first epoch warms up
    return engine, 18_000 / np.median(seconds), t


def survey(engine, t, n, seed=1):
    rng = np.random.default_rng(seed)
    theta = torch.as_tensor(engine.prior_.sample(n, rng))
    x = wave(theta, torch.as_tensor(t)).numpy() + rng.normal(size=(n, len(t)))
    return nbi.Observations.from_arrays(x, t=t)


def measure(device, epochs, n_objects, n_samples):
    engine, rate, t = trained(device, epochs)
    objects = survey(engine, t, n_objects)
    engine.predict_many(objects[:64], n_samples=n_samples, keep=0)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    clock = time.process_time if device == "cpu" else time.perf_counter  # others wait for a device

    def objects_per_second(own, keep):
        start = clock()
        posteriors = own.predict_many(objects, n_samples=n_samples, keep=keep)
        return posteriors, n_objects / (clock() - start)

    posteriors, weighted = objects_per_second(engine, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"# {n_objects} objects weighted, peak {peak:.0f} MiB", flush=True)
    bare = nbi.Engine(None, engine.prior, noise=1.0, device=device)
    bare.fitted_ = replace(engine.fitted_, simulator=None)
    _, unweighted = objects_per_second(bare, 0)
    _, kept = objects_per_second(bare, None)
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "objects": n_objects,
        "draws, weighted": max(n_samples, nbi.Ladder().n_draws),
        "draws, unweighted": n_samples,
        "training simulations/s": round(rate),
        "objects/s, weighted": round(weighted, 1),
        "objects/s, unweighted": round(unweighted, 1),
        "objects/s, unweighted, all draws kept": round(kept, 1),
        "certified": round(float(posteriors.certified.mean()), 3),
        "peak MiB before": round(base),
        "peak MiB, weighted": round(peak),
        "peak GPU MiB": round(torch.cuda.max_memory_allocated() / 2**20) if device == "cuda" else 0,
    }


def profile(device):
    """Print the operations of one training epoch that copy between host and device."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        trained(device, 3)
    copies = [e for e in profiler.key_averages() if "Memcpy" in e.key or e.key == "aten::item"]
    for event in copies:
        print(f"{event.key}: {event.count} calls")
    print(f"training steps: {3 * (18_000 // 128)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--objects", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--draws", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=4, help="at least 2")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.profile:
        return profile(options.device)
    if options.one:
        found = measure(options.device, options.epochs, options.one, options.draws)
        return print(json.dumps(found))
    for n in options.objects:  # a process each: peak memory is of the process
        command = [sys.executable, "-m", "benchmarks.throughput", "--device", options.device]
        command += ["--one", str(n), "--draws", str(options.draws), "--epochs", str(options.epochs)]
        subprocess.run(command, check=True)
    return None


if __name__ == "__main__":
    main()
