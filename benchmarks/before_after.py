"""Speed of small jobs before and after: ``python -m benchmarks.before_after --old CHECKOUT``.

Each of `benchmarks.snippets` and `benchmarks.traffic` runs in processes of its own, in turns with
the package of an older checkout and with that of this one, both on one thread. Printed are medians
of CPU seconds, or counts, and their ratio; "-" where the older code does not have what the job
needs, or nothing is left to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks import snippets, traffic

ROOT = Path(__file__).resolve().parent.parent
JOBS = snippets.NAMES | traffic.JOBS
ITEMS = {
    "unweighted answers": ("unweighted",),
    "launch sizes": ("target_117", "target_1000"),
    "mixtures": ("mixtures_3", "mixtures_5", "mixtures_10", "mixtures_sized"),
    "a lean target": ("gradients", "chains"),
    "compiled gradients": ("gradients_compiled",),
    "the flow in one pass": ("flow", "weighted"),
    "one object": ("rounds_torch", "rounds_numpy", "rounds_bimodal", "rounds_microlensing",
                   "rounds_k2_24"),
    "training": ("epoch", "to_a_loss", "to_a_low_loss"),
    "devices": ("traffic_of_steps", "traffic_of_an_epoch", "traffic_of_chains"),
    "first tries": ("first_try", "imported", "imported_by_a_worker", "imported_to_sample"),
    "surveys": ("ladder_48",),
}  # fmt: skip


def seconds(tree, name):
    """Return the CPU seconds, or the count, of one run in a tree, or None."""
    source = Path(traffic.__file__ if name in traffic.JOBS else snippets.__file__).read_text()
    chosen = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NBI_PLUS_TESTS": str(ROOT / "tests")}
    # from standard input, and in the tree: no other package must stand before its own
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-", name], input=source, cwd=tree, text=True,
        env=os.environ | chosen | {"PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def compare(checkout, item, name, repeats):
    """Print one row."""
    turns = [(seconds(checkout, name), seconds(ROOT, name)) for _ in range(repeats)]
    before, after = zip(*turns, strict=True)
    what = JOBS[name].__doc__.splitlines()[0].rstrip(".")
    command = f"`--only {name}`"
    new = median(after)
    old = None if None in before else median(before)
    figure = "-" if old is None else f"{old:.3g}"
    ratio = "-" if old is None or new == 0 else f"{old / new:.2f}"
    print(f"| {item} | {what} | {figure} | {new:.3g} | {ratio} | {command} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", required=True, type=Path, help="checkout of the older code")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(JOBS), choices=JOBS)
    options = parser.parse_args()
    print("| item | what, CPU s | before | after | ratio | command |")
    print("|---|---|---|---|---|---|")
    for item, names in ITEMS.items():
        for name in (name for name in names if name in options.only):
            compare(options.old.resolve(), item, name, options.repeats)


if __name__ == "__main__":
    main()
