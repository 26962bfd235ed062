"""Escalation drawn: the chains of an object, what they changed, and what the rungs cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.status import RungReport, Status
from nbi_plus.infer.samplers.diagnostics import chain_ess
from nbi_plus.plots.corners import corner
from nbi_plus.plots.style import COLORS, GUIDE, INK, PALE, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nbi_plus.infer.posterior.posteriors import Posteriors

Array = NDArray[np.float64]

_GROUPS = 8
_GROUP_COLORS = (*COLORS, INK, "#8C8C8C")
_N_BINS = 24
_STRETCHES = 10
_BAND = 0.99
_ROW = 0.6  # height of a histogram of ranks that is as expected; rows are 1 apart
_LEAST_DRAWS = 8  # of a chain, to know an autocorrelation time
_GOOD, _BAD = COLORS[0], COLORS[1]
# in the order of the ladder; a rung that is not here comes last
_ORDER = (
    "amortized", "reweight", "hints", "top up", "refine", "refined", "sequential",
    "hmc", "hmc weights", "flow", "ensemble", "ensemble weights",
)  # fmt: skip
_CALLS, _GRADIENTS, _SECONDS = ("o", COLORS[2]), ("s", COLORS[4]), ("D", INK)
_STRIP, _BOX_FROM = 400, 5  # points of a rung that are drawn at most; that a box needs


def trace(posterior: Posterior, *, n_super: int | None = None) -> Figure:
    """Draw the chains of each parameter, and the marginals of the superchains.

    Good chains look alike: no colour keeps to a place of its own, and nothing drifts.

    Parameters
    ----------
    posterior : Posterior
        With chains.
    n_super : int, optional
        Superchains, of consecutive chains, each of one colour; default: 8, or what is below and
        divides the number of chains.

    Returns
    -------
    Figure
        2 D axes, row by row: the chains of a parameter, with thick lines for the means of each
        superchain over stretches of its draws; and the histograms of superchains, over that of all.
    """
    groups = _grouped(posterior, "trace", n_super)
    n_dim = groups.shape[-1]
    with house_style("trace") as figure_class:
        figure = figure_class(figsize=(8.4, 1.5 * n_dim + 1.1), layout="constrained")
        grid = figure.subplots(n_dim, 2, width_ratios=[4, 1], squeeze=False, sharey="row")
        for i, (left, right) in enumerate(grid):
            _traces(left, groups[..., i])
            _marginals(right, groups[..., i])
            left.set_ylabel(_labels(posterior)[i])
            left.tick_params(labelbottom=i == n_dim - 1)
        grid[-1, 0].set_xlabel("draw of a chain")
        grid[-1, 1].set_xlabel("density")
        figure.align_ylabels(grid[:, 0])
        figure.suptitle(_title(posterior), fontsize=11)
    return figure


def rank(posterior: Posterior, *, n_super: int | None = None, n_bins: int = 16) -> Figure:
    r"""Draw how the draws of each superchain rank among all (Vehtari et al. 2021).

    Chains that sample one distribution have uniform ranks. A slope is a superchain that sits too
    low or too high; a hump or a trough is one too narrow or too wide. The grey band holds 99 % of
    the bins where chains have converged; it allows for their autocorrelation.

    Parameters
    ----------
    posterior : Posterior
        With chains.
    n_super : int, optional
        As for `trace`.
    n_bins : int
        Of each histogram.

    Returns
    -------
    Figure
        One axes for each parameter, with a histogram of ranks for each superchain, the first one
        lowest, about the dotted line of what is expected.
    """
    groups = _grouped(posterior, "rank", n_super)
    n_dim = groups.shape[-1]
    n_columns = min(n_dim, 3)
    n_rows = -(-n_dim // n_columns)
    height = 0.34 * len(groups) + 0.9
    with house_style("rank") as figure_class:
        size = (max(2.8 * n_columns, 4.2), height * n_rows + 0.6)
        figure = figure_class(figsize=size, layout="constrained")
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
        for i, axes in enumerate(grid.flat):
            axes.set_visible(i < n_dim)
            if i < n_dim:
                n_out, n = _rank_rows(axes, groups[..., i], n_bins), len(groups) * n_bins
                axes.set_title(f"{posterior.parameters.labels[i]}:  {n_out} of {n} outside")
                axes.tick_params(labelbottom=i >= n_dim - n_columns)
        for axes in grid[:, 0]:
            axes.set_ylabel("group of walkers" if _walks(posterior) else "superchain")
        figure.supxlabel("rank among all draws", fontsize=11)
        figure.suptitle(_title(posterior), fontsize=11)
    return figure


def before_after(
    before: Posterior | ArrayLike,
    after: Posterior,
    truths: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    *,
    names: tuple[str, str] = ("before", "after"),
    size: float = 2.1,
) -> Figure:
    """Draw the corner plot of an object before and after it was escalated.

    Parameters
    ----------
    before : Posterior or array_like, shape (n, D)
        Of ``Ladder(escalate="never")``, or draws of the network alone: ``engine.sample(...)``.
    after : Posterior
    truths, labels, size
        As for `corner`.
    names : tuple of str
        Of both, for the legend.

    Returns
    -------
    Figure
        As of `corner`.
    """
    first = before if isinstance(before, Posterior) else _of_draws(before, after)
    return corner([first, after], truths, labels, names=names, size=size)


def efficiency_by_rung(posteriors: Posteriors) -> Figure:
    """Draw what became of the objects on each rung, and what it cost them.

    Parameters
    ----------
    posteriors : Posteriors

    Returns
    -------
    Figure
        Four axes, with a row for each rung, the first one on top: how many objects passed, of how
        many that tried it; their efficiencies (effective draws for each draw, of chains for each
        step), with median, quartiles and the middle 95 %; and what it cost an object in
        simulations and in seconds, median and middle 68 %.
    """
    tried = _by_rung(posteriors.rungs)
    if not tried:
        raise ValueError("posteriors must hold objects that tried a rung, but hold none.")
    with house_style("efficiency_by_rung") as figure_class:
        figure = figure_class(figsize=(11.0, 0.5 * len(tried) + 1.9), layout="constrained")
        grid = figure.subplots(1, 4, sharey=True, width_ratios=[1, 1.5, 1, 0.8])
        counts, efficiencies, simulations, seconds = grid
        _counts(counts, tried)
        rng = np.random.default_rng(0)  # the same posteriors give the same picture
        for row, own in enumerate(tried.values()):
            _efficiencies(efficiencies, row, [line for lines in own for line in lines], rng)
            _cost(simulations, row - 0.13, [sum(r.n_calls for r in o) for o in own], _CALLS)
            _cost(simulations, row + 0.13, [sum(r.n_gradients for r in o) for o in own], _GRADIENTS)
            _cost(seconds, row, [sum(r.seconds for r in o) for o in own], _SECONDS)
        counts.set_yticks(range(len(tried)), list(tried))
        counts.set_ylim(len(tried) - 0.4, -0.6)
        texts = ("objects", "efficiency", "simulations of an object", "seconds of an object")
        for axes, text in zip(grid, texts, strict=True):
            axes.set_xlabel(text)
            axes.tick_params(axis="y", length=0)
        _legend(efficiencies, [("passed", "o", _GOOD), ("not passed", "o", _BAD)])
        _legend(simulations, [("without gradient", *_CALLS), ("with gradient", *_GRADIENTS)])
        for axes in grid[1:]:
            _logarithmic(axes)
        figure.suptitle(_statuses(posteriors), fontsize=11)
    return figure


def _grouped(posterior: Posterior, caller: str, n_super: int | None) -> Array:
    """Return chains as superchains, shape (G, M, N, D)."""
    chains = posterior.chains
    if chains is None:
        raise ValueError(
            f"posterior must have chains for {caller}, but {posterior.id!r} has none: its status "
            f"is {posterior.status.name}. "
            'Predict with Ladder(escalate="always") and keep=None.'
        )
    n = len(chains)
    if n_super is None:
        n_super = next((k for k in range(min(_GROUPS, n), 1, -1) if n % k == 0), n)
    if not 1 <= n_super <= n or n % n_super:
        raise ValueError(f"n_super must divide {n}, the number of chains, but is {n_super}.")
    return chains.reshape(n_super, n // n_super, *chains.shape[1:])


def _labels(posterior: Posterior) -> list[str]:
    """Return display labels with their units."""
    p = posterior.parameters
    units = [p.units.get(name, "") for name in p.names]
    return [f"{text} [{u}]" if u else text for text, u in zip(p.labels, units, strict=True)]


def _walks(posterior: Posterior) -> bool:
    """Return whether the chains are those of walkers, which have no superchains."""
    return any(rung.name == "ensemble" for rung in posterior.rungs)


def _title(posterior: Posterior) -> str:
    """Return status, the largest R-hat of the last chains, and how many there are."""
    known = [rung.r_hat for rung in posterior.rungs if not np.isnan(rung.r_hat)]
    r_hat = [rf"largest $\hat{{R}}$ = {known[-1]:.3f}"] if known else []
    kind = "walkers" if _walks(posterior) else "chains"
    n_chains, n_draws = posterior.chains.shape[:2]
    said = [posterior.status.name, *r_hat, f"{n_chains} {kind} of {n_draws} draws"]
    return f"{posterior.id}: {', '.join(said)}"


def _traces(axes: Axes, groups: Array) -> None:
    """Draw chains (G, M, N), and the means of each superchain over stretches of draws."""
    n_each, n_draws = groups.shape[1:]
    draw = np.arange(1, n_draws + 1)
    alpha = float(np.clip(0.8 / np.sqrt(n_each), 0.1, 0.8))
    for group, color in zip(groups, cycle(_GROUP_COLORS), strict=False):
        axes.plot(draw, group.T, "-", color=color, linewidth=0.5, alpha=alpha, zorder=1)
    stretches = np.array_split(draw, min(_STRETCHES, n_draws))
    middle = [stretch.mean() for stretch in stretches]
    for group, color in zip(groups, cycle(_GROUP_COLORS), strict=False):
        means = [group[:, stretch - 1].mean() for stretch in stretches]
        axes.plot(middle, means, "-", color=color, linewidth=1.3, zorder=2)
    axes.set_xlim(1, max(n_draws, 2))


def _marginals(axes: Axes, groups: Array) -> None:
    """Draw the histogram of all draws (G, M, N), and of each superchain."""
    limits = groups.min(), groups.max()
    density, edges = np.histogram(groups, _N_BINS, limits, density=True)
    axes.stairs(density, edges, fill=True, color=PALE, alpha=0.6, orientation="horizontal")
    for group, color in zip(groups, cycle(_GROUP_COLORS), strict=False):
        density, _ = np.histogram(group, edges, density=True)
        axes.stairs(density, edges, color=color, linewidth=0.8, orientation="horizontal")
    axes.set(xlim=(0, None), xticks=[])


def _rank_rows(axes: Axes, groups: Array, n_bins: int) -> int:
    """Draw a histogram for each group of draws (G, M, N); return how many bins lie outside."""
    ranks = (stats.rankdata(groups).reshape(groups.shape) - 0.5) / groups.size
    counts = np.array([np.histogram(group, n_bins, (0, 1))[0] for group in ranks])
    heights = counts / counts.mean()
    reach = _reach(ranks, n_bins)
    edges = np.linspace(0, 1, n_bins + 1)
    for i, (height, color) in enumerate(zip(heights, cycle(_GROUP_COLORS), strict=False)):
        band = {"color": PALE, "alpha": 0.5, "linewidth": 0}
        axes.axhspan(i + _ROW * max(1 - reach, 0), i + _ROW * (1 + reach), **band)
        axes.hlines(i + _ROW, 0, 1, **GUIDE)
        values = i + _ROW * height
        axes.stairs(values, edges, baseline=i + _ROW, fill=True, color=color, alpha=0.6)
        axes.stairs(values, edges, baseline=None, color=color, linewidth=1.1)
    axes.set(xlim=(0, 1), ylim=(0, len(groups) + 0.25))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks(np.arange(len(groups)) + _ROW, [str(i + 1) for i in range(len(groups))])
    axes.tick_params(axis="y", length=0)
    return int((np.abs(heights - 1) > reach).sum())


def _reach(ranks: Array, n_bins: int) -> float:
    """Return how far bins of converged chains lie from what is expected, over that.

    The count of a bin is hypergeometric for independent draws. Draws of one chain vary more, by
    their autocorrelation time: that of ranks about the mean of their own chain, for chains that
    disagree must not make room for themselves.
    """
    n_all, (n_each, n_draws) = ranks.size, ranks.shape[1:]
    n_own = n_each * n_draws
    chains = ranks.reshape(1, -1, n_draws, 1)
    centred = torch.from_numpy(chains - chains.mean(2, keepdims=True))
    ess = float(chain_ess(centred)) if n_draws >= _LEAST_DRAWS else n_all
    excess = max(n_all / ess, 1.0) if ess else 1.0
    variance = excess * (n_bins - 1) / n_own * (n_all - n_own) / max(n_all - 1, 1)
    return float(stats.norm.isf((1 - _BAND) / 2) * np.sqrt(variance))


def _of_draws(draws: ArrayLike, like: Posterior) -> Posterior:
    """Return a posterior of draws (n, D) of equal weight, of the parameters of another."""
    samples = np.asarray(draws, np.float64)
    if samples.ndim != 2 or samples.shape[1] != len(like.names) or not len(samples):
        raise ValueError(
            f"before must be a Posterior, or draws of shape (n, {len(like.names)}) of "
            f"{like.names}, but has shape {samples.shape}."
        )
    n = len(samples)
    zero, unknown = np.zeros(n), np.full(n, np.nan)
    return Posterior(
        like.parameters, samples, zero, np.full(n, 1 / n), unknown, unknown, unknown,
        Status.AMORTIZED, ess=float(n), id=like.id,
    )  # fmt: skip


def _by_rung(rungs: Sequence[Sequence[RungReport]]) -> dict[str, list[list[RungReport]]]:
    """Return for each rung, in order, the lines of every object that tried it."""
    found: dict[str, list[list[RungReport]]] = {}
    for lines in rungs:
        for name in dict.fromkeys(line.name for line in lines):
            found.setdefault(name, []).append([line for line in lines if line.name == name])
    place = {name: i for i, name in enumerate(_ORDER)}
    return dict(sorted(found.items(), key=lambda item: place.get(item[0], len(place))))


def _counts(axes: Axes, tried: Mapping[str, list[list[RungReport]]]) -> None:
    """Draw how many objects tried each rung, and how many of them passed."""
    most = max(len(own) for own in tried.values())
    for row, own in enumerate(tried.values()):
        n_passed = sum(lines[-1].passed for lines in own)
        axes.barh(row, len(own), 0.6, color=PALE, alpha=0.6)
        axes.barh(row, n_passed, 0.6, color=_GOOD)
        text = f"{n_passed} of {len(own)}"
        axes.text(len(own) + 0.03 * most, row, text, va="center", fontsize=9)
    axes.set(xlim=(0, 2.1 * most), xticks=[0, most])


def _efficiencies(axes: Axes, row: int, lines: list[RungReport], rng: np.random.Generator) -> None:
    """Draw the efficiency of each line as a point, and their distribution as a box."""
    known = [line for line in lines if np.isfinite(line.efficiency) and line.n_draws]
    # a logarithmic axis has no place for 0; one effective draw is the least there is
    values = np.array([max(line.efficiency, 1 / line.n_draws) for line in known])
    passed = np.array([line.passed for line in known], bool)
    shown = rng.permutation(len(known))[:_STRIP]
    spread = rng.uniform(-0.25, 0.25, len(shown)) * (len(shown) > 1)
    alpha = float(np.clip(6 / np.sqrt(max(len(shown), 1)), 0.35, 0.9))
    for which, color in ((~passed, _BAD), (passed, _GOOD)):
        own = which[shown]
        look = {"markersize": 3.5, "markeredgewidth": 0, "alpha": alpha}
        axes.plot(values[shown][own], row + spread[own], "o", color=color, **look)
    if len(values) >= _BOX_FROM:
        low, start, middle, end, high = np.quantile(values, [0.025, 0.25, 0.5, 0.75, 0.975])
        axes.hlines([row, row], [low, end], [start, high], color=INK, linewidth=1.0)
        axes.barh(row, end - start, 0.66, left=start, color="none", edgecolor=INK, linewidth=1.0)
        axes.vlines(middle, row - 0.33, row + 0.33, color=INK, linewidth=2.0)


def _cost(axes: Axes, y: float, spent: list[float], look: tuple[str, str]) -> None:
    """Draw the median of what objects spent, and the middle 68 %."""
    low, middle, high = np.quantile(spent, [0.16, 0.5, 0.84])
    if middle > 0:
        axes.hlines(y, max(low, 1e-3 * middle), high, color=look[1], linewidth=1.2)
        axes.plot(middle, y, look[0], color=look[1], markersize=5)


def _legend(axes: Axes, entries: Sequence[tuple[str, str, str]]) -> None:
    """Name markers above the axes, where they hide no point."""
    for label, marker, color in entries:
        axes.plot([], [], marker, color=color, markersize=4.5, label=label)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
        columnspacing=1.0,
        handletextpad=0.2,
        borderpad=0.2,
    )


def _logarithmic(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, over whole decades so that two ticks have numbers."""
    low, high = axes.dataLim.intervalx
    if not 0 < low <= high:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "not known", ha="center", color=INK, transform=axes.transAxes)
        return
    axes.set_xscale("log")
    first, last = np.floor(np.log10(0.99 * low)), np.ceil(np.log10(1.01 * high))
    axes.set_xlim(0.8 * 10**first, 1.25 * 10**last)
    axes.tick_params(axis="x", which="minor", labelbottom=False)


def _statuses(posteriors: Posteriors) -> str:
    """Return how many objects have each status, the most frequent first."""
    counts = Counter(s.name for s in posteriors.status).most_common()
    said = ", ".join(f"{n} {name}" for name, n in counts)
    return f"{len(posteriors)} object{'s'[: len(posteriors) > 1]}: {said}"
