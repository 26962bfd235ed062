"""Laws of noise with outliers, and of Student's distribution function, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts import check_noise
from scipy import stats

from nbi_plus import GaussianNoise, Observations, OutlierNoise
from nbi_plus.problem.noise import noise_from_meta
from nbi_plus.problem.noise.student import log_student_cdf

NAMES = ("p", "w", "s")
CASES = {
    "numbers": OutlierNoise(0.2, 4.0),
    "names": OutlierNoise("p", "w"),
    "inflated": OutlierNoise("p", 3.0, jitter="s", fractional=0.1),
    "sigma": OutlierNoise(0.1, "w", [0.5, 1.0, 2.0]),
}


def problem(name, n=5, mask=None):
    """Return bound noise, model (n, 2, 3), observations and theta (n, 3)."""
    rng = np.random.default_rng(0)
    shape = (n, 2, 3)
    f = rng.uniform(1, 8, shape)
    theta = rng.uniform([0.05, 2.0, 0.2], [0.5, 5.0, 1.5], (n, 3))
    err = None if name == "sigma" else rng.uniform(0.3, 2, shape)
    obs = Observations.from_arrays(np.zeros(shape), err, mask=mask)
    return CASES[name].bind(err is not None, NAMES), f, obs, theta


def law(name, f, obs, theta):
    """Return weights and scipy's distributions of the two parts, each (n, 2, 3)."""
    noise = CASES[name]
    p, w, s = (theta[:, i, None, None] for i in range(3))
    err = np.broadcast_to([0.5, 1.0, 2.0], f.shape) if obs.x_err is None else obs.x_err
    square = err**2 + (s**2 if noise.jitter else 0) + (noise.fractional * f) ** 2
    p = p if noise.fraction == "p" else noise.fraction
    w = w if noise.width == "w" else noise.width
    return (1 - p, stats.norm(f, np.sqrt(square))), (p, stats.norm(f, np.sqrt(square + w**2)))


def mixed(parts, function, x):
    return sum(weight * getattr(part, function)(x) for weight, part in parts)


@pytest.mark.parametrize("name", CASES)
def test_outliers_keep_the_contract(name):
    mask = np.random.default_rng(1).random((5, 2, 3)) < 0.7
    noise, f, obs, theta = problem(name, mask=mask)
    check_noise(noise, f, obs, theta)


@pytest.mark.parametrize("name", CASES)
def test_outliers_equal_scipy(name):
    noise, f, obs, theta = problem(name, n=50)
    data = noise.observe(f, obs, theta, torch.Generator().manual_seed(1))
    parts, x = law(name, f, obs, theta), data.x.numpy()
    expected = np.log(mixed(parts, "pdf", x)).sum((1, 2))
    np.testing.assert_allclose(noise.log_likelihood(theta, f, data), expected, rtol=1e-11)
    below = noise.log_cdf(torch.from_numpy(f), data, torch.from_numpy(theta))
    np.testing.assert_allclose(below, np.log(mixed(parts, "cdf", x)), rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_outlier_draws_follow_their_law(name):
    noise, f, obs, theta = problem(name, n=3000)
    x = noise.augment(f, obs, theta, torch.Generator().manual_seed(1))
    parts = law(name, f, obs, theta)
    assert stats.kstest(mixed(parts, "cdf", x).ravel(), "uniform").pvalue > 1e-3
    variance = sum(weight * part.var() for weight, part in parts)
    chi2 = (x - f) ** 2 / variance
    assert abs(chi2.mean() - 1) < 4 * chi2.std() / np.sqrt(chi2.size)


@pytest.mark.parametrize("fraction", [0.0, 1.0, "p"])
def test_no_outliers_and_nothing_else_are_gaussian(fraction):
    _, f, obs, theta = problem("numbers")
    theta[:, 0] = [0.0, 1.0, 0.0, 1.0, 0.0]
    share = theta[:, 0] if fraction == "p" else np.full(5, fraction)
    f[:, :, 0] += 300.0  # a hundred sigma: what has no weight must not matter there
    noise = OutlierNoise(fraction, 4.0).bind(True, NAMES)
    wide = Observations.from_arrays(obs.x, np.sqrt(obs.x_err**2 + 16 * share[:, None, None]))
    expected = GaussianNoise().log_likelihood(theta, f, wide)
    np.testing.assert_allclose(noise.log_likelihood(theta, f, obs), expected, rtol=1e-12)
    t = torch.from_numpy(theta).requires_grad_()
    value = noise.log_likelihood(t, torch.from_numpy(f), obs).sum()
    if fraction == "p":
        assert torch.isfinite(torch.autograd.grad(value, t)[0]).all()


def test_outliers_have_the_right_gradient():
    noise, f, obs, theta = problem("inflated")
    f, theta = (torch.from_numpy(v).requires_grad_() for v in (f, theta))
    assert torch.autograd.gradcheck(lambda t, m: noise.log_likelihood(t, m, obs), (theta, f))


def test_outliers_survive_their_meta():
    for noise in CASES.values():
        again = noise_from_meta(noise.meta())
        assert again.meta() == noise.meta()
        assert again.fingerprint() == noise.fingerprint()


@pytest.mark.parametrize("make", [
    lambda: OutlierNoise(-0.1, 1.0), lambda: OutlierNoise(1.1, 1.0), lambda: OutlierNoise(0.1, -1),
    lambda: OutlierNoise(0.1, np.nan), lambda: OutlierNoise("q", 1.0).bind(True, NAMES),
    lambda: OutlierNoise(0.1, 1.0).bind(False, NAMES),
])  # fmt: skip
def test_bad_outliers_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


@pytest.mark.parametrize("df", [0.5, 1.0, 2.5, 4.0, 30.0, 1000.0])
def test_student_distribution_function_equals_scipy(df):
    z = np.concatenate([-np.logspace(-6, 4, 200), [0.0], np.logspace(-6, 4, 200)])
    tensor = torch.from_numpy(z).requires_grad_()
    found = log_student_cdf(tensor, df)
    expected = stats.t.logcdf(z, df)
    known = expected > -600  # further out scipy gives -inf
    np.testing.assert_allclose(found.detach()[known], expected[known], rtol=1e-10, atol=1e-14)
    (slope,) = torch.autograd.grad(found.sum(), tensor)
    wanted = np.exp(stats.t.logpdf(z, df)[known] - expected[known])
    np.testing.assert_allclose(slope[known], wanted, rtol=1e-9)
    assert torch.isfinite(slope).all()
