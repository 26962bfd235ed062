"""Demo: train on simulated events, answer new ones, and judge the answers."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from nbi_plus import plots
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.problem.noise.points import GaussianNoise
from nbi_plus.trust.calibration import Calibration, sbc

if TYPE_CHECKING:
    from astropy.table import QTable
    from matplotlib.figure import Figure

_N_SIMS, _N_EPOCHS, _BATCH_SIZE, _LR = 25_000, 25, 128, 1e-2
_FLOW = {"n_blocks": 3}  # enough for posteriors of one mode, and faster
_N_EVENTS, _N_CALIBRATION = 64, 300


@dataclass(frozen=True)
class Demo:
    """What the demo found: a trained engine, its answers to events of known truth, the verdict."""

    engine: Engine
    events: Observations
    truths: NDArray[np.float64]
    posteriors: Posteriors
    calibration: Calibration | None

    @property
    def example(self) -> Posterior | None:
        """The certified event of middling precision, or None where none is certified."""
        rows = np.flatnonzero(self.posteriors.certified)
        if not len(rows):
            return None
        relative = self.posteriors.std[rows, 2] / self.posteriors.mean[rows, 2]
        return self.posteriors[int(rows[np.argsort(relative)[len(rows) // 2]])]


def add_options(demo: argparse.ArgumentParser) -> None:
    """Tell a parser what the demo wants to know."""
    demo.add_argument("--out", type=Path, default=Path("nbi-plus-demo"), help="folder to write to")
    demo.add_argument("--seed", type=int, default=0, help="of everything random")
    numbers = {
        "n-sims": (_N_SIMS, "simulations to train on"),
        "n-epochs": (_N_EPOCHS, "passes over them"),
        "n-events": (_N_EVENTS, "events to answer and print"),
        "n-calibration": (_N_CALIBRATION, "further events that only calibration sees"),
    }
    for name, (default, text) in numbers.items():
        demo.add_argument(f"--{name}", type=count, default=default, help=text)


def count(text: str) -> int:
    """Return a positive number, or tell argparse what is wrong with it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {value}")
    return value


def run(options: argparse.Namespace) -> int:
    """Train, answer, print and write."""
    began = time.perf_counter()
    with _one_thread():
        found = _found(options, began)
    print(_verdicts(found))
    if found.calibration is not None:
        print(f"\n{found.calibration.report}")
    options.out.mkdir(parents=True, exist_ok=True)
    _catalogue(found).write(options.out / "catalogue.ecsv", overwrite=True)
    written = ["catalogue.ecsv"]
    try:
        for name, figure in _figures(found).items():
            figure.savefig(options.out / name, bbox_inches="tight")
            written.append(name)
    except ImportError as error:
        print(f"\nNo pictures: {error}")
    print(f"\nWrote {', '.join(written)} to {options.out}{_elapsed(began)}")
    return 0


def _found(options: argparse.Namespace, began: float) -> Demo:
    """Simulate a season, train for it, and answer its events."""
    from nbi_plus.models.microlensing import Season, point_lens  # astropy's time, for a demo alone

    season = Season()
    n = options.n_events
    seen, truths = season.observe(n + options.n_calibration, options.seed)
    print(
        f"Point-lens events, {season.n_nights} nights, errors between "
        f"{season.best_error:.0%} and {season.worst_error:.0%} of the baseline.\n"
        f"Training on {options.n_sims} simulations for {options.n_epochs} epochs ..."
    )
    noise = GaussianNoise()
    engine = Engine(point_lens, season.prior, noise=noise, flow=_FLOW, seed=options.seed)
    engine.fit(
        options.n_sims,
        n_epochs=options.n_epochs,
        observations=seen,
        batch_size=min(_BATCH_SIZE, options.n_sims),
        lr=_LR,
    )
    print(f"Trained{_elapsed(began)}\n")
    posteriors = engine.predict_many(seen)
    enough = posteriors.certified.sum() >= 2
    calibration = sbc(posteriors, truths, seed=options.seed) if enough else None
    return Demo(engine, seen[:n], truths[:n], posteriors[:n], calibration)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread, as many as before afterwards.

    So small a network gains little from more, and loses a factor where cores are shared.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _verdicts(found: Demo) -> str:
    """Return a line for each event, and the counts of statuses."""
    p = found.posteriors
    names = "".join(f"{f'{name} (truth)':>27}" for name in p.parameters.names)
    lines = [f"{'event':<11} {'status':<11} {'ess':>5} {'eff':>5} {'k_hat':>6} {'log Z':>8}{names}"]
    for i, status in enumerate(p.status):
        figures = (
            f"{p.ess[i]:5.0f} {p.efficiency[i]:5.2f} {p.k_hat[i]:6.2f} {p.log_evidence[i]:8.2f}"
        )
        rows = zip(p.mean[i], p.std[i], found.truths[i], strict=True)
        recovered = "".join(
            f"{_value(m, s, status.certified)} ({t:7.3f})".rjust(27) for m, s, t in rows
        )
        lines.append(f"{p.ids[i]:<11} {status.name:<11} {figures}{recovered}")
    counts = ", ".join(f"{n} {s}" for s, n in Counter(s.name for s in p.status).most_common())
    share = p.certified.mean()
    return "\n".join([*lines, "", f"{len(p)} events: {counts}. Certified: {share:.0%}."])


def _value(mean: float, sd: float, certified: bool) -> str:
    """Return mean and sd; nothing for an event whose draws are not to be trusted."""
    return f"{mean:.3f} +- {sd:.3f}" if certified else "-"


def _catalogue(found: Demo) -> QTable:
    """Return one row for each event, with its truth."""
    table = found.posteriors.to_table()
    for name, column in zip(found.posteriors.parameters.names, found.truths.T, strict=True):
        unit = getattr(table[f"{name}_mean"], "unit", None)
        table[f"{name}_true"] = column if unit is None else column * unit
    return table


def _figures(found: Demo) -> dict[str, Figure]:
    """Return the pictures by the names of their files: first of all data and what explains them."""
    figures = {} if found.example is None else _figures_of(found, found.example)
    figures["loss.png"] = plots.loss(found.engine.history_)
    if found.calibration is not None:
        figures["sbc.png"] = plots.ranks(found.calibration)
    return figures


def _figures_of(found: Demo, example: Posterior) -> dict[str, Figure]:
    """Return the pictures of one event."""
    from nbi_plus.models.microlensing import point_lens

    row = found.events.ids.tolist().index(example.id)
    truth, batch = found.truths[row], found.events[row : row + 1].batch()
    t = batch.coords["t"].numpy()
    predictive = plots.predictive(
        example,
        point_lens,
        t,
        batch.x[0, 0].numpy(),
        batch.x_err[0, 0].numpy(),
        grid=np.linspace(t.min(), t.max(), 1000),
        truth=truth,
        labels=("time [d]", "flux / baseline"),
    )
    return {
        "predictive.png": predictive,
        "corner.png": plots.corner(example, truths=truth),
        "weights.png": plots.weights(example),
    }


def _elapsed(began: float) -> str:
    return f" ({time.perf_counter() - began:.0f} s after the start)."
