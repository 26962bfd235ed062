"""What people hand over, at every door: taken as it was meant, or refused by its own name."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from problems import LinearGaussian
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import options as doors

PROBLEM = LinearGaussian(n_dim=2, n_points=8)
PRIOR, F = PROBLEM.prior, PROBLEM.simulator
ONE_RUNG = nbi.Ladder(escalate="never")
T = np.linspace(0, 1, 8)
QUICK = {"n_sims": 200, "n_epochs": 1}


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


def scaled(theta, redshift):
    return F(theta) / (1 + redshift)


def make(simulator=F, prior=PRIOR, **options):
    return nbi.Engine(
        simulator, prior, **({"noise": 1.0, "featurizer": "resnet", "ladder": ONE_RUNG} | options)
    )


def fit_with(noise):
    return make(noise=noise).fit(**QUICK)


def survey(n=5, length=8, **options):
    x = np.random.default_rng(1).normal(size=(n, length))
    return nbi.Observations.from_arrays(x, np.full((n, length), 0.5), **options)


@pytest.fixture(scope="module")
def engine():
    return make(line).fit(n_sims=600, n_epochs=2, t=T)


def times_of(featurizer, caplog, **coords):
    """Return the coordinate whose channel a transformer takes for time, and what was logged."""
    rows = {k: np.sort(np.random.default_rng(0).uniform(size=(3, 8)), 1) for k in coords}
    batch = survey(3, **rows).batch()
    with caplog.at_level(logging.INFO, logger="nbi_plus"):
        spec = doors.featurizer_spec(featurizer, batch, 2)[0]
    layout = doors.EncoderConfig.of(batch).layout
    channel = spec.options["time_channel"]
    return next(k for k in coords if layout[k][0] == channel), caplog.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("airmass", "t"), "t"),
        (("airmass", "wavelength"), "wavelength"),
        (("phase", "airmass"), "phase"),
        (("n_trials", "dose"), "n_trials"),
    ],
)
def test_transformer_takes_time_wavelength_or_the_first_coordinate_given(names, expected, caplog):
    found, told = times_of("transformer", caplog, **dict.fromkeys(names))
    assert found == expected
    assert (f"{expected} orders the points" in told) == (expected != "t")


def test_transformer_takes_the_time_that_its_options_name(caplog):
    wish = {"type": "transformer", "time": "phase"}
    assert times_of(wish, caplog, t=None, phase=None)[0] == "phase"
    with pytest.raises(ValueError, match="time must be one of the coordinates"):
        times_of(wish, caplog, t=None)
    with pytest.raises(ValueError, match="time"):
        doors.featurizer_spec({"type": "resnet", "time": "t"}, survey(3).batch(), 2)


@pytest.mark.parametrize("redshift", [0.5, np.array([0.1, 0.2, 0.3, 0.4, 0.5])])
def test_numbers_of_objects_may_be_given_beside_observations(redshift):
    one = make(scaled).fit(**QUICK, observations=survey(), redshift=redshift)
    own = survey(scalars={"redshift": np.full(5, redshift)})
    two = make(scaled).fit(**QUICK, observations=own)
    np.testing.assert_array_equal(
        one.predict_many(own)[2].samples, two.predict_many(own)[2].samples
    )


def test_a_number_for_all_objects_is_remembered():
    engine = make(scaled).fit(**QUICK, observations=survey(), redshift=0.5)
    own = survey(scalars={"redshift": np.full(5, 0.5)})
    np.testing.assert_array_equal(
        engine.predict_many(survey())[1].samples, engine.predict_many(own)[1].samples
    )
    assert set(make(scaled).fit(**QUICK, observations=own).defaults_) == set()


BESIDE = {
    "known already": (
        survey(scalars={"redshift": np.ones(5)}),
        0.5,
        "redshift must be given once",
    ),
    "of other objects": (survey(), np.ones(4), r"array \(5,\) of one for each"),
    "of objects or of points": (survey(8), np.ones(8), "only one of these"),
    "not finite": (survey(), np.full(5, np.nan), "finite numbers, one per object"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_numbers_beside_observations_are_refused_where_they_do_not_fit(case):
    observations, redshift, message = BESIDE[case]
    with pytest.raises(ValueError, match=message):
        make(scaled).fit(**QUICK, observations=observations, redshift=redshift)


FRAME = pd.DataFrame({"id": 0, "t": T, "flux": T, "flux_err": 0.5})
FIT = {
    "x_obs and t of two lengths": (
        lambda: make(line).fit(**QUICK, x_obs=T[1:], t=T),
        r"x_obs has shape \(7,\) and t \(8,\)",
    ),
    "a DataFrame as observations": (
        lambda: make().fit(**QUICK, observations=FRAME),
        "are DataFrame.*from_table",
    ),
    "a DataFrame as observations, in rounds": (
        lambda: make().fit(n_sims=200, n_rounds=2, observations=FRAME),
        "are DataFrame.*from_table",
    ),
    "a path as observations": (lambda: make().fit(**QUICK, observations="a.csv"), "read"),
    "simulator and prior swapped": (
        lambda: make(PRIOR, F).fit(**QUICK),
        "Did you swap simulator and prior",
    ),
    "simulator and a mapping swapped": (
        lambda: make({"a": norm(0, 1)}, F).fit(**QUICK),
        "Did you swap simulator and prior",
    ),
    "sigma of another length": (
        lambda: fit_with(np.ones(7)),
        r"sigma must have a shape that fits x \(C, L\) = \(1, 8\), but has \(7,\)",
    ),
    "sigma of another length, in a wrapper": (
        lambda: fit_with(nbi.LinearNuisance(nbi.GaussianNoise(np.ones(7)), "offset", sd=1.0)),
        r"sigma must have a shape that fits x \(C, L\) = \(1, 8\), but has \(7,\)",
    ),
    "exposure of another length": (
        lambda: fit_with(nbi.PoissonNoise(exposure=np.ones(7))),
        r"exposure must have a shape that fits x \(C, L\) = \(1, 8\)",
    ),
    "simulator returns a dict": (
        lambda: make(lambda theta: {"flux": F(theta)}).fit(**QUICK),
        r"one array, but returned a dict of \['flux'\]",
    ),
    "simulator returns nothing": (
        lambda: make(lambda theta: None).fit(**QUICK),
        "one array, but returned nothing",
    ),
    "device is gpu": (lambda: make(device="gpu").fit(**QUICK), "Did you mean 'cuda'"),
    "observations by position": (lambda: make().fit(survey()), r"fit\(n_sims, observations=...\)"),
    "observations second": (lambda: make().fit(200, survey()), r"fit\(n_sims, observations=...\)"),
    "theta twice": (lambda: make().fit(np.ones((9, 2)), theta=np.ones((9, 2))), "given once"),
    "x before theta": (
        lambda: make().fit(np.ones((9, 8)), np.ones((9, 2))),
        "Did you swap x and theta",
    ),
}


@pytest.mark.parametrize("case", FIT)
def test_fit_says_what_came_and_what_to_do(case):
    act, message = FIT[case]
    with pytest.raises((ValueError, TypeError, nbi.SimulationError), match=message):
        act()


def test_fit_takes_simulations_by_position():
    theta = np.random.default_rng(0).normal(size=(200, 2))
    one = make().fit(theta, F(theta), n_epochs=1)
    two = make().fit(theta=theta, x=F(theta), n_epochs=1)
    assert one.history_[0]["val_nll"] == two.history_[0]["val_nll"]


PREDICT = {
    "x_obs of another length": (lambda e: e.predict(T[1:]), r"x_obs has shape \(7,\) and t \(8,\)"),
    "t of another length": (
        lambda e: e.predict(T, t=T[1:]),
        r"x_obs has shape \(8,\) and t \(7,\)",
    ),
    "Observations of many": (lambda e: e.predict(survey(2, t=T)), "Use predict_many"),
    "errors beside Observations": (
        lambda e: e.predict(survey(1, t=T), 0.5),
        "x_err must be part of the Observations",
    ),
    "a Table of many": (lambda e: e.predict_many(Table(dict(FRAME))), "are Table.*from_table"),
    "a DataFrame of many": (lambda e: e.predict_many(FRAME), "are DataFrame.*from_table"),
}


@pytest.mark.parametrize("case", PREDICT)
def test_predict_says_what_came_and_what_to_do(engine, case):
    act, message = PREDICT[case]
    with pytest.raises((ValueError, TypeError), match=message):
        act(engine)


@pytest.mark.filterwarnings("ignore::nbi_plus.UncertifiedWarning")
def test_observations_of_one_object_are_that_object():
    own = survey(1, t=T)
    engine = make(line).fit(n_sims=600, n_epochs=2, x_obs=own)
    by_arrays = engine.predict(own.x[0, 0], own.x_err[0, 0], t=T)
    np.testing.assert_array_equal(engine.predict(own).samples, by_arrays.samples)
    np.testing.assert_array_equal(
        engine.log_likelihood([[0.0, 1.0]], own),
        engine.log_likelihood([[0.0, 1.0]], own.x[0, 0], own.x_err[0, 0], t=T),
    )


@pytest.mark.filterwarnings("ignore::nbi_plus.UncertifiedWarning")
def test_observations_of_one_object_are_recognised_after_its_fit_in_rounds():
    own = survey(1, t=T)
    engine = make(line).fit(n_sims=200, n_rounds=3, x_obs=own, n_epochs=2, ess_target=200)
    assert engine.predict(own).id == engine.posterior_.id


def test_a_featurizer_that_nbi_does_not_have_takes_its_own_options():
    batch = survey(3).batch()
    spec = doors.featurizer_spec({"type": "spectrum", "n_features": 8, "n_dilated": 1}, batch, 2)[0]
    assert spec.build().n_features == 8
    assert spec.options == {"n_features": 8, "n_dilated": 1}
    with pytest.raises(ValueError, match="options of spectrum must be among .*, but has dim_out"):
        doors.featurizer_spec({"type": "spectrum", "dim_out": 8}, batch, 2)[0].build()


@pytest.mark.parametrize(
    ("length", "coords", "name"),
    [
        (8, {}, "mlp"),
        (20, {}, "resnet-gru"),  # of f(theta): the place of a point may say what it is
        (8, {"t": T}, "resnet-gru"),
        (8, {"band": np.tile(["g", "r"], (3, 4))}, "set"),
        (8, {"band": np.tile(["g", "r"], (3, 4)), "t": np.tile(T, (3, 1))}, "resnet-gru"),
        (8, {"band": np.array(["g", "r"] * 4)}, "resnet-gru"),  # shared by all: an order
    ],
)
def test_featurizer_auto_follows_from_what_orders_the_points(length, coords, name):
    batch = survey(3, length, **coords).batch()
    assert doors.featurizer_spec("auto", batch, 2)[0].name == name
