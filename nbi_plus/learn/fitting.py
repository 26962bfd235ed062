"""Fitting: from simulations to a trained model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nbi_plus.data.batch import Batch
from nbi_plus.io.fingerprint import content, fingerprint
from nbi_plus.io.store import SimulationStore
from nbi_plus.learn.augmenting import Augmentation
from nbi_plus.learn.encode import EncoderConfig
from nbi_plus.learn.losses import Loss, nll
from nbi_plus.learn.model import FeaturizerSpec, TrainedModel, without_global_rng
from nbi_plus.learn.network import EstimatorConfig, PosteriorNetwork
from nbi_plus.learn.reference import FeatureReference
from nbi_plus.learn.sources import (
    COLUMNS,
    NoisyBank,
    Online,
    Resident,
    Streamed,
    TrainingRows,
    noisy_copy,
    to_device,
)
from nbi_plus.learn.training import (
    History,
    TrainConfig,
    TrainingTask,
    train,
    validation_data,
)
from nbi_plus.problem.noise.custom import ALREADY_NOISY, CallableNoise
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import generator, keyed_uniform, stage_key
from nbi_plus.problem.simulator.cadence import Cadences, Perturbation
from nbi_plus.problem.simulator.campaign import Campaign, ResidentCampaign

_LOG = logging.getLogger("nbi_plus")
_MAX_VALIDATION = 5000
_N_SIGMA = 256  # prior draws of a sigma that is a parameter, to know how small it gets
_N_TRIED = 64  # simulations that an augmentation is tried on
_N_ENCODER = 4096  # simulations that the encoder learns its scales from
_N_HELD_OUT = 4096  # noisy held-out simulations that members are weighed by
_ROWS_TOGETHER = 512  # of them, where there are few simulations
_N_REFERENCE = 8192  # noisy held-out simulations behind the feature distance
_N_TOGETHER = 4096  # simulations whose statistics are made together
_N_NORMALISED = 2**18  # over which a ratio is normalised
_FEWEST = 2**17  # N at which the noise of a mean of ratios r, sqrt(mean(r^2) / N), is small
_FLOAT32_STEP = 6e-8
_SMALL_STEP = 0.01  # rounding a model to float32 may cost this share of its error


@dataclass(frozen=True)
class Recipe:
    """All that a fit is a function of, besides the simulations.

    Attributes
    ----------
    prior, noise
        The noise is bound.
    cadences : Cadences
        Float64, on the CPU.
    units : dict of str
        Of the observations.
    window : tuple of float, or None
        Their first and last time.
    featurizer : FeaturizerSpec
    custom : nn.Module or None
        The user's own featurizer.
    flow : FlowConfig, RatioConfig or LikelihoodConfig
    train : TrainConfig
    device : torch.device
    seed : int
    memory : int
        Bytes of simulations that may be held on the device; more are streamed from disk.
    loss : Loss
        What is minimised.
    augment : Augmentation or None
        What is done to noisy data, in training alone.
    """

    prior: Prior
    noise: Noise
    cadences: Cadences
    units: dict[str, str]
    featurizer: FeaturizerSpec
    custom: nn.Module | None
    flow: EstimatorConfig
    train: TrainConfig
    device: torch.device
    seed: int
    memory: int
    window: tuple[float, float] | None = None
    loss: Loss = nll
    augment: Augmentation | None = None

    @property
    def conditions(self) -> Batch:
        """Errors, masks, coordinates and scalars of the objects imitated."""
        return self.cadences.bank

    def augmented(self, function: Callable[..., Tensor] | None) -> Recipe:
        """Return the same with a user's augmentation of training data, or None."""
        return replace(self, augment=Augmentation.of(function, self.conditions))

    def dtype(self, largest: float) -> torch.dtype:
        """Return float64 where rounding the largest value to float32 would show in the errors."""
        errors, mask = self.conditions.x_err, self.conditions.mask
        if not (self.noise.reads_model and self.noise.has_likelihood(errors is not None)):
            return torch.float64  # errors that nobody knows may be small beside where data lie
        smallest, sigma = np.inf, getattr(self.noise, "sigma", None)
        if errors is not None and mask.any():
            smallest = float(errors[mask].min())
        elif errors is None and isinstance(sigma, str):  # a parameter
            draws = self.prior.complete(self.prior.sample(_N_SIGMA, 0))
            smallest = float(np.abs(draws[:, self.prior.full_names.index(sigma)]).min())
        elif errors is None and sigma is not None:
            smallest = float(np.min(sigma))
        return torch.float64 if largest * _FLOAT32_STEP > _SMALL_STEP * smallest else torch.float32

    def lengths(self, owner: Tensor) -> Tensor | None:
        """Return how many points each simulation has, or None where all have the same."""
        mask = self.conditions.mask.any(1)
        if not self.cadences.fixed or bool(mask.all()):
            return None
        steps = torch.arange(1, mask.shape[1] + 1)
        return (mask * steps).amax(1).to(owner.device)[owner]


Parts = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows to train on, and to hold out


@dataclass(frozen=True)
class TrainingSet:
    """Simulations ready for training: the source, the held-out rows, and how many in all."""

    source: Resident | Streamed | Online
    validation: TrainingRows
    sample: TrainingRows
    n_sims: int


def from_arrays(
    columns: Mapping[str, NDArray], recipe: Recipe, parts: Parts | None = None
) -> TrainingSet:
    """Return the training set of columns in memory, of all rows or of the parts of them."""
    training, held_out = split(np.arange(len(columns["z"])), recipe) if parts is None else parts
    everything = to_device(
        dict(columns), recipe.prior, recipe.device, recipe.dtype(_largest(columns["x"]))
    )
    chosen = everything.pick(torch.as_tensor(training, device=recipe.device))
    resident = Resident(chosen, recipe.lengths(chosen.owner))
    validation = everything.pick(torch.as_tensor(held_out, device=recipe.device))
    sample = resident.rows.pick(slice(0, _N_ENCODER))
    return TrainingSet(resident, validation, sample, len(training) + len(held_out))


def from_store(
    store: SimulationStore, n: int, recipe: Recipe, parts: Parts | None = None
) -> TrainingSet:
    """Return that of the good rows among the first ``n``: on the device if they fit there.

    Or of the parts of these.
    """
    rows = store.good_rows(n)
    training, held_out = split(rows, recipe) if parts is None else parts
    if store.nbytes <= recipe.memory:
        rows = np.union1d(training, held_out)
        places = tuple(np.searchsorted(rows, part) for part in (training, held_out))
        return from_arrays(store.read(rows, COLUMNS), recipe, places)
    _LOG.info("streaming %.1f GB of simulations from disk", store.nbytes / 1e9)
    sample = store.read(training[:_N_ENCODER], COLUMNS)
    dtype = recipe.dtype(_largest(sample["x"]))
    source = Streamed(store, training, recipe.prior, recipe.device, dtype, recipe.memory)
    validation = to_device(store.read(held_out, COLUMNS), recipe.prior, recipe.device, dtype)
    return TrainingSet(
        source,
        validation,
        to_device(sample, recipe.prior, recipe.device, dtype),
        len(training) + len(held_out),
    )


def online(
    campaign: Campaign, n: int, recipe: Recipe, max_failed: float | None = None
) -> TrainingSet:
    """Return one that simulates ``n`` fresh rows for each epoch, and some to validate with."""
    simulate = partial(ResidentCampaign(campaign, recipe.device).simulate, max_failed=max_failed)
    n_held_out = min(max(int(recipe.train.val_fraction * n), 100), _MAX_VALIDATION)
    held_out = simulate(np.arange(n_held_out))
    dtype = recipe.dtype(_largest(held_out["x"].cpu().numpy()))
    source = Online(simulate, n, n_held_out, recipe.prior, recipe.device, dtype)
    validation = to_device(held_out, recipe.prior, recipe.device, dtype)
    return TrainingSet(source, validation, validation, n_held_out + n * recipe.train.n_epochs)


def split(rows: NDArray[np.int64], recipe: Recipe) -> Parts:
    """Return training and held-out rows; which is which is keyed by the row number."""
    u = keyed_uniform(recipe.seed, "split", torch.as_tensor(rows), ())
    order = rows[torch.argsort(u).numpy()]
    n_held_out = min(max(int(round(recipe.train.val_fraction * len(rows))), 1), _MAX_VALIDATION)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def fit(
    training_set: TrainingSet,
    recipe: Recipe,
    *,
    start: TrainedModel | None = None,
    folder: Path | None = None,
    finished: list[Path] | None = None,
    callback: Callable[[History], None] | None = None,
    progress: bool | None = None,
) -> TrainedModel:
    """Train a network on the training set, or go on with the one of ``start``.

    Its checkpoint, in the folder, is deleted, or else added to the ``finished`` ones.
    """
    task = task_of(training_set, recipe)
    if recipe.augment is not None:
        some = training_set.sample.pick(slice(0, _N_TRIED))
        rng = generator(recipe.seed, "augment", recipe.device)
        recipe.augment.try_out(task.observe(some, rng), some.theta, rng)
    network = untrained(recipe, task, training_set.sample) if start is None else start.network
    checkpoint = None
    if folder is not None:
        checkpoint = folder / f"training-{_fingerprint(recipe, training_set)}.h5"
    history = train(
        network,
        task,
        recipe.train,
        stage_key(recipe.seed, "train") % 2**31,
        checkpoint=checkpoint,
        callback=callback,
        progress=progress,
    )
    if network.flow.averages and task.source.n_rows >= _FEWEST:
        _normalise(network, task, recipe)
    elif network.flow.averages:
        network.flow.leave()
    if checkpoint is not None and finished is not None:
        finished.append(checkpoint)
    elif checkpoint is not None:
        checkpoint.unlink(missing_ok=True)  # a finished run is no state to resume
    return TrainedModel(
        network=network,
        featurizer=recipe.featurizer,
        reference=_reference(network, task, recipe),
        conditions=recipe.conditions,
        units=recipe.units,
        window=recipe.window,
        history=(start.history if start is not None else []) + history,
        n_sims=training_set.n_sims,
    )


def task_of(training_set: TrainingSet, recipe: Recipe) -> TrainingTask:
    """Return the training problem; a per-item noise is replaced by a bank of noisy copies."""
    source, validation, noise = training_set.source, training_set.validation, recipe.noise
    if isinstance(noise, CallableNoise):
        if not isinstance(source, Resident):
            raise ValueError(
                "noise must be one of nbi_plus's noise objects for simulations that are streamed "
                "or made online, but is a function of one item. Use CustomNoise."
            )
        _LOG.warning(
            "noise is a function of one item: %d noisy copies are drawn before each epoch, slowly. "
            "CustomNoise works on whole batches.",
            source.n_rows,
        )
        source = NoisyBank(source, noise, recipe.prior)
        seed = stage_key(recipe.seed, "validation") % 2**32
        validation, noise = noisy_copy(validation, noise, recipe.prior, seed), ALREADY_NOISY
    cadences = recipe.cadences.to(recipe.device, validation.model.dtype)
    if noise is ALREADY_NOISY and cadences.perturbation is not None:
        unscaled = replace(cadences.perturbation, error_scale=1.0)  # the noise is there already
        cadences = replace(cadences, perturbation=unscaled)
    return TrainingTask(source, validation, noise, cadences, recipe.loss, recipe.augment)


def held_out_data(training_set: TrainingSet, recipe: Recipe) -> tuple[Tensor, Batch]:
    """Return z (n, D) and data of the held-out simulations, under several draws of noise."""
    task, seed = task_of(training_set, recipe), stage_key(recipe.seed, "held out") % 2**31
    n = len(task.validation.z)
    several = torch.arange(n, device=recipe.device).repeat(max(1, _N_HELD_OUT // n))
    return validation_data(replace(task, validation=task.validation.pick(several)), seed)


def untrained(recipe: Recipe, task: TrainingTask, sample: TrainingRows) -> PosteriorNetwork:
    """Return an untrained network that knows the scales of the data."""
    if isinstance(task.source, NoisyBank):
        seed = stage_key(recipe.seed, "encoder") % 2**32
        sample = noisy_copy(sample, task.source.noise, recipe.prior, seed)
    batch = task.observe(sample, generator(recipe.seed, "encoder", recipe.device))

    def make() -> PosteriorNetwork:
        module = recipe.featurizer.build(recipe.custom)
        return PosteriorNetwork(
            EncoderConfig.of(recipe.conditions), module, recipe.prior.n_dim, recipe.flow
        )

    network = without_global_rng(stage_key(recipe.seed, "weights") % 2**63, make).to(recipe.device)
    network.learn_scales(batch, sample.z)
    return network


@torch.no_grad()
def _normalise(network: PosteriorNetwork, task: TrainingTask, recipe: Recipe) -> None:
    """Normalise a ratio over the data of the last epoch."""
    rng = generator(recipe.seed, "normalise", recipe.device)
    size, last = min(_N_TOGETHER, task.source.n_rows), recipe.train.n_epochs - 1
    every, statistics, n = [], [], 0
    for rows in task.source.batches(last, size, rng):
        batch = task.observe(rows, rng)
        good = torch.isfinite(rows.z).all(-1) & torch.isfinite(batch.x).flatten(1).all(-1)
        every.append(rows.z[good])
        statistics.append(network.flow.statistics(network.features(batch.select(good))))
        n += len(every[-1])
        if n >= _N_NORMALISED:
            break
    network.flow.normalise(torch.cat(every), torch.cat(statistics))


@torch.no_grad()
def _reference(network: PosteriorNetwork, task: TrainingTask, recipe: Recipe) -> FeatureReference:
    """Return the feature distance, of held-out simulations under several draws of noise."""
    rows = task.validation
    half = max(len(rows.z) // 2, 1)
    halves = rows.pick(slice(0, half)), rows.pick(slice(-half, None))
    n_copies = max(1, _N_REFERENCE // (2 * half))
    # a forward pass of a few rows costs as much as one of hundreds
    together = max(1, _ROWS_TOGETHER // half) * half
    several = torch.arange(half, device=recipe.device).repeat(n_copies).split(together)
    shown = [task.cadences.bank]

    def features(part: TrainingRows, name: str) -> Tensor:
        rng = generator(recipe.seed, f"reference {name}", recipe.device)
        copies = [task.observe(part.pick(rows), rng) for rows in several]
        shown.extend(copies)
        found = torch.cat([network.features(batch) for batch in copies])
        return found[torch.isfinite(found).all(-1)]

    return FeatureReference.fit(features(halves[0], "scale"), features(halves[1], "cut"), *shown)


def _largest(x: NDArray) -> float:
    return float(np.abs(x).max(initial=0.0))


def _fingerprint(recipe: Recipe, training_set: TrainingSet) -> str:
    """Return a name for a training run: only the very same run may resume it."""
    described = {
        "prior": recipe.prior.manifest(),
        "noise": recipe.noise.fingerprint(),
        "featurizer": asdict(recipe.featurizer),
        "flow": asdict(recipe.flow),
        "train": asdict(recipe.train),
        "loss": getattr(recipe.loss, "__name__", repr(recipe.loss)),
        "augment": None if recipe.augment is None else recipe.augment.fingerprint(),
        "fixed": recipe.cadences.fixed,
        "perturbation": asdict(recipe.cadences.perturbation or Perturbation(0.0, 0.0, 1.0, 0.0)),
        "custom": repr(recipe.custom),
        "seed": recipe.seed,
        "n_sims": training_set.n_sims,
    }
    conditions, custom = recipe.conditions, recipe.custom
    tensors = {
        "x_err": conditions.x_err,
        "mask": conditions.mask,
        "z": training_set.validation.z,
        "model": training_set.validation.model,
        "sample": training_set.sample.model,
        **conditions.arguments(),
        **({} if custom is None else custom.state_dict()),
    }
    contents = (text for k, v in tensors.items() for text in (k.encode(), content(v)))
    return fingerprint(described, contents)
