"""Laws of the engine, against problems whose posterior and evidence are known."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from problems import LinearGaussian, Square
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import nbi_plus as nbi
from nbi_plus.learn.flows import Flow

SMALL = {"n_sims": 2000, "n_epochs": 6, "batch_size": 64}


@pytest.fixture(scope="module")
def linear():
    problem = LinearGaussian(n_dim=3, n_points=12)
    engine = nbi.Engine(problem.simulator, problem.prior, noise=problem.sigma, featurizer="resnet")
    return problem, engine.fit(n_sims=4000, n_epochs=10, batch_size=64)


def agreement(problem, posteriors, x):
    """Return z-scores of means (n, D), sd ratios (n, D) and z-scores of log Z (n,)."""
    mean, cov = problem.posterior(x)
    sd = np.sqrt(np.diag(cov))
    z_mean = (posteriors.mean - mean) / (sd / np.sqrt(posteriors.ess)[:, None])
    z_evidence = (posteriors.log_evidence - problem.log_evidence(x)) / posteriors.log_evidence_err
    return z_mean, posteriors.std / sd, z_evidence


def test_weighted_posterior_equals_closed_form(linear):
    problem, engine = linear
    _, x = problem.observe(100)
    posteriors = engine.predict_many(nbi.Observations.from_arrays(x))
    z_mean, ratio, z_evidence = agreement(problem, posteriors, x)
    certified = posteriors.certified
    assert certified.mean() > 0.9
    assert (np.abs(z_mean[certified]) < 4).mean() >= 0.99
    assert np.abs(np.median(ratio, 0) - 1).max() < 0.03
    assert (np.abs(z_evidence[certified]) < 4).mean() >= 0.97


@pytest.mark.statistics
def test_linear_gaussian_at_full_size():
    problem = LinearGaussian(n_dim=5, n_points=50)
    engine = nbi.Engine(problem.simulator, problem.prior, noise=problem.sigma)
    engine.fit(n_sims=10_000)
    _, x = problem.observe(200)
    posteriors = engine.predict_many(nbi.Observations.from_arrays(x))
    z_mean, ratio, z_evidence = agreement(problem, posteriors, x)
    print("median efficiency", np.median(posteriors.efficiency))
    print("means within 4 se", (np.abs(z_mean) < 4).mean(), "median sd ratio", np.median(ratio, 0))
    print("log Z within 4 errors", (np.abs(z_evidence) < 4).mean())
    assert np.median(posteriors.efficiency) >= 0.75
    assert (np.abs(z_mean) < 4).mean() >= 0.99
    assert np.abs(np.median(ratio, 0) - 1).max() < 0.03
    assert (np.abs(z_evidence) < 4).mean() >= 0.98


def test_one_parameter_posterior_depends_on_the_data():
    problem = LinearGaussian(n_dim=1, n_points=8, sigma=0.5)
    engine = nbi.Engine(problem.simulator, problem.prior, noise=0.5, featurizer="resnet").fit(
        **SMALL
    )
    _, x = problem.observe(50)
    posteriors = engine.predict_many(nbi.Observations.from_arrays(x))
    z_mean, ratio, _ = agreement(problem, posteriors, x)
    assert (np.abs(z_mean[posteriors.certified]) < 4).all()
    assert posteriors.certified.mean() > 0.8
    raw = engine.sample(x[0], n_samples=500).mean() - engine.sample(x[1], n_samples=500).mean()
    mean, _ = problem.posterior(x[:2])
    assert np.sign(raw) == np.sign((mean[0] - mean[1])[0])


def test_bimodal_posterior_keeps_both_modes():
    problem = Square()
    engine = nbi.Engine(
        problem.simulator, problem.prior, noise=problem.sigma, featurizer="resnet",
        flow={"num_blocks": 3, "n_mog": 4},
    ).fit(n_sims=4000, n_epochs=12, batch_size=64)  # fmt: skip
    rng = np.random.default_rng(3)
    truth = np.array([0.8, 1.2, -1.0])
    x = truth[:, None] ** 2 + problem.sigma * rng.normal(size=(3, problem.n_points))
    for data, posterior in zip(
        x, engine.predict_many(nbi.Observations.from_arrays(x)), strict=True
    ):
        mean, sd, log_z = problem.moments(data)
        a, w = posterior.samples[:, 0], posterior.weights
        se = 1 / np.sqrt(posterior.ess)
        assert posterior.certified
        assert abs(w[a > 0].sum() - 0.5) < 4 * 0.5 * se
        assert abs(w @ np.abs(a) - mean) < 4 * sd * se
        assert abs(posterior.log_evidence - log_z) < 4 * posterior.log_evidence_err


def test_predict_equals_predict_many_whatever_the_batch(linear):
    problem, engine = linear
    _, x = problem.observe(40)
    observations = nbi.Observations.from_arrays(x)
    together = engine.predict_many(observations)
    alone = engine.predict_many(observations[[7]])[0]
    backwards = engine.predict_many(observations[::-1])[32]
    for other in (alone, backwards):
        assert other.id == together[7].id
        np.testing.assert_allclose(other.samples, together[7].samples, atol=1e-4)
        np.testing.assert_allclose(other.ess, together[7].ess, rtol=1e-2)
    one = engine.predict(x[0])
    np.testing.assert_allclose(one.mean(), together[0].mean(), atol=1e-3)


def test_keep_changes_draws_not_summaries(linear):
    problem, engine = linear
    _, x = problem.observe(5)
    observations = nbi.Observations.from_arrays(x)
    everything = engine.predict_many(observations)
    few, none = (engine.predict_many(observations, keep=k) for k in (300, 0))
    for other in (few, none):
        np.testing.assert_array_equal(other.mean, everything.mean)
        np.testing.assert_array_equal(other.log_evidence, everything.log_evidence)
    assert len(few[0]) == 300
    np.testing.assert_allclose(few[0].weights, 1 / 300)
    with pytest.raises(ValueError, match="keep=0"):
        none[0]
    assert len(none.to_table()) == 5


def test_draws_are_at_least_those_asked_for(linear):
    problem, engine = linear
    _, x = problem.observe(1)
    assert len(engine.predict(x[0], n_samples=10)) == nbi.Ladder().n_draws
    posterior = engine.predict(x[0], n_samples=3000)
    assert len(posterior) == 3000
    samples, weights = posterior
    assert samples.shape == (3000, 3)
    assert weights.sum() == pytest.approx(1)
    assert posterior.resample(123, 0).shape == (123, 3)


def test_densities_of_a_posterior_are_in_theta(linear):
    problem, engine = linear
    _, x = problem.observe(1)
    p = engine.predict(x[0])
    np.testing.assert_allclose(p.log_prior, problem.prior.log_prob(p.samples))
    np.testing.assert_allclose(p.log_likelihood, engine.log_likelihood(p.samples, x[0]), rtol=1e-10)
    np.testing.assert_allclose(p.log_weights, p.log_likelihood + p.log_prior - p.log_q, atol=1e-9)
    np.testing.assert_allclose(
        engine.log_posterior(p.samples, x[0]), p.log_prior + p.log_likelihood
    )
    assert np.argmax(p.log_prior + p.log_likelihood) == np.flatnonzero((p.samples == p.best).all(1))


def test_reweighting_to_another_prior_equals_its_closed_form(linear):
    from scipy.stats import norm

    problem, engine = linear
    _, x = problem.observe(1)
    narrow = nbi.Prior({f"p{i}": norm(0, 0.7) for i in range(3)})
    p = engine.predict(x[0]).reweight(narrow)
    design = problem.design
    cov = np.linalg.inv(np.eye(3) / 0.49 + design @ design.T)
    mean = cov @ design @ x[0]
    se = np.sqrt(np.diag(cov) / p.ess)
    assert (np.abs(p.mean() - mean) < 4 * se).all()


def test_score_is_the_mean_log_prob_and_beats_the_prior(linear):
    problem, engine = linear
    theta, x = problem.observe(200, seed=5)
    each = engine.log_prob(theta, x)
    assert engine.score(theta, x) == pytest.approx(each.mean())
    np.testing.assert_allclose(engine.log_prob(theta[3:4], x[3]), each[3:4], atol=1e-5)
    assert each.mean() > problem.prior.log_prob(theta).mean() + 1
    mean, cov = problem.posterior(x)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov)[1]
    assert (
        each.mean() < -entropy + 0.3
    )  # no density is better than the truth by more than its scatter


def test_fit_again_gives_the_same_engine_and_other_seeds_do_not():
    problem = LinearGaussian(n_dim=2, n_points=6)
    _, x = problem.observe(1)
    make = lambda seed: nbi.Engine(  # noqa: E731
        problem.simulator, problem.prior, noise=1.0, featurizer="resnet", seed=seed
    )
    quick = {"n_sims": 300, "n_epochs": 2}
    engine = make(0).fit(**quick)
    draws = engine.sample(x[0], n_samples=50)
    engine.log_likelihood(np.zeros((1, 2)), x[0])
    np.testing.assert_array_equal(engine.fit(**quick).sample(x[0], n_samples=50), draws)
    assert not np.allclose(make(1).fit(**quick).sample(x[0], n_samples=50), draws)


def test_warm_start_goes_on_and_leaves_the_old_network_alone(linear):
    problem, engine = linear
    _, x = problem.observe(1)
    other = nbi.Engine(problem.simulator, problem.prior, noise=1.0, featurizer="resnet")
    other.fit(n_sims=500, n_epochs=2)
    before, network = other.history_, other.model_.network
    state = {k: v.clone() for k, v in network.state_dict().items()}
    other.fit(n_sims=500, n_epochs=3, warm_start=True)
    assert len(other.history_) == len(before) + 3
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_engine_is_a_scikit_learn_estimator():
    problem = LinearGaussian(n_dim=2, n_points=6)
    engine = nbi.Engine(problem.simulator, problem.prior, noise=1.0, seed=3)
    assert engine.get_params()["seed"] == 3
    assert clone(engine).set_params(seed=4).seed == 4
    assert "Engine" in repr(engine)
    for call in (engine.predict, engine.sample, engine.score):
        with pytest.raises(NotFittedError, match="Call fit before"):
            call(*([np.zeros(6)] * (2 if call == engine.score else 1)))


def test_saved_engine_answers_the_same(linear, tmp_path):
    problem, engine = linear
    _, x = problem.observe(3)
    observations = nbi.Observations.from_arrays(x)
    engine.save(tmp_path / "engine.nbi")
    again = nbi.Engine.load(tmp_path / "engine.nbi", simulator=problem.simulator)
    first, second = engine.predict_many(observations), again.predict_many(observations)
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.ood_p_value, second.ood_p_value)
    bare = nbi.Engine.load(tmp_path / "engine.nbi").predict_many(observations)
    assert bare.status == (nbi.Status.AMORTIZED,) * 3


def test_saved_posterior_is_the_same(linear, tmp_path):
    problem, engine = linear
    posterior = engine.predict(problem.observe(1)[1][0])
    posterior.save(tmp_path / "p.h5")
    again = nbi.Posterior.load(tmp_path / "p.h5")
    assert repr(again) == repr(posterior)
    assert again.report == posterior.report
    np.testing.assert_array_equal(again.weights, posterior.weights)


def test_global_random_states_are_left_alone():
    problem = LinearGaussian(n_dim=2, n_points=6)
    _, x = problem.observe(2)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    engine = nbi.Engine(problem.simulator, problem.prior, noise=1.0, flow="nsf", featurizer="gru")
    engine.fit(n_sims=200, n_epochs=1)
    engine.predict_many(nbi.Observations.from_arrays(x))
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    assert before == after


def test_no_likelihood_means_amortized_and_uncorrected():
    problem = LinearGaussian(n_dim=2, n_points=6)
    noise = nbi.CustomNoise(
        lambda model, obs, theta, rng: (
            model + torch.randn(model.shape, generator=rng, device=model.device, dtype=model.dtype)
        )
    )
    engine = nbi.Engine(problem.simulator, problem.prior, noise=noise, featurizer="resnet")
    engine.fit(n_sims=300, n_epochs=2)
    with pytest.warns(nbi.UncertifiedWarning, match="AMORTIZED"):
        posterior = engine.predict(np.zeros(6))
    assert posterior.status is nbi.Status.AMORTIZED
    assert not posterior.certified
    np.testing.assert_allclose(posterior.weights, 1 / len(posterior))


def test_unweighted_answers_hold_as_many_draws_as_were_asked_for(linear, tmp_path, monkeypatch):
    problem, engine = linear
    engine.save(tmp_path / "engine.nbi")
    bare = nbi.Engine.load(tmp_path / "engine.nbi")
    observations = nbi.Observations.from_arrays(problem.observe(3)[1])
    whole = bare.predict_many(observations, n_samples=50)
    some = bare.predict_many(observations, n_samples=50, keep=7)
    for all_draws, first in zip(whole, some, strict=True):
        assert len(all_draws) == 50
        np.testing.assert_array_equal(first.samples, all_draws.samples[:7])
        np.testing.assert_allclose(first.log_q, all_draws.log_q[:7], rtol=1e-12)
        np.testing.assert_allclose(first.weights, 1 / 7)
    assert len(bare.predict_many(observations, n_samples=5, keep=9)[0]) == 9
    assert np.isfinite(bare.predict_many(observations, n_samples=1).mean).all()

    seen = []
    monkeypatch.setattr(Flow, "log_prob", lambda _, z, __: seen.append(z.shape[1]) or z[..., 0])
    summaries = bare.predict_many(observations, n_samples=50, keep=0)
    np.testing.assert_array_equal(summaries.mean, whole.mean)
    assert not any(seen)  # no density is made that nobody keeps


def test_nbi_noise_function_is_weighted_where_errors_are_known():
    problem = LinearGaussian(n_dim=2, n_points=6)

    def noise(x, y):
        return x + np.random.normal(size=x.shape), y

    engine = nbi.Engine(problem.simulator, problem.prior, noise=noise, featurizer="resnet")
    engine.fit(n_sims=600, n_epochs=4)
    _, x = problem.observe(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UncertifiedWarning)
        assert engine.predict(x[0], x_err=np.ones(6)).status is not nbi.Status.AMORTIZED
        assert engine.predict(x[0]).status is nbi.Status.AMORTIZED


def test_offline_simulations_train_the_same_posterior(tmp_path):
    import h5py

    problem = LinearGaussian(n_dim=2, n_points=6)
    theta = problem.prior.sample(3000, 0)
    x = theta @ problem.design
    make = lambda: nbi.Engine(problem.simulator, problem.prior, noise=1.0, featurizer="resnet")  # noqa: E731
    engine = make().fit(theta=theta, x=x, n_epochs=4)
    with h5py.File(tmp_path / "sims.h5", "w") as file:
        file["theta"], file["x"] = theta, x
    from_disk = make().fit(x=tmp_path / "sims.h5", n_epochs=4)
    _, data = problem.observe(20)
    observations = nbi.Observations.from_arrays(data)
    first, second = engine.predict_many(observations), from_disk.predict_many(observations)
    np.testing.assert_array_equal(first.mean, second.mean)
    z_mean, _, _ = agreement(problem, first, data)
    assert (np.abs(z_mean[first.certified]) < 4).all()
    assert first.certified.mean() > 0.8


def test_online_training_learns():
    problem = LinearGaussian(n_dim=2, n_points=6)
    engine = nbi.Engine(problem.simulator, problem.prior, noise=1.0, featurizer="resnet")
    engine.fit(n_sims=1000, n_epochs=6, batch_size=32, online=True)
    theta, x = problem.observe(500)
    _, cov = problem.posterior(x)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * cov)[1]
    assert -engine.score(theta, x) < entropy + 0.3


def test_errors_of_each_object_are_used(tmp_path):
    problem = LinearGaussian(n_dim=2, n_points=10)
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.3, 2.0, (200, 1)) * np.ones(10)
    theta = rng.normal(size=(200, 2))
    x = theta @ problem.design + errors * rng.normal(size=(200, 10))
    survey = nbi.Observations.from_arrays(x, errors)
    engine = nbi.Engine(problem.simulator, problem.prior, featurizer="resnet", path=tmp_path)
    engine.fit(n_sims=4000, n_epochs=10, observations=survey)
    posteriors = engine.predict_many(survey[:60])
    for i in np.flatnonzero(posteriors.certified):
        one = LinearGaussian(2, 10, sigma=errors[i, 0])
        mean, cov = one.posterior(x[i : i + 1])
        z = (posteriors.mean[i] - mean[0]) / np.sqrt(np.diag(cov) / posteriors.ess[i])
        assert (np.abs(z) < 4.5).all()
    assert posteriors.certified.mean() > 0.8
    scale = posteriors.std[:, 0]
    assert np.corrcoef(scale, errors[:60, 0])[0, 1] > 0.9


def test_derived_fixed_and_units_reach_the_tables():
    from scipy.stats import norm

    prior = nbi.Prior(
        {"a": norm(0, 1), "offset": 2.0, "b": norm(0, 1)},
        units={"a": "km/s"},
        derived={"a2": lambda theta: theta[:, 0] ** 2},
    )

    def line(theta, t):
        return theta[:, :1] * t + theta[:, 1:2] + theta[:, 2:]

    engine = nbi.Engine(line, prior, noise=0.5, featurizer="resnet")
    engine.fit(n_sims=1500, n_epochs=4, t=np.linspace(-1, 1, 10))
    posteriors = engine.predict_many(nbi.Observations.from_arrays(np.full((2, 10), 2.0)))
    posterior = posteriors[0]
    np.testing.assert_allclose(posterior.derived["a2"], posterior.samples[:, 0] ** 2)
    table = posteriors.to_table(uncertified="keep")
    assert str(table["a_mean"].unit) == "km / s"
    np.testing.assert_allclose(table["b_mean"], posteriors.mean[:, 1])


def test_stored_simulations_are_used_again(tmp_path):
    problem = LinearGaussian(n_dim=2, n_points=6)
    calls = []

    def counted(theta):
        calls.append(len(theta))
        return theta @ problem.design

    make = lambda: nbi.Engine(  # noqa: E731
        nbi.Simulator(counted, vectorized=True, differentiable=False), problem.prior, noise=1.0,
        featurizer="resnet", path=tmp_path, n_jobs=1,
    )  # fmt: skip
    make().fit(n_sims=500, n_epochs=1)
    assert 500 in calls
    calls.clear()
    make().fit(n_sims=600, n_epochs=1)
    assert 100 in calls  # what was missing, besides the probes of a new session
    assert 500 not in calls
    assert 600 not in calls
    assert len(list(tmp_path.glob("simulations-*.h5"))) == 1


def test_edited_simulator_is_refused_on_an_old_store(tmp_path):
    problem = LinearGaussian(n_dim=2, n_points=6)
    options = {"noise": 1.0, "featurizer": "resnet", "path": tmp_path}
    nbi.Engine(problem.simulator, problem.prior, **options).fit(n_sims=100, n_epochs=1)
    edited = nbi.Engine(lambda theta: 1.01 * theta @ problem.design, problem.prior, **options)
    with pytest.raises(nbi.StoreError, match="edited"):
        edited.fit(n_sims=100, n_epochs=1)


def test_stochastic_simulator_is_refused_with_the_remedy():
    def noisy(theta):
        return theta @ np.ones((2, 5)) + np.random.normal(size=(len(theta), 5))

    problem = LinearGaussian(n_dim=2, n_points=5)
    engine = nbi.Engine(noisy, problem.prior, noise=1.0, featurizer="resnet")
    with pytest.raises(ValueError, match="CustomNoise without a log_likelihood"):
        engine.fit(n_sims=100, n_epochs=1)


def test_simulations_that_fail_are_left_out_and_counted():
    problem = LinearGaussian(n_dim=2, n_points=8)

    def fragile(theta):
        if theta[0] > 2.0:
            raise ValueError("p0 > 2")
        x = theta @ problem.design
        return x * np.nan if theta[1] > 2.2 else x

    engine = nbi.Engine(fragile, problem.prior, noise=1.0, featurizer="resnet", n_jobs=1)
    engine.fit(n_sims=1000, n_epochs=4)
    assert engine.model_.n_sims < 1000
    x = np.array([1.8, 0.3]) @ problem.design
    posterior = engine.predict_many(nbi.Observations.from_arrays(x[None]))[0]
    assert nbi.Flag.SIM_ERRORS in posterior.flags
    assert "SIM_ERRORS" in posterior.flags
    assert posterior.samples[posterior.weights > 0][:, 0].max() <= 2.0


def test_simulator_that_breaks_after_training_is_failed_not_fatal():
    problem = LinearGaussian(n_dim=2, n_points=8)
    state = {"broken": False}

    def simulator(theta):
        return theta @ problem.design * (np.nan if state["broken"] else 1.0)

    engine = nbi.Engine(simulator, problem.prior, noise=1.0, featurizer="resnet", n_jobs=1)
    engine.fit(n_sims=300, n_epochs=2)
    state["broken"] = True
    with pytest.warns(nbi.UncertifiedWarning, match="FAILED"):
        posterior = engine.predict(np.zeros(8))
    assert posterior.status is nbi.Status.FAILED
    assert posterior.ess == 0
    assert "FAIL_SIMULATOR" in posterior.report
    state["broken"] = False
    assert engine.predict_many(nbi.Observations.from_arrays(np.zeros((1, 8))))[0].ess > 0
