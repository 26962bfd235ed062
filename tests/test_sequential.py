"""Laws of sequential fits: exact answers from few simulations, whatever happens on the way.

Networks locate here, as for black boxes that are dear; see `test_peaks_in_rounds` for the others.
"""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from problems import LinearGaussian, Square
from scipy import integrate
from scipy.stats import norm, uniform
from sklearn.exceptions import NotFittedError

import nbi_plus as nbi

QUICK = {
    "n_sims": 500, "n_rounds": 10, "n_epochs": 10, "ess_target": 1000, "locate": "network",
}  # fmt: skip


class Counted:
    """A simulator that remembers every theta it was asked for, and can be told to break."""

    def __init__(self, f, fail_after=None):
        self.f, self.fail_after, self.seen = f, fail_after, []

    def __call__(self, theta):
        if self.fail_after is not None and sum(map(len, self.seen)) >= self.fail_after:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
        self.seen.append(np.array(theta))
        return self.f(theta)

    @property
    def rows(self):
        return np.concatenate(self.seen)


def engine_for(problem, **options):
    options = {"featurizer": "resnet", "noise": problem.sigma} | options
    return nbi.Engine(options.pop("simulator", problem.simulator), problem.prior, **options)


@pytest.fixture(scope="module")
def problem():
    return LinearGaussian(2, 8, sigma=0.3)


@pytest.fixture(scope="module")
def x(problem):
    return problem.observe(1)[1][0]


@pytest.fixture(scope="module")
def fitted(problem, x):
    return engine_for(problem).fit(x_obs=x, **QUICK)


def assert_exact(posterior, problem, x):
    mean, cov = problem.posterior(x[None])
    sd = np.sqrt(np.diag(cov))
    error = 1 / np.sqrt(posterior.ess)
    assert posterior.status is nbi.Status.REFINED
    assert np.abs((posterior.mean() - mean[0]) / sd).max() < 4 * error
    # the sd of a normal has a relative error of sqrt(1 / 2 n)
    assert np.abs(posterior.std() / sd - 1).max() < 4 * error / np.sqrt(2) + 0.01
    off = posterior.log_evidence - problem.log_evidence(x[None])[0]
    assert abs(off) < 4 * posterior.log_evidence_err


def test_sequential_answer_equals_closed_form(fitted, problem, x):
    assert_exact(fitted.posterior_, problem, x)
    assert fitted.rounds_.stop_reason == "ess_reached"
    assert fitted.posterior_.ess >= QUICK["ess_target"]


def test_every_simulation_counts_once(problem, x):
    simulator = Counted(problem.simulator)
    engine = engine_for(problem, simulator=simulator).fit(x_obs=x, **QUICK)
    probes = len(engine_for(problem, simulator=Counted(problem.simulator)).simulator.seen)
    draws = engine.posterior_.samples
    assert len(draws) == engine.rounds_[-1].n_total == sum(r.n_sims for r in engine.rounds_)
    made = {row.tobytes() for row in simulator.rows}
    assert probes == 0
    assert {row.tobytes() for row in draws} <= made
    assert len({row.tobytes() for row in draws}) == len(draws)


def test_efficiency_does_not_fall_from_round_to_round(fitted):
    efficiency = [r.efficiency for r in fitted.rounds_ if r.phase.startswith(("adapt", "certify"))]
    assert efficiency[-1] >= 0.8 * max(efficiency)


def test_an_efficient_certificate_that_fails_is_given_three_times_the_draws(problem, x):
    """Before another proposal is tried: a thousand draws cannot have 1200 effective ones."""
    ladder = nbi.Ladder(gate=nbi.Gate(ess_min=1200))
    engine = engine_for(problem, ladder=ladder)
    engine.fit(
        n_sims=1000, n_rounds=12, x_obs=x, ess_target=1500, max_sims=20_000, locate="network"
    )
    steps = [(r.phase, r.n_sims) for r in engine.rounds_]
    assert steps[steps.index(("certify", 1000)) + 1] == ("certify", 2000)
    assert engine.posterior_.certified


def test_same_seed_gives_same_answer(fitted, problem, x):
    again = engine_for(problem).fit(x_obs=x, **QUICK)
    assert np.array_equal(again.posterior_.samples, fitted.posterior_.samples)
    other = engine_for(problem, seed=1).fit(x_obs=x, **QUICK)
    assert not np.array_equal(other.posterior_.samples[:10], fitted.posterior_.samples[:10])


def test_fit_leaves_global_generators_alone(problem, x):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    engine_for(problem).fit(x_obs=x, **QUICK)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_predict_draws_afresh_from_the_frozen_proposal(fitted, problem, x):
    posterior = fitted.predict(x, n_samples=3000, seed=5)
    assert_exact(posterior, problem, x)
    assert len(posterior) == 3000
    assert not np.isin(posterior.samples[:, 0], fitted.posterior_.samples[:, 0]).any()
    assert 0.01 < posterior.fit_p_value < 0.99
    assert abs(fitted.posterior_.fit_p_value - posterior.fit_p_value) < 0.05
    theta = fitted.sample(x, n_samples=500)
    mean, cov = problem.posterior(x[None])
    assert np.abs((theta.mean(0) - mean[0]) / np.sqrt(np.diag(cov))).max() < 0.5
    assert fitted.score(theta, x) == pytest.approx(fitted.log_prob(theta, x).mean())


def test_another_object_is_refused_unless_there_is_a_network(fitted, problem, x):
    with pytest.raises(ValueError, match="x_obs must be the object"):
        fitted.predict(x + 0.1)
    with pytest.raises(NotFittedError, match="fitted to one object"):
        fitted.predict_many(nbi.Observations.from_arrays(x[None]))


def test_a_sequential_fit_knows_its_object_whatever_holds_it(fitted, x, tmp_path):
    fitted.save(tmp_path / "engine.nbi")
    loaded = nbi.Engine.load(tmp_path / "engine.nbi", fitted.simulator)
    want = fitted.predict(x).samples
    holders = (
        list(x),
        np.ma.masked_array(x),
        nbi.Observations.from_arrays(x[None]),
        x * (1 + 1e-12),
    )
    for engine in (fitted, loaded):
        for held in holders:
            np.testing.assert_array_equal(engine.predict(held).samples, want)
        with pytest.raises(ValueError, match="but is another one"):
            engine.predict(x * (1 + 1e-6))


def test_sequential_fit_refines_an_amortized_engine(problem):
    _, many = problem.observe(3, seed=3)
    engine = engine_for(problem).fit(n_sims=2000, n_epochs=6)
    before = engine.predict(many[1], seed=1)
    engine.fit(x_obs=many[0], warm_start=True, **QUICK)
    assert engine.rounds_[0].phase == "start"
    assert_exact(engine.posterior_, problem, many[0])
    after = engine.predict(many[1], seed=1)
    assert np.array_equal(before.samples, after.samples)
    assert_exact(engine.predict(many[0]), problem, many[0])
    engine.fit(n_sims=500, n_epochs=1)
    assert not hasattr(engine, "posterior_")


def test_simulations_made_elsewhere_are_the_first_round(problem, x):
    theta = problem.prior.sample(800, np.random.default_rng(1))
    simulator = Counted(problem.simulator)
    engine = engine_for(problem, simulator=simulator)
    engine.fit(x_obs=x, theta=theta, x=problem.simulator(theta), **QUICK)
    assert engine.rounds_[0].n_sims == 800
    asked = {row.tobytes() for row in simulator.rows}
    assert not any(row.tobytes() in asked for row in theta)
    assert_exact(engine.posterior_, problem, x)


def test_save_and_load_keep_the_sequential_fit(fitted, problem, x, tmp_path):
    fitted.save(tmp_path / "one.nbi")
    loaded = nbi.Engine.load(tmp_path / "one.nbi", simulator=problem.simulator)
    assert repr(loaded.rounds_) == repr(fitted.rounds_)
    assert np.array_equal(loaded.posterior_.samples, fitted.posterior_.samples)
    old, new = fitted.predict(x, seed=3), loaded.predict(x, seed=3)
    assert np.allclose(old.log_weights, new.log_weights, rtol=0, atol=1e-9)
    bare = nbi.Engine.load(tmp_path / "one.nbi")
    with pytest.raises(ValueError, match="simulator"):
        bare.predict(x)


def test_two_modes_keep_their_shares():
    square = Square()
    x = np.random.default_rng(2).normal(1.0, square.sigma, square.n_points)
    engine = nbi.Engine(square.simulator, square.prior, noise=square.sigma, featurizer="resnet")
    posterior = engine.fit(x_obs=x, **QUICK).posterior_
    _, _, log_z = square.moments(x)
    assert posterior.certified
    assert nbi.Flag.MULTIMODAL in posterior.flags
    share = posterior.weights[posterior.samples[:, 0] > 0].sum()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(posterior.ess)
    assert abs(posterior.log_evidence - log_z) < 4 * posterior.log_evidence_err


def test_posterior_across_the_cut_of_a_circle_is_certified():
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x = np.cos(angles - 0.05) + 0.2 * np.random.default_rng(0).normal(size=12)
    engine = nbi.Engine(
        lambda theta: np.cos(angles - theta), {"phi": nbi.Circular(2 * np.pi)}, noise=0.2,
        featurizer="resnet",
    )  # fmt: skip
    posterior = engine.fit(x_obs=x, **QUICK).posterior_
    grid = np.linspace(0, 2 * np.pi, 4001)[:-1]
    like = norm.logpdf(x, np.cos(angles - grid[:, None]), 0.2).sum(1)
    exact = np.exp(like - like.max())
    wrapped = np.mod(grid + np.pi, 2 * np.pi) - np.pi
    mean = np.average(wrapped, weights=exact)
    sd = np.sqrt(np.average((wrapped - mean) ** 2, weights=exact))
    draws = np.mod(posterior.samples[:, 0] + np.pi, 2 * np.pi) - np.pi
    assert posterior.certified
    assert nbi.Flag.MULTIMODAL not in posterior.flags
    assert posterior.efficiency > 0.4
    assert abs(posterior.weights @ draws - mean) < 4 * sd / np.sqrt(posterior.ess)


def test_failing_rows_are_dropped_and_counted(problem, x):
    def failing(theta):
        if theta.shape != (2,):
            raise TypeError("one row at a time")
        if int(abs(theta[0]) * 1e6) % 10 == 0:  # one row in ten, whatever theta is
            raise ArithmeticError("no convergence")
        return theta @ problem.design

    engine = engine_for(problem, simulator=nbi.Simulator(failing, vectorized=False))
    posterior = engine.fit(x_obs=x, **QUICK).posterior_
    assert_exact(posterior, problem, x)
    assert nbi.Flag.SIM_ERRORS in posterior.flags


def test_a_corner_without_a_model_has_no_posterior(problem, x):
    mean, cov = problem.posterior(x[None])
    edge = mean[0, 0]

    def half(theta):
        model = problem.simulator(theta)
        return np.where(theta[:, :1] > edge, np.nan, model)

    posterior = engine_for(problem, simulator=half).fit(x_obs=x, **QUICK).posterior_
    assert posterior.certified
    assert nbi.Flag.SIM_ERRORS in posterior.flags
    sd = np.sqrt(cov[0, 0])
    error = 4 * sd / np.sqrt(posterior.ess)
    assert abs(posterior.mean()[0] - (edge - sd * np.sqrt(2 / np.pi))) < error
    off = posterior.log_evidence - problem.log_evidence(x[None])[0] + np.log(2)
    assert abs(off) < 4 * posterior.log_evidence_err


@pytest.mark.parametrize("fail_after", [300, 700, 1300, 2600])
def test_fit_that_was_broken_off_ends_where_an_unbroken_one_does(problem, x, tmp_path, fail_after):
    options = QUICK | {"ess_target": 1800}
    whole = Counted(problem.simulator)
    straight = engine_for(problem, simulator=whole, path=tmp_path / "a").fit(x_obs=x, **options)
    broken = Counted(problem.simulator, fail_after)
    with pytest.raises(KeyboardInterrupt):
        engine_for(problem, simulator=broken, path=tmp_path / "b").fit(x_obs=x, **options)
    rest = Counted(problem.simulator)
    resumed = engine_for(problem, simulator=rest, path=tmp_path / "b").fit(x_obs=x, **options)
    assert np.array_equal(resumed.posterior_.samples, straight.posterior_.samples)
    assert np.array_equal(resumed.posterior_.log_weights, straight.posterior_.log_weights)
    drawn = {row.tobytes() for row in straight.posterior_.samples}
    first, second = ({row.tobytes() for row in s.rows} & drawn for s in (broken, rest))
    assert first | second == drawn
    # some stored rows are simulated again on purpose: an edited simulator is found out so
    assert len(first & second) <= 2 * 32


def test_finished_fit_is_read_back_without_simulating(problem, x, tmp_path):
    first = engine_for(problem, path=tmp_path).fit(x_obs=x, **QUICK)
    simulator = Counted(problem.simulator)
    again = engine_for(problem, simulator=simulator, path=tmp_path).fit(x_obs=x, **QUICK)
    assert np.array_equal(again.posterior_.samples, first.posterior_.samples)
    drawn = {row.tobytes() for row in first.posterior_.samples}
    assert len({row.tobytes() for row in simulator.rows} & drawn) <= 2 * 32
    other = engine_for(problem, path=tmp_path).fit(x_obs=x + 0.01, **QUICK)
    assert not np.array_equal(other.posterior_.samples[500:600], first.posterior_.samples[500:600])


def test_budget_is_never_exceeded(problem, x):
    engine = engine_for(problem).fit(
        x_obs=x,
        n_sims=400,
        n_rounds=20,
        n_epochs=10,
        ess_target=1e6,
        max_sims=2900,
        locate="network",
    )
    assert engine.rounds_.stop_reason == "budget"
    assert engine.rounds_[-1].n_total == 2900
    assert_exact(engine.posterior_, problem, x)


def test_two_rounds_answer_with_the_network():
    problem = LinearGaussian(3, 8, sigma=0.2)
    x = problem.observe(1)[1][0]
    engine = engine_for(problem).fit(
        x_obs=x,
        n_sims=2000,
        n_rounds=2,
        n_epochs=20,
        ess_target=400,
        max_sims=6000,
        locate="network",
    )
    assert [r.phase for r in engine.rounds_][:3] == ["prior", "locate", "certify"]
    assert_exact(engine.posterior_, problem, x)


def test_a_posterior_that_was_not_found_is_said_to_be_somewhere_else(problem, x):
    engine = engine_for(problem, noise=1e-9)
    engine.fit(x_obs=x + 1e6, n_sims=100, n_rounds=12, n_epochs=1, locate="network")
    assert engine.rounds_.stop_reason == "not_located"
    assert len(engine.rounds_) == 12
    assert not engine.posterior_.certified
    assert "not_located" in engine.posterior_.report


def test_no_support_is_said_where_no_draw_has_a_density(problem, x):
    def scattered(model, obs, theta, rng):  # noqa: ARG001
        return model + 0.3 * (2 * torch.rand(model.shape, generator=rng, dtype=model.dtype) - 1)

    def box(theta, model, obs):  # noqa: ARG001
        near = ((obs.x - model).abs() < 0.3).flatten(-2).all(-1)
        return torch.where(near, 0.0, -torch.inf).to(model.dtype)

    engine = engine_for(problem, noise=nbi.CustomNoise(scattered, box))
    engine.fit(x_obs=x + 1e6, n_sims=100, n_rounds=3, n_epochs=1)
    assert engine.rounds_.stop_reason == "no_support"


def test_simulator_without_any_model_fails_as_a_value(problem, x):
    def almost_nothing(theta):
        return np.where(theta[:, :1] > 1.2, theta @ problem.design, np.nan)

    engine = engine_for(problem, simulator=almost_nothing)
    engine.fit(x_obs=x, n_sims=100, n_rounds=3, max_sims=150, max_failed=1.0)
    assert engine.posterior_.status is nbi.Status.FAILED
    assert engine.posterior_.ess == 0
    assert "FAIL_SIMULATOR" in engine.posterior_.report
    with pytest.raises(nbi.SimulationError):
        engine.fit(x_obs=x, n_sims=100, n_rounds=3)


def test_time_limit_keeps_what_was_simulated(problem, x, tmp_path):
    options = QUICK | {"ess_target": 1e5, "max_sims": 100_000}
    engine = engine_for(problem, path=tmp_path).fit(x_obs=x, max_seconds=0.01, **options)
    assert engine.rounds_.stop_reason == "time"
    assert not engine.posterior_.certified
    assert engine.rounds_[-1].n_total >= 500


def test_modes_are_looked_at_from_the_start():
    # a needle: a prior of width 1 and a posterior of width 1e-5 around 0.7
    prior = {"a": uniform(0, 1), "b": norm(0, 1)}
    grid = np.linspace(0, 1, 6)
    f = lambda theta: 1e5 * (theta[:, :1] - 0.7) + theta[:, 1:] * grid  # noqa: E731
    x = 0.3 * grid + np.random.default_rng(0).normal(size=6)
    options = {"noise": 1.0, "featurizer": "resnet"}
    for modes in ([[0.7, np.nan]], lambda data: [[0.7, np.nan]] if len(data) == 6 else None):
        engine = nbi.Engine(f, prior, **options).fit(
            x_obs=x, n_sims=1000, n_rounds=12, n_epochs=10, modes=modes
        )
        assert engine.rounds_[1].phase == "modes"
        assert engine.posterior_.certified
        assert abs(engine.posterior_.mean()[0] - 0.7) < 1e-4
    with pytest.raises(ValueError, match=r"modes must have shape \(M, 2\)"):
        nbi.Engine(f, prior, **options).fit(x_obs=x, modes=[0.1, 0.2, 0.3], **QUICK)
    with pytest.raises(ValueError, match="inside the prior"):
        nbi.Engine(f, prior, **options).fit(x_obs=x, modes=[[2.0, 0.0]], **QUICK)


def test_callback_sees_every_epoch_of_the_network(problem, x):
    lengths = []
    engine_for(problem).fit(x_obs=x, callback=lambda h: lengths.append(len(h)), **QUICK)
    assert lengths[: QUICK["n_epochs"]] == list(range(1, QUICK["n_epochs"] + 1))


def test_round_table_prints_and_converts(fitted):
    text = repr(fitted.rounds_)
    assert "adapt (mixture)" in text
    assert text.endswith(fitted.rounds_.stop.value)
    table = fitted.rounds_.to_table()
    assert len(table) == len(fitted.rounds_)
    assert table.meta["stop_reason"] == "ess_reached"
    assert list(table["n_total"]) == list(np.cumsum(table["n_sims"]))
    assert np.isnan(table["log_evidence"][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_rounds": 0}, "n_rounds must be"),
        ({"n_rounds": 2.5}, "n_rounds must be"),
        ({"x_obs": None}, "x_obs must be given"),
        ({"n_sims": None}, "fit must have n_sims"),
        ({"ess_target": 0}, "ess_target must be positive"),
        ({"max_sims": 10}, "max_sims must be at least n_sims"),
        ({"max_seconds": -1}, "max_seconds must be positive"),
        ({"method": "snl"}, "method must be one of"),
        ({"n_rounds": 1, "method": "amis", "ess_target": 1000}, "method must be left out"),
        ({"online": True}, "online must be False"),
    ],
)
def test_bad_options_of_a_sequential_fit_are_refused(problem, x, options, message):
    with pytest.raises(ValueError, match=message):
        engine_for(problem).fit(**(QUICK | {"x_obs": x} | options))


@pytest.mark.parametrize(
    "told",
    [{"locate": "peaks"}, {"ess_target": 400}, {"max_sims": 10_000}, {"max_seconds": 3.0},
     {"modes": [[0.0, 0.1]]}, {"modes": np.zeros((2, 2))}],
    ids=["locate", "ess_target", "max_sims", "max_seconds", "modes", "modes of numpy"],
)  # fmt: skip
def test_what_only_rounds_are_told_is_refused_for_one(problem, told):
    with pytest.raises(ValueError, match=f"{next(iter(told))} must be left out for one round"):
        engine_for(problem).fit(n_sims=64, n_epochs=1, **told)


def test_exact_method_needs_a_likelihood(problem, x):
    noise = nbi.CustomNoise(lambda model, obs, theta, rng: model)  # noqa: ARG005
    with pytest.raises(ValueError, match="must have a likelihood"):
        engine_for(problem, noise=noise).fit(x_obs=x, method="amis", **QUICK)


def test_narrow_posterior_inside_a_bent_prior_is_exact():
    """A banana in two dimensions, against quadrature."""
    prior = {"a": norm(0, 1), "b": norm(0, 1)}
    f = lambda theta: np.stack([theta[:, 0], theta[:, 1] + theta[:, 0] ** 2], 1)  # noqa: E731
    x = np.array([0.5, 1.0])
    engine = nbi.Engine(f, prior, noise=[0.8, 0.2], featurizer="resnet")
    posterior = engine.fit(x_obs=x, **QUICK).posterior_

    def density(b, a):
        data = norm.pdf(x[0], a, 0.8) * norm.pdf(x[1], b + a**2, 0.2)
        return norm.pdf(a) * norm.pdf(b) * data

    z = integrate.dblquad(density, -5, 5, -8, 8, epsabs=1e-10)[0]
    mean = integrate.dblquad(lambda b, a: a * density(b, a), -5, 5, -8, 8, epsabs=1e-10)[0] / z
    assert posterior.certified
    assert abs(posterior.mean()[0] - mean) < 4 * posterior.std()[0] / np.sqrt(posterior.ess)
    assert abs(posterior.log_evidence - np.log(z)) < 4 * posterior.log_evidence_err
