"""Laws of identity: no stored simulation meets another simulator, no row has two answers."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import LinearGaussian

import nbi_plus as nbi
from nbi_plus import FlowConfig, GaussianNoise, Observations, SimulationError, Simulator, StoreError
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.simulator import comparing, parallel, workers
from nbi_plus.problem.simulator.campaign import Campaign
from nbi_plus.problem.simulator.parallel import simulate_rows
from nbi_plus.problem.simulator.simulator import bind
from nbi_plus.problem.target import Target

PROBLEM = LinearGaussian(2, 8, sigma=0.3)
FAR = np.array([3.5, 0.5])  # where the prior hardly ever is
X = FAR @ PROBLEM.design + 0.3 * np.random.default_rng(4).normal(size=8)
ROUNDS = {"n_sims": 300, "n_rounds": 8, "n_epochs": 5, "ess_target": 400}
TINY = FlowConfig(n_blocks=2, hidden=16, n_layers=1, n_mog=1)


class Counted:
    """The problem's simulator, edited where the first parameter is above a limit; it counts."""

    def __init__(self, above=np.inf, shift=0.3):
        self.above, self.shift, self.n_rows = above, shift, 0

    def __call__(self, theta):
        self.n_rows += len(theta)
        return theta @ PROBLEM.design + np.where(theta[:, :1] > self.above, self.shift, 0.0)


def engine_for(simulator, path, **options):
    options = {"noise": PROBLEM.sigma, "featurizer": "resnet", "flow": TINY, "n_jobs": 1} | options
    return nbi.Engine(simulator, PROBLEM.prior, path=path, **options)


@pytest.fixture(autouse=True, scope="module")
def _no_workers_left():
    yield
    workers.release_workers()


# ------------------------------------------------------------------------------ stores


def test_amortized_store_refuses_a_simulator_edited_in_a_corner_of_the_prior(tmp_path):
    engine_for(Counted(), tmp_path).fit(n_sims=300, n_epochs=1)
    with pytest.raises(StoreError, match=r"simulations-\w+\.h5 must hold simulations of this.*edi"):
        engine_for(Counted(above=1.2), tmp_path).fit(n_sims=300, n_epochs=1)


def test_rounds_refuse_a_simulator_edited_where_the_posterior_lies(tmp_path):
    engine_for(Counted(), tmp_path).fit(x_obs=X, **ROUNDS)
    with pytest.raises(StoreError, match=r"simulations\.h5 must hold.*delete the folder"):
        engine_for(Counted(above=3.0), tmp_path).fit(x_obs=X, **ROUNDS)


@pytest.mark.parametrize("method", ["snpe-is", "apt", "tsnpe"])
def test_published_methods_refuse_an_edited_simulator(method, tmp_path):
    theta = PROBLEM.prior.sample(300, np.random.default_rng(0))
    options = ROUNDS | {"n_rounds": 3, "n_epochs": 2, "ess_target": 1e6, "method": method}
    options |= {"theta": theta, "x": theta @ PROBLEM.design, "x_obs": X}
    engine_for(Counted(), tmp_path).fit(**options)
    with pytest.raises(StoreError, match=r"simulations\.h5 must hold.*delete the folder"):
        engine_for(Counted(above=-np.inf), tmp_path).fit(**options)


def test_rounds_after_an_amortized_network_refuse_an_edited_simulator(tmp_path):
    engine = engine_for(Counted(), tmp_path).fit(n_sims=500, n_epochs=2)
    engine.fit(x_obs=X, warm_start=True, **ROUNDS)
    engine.simulator = Counted(above=-np.inf)
    with pytest.raises(StoreError, match="Was the simulator edited"):
        engine.fit(x_obs=X, warm_start=True, **ROUNDS)


def test_simulations_given_with_other_x_have_a_fit_of_their_own(tmp_path):
    theta = PROBLEM.prior.sample(500, np.random.default_rng(0))
    x = theta @ PROBLEM.design
    mine, other = np.zeros(8), np.full(8, 3.0)  # the same draws, simulated by other people
    answers = [
        engine_for(Counted(), tmp_path).fit(theta=theta, x=x + shift, x_obs=X, **ROUNDS).posterior_
        for shift in (mine, other, mine)
    ]
    assert len(list(tmp_path.glob("sequential-*"))) == 2
    assert not np.array_equal(answers[0].log_weights, answers[1].log_weights)
    assert np.array_equal(answers[0].log_weights, answers[2].log_weights)


def test_the_same_simulator_finds_everything_again(tmp_path):
    first = engine_for(Counted(), tmp_path).fit(x_obs=X, **ROUNDS)
    simulator = Counted()
    bind_simulator(simulator, PROBLEM.prior, first.sequential_.observations.batch())
    to_bind, simulator.n_rows = simulator.n_rows, 0
    again = engine_for(simulator, tmp_path).fit(x_obs=X, **ROUNDS)
    audit = again.posterior_.rungs[-1].n_apart
    assert 0 < audit < 20_000
    # of the prior draws, of the rounds, and of a batch that was larger than any before
    assert simulator.n_rows <= to_bind + audit + 3 * 32
    assert np.array_equal(again.posterior_.samples, first.posterior_.samples)
    assert [r.n_total for r in again.rounds_] == [r.n_total for r in first.rounds_]


def test_rounding_of_another_machine_is_no_edit(tmp_path):
    first = engine_for(Counted(), tmp_path).fit(x_obs=X, **ROUNDS)
    elsewhere = engine_for(lambda theta: (theta @ PROBLEM.design) * (1 + 1e-8), tmp_path)
    assert np.array_equal(
        elsewhere.fit(x_obs=X, **ROUNDS).posterior_.samples, first.posterior_.samples
    )


def campaign(simulator, **known):
    conditions = Observations.from_arrays(np.zeros((1, 8))).batch()
    bound = replace(bind_simulator(simulator, PROBLEM.prior, conditions), **known)
    return Campaign(PROBLEM.prior, bound, conditions, seed=0, n_jobs=1)


def filled(c, folder, n=100):
    with c.open(folder, n) as store:
        c.fill(store, n, 0.5)
        return store.read(slice(0, n), ["x"])["x"]


@pytest.mark.parametrize(("seconds", "most"), [(1e-3, 32), (2.0, 8)])
def test_an_expensive_simulator_is_asked_for_fewer_rows(seconds, most, tmp_path):
    simulator = Counted()
    c = campaign(simulator, seconds_per_row=seconds)
    filled(c, tmp_path)
    simulator.n_rows = 0
    filled(c, tmp_path)
    assert most - 4 <= simulator.n_rows <= most


def test_rows_that_are_not_finite_count_and_rows_that_failed_do_not(tmp_path):
    def some(theta, wrong=np.nan):
        if 0.6 < theta[0] < 0.8:
            raise ValueError("no model")
        return theta @ PROBLEM.design + (wrong if theta[0] > 0.8 else 0.0)

    filled(campaign(some), tmp_path)
    filled(campaign(some), tmp_path)
    with pytest.raises(StoreError, match="differ by up to inf"):
        filled(campaign(lambda theta: some(theta, wrong=0.0)), tmp_path)


def test_stochastic_rows_are_compared_where_a_seed_fixes_them(tmp_path):
    def one(theta, shift=0.0):
        return theta[0] + shift + np.random.normal(size=8)

    def many(theta, shift=0.0):
        return theta[:, :1] + shift + np.random.normal(size=(len(theta), 8))

    for name, f in (("one", one), ("many", many)):
        c = campaign(f)
        assert c.simulator.stochastic
        assert np.array_equal(filled(c, tmp_path / name), filled(c, tmp_path / name))
    with pytest.raises(StoreError, match="edited"):
        filled(campaign(lambda theta: one(theta, 1.0)), tmp_path / "one")
    filled(campaign(lambda theta: many(theta, 1.0)), tmp_path / "many")  # nothing tells


def test_a_checkpoint_is_not_resumed_with_other_simulations(tmp_path):
    theta = PROBLEM.prior.sample(100, np.random.default_rng(0))
    x = theta @ PROBLEM.design

    def stop(history):
        raise KeyboardInterrupt

    for row in (None, 3, 4, 5, 6):  # nine rows of ten are not held out
        edited = x.copy()
        edited[[] if row is None else row] += 1.0
        with pytest.raises(KeyboardInterrupt):
            engine_for(None, tmp_path).fit(theta=theta, x=edited, n_epochs=2, callback=stop)
    assert len(list(tmp_path.glob("training-*.h5"))) == 5


# ------------------------------------------------------------------------------ other rows


def late(limit, xp=np):
    """Return vectorised code that is wrong from the row of that number on."""
    design = PROBLEM.design if xp is np else torch.tensor(PROBLEM.design)

    def simulator(theta):
        rows = xp.arange(len(theta))[:, None]
        return theta @ design + xp.where(rows < limit, 0.0, 5.0) + 0.0 * theta[:, :1]

    return simulator


CODE = [pytest.param(np, id="numpy"), pytest.param(torch, id="torch")]


@pytest.mark.parametrize("xp", CODE)
def test_rows_that_are_wrong_beside_many_others_are_refused(xp):
    with pytest.raises(SimulationError, match="each row whatever other rows there are") as caught:
        engine_for(late(64, xp), None).fit(n_sims=300, n_epochs=1)
    assert [one["row"] for one in caught.value.failed] == list(range(64, 512))


@pytest.mark.parametrize("xp", CODE)
def test_a_larger_block_than_ever_is_compared_when_it_comes(xp):
    theta = np.random.default_rng(0).normal(size=(3000, 2))
    bound = bind(Simulator(late(1000, xp), vectorized=True), theta[:16])
    assert bound.backend == xp.__name__
    assert np.isfinite(bound.run(theta[:800]).x).all()
    with pytest.raises(SimulationError, match="whatever other rows") as caught:
        bound.run(theta)
    rows = [one["row"] for one in caught.value.failed]
    assert min(rows) >= 1000
    assert len(rows) >= 4
    assert np.array_equal(caught.value.failed[0]["theta"], theta[rows[0]])


@pytest.mark.parametrize("xp", CODE)
def test_the_target_does_not_weigh_rows_that_are_wrong_beside_others(xp):
    data = Observations.from_arrays(X[None], 0.3).batch()
    simulator = bind_simulator(late(1000, xp), PROBLEM.prior, data)
    noise = GaussianNoise().bind(True, PROBLEM.prior.full_names)
    target = Target(PROBLEM.prior, simulator, noise, data)
    first = torch.zeros(1, dtype=torch.int64)
    z = torch.as_tensor(np.random.default_rng(0).normal(size=(1, 4000, 2)))
    assert target.evaluate(z[:, :900], first).log_likelihood.isfinite().all()
    with pytest.raises(SimulationError, match="whatever other rows"):
        target.evaluate(z, first)


def test_single_precision_is_no_other_answer():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 256), torch.nn.Tanh(), torch.nn.Linear(256, 256), torch.nn.Tanh(),
        torch.nn.Linear(256, 50),
    )  # fmt: skip
    theta = np.random.default_rng(0).normal(size=(5000, 2))
    bound = bind(net, theta[:16])
    assert np.isfinite(bound.run(theta).x).all()
    assert bound.compared.rows == 5000


# ------------------------------------------------------------------------------ other processes

GAIN = 1.0


def with_global(theta):
    return theta * GAIN


def with_environment(theta):
    return theta * float(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize("f", [with_global, with_environment])
def test_workers_that_answer_otherwise_are_refused(f, monkeypatch):
    monkeypatch.setattr(f"{__name__}.GAIN", 2.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    theta = np.random.default_rng(0).uniform(1, 2, (64, 3))
    bound = bind(f, theta[:16])
    kept = []

    def simulate(n_jobs):
        simulate_rows(
            bound, lambda rows: (theta[rows], {}, frozenset()), np.arange(64),
            lambda rows, *_: kept.append(rows), n_jobs=n_jobs, block_rows=64,
        )  # fmt: skip

    simulate(1)
    kept.clear()
    with pytest.raises(SimulationError, match="each row in whatever process it runs") as caught:
        simulate(2)
    assert not kept
    row = caught.value.failed[0]["row"]
    assert np.array_equal(caught.value.failed[0]["theta"], theta[row])


class Elsewhere:
    """Workers that answer as this process does, one after the other."""

    n_workers, has_room = 1, True

    def __init__(self, bound):
        self.bound, self.blocks = bound, []

    @property
    def n_busy(self):
        return len(self.blocks)

    def submit(self, rows, job):
        self.blocks.append((rows, job, self.bound.run(*job)))

    def collect(self):
        yield self.blocks.pop()


@pytest.mark.parametrize(("seconds", "n"), [(1e-6, 8), (30.0, 1)])
def test_workers_are_compared_once_and_cost_little(seconds, n):
    calls = []

    def f(theta):
        calls.append(1)
        return theta[0] * np.ones(3)

    theta = np.random.default_rng(0).uniform(1, 2, (64, 3))
    bound = replace(bind(f, theta[:16]), seconds_per_row=seconds)
    for more in (n, 0):
        calls.clear()
        blocks = parallel._blocks(np.arange(64), 16)
        parallel._drive(
            Elsewhere(bound), bound, lambda rows: (theta[rows], {}, frozenset()), blocks,
            lambda *_: None,
        )  # fmt: skip
        assert len(calls) == 64 + more


def test_wrong_rows_in_a_worker_are_named_by_the_same_error():
    theta = np.random.default_rng(0).normal(size=(3000, 2))
    bound = bind(Simulator(late(1000), vectorized=True), theta[:16])
    with pytest.raises(SimulationError, match="^simulator must give each row whatever") as caught:
        simulate_rows(
            bound, lambda rows: (theta[rows], {}, frozenset()), np.arange(3000), lambda *_: None,
            n_jobs=2, block_rows=3000,
        )  # fmt: skip
    assert caught.value.failed


# ------------------------------------------------------------------------------ comparing


def test_agreement_is_relative_to_the_largest_value_of_a_channel():
    a = np.array([[[1e6, 0.0], [1.0, np.nan]]])
    assert comparing.same(a, a + 0.5, 1e-6) is False
    assert comparing.agreement(a, a + 0.5, 1e-6).tolist() == [[[True, True], [False, True]]]
    assert comparing.largest_gap(a, a + 0.5) == 0.5
    assert comparing.largest_gap(a, np.zeros((1, 2, 2))) == np.inf
    assert comparing.few_of(3) == [2, 1, 0]
    assert comparing.few_of(1000)[0] == 999
