"""Laws of the table of figures: each is on the answers, in their tables, and in their files."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units

import nbi_plus as nbi
from nbi_plus.infer.posterior import columns
from nbi_plus.infer.posterior.columns import BY_NAME, FIGURES, Stored
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.infer.weights.moments import LEVELS

PARAMETERS = Parameters(("a", "b"), ("a", "b"), {"b": "day"})
KINDS = {float: "f", bool: "b", int: "i", str: "U"}


def value_of(figure, i):
    """Return another value for each figure and object."""
    number = 1 + FIGURES.index(figure) + 100 * i
    return {float: number + 0.5, int: number, bool: not figure.unknown}[figure.kind]


def posterior(i, status=nbi.Status.REWEIGHTED):
    rng = np.random.default_rng(i)
    rows = rng.normal(size=(5, 20))
    numbers = {name: value_of(BY_NAME[name], i) for name in columns.NUMBERS}
    return nbi.Posterior(
        PARAMETERS, rng.normal(size=(20, 2)), rows[0], np.full(20, 0.05), *rows[1:4],
        status, frozenset({nbi.Flag.OOD}), id=f"object {i}", **numbers,
    )  # fmt: skip


def posteriors():
    draws = posterior(0), posterior(1, nbi.Status.UNCERTIFIED)
    made = {
        name: np.array([value_of(BY_NAME[name], i) for i in range(2)])
        for name in columns.ALL_NUMBERS
    }
    return nbi.Posteriors(
        parameters=PARAMETERS, ids=np.array([p.id for p in draws]),
        status=tuple(p.status for p in draws), flags=tuple(p.flags for p in draws),
        rungs=((), ()), mean=np.stack([p.mean() for p in draws]),
        std=np.stack([p.std() for p in draws]),
        quantiles=np.stack([p.quantile(LEVELS) for p in draws]), draws=draws, **made,
    )  # fmt: skip


def test_names_are_unique_and_sentences_are_sentences():
    assert len(BY_NAME) == len(FIGURES)
    assert len({f.sentence for f in FIGURES}) == len(FIGURES)
    assert all(f.sentence[0].isupper() and f.sentence.endswith(".") for f in FIGURES)


@pytest.mark.parametrize("name", columns.names(Stored.VERDICT, Stored.WEIGHTS, Stored.ANSWER))
def test_a_figure_is_on_an_answer_and_survives_its_file(name, tmp_path):
    one = posterior(3)
    one.save(tmp_path / "one.h5")
    again = getattr(nbi.Posterior.load(tmp_path / "one.h5"), name)
    assert again == getattr(one, name)
    assert type(again) is type(getattr(one, name))


@pytest.mark.parametrize("name", columns.NUMBERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_is_lost_in_a_file(name, value, tmp_path):
    if BY_NAME[name].kind is float:
        one = nbi.Posterior(**{**vars(posterior(3)), name: value})
        one.save(tmp_path / "one.h5")
        np.testing.assert_equal(getattr(nbi.Posterior.load(tmp_path / "one.h5"), name), value)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.name)
def test_a_figure_is_a_described_column_of_the_table(figure):
    table = posteriors().to_table()
    of_draws = figure.stored is Stored.DRAWS
    for name in [f"{p}_{figure.name}" for p in "ab"] if of_draws else [figure.name]:
        assert table[name].info.description == figure.sentence
        assert np.asarray(table[name]).dtype.kind == KINDS[figure.kind]


def test_the_table_has_the_figures_in_order_and_no_others():
    moments = [f"{p}_{name}" for p in "ab" for name in columns.MOMENTS]
    plain = [f.name for f in FIGURES if f.stored is not Stored.DRAWS]
    assert posteriors().to_table().colnames == plain + moments


def test_the_table_tells_what_the_answers_tell():
    many = posteriors()
    table = many.to_table()
    for name in columns.ALL_NUMBERS:
        np.testing.assert_array_equal(table[name], getattr(many, name))
    assert list(table["flags"]) == ["OOD", "OOD"]
    assert list(table["status"]) == ["REWEIGHTED", "UNCERTIFIED"]


def test_hidden_figures_of_the_uncertified_are_nan_unless_kept():
    hidden, kept = posteriors().to_table(), posteriors().to_table(uncertified="keep")
    for figure in FIGURES:
        for name in [n for n in hidden.colnames if n == figure.name or n[2:] == figure.name]:
            if figure.kind is float:
                assert np.isnan(hidden[name]).tolist() == [False, figure.hidden]
                assert np.isfinite(kept[name]).all()


def test_moments_have_the_unit_of_their_parameter():
    table = posteriors().to_table()
    for name in columns.MOMENTS:
        assert table[f"a_{name}"].unit is None
        assert table[f"b_{name}"].unit == units.day


@pytest.mark.parametrize("make", [lambda: posterior(0), posteriors], ids=["one", "many"])
def test_moments_are_described_in_every_table(make):
    table = make().summary()
    for name in columns.MOMENTS:
        assert table[name].info.description == BY_NAME[name].sentence


def test_quantiles_are_called_what_they_are():
    table, quantiles = posteriors().summary(), posteriors().quantiles
    for j, name in enumerate(("q16", "median", "q84")):
        np.testing.assert_array_equal(table[name][:2], quantiles[0, j])
