"""Amortised inference, package against package: ``python -m benchmarks.amortized``.

One package after the other learns from the same simulations under the same budget, each in its own
process and virtual environment, and is judged on the same objects in the units of theta. What one
run measured stays in benchmarks/out/, so that ``--only ours`` is set beside the peers of before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.problems import PROBLEMS, load, prepare

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "out"


@dataclass(frozen=True)
class Entry:
    """Where a contestant runs: its module, and the peer's environment (None: this one)."""

    module: str
    environment: str | None = None

    @property
    def python(self):
        if self.environment is None:
            return Path(sys.executable)
        return ROOT / "benchmarks" / "peers" / self.environment / "bin" / "python"


ENTRIES = {
    "nbi": Entry("benchmarks.peer_nbi", "nbi"),
    "sbi": Entry("benchmarks.peer_sbi", "sbi"),
    "sbi-cnn": Entry("benchmarks.peer_sbi", "sbi"),
    "bayesflow": Entry("benchmarks.peer_bayesflow", "bayesflow"),
    "ours": Entry("benchmarks.ours"),
}


def main():
    """Run what was asked for, and print everything measured under these settings."""
    options = _arguments()
    problem = PROBLEMS[options.problem]
    data_path = prepare(problem, OUT, options.n_sims)
    for name in options.only:
        _run(name, data_path, options)
    paths = {name: _result_path(name, options) for name in ENTRIES}
    reports = {name: json.loads(p.read_text()) for name, p in paths.items() if p.exists()}
    text = _page(reports, load(data_path), problem, options)
    OUT.joinpath(f"{_setting(options)}.md").write_text(text)
    print(text)


def _run(name, data_path, options):
    entry = ENTRIES[name]
    if not entry.python.exists():
        sys.exit(f"{name} has no environment yet. Make it with: benchmarks/setup_peers.sh")
    command = [entry.python, "-m", entry.module, "--name", name, "--problem", options.problem]
    command += ["--data", data_path, "--out", _result_path(name, options)]
    for budget in ("n_sims", "epochs", "batch", "threads"):
        command += [f"--{budget.replace('_', '-')}", getattr(options, budget)]
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads)
    )
    print(f"{name} ...", file=sys.stderr, flush=True)
    subprocess.run([str(part) for part in command], cwd=ROOT, env=os.environ | threads, check=True)


def _page(reports, data, problem, options):
    """Return the table in markdown: a row per figure, a column per package."""
    columns = {name: _column(report) for name, report in reports.items()}
    peers = [report for name, report in reports.items() if name != "ours"]
    if peers:
        goal = min(lap["nll_validation"] for peer in peers for lap in peer["history"])
        for name, report in reports.items():
            columns[name][f"training s (CPU s) to a peer's best validation NLL, {goal:.3f}"] = (
                _time_to(goal, report["history"])
            )
    lines = [
        f"# {options.problem}: {options.n_sims} simulations, {options.epochs} epochs, "
        f"batch {options.batch}, {options.threads} thread(s)",
        "",
        "| figure | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for row in next(iter(columns.values()), {}):
        lines.append(f"| {row} | " + " | ".join(c[row] for c in columns.values()) + " |")
    exact = _exact_nll(problem, data)
    lines += [
        "",
        f"NLL in nats, units of theta; the exact posterior's on the test: {exact:.3f}.",
        "",
    ]
    lines += [f"- {name}: {report['configuration']}" for name, report in reports.items()]
    return "\n".join(lines) + "\n"


def _column(report):
    """Return the figures of one package, row title to text."""
    ratio, ratio_error = report["evidence_ratio"], report["evidence_ratio_error"]
    return {
        "version": f"{report['package']} {report['version']}",
        "simulation s": _text(report["simulation_seconds"]),
        "training s (CPU s)": _pair(report["training_seconds"], report["training_cpu_seconds"]),
        "validation NLL": f"{report['nll_validation']:.3f}",
        "test NLL": f"{report['nll_test']:.3f} ± {report['nll_test_error']:.3f}",
        "test NLL, cut at the prior": f"{report['nll_test_inside_prior']:.3f}",
        "draws outside the prior": f"{report['draws_outside_prior']:.1%}",
        "median ESS of 1000 draws": f"{report['ess_median']:.0f}",
        "5 % quantile of it": f"{report['ess_quantile_05']:.1f}",
        "evidence / exact": f"{ratio:.3f} ± {ratio_error:.3f}",
        "intervals that hold the truth": ", ".join(
            f"{own:.1%} of {level}" for level, own in report.get("coverage", {}).items()
        ),
        "objects/s (per CPU s)": _rate(report["predict"]),
        "weighted objects/s (per CPU s)": _rate(report.get("predict_weighted")),
        "peak RSS, MB": f"{report['peak_rss_mb']:.0f}",
        "load of the machine": _pair(
            report["machine"]["load_before"], report["machine"]["load_after"]
        ),
        "measured": report["finished"],
    }


def _time_to(goal, history):
    for lap in history:
        if lap["nll_validation"] <= goal:
            return _pair(lap["seconds"], lap["cpu_seconds"])
    return "never"


def _exact_nll(problem, data):
    pairs = zip(data.theta_test, data.x_test, strict=True)
    log_joint = [problem.log_likelihood(theta, x) + problem.log_prior(theta) for theta, x in pairs]
    return float(np.mean(data.log_evidence_test - log_joint))


def _text(number):
    return "–" if number is None else f"{number:.1f}"


def _pair(first, second):
    return f"{first:.1f} ({second:.1f})"


def _rate(rate):
    return (
        "–" if rate is None else _pair(rate["objects_per_second"], rate["objects_per_cpu_second"])
    )


def _setting(options):
    names = (options.problem, options.n_sims, options.epochs, options.batch, options.threads)
    return "{}-{}x{}-batch{}-threads{}".format(*names)


def _result_path(name, options):
    return OUT / f"{_setting(options)}-{name}.json"


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="sine", choices=sorted(PROBLEMS))
    for name, default in (("n-sims", 20_000), ("epochs", 40), ("batch", 64), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(ENTRIES),
        help=f"names joined by commas, of {','.join(ENTRIES)}",
    )
    options = parser.parse_args()
    unknown = sorted(set(options.only) - set(ENTRIES))
    if unknown:
        parser.error(f"--only must name packages of {list(ENTRIES)}, but names {unknown}")
    return options


if __name__ == "__main__":
    main()
