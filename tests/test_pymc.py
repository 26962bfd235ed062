"""Learned ratios inside PyMC: densities, gradients, chains, draws."""

from __future__ import annotations

import pickle
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi

with warnings.catch_warnings():  # those of other people's imports are no errors of ours
    warnings.simplefilter("ignore")
    pm = pytest.importorskip("pymc", reason='needs pymc: pip install "nbi-plus[pymc]"')
    from nbi_plus.pymc import NeuralDistribution

pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).parents[1]
PRIOR = {"mu": uniform(-5, 10), "sigma": uniform(0.1, 4.9)}


def trial(theta):
    return theta[:, :1] + theta[:, 1:] * torch.randn((len(theta), 1), dtype=theta.dtype)


@pytest.fixture(scope="module")
def engine():
    return nbi.RatioEngine(trial, PRIOR).fit(n_sims=10_000, n_epochs=10, batch_size=256)


@pytest.fixture(scope="module")
def likelihood():
    return nbi.LikelihoodEngine(trial, PRIOR).fit(n_sims=2000, n_epochs=3)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(2.0, 1.5, 50)


def model_of(engine, x, names=("mu", "sigma")):
    with pm.Model() as model:
        mu = pm.TruncatedNormal("mu", 0, 5, lower=-5, upper=5)
        sigma = pm.TruncatedNormal("sigma", 1.5, 0.5, lower=0.5, upper=3)
        dist = NeuralDistribution(engine, names)
        dist("x", **dict(zip(names, (mu, sigma), strict=True)), observed=x)
    return model


def test_density_is_the_log_ratio_of_each_trial(engine, x):
    with pm.Model() as model:
        NeuralDistribution(engine)("x", mu=1.5, sigma=1.2, observed=x)
    (each,) = model.compile_logp(sum=False)({})
    np.testing.assert_allclose(each, engine.log_ratio([[1.5, 1.2]], x), rtol=1e-10)


def test_density_of_a_likelihood_is_its_own(likelihood, x):
    with pm.Model() as model:
        NeuralDistribution(likelihood)("x", mu=1.5, sigma=1.2, observed=x)
    (each,) = model.compile_logp(sum=False)({})
    np.testing.assert_allclose(each, likelihood.log_likelihood([[1.5, 1.2]], x), rtol=1e-10)


def test_trials_of_several_numbers_are_drawn_together(x):
    def pair(theta):
        noise = torch.randn((len(theta), 2), dtype=theta.dtype)
        return theta[:, :1] + theta[:, 1:] * noise * torch.tensor([1.0, 2.0])

    engine = nbi.LikelihoodEngine(pair, PRIOR).fit(n_sims=500, n_epochs=1)
    trials = np.stack([x, x], 1)
    with pm.Model() as model:
        v = NeuralDistribution(engine)("x", mu=1.5, sigma=1.2, observed=trials)
        whole = NeuralDistribution(engine, exchangeable=False)("y", mu=1.5, sigma=1.2,
                                                               observed=trials[0])  # fmt: skip
    each, one = model.compile_logp(sum=False)({})
    exact = engine.log_likelihood([[1.5, 1.2]], trials)
    np.testing.assert_allclose(each, exact, rtol=1e-10)
    assert one == pytest.approx(exact[0], rel=1e-10)
    drawn = pm.draw(v, 40, random_seed=0)
    assert drawn.shape == (40, 50, 2)
    assert drawn.std((0, 1)) == pytest.approx([1.2, 2.4], rel=4 / 4000**0.5)
    assert pm.draw(whole, random_seed=0).shape == (2,)


@pytest.mark.parametrize("name", ["engine", "likelihood"])
def test_gradient_is_that_of_differences(name, x, request):
    model = model_of(request.getfixturevalue(name), x)
    names = [v.name for v in model.continuous_value_vars]
    logp, dlogp = model.compile_logp(), model.compile_dlogp()
    start = {n: np.array(0.2 * (i + 1)) for i, n in enumerate(names)}
    slope = dlogp(start)
    for i, n in enumerate(names):
        up, down = ({**start, n: start[n] + s} for s in (1e-5, -1e-5))
        assert slope[i] == pytest.approx((logp(up) - logp(down)) / 2e-5, rel=1e-4, abs=1e-5)


def test_parameters_may_differ_from_trial_to_trial(engine):
    group = np.repeat([0.0, 1.0], 5)
    values = np.random.default_rng(1).normal(size=10)
    with pm.Model() as model:
        pm.Flat("b")
        NeuralDistribution(engine)("x", mu=1 + model["b"] * group, sigma=1.0, observed=values)
    found = model.compile_logp(sum=True)({"b": np.array(2.0)})
    theta = np.stack([1 + 2 * group, np.ones(10)], 1)
    assert found == pytest.approx(engine.log_ratio(theta, values).sum(), rel=1e-10)


def test_names_may_be_ones_own_and_wrong_ones_are_refused(engine, x):
    own, plain = model_of(engine, x, ("m", "s")), model_of(engine, x)
    start = {v.name: np.array(0.3) for v in plain.continuous_value_vars}
    assert own.compile_logp()(start) == pytest.approx(plain.compile_logp()(start), rel=1e-12)
    with pm.Model(), pytest.raises(TypeError, match=r"must have the parameters \('mu', 'sigma'\)"):
        NeuralDistribution(engine)("x", mu=0.0, observed=x)
    with pytest.raises(ValueError, match="param_names must be 2 names"):
        NeuralDistribution(engine, ["mu"])


def test_operations_go_into_other_processes(engine, x):
    op = NeuralDistribution(engine)._trials.op
    again = pickle.loads(pickle.dumps(op))  # noqa: S301
    theta = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    found = (own.fit.log_prob(theta, own.fit.statistics("x", x)) for own in (op, again))
    torch.testing.assert_close(*found)


def test_example_of_the_regression_runs():
    example = runpy.run_path(str(ROOT / "examples" / "ratio_regression.py"))
    answers = example["main"](n_sims=600, n_epochs=1, draws=20)
    assert set(answers["two_conditions"]) == {"b0", "b1", "sigma"}


def on_a_grid(engine, x, n=61):
    """Return mean and sd of each parameter under the learned likelihood and the model's priors."""
    axes = np.linspace(0.7, 3.5, n), np.linspace(0.8, 2.6, n)
    theta = np.stack([v.ravel() for v in np.meshgrid(*axes, indexing="ij")], 1)
    each = engine.log_ratio(np.repeat(theta, len(x), 0), np.tile(x, len(theta)))
    height = each.reshape(len(theta), -1).sum(1) + norm.logpdf(theta, [0, 1.5], [5, 0.5]).sum(1)
    weight = np.exp(height - height.max())
    mean = weight @ theta / weight.sum()
    sd = np.sqrt(weight @ (theta - mean) ** 2 / weight.sum())
    return dict(zip(("mu", "sigma"), zip(mean, sd, strict=True), strict=True))


def test_nuts_finds_the_posterior_and_says_where_it_was_not_learned(engine, x):
    options = {"draws": 400, "tune": 400, "chains": 2, "cores": 1, "random_seed": 0,
               "progressbar": False}  # fmt: skip
    with model_of(engine, x):
        found = pm.sample(**options, idata_kwargs={"log_likelihood": True})
        drawn = pm.sample_posterior_predictive(found, random_seed=1, progressbar=False)
    for name, (mean, sd) in on_a_grid(engine, x).items():
        own = np.asarray(found.posterior[name]).ravel()
        # 200 effective draws at least
        assert abs(own.mean() - mean) < 4 * sd / 200**0.5
        assert abs(own.std() / sd - 1) < 4 / 400**0.5
    assert found.log_likelihood["x"].shape[-1] == 50
    assert float(found.posterior["x_outside"].mean()) < 0.01
    again = np.asarray(drawn.posterior_predictive["x"])
    assert again.shape[-1] == 50
    spread = float(found.posterior["sigma"].mean())
    assert again.std() == pytest.approx(spread, rel=0.15)
