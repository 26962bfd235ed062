"""Pictures of a report: figures as parts of the page, each with words for who cannot see it."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbi_plus import plots
from nbi_plus.infer.posterior.posterior import Parameters, Posterior
from nbi_plus.infer.posterior.status import Flag, Status
from nbi_plus.infer.weights.psis import threshold
from nbi_plus.markup import Html, number
from nbi_plus.plots.style import png_of
from nbi_plus.report.rows import Population

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI, _WIDEST = 110, 1600
_LARGEST = 8  # parameters of a corner plot that can be read
_K_MOST, _K_LIMIT = 1.5, threshold(10**6)
_AGAINST = {"n_points": "points", "snr": "S/N"}


def image(figure: Figure, words: str, most: int = _WIDEST) -> Html:
    """Return a figure as a part of a page, so many pixels wide at most."""
    dpi = min(_DPI, most / figure.get_figwidth())
    data = base64.b64encode(png_of(figure, dpi)).decode()
    return Html(
        f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(words)}</figcaption></figure>\n"
    )


def against_data(population: Population) -> list[Html]:
    """Return k-hat and ESS against the number of points, and against S/N where it is known."""
    found = []
    for name, label in _AGAINST.items():
        x = population.numbers.get(name)
        if x is None or not np.isfinite(x).any():
            continue
        for figure, own, words in (
            ("k_hat", {"limit": _K_LIMIT, "most": _K_MOST}, "k-hat"),
            ("ess", {"logarithmic": (True, True)}, "ESS"),
        ):
            y = population.numbers[figure]
            drawn = plots.against(x, y, population.trusted, labels=(label, words), **own)
            found.append(image(drawn, _said(words, label, x, y)))
    return found


def _said(words: str, label: str, x: NDArray, y: NDArray) -> str:
    """Return what a picture of two figures shows, in words."""
    good = np.isfinite(x) & np.isfinite(y)
    if not good.any():
        return f"{words} against {label}: no object has both."
    low, high = np.quantile(x[good], [0.05, 0.95])
    few, many = (np.median(y[good & side]) if (good & side).any() else np.nan
                 for side in (x <= np.median(x[good]), x >= np.median(x[good])))  # fmt: skip
    return (
        f"{words} against {label} of {int(good.sum())} objects, 90 % of them between "
        f"{number(float(low))} and {number(float(high))}. Median {words} of the lower half "
        f"{number(float(few))}, of the upper half {number(float(many))}."
    )


def corner(row: dict, names: tuple[str, ...], draws: NDArray[np.float64]) -> Html:
    """Return the corner plot of an object's draws, or why there is none."""
    if len(names) > _LARGEST:
        return Html(f"<p>No corner plot: {len(names)} parameters are too many to be read.</p>")
    if not (np.ptp(draws, axis=0) > 0).all() or not np.isfinite(draws).all():
        return Html("<p>No corner plot: the draws have no spread.</p>")
    drawn = plots.corner(posterior_of(row, names, draws))
    for legend in drawn.legends:  # the page says what it says
        legend.remove()
    return image(drawn, f"Corner plot of {', '.join(names)}, of {len(draws)} draws.", 900)


def posterior_of(row: dict, names: tuple[str, ...], draws: NDArray[np.float64]) -> Posterior:
    """Return the kept draws of a row as a posterior: they are of equal weight."""
    n, nothing = len(draws), np.full(len(draws), np.nan)
    return Posterior(
        Parameters(names, names), draws, np.zeros(n), np.full(n, 1 / n), nothing, nothing, nothing,
        Status[row["status"]], frozenset(Flag[f] for f in (row["flags"] or "").split()),
        id=str(row["id"])[:40], ess=row["ess"], k_hat=row["k_hat"],
    )  # fmt: skip
