"""Laws of the command line: what the demo prints and writes, and how wrong commands are met."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import QTable

import nbi_plus
from nbi_plus.cli import main

ROOT = Path(__file__).parents[1]
N_EVENTS = 5
QUICK = ["--n-sims=300", "--n-epochs=2", f"--n-events={N_EVENTS}", "--n-calibration=7", "--seed=3"]


def run_demo(folder):
    """Return what a quick demo prints; so little training certifies few events or none."""
    with redirect_stdout(StringIO()) as printed:
        assert main(["demo", f"--out={folder}", *QUICK]) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick") / "new" / "folder"
    return folder, run_demo(folder)


def verdicts(text):
    return [line.split() for line in text.splitlines() if line.startswith("event 0")]


def test_demo_prints_one_verdict_for_each_event(demo):
    rows = verdicts(demo[1])
    assert [f"{a} {b}" for a, b, *_ in rows] == [f"event {i:04d}" for i in range(N_EVENTS)]
    assert {row[2] for row in rows} <= {status.name for status in nbi_plus.Status}
    assert f"{N_EVENTS} events: " in demo[1]


def test_demo_catalogue_agrees_with_its_verdicts(demo):
    folder, text = demo
    table = QTable.read(folder / "catalogue.ecsv")
    assert table["status"].tolist() == [row[2] for row in verdicts(text)]
    assert [f"{e:.0f}" for e in table["ess"]] == [row[3] for row in verdicts(text)]
    assert str(table["tE_true"].unit) == "d"
    hidden = ~np.asarray(table["certified"], bool)
    np.testing.assert_array_equal(np.isnan(table["u0_mean"]), hidden)
    assert np.isfinite(table["u0_true"]).all()


def test_demo_names_the_files_it_has_written(demo):
    folder, text = demo
    listed = text.split("Wrote ")[1].split(" to ")[0].split(", ")
    assert {path.name for path in folder.iterdir()} == set(listed)
    assert {"catalogue.ecsv"} <= set(listed)


def test_demo_draws_its_training(demo):
    pytest.importorskip("matplotlib")
    assert (demo[0] / "loss.png").stat().st_size > 5000


def test_demo_without_matplotlib_writes_the_catalogue_and_says_what_is_missing(
    demo, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["catalogue.ecsv"]
    assert 'pip install "nbi-plus[plots]"' in text
    # the same seed gives the same verdicts
    assert verdicts(text) == verdicts(demo[1])


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"nbi-plus {nbi_plus.__version__}"


@pytest.mark.parametrize("argv", [[], ["dmeo"], ["demo", "--n-sims=0"], ["demo", "--seed=x"]])
def test_wrong_commands_are_met_with_usage(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: nbi-plus")


def test_python_m_nbi_plus_is_the_same_command():
    command = [sys.executable, "-m", "nbi_plus", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"nbi-plus {nbi_plus.__version__}"


# --- engines and surveys -------------------------------------------------------------------------

MODEL = """
import nbi_plus as nbi
from scipy.stats import norm

def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t

def build_engine():
    prior = {"a": norm(0, 1), "b": norm(0, 1)}
    return nbi.Engine(line, prior, noise=nbi.GaussianNoise(), featurizer="mlp")
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Return a folder with a model, a survey of it and a trained engine."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "model.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    t, theta = np.tile(np.linspace(0, 2, 8), 12), rng.normal(size=(12, 2)).repeat(8, 0)
    flux = theta[:, 0] + theta[:, 1] * t + 0.3 * rng.normal(size=96)
    names = np.array([f"s{i:02d}" for i in range(12)]).repeat(8)
    QTable({"oid": names, "mjd": t, "flux": flux, "flux_err": np.full(96, 0.3)}).write(
        folder / "survey.csv"
    )
    status, _ = run("fit", "model.py", "--n-sims=400", "--n-epochs=2", "--observations=survey.csv",
                    "--column=id=oid", "-o", "line.nbi", "--quiet", folder=folder)  # fmt: skip
    assert status == 0
    return folder


def run(*words, folder):
    """Return the exit status of a command in a folder, and what it prints."""
    at = {"model.py", "line.nbi", "survey.csv", "out.parquet"}
    argv = [str(folder / w) if w in at else w for w in words]
    argv = [w.replace("=survey.csv", f"={folder / 'survey.csv'}") for w in argv]
    with redirect_stdout(StringIO()) as printed:
        status = main(argv)
    return status, printed.getvalue()


def test_a_survey_from_an_empty_folder_to_its_catalogue(desk):
    words = ("predict", "model.py", "line.nbi", "survey.csv", "-o", "out.parquet",
             "--column=id=oid")  # fmt: skip
    status, text = run(*words, "--json", folder=desk)
    assert status == 0
    found = json.loads(text)
    assert found["n_objects"] == found["n_new"] == sum(found["status"].values()) == 12
    status, text = run(*words, folder=desk)
    assert (status, "12 objects, 0 of them now" in text) == (0, True)
    assert run(*words, "--quiet", "--fail-on=REFINED,REWEIGHTED", folder=desk) == (3, "")
    assert run(*words, "--quiet", "--fail-on=DIVERGENCES", folder=desk) == (0, "")
    status, text = run("retry", *words[1:4], "out.parquet", "--json", folder=desk)
    assert (status, json.loads(text)["n_objects"]) == (0, 12)
    assert json.loads(text)["n_new"] == found["status"].get("UNCERTIFIED", 0)
    status, text = run("inspect", "out.parquet", "--json", folder=desk)
    told = json.loads(text)
    assert (status, told["file"], told["objects"], told["finished"]) == (0, "catalogue", 12, True)


def test_from_an_empty_folder_to_a_report(desk):
    words = ("calibrate", "model.py", "line.nbi", "-o", str(desk / "new" / "calibration.h5"),
             "--n-objects=40", "--quiet")  # fmt: skip
    assert run(*words, folder=desk) == (0, "")
    status, text = run("inspect", str(desk / "new" / "calibration.h5"), "--json", folder=desk)
    told = json.loads(text)
    assert (status, told["file"], set(told["p-values"])) == (0, "calibration", {"a", "b"})
    assert told["objects"] + told["excluded"] == 40
    kept = str(desk / "kept.parquet")
    words = ("predict", "model.py", "line.nbi", "survey.csv", "-o", kept, "--column=id=oid",
             "--keep-draws=50", "--quiet")  # fmt: skip
    assert run(*words, folder=desk) == (0, "")
    words = ("report", kept, "-o", str(desk / "new" / "report.html"),
             "--source", "survey.csv", "--column=id=oid", "--model", "model.py",
             "--calibration", str(desk / "new" / "calibration.h5"))  # fmt: skip
    status, text = run(*words, "--json", folder=desk)
    told = json.loads(text)
    page = (desk / "new" / "report.html").read_text()
    assert (status, told["objects"], told["bytes"]) == (0, 12, len(page.encode()))
    assert page.count("<h2>") == 7
    assert run(*words, "--quiet", "--fail-on=REFINED,REWEIGHTED", folder=desk) == (3, "")
    assert run(*words, "--quiet", "--fail-on=DIVERGENCES", folder=desk) == (0, "")


def test_a_calibration_that_fails_ends_with_3(desk, monkeypatch):
    found = SimpleNamespace(p_values=np.array([0.5, 0.001]), n_excluded=0, n_amortized=0,
                            report="", save=lambda path: path.touch())  # fmt: skip
    monkeypatch.setattr(nbi_plus.Engine, "calibrate", lambda *_, **__: found)
    monkeypatch.setattr("nbi_plus.cli.told", lambda _: {})
    words = ("calibrate", "model.py", "line.nbi", "-o", str(desk / "c.h5"), "--quiet")
    assert run(*words, "--fail-on=UNCALIBRATED", folder=desk)[0] == 3
    assert run(*words, "--fail-on=UNCERTIFIED", folder=desk)[0] == 0


def test_what_a_calibration_cannot_fail_on_is_refused(desk, capsys):
    words = ["calibrate", "model.py", "line.nbi", "-o", "c.h5", "--fail-on=FAILED"]
    with pytest.raises(SystemExit):
        main(words)
    assert "must be of UNCALIBRATED, UNCERTIFIED, AMORTIZED" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["line.nbi", "new/calibration.h5", "out.parquet"])
def test_inspect_says_that_a_file_is_damaged(name, desk, tmp_path, capsys):
    raw = bytearray((desk / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    path = tmp_path / (desk / name).name
    path.write_bytes(raw)
    assert main(["inspect", str(path)]) == 1
    assert "checksum" in capsys.readouterr().err


def test_inspect_tells_an_engine_from_other_files(desk, capsys):
    status, text = run("inspect", "line.nbi", "--json", folder=desk)
    assert status == 0
    assert json.loads(text)["parameters"] == ["a", "b"]
    assert main(["inspect", str(desk / "model.py")]) == 1
    assert "must be an engine, a posterior, a calibration or a catalogue" in capsys.readouterr().err
    assert main(["inspect", str(desk / "nothing.nbi")]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "must define build_engine"),
        ("def build_engine(): return 1", "must return an nbi_plus.Engine, but returned int"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
    ],
)
def test_a_model_that_builds_no_engine_is_an_error(text, said, tmp_path, capsys):
    (tmp_path / "model.py").write_text(text)
    assert main(["fit", str(tmp_path / "model.py"), "-o", str(tmp_path / "e.nbi")]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "m.py"],
        ["fit", "m.py", "--column", "t", "-o", "x"],
        ["predict", "m", "e", "s", "-o", "x", "--fail-on=LATE"],
        ["report", "c.parquet"],
        ["report", "c.parquet", "-o", "r.html", "--seed=1"],
        ["calibrate", "m.py", "e.nbi", "-o", "c.h5", "--n-objects=0"],
    ],
)
def test_wrong_use_is_2(words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_ctrl_c_is_130(desk, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(nbi_plus.Engine, "predict_survey", interrupted)
    words = ("predict", "model.py", "line.nbi", "survey.csv", "-o", "never.parquet")
    assert run(*words, folder=desk)[0] == 130
    assert "goes on where it was" in capsys.readouterr().err
