"""Engine: the estimator people hold. It opens doors and passes work to the rooms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import nn

from nbi_plus import doors
from nbi_plus.infer.answer import Answerer
from nbi_plus.infer.ladder import Ladder
from nbi_plus.infer.posterior import Posterior
from nbi_plus.infer.posteriors import Posteriors
from nbi_plus.io.archive import read_archive, write_archive
from nbi_plus.io.store import read_columns
from nbi_plus.learn import fitting
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.training import History, TrainConfig
from nbi_plus.problem.noise import Noise, as_noise, noise_from_meta
from nbi_plus.problem.observations import Batch, Observations
from nbi_plus.problem.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.simulations import Campaign
from nbi_plus.problem.simulator import BoundSimulator, Simulator
from nbi_plus.problem.target import Target


class UncertifiedWarning(UserWarning):
    """The posterior that was asked for passed no gate."""


class Engine(BaseEstimator):
    """Neural posterior estimation whose every answer is weighted, judged and labelled.

    Parameters
    ----------
    simulator : callable or Simulator, optional
        ``f(theta)``, ``f(theta, t)``, ...; any further argument is looked up by name among the
        coordinates. numpy or torch, one row or many at a time. Without one, `fit` takes
        simulations (``theta=``, ``x=``) and answers stay uncorrected.
    prior : Prior, mapping, sequence or callable
        See `Prior`.
    noise : Noise, float, array_like or callable, optional
        Default `GaussianNoise`, with the observations' own errors. Numbers are its sigma.
    featurizer : str, dict or nn.Module
        ``"resnet-gru"``, ``"resnet"``, ``"gru"``, ``"transformer"``, nbi's dict, or your own.
    flow : {"maf", "nsf"} or dict
    labels : sequence of str, optional
        Names of parameters, for a prior given as a list.
    priors : optional
        nbi's name for ``prior``.
    device : str, optional
        Default: CUDA where there is one.
    n_jobs : int, optional
        Processes that simulate; None chooses, -1 takes all cores.
    client : dask.distributed.Client, optional
        Simulates there instead.
    seed : int
    path : str or Path, optional
        Folder for simulations and checkpoints, used again by the next `fit` of the same problem.
    ladder : Ladder, optional
        Thresholds and budgets of the corrections.
    memory : float
        Gigabytes of simulations held on the device; more are streamed from disk.

    Attributes
    ----------
    model_ : TrainedModel
    prior_ : Prior
    noise_ : Noise
    simulator_ : BoundSimulator or None
    history_ : list of dict
        Losses of every epoch.
    defaults_ : dict
        Errors and coordinates given to `fit`, used by the other doors when they are given none.

    Examples
    --------
    >>> from scipy.stats import norm
    >>> engine = Engine(lambda theta: theta @ np.ones((1, 8)), {"a": norm(0, 1)}, noise=0.5)
    >>> posterior = engine.fit(n_sims=500, n_epochs=2).predict(np.full(8, 0.3))
    >>> posterior.names, len(posterior) >= 2000
    (('a',), True)
    """

    def __init__(  # noqa: PLR0913 - the public door
        self,
        simulator: Simulator | Callable | None = None,
        prior: Prior | Mapping | list | Callable | None = None,
        *,
        noise: Noise | ArrayLike | Callable | None = None,
        featurizer: str | Mapping[str, Any] | nn.Module = "resnet-gru",
        flow: str | Mapping[str, Any] | FlowConfig = "maf",
        labels: list[str] | None = None,
        priors: Prior | Mapping | list | Callable | None = None,
        device: str | None = None,
        n_jobs: int | None = None,
        client: object | None = None,
        seed: int = 0,
        path: str | Path | None = None,
        ladder: Ladder | None = None,
        memory: float = 4.0,
    ) -> None:
        self.simulator = simulator
        self.prior = prior
        self.noise = noise
        self.featurizer = featurizer
        self.flow = flow
        self.labels = labels
        self.priors = priors
        self.device = device
        self.n_jobs = n_jobs
        self.client = client
        self.seed = seed
        self.path = path
        self.ladder = ladder
        self.memory = memory

    # ------------------------------------------------------------------ fit

    def fit(  # noqa: PLR0913 - the public door
        self,
        n_sims: int | None = None,
        *,
        n_rounds: int = 1,
        n_epochs: int | None = None,
        observations: Observations | None = None,
        x_obs: ArrayLike | None = None,
        x_err: ArrayLike | None = None,
        theta: ArrayLike | None = None,
        x: ArrayLike | str | Path | None = None,
        noise: Noise | ArrayLike | Callable | None = None,
        online: bool = False,
        warm_start: bool = False,
        batch_size: int | None = None,
        lr: float | None = None,
        train: TrainConfig | Mapping[str, Any] | None = None,
        max_failed: float = 0.1,
        callback: Callable[[History], None] | None = None,
        progress: bool | None = None,
        **inputs: ArrayLike,
    ) -> Engine:
        """Simulate and train.

        Parameters
        ----------
        n_sims : int
            Simulations; with ``online`` as many fresh ones for each epoch.
        n_rounds : int
            1: one amortized network for all objects.
        n_epochs, batch_size, lr, train
            Training; ``train`` takes every option of `TrainConfig`.
        observations : Observations, optional
            Objects whose errors, gaps and coordinates the network is trained for.
        x_obs, x_err : array_like, optional
            The same for one object, or only its errors.
        theta, x : array_like, optional
            Noise-free simulations made elsewhere, (n, D) and (n, L) or (n, C, L), instead of
            ``n_sims``; or ``x`` is an HDF5 file that holds datasets ``theta`` and ``x``.
        noise : optional
            Overrides the constructor's.
        online : bool
            Simulate fresh batches while training.
        warm_start : bool
            Go on with the present network instead of a new one.
        max_failed : float
            Largest share of simulations that may fail.
        callback : callable, optional
            ``callback(history)`` after each epoch.
        progress : bool, optional
            Show bars; by default only on a terminal.
        **inputs : array_like
            Coordinates (``t=``, ``wavelength=``, ...) and scalars that the simulator asks for.

        Returns
        -------
        Engine
            Itself.
        """
        doors.check_inputs(inputs, self.simulator, "fit")
        if n_rounds != 1:
            raise NotImplementedError(f"n_rounds must be 1, but is {n_rounds}: sequential fits of one object "
                                      "are not available yet. Fit amortized with more n_sims.")
        if warm_start:
            self._require_fit("fit(warm_start=True)")
        options = {"n_epochs": n_epochs, "batch_size": batch_size, "lr": lr}
        config = doors.train_config(train, options)
        prior = Prior.coerce(self.prior if self.prior is not None else self.priors, labels=self.labels)
        columns = self._given_simulations(prior, theta, x, n_sims)
        seen = _conditions(observations, x_obs, x_err, inputs)
        with preserved_random_state():
            conditions, bound = self._conditions(prior, seen, x_err, inputs, columns)
            noise = as_noise(self.noise if noise is None else noise)
            bound_noise = noise.bind(conditions.x_err is not None, prior.full_names)
            self._refuse_stochastic(bound, bound_noise, conditions)
            parts = self._ingredients(prior, bound_noise, conditions, bound, config)
            material = self._material(parts, bound, columns, n_sims, online, max_failed, progress)
            start = self.model_ if warm_start else None
            folder = None if self.path is None or warm_start else Path(self.path)
            model = fitting.fit(material, parts, start=start, folder=folder, callback=callback, progress=progress)
        self.prior_, self.noise_, self.simulator_, self.model_ = prior, bound_noise, bound, model
        self.history_ = model.history
        self.defaults_ = _defaults(seen, x_err, inputs)
        return self

    # ------------------------------------------------------------------ answer

    def predict(
        self,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        n_samples: int = 2000,
        mask: ArrayLike | None = None,
        seed: int | None = None,
        **inputs: ArrayLike,
    ) -> Posterior:
        """Return the posterior of one object.

        Parameters
        ----------
        x_obs : array_like, shape (L,) or (C, L)
        x_err : array_like, optional
            Default: that given to `fit`.
        n_samples : int
            Draws wanted; at least as many are returned, with their weights.
        mask : array_like of bool, optional
            True for a real point.
        seed : int, optional
            Default: the engine's.
        **inputs : array_like
            Coordinates and scalars; default: those given to `fit`.

        Returns
        -------
        Posterior
        """
        answerer = self._answerer("predict")
        one = self._one(x_obs, x_err, mask, inputs, "predict")
        posterior = answerer.posteriors(one, n_samples, None, self._seed(seed))[0]
        if not posterior.certified:
            warnings.warn(f"{posterior.status.name}: {posterior.status.value}", UncertifiedWarning, stacklevel=2)
        return posterior

    def predict_many(
        self,
        observations: Observations,
        *,
        n_samples: int = 2000,
        keep: int | None = None,
        seed: int | None = None,
    ) -> Posteriors:
        """Return the posteriors of many objects, batched throughout.

        Parameters
        ----------
        observations : Observations
        n_samples : int
            Draws wanted of each object.
        keep : int, optional
            None keeps all draws, n keeps n resampled ones, 0 only the summaries.
        seed : int, optional
            Default: the engine's. The draws of an object depend on the seed and its id alone.

        Returns
        -------
        Posteriors
        """
        answerer = self._answerer("predict_many")
        return answerer.posteriors(doors.with_grid(observations, self.defaults_), n_samples, keep, self._seed(seed))

    def sample(
        self,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        n_samples: int = 1000,
        mask: ArrayLike | None = None,
        seed: int | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return draws (n_samples, D) of the network alone: fast, and not corrected."""
        answerer = self._answerer("sample")
        return answerer.draws(self._one(x_obs, x_err, mask, inputs, "sample"), n_samples, self._seed(seed))[0]

    def log_prob(
        self, theta: ArrayLike, x: ArrayLike, x_err: ArrayLike | None = None, **inputs: ArrayLike
    ) -> NDArray[np.float64]:
        """Return log q(theta | x) of the network, shape (n,).

        Parameters
        ----------
        theta : array_like, shape (n, D)
        x : array_like, shape (L,) or (C, L) for one object, else (n, L) or (n, C, L)
            One object for all theta, or one for each.
        x_err, **inputs
            Default: those given to `fit`.
        """
        answerer = self._answerer("log_prob")
        draws = self.prior_.check(theta)
        inputs = self._inputs(inputs, "log_prob")
        error = self._default_error(x_err)
        if doors.is_one_object(x, self.model_.shape, len(draws)):
            objects = doors.one_object(x, error, None, inputs)
        else:
            objects = doors.many_objects(x, error, inputs)
        return answerer.log_prob(draws, objects)

    def score(
        self, theta: ArrayLike, x: ArrayLike, x_err: ArrayLike | None = None, **inputs: ArrayLike
    ) -> float:
        """Return the mean of log q(theta | x) over pairs theta (n, D), x (n, L) or (n, C, L)."""
        return float(self.log_prob(theta, x, x_err, **inputs).mean())

    # ------------------------------------------------------------------ the problem itself

    def log_likelihood(
        self, theta: ArrayLike, x_obs: ArrayLike, x_err: ArrayLike | None = None, **inputs: ArrayLike
    ) -> NDArray[np.float64]:
        """Return log L(theta) of one object, shape (n,): the density every answer is weighted with."""
        return self._evaluate(theta, x_obs, x_err, inputs)[1]

    def log_posterior(
        self, theta: ArrayLike, x_obs: ArrayLike, x_err: ArrayLike | None = None, **inputs: ArrayLike
    ) -> NDArray[np.float64]:
        """Return log prior + log L of one object in theta, shape (n,); -inf outside the prior."""
        log_prior, log_like = self._evaluate(theta, x_obs, x_err, inputs)
        return np.where(np.isfinite(log_prior) & ~np.isnan(log_like), log_prior + log_like, -np.inf)

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Write the fitted engine to a file of JSON and numbers; code is not in it."""
        self._require_fit("save")
        defaults = {f"defaults/{k}": np.asarray(v) for k, v in self.defaults_.items()}
        meta = {
            "model": self.model_.meta(),
            "prior": self.prior_.to_meta(),
            "noise": self.noise_.meta(),
            "seed": self.seed,
        }
        write_archive(Path(path), "engine", meta, self.model_.arrays() | self.prior_.arrays() | defaults)

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
        **options: Any,  # noqa: ANN401 - passed on to Engine
    ) -> Engine:
        """Read a fitted engine; nothing in the file is executed.

        Parameters
        ----------
        path : str or Path
        simulator : callable, optional
            The same as at `fit`; without it answers stay uncorrected.
        prior, noise, featurizer
            Needed only where they are your own code.
        device, **options
            As for `Engine`.
        """
        archive = read_archive(Path(path), "engine")
        meta = archive.meta
        prior = Prior.from_meta(meta["prior"], archive.arrays) if prior is None else prior
        if noise is None:
            if meta["noise"] is None:
                raise ValueError(f"noise must be passed again, for {path} holds none of your code. "
                                 "Call Engine.load(path, simulator=..., noise=...).")
            noise = noise_from_meta(meta["noise"])
        arrays = {k: v for k, v in archive.arrays.items() if not k.startswith(("defaults/", "prior/"))}
        model = TrainedModel.from_archive(replace(archive, arrays=arrays), doors.device_of(device), featurizer)
        engine = cls(
            simulator, prior, noise=noise, flow=model.network.flow.config, device=device,
            featurizer=model.featurizer.name if featurizer is None else featurizer,
            seed=meta["seed"], **options,
        )  # fmt: skip
        engine.prior_, engine.model_, engine.history_ = prior, model, model.history
        engine.noise_ = as_noise(noise).bind(model.conditions.x_err is not None, prior.full_names)
        engine.defaults_ = {k[9:]: v for k, v in archive.arrays.items() if k.startswith("defaults/")}
        engine.simulator_ = None if simulator is None else _bind(simulator, prior, model.conditions)
        return engine

    # ------------------------------------------------------------------ inside

    def _require_fit(self, door: str) -> None:
        if not hasattr(self, "model_"):
            raise NotFittedError(f"This Engine is not fitted yet. Call fit before {door}.")

    def _given_simulations(
        self, prior: Prior, theta: ArrayLike | None, x: ArrayLike | str | Path | None, n_sims: int | None
    ) -> dict[str, NDArray] | None:
        """Return columns of simulations made elsewhere, or None where they are to be made."""
        if theta is None and x is None:
            if self.simulator is None:
                raise ValueError("fit must have a simulator or simulations, but has neither. "
                                 "Give Engine(simulator, prior), or fit(theta=..., x=...).")
            if not isinstance(n_sims, (int, np.integer)) or n_sims < 2:
                raise ValueError(f"n_sims must be a whole number of at least 2, but is {n_sims!r}.")
            return None
        if n_sims is not None:
            raise ValueError("fit must have n_sims, or theta and x, but has both.")
        if isinstance(x, (str, Path)) and theta is None:
            stored = read_columns(x, ("theta", "x"))
            theta, x = stored["theta"], stored["x"]
        return _offline(prior, theta, x)

    def _conditions(
        self, prior: Prior, seen: Observations | None, x_err: ArrayLike | None, inputs: Mapping[str, ArrayLike],
        columns: dict[str, NDArray] | None,
    ) -> tuple[Batch, BoundSimulator | None]:  # fmt: skip
        """Return the training conditions and the simulator bound to their coordinates."""
        if seen is not None:
            conditions = seen.batch()
            bound = None if self.simulator is None else _bind(self.simulator, prior, conditions)
        else:
            coords, scalars = doors.split_inputs(inputs)
            bare = Batch(
                torch.zeros(1, 1, 1), None, torch.ones(1, 1, 1, dtype=torch.bool),
                {k: torch.as_tensor(np.asarray(v, np.float64)) for k, v in coords.items()},
                {k: torch.as_tensor(np.asarray(v, np.float64)[None]) for k, v in scalars.items()},
            )  # fmt: skip
            bound = None if self.simulator is None else _bind(self.simulator, prior, bare)
            shape = columns["x"].shape[1:] if columns is not None else bound.shape
            made = doors.one_object(np.zeros(shape), x_err, None, inputs)
            conditions = made.batch()
        shape = tuple(conditions.mask.shape[1:])
        came = bound.shape if bound is not None else columns["x"].shape[1:]
        if tuple(came) != shape:
            raise ValueError(f"the observations must have the shape {tuple(came)} (C, L) of the simulations, "
                             f"but have {shape}.")
        if columns is not None and columns["x"].shape[1:] != shape:
            raise ValueError(f"x must have shape (n, {shape[0]}, {shape[1]}), but has {columns['x'].shape}. "
                             "Did you swap x and theta?")
        return conditions, bound

    def _refuse_stochastic(self, bound: BoundSimulator | None, noise: Noise, conditions: Batch) -> None:
        if bound is not None and bound.stochastic and noise.has_likelihood(conditions.x_err is not None):
            raise ValueError("simulator must give the same x for the same theta, but gave two different ones: "
                             "weights would be silently wrong. Move its noise into noise=, or give a "
                             "CustomNoise without a log_likelihood and read status AMORTIZED.")

    def _ingredients(
        self, prior: Prior, noise: Noise, conditions: Batch, bound: BoundSimulator | None, config: TrainConfig
    ) -> fitting.Ingredients:
        n_inputs = fitting.EncoderConfig.of(conditions).n_inputs
        length = conditions.mask.shape[-1]
        spec, custom = doors.featurizer_spec(self.featurizer, n_inputs, length, prior.n_dim)
        own_grid = bound is not None and bool(conditions.per_object() & set(bound.arguments))
        return fitting.Ingredients(
            prior=prior, noise=noise, conditions=conditions, own_grid=own_grid, featurizer=spec, custom=custom,
            flow=doors.flow_config(self.flow, prior.n_dim), train=config, device=doors.device_of(self.device),
            seed=self.seed, memory=int(self.memory * 1e9),
        )  # fmt: skip

    def _material(
        self, parts: fitting.Ingredients, bound: BoundSimulator | None, columns: dict[str, NDArray] | None,
        n_sims: int | None, online: bool, max_failed: float, progress: bool | None,
    ) -> fitting.Material:  # fmt: skip
        if columns is not None:
            return fitting.from_arrays(columns, parts)
        campaign = Campaign(parts.prior, bound, parts.conditions, self.seed, self.n_jobs, self.client, progress)
        if online:
            return fitting.online(campaign, n_sims, parts)
        with campaign.open(None if self.path is None else Path(self.path), n_sims) as store:
            campaign.fill(store, n_sims, max_failed)
            return fitting.from_store(store, n_sims, parts)

    def _one(
        self, x_obs: ArrayLike, x_err: ArrayLike | None, mask: ArrayLike | None, inputs: Mapping[str, ArrayLike],
        door: str,
    ) -> Observations:  # fmt: skip
        return doors.one_object(x_obs, self._default_error(x_err), mask, self._inputs(inputs, door))

    def _inputs(self, inputs: Mapping[str, ArrayLike], door: str) -> dict[str, ArrayLike]:
        doors.check_inputs(inputs, self.simulator, door)
        return {k: v for k, v in self.defaults_.items() if k != "x_err"} | dict(inputs)

    def _default_error(self, x_err: ArrayLike | None) -> ArrayLike | None:
        return self.defaults_.get("x_err") if x_err is None else x_err

    def _seed(self, seed: int | None) -> int:
        return self.seed if seed is None else seed

    def _answerer(self, door: str) -> Answerer:
        self._require_fit(door)
        return Answerer(self.prior_, self.noise_, self.simulator_, self.model_, self.ladder or Ladder(),
                        doors.device_of(self.device), self.n_jobs, self.client)

    def _evaluate(
        self, theta: ArrayLike, x_obs: ArrayLike, x_err: ArrayLike | None, inputs: Mapping[str, ArrayLike]
    ) -> tuple[NDArray, NDArray]:
        """Return log prior and log likelihood of theta (n, D) for one object, fitted or not."""
        fitted = hasattr(self, "model_")
        prior = self.prior_ if fitted else Prior.coerce(
            self.prior if self.prior is not None else self.priors, labels=self.labels)
        if self.simulator is None:
            raise ValueError("the engine must have a simulator for a likelihood, but has none.")
        defaults = self.defaults_ if fitted else {}
        doors.check_inputs(inputs, self.simulator, "log_likelihood")
        known = {k: v for k, v in defaults.items() if k != "x_err"} | dict(inputs)
        batch = doors.one_object(x_obs, defaults.get("x_err") if x_err is None else x_err, None, known).batch()
        with preserved_random_state():
            bound = self.simulator_ if fitted else _bind(self.simulator, prior, batch)
            noise = self.noise_ if fitted else as_noise(self.noise).bind(batch.x_err is not None, prior.full_names)
            values = prior.check(np.atleast_2d(np.asarray(theta, np.float64)))
            log_prior = np.asarray(prior.log_prob(values))
            inside = np.isfinite(log_prior)
            log_like = np.full(len(values), -np.inf)
            if inside.any():
                target = Target(prior, bound, noise, batch, self.n_jobs, self.client)
                z = torch.as_tensor(prior.to_latent(values[inside]))[None]
                log_like[inside] = target.evaluate(z, torch.zeros(1, dtype=torch.int64)).log_likelihood[0].numpy()
        return log_prior, log_like


def _bind(simulator: Simulator | Callable, prior: Prior, conditions: Batch) -> BoundSimulator:
    inputs = {k: v.numpy() for k, v in conditions.arguments().items()}
    return doors.bind_simulator(simulator, prior, inputs, conditions.per_object())


def _conditions(
    observations: Observations | None, x_obs: ArrayLike | None, x_err: ArrayLike | None,
    inputs: Mapping[str, ArrayLike],
) -> Observations | None:  # fmt: skip
    """Return the objects to train for, or None when only a simulator tells the shape."""
    if observations is not None and x_obs is not None:
        raise ValueError("fit must have observations or x_obs, but has both.")
    if observations is not None and not isinstance(observations, Observations):
        raise TypeError(f"observations must be Observations, but are {type(observations).__name__}.")
    return observations if x_obs is None else doors.one_object(x_obs, x_err, None, inputs)


def _defaults(
    seen: Observations | None, x_err: ArrayLike | None, inputs: Mapping[str, ArrayLike]
) -> dict[str, NDArray]:
    """Return what other doors use when they are given nothing."""
    grid = dict(seen.points) if seen is not None and seen.shared_grid else {}
    errors = {} if x_err is None else {"x_err": np.asarray(x_err, np.float64)}
    return grid | {k: np.asarray(v, np.float64) for k, v in inputs.items()} | errors


def _offline(prior: Prior, theta: ArrayLike | None, x: ArrayLike | None) -> dict[str, NDArray]:
    """Return columns of given simulations; rows that are not finite are left out."""
    if theta is None or x is None:
        raise ValueError("theta and x must be given together, but one of them is missing.")
    values = prior.check(theta)
    data = np.asarray(x, np.float64)
    if data.ndim not in (2, 3) or len(data) != len(values):
        raise ValueError(f"x must have shape ({len(values)}, L) or ({len(values)}, C, L), but has {data.shape}.")
    data = data[:, None] if data.ndim == 2 else data
    good = np.isfinite(data).all((1, 2)) & np.isfinite(np.asarray(prior.log_prob(values)))
    if good.sum() < 2:
        raise ValueError(f"theta and x must have finite rows inside the prior, but {int((~good).sum())} of "
                         f"{len(good)} have not.")
    z = np.asarray(prior.to_latent(values[good]))
    return {"z": z, "theta": values[good], "x": data[good], "owner": np.zeros(int(good.sum()), np.int64)}
