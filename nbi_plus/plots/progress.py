"""Rounds drawn: what each round of a sequential fit was worth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbi_plus.infer.sequential.rounds import Rounds
from nbi_plus.plots.style import COLORS, GUIDE, INK, PALE, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# a fit has one first phase; a name that is not here is that of another method
_LOOKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "prior": (INK, "o"),
        "start": (INK, "o"),
        "modes": (INK, "o"),
        "locate": (COLORS[0], "s"),
        "adapt (mixture)": (COLORS[2], "^"),
        "adapt (flow)": (COLORS[4], "v"),
        "certify": (COLORS[1], "D"),
    }
)
_OTHER = (COLORS[3], "P")
_LINE_LENGTH = 90


def rounds(rounds: Rounds) -> Figure:
    """Draw what each round of a sequential fit was worth, and say why the last one was the last.

    Three panels over the simulations in all: the pooled effective sample size, the efficiency of
    each round's own draws, and the log-evidence with its error. What a round does not know is left
    out.

    Parameters
    ----------
    rounds : Rounds
        ``engine.rounds_``.

    Returns
    -------
    Figure
        Three axes: effective sample size, efficiency, log-evidence.
    """
    if not len(rounds):
        raise ValueError("rounds must hold at least one round, but are empty. Call fit first.")
    ess = _column(rounds, "ess")
    with house_style("rounds") as figure_class:
        figure = figure_class(figsize=(6.8, 6.6), layout="constrained")
        top, middle, low = figure.subplots(3, 1, sharex=True, height_ratios=[1.8, 1, 1])
        top.set_yscale("log")
        # a logarithmic axis has no place for 0
        _points(top, rounds, np.where(ess > 0, ess, np.nan))
        _points(middle, rounds, _column(rounds, "efficiency"))
        _points(low, rounds, _column(rounds, "log_evidence"), _column(rounds, "log_evidence_err"))
        middle.axhline(1.0, **GUIDE)
        middle.set_ylim(-0.08, 1.1)
        top.set_ylabel("pooled ESS")
        middle.set_ylabel("efficiency")
        low.set_ylabel(r"$\log Z$")
        low.set_xlabel("simulations in all")
        low.set_xlim(0, 1.05 * rounds[-1].n_total)
        _legend(top, rounds)
        figure.align_ylabels()
        figure.suptitle(textwrap.fill(rounds.reason, _LINE_LENGTH), fontsize=10)
    return figure


def _column(rounds: Rounds, name: str) -> Array:
    return np.array([getattr(row, name) for row in rounds], np.float64)


def _points(axes: Axes, rounds: Rounds, values: Array, errors: Array | None = None) -> None:
    """Draw the values that are known, one for each round, joined by a line."""
    total, known = _column(rounds, "n_total"), np.isfinite(values)
    if not known.any():
        axes.set_yticks([])
        axes.set_yticks([], minor=True)
        axes.text(0.5, 0.5, "not known", ha="center", color=INK, transform=axes.transAxes)
        return
    axes.plot(total[known], values[known], color=PALE, zorder=1)
    for i in np.flatnonzero(known):
        color, marker = _LOOKS.get(rounds[i].phase, _OTHER)
        bar = None if errors is None or not np.isfinite(errors[i]) else errors[i]
        axes.errorbar(total[i], values[i], bar, fmt=marker, color=color, markersize=5, capsize=2.5)


def _legend(axes: Axes, rounds: Rounds) -> None:
    """Name the phases in the order they came in, those without a point as well."""
    for phase in dict.fromkeys(row.phase for row in rounds):
        color, marker = _LOOKS.get(phase, _OTHER)
        axes.plot([], [], marker, color=color, markersize=5, label=phase)
    axes.legend(loc="best")
