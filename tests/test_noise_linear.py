"""Laws of shared errors and linear nuisance terms, against dense multivariate normals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts import check_noise
from scipy import stats

from nbi_plus import (
    CalibrationError,
    DampedRandomWalk,
    GaussianNoise,
    GaussianProcessNoise,
    LinearNuisance,
    Observations,
    StudentTNoise,
)
from nbi_plus.problem.noise import noise_from_meta

NAMES = ("s", "b", "w")
BANDS = np.array(["g", "r", "g", "i", "r", "g", "g"])
LENGTH = len(BANDS)


def waves(coords):
    """Two terms of a period of five."""
    return torch.stack([torch.sin(coords["t"] / 5), torch.cos(coords["t"] / 5)], -2)


PLAIN = GaussianNoise()
JITTER = GaussianNoise(jitter="s", fractional=0.1)
FREE = GaussianNoise(jitter="s")
SCALE = ("scale", "offset")
WALK = GaussianProcessNoise(DampedRandomWalk("w", 5.0), jitter="s")
CASES = {
    "process": LinearNuisance(CalibrationError(WALK, 0.1), ("offset", "slope"), sd=(1.5, 0.2)),
    "offset": LinearNuisance(PLAIN, "offset", sd=2.0),
    "line": LinearNuisance(JITTER, ("offset", "slope"), sd=(2.0, 0.5), mean=(1.0, -0.3)),
    "scale": LinearNuisance(FREE, SCALE, sd=("w", 1.0), mean=(1.0, "b"), along="band"),
    "waves": LinearNuisance(PLAIN, (waves, "offset"), sd=(0.7, "w"), along="band"),
    "channels": LinearNuisance(PLAIN, ("offset", "slope"), sd=0.6, along="channel"),
    "calibration": CalibrationError(PLAIN, 0.1),
    "by band": CalibrationError(JITTER, {"g": 0.1, "r": 0.3, "i": 0.0}),
    "both": LinearNuisance(CalibrationError(JITTER, 0.1), "offset", sd=1.5, along="band"),
    "twice": LinearNuisance(LinearNuisance(PLAIN, "offset", sd=1.0, along="band", mean=0.5),
                            "scale", sd=0.3, mean=1.0),
}  # fmt: skip


def problem(name, n=4, n_channels=2, mask=None):
    """Return bound noise, model (n, C, L), observations and theta (n, 3)."""
    rng = np.random.default_rng(0)
    shape = (n, n_channels, LENGTH)
    f, theta = rng.uniform(1, 8, shape), rng.uniform(0.3, 1.0, (n, 3))
    t = 2.45e6 + np.sort(rng.uniform(0, 20, (n, LENGTH)))
    err = rng.uniform(0.3, 2, shape)
    obs = Observations.from_arrays(np.zeros(shape), err, mask=mask, t=t, band=BANDS)
    return CASES[name].bind(True, NAMES), f, obs, theta


def terms_of(name, f, t, valid, theta):
    """Return the columns (K, C, L), prior sd and mean (K,), by the definition of each case."""
    one, tilt = np.ones_like(f), np.ones_like(f) * (t - t[valid.any(0)].mean())
    bands = [np.ones_like(f) * (b == BANDS) for b in ("g", "i", "r")]
    channels = [one * np.eye(len(f))[:, i : i + 1] for i in range(len(f))]
    sines = [one * np.sin(t / 5), one * np.cos(t / 5)]
    s, b, w = theta
    return {
        "offset": ([one], [2.0], [0.0]),
        "line": ([one, tilt], [2.0, 0.5], [1.0, -0.3]),
        "scale": ([f * k for k in bands] + bands, [w] * 3 + [1.0] * 3, [1.0] * 3 + [b] * 3),
        "waves": ([k * v for v in sines for k in bands] + bands, [0.7] * 6 + [w] * 3, [0.0] * 9),
        "channels": ([k * v for v in (one, tilt) for k in channels], [0.6] * 4, [0.0] * 4),
        "calibration": ([f * k for k in bands], [0.1] * 3, [0.0] * 3),
        "by band": ([f * k for k in bands], [0.1, 0.0, 0.3], [0.0] * 3),
        "process": ([f * k for k in bands] + [one, tilt], [0.1] * 3 + [1.5, 0.2], [0.0] * 5),
        "both": ([f * k for k in bands] + bands, [0.1] * 3 + [1.5] * 3, [0.0] * 6),
        "twice": ([*bands, f], [1.0] * 3 + [0.3], [0.5] * 3 + [1.0]),
    }[name]  # fmt: skip


def dense(name, f, obs, theta, i):
    """Return mean, covariance and columns of the valid points of one object."""
    valid = obs.mask[i]
    columns, sd, mean = terms_of(name, f[i], obs.coords["t"][i], valid, theta[i])
    columns = np.stack([c[valid] for c in columns])
    variance = obs.x_err[i] ** 2
    if name in ("line", "scale", "by band", "both", "process"):
        variance = variance + theta[i, 0] ** 2
    if name in ("line", "by band", "both"):
        variance = variance + (0.1 * f[i]) ** 2
    start = 0.0 if name in ("scale", "twice") else f[i][valid]
    covariance = np.diag(variance[valid]) + (columns.T * np.square(sd)) @ columns
    if name == "process":
        channel, t = np.nonzero(valid)[0], obs.coords["t"][i][np.nonzero(valid)[1]]
        walk = theta[i, 2] ** 2 * np.exp(-np.abs(t[:, None] - t) / 5.0)
        covariance += walk * (channel[:, None] == channel)
    return start + mean @ columns, covariance, columns, np.array(sd), np.array(mean)


def observed(noise, f, obs, theta, seed=0):
    return noise.observe(f, obs, theta, torch.Generator().manual_seed(seed))


MASK = np.random.default_rng(1).random((4, 2, LENGTH)) < 0.7


@pytest.mark.parametrize("name", CASES)
def test_shared_errors_keep_the_contract(name):
    noise, f, obs, theta = problem(name, mask=MASK)
    check_noise(noise, f, obs, theta)


@pytest.mark.parametrize("name", CASES)
def test_shared_errors_equal_a_dense_gaussian(name):
    noise, f, obs, theta = problem(name, mask=MASK)
    data = observed(noise, f, obs, theta)
    found = noise.log_likelihood(theta, f, data)
    tensors = [torch.from_numpy(v) for v in (theta, f)]
    p = noise.p_value(*tensors, data, torch.Generator())
    for i in range(len(f)):
        mean, covariance, *_ = dense(name, f, obs, theta, i)
        x = data.x[i].numpy()[MASK[i]]
        expected = stats.multivariate_normal(mean, covariance).logpdf(x)
        assert found[i] == pytest.approx(expected, rel=1e-11)
        chi2 = (x - mean) @ np.linalg.solve(covariance, x - mean)
        assert p[i].item() == pytest.approx(stats.chi2.sf(chi2, len(x)), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_draws_of_shared_errors_follow_their_law(name):
    n = 3000
    noise, f, obs, theta = problem(name, mask=MASK)
    for i in (0, 3):
        many, rows = np.repeat(f[i : i + 1], n, 0), np.repeat(theta[i : i + 1], n, 0)
        data = observed(noise, many, obs[[i] * n], rows)
        mean, covariance, *_ = dense(name, f, obs, theta, i)
        r = data.x.numpy()[:, MASK[i]] - mean
        r = np.linalg.solve(np.linalg.cholesky(covariance), r.T)
        assert stats.kstest(stats.norm.cdf(r).ravel(), "uniform").pvalue > 1e-3
        assert abs((r**2).mean() - 1) < 4 * np.sqrt(2 / r.size)
        pairs = np.corrcoef(r) - np.eye(len(r))
        assert np.abs(pairs).max() < 5 / np.sqrt(n)
        p = noise.p_value(*(torch.from_numpy(v) for v in (rows, many)), data, torch.Generator())
        assert stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", ["line", "scale", "waves", "by band", "twice", "process"])
def test_shared_errors_have_the_right_gradient(name):
    noise, f, obs, theta = problem(name, mask=MASK)
    data = observed(noise, f, obs, theta)
    f, theta = (torch.from_numpy(np.stack([v, 1.1 * v], 1)).requires_grad_() for v in (f, theta))
    assert torch.autograd.gradcheck(lambda t, m: noise.log_likelihood(t, m, data), (theta, f))


@pytest.mark.parametrize("name", ["offset", "line", "scale", "waves", "both", "twice", "process"])
def test_nuisances_are_the_conditional_gaussian(name):
    noise, f, obs, theta = problem(name, mask=MASK)
    data = observed(noise, f, obs, theta)
    found = noise.nuisances(theta, f, data)
    curve = noise.corrected(theta, f, data)
    n_own = found.mean.shape[-1]
    assert len(found.names) == n_own
    for i in range(len(f)):
        mean, covariance, columns, sd, prior = dense(name, f, obs, theta, i)
        gain = (columns.T * sd**2).T @ np.linalg.inv(covariance)
        fitted = prior + gain @ (data.x[i].numpy()[MASK[i]] - mean)
        spread = np.diag(sd**2) - gain @ (columns.T * sd**2)
        np.testing.assert_allclose(found.mean[i], fitted[-n_own:], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(found.covariance[i], spread[-n_own:, -n_own:], atol=1e-10)
        start = 0.0 if name in ("scale", "twice") else f[i][MASK[i]]
        np.testing.assert_allclose(curve[i][MASK[i]], start + fitted @ columns, rtol=1e-9)


def test_nuisances_have_names_and_draws():
    noise, f, obs, theta = problem("waves")
    many = noise.nuisances(np.stack([theta] * 3, 1), np.stack([f] * 3, 1), obs)
    assert many.mean.shape == (4, 3, 9)
    assert many.covariance.shape == (4, 3, 9, 9)
    assert many.names[::4] == ("waves[0][g]", "waves[1][i]", "offset[r]")
    assert noise.corrected(np.stack([theta] * 3, 1), np.stack([f] * 3, 1), obs).shape == (
        4, 3, 2, LENGTH)  # fmt: skip


@pytest.mark.parametrize("sd", [1e-6, 1.0, 1e6, 1e8])
@pytest.mark.parametrize("terms", [("offset", "slope"), ("scale", "offset")])
def test_broad_priors_lose_no_digits(terms, sd):
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(3)
    t, err = np.sort(rng.uniform(0, 20, LENGTH)), rng.uniform(0.5, 1.5, LENGTH)
    f = rng.uniform(1, 8, LENGTH)
    columns = np.stack([{"offset": np.ones(LENGTH), "slope": t - t.mean(), "scale": f}[k]
                        for k in terms])  # fmt: skip
    start = np.zeros(LENGTH) if "scale" in terms else f
    x = start + 0.7 * sd * columns.sum(0) + err * rng.standard_normal(LENGTH)
    obs = Observations.from_arrays(x[None], err, t=t)
    noise = LinearNuisance(PLAIN, terms, sd=sd)
    with mpmath.workdps(60):
        u = mpmath.matrix(columns.tolist()) * mpmath.mpf(sd)
        c = mpmath.diag([mpmath.mpf(e) ** 2 for e in err.tolist()]) + u.T * u
        r = mpmath.matrix(x.tolist()) - mpmath.matrix(start.tolist())
        square = (r.T * mpmath.lu_solve(c, r))[0]
        exact = -(square + mpmath.log(mpmath.det(2 * mpmath.pi * c))) / 2
    found = noise.log_likelihood(np.zeros((1, 1)), f[None, None], obs)
    assert found[0] == pytest.approx(float(exact), rel=1e-7, abs=1e-6)


def test_one_point_none_and_no_scatter_at_all():
    mask = np.zeros((3, 2, LENGTH), bool)
    mask[0, 0, 2] = mask[1] = True
    for name in ("line", "scale", "both"):
        noise, f, obs, theta = problem(name, n=3, mask=mask)
        data = observed(noise, f, obs, theta)
        found = noise.log_likelihood(theta, f, data)
        mean, covariance, *_ = dense(name, f, obs, theta, 0)
        one = stats.norm(mean, np.sqrt(covariance[0])).logpdf(data.x[0, 0, 2])
        assert found[0] == pytest.approx(one[0], rel=1e-10)
        assert found[2] == 0.0
        assert np.isfinite(found).all()
        p = noise.p_value(*(torch.from_numpy(v) for v in (theta, f)), data, torch.Generator())
        assert p.isnan().tolist() == [False, False, True]
    _, f, obs, theta = problem("offset")
    nothing = LinearNuisance(PLAIN, ("offset", "slope"), sd=0.0)
    np.testing.assert_allclose(nothing.log_likelihood(theta, f, obs),
                               PLAIN.log_likelihood(theta, f, obs), rtol=1e-12)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_object_serves_many_models(name):
    noise, f, obs, theta = problem(name, mask=MASK)
    data = observed(noise, f, obs, theta).select(slice(1, 2))
    alone = noise.log_likelihood(theta, f, data)
    each = [noise.log_likelihood(theta[i : i + 1], f[i : i + 1], data)[0] for i in range(4)]
    np.testing.assert_allclose(alone, each, rtol=1e-12)
    several = noise.log_likelihood(theta[None], f[None], data)
    np.testing.assert_allclose(several[0], each, rtol=1e-12)
    assert noise.log_likelihood(theta[None, :0], f[None, :0], data).shape == (1, 0)


def test_errors_may_come_from_the_noise():
    _, f, obs, theta = problem("offset")
    known = Observations.from_arrays(obs.x, 0.3, t=obs.coords["t"])
    bare = Observations.from_arrays(obs.x, t=obs.coords["t"])
    kernel = DampedRandomWalk(1.0, 5.0)
    for with_errors, without in (
        (GaussianProcessNoise(kernel), GaussianProcessNoise(kernel, sigma=0.3)),
        (CASES["offset"], LinearNuisance(GaussianNoise(0.3), "offset", sd=2.0)),
    ):
        expected = with_errors.log_likelihood(theta, f, known)
        np.testing.assert_allclose(without.log_likelihood(theta, f, bare), expected, rtol=1e-12)


def test_terms_that_say_the_same_share_it():
    _, f, obs, theta = problem("offset")
    twice = LinearNuisance(LinearNuisance(PLAIN, "offset", sd=3e3), "offset", sd=4e3)
    once = LinearNuisance(PLAIN, "offset", sd=5e3)
    np.testing.assert_allclose(twice.log_likelihood(theta, f, obs),
                               once.log_likelihood(theta, f, obs), rtol=1e-8)  # fmt: skip


def test_shared_errors_survive_their_meta():
    for noise in CASES.values():
        if noise.meta() is not None:
            again = noise_from_meta(noise.meta())
            assert again.meta() == noise.meta()
            assert again.fingerprint() == noise.fingerprint()
    prints = {LinearNuisance(PLAIN, waves, sd=s).fingerprint() for s in (1.0, 2.0)}
    prints |= {LinearNuisance(n, "offset", sd=1.0).fingerprint() for n in (PLAIN, JITTER)}
    assert len(prints) == 4
    other = LinearNuisance(PLAIN, lambda coords: coords["t"][..., None, :], sd=1.0)
    assert other.fingerprint() not in prints
    assert other.meta() is None


@pytest.mark.parametrize("make", [
    lambda: LinearNuisance(PLAIN, "baseline", sd=1.0), lambda: LinearNuisance(PLAIN, (), sd=1.0),
    lambda: LinearNuisance(PLAIN, ("offset", "offset"), sd=1.0),
    lambda: LinearNuisance(PLAIN, "offset", sd=-1.0),
    lambda: LinearNuisance(PLAIN, "offset", sd=(1.0, 2.0)),
    lambda: LinearNuisance(PLAIN, "offset", sd=np.inf),
    lambda: LinearNuisance(PLAIN, "offset", sd="q").bind(True, NAMES),
    lambda: LinearNuisance(PLAIN, "offset", sd=1.0).bind(False, NAMES),
    lambda: LinearNuisance(JITTER, "scale", sd=1.0),
    lambda: LinearNuisance(CASES["twice"], "scale", sd=1.0),
    lambda: CalibrationError(CASES["twice"], 0.1), lambda: CalibrationError(PLAIN, -0.1),
])  # fmt: skip
def test_bad_shared_errors_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_what_cannot_be_marginalised_is_refused():
    for noise in (StudentTNoise(), None):
        with pytest.raises(TypeError, match="noise must be Gaussian"):
            LinearNuisance(noise, "offset", sd=1.0)
    _, f, obs, theta = problem("offset")
    wrong = {
        "must name every band, but 'i'": CalibrationError(PLAIN, {"g": 0.1, "r": 0.1}),
        "must be categories": CalibrationError(PLAIN, 0.1, along="t"),
        "must have the coordinate 'night'": CalibrationError(PLAIN, 0.1, along="night"),
        "tensor": LinearNuisance(PLAIN, lambda coords: coords["t"], sd=1.0),
    }
    bare = {"x_err": obs.x_err, "t": obs.coords["t"][0], "band": BANDS}
    shared = Observations.from_arrays(obs.x, **bare)
    for message, noise in wrong.items():
        with pytest.raises(ValueError, match=message):
            noise.log_likelihood(theta, f, shared)
    with pytest.raises(ValueError, match="slope.*must have the coordinate 't'"):
        CASES["line"].bind(True, NAMES).log_likelihood(
            theta, f, Observations.from_arrays(obs.x, obs.x_err))  # fmt: skip
