"""The same draws as before? ``python -m benchmarks.behaviour --store FILE`` or ``--against FILE``.

Before files are moved or code is put together otherwise, store what twelve problems come to:
draws, weights, statuses, flags and log Z of every way there is to an answer. Afterwards compare:
"same" means to the last bit; where it is not, the largest difference is printed. One thread, for
sums depend on how they are split. A run takes some forty CPU seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.models.microlensing import point_lens

T = np.linspace(0, 1, 40)
WAVE = nbi.Prior(
    {"amplitude": uniform(1, 4), "frequency": uniform(6, 30), "phase": nbi.Circular(2 * np.pi)}
)
LENS = {"t0": uniform(20, 60), "log_u0": uniform(-2, 2), "log_tE": uniform(0.5, 1.5)}
DESIGN = 0.6 * np.random.default_rng(0).normal(size=(3, 12))
LINE = {name: norm(0, 1) for name in "abc"}

Answers = nbi.Posterior | nbi.Posteriors


def wave(theta, t):
    """Return sines, in torch."""
    amplitude, frequency, phase = (theta[:, i : i + 1] for i in range(3))
    return amplitude * torch.sin(frequency * t + phase)


def wave_numpy(theta, t):
    """Return sines, as a black box."""
    theta, t = np.asarray(theta), np.asarray(t)
    return theta[:, :1] * np.sin(theta[:, 1:2] * t + theta[:, 2:])


def line(theta):
    """Return linear data."""
    return theta @ torch.as_tensor(DESIGN)


def lens(theta, t):
    """Return magnifications."""
    return point_lens(torch.cat([theta[:, :1], 10 ** theta[:, 1:3]], 1), t)


def waves(n: int, seed: int = 1) -> nbi.Observations:
    """Return sines measured unequally well, with gaps."""
    rng = np.random.default_rng(seed)
    error = rng.uniform(0.2, 1.0, (n, 1)) * np.ones_like(T)
    x = wave_numpy(WAVE.sample(n, rng), T) + error * rng.normal(size=error.shape)
    return nbi.Observations.from_arrays(
        x, error, t=np.tile(T, (n, 1)), bad=rng.random(x.shape) < 0.1
    )


def fitted(simulator: Callable = wave, **options: object) -> nbi.Engine:
    """Return an engine that hardly knows the sines, so that its objects climb."""
    engine = nbi.Engine(simulator, WAVE, noise=nbi.GaussianNoise(), n_jobs=1, **options)
    return engine.fit(n_sims=2000, n_epochs=3, observations=waves(50, seed=2))


def straight(**options: object) -> nbi.Engine:
    """Return an engine of a linear problem."""
    return nbi.Engine(line, LINE, noise=0.5, featurizer="resnet", **options)


def chains_only(ladder: nbi.Ladder) -> nbi.Ladder:
    """Return a ladder on which nothing but chains can certify."""
    return replace(ladder, escalate="always")


def problems(folder: Path) -> Iterator[tuple[str, Answers]]:
    """Yield the name and the answers of each problem."""
    x = np.random.default_rng(3).normal(size=12)
    seven = waves(7)

    engine = straight().fit(n_sims=3000, n_epochs=8)
    yield "amortized, one object", engine.predict(x)
    yield "another prior", engine.predict(x, prior={name: norm(0.3, 0.8) for name in "abc"})
    engine.save(folder / "line.nbi")
    loaded = nbi.Engine.load(folder / "line.nbi", line)
    yield "saved and loaded", loaded.predict(x, seed=5)
    posterior = engine.predict(x, seed=6)
    posterior.save(folder / "posterior.h5")
    yield "posterior loaded", nbi.Posterior.load(folder / "posterior.h5")

    engine = fitted()
    yield "refined", engine.predict_many(seven)
    engine.ladder = chains_only(nbi.Ladder())
    yield "HMC after all", engine.predict_many(seven[:3])
    engine.ladder = None
    yield "summaries only", engine.predict_many(waves(30, seed=4), keep=0)
    box = fitted(wave_numpy, ladder=chains_only(nbi.Ladder()))
    yield "black box, ensemble", box.predict_many(seven[:2])

    one = {"n_sims": 800, "x_obs": x, "ess_target": 1500}
    yield "sequential", straight().fit(n_rounds=12, **one).posterior_
    yield "snpe-is", straight().fit(n_rounds=4, method="snpe-is", **one).posterior_
    yield "tsnpe", straight().fit(n_rounds=3, n_epochs=10, method="tsnpe", **one).posterior_
    yield "sequential, lens", lens_fit()


def lens_fit() -> nbi.Posterior:
    """Return a sequential fit of one event with fluxes profiled and a jitter."""
    rng = np.random.default_rng(8)
    t = np.sort(rng.uniform(0, 100, 60))
    theta = torch.tensor([[50.0, -0.7, 1.2]], dtype=torch.float64)
    curve = lens(theta, torch.as_tensor(t)).numpy().reshape(-1)
    x = curve + 0.05 * rng.normal(size=60)
    prior = {**LENS, "jitter": uniform(0, 0.1)}
    noise = nbi.GaussianNoise(jitter="jitter")
    simulator = lambda theta, t: lens(theta[:, :3], t)  # noqa: E731
    engine = nbi.Engine(simulator, prior, noise=noise)
    fit = engine.fit(
        n_sims=1000, n_rounds=12, x_obs=x, x_err=np.full(60, 0.05), t=t, ess_target=1000,
        max_sims=8000,
    )  # fmt: skip
    return fit.posterior_


def figures(answers: Answers) -> dict[str, np.ndarray]:
    """Return everything that must stay as it is."""
    if isinstance(answers, nbi.Posteriors) and answers.draws is None:
        table = answers.to_table()
        return {name: np.asarray(table[name]) for name in table.colnames if name != "seconds"}
    each = [answers] if isinstance(answers, nbi.Posterior) else list(answers)
    return {
        "status": np.array([p.status.name for p in each]),
        "settled_by": np.array([p.rungs[-1].name for p in each]),
        "flags": np.array([" ".join(sorted(f.name for f in p.flags)) for p in each]),
        "log_evidence": np.array([p.log_evidence for p in each]),
        "k_hat": np.array([p.k_hat for p in each]),
        "samples": np.concatenate([p.samples for p in each]),
        "log_weights": np.concatenate([p.log_weights for p in each]),
    }


def difference(now: np.ndarray, before: np.ndarray) -> str:
    """Return what differs, in words; nothing where nothing does."""
    if now.shape != before.shape:
        return f"shape {before.shape} has become {now.shape}"
    if now.dtype.kind in "US":
        changed = now != before
        return f"{before[changed]} has become {now[changed]}" if changed.any() else ""
    if np.array_equal(now, before, equal_nan=True):
        return ""
    return f"differs by {np.nanmax(np.abs(now - before)):.3g} at most"


def main() -> int:
    """Store or compare, and return how many problems differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--store", type=Path)
    which.add_argument("--against", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", nbi.UncertifiedWarning)
    before = {} if options.against is None else dict(np.load(options.against))
    found, n_changed = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for name, answers in problems(Path(folder)):
            own = {f"{name}: {key}": value for key, value in figures(answers).items()}
            found |= own
            changes = [f"{key} {difference(v, before[key])}" for key, v in own.items()
                       if before and difference(v, before[key])]  # fmt: skip
            n_changed += bool(changes)
            statuses = ", ".join(sorted(set(own[f"{name}: status"].tolist())))
            print(name, statuses, *changes or ["same"] * bool(before), sep="; ", flush=True)
    if options.store is not None:
        np.savez_compressed(options.store, **found)
    return n_changed


if __name__ == "__main__":
    sys.exit(main())
