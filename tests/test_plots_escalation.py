"""Laws of the pictures of escalated objects: chains, ranks, before and after, rungs."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from nbi_plus import Posterior, Status, plots
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.infer.posterior.status import RungReport

matplotlib = pytest.importorskip("matplotlib")

C, N, D = 64, 60, 3
HMC = RungReport(
    "hmc", C * N, 2000.0, 0.4, np.nan, True, n_gradients=50_000, seconds=2.0, r_hat=1.004
)
REWEIGHT = RungReport("reweight", 2048, 6.0, 0.003, 9.0, False, "ess below 400", 2048, 0, 0.1)


def make_posterior(chains=None, *, rungs=(REWEIGHT, HMC), status=Status.HMC, n_dim=D):
    """Return the answer of converged chains (C, N, D); by default these are independent draws."""
    if chains is None:
        chains = np.random.default_rng(0).standard_normal((C, N, n_dim))
    draws = chains.reshape(-1, chains.shape[-1])
    n, none = len(draws), np.zeros(len(draws))
    names = tuple("abcde"[: draws.shape[1]])
    return Posterior(
        Parameters(names, tuple(f"${name}$" for name in names), {"a": "d"}),
        draws, none, np.full(n, 1 / n), none, none, none, status, ess=float(n),
        rungs=rungs, id="event 1", chains=chains,
    )  # fmt: skip


def autoregressive(rho, seed):
    """Return stationary chains (C, N, 1) of unit variance."""
    rng = np.random.default_rng(seed)
    chains = [rng.standard_normal(C)]
    for _ in range(N - 1):
        chains.append(rho * chains[-1] + np.sqrt(1 - rho**2) * rng.standard_normal(C))
    return np.stack(chains, 1)[..., None]


def counts_of(axes, n_groups, n_draws):
    """Return the histograms of one rank plot, (groups, bins)."""
    rows = [p.get_data().values for p in axes.patches if p.get_label() == "" and is_line(p)]
    heights = np.array(rows) - np.arange(n_groups)[:, None]
    return heights / heights.mean() * n_draws / heights.size


def is_line(patch):
    return isinstance(patch, matplotlib.patches.StepPatch) and not patch.get_fill()


def n_outside(figure):
    """Return how many bins of a rank plot lie outside, and how many there are."""
    words = [axes.get_title().split() for axes in figure.axes if axes.get_visible()]
    return tuple(np.sum([[int(w[-4]), int(w[-2])] for w in words], axis=0))


def posteriors_of(*rungs, status=Status.HMC):
    """Return what a picture reads of posteriors, one object for each tuple of rungs."""
    return _Answers([status] * len(rungs), rungs)


class _Answers(SimpleNamespace):
    def __init__(self, status, rungs):
        super().__init__(status=tuple(status), rungs=tuple(rungs))

    def __len__(self):
        return len(self.rungs)


def row_names(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


# ---------------------------------------------------------------- chains


def test_trace_draws_every_chain_once_and_the_marginals_of_all():
    p = make_posterior()
    figure = plots.trace(p)
    assert len(figure.axes) == 2 * D
    for i in range(D):
        left, right = figure.axes[2 * i : 2 * i + 2]
        drawn = [line.get_ydata() for line in left.lines if len(line.get_ydata()) == N]
        np.testing.assert_array_equal(drawn, p.chains[..., i])
        assert len(right.patches) == 1 + 8
        density, edges, _ = right.patches[0].get_data()
        assert density @ np.diff(edges) == pytest.approx(1.0)
    assert figure.axes[0].get_ylabel() == "$a$ [d]"


def test_trace_gives_each_superchain_one_colour_and_its_own_mean():
    chains = np.random.default_rng(0).standard_normal((C, N, 1))
    chains[8:16] += 3.0
    lines = plots.trace(make_posterior(chains)).axes[0].lines
    thin = [line.get_color() for line in lines if len(line.get_ydata()) == N]
    assert all(len(set(thin[i : i + 8])) == 1 for i in range(0, C, 8))
    assert len(set(thin)) == 8
    thick = [np.mean(line.get_ydata()) for line in lines if len(line.get_ydata()) < N]
    np.testing.assert_allclose(thick, chains.reshape(8, -1).mean(1))


def test_trace_title_holds_the_status_and_the_largest_r_hat():
    title = plots.trace(make_posterior()).get_suptitle()
    assert title == r"event 1: HMC, largest $\hat{R}$ = 1.004, 64 chains of 60 draws"
    walkers = make_posterior(rungs=(replace(HMC, name="ensemble", r_hat=np.nan),))
    assert plots.trace(walkers).get_suptitle() == "event 1: HMC, 64 walkers of 60 draws"


@pytest.mark.parametrize("shape", [(1, 40, 1), (7, 1, 2), (12, 5, 4), (11, 40, 1)])
def test_chains_of_any_number_and_length_are_drawn(shape, tmp_path):
    p = make_posterior(np.random.default_rng(0).standard_normal(shape))
    for name in ("trace", "rank"):
        getattr(plots, name)(p).savefig(tmp_path / f"{name}.png", dpi=50)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_chains_that_never_moved_are_drawn(tmp_path):
    p = make_posterior(np.full((16, 20, 2), 3.0))
    for name in ("trace", "rank"):
        getattr(plots, name)(p).savefig(tmp_path / f"{name}.png", dpi=50)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["trace", "rank"])
def test_without_chains_a_picture_of_chains_says_what_to_do(name):
    p = replace(make_posterior(), chains=None, status=Status.REWEIGHTED)
    expected = rf'for {name}, but .event 1. .* is REWEIGHTED\. .*Ladder\(escalate="always"\)'
    with pytest.raises(ValueError, match=expected):
        getattr(plots, name)(p)
    with pytest.raises(ValueError, match="n_super must divide 64, .* but is 7"):
        getattr(plots, name)(make_posterior(), n_super=7)


# ---------------------------------------------------------------- ranks


def test_rank_histograms_hold_every_draw_once():
    figure = plots.rank(make_posterior(), n_bins=16)
    assert len([a for a in figure.axes if a.get_visible()]) == D
    for axes in figure.axes:
        counts = counts_of(axes, 8, C * N)
        assert counts.shape == (8, 16)
        np.testing.assert_allclose(counts.sum(1), C * N / 8)
        np.testing.assert_allclose(counts.sum(0), C * N / 16)
        np.testing.assert_allclose(counts, counts.round(), atol=1e-9)


def test_ranks_of_independent_chains_are_uniform():
    p_values = []
    for seed in range(10):
        chains = np.random.default_rng(seed).standard_normal((C, N, 4))
        figure = plots.rank(make_posterior(chains))
        for axes in figure.axes[:4]:
            counts = counts_of(axes, 8, C * N)
            # both margins of the table are fixed
            p_values.append(stats.chi2_contingency(counts).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_rank_band_holds_99_percent_of_the_bins_of_converged_chains(rho):
    figures = [plots.rank(make_posterior(autoregressive(rho, seed))) for seed in range(20)]
    outside, n = np.sum([n_outside(figure) for figure in figures], axis=0)
    assert n == 20 * 8 * 16
    # bins of a histogram, and draws of a chain, are not independent
    assert abs(outside / n - 0.01) < 4 * np.sqrt(2 * 0.01 / n)


def test_rank_shows_the_superchain_that_disagrees():
    rng = np.random.default_rng(0)
    shifted, narrow = rng.standard_normal((2, C, N, 1))
    shifted[8:16] += 0.5
    narrow[8:16] *= 0.5
    for chains, shape in ((shifted, [-1, -1, 1, 1]), (narrow, [-1, 1, 1, -1])):
        figure = plots.rank(make_posterior(chains))
        quarters = counts_of(figure.axes[0], 8, C * N)[1].reshape(4, -1).sum(1)
        np.testing.assert_array_equal(np.sign(quarters - C * N / 32), shape)
        assert n_outside(figure)[0] > 5


def test_rank_band_does_not_widen_for_chains_that_disagree():
    offsets = np.repeat(np.random.default_rng(1).standard_normal(8), C // 8)[:, None, None]
    apart = make_posterior(autoregressive(0.0, 0) + 5 * offsets)
    outside, n = n_outside(plots.rank(apart))
    assert outside > 0.5 * n


# ---------------------------------------------------------------- before and after


def test_before_after_shows_both_answers_and_says_which_is_which():
    after = make_posterior(n_dim=2)
    draws = 3 * np.random.default_rng(1).standard_normal((500, 2))
    figure = plots.before_after(draws, after, truths=[0.0, 0.0], names=("network", "HMC"))
    assert len(figure.axes) == 4
    stairs = [p for p in figure.axes[0].patches if p.get_fill()]
    spread = [_spread(*p.get_data()[:2]) for p in stairs]
    np.testing.assert_allclose(spread, [3.0, 1.0], rtol=0.1)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["network: AMORTIZED, ESS 500", f"HMC: HMC, ESS {C * N}", "truth"]


def test_before_after_takes_a_posterior_as_it_is():
    after = make_posterior(n_dim=2)
    before = replace(after, status=Status.UNCERTIFIED, ess=3.0)
    said = plots.before_after(before, after).legends[0].get_texts()[0].get_text()
    assert said == "before: UNCERTIFIED, ESS 3"


@pytest.mark.parametrize("shape", [(5,), (5, 3), (0, 2), (1, 5, 2)])
def test_before_after_refuses_draws_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"draws of shape \(n, 2\) of \('a', 'b'\), but has"):
        plots.before_after(np.zeros(shape), make_posterior(n_dim=2))


def _spread(height, edges):
    middle = 0.5 * (edges[1:] + edges[:-1])
    weight = height / height.sum()
    return np.sqrt(weight @ middle**2 - (weight @ middle) ** 2)


# ---------------------------------------------------------------- rungs


def test_rungs_are_in_the_order_of_the_ladder_and_count_their_objects():
    good = replace(REWEIGHT, passed=True)
    refine, custom = replace(REWEIGHT, name="refine"), replace(HMC, name="mine")
    answers = posteriors_of((good,), (REWEIGHT, HMC), (REWEIGHT, refine, HMC), (REWEIGHT, custom))
    figure = plots.efficiency_by_rung(answers)
    assert len(figure.axes) == 4
    assert row_names(figure.axes[0]) == ["reweight", "refine", "hmc", "mine"]
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["1 of 4", "0 of 1", "2 of 2", "1 of 1"]
    assert figure.get_suptitle() == "4 objects: 4 HMC"


def test_an_object_that_tried_a_rung_twice_counts_once_and_pays_twice():
    again = replace(HMC, passed=False, n_gradients=30_000)
    figure = plots.efficiency_by_rung(posteriors_of((REWEIGHT, again, HMC)))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0 of 1", "1 of 1"]
    costs = [x for line in figure.axes[2].lines for x in line.get_xdata()]
    assert costs == [2048, 80_000]


def test_efficiencies_are_points_with_their_quartiles():
    rng = np.random.default_rng(0)
    values = 10 ** rng.uniform(-2, 0, 201)
    answers = posteriors_of(*((replace(REWEIGHT, efficiency=e, passed=e > 0.2),) for e in values))
    axes = plots.efficiency_by_rung(answers).axes[1]
    drawn = np.concatenate([line.get_xdata() for line in axes.lines])
    np.testing.assert_allclose(np.sort(drawn), np.sort(values))
    n_bad, n_good = (len(line.get_xdata()) for line in axes.lines[:2])
    assert (n_bad, n_good) == ((values <= 0.2).sum(), (values > 0.2).sum())
    start, end = np.quantile(values, [0.25, 0.75])
    box = axes.patches[0].get_bbox()
    np.testing.assert_allclose([box.x0, box.x1], [start, end])


def test_an_efficiency_of_zero_is_drawn_as_one_effective_draw():
    nothing = replace(REWEIGHT, ess=0.0, efficiency=0.0, n_draws=1000)
    axes = plots.efficiency_by_rung(posteriors_of((nothing,))).axes[1]
    assert axes.lines[0].get_xdata().tolist() == [1e-3]


def test_efficiency_by_rung_of_many_objects_draws_few_points(tmp_path):
    figure = plots.efficiency_by_rung(posteriors_of(*[(REWEIGHT, HMC)] * 10_000))
    assert sum(len(line.get_xdata()) for line in figure.axes[1].lines) < 1000
    figure.savefig(tmp_path / "many.png", dpi=50)
    costs = [line.get_xdata().tolist() for line in figure.axes[3].lines]
    np.testing.assert_allclose(costs, [[0.1], [2.0]])


def test_efficiency_by_rung_of_answers_that_nothing_weighed_is_drawn(tmp_path):
    amortized = RungReport("amortized", 1000, 1000.0, np.nan, np.nan, False)
    figure = plots.efficiency_by_rung(posteriors_of((amortized,), status=Status.AMORTIZED))
    figure.savefig(tmp_path / "amortized.png", dpi=50)
    assert row_names(figure.axes[0]) == ["amortized"]
    assert figure.get_suptitle() == "1 object: 1 AMORTIZED"


def test_efficiency_by_rung_of_no_object_is_refused():
    with pytest.raises(ValueError, match="must hold objects that tried a rung"):
        plots.efficiency_by_rung(posteriors_of())


# ---------------------------------------------------------------- manners


def test_pictures_leave_posterior_and_settings_alone():
    p, before = make_posterior(), dict(matplotlib.rcParams)
    chains = p.chains.copy()
    for figure in (plots.trace(p), plots.rank(p), plots.before_after(p.samples, p)):
        assert type(figure) is matplotlib.figure.Figure
    np.testing.assert_array_equal(p.chains, chains)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("door", ["trace", "rank", "efficiency_by_rung"])
def test_pictures_without_matplotlib_say_how_to_get_it(door, monkeypatch):
    given = posteriors_of((HMC,)) if door == "efficiency_by_rung" else make_posterior()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=rf'{door} needs .* "nbi-plus\[plots\]"'):
        getattr(plots, door)(given)
