"""Hard objects against exact posteriors: ``python -m benchmarks.hard_objects --set adversarial``.

Three sets of point-lens events, whose true posteriors `benchmarks.exact` knows: ``under-trained``
asks a network of two epochs, ``black-box`` the same without a gradient, ``adversarial`` a well
trained one about objects that it was not trained for. What is certified must be right. The status
of the process says whether every bound was met.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import hard_lenses
from benchmarks.verdicts import certified_and_wrong, describe, kind_table, rung_table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sets = ("under-trained", "black-box", "adversarial")
    parser.add_argument("--set", choices=sets, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the objects, to look")
    parser.add_argument("--cache", type=Path, help="folder of trained engines and exact answers")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    options.ladder = None
    rows, seconds, bounds = hard_lenses.run(options.set, options)
    print(f"{options.set}: {len(rows)} objects answered in {seconds:.1f} s\n")
    print(kind_table(rows), rung_table(rows), sep="\n\n")
    wrong = certified_and_wrong(rows)
    print("\ncertified and wrong:" if wrong else "\nnothing certified is wrong")
    print(*map(describe, wrong), *bounds, sep="\n")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        stored = {"set": options.set, "seed": options.seed, "seconds": seconds, "objects": rows}
        stored["bounds"] = [asdict(b) | {"met": b.met} for b in bounds]
        options.out.write_text(json.dumps(stored, indent=1))
    sys.exit(0 if all(b.met for b in bounds) else 1)


if __name__ == "__main__":
    main()
