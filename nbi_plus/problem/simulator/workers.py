"""Where blocks of simulations run besides this process: worker processes, or a Dask cluster."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from multiprocessing import connection
from typing import Any, Protocol

import numpy as np
import torch
from joblib import wrap_non_picklable_objects
from joblib.externals.loky.backend import get_context
from joblib.parallel import ParallelBackendBase
from numpy.typing import NDArray

from nbi_plus.problem.simulator.orphans import end_with
from nbi_plus.problem.simulator.simulator import BoundSimulator, SimulationBlock, SimulationError

Job = tuple[NDArray[np.float64], Mapping[str, NDArray[Any]], frozenset[str]]
Answer = SimulationBlock | str  # a text tells how the worker died

_IDLE_SECONDS = 60.0  # after which workers without work are ended, or later end themselves
_STALE_SECONDS = 0.1  # after which somebody may have changed what the simulator reads
_WAKE_SECONDS = 1.0  # how often the workers are looked at while nothing arrives
_JOIN_SECONDS = 5.0
_GRACE_SECONDS = 2.0  # that a worker may be late, which keeps its own time: compiled code does not
_HANGS = "TimeoutError('took too long, inside code that cannot be interrupted')"
_LOST_SECONDS = 300.0  # after which a cluster that has lost its workers is given up
_READY = b"ready"  # the first thing a worker says: until it reads, a large job would block us
_IMPORTABLE = "Are the simulator's modules importable there? Use n_jobs=1 to see the error here."


class WorkerError(RuntimeError):
    """A worker cannot run the simulator at all."""


class Served(Protocol):
    """What a worker holds, a dataclass: a simulator, or the trial of one."""

    on_call: Callable[[float], None] | None

    def run(self, theta: NDArray, coords: Mapping[str, NDArray], per_row: frozenset[str]) -> Any:  # noqa: ANN401
        """Return the answer to a job."""


class Crew(Protocol):
    """Workers that take blocks of rows and answer in any order."""

    @property
    def n_workers(self) -> int:
        """How many blocks run at a time."""

    @property
    def n_busy(self) -> int:
        """How many blocks have been taken and not answered."""

    @property
    def has_room(self) -> bool:
        """Whether another block may be submitted, so that memory stays bounded."""

    def submit(self, rows: NDArray[np.int64], job: Job) -> None:
        """Take a block."""

    def collect(self) -> Iterator[tuple[NDArray[np.int64], Job, Answer]]:
        """Wait, and yield the blocks that were answered; perhaps none."""

    def close(self) -> None:
        """Stop at once."""


def payload_of(served: Served) -> bytes:
    """Return a simulator as bytes that another process can load: lambdas and closures included."""
    try:
        return pickle.dumps(wrap_non_picklable_objects(served, keep_wrapper=False))
    except Exception as error:  # pickling runs user code, which may raise anything
        raise TypeError(
            f"simulator must be picklable to run in other processes, but {error!r}. "
            "Let it open files and connections inside the call, or use n_jobs=1."
        ) from error


def loaded(payload: bytes) -> Served:
    """Return the simulator of `payload_of`, which this very run made."""
    return pickle.loads(payload)  # noqa: S301  own bytes, through own pipe


def _serve(pipe: connection.Connection, payload: bytes, parent: int) -> None:
    """Answer jobs until the parent is gone or has nothing to do: the life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    end_with(parent)
    _settle_in()
    simulator = functools.cache(loaded)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send(_READY)
        while pipe.poll(2 * _IDLE_SECONDS):
            job = pipe.recv()
            if isinstance(job, bytes):
                payload = job
                continue
            try:
                answer = replace(simulator(payload), on_call=_Beats(pipe)).run(*job)
            except SimulationError as error:
                answer = error
            except BaseException as error:  # noqa: BLE001  the parent reports it
                answer = WorkerError(f"{error!r}. {_IMPORTABLE}")
            pipe.send(answer)


def _settle_in() -> None:
    """Take little of the machine, be the first to go when memory is short, and do not print."""
    torch.set_num_threads(1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # Linux
        score.write("1000")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


@dataclass
class _Beats:
    """Tells the parent how long the next call of user code may take, but not for each of many."""

    pipe: connection.Connection
    until: float = -np.inf

    def __call__(self, seconds: float) -> None:
        now = time.monotonic()
        if now + seconds > self.until:
            self.until = now + 1.5 * seconds
            self.pipe.send(1.5 * seconds)


@dataclass
class _Worker:
    """One worker process and the block it holds."""

    process: Any
    pipe: connection.Connection
    block: tuple[NDArray[np.int64], Job] | None = None
    deadline: float = np.inf  # of the call it is in
    is_new: bool = True  # its answers were not compared yet

    @classmethod
    def start(cls, payload: bytes) -> _Worker:
        ours, theirs = connection.Pipe()
        process = get_context("loky").Process(
            target=_serve,
            args=(theirs, payload, os.getpid()),
            env=dict.fromkeys(ParallelBackendBase.MAX_NUM_THREADS_VARS, "1"),
        )
        process.start()
        theirs.close()  # the worker's end: when it dies, ours reads the end of the file
        return cls(process, ours)

    def answer(self) -> Answer | WorkerError | SimulationError | None:
        """Return what has arrived or become of it, or None while it is at work."""
        alive = self.process.is_alive()
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, float):
                    self.deadline = time.monotonic() + message + _GRACE_SECONDS
                elif message == _READY:
                    self.pipe.send(self.block[1])
                else:
                    self.deadline = np.inf
                    return message
        except (EOFError, OSError):
            alive = False
        if alive and time.monotonic() > self.deadline:
            return _HANGS
        if alive:
            return None
        self.process.join(_JOIN_SECONDS)
        return f"the worker process died (exit code {self.process.exitcode})"

    def kill(self) -> None:
        """End the process whatever it is doing; it has nothing to clean up."""
        self.pipe.close()
        if self.process.is_alive():
            if sys.platform == "win32":
                self.process.terminate()
            else:
                os.kill(self.process.pid, signal.SIGKILL)


class Processes:
    """Worker processes of this machine that hold one simulator, each with one block at a time.

    They are loky's, which does not import the main script again, so scripts need no guard and
    notebooks work; and each has its own pipe, so that a death is known to belong to one block.
    """

    def __init__(self, bound: Served, payload: bytes, n_workers: int) -> None:
        self.n_workers = n_workers
        self._bound = bound
        self._payload = payload
        self._workers: list[_Worker] = []
        self._owner = os.getpid()

    def serves(self, bound: BoundSimulator) -> bool:
        """Tell whether these workers hold this very simulator, and are this process's own."""
        return self._bound is bound and self._owner == os.getpid()

    @property
    def n_busy(self) -> int:
        """How many blocks have been taken and not answered."""
        return sum(worker.block is not None for worker in self._workers)

    @property
    def has_room(self) -> bool:
        """Whether a worker is idle."""
        return self.n_busy < self.n_workers

    def submit(self, rows: NDArray[np.int64], job: Job) -> None:
        """Give a block to an idle worker, starting one where there is none."""
        idle = next((worker for worker in self._workers if worker.block is None), None)
        if idle is not None:
            try:
                idle.pipe.send(job)
            except OSError:  # it ended itself, having had nothing to do
                self._drop(idle)
            else:
                idle.block = rows, job
                return
        fresh = _Worker.start(self._payload)
        fresh.block = rows, job  # sent when it is ready
        self._workers.append(fresh)

    def collect(self) -> Iterator[tuple[NDArray[np.int64], Job, Answer]]:
        """Wait, and yield the blocks that were answered or whose worker died."""
        busy = [worker for worker in self._workers if worker.block is not None]
        connection.wait([worker.pipe for worker in busy], _WAKE_SECONDS)
        for worker in busy:
            answer = worker.answer()
            if answer is not None:
                (rows, job), worker.block = worker.block, None
                if isinstance(answer, (WorkerError, SimulationError)):
                    raise answer
                # it may have imported other code than those before it
                if worker.is_new and isinstance(answer, SimulationBlock):
                    self._bound.compared.elsewhere = worker.is_new = False
                if isinstance(answer, str):
                    self._drop(worker)
                yield rows, job, answer

    def turn_to(self, bound: BoundSimulator, payload: bytes) -> None:
        """Have idle workers hold another simulator."""
        self._bound, self._payload = bound, payload
        for worker in self._workers:
            worker.pipe.send(payload)

    def doubt(self) -> None:
        """Have the next answer of each worker compared with that of this process."""
        for worker in self._workers:
            worker.is_new = True

    def close(self) -> None:
        """End all workers at once, unless they belong to the process this one was forked from."""
        if self._owner != os.getpid():
            return
        for worker in self._workers:
            worker.kill()
        while self._workers:
            self._workers.pop().process.join(_JOIN_SECONDS)

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        worker.process.join(_JOIN_SECONDS)
        self._workers.remove(worker)


# one crew outlives its call, so that the next call finds it warm: since when, and until when
_kept: list[tuple[Processes, float, threading.Timer]] = []


def processes(bound: BoundSimulator, payload: bytes, n_workers: int) -> Processes:
    """Return a crew for this very simulator, the one kept from the last call if it fits.

    Another function object, even of the same name, gets new processes: an edited and reloaded
    module would otherwise live on in the old ones.
    """
    with contextlib.suppress(IndexError):  # none is kept, or another thread took it
        crew, since, timer = _kept.pop()
        timer.cancel()
        if crew.serves(bound):
            crew.n_workers = n_workers
            if time.monotonic() - since > _STALE_SECONDS:
                crew.doubt()
            return crew
        crew.close()
    return Processes(bound, payload, n_workers)


def keep(crew: Processes) -> None:
    """Keep an idle crew for the next call; if none comes it is ended."""
    release_workers()
    _end_workers_at_exit()
    timer = threading.Timer(_IDLE_SECONDS, release_workers)
    timer.daemon = True
    timer.start()
    _kept.append((crew, time.monotonic(), timer))


def release_workers() -> None:
    """End the worker processes that wait for further simulations; they also do so by themselves."""
    with contextlib.suppress(IndexError):
        while True:
            crew, _, timer = _kept.pop()
            timer.cancel()
            crew.close()


@functools.cache
def _end_workers_at_exit() -> None:
    """Before multiprocessing waits for its children at exit: ours wait for us."""
    atexit.register(release_workers)


def _run_on_cluster(bound: BoundSimulator, job: Job) -> SimulationBlock:
    return bound.run(*job)


class Cluster:
    """The workers of a Dask cluster, reached through a ``dask.distributed.Client`` alone.

    Two blocks for each thread of the cluster are out at a time, so that none waits for this
    process. Time limits are not enforced there, as Dask runs tasks outside the main thread. A
    cluster that has no workers yet is waited for, as long as it takes.
    """

    def __init__(self, payload: bytes, client: Any) -> None:  # noqa: ANN401
        self.n_workers = max(4, sum(client.nthreads().values()))  # more may still be on their way
        self._client = client
        self._heard, self._had_workers = time.monotonic(), bool(client.nthreads())
        self._executor: Executor = client.get_executor(pure=False)
        self._blocks: dict[Future[SimulationBlock], tuple[NDArray[np.int64], Job]] = {}
        with warnings.catch_warnings():
            # Dask warns of large payloads; scattered ones would be lost with the worker they are on
            warnings.simplefilter("ignore", UserWarning)
            self._bound = client.submit(loaded, payload, pure=False)

    @property
    def n_busy(self) -> int:
        """How many blocks have been taken and not answered."""
        return len(self._blocks)

    @property
    def has_room(self) -> bool:
        """Whether fewer than two blocks for each thread are out."""
        return len(self._blocks) < 2 * self.n_workers

    def submit(self, rows: NDArray[np.int64], job: Job) -> None:
        """Send a block."""
        self._blocks[self._executor.submit(_run_on_cluster, self._bound, job)] = rows, job

    def collect(self) -> Iterator[tuple[NDArray[np.int64], Job, Answer]]:
        """Wait, and yield the blocks that were answered or that killed their workers."""
        done, _ = wait(self._blocks, _WAKE_SECONDS, FIRST_COMPLETED)
        self._check_alive(bool(done))
        for future in done:
            rows, job = self._blocks.pop(future)
            error = None if future.cancelled() else future.exception()
            if future.cancelled():
                raise WorkerError("the cluster cancelled them.")
            if error is None:
                yield rows, job, future.result()
            elif type(error).__name__ == "KilledWorker":  # Dask's, known by name, not imported
                yield rows, job, f"the worker process died ({error!r:.200})"
            elif isinstance(error, SimulationError):
                raise error
            else:
                raise WorkerError(f"{error!r}. {_IMPORTABLE}") from error

    def _check_alive(self, answered: bool) -> None:
        """Raise when the workers there were are gone: a cluster may give up restarting them."""
        quiet = time.monotonic() - self._heard
        if answered or (quiet > _LOST_SECONDS and self._client.nthreads()):
            self._heard, self._had_workers = time.monotonic(), True
        elif quiet > _LOST_SECONDS and self._had_workers:
            raise WorkerError(f"the cluster has lost all its workers, for {quiet:.0f} s now.")

    def close(self) -> None:
        """Cancel what is out."""
        self._blocks.clear()
        self._executor.shutdown(wait=False)
