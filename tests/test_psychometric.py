"""The example of psychometric functions: its density, its designs, and real sessions."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import betabinom, norm

import nbi_plus as nbi

EXAMPLE = runpy.run_path(
    str(Path(__file__).parents[1] / "examples" / "psychometric.py"), run_name="example"
)
CONTRAST, PRIOR = EXAMPLE["CONTRAST"], EXAMPLE["PRIOR"]


def test_density_is_that_of_the_textbook():
    rng = np.random.default_rng(0)
    n = EXAMPLE["designs"](3, 0)[1]
    k = rng.binomial(n, 0.5)
    theta = np.array([[0.05, 0.1, 0.3, 0.2, 0.4], [0.2, 0.01, 0.05, -0.3, 1.5]])
    engine = nbi.Engine(EXAMPLE["curve"], PRIOR, noise=nbi.BetaBinomialNoise("n", "nu"))
    found = engine.log_likelihood(theta, EXAMPLE["sessions"](n[None], k[None]))
    gamma, lapse, nu, mu, sigma = theta.T[..., None]
    p = gamma + (1 - gamma - lapse) * norm.cdf(CONTRAST, mu, sigma)
    c = 1 / nu**2 - 1
    np.testing.assert_allclose(found, betabinom.logpmf(k, n, c * p, c * (1 - p)).sum(1), rtol=1e-9)


def test_designs_are_those_of_sessions_with_sides_that_are_equal_or_not():
    n = EXAMPLE["designs"](3000, 0)
    assert n.min() >= 1
    left, right = n[:, :4].sum(1), n[:, 5:].sum(1)
    share = [(right[i::3] / (left + right)[i::3]).mean() for i in range(3)]
    assert share == pytest.approx([0.5, 0.2, 0.8], abs=0.01)
    assert n[:, 4].sum() == pytest.approx(n[:, [3, 5]].sum(), rel=0.02)


def test_example_runs():
    truths, found = EXAMPLE["main"](n_sims=400, n_epochs=1, n_sets=3)
    assert truths.shape == (3, 5)
    assert len(found) == 3
    assert all(p.certified or p.flags for p in found)


@pytest.mark.reference
def test_real_sessions_are_certified_and_agree_with_chains(reference_folder):
    from benchmarks.psychometric import chains

    real = np.load(reference_folder / "psychometric" / "datasets.npz")
    some = np.arange(0, 100, 10)
    n, k = real["n_trials"][some], real["n_right"][some]
    engine = EXAMPLE["learned"](2000, 10)
    found = engine.predict_many(EXAMPLE["sessions"](n, k), n_samples=4000)
    assert found.certified.mean() >= 0.8
    one = int(np.argmax(found.certified))
    start = found[one].resample(40, np.random.default_rng(0))
    own = n[one].astype(float), k[one].astype(float)
    draws, tau = chains(real["stimulus"], *own, start, 0)
    assert len(draws) / tau > 500
    off = (found[one].mean() - draws.mean(0)) / draws.std(0)
    assert abs(off).max() < 4 * (tau / len(draws) + 1 / found[one].ess) ** 0.5
    assert abs(found[one].std() / draws.std(0) - 1).max() < 0.15
