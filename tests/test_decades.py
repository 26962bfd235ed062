"""Fluxes over six decades: a network learns faint and bright objects alike."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import loguniform, uniform

import nbi_plus as nbi

PRIOR = {"flux": loguniform(1e-3, 1e3), "depth": uniform(0.1, 0.6), "when": uniform(3, 4)}
T = np.linspace(0, 10, 40)


def dip(theta, t):
    """A flux (n, L) that falls by a share of itself for a while."""
    flux, depth, when = theta.T[..., None]
    return flux * (1 - depth * torch.exp(-0.5 * (t - when) ** 2))


def test_faint_and_bright_objects_are_learned_alike():
    engine = nbi.Engine(dip, PRIOR, noise=nbi.GaussianNoise(1e-6, fractional=0.05), seed=2)
    engine.fit(n_sims=5000, n_epochs=20, t=T)
    rng = np.random.default_rng(0)
    n = 120
    theta = nbi.Prior(PRIOR).sample(n, rng)
    theta[:, 0] = np.logspace(-2.9, 2.9, n)
    model = dip(torch.tensor(theta), torch.tensor(T)).numpy()
    x = model * (1 + 0.05 * rng.normal(size=model.shape))
    posteriors = engine.predict_many(nbi.Observations.from_arrays(x, t=T), keep=0)
    names = np.array([status.name for status in posteriors.status])
    assert np.isin(names, ["REWEIGHTED", "REFINED"]).mean() > 0.9
    relative = np.abs(posteriors.mean[:, 0] / theta[:, 0] - 1)
    assert np.median(relative) < 0.02
    engine.set_params(ladder=nbi.Ladder(escalate="never"))
    direct = engine.predict_many(nbi.Observations.from_arrays(x, t=T), keep=0)
    each = direct.efficiency.reshape(6, -1).mean(1)  # decade by decade
    assert each.min() > 0.4 * each.max() > 0.04, each
