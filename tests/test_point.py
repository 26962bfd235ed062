"""Point estimates: proper scoring rules, against closed forms, and the engine that learns them."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from problems import LinearGaussian
from scipy.stats import binom, gamma, loguniform, norm, uniform, vonmises
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import nbi_plus as nbi
from nbi_plus.inspecting import told
from nbi_plus.learn.scores.estimates import Scale, ScoreConfig, Scores
from nbi_plus.learn.scores.rules import rising

PROBLEM = LinearGaussian(2, 8, sigma=0.5)
SIMULATOR, PRIOR = PROBLEM.simulator, PROBLEM.prior
THETA, X = PROBLEM.observe(1000, 9)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
RULES = {
    "mean": nbi.MeanScore(), "median": nbi.MedianScore(), "q": nbi.QuantileScore(LEVELS),
    "ex": nbi.ExpectileScore([0.2, 0.5]), "joint": nbi.EnergyScore(16),
}  # fmt: skip


def engine(**changed):
    return nbi.PointEngine(SIMULATOR, PRIOR, **({"noise": PROBLEM.sigma, "rules": RULES} | changed))


@pytest.fixture(scope="module")
def fitted():
    return engine().fit(n_sims=2000, n_epochs=25, progress=False)


@pytest.fixture(scope="module")
def observations():
    return nbi.Observations.from_arrays(X)


# --- the rules -----------------------------------------------------------------------------------

DRAWS = torch.as_tensor(gamma(2.0).rvs(200_000, random_state=1))  # skewed, and positive
LINEAR, LOG = torch.zeros(1).double(), torch.ones(1).double()


def expectile(level):
    """Return the root of its definition: level E(y - m)+ = (1 - level) E(m - y)+."""
    grid = torch.linspace(0.1, 8, 20_000, dtype=torch.float64)
    order = DRAWS.sort().values
    below = torch.searchsorted(order, grid)
    total = torch.cat([torch.zeros(1).double(), order.cumsum(0)])
    over = (total[-1] - total[below]) - (len(order) - below) * grid
    under = below * grid - total[below]
    return float(grid[(level * over - (1 - level) * under).abs().argmin()])


@pytest.mark.parametrize(("rule", "growth", "best"), [
    (nbi.MeanScore(), LINEAR, float(DRAWS.mean())),
    (nbi.MeanScore(), LOG, float(DRAWS.mean())),
    (nbi.MedianScore(), LINEAR, float(DRAWS.median())),
    (nbi.QuantileScore([0.9]), LINEAR, float(DRAWS.quantile(0.9))),
    (nbi.QuantileScore([0.9]), LOG, float(DRAWS.quantile(0.9))),
    (nbi.ExpectileScore([0.8]), LINEAR, expectile(0.8)),
    (nbi.ExpectileScore([0.8]), LOG, expectile(0.8)),
])  # fmt: skip
def test_a_rule_is_least_at_what_it_is_of_on_any_scale(rule, growth, best):
    """Where the scale is of logarithms, the estimate is still that of the parameter itself."""

    def read(theta):
        return torch.as_tensor(theta).log() if growth[0] else torch.as_tensor(theta)

    def score(theta):
        estimates = read(torch.full((len(DRAWS), 1, 1), theta).double())
        return float(rule.loss(estimates, read(DRAWS)[:, None], growth).mean())

    near = [score(best * (1 + step)) for step in (-0.03, 0.0, 0.03)]
    assert near[1] < min(near[0], near[2])
    lowest = np.polyfit((-0.03, 0.0, 0.03), near, 2)
    assert abs(-0.5 * lowest[1] / lowest[0]) < 0.003  # of the value


def test_the_energy_score_is_least_for_points_of_the_distribution_itself():
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(4000, 2, generator=rng).double()
    points = torch.randn(1, 32, 2, generator=rng).double()
    rule = nbi.EnergyScore(32)

    def score(points):
        return float(rule.loss(points.expand(len(truth), -1, -1), truth, torch.zeros(2)).mean())

    others = [points + 0.5, 1.5 * points, 0.5 * points, points[..., :1].expand(-1, -1, 2)]
    assert all(score(points) < score(other) - 0.01 for other in others)


def test_what_rises_rises_for_any_numbers():
    rng = torch.Generator().manual_seed(0)
    for n_values in (1, 2, 3, 8):
        for size in (1.0, 1e3, 1e30):
            raw = size * torch.randn(2000, n_values, 3, generator=rng)
            assert (rising(raw).diff(dim=1) >= 0).all()
            np.testing.assert_array_equal(rising(raw)[:, n_values // 2], raw[:, n_values // 2])


def test_a_scale_reads_parameters_and_gives_them_back():
    prior = nbi.Prior({"a": loguniform(1e-3, 1e3), "b": uniform(-5, 10), "c": uniform(1, 2)})
    scale, theta = Scale.of(prior), torch.as_tensor(prior.sample(500, 0))
    assert scale.log.tolist() == [True, False, False]
    own = scale.read(theta)
    assert own.mean(0).abs().max() < 0.2
    assert (own.std(0) - 1).abs().max() < 0.2
    torch.testing.assert_close(scale.theta(own), theta, rtol=1e-10, atol=1e-12)


# --- what is learned -----------------------------------------------------------------------------


def in_sd(found, exact, sd):
    return (found - exact) / sd


def errors(estimates):
    """Return the errors of all estimates of a linear Gaussian problem, in posterior sds."""
    mean, cov = PROBLEM.posterior(X)
    sd = np.sqrt(cov.diagonal())
    quantiles = mean[:, None] + norm.ppf(LEVELS)[:, None] * sd
    return {
        "mean": in_sd(estimates["mean"]["mean"], mean, sd),
        "median": in_sd(estimates["median"]["median"], mean, sd),
        "quantiles": in_sd(estimates["q"]["quantile"], quantiles, sd),
        "expectile of a half": in_sd(estimates["ex"]["expectile"][:, 1], mean, sd),
        "mean of the points": in_sd(estimates["joint"]["energy"].mean(1), mean, sd),
    }


def test_estimates_of_a_linear_gaussian_problem_are_those_of_its_posterior(fitted, observations):
    for name, off in errors(fitted.estimate(observations)).items():
        assert np.sqrt((off**2).mean()) < 0.45, name
        assert np.abs(off.mean(0)).max() < 0.25, name


@pytest.mark.statistics
def test_estimates_of_a_linear_gaussian_problem_within_stated_errors(observations):
    made = engine(rules=RULES).fit(n_sims=40_000, n_epochs=100, batch_size=512, progress=False)
    big = nbi.Observations.from_arrays(np.tile(X, (20, 1)))
    began = time.perf_counter()
    made.estimate(big)
    print(
        f"\n{len(big) / (time.perf_counter() - began):.0f} objects of {X.shape[1]} points a second"
    )
    for name, off in errors(made.estimate(observations)).items():
        bias, rms = np.abs(off.mean(0)).max(), np.sqrt((off**2).mean())
        print(f"{name}: largest mean error {bias:.4f} sd, root mean square {rms:.4f} sd")
        assert bias < 0.02, name
        assert rms < 0.1, name
    theta, x = PROBLEM.observe(20_000, 3)
    found = made.estimate(nbi.Observations.from_arrays(x))["q"]["quantile"]
    below = (theta[:, None] < found).mean(0)
    print("share of truths below the quantiles", below.round(4).tolist())
    assert np.abs(below - np.array(LEVELS)[:, None]).max() < 0.015


def test_angles_know_of_no_cut(tmp_path):
    """Two numbers with normal errors of an angle: von Mises posteriors, a third of them cut."""
    prior = nbi.Prior({"phi": nbi.Circular(2 * np.pi, low=-1.0), "a": norm(0, 1)})

    def seen(theta):
        return np.stack([np.cos(theta[:, 0]), np.sin(theta[:, 0]), theta[:, 1]], 1)

    sigma, rules = 0.4, {"mean": nbi.MeanScore(), "q": nbi.QuantileScore([0.1, 0.5, 0.9])}
    rules["joint"] = nbi.EnergyScore(8)
    made = nbi.PointEngine(seen, prior, sigma, rules).fit(n_sims=6000, n_epochs=30, progress=False)
    theta = prior.sample(600, 5)
    x = seen(theta) + sigma * np.random.default_rng(2).normal(size=(600, 3))
    x = x[np.hypot(x[:, 0], x[:, 1]) > 0.5]
    where, kappa = np.arctan2(x[:, 1], x[:, 0]), np.hypot(x[:, 0], x[:, 1]) / sigma**2
    exact = vonmises(kappa)
    found = made.estimate(nbi.Observations.from_arrays(x))
    low, middle, high = found["q"]["quantile"][..., 0].T
    angles = {"mean": found["mean"]["mean"][:, 0], "median": middle, "low": low, "high": high}
    wanted = {"mean": 0.0, "median": 0.0, "low": exact.ppf(0.1), "high": exact.ppf(0.9)}
    sd = exact.ppf(norm.cdf(1.0))
    for name, own in angles.items():
        off = np.angle(np.exp(1j * (own - where - wanted[name]))) / sd
        assert np.sqrt((off**2).mean()) < 0.25, name
    near_the_cut = np.abs(np.angle(np.exp(1j * (where + 1)))) < exact.ppf(0.9)
    assert near_the_cut.mean() > 0.15
    beyond = (low < -1) | (high > 2 * np.pi - 1)
    assert beyond[near_the_cut].mean() > 0.9
    assert ((low < middle) & (middle < high) & (high - low < 2 * np.pi)).all()
    points = np.exp(1j * found["joint"]["energy"][..., 0]).mean(1)
    assert np.sqrt((np.angle(points * np.exp(-1j * where)) ** 2).mean()) < 0.25
    frame = (
        made.calibrate(1000, progress=False).to_frame().set_index(["rule", "parameter", "level"])
    )
    made.save(tmp_path / "angles.nbi")
    again = nbi.PointEngine.load(tmp_path / "angles.nbi").estimate(nbi.Observations.from_arrays(x))
    np.testing.assert_array_equal(again["q"]["quantile"], found["q"]["quantile"])
    for level in (0.1, 0.5, 0.9):
        own = frame.loc[("q", "phi", level)]
        assert own.low.item() - 0.03 <= level <= own.high.item() + 0.03


def test_quantiles_hold_as_many_truths_as_they_say(fitted, observations):
    found = fitted.estimate(observations)["q"]["quantile"]
    below = (THETA[:, None] < found).sum(0)
    for level, counts in zip(LEVELS, below, strict=True):
        low, high = binom(len(X), level).interval(0.9999)
        assert (counts > low - 0.03 * len(X)).all()  # of a short training
        assert (counts < high + 0.03 * len(X)).all()


def test_quantiles_never_cross_and_stay_within_the_prior_whatever_the_data():
    prior = nbi.Prior({"a": uniform(0, 1), "b": loguniform(1e-2, 1e2), "c": nbi.Circular(2.0)})
    rules = {"q": nbi.QuantileScore(np.linspace(0.02, 0.98, 25)), "m": nbi.MedianScore()}
    made = nbi.PointEngine(lambda theta: np.repeat(theta, 4, 1), prior, 0.3, rules)
    made.fit(n_sims=300, n_epochs=2, progress=False)
    rng = np.random.default_rng(0)
    x = rng.standard_cauchy(size=(400, 12)) * 10.0 ** rng.uniform(-20, 20, size=(400, 1))
    found = made.estimate(nbi.Observations.from_arrays(x))
    values = found["q"]["quantile"]
    assert (np.diff(values, axis=1) >= 0).all()
    low, high = np.array([0, 1e-2, -np.inf]), np.array([1, 1e2, np.inf])
    for own in (values, found["m"]["median"]):
        assert ((own >= low * (1 - 1e-9)) & (own <= high * (1 + 1e-9))).all()


def test_priors_whose_parameters_hang_together_are_estimated_as_they_are():
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal([1, 5], [[1, 0.9], [0.9, 1]], 500)
    prior = nbi.EmpiricalPrior(draws, ["a", "b"])
    made = nbi.PointEngine(lambda theta: theta[:, :1] * np.ones(4), prior, 0.2, RULES)
    made.fit(n_sims=2000, n_epochs=15, progress=False)
    theta = prior.sample(400, 1)
    x = theta[:, :1] + 0.2 * rng.normal(size=(400, 4))
    found = made.estimate(nbi.Observations.from_arrays(x))
    for values in (found["mean"]["mean"], found["q"]["quantile"][:, 2]):
        off = values - theta
        assert off[:, 0].std() < 0.2
        assert 0.3 < off[:, 1].std() < 0.55  # b is known by a alone, to sqrt(1 - 0.9^2)
        assert np.abs(off.mean(0)).max() < 0.1


# --- the engine ----------------------------------------------------------------------------------


def test_estimates_are_laid_out_by_rule_or_by_parameter(fitted, observations):
    by_rule = fitted.estimate(observations)
    shapes = {(rule, kind): v.shape for rule, own in by_rule.items() for kind, v in own.items()}
    n = len(X)
    assert shapes == {
        ("mean", "mean"): (n, 2), ("median", "median"): (n, 2), ("q", "quantile"): (n, 5, 2),
        ("ex", "expectile"): (n, 2, 2), ("joint", "energy"): (n, 16, 2),
    }  # fmt: skip
    by_parameter = fitted.estimate(observations, groupby="parameter")
    assert list(by_parameter) == ["p0", "p1"]
    for d, own in enumerate(by_parameter.values()):
        assert list(own) == list(RULES)
        for rule, values in own.items():
            (expected,) = by_rule[rule].values()
            np.testing.assert_array_equal(values, expected[..., d])


def test_estimates_do_not_depend_on_who_stands_beside(fitted, observations):
    whole = fitted.estimate(observations)["q"]["quantile"]
    np.testing.assert_allclose(
        fitted.estimate(observations[37:41])["q"]["quantile"], whole[37:41], atol=1e-5
    )


def test_an_object_without_points_has_no_estimate(fitted):
    x = X[:3].copy()
    x[1] = np.nan
    found = fitted.estimate(nbi.Observations.from_arrays(x))
    for own in found.values():
        (values,) = own.values()
        assert np.isnan(values[1]).all()
        assert np.isfinite(values[[0, 2]]).all()


def test_a_point_engine_survives_its_file(fitted, observations, tmp_path):
    fitted.save(tmp_path / "p.nbi")
    for simulator in (None, SIMULATOR):
        again = nbi.PointEngine.load(tmp_path / "p.nbi", simulator)
        assert again.rules == RULES
        for rule, own in fitted.estimate(observations).items():
            for kind, values in own.items():
                np.testing.assert_array_equal(again.estimate(observations)[rule][kind], values)
    said = told(tmp_path / "p.nbi")
    assert (said["file"], said["parameters"]) == ("point engine", ["p0", "p1"])
    refit = clone(again).fit(n_sims=100, n_epochs=1, progress=False)
    assert refit.estimate(observations)["mean"]["mean"].shape == X[:, :2].shape


def test_training_goes_on_where_it_was_interrupted(observations, tmp_path):
    def interrupt(history):
        if len(history) == 2:
            raise KeyboardInterrupt

    short = {"n_sims": 300, "n_epochs": 4, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        engine(path=tmp_path).fit(callback=interrupt, **short)
    lengths = []
    resumed = engine(path=tmp_path).fit(callback=lambda h: lengths.append(len(h)), **short)
    assert lengths == [3, 4]
    one, two = (m.estimate(observations)["mean"]["mean"] for m in (resumed, engine().fit(**short)))
    np.testing.assert_allclose(one, two, atol=1e-9)


def test_irregular_objects_with_their_own_errors_are_estimated():
    rng = np.random.default_rng(0)
    t = [np.sort(rng.uniform(0, 1, n)) for n in rng.integers(5, 12, 60)]
    flat = {"id": np.repeat(np.arange(60), [len(own) for own in t]), "time": np.concatenate(t)}
    flat["flux"] = rng.normal(size=len(flat["id"]))
    flat["flux_err"] = np.full(len(flat["id"]), 0.3)
    import pandas as pd

    survey = nbi.Observations.from_table(pd.DataFrame(flat))
    made = nbi.PointEngine(lambda theta, t: theta[:, :1] * t, {"slope": norm(0, 1)})
    found = made.fit(n_sims=300, n_epochs=2, observations=survey, progress=False).estimate(survey)
    assert np.isfinite(found["mean"]["mean"]).all()


def test_what_cannot_be_estimated_is_refused(fitted, observations):
    with pytest.raises(NotFittedError, match="Call fit before estimate"):
        engine().estimate(observations)
    with pytest.raises(ValueError, match="groupby must be one of"):
        fitted.estimate(observations, groupby="object")
    with pytest.raises(TypeError, match="observations must be a Observations"):
        fitted.estimate(X)
    with pytest.raises(ValueError, match="x must have shape"):
        fitted.estimate(nbi.Observations.from_arrays(X[:, :5]))
    for levels in ([0.5, 0.1], [0.0, 0.5], [0.5, 0.5], [], [1.2], [np.nan]):
        for rule in (nbi.QuantileScore, nbi.ExpectileScore):
            with pytest.raises(ValueError, match=r"levels must rise within \(0, 1\)"):
                rule(levels)
    with pytest.raises(ValueError, match="n_points must be a whole number of at least 2"):
        nbi.EnergyScore(1)
    for rules, message in (
        ({"mean": "mean"}, r"rules\['mean'\] must be a Score"),
        ([nbi.MeanScore()], "rules must be a Mapping"),
        ({"own": type("Own", (nbi.MeanScore,), {})()}, "which no file could hold"),
    ):
        with pytest.raises(TypeError, match=message):
            engine(rules=rules).fit(n_sims=50)
    with pytest.raises(ValueError, match="at least one rule"):
        engine(rules={}).fit(n_sims=50)
    with pytest.raises(TypeError, match="unexpected keywords"):
        engine().fit(n_sims=50, n_rounds=3)


def test_in_an_ensemble_it_answers_for_itself(observations, tmp_path):
    one = nbi.Engine(SIMULATOR, PRIOR, noise=PROBLEM.sigma, flow={"n_blocks": 1, "hidden": 8})
    both = nbi.Ensemble({"flow": one, "point": engine()})
    both.fit(n_sims=300, n_epochs=1, progress=False)
    both.save(tmp_path / "e.nbi")
    for made in (both, nbi.Ensemble.load(tmp_path / "e.nbi", SIMULATOR)):
        found = made.estimate(observations, groupby="parameter")
        assert list(found) == ["point"]
        assert found["point"]["p1"]["q"].shape == (len(X), 5)
        assert made.sample(X[0], merge_members=False)["flow"].shape == (1000, 2)
        assert made.member_weights_ == {}
        for refused in (made.sample, made.predict):
            with pytest.raises(ValueError, match="must all be Engines to be merged"):
                refused(X[0])
        with pytest.raises(ValueError, match="merge_members must be False for estimate"):
            made.estimate(observations, merge_members=True)
    with pytest.raises(ValueError, match="must hold a PointEngine for estimate"):
        nbi.Ensemble(one, n=2).fit(n_sims=50, n_epochs=1, truth_test=False).estimate(observations)
    points = nbi.Ensemble(engine(), n=2).fit(n_sims=300, n_epochs=1, progress=False)
    assert list(points.estimate(observations)) == ["member_0", "member_1"]


def test_a_config_says_its_rules_in_json_and_makes_them_again():
    config = ScoreConfig.of(RULES)
    assert config.made == RULES
    assert list(Scores(2, 8, config).rules) == list(RULES)
