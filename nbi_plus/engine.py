"""Engine: the estimator people hold. It opens doors and passes work to the rooms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from torch import nn

from nbi_plus import files, options
from nbi_plus.data.ingest import point_mask
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.sequential.config import RoundsConfig
from nbi_plus.infer.sequential.fit import SequentialFit, SequentialRun
from nbi_plus.learn import fitting
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.run import Run
from nbi_plus.learn.training import History, TrainConfig
from nbi_plus.predictor import Predictor
from nbi_plus.problem.binding import (
    NONE_KNOWN,
    bind_simulator,
    check_inputs,
    check_observations,
)
from nbi_plus.problem.noise.custom import as_noise
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.setup import FitInputs, Problem, check_noise_of, set_up
from nbi_plus.problem.simulator.cadence import Cadences, Perturbation
from nbi_plus.problem.simulator.simulator import Simulator

_LOCATE = {"n_epochs": 25}  # of a network that need only find the place, round after round


class Engine(Predictor, BaseEstimator):
    """Neural posterior estimation whose every answer is weighted, judged and labelled.

    Parameters
    ----------
    simulator : callable or Simulator, optional
        ``f(theta)``, ``f(theta, t)``, ...; any further argument is looked up by name among the
        coordinates. numpy or torch, one row or many at a time. Where objects have times of their
        own, each point must be given whatever other points there are. Without one, `fit` takes
        simulations (``theta=``, ``x=``) and answers stay uncorrected.
    prior : Prior, mapping, sequence or callable
        See `Prior`.
    noise : Noise, float, array_like or callable, optional
        Default `GaussianNoise`, with the observations' own errors. Numbers are its sigma.
    featurizer : str, dict, list of these, or nn.Module
        ``"resnet-gru"``, ``"resnet"``, ``"gru"``, ``"transformer"``, ``"spectrum"``, nbi's dict, or
        your own; a list has one for each channel of the data.
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
    posterior_ : Posterior
        After a sequential fit: its answer, of all its simulations.
    rounds_ : Rounds
        What every round of it came to; prints as a table.
    sequential_ : SequentialFit
    defaults_ : dict
        Errors and coordinates given to `fit`, used by the other doors when they are given none.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.stats import norm
    >>> engine = Engine(lambda theta: theta @ np.ones((1, 8)), {"a": norm(0, 1)}, noise=0.5)
    >>> x = 0.3 + 0.5 * np.random.default_rng(0).normal(size=8)
    >>> posterior = engine.fit(n_sims=500, n_epochs=2).predict(x)
    >>> posterior.names, len(posterior) >= 2000
    (('a',), True)
    """

    def __init__(  # noqa: PLR0913 - the public door
        self,
        simulator: Simulator | Callable | None = None,
        prior: Prior | Mapping | list | Callable | None = None,
        *,
        noise: Noise | ArrayLike | Callable | None = None,
        featurizer: str | Mapping[str, Any] | list[str | Mapping] | nn.Module = "resnet-gru",
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

    def fit(  # noqa: PLR0913 - the public door
        self,
        n_sims: int | ArrayLike | None = None,
        x: ArrayLike | str | Path | None = None,
        *,
        n_rounds: int = 1,
        n_epochs: int | None = None,
        observations: Observations | None = None,
        x_obs: ArrayLike | None = None,
        x_err: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        theta: ArrayLike | None = None,
        noise: Noise | ArrayLike | Callable | None = None,
        online: bool = False,
        warm_start: bool = False,
        method: str | None = None,
        ess_target: float = 1000.0,
        max_sims: int | None = None,
        max_seconds: float | None = None,
        modes: ArrayLike | Callable[[NDArray], ArrayLike] | None = None,
        perturb: Perturbation | bool | None = None,
        grid: ArrayLike | Mapping[str, ArrayLike] | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        train: TrainConfig | Mapping[str, Any] | None = None,
        max_failed: float | None = None,
        callback: Callable[[History], None] | None = None,
        progress: bool | None = None,
        **inputs: ArrayLike,
    ) -> Engine:
        """Simulate and train.

        Parameters
        ----------
        n_sims : int
            Simulations, of each round; with ``online`` as many fresh ones for each epoch. An array
            in this place is ``theta``: ``fit(theta, x)``.
        n_rounds : int
            1: one amortized network for all objects. More: a sequential fit of ``x_obs`` alone,
            in at most so many rounds; its answer is ``posterior_``.
        n_epochs, batch_size, lr, train
            Training; ``train`` takes every option of `TrainConfig`.
        observations : Observations, optional
            Objects whose errors, gaps and coordinates the network is trained for.
        x_obs, x_err : array_like, optional
            The same for one object, or only its errors; ``x_obs`` may be a table, as for `predict`.
        mask, bad : array_like of bool, optional
            One of them, of the points of ``x_obs``: ``mask`` is True for a real point, ``bad`` is
            True for one to leave out, as masks of numpy and astropy are.
        theta, x : array_like, optional
            Noise-free simulations made elsewhere, (n, D) and (n, L) or (n, C, L), instead of
            ``n_sims``; or ``x`` is an HDF5 file that holds datasets ``theta`` and ``x``.
        noise : optional
            Overrides the constructor's.
        online : bool
            Simulate fresh batches while training.
        warm_start : bool
            Go on with the present network instead of a new one. A sequential fit then starts from
            the posterior of the amortized network instead of the prior.
        method : {"amis", "snpe-is", "apt", "tsnpe"}, optional
            Of a sequential fit: see the guide. Default: "amis", or "tsnpe" without a likelihood.
        ess_target : float
            Effective sample size that a sequential fit shall reach.
        max_sims, max_seconds : optional
            Where a sequential fit must stop. Default: ``n_sims * n_rounds``, and never.
        modes : array_like, shape (M, D), or callable, optional
            Places in theta where a sequential fit shall look from the start, or ``modes(x_obs)``,
            as the peaks of a periodogram; NaN where a coordinate is not known.
        perturb : Perturbation or bool, optional
            How far simulations may differ from the cadences of ``observations`` that they imitate.
            Default: `Perturbation` for several objects, no change for one.
        grid : array_like, shape (G,), or mapping of one name to it, optional
            For an expensive simulator: it is run at these times ``t`` (or values of the coordinate
            named) instead of at those of an object, and its curves are interpolated for other
            objects at each epoch. Weights always use the simulator itself.
        max_failed : float, optional
            Largest share of simulations that may fail. Default: 0.1, in a sequential fit 0.5.
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
        n_sims, theta = options.positional(n_sims, theta, x)
        check_inputs(inputs, self.simulator, "fit")
        sequential = self._is_sequential(n_rounds, method, observations, x_obs)
        goes_on = hasattr(self, "model_") and (sequential or warm_start)
        known = self._conventions() if goes_on else NONE_KNOWN
        real = point_mask(mask, bad)
        given = FitInputs(observations, x_obs, x_err, theta, x, inputs, grid, known, real)
        self._check_start(sequential, warm_start, n_sims, online, given)
        chosen = {"n_epochs": n_epochs, "batch_size": batch_size, "lr": lr}
        config = options.train_config(train, chosen, _LOCATE if sequential else {})
        noise = as_noise(self.noise if noise is None else noise)
        if max_failed is None:
            max_failed = 0.5 if sequential else 0.1
        run = Run(
            n_sims, online, max_failed, self._folder(), self.n_jobs, self.client, callback, progress
        )
        with preserved_random_state():
            problem = set_up(self._prior(), self.simulator, noise, given)
            start = self.model_ if warm_start else None
            options.check_continues(start, problem.conditions)
            recipe = self._recipe(problem, config, options.perturbation(perturb, observations))
            check_noise_of(problem, recipe.device)
            if not sequential:
                return self._keep_many(run(problem, recipe, start), problem, given)
            rounds = RoundsConfig(n_sims, n_rounds, ess_target, max_sims, max_seconds)
            gate = (self.ladder or Ladder()).gate
            fit_one = SequentialRun(rounds, options.method_for(method, problem), gate, run, modes)
            return self._keep_one(fit_one(problem, given.objects, recipe, start), given)

    def _check_start(
        self, sequential: bool, warm_start: bool, n_sims: int | None, online: bool, given: FitInputs
    ) -> None:
        """Refuse a fit that has nothing to start from, or too much."""
        if warm_start:
            self._require_fit("fit(warm_start=True)")
        if sequential and n_sims is None:
            raise ValueError("fit must have n_sims, the simulations of each round.")
        if sequential and online:
            raise ValueError("online must be False for a sequential fit, which keeps what it made.")
        if sequential and given.grid is not None:
            raise ValueError("grid must be None for a sequential fit: one object has one cadence.")
        elsewhere = given.theta is not None or given.x is not None
        if not sequential and elsewhere == (n_sims is not None):
            raise ValueError("fit must have either n_sims, or theta and x.")

    @staticmethod
    def _is_sequential(
        n_rounds: int, method: str | None, observations: Observations | None,
        x_obs: ArrayLike | None,
    ) -> bool:  # fmt: skip
        """Say whether one object is asked for; raise when it is not there, or not one."""
        if not (isinstance(n_rounds, Integral) and n_rounds >= 1):
            raise ValueError(f"n_rounds must be a whole number of at least 1, but is {n_rounds!r}.")
        if n_rounds == 1:
            if method is not None:
                raise ValueError(
                    f"method must be None for one round, but is {method!r}. It says how a "
                    "sequential fit goes on: give n_rounds too."
                )
            return False
        if observations is not None:
            check_observations(observations)
        n_objects = 1 if x_obs is not None else 0 if observations is None else len(observations)
        if n_objects != 1:
            raise ValueError(
                f"x_obs must be given for a sequential fit (n_rounds = {n_rounds}), which is of "
                f"one object, but there are {n_objects} objects. Give x_obs, or n_rounds=1."
            )
        return True

    def _keep_one(self, fit: SequentialFit, given: FitInputs) -> Engine:
        """Keep a sequential fit beside an amortized network, or alone."""
        self.sequential_, self.posterior_, self.rounds_ = fit, fit.posterior, fit.rounds
        if not hasattr(self, "model_"):
            self.prior_, self.noise_, self.simulator_ = fit.prior, fit.noise, fit.simulator
            self.defaults_ = given.defaults()
        return self

    def _keep_many(self, model: TrainedModel, problem: Problem, given: FitInputs) -> Engine:
        """Keep an amortized network; a sequential fit from before is of another problem."""
        for name in ("sequential_", "posterior_", "rounds_"):
            if hasattr(self, name):
                delattr(self, name)
        self.prior_, self.noise_, self.simulator_ = problem.prior, problem.noise, problem.simulator
        self.model_, self.history_, self.defaults_ = model, model.history, given.defaults()
        return self

    def save(self, path: str | Path) -> None:
        """Write the fitted engine to a file of JSON and numbers; code is not in it."""
        self._require_fit("save", sequential=True)
        fitted = files.Fitted(
            model=getattr(self, "model_", None),
            prior=self.prior_,
            noise=self.noise_,
            defaults=self.defaults_,
            seed=self.seed,
            sequential=getattr(self, "sequential_", None),
        )
        files.write(Path(path), fitted)

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
        **others: Any,  # noqa: ANN401 - passed on to Engine
    ) -> Engine:
        """Read a fitted engine; nothing in the file is executed.

        Parameters
        ----------
        path : str or Path
        simulator : callable, optional
            The same as at `fit`; without it answers stay uncorrected.
        prior, noise, featurizer
            Needed only where they are your own code.
        device, **others
            As for `Engine`.
        """
        fitted = files.read(
            Path(path), options.device_of(device), prior=prior, noise=noise, featurizer=featurizer
        )
        model, one = fitted.model, fitted.sequential
        trained = {} if model is None else {"flow": model.network.flow.config}
        if featurizer is not None or model is not None:
            trained["featurizer"] = model.featurizer.wish if featurizer is None else featurizer
        engine = cls(
            simulator,
            fitted.prior,
            noise=fitted.noise,
            device=device,
            seed=fitted.seed,
            **trained,
            **others,
        )
        engine.prior_, engine.noise_, engine.defaults_ = fitted.prior, fitted.noise, fitted.defaults
        conditions = one.observations.batch() if model is None else model.conditions
        unit = (one.observations if model is None else model).units.get("x")
        bound = None
        if simulator is not None:
            bound = bind_simulator(simulator, fitted.prior, conditions, unit)
        engine.simulator_ = bound
        if model is not None:
            engine.model_, engine.history_ = model, model.history
        if one is not None:
            one = replace(one, simulator=bound)
            engine.sequential_, engine.posterior_, engine.rounds_ = one, one.posterior, one.rounds
        return engine

    def _folder(self) -> Path | None:
        return None if self.path is None else Path(self.path)

    def _recipe(
        self, problem: Problem, config: TrainConfig, perturbation: Perturbation | None
    ) -> fitting.Recipe:
        prior = problem.prior
        spec, custom = options.featurizer_spec(self.featurizer, problem.conditions, prior.n_dim)
        return fitting.Recipe(
            prior=prior,
            noise=problem.noise,
            cadences=Cadences(
                problem.conditions, problem.fixed, perturbation, problem.grid, custom is None
            ),
            units=problem.units,
            window=problem.window,
            featurizer=spec,
            custom=custom,
            flow=options.flow_config(self.flow, prior.n_dim),
            train=config,
            device=options.device_of(self.device),
            seed=self.seed,
            memory=int(self.memory * 1e9),
        )
