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


def observed(
    observations: Observations, curves: ArrayLike | None = None, title: str = "", most: int = 4
) -> Figure:
    """Draw one object's data, and models of them at its own points, where there are any.

    Parameters
    ----------
    observations : Observations
        Of one object.
    curves : array_like, shape (n, C, L), optional
        Models without noise.
    title : str
    most : int
        Channels that are drawn, one above the other.
    """
    batch = observations.batch()
    numbers = {k: np.atleast_2d(v.numpy())[0] for k, v in batch.coords.items()
               if v.is_floating_point()}  # fmt: skip
    name, at = next(iter(numbers.items()), ("point", np.arange(batch.x.shape[2], dtype=float)))
    codes, names = _bands(observations)
    n_channels = min(observations.n_channels, most)
    models = None if curves is None else np.asarray(curves, np.float64)
    with house_style("observed") as figure_class:
        figure = figure_class(figsize=(5.4, 2.0 + 1.4 * n_channels), layout="tight")
        grid = figure.subplots(n_channels, 1, sharex=True, squeeze=False)[:, 0]
        for channel, axes in enumerate(grid):
            real = batch.mask[0, channel].numpy()
            for code, band in enumerate(names):
                own = real if codes is None else real & (codes == code)
                if not own.any():
                    continue
                color = COLORS[code % len(COLORS)]
                _points(axes, observations, at, own, color, band, channel)
                if models is not None:
                    order = np.flatnonzero(own)[np.argsort(at[own])]
                    draw_band(axes, at[order], models[:, channel, order], color, label=None)
            axes.set_ylabel("x" if n_channels == 1 else f"x[{channel}]")
        grid[-1].set_xlabel(name)
        grid[0].set_title(title)
        if names[0]:
            grid[0].legend()
    return figure


def _bands(observations: Observations) -> tuple[NDArray | None, tuple[str, ...]]:
    """Return the codes of one object's points and the names of its bands; one nameless band."""
    for name, kinds in observations.categories.items():
        return np.atleast_2d(observations.coords[name])[0], kinds
    return None, ("",)


def _points(
    axes: Axes, observations: Observations, at: Array, own: NDArray, color: str, name: str,
    channel: int = 0,
) -> None:  # fmt: skip
    """Draw points with their errors, and upper limits as arrows."""
    x, error = observations.x[0, channel], observations.x_err
    limits = observations.coords.get("upper_limit", np.zeros(len(at), bool))
    limits = np.atleast_2d(limits)[0] & own
    seen = own & ~limits
    look = {"color": color, "markersize": 3, "elinewidth": 0.8, "alpha": 0.8, "zorder": 1}
    bars = None if error is None else error[0, channel][seen]
    axes.errorbar(at[seen], x[seen], bars, fmt="o", label=name or None, **look)
    if limits.any():
        axes.plot(at[limits], x[limits], "v", color=color, markersize=4, alpha=0.5)
