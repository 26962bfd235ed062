"""Laws of simulation-based calibration: exact posteriors pass, wrong ones are found and ordered."""

import numpy as np
import pytest
from scipy import stats

import nbi_plus as nbi
from nbi_plus import Posterior, Posteriors, Status, sbc
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.trust.calibration import weighted_share_below
from nbi_plus.trust.recovery import AllDraws, Recovery, groups, moments_about
from nbi_plus.trust.uniformity import LEVELS, ecdf_band, holm

SD = np.sqrt(0.5)  # of the posterior of theta ~ N(0, 1) given one datum of unit noise


def gaussian_problem(n, n_dim, rng):
    """Return truths (n, D) of N(0, I), and the means of their exact posteriors N(m, I / 2)."""
    truths = rng.standard_normal((n, n_dim))
    return truths, 0.5 * (truths + rng.standard_normal((n, n_dim)))


def posterior_of(draws, weights=None, status=Status.REWEIGHTED, name="0"):
    n, n_dim = draws.shape
    names = tuple("abcdefgh"[:n_dim])
    weights = np.full(n, 1 / n) if weights is None else weights
    none = np.zeros(n)
    return Posterior(
        Parameters(names, names), draws, none, weights, none, none, none, status, id=name
    )


def gaussian_posteriors(means, rng, *, scale=1.0, shift=0.0, n_draws=400, status=Status.REWEIGHTED):
    shape = (len(means), n_draws, means.shape[1])
    draws = means[:, None] + SD * (shift + scale * rng.standard_normal(shape))
    return [posterior_of(d, status=status, name=str(i)) for i, d in enumerate(draws)]


def calibrate(n, seed, n_dim=1, **fault):
    rng = np.random.default_rng(seed)
    truths, means = gaussian_problem(n, n_dim, rng)
    return sbc(gaussian_posteriors(means, rng, **fault), truths, seed=seed)


# ---------------------------------------------------------------- exact posteriors


def test_sbc_of_exact_posteriors_has_uniform_p_values():
    p_values = [calibrate(300, seed).p_values[0] for seed in range(80)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_sbc_of_exact_posteriors_has_uniform_p_values_even_with_few_ranks():
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(80):
        truths, means = gaussian_problem(300, 1, rng)
        p_values.append(sbc(gaussian_posteriors(means, rng), truths, 5, seed).p_values[0])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_sbc_of_exact_weighted_posteriors_has_uniform_p_values():
    p_values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truths, means = gaussian_problem(300, 1, rng)
        wide = 1.6 * rng.standard_normal((300, 1000, 1))
        weights = np.exp(0.5 * (wide**2)[..., 0] * (1 / 1.6**2 - 1))
        weights /= weights.sum(1, keepdims=True)
        pairs = zip(means[:, None] + SD * wide, weights, strict=True)
        p_values.append(sbc([posterior_of(d, w) for d, w in pairs], truths).p_values[0])
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_sbc_coverage_of_exact_posteriors_is_nominal():
    result = calibrate(1000, seed=1, n_dim=3)
    error = np.sqrt(np.array(LEVELS) * (1 - np.array(LEVELS)) / 1000)
    assert (np.abs(result.coverage - LEVELS) < 4 * error).all()
    assert (result.coverage_low < result.coverage).all()
    assert (result.coverage < result.coverage_high).all()


def test_band_holds_95_percent_of_uniform_sets():
    n, n_sets = 400, 2000
    low, high = ecdf_band(n)
    grid = np.linspace(0, 1, len(low))
    sets = np.sort(np.random.default_rng(7).random((n_sets, n)), 1)
    ecdf = np.stack([np.searchsorted(s, grid, side="right") for s in sets]) / n - grid
    inside = ((ecdf >= low - 1e-12) & (ecdf <= high + 1e-12)).all(1).mean()
    # the level itself is known from 1000 sets
    error = np.sqrt(0.95 * 0.05 * (1 / n_sets + 1 / 1000))
    assert abs(inside - 0.95) < 4 * error


def test_band_narrows_as_the_root_of_the_number_of_objects():
    wide, narrow = ecdf_band(300), ecdf_band(30_000)
    assert np.ptp(wide, axis=0).max() / np.ptp(narrow, axis=0).max() == pytest.approx(10, rel=0.1)


# ---------------------------------------------------------------- wrong posteriors


@pytest.mark.parametrize("fault", [{"scale": 0.8}, {"shift": 0.2}], ids=["narrow", "shifted"])
def test_sbc_rejects_wrong_posteriors(fault):
    rejected = [
        (calibrate(1000, seed, n_dim=3, n_draws=200, **fault).p_values < 0.05).any()
        for seed in range(20)
    ]
    assert np.mean(rejected) >= 0.95


def test_sbc_names_the_one_wrong_parameter():
    rng = np.random.default_rng(3)
    truths, means = gaussian_problem(800, 3, rng)
    wrong = gaussian_posteriors(means + np.array([0.0, 0.4 * SD, 0.0]), rng)
    result = sbc(wrong, truths)
    assert result.p_values[1] < 1e-6
    assert (result.p_values[[0, 2]] > 0.01).all()
    assert np.argmax(result.max_deviation) == 1


def test_coverage_orders_narrow_exact_and_wide_posteriors():
    narrow, exact, wide = (calibrate(600, 4, n_dim=2, scale=s).coverage for s in (0.7, 1.0, 1.4))
    assert (narrow < exact).all()
    assert (exact < wide).all()


def test_sbc_tells_narrow_from_wide_posteriors_by_the_sign_of_the_difference():
    narrow, wide = (calibrate(600, 5, scale=s) for s in (0.6, 1.6))
    left = np.searchsorted(narrow.grid, 0.15)
    # too narrow: truths pile up at both ends, so the distribution function rises early
    assert narrow.ecdf_difference[0, left] > narrow.band[1, left]
    assert wide.ecdf_difference[0, left] < wide.band[0, left]


def test_max_deviation_grows_with_the_fault():
    deviations = [calibrate(800, 6, shift=s).max_deviation[0] for s in (0.0, 0.3, 0.6, 0.9)]
    assert np.all(np.diff(deviations) > 0)


# ---------------------------------------------------------------- what enters


def test_sbc_leaves_out_uncertified_objects_and_counts_them():
    rng = np.random.default_rng(8)
    truths, means = gaussian_problem(40, 1, rng)
    good = gaussian_posteriors(means[:30], rng)
    bad = gaussian_posteriors(means[30:] + 50.0, rng, status=Status.UNCERTIFIED)
    result = sbc(good + bad, truths)
    alone = sbc(good, truths[:30])
    assert (len(result), result.n_excluded, result.n_amortized) == (30, 10, 0)
    np.testing.assert_array_equal(result.ranks, alone.ranks)
    assert "30 certified posteriors; 10 uncertified left out" in result.report


def test_sbc_takes_amortized_posteriors_and_says_so():
    result = calibrate(40, seed=9, status=Status.AMORTIZED)
    assert (len(result), result.n_amortized) == (40, 40)
    assert "not corrected (AMORTIZED)" in result.report


def test_sbc_without_a_certified_object_is_refused():
    with pytest.raises(
        ValueError, match=r"at least 2 that are certified, AMORTIZED or LEARNED, but 0 of 20"
    ):
        calibrate(20, seed=0, status=Status.FAILED)


def test_sbc_of_posteriors_without_draws_is_refused():
    n = 3
    one = np.zeros(n)
    summaries = Posteriors(
        parameters=Parameters(("a",), ("a",)), ids=np.arange(n), status=(Status.REWEIGHTED,) * n,
        flags=(frozenset(),) * n, rungs=((),) * n, mean=np.zeros((n, 1)), std=np.ones((n, 1)),
        quantiles=np.zeros((n, 3, 1)), **dict.fromkeys(Posteriors.NUMBERS, one),
    )  # fmt: skip
    with pytest.raises(ValueError, match="keep=0"):
        sbc(summaries, np.zeros((n, 1)))


@pytest.mark.parametrize("shape", [(20, 2), (19, 1), (20,)])
def test_sbc_refuses_truths_of_another_shape(shape):
    posteriors = gaussian_posteriors(np.zeros((20, 1)), np.random.default_rng(0), n_draws=5)
    with pytest.raises(ValueError, match=r"theta_true must have shape \(20, 1\)"):
        sbc(posteriors, np.zeros(shape))


def test_sbc_refuses_truths_that_are_not_finite():
    posteriors = gaussian_posteriors(np.zeros((4, 1)), np.random.default_rng(0), n_draws=5)
    with pytest.raises(ValueError, match="theta_true must be finite, but 1 values are not"):
        sbc(posteriors, [[0.0], [np.nan], [1.0], [2.0]])


# ---------------------------------------------------------------- arithmetic


def test_sbc_is_a_function_of_its_seed():
    a, b = (calibrate(50, seed=2, n_dim=2) for _ in range(2))
    np.testing.assert_array_equal(a.ranks, b.ranks)
    assert ((a.ranks > 0) & (a.ranks < 1)).all()


def test_share_below_equals_its_definition_for_objects_of_different_sizes():
    rng = np.random.default_rng(0)
    truths = rng.standard_normal((5, 2))
    posteriors = []
    for size in (1, 7, 40, 3, 12):
        weights = rng.random(size)
        posteriors.append(posterior_of(rng.standard_normal((size, 2)), weights / weights.sum()))
    pairs = zip(posteriors, truths, strict=True)
    expected = [p.weights @ (p.samples < truth) for p, truth in pairs]
    np.testing.assert_allclose(weighted_share_below(posteriors, truths), expected, atol=1e-14)


def test_share_below_ignores_draws_without_weight():
    posterior = posterior_of(np.array([[-9.0], [0.0], [1.0]]), np.array([0.0, 0.5, 0.5]))
    assert weighted_share_below([posterior], np.array([[0.5]])).item() == 0.5


def test_holm_equals_hand_worked_values():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_of_one_value_is_that_value():
    assert holm([0.37]).tolist() == [0.37]


def test_p_values_equal_scipys_before_their_adjustment():
    result = calibrate(200, seed=11)
    expected = stats.kstest(result.ranks[:, 0], "uniform")
    assert result.p_values[0] == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.max_deviation[0] == pytest.approx(expected.statistic, rel=1e-12)


def test_report_of_few_objects_says_how_little_they_show():
    assert "Fewer than 300 objects" in calibrate(50, seed=1).report
    assert "Fewer than" not in calibrate(300, seed=1, n_draws=20).report


# --- recovery ------------------------------------------------------------------------------------


ONLY_NETWORK = nbi.Ladder(escalate="never", audit=None)


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


@pytest.fixture(scope="module")
def fitted():
    """Return an engine of lines at five times, whose posteriors have a closed form."""
    prior = {"a": stats.norm(0, 1), "b": stats.norm(1, 2)}
    engine = nbi.Engine(line, prior, noise=nbi.GaussianNoise(), ladder=ONLY_NETWORK)
    t, how = np.linspace(0, 1, 5), {"progress": False, "truth_test": False}
    return engine.fit(2000, n_epochs=8, t=t, x_err=np.full(5, 0.5), **how)


def closed_form_sd(t):
    design = np.stack([np.ones_like(t), t], 1) / 0.5
    return np.sqrt(np.diag(np.linalg.inv(design.T @ design + np.diag([1.0, 0.25]))))


def test_recovery_of_a_line_is_that_of_its_closed_form(fitted):
    found = fitted.calibrate(400, progress=False)
    sd = closed_form_sd(np.linspace(0, 1, 5))
    own, figures = found.recovery, found.recovery.figures()
    np.testing.assert_allclose(np.median(own.sd, 0), sd, rtol=0.05)
    expected = 1 - sd**2 / np.array([1.0, 4.0])
    np.testing.assert_allclose(figures["contraction"], expected, atol=0.05)  # of 400 truths
    np.testing.assert_allclose(figures["r2"], expected, atol=0.08)
    assert (np.abs(figures["bias"]) < 4 * 1.25 / 400**0.5).all()  # the median of normals
    assert (np.abs(figures["scatter"] - 1) < 4 * 1.17 / 400**0.5).all()
    assert (figures["outliers"] == 0).all()
    np.testing.assert_allclose(figures["nrmse"] ** 2, 1 - figures["r2"])


def test_circles_are_compared_the_short_way_round():
    own = Recovery(np.array([[0.1], [0.2], [6.2]]), np.array([[6.2], [0.3], [0.1]]),
                   np.full((3, 1), 0.1), (2 * np.pi,))  # fmt: skip
    np.testing.assert_allclose(own.error[:, 0], [6.1 - 2 * np.pi, 0.1, 2 * np.pi - 6.1])
    spread = np.array([0.1, 0.2, 6.2 - 2 * np.pi])
    np.testing.assert_allclose(own.contraction, 1 - 0.01 / spread.var(ddof=1), rtol=1e-6)


def test_moments_of_circles_are_of_draws_near_the_truth():
    rng = np.random.default_rng(5)
    draws = rng.normal(0.1, 0.2, (400, 1)) % (2 * np.pi)
    mean, sd = moments_about(AllDraws.of([posterior_of(draws)]), np.array([[6.2]]), (2 * np.pi,))
    about = (draws + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(mean - 2 * np.pi, [about.mean(0)])
    np.testing.assert_allclose(sd, [about.std(0)])


def test_a_frame_tells_bins_apart_and_all_together(fitted):
    rng = np.random.default_rng(3)
    t, x_err = np.linspace(0, 1, 5), rng.uniform(0.2, 1.0, (200, 1)) * np.ones(5)
    mask = np.arange(5) < rng.integers(2, 6, (200, 1))
    seen = nbi.Observations.from_arrays(rng.normal(size=(200, 5)), x_err, t=t, mask=mask)
    engine = nbi.Engine(line, fitted.prior, noise=nbi.GaussianNoise(), featurizer="resnet",
                        ladder=ONLY_NETWORK)  # fmt: skip
    engine.fit(1000, n_epochs=6, observations=seen, progress=False, truth_test=False)
    sizes = {"n_draws": lambda own, truths: [len(p) for p in own]}  # noqa: ARG005
    bins = {"n_points": [2, 4, 5]}
    found = engine.calibrate(60, bins, observations=seen, custom=sizes, progress=False)
    frame = found.to_frame()
    assert frame.group.unique().tolist() == ["n_points 2 to 4", "n_points 4 to 5", "all"]
    assert frame.parameter.tolist() == ["a", "b"] * 3
    assert frame.n.iloc[0] + frame.n.iloc[2] == frame.n.iloc[4] == len(found)
    np.testing.assert_allclose(frame.p_value[4:], found.p_values)
    np.testing.assert_allclose(frame.coverage_90[4:], found.coverage[:, 2])
    np.testing.assert_allclose(frame.r2[4:], found.recovery.figures()["r2"])
    assert found.custom["n_draws"].shape == (len(found),)
    by_snr = engine.calibrate(60, 3, observations=seen, progress=False).to_frame()
    assert (by_snr.n.iloc[:6] <= 20).all()


def test_a_calibration_with_moments_survives_its_file(fitted, tmp_path):
    found = fitted.calibrate(40, 2, progress=False, custom={"a/b": lambda own, truths: 3.0})
    found.save(tmp_path / "c.h5")
    again = nbi.Calibration.load(tmp_path / "c.h5")
    assert again.to_frame().equals(found.to_frame())
    assert again.custom["a/b"].tolist() == [3.0]


def test_what_is_no_function_is_refused_before_anything_is_simulated(fitted, monkeypatch):
    monkeypatch.setattr(type(fitted), "predict_many", lambda *_, **__: pytest.fail("it answered"))
    with pytest.raises(TypeError, match="custom.'bad'. must be a function"):
        fitted.calibrate(40, custom={"bad": 3})


@pytest.mark.parametrize(
    ("bins", "message"),
    [({"a": 3}, "bins must be of .* but are of 'a'. Parameters are not known"),
     ({"snr": [3, 1]}, "bins must have rising edges"),
     ({"snr": 2, "n_points": 2}, "bins must be of one name"),
     (0, "bins must be a whole number of at least 1")],
)  # fmt: skip
def test_bins_of_what_nobody_knows_are_refused(bins, message, fitted):
    with pytest.raises(ValueError, match=message):
        fitted.calibrate(10, bins, progress=False)


def test_without_errors_nothing_has_a_signal_to_noise():
    with pytest.raises(ValueError, match="bins of snr must have errors"):
        groups(3, nbi.Observations.from_arrays(np.ones((4, 3))))


def test_point_estimates_are_judged_by_the_truths_below_them(fitted):
    rules = {"mean": nbi.MeanScore(), "middle": nbi.MedianScore(),
             "q": nbi.QuantileScore([0.1, 0.9]), "joint": nbi.EnergyScore(2)}  # fmt: skip
    points = nbi.PointEngine(line, fitted.prior, nbi.GaussianNoise(), rules)
    points.fit(4000, n_epochs=10, t=np.linspace(0, 1, 5), x_err=np.full(5, 0.5), progress=False)
    found = points.calibrate(1000, {"n_points": 1}, progress=False)
    frame = found.to_frame()
    every = frame[frame.group == "all"].set_index(["rule", "level"])
    assert every.index.get_level_values(0).unique().tolist() == ["mean", "middle", "q"]
    for rule, level in (("q", 0.1), ("q", 0.9), ("middle", 0.5)):
        assert (np.abs(every.loc[rule, level].share_below - level) < 0.05).all()
    mean = frame[(frame.group == "all") & (frame.rule == "mean")]
    sd = closed_form_sd(np.linspace(0, 1, 5))
    np.testing.assert_allclose(mean.nrmse, sd / [1.0, 2.0], rtol=0.15)
    assert (np.abs(mean.bias) < 5 * mean.bias_err).all()
    assert mean.share_below.isna().all()
    assert "PointCalibration(1000 objects)" in repr(found)
