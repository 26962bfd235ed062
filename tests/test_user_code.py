"""Laws of user code: it costs its rows, or the run ends with an error of ours, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from misbehaving import (
    BACKENDS,
    COV,
    FAILS,
    HARMLESS,
    KILLS,
    MEAN,
    REFUSED,
    VANISHES,
    Misbehaving,
    cases,
    edge_for,
    ends_here,
    in_words,
    outcome,
    outcomes,
    told_by,
)
from scipy.stats import truncnorm

from nbi_plus import SimulationError, Simulator
from nbi_plus.problem.guard import Guard, LateError, UserCodeError, guarded
from nbi_plus.problem.simulator import workers
from nbi_plus.problem.simulator.parallel import simulated
from nbi_plus.problem.simulator.scouting import bind_elsewhere
from nbi_plus.problem.simulator.simulator import FAILED, bind

TOLD = told_by((Path(__file__).parents[1] / "docs" / "misbehaving.md").read_text())
HERE = [*FAILS, *HARMLESS, *VANISHES, *REFUSED]  # what leaves a process alive
# what always returns five points is trained on, and then refuses data of eight
REFUSALS = ("SimulationError: simulator must", "ValueError: simulator must",
            "ValueError: x must have shape")  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:a warning of user code"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
]


@pytest.fixture(autouse=True, scope="module")
def _no_workers_left():
    yield
    workers.release_workers()
    assert not multiprocessing.active_children()


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C, which a test run in the background has not got."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def check(found, deed, edge):
    """Hold an outcome to the law: the right answer with failures counted, or an error of ours."""
    assert found["changed"] == []
    said = found.get("predict", found["fit"])
    if deed in REFUSED or ":" in said:
        assert said.startswith(REFUSALS)
        return
    loses = deed not in HARMLESS
    spread, middle = np.sqrt(COV[0, 0]), MEAN[0]
    mean = middle + spread * truncnorm.mean(-np.inf, (edge - middle) / spread if loses else np.inf)
    assert said in ("REWEIGHTED", "UNCERTIFIED")
    assert abs(found["mean"][0] - mean) < (0.5 if deed in KILLS else 0.25) * spread
    assert found["beyond"] == 0.0 if loses else found["beyond"] > 0.1
    assert ("SIM_ERRORS" in found["flags"]) >= (deed in FAILS)


# ------------------------------------------------------------------------------ fit and predict


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("deed", HERE)
def test_user_code_costs_its_rows_or_is_refused_and_changes_nothing(deed, backend, capfd):
    start = time.perf_counter()
    found = outcome(deed, backend)
    check(found, deed, edge_for(deed, "late"))
    assert in_words(deed, found) == TOLD[deed, backend, 1, "late"]
    assert time.perf_counter() - start < 60.0
    assert len(capfd.readouterr().err) < 100


@pytest.fixture(scope="module")
def found(request):
    """Return the outcomes of all cases that are asked for."""
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    return outcomes([spec.params["case"] for spec in asked if spec and "case" in spec.params])


@pytest.mark.faults
@pytest.mark.parametrize("case", cases(), ids=lambda case: "-".join(map(str, case)))
def test_what_ends_or_holds_a_process_costs_its_rows_in_workers(case, found):
    deed, backend, n_jobs, where = case
    if ends_here(deed, backend, n_jobs):
        assert "ended" in found[case]
    else:
        check(found[case], deed, edge_for(deed, where))
    assert in_words(deed, found[case]) == TOLD[case]


def test_the_page_of_outcomes_tells_every_case():
    assert list(TOLD) == sorted(TOLD, key=cases().index)
    assert set(TOLD) == set(cases())


# ------------------------------------------------------------------------------ the door


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1.0)


def swallow(act):
    def f():
        try:
            act()
        except BaseException:  # noqa: BLE001
            return "swallowed"

    return f


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("f", [press_ctrl_c, swallow(press_ctrl_c)], ids=["plain", "swallowed"])
def test_ctrl_c_passes_also_where_user_code_swallows_it(f):
    with pytest.raises(KeyboardInterrupt):
        guarded(f)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_passes_whenever_it_comes():
    def work(wait):
        threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)).start()
        with Guard() as guard:
            while True:
                guard.call(lambda: None, 10.0)

    for wait in np.random.default_rng(0).uniform(1e-3, 5e-3, 40):
        with pytest.raises(KeyboardInterrupt):
            work(wait)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.usefixtures("ctrl_c")
def test_what_user_code_raises_is_an_exception_whatever_it_is():
    def own():
        raise KeyboardInterrupt("mine")

    with pytest.raises(UserCodeError, match=r"^KeyboardInterrupt\('mine'\)$"):
        guarded(own)
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)


def test_what_a_handler_of_the_program_raises_passes():
    def stop(*_):
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SystemExit):
            guarded(lambda: signal.raise_signal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("f", [lambda: time.sleep(20), swallow(lambda: time.sleep(20))])
def test_time_runs_out_also_where_user_code_swallows_the_alarm(f):
    with Guard() as guard, pytest.raises(LateError):
        guard.call(f, 0.05)


# ------------------------------------------------------------------------------ workers


def bad_beyond(deed, edge=2.0):
    """Return rows of which one is bad, and a simulator bound to two workers for them."""
    theta = np.random.default_rng(0).uniform(-1, 1, (12, 2))
    wish = Simulator(Misbehaving(deed, "numpy", edge), timeout=0.2)
    bound = bind_elsewhere(wish, theta, {}, frozenset(), n_jobs=2)
    theta[7, 0] = edge + 1
    return bound, theta


@pytest.mark.parametrize(
    "deed", [pytest.param("segmentation fault", marks=pytest.mark.faults), "hangs in compiled code"]
)
def test_a_row_that_ends_or_holds_its_worker_fails_alone(deed):
    bound, theta = bad_beyond(deed)
    start = time.perf_counter()
    block = simulated(bound, (theta[6:9], {}, frozenset()))
    np.testing.assert_array_equal(np.flatnonzero(block.state == FAILED), [1])
    ((row, error),) = block.errors
    assert row == 1
    assert ("took too long" if deed.startswith("hangs") else "exit code -11") in error
    assert time.perf_counter() - start < 120.0


def test_a_simulator_that_ends_its_process_is_tried_in_another_one():
    theta = np.random.default_rng(0).uniform(-1, 1, (8, 2))
    theta[3, 0] = 3.0
    wish = Simulator(Misbehaving("ends its process", "numpy", 2.0))
    bound = bind_elsewhere(wish, theta, {}, frozenset(), n_jobs=2)
    assert bound.f is wish.f
    here = bind(wish, np.delete(theta, 3, 0))
    assert (bound.vectorized, bound.backend, bound.shape) == (True, "numpy", here.shape)
    with pytest.raises(SimulationError, match="must not end or hold its process, but did for each"):
        bind_elsewhere(wish, np.full((1, 2), 3.0), {}, frozenset(), n_jobs=2)


def test_a_worker_that_runs_other_code_than_its_parent_is_found_later_too():
    gain = np.ones(1)
    theta = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    bound = bind(lambda theta: theta[:, :1] * gain, theta[:16])
    job = theta, {}, frozenset()
    np.testing.assert_array_equal(simulated(bound, job, n_jobs=2).x[:, 0, 0], theta[:, 0])
    gain[:] = 3.0  # a notebook's cell run again, while the workers wait
    time.sleep(0.2)
    with pytest.raises(SimulationError, match="in whatever process it runs"):
        simulated(bound, job, n_jobs=2)
    np.testing.assert_array_equal(simulated(bound, job, n_jobs=2).x[:, 0, 0], 3 * theta[:, 0])


ORPHANS = """
import multiprocessing, time
import numpy as np
from nbi_plus.problem.simulator.parallel import simulated
from nbi_plus.problem.simulator.simulator import bind

theta = np.random.default_rng(0).uniform(-1, 1, (64, 2))
bound = bind(lambda theta: theta, theta)
simulated(bound, (theta, {}, frozenset()), n_jobs=2)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(600)
"""


def test_no_worker_outlives_its_parent():
    script = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in script.stdout.readline().split()]
    script.kill()
    script.wait()
    script.stdout.close()
    assert children
    deadline = time.monotonic() + 10.0
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, children))


ENDS = """
import numpy as np
from nbi_plus import Simulator
from nbi_plus.problem.simulator.scouting import bind_elsewhere

bind_elsewhere(Simulator(lambda theta: theta), np.eye(5), {}, frozenset())
"""


def test_a_script_does_not_wait_for_the_worker_that_tried_its_simulator():
    assert 2 * workers._IDLE_SECONDS > 100.0
    subprocess.run([sys.executable, "-c", ENDS], timeout=90.0, check=True)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")
def test_workers_leave_no_files_threads_or_processes():
    theta = np.random.default_rng(0).uniform(-1, 1, (64, 2))
    bound = bind(lambda theta: theta, theta)

    def left():
        simulated(bound, (theta, {}, frozenset()), n_jobs=2)
        workers.release_workers()
        time.sleep(0.1)
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    left()  # what is started once for all
    assert left() == left()
    assert not multiprocessing.active_children()


def test_answers_are_kept_from_user_code_that_edits_them_later():
    buffer = torch.zeros(64, 2, dtype=torch.float64)

    def reuse(theta):
        return buffer[: len(theta)].copy_(theta.mul(1.0))

    bound = bind(reuse, np.random.default_rng(0).uniform(-1, 1, (16, 2)))
    assert bound.backend == "torch"
    one = bound.torch(torch.ones(4, 2, dtype=torch.float64))
    bound.torch(torch.full((4, 2), 7.0, dtype=torch.float64))
    np.testing.assert_array_equal(one.detach().numpy(), 1.0)
