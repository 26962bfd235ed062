"""Whatever holds numbers means the same at every door: masks, units, times and tables."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from astropy import units as u
from astropy.nddata import NDData
from astropy.table import MaskedColumn, QTable
from astropy.time import Time
from astropy.timeseries import TimeSeries
from astropy.utils.masked import Masked
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus.data.ingest import ingest, numbers, point_mask
from nbi_plus.data.units import factor
from nbi_plus.infer.ladder.hints import latent_hints

L = 8
T = np.linspace(0.0, 7.0, L)
PRIOR = {"level": norm(0, 3), "slope": norm(0, 1)}
THETA = np.array([[1.0, 0.2], [0.5, -0.1]])
GARBAGE = 1e6  # what a mask hides


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


def hidden(values, bad):
    """Return values of which the bad ones are as wrong as can be."""
    return np.where(bad, GARBAGE, values)


# what people hold: data (L,) in mJy, of which some are bad, and nothing else says which
HOLDERS = {
    "numpy.ma": lambda v, bad: np.ma.masked_array(hidden(v, bad), bad),
    "NaN": lambda v, bad: np.where(bad, np.nan, v),
    "list with None": lambda v, bad: [None if b else x for x, b in zip(v, bad, strict=True)],
    "astropy Masked": lambda v, bad: Masked(hidden(v, bad), mask=bad),
    "masked Quantity": lambda v, bad: Masked(hidden(v, bad) * 1e3 * u.uJy, mask=bad),
    "masked column": lambda v, bad: MaskedColumn(hidden(v, bad) / 1e3, mask=bad, unit="Jy"),
    "NDData": lambda v, bad: NDData(hidden(v, bad), mask=bad, unit="mJy"),
    "pandas": lambda v, bad: pd.Series(np.where(bad, np.nan, v)),
    "nullable pandas": lambda v, bad: pd.Series(pd.array(v, "Float64")).mask(bad),
    "pyarrow": lambda v, bad: pa.array(v, mask=bad),
    "list of quantities": lambda v, bad: [
        (np.nan if b else x) * 1e3 * u.uJy for x, b in zip(v, bad, strict=True)
    ],
}
PLAIN = {
    "array": lambda v: v,
    "list": lambda v: v.tolist(),
    "Quantity": lambda v: (v * u.mJy).to(u.Jy),
    "Series": pd.Series,
    "tensor": torch.tensor,
}
TIMES = {
    "array": lambda t: t,
    "hours": lambda t: t * 24 * u.h,
    "Time": lambda t: Time(t, format="jd"),
    "pyarrow": pa.array,
}


@pytest.fixture(scope="module")
def survey():
    rng = np.random.default_rng(0)
    return nbi.Observations.from_arrays(
        rng.normal(size=(20, L)), 0.5, t=T, units={"x": "mJy", "t": "d"}
    )


@pytest.fixture(scope="module")
def engine(survey):
    engine = nbi.Engine(line, PRIOR, featurizer="gru", seed=0)
    return engine.fit(n_sims=600, n_epochs=2, observations=survey)


DOORS = {
    "predict": lambda e, x, err, t, **m: e.predict(x, err, t=t, n_samples=10, **m).samples,
    "sample": lambda e, x, err, t, **m: e.sample(x, err, t=t, n_samples=10, **m),
    "log_prob": lambda e, x, err, t, **m: e.log_prob(THETA, x, err, t=t, **m),
    "score": lambda e, x, err, t, **m: np.array(e.score(THETA, x, err, t=t, **m)),
    "log_likelihood": lambda e, x, err, t, **m: e.log_likelihood(THETA, x, err, t=t, **m),
    "log_posterior": lambda e, x, err, t, **m: e.log_posterior(THETA, x, err, t=t, **m),
}
CASES = st.fixed_dictionaries({
    "holder": st.sampled_from(sorted(HOLDERS)),
    "error": st.sampled_from(sorted(PLAIN)),
    "time": st.sampled_from(sorted(TIMES)),
    "bad": st.lists(st.booleans(), min_size=L, max_size=L).filter(lambda b: not all(b)),
    "seed": st.integers(0, 999),
})  # fmt: skip


EVERY = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize("door", sorted(set(DOORS) - {"predict"}))
@EVERY
@given(case=CASES)
def test_what_holds_the_data_changes_nothing_at_any_door(engine, door, case):
    check_door(engine, door, case)


@pytest.mark.filterwarnings("ignore::nbi_plus.UncertifiedWarning")
@settings(EVERY, max_examples=12)
@given(case=CASES)
def test_what_holds_the_data_changes_nothing_of_an_answer(engine, case):
    check_door(engine, "predict", case)


def check_door(engine, door, case):
    """Compare one way of holding data with bare arrays and a mask."""
    rng = np.random.default_rng(case["seed"])
    x, err = rng.normal(1.0, 1.0, L), rng.uniform(0.3, 0.6, L)
    bad = np.array(case["bad"])
    held = HOLDERS[case["holder"]](x, bad)
    # beside a Quantity in another unit, a bare error would be in that one
    error = PLAIN["Quantity" if "uantit" in case["holder"] or "column" in case["holder"]
                  else case["error"]](err)  # fmt: skip
    call = DOORS[door]
    found = call(engine, held, error, TIMES[case["time"]](T))
    explicit = [call(engine, hidden(x, bad), err, T, mask=~bad),
                call(engine, hidden(x, bad), err, T, bad=bad)]  # fmt: skip
    for wanted in explicit:
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("holder", HOLDERS)
def test_many_objects_and_their_errors_keep_masks(holder):
    rng = np.random.default_rng(1)
    x, err, bad = rng.normal(size=(3, L)), rng.uniform(1, 2, (3, L)), rng.random((3, L)) > 0.7
    rows = [HOLDERS[holder](*row) for row in zip(x, bad, strict=True)]
    errors = [HOLDERS[holder](*row) for row in zip(err, bad, strict=True)]
    units = {"x": "mJy"}
    wanted = nbi.Observations.from_arrays(x, err, mask=~bad, t=T, units=units)
    for found in (
        nbi.Observations.from_arrays(rows, err * u.mJy, t=T, units=units),
        nbi.Observations.from_arrays(x * u.mJy, errors, t=T, units=units),
    ):
        np.testing.assert_array_equal(found.mask, wanted.mask)
        np.testing.assert_allclose(found.x, wanted.x)
        np.testing.assert_allclose(found.x_err, wanted.x_err)
    lengths = [L, 5, 3]
    ragged = nbi.Observations.from_arrays(
        [HOLDERS[holder](*(v[:n] for v in row)) for *row, n in zip(x, bad, lengths, strict=True)],
        [e[:n] for e, n in zip(err * u.mJy, lengths, strict=True)],
        t=[T[:n] for n in lengths], units=units,
    )  # fmt: skip
    for one, other, n in zip(ragged, wanted, lengths, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask[..., :n])
        np.testing.assert_allclose(one.x, other.x[..., :n])


@pytest.mark.parametrize("make", [
    lambda t, bad: np.ma.masked_array(hidden(t, bad), bad),
    lambda t, bad: Masked(hidden(t, bad) * u.d, mask=bad),
    lambda t, bad: [None if b else v for v, b in zip(t, bad, strict=True)],
    lambda t, bad: pd.Series(pd.array(t, "Float64")).mask(bad),
])  # fmt: skip
def test_a_point_without_a_time_is_left_out(engine, make):
    bad = np.arange(L) == 3
    x = np.linspace(0.0, 1.0, L)
    found = engine.log_likelihood(THETA, x, 0.5, t=make(T, bad))
    np.testing.assert_allclose(found, engine.log_likelihood(THETA, x, 0.5, t=T, bad=bad))
    objects = nbi.Observations.from_arrays(x[None], 0.5, t=make(T, bad))
    assert objects.mask[0, 0].tolist() == (~bad).tolist()


def as_tables(x, err, t, bad):
    """Return one object in every kind of table, its bad points missing."""
    q = QTable({"t": t * u.d, "x": Masked(hidden(x, bad) * u.mJy, mask=bad),
                "x_err": err * 1e3 * u.uJy})  # fmt: skip
    series = TimeSeries(time=Time(t, format="jd"))
    series["x"], series["x_err"] = Masked(hidden(x, bad) * u.mJy, mask=bad), err * u.mJy
    frame = pd.DataFrame({"t": t, "x": np.where(bad, np.nan, x), "x_err": err})
    arrow = pa.table({"t": t, "x": pa.array(x, mask=bad), "x_err": err})
    columns = {"t": t, "x": np.ma.masked_array(hidden(x, bad), bad), "x_err": err}
    objects = nbi.Observations.from_arrays(x[None], err, t=t, bad=bad[None])
    return {"QTable": q, "TimeSeries": series, "DataFrame": frame, "pyarrow": arrow,
            "dict": columns, "Observations": objects}  # fmt: skip


@pytest.mark.filterwarnings("ignore::nbi_plus.UncertifiedWarning")
@pytest.mark.parametrize("kind", ["QTable", "TimeSeries", "DataFrame", "pyarrow", "dict",
                                  "Observations"])  # fmt: skip
def test_a_table_of_one_object_is_its_arrays(engine, kind):
    rng = np.random.default_rng(2)
    x, err, bad = rng.normal(size=L), rng.uniform(0.3, 0.6, L), np.arange(L) == 5
    table = as_tables(x, err, T, bad)[kind]
    np.testing.assert_allclose(
        engine.log_likelihood(THETA, table), engine.log_likelihood(THETA, x, err, t=T, bad=bad)
    )
    same = engine.predict(x, err, t=T, bad=bad)
    other = engine.predict(table)
    np.testing.assert_allclose(other.mean(), same.mean(), atol=0.3 * same.std().min())
    np.testing.assert_allclose(engine.log_prob(THETA, table),
                               engine.log_prob(THETA, x, err, t=T, bad=bad), rtol=1e-4)  # fmt: skip


def test_a_table_of_several_objects_and_what_comes_beside_a_table_are_refused(engine):
    two = pd.DataFrame({"id": [1, 1, 2], "t": [0.0, 1, 0], "x": [1.0, 2, 3], "x_err": [1.0] * 3})
    with pytest.raises(ValueError, match="x_obs must be one object, but holds 2"):
        engine.predict(two)
    one = two[two["id"] == 1]
    with pytest.raises(ValueError, match="t must be part of the Observations or table"):
        engine.predict(one, t=[0.0, 1.0])
    with pytest.raises(ValueError, match="mask must be part of the Observations or table"):
        engine.predict(one, bad=[True, False])


def fresh(**options):
    return nbi.Engine(line, PRIOR, featurizer="gru", seed=0, **options)


QUICK = {"n_sims": 400, "n_epochs": 1, "t": T}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("what", ["x_obs", "x_err"])
def test_fit_keeps_masks_and_units(what, holder):
    bad = np.arange(L) % 4 == 1
    values = {"x_obs": np.linspace(-1, 1, L), "x_err": np.linspace(1, 2, L)}
    held = HOLDERS[holder](values[what], bad)
    unit = u.mJy if ingest("x", held)[1] else 1.0
    found = fresh().fit(**{k: v * unit for k, v in values.items()} | {what: held}, **QUICK)
    wanted = fresh().fit(**values, bad=bad, **QUICK)
    scale = factor(found.model_.units.get("x", "mJy"), "mJy", "x")
    one, other = (e.model_.conditions for e in (found, wanted))
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_allclose(one.x_err[one.mask] * scale, other.x_err[one.mask])
    again = found.predict_many(nbi.Observations.from_arrays([np.zeros(L)], 1.0), keep=0)
    assert len(again) == 1


def test_simulations_given_to_fit_keep_masks_and_units():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(60, 2))
    x = line(theta, T)
    bad = np.zeros(x.shape, bool)
    bad[7, 3] = True
    error = 0.5 * u.mJy
    found = nbi.Engine(None, PRIOR, featurizer="gru", seed=0)
    found.fit(theta=QTable(theta, names=["level", "slope"]), n_epochs=2, x_err=error, t=T,
              x=Masked(hidden(x, bad) * 1e3 * u.uJy, mask=bad))  # fmt: skip
    wanted = nbi.Engine(None, PRIOR, featurizer="gru", seed=0)
    keep = ~bad.any(1)
    wanted.fit(theta=theta[keep], x=x[keep], n_epochs=2, x_err=0.5, t=T)
    assert found.history_[-1]["train_nll"] == pytest.approx(wanted.history_[-1]["train_nll"], 1e-3)
    listed = nbi.Engine(None, PRIOR, featurizer="gru", seed=0)
    listed.fit(theta=theta[keep], x=[row * 1e3 * u.uJy for row in x[keep]], n_epochs=2,
               x_err=[error] * L, t=T)  # fmt: skip
    assert listed.history_[-1]["train_nll"] == pytest.approx(wanted.history_[-1]["train_nll"], 1e-3)
    with pytest.raises(
        ValueError, match="x must be bare numbers where no unit is known, but is in 'mJy'"
    ):
        wanted.fit(theta=theta, x=x * u.mJy, n_epochs=1, x_err=0.5, t=T)


NOISES = {
    "GaussianNoise": lambda s: nbi.GaussianNoise(s),
    "StudentTNoise": lambda s: nbi.StudentTNoise(4, s),
    "OutlierNoise": lambda s: nbi.OutlierNoise(0.1, 2.0, s),
    "UpperLimits": lambda s: nbi.UpperLimits(nbi.GaussianNoise(s), None),
    "LinearNuisance": lambda s: nbi.LinearNuisance(nbi.GaussianNoise(s), "offset", sd=1.0),
    "CalibrationError": lambda s: nbi.CalibrationError(nbi.GaussianNoise(s), 0.1, "channel"),
    "GaussianProcessNoise": lambda s: nbi.GaussianProcessNoise(
        nbi.DampedRandomWalk(0.3, 2.0), sigma=s
    ),
    "number": lambda s: s,
}


@pytest.mark.parametrize("name", NOISES)
def test_a_sigma_with_a_unit_is_in_that_of_the_data(name):
    x = np.linspace(0, 1, L)
    wanted = fresh(noise=NOISES[name](0.7)).log_likelihood(THETA, x, t=T)
    held = fresh(noise=NOISES[name](700 * u.uJy))
    listed = fresh(noise=NOISES[name]([0.7 * u.mJy] * L))
    np.testing.assert_allclose(listed.log_likelihood(THETA, x * u.mJy, t=T), wanted)
    np.testing.assert_allclose(held.log_likelihood(THETA, x * u.mJy, t=T), wanted)
    with pytest.raises(ValueError, match="sigma must be a bare number where the data have no unit"):
        held.log_likelihood(THETA, x, t=T)
    with pytest.raises(ValueError, match="sigma must be in a unit that converts to 'mag'"):
        held.log_likelihood(THETA, x * u.mag, t=T)


DAYS = np.array([[1.0, 2.0]]) * u.d


@pytest.mark.parametrize("hold", [
    lambda q: q, list, lambda q: Masked(q, mask=False),
], ids=["array", "list", "masked"])  # fmt: skip
@pytest.mark.parametrize("act", [
    lambda q, e: nbi.PoissonNoise(exposure=q),
    lambda q, e: nbi.Prior(PRIOR).check(q),
    lambda q, e: nbi.Prior(PRIOR).log_prob(q),
    lambda q, e: nbi.EmpiricalPrior(q),
    lambda q, e: nbi.Observations.from_arrays(np.ones((2, 2)), t=[0, 1.0]).fold(q),
    lambda q, e: nbi.Observations.from_arrays(np.ones((2, 2)), t=[0, 1.0]).relative_to(q),
    lambda q, e: e.predict(np.zeros(L), 0.5, t=T, modes=q),
], ids=["exposure", "theta", "log_prob", "samples", "period", "origin", "modes"])  # fmt: skip
def test_a_unit_that_nothing_can_be_compared_with_is_refused(engine, act, hold):
    with pytest.raises(ValueError, match="must be bare numbers where no unit is known"):
        act(hold(DAYS), engine)


def test_other_numbers_of_a_noise_refuse_units():
    for make in (lambda v: nbi.GaussianNoise(jitter=v), lambda v: nbi.DampedRandomWalk(v, 1.0)):
        with pytest.raises(ValueError, match="must be a bare number, in the unit of the data"):
            make(1.0 * u.mJy)


def test_an_answer_of_the_simulator_with_a_unit_is_converted_or_refused():
    x = np.linspace(0, 1, L)
    bare = fresh(noise=0.5).log_likelihood(THETA, x, t=T)
    for simulator in (
        lambda theta, t: line(np.asarray(theta), t) * 1e3 * u.uJy,
        lambda theta, t: Masked(line(np.asarray(theta), t) / 1e3 * u.Jy, mask=False),
        lambda theta, t: (theta[0] + theta[1] * t) * u.mJy,
    ):
        engine = nbi.Engine(simulator, PRIOR, noise=0.5 * u.mJy)
        np.testing.assert_allclose(engine.log_likelihood(THETA, x * u.mJy, t=T), bare)
        plain = nbi.Engine(simulator, PRIOR, noise=0.5)
        with pytest.raises(nbi.SimulationError, match="simulator must return bare numbers where"):
            plain.log_likelihood(THETA, x, t=T)


def test_a_masked_answer_of_the_simulator_is_no_answer():
    def masked(theta, t):
        y = line(np.asarray(theta), t)
        return Masked(hidden(y, y > 2.0), mask=y > 2.0)

    found = nbi.Engine(masked, PRIOR, noise=0.5).log_likelihood(
        [[0.0, 0.0], [3.0, 0.0]], np.zeros(L), t=T
    )
    assert np.isfinite(found).tolist() == [True, False]


def test_units_at_predict_are_refused_where_the_fit_had_none(engine):
    plain = fresh().fit(**QUICK, x_obs=np.zeros(L), x_err=0.5)
    x = np.linspace(0, 1, L)
    with pytest.raises(ValueError, match="x must be bare numbers, as in the fit, but is in 'mJy'"):
        plain.predict(x * u.mJy, 0.5 * u.mJy)
    with pytest.raises(ValueError, match="t must be bare numbers, as in the fit, but is in 'h'"):
        plain.log_prob(THETA, x, t=T * u.h)
    objects = nbi.Observations.from_arrays(x[None] * u.mJy, 0.5, t=T)
    with pytest.raises(ValueError, match="x must be bare numbers, as in the fit"):
        plain.predict_many(objects)
    np.testing.assert_allclose(  # a Time is what bare times are
        plain.log_prob(THETA, x, t=Time(T, format="mjd")), plain.log_prob(THETA, x)
    )


def test_errors_that_fit_noted_keep_their_unit():
    engine = fresh().fit(**QUICK, x_obs=np.zeros(L) * u.mJy, x_err=0.5)
    x = np.linspace(0, 1, L)
    np.testing.assert_allclose(
        engine.log_likelihood(THETA, x * 1e3 * u.uJy), engine.log_likelihood(THETA, x, 0.5)
    )
    # an error without a unit is in that of the data beside it
    np.testing.assert_allclose(
        engine.log_likelihood(THETA, x * 1e3 * u.uJy, 500.0), engine.log_likelihood(THETA, x, 0.5)
    )


def test_mask_and_bad_are_each_others_opposite_and_not_both(engine):
    x, bad = np.zeros(L), np.arange(L) == 2
    for door in DOORS.values():
        with pytest.raises(ValueError, match="mask and bad must not be given both"):
            door(engine, x, 0.5, T, mask=~bad, bad=bad)
    with pytest.raises(ValueError, match="mask and bad must not be given both"):
        fresh().fit(**QUICK, x_obs=x, x_err=0.5, mask=~bad, bad=bad)
    with pytest.raises(ValueError, match="mask or bad must come with x_obs"):
        fresh().fit(**QUICK, x_err=0.5, bad=bad)
    with pytest.raises(ValueError, match="bad must hold flags"):
        engine.predict(x, 0.5, bad=np.arange(L))
    assert point_mask(None, [0, 1]).tolist() == [True, False]


def test_coordinates_of_simulate_and_of_a_grid_are_converted_or_refused(engine, survey):
    np.testing.assert_allclose(engine.simulate(THETA, t=T * 24 * u.h), engine.simulate(THETA, t=T))
    plain = fresh().fit(**QUICK, x_obs=np.zeros(L), x_err=0.5)
    for hours in (T * u.h, list(T * u.h)):
        with pytest.raises(ValueError, match="t must be bare numbers, as in the fit, but is in"):
            plain.simulate(THETA, t=hours)
    objects = nbi.Observations.from_arrays(
        [np.zeros(4), np.zeros(5)], 0.5, t=[[0, 1, 2, 3], [1, 2, 3, 4, 6]], units={"t": "d"}
    )
    for grid in (np.arange(8.0), np.arange(8.0) * 24 * u.h, {"t": list(np.arange(8.0) * u.d)}):
        made = fresh().fit(n_sims=50, n_epochs=1, observations=objects, grid=grid)
        assert made.model_.units["t"] == "d"
    with pytest.raises(ValueError, match="grid must cover every t"):
        fresh().fit(n_sims=50, n_epochs=1, observations=objects, grid=np.arange(8.0) * u.h)


def test_a_hint_that_is_masked_is_one_that_nobody_knows():
    hints = np.ma.masked_array([[1.0, GARBAGE]], [[False, True]])
    found = latent_hints(nbi.Prior(PRIOR), hints)
    assert np.isnan(found).tolist() == [[False, True]]


def test_a_loaded_engine_has_the_same_doors(engine, tmp_path):
    engine.save(tmp_path / "engine.nbi")
    loaded = nbi.Engine.load(tmp_path / "engine.nbi", simulator=line)
    bad = np.arange(L) == 2
    held = HOLDERS["masked Quantity"](np.linspace(0, 1, L), bad)
    for name in ("log_prob", "log_likelihood", "log_posterior", "sample"):
        one, other = (DOORS[name](e, held, 500 * u.uJy, T * 24 * u.h) for e in (engine, loaded))
        np.testing.assert_allclose(one, other, rtol=1e-5)
    with pytest.raises(ValueError, match="x must be in a unit that converts to 'mJy'"):
        loaded.predict(np.zeros(L) * u.mag, 0.5 * u.mag, t=T)


def test_a_fit_says_once_what_is_left_out(caplog):
    with caplog.at_level(logging.INFO, logger="nbi_plus"):
        fresh().fit(**QUICK, x_obs=np.zeros(L), x_err=0.5, bad=np.arange(L) > 1)
    assert [r.getMessage()[:30] for r in caplog.records if "left out" in r.getMessage()] == [
        "6 of 8 points are left out. Is"
    ]


def test_how_many_points_are_left_out_is_logged(caplog):
    mask = np.arange(50) < 10
    with caplog.at_level(logging.INFO, logger="nbi_plus"):
        nbi.Observations.from_arrays(np.zeros((1, 50)), mask=mask[None])
        nbi.Observations.from_arrays(np.zeros((1, 50)), bad=mask[None])
    levels = [(r.levelname, r.getMessage()[:30]) for r in caplog.records]
    assert levels == [("WARNING", "40 of 50 points are left out. "),
                      ("INFO", "10 of 50 points are left out.")]  # fmt: skip


def test_times_keep_the_numbers_of_their_format_and_say_their_range(caplog):
    with caplog.at_level(logging.INFO, logger="nbi_plus"):
        t, unit = ingest("t", Time([-0.3, 0.3], format="jd"))
        ingest("t", [Time([1.0, 2.0], format="mjd"), Time([0.5], format="mjd")])
    assert (t.tolist(), unit) == ([-0.3, 0.3], "d")
    assert [r.getMessage() for r in caplog.records] == [
        "t: times from -0.3 to 0.3 (jd).", "t: times from 0.5 to 2 (mjd).",
    ]  # fmt: skip
    assert ingest("t", Time("2020-01-01T12:00"))[0] == 58849.5
    assert ingest("t", np.array(["2020-01-01T12"], "datetime64[h]"))[0].tolist() == [58849.5]
    assert ingest("t", Time([10.0, 20.0], format="unix"))[1] == "s"


def test_numbers_that_are_none_are_refused_by_name():
    for value in (["a"], [1 + 1j], [{}], [[1.0], [1.0, 2.0]]):
        with pytest.raises((TypeError, ValueError), match="flux must "):
            numbers("flux", value)


def test_no_other_file_reads_masks_or_units():
    """What carries a mask or a unit is opened in one file; others get bare or masked arrays."""
    package = Path(nbi.__file__).parent
    reads = re.compile(r"\.unmasked\b|\.mjd\b|getattr\([a-z_]+, \"(unit|mask|unmasked|mjd)\"")
    found = {str(path.relative_to(package)) for path in package.rglob("*.py")
             if reads.search(path.read_text())}  # fmt: skip
    assert found == {"data/ingest.py"}
