"""The prior: its latent map, densities, refusals, prior_transforms and fitted densities."""

from __future__ import annotations

import json
import math
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from contracts import check_prior
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import trapezoid
from scipy.special import ndtr, ndtri

from nbi_plus import Circular, EmpiricalPrior, Prior

CLOSED = {
    "uniform": stats.uniform(20, 80),
    "norm": stats.norm(3, 2),
    "loguniform": stats.loguniform(0.01, 1.5),
    "reciprocal": stats.reciprocal(1, 50, loc=3, scale=2),
    "truncnorm": stats.truncnorm(-1, 2, loc=5, scale=3),
    "truncnorm_below": stats.truncnorm(-8, -7),
    "truncnorm_above": stats.truncnorm(a=5, b=np.inf, scale=0.1),
    "truncnorm_narrow": stats.truncnorm(-0.01, 0.02, 1, 10),
    "halfnorm": stats.halfnorm(1, 2),
    "expon": stats.expon(1, 3),
    "lognorm": stats.lognorm(0.7, scale=3),
}
TABULATED = {
    "truncnorm_far": stats.truncnorm(-50, -40),
    "beta": stats.beta(0.867, 3.03),
    "gamma": stats.gamma(2.0, scale=5),
    "gamma_steep": stats.gamma(0.3),
    "t": stats.t(3, loc=-2),
    "cauchy": stats.cauchy(),
    "laplace": stats.laplace(),
    "rayleigh": stats.rayleigh(scale=2),
    "weibull_min": stats.weibull_min(1.5),
    "gumbel_r": stats.gumbel_r(),
    "powerlaw": stats.powerlaw(2.0),
    "invgamma": stats.invgamma(3),
    "triang": stats.triang(0.3),
    "skewnorm": stats.skewnorm(4),
    "histogram": stats.rv_histogram(([1.0, 4.0, 2.0], [0.0, 1.0, 2.0, 3.0])),
}
FAMILIES = {**CLOSED, **TABULATED}
each_family = pytest.mark.parametrize("name", FAMILIES)
bulk = st.floats(-5, 5).filter(lambda z: abs(z) > 1e-3 or z == 0)
laws = settings(max_examples=25, deadline=None, derandomize=True)


@cache
def prior_of(name):
    return Prior({name: FAMILIES[name]})


def exact(distribution, z):
    """Return quantiles from the tail that keeps its digits."""
    return np.where(z < 0, distribution.ppf(ndtr(z)), distribution.isf(ndtr(-z)))


def prior_of_many():
    return Prior(
        {
            "t0": stats.uniform(2450000, 80),
            "u0": stats.loguniform(0.01, 1.5),
            "rho": 1e-3,
            "phi": Circular(2 * math.pi, low=-math.pi),
            "e": stats.beta(0.867, 3.03),
        },
        labels={"t0": "$t_0$"},
        units={"t0": "d"},
        fixed={"A": 2.0},
        derived={"u2": lambda theta: theta[:, 1] ** 2, "last": lambda theta: theta[:, -1]},
    )


# The latent map of one parameter


@each_family
@laws
@given(z=bulk)
def test_latent_round_trip_returns_theta(name, z):
    prior, theta = prior_of(name), exact(FAMILIES[name], np.array([z]))
    back = prior.from_latent(prior.to_latent(theta))
    scale = float(np.ptp(FAMILIES[name].ppf([0.25, 0.75])))
    assert abs(back - theta) <= 1e-9 * min(abs(theta), scale) + 4 * np.spacing(abs(theta))


@each_family
def test_latent_is_the_normal_score_of_the_distribution_function(name):
    z = np.linspace(-4.5, 4.5, 400)[:, None]
    theta = exact(FAMILIES[name], z)
    slope = np.exp(stats.norm.logpdf(z) - FAMILIES[name].logpdf(theta))  # d theta / d z
    resolved = 4 * np.spacing(np.abs(theta)) / slope  # what float64 theta can tell of z
    assert (np.abs(prior_of(name).to_latent(theta) - z) < 1e-6 + resolved).all()
    assert (np.abs(prior_of(name).from_latent(z) - theta) < (1e-6 + resolved) * slope).all()


@each_family
@laws
@given(z=bulk, step=st.floats(1e-4, 1.0))
def test_from_latent_is_increasing(name, z, step):
    low, high = prior_of(name).from_latent(np.array([[z], [z + step]]))
    assert high > low


@each_family
def test_from_latent_stays_finite_and_monotone_far_out(name):
    z = torch.tensor([-40.0, -20, -9, -8.3, -8, 8, 8.3, 9, 20, 40], dtype=torch.float64)
    z = z[:, None].requires_grad_()
    theta = prior_of(name).from_latent(z)
    low, high = FAMILIES[name].support()
    assert bool(torch.isfinite(theta).all())
    assert bool((theta.diff(dim=0) >= 0).all())
    assert bool(((theta >= low) & (theta <= high)).all())
    (gradient,) = torch.autograd.grad(theta.sum(), z)
    assert bool(torch.isfinite(gradient).all())


@each_family
def test_latent_of_values_outside_the_support_is_infinite_without_nan_gradients(name):
    low, high = FAMILIES[name].support()
    for edge, sign in ((low, -1), (high, 1)):
        if not np.isfinite(edge):
            continue
        theta = torch.tensor([[edge + sign], [edge]], dtype=torch.float64, requires_grad=True)
        z = prior_of(name).to_latent(theta)
        assert z[0].item() == sign * math.inf
        assert 7 < abs(z[1].item()) <= 8.3
        log_prob = prior_of(name).log_prob(theta)
        assert log_prob[0].item() == -math.inf
        assert prior_of(name).log_prob(theta.detach().numpy())[0] == -math.inf
        (gradient,) = torch.autograd.grad(z.sum() + log_prob[0], theta)
        assert not bool(torch.isnan(gradient).any())


@pytest.mark.parametrize(
    ("distribution", "z", "expected"),
    [
        (stats.norm(3, 2), 30.0, 63.0),
        (stats.norm(3, 2), -8.0, -13.0),
        (stats.uniform(0, 1), -20.0, stats.norm.cdf(-20)),
        (stats.expon(), 20.0, -stats.norm.logcdf(-20)),
        (stats.expon(), -8.0, -math.log1p(-ndtr(-8))),
        (stats.halfnorm(), 12.0, -ndtri(ndtr(-12) / 2)),
        (stats.lognorm(2.0), -8.0, math.exp(-16)),
        (stats.truncnorm(-np.inf, -3), -9.0, ndtri(ndtr(-3) * ndtr(-9))),
        (stats.truncnorm(3, np.inf), 9.0, -ndtri(ndtr(-3) * ndtr(-9))),
        (stats.gamma(2.0), -8.0, stats.gamma(2.0).ppf(ndtr(-8))),
        (stats.gumbel_r(), 8.0, stats.gumbel_r().isf(ndtr(-8))),
    ],
)
def test_tails_keep_their_digits(distribution, z, expected):
    prior = Prior([distribution])
    assert prior.from_latent(np.array([z])) == pytest.approx(expected, rel=1e-8)
    closed = np.isfinite(distribution.support()[0])  # a closed end is reached at -8.3
    expected_z = max(z, -8.3) if closed else z
    assert prior.to_latent(np.array([expected])) == pytest.approx(expected_z, rel=1e-8)


@each_family
def test_gradients_are_those_of_the_density(name):
    z = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None].requires_grad_()
    theta = prior_of(name).from_latent(z)
    (slope,) = torch.autograd.grad(theta.sum(), z)
    log_slope = stats.norm.logpdf(z.detach()) - FAMILIES[name].logpdf(theta.detach())
    kinks = np.zeros((61, 1), dtype=bool)
    if name == "histogram":  # its density has steps: skip the points at them
        kinks = np.abs(theta.detach().numpy() % 1.0 - 0.5) > 0.499
    np.testing.assert_allclose(np.log(slope.numpy())[~kinks], log_slope[~kinks], atol=1e-4)
    theta = theta.detach().requires_grad_()
    (inverse,) = torch.autograd.grad(prior_of(name).to_latent(theta).sum(), theta)
    np.testing.assert_allclose((inverse * slope).numpy()[~kinks], 1.0, atol=1e-5)


@each_family
def test_log_prob_is_scipys(name):
    theta = prior_of(name).from_latent(np.linspace(-4, 4, 81)[:, None])
    expected = FAMILIES[name].logpdf(theta[:, 0])
    np.testing.assert_array_equal(prior_of(name).log_prob(theta), expected)
    in_torch = prior_of(name).log_prob(torch.from_numpy(theta))
    close = np.isclose(in_torch.numpy(), expected, rtol=0, atol=1e-4)
    assert close.all()


@pytest.mark.parametrize("name", ["uniform", "truncnorm", "beta", "t", "histogram"])
def test_samples_follow_the_distribution(name):
    theta = prior_of(name).sample(4000, rng=1)
    assert stats.kstest(theta[:, 0], FAMILIES[name].cdf).pvalue > 1e-3


@each_family
def test_transform_is_the_quantile_function(name):
    u = np.linspace(0.001, 0.999, 999)[:, None]
    expected = FAMILIES[name].ppf(u)
    scale = np.ptp(FAMILIES[name].ppf([0.25, 0.75]))
    error = np.abs(prior_of(name).transform(u) - expected)
    assert (error <= 1e-6 * np.maximum(scale, np.abs(expected))).all()


@pytest.mark.parametrize("name", ["uniform", "truncnorm_below", "beta", "cauchy", "histogram"])
def test_prior_contract_holds_for_one_parameter(name):
    check_prior(prior_of(name))


def test_prior_contract_holds_for_many_parameters():
    check_prior(prior_of_many())


def test_latent_map_upcasts_float32_and_leaves_the_input_alone():
    prior = prior_of("beta")
    z = torch.zeros(3, 1, dtype=torch.float32)
    assert prior.from_latent(z).dtype == torch.float64
    frozen = np.zeros((3, 1), dtype=np.float32)
    frozen.setflags(write=False)
    assert prior.from_latent(frozen[::-1]).dtype == np.float64
    assert np.isnan(prior.from_latent(np.array([[np.nan]]))).all()
    assert np.isnan(prior.to_latent(np.array([[np.nan]]))).all()


def test_gap_of_a_histogram_has_no_density_and_no_draws():
    prior = Prior({"m": stats.rv_histogram(([1.0, 0.0, 3.0], [0.0, 1.0, 2.0, 3.0]))})
    theta = prior.sample(5000, rng=0)
    assert not ((theta > 1) & (theta < 2)).any()
    assert (theta < 1).mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 5000))
    gap = np.array([[1.5], [1.1]])
    assert (prior.log_prob(gap) == -np.inf).all()
    assert (prior.log_prob(torch.from_numpy(gap)).numpy() == -np.inf).all()
    np.testing.assert_allclose(prior.from_latent(prior.to_latent(gap)), gap, rtol=1e-9)


def test_distributions_of_every_kind_are_read():
    class Ramp(stats.rv_continuous):
        def _cdf(self, x):
            return x**2

    kinds = {"own": Ramp(a=0.0, b=1.0)(), "hist": stats.rv_histogram(([1.0, 2.0], [0.0, 1, 2]))}
    if hasattr(stats, "Normal"):
        kinds["new"] = stats.Normal(mu=1.0, sigma=2.0)
        assert Prior([kinds["new"]]).from_latent(np.array([1.5])) == pytest.approx(4.0)
    for kind in kinds.values():
        check_prior(Prior([kind]))
    assert Prior([kinds["own"]]).transform(np.array([0.25])) == pytest.approx(0.5, rel=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (stats.poisson(2), "poisson.2. is discrete"),
        (stats.norm, r"norm is not frozen. Write norm\(loc, scale\)"),
        (stats.gamma, r"Write gamma\(a, loc, scale\)"),
        (stats.poisson, "is not frozen"),
        (stats.uniform(1, -2), "finite quantiles"),
        (stats.norm(0, 0), "finite quantiles"),
        (stats.norm(np.nan, 1), "finite quantiles"),
        (stats.uniform(0, np.inf), "finite quantiles"),
        (stats.loguniform(0, 1), "finite quantiles"),
        (stats.uniform(1e20, 1), "point mass"),
        (stats.uniform([0, 1], [1, 1]), "arrays of parameters"),
        (stats.gamma(0.01), "too steep"),
        (stats.multivariate_normal([0, 0]), "multivariate_normal"),
        ((0, 1), "tuple"),
        (True, "bool"),
        (None, "NoneType"),
        (float("nan"), "finite number"),
    ],
)
def test_bad_distributions_are_refused_by_name(given, message):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        Prior({"good": stats.norm(0, 1), "bad": given})
    assert "'bad'" in str(error.value)


ONE = {"a": stats.norm(0, 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameters": {}}, "free parameter"),
        ({"parameters": []}, "free parameter"),
        ({"parameters": {"a": 1.0}}, "free parameter"),
        ({"parameters": stats.norm(0, 1)}, "must be a mapping"),
        ({"parameters": stats.norm}, "must be a mapping"),
        ({"parameters": "ab"}, "must be a mapping"),
        ({"parameters": {1: stats.norm(0, 1)}}, "non-empty text"),
        ({"parameters": {"": stats.norm(0, 1)}}, "non-empty text"),
        ({"parameters": [stats.norm(0, 1)], "labels": ["a", "b"]}, "all 1 parameters"),
        ({"parameters": [stats.norm(0, 1)], "labels": "a"}, "must be a list"),
        ({"parameters": [stats.norm(0, 1)] * 2, "labels": ["a", "a"]}, "came twice"),
        ({"parameters": ONE, "labels": ["a", "b"]}, "all 1 parameters"),
        ({"parameters": ONE, "labels": {"z": "$z$"}}, "Correct the spelling"),
        ({"parameters": ONE, "units": {"z": "km"}}, "Correct the spelling"),
        ({"parameters": ONE, "fixed": {"a": 1.0}}, "fixed must not repeat"),
        ({"parameters": ONE, "fixed": {"b": np.nan}}, "finite number"),
        ({"parameters": ONE, "fixed": {"b": "1"}}, "finite number"),
        (
            {"parameters": ONE, "fixed": {"b": 1.0}, "derived": {"b": len}},
            "derived must not repeat",
        ),
        ({"parameters": ONE, "derived": {"b": 3}}, "must be a function"),
        ({"parameters": lambda u: u}, "labels must be a list"),
        ({"parameters": lambda u: u[:1], "labels": ["a", "b"]}, "prior_transform must map"),
        ({"parameters": lambda u: u / 0, "labels": ["a"]}, "prior_transform must map"),
        ({"parameters": lambda u: u.no, "labels": ["a"]}, "AttributeError"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_bad_priors_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Prior(**arguments)


def test_random_prior_transform_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="another theta"):
        Prior(lambda u: u + rng.random(), labels=["a", "b"])


@pytest.mark.parametrize(("period", "low"), [(0.0, 0.0), (-1.0, 0.0), (math.inf, 0.0), (1.0, 1e20)])
def test_bad_circles_are_refused(period, low):
    with pytest.raises(ValueError, match=r"period|low"):
        Circular(period, low)


def test_wrong_shapes_are_refused_with_the_names():
    prior = prior_of_many()
    with pytest.raises(ValueError, match=r"\(n, 4\) for parameters \('t0', 'u0', 'phi', 'e'\)"):
        prior.check(np.ones((1000, 50)))
    with pytest.raises(ValueError, match="has \\(1000, 50\\). Did you swap x and theta"):
        prior.check(np.ones((1000, 50)))
    with pytest.raises(ValueError, match="must have shape"):
        prior.check(np.ones(4))
    with pytest.raises(ValueError, match="1 of 2 rows are not"):
        prior.check([[1.0, 2, 3, 4], [1.0, np.nan, 3, 4]])
    for method in (prior.from_latent, prior.to_latent, prior.log_prob, prior.complete):
        with pytest.raises(ValueError, match="last axis"):
            method(np.ones((3, 5)))
    with pytest.raises(ValueError, match="unit cube"):
        prior.transform(np.array([0.1, 0.2, 1.3, 0.4]))
    with pytest.raises(ValueError, match="n must be a whole number of at least 0"):
        prior.sample(-1)


# Names, units, fixed and derived values


def test_names_follow_the_order_given():
    prior = prior_of_many()
    assert prior.names == ("t0", "u0", "phi", "e")
    assert prior.full_names == ("t0", "u0", "rho", "phi", "e", "A")
    assert prior.labels == ("$t_0$", "u0", "phi", "e")
    assert prior.periods == (None, None, 2 * math.pi, None)
    assert prior.fixed == {"rho": 1e-3, "A": 2.0}
    assert Prior([stats.norm(0, 1), 3.0, stats.norm(0, 1)]).names == ("theta_0", "theta_2")
    assert Prior([stats.norm(0, 1)], labels={"a": "$a$"}).labels == ("$a$",)
    assert Prior(ONE, labels=["$a$"]).labels == ("$a$",)


def test_units_are_kept_as_text():
    class Unit:
        def __str__(self):
            return "km / s"

    assert Prior(ONE, units={"a": Unit()}).units == {"a": "km / s"}
    assert prior_of_many().units == {"t0": "d"}


def test_derived_values_are_computed_from_complete_parameters():
    prior = prior_of_many()
    theta = prior.sample(5, rng=0)
    derived = prior.derive(theta)
    np.testing.assert_allclose(derived["u2"], theta[:, 1] ** 2)
    assert (derived["last"] == 2.0).all()
    wrong = Prior(ONE, derived={"b": lambda theta: theta})
    with pytest.raises(ValueError, match=r"derived\['b'\] must return shape \(5,\)"):
        wrong.derive(np.zeros((5, 1)))


def test_circular_prior_is_uniform_on_its_interval():
    prior = Prior({"phi": Circular(360.0, low=-180.0)})
    assert prior.transform(np.array([0.25])) == pytest.approx(-90.0)
    assert prior.log_prob(np.array([10.0])) == pytest.approx(-math.log(360))
    assert prior.log_prob(np.array([190.0])) == -np.inf


def test_manifest_decides_equality_and_rebuilds_the_prior():
    prior = prior_of_many()
    text = json.dumps(prior.manifest())
    rebuilt = Prior.from_manifest(json.loads(text), labels=prior.labels)
    assert rebuilt == prior
    assert hash(rebuilt) == hash(prior)
    assert rebuilt.full_names == prior.full_names
    theta = prior.sample(3, 0)
    assert np.array_equal(rebuilt.to_latent(theta), prior.to_latent(theta))
    prior.manifest()["transport"]["families"].clear()  # a copy: the prior is not touched
    assert rebuilt == prior
    assert prior != Prior(dict.fromkeys(prior.names, stats.norm(0, 1)))
    assert Prior(ONE) != Prior({"a": stats.norm(0, 1.1)})
    assert Prior(ONE) != Prior({"b": stats.norm(0, 1)})
    assert Prior(ONE) == Prior({"a": stats.norm(loc=0, scale=1)}, labels=["$a$"])
    assert Prior({"a": stats.halfnorm()}) != "halfnorm"
    open_ended = Prior({"a": stats.truncnorm(0, np.inf)})
    assert Prior.from_manifest(json.loads(json.dumps(open_ended.manifest()))) == open_ended


@pytest.mark.parametrize(
    "prior",
    [
        Prior([stats.rv_histogram(([1.0, 2.0], [0.0, 1, 2]))]),
        Prior(lambda u: u, labels=["a"]),
    ],
    ids=["histogram", "prior_transform"],
)
def test_priors_with_no_name_in_scipy_are_not_rebuilt(prior):
    with pytest.raises(ValueError, match="Pass the prior again"):
        Prior.from_manifest(prior.manifest())


def test_manifest_names_nothing_but_distributions():
    manifest = Prior(ONE).manifest()
    manifest["transport"]["families"][0]["family"] = "test"
    with pytest.raises(ValueError, match=r"scipy\.stats"):
        Prior.from_manifest(manifest)


@pytest.mark.parametrize("name", ["truncnorm", "beta", "histogram"])
def test_pickled_priors_are_equal(name):
    again = pickle.loads(pickle.dumps(prior_of(name)))  # noqa: S301  our own bytes
    assert again == prior_of(name)
    z = np.array([[0.3], [-2.0]])
    assert np.array_equal(again.from_latent(z), prior_of(name).from_latent(z))


def test_repr_says_what_is_believed():
    text = repr(prior_of_many())
    assert text.startswith("Prior(t0 ~ uniform(loc=2.45e+06, scale=80), u0 ~ loguniform(a=0.01")
    assert "rho = 0.001" in text
    assert len(text) < 250


def test_coerce_accepts_every_way_to_write_a_prior():
    prior = Prior.coerce(ONE)
    assert Prior.coerce(prior) is prior
    assert Prior.coerce([stats.norm(0, 1)], labels=["a"]) == prior
    assert Prior.coerce(lambda u: 2 * u, labels=["a"]).names == ("a",)


def test_priors_are_immutable():
    with pytest.raises(AttributeError):
        Prior(ONE).names = ("b",)


# prior_transform


def rowwise(u):
    return [10 * u[0], u[1] ** 2 + u[0]]


def in_place(u):
    u[0] = 10 * u[0]
    u[1] = u[1] ** 2 + u[0] / 10
    return u


def vectorised(u):
    return np.stack([10 * u[:, 0], u[:, 1] ** 2 + u[:, 0]], 1)


def conditional(u):
    first = stats.norm(0, 1).ppf(u[..., 0])
    return np.stack([first, stats.norm(first, 0.1).ppf(u[..., 1])], -1)


def in_torch(u):
    return torch.stack([torch.exp(u[:, 0]), u[:, 1] * u[:, 0]], 1)


def in_torch_rowwise(u):
    return torch.stack([torch.exp(u[0]), u[1] * u[0]])


def in_both(u):
    return 3 * u**2


@pytest.mark.parametrize(
    ("function", "n_dim", "vectorized", "in_numpy", "differentiable"),
    [
        (rowwise, 2, False, True, False),
        (in_place, 2, False, True, False),
        (vectorised, 2, True, True, False),
        (conditional, 2, True, True, False),
        (in_torch, 2, True, False, True),
        (in_torch_rowwise, 2, False, False, True),
        (in_both, 7, True, True, True),
        (in_both, 1, True, True, True),
    ],
)
def test_prior_transform_is_called_as_it_wants(
    function, n_dim, vectorized, in_numpy, differentiable
):
    prior = Prior(function, labels=[f"p{d}" for d in range(n_dim)])
    found = prior.transport
    assert (found.vectorized, found.in_numpy) == (vectorized, in_numpy)
    assert prior.differentiable is differentiable
    assert prior.has_inverse is False
    u = np.random.default_rng(0).random((n_dim, n_dim))  # n = D: rows cannot be told from columns
    point = torch.from_numpy(u[0]) if not in_numpy else u[0].copy()
    one = function(point if not vectorized else point[None])
    np.testing.assert_allclose(prior.transform(u)[0], np.asarray(one).reshape(n_dim), rtol=1e-9)
    check_prior(prior)


def test_prior_transform_in_numpy_answers_torch_without_a_graph():
    prior = Prior(vectorised, labels=["a", "b"])
    theta = prior.from_latent(torch.zeros(3, 2, requires_grad=True))
    assert not theta.requires_grad
    assert theta.tolist() == [[5.0, 0.75]] * 3
    with pytest.raises(ValueError, match="Keep the z"):
        prior.to_latent(theta)


def test_prior_transform_manifest_tells_functions_apart():
    first, second = (Prior(f, labels=["a", "b"]) for f in (lambda u: u, lambda u: u[..., ::-1]))
    assert first != second
    assert first == Prior(lambda u: 1.0 * u, labels=["a", "b"])


# Fitted densities


def banana(n, rng):
    x = rng.standard_normal((n, 2))
    return np.stack([2450000 + 1e-3 * x[:, 0], 3 + 50 * (x[:, 1] + 0.6 * (x[:, 0] ** 2 - 1))], 1)


def banana_log_prob(theta):
    first = (theta[:, 0] - 2450000) / 1e-3
    second = (theta[:, 1] - 3) / 50 - 0.6 * (first**2 - 1)
    return stats.norm.logpdf(first) + stats.norm.logpdf(second) - math.log(1e-3 * 50)


@cache
def banana_prior():
    return EmpiricalPrior(banana(6000, np.random.default_rng(1)), ["t0", "F"], {"t0": "d"})


def test_empirical_prior_keeps_the_contract():
    check_prior(banana_prior())


def test_empirical_prior_round_trip_returns_z_and_theta():
    draws = np.random.default_rng(2).standard_normal((300, 3)) ** [1, 1, 3]
    draws[:, 1] += np.where(draws[:, 0] > 0, 6.0, -6.0)  # two islands
    prior = EmpiricalPrior(draws)
    z = np.random.default_rng(3).standard_normal((2000, 3)) * 1.5
    theta = prior.from_latent(z)
    np.testing.assert_allclose(prior.to_latent(theta), z, atol=1e-8)
    np.testing.assert_allclose(prior.from_latent(prior.to_latent(theta)), theta, atol=1e-8)


def test_empirical_prior_is_close_to_the_density_it_was_fitted_to():
    fresh = banana(20_000, np.random.default_rng(4))
    divergence = banana_log_prob(fresh) - banana_prior().log_prob(fresh)
    assert divergence.mean() > -4 * divergence.std() / math.sqrt(len(fresh))
    assert divergence.mean() < 0.03  # nats: an effective sample size of about 95 %


def test_empirical_prior_maps_fresh_samples_to_standard_normals():
    z = banana_prior().to_latent(banana(3000, np.random.default_rng(5)))
    for column in z.T:  # 5 % quantile of the distance for an exact fit: 0.025
        assert stats.kstest(column, "norm").statistic < 0.035
    assert abs(np.corrcoef(z.T)[0, 1]) < 4 / math.sqrt(3000)


def test_empirical_prior_log_prob_is_a_normalised_density():
    prior = EmpiricalPrior(np.random.default_rng(0).standard_normal((500, 1)) ** 2)
    grid = np.linspace(-6, 40, 20_001)
    density = np.exp(prior.log_prob(grid[:, None]))
    assert trapezoid(density, grid) == pytest.approx(1.0, abs=1e-5)
    fraction = trapezoid(density * (grid < 1), grid)
    assert ndtr(prior.to_latent(np.array([1.0]))) == pytest.approx(fraction, abs=1e-3)


def test_empirical_prior_survives_far_points_and_repeated_rows():
    draws = np.repeat(np.random.default_rng(0).standard_normal((150, 2)), 4, axis=0)
    prior = EmpiricalPrior(draws)
    far = torch.tensor([[1e3, -1e3], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    z, log_prob = prior.to_latent(far), prior.log_prob(far)
    (gradient,) = torch.autograd.grad(z.sum() + log_prob.sum(), far)
    assert bool(torch.isfinite(z).all() & torch.isfinite(gradient).all())
    assert np.isfinite(prior.from_latent(np.array([[50.0, -50.0]]))).all()
    assert prior.log_prob(draws).max() < 0  # no spike on the repeated rows


def test_empirical_prior_is_reproducible_named_and_rebuilt():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    draws = banana(400, np.random.default_rng(6))
    prior = EmpiricalPrior(draws, {"t0": "$t_0$", "F": "$F$"}, fixed={"b": 1.0})
    assert prior == EmpiricalPrior(draws, ["t0", "F"], fixed={"b": 1.0})
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert prior.labels == ("$t_0$", "$F$")
    assert prior.full_names == ("t0", "F", "b")
    assert isinstance(prior, Prior)
    rebuilt = Prior.from_manifest(json.loads(json.dumps(prior.manifest())))
    z = np.array([[0.1, -1.0]])
    assert np.array_equal(rebuilt.from_latent(z), prior.from_latent(z))
    assert pickle.loads(pickle.dumps(prior)) == prior  # noqa: S301  our own bytes
    assert "mixture of" in repr(prior)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(10), "must have shape"),
        (np.zeros((5, 1)), "at least 10"),
        (np.full((100, 1), np.nan), "100 of 100 rows"),
        (np.ones((100, 2)), "independent directions"),
        (np.arange(100.0)[:, None] * [1, 2], "independent directions"),
    ],
)
def test_empirical_prior_refuses_samples_without_a_density(samples, message):
    with pytest.raises(ValueError, match=message):
        EmpiricalPrior(samples)


def test_empirical_prior_refuses_bad_options():
    draws = np.random.default_rng(0).standard_normal((100, 2))
    with pytest.raises(ValueError, match="max_components"):
        EmpiricalPrior(draws, max_components=0)
    with pytest.raises(ValueError, match="all 2 parameters"):
        EmpiricalPrior(draws, ["a"])
