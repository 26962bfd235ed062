"""Laws of the command line: what the demo prints and writes, and how wrong commands are met."""

import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

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
