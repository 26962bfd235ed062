"""Scouting: a simulator that may end or hold its process is tried in another one first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.problem.simulator.calling import CallRows, SimulationError, arguments_of
from nbi_plus.problem.simulator.simulator import BoundSimulator, Simulator, bind
from nbi_plus.problem.simulator.workers import Processes, WorkerError, keep, payload_of

_MOST_IN_A_ROW = 3  # probe rows that end their process: so will all others


@dataclass(frozen=True)
class _Scout:
    """What the other process does with probe rows: bind the simulator, and send what it found."""

    wish: Simulator
    unit: str | None
    on_call: Callable[[float], None] | None = None

    def run(
        self, theta: NDArray, coords: Mapping[str, NDArray], per_row: Collection[str]
    ) -> BoundSimulator:
        """Return the simulator bound, without the function, which the caller has."""
        found = bind(self.wish, theta, coords, per_row, self.unit, on_call=self.on_call)
        return replace(found, call=replace(found.call, f=len))


def bind_elsewhere(
    wish: Simulator,
    theta: ArrayLike,
    coords: Mapping[str, ArrayLike],
    per_row: Collection[str],
    unit: str | None = None,
    n_jobs: int = 2,
) -> BoundSimulator:
    """Return what `bind` returns, found in a worker process; rows that end it are left out.

    The worker is kept for the simulations that follow.
    """
    rows = CallRows.of(theta, coords, per_row)
    arguments_of(wish.f, rows.coords)  # its errors are those of this process
    trial = _Scout(wish, unit)
    crew = Processes(trial, payload_of(trial), 1)
    try:
        found = _answer(crew, rows)
        if isinstance(found, str):
            found = _answer(crew, rows.take(_survivors(crew, rows)))
        if isinstance(found, str):
            raise SimulationError(f"simulator must not end or hold its process, but {found}.")
        bound = replace(found, call=replace(found.call, f=wish.f), n_jobs=n_jobs)
        crew.turn_to(bound, payload_of(bound))
    except BaseException:
        crew.close()
        raise
    keep(crew)
    return bound


def _answer(crew: Processes, rows: CallRows) -> BoundSimulator | str:
    """Return what was found with some rows, or how the process died of them."""
    crew.submit(np.arange(len(rows)), (rows.theta, dict(rows.coords), rows.per_row))
    while True:
        try:
            for _, _, answer in crew.collect():
                return answer
        except WorkerError as error:
            raise SimulationError(f"simulations in other processes stopped: {error}") from error


def _survivors(crew: Processes, rows: CallRows) -> list[int]:
    """Return the rows that do not end a process, tried one by one."""
    good, failed = [], []
    for i in range(len(rows)):
        try:
            answer = _answer(crew, rows.take([i]))
        except SimulationError:  # a row that fails is no reason to leave it out
            answer = None
        if isinstance(answer, str):
            failed.append({"row": i, "theta": rows.theta[i], "error": answer})
        else:
            good.append(i)
        if not good and len(failed) == min(_MOST_IN_A_ROW, len(rows)):
            raise SimulationError(
                f"simulator must not end or hold its process, but did for each of {len(failed)} "
                f"rows that it was tried on ({answer}). See err.failed.",
                failed,
            )
    return good
