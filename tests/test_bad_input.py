"""Bad input: each case gives the error or the flag that the contract names, and harms nothing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from problems import LinearGaussian
from scipy.stats import norm, poisson, uniform

import nbi_plus as nbi

PROBLEM = LinearGaussian(n_dim=2, n_points=8)
PRIOR = PROBLEM.prior
F = PROBLEM.simulator
X = np.linspace(-0.5, 0.5, 8)
QUICK = {"n_sims": 200, "n_epochs": 1}


@pytest.fixture(scope="module")
def engine():
    return nbi.Engine(F, PRIOR, noise=1.0, featurizer="resnet").fit(n_sims=1500, n_epochs=4)


@pytest.fixture(scope="module")
def engine_with_errors():
    made = nbi.Engine(F, PRIOR, featurizer="resnet")
    return made.fit(n_sims=1500, n_epochs=4, x_obs=X, x_err=np.ones(8))


def fresh(simulator=F, prior=PRIOR, **options):
    return nbi.Engine(simulator, prior, **({"noise": 1.0, "featurizer": "resnet"} | options))


def raises(theta):
    raise RuntimeError("no such star")


def nan(theta):
    return np.full((len(theta), 8), np.nan)


def ragged(theta):
    return np.ones(3 + int(abs(theta[0]) * 10))


def text(theta):
    return np.array([["bright"] * 8] * len(theta))


FIT = {
    "n_sims is negative": (fresh, {"n_sims": -1}, "n_sims must be"),
    "n_sims is zero": (fresh, {"n_sims": 0}, "n_sims must be"),
    "n_sims is a fraction": (fresh, {"n_sims": 10.5}, "n_sims must be"),
    "n_sims is missing": (fresh, {}, "n_sims"),
    "n_sims and simulations": (fresh, {"n_sims": 9, "theta": [[0, 0]], "x": [X]}, "either n_sims"),
    "n_epochs is zero": (fresh, {"n_sims": 200, "n_epochs": 0}, "n_epochs must be"),
    "lr is negative": (fresh, {"n_sims": 200, "lr": -1e-3}, "lr must be"),
    "batch_size is zero": (fresh, {"n_sims": 200, "batch_size": 0}, "batch_size must be"),
    "unknown train option": (
        fresh,
        {"n_sims": 200, "train": {"epochs": 3}},
        "must have keys among",
    ),
    "misspelt keyword": (fresh, {"n_sims": 200, "bacth_size": 3}, "bacth_size"),
    "x and theta swapped": (
        fresh,
        {"theta": np.zeros((50, 8)), "x": np.zeros((50, 2))},
        "Did you swap x and theta",
    ),
    "x of another length": (fresh, {"theta": np.zeros((50, 2)), "x": np.zeros((50, 7))}, "swap"),
    "x has fewer rows": (
        fresh,
        {"theta": np.zeros((50, 2)), "x": np.zeros((40, 8))},
        "x must have",
    ),
    "x without theta": (fresh, {"x": np.zeros((50, 8))}, "together"),
    "all of x is NaN": (
        fresh,
        {"theta": np.zeros((50, 2)), "x": np.full((50, 8), np.nan)},
        "finite rows",
    ),
    "x_err is negative": (fresh, QUICK | {"x_err": -np.ones(8)}, "x_err must be positive"),
    "x_err is zero": (fresh, QUICK | {"x_obs": X, "x_err": np.zeros(8)}, "x_err must be positive"),
    "x_err of another length": (fresh, QUICK | {"x_err": np.ones(5)}, "x_err must have a shape"),
    "x_obs of another length": (fresh, QUICK | {"x_obs": np.ones(5)}, r"\(1, 8\) and \(1, 5\)"),
    "observations of another type": (fresh, QUICK | {"observations": X}, "must be Observations"),
    "neither errors nor sigma": (lambda: fresh(noise=None), QUICK, "size of the errors"),
    "sigma is zero": (lambda: fresh(noise=0.0), QUICK, "sigma must be finite and positive"),
    "simulator is missing": (lambda: fresh(simulator=None), QUICK, "simulator or simulations"),
    "simulator raises": (lambda: fresh(raises), QUICK, "no such star"),
    "simulator is all NaN": (lambda: fresh(nan), QUICK, "fail|finite"),
    "simulator changes length": (lambda: fresh(ragged), QUICK, "length|shape"),
    "simulator returns text": (lambda: fresh(text), QUICK, "dtype|number"),
    "simulator wants a coordinate": (lambda: fresh(lambda theta, t: F(theta)), QUICK, "'t'|t "),
    "prior is missing": (lambda: fresh(prior=None), QUICK, "one prior"),
    "prior is discrete": (lambda: fresh(prior={"a": poisson(3)}), QUICK, "continuous"),
    "prior is a point mass": (lambda: fresh(prior={"a": uniform(1, 0)}), QUICK, "a"),
    "prior has NaN": (lambda: fresh(prior={"a": norm(np.nan, 1)}), QUICK, "a"),
    "prior is a class": (lambda: fresh(prior={"a": norm}), QUICK, "a"),
    "two priors": (lambda: fresh(priors=[norm(0, 1)]), QUICK, "one prior"),
    "unknown flow": (lambda: fresh(flow="glow"), QUICK, "flow must be .*, but is 'glow'"),
    "unknown flow key": (lambda: fresh(flow={"blocks": 3}), QUICK, "must have keys among"),
    "flow of other n_dims": (lambda: fresh(flow={"n_dims": 5}), QUICK, "prior's 2"),
    "unknown featurizer": (lambda: fresh(featurizer="vgg"), QUICK, "resnet-gru"),
    "unknown featurizer key": (lambda: fresh(featurizer={"type": "ResNet", "x": 1}), QUICK, "x"),
    "featurizer of wrong output": (
        lambda: fresh(featurizer=torch.nn.Identity()),
        QUICK,
        "featurizer|module",
    ),
    "unknown device": (lambda: fresh(device="abacus"), QUICK, "device"),
    "n_jobs is zero": (lambda: fresh(n_jobs=0), QUICK, "n_jobs"),
    "simulations file is no file": (fresh, {"x": "no/such/file.h5"}, "no/such/file.h5"),
}


@pytest.mark.parametrize("case", FIT)
def test_fit_refuses(case):
    make, options, message = FIT[case]
    with pytest.raises((ValueError, TypeError, RuntimeError, OSError), match=message):
        make().fit(**options)


ANSWER = {
    "x_obs of another length": (np.ones(5), {}, "as in training"),
    "x_obs of other channels": (np.ones((2, 8)), {}, "as in training"),
    "x_obs is empty": (np.ones(0), {}, "x_obs must have shape"),
    "x_obs of many objects": (np.ones((3, 1, 8)), {}, "predict_many"),
    "x_obs is text": (["a"] * 8, {}, "x_obs must be an array of numbers"),
    "x_err is zero": (X, {"x_err": np.zeros(8)}, "x_err must be positive"),
    "x_err is negative": (X, {"x_err": -1.0}, "x_err must be positive"),
    "x_err of another length": (X, {"x_err": np.ones(3)}, "x_err must have a shape"),
    "mask of another length": (X, {"mask": np.ones(3, bool)}, "mask must have a shape"),
    "n_samples is zero": (X, {"n_samples": 0}, "n_samples must be"),
    "unknown keyword": (X, {"wavelenght": 3.0}, "wavelenght"),
}


@pytest.mark.parametrize("case", ANSWER)
def test_predict_refuses_and_goes_on(engine, case):
    x, options, message = ANSWER[case]
    with pytest.raises((ValueError, TypeError), match=message):
        engine.predict(x, **options)
    assert engine.predict_many(nbi.Observations.from_arrays(X[None]))[0].ess > 0


def test_predict_many_refuses_plain_arrays(engine):
    with pytest.raises(TypeError, match="from_arrays"):
        engine.predict_many(np.ones((3, 8)))
    with pytest.raises(ValueError, match="keep must be"):
        engine.predict_many(nbi.Observations.from_arrays(X[None]), keep=-1)


def test_log_prob_refuses_swapped_arguments(engine):
    with pytest.raises(ValueError, match="swap x and theta"):
        engine.log_prob(np.ones((4, 8)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="one for each"):
        engine.log_prob(np.ones((4, 2)), np.ones((3, 8)))


def test_missing_errors_are_refused_where_the_network_was_trained_with_them(engine_with_errors):
    observations = nbi.Observations.from_arrays(X[None])
    with pytest.raises(ValueError, match="x_err must be given"):
        engine_with_errors.predict_many(observations)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_masked_and_counted(engine, bad):
    x = np.tile(X, (2, 1))
    x[0, 3] = bad
    posteriors = engine.predict_many(nbi.Observations.from_arrays(x))
    assert posteriors.n_masked.tolist() == [1, 0]
    masked = engine.predict_many(nbi.Observations.from_arrays(x[1:], mask=np.arange(8)[None] != 3))
    np.testing.assert_allclose(posteriors.mean[0], masked.mean[0], atol=0.2)


def test_object_without_a_valid_point_fails_with_its_reason(engine):
    x = np.tile(X, (3, 1))
    x[1] = np.nan
    posteriors = engine.predict_many(nbi.Observations.from_arrays(x))
    assert posteriors.status[1] is nbi.Status.FAILED
    assert nbi.Flag.BAD_INPUT in posteriors.flags[1]
    assert "FAIL_INPUT" in posteriors[1].report
    assert posteriors.ess[1] == 0
    assert np.isnan(posteriors.mean[1]).all()
    assert posteriors.ess[0] > 0
    assert posteriors.ess[2] > 0
    with pytest.raises(ValueError, match="positive weight"):
        posteriors[1].mean()


@pytest.mark.parametrize("part", ["featurizer", "flow"])
@pytest.mark.parametrize("weighs", [True, False])
def test_network_that_is_not_finite_fails_with_its_reason(engine, tmp_path, part, weighs):
    engine.save(tmp_path / "engine.nbi")
    made = nbi.Engine.load(tmp_path / "engine.nbi", simulator=F if weighs else None)
    with torch.no_grad():
        next(getattr(made.model_.network, part).parameters())[0] = torch.nan
    found = made.predict_many(nbi.Observations.from_arrays(np.stack([X, 2 * X])))
    assert found.status == (nbi.Status.FAILED, nbi.Status.FAILED)
    assert "FAIL_NETWORK" in found[1].report
    assert nbi.Flag.BAD_INPUT not in found.flags[0]
    assert np.isnan(found.mean).all()
    with pytest.warns(nbi.UntrustedWarning, match="NaN or infinite"):
        made.predict(X)
    for door in (lambda: made.sample(X), lambda: made.log_prob(np.zeros((1, 2)), X)):
        with pytest.raises(ValueError, match="network must be finite"):
            door()


def test_observation_far_outside_training_is_flagged_and_never_a_quiet_success(engine):
    x = np.stack([X, X + 1e4, 1e6 * X])
    posteriors = engine.predict_many(nbi.Observations.from_arrays(x))
    assert nbi.Flag.OOD not in posteriors.flags[0]
    for i in (1, 2):
        assert nbi.Flag.OOD in posteriors.flags[i]
        assert not posteriors.certified[i]
        assert np.isnan(posteriors.to_table()["p0_mean"][i])
    assert "excludes what the data want" in posteriors[1].report


def test_fewer_simulations_than_a_batch_still_train():
    engine = fresh().fit(n_sims=30, n_epochs=2, batch_size=512)
    assert len(engine.history_) == 2


def test_failed_fit_leaves_the_engine_as_it_was(engine):
    before = engine.predict_many(nbi.Observations.from_arrays(X[None])).mean
    for options in ({"n_sims": -3}, {"n_sims": 100, "x_err": np.zeros(8)}):
        with pytest.raises(ValueError, match="must be"):
            engine.fit(**options)
    np.testing.assert_array_equal(
        engine.predict_many(nbi.Observations.from_arrays(X[None])).mean, before
    )


def test_arguments_are_not_edited(engine):
    x, err = X.copy(), np.ones(8)
    flow = {"num_blocks": 2, "flow_hidden": 16}
    featurizer = {"type": "ResNet", "depth": 1}
    made = fresh(flow=flow, featurizer=featurizer).fit(**QUICK, x_obs=x, x_err=err)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UncertifiedWarning)
        made.predict(x, err)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(err, 1.0)
    assert flow == {"num_blocks": 2, "flow_hidden": 16}
    assert featurizer == {"type": "ResNet", "depth": 1}
