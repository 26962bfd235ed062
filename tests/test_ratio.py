"""Ratios: the loss, the family of functions, and posteriors of many trials, all in closed form."""

from __future__ import annotations

import math
import pickle
import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm, uniform
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import nbi_plus as nbi
from nbi_plus.learn import fitting
from nbi_plus.learn.heads.strata import strata
from nbi_plus.learn.losses import ContrastLoss, contrast
from nbi_plus.learn.ratio import Ratio, RatioConfig

SIGMA = 0.7
PRIOR = {"mu": norm(0, 1)}
SMALL = RatioConfig(n_squares=4, n_products=4, hidden=16)
RIDGED = replace(SMALL, n_ridges=3)


def one_trial(theta):
    return theta + SIGMA * torch.randn(theta.shape, dtype=theta.dtype)


def exact_log_ratio(mu, x):
    return norm.logpdf(x, mu, SIGMA) - norm.logpdf(x, 0, math.hypot(1, SIGMA))


def exact_posterior(x):
    precision = 1 + len(x) / SIGMA**2
    return x.sum() / SIGMA**2 / precision, precision**-0.5


def draws(n, mu=0.4, seed=0):
    return np.random.default_rng(seed).normal(mu, SIGMA, n)


def quietly(engine, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        return engine.predict(x, **options)


@pytest.fixture(scope="module")
def engine():
    return nbi.RatioEngine(one_trial, PRIOR).fit(n_sims=10_000, n_epochs=20, batch_size=256)


def small(**options):
    return nbi.RatioEngine(one_trial, PRIOR, **options)


# --- the loss -------------------------------------------------------------------------------------


def scores(n=50, k=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, k, generator=rng).double().unbind(0)


def test_contrast_of_one_is_binary_classification():
    joint, apart = scores(k=1)
    logits = torch.cat([joint, apart], 1)
    labels = torch.tensor([1.0, 0.0]).double().expand(len(logits), 2)
    wanted = binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    torch.testing.assert_close(contrast(joint, apart, 1.0), wanted)


def test_contrast_of_endless_odds_is_the_choice_among_all():
    joint, apart = scores()
    wanted = cross_entropy(joint, torch.zeros(len(joint), dtype=torch.int64), reduction="none")
    torch.testing.assert_close(contrast(joint, apart, math.inf), wanted)
    torch.testing.assert_close(contrast(joint, apart, 1e9), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_expected_contrast_is_least_at_the_ratio_itself(k, gamma):
    """All sets of parameters and data of two values each are enumerated."""
    p_z, p_x = torch.tensor([0.3, 0.7]), torch.tensor([[0.9, 0.1], [0.4, 0.6]])  # of x given z
    exact = (p_x / (p_z @ p_x)).log().double()

    def expected(table):
        total = 0.0
        for sets in torch.cartesian_prod(*[torch.arange(2)] * (2 * k + 1)):
            x, own, others = sets[0], sets[1 : k + 1], sets[k + 1 :]
            chance = p_z[own].prod() * p_x[own[0], x] * p_z[others].prod()
            total = total + chance * contrast(table[own, x][None], table[others, x][None], gamma)
        return total.sum()

    slope = torch.func.grad(expected)(exact)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-7, rtol=0)
    assert torch.func.grad(expected)(exact + 0.3).abs().max() > 1e-3, "its size is no free factor"


def head(n_dims=2, n_context=3, config=SMALL, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Ratio(n_dims, n_context, config)


def of_all(ratio, z, features):
    """Return the log-ratio (n, m) of every z (m, D) given every row of features (n, F)."""
    return ratio.of_trials(z[None], ratio.statistics(features)[:, None])


def some(n=12, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=rng).double(), torch.randn(n, 3, generator=rng)


@pytest.mark.parametrize("balance", [0.0, 100.0])
def test_rows_that_do_not_count_change_no_loss(balance):
    ratio, (z, features) = head(), some()
    good = torch.arange(12) != 5
    loss = ContrastLoss(3, 1.0, balance)
    other = z.clone()
    other[5] += 3.0
    found = [loss(ratio, own, features, good)[good] for own in (z, other)]
    torch.testing.assert_close(*found)
    changed = ContrastLoss(3)(ratio, other, features, torch.ones(12, dtype=torch.bool))
    assert (changed - ContrastLoss(3)(ratio, z, features, good)).abs().max() > 1e-3


def test_balance_is_the_square_of_what_classification_lacks():
    ratio, (z, features) = head(), some()
    good = torch.ones(12, dtype=torch.bool)
    every = torch.sigmoid(of_all(ratio, z, features))
    lack = every.diagonal().mean() + every.diagonal(1).sum() / 12 + every[-1, 0] / 12 - 1
    extra = ContrastLoss(3, 1.0, 10.0)(ratio, z, features, good) - ContrastLoss(3)(
        ratio, z, features, good
    )
    torch.testing.assert_close(extra, (10 * lack.square()).expand(12), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_contrast": 0}, "n_contrast must be"),
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"balance": -1.0}, "balance must be finite"),
    ],
)
def test_contrast_refuses_what_is_none(options, words):
    with pytest.raises(ValueError, match=words):
        ContrastLoss(**options)


# --- the family -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, RIDGED, replace(RIDGED, n_strata=5)])
def test_ratios_are_the_same_of_pairs_of_neighbours_of_all_and_of_sums(config):
    ratio, (z, features) = head(config=config).exact().eval(), some()
    if config.n_strata:
        ratio.centres.copy_(ratio.statistics(features[:5]))
    every = of_all(ratio, z, features)
    pairs = ratio.log_prob(z[:, None], features)[:, 0]
    torch.testing.assert_close(pairs, every.diagonal())
    rows = torch.arange(12)
    neighbours = torch.stack([every[rows, (rows + k) % 12] for k in range(5)], 1)
    torch.testing.assert_close(ratio.of_next(z, features, 4), neighbours)
    statistics = ratio.statistics(features)
    sets = ratio.summed([statistics[:7], statistics[7:], statistics[2:3]])
    index = torch.tensor([1, 0])  # of two sets of three, one of them shorter than the other
    wanted = torch.stack([every[7:, :6].sum(0), every[:7, 6:].sum(0)])
    torch.testing.assert_close(sets.log_prob(z.view(2, 6, 2), index), wanted)


def test_ridges_are_no_part_of_a_sum_of_statistics():
    ratio, (z, features) = head(config=RIDGED).exact(), some()
    with_ridges = of_all(ratio, z, features)
    with torch.no_grad():
        ratio.of_z[-1].weight[-3:] = 0.0
        ratio.of_z[-1].bias[-3:] = 0.0  # no height
    flat = of_all(ratio, z, features)
    assert (with_ridges - flat).abs().max() > 1e-3
    m = RIDGED.n_statistics
    torch.testing.assert_close(
        ratio.natural(z)[:, :m] @ ratio.statistics(features)[:, :m].sum(0), flat.sum(0)
    )


def test_strata_that_are_not_learned_yet_change_nothing():
    without = head(config=RIDGED)
    ratio, (z, features) = head(config=replace(RIDGED, n_strata=5)), some()
    ratio.load_state_dict(without.state_dict(), strict=False)
    torch.testing.assert_close(of_all(ratio.eval(), z, features), of_all(without, z, features))


def test_ratio_holds_the_normal_law_however_far_out():
    """Squares of what is linear in the features: a quadratic in x for each z."""
    ratio = head(n_context=1).exact()
    for part in (*ratio.of_x.parameters(),):
        part.requires_grad_(False).zero_()
    x = torch.linspace(-1e3, 1e3, 9).double()[:, None]
    found = of_all(ratio, torch.randn(4, 2).double(), x)
    third = found.diff(dim=0, n=3)
    torch.testing.assert_close(
        third / found.abs().max(), torch.zeros_like(third), atol=1e-9, rtol=0
    )
    assert (found.diff(dim=0, n=2) < 0).all()


# --- normalising ----------------------------------------------------------------------------------


def test_strata_have_the_means_of_ratios():
    """Of a normal law exp(a x + b x^2) has a mean in closed form."""
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = torch.stack([x, x.square()], 1)
    natural = torch.tensor([[0.5, 0.0], [-1.0, 0.1], [1.0, -0.5]], dtype=torch.float64)
    centres, log_shares = strata(statistics, statistics @ natural.T, 64)
    assert log_shares.exp().sum().item() == pytest.approx(1)
    torch.testing.assert_close(log_shares.exp() @ centres, statistics.mean(0), rtol=1e-6, atol=1e-9)
    found = (natural @ centres.T + log_shares).logsumexp(1)
    a, b = natural.T
    exact = 0.5 * a.square() / (1 - 2 * b) - 0.5 * (1 - 2 * b).log()
    each = (statistics @ natural.T).exp()
    error = each.std(0) / each.mean(0) / len(x) ** 0.5
    assert ((found - exact).abs() < 4 * error + 2e-3).all()
    own = (statistics @ natural.T).logsumexp(0) - math.log(len(x))
    torch.testing.assert_close(found, own, atol=2e-3, rtol=0)


def test_strata_of_data_that_are_alike_are_as_many():
    centres, log_shares = strata(torch.ones(40, 3), torch.ones(40, 2), 8)
    assert centres.eq(1).all()
    assert log_shares.exp().sum().item() == pytest.approx(1)


def unlevelled(config=SMALL):
    """A ratio of one feature whose mean over the data is anything, and z and features."""
    ratio = head(n_context=1, config=replace(config, n_strata=64))
    with torch.no_grad():
        ratio.of_z[-1].weight *= 5
    rng = torch.Generator().manual_seed(1)
    return ratio, torch.randn(20_000, 2, generator=rng), torch.randn(20_000, 1, generator=rng)


def mean_ratios(ratio, z, features):
    return of_all(ratio.eval(), z[:100], features).exp().mean(0).detach()


@pytest.mark.parametrize("config", [SMALL, RIDGED])
def test_normalised_ratio_has_mean_one_over_other_data(config):
    ratio, z, features = unlevelled(config)
    assert (mean_ratios(ratio, z, features) - 1).abs().max() > 0.2
    ratio.normalise(z[:10_000], ratio.statistics(features[:10_000]))
    rest = features[10_000:]
    each = of_all(ratio, z[:100], rest).exp().detach()
    error = each.std(0) / 100  # of the strata, too
    assert ((each.mean(0) - 1).abs() < 4 * 2**0.5 * error + 2e-3).all()
    # pairs and gradients are those of the same function
    torch.testing.assert_close(
        ratio.log_prob(z[:9, None], rest[:9])[:, 0], of_all(ratio, z[:9], rest[:9]).diagonal()
    )


def test_many_rows_are_normalised_piece_by_piece(monkeypatch):
    ratio, z, features = unlevelled(RIDGED)
    ratio.eval().normalise(z, ratio.statistics(features))

    def found():
        own = z[:64].view(4, 16, 2).clone().requires_grad_(True)
        value = ratio.log_prob(own, features[:4])
        return value.detach(), torch.autograd.grad(value.square().sum(), own)[0]

    at_once = found()
    monkeypatch.setattr(Ratio, "rows_at_once", lambda *_: 5)
    for value, expected in zip(found(), at_once, strict=True):
        torch.testing.assert_close(value, expected)
    with torch.no_grad():
        torch.testing.assert_close(ratio.log_prob(z[:64].view(4, 16, 2), features[:4]), at_once[0])


def test_strata_that_do_not_serve_are_none():
    ratio, z, features = unlevelled()
    before = mean_ratios(ratio, z, features)
    ratio.normalise(z[:100], ratio.statistics(features[:100]))  # too few
    other, _, _ = unlevelled()
    level = other.statistics(features)
    level[5_000:, -1] += 3.0  # most of the data are others than those they are tried on
    other.normalise(z, level)
    for own in (ratio, other):
        torch.testing.assert_close(mean_ratios(own, z, features), before)
        assert not {"centres", "log_shares"} & set(own.state_dict()), "nor do they cost anything"
        assert own.config.n_strata == 0


def test_strata_are_of_many_data_alone(monkeypatch):
    assert small().fit(n_sims=2000, n_epochs=3).model_.network.flow.config.n_strata == 0
    monkeypatch.setattr(fitting, "_FEWEST", 1000)
    assert small().fit(n_sims=2000, n_epochs=3).model_.network.flow.centres.any()


def test_strata_go_through_a_file(tmp_path):
    made = small().fit(n_sims=100, n_epochs=1)
    flow, rng = made.model_.network.flow, torch.Generator().manual_seed(3)
    width = flow.config.n_statistics + flow.config.n_ridges
    flow.config = replace(flow.config, n_strata=8)
    flow.register_buffer("centres", 0.1 * torch.randn(8, width, generator=rng))
    flow.register_buffer("log_shares", torch.full((8,), -math.log(8)))
    made.save(tmp_path / "r.nbi")
    again = nbi.RatioEngine.load(tmp_path / "r.nbi")
    for own, other in zip(
        flow.state_dict().items(), again.model_.network.flow.state_dict().items(), strict=True
    ):
        assert own[0] == other[0]
        assert torch.equal(own[1], other[1])
    theta, x = made.prior_.sample(5, 0), [[0.3]] * 5
    assert (made.log_ratio(theta, x) == again.log_ratio(theta, x)).all()


def test_files_from_before_there_were_strata_and_ridges_are_whole():
    newer = {"n_strata", "n_ridges"}
    before = RatioConfig(**{k: v for k, v in vars(RatioConfig()).items() if k not in newer})
    ratio = head(config=before)
    assert {name.split(".")[0] for name in ratio.state_dict()} == {
        "mean", "width", "reach", "of_z", "of_x", "straight",
    }  # fmt: skip
    assert ratio.straight.out_features == before.n_squares


def test_ratio_that_leaves_a_factor_free_is_not_normalised(monkeypatch):
    monkeypatch.setattr(fitting, "_FEWEST", 1000)
    free = small(gamma=math.inf).fit(n_sims=2000, n_epochs=3)
    assert free.model_.network.flow.config.n_strata == 0


# --- one trial, and many ------------------------------------------------------------------------


def test_log_ratio_is_that_of_the_linear_gaussian_model(engine):
    rng = np.random.default_rng(3)
    mu = rng.normal(size=400)
    x = rng.normal(mu, SIGMA)
    off = engine.log_ratio(mu[:, None], x) - exact_log_ratio(mu, x)
    assert abs(off.mean()) < 0.03
    assert off.std() < 0.1
    mu = np.roll(mu, 1)
    off = engine.log_ratio(mu[:, None], x) - exact_log_ratio(mu, x)
    likely = exact_log_ratio(mu, x) > -3  # what is less likely by far is in no batch
    assert off[likely].std() < 0.15


def test_data_far_from_zero_lose_no_digits():
    """Of dates in seconds single precision holds minutes, of these nothing at all."""
    mu, x = np.linspace(-1, 1, 9)[:, None], np.linspace(-2, 2, 9)
    found = []
    for zero in (1e4, 1e10):
        engine = nbi.RatioEngine(lambda theta, zero=zero: one_trial(theta) + zero, PRIOR)
        found.append(engine.fit(n_sims=2000, n_epochs=5).log_ratio(mu, x + zero))
    assert np.ptp(found[0]) > 0.1
    np.testing.assert_allclose(*found, atol=1e-3)


@pytest.mark.parametrize(("n", "off", "wide"), [(1, 0.05, 0.05), (10, 0.1, 0.1), (100, 0.3, 0.15)])
def test_posterior_of_a_mean_is_the_exact_one(engine, n, off, wide):
    x = draws(n)
    posterior = quietly(engine, x)
    mean, sd = exact_posterior(x)
    assert posterior.status is nbi.Status.LEARNED
    assert abs(posterior.mean()[0] - mean) < (off + 4 / posterior.ess**0.5) * sd
    assert abs(posterior.std()[0] / sd - 1) < wide + 4 / (2 * posterior.ess) ** 0.5
    # the evidence, relative to the product of p(x)
    total = np.array([exact_log_ratio(m, x).sum() for m in (mean,)])[0]
    exact = total + norm.logpdf(mean) - norm.logpdf(mean, mean, sd)
    assert abs(posterior.log_evidence - exact) < 0.3 + 0.02 * n


@pytest.fixture(scope="module")
def density():
    return nbi.LikelihoodEngine(one_trial, PRIOR).fit(n_sims=20_000, n_epochs=10, batch_size=256)


@pytest.mark.parametrize("kind", ["engine", "density"])
def test_priors_are_compared_by_answers_of_one_engine_alone(kind, request):
    """Evidences of the same data under two normal priors are known."""
    engine, x, narrow = request.getfixturevalue(kind), draws(20), nbi.Prior({"mu": norm(0.8, 0.5)})
    wide = quietly(engine, x, n_samples=8000)
    table = nbi.compare({"wide": wide, "narrow": wide.reweight(narrow)})
    among = SIGMA**2 * np.eye(len(x))

    def log_evidence(mean, sd):
        return multivariate_normal.logpdf(x, np.full(len(x), mean), among + sd**2)

    found = table.log_bayes_factors(against="wide")["log_bayes_factor_narrow"][0]
    assert found == pytest.approx(log_evidence(0.8, 0.5) - log_evidence(0, 1), abs=0.1)
    with pytest.raises(ValueError, match="must not be LEARNED"):
        nbi.compare({"one": wide, "again": quietly(engine, x, seed=1)})


def test_answer_is_learned_and_never_trusted(engine):
    with pytest.warns(nbi.UntrustedWarning, match="LEARNED"):
        posterior = engine.predict(draws(10))
    assert not posterior.certified
    assert not posterior.trusted
    assert "LEARNED" in posterior.report
    assert posterior.settled_by
    assert np.isnan(posterior.fit_p_value)
    again = pickle.loads(pickle.dumps(posterior))  # noqa: S301
    assert again.status is nbi.Status.LEARNED


def test_learned_answer_goes_through_a_file(engine, tmp_path):
    posterior = quietly(engine, draws(10))
    posterior.save(tmp_path / "p.h5")
    again = nbi.Posterior.load(tmp_path / "p.h5")
    assert again.status is nbi.Status.LEARNED
    np.testing.assert_array_equal(again.samples, posterior.samples)


def test_order_of_trials_and_sets_beside_change_nothing(engine):
    x, other = draws(20), draws(7, mu=-1.0, seed=1)
    alone = quietly(engine, x)
    turned = quietly(engine, x[::-1])
    several = engine.predict_many([x, other])
    assert alone.mean() == pytest.approx(turned.mean(), abs=1e-6)
    assert alone.mean() == pytest.approx(several.mean[0], abs=1e-6)
    exact = exact_posterior(other)
    assert abs(several.mean[1, 0] - exact[0]) < 0.2 * exact[1]


def test_more_draws_are_had_when_asked_for(engine):
    assert len(quietly(engine, draws(3), n_samples=5000)) >= 5000


def test_what_was_never_learned_is_flagged(engine):
    flag = nbi.Flag.EXTRAPOLATED
    ordinary = engine.predict_many([draws(30, seed=k) for k in range(8)])
    assert sum(flag in own for own in ordinary.flags) <= 1
    strange = np.append(draws(30), 1e4)
    assert flag in quietly(engine, strange).flags
    assert flag in quietly(engine, np.full(30, 5.5)).flags  # mu = 5.5 is no draw of the prior


def test_ratio_is_balanced_on_fresh_simulations(engine):
    value, error = engine.imbalance(4096)
    assert 0.001 < error < 0.01
    assert abs(value) < 0.01 + 4 * error


@pytest.mark.statistics
@pytest.mark.parametrize("n_trials", [1, 20])
def test_ranks_of_truths_are_uniform(engine, n_trials):
    found = engine.calibrate(300, n_trials)
    assert found.p_values.min() > 1e-3
    assert found.n_excluded <= 3


# --- doors ----------------------------------------------------------------------------------------


def test_log_ratio_pairs_rows_and_is_nothing_outside_the_prior():
    engine = nbi.RatioEngine(one_trial, {"mu": uniform(-1, 2)}).fit(n_sims=200, n_epochs=1)
    x = np.linspace(-1, 1, 4)
    pairs = engine.log_ratio([[0.1], [0.2], [0.3], [0.4]], x)
    one_theta, one_x = engine.log_ratio([[0.1]], x), engine.log_ratio([[0.1], [0.2]], [x[1]])
    assert pairs.shape == one_theta.shape == (4,)
    assert pairs[0] == pytest.approx(one_theta[0])
    assert pairs[1] == pytest.approx(one_x[1])
    assert engine.log_ratio([[1.5]], x).tolist() == [-math.inf] * 4


def test_what_all_trials_say_is_the_sum_of_what_each_says(engine):
    x, mu = draws(7), np.array([[0.1], [-0.4]])
    each = engine.log_ratio(np.repeat(mu, 7, 0), np.tile(x, 2)).reshape(2, 7)
    np.testing.assert_allclose(engine.summed(mu, x), each.sum(1), rtol=1e-9)


def test_landscape_has_its_ridge_where_the_posterior_is(engine):
    pytest.importorskip("matplotlib", reason='needs matplotlib: pip install "nbi-plus[plots]"')
    x = draws(40)
    figure = nbi.plots.ratio_landscape(engine, x, truths=[0.4], n=101)
    mu, height = figure.axes[0].lines[0].get_data()
    assert height.max() == 0
    mean, sd = exact_posterior(x)
    assert abs(mu[height.argmax()] - mean) < 0.5 * sd + np.diff(mu)[0]
    with pytest.raises(ValueError, match="names must be one of"):
        nbi.plots.ratio_landscape(engine, x, ["nu"])
    with pytest.raises(ValueError, match="names must be one parameter or two"):
        nbi.plots.ratio_landscape(engine, x, [])


def test_landscape_of_two_parameters_shows_the_others_where_they_are_told():
    pytest.importorskip("matplotlib", reason='needs matplotlib: pip install "nbi-plus[plots]"')
    wide = {"a": uniform(-1, 2), "b": norm(), "c": norm()}
    engine = nbi.RatioEngine(lambda theta: one_trial(theta.sum(1, keepdim=True)), wide)
    engine.fit(n_sims=200, n_epochs=1)
    at = [0.0, 0.3, -0.2]
    figure = nbi.plots.ratio_landscape(engine, [0.1], ["c", "a"], at=at, n=5)
    assert nbi.plots.ratio_landscape(engine, [0.1], "c", at=at, n=np.int64(5)).axes
    drawn = figure.axes[0].collections[0].get_array().reshape(5, 5)
    c, a = (np.linspace(*engine.prior_.from_latent(np.outer([-2.5, 2.5], np.ones(3)))[:, i], 5)
            for i in (2, 0))  # fmt: skip
    theta = np.array([[a[0], 0.3, c[1]], [a[3], 0.3, c[4]]])
    wanted = engine.log_ratio(theta, [0.1])
    assert drawn[3, 4] - drawn[0, 1] == pytest.approx(wanted[1] - wanted[0], rel=1e-6)


def test_log_ratio_of_tensors_has_the_gradient_of_differences(engine):
    theta = torch.tensor([[0.3], [-1.2]], dtype=torch.float64, requires_grad=True)
    x = [0.5, 0.1]
    (slope,) = torch.autograd.grad(engine.log_ratio_torch(theta, x).sum(), theta)
    step = 1e-5
    up, down = (engine.log_ratio(theta.detach().numpy() + s, x) for s in (step, -step))
    np.testing.assert_allclose(slope[:, 0].numpy(), (up - down) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((3, 2)), r"must have shape \(T, 1\)"),
        (np.zeros((2, 3, 1)), r"must have shape \(T, 1\)"),
        ([0.0, np.nan], "must be finite, but 1 of 2 trials"),
        ([], r"must have shape \(T, 1\)"),
    ],
)
def test_trials_of_another_width_are_refused(engine, x, words):
    with pytest.raises(ValueError, match=words):
        engine.predict(x)
    with pytest.raises(ValueError, match=words):
        engine.log_ratio([[0.0]], x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": nbi.GaussianNoise(0.1)}, "noise must be a CustomNoise without"),
        ({"simulator": lambda theta: 2 * theta}, "simulator must draw its noise"),
        ({"prior": lambda u: u, "labels": None}, "prior_transform"),
    ],
)
def test_problems_that_are_none_of_ratios_are_refused(options, words):
    own = {"simulator": one_trial, "prior": PRIOR} | options
    if "labels" in own:
        own.pop("labels")
        own["prior"] = nbi.Prior(own["prior"], labels=["mu"])
    with pytest.raises(ValueError, match=words):
        nbi.RatioEngine(**own).fit(n_sims=100, n_epochs=1)


def test_engine_keeps_the_contract_of_estimators():
    own = small(n_contrast=8, gamma=2.0, balance=100.0, seed=3)
    copied, given = clone(own).get_params(), own.get_params()
    assert nbi.Prior(copied.pop("prior")) == nbi.Prior(given.pop("prior"))
    assert copied == given
    with pytest.raises(NotFittedError, match="Call fit before predict"):
        own.predict([0.0])


def test_noise_of_ones_own_may_be_added():
    noise = nbi.CustomNoise(
        lambda model, obs, theta, rng: (
            model + SIGMA * torch.randn(model.shape, generator=rng, dtype=model.dtype)
        )
    )
    engine = nbi.RatioEngine(lambda theta: 1.0 * theta, PRIOR, noise)
    engine.fit(n_sims=4000, n_epochs=15)
    off = engine.log_ratio([[0.5]], [0.0, 0.5, 1.0]) - exact_log_ratio(0.5, np.array([0, 0.5, 1.0]))
    assert np.abs(off).max() < 0.2


def test_trials_made_elsewhere_are_learned_from_arrays_and_files(tmp_path):
    theta = np.random.default_rng(0).normal(size=(600, 1))
    x = np.random.default_rng(1).normal(theta[:, 0], SIGMA)
    with h5py.File(tmp_path / "sims.h5", "w") as file:
        file["theta"], file["x"] = theta, x
    by_array = nbi.RatioEngine(prior=PRIOR).fit(theta, x, n_epochs=2)
    by_file = nbi.RatioEngine(prior=PRIOR).fit(x=tmp_path / "sims.h5", n_epochs=2)
    grid = [[-0.5], [0.5]]
    np.testing.assert_array_equal(by_array.log_ratio(grid, [0.1]), by_file.log_ratio(grid, [0.1]))
    with pytest.raises(ValueError, match="must have a simulator"):
        by_array.simulate(grid)


def choice_and_time(theta):
    """A time that grows with theta, and which of two answers was given."""
    time = (theta + 0.3 * torch.randn(theta.shape, dtype=theta.dtype)).exp()
    right = torch.rand(theta.shape, dtype=theta.dtype) < torch.sigmoid(2 * theta)
    return torch.cat([time, right.to(theta.dtype)], 1)


def test_columns_of_a_trial_may_mean_different_things():
    engine = nbi.RatioEngine(choice_and_time, PRIOR).fit(n_sims=10_000, n_epochs=15, batch_size=256)
    mu = np.linspace(-1, 1, 9)
    for right in (0.0, 1.0):
        found = engine.log_ratio(mu[:, None], [[1.0, right]])
        exact = norm.logpdf(0.0, mu, 0.3) - np.log1p(np.exp(-2 * mu * (1 if right else -1)))
        assert (found - exact).std() < 0.4, "of 5.5 from end to end"


def one_at_a_time(theta):
    return float(theta[0]) + SIGMA * np.random.normal()  # noqa: NPY002 - as people write them


@pytest.mark.parametrize("simulator", [one_trial, one_at_a_time])
def test_trials_of_the_same_parameters_differ(simulator):
    engine = nbi.RatioEngine(simulator, PRIOR).fit(n_sims=60, n_epochs=1)
    x = engine.simulate(np.full((200, 1), 0.3), seed=1)
    assert len(np.unique(x)) == 200
    assert abs(x.std() - SIGMA) < 4 * SIGMA / 400**0.5
    assert not np.isin(x, engine.simulate(np.full((200, 1), 0.3), seed=2)).any()
    np.testing.assert_array_equal(x, engine.simulate(np.full((200, 1), 0.3), seed=1))


def test_long_trials_are_series():
    def wave(theta):
        steps = torch.linspace(0, 1, 20, dtype=theta.dtype)
        return theta * steps + torch.randn((len(theta), 20), dtype=theta.dtype)

    engine = nbi.RatioEngine(wave, PRIOR).fit(n_sims=300, n_epochs=1)
    assert engine.model_.featurizer.name == "resnet-gru"
    assert engine.simulate([[0.0], [1.0]]).shape == (2, 20)
    assert engine.log_ratio([[0.0]], np.zeros((3, 20))).shape == (3,)


# --- files, and training that was killed --------------------------------------------------------


def test_engine_goes_through_a_file(engine, tmp_path):
    engine.save(tmp_path / "ratio.nbi")
    again = nbi.RatioEngine.load(tmp_path / "ratio.nbi", one_trial)
    x, theta = draws(5), np.linspace(-1, 1, 5)[:, None]
    np.testing.assert_allclose(again.log_ratio(theta, x), engine.log_ratio(theta, x), rtol=1e-12)
    assert again.simulate(theta).shape == (5, 1)
    assert again.get_params()["n_contrast"] == engine.n_contrast
    np.testing.assert_array_equal(quietly(again, x).samples, quietly(engine, x).samples)


def test_files_of_one_kind_are_refused_by_the_other(engine, tmp_path):
    engine.save(tmp_path / "ratio.nbi")
    with pytest.raises(nbi.ArchiveError):
        nbi.Engine.load(tmp_path / "ratio.nbi")
    small = nbi.Engine(lambda theta: theta @ np.ones((1, 4)), PRIOR, noise=1.0, featurizer="mlp",
                       flow={"n_blocks": 1, "hidden": 8, "n_mog": 1})  # fmt: skip
    small.fit(n_sims=50, n_epochs=1).save(tmp_path / "engine.nbi")
    with pytest.raises(nbi.ArchiveError):
        nbi.RatioEngine.load(tmp_path / "engine.nbi")


def test_training_that_was_killed_goes_on_where_it_was(tmp_path):
    def killed(history):
        if len(history) == 3:
            raise KeyboardInterrupt

    own = {"n_sims": 500, "n_epochs": 5}
    whole = small().fit(**own)
    with pytest.raises(KeyboardInterrupt):
        small(path=tmp_path).fit(callback=killed, **own)
    seen = []
    resumed = small(path=tmp_path).fit(callback=lambda h: seen.append(len(h)), **own)
    assert seen == [4, 5]
    grid = np.linspace(-1, 1, 5)[:, None]
    np.testing.assert_allclose(resumed.log_ratio(grid, [0.2]), whole.log_ratio(grid, [0.2]))


@pytest.mark.parametrize(
    ("kind", "n_epochs", "turned"),
    [
        (nbi.RatioEngine, 1, False),
        (nbi.RatioEngine, 1000, True),
        (nbi.LikelihoodEngine, 1000, False),
    ],
)
def test_long_trainings_of_ratios_turn_matrices(turning, kind, n_epochs, turned):
    """Those of densities of trials do not."""
    with pytest.raises(KeyboardInterrupt):
        kind(one_trial, PRIOR).fit(n_sims=100, n_epochs=n_epochs, batch_size=50)
    assert turning == [turned]
