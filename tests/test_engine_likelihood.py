"""Engines that weigh with a learned likelihood: answers, statuses, files, and what is refused."""

from __future__ import annotations

import copy
import warnings

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform
from sklearn.base import clone

import nbi_plus as nbi
from nbi_plus.inspecting import told

SIGMA, N = 0.7, 12
PRIOR = {"mu": norm(0, 1)}


def trial(theta):
    return theta + SIGMA * torch.randn(theta.shape, dtype=theta.dtype)


def trials(theta):
    return theta + SIGMA * torch.randn(len(theta), N, dtype=theta.dtype)


@pytest.fixture(scope="module")
def likelihood():
    return nbi.LikelihoodEngine(trial, PRIOR).fit(n_sims=4000, n_epochs=10)


@pytest.fixture(scope="module")
def engine(likelihood):
    quick = nbi.Ladder(audit=None)
    engine = nbi.Engine(trials, PRIOR, likelihood=likelihood, featurizer="set", ladder=quick)
    return engine.fit(n_sims=2000, n_epochs=5)


def draws(mu=0.4, seed=0):
    return np.random.default_rng(seed).normal(mu, SIGMA, N)


def quietly(engine, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        return engine.predict(x, **options)


def exact(x):
    precision = 1 + x.shape[-1] / SIGMA**2
    return x.sum(-1) / SIGMA**2 / precision, precision**-0.5


def test_clones_and_copies_weigh_with_the_same_likelihood(engine, likelihood):
    for made in (clone(engine), copy.deepcopy(engine)):
        assert made.get_params().keys() == engine.get_params().keys()
        assert made.fit(n_sims=64, n_epochs=1).noise_.has_likelihood(False)
    assert clone(engine).likelihood is likelihood
    assert not hasattr(clone(likelihood), "fitted_")  # asked for itself it is a new one


def test_answers_are_those_of_the_learned_likelihood_and_near_the_exact_ones(engine, likelihood):
    x = draws()
    with pytest.warns(nbi.UntrustedWarning, match="LEARNED"):
        posterior = engine.predict(x, n_samples=4000)
    other = quietly(likelihood, x, n_samples=4000)
    assert posterior.status is nbi.Status.LEARNED
    assert not posterior.certified
    error = np.hypot(posterior.std() / posterior.ess**0.5, other.std() / other.ess**0.5)
    assert abs(posterior.mean() - other.mean()) < 4 * error
    both = np.hypot(posterior.log_evidence_err, other.log_evidence_err)
    assert abs(posterior.log_evidence - other.log_evidence) < 4 * both
    mean, sd = exact(x)
    assert abs(posterior.mean()[0] - mean) < 0.2 * sd
    mu = np.array([[0.1], [0.5]])
    summed = likelihood.log_likelihood(np.repeat(mu, N, 0), np.tile(x, 2)).reshape(2, N).sum(1)
    np.testing.assert_allclose(engine.log_likelihood(mu, x), summed, rtol=1e-9)


def test_masked_trials_do_not_count(engine, likelihood):
    x, mask = draws(), np.arange(N) < 5
    mu = np.array([[0.1], [0.5]])
    summed = likelihood.log_likelihood(np.repeat(mu, 5, 0), np.tile(x[:5], 2)).reshape(2, 5).sum(1)
    found = engine.log_likelihood(mu, np.where(mask, x, 99.0), mask=mask)
    np.testing.assert_allclose(found, summed, rtol=1e-9)


def test_one_trial_may_be_an_object_and_simulations_may_come_from_elsewhere():
    def pair(theta):
        return theta + SIGMA * torch.randn(len(theta), 2, dtype=theta.dtype)

    likelihood = nbi.LikelihoodEngine(pair, PRIOR).fit(n_sims=2000, n_epochs=5)
    theta = np.random.default_rng(0).normal(size=(2000, 1))
    x = theta + SIGMA * np.random.default_rng(1).normal(size=(2000, 2))
    engine = nbi.Engine(None, PRIOR, likelihood=likelihood).fit(theta, x, n_epochs=3)
    posterior = quietly(engine, [0.3, 0.5])
    assert posterior.status is nbi.Status.LEARNED
    mean, sd = exact(np.array([0.3, 0.5]))
    assert abs(posterior.mean()[0] - mean) < (0.2 + 4 / posterior.ess**0.5) * sd


def test_prior_of_the_engine_may_hold_more_and_lie_elsewhere(likelihood):
    wide = {"b": uniform(), "mu": norm(0, 5), "c": 1.0}
    engine = nbi.Engine(lambda theta: trials(theta[:, 1:2]), wide, likelihood=likelihood)
    found = engine.fit(n_sims=500, n_epochs=1).predict_many(
        nbi.Observations.from_arrays([draws(), draws(mu=6.0)])
    )
    assert nbi.Flag.EXTRAPOLATED not in found.flags[0]
    assert nbi.Flag.EXTRAPOLATED in found.flags[1]


def test_catalogues_and_calibrations_know_learned_answers(engine, tmp_path):
    many = nbi.Observations.from_arrays([draws(seed=s) for s in range(5)])
    summary = engine.predict_survey(many, tmp_path / "all.h5", progress=False)
    assert summary.status == {"LEARNED": 5}
    calibration = engine.calibrate(n=20)
    assert calibration.n_excluded == 0


def test_engine_goes_through_a_file(engine, tmp_path):
    engine.save(tmp_path / "e.nbi")
    again = nbi.Engine.load(tmp_path / "e.nbi", simulator=trials, ladder=engine.ladder)
    x = draws()
    np.testing.assert_array_equal(quietly(again, x).samples, quietly(engine, x).samples)
    assert again.noise_.fingerprint() == engine.noise_.fingerprint()
    assert told(tmp_path / "e.nbi")["likelihood"] == "learned"
    bare = nbi.Engine.load(tmp_path / "e.nbi")  # weights need no simulator
    assert quietly(bare, x).status is nbi.Status.LEARNED
    damaged = (tmp_path / "e.nbi").read_bytes()
    with h5py.File(tmp_path / "e.nbi") as file:
        place = file["arrays/likelihood%2Fnetwork%2Fflow.trend.slopes"].id.get_offset()
    damaged = damaged[:place] + bytes([damaged[place] ^ 1]) + damaged[place + 1 :]
    (tmp_path / "damaged.nbi").write_bytes(damaged)
    with pytest.raises(nbi.ArchiveError):
        nbi.Engine.load(tmp_path / "damaged.nbi")


def test_what_is_learned_anew_is_another_noise(likelihood):
    other = nbi.LikelihoodEngine(trial, PRIOR, seed=1).fit(n_sims=500, n_epochs=1)
    assert likelihood.as_noise().fingerprint() == likelihood.as_noise().fingerprint()
    assert likelihood.as_noise().fingerprint() != other.as_noise().fingerprint()


def test_noise_that_simulations_lack_must_be_passed_again(likelihood, tmp_path):
    def plain(theta):
        return theta.expand(-1, N)

    def augment(model, obs, theta, rng):
        return model + SIGMA * torch.randn(model.shape, generator=rng, dtype=model.dtype)

    noise = nbi.CustomNoise(augment)
    engine = nbi.Engine(plain, PRIOR, noise=noise, likelihood=likelihood, featurizer="set")
    engine.fit(n_sims=300, n_epochs=1).save(tmp_path / "e.nbi")
    with pytest.raises(ValueError, match="noise must be passed again"):
        nbi.Engine.load(tmp_path / "e.nbi", simulator=plain)
    again = nbi.Engine.load(tmp_path / "e.nbi", simulator=plain, noise=noise)
    assert quietly(again, draws()).status is nbi.Status.LEARNED


@pytest.mark.parametrize(
    ("options", "fit", "error", "words"),
    [
        ({"noise": nbi.GaussianNoise(0.1)}, {}, ValueError, "noise must be a CustomNoise without"),
        ({"likelihood": 3}, {}, TypeError, "likelihood must be"),
        ({}, {"x_obs": np.zeros(N), "n_rounds": 3}, ValueError, "fit in rounds must have"),
        ({"prior": {"nu": norm()}}, {}, ValueError, "Give the prior a parameter 'mu'"),
        ({}, {"x_err": np.ones(N)}, ValueError, "x_err must not be given with a learned"),
        (
            {"simulator": lambda theta: theta[:, :, None].expand(-1, 2, 3)},
            {},
            ValueError,
            "x must be trials of 1 numbers",
        ),
    ],
)
def test_what_cannot_be_weighed_is_refused(likelihood, options, fit, error, words):
    own = {"simulator": trials, "prior": PRIOR, "likelihood": likelihood} | options
    with pytest.raises(error, match=words):
        nbi.Engine(**own).fit(n_sims=100, n_epochs=1, **fit)


def test_likelihood_that_was_not_learned_is_refused():
    from sklearn.exceptions import NotFittedError

    engine = nbi.Engine(trials, PRIOR, likelihood=nbi.LikelihoodEngine(trial, PRIOR))
    with pytest.raises(NotFittedError):
        engine.fit(n_sims=100, n_epochs=1)
