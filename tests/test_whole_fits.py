"""Whole fits on disks that fill up and in processes that are killed end as unbroken ones."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from full_disk import BROKEN, FULL, calls_watched, failing_from, import_all, in_child
from scipy import stats

import nbi_plus as nbi

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of files from /proc")

PRIOR = {"a": stats.norm(0, 1), "b": stats.norm(0, 1)}
T = np.linspace(0, 1, 6)
WAYS = ("amortized", "rounds")
KINDS = ("simulations", "training", "round", "engine")  # files that a fit writes
SAVED = "engine.nbi"


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


def fitted(folder, way):
    """Fit in a folder, which is gone on with where a fit has been begun, and save the engine."""
    small = {"featurizer": "mlp", "flow": {"n_blocks": 2, "hidden": 16}}
    engine = nbi.Engine(line, PRIOR, noise=0.3, path=folder, seed=1, **small)
    if way == "amortized":
        engine.fit(n_sims=300, n_epochs=4, t=T, truth_test=False)
    else:
        engine.fit(
            n_sims=200, n_rounds=4, n_epochs=3, x_obs=np.ones(len(T)), t=T, ess_target=400,
            locate="network",
        )  # fmt: skip
    engine.save(folder / SAVED)


def left_by(folder, way):
    """Return the numbers of the engine that was saved, and the names of all files beside it."""
    engine = nbi.Engine.load(folder / SAVED, simulator=line)
    if way == "amortized":
        posterior = engine.predict(np.ones(len(T)), t=T, n_samples=50)
    else:
        posterior = engine.posterior_
    names = [str(item.relative_to(folder)) for item in sorted(folder.rglob("*"))]
    return np.c_[posterior.samples, posterior.log_weights], names


def kind_of(handle):
    """Return which kind of file an open handle belongs to."""
    name = os.readlink(f"/proc/self/fd/{handle}").rsplit("/", 1)[-1]
    return next(kind for kind in KINDS if kind in name)


def kinds_written(folder, way):
    """Return the kind of file of every watched call of an unbroken fit."""
    kinds = []

    def on_call(k, name, call, *args):
        kinds.append(kind_of(args[0]))
        return call(*args)

    with calls_watched(on_call):
        fitted(folder, way)
    return np.array(kinds)


def some_call(kinds, rng):
    """Return the number of a call, as likely of rare kinds of files as of others."""
    return int(rng.choice(np.flatnonzero(kinds == rng.choice(np.unique(kinds)))))


# --- full and broken disks -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=WAYS)
def unbroken(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "runs"
    kinds = kinds_written(folder, request.param)
    return request.param, kinds, left_by(folder, request.param)


@pytest.mark.parametrize("n_points", [2, pytest.param(50, marks=pytest.mark.faults)])
def test_a_fit_on_a_failing_disk_says_so_and_goes_on(unbroken, n_points, tmp_path):
    way, kinds, (wanted, names) = unbroken
    rng, met = np.random.default_rng(n_points), set()
    for point in range(n_points):
        folder, k = tmp_path / str(point), some_call(kinds, rng)
        code, words = [(errno.ENOSPC, FULL), (errno.EIO, BROKEN)][point % 2]
        error = nbi.ArchiveError if kinds[k] == "engine" else nbi.StoreError
        with failing_from(k, code), pytest.raises(error, match=words):
            fitted(folder, way)
        met.add(kinds[k])
        assert not (folder / SAVED).exists()
        fitted(folder, way)
        found = left_by(folder, way)
        np.testing.assert_array_equal(found[0], wanted)
        assert found[1] == names
    assert met == set(kinds) or n_points < 10


@pytest.mark.parametrize("way", WAYS)
def test_an_engine_that_finds_no_room_leaves_the_old_file(way, tmp_path):
    fitted(tmp_path, way)
    engine, old = nbi.Engine.load(tmp_path / SAVED), (tmp_path / SAVED).read_bytes()
    with failing_from(7, errno.ENOSPC), pytest.raises(nbi.ArchiveError, match=FULL):
        engine.save(tmp_path / SAVED)
    assert (tmp_path / SAVED).read_bytes() == old


# --- kills ---------------------------------------------------------------------------------------


def killed_at(folder, way, wanted, seconds):
    """Fit in a process that dies at a call, in the midst of it, or after seconds; say whether."""

    def on_call(k, name, call, *args):
        if k == wanted:
            if name == "pwrite":
                handle, data, offset = args
                call(handle, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)

    def act():
        with calls_watched(on_call):
            fitted(folder, way)

    child, until = in_child(act), time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return wanted is not None
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def fits_killed(folder, way, n_kills):
    """Kill fits at random calls and moments until each ends; run by a process of its own.

    It must not have trained anything: what is forked from it could not either.
    """
    import_all()
    folder, rng, n_killed = Path(folder), np.random.default_rng(n_kills), 0
    folder.mkdir()
    began = time.monotonic()
    whole, log = folder / "whole", folder / "kinds.npy"
    child = in_child(lambda: np.save(log, kinds_written(whole, way)))
    assert os.waitpid(child, 0)[1] == 0
    seconds, kinds = time.monotonic() - began, np.load(log)
    wanted, names = left_by(whole, way)
    while n_killed < n_kills:
        here = folder / f"killed {n_killed}"
        for _ in range(rng.integers(1, 6)):
            at_call = rng.integers(2) == 1
            # of a fit that was begun earlier fewer calls are left: some of these never come
            n_killed += killed_at(
                here, way, some_call(kinds, rng) if at_call else None,
                4 * seconds if at_call else rng.uniform(0, seconds),
            )  # fmt: skip
        assert os.waitpid(in_child(lambda here=here: fitted(here, way)), 0)[1] == 0
        found = left_by(here, way)
        np.testing.assert_array_equal(found[0], wanted)
        assert found[1] == names, "something is left behind"
    print(n_killed, "kills,", round(seconds, 2), "s a fit")


@pytest.mark.parametrize("n_kills", [1, pytest.param(100, marks=pytest.mark.faults)])
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_fit_ends_as_an_unbroken_one(way, n_kills, tmp_path):
    code = (
        f"import test_whole_fits as t; t.fits_killed({str(tmp_path / 'of')!r}, {way!r}, {n_kills})"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment, check=False, timeout=1800).returncode == 0
