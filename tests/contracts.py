"""Contracts: laws that any implementation of a part keeps, ours and users' own alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import norm

from nbi_plus.problem.prior import Prior


def check_prior(prior: Prior, seed: int = 0) -> None:
    """Check that a prior keeps its contract: shapes, inverse, densities, gradients, text.

    Parameters
    ----------
    prior : Prior
        Any prior. What needs an inverse or a gradient is checked where the prior offers it.
    seed : int
        Of the points at which it is checked.
    """
    z = np.random.default_rng(seed).standard_normal((64, prior.n_dim))
    _check_prior_draws(prior, seed)
    _check_prior_maps(prior, z)
    _check_prior_columns(prior, z)
    if prior.has_inverse:
        _check_prior_inverse(prior, z)
        _check_prior_density(prior, z[:16])
    else:
        for refused in (prior.to_latent, prior.log_prob):
            with pytest.raises(ValueError, match="must have an inverse"):
                refused(prior.from_latent(z))
    if prior.differentiable:
        _check_prior_gradient(prior, z[:16])


def _check_prior_draws(prior: Prior, seed: int) -> None:
    """Draws are float64 (n, D), follow from the seed, and leave the global generators alone."""
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    theta = prior.sample(10, seed)
    assert theta.shape == (10, prior.n_dim)
    assert theta.dtype == np.float64
    assert np.array_equal(theta, prior.sample(10, np.random.default_rng(seed)))
    assert not np.array_equal(theta, prior.sample(10, seed + 1))
    assert prior.sample(0, seed).shape == (0, prior.n_dim)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())
    assert np.array_equal(prior.check(theta), theta)
    with pytest.raises(ValueError, match="must have shape"):
        prior.check(np.ones((3, prior.n_dim + 1)))


def _check_prior_maps(prior: Prior, z: np.ndarray) -> None:
    """Numpy and torch agree, leading axes are kept, transform is from_latent of the score."""
    given = z.copy()
    theta = prior.from_latent(z)
    assert np.array_equal(given, z)
    assert np.isfinite(theta).all()
    in_torch = prior.from_latent(torch.from_numpy(z))
    assert in_torch.dtype == torch.float64
    np.testing.assert_allclose(in_torch.numpy(), theta, rtol=1e-12)
    np.testing.assert_array_equal(prior.from_latent(z.reshape(4, 16, -1)).reshape(z.shape), theta)
    np.testing.assert_allclose(prior.from_latent(z[0]), theta[0], rtol=1e-9)
    spread = theta.std(0)
    assert (np.abs(prior.transform(ndtr(z)) - theta) <= 1e-9 * (np.abs(theta) + spread)).all()
    expected = norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(prior.log_prob_latent(z), expected, rtol=1e-12)
    extreme = prior.from_latent(np.array([[-50.0], [-9.0], [9.0], [50.0]]) * np.ones(prior.n_dim))
    assert not np.isnan(extreme).any()


def _check_prior_columns(prior: Prior, z: np.ndarray) -> None:
    """Fixed values stand where the full names say; the manifest is JSON and decides equality."""
    theta = prior.from_latent(z)
    full = prior.complete(theta)
    assert full.shape == (len(z), len(prior.full_names))
    for column, name in enumerate(prior.full_names):
        wanted = prior.fixed[name] if name in prior.fixed else theta[:, prior.names.index(name)]
        assert np.all(full[:, column] == wanted)
    assert np.array_equal(prior.complete(torch.from_numpy(theta)).numpy(), full)
    assert all(values.shape == (len(z),) for values in prior.derive(theta).values())
    assert json.loads(json.dumps(prior.manifest(), allow_nan=False)) == prior.manifest()
    assert prior == prior.coerce(prior)
    assert len(prior.labels) == len(prior.periods) == prior.n_dim


def _check_prior_inverse(prior: Prior, z: np.ndarray) -> None:
    """theta -> z -> theta returns to 1e-9, and numpy and torch agree."""
    theta = prior.from_latent(z)
    back = prior.to_latent(theta)
    again = prior.from_latent(back)
    assert (np.abs(again - theta) <= 1e-9 * (np.abs(theta) + theta.std(0))).all()
    in_torch = prior.to_latent(torch.from_numpy(theta)).numpy()
    np.testing.assert_allclose(in_torch, back, rtol=1e-12, atol=1e-12)


def _check_prior_density(prior: Prior, z: np.ndarray) -> None:
    """log p(theta) = log N(z) - log |d theta / d z|, in torch and in numpy."""
    theta = prior.from_latent(z)
    rows = [
        torch.autograd.functional.jacobian(prior.from_latent, row) for row in torch.from_numpy(z)
    ]
    jacobian = torch.stack(rows)
    assert bool((jacobian.diagonal(dim1=-2, dim2=-1) > 0).all())
    expected = prior.log_prob_latent(z) - torch.linalg.slogdet(jacobian)[1].numpy()
    np.testing.assert_allclose(prior.log_prob(theta), expected, atol=1e-4)
    in_torch = prior.log_prob(torch.from_numpy(theta)).numpy()
    np.testing.assert_allclose(in_torch, expected, atol=1e-4)


def _check_prior_gradient(prior: Prior, z: np.ndarray) -> None:
    """The gradient of from_latent is the central difference."""
    h = 1e-5
    z_torch = torch.from_numpy(z).requires_grad_()
    theta = prior.from_latent(z_torch)
    for d in range(prior.n_dim):
        (gradient,) = torch.autograd.grad(theta[:, d].sum(), z_torch, retain_graph=True)
        assert bool(torch.isfinite(gradient).all())
        for k in range(prior.n_dim):
            step = h * np.eye(prior.n_dim)[k]
            difference = prior.from_latent(z + step) - prior.from_latent(z - step)
            slope = difference[:, d] / (2 * h)
            noise = 1e-4 * np.abs(slope) + 1e-15 / h * np.abs(theta[:, d].detach().numpy())
            assert (np.abs(gradient[:, k].numpy() - slope) <= noise + 1e-9 * np.ptp(slope)).all()
