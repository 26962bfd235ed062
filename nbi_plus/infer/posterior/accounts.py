"""Accounts: what every object cost, within its budget, and what each rung came to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.arguments import real
from nbi_plus.infer.posterior.outcome import Chains, Outcome
from nbi_plus.infer.posterior.status import RungReport
from nbi_plus.infer.weights.summary import Gate, gate_of


@dataclass(frozen=True)
class Budget:
    """What one object may cost at most.

    Attributes
    ----------
    calls : int
        Simulations without a gradient.
    gradients : int
    seconds : float
        Of wall-clock time; what is computed for many objects together is shared among them, so that
        it holds for their sum. A step that should take longer than what is left is not begun, and
        without the time for an audit nothing is certified.
    """

    calls: int = 200_000
    gradients: int = 200_000
    seconds: float = math.inf

    def __post_init__(self) -> None:
        for name in ("calls", "gradients", "seconds"):
            if not real(name, getattr(self, name)) >= 0:
                raise ValueError(f"{name} must be at least 0, but is {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Cost:
    """Calls, gradients and seconds, each of shape (b,)."""

    calls: Tensor
    gradients: Tensor
    seconds: Tensor


@dataclass
class Meter:
    """Counts what N objects cost.

    Attributes
    ----------
    calls, gradients, seconds : Tensor, shape (N,)
    free : Cost
        What no budget counts: it was spent in earlier attempts.
    """

    calls: Tensor
    gradients: Tensor
    seconds: Tensor
    free: Cost

    @classmethod
    def of(cls, before: Cost, free: Cost) -> Meter:
        """Return a meter at what the objects have cost before, some of it for free."""
        return cls(before.calls.clone(), before.gradients.clone(), before.seconds.clone(), free)

    def add_calls(self, index: Tensor, n: Tensor) -> None:
        """Count ``n`` (b,) simulations."""
        self.calls.index_add_(0, index, n)

    def add_gradients(self, index: Tensor, n: Tensor) -> None:
        """Count ``n`` (b,) gradients."""
        self.gradients.index_add_(0, index, n)

    @contextmanager
    def timed(self, index: Tensor) -> Iterator[None]:
        """Share the time of what is done inside among some objects."""
        start = time.perf_counter()
        try:
            yield
        finally:
            each = (time.perf_counter() - start) / max(len(index), 1)
            self.seconds[index] += each

    def left(self, index: Tensor, budget: Budget) -> Cost:
        """Return what is left of the budget of some objects."""
        return Cost(
            budget.calls - (self.calls - self.free.calls)[index],
            budget.gradients - (self.gradients - self.free.gradients)[index],
            budget.seconds - (self.seconds - self.free.seconds)[index],
        )

    def read(self, index: Tensor) -> Cost:
        """Return what some objects have cost so far."""
        return Cost(self.calls[index], self.gradients[index], self.seconds[index])


_MISSED = "an audit found places that these draws miss"
_NO_TIME = "the time was spent before an audit"
_LATE = "the first rung alone took longer than the budget"
CUT_OFF = "the prior all but excludes what the data want"


@dataclass
class ReportLog:
    """Collects the report of N objects.

    Attributes
    ----------
    meter : Meter
        What an object cost since its last line is the cost of the next.
    gate : Gate
        Says why weights did not pass.
    lines : list of list of RungReport
    """

    meter: Meter
    gate: Gate
    lines: list[list[RungReport]]
    _seen: Tensor

    @classmethod
    def of(
        cls, meter: Meter, gate: Gate, before: list[list[RungReport]] | None = None
    ) -> ReportLog:
        """Return a log of all objects: empty, or of the lines that were written before."""
        n = len(meter.calls)
        lines = [[] for _ in range(n)] if before is None else [list(own) for own in before]
        report = cls(meter, gate, lines, torch.zeros(3, n, dtype=torch.float64))
        report._seen = report._cost(torch.arange(n))
        return report

    def _cost(self, rows: Tensor) -> Tensor:
        cost = self.meter.read(rows.to(self.meter.calls.device))
        spent = (cost.calls, cost.gradients, cost.seconds)
        return torch.stack([v.double() for v in spent]).cpu()

    def note(self, outcome: Outcome, *, otherwise: str | Sequence[str] = "") -> None:
        """Write a line for every object of an outcome of weighted draws.

        ``otherwise`` is the reason, or that of each object, where all weights show none.
        """
        s = outcome.summary
        reasons = gate_of(outcome.family, self.gate).reasons(s)
        if isinstance(otherwise, str):
            otherwise = [otherwise] * len(reasons)
        each = zip(
            outcome.passed.tolist(), outcome.cut_off.tolist(), reasons, otherwise, strict=True
        )
        why = ["" if good else CUT_OFF if cut else own or other for good, cut, own, other in each]
        nan = torch.full_like(s.ess, torch.nan)
        columns = (s.n_draws, s.ess, s.efficiency, s.k_hat, outcome.passed)
        self._write(outcome.rung, outcome.pool.index, columns, why, nan)

    def note_chains(self, name: str, index: Tensor, chains: Chains, reasons: list[str]) -> None:
        """Write a line for the chains of some objects."""
        n_draws = torch.full_like(index, chains.z.shape[1] * chains.z.shape[2])
        ess = chains.ess.amin(-1)
        nan = torch.full_like(ess, torch.nan)
        columns = (n_draws, ess, ess / chains.n_steps / chains.z.shape[1], nan, chains.converged)
        self._write(name, index, columns, reasons, chains.r_hat.amax(-1))

    def note_audit(self, index: Tensor, missed: Tensor, found: list[str], n_apart: Tensor) -> None:
        """Write what an audit found beside the last line that passed."""
        each = zip(index.tolist(), missed.tolist(), found, n_apart.tolist(), strict=True)
        for i, bad, text, n in each:
            own = self.lines[i]
            at = max(k for k, line in enumerate(own) if line.passed)
            line = replace(own[at], audit=text, n_apart=own[at].n_apart + n, passed=not bad)
            own[at] = replace(line, reason=_MISSED) if bad else line

    def note_unaudited(self, index: Tensor) -> None:
        """Write that there was no time for an audit, beside the last line that passed."""
        for i in index.tolist():
            own = self.lines[i]
            at = max(k for k, line in enumerate(own) if line.passed)
            own[at] = replace(own[at], passed=False, reason=_NO_TIME)

    def note_late(self, index: Tensor) -> None:
        """Write beside the first line of some objects that it took all of their time."""
        for i in index.tolist():
            first = self.lines[i][0]
            told = "; ".join(filter(None, (first.reason, _LATE)))
            self.lines[i][0] = replace(first, reason=told)

    def reports(
        self, rows: NDArray[np.int64], failures: list[str]
    ) -> tuple[tuple[RungReport, ...], ...]:
        """Return all lines of some objects; the last one says why there is no answer."""
        return tuple(
            (*own[:-1], replace(own[-1], reason=f"{failure} {own[-1].reason}".strip()))
            for own, failure in zip((self.lines[i] for i in rows), failures, strict=True)
        )

    def _write(
        self, name: str, index: Tensor, columns: tuple[Tensor, ...], reasons: list[str],
        r_hat: Tensor,
    ) -> None:  # fmt: skip
        rows = index.cpu()
        now = self._cost(rows)
        spent = now - self._seen[:, rows]
        self._seen[:, rows] = now
        table = [v.tolist() for v in (*columns, r_hat, *spent)]
        # a report is one object's: the figures themselves were computed for all at once
        for i, reason, n, ess, eff, k_hat, passed, r, calls, grads, seconds in zip(
            rows.tolist(), reasons, *table, strict=True
        ):
            line = RungReport(name, int(n), ess, eff, k_hat, bool(passed), reason)
            cost = {"n_calls": int(calls + grads), "n_gradients": int(grads), "seconds": seconds}
            self.lines[i].append(replace(line, r_hat=r, **cost))
