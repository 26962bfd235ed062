"""Laws of simulating many rows: the same answers wherever they are made, and no way to hang."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch

from nbi_plus import SimulationError, Simulator
from nbi_plus.problem.simulator import parallel, workers
from nbi_plus.problem.simulator.parallel import check_failures, simulate_rows
from nbi_plus.problem.simulator.simulator import FAILED, NONFINITE, OK, SimulationBlock, bind

T = np.linspace(0.0, 1.0, 50)
N = 400
THETA = np.random.default_rng(1).uniform(0.5, 1.5, (N, 3))


@pytest.fixture(autouse=True, scope="module")
def _no_workers_left():
    yield
    workers.release_workers()
    assert not multiprocessing.active_children()


def make_rows(rows):
    return THETA[rows], {"t": T + rows[:, None], "z": rows * 1.0, "scale": 2.0}, {"t", "z"}


def simulate(bound, rows=None, **options):
    """Return what on_block received, in the order of the rows, and the sizes of its blocks."""
    rows = np.arange(N) if rows is None else rows
    x = np.full((N, *bound.shape), np.nan)
    state, errors, sizes = np.full(N, 99, np.uint8), {}, []

    def on_block(done, theta, block):
        np.testing.assert_array_equal(theta, THETA[done])
        assert (state[done] == 99).all()
        x[done], state[done] = block.x, block.state
        errors.update({int(done[i]): text for i, text in block.errors})
        sizes.append(len(done))

    simulate_rows(bound, make_rows, rows, on_block, **options)
    return x, state, errors, sizes


def bound_to(f, **wish):
    rows = np.arange(16)
    return bind(Simulator(f, **wish), *make_rows(rows))


@pytest.fixture(scope="module")
def closure():
    """A bound lambda that carries a closure, an imported module and per-row coordinates."""
    gain = np.array([3.0])
    return bound_to(
        lambda theta, t, z, scale: (
            np.sin(t * np.asarray(theta[:, :1])) * gain * scale + np.exp(-z * 0.01)
        )
    )


@pytest.fixture(scope="module")
def troubled():
    """Row by row: row 3 raises, 7 is NaN, 11 and all from 100 sleep, 45 kills its worker."""
    parent, armed = os.getpid(), False

    def f(theta, z):
        if z == 3 and armed:
            raise ValueError("t0 < 0")
        if z == 11 or z >= 100:
            time.sleep(20.0)
        if z == 45 and os.getpid() != parent:
            os._exit(3)
        return np.full(4, np.nan if z == 7 and armed else float(theta[0]))

    bound = bind(Simulator(f, timeout=0.3), *make_rows(np.arange(10)))
    armed = True
    return bound


# ------------------------------------------------------------------------------ one result


@pytest.mark.parametrize("options", [{}, {"block_rows": 1}, {"block_rows": 37}])
def test_blocks_cover_every_row_once(closure, options):
    x, state, _, sizes = simulate(closure, n_jobs=1, **options)
    whole = closure.run(*make_rows(np.arange(N)))
    np.testing.assert_array_equal(x, whole.x)
    assert (state == OK).all()
    assert sum(sizes) == N
    assert max(sizes) <= options.get("block_rows", N)


def test_a_block_never_spans_a_gap(closure):
    rows = np.array([5, 6, 7, 20, 21, 300])
    seen = []
    simulate_rows(closure, make_rows, rows, lambda done, *_: seen.append(done.tolist()), n_jobs=1)
    assert seen == [[5, 6, 7], [20, 21], [300]]


def test_results_are_identical_in_other_processes(closure):
    here = simulate(closure, n_jobs=1, block_rows=37)
    np.random.seed(3)  # noqa: NPY002
    before = pickle.dumps((random.getstate(), np.random.get_state(), dict(os.environ)))  # noqa: NPY002
    threads = torch.get_num_threads()
    for block_rows in (37, 16):
        there = simulate(closure, n_jobs=2, block_rows=block_rows)
        np.testing.assert_array_equal(there[0], here[0])
        np.testing.assert_array_equal(there[1], here[1])
        assert len(there[3]) == -(-N // block_rows)
    assert pickle.dumps((random.getstate(), np.random.get_state(), dict(os.environ))) == before  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_the_next_call_finds_the_workers_warm(closure):
    simulate(closure, n_jobs=2, block_rows=37)
    pids = {child.pid for child in multiprocessing.active_children()}
    simulate(closure, n_jobs=2, block_rows=37)
    assert {child.pid for child in multiprocessing.active_children()} == pids
    assert len(pids) == 2


def test_an_error_of_on_block_ends_the_workers(closure):
    def full(*_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        simulate_rows(closure, make_rows, np.arange(N), full, n_jobs=2, block_rows=50)
    assert not multiprocessing.active_children()


def test_bad_rows_have_the_same_states_and_errors_everywhere(troubled):
    rows = np.arange(32)
    here, there = (simulate(troubled, rows, n_jobs=n, block_rows=8) for n in (1, 2))
    np.testing.assert_array_equal(here[0], there[0])
    np.testing.assert_array_equal(here[1], there[1])
    assert here[2] == there[2]
    expected = np.full(N, 99, np.uint8)
    expected[rows] = OK
    expected[[3, 11]], expected[7] = FAILED, NONFINITE
    np.testing.assert_array_equal(there[1], expected)
    assert there[2][3] == "ValueError('t0 < 0')"
    assert "TimeoutError" in there[2][11]


def test_a_row_that_kills_its_worker_is_found_and_fails(troubled):
    rows = np.arange(40, 48)
    x, state, errors, _ = simulate(troubled, rows, n_jobs=2, block_rows=4)
    np.testing.assert_array_equal(state[rows], np.where(rows == 45, FAILED, OK))
    assert errors == {45: "the worker process died (exit code 3)"}
    np.testing.assert_array_equal(x[46, 0], np.full(4, THETA[46, 0]))


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C, which a test run in the background has not got."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_stops_promptly_and_keeps_what_is_done(troubled):
    kept = []

    def on_block(rows, *_):
        kept.extend(rows.tolist())
        if len(kept) == 2:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    rows = np.r_[[50, 51], 100:400]  # the slow ones take 0.6 s each: 90 s in two processes
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        simulate_rows(troubled, make_rows, rows, on_block, n_jobs=2, block_rows=1)
    assert time.perf_counter() - start < 45.0
    assert 2 <= len(kept) < len(rows) // 2
    assert not multiprocessing.active_children()


def test_a_stochastic_simulator_is_seeded_by_row():
    noisy = bound_to(lambda theta: [float(value) + random.gauss(0, 1) for value in theta])
    assert noisy.stochastic
    one = simulate(noisy, n_jobs=1, block_rows=50)[0]
    np.testing.assert_array_equal(simulate(noisy, n_jobs=1, block_rows=7)[0], one)
    assert len(np.unique(one - THETA[:, None])) == 3 * N


def test_a_generator_that_would_repeat_in_every_worker_is_refused():
    rng = np.random.default_rng(0)
    carried = bound_to(lambda theta: np.asarray(theta) + rng.normal(size=np.shape(theta)))
    with pytest.raises(ValueError, match="must not carry a random generator"):
        simulate(carried, n_jobs=2)
    assert (simulate(carried, n_jobs=None)[1] == OK).all()


def test_what_cannot_be_pickled_says_so_or_stays_here():
    lock = threading.Lock()

    def f(theta):
        with lock:
            return np.asarray(theta)

    bound = bound_to(f)
    with pytest.raises(TypeError, match="must be picklable"):
        simulate(bound, n_jobs=2)
    assert (simulate(bound, n_jobs=None)[1] == OK).all()


# ------------------------------------------------------------------------------ choices


def test_n_jobs_is_checked_and_chosen_from_the_work(monkeypatch):
    monkeypatch.setattr(parallel.joblib, "cpu_count", lambda: 6)
    assert parallel.workers_for(None, seconds=1.0) == 1
    assert parallel.workers_for(None, seconds=100.0) == 6
    assert parallel.workers_for(-1, seconds=0.0) == 6
    assert parallel.workers_for(np.int64(3), seconds=0.0) == 3
    for wrong in (0, -2, 1.5, True, "2"):
        with pytest.raises(ValueError, match="n_jobs must be None, -1 or a positive integer"):
            parallel.workers_for(wrong, seconds=1.0)


def test_block_rows_are_checked(closure):
    with pytest.raises(ValueError, match="block_rows must be positive, but is 0"):
        simulate(closure, n_jobs=1, block_rows=0)


@pytest.mark.parametrize(
    ("seconds", "length", "vectorized", "rows"),
    [
        (1e-9, 50, True, 4096),
        (1e-3, 50, True, 256),
        (10.0, 50, True, 16),
        (10.0, 50, False, 1),
        (1e-9, 10**5, True, 4),
        (1e-9, 10**8, True, 1),
    ],
)
def test_blocks_take_about_half_a_second_and_little_memory(seconds, length, vectorized, rows):
    def fake(**values):
        return type("Fake", (), values)

    bound = fake(shape=(1, length), seconds_per_row=seconds, vectorized=vectorized)
    assert parallel._rows_per_block(bound) == rows


def test_a_cheap_vectorised_simulator_is_not_slowed_down():
    theta = np.random.default_rng(0).uniform(size=(100_000, 3))
    bound = bind(lambda theta, t: np.asarray(theta)[:, :1] * t, theta[:16], {"t": T})
    n_seen = []
    start = time.process_time()
    simulate_rows(
        bound,
        lambda rows: (theta[rows], {"t": T}, frozenset()),
        np.arange(len(theta)),
        lambda rows, *_: n_seen.append(len(rows)),
    )
    assert sum(n_seen) == 100_000
    assert time.process_time() - start < 1.0


def test_the_bar_is_shown_when_asked_and_hidden_where_there_is_no_terminal(closure, capsys):
    simulate(closure, n_jobs=1)
    simulate(closure, n_jobs=1, progress=False)
    assert capsys.readouterr().err == ""
    simulate(closure, n_jobs=1, progress=True)
    assert "400 of 400" in capsys.readouterr().err


# ------------------------------------------------------------------------------ what goes wrong


class Crew:
    """A crew that answers at once, and whose worker dies on the rows in ``deadly``."""

    n_workers = 2

    def __init__(self, bound, deadly):
        self.bound, self.deadly, self.blocks, self.most = bound, set(deadly), [], 0

    @property
    def n_busy(self):
        return len(self.blocks)

    @property
    def has_room(self):
        return len(self.blocks) < self.n_workers

    def submit(self, rows, job):
        self.blocks.append((rows, job))
        self.most = max(self.most, len(self.blocks))

    def collect(self):
        rows, job = self.blocks.pop()
        died = self.deadly.intersection(rows.tolist())
        yield rows, job, "the worker process died" if died else self.bound.run(*job)


def drive(bound, deadly, block_rows):
    states = np.full(N, 99, np.uint8)

    def finish(rows, theta, block):
        assert isinstance(block, SimulationBlock)
        assert len(theta) == len(rows)
        assert (states[rows] == 99).all()
        states[rows] = block.state

    crew = Crew(bound, deadly)
    parallel._drive(crew, bound, make_rows, parallel._blocks(np.arange(N), block_rows), finish)
    assert crew.most <= crew.n_workers
    return states


@pytest.mark.parametrize("deadly", [[], [0], [399], [17, 18, 200], [0, 64, 128, 192, 256]])
@pytest.mark.parametrize("block_rows", [1, 64, N])
def test_deaths_cost_only_the_rows_that_cause_them(closure, deadly, block_rows):
    np.testing.assert_array_equal(np.flatnonzero(drive(closure, deadly, block_rows)), deadly)


def test_a_row_whose_worker_died_by_accident_is_saved_by_the_second_try(closure):
    class Unlucky(Crew):
        def collect(self):
            for rows, job, answer in super().collect():
                self.deadly -= set(rows.tolist())
                yield rows, job, answer

    states = np.full(N, 99, np.uint8)
    parallel._drive(
        Unlucky(closure, [5, 17]),
        closure,
        make_rows,
        parallel._blocks(np.arange(N), 1),
        lambda rows, _, block: states.__setitem__(rows, block.state),
    )
    assert (states == OK).all()


@pytest.mark.parametrize("deadly", [range(N), range(0, N, 3)])
def test_too_many_deaths_end_the_run_with_a_reason(closure, deadly):
    with pytest.raises(SimulationError, match="workers died") as caught:
        drive(closure, deadly, 64)
    assert caught.value.failed
    assert caught.value.failed[0]["row"] in range(N)


SCRIPT = """
import os

import numpy as np
import torch

from nbi_plus.problem.simulator.parallel import simulate_rows
from nbi_plus.problem.simulator.simulator import bind

theta = np.random.default_rng(0).uniform(size=(40, 3))


here = os.getpid()


def simulator(theta):
    return torch.exp(theta) * (1 if os.getpid() == here else torch.get_num_threads())


bound = bind(simulator, theta)
x = np.empty((40, 1, 3))


def keep(rows, theta, block):
    x[rows] = block.x


def make_rows(rows):
    return theta[rows], {}, frozenset()


simulate_rows(bound, make_rows, np.arange(40), keep, n_jobs=2, block_rows=10, progress=False)
np.testing.assert_array_equal(x[:, 0], torch.exp(torch.tensor(theta)).numpy())
print(bound.backend, bound.differentiable)
"""


def test_a_plain_script_needs_no_guard_and_ends_without_a_word(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = os.path.dirname(os.path.dirname(parallel.__file__))
    path = os.pathsep.join([os.path.dirname(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "torch True\n")


# ------------------------------------------------------------------------------ failures


def test_failures_above_the_fraction_stop_with_the_first_of_them():
    failed = [{"row": 3, "theta": {"t0": -1.0}, "error": "ValueError('t0 < 0')"}]
    check_failures(100, 1000, 0.1, failed)
    check_failures(0, 0)
    with pytest.raises(SimulationError) as caught:
        check_failures(812, 1000, failed=failed)
    assert str(caught.value) == (
        "812 of 1000 simulations failed (first: row 3, theta = {'t0': -1.0}, "
        "ValueError('t0 < 0')). See err.failed."
    )
    assert caught.value.failed == failed
    with pytest.raises(SimulationError, match=r"^2 of 2 simulations failed\. See"):
        check_failures(2, 2)


# ------------------------------------------------------------------------------ dask


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client


def test_a_cluster_gives_the_same_results(closure, client):
    here, there = simulate(closure, n_jobs=1), simulate(closure, client=client, block_rows=37)
    np.testing.assert_array_equal(there[0], here[0])
    assert len(there[3]) == 11


def test_a_cluster_holds_a_bounded_number_of_blocks(closure, client):
    cluster = workers.Cluster(workers.payload_of(closure), client)
    most = 0
    for rows in np.arange(N)[:, None]:
        while not cluster.has_room:
            list(cluster.collect())
        cluster.submit(rows, make_rows(rows))
        most = max(most, cluster.n_busy)
    assert most <= 2 * cluster.n_workers < N
    cluster.close()
    assert cluster.n_busy == 0


def test_a_simulator_that_cannot_run_on_a_cluster_says_why(client):
    class Broken:
        def __reduce__(self):
            return int, ("no number",)

        def __call__(self, theta):
            return np.asarray(theta)

    with pytest.raises(SimulationError, match="no number"):
        simulate(bound_to(Broken()), client=client)


def test_a_cluster_that_lost_its_workers_is_given_up_and_one_without_is_waited_for(monkeypatch):
    class Lost:
        def __init__(self, threads):
            self.threads = threads

        def nthreads(self):
            return self.threads

        def submit(self, *_, **__):
            return None

        def get_executor(self, **_):
            return self

        def shutdown(self, wait):
            assert not wait

    monkeypatch.setattr(workers, "_LOST_SECONDS", -1.0)
    monkeypatch.setattr(workers, "_WAKE_SECONDS", 0.01)
    patient, gone = Lost({}), Lost({"tcp://worker": 2})
    waiting, lost = workers.Cluster(b"", patient), workers.Cluster(b"", gone)
    assert list(waiting.collect()) == list(lost.collect()) == []
    gone.threads = {}
    assert list(waiting.collect()) == []
    with pytest.raises(workers.WorkerError, match="lost all its workers"):
        list(lost.collect())
