"""Surveys on disks that fill up, break or rot: a named error, or the same in the end."""

from __future__ import annotations

import errno
import shutil
from contextlib import closing

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from full_disk import BROKEN, FULL, counted, failing_from
from scipy.stats import norm
from survey_curves import line, lines
from test_faults import N as N_MUTATIONS
from test_faults import check as right_or_refused
from test_faults import often

import nbi_plus as nbi
from nbi_plus.survey import SurveyError
from nbi_plus.survey.parts import Parts
from nbi_plus.survey.unfinished import unfinished_beside
from nbi_plus.survey.writing import manifest_of, rows_of

N = 16
COLUMNS = {"id": "oid"}
OUTS = {
    "out.parquet": {}, "draws.parquet": {"keep_draws": 20}, "out.h5": {}, "out.fits": {},
    "folder": {}, "folder of draws": {"keep_draws": 20},
}  # fmt: skip


@pytest.fixture(scope="module")
def nights():
    curves = lines(N, lambda own: np.where(own % 3 == 0, 0.5, 0.05))
    return curves[curves.oid < N // 2], curves[curves.oid >= N // 2]


@pytest.fixture(scope="module")
def engine(nights):
    """Return an engine that certifies some of its answers, and keeps draws of the others."""
    own = {"featurizer": "mlp", "flow": {"n_blocks": 2, "hidden": 16}}
    ladder = nbi.Ladder(n_draws=1024, top_up_draws=1024, escalate="never", audit=None)
    one = nbi.Engine(
        line, {"a": norm(0, 1), "b": norm(0, 1)}, noise=nbi.GaussianNoise(), ladder=ladder, **own
    )
    seen = nbi.Observations.from_table(pd.concat(nights), **COLUMNS)
    return one.fit(2000, n_epochs=10, observations=seen, truth_test=False)


def append(engine, night, out):
    engine.predict_survey(
        night, out, columns=COLUMNS, chunk_size=3, append=True, progress=False, **OUTS[out.name]
    )


def files_of(out):
    """Return the files of a survey by their names, but for the lock of whoever is at it."""
    inside = [out] if out.is_file() else out.rglob("*")
    beside = out.parent.glob(f"{out.name}.unfinished")
    return {p.name: p.read_bytes() for p in (*inside, *beside) if p.name != "_lock"}


def rows(out):
    if out.suffix in (".h5", ".fits"):
        table = Table.read(out, **({"path": "catalogue"} if out.suffix == ".h5" else {}))
        found = table.to_pandas()
    else:
        found = pq.read_table(out).to_pandas()
    return found.drop(columns="seconds")


def check(found, wanted):
    """Hold a catalogue to another one: numbers alike but for rounding, all else equal."""
    assert found.columns.equals(wanted.columns)
    for name, column in wanted.items():
        if column.dtype.kind == "f" or name.endswith("_draws"):
            own, other = (
                np.concatenate([np.atleast_1d(v) for v in c]) for c in (found[name], column)
            )
            np.testing.assert_allclose(own, other, rtol=1e-6, atol=1e-9, err_msg=name)
        else:
            assert found[name].tolist() == column.tolist(), name


@pytest.mark.parametrize("n_points", [3, pytest.param(50, marks=pytest.mark.faults)])
@pytest.mark.parametrize("name", OUTS)
def test_an_append_on_a_failing_disk_says_so_and_goes_on(name, n_points, engine, nights, tmp_path):
    whole, rng = tmp_path / "whole" / name, np.random.default_rng(n_points)
    append(engine, nights[0], whole)
    shutil.copytree(whole.parent, tmp_path / "first")
    old = files_of(whole)
    n_calls = counted(lambda: append(engine, nights[1], whole))
    wanted = rows(whole)
    assert len(wanted) == N > wanted.certified.sum() > 0
    names = set(files_of(whole))
    for point, k in enumerate(rng.choice(n_calls, min(n_points, n_calls), replace=False)):
        out = tmp_path / str(point) / name
        shutil.copytree(tmp_path / "first", out.parent)
        code, words = [(errno.ENOSPC, FULL), (errno.EIO, BROKEN)][point % 2]
        with failing_from(k, code), pytest.raises(SurveyError, match=words):
            append(engine, nights[1], out)
        left = files_of(out)
        kept = [k for k in old if not k.startswith("_survey") and "unfinished" not in k]
        assert kept
        assert all(left[k] == old[k] for k in kept)
        append(engine, nights[1], out)
        check(rows(out), wanted)
        assert set(files_of(out)) == names


# --- rot -----------------------------------------------------------------------------------------


def of_folder(folder):
    """Return all that a folder of parts holds."""
    with closing(Parts.held(folder)) as parts:
        return parts.manifest, told(parts.tables()), told(parts.unfinished())


def of_file(out):
    """Return all that a catalogue of one file holds, and what is kept beside it."""
    return manifest_of(out), told(rows_of(out)), told(unfinished_beside(out))


def told(tables):
    return [repr(table.to_pydict()) for table in tables]


@pytest.fixture(scope="module")
def finished(engine, nights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    for name in OUTS:
        append(engine, nights[0], folder / name)
    return folder


@often
@pytest.mark.parametrize(
    "name",
    ["folder of draws/part-*", "folder/part-*", "folder/_unfinished-*", "folder/_survey.json",
     "draws.parquet", "out.parquet.unfinished", "out.h5", "out.fits"],
)  # fmt: skip
def test_a_file_of_a_survey_is_right_or_refused(name, times, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    target, source = min((tmp_path / "copy").glob(name)), tmp_path / "source"
    shutil.copyfile(target, source)

    def load(path):
        shutil.copyfile(path, target)
        if name.startswith("folder"):
            return of_folder(target.parent)
        return of_file(target.with_name(target.name.removesuffix(".unfinished")))

    n = times * N_MUTATIONS // 5
    right_or_refused(source, None, load, repr, None, n, len(name), refusal=SurveyError)
