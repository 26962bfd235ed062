"""Laws of simulation campaigns: numbered rows, stores, reuse, failures, kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import nbi_plus as nbi
from nbi_plus import Observations, SimulationError, StoreError
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.simulator import parallel
from nbi_plus.problem.simulator.campaign import Campaign

PRIOR = nbi.Prior({"a": stats.norm(1, 2), "fixed": 3.0, "b": stats.uniform(-1, 2)})
T = np.linspace(0, 1, 4)


def line(theta, t):
    theta, t = np.asarray(theta), np.asarray(t)
    return theta[:, :1] + theta[:, 1:2] * theta[:, 2:3] * t


def one_row(theta, t):
    return [float(theta[0] + theta[1] * theta[2] * moment) for moment in t]


def failing(theta, t):
    """Raise for one row in eight or so, and give NaN for another."""
    theta = np.asarray(theta)
    if (theta[:, 0] > 3.3).any():
        raise ValueError("a is too large")
    return np.where(theta[:, :1] < -1.3, np.nan, line(theta, t))


def campaign(simulator=line, n_objects=1, seed=0, prior=PRIOR, t=T, **options):
    obs = Observations.from_arrays(np.zeros((n_objects, len(T))), t=t).batch()
    return Campaign(prior, bind_simulator(simulator, prior, obs), obs, seed, **options)


def filled(c, n, folder=None, max_failed=0.1):
    with c.open(folder, n) as store:
        c.fill(store, n, max_failed)
        return store.read(slice(0, n), ["z", "theta", "x", "owner", "state"])


def assert_same(one, other):
    for name in one:
        assert np.array_equal(one[name], other[name], equal_nan=True), name


def test_rows_are_prior_draws_and_their_simulations():
    found = filled(campaign(), 2000)
    for column in found["z"].T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    np.testing.assert_allclose(found["theta"], PRIOR.from_latent(found["z"]))
    np.testing.assert_allclose(found["x"][:, 0], line(PRIOR.complete(found["theta"]), T))
    assert not found["state"].any()
    assert not np.array_equal(found["z"], filled(campaign(seed=1), 2000)["z"])


@pytest.mark.parametrize("simulator", [line, one_row])
def test_rows_do_not_depend_on_blocks_or_on_how_many_there_are(simulator, monkeypatch, tmp_path):
    c = campaign(simulator)
    whole = filled(c, 100)
    grown = tmp_path / "grown"
    for n in (13, 60, 100):
        parts = filled(c, n, grown)
    assert_same(parts, whole)
    monkeypatch.setattr(parallel, "_BLOCK_ROWS", 4)
    assert_same(filled(c, 100), whole)
    monkeypatch.setattr(parallel, "_BLOCK_ROWS", 1)
    monkeypatch.setattr(parallel, "_BLOCK_SECONDS", 0.0)
    assert_same(filled(c, 100), whole)


def test_rows_do_not_depend_on_worker_processes(monkeypatch):
    whole = filled(campaign(one_row), 64)
    monkeypatch.setattr(parallel, "_BLOCK_ROWS", 8)
    assert_same(filled(campaign(one_row, n_jobs=2), 64), whole)


def test_row_takes_the_coordinates_of_its_own_object():
    times = np.random.default_rng(0).uniform(0, 5, (3, len(T)))
    found = filled(campaign(n_objects=3, t=times), 20)
    assert found["owner"].tolist() == [i % 3 for i in range(20)]
    model = line(PRIOR.complete(found["theta"]), times[np.arange(20) % 3])
    np.testing.assert_allclose(found["x"][:, 0], model)


def counting(simulator=line):
    calls = []

    def counted(theta, t):
        calls.append(len(theta))
        return simulator(theta, t)

    return counted, calls


def test_stored_simulations_are_not_made_again(tmp_path):
    counted, calls = counting()
    c = campaign(counted)
    first = filled(c, 50, tmp_path)
    for n, new in ((50, 0), (30, 0), (80, 30)):
        calls.clear()
        again = filled(c, n, tmp_path)
        assert sum(calls) <= new + 32
        assert np.array_equal(again["x"][:30], first["x"][:30])
    assert len(list(tmp_path.iterdir())) == 1


def test_edited_simulator_is_refused(tmp_path):
    filled(campaign(), 50, tmp_path)
    edited = campaign(lambda theta, t: line(theta, t) + 1e-4)
    with pytest.raises(StoreError, match=r"must hold simulations of this simulator.*edited\?"):
        filled(edited, 50, tmp_path)
    with pytest.raises(StoreError, match="must hold simulations of this simulator"):
        filled(edited, 80, tmp_path)
    rewritten = campaign(lambda theta, t: (line(theta, t) + 1) - 1)  # the same but for rounding
    filled(rewritten, 50, tmp_path)


def test_what_simulations_depend_on_has_a_file_of_its_own():
    other_prior = nbi.Prior({"a": stats.norm(1, 3), "fixed": 3.0, "b": stats.uniform(-1, 2)})
    other_fixed = nbi.Prior({"a": stats.norm(1, 2), "fixed": 4.0, "b": stats.uniform(-1, 2)})
    names = [
        c.file_name()
        for c in (campaign(), campaign(seed=1), campaign(t=T + 1), campaign(prior=other_prior),
                  campaign(prior=other_fixed),
                  campaign(lambda theta, t: line(theta, np.concatenate([t, t]))))
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    noisy = Observations.from_arrays(np.ones((1, len(T))), 0.3, t=T).batch()
    assert replace(campaign(), conditions=noisy).file_name() == names[0]
    assert campaign().file_name() == names[0]


def test_failed_and_nan_rows_are_stored_as_such():
    found = filled(campaign(failing), 300, max_failed=0.5)
    a = found["theta"][:, 0]
    assert np.array_equal(found["state"] == 1, a > 3.3)
    assert np.array_equal(found["state"] == 2, a < -1.3)
    with campaign(failing).open(None, 300) as store:
        campaign(failing).fill(store, 300, 0.5)
        assert np.array_equal(store.good_rows(300), np.flatnonzero((a <= 3.3) & (a >= -1.3)))


def check_failed(failed, found):
    assert len(failed) <= 100
    rows = [one["row"] for one in failed]
    assert rows == sorted(set(rows))
    for one in failed:
        theta = found["theta"][one["row"]]
        assert list(one["theta"].values()) == pytest.approx(theta.tolist())
        assert theta[0] > 3.3 or theta[0] < -1.3


def test_too_many_failures_are_an_error_that_names_them(tmp_path):
    found = filled(campaign(failing), 300, max_failed=0.5)
    n_bad = int((found["state"] != 0).sum())
    with pytest.raises(SimulationError, match=f"{n_bad} of 300 simulations failed") as caught:
        filled(campaign(failing), 300, tmp_path, max_failed=0.1)
    check_failed(caught.value.failed, found)
    assert {"a is too large" in one["error"] for one in caught.value.failed} == {True, False}
    assert {"not finite" in one["error"] for one in caught.value.failed} == {True, False}
    with pytest.raises(SimulationError, match=f"{n_bad} of 300") as caught:  # nothing is simulated
        filled(campaign(failing), 300, tmp_path, max_failed=0.1)
    check_failed(caught.value.failed, found)
    assert len(caught.value.failed) == min(n_bad, 100)
    filled(campaign(failing), 300, tmp_path, max_failed=n_bad / 300)


def test_hopeless_campaign_stops_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "_BLOCK_ROWS", 16)
    broken, calls = counting(lambda theta, t: line(theta, t) * (np.nan if len(calls) > 20 else 1))
    c = campaign(broken)
    calls.extend([0] * 30)
    with pytest.raises(SimulationError, match="of 10000 simulations failed"):
        filled(c, 10_000, tmp_path, max_failed=0.01)
    with c.open(tmp_path, 10_000) as store:
        assert 100 < store.n_done < 300  # and what was made until then is kept


def test_simulate_returns_good_rows_without_a_store():
    c = campaign(failing)
    rows = np.arange(1000, 1300)
    found = c.simulate(rows, max_failed=0.5)
    expected = PRIOR.from_latent(c.latent(rows))
    good = (expected[:, 0] <= 3.3) & (expected[:, 0] >= -1.3)
    np.testing.assert_allclose(found["theta"], expected[good])
    np.testing.assert_allclose(found["x"][:, 0], line(PRIOR.complete(expected[good]), T))
    assert len(found["z"]) == len(found["owner"]) == good.sum()
    with pytest.raises(SimulationError, match="of 300 simulations failed") as caught:
        c.simulate(rows)
    assert caught.value.failed[0]["row"] >= 1000


LOG = None  # where the slow simulator of a killed process writes which theta it was asked for


def slow(theta, t):
    if LOG is not None:
        os.write(LOG, f"{float(theta[0])!r}\n".encode())
        time.sleep(5e-4)
    return one_row(theta, t)


def simulate_in_child(folder, n, log):
    """Fill a store in a forked process that logs every simulation."""
    child = os.fork()
    if child:
        return child
    global LOG
    c = campaign(slow)
    LOG = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    filled(c, n, folder)
    os._exit(0)


def done_rows(c, folder, n):
    if not (folder / c.file_name()).exists():
        return np.arange(0)
    with c.open(folder, n) as store:
        return np.setdiff1d(np.arange(n), store.missing(n))


def logged_rows(log, row_of):
    return [row_of[float(line)] for line in log.read_text().splitlines()] if log.exists() else []


def simulate_killed(folder, n_kills):
    """Kill the same campaign at random moments, then let it end; run by a process of its own."""
    parallel._BLOCK_SECONDS = 0.01
    folder, rng, n = Path(folder), random.Random(0), 250 + 150 * n_kills
    c = campaign(slow)
    row_of = {a: row for row, a in enumerate(PRIOR.from_latent(c.latent(np.arange(n)))[:, 0])}
    total = 0
    for attempt in range(n_kills + 1):
        before, log = done_rows(c, folder, n), folder.parent / f"{attempt}.log"
        child = simulate_in_child(folder, n, log)
        if attempt < n_kills:
            n_seen = rng.randint(1, 60)  # a moment that a busy machine does not shift
            while not log.exists() or log.read_bytes().count(b"\n") < n_seen:
                time.sleep(rng.uniform(0, 2e-3))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) if attempt < n_kills else status == 0
        made = logged_rows(log, row_of)
        again = np.intersect1d(made, before)
        assert len(again) <= 32, f"rows that were done are simulated again: {again}"
        assert len(made) == len(set(made)), "a row is simulated twice in one run"
        total += len(made)
    assert n < total, "nothing was lost by any kill, so they came between blocks"
    assert_same(filled(campaign(slow), n, folder), filled(campaign(slow), n))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is forked")
@pytest.mark.parametrize("n_kills", [3, pytest.param(10, marks=pytest.mark.statistics)])
def test_killed_campaign_ends_as_an_unbroken_one(n_kills, tmp_path):
    folder = tmp_path / "store"
    code = f"import test_simulations as t; t.simulate_killed({str(folder)!r}, {n_kills})"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment, check=False, timeout=300).returncode == 0
