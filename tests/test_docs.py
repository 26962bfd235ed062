"""Every Python block of README and docs runs, top to bottom, in a folder of its own."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest

import nbi_plus as nbi

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.name
)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    assert blocks
    scope = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="nbi_plus")
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page.name} block {number}", "exec"), scope)


def test_example_of_the_sine_runs(tmp_path):
    example = runpy.run_path(str(ROOT / "examples" / "sine.py"))
    posteriors = example["main"](n_sims=300, n_epochs=1, n_curves=3, out=tmp_path)
    assert len(posteriors) == 3
    assert (tmp_path / "sine-corner.png").stat().st_size > 1000


def test_example_of_the_velocities_runs(tmp_path):
    example = runpy.run_path(str(ROOT / "examples" / "velocities.py"))
    found = example["main"](n_sims=200, ess_target=100, out=tmp_path)
    assert set(found) == {"two planets", "one planet"}
    assert (tmp_path / "velocities-rounds.png").stat().st_size > 1000


@pytest.mark.parametrize(("likelihood", "n"), [(False, 2), (True, 1)])
def test_example_of_the_ratio_runs(likelihood, n):
    example = runpy.run_path(str(ROOT / "examples" / "ratio_normal.py"))
    answers = example["main"](n_sims=1000, n_epochs=2, n_sets=n, likelihood=likelihood)
    assert [len(found) for found in answers.values()] == [n, n, n]


def test_readme_names_the_test_command_that_ci_calls():
    commands = re.findall(r"^python -m venv .*-m pytest$", (ROOT / "README.md").read_text(), re.M)
    assert len(commands) == 1
    assert "constraints.txt" in commands[0]


def test_every_public_name_has_a_line_in_the_readme():
    text = (ROOT / "README.md").read_text()
    table = text.split("## What you can hold")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|(.*?)\|", table, re.M)))
    assert sorted(named) == sorted(name for name in nbi.__all__ if not name.startswith("_"))
