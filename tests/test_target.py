"""Laws of the target: closed forms, launches, failures, gradients, per-object inputs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import nbi_plus as nbi
from nbi_plus import GaussianNoise, Observations, launch
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.target import Z_MAX, Target

PRIOR = nbi.Prior({"a": stats.norm(1, 2), "fixed": 3.0, "b": stats.uniform(-1, 2)})
T = np.linspace(0, 1, 5)
CPU = launch.KINDS["cpu"]


def numpy_line(theta, t):
    theta = np.asarray(theta)
    return theta[:, :1] + theta[:, 1:2] * theta[:, 2:3] * np.asarray(t)


def torch_line(theta, t):
    return theta[:, :1] + theta[:, 1:2] * theta[:, 2:3] * t


def one_row(theta, t):
    return [float(theta[0] + theta[1] * theta[2] * moment) for moment in t]


LINES = {"numpy": numpy_line, "torch": torch_line, "row by row": one_row}


def make_target(simulator, n=3, noise=None, prior=PRIOR, **coords):
    """Return a target of n objects, and its observations."""
    rng = np.random.default_rng(0)
    coords = coords or {"t": T}
    x, err = rng.normal(1, 2, (n, len(T))), rng.uniform(0.5, 2, (n, len(T)))
    scalars = {k: coords.pop(k) for k in list(coords) if np.shape(coords[k]) == (n,)}
    obs = Observations.from_arrays(
        x, err, mask=rng.random(x.shape) < 0.8, scalars=scalars, **coords
    )
    bound = bind_simulator(simulator, prior, obs.batch())
    noise = (noise or GaussianNoise()).bind(True, prior.full_names)
    return Target(prior, bound, noise, obs.batch()), obs


def latent(n=3, s=7, d=2, seed=1, scale=1.0):
    return torch.from_numpy(scale * np.random.default_rng(seed).normal(size=(n, s, d)))


def closed_form(z, obs, index):
    theta = PRIOR.complete(PRIOR.from_latent(z.numpy()))
    model = theta[..., :1] + theta[..., 1:2] * theta[..., 2:3] * T
    rows = obs[index]
    each = stats.norm.logpdf(rows.x, model, rows.x_err) * rows.mask
    return stats.norm.logpdf(z.numpy()).sum(-1) + each.sum(-1)


@pytest.mark.parametrize("kind", LINES)
def test_log_prob_equals_closed_form(kind):
    target, obs = make_target(LINES[kind])
    assert target.simulator.backend == ("torch" if kind == "torch" else "numpy")
    z, index = latent(), torch.arange(3)
    np.testing.assert_allclose(
        target.log_prob(z, index), closed_form(z, obs, [0, 1, 2]), rtol=1e-11
    )


@pytest.mark.parametrize("kind", LINES)
def test_a_subset_of_objects_meets_its_own_data(kind):
    target, obs = make_target(LINES[kind])
    for index in ([2], [2, 0], [1, 1, 1, 0]):
        z = latent(len(index), 4)
        value = target.log_prob(z, torch.tensor(index))
        np.testing.assert_allclose(value, closed_form(z, obs, index), rtol=1e-11)


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_launches_change_nothing_and_are_bounded(kind, rows, monkeypatch):
    sizes = []

    def counting(theta, t):
        sizes.append(len(theta) if kind != "row by row" else 1)
        return LINES[kind](theta, t)

    target, _ = make_target(counting)
    z, index = latent(), torch.arange(3)
    z[1, 2, 0] = 9.0
    whole = target.evaluate(z, index)
    sizes.clear()
    monkeypatch.setitem(launch.KINDS, "cpu", replace(CPU, target_rows=rows))
    parts = target.evaluate(z, index)
    # one row is given twice, for vectorised code that would squeeze it away
    assert 0 < max(sizes) <= max(rows, 2)
    for name in ("log_prior", "log_likelihood", "failed"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-13, atol=0)


def test_memory_of_a_launch_is_bounded_for_long_data():
    target, _ = make_target(torch_line)
    long = nbi.Observations.from_arrays(np.zeros((1, 2**20))).batch()
    rows = Target(PRIOR, target.simulator, target.noise, long)._rows_per_launch()
    assert rows * 2**20 * 8 <= CPU.target_bytes
    assert target._launches(3, 100_000)[0][1].stop <= CPU.target_rows


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_draws_beyond_the_latent_bound_have_no_weight_and_no_simulation(kind):
    seen = []

    def recording(theta, t):
        seen.extend(np.asarray(theta.detach() if kind == "torch" else theta)[:, 0].tolist())
        return LINES[kind](theta, t)

    target, obs = make_target(recording)
    z, index = latent(), torch.arange(3)
    z[0, 1, 0], z[2, 3, 1], z[1, 0, 0], z[1, 1, 1] = Z_MAX + 1e-9, -Z_MAX - 1, math.nan, math.inf
    seen.clear()
    found = target.evaluate(z, index)
    outside = ~(z.abs() <= Z_MAX).all(-1)
    assert outside.sum() == 4
    assert len(seen) == z[..., 0].numel() - 4
    assert torch.equal(found.log_prior == -math.inf, outside)
    assert torch.equal(found.log_likelihood == -math.inf, outside)
    assert not found.failed.any()
    assert torch.equal(target.log_prob(z, index) == -math.inf, outside)
    inside = ~outside.numpy()
    ordinary = closed_form(z.nan_to_num(0.0).clamp(-8, 8), obs, [0, 1, 2])
    np.testing.assert_allclose(target.log_prob(z, index)[inside], ordinary[inside], rtol=1e-11)


def test_nothing_inside_is_no_error():
    for kind in ("numpy", "torch"):
        target, _ = make_target(LINES[kind])
        assert (target.log_prob(latent() + 20, torch.arange(3)) == -math.inf).all()
        assert target.log_prob(latent(0), torch.arange(0)).shape == (0, 7)


def breaking(kind, above=2.5, nan_below=-2.0):
    """Return a line that raises where a > above, and is NaN where a < nan_below."""

    def line(theta, t):
        if (theta[:, 0] > above).any():
            raise ValueError("a is too large")
        if kind == "torch":
            return torch.where(theta[:, :1] < nan_below, math.nan, torch_line(theta, t))
        return np.where(np.asarray(theta)[:, :1] < nan_below, np.nan, numpy_line(theta, t))

    return line


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_failed_and_nan_rows_are_marked_and_the_others_kept(kind):
    target, obs = make_target(breaking(kind))
    assert target.simulator.backend == kind
    z, index = latent(s=40), torch.arange(3)
    a = PRIOR.from_latent(z)[..., 0]
    found = target.evaluate(z, index)
    assert torch.equal(found.failed, a > 2.5)
    assert torch.equal(found.log_likelihood.isnan(), a < -2.0)
    assert 0 < len(found.errors) <= 10
    assert "a is too large" in found.errors[0]
    good = (a <= 2.5) & (a >= -2.0)
    value = target.log_prob(z, index)
    assert torch.equal(value > -math.inf, good)
    np.testing.assert_allclose(
        value[good], closed_form(z, obs, [0, 1, 2])[good.numpy()], rtol=1e-11
    )
    models = target.simulate(z, index)
    assert torch.equal(models.isnan().all((-1, -2)), ~good)


def numerical_gradient(target, z, index, step=1e-5):
    slopes = torch.zeros_like(z)
    for d in range(z.shape[-1]):
        shift = step * torch.eye(z.shape[-1], dtype=z.dtype)[d]
        slopes[..., d] = target.log_prob(z + shift, index) - target.log_prob(z - shift, index)
    return slopes / (2 * step)


@pytest.mark.parametrize("noise", [
    GaussianNoise(), GaussianNoise(jitter="b", fractional=0.1), nbi.StudentTNoise(4.0),
])  # fmt: skip
@pytest.mark.parametrize("rows", [5, 10_000])
def test_gradient_equals_finite_differences(noise, rows, monkeypatch):
    monkeypatch.setitem(launch.KINDS, "cpu", replace(CPU, target_rows=rows))
    target, _ = make_target(torch_line, noise=noise)
    z, index = latent().requires_grad_(), torch.tensor([2, 0, 1])
    slope = torch.autograd.grad(target.log_prob(z, index).sum(), z)[0]
    expected = numerical_gradient(target, z.detach(), index)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-5)


def test_rows_that_fail_do_not_cost_the_others_their_gradient():
    target, _ = make_target(breaking("torch"))
    z, index = latent(s=40).requires_grad_(), torch.arange(3)
    value = target.log_prob(z, index)
    slope = torch.autograd.grad(value[value.isfinite()].sum(), z)[0]
    good = value.isfinite()
    near_an_edge = (PRIOR.from_latent(z.detach())[..., 0] - 2.5).abs() < 1e-3
    expected = numerical_gradient(target, z.detach(), index)
    keep = good & ~near_an_edge & expected.isfinite().all(-1)
    assert keep.sum() > 80
    torch.testing.assert_close(slope[keep], expected[keep], rtol=1e-5, atol=1e-5)
    assert not slope[~good].nan_to_num(0.0).any()


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_per_object_coordinates_and_scalars_reach_their_object(kind):
    def dated(theta, t, period):
        assert len(theta) == len(t) == len(period)
        return LINES[kind](theta, t) + period

    times = np.random.default_rng(3).uniform(0, 5, (3, len(T)))
    periods = np.array([10.0, 200.0, 3000.0])
    target, obs = make_target(dated, t=times, period=periods)
    for index in ([0, 1, 2], [2, 0]):
        z = latent(len(index), 4)
        theta = PRIOR.complete(PRIOR.from_latent(z.numpy()))
        slope = theta[..., 1:2] * theta[..., 2:3]
        model = theta[..., :1] + slope * times[index][:, None] + periods[index][:, None, None]
        rows = obs[index]
        each = stats.norm.logpdf(rows.x, model, rows.x_err) * rows.mask
        expected = stats.norm.logpdf(z.numpy()).sum(-1) + each.sum(-1)
        found = target.log_prob(z, torch.tensor(index))
        np.testing.assert_allclose(found, expected, rtol=1e-11)
        simulated = target.simulate(z, torch.tensor(index))
        np.testing.assert_allclose(simulated[:, :, 0], model, rtol=1e-12)


@pytest.mark.parametrize("kind", LINES)
def test_densities_are_those_of_theta(kind):
    target, obs = make_target(LINES[kind])
    theta = np.array([[0.5, 0.2], [30.0, 0.0], [1.0, 1.0], [1.0, 1.5], [-3.0, -0.999]])
    log_prior, log_like = target.densities(theta)
    inside = np.abs(theta[:, 1]) <= 1
    expected = stats.norm.logpdf(theta[:, 0], 1, 2) + np.where(inside, np.log(0.5), -np.inf)
    np.testing.assert_allclose(log_prior, expected)
    model = theta[:, :1] + 3.0 * theta[:, 1:] * T
    each = (stats.norm.logpdf(obs.x[0], model, obs.x_err[0]) * obs.mask[0]).sum(-1)
    # that of 14 sigma and on the edge of the prior too: these are for other samplers
    np.testing.assert_allclose(log_like, np.where(inside, each, -np.inf), rtol=1e-11)


def test_densities_of_failed_and_nan_rows_are_zero():
    target, _ = make_target(breaking("numpy"))
    log_prior, log_like = target.densities(np.array([[0.0, 0.0], [4.0, 0.0], [-4.0, 0.0]]))
    assert np.isfinite(log_prior).all()
    assert np.isfinite(log_like).tolist() == [True, False, False]
    assert (log_like[1:] == -np.inf).all()


@pytest.mark.parametrize("kind", LINES)
def test_terms_and_draws_are_of_theta_wherever_it_is(kind):
    target, obs = make_target(LINES[kind])
    theta = torch.tensor([[[0.5, 0.2]], [[1.0, 7.0]]], dtype=torch.float64)  # beyond the prior, too
    found = target.terms(theta.requires_grad_(), torch.tensor([2, 0]))
    assert found.requires_grad == (kind == "torch")
    rows = theta.detach().numpy()
    model = rows[..., :1] + 3.0 * rows[..., 1:] * T
    each = stats.norm.logpdf(obs.x[[2, 0]], model, obs.x_err[[2, 0]]) * obs.mask[[2, 0]]
    np.testing.assert_allclose(found[:, 0].detach(), each, rtol=1e-11)
    many, owner = theta.detach()[[1] * 2000, 0], torch.zeros(2000, dtype=torch.int64)
    drawn = target.draw(many, owner, torch.Generator().manual_seed(0))[:, 0].numpy()
    valid = obs.mask[0, 0]
    assert np.isnan(drawn[:, ~valid]).all()
    off = (drawn[:, valid] - model[1, 0][valid]) / obs.x_err[0, 0][valid]
    assert (abs(off.mean(0)) < 4 / 2000**0.5).all()
    assert (abs(off.std(0) - 1) < 4 / 4000**0.5).all()


def test_terms_of_failed_and_nan_rows_are_none():
    target, _ = make_target(breaking("numpy"))
    theta = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [-4.0, 0.0]]], dtype=torch.float64)
    found = target.terms(theta, torch.zeros(1, dtype=torch.int64)).sum((2, 3))[0]
    assert found.isfinite().tolist() == [True, False, False]
    assert (found[1:] == -math.inf).all()


def test_no_gradient_is_built_unasked():
    target, _ = make_target(torch_line)
    assert not target.log_prob(latent(), torch.arange(3)).requires_grad
    with torch.no_grad():
        assert not target.log_prob(latent().requires_grad_(), torch.arange(3)).requires_grad
