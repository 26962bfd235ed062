"""Laws of the pictures: what they show, what they leave alone, what they refuse."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbi_plus import Posterior, Status, plots, sbc
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.infer.sequential.rounds import Round, Rounds, Stop
from nbi_plus.infer.weights.summary import summarise
from nbi_plus.plots.densities import credible_heights, density, interval_text, span

matplotlib = pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]
T = np.linspace(0.0, 10.0, 30)
HISTORY = [{"train_nll": 3 - i, "val_nll": v} for i, v in enumerate([2.0, 1.0, 0.5, 0.8])]

ROUNDS = Rounds(
    (
        Round("prior", 500, 500, 0.0, 0.002, 9.0, np.nan, np.nan, 1.0),
        Round("locate", 500, 1000, 6.5, 0.013, 1.4, np.nan, np.nan, 2.0),
        Round("adapt (flow)", 400, 1400, 150.0, np.nan, 0.6, -3.4, np.nan, 3.0),
        Round("certify", 1000, 2400, 950.0, 0.83, 0.1, -3.1, 0.02, 4.0),
    ),
    Stop.ESS_REACHED,
    "Mind the gap.",
)


def make_posterior(n_dim=3, *, mean=0.0, correlation=0.0, n_draws=4000, seed=0, name="event 1"):
    """Return weighted draws of a Gaussian of unit variances, drawn from one 1.2 times wider."""
    rng = np.random.default_rng(seed)
    covariance = np.full((n_dim, n_dim), correlation) + (1 - correlation) * np.eye(n_dim)
    z = 1.2 * rng.standard_normal((n_draws, n_dim))
    log_weights = 0.5 * (1 / 1.2**2 - 1) * (z**2).sum(1)
    worth = summarise(log_weights[None])
    names = tuple("abcde"[:n_dim])
    labels = tuple(f"${name}$" for name in names)
    none = np.zeros(n_draws)
    draws = mean + z @ np.linalg.cholesky(covariance).T
    return Posterior(
        Parameters(names, labels, {"a": "d"}), draws, log_weights,
        worth.weights[0].numpy(), none, none, none, Status.REWEIGHTED, ess=float(worth.ess),
        k_hat=float(worth.k_hat), efficiency=float(worth.efficiency), id=name,
    )  # fmt: skip


def line(theta, t):
    return theta[:, :1] + theta[:, 1:2] * t


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def vertical_lines(axes):
    return [
        x[0]
        for x in (np.asarray(a.get_xdata()) for a in axes.lines)
        if len(x) == 2 and x[0] == x[1]
    ]


def all_figures():
    p = make_posterior(2)
    rng = np.random.default_rng(0)
    posteriors = [make_posterior(2, n_draws=100, seed=i) for i in range(20)]
    return [
        plots.corner(p),
        plots.loss(HISTORY),
        plots.weights(p),
        plots.predictive(p, line, T, T),
        plots.ranks(sbc(posteriors, rng.standard_normal((20, 2)))),
        plots.calibration(sbc(posteriors, rng.standard_normal((20, 2)))),
        plots.rounds(ROUNDS),
    ]


# ---------------------------------------------------------------- manners


def test_import_of_the_package_does_not_import_matplotlib():
    code = "import sys, nbi_plus, nbi_plus.plots; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_figures_leave_pyplot_and_the_users_settings_alone():
    before = dict(matplotlib.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    figures = all_figures()
    assert all(type(f) is matplotlib.figure.Figure for f in figures)
    assert dict(matplotlib.rcParams) == before
    if loaded:  # somebody else's doing, but none of these figures is among theirs
        assert not {id(f) for f in figures} & {id(m.canvas.figure) for m in _open_figures()}
    else:
        assert "matplotlib.pyplot" not in sys.modules


def test_figures_can_be_written(tmp_path):
    for i, figure in enumerate(all_figures()):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 5000


@pytest.mark.parametrize("door", ["corner", "loss", "weights", "predictive", "ranks", "rounds"])
def test_figures_without_matplotlib_say_how_to_get_it(door, monkeypatch):
    p = make_posterior(1, n_draws=50)
    arguments = {
        "corner": (p,), "loss": (HISTORY,), "weights": (p,),
        "predictive": (p, lambda theta, t: theta + 0 * t, T, T),
        "ranks": (sbc([p, p], [[0.0], [0.1]]),),
        "rounds": (ROUNDS,),
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    expected = rf'{door} needs matplotlib\. Install it with: pip install "nbi-plus\[plots\]"'
    with pytest.raises(ImportError, match=expected):
        getattr(plots, door)(*arguments[door])


def test_figures_leave_the_posterior_unchanged():
    p = make_posterior(2)
    before = p.samples.copy(), p.weights.copy(), p.log_weights.copy()
    plots.corner(p, truths=[0, 0])
    plots.weights(p)
    plots.predictive(p, line, T, T)
    for old, new in zip(before, (p.samples, p.weights, p.log_weights), strict=True):
        np.testing.assert_array_equal(old, new)


# ---------------------------------------------------------------- corner


@pytest.mark.parametrize("n_dim", [1, 2, 4])
def test_corner_has_a_panel_for_each_parameter_and_pair(n_dim):
    figure = plots.corner(make_posterior(n_dim))
    assert len(figure.axes) == n_dim**2
    visible = [a for a in figure.axes if a.get_visible()]
    assert len(visible) == n_dim * (n_dim + 1) // 2
    assert figure.axes[-1].get_xlabel() == ("$a$ [d]" if n_dim == 1 else f"${'abcd'[n_dim - 1]}$")


def test_corner_marks_truths_in_every_panel():
    truths = [0.3, -0.4, 0.1]
    figure = plots.corner(make_posterior(3), truths=truths)
    for row, column in np.ndindex(3, 3):
        if column <= row:
            assert truths[column] in vertical_lines(figure.axes[3 * row + column])
    assert "truth" in texts_of(figure)


def test_corner_without_truths_marks_none():
    figure = plots.corner(make_posterior(2), truths=[np.nan, np.nan])
    assert "truth" not in texts_of(figure)
    assert not any(vertical_lines(a) for a in figure.axes)


def test_corner_of_several_posteriors_shows_and_names_each():
    both = [make_posterior(2), make_posterior(2, mean=4.0, seed=1)]
    figure = plots.corner(both, names=["ours", "theirs"])
    stairs = [p for p in figure.axes[0].patches if p.get_fill()]
    assert len(stairs) == 2
    assert len({p.get_facecolor() for p in stairs}) == 2
    assert sum("ours" in t or "theirs" in t for t in texts_of(figure)) == 2
    low, high = figure.axes[0].get_xlim()
    assert low < -2.5
    assert high > 6.5


def test_corner_histogram_is_weighted():
    p = make_posterior(1, n_draws=20_000)
    stairs = plots.corner(p).axes[0].patches[0]
    height, edges, _ = stairs.get_data()
    middle, width = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    # the draws have variance 1.44 before they are weighted
    assert (height * width * middle**2).sum() == pytest.approx(1.0, abs=0.06)


def test_corner_titles_hold_median_and_interval():
    p = make_posterior(2, mean=50.0)
    low, middle, high = p.quantile([0.16, 0.5, 0.84])[:, 0]
    assert f"$a$ = {interval_text(low, middle, high)}" == plots.corner(p).axes[0].get_title()


def test_corner_range_reaches_a_near_truth_but_not_a_far_one():
    p = make_posterior(1)
    assert span([p], 0, truth=5.0)[1] > 5.0
    assert span([p], 0, truth=500.0) == span([p], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"truths": [1.0]}, r"truths must have shape \(2,\), but has \(1,\)"),
        ({"labels": ["x"]}, "labels must be 2"),
        ({"names": ["x", "y"]}, "names must be 1"),
    ],
)
def test_corner_refuses_lists_of_another_length(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.corner(make_posterior(2), **arguments)


def test_corner_refuses_posteriors_it_cannot_compare():
    with pytest.raises(ValueError, match="same parameters"):
        plots.corner([make_posterior(1), make_posterior(2)])
    with pytest.raises(ValueError, match="at least one"):
        plots.corner([])


def test_corner_of_a_posterior_without_weights_says_so():
    p = make_posterior(2, n_draws=10)
    dead = Posterior(p.parameters, p.samples, p.log_weights - np.inf, 0 * p.weights, p.log_q,
                     p.log_prior, p.log_likelihood, Status.FAILED)  # fmt: skip
    for picture in (plots.corner, plots.weights):
        with pytest.raises(ValueError, match="must have draws of positive weight"):
            picture(dead)


def test_corner_of_draws_that_are_all_one_point_is_drawn():
    p = make_posterior(2, n_draws=20)
    same = Posterior(p.parameters, np.full_like(p.samples, 3.0), p.log_weights, p.weights, p.log_q,
                     p.log_prior, p.log_likelihood, Status.UNCERTIFIED)  # fmt: skip
    assert len(plots.corner(same, truths=[3.0, 3.0]).axes) == 4


# ---------------------------------------------------------------- densities


@pytest.mark.parametrize("correlation", [0.0, 0.95])
def test_credible_regions_have_the_area_of_the_gaussian_ellipse(correlation):
    p = make_posterior(2, correlation=correlation, n_draws=20_000)
    d = density(p, (0, 1), (span([p], 0), span([p], 1)))
    cell = (d.x[1] - d.x[0]) * (d.y[1] - d.y[0])
    for level in (0.68, 0.95):
        area = cell * (d.values >= credible_heights(d.values, [level])).sum()
        exact = -2 * np.pi * np.log(1 - level) * np.sqrt(1 - correlation**2)
        assert area == pytest.approx(exact, rel=0.1)


def test_credible_heights_enclose_at_least_their_mass():
    values = np.random.default_rng(0).random((30, 30)) ** 4
    heights = credible_heights(values, [0.95, 0.5])
    shares = [values[values >= h].sum() / values.sum() for h in heights]
    assert heights[0] < heights[1]
    np.testing.assert_allclose(shares, [0.95, 0.5], atol=0.005)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((49.8, 50.0, 50.3), "$50.00^{+0.30}_{-0.20}$"),
        ((1000.0, 1500.0, 2300.0), "$1500^{+800}_{-500}$"),
        ((0.01, 0.01, 0.01), "$0.010^{+0.000}_{-0.000}$"),
    ],
)
def test_interval_text_keeps_two_digits_of_the_error(interval, expected):
    assert interval_text(*interval) == expected


# ---------------------------------------------------------------- the others


def test_loss_marks_the_epoch_of_the_lowest_validation_loss():
    axes = plots.loss(HISTORY).axes[0]
    marked = [a.get_xdata().item() for a in axes.lines if len(np.atleast_1d(a.get_xdata())) == 1]
    assert marked == [3]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [h["train_nll"] for h in HISTORY])


def test_loss_ignores_epochs_that_are_not_finite():
    history = [*HISTORY, {"train_nll": np.nan, "val_nll": np.nan}]
    assert any("kept: epoch 3" in t for t in texts_of(plots.loss(history)))


def test_loss_of_no_epoch_is_refused():
    with pytest.raises(ValueError, match="at least one epoch"):
        plots.loss([])


def test_weights_shows_ess_and_k_hat_with_its_limit():
    p = make_posterior(2)
    title = next(t for t in texts_of(plots.weights(p)) if "ESS" in t)
    assert f"ESS {p.ess:.0f} of {len(p)}" in title
    assert f"= {p.k_hat:.2f} (limit 0.70)" in title


def test_weights_are_drawn_in_descending_order_around_their_mean():
    left, right = plots.weights(make_posterior(2)).axes
    smooth = left.lines[1].get_ydata()
    assert (np.diff(smooth) <= 0).all()
    assert smooth.mean() == pytest.approx(1.0)
    carried = right.lines[0].get_ydata()
    assert (carried[0], carried[-1]) == pytest.approx((0.0, 1.0))


def test_predictive_band_holds_the_models_of_the_posterior():
    p = make_posterior(2)
    data = line(np.array([[0.2, -0.1]]), T)[0]
    top, low = plots.predictive(p, line, T, data, 0.1, truth=[0.2, -0.1]).axes
    sd = np.sqrt(1 + T**2)
    outer = top.collections[1].get_paths()[0].vertices
    for x, y in zip(T, sd, strict=True):
        ends = outer[np.isclose(outer[:, 0], x), 1]
        assert np.ptp(ends) == pytest.approx(2 * 1.96 * y, rel=0.15)
    assert "truth" in [a.get_label() for a in top.lines]
    residual = low.lines[0].get_ydata()
    median = np.median(line(p.resample(500, 0), T), axis=0)
    np.testing.assert_allclose(residual, (data - median) / 0.1)


def test_predictive_draws_the_band_on_a_grid_of_its_own():
    fine = np.linspace(0, 10, 200)
    top, _ = plots.predictive(make_posterior(2), line, T, T, grid=fine).axes
    assert any(np.array_equal(a.get_xdata(), fine) for a in top.lines)


def test_predictive_refuses_a_model_of_another_shape():
    with pytest.raises(ValueError, match=r"model must return shape \(500, 30\)"):
        plots.predictive(make_posterior(2), lambda theta, t: theta, T, T)  # noqa: ARG005
    with pytest.raises(ValueError, match="t and x_obs must have one shape"):
        plots.predictive(make_posterior(2), line, T, T[:-1])


def test_ranks_shows_each_parameter_and_the_band():
    rng = np.random.default_rng(0)
    posteriors = [make_posterior(3, n_draws=100, seed=i) for i in range(30)]
    calibration = sbc(posteriors, rng.standard_normal((30, 3)))
    *histograms, difference = plots.ranks(calibration).axes
    assert len(histograms) == 3
    for axes, p in zip(histograms, calibration.p_values, strict=True):
        assert f"p = {p:.2g}" in axes.get_title()
    curves = [
        a.get_ydata() for a in difference.lines if len(a.get_ydata()) == len(calibration.grid)
    ]
    np.testing.assert_array_equal(curves, calibration.ecdf_difference)
    band = difference.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == calibration.band.max()


def points_of(axes):
    """Return the points that are marked, and the one line that joins them."""
    marked = [a for a in axes.lines if a.get_marker() not in ("None", "_") and len(a.get_xdata())]
    points = [(a.get_xdata()[0], a.get_ydata()[0]) for a in marked if len(a.get_xdata()) == 1]
    return points, list(zip(*axes.lines[0].get_data(), strict=True))


def test_rounds_shows_the_figures_of_each_round_that_are_known():
    expected = [
        [(1000, 6.5), (1400, 150.0), (2400, 950.0)],  # no room for 0 on a logarithmic axis
        [(500, 0.002), (1000, 0.013), (2400, 0.83)],
        [(1400, -3.4), (2400, -3.1)],
    ]
    figure = plots.rounds(ROUNDS)
    assert figure.axes[0].get_yscale() == "log"
    for axes, numbers in zip(figure.axes, expected, strict=True):
        points, joined = points_of(axes)
        assert points == joined == numbers


def test_rounds_draws_the_error_of_the_evidence_where_it_is_known():
    low = plots.rounds(ROUNDS).axes[2]
    bars = [path.vertices for bar in low.collections for path in bar.get_paths()]
    np.testing.assert_allclose(bars, [[[2400, -3.12], [2400, -3.08]]])


def test_rounds_names_each_phase_and_the_reason_to_stop():
    figure = plots.rounds(ROUNDS)
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert named == ["prior", "locate", "adapt (flow)", "certify"]
    drawn = [a for a in figure.axes[0].lines if a.get_label() in named]
    assert len({a.get_color() for a in drawn}) == len({a.get_marker() for a in drawn}) == 4
    assert figure.get_suptitle().replace("\n", " ") == ROUNDS.reason


def test_rounds_of_a_method_that_knows_no_figures_says_so():
    rows = [Round("apt", 10, 10 * i, *[np.nan] * 5, 1.0) for i in (1, 2)]
    figure = plots.rounds(Rounds(tuple(rows), Stop.ROUNDS))
    assert texts_of(figure).count("not known") == 3
    assert "apt" in texts_of(figure)


def test_rounds_of_no_round_is_refused():
    with pytest.raises(ValueError, match="at least one round"):
        plots.rounds(Rounds((), Stop.BUDGET))


def _open_figures():
    from matplotlib import _pylab_helpers

    return _pylab_helpers.Gcf.get_all_fig_managers()
