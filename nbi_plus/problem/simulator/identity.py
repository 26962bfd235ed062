"""Identity: what a simulator gives for stored rows, without which these are not used again."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from nbi_plus.io.store import SimulationStore, StoreError
from nbi_plus.problem.simulator.comparing import agreement, largest_gap
from nbi_plus.problem.simulator.parallel import MakeRows, simulate_rows
from nbi_plus.problem.simulator.simulator import FAILED, BoundSimulator, SimulationBlock

_LOG = logging.getLogger("nbi_plus")
_N_CHECKED = 32  # stored rows simulated again when a store is reused ...
_N_COSTLY = 8  # ... or of a simulator that takes longer than ...
_COSTLY = 1.0  # ... so many seconds for a row
_QUICK = 3.0  # seconds of work that other processes are not started for
_SAME = 1e-6  # another machine may round otherwise


def check_reuse(
    simulator: BoundSimulator,
    store: SimulationStore,
    make_rows: MakeRows,
    *,
    n_jobs: int | None = None,
    client: object | None = None,
    whole: str = "the file",
) -> None:
    """Simulate some stored rows again: an edited simulator must not meet old simulations.

    Half of them are the latest, which lie where a fit in rounds has found the posterior. They do
    not count as simulations of a fit. A stochastic simulator is exempt unless a seed fixes each of
    its rows, and so are rows at which it failed: a time limit may have been to blame.

    Parameters
    ----------
    simulator : BoundSimulator
    store : SimulationStore
        With a column ``x``.
    make_rows : callable
        ``make_rows(rows) -> (theta (k, P), coords, per_row)`` of stored rows.
    n_jobs, client
        See `nbi_plus.problem.simulator.parallel.simulate_rows`; a quick simulator is run in this
        process.
    whole : str
        What must be deleted if they differ.
    """
    if not (store.n_done and simulator.repeats):
        return
    rows = _chosen(store, _N_COSTLY if simulator.seconds_per_row > _COSTLY else _N_CHECKED)
    old = store.read(rows, ["x"])["x"]
    new = np.full_like(old, np.nan)

    def keep(places: NDArray[np.int64], _: NDArray, block: SimulationBlock) -> None:
        new[places] = block.x

    quick = simulator.seconds_per_row * len(rows) < _QUICK
    simulate_rows(
        simulator, lambda places: make_rows(rows[places]), np.arange(len(rows)), keep,
        n_jobs=1 if quick else n_jobs, client=None if quick else client, progress=False,
    )  # fmt: skip
    differs = ~agreement(old, new, _SAME).all((1, 2))
    if differs.any():
        theta = make_rows(rows[differs][:1])[0][0]
        raise StoreError(
            f"{store.path} must hold simulations of this simulator, but {differs.sum()} of "
            f"{len(rows)}, simulated again, differ by up to {largest_gap(old, new):g} (first: row "
            f"{rows[differs][0]}, theta = {theta.tolist()}). Was the simulator edited? Use "
            f"another path, or delete {whole}."
        )
    _LOG.info("using %d stored simulations of %s", store.n_done, store.path)


def _chosen(store: SimulationStore, n: int) -> NDArray[np.int64]:
    """Return up to ``n`` stored rows that did not fail: over all of them, and over the latest."""
    written = np.ones(store.capacity, bool)
    written[store.missing(store.capacity)] = False
    done = np.flatnonzero(written)
    done = done[store.read(done, ["state"])["state"] != FAILED]
    last = max(len(done) - 1, 0)
    places = [np.linspace(start, last, n // 2) for start in (0, 0.75 * last)]
    return done[np.unique(np.concatenate(places).astype(int))] if len(done) else done
