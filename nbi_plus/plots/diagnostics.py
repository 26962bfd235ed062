"""Diagnostics drawn: the loss of a training, the weights of a posterior, the ranks of many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.weights.psis import threshold
from nbi_plus.plots.style import COLORS, GUIDE, PALE, colors, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nbi_plus.learn.training import History
    from nbi_plus.trust.calibration import Calibration
    from nbi_plus.trust.reliability import Reliability


def loss(history: History) -> Figure:
    """Draw training and validation loss by epoch, and mark the epoch that was kept.

    Parameters
    ----------
    history : list of dict
        ``engine.history_``.

    Returns
    -------
    Figure
    """
    if not history:
        raise ValueError("history must hold at least one epoch, but is empty. Call fit first.")
    epochs = np.arange(1, len(history) + 1)
    train, valid = (np.array([h[k] for h in history]) for k in ("train_nll", "val_nll"))
    with house_style("loss") as figure_class:
        figure = figure_class(figsize=(6.2, 3.9), layout="tight")
        axes = figure.subplots()
        axes.plot(epochs, train, color=COLORS[4], label="training")
        axes.plot(epochs, valid, color=COLORS[0], label="validation, of averaged weights")
        if np.isfinite(valid).any():
            best = int(np.nanargmin(np.where(np.isfinite(valid), valid, np.nan)))
            text = f"kept: epoch {epochs[best]}, {valid[best]:.3f}"
            ring = {"color": COLORS[0], "markersize": 7, "markerfacecolor": "white"}
            axes.plot(epochs[best], valid[best], "o", label=text, **ring)
        axes.set_xlabel("epoch")
        axes.set_ylabel(r"mean of $-\log q(z \mid x)$")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return figure


def weights(posterior: Posterior) -> Figure:
    """Draw how the weight of one posterior is shared among its draws.

    Left the weights in descending order, raw and smoothed, where 1 is what every draw of an exact
    proposal weighs; right the share that the largest ones carry together.

    Parameters
    ----------
    posterior : Posterior

    Returns
    -------
    Figure
    """
    posterior.mean()  # refuses one without weights, in words
    with house_style("weights") as figure_class:
        figure = figure_class(figsize=(8.8, 4.0), layout="tight")
        left, right = figure.subplots(1, 2)
        _sorted_weights(left, posterior)
        _carried_share(right, posterior)
        figure.suptitle(_verdict(posterior), fontsize=11)
    return figure


def _sorted_weights(axes: Axes, posterior: Posterior) -> None:
    n = len(posterior)
    raw = np.sort(posterior.log_weights)[::-1]
    raw = np.exp(raw - raw[0])
    raw, smooth = n * raw / raw.sum(), n * np.sort(posterior.weights)[::-1]
    rank = np.arange(1, n + 1)
    axes.loglog(rank[raw > 0], raw[raw > 0], ".", color=PALE, markersize=5, label="raw")
    axes.loglog(rank[smooth > 0], smooth[smooth > 0], color=COLORS[0], label="smoothed (PSIS)")
    axes.axhline(1.0, label="equal weights", **GUIDE)
    least = smooth[smooth > 0].min()
    axes.set_ylim(max(0.3 * least, 1e-4), 3 * max(raw[0], smooth[0]))
    axes.set_xlim(0.8, 1.25 * n)
    axes.set_xlabel("draws, the heaviest first")
    axes.set_ylabel("weight / mean weight")
    axes.legend(loc="lower left")


def _carried_share(axes: Axes, posterior: Posterior) -> None:
    n = len(posterior)
    largest_first = np.sort(posterior.weights)[::-1]
    carried = np.concatenate([[0.0], np.cumsum(largest_first)])
    axes.plot(np.arange(n + 1) / n, carried, color=COLORS[0])
    axes.plot([0, 1], [0, 1], **GUIDE)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("share of the draws, the heaviest first")
    axes.set_ylabel("share of the weight")
    text = f"the heaviest draw carries {largest_first[0]:.2%}"
    axes.text(0.95, 0.06, text, ha="right", transform=axes.transAxes)


def _verdict(posterior: Posterior) -> str:
    """Return status, ESS and k-hat with its limit."""
    p, limit = posterior, float(threshold(len(posterior)))
    return (
        f"{p.id}: {p.status.name}, ESS {p.ess:.0f} of {len(p)} draws, "
        rf"$\hat{{k}}$ = {p.k_hat:.2f} (limit {limit:.2f})"
    )


def ranks(calibration: Calibration, n_bins: int = 20) -> Figure:
    """Draw the histogram of ranks of each parameter, and their distribution against the uniform.

    Parameters
    ----------
    calibration : Calibration
        Of `nbi_plus.trust.calibration.sbc`.
    n_bins : int
        Of each histogram.

    Returns
    -------
    Figure
        A histogram for each parameter, where the grey band holds 95 % of the bins of exact
        posteriors; and the differences of all of them with their joint band.
    """
    c = calibration
    n_dim = len(c.names)
    expected = stats.binom(len(c), 1 / n_bins)
    with house_style("ranks") as figure_class:
        figure = figure_class(figsize=(max(2.7 * n_dim, 6.6), 6.0), layout="tight")
        places = figure.add_gridspec(2, n_dim, height_ratios=[1, 1.3])
        for i, color in enumerate(colors(n_dim)):
            axes = figure.add_subplot(places[0, i])
            axes.axhspan(*expected.interval(0.95), color=PALE, alpha=0.5, linewidth=0)
            axes.axhline(expected.mean(), **GUIDE)
            counts, edges = np.histogram(c.ranks[:, i], n_bins, (0, 1))
            axes.stairs(counts, edges, fill=True, color=color, alpha=0.3)
            axes.stairs(counts, edges, color=color, linewidth=1.3)
            axes.set_title(f"{c.labels[i]}:  p = {c.p_values[i]:.2g}")
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_xlabel("rank of the truth")
        figure.axes[0].set_ylabel("objects")
        _differences(figure.add_subplot(places[1, :]), c)
        figure.suptitle(f"Calibration of {c.scope}", fontsize=11)
    return figure


def calibration(calibration: Calibration) -> Figure:
    """Draw the means of answers against their truths, z-scores against contractions, and ranks.

    Parameters
    ----------
    calibration : Calibration
        Of `Engine.calibrate`.

    Returns
    -------
    Figure
        For each parameter means with their standard deviations against truths, where a line stands
        for equality, and how far answers are off against how much the data say: z-scores within
        the grey band are ordinary, a contraction near 0 is an answer like the prior. Below, the
        differences of all ranks from uniform ones.
    """
    c, own = calibration, calibration.recovery
    n_dim, figures = len(c.names), own.figures()
    with house_style("calibration") as figure_class:
        figure = figure_class(figsize=(max(2.9 * n_dim, 6.6), 8.4), layout="tight")
        places = figure.add_gridspec(3, n_dim, height_ratios=[1.2, 1, 1.1])
        for i, color in enumerate(colors(n_dim)):
            truth, near = own.truth[:, i], own.truth[:, i] + own.error[:, i]
            axes = figure.add_subplot(places[0, i])
            axes.errorbar(truth, near, own.sd[:, i], fmt="o", ms=2, color=color, alpha=0.4, lw=0.7)
            ends = [truth.min(), truth.max()]
            axes.plot(ends, ends, **GUIDE)
            axes.set_title(rf"{c.labels[i]}:  $R^2$ = {figures['r2'][i]:.3f}")
            axes.set_xlabel("truth")
            below = figure.add_subplot(places[1, i])
            below.axhspan(-2, 2, color=PALE, alpha=0.5, linewidth=0)
            z = own.z_score[:, i]
            below.plot(own.contraction[:, i], z, "o", ms=2, color=color, alpha=0.5)
            reach = 1.1 * max(4.0, np.abs(z).max())
            below.set_ylim(-reach, reach)
            below.set_xlabel("contraction")
            if i == 0:
                axes.set_ylabel("posterior mean")
                below.set_ylabel("z-score")
        _differences(figure.add_subplot(places[2, :]), c)
        figure.suptitle(f"Calibration of {c.scope}", fontsize=11)
    return figure


def reliability(found: Reliability) -> Figure:
    """Draw how often models were right against the probability that they were given.

    Parameters
    ----------
    found : Reliability
        ``classifier.reliability_``.

    Returns
    -------
    Figure
        Bars are one standard error, if the probabilities are right; exact ones follow the line.
    """
    with house_style("reliability") as figure_class:
        figure = figure_class(figsize=(4.6, 4.3), layout="tight")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], **GUIDE)
        axes.errorbar(found.probability, found.share, found.error, fmt="o", color=COLORS[0])
        axes.set_xlabel("probability of a model")
        axes.set_ylabel("how often it was right")
        axes.set_title(f"{found.count.sum()} probabilities, log score {found.log_score:.3f}")
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    return figure


def _differences(axes: Axes, calibration: Calibration) -> None:
    """Draw the ECDF differences of all parameters, and the band of one of them."""
    c = calibration
    band = {"color": PALE, "alpha": 0.5, "linewidth": 0}
    axes.fill_between(c.grid, *c.band, label="95 % of exact posteriors", **band)
    axes.axhline(0.0, **GUIDE)
    for row, label, color in zip(c.ecdf_difference, c.labels, colors(len(c.labels)), strict=True):
        axes.plot(c.grid, row, color=color, label=label)
    reach = 1.45 * max(np.abs(c.band).max(), np.abs(c.ecdf_difference).max())
    axes.set_xlim(0, 1)
    axes.set_ylim(-reach, reach)
    axes.set_xlabel("rank of the truth")
    axes.set_ylabel("ECDF of ranks - uniform")
    axes.legend(ncols=min(len(c.labels) + 1, 5), loc="upper center")
