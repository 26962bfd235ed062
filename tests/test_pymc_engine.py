"""Engines inside PyMC: the density is that of the noise, with the simulator's gradient."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi

with warnings.catch_warnings():  # those of other people's imports are no errors of ours
    warnings.simplefilter("ignore")
    pm = pytest.importorskip("pymc", reason='needs pymc: pip install "nbi-plus[pymc]"')
    from nbi_plus.pymc import NeuralDistribution
    from nbi_plus.pymc.objects import variable_of

pytestmark = pytest.mark.filterwarnings("default")
PRIOR = {"a": uniform(-5, 10), "b": uniform(-5, 10)}
T = np.linspace(0.0, 1.0, 30)
ERROR = np.where(np.arange(30) % 2, 0.3, 0.6)
X = 1.0 + 2.0 * T + ERROR * np.random.default_rng(0).normal(size=30)
QUICK = {"chains": 2, "cores": 1, "progressbar": False, "random_seed": 0}


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


def black_box(theta, t):
    return np.asarray(theta)[:, :1] + np.asarray(theta)[:, 1:] * np.asarray(t)


def both(theta, t):
    return torch.stack([theta[:, :1] + theta[:, 1:] * t, theta[:, :1] - theta[:, 1:] * t], 1)


@pytest.fixture(scope="module")
def engine():
    return nbi.Engine(line, PRIOR).fit(n_sims=200, n_epochs=1, x_obs=X, x_err=ERROR, t=T)


def model_of(engine, **data):
    with pm.Model() as model:
        a, b = pm.Normal("a", 0, 3), pm.Normal("b", 0, 3)
        NeuralDistribution(engine)("x", a=a, b=b, **data)
    return model


def exact():
    """Return mean and covariance of the line under the model's priors, in closed form."""
    design = np.stack([np.ones_like(T), T], 1)
    covariance = np.linalg.inv(design.T @ (design / ERROR[:, None] ** 2) + np.eye(2) / 9)
    return covariance @ design.T @ (X / ERROR**2), covariance


def terms(model, a, b):
    (found,) = model.compile_logp(vars=model.observed_RVs, sum=False)(
        {"a": np.array(a), "b": np.array(b)}
    )
    return found


def test_density_is_that_of_the_noise_at_each_point(engine):
    found = terms(model_of(engine, observed=X, x_err=ERROR, t=T), 0.5, 1.5)
    np.testing.assert_allclose(found, norm.logpdf(X, 0.5 + 1.5 * T, ERROR), rtol=1e-10)
    whole = engine.log_likelihood([[0.5, 1.5]], X, ERROR, t=T)
    assert found.sum() == pytest.approx(whole[0], rel=1e-10)


def test_what_fit_was_given_stands_in_and_the_prior_takes_no_part(engine):
    found = terms(model_of(engine, observed=X), 50.0, -70.0)
    np.testing.assert_allclose(found, norm.logpdf(X, 50.0 - 70.0 * T, ERROR), rtol=1e-10)


def test_an_engine_need_not_be_fitted_and_masked_points_do_not_count():
    bare = nbi.Engine(line, PRIOR)
    gaps = np.arange(30) % 3 == 0
    found = terms(model_of(bare, observed=X, x_err=ERROR, t=T, bad=gaps), 0.5, 1.5)
    expected = np.where(gaps, 0.0, norm.logpdf(X, 0.5 + 1.5 * T, ERROR))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_channels_and_objects_have_terms_of_their_own():
    engine = nbi.Engine(both, PRIOR, noise=0.5)
    x = np.random.default_rng(1).normal(size=(2, 30))
    found = terms(model_of(engine, observed=x, t=T), 0.5, 1.5)
    mean = np.stack([0.5 + 1.5 * T, 0.5 - 1.5 * T])
    np.testing.assert_allclose(found, norm.logpdf(x, mean, 0.5), rtol=1e-10)
    t = np.random.default_rng(2).uniform(size=(3, 30))
    x = np.random.default_rng(3).normal(size=(3, 30))
    many = nbi.Observations.from_arrays(x, 0.5, t=t)
    level = np.array([0.1, 0.2, 0.3])
    with pm.Model() as model:
        b = pm.Flat("b")
        NeuralDistribution(nbi.Engine(line, PRIOR))("x", a=level, b=b, observed=many)
    (found,) = model.compile_logp(vars=model.observed_RVs, sum=False)({"b": np.array(2.0)})
    expected = norm.logpdf(x, level[:, None] + 2.0 * t, 0.5)
    np.testing.assert_allclose(found, expected[:, None], rtol=1e-10)
    slope = model.compile_dlogp()({"b": np.array(2.0)})
    own = (t * (x - level[:, None] - 2.0 * t) / 0.25).sum()
    assert slope[0] == pytest.approx(own, rel=1e-10)


def test_noise_of_points_together_has_one_term():
    together = nbi.LinearNuisance(nbi.GaussianNoise(0.5), "offset", sd=2.0)
    engine = nbi.Engine(line, PRIOR, noise=together)
    found = terms(model_of(engine, observed=X, t=T), 0.5, 1.5)
    assert found.shape == ()
    whole = engine.log_likelihood([[0.5, 1.5]], X, t=T)
    assert found == pytest.approx(whole[0], rel=1e-10)
    drawn = pm.draw(model_of(engine, observed=X, t=T)["x"], 3, random_seed=0)
    assert drawn.shape == (3, 30)


def test_gradient_is_that_of_differences(engine):
    model = model_of(engine, observed=X, x_err=ERROR, t=T)
    start = {"a": np.array(0.3), "b": np.array(1.1)}
    slope, logp = model.compile_dlogp()(start), model.compile_logp()
    for i, n in enumerate(start):
        up, down = ({**start, n: start[n] + s} for s in (1e-5, -1e-5))
        assert slope[i] == pytest.approx((logp(up) - logp(down)) / 2e-5, rel=1e-6)


def test_nuts_finds_the_posterior_of_a_line(engine):
    with model_of(engine, observed=X, x_err=ERROR, t=T):
        found = pm.sample(draws=1000, tune=400, idata_kwargs={"log_likelihood": True}, **QUICK)
        drawn = pm.sample_posterior_predictive(found, random_seed=1, progressbar=False)
        before = pm.sample_prior_predictive(200, random_seed=2)
    mean, covariance = exact()
    for name, centre, sd in zip("ab", mean, covariance.diagonal() ** 0.5, strict=True):
        own = np.asarray(found.posterior[name]).ravel()
        assert abs(own.mean() - centre) < 0.1 * sd
        assert abs(own.std() / sd - 1) < 0.1
    assert found.log_likelihood["x"].shape == (2, 1000, 30)
    again = np.asarray(drawn.posterior_predictive["x"]).reshape(-1, 30)
    design = np.stack([np.ones_like(T), T], 1)
    spread = (ERROR**2 + ((design @ covariance) * design).sum(1)) ** 0.5
    assert (abs(again.mean(0) - design @ mean) < 5 * spread / 1000**0.5).all()
    assert (abs(again.std(0) / spread - 1) < 5 / 2000**0.5).all()
    residual = np.asarray(again - again.mean(0))
    assert abs(np.corrcoef(residual[:, 0], residual[:, 29])[0, 1]) < 0.5
    assert before.prior_predictive["x"].shape == (1, 200, 30)


def test_a_black_box_is_sampled_without_gradients_and_refused_with_them():
    engine = nbi.Engine(black_box, PRIOR)
    model = model_of(engine, observed=X, x_err=ERROR, t=T)
    np.testing.assert_allclose(terms(model, 0.5, 1.5), norm.logpdf(X, 0.5 + 1.5 * T, ERROR))
    with model, pytest.raises(NotImplementedError, match="x has no gradient, which NUTS"):
        pm.NUTS()
    with model:
        found = pm.sample(draws=600, tune=100, step=pm.Slice(), **QUICK)
    mean, covariance = exact()
    for name, centre, sd in zip("ab", mean, covariance.diagonal() ** 0.5, strict=True):
        own = np.asarray(found.posterior[name]).ravel()
        assert abs(own.mean() - centre) < 5 * sd / 200**0.5  # slices of a ridge: fewer draws count
        assert abs(own.std() / sd - 1) < 5 / 400**0.5


def test_scalars_are_given_by_name():
    def stretched(theta, t, z):
        return theta[:, :1] + theta[:, 1:] * t / (1 + z.reshape(-1, 1))

    engine = nbi.Engine(stretched, PRIOR, noise=0.5)
    found = terms(model_of(engine, observed=X, t=T, z=0.25), 0.5, 1.5)
    np.testing.assert_allclose(found, norm.logpdf(X, 0.5 + 1.2 * T, 0.5), rtol=1e-10)


def value_in_another_process(text):
    op = pickle.loads(text)  # noqa: S301
    theta = torch.tensor([[0.5, 1.5]], dtype=torch.float64)
    return float(op.fit.log_prob(theta, op.fit.statistics("x", X)).sum())


def test_operations_go_into_processes_that_are_spawned(engine):
    beside = {"x_err": ERROR, "mask": None, "bad": None}
    op = variable_of(engine, "x", X, beside, {"t": T}).op
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(value_in_another_process, (pickle.dumps(op),))
    assert found == pytest.approx(norm.logpdf(X, 0.5 + 1.5 * T, ERROR).sum(), rel=1e-10)


def test_what_is_no_likelihood_or_no_parameter_is_refused(engine):
    dist = NeuralDistribution(engine)
    with pm.Model():
        with pytest.raises(TypeError, match=r"must have the parameters \('a', 'b'\)"):
            dist("x", a=0.0, observed=X)
        with pytest.raises(TypeError, match="unexpected keywords"):
            dist("x", a=0.0, b=0.0, c=0.0, observed=X)
        with pytest.raises(ValueError, match="a must be one number, but has 1 axes"):
            dist("x", a=np.zeros(30), b=0.0, observed=X)
        objects = nbi.Observations.from_arrays(X[None], ERROR, t=T)
        with pytest.raises(TypeError, match="x_err must be part of the Observations"):
            dist("x", a=0.0, b=0.0, observed=objects, x_err=ERROR)
        silent = nbi.Engine(line, PRIOR, noise=nbi.CustomNoise(lambda model, *_: model))
        with pytest.raises(
            ValueError, match="must have an engine whose noise has a log_likelihood"
        ):
            NeuralDistribution(silent)("x", a=0.0, b=0.0, observed=X, t=T)
    with pytest.raises(TypeError, match="engine must be a TrialEngine"):
        NeuralDistribution(line)
