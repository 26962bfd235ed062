"""Hard objects against exact posteriors: ``python -m benchmarks.hard_objects --set adversarial``.

Three sets of point-lens events, whose true posteriors `benchmarks.exact` knows: ``under-trained``
asks a network of two epochs, ``black-box`` the same without a gradient, ``adversarial`` a well
trained one about objects that it was not trained for. The other sets are the families of
`benchmarks.families`, which simulate objects with posteriors of a shape that is easily missed.
What is certified must be right. The status of the process says whether every bound was met.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import hard_families, hard_lenses
from benchmarks.families import FAMILIES
from benchmarks.verdicts import certified_and_wrong, describe, kind_table, rung_table

LENSES = ("under-trained", "black-box", "adversarial")


def lens_set(options):
    """Return what is stored of a set of lenses, after telling it, and its bounds."""
    rows, seconds, bounds = hard_lenses.run(options.set, options)
    print(f"{options.set}: {len(rows)} objects answered in {seconds:.1f} s\n")
    print(kind_table(rows), rung_table(rows), sep="\n\n")
    show_wrong(certified_and_wrong(rows), "certified")
    return {"seconds": seconds, "objects": rows}, bounds


def family_set(options, family):
    """Return what is stored of a set of a family, after telling it, and its bounds."""
    answered = hard_families.run(family, options.objects, options)
    found = hard_families.figures(answered)
    bounds = hard_families.bounds(family, found)
    print(hard_families.report(f"{family}, {options.epochs} epochs, seed {options.seed}", found))
    print(rung_table(answered.rows), sep="\n\n")
    show_wrong([r for r in answered.rows if r["trusted"] and r["wrong"]], "trusted")
    stored = {"family": asdict(family), "n_sims": options.n_sims, "epochs": options.epochs}
    return stored | {"figures": found, "objects": answered.rows}, bounds


def show_wrong(rows, word):
    """Print the objects that are wrong although this word stands for them."""
    print(f"\n{word} and wrong:" if rows else f"\nnothing {word} is wrong")
    print(*map(describe, rows), sep="\n")


def parser_of_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=(*LENSES, *FAMILIES), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder of trained engines and exact answers")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    off = parser.add_argument_group("the ladder")
    off.add_argument(
        "--without", action="append", default=[], metavar="FEATURE", help="a field of nbi.Ladder"
    )
    off.add_argument("--no-audit", action="append_const", dest="without", const="audit")
    lens = parser.add_argument_group("sets of lenses")
    lens.add_argument("--scale", type=float, default=1.0, help="a share of the objects, to look")
    family = parser.add_argument_group("families")
    family.add_argument("--objects", type=int, default=100)
    family.add_argument("--epochs", type=int, default=10)
    family.add_argument("--n-sims", type=int, default=2000)
    family.add_argument(
        "--truths", type=int, help="objects of the truth test; else as many as the engine chooses"
    )
    family.add_argument("--dim", type=int, help="parameters of needle and rings")
    family.add_argument("--width", type=float, help="of the narrow mode, of a pulse or a line")
    return parser


def main():
    parser = parser_of_options()
    options = parser.parse_args()
    options.ladder = hard_families.ladder_without(options.without)
    if options.without and options.ladder is None:
        print(f"nbi.Ladder has no {' or '.join(options.without)} to turn off")
    if options.set in LENSES:
        stored, bounds = lens_set(options)
    else:
        try:
            family = hard_families.family_of(options.set, dim=options.dim, width=options.width)
        except ValueError as error:
            parser.error(str(error))
        stored, bounds = family_set(options, family)
    print(*bounds, sep="\n")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        off = [] if options.ladder is None else options.without
        stored = {"set": options.set, "seed": options.seed, "without": off} | stored
        stored["bounds"] = [asdict(b) | {"met": b.met} for b in bounds]
        options.out.write_text(json.dumps(stored, indent=1))
    sys.exit(0 if all(b.met for b in bounds) else 1)


if __name__ == "__main__":
    main()
