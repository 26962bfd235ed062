"""What an effective draw costs, drawn: every package on every problem, one object at a time."""

from __future__ import annotations

import numpy as np

from benchmarks.sequential import ENTRIES, PROBLEMS, grouped
from nbi_plus.plots.style import COLORS, INK, PALE, house_style

MARKERS = "oDs^vP"
LOOKS = dict(zip(ENTRIES, zip(COLORS, MARKERS, strict=True), strict=True))
WIDTH = 0.8  # of a problem's packages side by side, where problems are 1 apart
REACH = 2.0  # free room above and below, as a factor


def calls_per_draw(results):
    """Return a figure of simulator calls per effective draw: medians over seeds, and every seed.

    A hollow point is a fit that its own package did not certify; a hollow median has such a fit
    among its seeds.
    """
    groups = grouped(results)
    problems = [name for name in PROBLEMS if any(problem == name for problem, _ in groups)]
    packages = [name for name in ENTRIES if any(package == name for _, package in groups)]
    with house_style("sequential --plot") as figure_class:
        size = (2.2 + 1.5 * max(len(problems), 2), 4.8)
        figure = figure_class(figsize=size, layout="constrained")
        axes = figure.subplots()
        for (problem, package), runs in groups.items():
            shift = (packages.index(package) + 0.5) / len(packages) - 0.5
            _runs(axes, problems.index(problem) + WIDTH * shift, runs)
        _frame(axes, problems)
        _legend(figure, packages, all(r.certified for r in results))
    return figure


def _runs(axes, x, runs):
    """Draw each seed small, their span, and the median with its number."""
    color, marker = LOOKS[runs[0].package]
    median = np.median([r.calls_per_draw for r in runs])
    finite = [r for r in runs if np.isfinite(r.calls_per_draw)]
    costs = [r.calls_per_draw for r in finite]
    if len(costs) > 1:
        axes.plot([x, x], [min(costs), max(costs)], color=color, linewidth=1, zorder=2)
        for r, cost in zip(finite, costs, strict=True):
            face = color if r.certified else "white"
            axes.plot(x, cost, marker, color=color, markerfacecolor=face, markersize=3, zorder=3)
    if np.isfinite(median):
        hollow = not all(r.certified for r in runs)
        look = {"markerfacecolor": "white"} if hollow else {"markeredgecolor": "white"}
        axes.plot(x, median, marker, color=color, markersize=9, zorder=4, **look)
        is_long = max(costs) > 1.1 * median
        _note(axes, f"{median:.2g}" if median < 10 else f"{median:.0f}", (x, median), is_long)
    if len(finite) < len(runs):
        top = (x, max(costs, default=1.0))
        _note(axes, f"no draws:\n{len(runs) - len(finite)} of {len(runs)}", top, beside=False)


def _note(axes, text, place, beside):
    """Write a number above a point, or left of it where the span of its seeds is above."""
    look = {"textcoords": "offset points", "fontsize": 8, "color": INK, "zorder": 5}
    if beside:
        axes.annotate(text, place, (-6, 0), ha="right", va="center", **look)
    else:
        axes.annotate(text, place, (0, 7), ha="center", **look)


def _frame(axes, problems):
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low / REACH, 1), high * REACH)  # a call gives at most one effective draw
    axes.set_xlim(-0.5, len(problems) - 0.5)
    axes.set_xticks(range(len(problems)), problems, fontsize=11)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", color=PALE, alpha=0.4, linewidth=0.7)
    for i in range(1, len(problems), 2):
        axes.axvspan(i - 0.5, i + 0.5, color=PALE, alpha=0.2, linewidth=0, zorder=0)
    axes.set_ylabel("simulator calls per effective draw")


def _legend(figure, packages, all_certified):
    axes = figure.axes[0]
    for name in packages:
        color, marker = LOOKS[name]
        axes.plot([], [], marker, color=color, markersize=8, label=name)
    if not all_certified:
        axes.plot([], [], "o", color=INK, markerfacecolor="white", markersize=8,
                  label="not certified")  # fmt: skip
    figure.legend(loc="outside upper center", ncols=len(packages) + 1, columnspacing=1.2)
