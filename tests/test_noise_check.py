"""Laws of the noise checks: right noise passes, wrong noise is found by the name of its mistake."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats import loguniform, norm, uniform

import nbi_plus as nbi
from nbi_plus import GaussianNoise, PointNoise, PoissonNoise, StudentTNoise
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.checks.noise_check import checks_of, require, simulated_rows
from nbi_plus.problem.noise import NOISES, noise_from_meta

PRIOR = nbi.Prior({"a": uniform(2, 3), "b": norm(0, 0.1), "s": loguniform(0.1, 1)})
LENGTH = 12
T = np.sort(np.random.default_rng(0).uniform(0, 10, LENGTH))


def line(theta, t):
    return theta[:, :1] + theta[:, 1:2] * t


def chance(theta, t):
    return 1 / (1 + np.exp(2 - line(theta, t)))


def objects(seed=1, n=3, errors=True, masked=True, length=LENGTH):
    rng = np.random.default_rng(seed)
    shape = (n, length)
    flux = rng.normal(3, 1, shape) if errors else rng.poisson(3, shape).astype(float)
    return nbi.Observations.from_arrays(
        flux,
        rng.uniform(0.2, 0.6, shape) if errors else None,
        mask=rng.random(shape) < 0.8 if masked else None,
        t=T[:length],
        band=np.where(rng.random(shape) < 0.5, "g", "r"),
        upper_limit=np.zeros(shape, bool),
    )


def found(noise, observations=None, prior=PRIOR, simulator=None, seed=0):
    """Return the names of the checks that failed, and the details."""
    observations = objects() if observations is None else observations
    counts = isinstance(noise, nbi.BinomialNoise)
    simulator = simulator or (chance if counts else line)
    table = nbi.check_noise(noise, simulator, prior, observations, seed=seed)
    assert table.colnames == ["check", "passed", "detail"]
    return {row["check"]: str(row["detail"]) for row in table if not row["passed"]}


SHIPPED = {
    "gaussian": (GaussianNoise(), True),
    "gaussian, named": (GaussianNoise("s", fractional=0.1), False),
    "gaussian, jitter and fraction": (GaussianNoise(jitter="s", fractional="b"), True),
    "student": (StudentTNoise(4.0, jitter="s"), True),
    "cauchy": (StudentTNoise(1.0), True),
    "poisson": (PoissonNoise(2.0, 0.5), False),
    "poisson, few counts": (PoissonNoise(0.01), False),
    "binomial": (nbi.BinomialNoise(40), False),
    "beta-binomial": (nbi.BetaBinomialNoise(40, "s"), False),
    "outliers": (nbi.OutlierNoise("s", 5.0, jitter=0.1), True),
    "limits": (nbi.UpperLimits(GaussianNoise(0.5, jitter="s"), 5.0), False),
    "limits, kept": (nbi.UpperLimits(StudentTNoise(), None), True),
    "calibration": (nbi.CalibrationError(GaussianNoise(), {"g": 0.1, "r": 0.2}), True),
    "offset": (nbi.LinearNuisance(GaussianNoise(), ("offset", "slope"), sd=1e3), True),
    "scale": (nbi.LinearNuisance(GaussianNoise(), ("scale", "offset"), sd=[3.0, 1e8]), True),
    "process": (nbi.GaussianProcessNoise(nbi.DampedRandomWalk("s", 2.0), jitter=0.1), True),
    "process, named": (nbi.GaussianProcessNoise(nbi.DampedRandomWalk(0.3, 2.0), sigma="s"), False),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_noise_passes(name):
    noise, errors = SHIPPED[name]
    assert found(noise, objects(errors=errors)) == {}


def test_every_registered_noise_is_tried():
    assert {type(noise).__name__ for noise, _ in SHIPPED.values()} == set(NOISES)


@pytest.mark.parametrize("name", ["gaussian", "cauchy", "poisson, few counts", "limits"])
def test_right_noise_gives_no_false_alarm(name):
    noise, errors = SHIPPED[name]
    for seed in range(5):
        few = objects(seed, errors=errors, length=3)
        assert found(noise, few, seed=seed) == {}


@pytest.mark.statistics
@pytest.mark.parametrize("name", SHIPPED)
def test_right_noise_gives_no_false_alarm_in_many_seeds(name):
    noise, errors = SHIPPED[name]
    for seed in range(200):
        assert found(noise, objects(seed, errors=errors), seed=seed) == {}


def drawn(size, rng):
    return torch.randn(size.shape, generator=rng, dtype=size.dtype, device=size.device)


def normal(obs, model, sigma):
    """Return the log-density of the points that are there."""
    each = -0.5 * ((obs.x - model) / sigma) ** 2 - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
    return torch.where(obs.mask, each, 0.0).sum((-2, -1))


def custom(augment=None, log_likelihood=None):
    """Return Gaussian noise of the errors, of which one half may be another."""
    return nbi.CustomNoise(
        augment or (lambda model, obs, theta, rng: model + obs.x_err * drawn(model, rng)),
        log_likelihood or (lambda theta, model, obs: normal(obs, model, obs.x_err)),
    )


def test_obvious_custom_noise_passes_and_equals_gaussian():
    assert found(custom()) == {}
    obs = objects()
    rng = np.random.default_rng(0)
    for n_draws in (1, 3, 5):  # three are as many as there are objects
        model, theta = rng.normal(3, 1, (3, n_draws, 1, LENGTH)), rng.normal(size=(3, n_draws, 3))
        ours = GaussianNoise().log_likelihood(theta, model, obs)
        model = np.where(obs.mask[:, None], model, np.nan)
        np.testing.assert_allclose(custom().log_likelihood(theta, model, obs), ours, rtol=1e-12)


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_scatter_ten_percent_off_is_found(factor, length):
    def augment(model, obs, theta, rng):
        return model + factor * obs.x_err * drawn(model, rng)

    failed = found(custom(augment), objects(masked=False, length=length))
    assert set(failed) == {"width"}
    assert "variance of its score" in failed["width"]


def test_shifted_draws_are_found():
    def augment(model, obs, theta, rng):
        return model + obs.x_err * (0.1 + drawn(model, rng))

    assert "location" in found(custom(augment))


def test_density_that_is_not_normalised_in_a_parameter_is_found():
    def augment(model, obs, theta, rng):
        return model + theta[..., 2, None, None] * drawn(model, rng)

    def log_likelihood(theta, model, obs):
        each = -0.5 * ((obs.x - model) / theta[..., 2, None, None]) ** 2
        return torch.where(obs.mask, each, 0.0).sum((-2, -1))

    failed = found(custom(augment, log_likelihood))
    assert set(failed) == {"parameters"}
    assert "'s'" in failed["parameters"]


def test_correlations_left_out_are_found():
    def augment(model, obs, theta, rng):
        return model + obs.x_err * (drawn(model, rng) + drawn(model[..., :1], rng)) / math.sqrt(2)

    assert "width" in found(custom(augment))


def test_likelihood_that_looks_at_masked_points_is_found():
    def log_likelihood(theta, model, obs):
        sigma = obs.x_err
        return (-0.5 * ((obs.x - model) / sigma) ** 2 - torch.log(sigma)).sum((-2, -1))

    def of_one_size(theta, model, obs):
        return (-0.5 * (obs.x - model) ** 2 - 0.5 * math.log(2 * math.pi)).sum((-2, -1))

    for wrong in (log_likelihood, of_one_size):
        assert set(found(custom(None, wrong))) == {"mask"}


def warnings_of(caplog, noise, observations, prior=PRIOR, simulator=line):
    """Return what `fit` logs of its checks."""
    batch = observations.batch()
    rows = simulated_rows(bind_simulator(simulator, prior, batch), prior, batch)
    with caplog.at_level(logging.WARNING, "nbi_plus"):
        require(checks_of(noise, prior, rows))
    return caplog.text


def test_data_without_gaps_need_no_mask_but_a_warning(caplog):
    def augment(model, obs, theta, rng):
        return model + drawn(model, rng)

    def log_likelihood(theta, model, obs):
        return (-0.5 * (obs.x - model) ** 2 - 0.5 * math.log(2 * math.pi)).sum((-2, -1))

    assert found(custom(augment, log_likelihood), objects(masked=False)) == {}
    told = warnings_of(caplog, custom(augment, log_likelihood), objects(masked=False))
    assert "must be 0 where all points are masked" in told


def test_objects_that_are_paired_wrongly_are_found():
    def of_other_objects(theta, model, obs):
        if model.ndim == 3:
            return normal(obs, model, obs.x_err)
        sigma, x = (torch.movedim(v, 0, 1).expand_as(model) for v in (obs.x_err, obs.x))
        each = torch.distributions.Normal(model, sigma).log_prob(x)
        return torch.where(obs.mask, each, 0.0).sum((-2, -1))

    class FirstDraw(PointNoise):
        def _draw(self, model, obs, theta, rng):
            return model + theta[:, 2, None, None] * drawn(model, rng)

        def _log_density(self, model, obs, theta):  # the second axis is that of draws
            sigma = theta[:, 2, None, None] if theta.ndim == 2 else theta[:, :1, 2:3, None]
            return torch.distributions.Normal(model, sigma).log_prob(obs.x)

    three = objects(n=3)
    assert set(found(custom(None, of_other_objects), three)) <= {"shapes", "objects"}
    assert found(custom(None, of_other_objects), three)
    assert set(found(FirstDraw(), three)) == {"objects"}


def test_axis_of_draws_given_twice_is_refused():
    def unsqueezed(theta, model, obs):
        x, sigma = (v[:, None] if model.ndim == 4 else v for v in (obs.x, obs.x_err))
        return (-0.5 * ((x - model) / sigma) ** 2 - torch.log(sigma)).sum((-2, -1))

    failed = found(custom(None, unsqueezed), objects(masked=False))
    assert "without unsqueeze" in failed["shapes"]


def test_all_that_a_noise_gets_has_one_dtype():
    seen = set()

    def augment(model, obs, theta, rng):
        seen.add((model.dtype, obs.x.dtype, obs.x_err.dtype, theta.dtype, obs.coords["t"].dtype))
        return model + obs.x_err * drawn(model, rng)

    class Point(GaussianNoise):
        def _draw(self, model, obs, theta, rng):
            kinds.add((model.dtype, obs.x.dtype, obs.x_err.dtype, theta.dtype))
            return super()._draw(model, obs, theta, rng)

    kinds = set()
    model, theta = torch.ones(3, 1, LENGTH), torch.ones(3, 3, dtype=torch.float64)
    for noise in (custom(augment), Point()):
        found(noise)
        x = noise.augment(model, objects(), theta, torch.Generator())  # as in training
        assert x.dtype == torch.float32
    assert seen == {(torch.float64,) * 5}
    assert kinds == {(torch.float32,) * 4, (torch.float64,) * 4}


def test_noise_of_one_dtype_only_is_found():
    class Stiff(GaussianNoise):
        def _draw(self, model, obs, theta, rng):
            mix = torch.eye(model.shape[-1], dtype=torch.float64)
            return super()._draw(model, obs, theta, rng) @ mix

    assert set(found(Stiff())) == {"dtypes"}


def counts(model, obs, theta, rng, n_trials=20):
    """Return beta-binomial counts of mean probability ``model``, by Polya's urn."""
    size = theta[..., 0, None, None]
    total = torch.zeros_like(model)
    for i in range(n_trials):
        chance = (model + total / size) / (1 + i / size)
        total += torch.rand(model.shape, generator=rng, dtype=model.dtype) < chance
    return total


def textbook(theta, model, obs, n_trials=20):
    size = theta[..., 0, None, None]
    a, b, x = model * size, (1 - model) * size, obs.x
    beta = [torch.lgamma(p) + torch.lgamma(q) - torch.lgamma(p + q)
            for p, q in ((x + a, n_trials - x + b), (a, b))]  # fmt: skip
    n = torch.tensor(float(n_trials), dtype=model.dtype)
    ways = torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
    return torch.where(obs.mask, ways + beta[0] - beta[1], 0.0).sum((-2, -1))


def stable(theta, model, obs, n_trials=20):
    size, x = theta[..., 0, None, None], obs.x
    total = math.lgamma(n_trials + 1) - torch.lgamma(x + 1) - torch.lgamma(n_trials - x + 1)
    for i in range(n_trials):
        total = total - torch.log1p(i / size)
        total = total + torch.where(x > i, torch.log(model + i / size), 0.0)
        total = total + torch.where(n_trials - x > i, torch.log(1 - model + i / size), 0.0)
    return torch.where(obs.mask, total, 0.0).sum((-2, -1))


def test_likelihood_that_jumps_is_found_and_warned_about(caplog):
    prior = nbi.Prior({"size": loguniform(1e2, 1e10), "p": norm(0, 1)})

    def chance(theta, t):
        return 1 / (1 + np.exp(-theta[:, 1:] - 0.1 * (t - 5)))

    data = objects(errors=False)
    assert found(custom(counts, stable), data, prior, chance) == {}
    failed = found(custom(counts, textbook), data, prior, chance)
    assert set(failed) == {"smooth"}
    assert "jumps by up to" in failed["smooth"]
    told = warnings_of(caplog, custom(counts, textbook), data, prior, chance)
    assert "log_likelihood jumps by up to" in told


def test_kinks_and_edges_of_a_density_are_no_mistakes():
    def uniform_draws(model, obs, theta, rng):
        return model + torch.rand(model.shape, generator=rng, dtype=model.dtype)

    def uniform_density(theta, model, obs):
        inside = (obs.x >= model) & (obs.x <= model + 1)
        return torch.where(inside | ~obs.mask, 0.0, -math.inf).to(model).sum((-2, -1))

    def laplace_draws(model, obs, theta, rng):
        u = torch.rand(model.shape, generator=rng, dtype=model.dtype) - 0.5
        return model - theta[..., 2, None, None] * u.sign() * torch.log1p(-2 * u.abs())

    def laplace_density(theta, model, obs):
        width = theta[..., 2, None, None]
        each = -(obs.x - model).abs() / width - torch.log(2 * width)
        return torch.where(obs.mask, each, 0.0).sum((-2, -1))

    assert found(custom(uniform_draws, uniform_density)) == {}
    assert found(custom(laplace_draws, laplace_density)) == {}


def test_noise_that_refuses_impossible_models_is_not_blamed():
    def augment(model, obs, theta, rng):
        if (model < 0).any() or (model > 9).any():
            raise ValueError("rates must be in [0, 9]")
        return torch.poisson(model, generator=rng)

    def log_likelihood(theta, model, obs):
        each = torch.distributions.Poisson(model).log_prob(obs.x)
        return torch.where(obs.mask, each, 0.0).sum((-2, -1))

    assert found(custom(augment, log_likelihood), objects(errors=False)) == {}


def test_noise_without_likelihood_is_tried_for_shapes_alone():
    noise = nbi.CustomNoise(lambda model, obs, theta, rng: model)
    table = nbi.check_noise(noise, line, PRIOR, objects())
    assert list(table["check"]) == ["shapes", "dtypes"]
    assert table["passed"].all()
    wrong = nbi.CustomNoise(lambda model, obs, theta, rng: model[..., :1])
    assert "augment must return a tensor of shape" in found(wrong)["shapes"]


def test_check_needs_no_simulator_and_no_observations():
    assert found(GaussianNoise(), simulator=None) == {}
    flat = nbi.check_noise(GaussianNoise(0.5), lambda theta: theta @ np.ones((3, 5)), PRIOR, None)
    assert flat["passed"].all()
    with pytest.raises(ValueError, match="simulator or observations, but has neither"):
        nbi.check_noise(GaussianNoise(0.5), None, PRIOR, None)


def engine_of(noise, prior=PRIOR, simulator=line):
    small = {"type": "resnet", "depth": 1, "dim_conv_max": 8, "dim_out": 4}
    flow = {"num_blocks": 1, "flow_hidden": 8}
    return nbi.Engine(simulator, prior, noise=noise, featurizer=small, flow=flow)


def test_fit_raises_before_it_trains_and_simulates_little():
    n_rows = []

    def counted(theta, t):
        n_rows.append(len(theta))
        return line(theta, t)

    def augment(model, obs, theta, rng):
        return model + 1.5 * obs.x_err * drawn(model, rng)

    def wrong_terms(noise, **fit):
        with pytest.raises(ValueError, match="noise must pass its checks.*fails 'width'"):
            engine_of(noise, simulator=nbi.Simulator(counted, vectorized=True)).fit(**fit)

    wrong_terms(custom(augment), n_sims=100_000, n_epochs=1, observations=objects())
    assert sum(n_rows) < 2000
    before = sum(n_rows)
    theta = PRIOR.sample(100, 0)
    x = line(theta, T)
    one = {"x_obs": x[0], "x_err": np.full(LENGTH, 0.3), "t": T}
    wrong_terms(custom(augment), theta=theta, x=x, n_epochs=1, **one)
    wrong_terms(custom(augment), n_sims=500, n_rounds=3, n_epochs=1, **one)
    assert sum(n_rows) < 3 * before


def test_slow_simulator_is_asked_for_one_row():
    batch = objects().batch()
    bound = bind_simulator(line, PRIOR, batch)
    assert len(simulated_rows(bound, PRIOR, batch)) == 6
    slow = type(bound)(**{**vars(bound), "seconds_per_row": 1.0})
    rows = simulated_rows(slow, PRIOR, batch)
    assert len(rows) == 1
    noise = GaussianNoise().bind(True, PRIOR.full_names)
    assert all(check.passed for check in checks_of(noise, PRIOR, rows))


@pytest.mark.parametrize("kind", [GaussianNoise, StudentTNoise])
def test_sigma_and_fractional_may_name_parameters(kind):
    law = stats.norm if kind is GaussianNoise else stats.t(4)
    rng = np.random.default_rng(0)
    x, model = rng.normal(size=(2, 3, 1, 5))
    theta = rng.uniform(0.2, 1, (3, 3))
    obs = nbi.Observations.from_arrays(x)
    noise = kind(sigma="s", fractional="b").bind(False, PRIOR.full_names)
    scale = np.hypot(theta[:, 2, None, None], theta[:, 1, None, None] * model)
    expected = (law.logpdf((x - model) / scale) - np.log(scale)).sum((1, 2))
    np.testing.assert_allclose(noise.log_likelihood(theta, model, obs), expected, rtol=1e-12)
    leaf = torch.from_numpy(theta).requires_grad_()
    value = noise.log_likelihood(leaf, torch.from_numpy(model), obs).sum()
    assert torch.autograd.grad(value, leaf)[0][:, 1:].abs().min() > 0
    again = noise_from_meta(noise.meta()).bind(False, PRIOR.full_names)
    assert again.meta() == noise.meta()
    np.testing.assert_allclose(again.log_likelihood(theta, model, obs), expected, rtol=1e-12)
    known = nbi.Observations.from_arrays(x, 0.5)
    plain = kind().bind(True, PRIOR.full_names)
    named = kind(sigma="s").bind(True, PRIOR.full_names)
    errors_win = [one.log_likelihood(theta, model, known) for one in (plain, named)]
    np.testing.assert_array_equal(*errors_win)
    with pytest.raises(ValueError, match="sigma must name a parameter of"):
        kind(sigma="c").bind(False, PRIOR.full_names)


def test_named_sigma_survives_an_engine_file(tmp_path):
    engine = engine_of(GaussianNoise("s", fractional="b"))
    engine.fit(n_sims=100, n_epochs=1, observations=objects(errors=False))
    engine.save(tmp_path / "engine.nbi")
    again = nbi.Engine.load(tmp_path / "engine.nbi", line)
    assert again.noise_.meta() == engine.noise_.meta()
    theta, one = PRIOR.sample(4, 0), objects(errors=False)[:1]
    values = [e.noise_.log_likelihood(theta, line(theta, T)[:, None], one) for e in (engine, again)]
    np.testing.assert_array_equal(*values)
    assert np.isfinite(values).all()


def test_limits_of_a_size_that_is_a_parameter_are_refused():
    noise = nbi.UpperLimits(GaussianNoise("s"), 5.0)
    with pytest.raises(ValueError, match="sigma must be known for limits"):
        noise.bind(False, PRIOR.full_names)
    assert found(noise) == {}  # where the errors of the data win


def test_sigma_of_other_points_is_refused():
    noise = GaussianNoise(np.ones(LENGTH + 1))
    with pytest.raises(ValueError, match=r"sigma must have a shape that fits x \(C, L\) = \(1, 12"):
        engine_of(noise).fit(n_sims=100, n_epochs=1, observations=objects(errors=False))
    assert found(GaussianNoise(np.ones(LENGTH)), objects(errors=False)) == {}
