"""Simulate many numbered rows: here, in worker processes or on a Dask cluster, with one result."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from nbi_plus.problem.simulator.comparing import N_FEW, check_elsewhere, few_of, same
from nbi_plus.problem.simulator.simulator import (
    FAILED,
    OK,
    BoundSimulator,
    SimulationBlock,
    SimulationError,
)
from nbi_plus.problem.simulator.workers import (
    Cluster,
    Crew,
    Job,
    Processes,
    WorkerError,
    keep,
    loaded,
    payload_of,
    processes,
)
from nbi_plus.progress import progress as shown

_LOG = logging.getLogger("nbi_plus")

MakeRows = Callable[[NDArray[np.int64]], Job]
OnBlock = Callable[[NDArray[np.int64], NDArray[np.float64], SimulationBlock], object]

_SERIAL_SECONDS = 3.0  # work that is over before worker processes have started
_BLOCK_SECONDS = 0.5
_BLOCK_ROWS = 4096
_BLOCK_BYTES = 2**22
_COMPARED_SECONDS = 0.5  # for rows of other processes that are simulated again in this one
_PIECES = 8  # a block that killed its worker is tried again in as many pieces
_MAX_DEATHS = 50


def simulate_rows(
    bound: BoundSimulator,
    make_rows: MakeRows,
    rows: NDArray[np.int64],
    on_block: OnBlock,
    *,
    n_jobs: int | None = None,
    client: Any = None,  # noqa: ANN401  a dask.distributed.Client, which is not imported here
    block_rows: int | None = None,
    progress: bool | None = None,
) -> None:
    """Simulate numbered rows block by block and hand each block over as soon as it is finished.

    A row brings all that its simulation depends on, so the results do not depend on ``n_jobs`` nor
    on the order in which blocks finish. Interrupting keeps what ``on_block`` has received.

    Parameters
    ----------
    bound : BoundSimulator
    make_rows : callable
        ``make_rows(rows) -> (theta (k, P), coords, per_row)``, called in this process.
    rows : ndarray of int64, shape (n,)
        A block never spans a gap between them.
    on_block : callable
        ``on_block(rows, theta, block)``, called in this process, in the order of finishing.
    n_jobs : int, optional
        Worker processes; 1 simulates in this process, -1 takes one for each core. Chosen from the
        simulator's speed if not given.
    client : dask.distributed.Client, optional
        Simulate on its cluster instead.
    block_rows : int, optional
        Rows of a block. Chosen from the simulator's speed if not given.
    progress : bool, optional
        See `nbi_plus.progress.progress`.

    Raises
    ------
    SimulationError
        When worker processes keep dying, cannot run the simulator, or find other answers than this
        process; when the answer for a row changes with the rows beside it.
    """
    n_workers = workers_for(n_jobs, bound.seconds_per_row * len(rows))
    size = _rows_per_block(bound) if block_rows is None else block_rows
    todo = _blocks(np.asarray(rows, dtype=np.int64), size)
    wanted = n_jobs is not None or client is not None
    remote = client is not None or (n_workers > 1 and (wanted or len(todo) > 1))
    payload = _payload(bound, make_rows, todo, wanted) if remote and todo else None
    with shown("simulating", len(rows), progress) as bar:

        def finish(done: NDArray[np.int64], theta: NDArray, block: SimulationBlock) -> None:
            on_block(done, theta, block)
            bar.step(len(done))

        if payload is None:
            for block in todo:
                job = make_rows(block)
                finish(block, job[0], bound.run(*job))
        elif client is not None:
            with contextlib.closing(Cluster(payload, client)) as cluster:
                _drive(cluster, bound, make_rows, todo, finish)
        else:
            _run_in_processes(bound, payload, min(n_workers, len(todo)), make_rows, todo, finish)


def simulated(bound: BoundSimulator, job: Job, **how: Any) -> SimulationBlock:  # noqa: ANN401
    """Return the answers to all rows of a job, in their order.

    Parameters
    ----------
    bound : BoundSimulator
    job : tuple
        ``theta (n, P)``, coordinates, and which of these are by row.
    how
        See `simulate_rows`. By default worker processes simulate if these were asked for when the
        simulator was bound.
    """
    theta, coords, per_row = job
    how = {"n_jobs": bound.n_jobs} | how
    x = np.full((len(theta), *bound.shape_for(coords)), np.nan)
    state = np.full(len(theta), FAILED, np.uint8)
    errors: list[tuple[int, str]] = []

    def make_rows(rows: NDArray[np.int64]) -> Job:
        own = {name: value[rows] if name in per_row else value for name, value in coords.items()}
        return theta[rows], own, per_row

    def on_block(rows: NDArray[np.int64], _: NDArray, block: SimulationBlock) -> None:
        x[rows], state[rows] = block.x, block.state
        errors.extend((int(rows[i]), message) for i, message in block.errors)

    simulate_rows(bound, make_rows, np.arange(len(theta)), on_block, **how)
    return SimulationBlock(x, state, errors)


def check_failures(
    n_failed: int,
    n_total: int,
    max_fraction: float = 0.1,
    failed: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Raise a SimulationError that carries ``failed`` when too many simulations failed.

    Parameters
    ----------
    n_failed, n_total : int
    max_fraction : float
        Largest fraction of failures that is accepted.
    failed : sequence of mapping
        ``row``, ``theta`` and ``error`` of the failures that are known.
    """
    if n_failed <= max_fraction * n_total:
        return
    first = ""
    if failed:
        first = " (first: row {row}, theta = {theta}, {error})".format(**failed[0])
    raise SimulationError(
        f"{n_failed} of {n_total} simulations failed{first}. See err.failed.", failed
    )


def workers_for(n_jobs: int | None, seconds: float = 0.0) -> int:
    """Return how many processes shall simulate; one means this process."""
    if n_jobs is None:
        may_start = not multiprocessing.current_process().daemon
        return joblib.cpu_count() if seconds > _SERIAL_SECONDS and may_start else 1
    if not isinstance(n_jobs, Integral) or isinstance(n_jobs, bool) or n_jobs < -1 or n_jobs == 0:
        raise ValueError(
            f"n_jobs must be None, -1 or a positive integer, but is {n_jobs!r}. "
            "Use -1 for all cores, 1 for this process alone."
        )
    return joblib.cpu_count() if n_jobs == -1 else int(n_jobs)


def _rows_per_block(bound: BoundSimulator) -> int:
    """Return a power of two: blocks of about half a second and of limited memory."""
    c, length = bound.shape
    wanted = _BLOCK_SECONDS / max(bound.seconds_per_row, 1e-9)
    few = 16 if bound.vectorized else 1
    rows = min(max(wanted, few), _BLOCK_ROWS, max(_BLOCK_BYTES / (8 * c * length), 1))
    return 2 ** int(np.log2(rows))


def _blocks(rows: NDArray[np.int64], size: int) -> deque[NDArray[np.int64]]:
    """Return runs of consecutive row numbers, none longer than ``size``."""
    if size < 1:
        raise ValueError(
            f"block_rows must be positive, but is {size}. Leave it out to let it be chosen."
        )
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return deque(run[i : i + size] for run in runs for i in range(0, len(run), size))


def _payload(
    bound: BoundSimulator, make_rows: MakeRows, todo: deque[NDArray[np.int64]], wanted: bool
) -> bytes | None:
    """Return the simulator for other processes; None when it cannot go and nobody asked it to."""
    try:
        payload = payload_of(bound)
    except TypeError as error:
        if wanted:
            raise
        _LOG.info("simulating in one process: %s", error)
        return None
    if bound.seedable:
        return payload
    theta, coords, per_row = make_rows(todo[0][:1])
    first, second = (loaded(payload).run(theta, coords, per_row).x for _ in range(2))
    if not same(first, second, 0.0):
        return payload
    if wanted:
        raise ValueError(
            "simulator must not carry a random generator into other processes, where all would "
            "draw the same numbers, but it carries one. Draw from numpy's global generator, which "
            "is seeded for each row, make the generator inside the function, or use n_jobs=1."
        )
    _LOG.info("simulating in one process, as the simulator carries its own random generator")
    return None


def _run_in_processes(
    bound: BoundSimulator,
    payload: bytes,
    n_workers: int,
    make_rows: MakeRows,
    todo: deque[NDArray[np.int64]],
    finish: OnBlock,
) -> None:
    """Drive worker processes; they are kept for the next call unless something went wrong."""
    crew: Processes = processes(bound, payload, n_workers)
    try:
        _drive(crew, bound, make_rows, todo, finish)
    except BaseException:
        crew.close()
        raise
    keep(crew)


def _drive(
    crew: Crew,
    bound: BoundSimulator,
    make_rows: MakeRows,
    todo: deque[NDArray[np.int64]],
    finish: OnBlock,
) -> None:
    """Keep the crew busy; a block whose worker died comes back in pieces, at last as failed rows.

    Gives up when workers die one after the other, or very often.
    """
    n_deaths, in_a_row = 0, 0
    allowed = max(_MAX_DEATHS, sum(map(len, todo)) // 100)
    suspects: set[int] = set()
    while todo or crew.n_busy:
        while todo and crew.has_room:
            block = todo.popleft()
            crew.submit(block, make_rows(block))
        for rows, job, answer in _collected(crew):
            if isinstance(answer, SimulationBlock):
                in_a_row = 0
                _compare(bound, rows, job, answer)
                finish(rows, job[0], answer)
                continue
            n_deaths, in_a_row = n_deaths + 1, in_a_row + 1
            if in_a_row > crew.n_workers + 4 or n_deaths > allowed:
                raise _too_many_deaths(n_deaths, rows, job, answer)
            if len(rows) == 1 and int(rows[0]) in suspects:
                finish(rows, job[0], SimulationBlock.failed(1, bound.shape_for(job[1]), answer))
            else:
                suspects.update(rows.tolist())
                todo.extendleft(np.array_split(rows, min(_PIECES, len(rows)))[::-1])


def _compare(
    bound: BoundSimulator, rows: NDArray[np.int64], job: Job, block: SimulationBlock
) -> None:
    """Simulate a few rows of the first block again, here: elsewhere a simulator may differ."""
    good = np.flatnonzero(block.state == OK)
    if bound.compared.elsewhere or not bound.repeats or not len(good):
        return
    n = int(np.clip(_COMPARED_SECONDS / max(bound.seconds_per_row, 1e-9), 1, N_FEW))
    few = good[few_of(len(good), n)]
    theta, coords, per_row = job
    own = {name: value[few] if name in per_row else value for name, value in coords.items()}
    here = bound.run(theta[few], own, per_row)
    ran = here.state == OK  # what fails here alone ran into its time limit, or lacks a file
    check_elsewhere(rows[few][ran], theta[few][ran], block.x[few][ran], here.x[ran])
    bound.compared.elsewhere = bool(ran.any())


def _collected(crew: Crew) -> list[tuple[NDArray[np.int64], Job, SimulationBlock | str]]:
    try:
        return [*crew.collect()]
    except WorkerError as error:
        raise SimulationError(f"simulations in other processes stopped: {error}") from error


def _too_many_deaths(
    n_deaths: int, rows: NDArray[np.int64], job: Job, answer: str
) -> SimulationError:
    failed = [
        {"row": int(row), "theta": theta, "error": answer}
        for row, theta in zip(rows, job[0], strict=True)
    ]
    return SimulationError(
        "simulator must neither end its process nor hang in compiled code, but "
        f"{n_deaths} workers died or were ended for it (last: {answer}, rows "
        f"{rows[0]} to {rows[-1]}). It may crash or exceed the memory: try one of these rows "
        "alone, fewer n_jobs, or a smaller block_rows. See err.failed.",
        failed,
    )
