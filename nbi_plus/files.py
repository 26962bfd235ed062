"""Engine files: a fitted engine as JSON and numbers; code is passed again at load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nbi_plus.fitted import Fitted
from nbi_plus.infer.sequential import archive as sequential_archive
from nbi_plus.io.archive import Archive, ArchiveError, read_archive, write_archive
from nbi_plus.io.parts import joined, split
from nbi_plus.learn.model import TrainedModel
from nbi_plus.problem.noise import noise_from_meta
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.noise.custom import as_noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.trust.truths import TruthTest

_DEFAULTS, _SEQUENTIAL = "defaults", "sequential"  # the other parts are of the model
_FREE = ("perm_seed", "n_sims")  # numbers that nothing in a file is as large as


def write(path: Path, fitted: Fitted, seed: int) -> None:
    """Write what an engine with this seed was fitted to."""
    prior = fitted.prior
    model, one = fitted.model, fitted.sequential
    kept = None if one is None else sequential_archive.to_archive(one)
    meta = {
        "model": None if model is None else model.meta(),
        "prior": prior.manifest(),
        "labels": dict(zip(prior.names, prior.labels, strict=True)),
        "noise": fitted.noise.meta(),
        "seed": seed,
        "truth_test": None if fitted.truth is None else asdict(fitted.truth),
        "sequential": None if kept is None else kept.meta,
    }
    arrays = joined({_DEFAULTS: {k: np.asarray(v) for k, v in fitted.defaults.items()}})
    arrays |= {} if model is None else model.arrays()
    arrays |= {} if kept is None else joined({_SEQUENTIAL: kept.arrays})
    write_archive(path, "engine", meta, arrays)


def read(
    path: Path,
    device: torch.device,
    *,
    prior: Prior | None = None,
    noise: Noise | None = None,
    featurizer: nn.Module | None = None,
) -> tuple[Fitted, int]:
    """Return what was fitted, and the seed; what is given here is code that no file holds."""
    archive = read_archive(path, "engine")
    _check_sizes(archive)
    try:
        return _rebuild(archive, path, device, prior, noise, featurizer)
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise ArchiveError(
            f"{path} must hold a complete engine, but its parts do not fit together: {error!r}. "
            "Save it again."
        ) from error


def _rebuild(
    archive: Archive,
    path: Path,
    device: torch.device,
    prior: Prior | None,
    noise: Noise | None,
    featurizer: nn.Module | None,
) -> tuple[Fitted, int]:
    meta = archive.meta
    if prior is None:
        prior = Prior.from_manifest(meta["prior"], meta["labels"])
    if noise is None:
        if meta["noise"] is None:
            raise ValueError(
                f"noise must be passed again, for {path} holds none of your code. "
                "Call Engine.load(path, simulator=..., noise=...)."
            )
        noise = noise_from_meta(meta["noise"])
    parts = split(archive.arrays)
    defaults, own = (parts.pop(name, {}) for name in (_DEFAULTS, _SEQUENTIAL))
    model, has_errors = None, "object/x_err" in own
    if meta["model"] is not None:
        learned = replace(archive, arrays=joined(parts))
        model = TrainedModel.from_archive(learned, device, featurizer)
        has_errors = model.conditions.x_err is not None
    bound = as_noise(noise).bind(has_errors, prior.full_names)
    one = None
    if meta["sequential"] is not None:
        one = sequential_archive.from_archive(
            Archive(meta["sequential"], own), prior, bound, device
        )
    told = meta.get("truth_test")
    truth = None if told is None else TruthTest(**told)
    return Fitted(prior, bound, None, defaults, model, one, truth), meta["seed"]


def _check_sizes(archive: Archive) -> None:
    """Refuse numbers that would build a network larger than the arrays the file really holds."""
    largest = max([64, len(archive.arrays), *(n for a in archive.arrays.values() for n in a.shape)])
    model = archive.meta.get("model")
    if model is None and archive.meta.get("sequential") is not None:
        return  # no network is built
    parts = {**model, "model": model} if isinstance(model, dict) else {}
    for part in ("model", "encoder", "flow", "featurizer"):
        options = parts.get(part)
        if not isinstance(options, dict):
            raise ArchiveError(f"the file must describe its {part}, but does not. Save it again.")
        for name, value in _numbers(options):
            if name not in _FREE and not value <= largest:
                raise ArchiveError(
                    f"{part}.{name} must be at most {largest}, the largest size in the file, "
                    f"but is {value}. The file is damaged or forged."
                )


def _numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in nested dicts and lists, and the key that it stands under."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, (int, float)):
        yield name, value
