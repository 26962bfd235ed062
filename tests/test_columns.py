"""Laws of the table of figures: each is on the answers, in their tables, and in their files."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
from answers import answers
from astropy import units

import nbi_plus as nbi
from nbi_plus.infer.posterior import columns
from nbi_plus.infer.posterior.columns import BY_NAME, FIGURES, Stored
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.infer.weights.moments import LEVELS

PARAMETERS = Parameters(("a", "b"), ("a", "b"), {"b": "day"})
ANSWERS = answers()
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
def test_a_figure_is_on_every_answer_and_survives_its_file(name, tmp_path):
    for one in ANSWERS.values():
        one.save(tmp_path / "one.h5")
        again = getattr(nbi.Posterior.load(tmp_path / "one.h5"), name)
        np.testing.assert_equal(again, getattr(one, name))
        assert type(again) is type(getattr(one, name))


def test_numbers_that_json_does_not_know_are_among_them():
    values = [getattr(p, name) for p in ANSWERS.values() for name in columns.NUMBERS]
    assert any(np.isnan(values))
    assert any(np.isposinf(values))


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


def test_answers_find_their_places_and_are_in_memory_once():
    places = np.random.default_rng(0).permutation(20).reshape(10, 2)
    seen = []

    def parts():
        for rows in places:
            assert sum(part() is not None for part in seen) <= 2  # the first and the last
            ids = np.array([f"{10 ** int(row)}" for row in rows])  # of several widths
            part = replace(posteriors(), ids=ids, n_masked=rows)
            seen.append(weakref.ref(part))
            yield part, rows
            del part

    many = nbi.Posteriors.placed(parts(), places.size)
    assert many.n_masked.tolist() == list(range(places.size))
    assert many.ids.tolist() == [str(10**i) for i in range(places.size)]
    first = np.sort(places[:, 0])
    assert {many.status[i] for i in first} == {posteriors().status[0]}
    again = nbi.Posteriors.concatenate([many[:7], many[7:]])
    for name in (*many.LISTS, "draws"):
        assert getattr(again, name) == getattr(many, name)
    for name in many.ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(many, name))
