"""Populations: hyper-parameters of many objects, against closed forms, and what must not pass."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import gamma, halfnorm, loguniform, norm, truncnorm, uniform

import nbi_plus as nbi
from nbi_plus import launch, population
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.population.answering import _likelihood
from nbi_plus.population.precision import Precision
from nbi_plus.population.widening import widened

MU, TAU, SIGMA = 0.3, 0.8, 0.3  # of the population, and the errors of the data
QUICK = nbi.Ladder(audit=None)
FLAT = nbi.Prior({"x": uniform(-20, 40)})
WIDE = nbi.Prior({"x": norm(0, 2)})
HYPER = nbi.Prior({"mu": uniform(-2, 4), "tau": uniform(0.1, 2.9)})


def answer(theta, prior, log_weights=None, **changed):
    """Return the answer of one object that has these draws (S, D)."""
    theta = np.asarray(theta, float).reshape(len(theta), -1)
    raw = np.zeros(len(theta)) if log_weights is None else log_weights
    weights = np.exp(raw - raw.max())
    weights /= weights.sum()
    log_prior = np.asarray(prior.log_prob(theta))
    made = nbi.Posterior(
        Parameters.of(prior), theta, raw, weights, log_prior - raw, log_prior,
        np.zeros(len(theta)), nbi.Status.REWEIGHTED, support=prior.support,
        ess=1 / (weights**2).sum(),
    )  # fmt: skip
    return replace(made, **changed)


def normal_answers(x, n_draws, seed=0, sigma=SIGMA, prior_sd=2.0, weighted=False):
    """Return answers for data x (n,) of normal errors, under a normal prior of mean 0."""
    rng = np.random.default_rng(seed)
    prior = nbi.Prior({"x": norm(0, prior_sd)})
    v = 1 / (1 / prior_sd**2 + 1 / sigma**2)
    found = []
    for i, m in enumerate(v * x / sigma**2):
        width = math.sqrt(v) * (1.4 if weighted else 1.0)
        theta = m + width * rng.normal(size=n_draws + (i % 3 if weighted else 0))
        log_weights = norm(m, math.sqrt(v)).logpdf(theta) - norm(m, width).logpdf(theta)
        found.append(answer(theta, prior, log_weights if weighted else None, id=str(i)))
    return found


def normal_family(hyper, theta):
    mu, tau = hyper
    return -0.5 * ((theta[:, 0] - mu) / tau) ** 2 - torch.log(tau) - 0.5 * math.log(2 * math.pi)


def numpy_family(hyper, theta):
    return norm(hyper[0], hyper[1]).logpdf(theta[:, 0])


normal_family.prior = numpy_family.prior = HYPER


def beta_family(hyper, theta):
    a, b = hyper
    x = theta[:, 0]
    scale = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
    return scale + (a - 1) * torch.log(x) + (b - 1) * torch.log1p(-x)


beta_family.prior = nbi.Prior({"a": gamma(4, scale=0.75), "b": gamma(4, scale=1.25)})


def catalogue_of(n, seed, sigma=SIGMA):
    """Return data (n,) of objects of the normal population."""
    rng = np.random.default_rng(seed)
    return rng.normal(MU, math.hypot(TAU, sigma), n)


def exact_moments(x, sigma=SIGMA, cut=None):
    """Return mean and standard deviation (2,) of mu and tau, by quadrature of the closed form.

    With a cut only data above it are detected.
    """
    n, half = len(x), 8 / math.sqrt(len(x))
    centre = x.mean() if cut is None else MU
    mu = np.linspace(centre - half, centre + half, 401)[:, None]
    tau = np.linspace(max(0.1, TAU - half), TAU + half, 401)[None]
    v = tau**2 + sigma**2
    log_p = -0.5 * n * ((x**2).mean() - 2 * mu * x.mean() + mu**2) / v - 0.5 * n * np.log(v)
    log_p -= 0 if cut is None else n * norm(mu, np.sqrt(v)).logsf(cut)
    w = np.exp(log_p - log_p.max())
    w /= w.sum()
    mean = np.array([(w * mu).sum(), (w * tau).sum()])
    return mean, np.sqrt(np.array([(w * mu**2).sum(), (w * tau**2).sum()]) - mean**2)


def measured(x, seed):
    """Return four points (n, 4) for each x (n,), whose mean it is, of errors 2 SIGMA."""
    data = x[:, None] + 2 * SIGMA * np.random.default_rng(seed).normal(size=(len(x), 4))
    return nbi.Observations.from_arrays(data + x[:, None] - data.mean(1, keepdims=True))


def precision_of(found, answers, family, selection=None):
    likelihood = _likelihood(answers, family, selection, "refuse", "cpu")
    free = torch.from_numpy(found.resample(128, 1))
    hyper = likelihood.family.prior.complete(free)
    return Precision.of(likelihood, hyper, free)


def off_in_errors(found, answers, family, exact, selection=None):
    """Return by how many Monte-Carlo errors the means differ from the exact ones (H,)."""
    mean, std = exact
    shift = precision_of(found, answers, family, selection).shift.numpy()
    return (found.mean() - mean) / (std * np.sqrt(1 / found.ess + shift**2))


# --- the likelihood ------------------------------------------------------------------------------


def test_likelihood_is_the_closed_form_for_many_draws():
    x = catalogue_of(5, 0)
    likelihood = _likelihood(normal_answers(x, 100_000), normal_family, None, "refuse", "cpu")
    hyper = np.array([[0.3, 0.8], [0.0, 1.2], [0.6, 0.5]])
    found = likelihood(hyper)[:, 0]
    data = norm(hyper[:, :1], np.hypot(hyper[:, 1:], SIGMA)).logpdf(x).sum(1)
    exact = data - norm(0, math.hypot(2.0, SIGMA)).logpdf(x).sum()
    rows = torch.from_numpy(hyper)
    error = Precision.of(likelihood, rows, rows).variance.sqrt().numpy()
    np.testing.assert_array_less(np.abs(found - exact), 3 * error)
    assert (error < 0.02).all()


@pytest.mark.parametrize("with_selection", [False, True])
def test_gradient_is_that_of_differences_and_pieces_change_nothing(monkeypatch, with_selection):
    answers = normal_answers(catalogue_of(20, 1), 50, weighted=True)
    selection = None
    if with_selection:
        selection = population.Selection.of(lambda t: t[:, 0] > 0, WIDE, 500)
    likelihood = _likelihood(answers, normal_family, selection, "refuse", "cpu")
    hyper = torch.tensor([[0.3, 0.8], [-0.5, 1.5]], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(likelihood(hyper).sum(), hyper)
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    for k in range(2):
        rise = likelihood(hyper.detach() + step[k]) - likelihood(hyper.detach() - step[k])
        torch.testing.assert_close(rise[:, 0] / 2e-5, grad[:, k], rtol=1e-6, atol=1e-6)
    small = replace(launch.KINDS["cpu"], gradient_numbers=128)
    monkeypatch.setitem(launch.KINDS, "cpu", small)
    parted = _likelihood(answers[::-1], normal_family, selection, "refuse", "cpu")
    assert len(parted.objects.pieces) > 5
    own = hyper.detach().clone().requires_grad_(True)
    torch.testing.assert_close(parted(own), likelihood(hyper))
    torch.testing.assert_close(torch.autograd.grad(parted(own).sum(), own)[0], grad)


def test_parameter_that_keeps_its_prior_changes_nothing():
    rng = np.random.default_rng(12)
    prior = nbi.Prior({"y": norm(1, 2), "x": uniform(-1, 2)})
    alone = boxed(-1.0, 1.0, 12, n_draws=40)
    beside = [
        answer(np.stack([rng.normal(size=40), p.samples[:, 0]], 1), prior, id=p.id) for p in alone
    ]

    def family(hyper, theta):
        kept = -0.5 * ((theta[:, 0] - 1) / 2) ** 2 - math.log(2 * math.sqrt(2 * math.pi))
        return kept + normal_family(hyper, theta[:, 1:])

    family.prior = HYPER
    hyper = torch.tensor([[0.3, 0.8], [-0.5, 1.5]], dtype=torch.float64)
    found = _likelihood(beside, family, None, "refuse", "cpu")
    one = _likelihood(alone, normal_family, None, "refuse", "cpu")
    torch.testing.assert_close(found(hyper), one(hyper))
    told, own = (Precision.of(likelihood, hyper, hyper) for likelihood in (found, one))
    torch.testing.assert_close((told.variance, told.ess), (own.variance, own.ess))
    assert told.beyond == pytest.approx(own.beyond)
    assert own.beyond > 1


def test_detected_share_is_the_closed_form():
    selection = population.Selection.of(lambda t: norm(0.5, SIGMA).cdf(t[:, 0]), WIDE, 200_000, 3)
    answers = normal_answers(catalogue_of(3, 1), 50)
    likelihood = _likelihood(answers, normal_family, selection, "refuse", "cpu")
    for hyper in ([MU, TAU], [-0.5, 0.5], [1.0, 1.2]):
        rows = torch.tensor([hyper] * 2, dtype=torch.float64)
        exact = norm(hyper[0], math.hypot(hyper[1], SIGMA)).logsf(0.5)
        n = float(Precision.of(likelihood, rows, rows).n_detected[0])
        assert abs(float(likelihood.log_share(rows)[0]) - exact) < 3 / math.sqrt(n)


def test_shift_is_the_scatter_of_the_answer_over_other_draws():
    prior = nbi.Prior({"mu": uniform(-2, 4), "tau": TAU})
    family = lambda h, t: normal_family(h, t)  # noqa: E731 - another prior on the same function
    family.prior = prior
    x, mu = catalogue_of(40, 2, sigma=0.6), np.linspace(-0.7, 1.3, 41)
    means, told = [], []
    for seed in range(40):
        answers = normal_answers(x, 30, seed, sigma=0.6)
        likelihood = _likelihood(answers, family, None, "refuse", "cpu")
        log_l = likelihood(prior.complete(mu[:, None]))[:, 0]
        w = np.exp(log_l - log_l.max())
        w /= w.sum()
        means.append((w @ mu) / math.sqrt(w @ mu**2 - (w @ mu) ** 2))
        draws = torch.from_numpy(np.random.default_rng(seed).choice(mu, (60, 1), p=w))
        told.append(float(Precision.of(likelihood, prior.complete(draws), draws).shift[0]))
    assert np.std(means) == pytest.approx(np.mean(told), rel=3 / math.sqrt(2 * 40))


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "weighted"), [(normal_family, False), (normal_family, True), (numpy_family, True)]
)
def test_answer_is_that_of_the_closed_form(family, weighted, tmp_path):
    x = catalogue_of(40, 4)
    answers = normal_answers(x, 100, weighted=weighted)
    found = population.fit(answers, family, ladder=QUICK)
    assert found.trusted
    assert (found.names, found.id) == (("mu", "tau"), "population")
    exact = exact_moments(x)
    assert (np.abs(off_in_errors(found, answers, family, exact)) < 3).all()
    np.testing.assert_allclose(found.std(), exact[1], rtol=0.15)
    found.save(tmp_path / "hyper.h5")
    assert nbi.Posterior.load(tmp_path / "hyper.h5").report == found.report


def test_answers_of_an_engine_their_files_and_their_order_are_one_population(tmp_path):
    x = catalogue_of(40, 5)
    engine = nbi.Engine(lambda theta: theta @ np.ones((1, 4)), WIDE, noise=2 * SIGMA)
    engine.fit(1000, n_epochs=8, truth_test=False)
    answers = engine.predict_many(measured(x, 5), keep=300)
    found = population.fit(answers, normal_family, ladder=QUICK)
    assert found.trusted
    assert (np.abs(off_in_errors(found, answers, normal_family, exact_moments(x))) < 3).all()
    files = []
    for p in answers:
        p.save(tmp_path / f"{p.id}.h5")
        files.append(nbi.Posterior.load(tmp_path / f"{p.id}.h5"))
    again = population.fit(files[::-1], normal_family, ladder=QUICK)
    np.testing.assert_allclose(again.mean(), found.mean(), rtol=1e-6)
    assert again.data_hash == found.data_hash
    with pytest.raises(ValueError, match="kept summaries only"):
        population.fit(replace(answers, draws=None), normal_family)


NARROW = nbi.Prior({"x": uniform(-1.0, 2.2)})  # one object in ten of the population lies beyond


def test_population_beyond_the_prior_of_an_engine_is_answered_anew(caplog):
    x = catalogue_of(60, 12)
    engine = nbi.Engine(
        lambda theta: theta @ np.ones((1, 4)), NARROW, noise=2 * SIGMA, ladder=QUICK
    )
    engine.fit(1000, n_epochs=8, truth_test=False)
    seen = measured(x, 12)
    answers = engine.predict_many(seen, keep=300)
    with pytest.warns(nbi.UntrustedWarning, match="pass engine= and observations="):
        alone = population.fit(answers, normal_family, ladder=QUICK)
    assert nbi.Flag.SUPPORT in alone.flags
    found = population.fit(
        answers, normal_family, engine=engine, observations=seen[::-1], ladder=QUICK
    )
    assert found.trusted
    assert "answered under Prior(x ~ norm(loc=0.1, scale=2.2))" in caplog.text
    exact, wide = exact_moments(x), nbi.Prior({"x": norm(0.1, 2.2)})
    again = engine.predict_many(seen, keep=300, prior=wide)
    assert (np.abs(off_in_errors(found, again, normal_family, exact)) < 3).all()
    assert (exact[0][1] - alone.mean()[1]) / exact[1][1] > 1  # without, the population is narrower


def test_uncertified_objects_are_tried_once_more_by_the_engine():
    x = catalogue_of(30, 13)
    strict = replace(QUICK, escalate="never", gate=nbi.Gate(ess_min=1e6))
    engine = nbi.Engine(lambda theta: theta @ np.ones((1, 4)), WIDE, noise=2 * SIGMA, ladder=strict)
    engine.fit(1000, n_epochs=8, truth_test=False)
    seen = measured(x, 13)
    answers = engine.predict_many(seen)
    assert not answers.certified.any()
    with pytest.raises(ValueError, match="must be certified"):
        population.fit(answers, normal_family, ladder=QUICK)
    engine.set_params(ladder=QUICK)
    found = population.fit(answers, normal_family, engine=engine, observations=seen, ladder=QUICK)
    assert found.trusted
    assert (np.abs(found.mean() - exact_moments(x)[0]) < 0.5 * exact_moments(x)[1]).all()


def test_wider_priors_have_no_edge_where_they_lost_it():
    laws = {"u": uniform(1, 2), "l": loguniform(0.1, 10), "h": halfnorm(0, 2), "n": norm(3, 1)}
    prior = nbi.Prior(laws, units={"u": "d"}, derived={"twice": lambda theta: 2 * theta[:, 0]})
    sides = np.array([[True, False], [False, True], [True, False], [False, False]])
    wide = widened(prior, sides)
    np.testing.assert_array_equal(
        wide.support, [[-np.inf, 3], [0, np.inf], [-np.inf, np.inf], [-np.inf, np.inf]]
    )
    assert (wide.names, wide.units, list(wide.derived)) == (prior.names, prior.units, ["twice"])
    theta = prior.sample(500, 0)
    gained = wide.log_prob(theta) - prior.log_prob(theta)
    assert np.isfinite(gained).all()
    own = nbi.Prior({"n": norm(3, 1)}).log_prob(theta[:, 3:])
    alone = nbi.Prior({k: v for k, v in laws.items() if k != "n"})
    other = widened(alone, sides[:3])
    np.testing.assert_allclose(wide.log_prob(theta), other.log_prob(theta[:, :3]) + own)


def test_selection_undoes_what_was_not_detected():
    cut = -0.2
    x = catalogue_of(160, 6)
    x = x[x > cut]
    answers = normal_answers(x, 150)
    selection = population.Selection.of(lambda t: norm(cut, SIGMA).cdf(t[:, 0]), WIDE, 10_000)
    found = population.fit(answers, normal_family, selection, ladder=QUICK)
    assert found.trusted
    exact = exact_moments(x, cut=cut)
    assert (np.abs(off_in_errors(found, answers, normal_family, exact, selection)) < 3).all()
    assert exact_moments(x)[0][0] > exact[0][0] + exact[1][0]  # where it is left out


# --- what must not pass --------------------------------------------------------------------------


def boxed(low, high, n=80, tau=TAU, sigma=SIGMA, n_draws=200):
    """Return answers under a flat prior on a box, of objects whose truths may lie outside."""
    rng = np.random.default_rng(7)
    prior = nbi.Prior({"x": uniform(low, high - low)})
    x = rng.normal(0.0, tau, n) + rng.normal(0, sigma, n)
    draws = [
        truncnorm((low - m) / sigma, (high - m) / sigma, m, sigma).rvs(n_draws, random_state=rng)
        for m in x
    ]
    return [answer(theta, prior, id=str(i)) for i, theta in enumerate(draws)]


def uniform_family(hyper, theta):
    x = theta[:, 0]
    inside = (x > hyper[0]) & (x < 1)
    return torch.where(inside, -torch.log(1 - hyper[0]), -math.inf)


uniform_family.prior = nbi.Prior({"low": uniform(-2, 2.5)})


@pytest.mark.parametrize(("low", "lost"), [(-1.0, True), (-3.0, False)])
def test_population_whose_edge_is_missed_is_seen_by_what_piles_up(low, lost):
    rng = np.random.default_rng(11)
    prior, x = nbi.Prior({"x": uniform(low, 1 - low)}), rng.uniform(-1.8, 1, 200)
    x += rng.normal(0, 0.2, 200)
    draws = [
        truncnorm((low - m) / 0.2, (1 - m) / 0.2, m, 0.2).rvs(300, random_state=rng) for m in x
    ]
    answers = [answer(theta, prior) for theta in draws]
    likelihood = _likelihood(answers, uniform_family, None, "refuse", "cpu")
    grid = np.linspace(-1.99, 0.4, 300)[:, None]
    best = torch.from_numpy(grid[[likelihood(grid)[:, 0].argmax()]])
    found = Precision.of(likelihood, best.repeat(2, 1), best.repeat(2, 1))
    assert found.inside == (not lost)
    assert abs(float(best) - max(low, -1.8)) < 0.1


def test_population_wider_than_the_prior_of_the_answers_is_not_certified(tmp_path):
    with pytest.warns(nbi.UntrustedWarning, match="beyond the edges of the prior that"):
        found = population.fit(boxed(-1.0, 1.0), normal_family, ladder=QUICK)
    assert nbi.Flag.SUPPORT in found.flags
    assert found.status is nbi.Status.UNCERTIFIED
    found.save(tmp_path / "hyper.h5")
    assert nbi.Posterior.load(tmp_path / "hyper.h5").flags == found.flags


def test_population_inside_the_prior_of_the_answers_is_certified():
    found = population.fit(boxed(-5.0, 5.0), normal_family, ladder=QUICK)
    assert found.trusted


def test_family_that_ends_where_the_prior_does_is_certified():
    answers, _ = beta_answers(60, 0, 300)
    found = population.fit(answers, beta_family, ladder=QUICK)
    assert nbi.Flag.SUPPORT not in found.flags


def refuses(hyper, theta):
    if bool((theta.abs() > 1).any()):
        raise ValueError("outside")
    return torch.distributions.Uniform(-1, 1).log_prob(theta[:, 0]) + 0 * hyper[0]


refuses.prior = nbi.Prior({"a": uniform(0, 1)})


def test_family_that_raises_beyond_the_prior_ends_there():
    likelihood = _likelihood(boxed(-1.0, 1.0, 10), refuses, None, "refuse", "cpu")
    rows = torch.full((2, 1), 0.5, dtype=torch.float64)
    assert Precision.of(likelihood, rows, rows).beyond == 0.0


def test_expected_objects_beyond_an_edge_are_counted_where_data_are_precise():
    x = np.random.default_rng(8).normal(0, 1, 3000)
    x = x[np.abs(x) < 1.5]
    prior = nbi.Prior({"x": uniform(-1.5, 3)})
    answers = [answer(m + np.zeros(2), prior) for m in x]
    likelihood = _likelihood(answers, normal_family, None, "refuse", "cpu")
    rows = torch.tensor([[0.0, 1.0]] * 2, dtype=torch.float64)
    beyond = Precision.of(likelihood, rows, rows).beyond
    exact = 3000 * 2 * (norm.cdf(4.5) - norm.cdf(1.5))  # mirrored: three wide
    assert 0.75 * exact < beyond < 2 * exact


@pytest.mark.parametrize(
    ("n_draws", "sigma", "n_selected", "told"),
    [
        (6, 1.0, 0, "variance|fewer than 5 draws"),
        (300, SIGMA, 150, "effective detections"),
    ],
)
def test_too_few_draws_are_not_certified(n_draws, sigma, n_selected, told):
    answers = normal_answers(catalogue_of(60, 9, sigma), n_draws, sigma=sigma)
    selection = None
    if n_selected:
        selection = population.Selection.of(lambda t: t[:, 0] > -9, WIDE, n_selected)
    with pytest.warns(nbi.UntrustedWarning, match=told):
        found = population.fit(answers, normal_family, selection, ladder=QUICK)
    assert nbi.Flag.FEW_DRAWS in found.flags
    assert not found.certified


# --- bad input -----------------------------------------------------------------------------------


def with_prior(function, prior=HYPER):
    def family(hyper, theta):
        return function(hyper, theta)

    family.prior = prior
    return family


GOOD = normal_answers(catalogue_of(4, 10), 20)
OTHER = answer(np.zeros((5, 1)), nbi.Prior({"y": norm()}))
BARE = replace(GOOD[0], support=None)
FAILED = [replace(GOOD[0], status=status) for status in (nbi.Status.FAILED, nbi.Status.AMORTIZED)]
CASES = {
    "another parameter": ([*GOOD, OTHER], normal_family, {}, ValueError, "same parameters"),
    "not certified": ([*GOOD, FAILED[0]], normal_family, {}, ValueError, "1 FAILED of 5"),
    "not corrected": ([*GOOD, FAILED[1]], normal_family, {}, ValueError, "1 AMORTIZED of 5"),
    "none left": (
        FAILED, normal_family, {"uncertified": "leave out"}, ValueError, "a certified answer"),
    "none": ([], normal_family, {}, ValueError, "hold none"),
    "no draws": (
        [replace(GOOD[0], weights=np.zeros(20))], normal_family, {}, ValueError, "kept none"),
    "no support": ([BARE], normal_family, {}, ValueError, "know the support"),
    "no posteriors": (3, normal_family, {}, TypeError, "hold a int"),
    "arrays": ([np.zeros(3)], normal_family, {}, TypeError, "hold a ndarray"),
    "a word": (GOOD, normal_family, {"uncertified": "keep"}, ValueError, "must be one of"),
    "no prior": (GOOD, lambda h, t: -t[:, 0] ** 2, {}, TypeError, "family.prior"),
    "no function": (GOOD, 3, {}, TypeError, "but is a int"),
    "a shape": (GOOD, with_prior(lambda h, t: h[0] * t), {}, TypeError, r"theta\[:, 0\]"),
    "NaN": (GOOD, with_prior(lambda h, t: h[0] + torch.log(t[:, 0])), {}, ValueError, "gave nan"),
    "infinite": (
        GOOD, with_prior(lambda h, t: h[0] + math.inf + t[:, 0]), {}, ValueError, "gave inf"),
    "an engine alone": (GOOD, normal_family, {"engine": nbi.Engine(None, WIDE)}, TypeError,
                        "observations must be"),
    "no engine": (GOOD, normal_family, {"engine": 3}, TypeError, "engine must be an? Engine"),
    "a selection": (GOOD, normal_family, {"selection": 3}, TypeError, "must be a Selection"),
    "of others": (
        GOOD, normal_family, {"selection": population.Selection(np.zeros((3, 2)), np.zeros(3), 9)},
        ValueError, "must have the 1 parameters"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told(case):
    posteriors, family, options, kind, told = CASES[case]
    with pytest.raises(kind, match=told):
        population.fit(posteriors, family, **options)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"log_prob": np.zeros(2)}, "3 finite numbers"),
        ({"log_prob": np.full(3, np.nan)}, "not finite"),
        ({"n_simulated": 2}, "at least 3"),
        ({"probability": np.zeros(3)}, "none was detected"),
        ({"probability": np.full(3, 2.0)}, r"lie in \[0, 1\]"),
    ],
)
def test_bad_selection_is_told(changed, told):
    given = {"theta": np.zeros((3, 1)), "log_prob": np.zeros(3), "n_simulated": 9} | changed
    with pytest.raises(ValueError, match=told):
        population.Selection(**given)


def test_uncertified_objects_are_left_out_only_if_asked(caplog):
    mixed = [*GOOD, FAILED[0]]
    likelihood = _likelihood(mixed, normal_family, None, "leave out", "cpu")
    alone = _likelihood(GOOD, normal_family, None, "refuse", "cpu")
    hyper = np.array([[0.3, 0.8]])
    np.testing.assert_array_equal(likelihood(hyper), alone(hyper))
    assert "1 are left out (1 FAILED)" in caplog.text


# --- acceptance ----------------------------------------------------------------------------------

N_OBJECTS, N_SEEDS, LEAST = 2000, 20, 16


def beta_answers(n, seed, n_draws, sigma=0.05, cut=None):
    """Return answers for objects of Beta(2, 4) whose datum is above a cut, under a flat prior."""
    rng = np.random.default_rng(seed)
    theta = rng.beta(2.0, 4.0, 5 * n)
    x = theta + rng.normal(0, sigma, len(theta))
    x = (x if cut is None else x[x > cut])[:n]
    prior = nbi.Prior({"x": uniform()})
    u = rng.random((n, n_draws))
    low, high = norm.cdf(-x / sigma)[:, None], norm.cdf((1 - x) / sigma)[:, None]
    draws = x[:, None] + sigma * norm.ppf(low + u * (high - low))
    draws = np.clip(draws, 1e-12, 1 - 1e-12)
    return [answer(theta, prior, id=str(i)) for i, theta in enumerate(draws)], x


def inside(found, truth):
    low, high = found.quantile([0.025, 0.975])
    return (low < truth) & (truth < high)


@pytest.mark.statistics
def test_normal_populations_hold_their_truths_and_agree_with_the_closed_form():
    held, off = [], []
    for seed in range(N_SEEDS):
        x = catalogue_of(N_OBJECTS, 100 + seed)
        answers = normal_answers(x, 350, seed)
        found = population.fit(answers, normal_family, seed=seed, ladder=QUICK)
        print(seed, found.rungs[-1].reason)
        assert found.trusted, found.report
        held.append(inside(found, np.array([MU, TAU])))
        off.append(off_in_errors(found, answers, normal_family, exact_moments(x)))
    print("held", np.sum(held, 0), "largest off", np.abs(off).max(0), "rms", np.std(off, 0))
    assert (np.sum(held, 0) >= LEAST).all()
    assert (np.abs(off).max(0) < 3.5).all()  # the largest of forty
    assert (np.abs(off) < 3).mean() > 0.94


@pytest.mark.statistics
def test_beta_populations_with_selection_hold_their_truths():
    held, sigma, cut = [], 0.05, 0.25
    flat = nbi.Prior({"x": uniform()})
    for seed in range(N_SEEDS):
        answers, _ = beta_answers(N_OBJECTS, 200 + seed, 250, sigma, cut)
        selection = population.Selection.of(
            lambda t: norm(cut, sigma).cdf(t[:, 0]), flat, 200_000, seed
        )
        found = population.fit(answers, beta_family, selection, seed=seed, ladder=QUICK)
        assert found.trusted, found.report
        held.append(inside(found, np.array([2.0, 4.0])))
        print(seed, found.mean(), found.std(), held[-1], found.rungs[-1].reason)
    print("held", np.sum(held, 0))
    assert (np.sum(held, 0) >= LEAST).all()


@pytest.mark.statistics
def test_default_ladder_audits_a_large_population():
    x = catalogue_of(N_OBJECTS, 99)
    answers = normal_answers(x, 350)
    found = population.fit(answers, normal_family)
    assert found.trusted
    assert "Audit" in found.report
    assert (np.abs(off_in_errors(found, answers, normal_family, exact_moments(x))) < 3).all()
