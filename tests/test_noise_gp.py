"""Laws of correlated noise, against dense multivariate normals and celerite2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts import check_noise
from scipy import stats

from nbi_plus import DampedRandomWalk, GaussianNoise, GaussianProcessNoise, Harmonic, Observations
from nbi_plus.problem.noise import noise_from_meta

NAMES = ("s", "tau", "q")
LENGTH = 30


def walk(sigma, tau):
    return lambda dt: sigma**2 * np.exp(-np.abs(dt) / tau)


def swing(sigma, period, quality):
    """The oscillator's covariance with complex functions, which know no case of damping."""

    def k(dt):
        omega, eta = 2 * np.pi / period, np.emath.sqrt(1 - 1 / (4 * quality**2))
        phase = eta * omega * np.abs(dt)
        wave = np.cos(phase) + omega * np.abs(dt) / (2 * quality) * np.sinc(phase / np.pi)
        return (sigma**2 * np.exp(-omega * np.abs(dt) / (2 * quality)) * wave).real

    return k


# name: noise, jitter, what theta (s, tau, q) makes of it
CASES = {
    "walk": (GaussianProcessNoise(DampedRandomWalk(0.8, 4.0)), lambda s, tau, q: [walk(0.8, 4.0)]),
    "named walk": (GaussianProcessNoise(DampedRandomWalk("s", "tau")),
                   lambda s, tau, q: [walk(s, tau)]),
    "jitter": (GaussianProcessNoise(DampedRandomWalk(0.8, "tau"), jitter="s"),
               lambda s, tau, q: [walk(0.8, tau)]),
    "harmonic": (GaussianProcessNoise(Harmonic("s", "tau", "q")),
                 lambda s, tau, q: [swing(s, tau, q)]),
    "overdamped": (GaussianProcessNoise(Harmonic("s", "tau", 0.2)),
                   lambda s, tau, q: [swing(s, tau, 0.2)]),
    "sum": (GaussianProcessNoise(
        Harmonic("s", 3.0, "q") + DampedRandomWalk(0.5, "tau") + Harmonic(0.3, "tau", 0.3)),
        lambda s, tau, q: [swing(s, 3.0, q), walk(0.5, tau), swing(0.3, tau, 0.3)]),
}  # fmt: skip
QUALITIES = [0.4, 0.501, 0.7, 3.0]
MASK = np.random.default_rng(1).random((4, 2, LENGTH)) < 0.7


def problem(name, mask=None, n_channels=2, length=LENGTH):
    """Return bound noise, model (4, C, L), observations at times out of order, theta (4, 3)."""
    rng = np.random.default_rng(0)
    shape = (4, n_channels, length)
    f, err = rng.normal(size=shape), rng.uniform(0.2, 0.6, shape)
    theta = np.stack([rng.uniform(0.5, 1.5, 4), rng.uniform(2, 8, 4), QUALITIES], 1)
    t = 2.45e6 + rng.uniform(0, length, (4, length))
    t[:, 7] = t[:, 3]  # two points at once
    obs = Observations.from_arrays(np.zeros(shape), err, mask=mask, t=t)
    return CASES[name][0].bind(True, NAMES), f, obs, theta


def dense(name, obs, theta, i, channel):
    """Return the covariance of the valid points of one channel."""
    valid = obs.mask[i, channel]
    t, err = obs.coords["t"][i][valid], obs.x_err[i, channel][valid]
    jitter = theta[i, 0] if CASES[name][0].white.jitter else 0.0
    lags = t[:, None] - t
    return sum(k(lags) for k in CASES[name][1](*theta[i])) + np.diag(err**2 + jitter**2)


def observed(noise, f, obs, theta, seed=0):
    return noise.observe(f, obs, theta, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CASES)
def test_processes_keep_the_contract(name):
    noise, f, obs, theta = problem(name, MASK)
    check_noise(noise, f, obs, theta)


@pytest.mark.parametrize("name", CASES)
def test_processes_equal_a_dense_gaussian(name):
    noise, f, obs, theta = problem(name, MASK)
    data = observed(noise, f, obs, theta)
    found = noise.log_likelihood(theta, f, data)
    tensors = [torch.from_numpy(v) for v in (theta, f)]
    p = noise.p_value(*tensors, data, torch.Generator())
    for i in range(len(f)):
        log_prob = chi2 = 0.0
        for c in range(2):
            covariance = dense(name, obs, theta, i, c)
            r = (data.x[i, c].numpy() - f[i, c])[MASK[i, c]]
            log_prob += stats.multivariate_normal(np.zeros(len(r)), covariance).logpdf(r)
            chi2 += r @ np.linalg.solve(covariance, r)
        assert found[i] == pytest.approx(log_prob, rel=1e-10)
        assert p[i].item() == pytest.approx(stats.chi2.sf(chi2, MASK[i].sum()), rel=1e-8)


@pytest.mark.parametrize("name", ["named walk", "harmonic", "sum"])
def test_draws_of_processes_follow_their_law(name):
    n = 2000
    noise, f, obs, theta = problem(name, MASK)
    for i in (0, 3):
        many, rows = np.repeat(f[i : i + 1], n, 0), np.repeat(theta[i : i + 1], n, 0)
        data = observed(noise, many, obs[[i] * n], rows)
        r = (data.x.numpy() - many)[:, 0, MASK[i, 0]].T
        white = np.linalg.solve(np.linalg.cholesky(dense(name, obs, theta, i, 0)), r)
        assert stats.kstest(stats.norm.cdf(white).ravel(), "uniform").pvalue > 1e-3
        assert abs((white**2).mean() - 1) < 4 * np.sqrt(2 / white.size)
        assert np.abs(np.corrcoef(white) - np.eye(len(white))).max() < 5 / np.sqrt(n)
        p = noise.p_value(*(torch.from_numpy(v) for v in (rows, many)), data, torch.Generator())
        assert stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_processes_have_the_right_gradient(name):
    noise, f, obs, theta = problem(name, MASK[:, :1, :10], n_channels=1, length=10)
    data = observed(noise, f, obs, theta)
    f, theta = (torch.from_numpy(np.stack([v, 1.1 * v], 1)).requires_grad_() for v in (f, theta))
    assert torch.autograd.gradcheck(lambda t, m: noise.log_likelihood(t, m, data), (theta, f))
    assert torch.autograd.gradcheck(lambda m: noise.log_likelihood(theta.detach(), m, data), f)


@pytest.mark.parametrize("quality", [0.5 - 1e-7, 0.5, 0.5 + 1e-10, 0.5 + 1e-6])
def test_critical_damping_is_no_obstacle(quality):
    noise, f, obs, theta = problem("harmonic", n_channels=1)
    theta[:, 2] = quality
    t = torch.from_numpy(theta).requires_grad_()
    found = noise.log_likelihood(t, torch.from_numpy(f), obs)
    for i in range(4):
        covariance = dense("harmonic", obs, theta, i, 0)
        expected = stats.multivariate_normal(f[i, 0], covariance).logpdf(obs.x[i, 0])
        assert found[i].item() == pytest.approx(expected, rel=1e-8)
    assert torch.isfinite(torch.autograd.grad(found.sum(), t)[0]).all()


def test_masked_points_are_skipped():
    noise, f, obs, theta = problem("sum", MASK[:, :1], n_channels=1)
    data = observed(noise, f, obs, theta)
    for i in range(4):
        keep = MASK[i, 0]
        less = Observations.from_arrays(
            data.x[i : i + 1, :, keep], obs.x_err[i : i + 1, :, keep], t=obs.coords["t"][i][keep]
        )
        one = noise.log_likelihood(theta[i : i + 1], f[i : i + 1][..., keep], less)
        whole = noise.log_likelihood(theta, f, data)[i]
        assert one[0] == pytest.approx(whole, rel=1e-11)


def test_order_does_not_matter():
    noise, f, obs, theta = problem("sum")
    data = observed(noise, f, obs, theta)
    order = np.random.default_rng(5).permutation(LENGTH)
    other = Observations.from_arrays(
        data.x[..., order], obs.x_err[..., order], t=obs.coords["t"][:, order]
    )
    found = noise.log_likelihood(theta, f[..., order], other)
    np.testing.assert_allclose(found, noise.log_likelihood(theta, f, data), rtol=1e-11)
    grid = Observations.from_arrays(data.x, obs.x_err, t=obs.coords["t"][0])
    again = Observations.from_arrays(
        data.x[..., order], obs.x_err[..., order], t=obs.coords["t"][0][order]
    )
    np.testing.assert_allclose(noise.log_likelihood(theta, f[..., order], again),
                               noise.log_likelihood(theta, f, grid), rtol=1e-11)  # fmt: skip


def test_nothing_correlated_is_white_and_no_point_is_certain():
    _, f, obs, theta = problem("walk", MASK)
    found = GaussianProcessNoise(DampedRandomWalk(0.0, 1.0)).log_likelihood(theta, f, obs)
    white = GaussianNoise().log_likelihood(theta, f, obs)
    np.testing.assert_allclose(found, white, rtol=1e-12)
    few = MASK & False
    few[0, 0, 4] = True
    noise, f, obs, theta = problem("sum", few)
    found = noise.log_likelihood(theta, f, obs)
    sigma = np.sqrt(dense("sum", obs, theta, 0, 0)[0, 0])
    assert found[0] == pytest.approx(stats.norm(f[0, 0, 4], sigma).logpdf(0.0), rel=1e-12)
    assert not found[1:].any()


def test_strong_smooth_processes_keep_a_positive_variance():
    t = np.linspace(0, 1, 300)
    obs = Observations.from_arrays(np.sin(t)[None], 1e-6, t=t)
    noise = GaussianProcessNoise(Harmonic(10.0, 30.0, 2.0) + DampedRandomWalk(1.0, 1e5))
    model = torch.zeros(1, 1, 300, dtype=torch.float64, requires_grad=True)
    value = noise.log_likelihood(torch.zeros(1, 1), model, obs)
    assert torch.isfinite(value).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), model)[0]).all()


@pytest.mark.peers
def test_processes_equal_celerite2():
    celerite2 = pytest.importorskip("celerite2")
    noise, f, obs, theta = problem("harmonic", n_channels=1)
    theta[:, 2] = [0.7, 1.5, 3.0, 20.0]
    found = noise.log_likelihood(theta, f, obs)
    for i, (sigma, period, quality) in enumerate(theta):
        kernel = celerite2.terms.SHOTerm(sigma=sigma, rho=period, Q=quality)
        t = obs.coords["t"][i] - 2.45e6
        order = np.argsort(t, kind="stable")
        gp = celerite2.GaussianProcess(kernel, mean=0.0)
        gp.compute(t[order], yerr=obs.x_err[i, 0][order])
        expected = gp.log_likelihood((obs.x - f)[i, 0][order])
        assert found[i] == pytest.approx(expected, rel=1e-9)


def test_processes_survive_their_meta():
    for noise, _ in CASES.values():
        again = noise_from_meta(noise.meta())
        assert again.meta() == noise.meta()
        assert again.fingerprint() == noise.fingerprint()
    with pytest.raises(ValueError, match="kernel must be Sum or one of"):
        noise_from_meta({"type": "GaussianProcessNoise", "kernel": {"type": "os.system"}})


@pytest.mark.parametrize("make", [
    lambda: DampedRandomWalk(-1.0, 1.0), lambda: DampedRandomWalk(1.0, 0.0),
    lambda: DampedRandomWalk(np.nan, 1.0), lambda: Harmonic(1.0, 0.0, 1.0),
    lambda: Harmonic(1.0, 1.0, 0.0), lambda: Harmonic(1.0, np.inf, 1.0),
    lambda: GaussianProcessNoise(Harmonic("a", 1.0, 1.0)).bind(True, NAMES),
    lambda: GaussianProcessNoise(Harmonic(1.0, 1.0, 1.0)).bind(False, NAMES),
    lambda: GaussianProcessNoise(Harmonic("s", 1.0, 1.0)).log_likelihood(
        *problem("walk")[:0:-2], problem("walk")[2]),
    lambda: GaussianProcessNoise(DampedRandomWalk(1.0, 1.0)).log_likelihood(
        np.zeros((1, 1)), np.zeros((1, 1, 1)), Observations.from_arrays([[0.0]], 1.0)),
])  # fmt: skip
def test_bad_processes_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_what_is_no_kernel_is_refused():
    with pytest.raises(TypeError, match="kernel must be a Kernel"):
        GaussianProcessNoise(1.0)
