"""Laws of upper limits: what is too faint counts with the probability of being so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from contracts import check_noise
from scipy import stats

from nbi_plus import (
    GaussianNoise,
    Observations,
    OutlierNoise,
    PoissonNoise,
    StudentTNoise,
    UpperLimits,
)
from nbi_plus.problem.noise import noise_from_meta

NAMES = ("s", "p")
INNER = {
    "gaussian": GaussianNoise(),
    "jitter": GaussianNoise(jitter="s", fractional=0.1),
    "student": StudentTNoise(4.0),
    "outliers": OutlierNoise("p", 3.0),
    "sigma": GaussianNoise(0.7),
}


def problem(name, n=5, n_sigma=3.0, mask=None, length=6):
    """Return bound noise, model (n, 1, L) around the limit, observations and theta (n, 2)."""
    rng = np.random.default_rng(0)
    shape = (n, 1, length)
    err = None if name == "sigma" else rng.uniform(0.3, 1.0, shape)
    f, theta = rng.uniform(0, 4, shape), rng.uniform(0.2, 0.6, (n, 2))
    flags = np.zeros((n, length), bool)
    obs = Observations.from_arrays(np.zeros(shape), err, mask=mask, upper_limit=flags)
    return UpperLimits(INNER[name], n_sigma).bind(err is not None, NAMES), f, obs, theta


def seen(noise, f, obs, theta, seed=0):
    return noise.observe(f, obs, theta, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", INNER)
def test_limits_keep_the_contract(name):
    mask = np.random.default_rng(1).random((5, 1, 6)) < 0.7
    noise, f, obs, theta = problem(name, mask=mask)
    check_noise(noise, f, obs, theta)


@pytest.mark.parametrize("name", ["gaussian", "student"])
def test_limits_equal_scipy(name):
    noise, f, obs, theta = problem(name, n=50)
    data = seen(noise, f, obs, theta)
    law = stats.norm(f, obs.x_err) if name == "gaussian" else stats.t(4.0, f, obs.x_err)
    x, flagged = data.x.numpy(), data.coords["upper_limit"].numpy()[:, None]
    assert 0.2 < flagged.mean() < 0.8
    expected = np.where(flagged, law.logcdf(x), law.logpdf(x)).sum((1, 2))
    np.testing.assert_allclose(noise.log_likelihood(theta, f, data), expected, rtol=1e-10)


@pytest.mark.parametrize("name", INNER)
def test_limit_and_detections_have_probability_one(name):
    noise, f, obs, theta = problem(name, n=1, length=1)
    bar = 0.7 if obs.x_err is None else obs.x_err.item()
    limit = 3.0 * bar
    u = np.linspace(0, 20, 20_001)
    x, width = limit + np.sinh(u), np.cosh(u) * (u[1] - u[0])
    width[0] /= 2
    x, flags = np.append(x, limit), np.append(np.zeros(len(x), bool), True)
    err = None if obs.x_err is None else np.full((len(x), 1), bar)
    data = Observations.from_arrays(x[:, None], err, upper_limit=flags[:, None])
    n = len(x)
    density = np.exp(noise.log_likelihood(np.repeat(theta, n, 0), np.repeat(f, n, 0), data))
    assert (density * np.append(width, 1.0)).sum() == pytest.approx(1, abs=1e-5)


def test_draws_fall_below_the_limit_as_often_as_is_claimed():
    noise, f, obs, theta = problem("gaussian", n=3000)
    data = seen(noise, f, obs, theta)
    flagged = data.coords["upper_limit"].numpy()
    p = stats.norm(f, obs.x_err).cdf(3 * obs.x_err)[:, 0]
    assert abs((flagged - p).sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    law, x = stats.norm(f, obs.x_err), data.x.numpy()
    pit = law.sf(x) / law.sf(3 * obs.x_err)  # of the detections, given that they are
    assert stats.kstest(pit[:, 0][~flagged], "uniform").pvalue > 1e-3
    measured = noise.augment(f, obs, theta, torch.Generator().manual_seed(0))[:, 0]
    limit = 3 * obs.x_err[:, 0]
    assert np.array_equal(flagged, measured < limit)
    np.testing.assert_allclose(data.x[:, 0], np.where(flagged, limit, measured))


def test_limits_work_in_the_far_tail():
    obs = Observations.from_arrays([[1.0]], 0.1, upper_limit=[[True]])
    f = torch.tensor([[[1.0 + 0.1 * 1e4]]], dtype=torch.float64, requires_grad=True)
    value = UpperLimits(GaussianNoise()).log_likelihood(torch.zeros(1, 1), f, obs)
    assert value.item() == pytest.approx(stats.norm.logcdf(-1e4), rel=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), f)
    assert slope.item() == pytest.approx(-1e5, rel=1e-6)  # -z / s, to leading order


@pytest.mark.parametrize("name", ["jitter", "student", "outliers"])
def test_limits_have_the_right_gradient(name):
    noise, f, obs, theta = problem(name)
    data = seen(noise, f, obs, theta)
    f, theta = (torch.from_numpy(v).requires_grad_() for v in (f, theta))
    assert torch.autograd.gradcheck(lambda t, m: noise.log_likelihood(t, m, data), (theta, f))


def test_data_without_flags_are_detections():
    _, f, obs, theta = problem("gaussian")
    bare = Observations.from_arrays(obs.x, obs.x_err)
    for n_sigma in (5.0, None):
        found = UpperLimits(GaussianNoise(), n_sigma).log_likelihood(theta, f, bare)
        own = GaussianNoise().log_likelihood(theta, f, bare)
        np.testing.assert_allclose(found, own, rtol=1e-14)
    with pytest.raises(ValueError, match=r"must have the coordinate 'upper_limit'.*Give upper"):
        seen(UpperLimits(GaussianNoise()), f, bare, theta)
    free = seen(UpperLimits(GaussianNoise(), None), f, bare, theta)
    assert not free.coords


def test_a_fixed_pattern_of_limits_is_kept():
    _, f, obs, theta = problem("gaussian", n=50)
    flags = np.random.default_rng(2).random((50, 6)) < 0.3
    limits = np.random.default_rng(3).uniform(1, 5, (50, 1, 6))
    real = Observations.from_arrays(limits, obs.x_err, upper_limit=flags)
    noise = UpperLimits(GaussianNoise(), None)
    data = seen(noise, f, real, theta)
    assert np.array_equal(data.coords["upper_limit"], flags)
    assert np.array_equal(data.x[:, 0][flags], limits[:, 0][flags])
    pit = stats.norm(f, obs.x_err).cdf(data.x)[:, 0][~flags]
    assert stats.kstest(pit, "uniform").pvalue > 1e-3
    shared = Observations.from_arrays(limits, obs.x_err, upper_limit=flags[0])
    again = seen(noise, f, shared, theta)
    assert np.array_equal(again.x[:, 0][:, flags[0]], limits[:, 0][:, flags[0]])


def test_limits_take_part_in_the_p_value():
    noise, f, obs, theta = problem("gaussian", n=200)
    rng = torch.Generator().manual_seed(1)
    data = seen(noise, f, obs, theta)
    t, f = torch.from_numpy(theta), torch.from_numpy(f)
    p = torch.stack([noise.p_value(t, f, data, rng) for _ in range(100)]).mean(0)
    assert stats.kstest(p.numpy(), "uniform").pvalue > 1e-3
    wrong = replace(data, x=data.x + 10 * data.x_err)
    detected = ~data.coords["upper_limit"].all(1)
    assert noise.p_value(t, f, wrong, rng)[detected].mean() < 0.01


def test_limits_survive_their_meta():
    for inner in INNER.values():
        noise = UpperLimits(inner, None)
        again = noise_from_meta(noise.meta())
        assert again.meta() == noise.meta()
        assert again.fingerprint() == noise.fingerprint() != UpperLimits(inner).fingerprint()


def test_bad_limits_are_refused():
    with pytest.raises(TypeError, match="must have independent points"):
        UpperLimits(PoissonNoise())
    for n_sigma in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="n_sigma must"):
            UpperLimits(GaussianNoise(), n_sigma)
    two = Observations.from_arrays(np.zeros((1, 2, 3)), 1.0, upper_limit=[False] * 3)
    with pytest.raises(ValueError, match="one channel"):
        seen(UpperLimits(GaussianNoise()), np.zeros((1, 2, 3)), two, np.zeros((1, 1)))
