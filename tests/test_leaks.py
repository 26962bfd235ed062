"""Laws of long work: memory, files and threads do not grow with the answers that were given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FLAT = 2.0  # MiB in 150 answers; if their draws were kept, they would hold eight times that


def test_answers_leave_no_memory_files_or_threads_behind():
    command = [sys.executable, "-m", "benchmarks.leaks", "--predicts", "200", "--objects", "0"]
    done = subprocess.run([*command, "--lives", "2"], cwd=ROOT, capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["resident MiB"]["growth"] < _FLAT
    assert told["held"]["after"] == told["held"]["before"]
