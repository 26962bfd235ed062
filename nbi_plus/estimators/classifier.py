"""ModelClassifier: which of several models made the data, learned from simulations of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from nbi_plus import options
from nbi_plus.arguments import new_folder, of_kind, one_of, seed_of, whole
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.estimators.class_fit import ClassFit
from nbi_plus.estimators.compare import weights_of
from nbi_plus.estimators.mixed import MixedModels, MixedSimulator
from nbi_plus.fitted import Fitted
from nbi_plus.io.fingerprint import fingerprint
from nbi_plus.learn import fitting
from nbi_plus.learn.heads.classes import ClassesConfig
from nbi_plus.learn.learned_noise import noise_of
from nbi_plus.learn.run import Run
from nbi_plus.learn.training import History, TrainConfig
from nbi_plus.problem import binding
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.setup import FitInputs
from nbi_plus.problem.simulator.cadence import Cadences
from nbi_plus.survey.mixin import engine_hash
from nbi_plus.torch_state import doors

_MEMORY = 4.0  # gigabytes of simulations held on the device
Weights = Mapping[str, float] | Sequence[float]


@doors
class ModelClassifier(BaseEstimator):
    """Probabilities of several models of the same data, without the evidence of any.

    One network learns from simulations of all models, noise and all, which of them made the data.
    Its probabilities are calibrated with one temperature on objects that it was not trained on, and
    ``reliability_`` is what others of these say of them. Where there is a likelihood, `compare`
    tells the same from certified evidences.

    Parameters
    ----------
    engines : mapping of str to Engine
        Two at least, fitted or not: their simulators, priors and noises count.
    model_prior : mapping of str to float, or sequence of float, optional
        Weights of the models, by name or in their order. Default: all the same.
    featurizer : str, dict, list of these, or nn.Module
        As for `Engine`.
    seed : int
    device : str, optional
    path : str or Path, optional
        Folder for simulations and checkpoints, as for `Engine`.

    Attributes
    ----------
    models_ : tuple of str
    history_ : list of dict
    temperature_ : float
        By which log-probabilities are divided.
    reliability_ : Reliability
        Of objects that nothing was learned from; see `nbi_plus.plots.reliability`.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.stats import norm
    >>> ones, t = np.ones((1, 8)), np.linspace(-1, 1, 8)
    >>> flat = Engine(lambda theta: theta * ones, {"a": norm(0, 1)}, noise=0.3)
    >>> bent = Engine(lambda theta: theta * t**2, {"b": norm(0, 1)}, noise=0.3)
    >>> classifier = ModelClassifier({"flat": flat, "bent": bent}).fit(500, n_epochs=2)
    >>> classifier.predict_proba(Observations.from_arrays(np.ones((3, 8)))).shape
    (3, 2)
    """

    def __init__(
        self,
        engines: Mapping[str, Engine] | None = None,
        model_prior: Weights | None = None,
        *,
        featurizer: str | Mapping[str, Any] | list | nn.Module = options.AUTO,
        seed: int = 0,
        device: str | None = None,
        path: str | Path | None = None,
    ) -> None:
        self.engines = engines
        self.model_prior = model_prior
        self.featurizer = featurizer
        self.seed = seed
        self.device = device
        self.path = path

    def fit(  # noqa: PLR0913 - the public door
        self,
        n_sims: int,
        *,
        n_epochs: int | None = None,
        observations: Observations | None = None,
        x_err: ArrayLike | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        train: TrainConfig | Mapping[str, Any] | None = None,
        augment: Callable[..., Tensor] | None = None,
        max_failed: float = 0.1,
        n_jobs: int | None = None,
        callback: Callable[[History], None] | None = None,
        progress: bool | None = None,
        **inputs: ArrayLike,
    ) -> ModelClassifier:
        """Simulate all models, each about as often, and train.

        Parameters
        ----------
        n_sims : int
            Simulations of all models together, and of none; a quarter more calibrate and judge.
        n_epochs, observations, x_err, batch_size, lr, train, augment, max_failed, callback, \
        progress, **inputs
            As for `Engine.fit`.
        n_jobs : int, optional
            Processes that simulate, as for `Engine`.

        Returns
        -------
        ModelClassifier
            Itself.
        """
        engines = self._engines()
        weights_of(self.model_prior, tuple(engines))
        chosen = {"n_epochs": n_epochs, "batch_size": batch_size, "lr": lr}
        config = options.train_config(train, chosen, {})
        given = FitInputs(observations, None, x_err, inputs=inputs)
        folder = None if self.path is None else new_folder("path", self.path)
        n_sims = whole("n_sims", n_sims, 2)
        seed, device = seed_of("seed", self.seed), options.device_of(self.device)
        with preserved_random_state():
            believed = {k: (e._prior(), e.simulator, noise_of(e.noise, e.likelihood))
                        for k, e in engines.items()}  # fmt: skip
            models = MixedModels.of(believed, given, n_jobs)
            noises = (engine.noise for engine in engines.values())
            binding.check_inputs(inputs, MixedSimulator(models), "fit", *noises)
            problem = models.problem(given, n_jobs)
            folder = None if folder is None else folder / models.folder_name()
            run = Run(n_sims, False, max_failed, folder, n_jobs, None, callback, progress)
            spec, custom = options.featurizer_spec(
                self.featurizer, problem.conditions, problem.prior.n_dim
            )
            recipe = fitting.Recipe(
                prior=problem.prior, noise=problem.noise, units=problem.units,
                cadences=Cadences(problem.conditions, problem.fixed, None, None, custom is None),
                featurizer=spec, custom=custom, flow=ClassesConfig(len(engines) + 1), train=config,
                device=device, seed=seed, memory=options.bytes_of(_MEMORY), window=problem.window,
            )  # fmt: skip
            model = run(problem, recipe.augmented(augment))
            fitted = Fitted.of(problem, given.defaults(), model)
            fit = ClassFit.calibrated(tuple(engines), fitted, problem, device, n_sims, seed)
            fit = fit if models.scaled else replace(fit, strangeness=fit.strangeness[:0])
        return self._keep(fit)

    def predict_proba(self, observations: Observations) -> NDArray[np.float64]:
        """Return the probabilities (N, M) of the models, in the order of ``models_``."""
        score = self._scores("predict_proba", observations)
        odds = np.exp(score - score.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def predict_log_odds(
        self, observations: Observations, against: str | None = None
    ) -> NDArray[np.float64]:
        """Return the log odds (N, M) of the models against one of them, by default the first.

        Without a ``model_prior`` they are log Bayes factors.
        """
        names = self._fitted("predict_log_odds").models
        place = 0 if against is None else names.index(one_of("against", against, names))
        score = self._scores("predict_log_odds", observations)
        return score - score[:, [place]]

    def unlike_any(self, observations: Observations) -> NDArray[np.float64]:
        """Return p-values (N,): the share of simulations of the models that are no less strange.

        Strange is what looks like a simulation to which something was added that no model knows. A
        small value says that none of the models made the data; probabilities are then only those
        among bad ones. How much is added goes by the scatter of simulations or else by the errors
        of the data: a fit must have known one of them.
        """
        return self._fitted("unlike_any").p_values(observations)

    def catalogue_columns(self) -> dict[str, str]:
        """Return names and meanings of what is said of an object; see `Engine.predict_survey`."""
        fit = self._fitted("catalogue_columns")
        told = {f"probability_{name}": f"Of model {name}, learned." for name in fit.models}
        none = {"unlike_any": "Share of simulations of the models that are no less strange."}
        return told | (none if len(fit.strangeness) else {})

    def catalogue_values(self, observations: Observations) -> dict[str, NDArray[np.float64]]:
        """Return these numbers, (N,) each."""
        found = list(self.predict_proba(observations).T)
        if len(self._fitted("catalogue_values").strangeness):
            found.append(self.unlike_any(observations))
        return dict(zip(self.catalogue_columns(), found, strict=True))

    def catalogue_hash(self) -> str:
        """Return a fingerprint of the network, its problem and the weights of the models."""
        fit = self._fitted("catalogue_hash")
        weights = weights_of(self.model_prior, fit.models).tolist()
        own = {"fit": engine_hash(fit.fitted), "temperature": fit.temperature, "prior": weights}
        return fingerprint(own)

    def save(self, path: str | Path) -> None:
        """Write the fitted classifier to a file of JSON and numbers; code is not in it."""
        fit = self._fitted("save")
        weights = weights_of(self.model_prior, fit.models).tolist()
        fit.save(path, {"model_prior": weights, "seed": self.seed})

    @classmethod
    def load(
        cls, path: str | Path, *, featurizer: nn.Module | None = None, device: str | None = None
    ) -> ModelClassifier:
        """Read a fitted classifier, which answers without its engines; nothing is executed.

        Parameters
        ----------
        path : str or Path
        featurizer : nn.Module, optional
            Needed only where it is your own code.
        device : str, optional
        """
        fit, chosen = ClassFit.load(path, options.device_of(device), featurizer)
        wish = fit.fitted.model.featurizer.wish if featurizer is None else featurizer
        return cls(featurizer=wish, device=device, **chosen)._keep(fit)

    # --- behind the verbs ------------------------------------------------------------------------

    def _engines(self) -> dict[str, Engine]:
        """Return the engines, or say what is missing of them."""
        remedy = 'Write {"name": engine, "other": ...}.'
        engines = dict(of_kind("engines", self.engines, Mapping, remedy))
        if len(engines) < 2 or not all(isinstance(k, str) and k for k in engines):
            raise ValueError(
                f"engines must be two at least, named by texts, but are {list(engines)}. {remedy}"
            )
        for name, engine in engines.items():
            of_kind(f"engine {name!r}", engine, Engine, remedy)
            if engine.simulator is None:
                raise ValueError(
                    f"engine {name!r} must have a simulator, but has none. Load it with one."
                )
        return engines

    def _fitted(self, caller: str) -> ClassFit:
        if not hasattr(self, "fit_"):
            raise NotFittedError(
                f"This ModelClassifier is not fitted yet. Call fit before {caller}."
            )
        return self.fit_

    def _scores(self, caller: str, observations: Observations) -> NDArray[np.float64]:
        """Return log-probabilities (N, M) but for a sum."""
        fit = self._fitted(caller)
        return fit.log_shares(observations) + np.log(weights_of(self.model_prior, fit.models))

    def _keep(self, fit: ClassFit) -> ModelClassifier:
        self.fit_, self.models_ = fit, fit.models
        self.history_ = fit.fitted.model.history
        self.temperature_, self.reliability_ = fit.temperature, fit.reliability
        return self
