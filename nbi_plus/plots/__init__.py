"""Plots: pictures of answers and data, chains, training, rounds, calibration and catalogues.

Every function returns a `matplotlib.figure.Figure` of its own, made without pyplot: nothing is
shown and no figure stays open. Save it with ``figure.savefig("corner.png")``; in a notebook it
shows itself where it is the value of a cell.
"""

from nbi_plus.plots.corners import corner
from nbi_plus.plots.diagnostics import calibration, loss, ranks, reliability, weights
from nbi_plus.plots.escalation import before_after, efficiency_by_rung, rank, trace
from nbi_plus.plots.landscapes import ratio_landscape
from nbi_plus.plots.light_curves import light_curve, observed
from nbi_plus.plots.populations import against
from nbi_plus.plots.predictions import predictive
from nbi_plus.plots.progress import rounds
from nbi_plus.plots.style import STYLE

__all__ = [
    "STYLE",
    "against",
    "before_after",
    "calibration",
    "corner",
    "efficiency_by_rung",
    "light_curve",
    "loss",
    "observed",
    "predictive",
    "rank",
    "ranks",
    "ratio_landscape",
    "reliability",
    "rounds",
    "trace",
    "weights",
]
