"""Populations drawn: what many answers come to, against what their data are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.plots.style import COLORS, GUIDE, INK, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
_MANY = 2000  # points that are still told apart
_BINS = 12
_SHORT = 200  # an axis that spans less has three numbers a decade
_FEW = 5  # objects of a bin that has a median


def against(
    x: ArrayLike,
    y: ArrayLike,
    trusted: ArrayLike,
    *,
    labels: tuple[str, str],
    logarithmic: tuple[bool, bool] = (True, False),
    limit: float | None = None,
    most: float | None = None,
) -> Figure:
    """Draw one figure of many objects against another, and its median.

    Parameters
    ----------
    x, y : array_like, shape (N,)
        What is not finite is left out, on a logarithmic axis also what is not positive.
    trusted : array_like of bool, shape (N,)
        The others are drawn in another colour and shape; of very many objects only densities are
        drawn.
    labels : tuple of str
        Of x and y.
    logarithmic : tuple of bool
        Whether each axis is.
    limit : float, optional
        Where a line is drawn across.
    most : float, optional
        Larger values of y are drawn there.

    Returns
    -------
    Figure
    """
    at, value = np.asarray(x, np.float64), np.asarray(y, np.float64)
    value = value if most is None else np.where(value > most, most, value)
    good = np.isfinite(at) & np.isfinite(value)
    for own, log in zip((at, value), logarithmic, strict=True):
        good &= (own > 0) | (not log)
    at, value, believed = at[good], value[good], np.asarray(trusted, bool)[good]
    with house_style("against") as figure_class:
        figure = figure_class(figsize=(4.6, 3.5), layout="tight")
        axes = figure.subplots()
        (_points if len(at) <= _MANY else _density)(axes, at, value, believed, logarithmic)
        if limit is not None:
            axes.axhline(limit, label=f"limit {limit:g}", **GUIDE)
        _median(axes, at, value, logarithmic[0])
        axes.set(xlabel=labels[0], ylabel=labels[1])
        for name, log in zip("xy", logarithmic, strict=True):
            if log:
                _plain_ticks(axes, name)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def _points(axes: Axes, x: Array, y: Array, trusted: NDArray[np.bool_], _: object) -> None:
    look = {"linestyle": "none", "markersize": 4, "alpha": 0.6}
    for chosen, name, color, marker in (
        (trusted, "trusted", COLORS[0], "o"),
        (~trusted, "not trusted", COLORS[1], "x"),
    ):
        if chosen.any():
            axes.plot(x[chosen], y[chosen], marker, color=color, label=name, **look)


def _density(
    axes: Axes, x: Array, y: Array, _: NDArray[np.bool_], logarithmic: tuple[bool, bool]
) -> None:
    scales = ["log" if log else "linear" for log in logarithmic]
    drawn = axes.hexbin(x, y, gridsize=40, bins="log", mincnt=1, cmap="Blues", linewidths=0,
                        xscale=scales[0], yscale=scales[1])  # fmt: skip
    axes.figure.colorbar(drawn, label="objects")


def _plain_ticks(axes: Axes, name: str) -> None:
    """Make an axis logarithmic, with numbers that are read at once."""
    getattr(axes, f"set_{name}scale")("log")
    low, high = getattr(axes, f"get_{name}lim")()
    axis = getattr(axes, f"{name}axis")
    if low > 0 and high / low < _SHORT:
        axis.get_major_locator().set_params(subs=(1, 2, 5))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter("")


def _median(axes: Axes, x: Array, y: Array, log: bool) -> None:
    """Draw the median of y in bins of x that hold enough."""
    if len(x) < 2 * _FEW or x.min() == x.max():
        return
    edges = (np.geomspace if log else np.linspace)(x.min(), x.max(), _BINS + 1)
    places = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, _BINS - 1)
    # a loop over bins, of which there are a dozen
    kept = [i for i in range(_BINS) if (places == i).sum() >= _FEW]
    middles = [np.median(x[places == i]) for i in kept]
    medians = [np.median(y[places == i]) for i in kept]
    axes.plot(middles, medians, "-", color=INK, label="median", marker=".")
