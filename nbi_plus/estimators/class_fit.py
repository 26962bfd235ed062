"""What a fit of classes leaves behind, how it is calibrated, and its file: JSON and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from nbi_plus.arguments import new_file, path_of
from nbi_plus.data.observations import Observations
from nbi_plus.files import check_sizes
from nbi_plus.fitted import Fitted
from nbi_plus.io.archive import ArchiveError, fitting_parts, read_archive, write_archive
from nbi_plus.io.parts import joined, split
from nbi_plus.learn.heads.classes import Classes, class_of
from nbi_plus.learn.model import TrainedModel
from nbi_plus.problem.noise.custom import ALREADY_NOISY
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.setup import Problem
from nbi_plus.trust.reliability import Reliability
from nbi_plus.trust.simulated import known_objects

KIND = "model classifier"
_SHARE, _FEWEST, _MOST = 4, 2048, 16_384  # of the simulations, that calibrate and judge
_LOG_T = 3.0  # temperatures from exp(-3) to exp(3)


@dataclass(frozen=True)
class ClassFit:
    """A trained classifier of M models.

    Attributes
    ----------
    models : tuple of str
    fitted : Fitted
        The network, and what was given to the fit.
    device : torch.device
    temperature : float
    held_out : ndarray, shape (n, M)
        Log-probabilities of objects that nothing was learned from.
    labels : ndarray of int, shape (n,)
        The models that these are of.
    strangeness : ndarray, shape (k,)
        Of objects of the models, sorted: log odds that something is in them which no model knows.
        Empty where nothing told how much such a thing would be.
    """

    models: tuple[str, ...]
    fitted: Fitted
    device: torch.device
    temperature: float
    held_out: NDArray[np.float64]
    labels: NDArray[np.int64]
    strangeness: NDArray[np.float64]

    @classmethod
    def calibrated(
        cls, models: tuple[str, ...], fitted: Fitted, problem: Problem, device: torch.device,
        n_sims: int, seed: int,
    ) -> ClassFit:  # fmt: skip
        """Return the fit with the temperature that half of so many new objects ask for."""
        rows = torch.arange(min(max(n_sims // _SHARE, _FEWEST), _MOST))
        made = known_objects(problem, problem.conditions, rows, seed, "classes", "classes noise")
        good = (made.data.x.isfinite() | ~made.data.mask).all(2).all(1).nonzero()[:, 0]
        features = fitted.model.network.features(made.data.select(good).to(device))
        log_shares, strange = _told(fitted.model, features)
        labels = class_of(made.truth[good, 0], len(models) + 1).numpy()
        ours = labels < len(models)
        log_shares, strange, labels = log_shares[ours], strange[ours], labels[ours]
        half = len(labels) // 2
        temperature = _temperature(log_shares[:half], labels[:half])
        judged = _tempered(log_shares[half:], temperature)
        return cls(models, fitted, device, temperature, judged, labels[half:], np.sort(strange))

    @cached_property
    def reliability(self) -> Reliability:
        """What the held-out objects say of the probabilities."""
        return Reliability.of(self.held_out, self.labels)

    def log_shares(self, observations: Observations) -> NDArray[np.float64]:
        """Return the log-probabilities (N, M) of models that are as likely before."""
        log_shares, _ = _told(self.fitted.model, self._features(observations))
        return _tempered(log_shares, self.temperature)

    def p_values(self, observations: Observations) -> NDArray[np.float64]:
        """Return the shares (N,) of simulated objects of the models that are no less strange."""
        if not len(self.strangeness):
            raise ValueError(
                "unlike_any must know how much data scatter, but a model has a noise that adds "
                "nothing and a simulator without scatter, and the fit had no errors. Give fit "
                "x_err= or observations with errors."
            )
        _, strange = _told(self.fitted.model, self._features(observations))
        known = self.strangeness
        return (len(known) - np.searchsorted(known, strange) + 1.0) / (len(known) + 1.0)

    def _features(self, observations: Observations) -> Tensor:
        objects = self.fitted.like_training(observations)
        model = self.fitted.model
        model.check_grid(objects)
        empty = np.flatnonzero(objects.n_points == 0)
        if len(empty):
            raise ValueError(
                f"observations must have valid points, but object {objects.ids[empty[0]]} has "
                "none. Leave it out."
            )
        return model.network.features(objects.batch().to(self.device), objects.lengths)

    def save(self, path: str | Path, chosen: dict[str, Any]) -> None:
        """Write a file of it, and of what was chosen."""
        own, model = self.fitted, self.fitted.model
        meta = {
            "model": model.meta(), "prior": own.prior.manifest(), "models": list(self.models),
            "temperature": self.temperature, "chosen": chosen,
        }  # fmt: skip
        held_out = {
            "log_shares": self.held_out, "labels": self.labels, "strangeness": self.strangeness,
        }  # fmt: skip
        arrays = model.arrays() | joined({"defaults": dict(own.defaults), "held_out": held_out})
        write_archive(new_file("path", path), KIND, meta, arrays)

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device, custom: nn.Module | None
    ) -> tuple[ClassFit, dict[str, Any]]:
        """Return what `save` wrote; ``custom`` is code that no file holds."""
        path = path_of("path", path)
        archive = read_archive(path, KIND)
        check_sizes(archive)
        with fitting_parts(path, KIND):
            meta = archive.meta
            model = TrainedModel.from_archive(archive, device, custom)
            parts = split(archive.arrays)
            held_out, models = parts["held_out"], tuple(meta["models"])
            found = cls(
                models,
                Fitted(Prior.from_manifest(meta["prior"]), ALREADY_NOISY, None,
                       parts.get("defaults", {}), model),
                device, meta["temperature"], held_out["log_shares"], held_out["labels"],
                held_out["strangeness"],
            )  # fmt: skip
            found._check(meta)
            return found, meta["chosen"]

    def _check(self, meta: dict[str, Any]) -> None:
        """Refuse a file whose parts are not of the same models."""
        m, flow = len(self.models), self.fitted.model.network.flow
        weights, t = meta["chosen"]["model_prior"], self.temperature
        sums = np.exp(self.held_out).sum(-1)
        sound = (
            isinstance(flow, Classes)
            and flow.config.n_classes - 1 == m == len(set(self.models))
            and all(isinstance(name, str) and name for name in self.models)
            and isinstance(t, float) and abs(np.log(t)) <= _LOG_T + 1e-6
            and self.held_out.ndim == 2 and self.held_out.shape[1] == m
            and self.labels.shape == (len(self.held_out),) and self.labels.dtype == np.int64
            and bool(((self.labels >= 0) & (self.labels < m)).all())
            and bool(np.isclose(sums, 1, atol=1e-6).all())
            and self.strangeness.ndim == 1 and bool((np.diff(self.strangeness) >= 0).all())
            and len(weights) == m and all(isinstance(w, float) and w > 0 for w in weights)
            and isinstance(meta["chosen"]["seed"], int)
        )  # fmt: skip
        if not sound:
            raise ArchiveError(
                f"the file must hold a classifier of its models {self.models}, but its network, "
                "temperature, weights or held-out objects are of others. It is damaged or forged."
            )


@torch.no_grad()
def _told(model: TrainedModel, features: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log-probabilities (n, M) among the models, and the log odds (n,) of none of them."""
    found = model.network.flow.exact().log_shares(features)
    ours = found[:, :-1].logsumexp(1)
    return (found[:, :-1] - ours[:, None]).cpu().numpy(), (found[:, -1] - ours).cpu().numpy()


def _tempered(log_shares: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return log-probabilities (n, M) divided by a temperature, normalised again."""
    score = log_shares / temperature
    top = score.max(1, keepdims=True)
    return score - top - np.log(np.exp(score - top).sum(1, keepdims=True))


def _temperature(log_shares: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the temperature at which objects of known models have the best log score."""

    def loss(log_t: float) -> float:
        return -_tempered(log_shares, np.exp(log_t))[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-_LOG_T, _LOG_T), method="bounded").x))
