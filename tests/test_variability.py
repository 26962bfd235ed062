"""Laws of the damped random walk: its covariance, exactly and in the mean, and its limits."""

import numpy as np
import pytest
import torch

from nbi_plus.models.variability import damped_random_walk

RNG = np.random.default_rng(3)
T = np.sort(RNG.uniform(0.0, 300.0, 37))
MEAN, SIGMA, TAU = THETA = 20.0, 0.7, 25.0
COVARIANCE = SIGMA**2 * np.exp(-np.abs(T[:, None] - T) / TAU)


def test_walk_is_the_root_of_its_covariance_times_the_same_normals():
    normals = RNG.standard_normal((5, len(T)))
    found = damped_random_walk(np.array([THETA] * 5), T, normals)
    expected = MEAN + normals @ np.linalg.cholesky(COVARIANCE).T
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_walk_has_its_covariance_in_the_mean():
    n = 20_000
    normals = np.random.default_rng(0).standard_normal((n, len(T)))
    y = damped_random_walk(np.broadcast_to(THETA, (n, 3)), T, normals) - MEAN
    variance = np.diag(COVARIANCE)
    error = np.sqrt((np.outer(variance, variance) + COVARIANCE**2) / n)
    z = (y.T @ y / n - COVARIANCE) / error
    assert np.abs(z).max() < 4.5
    assert np.abs(y.mean(0) / np.sqrt(variance / n)).max() < 4


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 1000])
def test_walk_equals_its_recursion_at_every_length(length):
    rng = np.random.default_rng(length)
    t, normals = np.cumsum(rng.exponential(3.0, length)), rng.standard_normal(length)
    y = [normals[0]]
    for i in range(1, length):
        a = np.exp(-(t[i] - t[i - 1]) / TAU)
        y.append(a * y[-1] + np.sqrt(1 - a * a) * normals[i])
    found = damped_random_walk(np.array([[0.0, 1.0, TAU]]), t, normals)
    np.testing.assert_allclose(found[0], y, rtol=1e-12, atol=1e-14)


def test_walk_over_long_gaps_is_white():
    normals = RNG.standard_normal((1, 9))
    found = damped_random_walk(np.array([[0.0, 2.0, 1.0]]), 1e3 * np.arange(9.0), normals)
    np.testing.assert_array_equal(found, 2.0 * normals)


def test_walk_stands_still_at_equal_times_with_a_finite_gradient():
    theta = torch.tensor([THETA], requires_grad=True)
    t = torch.tensor([0.0, 5.0, 5.0, 5.0, 9.0])
    y = damped_random_walk(theta, t, torch.ones(1, 5))
    torch.testing.assert_close(y[0, 1:4], y[0, 1].expand(3))
    y.sum().backward()
    assert torch.isfinite(theta.grad).all()


def test_walk_refuses_to_go_back_in_time():
    with pytest.raises(ValueError, match="t must ascend"):
        damped_random_walk(np.array([THETA]), T[::-1], np.zeros((1, len(T))))


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
def test_walk_agrees_with_celerite2():
    celerite2 = pytest.importorskip("celerite2")
    process = celerite2.GaussianProcess(celerite2.terms.RealTerm(a=SIGMA**2, c=1 / TAU))
    process.compute(T, diag=1e-15)
    normals = RNG.standard_normal(len(T))
    found = damped_random_walk(np.array([THETA]), T, normals)[0]
    np.testing.assert_allclose(found, MEAN + process.dot_tril(normals), rtol=1e-9)
