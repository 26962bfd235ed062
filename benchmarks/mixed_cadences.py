"""Microlensing over a survey of mixed cadences: certificates, efficiency, SBC, the error channel.

``python -m benchmarks.mixed_cadences`` trains one network on the cadences of 2000 objects (20 to
400 points in two bands, S/N from 3 to 300), answers 2000 events at 2000 other cadences, and prints
what share is certified without chains, the median efficiency, and whether ranks of the truths are
uniform in bins of S/N and of number of points. ``--blind`` trains a second network that does not
see the errors, and compares the held-out losses.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kstest, loguniform, uniform
from torch import nn

import featurizers
import nbi_plus as nbi
from nbi_plus.models.microlensing import point_lens

WINDOW = 200.0  # days
PRIOR = {
    "t0": uniform(20, 160),
    "u0": uniform(0.05, 1.15),
    "tE": loguniform(5, 60),
    "source_g": loguniform(0.3, 3),
    "source_r": loguniform(0.3, 3),
}
N_RANKED = 400  # draws that a truth is ranked among
N_BINS = 4
WIDTH = 64  # of the transformer: cheaper than its default for five parameters, 112


def lens(theta, t, band):
    """Return the flux of a source magnified by a point lens, (n, L), in two bands."""
    source = torch.where(band == 0, theta[:, 3:4], theta[:, 4:5])
    return source * point_lens(theta[:, :3], t)


def cadences(n: int, seed: int) -> nbi.Observations:
    """Return n objects without a signal: 20 to 400 points of two bands, S/N from 3 to 300."""
    rng = np.random.default_rng(seed)
    t, band, err = [], [], []
    for length in np.exp(rng.uniform(np.log(20), np.log(400), n)).astype(int):
        season = rng.uniform(0.5, 1) * WINDOW  # the rest of the window has no points at all
        start = rng.uniform(0, WINDOW - season)
        t.append(np.sort(start + season * rng.random(length)))
        band.append(np.where(rng.random(length) < rng.uniform(0.1, 0.9), "g", "r"))
        level = np.exp(-rng.uniform(np.log(3), np.log(300)))
        err.append(level * np.exp(0.3 * rng.normal(size=length)))
    ids = [f"{seed}-{i}" for i in range(n)]
    return nbi.Observations.from_arrays(
        [np.zeros(len(row)) for row in t], err, t=t, band=band, ids=ids
    )


def observe(survey: nbi.Observations, seed: int) -> tuple[nbi.Observations, np.ndarray]:
    """Return the survey with an event in each of its objects, and the truths (N, 5)."""
    rng = np.random.default_rng(seed)
    theta = nbi.Prior(PRIOR).sample(len(survey), rng)
    points = (torch.as_tensor(v) for v in (theta[survey.owner], *survey.points.values()))
    rows, t, band = next(points), *(v[:, None] for v in points)
    model = lens(rows, t, band).numpy()[:, 0]
    x = model + survey.errors[0] * rng.normal(size=len(model))
    return replace(survey, values=x[None]), theta


class Blind(nn.Module):
    """A featurizer that does not see the errors."""

    def __init__(self, layout: dict[str, tuple[int, ...]], name: str) -> None:
        super().__init__()
        self.hidden = list(layout["x_err"])
        n_channels = layout["mask"][0] + 1
        options = {"time_channel": layout["t"][0], "width": WIDTH} if name == "transformer" else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = featurizers.make(name, n_channels, 400, len(PRIOR), **options)

    def forward(self, x):
        """Map (n, C, L) to (n, F)."""
        x = x.clone()
        x[:, self.hidden] = 0.0
        return self.net(x)


def engine(featurizer: str | nn.Module = "transformer", seed: int = 0) -> nbi.Engine:
    """Return the engine of the problem."""
    if featurizer == "transformer":
        featurizer = {"type": featurizer, "dim_hidden": WIDTH}
    return nbi.Engine(
        lens, nbi.Prior(PRIOR), noise=nbi.GaussianNoise(), featurizer=featurizer, seed=seed
    )


def uniformity(
    posteriors: nbi.Posteriors, theta: np.ndarray, values: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return the least p-value, times the number of tests, over bins of each value."""
    ranks = np.stack([(one.samples < truth).sum(0)
                      for one, truth in zip(posteriors, theta, strict=True)])  # fmt: skip
    jitter = np.random.default_rng(0).random(ranks.shape)  # a rank of n draws is a bin, no point
    u = (ranks + jitter) / (N_RANKED + 1)
    least = {}
    for name, value in values.items():
        edges = np.quantile(value, np.linspace(0, 1, N_BINS + 1)[1:-1])
        bins = np.digitize(value, edges)
        p = [kstest(u[bins == b, d], "uniform").pvalue
             for b in range(N_BINS) for d in range(u.shape[1])]  # fmt: skip
        least[name] = min(1.0, min(p) * len(p))
    return least


def judged(fitted: nbi.Engine, survey: nbi.Observations, theta: np.ndarray) -> dict:
    """Return the figures of a fitted engine over a survey with known truths."""
    began, cpu = time.perf_counter(), time.process_time()
    posteriors = fitted.predict_many(survey, keep=N_RANKED)
    names = [status.name for status in posteriors.status]
    owner = survey.owner
    noise = np.bincount(owner, np.log(survey.errors[0])) / np.bincount(owner)
    values = {"S/N": np.exp(-noise), "points": survey.lengths}
    early = [name in ("REWEIGHTED", "REFINED") for name in names]
    return {
        "objects": len(survey),
        "median efficiency": float(np.median(posteriors.efficiency)),
        "certified before chains": float(np.mean(early)),
        "certified": float(posteriors.certified.mean()),
        "status": dict(Counter(names)),
        "flags": dict(Counter(flag.name for flags in posteriors.flags for flag in flags)),
        "mean simulations": float(posteriors.n_simulated.mean()),
        "SBC, least p times tests": uniformity(posteriors, theta, values),
        "seconds": time.perf_counter() - began,
        "CPU seconds": time.process_time() - cpu,
    }


def main() -> None:
    """Train, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=48_000)
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--featurizer", default="transformer")
    parser.add_argument("--blind", action="store_true", help="compare with a net without errors")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bank = cadences(2000, seed=0)
    cpu = time.process_time()
    fitted = engine(options.featurizer)
    fitted.fit(n_sims=options.n_sims, n_epochs=options.epochs, observations=bank)
    found = {"options": {k: str(v) for k, v in vars(options).items()}}
    found["held-out NLL"] = min(entry["val_nll"] for entry in fitted.history_)
    found["CPU seconds of the fit"] = time.process_time() - cpu
    print(json.dumps(found, indent=1), flush=True)
    if options.blind:
        layout = fitted.model_.network.encoder.config.layout
        other = engine(Blind(layout, options.featurizer))
        other.fit(n_sims=options.n_sims, n_epochs=options.epochs, observations=bank)
        found["held-out NLL, blind"] = min(entry["val_nll"] for entry in other.history_)
    else:
        found |= judged(fitted, *observe(cadences(options.objects, seed=1), seed=2))
    print(json.dumps(found, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
