"""Models of PyMC as problems: their priors, draws and densities are the models' own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, truncnorm

import nbi_plus as nbi

with warnings.catch_warnings():  # those of other people's imports are no errors of ours
    warnings.simplefilter("ignore")
    pm = pytest.importorskip("pymc", reason='needs pymc: pip install "nbi-plus[pymc]"')
    from nbi_plus.pymc import problem

pytestmark = pytest.mark.filterwarnings("default")
SIGMA = 0.7


def level(x):
    """Return a conjugate model: one mean, a known width."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 1.0, 2.0)
        pm.Normal("x", mu, SIGMA, observed=x)
    return model


def groups(x):
    """Return a hierarchy: a width, means that depend on it, and counts."""
    with pm.Model() as model:
        width = pm.Gamma("width", 3.0, 2.0)
        rate = pm.LogNormal("rate", 0.0, width, shape=2)
        edge = pm.TruncatedNormal("edge", 0.0, 1.0, lower=width, upper=9.0)
        pm.Poisson("x", rate + edge, shape=(3, 2), observed=x)
    return model


@pytest.fixture(scope="module")
def hierarchy():
    return problem(groups(np.ones((3, 2))))


def test_posterior_of_a_conjugate_model_is_the_exact_one():
    x = np.random.default_rng(0).normal(0.4, SIGMA, 12)
    simulator, prior, noise = problem(level(x))
    engine = nbi.Engine(simulator, prior, noise=noise).fit(n_sims=1000, n_epochs=5)
    posterior = engine.predict(x)
    precision = 1 / 4 + len(x) / SIGMA**2
    mean, sd = (1 / 4 + x.sum() / SIGMA**2) / precision, precision**-0.5
    assert posterior.certified
    assert abs(posterior.mean()[0] - mean) < 4 * sd / posterior.ess**0.5
    assert abs(posterior.std()[0] / sd - 1) < 4 / (2 * posterior.ess) ** 0.5
    exact = norm.logpdf(x, mean, SIGMA).sum() + norm.logpdf(mean, 1, 2) - norm.logpdf(0, 0, sd)
    assert abs(posterior.log_evidence - exact) < 4 * posterior.log_evidence_err
    mu, data = np.array([[0.3], [2.0]]), nbi.Observations.from_arrays([x, x])
    own = noise.log_likelihood(mu, simulator(mu)[:, None], data)
    np.testing.assert_allclose(own, norm.logpdf(x, mu, SIGMA).sum(1), rtol=1e-12)


def test_prior_draws_each_variable_given_those_before_it(hierarchy):
    _, prior, _ = hierarchy
    assert prior.names == ("width", "rate[0]", "rate[1]", "edge")
    theta = prior.sample(4000, 0)
    width = theta[:, 0]
    assert abs(width.mean() - 1.5) < 4 * 0.75**0.5 / 4000**0.5
    assert kstest(np.log(theta[:, 1]) / width, "norm").pvalue > 1e-3
    assert kstest(truncnorm.cdf(theta[:, 3], width, 9.0), "uniform").pvalue > 1e-3


def test_density_and_draws_are_those_of_the_model(hierarchy):
    simulator, prior, noise = hierarchy
    theta = prior.sample(5, 1)
    x = np.random.default_rng(2).poisson(2.0, (3, 2))
    data = nbi.Observations.from_arrays(np.repeat(x[None], 5, 0).astype(float))
    found = noise.log_likelihood(theta, simulator(theta), data)
    model = groups(x)
    logp = model.compile_logp(vars=model.observed_RVs)
    for row, own in zip(theta, found, strict=True):
        width, *rate, edge = row
        inner, outer = edge - width, 9.0 - edge
        start = {"width_log__": np.log(width), "rate_log__": np.log(rate),
                 "edge_interval__": np.log(inner) - np.log(outer)}  # fmt: skip
        assert own == pytest.approx(logp(start), rel=1e-9)
    one = np.repeat(theta[:1], 4000, 0)
    rng = torch.Generator().manual_seed(0)
    drawn = noise.augment(simulator(one), data[:1], one, rng)
    mean = theta[0, 1:3] + theta[0, 3]
    assert (abs(drawn.mean(0) - mean) < 4 * (mean / 4000) ** 0.5).all()
    again = noise.augment(simulator(one), data[:1], one, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(drawn, again)


def test_gradients_are_those_of_differences(hierarchy):
    simulator, prior, noise = hierarchy
    data = nbi.Observations.from_arrays(np.full((1, 3, 2), 2.0)).batch()
    z = torch.tensor([[0.2, -0.3, 0.1, 0.4]], dtype=torch.float64, requires_grad=True)

    def value(z):
        theta = prior.from_latent(z)
        return noise.log_likelihood(theta, simulator(theta), data).sum()

    assert torch.autograd.gradcheck(value, z, rtol=1e-4)


def test_parameters_that_the_model_refuses_hide_no_others():
    with pm.Model() as model:
        width = pm.Normal("width")
        pm.Normal("x", 0.0, width, observed=np.zeros(3))
    simulator, _, noise = problem(model)
    theta = np.array([[1.0], [-1.0], [2.0]])
    data = nbi.Observations.from_arrays(np.zeros((3, 3)))
    found = noise.log_likelihood(theta, simulator(theta)[:, None], data)
    exact = 3 * norm.logpdf(0, 0, [1.0, 2.0])
    np.testing.assert_allclose(found, [exact[0], -np.inf, exact[1]])


def test_points_that_are_masked_do_not_count_unless_all_are_drawn_together():
    with pm.Model() as apart:
        mu = pm.Normal("mu")
        pm.Normal("x", mu, 1.0, observed=np.zeros(3))
    with pm.Model() as together:
        mu = pm.Normal("mu")
        pm.MvNormal("x", mu * np.ones(3), np.eye(3), observed=np.zeros(3))
    theta = np.array([[0.5]])
    gaps = nbi.Observations.from_arrays([[0.1, 99.0, 0.3]], mask=[[True, False, True]])
    whole = nbi.Observations.from_arrays([[0.1, 0.2, 0.3]])
    simulator, _, noise = problem(apart)
    found = noise.log_likelihood(theta, simulator(theta)[:, None], gaps)
    assert found == pytest.approx(norm.logpdf([0.1, 0.3], 0.5).sum())
    simulator, _, noise = problem(together)
    found = noise.log_likelihood(theta, simulator(theta)[:, None], whole)
    assert found == pytest.approx(norm.logpdf([0.1, 0.2, 0.3], 0.5).sum())
    with pytest.raises(ValueError, match="mask must be True for all points"):
        noise.log_likelihood(theta, simulator(theta)[:, None], gaps)


def with_potential():
    pm.Potential("p", pm.Normal("a"))
    pm.Normal("x", 0.0, 1.0, observed=np.zeros(2))


def with_two():
    a = pm.Normal("a")
    pm.Normal("x", a, 1.0, observed=np.zeros(2))
    pm.Normal("y", a, 1.0, observed=np.zeros(2))


def with_choice():
    a = pm.Bernoulli("a", 0.5)
    pm.Normal("x", a, 1.0, observed=np.zeros(2))


def with_simplex():
    a = pm.Dirichlet("a", np.ones(3))
    pm.Normal("x", a[0], 1.0, observed=np.zeros(2))


def with_gap():
    a = pm.Normal("a")
    pm.Normal("x", a, 1.0, observed=np.array([0.0, np.nan]))


def with_cube():
    a = pm.Normal("a")
    pm.Normal("x", a, 1.0, observed=np.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    ("declare", "error", "words"),
    [
        (with_potential, ValueError, "but has potentials: 'p'"),
        (with_two, ValueError, "one observed variable, but has 'x', 'y'"),
        (lambda: pm.Normal("a"), ValueError, "one observed variable, but has none"),
        (with_choice, TypeError, "a must be continuous, but is discrete"),
        (with_simplex, TypeError, "a must have a quantile function"),
        (with_gap, ValueError, "must have no missing data"),
        (with_cube, ValueError, "but has 3 axes"),
    ],
)
def test_models_that_are_no_problems_are_refused(declare, error, words):
    with pm.Model() as model:
        declare()
    with pytest.raises(error, match=words):
        problem(model)
    with pytest.raises(TypeError, match="model must be"):
        problem(declare)
