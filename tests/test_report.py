"""Laws of reports: one page, whatever the catalogue, without network and foreign code."""

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.report import write_report
from nbi_plus.report.source import signal_to_noise
from nbi_plus.survey.catalogue import Catalogue, Provenance
from nbi_plus.survey.parts import SurveyError
from nbi_plus.survey.writing import write_catalogue
from nbi_plus.trust.calibration import figures_of

pytest.importorskip("matplotlib")
EVIL = "<img src=x onerror=alert(1)>\"'&</table><script>alert(2)</script>"
MANIFEST = {"survey": {"engine": "abc", "version": "0", "columns": {}}, "nights": []}
VOID = ("img", "br", "meta", "link", "input", "hr")


def catalogue(n, n_draws=0, names=("a", "b")):
    """Return the rows of a made-up catalogue."""
    rng = np.random.default_rng(0)
    made = Catalogue(Provenance("abc", "0", 0, Parameters(names, names), n_draws))
    trusted = rng.random(n) < 0.8
    words = {
        "id": np.array([EVIL, *(f"star {i:05d}" for i in range(1, n))][:n], object),
        "status": np.where(trusted, "REFINED", "UNCERTIFIED"),
        "flags": np.where(rng.random(n) < 0.3, "OOD MISFIT", ""),
        "settled_by": np.where(trusted, "peaks", ""),
        "reason": np.where(trusted, "", EVIL),
        "engine": np.full(n, "abc"),
        "version": np.full(n, "0"),
    }
    columns = []
    for field in made.schema:
        if field.name in words:
            values = words[field.name]
        elif field.name in ("trusted", "certified"):
            values = trusted
        elif field.name.endswith("_draws"):
            values = list(rng.normal(size=(n, n_draws)))
        elif pa.types.is_boolean(field.type):
            values = np.ones(n, bool)
        elif pa.types.is_integer(field.type):
            values = rng.integers(5, 500, n)
        else:
            values = rng.lognormal(size=n)
        columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=made.schema)


def written(table, path):
    write_catalogue(path, lambda: iter([table]), table.schema, MANIFEST)
    return path


class Page(HTMLParser):
    """What is on a page: every tag that opens must close, in order."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.open, self.said = text, [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    def all(self, tag):
        return [attrs for own, attrs in self.tags if own == tag]


def read(path):
    return Page(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def light_curves():
    rng = np.random.default_rng(1)
    ids = [EVIL, *(f"star {i:05d}" for i in range(1, 40))]
    t = np.sort(rng.uniform(0, 2, (40, 9)), 1)
    x = rng.normal(3, 1, (40, 9))
    return nbi.Observations.from_arrays(x, rng.uniform(0.1, 1, (40, 1)), t=t, ids=ids)


@pytest.fixture(scope="module")
def calibration():
    """Return a calibration of posteriors that are right for one parameter alone."""
    rng = np.random.default_rng(2)
    ranks = rng.random((400, 2)) ** [1.0, 1.3]
    return nbi.Calibration(
        names=("a", "<b>"), labels=("a", "b"), ranks=ranks, ids=np.arange(400).astype(str),
        n_ranks=200, band=np.stack([np.full(101, -0.1), np.full(101, 0.1)]),
        n_excluded=3, n_amortized=0, **figures_of(ranks),
    )  # fmt: skip


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


@pytest.fixture(scope="module")
def full(desk, light_curves, calibration):
    """Return the page of a catalogue with draws, its source, a calibration and an engine."""
    out = written(catalogue(40, n_draws=50), desk / "full.parquet")
    engine = nbi.Engine(line, {"a": norm(0, 1), "b": norm(0, 1)}, noise=nbi.GaussianNoise())
    more = {"source": light_curves, "calibration": calibration, "engine": engine}
    made = write_report(out, desk / "full.html", **more)
    assert made.summary.n_objects == 40
    assert made.n_bytes == made.page.stat().st_size
    return read(made.page)


def test_a_page_can_be_read_without_eyes(full):
    assert full.all("html")[0]["lang"] == "en"
    assert full.all("meta")[0]["charset"] == "utf-8"
    assert any(own.get("name") == "viewport" for own in full.all("meta"))
    levels = [int(tag[1]) for tag, _ in full.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1
    assert all(len(own["alt"]) > 15 for own in full.all("img"))
    assert {own.get("scope") for own in full.all("th")} == {"row", "col"}
    regions = [own for own in full.all("div") if own.get("role") == "region"]
    assert all(own["tabindex"] == "0" and own["aria-label"] for own in regions)
    assert len(full.all("button")) == 11
    assert {own["type"] for own in full.all("button")} == {"button"}


def test_a_page_asks_the_network_for_nothing(full):
    for _, attrs in full.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", full.text)


def test_names_are_text_whatever_they_are(full):
    assert len(full.all("script")) == 1
    assert not any("onerror" in attrs for _, attrs in full.tags)
    assert EVIL in full.said
    policy = next(own["content"] for own in full.all("meta") if "http-equiv" in own)
    assert "script-src 'sha256-" in policy
    assert "default-src 'none'" in policy


def test_a_page_has_what_it_was_given(full):
    said = " ".join(full.said)
    for heading in ("Verdicts", "Answers against data", "Cost of each rung", "Calibration",
                    "Worst objects", "Slowest objects", "Objects"):  # fmt: skip
        assert heading in full.said
    assert "Against it speak the ranks of <b>." in said
    words = [own["alt"] for own in full.all("img")]
    for start in ("k-hat against S/N", "ESS against points", "Ranks", "Corner plot", "Data of"):
        assert any(word.startswith(start) for word in words), start
    assert any("with the band of its draws" in word for word in words)
    data = base64.b64decode(full.all("img")[0]["src"].split(",")[1])
    assert data.startswith(b"\x89PNG")


def page_of_seven(end, desk):
    """Return what stands on the page of one catalogue in some format, its own name apart."""
    table, out = catalogue(7), desk / f"seven{end}"
    if end:
        written(table, out)
    else:
        out.mkdir()
        for i in (0, 1):
            pyarrow.parquet.write_table(table.slice(4 * i, 4), out / f"part-{i}.parquet")
    page = read(write_report(out, desk / "seven.html").page)
    own = ("Report on", "Made by")
    return [text for text in map(str.strip, page.said) if text and not text.startswith(own)]


def test_every_format_of_a_catalogue_gives_the_same_page(desk):
    first, *others = (page_of_seven(end, desk) for end in (".parquet", ".h5", ".fits", ""))
    assert EVIL in first
    assert "7 of 7 objects. A button sorts." in first
    assert "The S/N is not known" in " ".join(first)
    for other in others:
        assert other == first


def test_a_large_catalogue_has_a_small_page(desk):
    names = tuple(f"parameter_{i}" for i in range(12))
    out = written(catalogue(20_000, names=names), desk / "large.parquet")
    made = write_report(out, desk / "large.html")
    assert made.n_bytes < 3_000_000
    page = read(made.page)
    assert sum(tag == "tr" for tag, _ in page.tags) < 1300
    assert any(text.startswith("1000 of 20000 objects: those that are least") for text in page.said)


def test_an_empty_catalogue_has_a_page(desk):
    page = read(write_report(written(catalogue(0), desk / "none.parquet"), desk / "none.html").page)
    assert "The catalogue is empty." in page.said


def test_what_is_no_catalogue_is_refused(desk):
    pyarrow.parquet.write_table(pa.table({"id": ["a"], "flux": [1.0]}), desk / "other.parquet")
    with pytest.raises(SurveyError, match="must be a catalogue of a survey"):
        write_report(desk / "other.parquet", desk / "other.html")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        write_report(desk / "missing.parquet", desk / "other.html")
    assert not (desk / "other.html").exists()


def test_a_simulator_that_fails_leaves_a_page_that_says_so(desk, light_curves):
    def broken(theta, t):
        raise ArithmeticError("no curve today")

    out = written(catalogue(40, n_draws=50), desk / "broken.parquet")
    engine = nbi.Engine(broken, {"a": norm(0, 1), "b": norm(0, 1)}, noise=nbi.GaussianNoise())
    page = read(write_report(out, desk / "b.html", source=light_curves, engine=engine).page)
    assert any("no band: " in own["alt"] and "no curve today" in own["alt"]
               for own in page.all("img"))  # fmt: skip


def test_without_matplotlib_there_is_a_page_without_pictures(desk, monkeypatch):
    out = written(catalogue(5), desk / "plain.parquet")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = read(write_report(out, desk / "plain.html").page)
    assert page.all("img") == []
    assert any(text.startswith("No picture: ") for text in page.said)


def test_the_signal_to_noise_is_the_median_of_the_points():
    x = [[1.0, -4.0, 9.0], [2.0, 2.0, np.nan], [np.nan] * 3]
    seen = nbi.Observations.from_arrays(x, 0.5, t=[0.0, 1.0, 2.0])
    np.testing.assert_allclose(signal_to_noise(seen), [8.0, 4.0, np.nan])


def test_a_calibration_comes_back_from_its_file(desk, calibration):
    calibration.save(desk / "c.h5")
    again = nbi.Calibration.load(desk / "c.h5")
    assert again.report == calibration.report
    np.testing.assert_array_equal(again.ranks, calibration.ranks)
    data = bytearray((desk / "c.h5").read_bytes())
    data[-200] ^= 1
    (desk / "d.h5").write_bytes(bytes(data))
    for path in (desk / "d.h5", written(catalogue(2), desk / "e.h5")):
        with pytest.raises(nbi.ArchiveError):
            nbi.Calibration.load(path)


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright opens the browser")
    with api.sync_playwright() as play:
        chromium = next(map(str, filter(Path.exists, map(Path, CHROMIUM))), None)
        try:
            opened = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield opened
        opened.close()


CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_a_page_fits_runs_quietly_and_sorts(browser, width, full, desk):
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.goto((desk / "full.html").as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    column = "[...document.querySelectorAll('#objects tbody tr')].map(r => r.cells[4].textContent)"
    button = page.locator("#objects thead button").nth(4)
    for key, sign in (("Enter", 1), ("Space", -1)):
        button.press(key)
        values = np.array(page.evaluate(column), float)
        assert (sign * np.diff(values) >= 0).all()
    assert page.locator("#objects thead th").nth(4).get_attribute("aria-sort") == "descending"
    assert wrong == []
    page.close()


def test_the_command_line_names_no_library_that_nobody_asked_for():
    code = (
        "import sys\nfrom nbi_plus.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'matplotlib', 'astropy', 'IPython', 'dask', 'nbi_plus.models.microlensing'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("report", "calibrate"):
        assert command in done.stdout
