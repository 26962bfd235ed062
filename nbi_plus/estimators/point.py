"""PointEngine: estimates of parameters by proper scoring rules, without draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from nbi_plus import files, options
from nbi_plus.arguments import new_file, of_kind, one_of, path_of, seed_of, whole
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.estimators.prepared import prepare
from nbi_plus.fitted import Fitted
from nbi_plus.io.archive import fitting_parts, read_archive, write_archive
from nbi_plus.learn.fitting import Recipe
from nbi_plus.learn.scores.estimates import Scale, ScoreConfig, ScoreLoss, Scores
from nbi_plus.learn.scores.rules import RULES, MeanScore, QuantileScore, Score
from nbi_plus.learn.training import TrainConfig
from nbi_plus.problem.gathered import Files
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.setup import Problem
from nbi_plus.problem.simulator.cadence import Perturbation
from nbi_plus.problem.simulator.simulator import Simulator
from nbi_plus.survey.mixin import engine_hash
from nbi_plus.torch_state import doors
from nbi_plus.trust.point_calibration import PointCalibration
from nbi_plus.trust.recovery import Bins, groups, unwound
from nbi_plus.trust.simulated import objects_of

_KIND = "point engine"
_BY = ("rule", "parameter")
_DEFAULT = {"mean": MeanScore(), "quantile": QuantileScore((0.1, 0.5, 0.9))}
Estimates = dict[str, dict[str, NDArray[np.float64]]]


@doors
class PointEngine(BaseEstimator):
    """A network of estimates: means, medians, quantiles of each parameter's posterior, and others.

    One pass of the network is one object's answer, so that surveys of millions take minutes.
    Nothing weighs or judges these numbers: use them to look through a survey, and `Engine` for what
    is published.

    Parameters
    ----------
    simulator : callable or Simulator, optional
    prior : Prior, mapping, sequence or callable
    noise : Noise, float, array_like or callable, optional
        As of `Engine`; it needs no likelihood.
    rules : mapping of name to rule, optional
        `MeanScore`, `MedianScore`, `QuantileScore`, `ExpectileScore` and `EnergyScore`. Default:
        ``{"mean": MeanScore(), "quantile": QuantileScore([0.1, 0.5, 0.9])}``.
    featurizer, seed, device, n_jobs, path, memory
        As of `Engine`.

    Attributes
    ----------
    prior_, noise_, simulator_, model_, history_, fitted_
        As of `Engine`; the losses are sums of the scores of all rules.

    Examples
    --------
    >>> from scipy.stats import norm
    >>> engine = PointEngine(lambda theta: theta @ np.ones((1, 8)), {"a": norm(0, 1)}, 0.5)
    >>> x = np.random.default_rng(0).normal(size=(5, 8))
    >>> found = engine.fit(n_sims=500, n_epochs=2).estimate(Observations.from_arrays(x))
    >>> found["mean"]["mean"].shape, found["quantile"]["quantile"].shape
    ((5, 1), (5, 3, 1))
    """

    def __init__(  # noqa: PLR0913 - the public door
        self,
        simulator: Simulator | Callable | None = None,
        prior: Prior | Mapping | list | Callable | None = None,
        noise: Noise | ArrayLike | Callable | None = None,
        rules: Mapping[str, Score] | None = None,
        *,
        featurizer: str | Mapping[str, Any] | list[str | Mapping] | nn.Module = options.AUTO,
        seed: int = 0,
        device: str | None = None,
        n_jobs: int | None = None,
        path: str | Path | None = None,
        memory: float = 4.0,
    ) -> None:
        self.simulator = simulator
        self.prior = prior
        self.noise = noise
        self.rules = rules
        self.featurizer = featurizer
        self.seed = seed
        self.device = device
        self.n_jobs = n_jobs
        self.path = path
        self.memory = memory

    def fit(
        self,
        n_sims: int | ArrayLike | None = None,
        x: ArrayLike | Files | None = None,
        **others: Any,  # noqa: ANN401 - as Engine.fit, which checks them
    ) -> PointEngine:
        """Simulate and train.

        Parameters
        ----------
        n_sims, x
            As for `Engine.fit`.
        **others
            ``theta``, ``n_epochs``, ``observations``, ``x_obs``, ``x_err``, ``mask``, ``bad``,
            ``noise``, ``perturb``, ``grid``, ``batch_size``, ``lr``, ``train``, ``augment``,
            ``max_failed``, ``callback``, ``progress``, coordinates and scalars, as for
            `Engine.fit`.

        Returns
        -------
        PointEngine
            Itself.
        """
        self._config()  # before anything is simulated
        with preserved_random_state():
            ready = prepare(self._engine(), n_sims, x, **others)
            model = ready.run(ready.problem, ready.recipe(self))
        return self._keep(Fitted.of(ready.problem, ready.given.defaults(), model))

    def estimate(self, observations: Observations, *, groupby: str = "rule") -> Estimates:
        """Return the estimates for many objects.

        Parameters
        ----------
        observations : Observations
            N objects. Those whose data cannot be used have NaN.
        groupby : {"rule", "parameter"}
            How the answer is laid out.

        Returns
        -------
        dict of dict of ndarray
            By rule: ``{rule: {kind: values}}``, with ``mean`` and ``median`` of shape (N, D), and
            ``quantile``, ``expectile`` and ``energy`` of shape (N, Q, D), D being the parameters.
            By parameter: ``{parameter: {rule: values}}`` of shape (N,) or (N, Q).
        """
        one_of("groupby", groupby, _BY)
        fitted = self._fitted("estimate")
        of_kind("observations", observations, Observations, "Write Observations.from_arrays(x).")
        found = self._estimates(fitted, *self._features(fitted, fitted.like_training(observations)))
        rules = fitted.model.network.flow.rules
        if groupby == "rule":
            return {name: {rules[name].kind: values} for name, values in found.items()}
        return {
            parameter: {name: values[..., d] for name, values in found.items()}
            for d, parameter in enumerate(fitted.prior.names)
        }

    def calibrate(
        self, n: int = 1000, bins: Bins | None = None, *,
        observations: Observations | None = None, seed: int | None = None,
        progress: bool | None = None,
    ) -> PointCalibration:  # fmt: skip
        """Return how the estimates for simulated objects lie beside their truths.

        Parameters
        ----------
        n, bins, observations, seed, progress
            As for `Engine.calibrate`.
        """
        whole("n", n, 2)
        fitted = self._fitted("calibrate")
        own = seed_of("seed", self.seed if seed is None else seed)
        objects, truths = objects_of(fitted, fitted.model, n, observations, own, progress)
        features, usable = self._features(fitted, objects)
        found = self._estimates(fitted, features, usable)
        rules = fitted.model.network.flow.rules
        levels = {name: rule.chances for name, rule in rules.items() if rule.chances}
        judged = {name: found[name].reshape(len(truths), -1, truths.shape[1]) for name in levels}
        prior = fitted.prior
        middles = _placed(fitted.model.network.flow.middles(features, prior), usable)
        truths = unwound(truths, middles, prior.periods)
        return PointCalibration(tuple(prior.names), truths, judged, levels, groups(bins, objects))

    def catalogue_columns(self) -> dict[str, str]:
        """Return names and meanings of the estimates of one object; see `Engine.predict_survey`."""
        fitted = self._fitted("catalogue_columns")
        rules = fitted.model.network.flow.rules
        return {
            f"{parameter}_{name}{part}": f"{parameter}: {rule.kind}{part.replace('_', ' ')}, by a "
            "network alone."
            for parameter in fitted.prior.names
            for name, rule in rules.items()
            for part in rule.parts()
        }

    def catalogue_values(self, observations: Observations) -> dict[str, NDArray[np.float64]]:
        """Return the estimates (N,) under these names."""
        names, found = list(self.catalogue_columns()), self.estimate(observations)
        each = [values for own in found.values() for values in own.values()]
        every = np.concatenate([np.reshape(v, (len(v), -1, v.shape[-1])) for v in each], 1)
        return dict(zip(names, every.transpose(2, 1, 0).reshape(len(names), -1), strict=True))

    def catalogue_hash(self) -> str:
        """Return a fingerprint of the network and its problem."""
        return engine_hash(self._fitted("catalogue_hash"))

    def save(self, path: str | Path) -> None:
        """Write the fitted engine to a file of JSON and numbers; code is not in it."""
        fitted, path = self._fitted("save"), new_file("path", path)
        archive = files.contents(fitted, self.seed)
        write_archive(path, _KIND, archive.meta, archive.arrays)

    @classmethod
    def load(
        cls,
        path: str | Path,
        simulator: Simulator | Callable | None = None,
        *,
        prior: Prior | None = None,
        noise: Noise | Callable | None = None,
        featurizer: nn.Module | None = None,
        device: str | None = None,
    ) -> PointEngine:
        """Read a fitted engine; nothing in the file is executed.

        Parameters
        ----------
        path : str or Path
        simulator, prior, noise, featurizer, device
            As for `Engine.load`; without a simulator estimates are the same.
        """
        path, own = path_of("path", path), options.device_of(device)
        archive = read_archive(path, _KIND)
        files.check_sizes(archive)
        code = {"prior": prior, "noise": noise, "featurizer": featurizer}
        with fitting_parts(path, _KIND):
            fitted, seed = files.rebuilt(archive, path, own, kind=Scores, **code)
        fitted = fitted.with_simulator(simulator)
        chosen = {"device": device, "seed": seed, **fitted.wishes(featurizer)}
        return cls(simulator, fitted.prior, fitted.noise, **chosen)._keep(fitted)

    # --- behind the verbs ------------------------------------------------------------------------

    def _recipe(
        self, problem: Problem, config: TrainConfig, perturbation: Perturbation | None
    ) -> Recipe:
        """Return what the training is a function of."""
        made = self._engine()._recipe(problem, config, perturbation)
        angles = tuple(i for i, p in enumerate(made.prior.periods) if p is not None)
        own = replace(self._config(), circles=angles)
        return replace(made, flow=own, loss=ScoreLoss.of(made.prior, made.device))

    def _engine(self) -> Engine:
        """Return an engine for the same problem."""
        own = self.get_params(deep=False)
        del own["rules"]
        return Engine(**own)

    def _config(self) -> ScoreConfig:
        rules = _DEFAULT if self.rules is None else self.rules
        of_kind("rules", rules, Mapping, "Give a dict of name to rule.")
        for name, rule in rules.items():
            of_kind(f"rules[{name!r}]", rule, Score, "Give MeanScore() or another of these rules.")
            of_kind("names of rules", name, str, "Give a word.")
            if RULES.get(rule.kind) is not type(rule):
                raise TypeError(
                    f"rules[{name!r}] must be one of {[own.__name__ for own in RULES.values()]}, "
                    f"but is a {type(rule).__name__}, which no file could hold."
                )
        if not rules:
            raise ValueError("rules must hold at least one rule, but hold none.")
        return ScoreConfig.of(rules)

    def _fitted(self, caller: str) -> Fitted:
        if not hasattr(self, "fitted_"):
            raise NotFittedError(f"This PointEngine is not fitted yet. Call fit before {caller}.")
        return self.fitted_

    def _keep(self, fitted: Fitted) -> PointEngine:
        self.fitted_, self.prior_, self.noise_ = fitted, fitted.prior, fitted.noise
        self.simulator_, self.model_ = fitted.simulator, fitted.model
        self.history_ = fitted.model.history
        return self

    def _features(self, fitted: Fitted, objects: Observations) -> tuple[Tensor, Tensor]:
        """Return the features (N, F) of objects, and which of these (N,) say something."""
        model, device = fitted.model, options.device_of(self.device)
        model.check_grid(objects)
        if model.network.n_not_finite:
            raise ValueError("The network must be finite, but is not. Fit it again.")
        features = model.features(objects.batch().to(device), objects.lengths)
        usable = torch.as_tensor(objects.n_points > 0, device=device)
        usable &= features.isfinite().all(1)
        return torch.where(usable[:, None], features, 0.0), usable

    def _estimates(
        self, fitted: Fitted, features: Tensor, usable: Tensor
    ) -> dict[str, NDArray[np.float64]]:
        """Return the estimates by rule, (N, D) or (N, Q, D)."""
        flow, scale = fitted.model.network.flow, Scale.of(fitted.prior).to(features.device)
        return {
            name: _placed(values[:, 0] if flow.rules[name].single else values, usable)
            for name, values in flow.estimates(features, fitted.prior, scale).items()
        }


def _placed(values: Tensor, usable: Tensor) -> NDArray[np.float64]:
    """Return values (N, ...) as an array, NaN where they say nothing."""
    own = usable.reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(own, values, torch.nan).cpu().numpy()
