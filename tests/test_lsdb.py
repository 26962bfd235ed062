"""Catalogues of LSDB: nested light curves in, a catalogue of answers out, place by place."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus.survey import frame_function

# LSDB calls pandas in ways that pandas 3.1 will not have for long
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
N = 24
ABOUT = {"id": "oid"}


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


def tables():
    """Return objects with places on the sky, and the points of their light curves."""
    rng = np.random.default_rng(0)
    own = np.repeat(np.arange(N), rng.integers(5, 12, N))
    theta, t = rng.normal(size=(N, 2)), np.sort(rng.uniform(0, 2, len(own)))
    objects = pd.DataFrame({
        "oid": np.arange(N) + 2**60, "ra": rng.uniform(0, 360, N), "dec": rng.uniform(-60, 60, N),
        "field": np.arange(N, dtype=np.int32) % 5,
    })  # fmt: skip
    points = pd.DataFrame({
        "oid": objects.oid.to_numpy()[own], "mjd": t, "flux_err": 0.3,
        "flux": theta[own, 0] + theta[own, 1] * t + 0.3 * rng.normal(size=len(own)),
        "ra": objects.ra.to_numpy()[own], "dec": objects.dec.to_numpy()[own],
    })  # fmt: skip
    return objects, points


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Return an engine without a simulator: quick, and nothing is weighed."""
    one = nbi.Engine(line, {"a": norm(0, 1), "b": norm(0, 1)}, noise=nbi.GaussianNoise(),
                     featurizer="resnet")  # fmt: skip
    seen = nbi.Observations.from_table(tables()[1], id="oid")
    one.fit(300, n_epochs=1, observations=seen, progress=False)
    path = tmp_path_factory.mktemp("engine") / "line.nbi"
    one.save(path)
    return nbi.Engine.load(path)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """Return a catalogue that LSDB wrote and opened again."""
    lsdb = pytest.importorskip("lsdb", reason="LSDB needs Python 3.11 and pandas 3")
    objects, points = tables()
    place = {"ra_column": "ra", "dec_column": "dec"}
    held = lsdb.from_dataframe(objects, partition_rows=6, **place)
    curves = lsdb.from_dataframe(points, partition_rows=60, margin_threshold=3600.0, **place)
    made = held.join_nested(curves, left_on="oid", right_on="oid", nested_column_name="lc")
    path = tmp_path_factory.mktemp("hats") / "curves"
    made.write_catalog(path, catalog_name="curves", progress_bar=False)
    return lsdb.open_catalog(path)


def assert_answers(found, engine, catalog):
    """Check answers with those about the same objects without a catalogue."""
    objects, points = tables()
    held = catalog.compute()
    assert found.index.name == held.index.name == "_healpix_29"
    there = held.loc[held.index.isin(found.index)]
    there = there.set_index(there.oid.astype("int64").astype(str))  # as catalogues write ids
    own = found.set_index("id")
    assert sorted(own.index) == sorted(there.index)
    for name in ("ra", "dec", "field"):
        np.testing.assert_array_equal(own[name], there.loc[own.index, name])
    plain = frame_function(engine, ABOUT)(points).set_index("id").loc[own.index]
    np.testing.assert_allclose(own.n_points, plain.n_points)
    np.testing.assert_allclose(own.ood_p_value, plain.ood_p_value, atol=1e-3)
    assert (own.status == plain.status).all()
    assert len(found) <= len(objects)


def test_a_catalogue_of_answers_is_written_and_opened_again(engine, catalog, tmp_path):
    import lsdb

    assert catalog.npartitions > 1
    answer = frame_function(engine, ABOUT, carry=["ra", "dec", "field"], like=catalog)
    answers = answer(catalog)
    assert list(answers.columns) == list(answer.meta.columns)
    answers.write_catalog(tmp_path / "answers", catalog_name="answers", progress_bar=False)
    back = lsdb.open_catalog(tmp_path / "answers")
    assert back.npartitions == catalog.npartitions
    found = back.compute()
    assert len(found) == N
    assert_answers(found, engine, catalog)
    assert len(back.cone_search(found.ra.iloc[0], found.dec.iloc[0], 5.0).compute()) == 1


def test_empty_partitions_of_a_catalogue_have_the_same_columns(engine, catalog):
    answer = frame_function(engine, ABOUT, carry=["ra", "dec", "field"], like=catalog)
    one = catalog.query("field == 3")
    assert min(len(one.partitions[i].compute()) for i in range(one.npartitions)) == 0
    assert_answers(answer(one).compute(), engine, catalog)
    none = answer(catalog.query("ra > 400")).compute()
    assert (len(none), list(none.columns)) == (0, list(answer.meta.columns))


def test_a_survey_of_a_catalogue_is_one_table(engine, catalog, tmp_path):
    out = tmp_path / "answers.parquet"
    summary = engine.predict_survey(catalog, out, columns=ABOUT, carry=["ra", "field"])
    assert summary.n_objects == N
    held = catalog.compute()
    rows = pd.read_parquet(out).set_index("id").loc[held.oid.astype("int64").astype(str)]
    np.testing.assert_array_equal(rows.ra, held.ra)


def test_frames_of_earlier_versions_are_refused(engine, monkeypatch):
    nested = pytest.importorskip("nested_pandas", reason="a frame of nested-pandas")
    frame = nested.NestedFrame(tables()[1])
    monkeypatch.setattr(sys.modules["nested_pandas"], "__version__", "0.4.2")
    with pytest.raises(ImportError, match=r"must be of version 0\.6 or later, but is 0\.4\.2"):
        frame_function(engine, ABOUT)(frame)
