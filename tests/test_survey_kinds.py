"""Surveys in their own schemas: alerts are read file by file, and answered as read at once."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import survey_files as files
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import cli
from nbi_plus.survey import SurveyError, ingesting

OPTIONS = {"limits": False, "time": "mjd"}
N = 9


def flat(theta, t, band):
    return theta[:, :1] + 0 * t + 0 * band


def packets(n=N, seed=0):
    """Return one packet of ZTF an object, of five to eight detections."""
    rng = np.random.default_rng(seed)
    points = [
        {"id": f"{i:03d}", "t": 59000 + k + float(rng.uniform(0, 0.5)), "band": "gr"[k % 2],
         "x": float(rng.uniform(60, 200)), "err": 5.0, "bad": "null" if k == 1 else None}
        for i in range(n) for k in range(int(rng.integers(5, 9)))
    ]  # fmt: skip
    made = files.ztf_packets(points)
    return [{k: v for k, v in own.items() if k != "cutoutScience"} for own in made]


def write_files(folder, some):
    folder.mkdir()
    for own in some:
        (folder / f"{own['objectId']}.json").write_text(json.dumps(own))
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Return an engine without a simulator: quick, and nothing is weighed."""
    seen = nbi.Observations.from_survey("ztf-alert", packets(30, seed=1), **OPTIONS)
    one = nbi.Engine(flat, {"a": norm(120, 40)}, noise=nbi.GaussianNoise(), featurizer="resnet")
    one.fit(300, n_epochs=1, observations=seen, progress=False, truth_test=False)
    path = tmp_path_factory.mktemp("engine") / "flat.nbi"
    one.save(path)
    return nbi.Engine.load(path)


@pytest.fixture(scope="module")
def whole(engine, tmp_path_factory):
    """Return the catalogue of the same objects, read at once, and what was done to them."""
    seen = nbi.Observations.from_survey("ztf-alert", packets(), **OPTIONS)
    out = tmp_path_factory.mktemp("whole") / "out.parquet"
    summary = engine.predict_survey(seen, out, progress=False)
    return pq.read_table(out).to_pandas().sort_values("id"), summary.ingest


def check(out, whole):
    found = pq.read_table(out).to_pandas().sort_values("id")
    assert found.id.tolist() == whole.id.tolist()
    assert found.n_points.tolist() == whole.n_points.tolist()
    np.testing.assert_allclose(found.a_mean, whole.a_mean, rtol=1e-5)


def parquet(folder, some):
    folder.mkdir()
    for k in range(2):
        table = pa.Table.from_pylist([{k: v for k, v in p.items() if k != "fp_hists"}
                                      for p in some[k::2]])  # fmt: skip
        pq.write_table(table.append_column("cutoutScience", pa.array([b"image"] * len(table))),
                       folder / f"night{k}.parquet", row_group_size=3)  # fmt: skip
    return folder


@pytest.mark.parametrize("write", [write_files, parquet])
def test_alerts_in_pieces_are_those_read_at_once(write, engine, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(ingesting, "_FILES", 4)
    monkeypatch.setattr(ingesting, "_ROWS", 2)
    source, out = write(tmp_path / "alerts", packets()), tmp_path / "out.parquet"
    options = {"kind": "ztf-alert", "ingest": OPTIONS, "chunk_size": 3, "progress": False}
    summary = engine.predict_survey(source, out, **options)
    rows, ingest = whole
    check(out, rows)
    for act in ("read", "kept", "band", "limits", "left out", "duplicates", "masked"):
        assert summary.ingest[act] == ingest[act], act
    assert "of the kind ztf-alert" in str(summary)
    assert len(summary.ingest) <= len(ingest) + 1  # a line an act, however many pieces there were
    assert engine.predict_survey(source, out, **options).n_new == 0
    with pytest.raises(SurveyError, match="of this source"):
        engine.predict_survey(source, out, **options | {"ingest": {**OPTIONS, "limits": 3}})


def test_packets_in_memory_are_a_source(engine, whole, tmp_path):
    out = tmp_path / "out.parquet"
    engine.predict_survey(packets(), out, kind="ztf-alert", ingest=OPTIONS, progress=False)
    check(out, whole[0])


def test_a_file_that_cannot_be_read_has_its_row(engine, whole, tmp_path):
    source, out = write_files(tmp_path / "alerts", packets()), tmp_path / "out.parquet"
    (source / "ZTF004.json").write_text('{"objectId": "ZTF0')
    (source / "again.json").write_text((source / "ZTF000.json").read_text())  # merged all the same
    told = engine.predict_survey(
        source, out, kind="ztf-alert", ingest=OPTIONS, progress=False, chunk_size=4
    )
    assert (told.n_objects, told.status["FAILED"], told.flags["BAD_INPUT"]) == (N, 1, 1)
    found = pq.read_table(out).to_pandas().set_index("id")
    assert "JSONDecodeError" in found.reason["ZTF004.json"]
    rows = whole[0].set_index("id").drop("ZTF004")
    np.testing.assert_allclose(found.a_mean[rows.index], rows.a_mean, rtol=1e-5)


def test_sources_that_no_kind_can_read_are_refused(engine, tmp_path):
    source, out = write_files(tmp_path / "alerts", packets()), tmp_path / "out.parquet"
    with pytest.raises(SurveyError, match="of its first 9 none can: ValueError"):
        engine.predict_survey(source, out, kind="rubin-alert", progress=False)
    with pytest.raises(ValueError, match="ingest must come with kind="):
        engine.predict_survey(source, out, ingest=OPTIONS)
    with pytest.raises(ValueError, match="kind must be one of"):
        engine.predict_survey(source, out, kind="ztf")
    with pytest.raises(TypeError, match="but got \\['colour'\\]"):
        engine.predict_survey(source, out, kind="ztf-alert", ingest={"colour": 1})


def test_alerts_of_one_object_that_lie_apart_are_refused(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(ingesting, "_FILES", 4)
    source = write_files(tmp_path / "alerts", packets())
    (source / "later.json").write_text((source / "ZTF000.json").read_text())
    with pytest.raises(ValueError, match="ZTF000 are in several places"):
        engine.predict_survey(source, tmp_path / "out.parquet", kind="ztf-alert",
                              ingest=OPTIONS, progress=False)  # fmt: skip


def test_the_command_line_takes_a_kind(engine, whole, tmp_path, capsys):
    source, out = write_files(tmp_path / "alerts", packets()), tmp_path / "out.parquet"
    engine.save(tmp_path / "flat.nbi")
    model = tmp_path / "model.py"
    model.write_text(
        "import nbi_plus as nbi\nfrom scipy.stats import norm\n\n\ndef build_engine():\n"
        "    return nbi.Engine(None, {'a': norm(120, 40)}, noise=nbi.GaussianNoise())\n"
    )
    ingest = [f"--ingest={k}={json.dumps(v) if k == 'limits' else v}" for k, v in OPTIONS.items()]
    asked = ["predict", model, tmp_path / "flat.nbi", source, "-o", out, "--kind", "ztf-alert"]
    assert cli.main([*map(str, asked), *ingest, "--json"]) == 0
    check(out, whole[0])
    acts = json.loads(capsys.readouterr().out)["ingest"]["acts"]
    assert ["read", N, "alerts", "of the kind ztf-alert"] in acts
