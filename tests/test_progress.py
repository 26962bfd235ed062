"""Laws of what long work says of itself: who hears it, how often, and that it can be silenced."""

import re
import subprocess
import sys
import time

import pytest

from nbi_plus import progress
from nbi_plus.progress import duration, say, step

FIT = """
import sys, time
from scipy.stats import norm
import nbi_plus as nbi
from nbi_plus import progress
progress._EVERY, progress._SILENT = {every}, {silent}
engine = nbi.Engine(lambda theta, t: theta * t, {{"a": norm(0, 1)}}, noise=0.1, featurizer="mlp")
engine.fit(200, n_epochs=4, t=[0.5, 1.0, 2.0], x_err=0.1, truth_test=False, progress={show},
           callback=lambda history: time.sleep(0.3))
"""


def child(code):
    """Return what a process says whose stderr is a pipe, as under nohup."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_where_nobody_looks_a_fit_tells_of_its_epochs_in_plain_lines():
    lines = [line for line in child(FIT.format(every=0.2, silent=5, show=None)) if "epochs" in line]
    assert len(lines) >= 3
    assert all(re.match(r"training: \d of 4 epochs, \d+ s", line) for line in lines)
    assert any("left" in line for line in lines)
    assert "loss" in lines[-1]
    assert lines[-1].startswith("training: 4 of 4")
    assert "\r" not in "".join(lines)


def test_a_quick_fit_and_one_that_shall_be_quiet_say_nothing():
    assert child(FIT.format(every=60, silent=60, show=None)) == []
    assert child(FIT.format(every=0.1, silent=0.1, show=False)) == []


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.1)
    monkeypatch.setattr(progress, "_SILENT", 0.3)


def test_work_that_hangs_is_heard_of_and_never_more_often_than_allowed(quick, capsys):
    with progress.progress("waiting", 3):
        time.sleep(1.0)
    silent = capsys.readouterr().err.splitlines()
    assert 2 <= len(silent) <= 5
    assert all(line.startswith("waiting: 0 of 3, ") for line in silent)
    with progress.progress("running", 500) as work:
        for _ in range(500):
            time.sleep(0.001)
            work.step()
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 12
    assert lines[-1].startswith("running: 500 of 500")


def test_work_inside_other_work_is_told_by_the_outer(quick, capsys):
    with progress.progress("outer", 2, True), progress.progress("inner", 9, None):
        step(4)
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.endswith("inner 4 of 9") for line in lines)
    assert {line.split(":")[0] for line in lines} == {"outer"}


def test_silence_holds_for_all_work_inside(quick, capsys):
    with progress.progress("outer", 2, show=False), progress.progress("inner", 9):
        say("something")
        time.sleep(0.3)
    assert capsys.readouterr().err == ""
    step()
    say("nobody works")
    assert capsys.readouterr().err == ""


def test_a_closed_stream_ends_no_work(quick, monkeypatch, tmp_path):
    closed = (tmp_path / "log").open("w")
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.progress("telling", 3, None) as work:
            time.sleep(0.25)
            work.step(3)
        assert not [t for t in progress.threading.enumerate() if t.name == "nbi_plus.progress"]


def test_an_error_passes_and_nothing_is_told_after_it(quick, capsys):
    def fails():
        with progress.progress("failing", 3, True) as work:
            work.step()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert capsys.readouterr().err.count("failing") == 1


class Terminal:
    """A stderr that somebody looks at."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_on_a_terminal_there_is_a_bar_that_carries_what_is_told(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress("answering", 5, show=True, unit="objects") as work:
        work.step(5, "at rung refine")
    assert "\r" in terminal.text
    assert "5/5" in terminal.text
    assert "at rung refine" in terminal.text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.9, "1 min 0 s"), (3599.7, "1 h 0 min"), (90000, "25 h 0 min")],
)
def test_durations_are_whole_and_carried(seconds, words):
    assert duration(seconds) == words
