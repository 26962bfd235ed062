"""Corner plots: all one- and two-dimensional marginals of posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.plots.densities import Span, credible_heights, density, interval_text, span
from nbi_plus.plots.style import CREDIBLE, TRUTH, colors, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_N_BINS = 36


def corner(
    posteriors: Posterior | Sequence[Posterior],
    truths: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    levels: Sequence[float] = CREDIBLE,
    size: float = 2.1,
) -> Figure:
    """Draw all one- and two-dimensional marginals.

    Parameters
    ----------
    posteriors : Posterior or sequence of Posterior
        Several, of the same parameters, are drawn over each other.
    truths : array_like, shape (D,), optional
        Marked by lines; NaN leaves one out.
    labels : sequence of str, optional
        Of the parameters; default: those of the prior, with units.
    names : sequence of str, optional
        Of the posteriors, for the legend; default: their ids.
    levels : sequence of float
        Mass inside each contour.
    size : float
        Of one panel, in inches.

    Returns
    -------
    Figure
        Its axes are D x D, row by row, those above the diagonal hidden.
    """
    shown = _several(posteriors)
    n_dim = len(shown[0].names)
    marks = _marks(truths, n_dim)
    texts = _labels(shown[0], labels)
    captions = _captions(shown, names)
    spans = [span(shown, i, mark) for i, mark in enumerate(marks)]
    with house_style("corner") as figure_class:
        side = max(size * n_dim + 0.6, 3.4)
        figure = figure_class(figsize=(side, side))
        grid = figure.subplots(n_dim, n_dim, squeeze=False)
        for row, column in np.ndindex(n_dim, n_dim):
            axes = grid[row, column]
            axes.set_visible(column <= row)
            for color, caption, posterior in zip(colors(len(shown)), captions, shown, strict=True):
                if row == column:
                    _histogram(axes, posterior, row, spans[row], color, caption)
                elif column < row:
                    pair = (spans[column], spans[row])
                    _contours(axes, posterior, (column, row), pair, levels, color)
            _mark_truth(axes, marks[column], marks[row] if row != column else np.nan)
            _finish(axes, row, column, spans, texts)
        if len(shown) == 1:
            _titles(grid, shown[0], texts)
        figure.subplots_adjust(wspace=0.08, hspace=0.08)
        figure.align_labels()
        _legend(figure, grid[0, 0])
    return figure


def _several(posteriors: Posterior | Sequence[Posterior]) -> list[Posterior]:
    """Return a list of posteriors of the same parameters, each with draws that weigh."""
    shown = [posteriors] if isinstance(posteriors, Posterior) else list(posteriors)
    if not shown:
        raise ValueError("posteriors must hold at least one Posterior, but are empty.")
    for posterior in shown:
        if posterior.names != shown[0].names:
            raise ValueError(
                f"posteriors must be of the same parameters, but are of {shown[0].names} and "
                f"{posterior.names}."
            )
        posterior.mean()  # refuses one without weights, in words
    return shown


def _marks(truths: ArrayLike | None, n_dim: int) -> NDArray[np.float64]:
    marks = np.full(n_dim, np.nan) if truths is None else np.asarray(truths, np.float64)
    if marks.shape != (n_dim,):
        raise ValueError(f"truths must have shape ({n_dim},), but has {marks.shape}.")
    return marks


def _labels(posterior: Posterior, labels: Sequence[str] | None) -> list[str]:
    """Return display labels with their units."""
    p = posterior.parameters
    if labels is None:
        units = [p.units.get(name, "") for name in p.names]
        return [f"{text} [{u}]" if u else text for text, u in zip(p.labels, units, strict=True)]
    if len(labels) != len(p.names):
        raise ValueError(f"labels must be {len(p.names)}, for {p.names}, but are {list(labels)}.")
    return list(labels)


def _captions(shown: Sequence[Posterior], names: Sequence[str] | None) -> list[str]:
    """Return what the legend says of each posterior: its name and its verdict."""
    given = [p.id for p in shown] if names is None else list(names)
    if len(given) != len(shown):
        raise ValueError(f"names must be {len(shown)}, one for each posterior, but are {given}.")
    pairs = zip(given, shown, strict=True)
    return [f"{name}: {p.status.name}, ESS {p.ess:.0f}" for name, p in pairs]


def _histogram(
    axes: Axes, posterior: Posterior, i: int, limits: Span, color: str, caption: str
) -> None:
    """Draw the weighted histogram of one parameter."""
    height, edges = np.histogram(
        posterior.samples[:, i], _N_BINS, limits, weights=posterior.weights, density=True
    )
    axes.stairs(height, edges, fill=True, color=color, alpha=0.25, label=caption)
    axes.stairs(height, edges, color=color, linewidth=1.3)


def _contours(
    axes: Axes,
    posterior: Posterior,
    pair: tuple[int, int],
    spans: tuple[Span, Span],
    levels: Sequence[float],
    color: str,
) -> None:
    """Draw filled credible contours of two parameters."""
    d = density(posterior, pair, spans)
    heights = credible_heights(d.values, levels)
    top = d.values.max() * 1.001
    for height, alpha in zip(heights, np.linspace(0.2, 0.45, len(heights)), strict=True):
        axes.contourf(d.x, d.y, d.values.T, [height, top], colors=[color], alpha=alpha)
    axes.contour(d.x, d.y, d.values.T, heights, colors=[color], linewidths=1.0)


def _mark_truth(axes: Axes, x: float, y: float) -> None:
    if np.isfinite(x):
        axes.axvline(x, label="truth", **TRUTH)
    if np.isfinite(y):
        axes.axhline(y, **TRUTH)
    if np.isfinite(x) and np.isfinite(y):
        axes.plot(x, y, "s", color=TRUTH["color"], markersize=3.5)


def _finish(axes: Axes, row: int, column: int, spans: list[Span], labels: list[str]) -> None:
    """Set limits, ticks and labels of one panel: only the outer ones are labelled."""
    last, left = row == len(labels) - 1, column == 0
    axes.set_xlim(spans[column])
    axes.locator_params(axis="x", nbins=4)
    if row == column:
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(spans[row])
        axes.locator_params(axis="y", nbins=4)
    axes.tick_params(axis="x", labelbottom=last, rotation=40)
    axes.tick_params(axis="y", labelleft=left)
    if last:
        axes.set_xlabel(labels[column])
    if left and row > 0:
        axes.set_ylabel(labels[row])


def _titles(grid: NDArray, posterior: Posterior, labels: list[str]) -> None:
    """Write median and 68 % interval above each diagonal panel."""
    for i, levels in enumerate(posterior.quantile([0.16, 0.5, 0.84]).T):
        name = labels[i].split(" [")[0]
        grid[i, i].set_title(f"{name} = {interval_text(*levels)}", pad=7)


def _legend(figure: Figure, first: Axes) -> None:
    """Name posteriors and truth in the free corner, or above a single panel."""
    handles, captions = first.get_legend_handles_labels()
    if len(figure.axes) > 1:
        figure.legend(handles, captions, loc="upper right", bbox_to_anchor=(0.905, 0.885))
    else:
        figure.legend(handles, captions, loc="lower center", bbox_to_anchor=(0.5, 0.97))
