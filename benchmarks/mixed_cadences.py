"""Microlensing over a survey of mixed cadences: efficiency, certificates, SBC, and the error channel.

    python -m benchmarks.mixed_cadences --n-sims 40000 --epochs 40 --out mixed.json
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from scipy.stats import kstest, loguniform, uniform

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


def lens(theta, t, band):
    """Return the flux of a source magnified by a point lens, (n, L), in two bands."""
    source = torch.where(band == 0, theta[:, 3:4], theta[:, 4:5])
    return source * point_lens(theta[:, :3], t)


def cadences(n: int, seed: int) -> nbi.Observations:
    """Return n objects without a signal: 20 to 400 points of two bands, S/N from 3 to 300."""
    rng = np.random.default_rng(seed)
    t, band, err = [], [], []
    for length in np.exp(rng.uniform(np.log(20), np.log(400), n)).astype(int):
        season = rng.uniform(0.5, 1) * WINDOW  # part of the window has no points at all
        start = rng.uniform(0, WINDOW - season)
        nights = start + season * rng.random(length)
        t.append(np.sort(nights))
        band.append(np.where(rng.random(length) < rng.uniform(0.1, 0.9), "g", "r"))
        noise = 1 / np.exp(rng.uniform(np.log(3), np.log(300)))
        err.append(noise * np.exp(0.3 * rng.normal(size=length)))
    ids = [f"{seed}-{i}" for i in range(n)]
    return nbi.Observations.from_arrays(
        [np.zeros(len(row)) for row in t], err, t=t, band=band, ids=ids
    )


def observe(survey: nbi.Observations, seed: int) -> tuple[nbi.Observations, np.ndarray]:
    """Return the survey with an event in each of its objects, and the truths (N, 5)."""
    from dataclasses import replace

    rng = np.random.default_rng(seed)
    theta = nbi.Prior(PRIOR).sample(len(survey), rng)
    rows = theta[survey.owner]
    t, band = survey.points["t"], survey.points["band"]
    model = lens(torch.as_tensor(rows), torch.as_tensor(t)[:, None], torch.as_tensor(band)[:, None])
    x = model.numpy()[:, 0] + survey.errors[0] * rng.normal(size=len(t))
    return replace(survey, values=x[None]), theta


def engine(featurizer: str = "resnet-gru", seed: int = 0, **options) -> nbi.Engine:
    """Return the engine of the problem."""
    return nbi.Engine(lens, nbi.Prior(PRIOR), noise=nbi.GaussianNoise(), featurizer=featurizer,
                      seed=seed, **options)  # fmt: skip
