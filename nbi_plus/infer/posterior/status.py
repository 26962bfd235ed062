"""Statuses and flags: how the posterior of one object was found, and what to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np


class Status(Enum):
    """How the posterior of one object was found; the value is the sentence to read."""

    AMORTIZED = "Network draws, not corrected: nothing could weigh them; see report."
    REWEIGHTED = "Network draws, corrected by importance weights that passed the gate."
    REFINED = "Draws of a proposal adapted to this object; their weights passed the gate."
    HMC = "Importance weights were unreliable; refined by HMC."
    ENSEMBLE = "Importance weights were unreliable; refined by an ensemble of walkers."
    LEARNED = "Weighted draws that passed, but of a learned likelihood; it is the only judge."
    UNCERTIFIED = "No method passed its gate; the best effort is kept and is not to be trusted."
    FAILED = "No reliable posterior was found; see report."

    @property
    def certified(self) -> bool:
        """Whether an independent check stands behind the draws."""
        return self in (Status.REWEIGHTED, Status.REFINED, Status.HMC, Status.ENSEMBLE)

    @property
    def from_chains(self) -> bool:
        """Whether Markov chains stand behind the draws, and so are a check of weights."""
        return self in (Status.HMC, Status.ENSEMBLE)


class UncertifiedWarning(UserWarning):
    """The posterior that was asked for passed no gate."""


class UntrustedWarning(UncertifiedWarning):
    """The posterior that was asked for passed no gate, or is doubtful although it did."""


class Flag(str, Enum):
    """What a reader of a posterior should know besides its status."""

    OOD = "OOD"
    LOW_EFF = "LOW_EFF"
    LOW_ESS = "LOW_ESS"
    HIGH_KHAT = "HIGH_KHAT"
    TAIL = "TAIL"
    DOMINATED = "DOMINATED"
    EVIDENCE_SOFT = "EVIDENCE_SOFT"
    MULTIMODAL = "MULTIMODAL"
    EDGE = "EDGE"
    MISFIT = "MISFIT"
    SIM_ERRORS = "SIM_ERRORS"
    SOURCES_DISAGREE = "SOURCES_DISAGREE"
    DIVERGENCES = "DIVERGENCES"
    BAD_INPUT = "BAD_INPUT"
    MODE_MISSED = "MODE_MISSED"
    UNCALIBRATED = "UNCALIBRATED"
    SUPPORT = "SUPPORT"
    DUPLICATES = "DUPLICATES"
    FEW_DRAWS = "FEW_DRAWS"
    EXTRAPOLATED = "EXTRAPOLATED"
    DISAGREE = "DISAGREE"

    @property
    def sentence(self) -> str:
        """What the flag says."""
        return _FLAG_SENTENCES[self.name]


_FLAG_SENTENCES = {
    "OOD": "The data are unlike the simulations the network was trained on.",
    "LOW_EFF": "Fewer than the wanted share of the draws are effective.",
    "LOW_ESS": "Too few effective draws.",
    "HIGH_KHAT": "The tail of the weights is too heavy for the number of draws.",
    "TAIL": "The tail of the weights is too heavy for second moments.",
    "DOMINATED": "One draw carries more than half of the weight.",
    "EVIDENCE_SOFT": "The error of the evidence was widened, or its bias removed.",
    "MULTIMODAL": "The posterior has separate modes.",
    "EDGE": "A share of the posterior lies at the edge of the prior.",
    "MISFIT": "The model does not describe the data: residuals are too large or too small.",
    "SIM_ERRORS": "The simulator failed, or was not finite, for some draws.",
    "SOURCES_DISAGREE": "Two certified methods disagree.",
    "DIVERGENCES": "HMC trajectories diverged.",
    "BAD_INPUT": "The data cannot be used: the report says why.",
    "MODE_MISSED": "A mode was found that the draws do not hold.",
    "UNCALIBRATED": "Answers like this one did not hold the truth as often as they said.",
    "SUPPORT": "A part of the posterior can lie where an earlier prior allowed no draws.",
    "DUPLICATES": "Points seen twice were merged.",
    "FEW_DRAWS": "The draws of the objects, or of the selection, are too few for this population.",
    "EXTRAPOLATED": "Parameters or data lie outside what the likelihood was learned from.",
    "DISAGREE": "The members of an ensemble lie further apart than on most simulations.",
}

# what a certificate of the weights knows nothing of
_DOUBTS = frozenset({Flag.MISFIT, Flag.MODE_MISSED, Flag.UNCALIBRATED, Flag.SUPPORT})


def is_trusted(status: Status, flags: frozenset[Flag]) -> bool:
    """Say whether an answer is certified, and nothing else is known to stand against it."""
    return status.certified and not flags & _DOUBTS


def doubts(status: Status, flags: frozenset[Flag], reason: str) -> str:
    """Return why an answer is not to be trusted, in words.

    ``reason`` is what the last rung said; it counts where nothing was certified.
    """
    told = [f"{status.name}: {status.value}"]
    told += [f"{f.name}: {f.sentence}" for f in sorted(flags & _DOUBTS)]
    told += [f"({reason})"] if reason and not status.certified else []
    return " ".join(told)


@dataclass(frozen=True)
class RungReport:
    """What one rung of the ladder did for one object.

    Attributes
    ----------
    name : str
    n_draws : int
        Draws that it judged.
    ess, efficiency, k_hat : float
        Of weights; for chains the smallest effective sample size of a parameter, the same for each
        draw, and NaN.
    passed : bool
    reason : str
        Why not, or why there is no answer.
    n_calls, n_gradients : int
        Simulations since the rung before, and those with a gradient among them.
    seconds : float
        The object's share of the time.
    r_hat : float
        Largest nested R-hat of chains; NaN for weights.
    audit : str
        Which peaks an audit of these draws found, and what mass they have; "" without one.
    n_apart : int
        Simulations of the audit, with and without a gradient: no other figure counts them.
    """

    name: str
    n_draws: int
    ess: float
    efficiency: float
    k_hat: float
    passed: bool
    reason: str = ""
    n_calls: int = 0
    n_gradients: int = 0
    seconds: float = 0.0
    r_hat: float = np.nan
    audit: str = ""
    n_apart: int = 0

    def __str__(self) -> str:
        figures = [f"{self.n_draws} draws", f"ess {self.ess:.0f}"]
        if np.isfinite(self.efficiency):
            figures.append(f"efficiency {self.efficiency:.3f}")
        if not np.isnan(self.k_hat):
            figures.append(f"k_hat {self.k_hat:.2f}")
        if not np.isnan(self.r_hat):
            figures.append(f"R-hat {self.r_hat:.3f}")
        cost = [f"{self.n_calls} calls"] if self.n_calls else []
        cost += [f"{self.n_gradients} gradients"] if self.n_gradients else []
        cost += [f"{self.seconds:.2g} s"] if self.seconds else []
        verdict = "passed" if self.passed else "not passed"
        parts = [f"{self.name}: {verdict}; {', '.join(figures)}"]
        parts += [", ".join(cost)] if cost else []
        told = f"{'; '.join(parts)}. {self.reason}".rstrip()
        if not self.n_apart:
            return told
        return f"{told} Audit, {self.n_apart} simulations apart: {self.audit or 'nothing steep.'}"


def settled_by(status: Status, rungs: Sequence[RungReport]) -> str:
    """Return the last rung of a report; "" where there is no answer.

    Examples
    --------
    >>> settled_by(Status.REFINED, [RungReport("refine", 2048, 900.0, 0.4, 0.2, True)])
    'refine'
    """
    return rungs[-1].name if rungs and status is not Status.FAILED else ""
