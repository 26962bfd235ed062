"""Training: the only loop that changes a network's weights.

Data, noise and shuffling stay on the device; nothing is done per item. All randomness of an epoch
is keyed by (seed, epoch), so a run that was killed and resumed ends where an unbroken one would.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nbi_plus.arguments import real, whole
from nbi_plus.data.batch import Batch
from nbi_plus.learn.augmenting import Augmentation
from nbi_plus.learn.checkpoint import History, TrainingState, restore, save
from nbi_plus.learn.heads.density import LatentDensity
from nbi_plus.learn.losses import Loss, nll
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.learn.optimizer import FlatOptimizer
from nbi_plus.learn.ratio import Ratio
from nbi_plus.learn.sources import TrainingRows
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.random import (
    generator,
    preserved_random_state,
    reseed_global_generators,
    stage_key,
)
from nbi_plus.problem.simulator.cadence import Cadences
from nbi_plus.progress import progress as shown

_LOG = logging.getLogger("nbi_plus")

_FEWEST_STEPS = 1000  # of Muon: in 140 AdamW gets further, after 1400 rarely (benchmarks.heads)


class TrainingError(RuntimeError):
    """Training cannot go on; ``history`` holds the epochs until then."""

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


@dataclass(frozen=True)
class TrainConfig:
    """Chosen state of a training run.

    Attributes
    ----------
    n_epochs, batch_size : int
    lr : float
        Peak learning rate; it rises linearly over the first ``warmup`` of all steps and
        falls to zero as a cosine.
    weight_decay, clip : float
        Decay of weights; largest norm of the gradient.
    ema : float
        Decay of the running average of the weights; the average of the best epoch is kept.
    muon : bool, optional
        Whether matrices move as `FlatOptimizer` says, or all weights by AdamW. Default: where the
        density of an `Engine`, or a ratio, is trained for a thousand steps or more.
    patience : int
        Epochs without a better validation loss before training stops.
    val_fraction : float
        Share of the simulations that is never trained on.
    mixed_precision, compile : bool
        bfloat16 autocast of the featurizer, which a processor without units for it refuses, and
        torch.compile: for GPUs.
    """

    n_epochs: int = 100
    batch_size: int = 128
    lr: float = 5e-3
    warmup: float = 0.05
    weight_decay: float = 1e-4
    clip: float = 5.0
    ema: float = 0.998
    muon: bool | None = None
    patience: int = 30
    val_fraction: float = 0.1
    mixed_precision: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("n_epochs", "batch_size", "patience"):
            whole(name, getattr(self, name))
        for name in ("lr", "clip"):
            if not 0 < real(name, getattr(self, name)) < math.inf:
                raise ValueError(
                    f"{name} must be finite and positive, but is {getattr(self, name)!r}."
                )
        for name in ("warmup", "ema", "val_fraction"):
            if not 0 <= real(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} must lie in [0, 1), but is {getattr(self, name)!r}.")
        if not (self.val_fraction > 0 and real("weight_decay", self.weight_decay) >= 0):
            raise ValueError(
                "val_fraction must be positive and weight_decay not negative, but are "
                f"{self.val_fraction!r} and {self.weight_decay!r}."
            )
        if not (self.muon is None or isinstance(self.muon, bool)):
            raise ValueError(f"muon must be True, False or None, but is {self.muon!r}.")


class Source(Protocol):
    """Where noise-free training simulations come from."""

    @property
    def n_rows(self) -> int:
        """Number of simulations of one epoch."""

    def batches(self, epoch: int, batch_size: int, rng: torch.Generator) -> Iterator[TrainingRows]:
        """Yield batches of one epoch, on the device."""


@dataclass(frozen=True)
class TrainingTask:
    """What is trained on: simulations, and the noise and conditions that make data of them.

    Attributes
    ----------
    source : Source
        Training simulations.
    validation : TrainingRows
        Simulations that are never trained on.
    noise : Noise
        Bound noise model.
    cadences : Cadences
        Real or imagined objects whose errors, gaps and coordinates are imitated, on the device.
    loss : Loss
        What is minimised.
    augment : Augmentation or None
        What is done to noisy data, in training alone.
    """

    source: Source
    validation: TrainingRows
    noise: Noise
    cadences: Cadences
    loss: Loss = nll
    augment: Augmentation | None = None

    def observe(self, rows: TrainingRows, rng: torch.Generator) -> Batch:
        """Return noisy data of simulations."""
        seen, model = self.cadences.imitate(rows.owner, rows.shift, rows.model, rng)
        return self.noise.observe(model, seen, rows.theta, rng)

    def shown(self, rows: TrainingRows, rng: torch.Generator) -> Batch:
        """Return the data that a network is trained on."""
        batch = self.observe(rows, rng)
        return batch if self.augment is None else self.augment(batch, rows.theta, rng)


def train(
    network: PosteriorNetwork,
    task: TrainingTask,
    config: TrainConfig,
    seed: int,
    *,
    checkpoint: Path | None = None,
    callback: Callable[[History], None] | None = None,
    progress: bool | None = None,
) -> History:
    """Train a network in place, to the averaged weights of its best epoch.

    Parameters
    ----------
    network : PosteriorNetwork
        On the device of the problem.
    problem : TrainingTask
    config : TrainConfig
    seed : int
        Of batches and noise.
    checkpoint : Path, optional
        File written after each epoch; if it exists the run goes on from there.
    callback : callable, optional
        Called with the history after each epoch.
    progress : bool, optional
        See `nbi_plus.progress.progress`.

    Returns
    -------
    list of dict
        One entry an epoch: ``train_nll`` and ``val_nll`` (means of the loss), ``lr``, ``seconds``
        and ``n_bad``, the number of rows left out because data, parameters or loss were not finite.
    """
    with torch.enable_grad():
        n_steps = config.n_epochs * (task.source.n_rows // _batch_size(task, config))
        run = _start(network, config, n_steps)
        if checkpoint is not None and checkpoint.exists():
            restore(run, checkpoint)
        held_out = validation_data(task, seed)
        loss_of = _loss(network, task.loss, config)
        how = {"unit": "epochs", "done": len(run.history)}
        with shown("training", config.n_epochs, progress, **how) as bar:
            for epoch in range(len(run.history), config.n_epochs):
                if epoch - 1 - run.best_epoch >= config.patience:
                    _LOG.info("training stopped: no better epoch since %d", run.best_epoch)
                    break
                # dropout draws from the global generators: fits in several threads take turns
                with preserved_random_state(alone=True):
                    reseed_global_generators(stage_key(seed, f"epoch {epoch}"))
                    _epoch(run, task, loss_of, held_out, config, seed, epoch)
                last = run.history[-1]
                bar.step(note=f"loss {last['train_nll']:.3f}, held out {last['val_nll']:.3f}")
                if checkpoint is not None:
                    save(run, checkpoint)
                if callback is not None:
                    callback(copy.deepcopy(run.history))
    if run.best_epoch < 0:
        raise TrainingError(
            "training must reach a finite validation loss, but no epoch did "
            f"({len(run.history)} epochs). Look for extreme simulations, or lower lr.",
            run.history,
        )
    network.load_state_dict(run.best)
    network.eval()
    return run.history


def _batch_size(task: TrainingTask, config: TrainConfig) -> int:
    return min(int(config.batch_size), task.source.n_rows)


def _start(network: PosteriorNetwork, config: TrainConfig, n_steps: int) -> TrainingState:
    on_cpu = next(network.parameters()).device.type == "cpu"
    if config.mixed_precision and on_cpu and not _has_bfloat16():
        raise ValueError(
            "mixed_precision must be False on a processor without units for bfloat16 (AVX512-BF16 "
            "or AMX), where it is 50 to 80 times slower, but is True."
        )
    network.train()
    average = copy.deepcopy(network).eval()
    muon = config.muon
    if muon is None:  # regressions get smoother without
        muon = isinstance(network.flow, LatentDensity | Ratio) and n_steps >= _FEWEST_STEPS
    optimizer = FlatOptimizer(network, average, config.weight_decay, config.clip, muon=muon)
    average.requires_grad_(False)
    return TrainingState(network, average, optimizer, best=copy.deepcopy(network.state_dict()))


def _has_bfloat16() -> bool:
    """Say whether this processor multiplies bfloat16; torch tells it in no public way."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


@torch.no_grad()
def validation_data(task: TrainingTask, seed: int) -> tuple[Tensor, Batch]:
    """Return held-out z and noisy data: noise unlike any in training, the same at every epoch.

    Data that are not finite are left out: one of them would make every validation loss NaN.
    """
    rows = task.validation
    batch = task.observe(rows, generator(seed, "validation", rows.z.device))
    good = _finite(rows.z, batch)
    if not good.any():
        raise TrainingError(
            f"validation data must be finite, but all {len(good)} hold NaN or infinities. "
            "Look at the noise model.",
            [],
        )
    if not good.all():
        _LOG.warning("%d of %d validation data are not finite", int((~good).sum()), len(good))
    return rows.z[good], batch.select(good)


def _epoch(
    run: TrainingState,
    task: TrainingTask,
    loss_of: Callable[[Tensor, Batch], tuple[Tensor, Tensor]],
    held_out: tuple[Tensor, Batch],
    config: TrainConfig,
    seed: int,
    epoch: int,
) -> None:
    """Train one epoch and append its figures to the history."""
    began = time.perf_counter()
    device = held_out[0].device
    rng = generator(seed, f"epoch {epoch}", device)
    size = _batch_size(task, config)
    n_batches = max(1, task.source.n_rows // size)
    total, n_good, n_bad = torch.zeros((3,), dtype=torch.float64, device=device)
    n_steps = 0
    for rows in task.source.batches(epoch, size, rng):
        rate = _rate(config, (epoch + min(n_steps / n_batches, 1.0)) / config.n_epochs)
        loss, n_out = loss_of(rows.z, task.shown(rows, rng))
        run.optimizer.backward(loss)
        good = run.optimizer.step(rate, loss)
        total, n_good = total + torch.where(good, loss.detach(), 0.0), n_good + good
        n_bad = n_bad + torch.where(good, n_out, len(rows.z))
        done = epoch * n_batches + n_steps
        run.optimizer.follow(1 - min(config.ema, (1 + done) / (10 + done)))  # faster at first
        n_steps += 1
    if n_good == 0:
        raise TrainingError(
            f"training must have finite losses, but all {n_steps} batches of epoch "
            f"{epoch} gave NaN. Look for extreme simulations, or lower lr.",
            run.history,
        )
    for mean, now in zip(run.average.buffers(), run.network.buffers(), strict=True):
        mean.copy_(now)  # running statistics of a normalisation layer are averages already
    entry = {
        "train_nll": float(total / n_good),
        "val_nll": evaluate(run.average, *held_out, task.loss),
        "lr": rate,
        "seconds": time.perf_counter() - began,
        "n_bad": int(n_bad),
    }
    run.history.append(entry)
    if run.best_epoch == epoch:
        run.best = copy.deepcopy(run.average.state_dict())
    _LOG.info("epoch %d: %s", epoch, entry)


def _loss(
    network: PosteriorNetwork, loss_of: Loss, config: TrainConfig
) -> Callable[[Tensor, Batch], tuple[Tensor, Tensor]]:
    """Return a function that gives the mean loss of the finite rows, and how many are not."""
    forward = torch.compile(network) if config.compile else network

    def loss(z: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        good = _finite(z, batch)
        z, x = z.masked_fill(~good[:, None], 0.0), batch.x.masked_fill(~good[:, None, None], 0.0)
        with torch.autocast(z.device.type, torch.bfloat16, enabled=config.mixed_precision):
            features = forward(replace(batch, x=x))
        single = torch.promote_types(features.dtype, torch.float32)  # data stay as they are
        each = loss_of(network.flow, z, features.to(single), good)
        return torch.where(good, each, 0.0).sum() / good.sum(), (~good).sum()

    return loss


def _finite(z: Tensor, batch: Batch) -> Tensor:
    """Say which rows have finite parameters and data, bool (n,)."""
    return torch.isfinite(z).all(-1) & torch.isfinite(batch.x).flatten(1).all(-1)


def _rate(config: TrainConfig, done: float) -> float:
    """Return the learning rate when a share ``done`` of the training is over."""
    if done < config.warmup:
        return config.lr * max(done / config.warmup, 1e-3)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup)))


@torch.no_grad()
def evaluate(network: PosteriorNetwork, z: Tensor, batch: Batch, loss: Loss = nll) -> float:
    """Return the mean loss; by default of -log q(z | data) in the latent space."""
    every = torch.ones(len(z), dtype=torch.bool, device=z.device)
    return float(loss(network.flow, z, network.features(batch), every).to(torch.float64).mean())
