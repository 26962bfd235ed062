"""Comparing models by their evidences, in closed form, and what cannot be compared."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from astropy.io.fits.verify import VerifyWarning
from problems import LinearGaussian
from scipy.stats import norm, uniform
from test_from_prior import answered

import nbi_plus as nbi
from nbi_plus.estimators.comparison import probabilities
from nbi_plus.population.draws import ObjectDraws

N = 50
ONE, TWO = LinearGaussian(1, 8, sigma=0.5), LinearGaussian(2, 8, sigma=0.5)  # nested: p1 = 0 in ONE
OTHER = LinearGaussian(1, 8, sigma=0.7, seed=3)
MODELS = {"one": ONE, "two": TWO, "other": OTHER}


@pytest.fixture(scope="module")
def data():
    return np.concatenate([ONE.observe(N // 2, 4)[1], TWO.observe(N - N // 2, 5)[1]])


@pytest.fixture(scope="module")
def answers(data):
    return {name: answered(problem, data, audit=None) for name, problem in MODELS.items()}


@pytest.fixture(scope="module")
def exact(data):
    """Return log evidences (N, M)."""
    return np.stack([problem.log_evidence(data) for problem in MODELS.values()], 1)


@pytest.fixture(scope="module")
def compared(answers):
    return nbi.compare(answers)


def column(table, kind, names=tuple(MODELS)):
    return np.stack([table[f"{kind}_{name}"] for name in names], 1)


def softmax(x):
    odds = np.exp(x - x.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def one(answers, name="one", i=0, **changed):
    return replace(answers[name][i], **changed)


# --- closed forms ---------------------------------------------------------------------------------


def test_probabilities_are_those_of_exact_evidences(compared, exact):
    assert compared["reliable"].all()
    off = column(compared, "probability") - softmax(exact)
    errors = column(compared, "probability_err")
    assert np.abs(off / errors).max() < 4.5
    assert np.sqrt(np.mean((off / errors) ** 2)) == pytest.approx(1, abs=0.35)
    np.testing.assert_allclose(column(compared, "probability").sum(1), 1)


def test_log_bayes_factors_of_nested_models_are_those_of_savage_and_dickey(compared, data):
    mean, cov = TWO.posterior(data)
    sd = cov[1, 1] ** 0.5
    density = norm.logpdf(0, mean[:, 1], sd) - norm.logpdf(0, 0, 1)
    table = compared.log_bayes_factors(against="two")
    off = (table["log_bayes_factor_one"] - density) / table["log_bayes_factor_err_one"]
    assert np.abs(off).max() < 4.5
    assert table.colnames[0] == "id"
    assert not [name for name in table.colnames if name.endswith("two")]


@pytest.mark.statistics
def test_log_bayes_factors_of_many_objects_are_within_their_errors():
    x = np.concatenate([ONE.observe(100, 6)[1], TWO.observe(100, 7)[1]])
    pair = {name: answered(MODELS[name], x, seed=1, audit=None) for name in ("one", "two")}
    table = nbi.compare(pair).log_bayes_factors("two")
    exact = ONE.log_evidence(x) - TWO.log_evidence(x)
    off = (table["log_bayes_factor_one"] - exact) / table["log_bayes_factor_err_one"]
    within, size = np.mean(np.abs(off) < 4), np.sqrt(np.mean(off**2))
    print(f"{len(off)} objects: {within:.1%} within 4 errors, rms {size:.2f}")
    assert within >= 0.98
    assert size == pytest.approx(1, abs=4 / (2 * len(off)) ** 0.5)


def test_all_objects_together_are_the_sum_of_their_evidences(compared, exact):
    table = compared.summed()
    assert table["model"].tolist() == list(MODELS)
    assert (table["n_objects"] == N).all()
    off = table["log_evidence"] - exact.sum(0)
    assert (np.abs(off) < 4 * table["log_evidence_err"]).all()
    each = column(compared, "log_evidence_err")
    np.testing.assert_allclose(table["log_evidence_err"], np.sqrt((each**2).sum(0)))
    factors = compared.log_bayes_factors()
    for i, name in enumerate(("two", "other"), 1):
        row, values = table[i], factors[f"log_bayes_factor_{name}"]
        errors = factors[f"log_bayes_factor_err_{name}"]
        assert row["log_bayes_factor"] == pytest.approx(values.sum())
        assert row["log_bayes_factor_err"] == pytest.approx(np.sqrt((errors**2).sum()))
    assert table["log_bayes_factor"][0] == table["log_bayes_factor_err"][0] == 0
    np.testing.assert_allclose(table["probability"], softmax(table["log_evidence"].data))


def test_errors_of_probabilities_are_the_scatter_over_errors_of_evidences():
    value, error = np.array([[0.0, 0.7, -1.2], [3.0, 0.0, 2.5]]), np.full((2, 3), 0.02)
    error[0, 1], prior = 0.05, np.array([1.0, 2.0, 4.0])
    p, told = probabilities(value, error, prior)
    rng, n = np.random.default_rng(0), 20_000
    scattered = value + error * rng.normal(size=(n, 2, 3))
    spread = softmax(scattered + np.log(prior)).std(0)
    np.testing.assert_allclose(told, spread, rtol=4 / (2 * n) ** 0.5 + error.max() ** 2)
    np.testing.assert_allclose(p, softmax(value + np.log(prior)))


def test_weights_of_models_multiply_their_odds(answers, compared):
    weighted = nbi.compare(answers, {"other": 1, "two": 6, "one": 3})
    odds = compared["probability_two"] / compared["probability_one"]
    now = weighted["probability_two"] / weighted["probability_one"]
    np.testing.assert_allclose(now, 2 * odds)
    listed = nbi.compare(answers, [0.3, 0.6, 0.1])
    np.testing.assert_allclose(listed["probability_two"], weighted["probability_two"])
    total = weighted.summed()
    np.testing.assert_allclose(
        total["probability"], softmax(total["log_evidence"].data + np.log([3, 6, 1]))
    )


def test_order_of_models_changes_nothing_said_of_one(answers, compared):
    for names in permutations(MODELS):
        table = nbi.compare({name: answers[name] for name in names})
        assert table.models == names
        for name in compared.colnames[1:]:
            np.testing.assert_allclose(table[name], compared[name], rtol=1e-12)
        total = table.summed()
        total.sort("model")
        known = compared.summed()
        known.sort("model")
        np.testing.assert_allclose(total["probability"], known["probability"], rtol=1e-9)


# --- what comes in, and what is not known --------------------------------------------------------


def test_lists_single_answers_and_summaries_compare_alike(answers, compared):
    pair = {name: answers[name] for name in ("one", "two")}
    first, whole = {name: own[0] for name, own in pair.items()}, nbi.compare(pair)
    summaries = {name: replace(own, draws=None) for name, own in pair.items()}
    for given in (summaries, {name: iter(own) for name, own in pair.items()}):
        np.testing.assert_array_equal(
            nbi.compare(given)["probability_one"], whole["probability_one"]
        )
    assert nbi.compare(first)["probability_one"][0] == whole["probability_one"][0]
    np.testing.assert_array_equal(compared["id"], answers["one"].ids)


def test_an_answer_in_rounds_compares_with_one_of_the_ladder(data, answers):
    engine = nbi.Engine(TWO.simulator, TWO.prior, noise=TWO.sigma, ladder=nbi.Ladder(audit=None))
    engine.fit(n_sims=1000, n_rounds=6, x_obs=data[0], ess_target=1000)
    table = nbi.compare({"one": answers["one"][0], "two": engine.posterior_})
    assert table["reliable"][0]
    exact = ONE.log_evidence(data[:1]) - TWO.log_evidence(data[:1])
    factors = table.log_bayes_factors("two")
    off = factors["log_bayes_factor_one"] - exact
    assert abs(off[0]) < 4 * factors["log_bayes_factor_err_one"][0]


def test_what_is_not_reliable_is_nan_and_nothing_else(answers, compared):
    two = list(answers["two"])
    bad = {
        3: {"evidence_reliable": False},
        4: {"status": nbi.Status.UNCERTIFIED},
        5: {"status": nbi.Status.AMORTIZED},
        6: {"log_evidence_err": np.nan},
        7: {"log_evidence": -np.inf},
    }
    for i, changed in bad.items():
        two[i] = replace(two[i], **changed)
    table = nbi.compare(answers | {"two": two})
    rows = np.isin(np.arange(N), list(bad))
    np.testing.assert_array_equal(table["reliable"], ~rows)
    for name in MODELS:
        np.testing.assert_array_equal(np.isnan(table[f"probability_{name}"]), rows)
        np.testing.assert_array_equal(np.isnan(table[f"probability_err_{name}"]), rows)
        np.testing.assert_array_equal(
            np.isnan(table[f"log_evidence_{name}"]), rows & (name == "two")
        )
    np.testing.assert_array_equal(
        table["probability_one"][~rows], compared["probability_one"][~rows]
    )
    factors = table.log_bayes_factors("one")
    np.testing.assert_array_equal(np.isnan(factors["log_bayes_factor_two"]), rows)
    assert np.isfinite(factors["log_bayes_factor_other"]).all()
    total, rest = table.summed(), table.summed("leave out")
    np.testing.assert_array_equal(np.isnan(total["log_evidence"]), [False, True, False])
    np.testing.assert_array_equal(np.isnan(total["log_bayes_factor_err"]), [False, True, False])
    assert np.isnan(total["probability"]).all()
    assert (rest["n_objects"] == N - len(bad)).all()
    np.testing.assert_allclose(rest["log_evidence"], compared[~rows].summed()["log_evidence"])


def test_answers_of_other_data_or_objects_are_refused(answers):
    first, second = answers["one"], answers["two"]
    with pytest.raises(ValueError, match=r"'one' and 'two' are of 50 and 40"):
        nbi.compare({"one": first, "two": second[:40]})
    with pytest.raises(ValueError, match=r"row 0 is '0' for 'one' and '49' for 'two'"):
        nbi.compare({"one": first, "two": second[::-1]})
    hashes = second.data_hash.copy()
    hashes[[2, 7]] = first.data_hash[[7, 2]]
    with pytest.raises(ValueError, match=r"different ones for 2 of 50 objects \(as of 2, 7\)"):
        nbi.compare({"one": first, "two": replace(second, data_hash=hashes)})
    hashes[2] = ""
    with pytest.raises(ValueError, match="the hash of their data"):
        nbi.compare({"one": first, "two": replace(second, data_hash=hashes)})


def test_a_point_that_is_masked_makes_other_data(data, answers):
    seen = nbi.Observations.from_arrays(data[:2], mask=np.arange(8) > np.array([[-1], [0]]))
    second = replace(answers["two"][:2], data_hash=seen.hashes)
    with pytest.raises(ValueError, match=r"masks.* 1 of 2 objects \(as of 1\)"):
        nbi.compare({"one": answers["one"][:2], "two": second})


def test_learned_evidences_compare_under_priors_of_one_likelihood_alone(answers):
    learned = one(answers, status=nbi.Status.LEARNED)
    narrow = nbi.Prior({"p0": norm(0.1, 0.8)})
    exact = one(answers).reweight(narrow)
    moved = learned.reweight(narrow)
    assert moved.status is nbi.Status.LEARNED
    table = nbi.compare({"wide": learned, "narrow": moved})
    same = nbi.compare({"wide": one(answers), "narrow": exact})
    assert table["probability_wide"][0] == same["probability_wide"][0]
    other = replace(learned, log_likelihood=learned.log_likelihood + 0.1)
    many = replace(answers["one"][:1], status=(nbi.Status.LEARNED,), draws=None)
    for second in (other, one(answers), many):
        with pytest.raises(ValueError, match=r"LEARNED, but 1 of 1 objects \(as of 0\)"):
            nbi.compare({"a": learned, "b": second})
    # one that nothing is known of compares with nobody
    failed = one(answers, "two", status=nbi.Status.UNCERTIFIED)
    assert np.isnan(nbi.compare({"a": learned, "b": failed})["probability_a"][0])


def test_populations_compare_on_answers_under_the_same_prior_alone(answers):
    own = [replace(p, support=np.array([[-np.inf, np.inf]])) for p in answers["one"][:5]]
    moved = [p.reweight(nbi.Prior({"p0": norm(0, 0.9)})) for p in own]
    hashes = [
        ObjectDraws.of(v, "refuse", torch.device("cpu")).data_hash for v in (own, own[::-1], moved)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("given", "prior", "error", "told"),
    [
        ({"one": "one"}, None, ValueError, "two models at least"),
        ({"one": "one", 2: "two"}, None, ValueError, "named by texts"),
        ({"one": "one", "err_one": "two"}, None, ValueError, "'err_'"),
        ({"one": "one", "two": "two"}, [1.0], ValueError, "one positive weight"),
        ({"one": "one", "two": "two"}, {"one": 1, "tow": 2}, ValueError, "one positive weight"),
        ({"one": "one", "two": "two"}, [0.0, 1.0], ValueError, "one positive weight"),
        ({"one": "one", "two": "two"}, 0.5, ValueError, "one positive weight"),
        ({"one": "one", "two": "two"}, ["a", 1.0], TypeError, "one real number"),
    ],
)
def test_what_is_no_comparison_is_refused(answers, given, prior, error, told):
    with pytest.raises(error, match=told):
        nbi.compare({name: answers[own] for name, own in given.items()}, prior)


def test_answers_must_be_named_and_be_answers(answers):
    with pytest.raises(TypeError, match="must be a Mapping"):
        nbi.compare([answers["one"], answers["two"]])
    for nobody in ([], answers["two"][:0]):
        with pytest.raises(ValueError, match="'two' holds none"):
            nbi.compare({"one": answers["one"], "two": nobody})
    with pytest.raises(TypeError, match="hold a float"):
        nbi.compare({"one": answers["one"], "two": [1.0]})


def test_words_of_a_comparison_are_those_it_knows(compared):
    with pytest.raises(ValueError, match="against must be one of"):
        compared.log_bayes_factors("three")
    with pytest.raises(ValueError, match="unreliable must be one of"):
        compared.summed("drop")


# --- as a table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["models.ecsv", "models.fits", "models.h5", "models.parquet"])
def test_a_comparison_is_a_table_that_prints_keeps_and_sends(name, compared, tmp_path):
    assert (compared.colnames[0], compared.colnames[-1]) == ("id", "reliable")
    part = compared[:3]
    lines = repr(part).splitlines()
    assert len(lines) == 5
    assert len(lines[0].split()) == len(compared.colnames) == 14
    assert "<table" in part._repr_html_()
    assert "<td" in compared.summed()._repr_html_()
    place = {"path": "models"} if name.endswith("h5") else {}
    noted = {"serialize_meta": True} if place else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)  # a long name in a header of FITS
        compared.write(tmp_path / name, **place, **noted)
        read = type(compared).read(tmp_path / name, **place)
    sent = pickle.loads(pickle.dumps(compared))  # noqa: S301 - our own
    for other in (read, sent):
        total = other.summed("leave out", against="two")
        np.testing.assert_array_equal(total["probability"], compared.summed()["probability"])


def test_probabilities_have_three_digits_and_evidences_those_of_their_errors():
    def answer(value):
        prior = nbi.Prior({"a": uniform(0, 1)})
        base = np.zeros(2)
        return nbi.Posterior(
            nbi.infer.posterior.posterior.Parameters.of(prior), base[:, None], base, base + 0.5,
            base, base, base, nbi.Status.REFINED, data_hash="same", log_evidence=value,
            log_evidence_err=0.01234, evidence_reliable=True,
        )  # fmt: skip

    table = nbi.compare({"a": answer(-1234.56789), "b": answer(-1264.56789)})
    texts = table.texts()
    assert texts["log_evidence_a"] == ["-1234.5679"]
    assert texts["probability_a"] == ["1.000"]
    assert table.log_bayes_factors().texts()["log_bayes_factor_b"] == ["-30.0000"]
