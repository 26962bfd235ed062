"""Trails: every rung that every object of a batch tried, with its figures and its cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.infer.meter import Meter
from nbi_plus.infer.outcome import Chains, Outcome
from nbi_plus.infer.status import Rung
from nbi_plus.infer.weights import Gate, gate_of

_CUT_OFF = "the prior all but excludes what the data want"


@dataclass
class Trail:
    """Collects the report of N objects.

    Attributes
    ----------
    meter : Meter
        What an object cost since its last line is the cost of the next.
    gate : Gate
        Says why weights did not pass.
    lines : list of list of Rung
    """

    meter: Meter
    gate: Gate
    lines: list[list[Rung]]
    _seen: Tensor

    @classmethod
    def of(cls, meter: Meter, gate: Gate, before: list[list[Rung]] | None = None) -> Trail:
        """Return a trail of all objects: empty, or of the lines that were written before."""
        n = len(meter.calls)
        lines = [[] for _ in range(n)] if before is None else [list(own) for own in before]
        trail = cls(meter, gate, lines, torch.zeros(3, n, dtype=torch.float64))
        trail._seen = trail._cost(torch.arange(n))
        return trail

    def _cost(self, rows: Tensor) -> Tensor:
        cost = self.meter.read(rows.to(self.meter.calls.device))
        return torch.stack([v.double().cpu() for v in (cost.calls, cost.gradients, cost.seconds)])

    def note(self, outcome: Outcome, *, otherwise: str = "") -> None:
        """Write a line for every object of an outcome of weighted draws.

        ``otherwise`` is the reason where the weights themselves show none.
        """
        s = outcome.summary
        reasons = gate_of(outcome.family, self.gate).reasons(s)
        each = zip(outcome.passed.tolist(), outcome.cut_off.tolist(), reasons, strict=True)
        why = [
            "" if good else _CUT_OFF if cut else reason or otherwise for good, cut, reason in each
        ]
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

    def reports(self, rows: NDArray[np.int64], failures: list[str]) -> tuple[tuple[Rung, ...], ...]:
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
            line = Rung(name, int(n), ess, eff, k_hat, bool(passed), reason)
            cost = {"n_calls": int(calls), "n_gradients": int(grads), "seconds": seconds}
            self.lines[i].append(replace(line, r_hat=r, **cost))
