"""Predictions drawn: what the models of a posterior say about its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.plots.style import COLORS, CREDIBLE, INK, TRUTH, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Model = Callable[[Array, Array], ArrayLike]

_N_DRAWS = 500
_SEED = 0  # the same posterior gives the same picture


def predictive(
    posterior: Posterior,
    model: Model,
    t: ArrayLike,
    x_obs: ArrayLike,
    x_err: ArrayLike | None = None,
    *,
    grid: ArrayLike | None = None,
    truth: ArrayLike | None = None,
    labels: tuple[str, str] = ("t", "x"),
) -> Figure:
    """Draw the models of a posterior over the data, and the residuals of their median.

    Parameters
    ----------
    posterior : Posterior
    model : callable
        ``model(theta, t) -> (n, L)``, without noise, for numpy theta (n, D) and t (L,): the
        simulator itself, where all its parameters are free.
    t, x_obs : array_like, shape (L,)
        The data; a NaN in x_obs is left out.
    x_err : array_like, shape () or (L,), optional
        Their standard deviations.
    grid : array_like, shape (G,), optional
        Where the band is drawn; default: at t.
    truth : array_like, shape (D,), optional
        Parameters whose model is drawn as well.
    labels : tuple of str
        Of t and x.

    Returns
    -------
    Figure
        Two axes: data with bands, and residuals.
    """
    times, data = np.asarray(t, np.float64), np.asarray(x_obs, np.float64)
    if times.shape != data.shape or data.ndim != 1:
        raise ValueError(
            f"t and x_obs must have one shape (L,), but have {times.shape} and {data.shape}."
        )
    error = None if x_err is None else np.broadcast_to(np.asarray(x_err, np.float64), data.shape)
    where = np.sort(times) if grid is None else np.asarray(grid, np.float64)
    theta = posterior.resample(_N_DRAWS, _SEED)
    middle = np.median(curves_of(model, theta, times), axis=0)
    points = {"fmt": "o", "color": INK, "markersize": 3, "elinewidth": 0.8, "alpha": 0.8}
    with house_style("predictive") as figure_class:
        figure = figure_class(figsize=(7.4, 5.2))
        top, low = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.errorbar(times, data, error, label="data", zorder=1, **points)
        draw_band(top, where, curves_of(model, theta, where))
        if truth is not None:
            line = curves_of(model, np.asarray(truth, np.float64)[None], where)[0]
            top.plot(where, line, label="truth", zorder=4, **TRUTH)
        scale, bar = (1.0, None) if error is None else (error, 1.0)
        low.errorbar(times, (data - middle) / scale, bar, **points)
        low.axhline(0.0, color=COLORS[0], linewidth=1.2)
        low.set_ylabel("residual" if error is None else r"residual / $\sigma$")
        low.set_xlabel(labels[0])
        top.set_ylabel(labels[1])
        top.set_title(f"{posterior.id}: {posterior.status.name}, ESS {posterior.ess:.0f}")
        top.legend()
        figure.align_ylabels()
        figure.subplots_adjust(hspace=0.06)
    return figure


def draw_band(
    axes: Axes, where: Array, curves: Array, color: str = COLORS[0], label: str | None = "models"
) -> None:
    """Draw median and central credible bands of curves (n, L)."""
    for level, alpha in zip(sorted(CREDIBLE, reverse=True), (0.3, 0.5), strict=True):
        ends = np.quantile(curves, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        look = {"color": color, "alpha": alpha, "linewidth": 0, "zorder": 2}
        name = None if label is None else f"{level:.0%} of {label}"
        axes.fill_between(where, *ends, label=name, **look)
    axes.plot(where, np.median(curves, axis=0), color=color, linewidth=1.2, zorder=3)


def curves_of(model: Model, theta: Array, t: Array, *more: Array) -> Array:
    """Return the models of theta (n, D) at t and ``more`` coordinates, (n, L), as numpy."""
    curves = np.asarray(model(theta, t, *more), np.float64)
    if curves.shape != (len(theta), len(t)):
        raise ValueError(
            f"model must return shape ({len(theta)}, {len(t)}) (n, L), but returned {curves.shape}."
        )
    return curves
