"""Laws of surveys: each object one row, whatever the source, the chunks, bad rows or kills."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from scipy.stats import norm
from survey_curves import line, lines

import nbi_plus as nbi
from nbi_plus.survey import SurveyError, frame_function
from nbi_plus.survey.mixin import NetworkSurvey
from nbi_plus.survey.sources import open_source

N = 60
COLUMNS = {"id": "oid"}
VERDICT = [
    "status", "certified", "trusted", "flags", "settled_by", "ess", "ess_low", "efficiency",
    "k_hat", "log_evidence", "log_evidence_err", "evidence_reliable", "ood_p_value", "fit_p_value",
    "chi2_best", "n_points", "n_masked", "n_simulated", "n_gradients", "seconds",
]  # fmt: skip


def light_curves():
    found = lines(N, lambda own: np.full(len(own), 0.3))
    own, rng = found.oid.to_numpy(), np.random.default_rng(1)
    return found.assign(
        oid=np.array([f"s{i:03d}" for i in range(N)])[own], ra=rng.uniform(0, 360, N)[own],
        field=(own % 7).astype(np.int32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def curves():
    return light_curves()


@pytest.fixture(scope="module")
def engine(curves, tmp_path_factory):
    """Return an engine without a simulator: quick, and nothing is weighed."""
    seen = nbi.Observations.from_table(curves, **COLUMNS)
    one = nbi.Engine(
        line, {"a": norm(0, 1), "b": norm(0, 1)}, noise=nbi.GaussianNoise(), featurizer="resnet"
    )
    one.fit(300, n_epochs=1, observations=seen, progress=False)
    return nbi.Engine.load(saved_in(one, tmp_path_factory.mktemp("engine")))


def saved_in(engine, folder):
    engine.save(folder / "line.nbi")
    return folder / "line.nbi"


@pytest.fixture(scope="module")
def plain(engine, curves):
    """Return what `predict_many` says of the same objects."""
    seen = nbi.Observations.from_table(curves, **COLUMNS)
    return engine.predict_many(seen, n_samples=500, keep=0)


def rows(path):
    return pq.read_table(path).to_pandas()  # in the order of the source


def check(found, plain):
    assert found.id.tolist() == plain.ids.tolist()
    assert np.allclose(found.a_mean, plain.mean[:, 0], atol=1e-5)
    assert np.allclose(found.b_q975, plain.quantiles[:, 4, 1], atol=1e-5)
    assert found.status.tolist() == [s.name for s in plain.status]
    assert found.n_points.tolist() == plain.n_points.tolist()


def nested(curves):
    lists = curves.groupby("oid")[["mjd", "flux", "flux_err"]].agg(list)
    return lists.join(curves.groupby("oid")[["ra", "field"]].first()).reset_index()


def of_pandas(curves, folder):
    return curves


def of_arrow(curves, folder):
    return pa.Table.from_pandas(curves)


def of_astropy(curves, folder):
    return Table.from_pandas(curves)


def of_parquet(curves, folder):
    curves.to_parquet(folder / "long.parquet", row_group_size=37)
    return folder / "long.parquet"


def of_nested(curves, folder):
    nested(curves).to_parquet(folder / "nested.parquet", row_group_size=7)
    return folder / "nested.parquet"


def of_fits(curves, folder):
    Table.from_pandas(curves).write(folder / "long.fits")
    return folder / "long.fits"


def of_hdf5(curves, folder):
    table = Table.from_pandas(curves)
    table["oid"] = table["oid"].astype("S")
    table.write(folder / "long.h5", path="curves")
    return folder / "long.h5"


def of_csv(curves, folder):
    curves.to_csv(folder / "long.csv", index=False)
    return str(folder / "long.csv")


class Partitions:
    """What Dask frames and LSDB catalogues have in common."""

    def __init__(self, parts):
        self.partitions, self.columns = [Partitions.One(part) for part in parts], parts[0].columns
        self.npartitions = len(parts)

    class One:
        def __init__(self, part):
            self.compute = lambda: part


def of_collection(curves, folder):
    third = len(curves) // 3
    return Partitions([curves[:third], curves[:0], curves[third:]])


def of_hidden_folder(curves, folder):
    hidden = folder / ".cache" / "night"
    hidden.mkdir(parents=True)
    (hidden / "_metadata.parquet").write_text("no table")
    of_several(curves, hidden)
    return hidden


def of_several(curves, folder):
    half = len(curves) // 2  # in the middle of an object
    curves[:half].to_parquet(folder / "a.parquet")
    curves[half:].to_parquet(folder / "b.parquet")
    return str(folder / "*.parquet")


def of_folder(curves, folder):
    of_several(curves, folder)
    return folder


SOURCES = (of_pandas, of_arrow, of_astropy, of_parquet, of_nested, of_fits, of_hdf5, of_csv,
           of_several, of_folder, of_hidden_folder, of_collection)  # fmt: skip


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize("size", [7, 1000])
def test_every_source_gives_each_object_its_row(make, size, engine, curves, plain, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    out = tmp_path / "out.parquet"
    carry = ("ra", "field")
    summary = engine.predict_survey(
        make(curves, folder), out, columns=COLUMNS, carry=carry, chunk_size=size
    )
    found = rows(out)
    check(found, plain)
    first = curves.groupby("oid").first()
    assert np.allclose(found.ra, first.ra)
    assert found.field.tolist() == first.field.tolist()
    assert summary.n_objects == summary.n_new == sum(summary.status.values()) == N
    assert not out.with_name("out.parquet.parts").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".fits", ".h5"])
def test_a_file_of_observations_says_itself_what_it_holds(suffix, engine, curves, tmp_path):
    """Units, masked points and times that count from an origin of each object among it."""
    seen = nbi.Observations.from_table(
        curves.assign(flux=1e3 * curves.flux, flux_err=1e3 * curves.flux_err), **COLUMNS
    )
    seen = replace(seen.relative_to("first"), units={"x": "uJy", "t": "d"})
    seen.valid[0, ::5] = False
    path, out = tmp_path / f"in{suffix}", tmp_path / "out.parquet"
    seen.write(path)
    asked = copy(engine)
    asked.fitted_ = replace(
        engine.fitted_, model=replace(engine.fitted_.model, units={"x": "mJy", "t": "d"})
    )
    asked.predict_survey(path, out)
    whole = asked.predict_many(nbi.Observations.read(path), n_samples=500, keep=0)
    check(rows(out), whole)
    assert 0 < whole.n_points.sum() < len(curves)


@pytest.mark.parametrize("n", [0, 1])
def test_few_objects_are_a_survey_as_well(n, engine, curves, plain, tmp_path):
    curves[curves.oid < f"s{n:03d}"].to_parquet(tmp_path / "in.parquet")
    out, options = tmp_path / "out.parquet", {"columns": COLUMNS, "carry": ("ra",)}
    assert engine.predict_survey(tmp_path / "in.parquet", out, **options).n_objects == n
    check(rows(out), plain[:n])
    assert engine.predict_survey(tmp_path / "in.parquet", out, **options).n_new == 0


@pytest.mark.parametrize("suffix", [".fits", ".h5"])
@pytest.mark.parametrize("what", ["seen_on", "seen_at", "tags", "place", "α"])
def test_what_a_format_cannot_hold_is_refused_before_anything_is_answered(
    suffix, what, engine, curves, tmp_path
):
    curves = curves.assign(seen_on=np.datetime64("2026-01-01"), α=1.5)
    curves["seen_at"] = curves.seen_on.dt.tz_localize("UTC")
    curves["tags"] = [["a"]] * len(curves)
    curves["place"] = [{"row": 1}] * len(curves)
    out, options = tmp_path / f"out{suffix}", {"columns": COLUMNS, "carry": (what,)}
    if (what, suffix) == ("α", ".h5"):  # HDF5 names may be anything
        assert engine.predict_survey(curves, out, **options).n_objects == N
        return
    with pytest.raises(ValueError, match="carry must name columns"):
        engine.predict_survey(curves, out, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("several", [False, True])
def test_observations_are_a_source(several, engine, curves, plain, tmp_path):
    seen = nbi.Observations.from_table(curves, **COLUMNS)
    source = iter([seen[:20], seen[20:]]) if several else seen
    engine.predict_survey(source, tmp_path / "out.parquet", chunk_size=13)
    check(rows(tmp_path / "out.parquet"), plain)


def test_the_columns_are_those_of_the_contract_and_describe_themselves(engine, curves, tmp_path):
    out = tmp_path / "out.parquet"
    engine.predict_survey(curves, out, columns=COLUMNS, carry=("ra",))
    moments = ("mean", "std", "median", "q16", "q84", "q025", "q975")
    own = [f"{p}_{m}" for p in "ab" for m in moments]
    known = ["id", "ra", *own, *VERDICT, "reason", "seed", "engine", "version"]
    assert pq.read_schema(out).names == known
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy's, of the widths of texts in any parquet file
        table = Table.read(out, format="parquet.votable")
    assert table.colnames == known
    assert all(table[name].info.description for name in known)
    assert str(table["seconds"].unit) == "s"
    assert table["ra"].info.meta["ucd"] == "pos.eq.ra;meta.main"


@pytest.mark.parametrize("name", ["out.h5", "out.fits", "folder"])
def test_every_format_holds_the_same(name, engine, curves, plain, tmp_path):
    out = tmp_path / name
    options = {"columns": COLUMNS, "carry": ("ra",), "chunk_size": 25}
    engine.predict_survey(curves, out, **options)
    if name == "folder":
        found = rows(out)
    else:
        table = Table.read(out)
        assert "Weighted mean" in (table["a_mean"].description or fits.getheader(out, 1)["TCOMM3"])
        table.convert_bytestring_to_unicode()
        found = table.to_pandas().sort_values("id", ignore_index=True)
        assert found.certified.dtype == bool
    check(found, plain)
    again = engine.predict_survey(curves, out, **options)
    assert again.n_new == 0
    assert again.n_objects == N


def test_draws_are_kept_where_they_are_wanted(engine, curves, tmp_path):
    engine.predict_survey(curves, tmp_path / "out.parquet", columns=COLUMNS, keep_draws=30)
    found = rows(tmp_path / "out.parquet")
    assert {len(draws) for draws in found.b_draws} == {30}
    assert abs(np.mean(found.a_draws[3]) - found.a_mean[3]) < 4 * found.a_std[3] / 30**0.5
    with pytest.raises(ValueError, match="to keep draws"):
        engine.predict_survey(curves, tmp_path / "out.fits", columns=COLUMNS, keep_draws=30)


# --- bad rows ------------------------------------------------------------------------------------


def poisoned(curves):
    bad = curves.copy()
    bad["flux"] = bad["flux"].astype(object)
    at = {i: bad.oid == f"s{i:03d}" for i in (3, 11, 12, 27, 41)}
    bad.loc[at[3], "flux"] = np.nan
    bad.loc[at[11], "flux"] = "missing"
    bad.loc[at[12], "flux_err"] = 0.0
    bad.loc[at[27], "mjd"] = np.nan
    one = bad[at[41]].iloc[:1]
    bad = pd.concat([bad[bad.oid < "s041"], one, bad[bad.oid > "s041"]])
    bad["flux"] = bad["flux"].astype(str)
    return bad


@pytest.mark.parametrize("size", [10, 1000])
def test_bad_objects_get_their_rows_and_spoil_no_other(size, engine, curves, plain, tmp_path):
    poisoned(curves).to_csv(tmp_path / "bad.csv", index=False)
    engine.predict_survey(
        tmp_path / "bad.csv", tmp_path / "out.parquet", columns=COLUMNS, chunk_size=size
    )
    found = rows(tmp_path / "out.parquet")
    assert len(found) == N
    lost = [3, 11, 12, 27]
    assert found.status[lost].tolist() == ["FAILED"] * 4
    assert found["flags"][lost].str.contains("BAD_INPUT").all()
    assert (found.reason[lost] != "").all()
    assert found.a_mean[lost].isna().all()
    assert found.n_points[41] == 1
    whole = np.setdiff1d(np.arange(N), [*lost, 41])
    assert np.allclose(found.a_mean[whole], plain.mean[whole, 0], atol=1e-5)


def test_neighbours_that_fail_alike_end_no_survey(engine, curves, plain, tmp_path, monkeypatch):
    answer = NetworkSurvey.answer
    bad = [f"s{i:03d}" for i in range(8, 16)]

    def failing(self, observations):
        if set(bad) & set(observations.ids.tolist()):
            raise RuntimeError("no such luck")
        return answer(self, observations)

    monkeypatch.setattr(NetworkSurvey, "answer", failing)
    engine.predict_survey(curves, tmp_path / "o.parquet", columns=COLUMNS, chunk_size=32)
    found = rows(tmp_path / "o.parquet").set_index("id")
    assert found.loc[bad].reason.tolist() == ["RuntimeError: no such luck"] * 8
    assert found.loc[bad]["flags"].tolist() == [""] * 8  # their data are sound
    others = ~np.isin(plain.ids, bad)
    assert np.allclose(found.a_mean[plain.ids[others]], plain.mean[others, 0], atol=1e-5)
    with pytest.raises(SurveyError, match="8 of 8 failed alike: RuntimeError"):
        engine.predict_survey(curves, tmp_path / "p.parquet", columns=COLUMNS, chunk_size=8)


def test_what_fails_for_all_ends_the_survey(engine, curves, tmp_path):
    with pytest.raises(ValueError, match="flux_err|x_err"):
        engine.predict_survey(
            curves.drop(columns="flux_err"), tmp_path / "out.parquet", columns=COLUMNS
        )


def test_rows_of_an_object_must_stand_together(engine, curves, tmp_path):
    apart = pd.concat([curves, curves[curves.oid == "s000"]])
    with pytest.raises(ValueError, match="s000.*several places.*Sort"):
        engine.predict_survey(apart, tmp_path / "out.parquet", columns=COLUMNS, chunk_size=9)


def test_a_name_may_be_as_long_as_those_beside_it_allow(engine, curves, tmp_path):
    out = tmp_path / f"{'s' * 236}.parquet"
    assert engine.predict_survey(curves, out, columns=COLUMNS).n_objects == N
    with pytest.raises(ValueError, match="out must have a name of at most 244 bytes.* has 245"):
        engine.predict_survey(curves, out.with_name(f"s{out.name}"), columns=COLUMNS)


def test_a_carried_column_must_be_there(engine, curves, tmp_path):
    with pytest.raises(ValueError, match="carry must name columns.*'dec'"):
        engine.predict_survey(curves, tmp_path / "o.parquet", columns=COLUMNS, carry=("dec",))


# --- stopped and resumed -------------------------------------------------------------------------


def test_what_is_answered_is_not_answered_again(engine, curves, plain, tmp_path, monkeypatch):
    asked, answer = [], NetworkSurvey.answer

    def stopping(self, observations):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.append(observations.ids.tolist())
        return answer(self, observations)

    out, options = tmp_path / "out.parquet", {"columns": COLUMNS, "chunk_size": 8}
    monkeypatch.setattr(NetworkSurvey, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        engine.predict_survey(curves, out, **options)
    monkeypatch.setattr(NetworkSurvey, "answer", lambda self, obs: (asked.append(
        obs.ids.tolist()), answer(self, obs))[1])  # fmt: skip
    assert not out.exists()
    summary = engine.predict_survey(curves, out, **(options | {"chunk_size": 11}))
    once = [name for names in asked for name in names]
    assert sorted(once) == sorted(set(once))
    assert summary.n_objects == N
    assert summary.n_new == N - 32
    check(rows(out), plain)


def test_another_engine_source_or_process_is_refused(engine, curves, tmp_path):
    out, options = tmp_path / "folder", {"columns": COLUMNS}
    engine.predict_survey(curves, out, **options)
    with pytest.raises(SurveyError, match="n_samples 500.*has 100"):
        engine.predict_survey(curves, out, n_samples=100, **options)
    others = curves[curves.oid < "s030"], curves.assign(flux=curves.flux + 1)
    for source in (*others, nbi.Observations.from_table(curves, **COLUMNS)):
        with pytest.raises(SurveyError, match="append=True"):
            engine.predict_survey(source, out, **options)
    from nbi_plus.survey.parts import Parts, read_manifest

    known = read_manifest(out)
    manifest = {"survey": known["survey"], "source": known["nights"][0]["source"]}
    parts = Parts.open(out, manifest, append=False)
    with pytest.raises(SurveyError, match="another process"):
        engine.predict_survey(curves, out, **options)
    parts.close()


@pytest.mark.parametrize("name", ["out.parquet", "out.fits", "folder"])
def test_a_new_night_is_appended(name, engine, curves, plain, tmp_path):
    out, options = tmp_path / name, {"columns": COLUMNS, "carry": ("ra",)}
    nights = curves[curves.oid < "s030"], curves[curves.oid >= "s030"]
    engine.predict_survey(nights[0], out, **options)
    summary = engine.predict_survey(nights[1], out, append=True, **options)
    assert (summary.n_objects, summary.n_new) == (N, N - 30)
    if name == "out.fits":
        table = Table.read(out)
        table.convert_bytestring_to_unicode()
        check(table.to_pandas().sort_values("id", ignore_index=True), plain)
    else:
        check(rows(out), plain)


@pytest.mark.parametrize("name", ["out.parquet", "folder"])
@pytest.mark.parametrize("make", [list, iter])
def test_nights_in_memory_are_told_apart_or_refused(make, name, engine, curves, plain, tmp_path):
    out = tmp_path / name
    nights = [
        nbi.Observations.from_table(curves[own], **COLUMNS)
        for own in (curves.oid < "s030", curves.oid >= "s030")
    ]
    engine.predict_survey(make([nights[0][:9], nights[0][9:]]), out)
    with pytest.raises(SurveyError, match="append=True"):
        engine.predict_survey(make([nights[1]]), out)
    summary = engine.predict_survey(make([nights[1]]), out, append=True)
    assert (summary.n_objects, summary.n_new) == (N, N - 30)
    check(rows(out).drop(columns="ra", errors="ignore"), plain)


def test_files_in_several_units_are_read_each_in_its_own(curves, tmp_path):
    def in_unit(rows, unit):
        table = Table.from_pandas(rows)
        for column in ("flux", "flux_err"):
            table[column] = (np.asarray(table[column]) * u.mJy).to(unit)
        return table

    nights = curves[curves.oid < "s030"], curves[curves.oid >= "s030"]
    seen = nbi.Observations.from_table(in_unit(curves, u.mJy), **COLUMNS)
    engine = nbi.Engine(line, {"a": norm(0, 1), "b": norm(0, 1)}, featurizer="resnet")
    engine.fit(300, n_epochs=1, observations=seen, progress=False)
    engine = nbi.Engine.load(saved_in(engine, tmp_path))
    plain = engine.predict_many(seen, n_samples=500, keep=0)
    for name, own, unit in zip("ab", nights, (u.mJy, u.Jy), strict=True):
        in_unit(own, unit).write(tmp_path / f"{name}.fits")
    out = tmp_path / "out.parquet"
    engine.predict_survey(str(tmp_path / "*.fits"), out, columns=COLUMNS)
    check(rows(out), plain)
    with pytest.raises(ValueError, match="carry must name columns of one unit"):
        engine.predict_survey(
            str(tmp_path / "*.fits"), tmp_path / "c.parquet", columns=COLUMNS, carry=("flux",)
        )


def test_columns_of_text_files_hold_what_their_last_rows_are(engine, curves, plain, tmp_path):
    """Of long files the first rows may look like whole numbers, or like nothing."""
    n = len(curves) - 1
    late = curves.assign(note=[""] * n + ["1.5"], n=[1.0] * n + [2.5])
    head = pd.DataFrame({"oid": "s", "mjd": 1, "flux": 0, "flux_err": 1, "n": 1},
                        index=range(60_000))  # fmt: skip
    pd.concat([head, late]).to_csv(tmp_path / "in.csv", index=False)
    engine.predict_survey(tmp_path / "in.csv", tmp_path / "out.parquet", columns=COLUMNS,
                          carry=("note", "n"))  # fmt: skip
    found = rows(tmp_path / "out.parquet")
    check(found[found.id != "s"].drop(columns=["note", "n"]).reset_index(drop=True), plain)
    assert found.n.dtype == float


def test_several_columns_of_one_role_go_on(engine, curves, tmp_path):
    options = {"columns": {**COLUMNS, "x": ("flux",), "x_err": ("flux_err",)}}
    engine.predict_survey(curves, tmp_path / "out.parquet", **options)
    assert engine.predict_survey(curves, tmp_path / "out.parquet", **options).n_new == 0


def test_bad_objects_among_themselves_stop_nothing(engine, curves, tmp_path):
    """The last chunk may hold nothing but these; a survey that ends there would never be over."""
    bad = curves.assign(flux=curves.flux.where(curves.oid < "s032"))
    engine.predict_survey(bad, tmp_path / "out.parquet", columns=COLUMNS, chunk_size=8)
    found = rows(tmp_path / "out.parquet")
    assert found.status.tolist() == ["AMORTIZED"] * 32 + ["FAILED"] * (N - 32)
    assert all("BAD_INPUT" in text for text in found["flags"][found.status == "FAILED"])


def test_an_id_that_is_missing_changes_no_other(engine, curves, tmp_path):
    first = 2**53  # and beyond: of these floats have every second only
    number = curves.oid.str[1:].astype(int) + first
    ids = number.astype("Int64").mask(curves.oid == "s005")
    engine.predict_survey(curves.assign(oid=ids), tmp_path / "out.parquet", columns=COLUMNS)
    found = rows(tmp_path / "out.parquet")
    good = found[found.status != "FAILED"].reset_index(drop=True)
    assert len(good) == len(found) - 1
    seen = nbi.Observations.from_table(curves.assign(oid=number)[curves.oid != "s005"], **COLUMNS)
    assert good.id.astype(int).tolist() == seen.ids.tolist()
    check(good.assign(id=seen.ids), engine.predict_many(seen, n_samples=500, keep=0))


def test_carried_columns_that_a_catalogue_has_are_refused_at_once(engine, curves, tmp_path):
    with pytest.raises(ValueError, match=r"carry must name .* but names \['status'\]"):
        engine.predict_survey(
            curves.assign(status=1), tmp_path / "o.parquet", columns=COLUMNS, carry=("status",)
        )


_KILLED = """
import sys, numpy as np, torch, pandas as pd
import nbi_plus as nbi
torch.set_num_threads(1)
engine = nbi.Engine.load({engine!r})
engine.predict_survey({source!r}, {out!r}, columns={{"id": "oid"}}, chunk_size=4)
"""


def test_a_survey_outlives_kills(engine, curves, plain, tmp_path):
    source, out, saved = tmp_path / "in.parquet", tmp_path / "out.parquet", tmp_path / "e.nbi"
    curves.to_parquet(source)
    engine.save(saved)
    code = textwrap.dedent(_KILLED).format(engine=str(saved), source=str(source), out=str(out))
    for n_parts in (1, 5):
        child = subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ))
        parts, until = tmp_path / "out.parquet.parts", time.monotonic() + 100
        while len(list(parts.glob("part-*"))) < n_parts and time.monotonic() < until:
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
    summary = engine.predict_survey(source, out, columns=COLUMNS, chunk_size=4)
    assert 0 < summary.n_new < N
    check(rows(out), plain)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.nbi", "in.parquet", "out.parquet"]


def test_a_file_of_many_row_groups_is_never_whole_in_memory(tmp_path):
    rng, n, n_groups = np.random.default_rng(0), 20_000, 40
    names = ["t", "flux", "error"]
    table = pa.table(dict.fromkeys(names, rng.normal(size=n)))
    with pq.ParquetWriter(tmp_path / "long.parquet", table.schema, compression=None) as writer:
        for _ in range(n_groups):
            writer.write_table(table)
    source, before, most, n_rows = (
        open_source(tmp_path / "long.parquet"),
        pa.total_allocated_bytes(),
        0,
        0,
    )
    for piece in source.pieces(names):
        most = max(most, pa.total_allocated_bytes() - before)
        n_rows += piece.table.num_rows
    assert n_rows == n * n_groups
    assert most < 5 * table.nbytes


# --- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda c: c, nested])
def test_a_frame_function_answers_partitions(make, engine, curves, plain):
    frame = make(curves)
    answer = frame_function(engine, COLUMNS, ("ra", "field"), like=frame)
    found = answer(frame)
    check(found.sort_values("id", ignore_index=True), plain)
    empty = answer(frame[:0])
    assert found.dtypes.to_dict() == empty.dtypes.to_dict() == answer.meta.dtypes.to_dict()
    assert len(empty) == 0


def test_rows_of_a_nested_frame_keep_their_index(engine, curves):
    frame = nested(curves)
    frame.index = pd.Index(np.arange(N)[::-1] * 1000, name="_healpix_29")
    found = frame_function(engine, COLUMNS)(frame)
    assert found.index.equals(frame.index)
    assert found.id.tolist() == frame.oid.tolist()
    empty = frame_function(engine, COLUMNS)(frame[:0])
    assert pd.concat([empty, found]).index.name == "_healpix_29"


class _Client:
    """What a survey asks of a client of Dask, with threads for workers."""

    def __init__(self):
        self.pool, self.sent = ThreadPoolExecutor(2), 0

    def scheduler_info(self):
        return {"workers": {"a": {}, "b": {}}}

    def scatter(self, data, broadcast):
        self.sent += 1
        return pickle.dumps(data)

    def submit(self, function, model, chunk, pure, retries):
        assert retries > 0
        again = pickle.dumps(chunk)  # as a worker would get it
        own = pickle.loads  # noqa: S301 - of this very test
        return self.pool.submit(lambda: function(own(model), own(again)))


def test_workers_of_a_client_answer_chunks(engine, curves, plain, tmp_path):
    client = _Client()
    engine.predict_survey(
        curves, tmp_path / "out.parquet", columns=COLUMNS, client=client, chunk_size=9
    )
    check(rows(tmp_path / "out.parquet"), plain)
    assert client.sent == 1


def test_a_summary_is_a_table(engine, curves, tmp_path):
    text = str(engine.predict_survey(curves, tmp_path / "o.parquet", columns=COLUMNS))
    assert f"{N} objects, {N} of them now" in text
    assert "AMORTIZED" in text


def test_a_survey_tells_how_much_of_its_source_is_left(engine, curves, tmp_path, capsys):
    for name in ("parquet", "pandas"):
        source = {"parquet": of_parquet, "pandas": of_pandas}[name](curves, tmp_path)
        out = tmp_path / f"{name}.parquet"
        engine.predict_survey(source, out, columns=COLUMNS, chunk_size=5, progress=True)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith(f"answering: 0 of {len(curves)} rows")
        assert lines[-1].startswith(f"answering: {len(curves)} of {len(curves)} rows")
        assert lines[-1].endswith(f"{curves.oid.nunique()} objects")
