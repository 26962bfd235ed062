"""One object at a time, package against package: ``python -m benchmarks.sequential``.

Every package fits the problems of `benchmarks.single_problems` in its own process and virtual
environment, and appends a `Result` to one file of JSON lines; two tables show what the file holds,
fit by fit and as medians over seeds, and ``--plot`` draws the calls that an effective draw costs.
``--only ""`` runs nothing and shows what there is. Peers import `Result` and `Draws` from here:
nothing but numpy is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

CERTIFIED = ("REWEIGHTED", "REFINED")
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"
PROBLEMS = ("sine", "bimodal", "microlensing", "transit", "kepler", "k2_24")


@dataclass(frozen=True)
class Result:
    """One fit: a problem, a package, a seed."""

    problem: str
    package: str
    version: str
    settings: dict
    seed: int
    n_calls: int  # simulator calls in all
    ess: float  # Kish, of all weighted draws
    log_z: float | None
    log_z_err: float | None  # as the package states it
    mean: list  # (D,)
    sd: list  # (D,)
    seconds: float  # on the wall
    masses: dict  # posterior mass of the problem's regions, by name
    ess_by_round: list | None = None  # where there are rounds, as the package counts it
    cpu_seconds: float | None = None  # of this process, imports left out

    @property
    def status(self):
        """The package's own verdict, where it gives one."""
        return self.settings.get("status")

    @property
    def certified(self):
        """Whether the package stands by its draws; one that gives no verdict does."""
        return self.status is None or self.status in CERTIFIED

    @property
    def calls_per_draw(self):
        """Simulator calls that one effective draw cost."""
        return self.n_calls / self.ess if self.ess > 0 else np.inf

    def append_to(self, path):
        """Add this record to a file of JSON lines."""
        with open(path, "a") as lines:
            lines.write(json.dumps(asdict(self)) + "\n")


@dataclass(frozen=True)
class Draws:
    """Weighted draws of a posterior, with the evidence where it is known."""

    theta: np.ndarray  # (n, D)
    weights: np.ndarray  # (n,), unnormalised
    log_z: float | None = None
    log_z_err: float | None = None

    @property
    def ess(self):
        """Kish's effective sample size."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())

    @property
    def mean(self):
        """The posterior mean (D,)."""
        return np.average(self.theta, axis=0, weights=self.weights)

    @property
    def sd(self):
        """The posterior standard deviation (D,)."""
        variance = np.average((self.theta - self.mean) ** 2, axis=0, weights=self.weights)
        return np.sqrt(variance)

    def summary(self):
        """Return the fields of a `Result` that the draws decide."""
        return {
            "ess": self.ess,
            "log_z": None if self.log_z is None else float(self.log_z),
            "log_z_err": None if self.log_z_err is None else float(self.log_z_err),
            "mean": self.mean.tolist(),
            "sd": self.sd.tolist(),
        }


@dataclass(frozen=True)
class Entry:
    """Where a package runs: its module with its arguments, and its environment (None: this)."""

    module: str
    arguments: tuple[str, ...] = ()
    environment: str | None = None
    problems: tuple[str, ...] = PROBLEMS

    @property
    def python(self):
        if self.environment is None:
            return Path(sys.executable)
        return ROOT / "benchmarks" / "peers" / self.environment / "bin" / "python"


def _sampler(name):
    return Entry("benchmarks.peer_samplers", ("--package", name), "samplers")


ENTRIES = {
    "nbi-plus": Entry("benchmarks.ours_sequential"),
    "nautilus": _sampler("nautilus"),
    "dynesty": _sampler("dynesty"),
    "ultranest": _sampler("ultranest"),
    "pocomc": _sampler("pocomc"),
    "nbi": Entry("benchmarks.peer_nbi_sequential", (), "nbi", ("sine", "bimodal", "microlensing")),
}


def main():
    """Run what was asked for, and print everything in the file."""
    options = _arguments()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        for problem in options.problems:
            if problem in ENTRIES[name].problems:
                _run(name, problem, options)
    results = read(options.out)
    print(table(results), summary(results), sep="\n\n")
    if options.plot is not None:
        from benchmarks.sequential_plot import calls_per_draw  # peers have no matplotlib

        calls_per_draw(results).savefig(options.plot)


def read(path):
    """Return the results in a file of JSON lines; of equal runs the last one."""
    results = [Result(**json.loads(line)) for line in Path(path).read_text().splitlines()]
    return list({(r.problem, r.package, r.seed): r for r in results}.values())


def table(results):
    """Return the results in markdown, a row each, problem by problem."""
    lines = [
        "| problem | package | seed | calls | ESS | ESS / call | log Z | seconds | status "
        "| masses |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: PROBLEMS.index(r.problem)):
        masses = ", ".join(f"{name} {mass:.3f}" for name, mass in r.masses.items())
        lines.append(
            f"| {r.problem} | {r.package} {r.version} | {r.seed} | {r.n_calls} | {r.ess:.0f} "
            f"| {r.ess / r.n_calls:.4f} | {_log_z([r])} | {r.seconds:.0f} | {r.status or '–'} "
            f"| {masses} |"
        )
    return "\n".join(lines)


def summary(results):
    """Return medians over seeds in markdown, a row for each package of each problem."""
    lines = [
        "| problem | package | seeds | certified | calls | ESS | calls / effective draw | worst "
        "| log Z | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (problem, package), runs in grouped(results).items():
        cost = [r.calls_per_draw for r in runs]
        verdicts = [r.certified for r in runs if r.status is not None]
        certified = f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "–"
        calls, ess, seconds = (
            np.median([getattr(r, name) for r in runs]) for name in ("n_calls", "ess", "seconds")
        )
        lines.append(
            f"| {problem} | {package} {runs[-1].version} | {len(runs)} | {certified} "
            f"| {calls:.0f} | {ess:.0f} | {np.median(cost):.3g} | {max(cost):.3g} "
            f"| {_log_z(runs)} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def grouped(results):
    """Return all seeds of each (problem, package), in the order of `PROBLEMS` and `ENTRIES`."""
    places = {name: i for i, name in enumerate(ENTRIES)}
    ordered = sorted(results, key=lambda r: (PROBLEMS.index(r.problem), places[r.package], r.seed))
    groups = {}
    for r in ordered:
        groups.setdefault((r.problem, r.package), []).append(r)
    return groups


def _log_z(runs):
    """Return the medians of log-evidence and error, of the runs that know them."""
    known = [(r.log_z, r.log_z_err) for r in runs if r.log_z is not None]
    pairs = np.array(known, np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    if not len(pairs):
        return "–"
    value, error = np.median(pairs, axis=0)
    return f"{value:.3f} ± {error:.3f}"


def _run(name, problem, options):
    """Run one fit; one that takes too long, or cannot be made here, is said and left out."""
    entry = ENTRIES[name]
    if not entry.python.exists():
        sys.exit(f"{name} has no environment yet. Make it with: benchmarks/setup_peers.sh")
    command = [entry.python, "-m", entry.module, *entry.arguments, "--problem", problem]
    command += ["--seed", options.seed, "--out", options.out]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    print(f"{name}, {problem} ...", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=os.environ | threads,
            timeout=options.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"{name}, {problem}: not done after {options.timeout} s", file=sys.stderr)
        return
    if done.returncode:
        print(f"{name}, {problem}: no result (exit {done.returncode})", file=sys.stderr)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, known in (("only", ENTRIES), ("problems", PROBLEMS)):
        text = f"names joined by commas, of {','.join(known)}"
        parser.add_argument(f"--{name}", type=_subset(known), default=list(known), help=text)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one fit")
    parser.add_argument("--out", type=Path, default=OUT / "sequential.jsonl")
    parser.add_argument("--plot", type=Path, help="picture of the calls per effective draw")
    return parser.parse_args()


def _subset(known):
    """Return the reader of names joined by commas, all of them known."""

    def read_names(text):
        names = [name for name in text.split(",") if name]
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"must be of {list(known)}, but has {unknown}")
        return names

    return read_names


if __name__ == "__main__":
    main()
