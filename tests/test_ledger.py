"""Laws of the ledger: no draw is simulated twice, none is lost, and what cannot be is counted."""

import math
import signal
import time

import numpy as np
import pytest
import torch
from densities import normals
from scipy import stats

import nbi_plus as nbi
from nbi_plus import GaussianNoise, Observations, StoreError
from nbi_plus.infer.sequential.ledger import Ledger, OutOfTime
from nbi_plus.io.store import SimulationStore
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.simulator import parallel
from nbi_plus.problem.target import Z_MAX, Target

PRIOR = nbi.Prior({"a": stats.norm(0, 1), "b": stats.norm(0, 1)})
T = np.linspace(0, 1, 4)
FIRST = torch.zeros(1, dtype=torch.int64)


class Line:
    """A line that counts its rows, raises where a > 3, and is NaN where a < -3."""

    def __init__(self, fragile=False):
        self.rows, self.fragile = [], fragile

    def __call__(self, theta, t):
        theta = np.asarray(theta)
        if self.fragile and (theta[:, 0] > 3).any():
            raise ValueError("a is too large")
        self.rows.extend(theta[:, 0].tolist())
        x = theta[:, :1] + theta[:, 1:] * np.asarray(t)
        return np.where(theta[:, :1] < -3, np.nan, x) if self.fragile else x


def make_target(line):
    obs = Observations.from_arrays(np.full((1, 4), 0.5), 0.3, t=T)
    simulator = bind_simulator(line, PRIOR, obs.batch())
    noise = GaussianNoise().bind(True, PRIOR.full_names)
    target = Target(PRIOR, simulator, noise, obs.batch())
    if isinstance(line, Line):
        line.rows.clear()
    return target


def open_store(path, target):
    return SimulationStore.open(path, {}, Ledger.columns(target), 10)


def draws(seed, n=50):
    return normals(seed, 1, n, 2)


def same_evaluation(a, b):
    for name in ("log_prior", "log_likelihood", "failed"):
        torch.testing.assert_close(
            getattr(a, name), getattr(b, name), rtol=1e-12, atol=0, equal_nan=True
        )


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(parallel, "_rows_per_block", lambda bound: 16)


def test_what_it_finds_is_the_target(tmp_path):
    target = make_target(Line())
    with open_store(tmp_path / "s.h5", target) as store:
        for ledger in (Ledger(target), Ledger(target, store)):
            for seed in (1, 2):
                z = draws(seed)
                same_evaluation(ledger.evaluate(z), target.evaluate(z, FIRST))
            assert (ledger.n_simulated, ledger.n_failed, ledger.n_reused) == (100, 0, 0)


def test_every_row_is_simulated_once_and_found_again(tmp_path):
    line = Line()
    target = make_target(line)
    with open_store(tmp_path / "s.h5", target) as store:
        ledger = Ledger(target, store)
        first = [ledger.evaluate(draws(seed)) for seed in (1, 2)]
    assert sorted(line.rows) == sorted(torch.cat([draws(1), draws(2)], 1)[0, :, 0].tolist())
    line.rows.clear()
    with open_store(tmp_path / "s.h5", target) as store:
        again = Ledger(target, store)
        for seed, found in zip((1, 2), first, strict=True):
            same_evaluation(again.evaluate(draws(seed)), found)
        assert not line.rows
        assert (again.n_simulated, again.n_reused) == (100, 100)
        again.evaluate(draws(3, 7))
        assert len(line.rows) == 7
        assert (again.n_simulated, again.n_reused) == (107, 100)


def test_a_store_of_other_draws_is_refused(tmp_path):
    target = make_target(Line())
    with open_store(tmp_path / "s.h5", target) as store:
        Ledger(target, store).evaluate(draws(1))
        other = draws(1)
        other[0, 30, 1] += 1e-12
        for z in (other, draws(2), draws(1).flip(1)):
            with pytest.raises(StoreError, match="must hold the draws of this fit"):
                Ledger(target, store).evaluate(z)


def test_draws_beyond_the_prior_are_neither_simulated_nor_stored(tmp_path):
    line = Line()
    target = make_target(line)
    z = draws(1)
    z[0, 3, 0], z[0, 7, 1], z[0, 9, 0], z[0, 11, 1] = Z_MAX + 1e-9, -99.0, math.nan, math.inf
    outside = ~(z.abs() <= Z_MAX).all(-1)
    for _ in range(2):
        with open_store(tmp_path / "s.h5", target) as store:
            ledger = Ledger(target, store)
            found = ledger.evaluate(z)
            assert store.n_done == 46
        assert torch.equal(found.log_likelihood == -math.inf, outside)
        assert torch.equal(found.log_prior == -math.inf, outside)
        assert not found.failed.any()
        assert (ledger.n_simulated, ledger.n_failed) == (46, 0)
    assert len(line.rows) == 46
    assert (Ledger(target).evaluate(z + 99).log_prior == -math.inf).all()
    assert len(line.rows) == 46


def test_failures_and_nan_are_told_apart_and_counted_also_when_found_again(tmp_path):
    target = make_target(Line(fragile=True))
    z = 2 * draws(1)
    fails, is_nan = z[..., 0] > 3, z[..., 0] < -3
    assert fails.any()
    assert is_nan.any()
    for _ in range(2):
        with open_store(tmp_path / "s.h5", target) as store:
            ledger = Ledger(target, store)
            found = ledger.evaluate(z)
        assert torch.equal(found.failed, fails)
        assert torch.equal(found.log_likelihood.isnan(), is_nan)
        assert (found.log_likelihood[fails] == -math.inf).all()
        assert (ledger.n_simulated, ledger.n_failed) == (50, int(fails.sum()))


def test_the_pool_holds_what_was_kept_in_order():
    target = make_target(Line(fragile=True))
    ledger, z = Ledger(target), [draws(1, 5), draws(2, 6), draws(3, 7)]
    z[1][0, 2, 0] = 99.0
    models = target.simulate(z[0], FIRST)
    adopted = ledger.adopt(z[0], models, torch.zeros(1, 5, dtype=torch.bool))
    same_evaluation(adopted, target.evaluate(z[0], FIRST))
    ledger.evaluate(z[1], keep=True)
    ledger.evaluate(z[2])
    kept, x = ledger.pool()
    assert torch.equal(kept, torch.cat(z[:2], 1)[0])
    inside = (kept.abs() <= Z_MAX).all(1)
    torch.testing.assert_close(x[inside], target.simulate(kept[None, inside], FIRST)[0])
    assert x[~inside].isnan().all()
    assert (ledger.n_simulated, ledger.n_reused) == (17, 5)
    ledger.forget()
    ledger.evaluate(z[2], keep=True)
    assert torch.equal(ledger.pool()[0], z[2][0])


@pytest.mark.usefixtures("small_blocks")
def test_what_was_simulated_when_time_ran_out_is_found_again(tmp_path):
    line = Line()
    target = make_target(line)
    with open_store(tmp_path / "s.h5", target) as store:
        Ledger(target, store).evaluate(draws(1))
        late = Ledger(target, store, deadline=time.perf_counter())
        late.evaluate(draws(1))  # nothing is left to simulate
        with pytest.raises(OutOfTime):
            late.evaluate(draws(2))
        assert store.n_done == 50 + 16
    with open_store(tmp_path / "s.h5", target) as store:
        ledger = Ledger(target, store, deadline=time.perf_counter() + 1e6)
        line.rows.clear()
        for seed in (1, 2):
            same_evaluation(ledger.evaluate(draws(seed)), target.evaluate(draws(seed), FIRST))
            assert len(line.rows) == (50 if seed == 1 else 34 + 100)
        assert ledger.n_reused == 66


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_round_leaves_its_finished_blocks(tmp_path):
    calls = []

    def interrupted(theta, t):
        calls.append(len(theta))
        if len(calls) == 3 and armed:
            signal.raise_signal(signal.SIGINT)
        return theta[:, :1] + theta[:, 1:] * np.asarray(t)

    armed = []
    target = make_target(interrupted)
    calls.clear()
    armed.append(True)
    with open_store(tmp_path / "s.h5", target) as store:
        with pytest.raises(KeyboardInterrupt):
            Ledger(target, store).evaluate(draws(1))
        assert store.n_done == 32
        armed.clear()
        ledger = Ledger(target, store)
        same_evaluation(ledger.evaluate(draws(1)), target.evaluate(draws(1), FIRST))
        assert ledger.n_reused == 32
