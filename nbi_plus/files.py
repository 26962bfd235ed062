"""Engine files: a fitted engine as JSON and numbers; code is passed again at load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nbi_plus.arguments import new_file, path_of
from nbi_plus.fitted import Fitted
from nbi_plus.infer.sequential import archive as sequential_archive
from nbi_plus.io.archive import Archive, ArchiveError, fitting_parts, read_archive, write_archive
from nbi_plus.io.parts import joined, split
from nbi_plus.io.sizes import refuse_larger
from nbi_plus.learn.heads.density import LatentDensity
from nbi_plus.learn.learned_noise import LearnedNoise
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.scores.estimates import Scores
from nbi_plus.problem.noise import noise_from_meta
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.noise.custom import as_noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.trust.truths import SCOUTS, TruthTest, chance

# the other parts are of the model
_DEFAULTS, _LIKELIHOOD, _SEQUENTIAL = "defaults", "likelihood", "sequential"
_FREE = ("perm_seed", "n_sims")  # numbers that nothing in a file is as large as


def write(path: str | Path, fitted: Fitted, seed: int) -> None:
    """Write what an engine with this seed was fitted to."""
    path, archive = new_file("path", path), contents(fitted, seed)
    write_archive(path, "engine", archive.meta, archive.arrays)


def contents(fitted: Fitted, seed: int) -> Archive:
    """Return what a file holds of an engine with this seed."""
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
    if isinstance(fitted.noise, LearnedNoise):
        arrays |= joined({_LIKELIHOOD: fitted.noise.arrays()})
    arrays |= {} if model is None else model.arrays()
    arrays |= {} if kept is None else joined({_SEQUENTIAL: kept.arrays})
    return Archive(meta, arrays)


def read(
    path: str | Path,
    device: torch.device,
    *,
    prior: Prior | None = None,
    noise: Noise | None = None,
    featurizer: nn.Module | None = None,
) -> tuple[Fitted, int]:
    """Return what was fitted, and the seed; what is given here is code that no file holds."""
    path = path_of("path", path)
    archive = read_archive(path, "engine")
    check_sizes(archive)
    with fitting_parts(path, "engine"):
        return rebuilt(archive, path, device, prior=prior, noise=noise, featurizer=featurizer)


def rebuilt(
    archive: Archive,
    path: Path,
    device: torch.device,
    *,
    prior: Prior | None = None,
    noise: Noise | None = None,
    featurizer: nn.Module | None = None,
    kind: type[LatentDensity] | type[Scores] = LatentDensity,
) -> tuple[Fitted, int]:
    """Return what `contents` described, with a network of some kind: see `read`."""
    meta = archive.meta
    if prior is None:
        prior = Prior.from_manifest(meta["prior"], meta["labels"])
    parts = split(archive.arrays)
    names = (_DEFAULTS, _LIKELIHOOD, _SEQUENTIAL)
    defaults, likelihood, own = (parts.pop(name, {}) for name in names)
    noise = _noise(Archive(meta["noise"], likelihood), path, noise, device)
    model, has_errors = None, "object/x_err" in own
    if meta["model"] is not None:
        learned = replace(archive, arrays=joined(parts))
        model = TrainedModel.from_archive(learned, device, featurizer)
        if not isinstance(model.network.flow, kind):
            raise ArchiveError(
                f"the network must be a {kind.__name__}, but is another estimator. The file is "
                "damaged or forged."
            )
        has_errors = model.conditions.x_err is not None
        if model.network.flow.n_dims != prior.n_dim:
            raise ArchiveError(
                f"the network must be of the {prior.n_dim} parameters of the prior, but is of "
                f"{model.network.flow.n_dims}. Pass the prior of the training."
            )
    bound = as_noise(noise).bind(has_errors, prior.full_names)
    one = None
    if meta["sequential"] is not None:
        one = sequential_archive.from_archive(
            Archive(meta["sequential"], own), prior, bound, device
        )
    told, seed = meta.get("truth_test"), meta["seed"]
    truth = None if told is None else truth_test_of(told)
    if type(seed) is not int:
        raise ArchiveError(f"seed must be a whole number, but is {seed!r:.99}. Save it again.")
    return Fitted(prior, bound, None, defaults, model, one, truth), seed


def _noise(
    archive: Archive, path: Path, given: Noise | None, device: torch.device
) -> Noise | Callable:
    """Return the noise of an engine, of its file or given: the user's code is in no file."""
    if archive.arrays:
        check_sizes(archive)
        return LearnedNoise.from_archive(archive, given, device)
    if given is None and archive.meta is None:
        raise ValueError(
            f"noise must be passed again, for {path} holds none of your code. "
            "Call Engine.load(path, simulator=..., noise=...)."
        )
    return noise_from_meta(archive.meta) if given is None else given


def truth_test_of(told: Mapping[str, Any]) -> TruthTest:
    """Return what a truth test came to, if its figures agree with each other."""
    test = TruthTest(**told)
    counts = (test.n_certified, test.n_above, test.n_looked, test.n_unseen)
    known = all(type(n) is int and n >= 0 for n in counts) and test.scouts in SCOUTS
    if not (known and np.isclose(test.p_value, chance(test.n_above, test.expected))):
        raise ArchiveError(
            f"the truth test must agree with itself, but is {test!r:.300}. Save the engine again."
        )
    return test


def check_sizes(archive: Archive) -> None:
    """Refuse numbers that would build a network larger than the arrays the file really holds."""
    model = archive.meta.get("model")
    if model is None and archive.meta.get("sequential") is not None:
        return  # no network is built
    own = {k: v for k, v in archive.arrays.items() if k.startswith(("network/", "conditions/"))}
    parts = {**model, "model": model} if isinstance(model, dict) else {}
    for part in ("model", "encoder", "flow", "featurizer"):
        refuse_larger(part, parts.get(part), own, _FREE)
