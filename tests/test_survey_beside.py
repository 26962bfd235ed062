"""Laws of other estimators in surveys: their columns are what they say, whoever climbs or fails."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from scipy.stats import norm
from sklearn.exceptions import NotFittedError
from survey_curves import COLUMNS, badly_trained, line, lines_for_a_climb

import nbi_plus as nbi
from nbi_plus.learn.scores.rules import digits
from nbi_plus.survey import SurveyError, frame_function

N, BAD = 24, 5
PRIOR = {"a": norm(0, 1), "b": norm(0, 1)}
RULES = {"mean": nbi.MeanScore(), "quantile": nbi.QuantileScore([0.025, 0.5]),
         "joint": nbi.EnergyScore(2)}  # fmt: skip


def level(theta, t):
    return theta + 0 * t


@pytest.fixture(scope="module")
def curves():
    found = lines_for_a_climb(N)
    return found.assign(flux=np.where(found.oid == BAD, np.nan, found.flux))


@pytest.fixture(scope="module")
def engine(curves):
    return badly_trained(curves[curves.oid != BAD])


@pytest.fixture(scope="module")
def points(curves):
    made = nbi.PointEngine(line, PRIOR, nbi.GaussianNoise(), RULES, featurizer="resnet")
    return made.fit(300, n_epochs=1, observations=seen(curves, BAD), progress=False)


@pytest.fixture(scope="module")
def classes(curves):
    engines = {
        "line": nbi.Engine(line, PRIOR, noise=nbi.GaussianNoise()),
        "level": nbi.Engine(level, {"c": norm(0, 1)}, noise=nbi.GaussianNoise()),
    }
    made = nbi.ModelClassifier(engines, featurizer="resnet")
    return made.fit(300, n_epochs=1, observations=seen(curves, BAD), progress=False)


def seen(curves, but):
    return nbi.Observations.from_table(curves[curves.oid != but], **COLUMNS)


def check(found, curves, points, classes):
    """Compare a catalogue with what the estimators say themselves."""
    own = found[found.id != str(BAD)]
    objects = seen(curves, BAD)
    assert own.id.tolist() == objects.ids.astype(str).tolist()
    said, shares = points.estimate(objects), classes.predict_proba(objects)
    expected = {
        "points_a_mean": said["mean"]["mean"][:, 0],
        "points_b_quantile_025": said["quantile"]["quantile"][:, 0, 1],
        "points_a_joint_1": said["joint"]["energy"][:, 1, 0],
        "kind_probability_level": shares[:, 1],
        "kind_unlike_any": classes.unlike_any(objects),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(own[name].astype(float), values, rtol=1e-4, atol=1e-5)
        assert np.isnan(found[name][found.id == str(BAD)]).all()


@pytest.mark.parametrize("name", ["out.parquet", "out.fits", "out.h5", "folder"])
def test_catalogues_hold_what_others_say_of_the_same_objects(
    name, engine, curves, points, classes, tmp_path
):
    out, beside = tmp_path / name, {"points": points, "kind": classes}
    engine.predict_survey(curves, out, columns=COLUMNS, chunk_size=7, beside=beside, progress=False)
    if out.suffix in (".fits", ".h5"):
        table = Table.read(out)
        table.convert_bytestring_to_unicode()
        found = table.to_pandas()
    else:
        table = pq.read_table(out)
        told = table.schema.field("points_b_quantile_025").metadata[b"description"]
        assert told == b"b: quantile 025, by a network alone."
        found = table.to_pandas()
    check(found, curves, points, classes)
    again = engine.retry_survey(curves, out, beside=beside, progress=False)
    assert again.n_objects == N
    for other in (None, {"points": points}):
        with pytest.raises(SurveyError, match="beside must be the same as in"):
            engine.retry_survey(curves, out, beside=other)
    with pytest.raises(SurveyError, match="beside"):
        engine.predict_survey(curves, out, columns=COLUMNS, beside={"points": points})


def test_frames_have_the_same_columns_wherever_they_are_sent(engine, curves, points, classes):
    answers = frame_function(engine, COLUMNS, beside={"points": points, "kind": classes})
    answers = pickle.loads(pickle.dumps(answers))  # noqa: S301 - as Dask does
    found = answers(curves)
    assert list(found) == list(answers.meta)
    check(found, curves, points, classes)


def test_whoever_cannot_read_the_data_is_named(engine, curves, points, tmp_path):
    grid = nbi.PointEngine(lambda theta: theta @ np.ones((2, 8)), PRIOR, noise=0.1)
    grid.fit(100, n_epochs=1, progress=False)
    with pytest.raises(SurveyError, match="beside.'grid'. must know such data"):
        engine.predict_survey(curves, tmp_path / "o.parquet", columns=COLUMNS,
                              beside={"grid": grid}, progress=False)  # fmt: skip


def test_what_cannot_stand_beside_an_answer_is_refused(engine, curves, tmp_path):
    for beside, error, message in (
        ([1], TypeError, "beside must be a Mapping"),
        ({"e": engine}, TypeError, "beside.'e'. must be fitted and have columns, but is a Engine"),
        ({1: engine}, TypeError, "names of beside must be a str"),
        ({"p": nbi.PointEngine(line, PRIOR)}, NotFittedError, "Call fit before catalogue_columns"),
    ):
        with pytest.raises(error, match=message):
            engine.predict_survey(curves, tmp_path / "o.parquet", beside=beside)


def test_levels_are_called_by_their_digits():
    assert digits((0.001, 0.1, 0.16, 0.5)) == ["_001", "_10", "_16", "_50"]
