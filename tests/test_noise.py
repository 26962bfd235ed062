"""Laws of the noise models, against scipy's distributions."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from contracts import check_noise
from scipy import stats

import nbi_plus as nbi
from nbi_plus import (
    BetaBinomialNoise,
    BinomialNoise,
    GaussianNoise,
    Observations,
    PoissonNoise,
    StudentTNoise,
)
from nbi_plus.problem.noise import noise_from_meta
from nbi_plus.problem.noise.custom import CallableNoise, as_noise

NAMES = ("a", "s", "b")  # the jitter is the second parameter


def quadrature(*parts):
    return np.sqrt(sum(np.square(p) for p in parts))


def add_half(x, y):
    """Nbi's form of noise: one item in, one item out."""
    return x + 0.5 * np.random.normal(size=np.shape(x)), y  # noqa: NPY002


def gaussian_errors(make):
    return lambda f, err, theta: stats.norm(f, make(f, err, theta))


COUNTS = ("poisson", "binomial", "beta")


def beta_of(p, nu):
    c = 1 / nu**2 - 1
    return c * p, c * (1 - p)


# name: noise, whether data have errors, scipy's distribution of data (n, C, L) about model f
CASES = {
    "gaussian": (GaussianNoise(), True, gaussian_errors(lambda f, e, t: e)),
    "sigma": (GaussianNoise([0.5, 1.0, 2.0]), False, gaussian_errors(
        lambda f, e, t: np.broadcast_to([0.5, 1.0, 2.0], f.shape))),
    "errors win": (GaussianNoise(77.0), True, gaussian_errors(lambda f, e, t: e)),
    "jitter": (GaussianNoise(jitter="s"), True, gaussian_errors(
        lambda f, e, t: quadrature(e, t[:, 1, None, None]))),
    "fractional": (GaussianNoise(fractional=0.2), True, gaussian_errors(
        lambda f, e, t: quadrature(e, 0.2 * f))),
    "all together": (GaussianNoise(0.5, jitter="s", fractional=0.2), False, gaussian_errors(
        lambda f, e, t: quadrature(0.5, t[:, 1, None, None], 0.2 * f))),
    "student": (StudentTNoise(10.0), True, lambda f, e, t: stats.t(10.0, f, e)),
    "student 4": (StudentTNoise(jitter="s"), True, lambda f, e, t: stats.t(
        4.0, f, quadrature(e, t[:, 1, None, None]))),
    "poisson": (PoissonNoise(2.0, 1.5), False, lambda f, e, t: stats.poisson(2.0 * f + 1.5)),
    "poisson on a grid": (PoissonNoise([[1.0, 2.0, 3.0]], [0.0, 1.0, 0.5]), False,
                          lambda f, e, t: stats.poisson(f * [1.0, 2.0, 3.0] + [0.0, 1.0, 0.5])),
    "poisson of each point": (PoissonNoise("n", 0.5), False,
                              lambda f, e, t: stats.poisson(f * np.arange(1, 4) + 0.5)),
    "binomial": (BinomialNoise("n"), False, lambda f, e, t: stats.binom(np.arange(1, 4), f)),
    "binomial of a number": (BinomialNoise(40), False, lambda f, e, t: stats.binom(40, f)),
    "beta-binomial": (BetaBinomialNoise([[1, 7, 90]], "s"), False, lambda f, e, t: stats.betabinom(
        [[1, 7, 90]], *beta_of(f, t[:, 1, None, None]))),
    "callable": (CallableNoise(add_half), True, gaussian_errors(lambda f, e, t: e)),
}  # fmt: skip


def problem(name, n=5, n_channels=2, length=3, mask=None):
    """Return noise, model (n, C, L), observations, theta (n, 3) and scipy's distribution."""
    noise, has_errors, of = CASES[name]
    rng = np.random.default_rng(0)
    shape = (n, n_channels, length)
    f, theta = rng.uniform(1, 8, shape), rng.uniform(0.2, 1.5, (n, len(NAMES)))
    if "binomial" in name:
        f, theta = f / 10, theta / 2
    err = rng.uniform(0.3, 2, shape) if has_errors else None
    if name == "callable":
        err = np.full(shape, 0.5)
    obs = Observations.from_arrays(np.zeros(shape), err, mask=mask, n=np.arange(1.0, 4.0))
    return noise.bind(has_errors, NAMES), f, obs, theta, of(f, err, theta)


def draws(name, seed=1, n=3000):
    noise, f, obs, theta, law = problem(name, n)
    return noise.augment(f, obs, theta, torch.Generator().manual_seed(seed)), law


@pytest.mark.parametrize("name", CASES)
def test_noise_keeps_its_contract(name):
    mask = np.random.default_rng(1).random((5, 2, 3)) < 0.7
    noise, f, obs, theta, _ = problem(name, mask=mask)
    check_noise(noise, f, obs, theta)


@pytest.mark.parametrize("name", CASES)
def test_log_likelihood_equals_scipy(name):
    x, _ = draws(name, n=4)
    noise, f, obs, theta, law = problem(name, n=4)
    data = obs.batch().with_data(torch.from_numpy(x))
    density = law.logpmf(x) if name.startswith(COUNTS) else law.logpdf(x)
    found = noise.log_likelihood(theta, f, data)
    np.testing.assert_allclose(found, density.sum((1, 2)), rtol=1e-12)
    masked = Observations.from_arrays(x, obs.x_err, mask=x > np.median(x), n=obs.points["n"])
    found = noise.log_likelihood(theta, f, masked)
    np.testing.assert_allclose(found, (density * masked.mask).sum((1, 2)), rtol=1e-12)


@pytest.mark.parametrize("name", [c for c in CASES if c != "student 4"])  # no variance of chi2
def test_noise_chi2_is_one_per_point(name):
    x, law = draws(name)
    chi2 = ((x - law.mean()) / law.std()) ** 2
    assert abs(chi2.mean() - 1) < 4 * chi2.std() / np.sqrt(chi2.size)


@pytest.mark.parametrize("name", CASES)
def test_noise_pit_is_uniform(name):
    x, law = draws(name)
    pit = law.cdf(x)
    if name.startswith(COUNTS):  # a random place within the step of a discrete distribution
        pit -= np.random.default_rng(2).random(x.shape) * law.pmf(x)
    assert stats.kstest(pit.ravel(), "uniform").pvalue > 1e-3
    noise = x - law.mean()
    neighbours = np.corrcoef(noise[:, 0, 0], noise[:, 0, 1])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(len(x))


@pytest.mark.parametrize("name", CASES)
def test_likelihood_integrates_to_one(name):
    noise, f, obs, theta, _ = problem(name, n=1, n_channels=1)
    if name.startswith(COUNTS):
        values, width = np.arange(200.0), np.ones(200)
    else:
        u = np.linspace(-20, 20, 2001)  # x = sinh(u) covers the tails of any power law
        values, width = np.sinh(u), np.cosh(u) * (u[1] - u[0])
    total = np.ones(3)
    for point in range(3):
        x = np.zeros((len(values), 1, 3))
        x[:, 0, point] = values
        keep = np.arange(3) == point
        err = None if obs.x_err is None else np.repeat(obs.x_err, len(x), 0)
        places = {"mask": np.tile(keep, (len(x), 1)), "n": np.arange(1.0, 4.0)}
        data = Observations.from_arrays(x, err, **places)
        density = noise.log_likelihood(np.repeat(theta, len(x), 0), np.repeat(f, len(x), 0), data)
        total[point] = (np.exp(density) * width).sum()
    np.testing.assert_allclose(total, 1, atol=1e-8)


def test_one_object_serves_many_models():
    noise, f, obs, theta, _ = problem("jitter")
    alone = noise.log_likelihood(theta, f, obs[2])
    each = [noise.log_likelihood(theta[i : i + 1], f[i : i + 1], obs[2])[0] for i in range(len(f))]
    np.testing.assert_allclose(alone, each, rtol=1e-13)


def test_poisson_counts_that_cannot_be_have_no_likelihood():
    impossible = {"negative": (-1.0, 1.0), "fraction": (1.5, 1.0), "no source": (1.0, 0.0),
                  "negative mean": (0.0, -1.0)}  # fmt: skip
    for count, rate in impossible.values():
        obs = Observations.from_arrays([[count]])
        model = torch.tensor([[[rate]]], dtype=torch.float64, requires_grad=True)
        value = PoissonNoise().log_likelihood(torch.zeros(1, 1), model, obs)
        assert value.item() == -np.inf
        assert torch.isfinite(torch.autograd.grad(value.sum(), model)[0]).all()
    nothing = PoissonNoise().log_likelihood(np.zeros((1, 1)), np.zeros((1, 1, 1)),
                                            Observations.from_arrays([[0.0]]))  # fmt: skip
    assert nothing == pytest.approx(0.0, abs=1e-12)


def test_poisson_draws_survive_a_bad_rate():
    model = np.array([[[2.0, np.nan, np.inf, -3.0]]])
    obs = Observations.from_arrays(np.zeros((1, 4)))
    x = PoissonNoise().augment(model, obs, np.zeros((1, 1)), torch.Generator().manual_seed(0))
    assert np.isfinite(x[0, 0]).tolist() == [True, False, False, True]


def test_custom_noise_is_what_its_functions_say():
    def augment(model, obs, theta, rng):
        return model + obs.x_err * torch.randn(model.shape, generator=rng, dtype=model.dtype)

    def log_likelihood(theta, model, obs):
        each = torch.distributions.Normal(model, obs.x_err).log_prob(obs.x)
        return torch.where(obs.mask, each, 0.0).sum((-2, -1))

    mask = np.random.default_rng(1).random((5, 2, 3)) < 0.7
    _, f, obs, theta, _ = problem("gaussian", mask=mask)
    own = nbi.CustomNoise(augment, log_likelihood)
    check_noise(own, f, obs, theta)
    ours = GaussianNoise().log_likelihood(theta, f, obs)
    np.testing.assert_allclose(own.log_likelihood(theta, f, obs), ours, rtol=1e-12)


@pytest.mark.parametrize("wrong", [0.8, 1.2])
def test_noise_contract_finds_draws_of_another_width(wrong):
    class Wrong(GaussianNoise):
        def _draw(self, model, obs, theta, rng):
            return model + wrong * (super()._draw(model, obs, theta, rng) - model)

    mask = np.random.default_rng(1).random((5, 2, 3)) < 0.7
    _, f, obs, theta, _ = problem("gaussian", mask=mask)
    with pytest.raises(AssertionError):
        check_noise(Wrong(), f, obs, theta)


def test_custom_noise_without_likelihood_says_so():
    noise = nbi.CustomNoise(lambda model, obs, theta, rng: model)
    assert not noise.has_likelihood(True)
    _, f, obs, theta, _ = problem("gaussian")
    with pytest.raises(ValueError, match="no log_likelihood.*AMORTIZED"):
        noise.log_likelihood(theta, f, obs)


@pytest.mark.parametrize("wrong", [lambda f: f.sum(), lambda f: f, lambda f: f[:, 0, 0].numpy()])
def test_custom_likelihood_of_another_shape_is_refused(wrong):
    noise = nbi.CustomNoise(lambda m, o, t, r: m[:, :1], lambda t, model, o: wrong(model))
    _, f, obs, theta, _ = problem("gaussian")
    with pytest.raises(ValueError, match=r"log_likelihood must return a tensor of shape \(5,\)"):
        noise.log_likelihood(theta, f, obs)
    with pytest.raises(ValueError, match=r"augment must return a tensor of shape \(5, 2, 3\)"):
        noise.augment(f, obs, theta, torch.Generator())


def noisy_all_ways(x, y):
    """Draw from every global generator there is, and change y."""
    jump = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
    return x + jump, y + jump


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_callable_noise_follows_its_seed_and_leaves_global_generators():
    noise, before = CallableNoise(noisy_all_ways), global_states()
    model, theta = np.zeros((4, 1, 3)), np.zeros((4, 2))
    x, y = noise.pairs(model, theta, seed=5)
    np.random.rand(7)  # noqa: NPY002 - what happened before must not matter
    random.random()
    torch.rand(3)
    moved = global_states()
    again, _ = noise.pairs(model, theta, seed=5)
    assert global_states() == moved != before
    assert np.array_equal(x, again)
    assert not np.array_equal(x, noise.pairs(model, theta, seed=6)[0])
    assert len(np.unique(x[:, 0, 0])) == 4
    np.testing.assert_allclose(y[:, 0], x[:, 0, 0])
    assert not model.any()
    assert not theta.any()


def test_callable_noise_sees_one_item():
    seen = []

    def spy(x, y):
        seen.append((x.shape, y.shape))
        return x, y

    CallableNoise(spy).pairs(np.zeros((1, 1, 3)), np.zeros((1, 2)), 0)
    CallableNoise(spy).pairs(np.zeros((1, 2, 3)), np.zeros((1, 2)), 0)
    assert seen == [((3,), (2,)), ((2, 3), (2,))]


def test_callable_noise_weighs_only_with_errors():
    noise = CallableNoise(add_half)
    assert noise.has_likelihood(True)
    assert not noise.has_likelihood(False)
    with pytest.raises(ValueError, match="size of the errors"):
        noise.log_likelihood(np.zeros((1, 1)), np.zeros((1, 1, 1)),
                             Observations.from_arrays([[0.0]]))  # fmt: skip


@pytest.mark.parametrize("make", [
    lambda: GaussianNoise(0.0), lambda: GaussianNoise(-1.0), lambda: GaussianNoise(np.nan),
    lambda: GaussianNoise([1.0, np.inf]), lambda: GaussianNoise([]),
    lambda: GaussianNoise(np.ones((7, 2, 3))), lambda: GaussianNoise(fractional=-0.1),
    lambda: GaussianNoise(fractional=np.nan), lambda: GaussianNoise(fractional=np.inf),
    lambda: StudentTNoise(0.0), lambda: StudentTNoise(np.nan), lambda: StudentTNoise(np.inf),
    lambda: PoissonNoise(0.0), lambda: PoissonNoise(1.0, -1.0), lambda: PoissonNoise(1.0, np.nan),
    lambda: GaussianNoise(jitter="c").bind(True, NAMES), lambda: GaussianNoise().bind(False, NAMES),
    lambda: noise_from_meta({"type": "os.system"}),
])  # fmt: skip
def test_bad_noise_arguments_are_refused(make):
    with pytest.raises(ValueError, match=r"must|could not convert"):
        make()


def test_unbound_noise_says_what_is_missing():
    obs = Observations.from_arrays([[0.0]], 1.0)
    with pytest.raises(ValueError, match="was not bound"):
        GaussianNoise(jitter="s").log_likelihood(np.zeros((1, 3)), np.zeros((1, 1, 1)), obs)


def test_shipped_noise_survives_its_meta():
    for noise, _, _ in CASES.values():
        if noise.meta() is not None:
            again = noise_from_meta(noise.meta())
            assert type(again) is type(noise)
            assert again.meta() == noise.meta()
            assert again.fingerprint() == noise.fingerprint()


def scaled(sigma):
    return nbi.CustomNoise(lambda model, obs, theta, rng: model * sigma)


def test_fingerprint_changes_with_the_code_and_what_it_captures():
    assert scaled(1.0).fingerprint() == scaled(1.0).fingerprint()
    assert scaled(1.0).fingerprint() != scaled(2.0).fingerprint()
    assert CallableNoise(add_half).fingerprint() != CallableNoise(noisy_all_ways).fingerprint()
    assert GaussianNoise(1.0).fingerprint() != GaussianNoise(2.0).fingerprint()


def test_noise_door_takes_what_users_have():
    assert isinstance(as_noise(None), GaussianNoise)
    assert as_noise([0.5, 1.0]).sigma.tolist() == [0.5, 1.0]
    assert isinstance(as_noise(add_half), CallableNoise)
    student = StudentTNoise()
    assert as_noise(student) is student
    with pytest.raises(TypeError, match=r"Write StudentTNoise\(\.\.\.\)"):
        as_noise(StudentTNoise)


def test_each_instrument_may_have_a_jitter_of_its_own():
    rng = np.random.default_rng(0)
    instrument = rng.choice(["k", "j", "a"], (3, 40))
    obs = Observations.from_arrays(np.zeros((3, 40)), 1.0, t=np.arange(40), instrument=instrument)
    theta = np.array([[0.0, 2.0, 3.0], [0.0, 0.5, 1.0], [0.0, 1.0, 0.0]])
    each = {"k": "jit_k", "j": "jit_j", "a": 0.0, "b": 1.0}
    noise = GaussianNoise(jitter=each, along="instrument").bind(True, ("v", "jit_k", "jit_j"))
    x = rng.normal(size=(3, 1, 40))
    found = noise.log_likelihood(theta, x, obs)
    jitter = np.select([instrument == "k", instrument == "j"], [theta[:, 1:2], theta[:, 2:3]], 0.0)
    exact = stats.norm.logpdf(x[:, 0], 0, np.sqrt(1 + jitter**2)).sum(1)
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    draws = np.repeat(theta[:, None], 2, 1)
    twice = noise.log_likelihood(draws, np.repeat(x[:, None], 2, 1), obs)
    np.testing.assert_allclose(twice, np.stack([exact, exact], 1), rtol=1e-12)
    again = noise_from_meta(noise.meta()).bind(True, ("v", "jit_k", "jit_j"))
    np.testing.assert_array_equal(again.log_likelihood(theta, x, obs), found)
    some = GaussianNoise(jitter={"k": 1.0}, along="instrument")
    with pytest.raises(ValueError, match="jitter must have a value for every instrument"):
        some.log_likelihood(theta, x, obs)
    with pytest.raises(ValueError, match="GaussianNoise must have the coordinate 'band'"):
        GaussianNoise(jitter={"k": 1.0}).log_likelihood(theta, x, obs)


@pytest.mark.parametrize("nu", [0.0, 1e-9, 1e-4, 0.3])
def test_beta_binomial_of_small_scatter_loses_no_digits(nu):
    """Against exact products of fractions."""
    from fractions import Fraction

    n, k, p = 60, 23, Fraction(3, 8)
    square = Fraction(nu) ** 2
    d = square / (1 - square)
    product = Fraction(math.comb(n, k))
    for j in range(n):
        product /= 1 + j * d
        product *= p + j * d if j < k else 1 - p + (j - k) * d
    exact = math.log(product.numerator) - math.log(product.denominator)
    data = Observations.from_arrays([[float(k)]])
    noise = BetaBinomialNoise(n, nu)
    found = noise.log_likelihood(np.zeros((1, 1)), np.full((1, 1, 1), float(p)), data)
    assert found[0] == pytest.approx(exact, abs=1e-11)


@pytest.mark.parametrize(
    ("noise", "model"),
    [
        (PoissonNoise(), 12.0), (PoissonNoise(10.0), 1.2), (PoissonNoise("s", 3.0), 4.5),
        (BinomialNoise(20), 0.6), (BinomialNoise("n"), 0.4), (BetaBinomialNoise(20, 0.2), 0.6),
    ],
    ids=str,
)  # fmt: skip
def test_no_model_is_likelier_than_the_data_themselves(noise, model):
    """Where counts are given as rates, or as probabilities, too."""
    data = Observations.from_arrays([[12.0]], n=[30.0], s=[2.0]).batch()
    noise, theta = noise.bind(False, ("a",)), torch.zeros(1, 1, dtype=torch.float64)
    itself = noise.saturated(data)
    assert float(itself) == pytest.approx(model)
    best = noise.log_likelihood(theta, itself, data)
    for share in (0.5, 0.9, 1.1, 1.5):
        assert noise.log_likelihood(theta, share * itself, data) < best


@pytest.mark.parametrize("n", [2.5, -1.0])
def test_of_trials_that_are_no_number_there_are_neither_draws_nor_a_likelihood(n):
    data = Observations.from_arrays([[1.0, 1.0]], n=[n, 3.0]).batch()
    model, theta = torch.full((1, 1, 2), 0.5, dtype=torch.float64), torch.zeros(1, 1).double()
    for noise in (BinomialNoise("n"), BetaBinomialNoise("n", 0.3)):
        own = noise.bind(False, ("a",))
        drawn = own.augment(model, data, theta, torch.Generator().manual_seed(0))
        assert drawn[0, 0].isnan().tolist() == [True, False]
        assert own.log_likelihood(theta, model, data) == -np.inf


@pytest.mark.parametrize("nu", [0.3, 0.9, 0.999, 1 - 1e-8])
def test_draws_of_beta_binomial_noise_are_those_of_its_law(nu):
    """Scatter near one: all or nothing, by gamma variates that are too small for a number."""
    n, p, size = 40, 0.3, 200_000
    data = Observations.from_arrays(np.zeros((size, 1))).batch()
    rng, noise = torch.Generator().manual_seed(0), BetaBinomialNoise(n, nu).bind(False, ("a",))
    model = torch.full((size, 1, 1), p, dtype=torch.float64)
    drawn = noise.augment(model, data, model[:, 0], rng).flatten().numpy()
    c = 1 / nu**2 - 1
    law = stats.betabinom(n, c * p, c * (1 - p)).pmf(np.arange(n + 1))
    found = np.bincount(drawn.astype(int), minlength=n + 1) / size
    for own, share in [(found[0], law[0]), (found[n], law[n]), (found[1:n].sum(), law[1:n].sum())]:
        some = 4 / size  # of rare ones there are a few, or none
        assert abs(own - share) <= 4.5 * np.sqrt(share * (1 - share) / size) + some


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BinomialNoise(2.5), "n must be whole numbers"),
        (lambda: BinomialNoise(0), "n must be finite and positive"),
        (lambda: BetaBinomialNoise(3, 1.0), "scatter must be finite and in"),
        (lambda: BetaBinomialNoise(3, "nu").bind(False, ("a",)), "scatter must name a parameter"),
    ],
)
def test_counts_of_nothing_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_counts_that_the_data_do_not_have_are_named():
    data, one = Observations.from_arrays([[1.0]]), np.full((1, 1, 1), 0.5)
    with pytest.raises(ValueError, match="n must name a coordinate .* have no 'shots'"):
        BinomialNoise("shots").log_likelihood(np.zeros((1, 1)), one, data)


def test_numbers_of_each_object_are_its_own():
    data = Observations.from_arrays([[1.0, 2.0], [3.0, 0.0]], scalars={"shots": [2.0, 5.0]})
    found = BinomialNoise("shots").log_likelihood(np.zeros((2, 1)), np.full((2, 1, 2), 0.4), data)
    exact = stats.binom.logpmf([[1, 2], [3, 0]], [[2], [5]], 0.4).sum(1)
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    rates = PoissonNoise("shots").log_likelihood(np.zeros((2, 1)), np.full((2, 1, 2), 0.4), data)
    exact = stats.poisson.logpmf([[1, 2], [3, 0]], np.array([[0.8], [2.0]])).sum(1)
    np.testing.assert_allclose(rates, exact, rtol=1e-12)


def test_what_a_noise_alone_asks_for_is_given_by_name_at_every_door():
    """Of a uniform prior on p the posterior is a Beta distribution, its evidence 1 / (n + 1)."""
    engine = nbi.Engine(lambda theta: theta, {"p": stats.uniform(0, 1)}, noise=BinomialNoise("n"))
    engine.fit(1000, n_epochs=3, n=[20.0], truth_test=False, progress=False)
    found = engine.predict([7.0], n=[20.0])
    exact = stats.beta(8, 14)
    assert abs(found.mean()[0] - exact.mean()) < 5 * exact.std() / found.ess**0.5
    assert abs(found.log_evidence + np.log(21)) < 5 * found.log_evidence_err
    p = np.array([[0.2], [0.6]])
    expected = stats.binom(20, p[:, 0]).logpmf(7)
    np.testing.assert_allclose(engine.log_likelihood(p, [7.0], n=[20.0]), expected)
    with pytest.raises(TypeError, match="got unexpected keywords .'m'."):
        engine.predict([7.0], m=[20.0])


@pytest.mark.parametrize(("noise", "names"), [
    (BinomialNoise("n"), "n"), (BinomialNoise(7), ""),
    (BetaBinomialNoise("tries", "nu"), "tries"),
    (nbi.PoissonNoise("seconds"), "seconds"), (nbi.GaussianNoise(0.1, jitter="jit"), "band"),
    (nbi.UpperLimits(nbi.GaussianNoise(jitter={"a": "s"}, along="chip")), "chip"),
    (nbi.LinearNuisance(nbi.GaussianNoise(), "offset", sd="s", along="night"), "band night"),
])  # fmt: skip
def test_coordinates_that_a_noise_reads_are_known_and_parameters_are_none(noise, names):
    assert sorted(noise.asked_for()) == names.split()
