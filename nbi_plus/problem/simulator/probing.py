"""Find out by trial how a simulator wants to be called, and whether its answers repeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.problem.guard import LateError, described, guarded
from nbi_plus.problem.random import reseed_global_generators
from nbi_plus.problem.simulator.calling import (
    Call,
    CallRows,
    OutputError,
    SimulationError,
    as_block,
    as_row,
    real_numbers,
)
from nbi_plus.problem.simulator.comparing import check_beside, same

_REPEATS = 1e-12  # the same theta must give the same answer, relative to its largest value
_AGREES = 1e-6  # the rows beside it, or the other backend, may change the rounding of an answer
_BUDGET = 1.0  # seconds after which no further rows are tried
_MOST_LATE = 2  # rows in time-out one after the other: nothing else is to be expected
_QUICK = 0.02  # seconds: a quicker call is timed again, on many more rows
_PATIENT = 1.0  # seconds: a slower call is not tried on twice as many
_AS_LONG = 1.5  # times as long for twice as many rows, that more would still be worth it
_DOUBTED = 0.005, 0.2  # seconds between which a busy machine may be why it took so long ...
_MOST_TIMED = 3  # ... and how often it is tried then
_TIMED_ROWS = 512
_TIMED_BYTES = 2**25


class RejectedError(Exception):
    """A way of calling does not work.

    Attributes
    ----------
    failed : dict of int to str
        Error of each probe row that failed by itself.
    hangs : bool
        One row after the other ran out of time.
    """

    def __init__(
        self, reason: str, failed: dict[int, str] | None = None, *, hangs: bool = False
    ) -> None:
        super().__init__(reason)
        self.failed = failed or {}
        self.hangs = hangs


@dataclass(frozen=True)
class WorkingCall:
    """A way of calling that works.

    Attributes
    ----------
    call : Call
    rows : CallRows
        The rows it works on.
    x : ndarray, shape (n, C, L)
        Its answers for them.
    stochastic : bool
        The same theta gave two answers.
    seedable : bool
        The same theta gives one answer for one state of the global generators.
    seconds_per_row : float
    most : int
        Rows at once whose answers were compared with those of other numbers of rows.
    differentiable : bool
        Its output really requires a gradient with respect to theta.
    """

    call: Call
    rows: CallRows
    x: NDArray[np.float64]
    stochastic: bool
    seedable: bool
    seconds_per_row: float
    most: int
    differentiable: bool = False


@dataclass(frozen=True)
class Probe:
    """What every way of calling is tried on.

    Attributes
    ----------
    rows : CallRows
        Probe rows; some of them may fail.
    timeout : float or None
        Seconds for each row.
    differentiable : bool or None
        Demand a gradient, ignore one, or (None) take it where there is one.
    on_call : callable or None
        Told the limit of each call that has one, before it.
    """

    rows: CallRows
    timeout: float | None = None
    differentiable: bool | None = None
    on_call: Callable[[float], None] | None = None

    def block(self, call: Call, rows: CallRows) -> NDArray[np.float64]:
        """Return (n, C, L) of a vectorised call."""
        prepared = call.prepared(rows)
        return guarded(
            lambda: as_block(_strictly_real(call.all_rows(prepared)), len(rows)),
            self._seconds(len(rows)),
            self.on_call,
        )

    def row(self, call: Call, prepared: CallRows, i: int) -> NDArray[np.float64]:
        """Return (C, L) of a call for one row."""
        return guarded(
            lambda: as_row(_strictly_real(call.one_row(prepared, i))),
            self._seconds(1),
            self.on_call,
        )

    def has_gradient(self, call: Call, rows: CallRows) -> bool:
        """Tell whether a trial output really requires a gradient with respect to theta."""
        inputs = rows.take(slice(None) if call.vectorized else slice(1)).tensors()
        leaf = inputs.theta.requires_grad_()
        try:
            prepared = call.prepared(inputs)
            with torch.enable_grad():
                gradient = guarded(
                    lambda: _gradient(call, prepared, leaf),
                    self._seconds(len(inputs)),
                    self.on_call,
                )
        except Exception:  # noqa: BLE001  user code: what cannot be differentiated is not
            return False
        return gradient is not None and bool(gradient.isfinite().any())

    def _seconds(self, n: int) -> float | None:
        return None if self.timeout is None else self.timeout * n


def _gradient(call: Call, rows: CallRows, leaf: Tensor) -> Tensor | None:
    """Return the gradient of the sum of a trial output with respect to a leaf, if there is one."""
    output = call.all_rows(rows) if call.vectorized else call.one_row(rows, 0)
    if not isinstance(output, Tensor) or not output.requires_grad:
        return None
    return torch.autograd.grad(output.sum(), leaf, allow_unused=True)[0]


def choose(call: Call, probe: Probe, vectorized: bool | None) -> WorkingCall:
    """Return the first way of calling that works: vectorised before row by row, torch if it adds.

    Torch adds a gradient, or is the only one that works.

    Parameters
    ----------
    call : Call
        The function and its arguments; backend and batching are what is looked for.
    probe : Probe
    vectorized : bool or None
        Try one batching only, or (None) both.

    Raises
    ------
    RejectedError
        When nothing works; it tells what was tried.
    """
    reasons, failed = [], {}
    for batching in (True, False) if vectorized is None else (vectorized,):
        found = None
        for backend in ("numpy", "torch"):
            way = replace(call, backend=backend, vectorized=batching)
            try:
                found = _tried(way, probe, found)
            except RejectedError as error:
                reasons.append(f"{way}: {error}")
                for row, text in error.failed.items():
                    failed[row] = (
                        f"{failed[row]}; {way}: {text}" if row in failed else f"{way}: {text}"
                    )
                if error.hangs:  # as it would with the other backend
                    break
        if found is not None and (found.differentiable or not probe.differentiable):
            return found
        reasons += [] if found is None else [f"{found.call}: its output has no gradient"]
    raise RejectedError("; ".join(reasons), failed)


def _tried(call: Call, probe: Probe, found: WorkingCall | None) -> WorkingCall:
    """Return a trial of ``call``, or what numpy ``found`` when torch adds no gradient to it."""
    if found is not None:
        if probe.differentiable is False or not probe.has_gradient(call, found.rows):
            return found
        probe = replace(probe, rows=found.rows)
    try:
        with torch.no_grad():
            trial = (_try_block if call.vectorized else _try_rows)(call, probe)
    except (RejectedError, SimulationError):
        raise
    except Exception as error:
        raise RejectedError(described(error, probe.timeout)) from error
    if found is not None and not (found.stochastic or trial.stochastic):
        n = min(len(found.x), len(trial.x))
        if found.x.shape[1:] != trial.x.shape[1:] or not same(found.x[:n], trial.x[:n], _AGREES):
            return found
    if call.backend == "numpy" or probe.differentiable is False:
        return trial
    return replace(trial, differentiable=probe.has_gradient(call, trial.rows))


def _try_block(call: Call, probe: Probe) -> WorkingCall:
    """Call with all rows at once, twice, and then with other numbers of rows in another order."""
    many, few = _row_counts(probe.rows)
    rows, x = _first_block(call, probe, many)
    part = np.resize(np.arange(many)[::-1], few)
    y = probe.block(call, rows.take(part))
    if y.shape[1:] != x.shape[1:]:
        raise OutputError(f"{many} rows gave shape {x.shape}, but {few} rows gave {y.shape}")
    if not np.isfinite(x).all((1, 2)).any():
        raise RejectedError("every probe row is NaN or infinite")
    again, seconds = _timed(lambda: probe.block(call, rows))
    stochastic, seedable = _repeats(lambda: probe.block(call, rows), x, again)
    if not stochastic and not same(x[part], y, _AGREES):
        raise OutputError("its answer for one row changes with the rows beside it")
    n, most = many, max(many, min(_TIMED_ROWS, _TIMED_BYTES // x[0].nbytes))
    while n < most and seconds < _PATIENT:
        # a loop over time steps takes as long for many rows as for few: not told by few alone
        n, before = most if seconds < _QUICK else min(2 * n, most), seconds
        place = np.resize(np.arange(many), n)
        more = rows.take(place)
        z, seconds = _timed(partial(probe.block, call, more))
        if not stochastic:
            check_beside(range(n), more.theta, z, x[place], n)
        if seconds > _AS_LONG * before:
            break
    return WorkingCall(call, rows, x, stochastic, seedable, seconds / n, n)


def _timed(act: Callable[[], NDArray[np.float64]]) -> tuple[NDArray[np.float64], float]:
    """Return what an act returns, and its seconds: where they may be luck, the fewest of several.

    What a simulation costs decides how a problem is answered, and a busy machine must not.
    """
    found, spent = None, []
    while not spent or (
        len(spent) < _MOST_TIMED and min(spent) > _DOUBTED[0] and sum(spent) < _DOUBTED[1]
    ):
        start = time.perf_counter()
        again = act()
        spent.append(time.perf_counter() - start)
        found = again if found is None else found
    return found, min(spent)


def _first_block(call: Call, probe: Probe, n: int) -> tuple[CallRows, NDArray[np.float64]]:
    """Return ``n`` rows made of those that do not raise, and their answers."""
    k = len(probe.rows)
    try:
        rows = probe.rows.take(np.resize(np.arange(k), n))
        return rows, probe.block(call, rows)
    except OutputError:
        raise
    except Exception as error:  # noqa: BLE001  user code
        reason = described(error, probe.timeout)
    failed, late = {}, 0
    for i in range(k):
        try:
            probe.block(call, probe.rows.take(np.full(n, i)))
        except Exception as error:  # noqa: BLE001  user code
            failed[i] = described(error, probe.timeout)
            late += isinstance(error, LateError)
        if late == _MOST_LATE and len(failed) == i + 1:
            break
    good = sorted(set(range(i + 1)) - set(failed))
    if not good:
        raise RejectedError(reason, failed, hangs=late == len(failed))
    rows = probe.rows.take(np.resize(good, n))
    return rows, probe.block(call, rows)


def _try_rows(call: Call, probe: Probe) -> WorkingCall:
    """Call row by row until enough rows have answered, and then again."""
    prepared = call.prepared(probe.rows)
    outputs, failed, spent = {}, {}, []
    for i in range(len(probe.rows)):
        start = time.perf_counter()
        try:
            x = probe.row(call, prepared, i)
            if np.isfinite(x).all():
                outputs[i] = x
            else:
                failed[i] = "NaN or infinite"
        except Exception as error:  # noqa: BLE001  user code
            failed[i] = described(error, probe.timeout)
        spent.append(time.perf_counter() - start)
        if sum(spent) > _BUDGET and (len(outputs) > 1 or len(failed) > 3):
            break
    if not outputs:
        raise RejectedError(next(iter(failed.values())), failed)
    if len({x.shape for x in outputs.values()}) > 1:
        shapes = sorted({x.shape for x in outputs.values()})
        raise OutputError(f"its rows must have one shape (C, L), but have {shapes}")
    x = np.stack([*outputs.values()])
    repeated = [*outputs] if sum(spent) < _BUDGET else [*outputs][:1]

    def once_more() -> NDArray[np.float64]:
        return np.stack([probe.row(call, prepared, i) for i in repeated])

    again, seconds = _timed(once_more)
    stochastic, seedable = _repeats(once_more, x[: len(repeated)], again)
    warm = spent[1:] or spent  # the first call also imports, compiles and fills caches
    each = min(sum(warm) / len(warm), seconds / len(repeated))
    rows = probe.rows.take([*outputs])
    return WorkingCall(call, rows, x, stochastic, seedable, each, len(x))


def _row_counts(rows: CallRows) -> tuple[int, int]:
    """Return two numbers of rows that no other axis of theta or of a coordinate has."""
    taken = {rows.theta.shape[1]}
    for name, value in rows.coords.items():
        taken.update(value.shape[1:] if name in rows.per_row else value.shape)
    many = next(n for n in count(max(len(rows), 5)) if n not in taken)
    few = next(n for n in chain(range(many - 1, 1, -1), count(many + 1)) if n not in taken)
    return many, few


def _repeats(
    outputs: Callable[[], NDArray[np.float64]],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
) -> tuple[bool, bool]:
    """Tell whether two answers to the same theta differ, and whether a seed would hold them."""
    if same(first, second, _REPEATS):
        return False, True
    seeded = []
    for _ in range(2):
        reseed_global_generators(0)
        seeded.append(outputs())
    return True, same(*seeded, _REPEATS)


def _strictly_real(output: object) -> NDArray[np.float64]:
    """Return real numbers; what is complex in a trial is a mistake, not a bad row."""
    if np.iscomplexobj(output):
        raise OutputError("simulator must return real numbers, but returned complex ones")
    return real_numbers(output)
