"""Laws of what a notebook shows: tables whose names are text, short numbers, and pictures."""

from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus.infer.sequential.rounds import Round, Rounds, Stop
from nbi_plus.markup import Html, Shown, beside, cell, facts, number, table

EVIL = "<script>alert('a')</script>&\""


class Reader(HTMLParser):
    """Tags and texts of a page; every tag that opens must close."""

    VOID = ("img", "br", "meta", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def prior(name="a"):
    return {name: norm(0, 1), "b": norm(2458123.5, 3)}


def line(theta, t):
    return theta[:, :1] + (theta[:, 1:] - 2458123.5) * t


@pytest.fixture(scope="module")
def seen():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 8))
    t = np.linspace(0, 1, 8)
    return nbi.Observations.from_arrays(x, 0.3, t=t, ids=[EVIL, *map(str, range(11))])


@pytest.fixture(scope="module")
def engine(seen):
    made = nbi.Engine(line, prior(EVIL), noise=nbi.GaussianNoise(), featurizer="mlp")
    return made.fit(400, n_epochs=2, observations=seen, progress=False)


@pytest.fixture(scope="module")
def shown(engine, seen):
    many = engine.predict_many(seen)
    row = Round(EVIL, 10, 10, 3.0, 0.3, 0.5, float("nan"), float("nan"), 1.0)
    return {
        "fitted": engine,
        "not fitted": nbi.Engine(line, prior(EVIL), noise=nbi.StudentTNoise(4)),
        "prior": nbi.Prior(prior(EVIL)),
        "joint prior": nbi.EmpiricalPrior(np.random.default_rng(0).normal(size=(90, 2))),
        "observations": seen,
        "posterior": many[0],
        "posteriors": many,
        "rounds": Rounds((row,), Stop.BUDGET),
    }


KINDS = ("fitted", "not fitted", "prior", "joint prior", "observations", "posterior", "posteriors",
         "rounds")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_people_hold_is_shown_as_a_table_in_which_names_are_text(shown, kind):
    one = shown[kind]
    assert isinstance(one, Shown)
    page = read(one._repr_html_())
    names = {tag for tag, _ in page.tags}
    assert "table" in names
    assert "script" not in names
    if kind not in ("joint prior", "not fitted"):
        assert EVIL in "".join(page.texts)
    scopes = {attrs.get("scope") for tag, attrs in page.tags if tag == "th"}
    assert scopes <= {"row", "col"}
    assert one._repr_mimebundle_()["text/html"] == one._repr_html_()


def test_a_notebook_gets_tables_through_its_own_display(shown):
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    for kind in KINDS:
        data, _ = formatter.format(shown[kind])
        assert "<table" in data["text/html"], kind


def test_a_summary_prints_all_columns_to_three_digits(shown):
    table_ = shown["posterior"].summary()
    lines = str(table_).splitlines()
    for name in table_.colnames:
        assert name in lines[0].split()
    assert repr(table_) == str(table_)
    spread = lines[-1].split()[2]
    assert len(spread.replace(".", "").lstrip("0")) == 3
    # a date keeps the digits that its error leaves
    mean = lines[-1].split()[1]
    assert abs(float(mean) - table_["mean"][1]) < 0.01 * table_["std"][1]
    assert table_["mean"][1] == shown["posterior"].mean()[1]
    assert len(str(shown["posteriors"].summary()).splitlines()[0].split()) == 10


def test_draws_are_had_by_name(shown):
    one = shown["posterior"]
    np.testing.assert_array_equal(one[EVIL], one.samples[:, 0])
    np.testing.assert_array_equal(one["b"], one.samples[:, 1])
    with pytest.raises(KeyError, match="must be one of"):
        one["c"]


def test_pictures_show_themselves(shown):
    pytest.importorskip("matplotlib")
    figure = nbi.plots.corner(shown["posterior"])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_cells_are_escaped_unless_they_are_html():
    assert cell("<b>") == "&lt;b&gt;"
    assert cell(Html("<b>")) == "<b>"
    assert "<i>" not in table(["<i>"], [["<i>", "<i>"]], "<i>") + facts({"<i>": "<i>"}, "<i>")


@pytest.mark.parametrize("value", [3.14159e-7, 0.0314159, 3.14159, 314.159, 31415.9, 3.14159e12])
def test_three_digits_are_enough_and_there(value):
    assert float(number(value)) == pytest.approx(value, rel=5e-3)
    assert float(beside(value, abs(value) / 1e4)) == pytest.approx(value, abs=value * 1e-6)
