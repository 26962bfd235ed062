"""Columns: the one table of the figures that are told of an answer.

Posterior, Posteriors, their files, tables and verdicts take the names from here, and their fields:
a figure is one line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Stored(Enum):
    """Where a figure stands."""

    VERDICT = "In Posterior, its file and Posteriors, as objects of which tables tell the names."
    WEIGHTS = "In Posterior, its file and Posteriors; anew for new weights."
    ANSWER = "In Posterior, its file and Posteriors; the same whatever the weights."
    SURVEY = "In Posteriors alone."
    DRAWS = "In Posteriors, for each parameter; a Posterior computes it from its draws."
    CATALOGUE = "In catalogues of surveys alone."


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes
    ----------
    name : str
    kind : type
    stored : Stored
    sentence : str
        What it is.
    failed : float or bool, optional
        Its value for an object without an answer; None where it is known all the same.
    hidden : bool
        Whether tables have NaN for objects that passed no gate.
    unit : str, optional
        None for a pure number, or a name; moments have that of their parameter.
    """

    name: str
    kind: type
    stored: Stored
    sentence: str
    failed: float | bool | None = None
    hidden: bool = False
    unit: str | None = None

    @property
    def unknown(self) -> float | bool:
        """What stands for it where nobody computed it: NaN, False or 0."""
        return np.nan if self.kind is float else self.kind()


_V, _W, _A, _S, _D, _ = Stored

# in the order of `Posteriors.to_table`
FIGURES = (
    Figure("id", str, _V, "Name of the object."),
    Figure("status", str, _V, "How the answer was found, or that it was not: see Status."),
    Figure("certified", bool, _V, "Whether the weights, or chains, passed their gate."),
    Figure("trusted", bool, _V, "Whether it is certified, with no flag against model or draws."),
    Figure("flags", str, _V, "What else was seen: see Flag."),
    Figure("settled_by", str, _V, "The last rung of its report; nothing where there is no answer."),
    Figure("ess", float, _W, "Kish's effective sample size of the weights.", 0.0),
    Figure("ess_low", float, _W, "The 5 % bootstrap quantile of ess.", 0.0),
    Figure("efficiency", float, _W, "Effective draws for each draw.", 0.0),
    Figure("k_hat", float, _W, "Pareto shape of the largest weights.", np.inf),
    Figure("log_evidence", float, _W, "Natural logarithm of the evidence.", np.nan),
    Figure("log_evidence_err", float, _W, "Standard error of log_evidence.", np.nan),
    Figure("evidence_reliable", bool, _W, "Whether log_evidence can be relied on.", False),
    Figure("ood_p_value", float, _A, "Share of simulations whose features lie further out."),
    Figure("fit_p_value", float, _A, "Probability that the model makes data no likelier."),
    Figure("chi2_best", float, _S, "Deviance of the best draw, for Gaussian noise chi-square."),
    Figure("n_points", int, _S, "Points that counted."),
    Figure("n_masked", int, _S, "Points masked for not being finite."),
    Figure("n_simulated", int, _S, "Simulations that the rungs made, with a gradient or without."),
    Figure("n_gradients", int, _S, "Simulations with a gradient among them."),
    Figure("n_failed", int, _S, "Draws of the answer whose simulation failed."),
    Figure("seconds", float, _S, "Its share of the time that the rungs took."),
    Figure("mean", float, _D, "Weighted mean of the draws.", np.nan, hidden=True),
    Figure("std", float, _D, "Weighted standard deviation of the draws.", np.nan, hidden=True),
    Figure("q16", float, _D, "Weighted 16 % quantile of the draws.", np.nan, hidden=True),
    Figure("median", float, _D, "Weighted median of the draws.", np.nan, hidden=True),
    Figure("q84", float, _D, "Weighted 84 % quantile of the draws.", np.nan, hidden=True),
    Figure("q025", float, _D, "Weighted 2.5 % quantile of the draws.", np.nan, hidden=True),
    Figure("q975", float, _D, "Weighted 97.5 % quantile of the draws.", np.nan, hidden=True),
)  # fmt: skip
BY_NAME = {figure.name: figure for figure in FIGURES}


def names(*stored: Stored) -> tuple[str, ...]:
    """Return the names of the figures that stand in one of these places.

    Examples
    --------
    >>> names(Stored.ANSWER)
    ('ood_p_value', 'fit_p_value')
    """
    return tuple(figure.name for figure in FIGURES if figure.stored in stored)


WEIGHT_NUMBERS = names(Stored.WEIGHTS)  # what the weights of one object come to
NUMBERS = names(Stored.WEIGHTS, Stored.ANSWER)  # of one object, wherever it is
ALL_NUMBERS = names(Stored.WEIGHTS, Stored.ANSWER, Stored.SURVEY)
MOMENTS = names(Stored.DRAWS)


def _default(figure: Figure) -> float | bool:
    return figure.unknown if figure.failed is None else figure.failed


# by keyword alone, so that the order of the table is no order of arguments
FiguresOfOne = make_dataclass(
    "FiguresOfOne",
    [(n, BY_NAME[n].kind, field(default=_default(BY_NAME[n]), kw_only=True)) for n in NUMBERS],
    frozen=True, eq=False, namespace={"__module__": __name__},
)  # fmt: skip
FiguresOfMany = make_dataclass(
    "FiguresOfMany", [(name, NDArray, field(kw_only=True)) for name in ALL_NUMBERS],
    frozen=True, eq=False, namespace={"__module__": __name__},
)  # fmt: skip
