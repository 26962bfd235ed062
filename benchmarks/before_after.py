"""Speed of small jobs before and after: ``python -m benchmarks.before_after --old CHECKOUT``.

Each of `benchmarks.snippets` runs in processes of its own, in turns with the package of an older
checkout and with that of this one, both on one thread. Printed are medians of CPU seconds and their
ratio; "-" where the older code does not have what the job needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.snippets import NAMES

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(__file__).with_name("snippets.py")


def seconds(tree, name):
    """Return the CPU seconds of one run in a tree, or None."""
    source = SOURCE.read_text()
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    # from standard input, and in the tree: no other package must stand before its own
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-", name], input=source, cwd=tree, text=True,
        env=os.environ | threads | {"PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def compare(old, name, repeats):
    """Print one row."""
    turns = [(seconds(old, name), seconds(ROOT, name)) for _ in range(repeats)]
    before, after = zip(*turns, strict=True)
    what = NAMES[name].__doc__.splitlines()[0].rstrip(".")
    command = f"`--only {name}`"
    new = median(after)
    if None in before:
        print(f"| {what} | - | {new:.3g} | - | {command} |", flush=True)
        return
    print(f"| {what} | {median(before):.3g} | {new:.3g} | {median(before) / new:.2f} | "
          f"{command} |", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", required=True, type=Path, help="checkout of the older code")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES)
    options = parser.parse_args()
    print("| what, CPU s | before | after | ratio | command |")
    print("|---|---|---|---|---|")
    for name in options.only:
        compare(options.old.resolve(), name, options.repeats)


if __name__ == "__main__":
    main()
