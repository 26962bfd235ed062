"""Light curves drawn: one object's points, band by band, and the models of its posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.observations import Observations
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.plots.predictions import curves_of, draw_band
from nbi_plus.plots.style import COLORS, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
_N_DRAWS = 500
_N_GRID = 400
_SEED = 0  # the same posterior gives the same picture


def light_curve(
    posterior: Posterior,
    model: Callable[..., ArrayLike],
    observations: Observations,
    *,
    coordinate: str = "t",
    grid: ArrayLike | None = None,
    labels: tuple[str, str] | None = None,
    magnitudes: bool = False,
) -> Figure:
    """Draw the models of a posterior over one object's points, each band in its colour.

    Parameters
    ----------
    posterior : Posterior
    model : callable
        ``model(theta, t) -> (n, G)`` without noise, for numpy theta (n, D) and t (G,); for data in
        bands ``model(theta, t, band)`` with codes (G,).
    observations : Observations
        Of one object; upper limits are drawn as arrows.
    coordinate : str
        What the points are drawn against, as ``wavelength`` or ``phase``.
    grid : array_like, shape (G,), optional
        Where the models are drawn; default: evenly over the points.
    labels : tuple of str, optional
        Of the two axes.
    magnitudes : bool
        Whether small values are bright, and are drawn on top.

    Returns
    -------
    Figure
    """
    if len(observations) != 1 or observations.n_channels != 1:
        raise ValueError(
            f"observations must be of one object and one channel, but are {observations!r}. "
            "Take one with observations[i]."
        )
    batch = observations.batch()
    at, real = np.atleast_2d(batch.coords[coordinate].numpy())[0], batch.mask[0, 0].numpy()
    where = (
        np.linspace(at[real].min(), at[real].max(), _N_GRID)
        if grid is None
        else np.asarray(grid, np.float64)
    )
    theta = posterior.resample(_N_DRAWS, _SEED)
    codes, names = _bands(observations)
    with house_style("light_curve") as figure_class:
        figure = figure_class(figsize=(7.4, 4.4))
        axes = figure.subplots()
        for code, name in enumerate(names):
            color = COLORS[code % len(COLORS)]
            extra = () if codes is None else (np.full(len(where), code),)
            own = real if codes is None else real & (codes == code)
            if not own.any():
                continue
            _points(axes, observations, at, own, color, name)
            curves = curves_of(model, theta, where, *extra)
            draw_band(axes, where, curves, color, label=None)
        axes.set(xlabel=labels[0] if labels else coordinate, ylabel=labels[1] if labels else "x")
        axes.set_title(f"{posterior.id}: {posterior.status.name}, ESS {posterior.ess:.0f}")
        if magnitudes:
            axes.invert_yaxis()
        if names[0]:
            axes.legend()
    return figure


def _bands(observations: Observations) -> tuple[NDArray | None, tuple[str, ...]]:
    """Return the codes of one object's points and the names of its bands; one nameless band."""
    for name, kinds in observations.categories.items():
        return np.atleast_2d(observations.coords[name])[0], kinds
    return None, ("",)


def _points(
    axes: Axes, observations: Observations, at: Array, own: NDArray, color: str, name: str
) -> None:
    """Draw points with their errors, and upper limits as arrows."""
    x, error = observations.x[0, 0], observations.x_err
    limits = observations.coords.get("upper_limit", np.zeros(len(at), bool))
    limits = np.atleast_2d(limits)[0] & own
    seen = own & ~limits
    look = {"color": color, "markersize": 3, "elinewidth": 0.8, "alpha": 0.8, "zorder": 1}
    bars = None if error is None else error[0, 0][seen]
    axes.errorbar(at[seen], x[seen], bars, fmt="o", label=name or None, **look)
    if limits.any():
        axes.plot(at[limits], x[limits], "v", color=color, markersize=4, alpha=0.5)
