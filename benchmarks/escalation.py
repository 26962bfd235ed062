"""Batched HMC against a loop, a straggler, and its peers: ``python -m benchmarks.escalation``.

The densities are correlated Gaussians of condition 1e4 in ten dimensions, each object with its own
covariance, and the posteriors of point-lens events of 117 points. 64 chains an object, eight
superchains of eight. What is compared runs by turns, so that other work on the machine hits all
alike; CPU seconds stand beside those on the wall. An effective draw is counted by
`nbi_plus.infer.samplers.diagnostics.bulk_ess`, of the worst parameter, for every contender.
blackjax runs in an environment of its own; see ``setup_peers.sh``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import emcee
import numpy as np
import torch
from torch import Tensor

from nbi_plus import GaussianNoise, launch
from nbi_plus.infer.samplers import hmc
from nbi_plus.infer.samplers.compiling import Compiler
from nbi_plus.infer.samplers.diagnostics import bulk_ess
from nbi_plus.infer.samplers.gradients import Gradients, LogProb
from nbi_plus.infer.samplers.hmc import HmcConfig
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.models.microlensing import Season, point_lens
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.target import Target

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / "benchmarks" / "peers" / "blackjax" / "bin" / "python"
N_SUPER, N_EACH = 8, 8
N_DIM, CONDITION = 10, 1e4
N_NIGHTS = 117
WIDE = 1.5  # starts and rough draws scatter so much more widely than the Gaussian
N_LOOPED = 12  # objects of the loop that are run; a gradient of the others costs the same
N_PEER = 16  # objects that blackjax samples
N_WALKERS, N_STEPS = 64, 3000  # of emcee
SEED = 3
ROWS = (64, 256, 512, 1024, 2048, 4096, 8192, 16_384)


# --- densities -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Densities of B objects, where their chains start, and what a peer must know of them.

    ``start`` is a rough mean (B, D) and Cholesky factor (B, D, D), the same for all contenders.
    """

    name: str
    log_prob: LogProb
    z0: Tensor
    start: dict[str, Tensor]
    arrays: dict[str, Tensor]
    rows: int | None = None

    def __len__(self):
        return len(self.z0)

    def take(self, low, high):
        """Return the objects low:high."""
        return replace(
            self,
            log_prob=lambda z, index: self.log_prob(z, index + low),
            z0=self.z0[low:high],
            start={k: v[low:high] for k, v in self.start.items()},
            arrays={k: v[low:high] for k, v in self.arrays.items()},
        )


def gaussian(n, device="cpu", dtype=torch.float64):
    """Return correlated Gaussians; the rough start knows 64 draws that are too wide."""
    rng = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(_normal(rng, n, N_DIM, N_DIM))[0]
    variances = torch.logspace(-0.5, 0.5, N_DIM, dtype=torch.float64) ** np.log10(CONDITION)
    precision = (axes / variances @ axes.mT).to(device)
    factor = WIDE * axes * variances.sqrt()
    z0 = (_normal(rng, n, N_SUPER, N_DIM) @ factor.mT).repeat_interleave(N_EACH, 1)
    rough = _normal(rng, n, 64, N_DIM) @ factor.mT
    start = Whitening.of(rough, torch.full((n, 64), 1 / 64, dtype=torch.float64))
    cast = precision.to(dtype)

    def log_prob(z, index):
        own = z.to(dtype)
        return (-0.5 * (own @ cast[index] * own).sum(-1)).to(z.dtype)

    return Problem("gaussian", log_prob, z0.to(device), _named(start, device),
                   {"precision": precision})  # fmt: skip


def lens(n, device="cpu", dtype=torch.float64):
    """Return point-lens posteriors; the rough start knows the scatter of the starts alone."""
    season = Season(n_nights=N_NIGHTS)
    observations, theta = season.observe(n)
    prior, batch = season.prior, observations.batch()
    simulator = bind_simulator(point_lens, prior, batch)
    noise = GaussianNoise().bind(True, prior.names)
    target = Target(prior, simulator, noise, batch.to(device))
    target = target.single() if dtype == torch.float32 else target
    truth = torch.as_tensor(prior.to_latent(theta))
    z0 = truth[:, None] + 0.02 * _normal(torch.Generator().manual_seed(2), n, N_SUPER, 3)
    sides = np.array([prior.transform(np.full(3, edge)) for edge in (0.0, 1.0)])
    sides[:, 2] = np.log(sides[:, 2])
    arrays = {"x": batch.x[:, 0], "x_err": batch.x_err[:, 0]}
    common = {"t": batch.coords["t"], "low": torch.tensor(sides[0]), "high": torch.tensor(sides[1])}
    arrays |= {k: v.expand(n, -1) for k, v in common.items()}
    rows = launch.of(torch.device(device)).gradient_numbers // N_NIGHTS
    start, chains = Whitening.of_starts(z0), z0.repeat_interleave(N_EACH, 1).to(device)
    return Problem("lens", target.log_prob, chains, _named(start, device), arrays, rows)


PROBLEMS = {"gaussian": gaussian, "lens": lens}


def with_straggler(problem):
    """Return the problem with its last density replaced by a funnel, which HMC cannot finish."""
    last = len(problem) - 1

    def funnel(z):
        log_sd = z[..., :1]
        rest = z[..., 1:] * torch.exp(-log_sd)
        return -0.5 * ((log_sd[..., 0] / 3) ** 2 + rest.square().sum(-1)) - (
            (z.shape[-1] - 1) * log_sd[..., 0]
        )

    def log_prob(z, index):
        value = problem.log_prob(z, index)
        rows = (index == last).nonzero()[:, 0]
        return value.index_copy(0, rows, funnel(z[rows])) if len(rows) else value

    return replace(problem, log_prob=log_prob)


def _normal(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _named(whitening, device):
    return {"mean": whitening.mean[:, 0].to(device), "factor": whitening.factor.to(device)}


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Seconds on the wall and of this process."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other):
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def scaled(self, factor):
        return Spent(self.wall * factor, self.cpu * factor)


@dataclass(frozen=True)
class Row:
    """One contender on one problem: what its objects cost together."""

    section: str
    problem: str
    contender: str
    objects: int
    gradients: float
    ess: float | None  # summed over objects, of the worst parameter of each
    spent: Spent
    note: str = ""

    @property
    def figures(self):
        """Everything, with the rates that follow, on the wall and per CPU second."""
        found = asdict(self) | {
            "objects/s": self.objects / self.spent.wall,
            "objects/cpu s": self.objects / self.spent.cpu,
            "gradients/s": self.gradients / self.spent.wall,
            "gradients/cpu s": self.gradients / self.spent.cpu,
        }
        if self.ess is None:
            return found
        return found | {
            "ess/s": self.ess / self.spent.wall,
            "ess/cpu s": self.ess / self.spent.cpu,
            "calls per 1000 draws": 1000 * self.gradients / self.ess,
            "cpu s per 1000 draws": 1000 * self.spent.cpu / self.ess,
        }


def timed(function: Callable):
    """Return what a function returns, and what it spent, in compilers too."""
    _wait()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    found = function()
    _wait()
    return found, Spent(time.perf_counter() - wall, _cpu_seconds() - cpu)


def _cpu_seconds():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(problem, config=None):
    """Return the result of `hmc.sample`, and what it spent."""
    return timed(lambda: hmc.sample(problem.log_prob, problem.z0, N_SUPER, seed=SEED,
                                    rows=problem.rows, config=config, **problem.start))  # fmt: skip


def row_of(section, problem, contender, result, spent, note=""):
    gradients, ess = float(result.n_gradients.sum()), float(result.ess.amin(1).sum())
    return Row(section, problem.name, contender, len(problem), gradients, ess, spent, note)


# --- sections ------------------------------------------------------------------------------------


def launches(options):
    """Yield what one gradient costs in launches of different size, best of five turns."""
    for make in PROBLEMS.values():
        problem = make(256)
        whitening = Whitening(problem.start["mean"][:, None], problem.start["factor"])
        u, best = whitening.to(problem.z0), dict.fromkeys(ROWS, Spent(np.inf, np.inf))
        for _ in range(options.repeats + 2):
            for rows in ROWS:
                n = max(1, rows // u.shape[1])
                own = Whitening(whitening.mean[:n], whitening.factor[:n])
                spent = _gradient_cost(problem.log_prob, u[:n], own)
                best[rows] = min(best[rows], spent, key=lambda s: s.cpu)
        for rows, spent in best.items():
            yield Row("launches", problem.name, f"{rows} rows", rows // 64, rows, None, spent,
                      f"{1e6 * spent.cpu / rows:.2f} us a gradient")  # fmt: skip


def _gradient_cost(log_prob, u, whitening):
    gradients, index = Gradients(log_prob, u.shape[1] * len(u)), torch.arange(len(u))
    n_calls = max(1, 64 // len(u))
    _, spent = timed(lambda: [gradients(u, index, whitening) for _ in range(n_calls)])
    return spent.scaled(1 / n_calls)


def batch(options):
    """Yield objects together, and one after another."""
    for make in PROBLEMS.values():
        problem = make(256)
        for n in options.objects:
            yield from _batch_and_loop(problem.take(0, n), options.repeats)


def _batch_and_loop(problem, repeats):
    """Yield both, run by turns: a piece of the loop, then the batch."""
    n = len(problem)
    looped = np.unique(np.linspace(0, n - 1, min(n, N_LOOPED)).astype(int)).tolist()
    ours(problem.take(0, 1))  # the first call pays for what is made once
    together, alone, single = Spent(), Spent(), {}
    for pieces in np.array_split(looped, repeats):
        for i in pieces.tolist():
            single[i], spent = ours(problem.take(i, i + 1))
            alone += spent
        result, spent = ours(problem)
        together += spent
    share = sum(float(found.n_gradients[0]) for found in single.values())
    share /= float(result.n_gradients.sum())  # of the work of all objects
    together, alone = together.scaled(1 / repeats), alone.scaled(1 / share)
    away = max(float((single[i].samples[0] - result.samples[i]).abs().max()) for i in looped)
    done = f"{int(result.converged.sum())} of {n} converged"
    yield row_of("batch", problem, "loop", result, alone, f"{len(looped)} objects run")
    yield row_of("batch", problem, "batched", result, together,
                 f"{done}; {_ratio(alone, together)} the objects/s of the loop; "
                 f"draws differ by {away:.1g}")  # fmt: skip


def straggler(options):
    """Yield a batch with and without one object that never converges."""
    plain = gaussian(max(options.objects))
    hard, without, within = with_straggler(plain), Spent(), Spent()
    wall, others = 0.0, plain.take(0, len(plain) - 1)
    for _ in range(options.repeats):
        result, spent = ours(others)
        without += spent
        clock = _LastCall(hard.log_prob, len(plain), plain.z0.device)
        found, spent = ours(replace(hard, log_prob=clock))
        within += spent
        wall += float(clock.seconds[:-1].max())
    n = 1 / options.repeats
    without, within, wall = without.scaled(n), within.scaled(n), wall * n
    yield row_of("straggler", others, "without", result, without)
    steps, calls = int(found.n_steps[-1]), int(found.n_gradients[-1])
    verdict = "converged" if bool(found.converged[-1]) else "did not converge"
    yield row_of("straggler", hard, "with", found, within,
                 f"{_ratio(within, without)} of the time without; the straggler {verdict}, "
                 f"{steps} steps, {calls} gradients")  # fmt: skip
    each = Spent(wall, within.cpu * wall / within.wall)
    found = replace(found, ess=found.ess[:-1], n_gradients=found.n_gradients[:-1])
    yield row_of("straggler", others, "with, the others done", found, each,
                 f"{_ratio(each, without)} of the time without")  # fmt: skip


class _LastCall:
    """A log-density that notes when each object was last asked for, in seconds from now."""

    def __init__(self, log_prob, n, device):
        self.log_prob, self.start = log_prob, time.perf_counter()
        self.seconds = torch.zeros(n, dtype=torch.float64, device=device)

    def __call__(self, z, index):
        value = self.log_prob(z, index)
        self.seconds[index] = time.perf_counter() - self.start
        return value


def blackjax(options):
    """Yield ours, alone and batched, beside blackjax: the same starts, coordinates and steps."""
    config = HmcConfig(max_laps=1)
    for make in PROBLEMS.values():
        problem = make(N_PEER)
        single, result, together, alone = [], None, Spent(), Spent()
        for i in range(N_PEER):
            found, spent = ours(problem.take(i, i + 1), config)
            single.append(found)
            alone += spent
        result, together = ours(problem, config)
        large = make(max(options.objects))
        found, spent = ours(large, config)
        yield row_of("blackjax", problem, "ours, one at a time", result, alone)
        yield row_of("blackjax", problem, f"ours, {N_PEER} at once", result, together)
        yield row_of("blackjax", large, f"ours, {len(large)} at once", found, spent)
        yield from _compiled(problem, config)
        yield from _compiled(large, config)
        n_steps = (sum(config.windows), int(result.n_steps.max()))
        for metric in ("none", "diagonal"):
            for at_once in (1, N_PEER):
                yield from _peer(problem, options.peer, n_steps, at_once, metric)
        yield from _peer(large, options.peer, n_steps, 1, "diagonal")


def _compiled(problem, config):
    """Yield ours as compiled code: found on disk, and with what compiling it took before."""
    compiler = Compiler(problem.log_prob, 0)
    index = torch.arange(len(problem))
    _, compiling = timed(lambda: compiler(problem.z0, index))
    rows = problem.rows or launch.KINDS["cpu"].gradient_rows
    plain = Gradients(problem.log_prob, rows)
    quick = Gradients(problem.log_prob, rows, compiler)
    own = Whitening.none(problem.z0)
    rates = [min(timed(lambda g=g: g(problem.z0, index, own))[1].cpu for _ in range(9))
             for g in (plain, quick)]  # fmt: skip
    result, spent = ours(problem, replace(config, compile_after=0))
    note = f"compiled, a gradient costs {rates[1] / rates[0]:.2f} of a plain one"
    name = f"ours, {len(problem)} at once, compiled"
    yield row_of("blackjax", problem, f"{name} before", result, spent, note)
    yield row_of("blackjax", problem, f"{name}, compiling too", result, spent + compiling,
                 f"compiles for {compiling.cpu:.1f} CPU s")  # fmt: skip


def _peer(problem, python, n_steps, at_once, metric):
    """Yield what blackjax does in its own environment, without and with compiling."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "in.npz"), Path(folder, "out.npz")
        tensors = problem.arrays | problem.start | {"z0": problem.z0}
        arrays = {k: v.cpu().numpy() for k, v in tensors.items()}
        np.savez(data, problem=problem.name, **arrays)
        command = [python, "-m", "benchmarks.peer_blackjax", "--data", data, "--out", out]
        command += ["--n-warm", n_steps[0], "--n-draws", n_steps[1]]
        command += ["--at-once", at_once, "--metric", metric, "--seed", SEED]
        single = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
        subprocess.run([str(c) for c in command], cwd=ROOT, env=os.environ | single, check=True)
        with np.load(out) as file:
            found = dict(file)
    _check_density(problem, found["log_prob"])
    draws = torch.as_tensor(found["draws"])
    n_calls = found["gradients"].sum()
    spent = Spent(*found["seconds"].sum(0).tolist())
    compiling = Spent(*found["compile_seconds"].tolist())
    off = _off(draws, problem)
    name = f"blackjax {found['version']}, metric {metric}, {at_once} at once"
    figures = ("blackjax", problem.name)
    ess = float(bulk_ess(draws).amin(1).sum())
    yield Row(*figures, name, len(draws), float(n_calls), ess, spent, off)
    yield Row(*figures, f"{name}, compiling too", len(draws), float(n_calls), ess,
              spent + compiling, f"compiles for {compiling.cpu:.1f} CPU s")  # fmt: skip


def _check_density(problem, theirs):
    """Exit unless both densities differ by a constant alone at the starts."""
    own = problem.log_prob(problem.z0, torch.arange(len(problem))).cpu().numpy()
    shift = theirs - own
    worst = np.ptp(shift, axis=1).max()
    if not worst < 1e-6 * np.abs(own).max():
        sys.exit(f"The densities of {problem.name} disagree by {worst:.2g}: nothing is compared.")


def ensembles(options):  # noqa: ARG001 - sections are called alike
    """Yield emcee's default moves and moves by differential evolution, on one object."""
    moves = {
        "stretch": emcee.moves.StretchMove(),
        "differential evolution": [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)],
    }
    for make in PROBLEMS.values():
        problem = make(1)
        result, spent = ours(problem)
        yield row_of("emcee", problem, "ours", result, spent)
        for name, move in moves.items():
            yield _ensemble(problem, f"emcee, {name}", move)


def _ensemble(problem, name, move):
    """Run walkers from scattered starts; the first third is left out, and counted."""
    index = torch.zeros(1, dtype=torch.int64)
    n_dim = problem.z0.shape[-1]
    scatter = _normal(torch.Generator().manual_seed(SEED), N_WALKERS, n_dim)
    start = (problem.start["mean"] + scatter @ problem.start["factor"][0].mT).numpy()

    @torch.no_grad()
    def log_prob(z):
        return problem.log_prob(torch.as_tensor(z)[None], index)[0].numpy()

    sampler = emcee.EnsembleSampler(N_WALKERS, n_dim, log_prob, moves=move, vectorize=True)
    sampler.random_state = np.random.RandomState(SEED).get_state()  # noqa: NPY002
    _, spent = timed(lambda: sampler.run_mcmc(start, N_STEPS))
    chain = sampler.get_chain(discard=N_STEPS // 3)
    draws = torch.as_tensor(np.ascontiguousarray(chain.transpose(1, 0, 2)))[None]
    ess = float(bulk_ess(draws).amin())
    n_calls, note = N_WALKERS * N_STEPS, _off(draws, problem)
    return Row("emcee", problem.name, name, 1, n_calls, ess, spent, note)


def device(options):
    """Yield batches on a device in both precisions, beside one on the CPU in double."""
    for make in PROBLEMS.values():
        base = make(min(256, max(options.objects)))
        ours(base.take(0, 1))
        result, there = ours(base)
        yield row_of("device", base, "cpu, float64", result, there)
        for dtype in (torch.float64, torch.float32):
            whole = make(max(options.objects), options.device, dtype)
            ours(whole.take(0, min(options.objects)))  # warms up
            for n in options.objects:
                result, here = ours(whole.take(0, n))
                faster = there.wall / len(base) * n / here.wall
                done = f"{int(result.converged.sum())} of {n} converged"
                name = f"{options.device}, {str(dtype).removeprefix('torch.')}"
                yield row_of("device", whole.take(0, n), name, result, here,
                             f"{done}; {faster:.1f} times the objects/s of the CPU")  # fmt: skip


SECTIONS = {
    "launches": launches, "batch": batch, "straggler": straggler, "blackjax": blackjax,
    "emcee": ensembles, "device": device,
}  # fmt: skip


def _ratio(first, second):
    return f"{first.wall / second.wall:.2f} (CPU {first.cpu / second.cpu:.2f}) times"


def _off(draws, problem):
    """Say how far the variances of Gaussians are off: whether draws are worth their number."""
    if problem.name != "gaussian":
        return ""
    flat = draws.flatten(1, 2)
    precision = problem.arrays["precision"].cpu()
    square = ((flat @ precision) * flat).sum(-1).mean(1) / flat.shape[-1]
    return f"mean chi-square / D {float(square.mean()):.3f}"


# --- reporting -----------------------------------------------------------------------------------


def main():
    """Run what was asked for, print a table for each section, and keep all figures."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    found = []
    for name in options.only:
        rows = []
        for row in SECTIONS[name](options):
            print(f"{name}: {row.problem}, {row.contender} ...", file=sys.stderr, flush=True)
            rows.append(row.figures)
        print(f"\n## {name}\n\n{table(rows)}", flush=True)
        found += rows
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


COLUMNS = (
    "objects", "gradients/s", "gradients/cpu s", "objects/s", "objects/cpu s", "ess/s", "ess/cpu s",
    "calls per 1000 draws", "cpu s per 1000 draws",
)  # fmt: skip


def table(rows):
    """Return figures in markdown, a row each; draws are effective ones."""
    titles = ("problem", "contender", *COLUMNS, "wall s", "cpu s", "note")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for r in rows:
        numbers = [r.get(column) for column in COLUMNS] + list(r["spent"].values())
        texts = ["–" if number is None else _text(number) for number in numbers]
        lines.append("| " + " | ".join([r["problem"], r["contender"], *texts, r["note"]]) + " |")
    return "\n".join(lines)


def _text(number):
    return f"{number:.0f}" if number >= 1000 else f"{number:.3g}"


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="another one: its section alone")
    parser.add_argument("--objects", type=int, nargs="+", help="default 1 16 256, or 16 256 4096")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", type=Path, default=PEER, help="python that has blackjax")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS))
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.objects = options.objects or ([1, 16, 256] if on_cpu else [16, 256, 4096])
    options.only = options.only or [s for s in SECTIONS if (s == "device") != on_cpu]
    if "blackjax" in options.only and not options.peer.exists():
        parser.error("blackjax has no environment: run benchmarks/setup_peers.sh blackjax first")
    return options


if __name__ == "__main__":
    main()
