"""Contracts: laws that any implementation of a part keeps, ours and users' own alike."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import norm

from nbi_plus import Noise, Observations, Prior
from nbi_plus.learn.flows import Flow


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


def check_noise(
    noise: Noise, model: np.ndarray, obs: Observations, theta: np.ndarray, seed: int = 0
) -> None:
    """Check that a noise model keeps its contract: draws, densities, masks, and their agreement.

    Parameters
    ----------
    noise : Noise
        Bound, if it needs to be.
    model : ndarray, shape (n, C, L)
        Noise-free simulations, one for each of n > 1 objects.
    obs : Observations
        Of n objects, whose errors and masks are imitated; mask at least one point.
    theta : ndarray, shape (n, P)
        What the simulations were made of.
    seed : int
        Of the noise.
    """
    _check_noise_draws(noise, model, obs, theta, seed)
    if noise.has_likelihood(obs.errors is not None):
        data = noise.observe(model, obs, theta, _generator(seed))
        _check_noise_shapes(noise, model, data, theta)
        _check_noise_masks(noise, model, data, theta)
        _check_noise_precision(noise, model, data, theta)
        _check_noise_agreement(noise, model, obs, theta, seed)


def _check_noise_draws(noise, model, obs, theta, seed):
    """Draws follow from the generator alone, in the type and dtype of the model."""
    with _untouched_generators():
        x = noise.augment(model, obs, theta, _generator(seed))
        again = noise.augment(
            torch.from_numpy(model), obs, torch.from_numpy(theta), _generator(seed)
        )
        other = noise.augment(model, obs, theta, _generator(seed + 1))
        seen = [noise.observe(model, obs, theta, _generator(seed)) for _ in range(2)]
        half = noise.augment(
            torch.from_numpy(model).float(), obs.batch(), torch.from_numpy(theta), _generator(seed)
        )
    assert isinstance(x, np.ndarray)
    assert x.shape == model.shape
    assert x.dtype == np.float64
    assert half.dtype == torch.float32
    assert np.array_equal(x, again.numpy())
    assert not np.array_equal(x, other)
    assert torch.equal(seen[0].x, seen[1].x)
    assert not seen[0].x[~seen[0].mask].any()
    assert set(seen[0].coords) == set(obs.batch().coords)
    assert noise.fingerprint() == copy.deepcopy(noise).fingerprint()


def _check_noise_shapes(noise, model, data, theta):
    """One likelihood for each object, or for each of S draws of each; arrays equal tensors."""
    one = noise.log_likelihood(theta, model, data)
    assert isinstance(one, np.ndarray)
    assert one.shape == (len(model),)
    assert np.isfinite(one).all()
    as_tensors = noise.log_likelihood(torch.from_numpy(theta), torch.from_numpy(model), data)
    assert np.array_equal(one, as_tensors.numpy())
    models, thetas = np.stack([model, 1.1 * model, model], 1), np.stack([theta] * 3, 1)
    many = noise.log_likelihood(thetas, models, data)
    assert many.shape == (len(model), 3)
    loop = [
        noise.log_likelihood(
            thetas[i : i + 1, s], models[i : i + 1, s], data.select(slice(i, i + 1))
        )
        for i in range(len(model))
        for s in range(3)
    ]
    np.testing.assert_allclose(many.ravel(), np.concatenate(loop), rtol=1e-12)
    terms = noise.log_densities(thetas, models, data)
    n, *shape = model.shape
    assert terms.shape in ((n, 3, *shape), (n, 3, 1, 1))  # of each point, or of all together
    np.testing.assert_allclose(terms.sum((2, 3)), many, rtol=1e-10, atol=1e-10)
    if terms.shape[2:] == tuple(shape):
        assert not terms[~np.repeat(data.mask.numpy()[:, None], 3, 1)].any()


def _check_noise_masks(noise, model, data, theta):
    """What a simulation says at a masked point changes neither the value nor the gradient."""
    assert not data.mask.all(), "obs must mask a point, so that masks can be checked"
    values, gradients = [], []
    for filler in (0.0, 1e6, np.nan):
        f = torch.from_numpy(np.where(data.mask.numpy(), model, filler)).requires_grad_()
        value = noise.log_likelihood(torch.from_numpy(theta), f, data)
        values.append(value.detach().numpy())
        gradients.append(torch.autograd.grad(value.sum(), f)[0].numpy())
    for other in (1, 2):
        assert np.array_equal(values[0], values[other])
        assert np.array_equal(gradients[0], gradients[other])
    assert np.isfinite(gradients[0]).all()
    assert not gradients[0][~data.mask.numpy()].any()


def _check_noise_precision(noise, model, data, theta):
    """Single precision gives the same numbers, as far as it goes."""
    exact = noise.log_likelihood(theta, model, data)
    tensors = (torch.from_numpy(v).float() for v in (theta, model))
    single = noise.log_likelihood(*tensors, data.to(dtype=torch.float32))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, exact, rtol=1e-3, atol=1e-2)


def _check_noise_agreement(noise, model, obs, theta, seed):
    """Draws have the density that is claimed: E[p(x | f') / p(x | f)] = 1 over x drawn about f."""
    n, rng, ratios = 4000, _generator(seed + 2), []
    for i in range(len(model)):
        f, t = np.repeat(model[i : i + 1], n, 0), np.repeat(theta[i : i + 1], n, 0)
        x = noise.augment(f, obs[i], t, _generator(seed + 3))
        data = noise.observe(f, obs[[i] * n], t, rng)
        shift = np.abs(x - f).mean(0) / np.sqrt(model[i].size)  # in all about one sigma
        while not np.isfinite(noise.log_likelihood(t, f + shift, data)).any():
            shift /= 2  # as of probabilities, which end
        ratios.append(
            np.exp(noise.log_likelihood(t, f + shift, data) - noise.log_likelihood(t, f, data))
        )
    ratio = np.concatenate(ratios)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(ratio.size)


def check_flow(flow: Flow, context: torch.Tensor, seed: int = 0) -> None:
    """Check that a flow keeps its contract: draws have its density, and depend on the context.

    Parameters
    ----------
    flow : Flow
        In float64 for exact laws.
    context : Tensor, shape (B, F)
        Of B > 1 objects, all different.
    seed : int
        Of the base noise.
    """
    shape = (len(context), 2000, flow.n_dims)
    rng = _generator(seed)
    noise = torch.randn(shape, generator=rng, dtype=torch.float64)
    choice = torch.rand(shape, generator=rng, dtype=torch.float64)
    with torch.no_grad(), _untouched_generators():
        _check_flow_batches(flow, context, noise[:, :7], choice[:, :7])
        _check_flow_widths(flow, context, noise, choice)
        _check_flow_context(flow, context, noise[:, :200], choice[:, :200])


def _check_flow_batches(flow, context, noise, choice):
    """Objects and draws together equal a loop over them."""
    z = flow.sample(noise, context, choice)
    log_q = flow.log_prob(z, context)
    assert z.dtype == torch.float64
    assert z.shape == noise.shape
    assert log_q.shape == noise.shape[:2]
    assert log_q.isfinite().all()
    for b in range(len(context)):
        for s in range(noise.shape[1]):
            one = slice(b, b + 1), slice(s, s + 1)
            alone = flow.sample(noise[one], context[one[0]], choice[one])
            torch.testing.assert_close(alone, z[one], rtol=1e-9, atol=1e-9)
            density = flow.log_prob(z[one], context[one[0]])
            torch.testing.assert_close(density, log_q[one], rtol=1e-9, atol=1e-9)


def _check_flow_widths(flow, context, noise, choice):
    """Draws have the density that is claimed, from the plain base and from a wider one."""
    plain = flow.sample(noise, context, choice)
    wide, known = flow.draw(2 * noise, context, choice, (1.0, 2.0))
    later = flow.log_probs(wide, context, (1.0, 2.0))
    torch.testing.assert_close(torch.stack(known), torch.stack(later), rtol=1e-9, atol=1e-8)
    for z, scales in ((wide, (1.0, 2.0)), (plain, (0.5, 1.0))):  # ratios of at most 2^D
        narrow, own = flow.log_probs(z, context, scales)
        ratio = torch.exp(narrow - own)
        error = ratio.std() / math.sqrt(ratio.numel())
        assert abs(ratio.mean() - 1) < 4 * error
        twice = [flow.log_probs(z, context, (s,))[0] for s in scales]
        torch.testing.assert_close(torch.stack([narrow, own]), torch.stack(twice))
    assert torch.equal(flow.log_prob(plain, context), flow.log_probs(plain, context, (1.0,))[0])


def _check_flow_context(flow, context, noise, choice):
    """Every quantile of every parameter moves with the context."""
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    step = 1e-4 * torch.randn(context.shape, generator=_generator(1)).to(context)

    def quantiles(c):
        return torch.quantile(flow.sample(noise, c, choice), levels, dim=1)  # (5, B, D)

    slope = (quantiles(context + step) - quantiles(context - step)) / 2e-4
    assert (slope.abs() > 1e-5).all(), "each quantile must have a gradient in the context"


def check_featurizer(
    module: torch.nn.Module, *, n_channels: int, length: int, seed: int = 0
) -> None:
    """Check that a featurizer keeps its contract: shapes, mask, padding, batches, gradients.

    Parameters
    ----------
    module : nn.Module
        Maps (n, C, L), the mask last, to (n, F); for float32, on any device. Left as it is.
    n_channels, length : int
        C (the mask included) and L.
    seed : int
        Of the series it is tried on.
    """
    module = copy.deepcopy(module)
    device = next(module.parameters()).device
    shape = (6, n_channels, length)
    x = torch.randn(shape, generator=_generator(seed)).to(device)
    lengths = torch.linspace(1, length, 6).long()  # of one point to all, in one batch
    x[:, -1] = (torch.arange(length) < lengths[:, None]).to(x)
    x[-1, -1, 1 : length - 1 : 3] = 0.0  # gaps inside a series
    with _untouched_generators():
        _check_featurizer_output(module, x)
        _check_featurizer_mask(module, x, lengths)
        _check_featurizer_batches(module, x)
        _check_featurizer_gradients(module, x)
        _check_featurizer_double(module, x)


def _features(module, x):
    """Return the features without a graph."""
    with torch.no_grad():
        return module(x)


def _close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _check_featurizer_output(module, x):
    """Features are (n, F), in the type and place of x, finite even where no point is valid."""
    given = x.clone()
    features = _features(module, x)
    assert features.shape == (len(x), module.n_features)
    assert features.dtype == x.dtype
    assert features.device == x.device
    assert features.isfinite().all()
    assert torch.equal(x, given), "the input must not be edited"
    assert torch.equal(features, _features(module, x)), "the same input must give the same features"
    assert (features[-1] - features[-2]).abs().max() > 1e-4, "features must depend on the data"
    empty = x * torch.zeros(1)[0].to(x)
    assert _features(module, empty).isfinite().all()
    assert _features(module, x[:, :, :1]).shape == features.shape  # series of one point
    twin = copy.deepcopy(module)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(_features(twin, x), features)


def _check_featurizer_mask(module, x, lengths):
    """Neither values under the mask, nor appended masked steps, nor cut ones, change a feature."""
    features = _features(module, x)
    valid = x[:, -1:] > 0
    for filler in (0.0, 1e6, math.nan, math.inf):
        other = torch.where(valid, x, filler)
        other[:, -1:] = x[:, -1:]
        assert torch.equal(_features(module, other), features)
    for extra in (1, 2, 3, 37, x.shape[2]):
        padding = torch.full((*x.shape[:2], extra), 7.0).to(x)
        padding[:, -1] = 0.0
        _close(_features(module, torch.cat([x, padding], dim=2)), features)
    for i, n in enumerate(lengths.tolist()):
        _close(_features(module, x[i : i + 1, :, :n]), features[i : i + 1])
    empty = torch.zeros_like(x[:1])
    _close(_features(module, empty[:, :, :1]), _features(module, empty))


def _check_featurizer_batches(module, x):
    """An object's features do not depend on its batch: its size, its order, or the mode."""
    features = _features(module, x)
    _close(torch.cat([_features(module, row[None]) for row in x]), features)
    _close(_features(module, x.flip(0)).flip(0), features)
    _close(_features(module, x.repeat(20, 1, 1))[-len(x) :], features)
    mode = module.training
    _close(_features(module.train(not mode), x), features)
    module.train(mode)


def _check_featurizer_gradients(module, x):
    """Gradients are finite everywhere, reach every parameter and every valid point alone."""
    x = torch.cat([x, torch.zeros_like(x[:1])]).requires_grad_()
    module.zero_grad()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"
    assert x.grad.isfinite().all()
    valid = x[:, -1] > 0
    assert not x.grad.transpose(1, 2)[~valid].any(), "a masked value must have no gradient"
    reached = x.grad[0].abs().sum() > 0
    assert reached, "the only point of a series must have a gradient"


def _check_featurizer_double(module, x):
    """The same features, more exactly, in float64."""
    double = copy.deepcopy(module).double()
    features = _features(double, x.double())
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.float(), _features(module, x), rtol=1e-3, atol=1e-4)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def _untouched_generators() -> Iterator[None]:
    """Fail when numpy's, torch's or Python's global generator moves."""

    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    yield
    assert state() == before, "the global random generators must be left alone"
