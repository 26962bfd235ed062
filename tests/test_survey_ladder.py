"""Laws of surveys on the whole ladder: who climbs waits, and no row is lost, doubled or moved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from survey_curves import (
    COLUMNS,
    EXACT,
    LADDER,
    QUICK,
    badly_trained,
    line,
    lines_for_a_climb,
)

import nbi_plus as nbi
from nbi_plus.infer.ladder import RefineRung
from nbi_plus.survey import SurveyError
from nbi_plus.survey.mixin import NetworkSurvey, RetryingSurvey

N = 40


@pytest.fixture(scope="module")
def curves():
    return lines_for_a_climb(N)


@pytest.fixture(scope="module")
def saved(curves, tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "line.nbi"
    badly_trained(curves).save(path)
    return path


@pytest.fixture(scope="module")
def engine(saved):
    return nbi.Engine.load(saved, line, ladder=LADDER)


@pytest.fixture(scope="module")
def whole(engine, curves, tmp_path_factory):
    """Return the catalogue of a survey that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "out.parquet"
    engine.predict_survey(curves, out, columns=COLUMNS, chunk_size=7)
    return pq.read_table(out).to_pandas()


def check(found, whole):
    """Hold a catalogue against another one: verdicts alike, and numbers but for rounding."""
    assert found[EXACT].equals(whole[EXACT])
    for name in ("a_mean", "a_std", "b_median", "ess", "k_hat", "log_evidence"):
        assert np.allclose(found[name], whole[name], rtol=1e-6, atol=1e-9, equal_nan=True), name


def test_who_climbs_waits_for_other_chunks(engine, curves, whole, tmp_path, monkeypatch):
    climbed, climb = [], NetworkSurvey.climb

    def counting(self, waiting):
        climbed.append(sum(map(len, waiting)))
        return climb(self, waiting)

    monkeypatch.setattr(NetworkSurvey, "climb", counting)
    monkeypatch.setattr(NetworkSurvey, "at_once", 20)
    out = tmp_path / "folder"
    named = curves.assign(field=("f" + (curves.oid % 7).astype(str)).astype("category"))
    carry = ("flux_err", "field")  # they go along with those that wait
    engine.predict_survey(named, out, columns=COLUMNS, chunk_size=4, carry=carry)
    found = pq.read_table(out).to_pandas()
    check(found, whole)
    for name in carry:
        assert found[name].tolist() == named.groupby("oid")[name].first().tolist()
    n_climbing = int((found.settled_by != "reweight").sum())
    assert sum(climbed) == n_climbing > N // 3
    assert min(climbed[:-1]) >= 20 > N // 4
    seen = nbi.Observations.from_table(curves, **COLUMNS)
    many = engine.predict_many(seen, n_samples=500, keep=0)
    assert found.status.tolist() == [s.name for s in many.status]


def test_who_cannot_climb_gets_a_row_and_spoils_no_other(
    engine, curves, whole, tmp_path, monkeypatch
):
    climb, bad = NetworkSurvey.climb, int(whole.id[whole.settled_by == "refine"].iloc[3])

    def failing(self, waiting):
        if any(bad in own.observations.ids for own in waiting):
            raise RuntimeError("no such luck")
        return climb(self, waiting)

    monkeypatch.setattr(NetworkSurvey, "climb", failing)
    engine.predict_survey(curves, tmp_path / "o.parquet", columns=COLUMNS, chunk_size=25)
    found = pq.read_table(tmp_path / "o.parquet").to_pandas()
    assert found.reason[bad] == "RuntimeError: no such luck"
    others = found.id != str(bad)
    check(found[others], whole[others])


# --- once more -----------------------------------------------------------------------------------

MORE = nbi.Ladder(n_draws=1024, top_up_draws=1024, audit=None, rungs=(
    RefineRung(n_rounds=4, n_each=600, n_scouts=256, n_certify=2048, mixture=QUICK),))  # fmt: skip


@pytest.mark.parametrize("name", ["out.parquet", "out.fits", "folder"])
def test_only_what_is_unfinished_is_answered_again(name, engine, curves, whole, tmp_path):
    source, out = tmp_path / "in.parquet", tmp_path / name
    curves.to_parquet(source)
    engine.predict_survey(source, out, columns=COLUMNS, chunk_size=15)
    before = read(out)
    summary = engine.retry_survey(source, out, ladder=MORE, chunk_size=11)
    after, left = read(out), ~before.certified.to_numpy()
    assert summary.n_new == left.sum() > 3
    assert summary.n_objects == N
    assert after[~left].equals(before[~left])
    assert after.id.equals(before.id)
    assert after.certified[left].sum() > 0
    assert (after.n_simulated[left] > before.n_simulated[left]).all()
    again = engine.retry_survey(source, out, ladder=MORE)
    assert again.n_new == (~after.certified).sum()
    assert engine.predict_survey(source, out, columns=COLUMNS).n_new == 0
    with pytest.raises(SurveyError, match="finished catalogue of this source"):
        engine.retry_survey(curves[curves.oid < 9], out)


def test_a_retry_that_is_interrupted_goes_on(engine, curves, whole, tmp_path, monkeypatch):
    out, asked, answer = tmp_path / "o.parquet", [], RetryingSurvey.answer
    engine.predict_survey(curves, out, columns=COLUMNS)
    before = out.read_bytes()

    def stopping(self, observations):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(observations.ids.tolist())
        return answer(self, observations)

    monkeypatch.setattr(RetryingSurvey, "answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        engine.retry_survey(curves, out, ladder=MORE, chunk_size=20)
    assert out.read_bytes() == before
    monkeypatch.setattr(RetryingSurvey, "answer", answer)
    summary = engine.retry_survey(curves, out, ladder=MORE, chunk_size=20)
    assert summary.n_new == (~whole.certified).sum() - len(asked[0])
    assert len(list(tmp_path.glob("*.retry"))) == 0


def read(out):
    if out.suffix == ".fits":
        table = Table.read(out)
        table.convert_bytestring_to_unicode()
        return table.to_pandas()
    return pq.read_table(out).to_pandas()


# --- kills ---------------------------------------------------------------------------------------

_KILLED = """
import os, signal, threading, time
import torch
import nbi_plus as nbi
from test_survey_ladder import LADDER, line
from nbi_plus.survey.mixin import NetworkSurvey
torch.set_num_threads(1)
NetworkSurvey.at_once = 8
engine = nbi.Engine.load({saved!r}, line, ladder=LADDER)

def die(seconds):
    while time.process_time() < seconds:  # its own clock: the machine may have other things to do
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

n_killed = 0
for out, seconds in {moments!r}:
    if n_killed == {n_kills}:
        break
    child = os.fork()
    if not child:
        until = time.process_time() + seconds
        threading.Thread(target=die, args=[until], daemon=True).start()
        engine.predict_survey({source!r}, out, columns={{"id": "oid"}}, chunk_size=7)
        os._exit(0)
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    n_killed += end == -signal.SIGKILL
    print(end, out)
"""


def outlives(moments, n_kills, engine, saved, curves, whole, folder):
    """Hold surveys, killed after so many seconds of their own, to the law until so many kills."""
    source = folder / "in.parquet"
    curves.to_parquet(source)
    asked = [(str(folder / name), float(seconds)) for name, seconds in moments]
    code = _KILLED.format(saved=str(saved), source=str(source), moments=asked, n_kills=n_kills)
    path = os.pathsep.join([os.path.dirname(os.path.abspath(__file__)), *sys.path])
    ran = [sys.executable, "-c", textwrap.dedent(code)]
    told = subprocess.run(
        ran, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    ends = [line.split(" ", 1) for line in told.stdout.splitlines()]
    assert {int(end) for end, _ in ends} <= {0, -signal.SIGKILL}, told.stderr
    assert sum(int(end) != 0 for end, _ in ends) == n_kills
    for out in {out for _, out in ends}:
        engine.predict_survey(source, out, columns=COLUMNS, chunk_size=7)
        check(pq.read_table(out).to_pandas(), whole)


def test_a_climbing_survey_outlives_kills(engine, saved, curves, whole, tmp_path):
    moments = [("folder", 0.3), ("folder", 0.7), ("out.parquet", 0.9)]
    outlives(moments, 3, engine, saved, curves, whole, tmp_path)


@pytest.mark.faults
def test_a_climbing_survey_outlives_twenty_kills(engine, saved, curves, whole, tmp_path):
    rng = np.random.default_rng(5)
    # a survey that has outlived some kills may end before the next: some go on, others are new
    moments = [(f"out{i % 3}.parquet", rng.uniform(0.02, 0.8)) for i in range(9)]
    moments += [("folder", rng.uniform(0.02, 0.8)) for _ in range(4)]
    moments += [(f"late{i}.parquet", rng.uniform(0.3, 2.0)) for i in range(40)]
    outlives(moments, 20, engine, saved, curves, whole, tmp_path)
