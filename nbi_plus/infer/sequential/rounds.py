"""Progress: what every round of a sequential fit came to, and why the last one was the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING

from nbi_plus.infer.posterior import export
from nbi_plus.markup import Shown, facts, table

if TYPE_CHECKING:
    from astropy.table import QTable


class Stop(Enum):
    """Why a sequential fit ended; the value is the sentence to read."""

    ESS_REACHED = (
        "The wanted effective sample size was reached, on draws that nothing was fitted to."
    )
    BUDGET = "The simulations allowed were spent."
    NO_PROGRESS = "No proposal that was tried passed its gate."
    NO_SUPPORT = "No draw had a posterior density."
    NOT_LOCATED = (
        "The posterior was not located yet: fewer draws are effective than there are parameters. "
        "More simulations, modes=, or a simulator in torch may help."
    )
    TIME = "The time allowed was spent."
    ROUNDS = "All rounds were done."
    DEGRADED = "The effective sample size of a round fell; the network before it was kept."
    ESS_SUMMED = "The effective sample sizes of the rounds add up to what was wanted."

    @property
    def code(self) -> str:
        """The short name, as in ``ess_reached``."""
        return self.name.lower()


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes
    ----------
    phase : str
        "prior", "start", "modes", "peaks" (a search uphill), "laplace" (draws around what it
        found), "locate" (draws of a network), "adapt (mixture)", "adapt (flow)", "certify", "hmc"
        or "audit" (peaks that an answer missed, which are drawn around next); the name of another
        method.
    n_sims, n_total : int
        Calls of this round, with or without a gradient, and of all until now.
    ess : float
        Of all draws until now, pooled.
    efficiency : float
        Effective share of this round's own draws.
    k_hat : float
        Of all draws until now.
    log_evidence, log_evidence_err : float
        From draws that nothing was fitted to; NaN before there are any.
    seconds : float
        Since the fit began.
    reason : str
        What was found, or which rule of the gate was not met.
    n_gradients : int
        Calls of this round with a gradient.
    """

    phase: str
    n_sims: int
    n_total: int
    ess: float
    efficiency: float
    k_hat: float
    log_evidence: float
    log_evidence_err: float
    seconds: float
    reason: str = ""
    n_gradients: int = 0


_HEADER = "phase              sims   total       ess   eff. k_hat  log Z            seconds"
_ROW = (
    "{phase:<16s} {n_sims:>6d} {n_total:>7d} {ess:>9.1f} {efficiency:>6.3f} {k_hat:>5.2f}  "
    "{log_evidence:.3f} +- {log_evidence_err:.3f} {seconds:>7.1f}  {reason}"
)


@dataclass(frozen=True)
class Rounds(Shown):
    """All rounds of a sequential fit; prints as a table.

    Attributes
    ----------
    rows : tuple of Round
    stop : Stop
    caution : str
        What the method is known to do wrong.
    """

    rows: tuple[Round, ...]
    stop: Stop
    caution: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Round:
        return self.rows[index]

    def __iter__(self) -> Iterator[Round]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return "\n".join([_HEADER, *map(describe, self.rows), self.reason])

    def _repr_html_(self) -> str:
        names = [f.name for f in fields(Round)]
        rows = [[getattr(row, name) for name in names] for row in self.rows]
        return table([name.replace("_", " ") for name in names], rows, "Rounds") + facts(
            {"end": self.reason}
        )

    @property
    def n_simulated(self) -> int:
        """Calls of the simulator in all, with or without a gradient."""
        return sum(row.n_sims for row in self.rows)

    @property
    def n_gradients(self) -> int:
        """Calls with a gradient."""
        return sum(row.n_gradients for row in self.rows)

    @property
    def stop_reason(self) -> str:
        """Why it ended, in short: the `code` of its `Stop`."""
        return self.stop.code

    @property
    def reason(self) -> str:
        """Why it ended, in words, and what to beware of."""
        return f"{self.stop_reason}: {self.stop.value} {self.caution}".rstrip()

    def to_table(self) -> QTable:
        """Return an astropy table with one row per round."""
        names = [f.name for f in fields(Round)]
        return export.plain_table(names, [asdict(row) for row in self.rows], self.stop_reason)


def describe(row: Round) -> str:
    """Return one line of the table."""
    return _ROW.format(**asdict(row)).rstrip()
