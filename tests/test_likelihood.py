"""Learned likelihoods: densities, labels, and posteriors of many trials, all in closed form."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import nbi_plus as nbi
from nbi_plus.inspecting import told
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.heads.trend import Trend
from nbi_plus.learn.likelihood import Likelihood, LikelihoodConfig, labels

SIGMA = 0.7
PRIOR = {"mu": norm(0, 1)}
CHOICE = {"v": norm(0, 1), "m": uniform(-1, 2)}
LABELS = {1: (0, 1)}
TINY = {"n_blocks": 1, "hidden": 8, "n_mog": 1}


def one_trial(theta):
    return theta + SIGMA * torch.randn(theta.shape, dtype=theta.dtype)


def time_and_choice(theta):
    """A choice whose log odds are 1.5 v, and a lognormal time that depends on it."""
    v, m = theta.T
    right = (torch.rand(len(v), dtype=v.dtype) < torch.sigmoid(1.5 * v)).to(v.dtype)
    noise = (0.3 + 0.2 * right) * torch.randn(len(v), dtype=v.dtype)
    return torch.stack([torch.exp(m - 0.5 * right + noise), right], 1)


def probability(v, right):
    return 1 / (1 + np.exp(-1.5 * v * (2 * right - 1)))


def exact(theta, x):
    (v, m), (time, right) = np.transpose(theta), np.transpose(x)
    given = norm.logpdf(np.log(time), m - 0.5 * right, 0.3 + 0.2 * right) - np.log(time)
    return np.log(probability(v, right)) + given


def draws(n, mu=0.4, seed=0):
    return np.random.default_rng(seed).normal(mu, SIGMA, n)


def quietly(engine, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        return engine.predict(x, **options)


@pytest.fixture(scope="module")
def engine():
    return nbi.LikelihoodEngine(one_trial, PRIOR).fit(n_sims=20_000, n_epochs=10, batch_size=256)


@pytest.fixture(scope="module")
def chooser():
    engine = nbi.LikelihoodEngine(time_and_choice, CHOICE, discrete=LABELS)
    return engine.fit(n_sims=20_000, n_epochs=15, batch_size=256)


def small(simulator=one_trial, prior=PRIOR, **options):
    return nbi.LikelihoodEngine(simulator, prior, flow=TINY, **options)


# --- the density ----------------------------------------------------------------------------------


def head(n_columns=3, discrete=None, seed=0):
    flow = FlowConfig(n_blocks=2, hidden=8, n_mog=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Likelihood(2, n_columns, LikelihoodConfig(flow, labels(discrete))).exact()
        for part in made.parameters():
            part.add_(0.3 * torch.randn(part.shape).double())
    return made


def normals(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_density_of_all_labels_and_numbers_adds_up_to_one():
    made = head(3, {0: (1, 2, 5), 2: (-1, 1)})
    grid = torch.sinh(torch.linspace(-12, 12, 8001, dtype=torch.float64))
    z = normals(4, 1, 2)
    total = torch.zeros(4, dtype=torch.float64)
    for a in (1.0, 2.0, 5.0):
        for b in (-1.0, 1.0):
            x = torch.stack([torch.full_like(grid, a), grid, torch.full_like(grid, b)], 1)
            total += torch.trapezoid(made.of_trials(z, x).exp(), grid)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)


def test_density_of_labels_alone_is_a_table():
    made = head(2, {0: (0, 1), 1: (0, 1, 2)})
    every = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0)).double()
    total = made.of_trials(normals(5, 1, 2), every).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("discrete", [None, {0: (0, 1)}, {0: (0, 1), 1: (0, 3, 4), 2: (1, 2)}])
def test_sets_of_any_sizes_add_up_as_their_trials_do(discrete):
    """Padding, sets without a label, and sets beside change nothing."""
    made, rng = head(3, discrete), np.random.default_rng(0)
    sets = [normals(n, 3, seed=n) for n in (1, 2, 7, 400)]
    for column, values in (discrete or {}).items():
        for own in sets:
            own[:, column] = torch.as_tensor(rng.choice(values, len(own)))
    z, index = normals(5, 6, 2), torch.tensor([3, 0, 1, 2, 3])
    found = made.summed(sets).log_prob(z, index)
    each = [made.of_trials(z[b, :, None], sets[i]).sum(-1) for b, i in enumerate(index)]
    torch.testing.assert_close(found, torch.stack(each))


def test_draws_have_the_learned_density(chooser):
    theta, n = np.array([[0.5, 0.2]]), 20_000
    x = chooser.sample(theta, n, seed=3)[0]
    times = np.exp(np.linspace(-5, 4, 4000))
    for right in (0.0, 1.0):
        pairs = np.stack([times, np.full(len(times), right)], 1)
        density = np.exp(chooser.log_likelihood(theta, pairs))
        share = np.trapezoid(density, times)
        mean = np.trapezoid(density * np.log(times), times) / share
        own = np.log(np.maximum(x[x[:, 1] == right, 0], times[0]))
        assert abs(len(own) / n - share) < 4 * (share * (1 - share) / n) ** 0.5 + 1e-3
        assert abs(own.mean() - mean) < 4 * own.std() / len(own) ** 0.5 + 1e-3
    np.testing.assert_array_equal(x, chooser.sample(theta, n, seed=3)[0])
    assert (x[:, 0] != chooser.sample(theta, n, seed=4)[0, :, 0]).all()


# --- what is learned ------------------------------------------------------------------------------


def test_likelihood_is_that_of_the_linear_gaussian_model(engine):
    mu, x = (v.ravel() for v in np.meshgrid(np.linspace(-1.5, 1.5, 21), np.linspace(-3, 3, 41)))
    off = engine.log_likelihood(mu[:, None], x) - norm.logpdf(x, mu, SIGMA)
    near = np.abs(x - mu) < 2.5 * SIGMA
    print("log-likelihood off by", off[near].std(), "at most", np.abs(off[near]).max())
    assert np.abs(off[near]).max() < 0.2
    assert off[near].std() < 0.06


@pytest.mark.parametrize(("n", "off", "wide"), [(1, 0.05, 0.05), (10, 0.1, 0.1), (100, 0.3, 0.1)])
def test_posterior_of_a_mean_is_the_exact_one(engine, n, off, wide):
    x = draws(n)
    posterior = quietly(engine, x)
    precision = 1 + n / SIGMA**2
    mean, sd = x.sum() / SIGMA**2 / precision, precision**-0.5
    assert posterior.status is nbi.Status.LEARNED
    assert not posterior.trusted
    assert abs(posterior.mean()[0] - mean) < (off + 4 / posterior.ess**0.5) * sd
    assert abs(posterior.std()[0] / sd - 1) < wide + 4 / (2 * posterior.ess) ** 0.5
    # the evidence is that of the data themselves
    at_mean = norm.logpdf(x, mean, SIGMA).sum() + norm.logpdf(mean)
    assert abs(posterior.log_evidence - at_mean + norm.logpdf(mean, mean, sd)) < 0.1 + 0.02 * n


def test_labels_and_times_have_their_probabilities_and_densities(chooser):
    v = np.linspace(-2, 2, 9)
    theta = np.stack([v, np.full(9, 0.2)], 1)
    times = np.exp(np.linspace(-5, 4, 2000))
    for right in (0.0, 1.0):
        pairs = np.stack([times, np.full(len(times), right)], 1)
        each = [np.exp(chooser.log_likelihood(own[None], pairs)) for own in theta]
        off = np.trapezoid(each, times) - probability(v, right)
        assert np.abs(off).max() < 0.03
    theta = chooser.prior_.sample(4000, np.random.default_rng(0))
    x = chooser.simulate(theta, seed=1)
    off = exact(theta, x) - chooser.log_likelihood(theta, x)
    assert off.mean() < 0.02 + 4 * off.std() / len(off) ** 0.5  # the divergence
    assert off.std() < 0.25


def test_posterior_of_choices_and_times_is_the_exact_one(chooser):
    x = chooser.simulate(np.repeat([[0.5, 0.2]], 50, 0), seed=3)
    axes = np.linspace(-2, 2, 101), np.linspace(-0.6, 1, 161)
    grid = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], 1)
    pairs = np.repeat(grid, len(x), 0), np.tile(x, (len(grid), 1))
    height = exact(*pairs).reshape(len(grid), -1).sum(1) + norm.logpdf(grid[:, 0])
    weight = np.exp(height - height.max())
    mean = weight @ grid / weight.sum()
    sd = np.sqrt(weight @ (grid - mean) ** 2 / weight.sum())
    posterior = quietly(chooser, x)
    assert posterior.status is nbi.Status.LEARNED
    assert (np.abs(posterior.mean() - mean) < (0.5 + 4 / posterior.ess**0.5) * sd).all()
    assert (np.abs(posterior.std() / sd - 1) < 0.15 + 4 / (2 * posterior.ess) ** 0.5).all()


def test_choices_alone_are_learned():
    def choice(theta):
        return (torch.rand(theta.shape, dtype=theta.dtype) < torch.sigmoid(1.5 * theta)).double()

    engine = small(choice, discrete={0: (0, 1)}).fit(n_sims=10_000, n_epochs=10, batch_size=256)
    v = np.linspace(-2, 2, 9)
    found = np.exp(engine.log_likelihood(v[:, None], np.ones(9)))
    np.testing.assert_allclose(found, probability(v, 1), atol=0.04)
    assert quietly(engine, [1, 1, 0, 1]).mean()[0] > 0.1


def test_order_of_columns_changes_nothing():
    def turned(theta):
        return time_and_choice(theta).flip(1)

    options = {"n_sims": 400, "n_epochs": 2}
    one = small(time_and_choice, CHOICE, discrete=LABELS).fit(**options)
    other = small(turned, CHOICE, discrete={0: (0, 1)}).fit(**options)
    theta = one.prior_.sample(20, np.random.default_rng(0))
    x = one.simulate(theta)
    found = one.log_likelihood(theta, x), other.log_likelihood(theta, x[:, ::-1])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_another_unit_changes_the_density_by_its_size_alone():
    def milli(theta):  # and far from zero, as dates are
        return 1000 * one_trial(theta) + 1e12

    options = {"n_sims": 400, "n_epochs": 2}
    one, other = small().fit(**options), small(milli).fit(**options)
    mu, x = np.linspace(-1, 1, 9)[:, None], np.linspace(-2, 2, 9)
    ours = one.log_likelihood(mu, x) - math.log(1000)
    np.testing.assert_allclose(other.log_likelihood(mu, 1000 * x + 1e12), ours, atol=0.02)


@pytest.mark.statistics
@pytest.mark.parametrize("n_trials", [1, 20])
def test_ranks_of_truths_are_uniform(chooser, n_trials):
    found = chooser.calibrate(300, n_trials)
    assert found.p_values.min() > 1e-3
    assert found.n_excluded <= 3


# --- doors ----------------------------------------------------------------------------------------


def test_log_likelihood_pairs_rows_and_is_nothing_outside_the_prior():
    engine = small(prior={"mu": uniform(-1, 2)}).fit(n_sims=200, n_epochs=1)
    x = np.linspace(-1, 1, 4)
    pairs = engine.log_likelihood([[0.1], [0.2], [0.3], [0.4]], x)
    one_theta, one_x = (
        engine.log_likelihood([[0.1]], x),
        engine.log_likelihood([[0.1], [0.2]], [x[1]]),
    )
    assert pairs.shape == one_theta.shape == (4,)
    assert pairs[0] == pytest.approx(one_theta[0])
    assert pairs[1] == pytest.approx(one_x[1])
    assert engine.log_likelihood([[1.5]], x).tolist() == [-math.inf] * 4
    with pytest.raises(ValueError, match="theta must lie inside the prior"):
        engine.sample([[1.5]])


def test_log_likelihood_of_tensors_has_the_gradient_of_differences(chooser):
    theta = torch.tensor([[0.3, 0.1], [-1.2, 0.5]], dtype=torch.float64, requires_grad=True)
    x = np.array([[1.1, 1.0], [0.7, 0.0]])
    (slope,) = torch.autograd.grad(chooser.log_likelihood_torch(theta, x).sum(), theta)
    for d in range(2):
        step = 1e-5 * np.eye(2)[d]
        up, down = (chooser.log_likelihood(theta.detach().numpy() + s, x) for s in (step, -step))
        np.testing.assert_allclose(slope[:, d].numpy(), (up - down) / 2e-5, rtol=1e-4, atol=1e-6)


def test_order_of_trials_and_sets_beside_change_no_answer(chooser):
    theta = np.array([[0.5, 0.2]])
    several = [chooser.simulate(np.repeat(theta, n, 0), seed=n) for n in (3, 30)]
    for own, other in (several, several[::-1]):
        together = chooser.predict_many([own, other])
        assert quietly(chooser, own[::-1]).mean() == pytest.approx(together.mean[0], abs=1e-6)
        assert nbi.Flag.EXTRAPOLATED not in together.flags[0]


def test_what_was_never_learned_is_flagged(engine):
    assert nbi.Flag.EXTRAPOLATED not in quietly(engine, draws(10)).flags
    assert nbi.Flag.EXTRAPOLATED in quietly(engine, np.append(draws(10), 15.0)).flags
    assert nbi.Flag.EXTRAPOLATED in quietly(engine, np.full(10, 5.5)).flags  # no draw of the prior


@pytest.mark.parametrize(
    ("simulator", "discrete", "words"),
    [
        (time_and_choice, None, r"column 1 has 2 values .* Declare discrete=\{1: \(0, 1\)\}"),
        (time_and_choice, {0: (0, 1)}, "x must have labels among"),
        (time_and_choice, {1: (0, 2)}, "x must have labels among .* in column 1"),
        (time_and_choice, {2: (0, 1)}, "discrete must name columns of trials of 2 numbers"),
        (time_and_choice, {1: (0,)}, "two or more finite values"),
        (time_and_choice, {-1: (0, 1)}, "columns, counted from 0"),
        (time_and_choice, {1: range(5000)}, "at most 1024 combinations"),
        (lambda theta: torch.poisson(200 + 0 * theta[:, :1]), None, "Declare all its values"),
    ],
)
def test_labels_that_are_not_declared_are_refused(simulator, discrete, words):
    with pytest.raises(ValueError, match=words):
        small(simulator, CHOICE, discrete=discrete).fit(n_sims=2000, n_epochs=1)


def test_trials_with_other_labels_or_widths_are_refused(chooser):
    with pytest.raises(ValueError, match=r"x must have labels among \(0.0, 1.0\) in column 1"):
        chooser.log_likelihood([[0.0, 0.0]], [[1.0, 0.5]])
    with pytest.raises(ValueError, match="set 0 must have labels"):
        chooser.predict([[1.0, 1.0], [1.0, 3.0]])
    with pytest.raises(ValueError, match=r"x must have shape \(T, 2\)"):
        chooser.log_likelihood([[0.0, 0.0]], [1.0, 1.0, 1.0])


def test_engine_keeps_the_contract_of_estimators():
    own = small(discrete=LABELS, seed=3)
    copied, given = clone(own).get_params(), own.get_params()
    assert nbi.Prior(copied.pop("prior")) == nbi.Prior(given.pop("prior"))
    assert copied == given
    with pytest.raises(NotFittedError, match="This LikelihoodEngine is not fitted yet"):
        own.predict([0.0])
    with pytest.raises(ValueError, match="simulator must draw its noise"):
        small(lambda theta: 2 * theta).fit(n_sims=100, n_epochs=1)


# --- files, and training that was killed --------------------------------------------------------


def test_engine_goes_through_a_file(chooser, tmp_path):
    chooser.save(tmp_path / "many.nbi")
    again = nbi.LikelihoodEngine.load(tmp_path / "many.nbi", time_and_choice)
    theta = chooser.prior_.sample(5, np.random.default_rng(0))
    x = chooser.simulate(theta)
    np.testing.assert_array_equal(again.simulate(theta), x)
    np.testing.assert_allclose(
        again.log_likelihood(theta, x), chooser.log_likelihood(theta, x), rtol=1e-12
    )
    assert again.get_params()["discrete"] == {1: (0.0, 1.0)}
    assert again.get_params()["flow"]["hidden"] == 32
    np.testing.assert_array_equal(quietly(again, x).samples, quietly(chooser, x).samples)
    assert told(tmp_path / "many.nbi")["file"] == "likelihood engine"
    with pytest.raises(nbi.ArchiveError):
        nbi.RatioEngine.load(tmp_path / "many.nbi")


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
    found = (e.log_likelihood(grid, [0.2]) for e in (resumed, whole))
    np.testing.assert_allclose(*found)


def test_trends_of_normal_and_uniform_priors_are_straight():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn((4000, 2), generator=rng, dtype=torch.float64)
    uniform_one = torch.special.ndtr(z[:, 1])
    x = torch.stack([3 * z[:, 0] - 20 * uniform_one, 7.0 + 0 * z[:, 0]], 1)
    trend = Trend(2, 2)
    trend.learn(z, x)
    left = x - trend(z)
    assert (left.std(0) < 1e-9).all()


def test_outliers_do_not_pull_a_trend():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn((4000, 1), generator=rng, dtype=torch.float64)
    x = 2 * z + 0.1 * torch.randn(z.shape, generator=rng, dtype=torch.float64)
    x[::400] = 1e9
    trend = Trend(1, 1)
    trend.learn(z, x)
    left = (x - trend(z))[torch.arange(len(z)) % 400 != 0]
    assert left.std() < 0.2  # 2.0 without a trend


def test_few_simulations_have_no_trend():
    z = torch.randn((79, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trend = Trend(2, 1)
    trend.learn(z, 5 * z[:, :1])
    assert (trend(z) == 0).all()


def test_a_trend_moves_what_is_sampled_and_its_density():
    """In closed form with an untrained flow: the trend alone puts the data where they belong."""
    torch.manual_seed(0)
    density = Likelihood(1, 1, LikelihoodConfig(FlowConfig(**TINY), trend=True)).eval()
    z = torch.randn((4000, 1), dtype=torch.float64)
    x = 10 * z + 0.1 * torch.randn_like(z)
    density.whiten(z)
    density.learn_columns(z, x)
    here = torch.tensor([[0.0], [1.0], [-2.0]], dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        drawn = density.sample(here, 2000, rng)[..., 0]
        at = density.log_prob(here[:, None], 10 * here)
        away = density.log_prob(here[:, None], 10 * here + 2)
    moved = drawn.mean(1) - drawn.mean(1)[0]
    assert (moved - 10 * here[:, 0]).abs().max() < 0.1  # the width
    assert (at - away > 10).all()


def test_files_keep_the_trend(engine, tmp_path):
    assert engine.model_.network.flow.trend.slopes.abs().max() > 0.1
    engine.save(tmp_path / "e.h5")
    twin, points = nbi.LikelihoodEngine.load(tmp_path / "e.h5"), np.linspace(-1, 1, 5)[:, None]
    found = (e.log_likelihood(points, [0.3]) for e in (twin, engine))
    np.testing.assert_array_equal(*found)


def test_densities_of_files_from_before_trends_have_none():
    config = LikelihoodConfig.of(TINY, [[1, [0.0, 1.0]]], kind="likelihood")
    assert Likelihood(1, 2, config).trend is None
