"""TrialEngine: what engines of single trials have in common, whatever they learn of a trial."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from nbi_plus import options
from nbi_plus.arguments import new_folder, seed_of, whole
from nbi_plus.estimators.fits import TrialFit
from nbi_plus.estimators.learned import answers
from nbi_plus.estimators.trials import of_trials, several, stored
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import UntrustedWarning, doubts
from nbi_plus.learn import fitting
from nbi_plus.learn.model import PLAIN
from nbi_plus.learn.run import Run
from nbi_plus.learn.training import History, TrainConfig
from nbi_plus.problem import binding
from nbi_plus.problem.gathered import Files
from nbi_plus.problem.noise.custom import without_likelihood
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.setup import FitInputs, Problem, set_up
from nbi_plus.problem.simulator.cadence import Cadences
from nbi_plus.torch_state import doors
from nbi_plus.trust.calibration import Calibration, Custom, functions_of, sbc

_MEMORY = 4.0  # gigabytes of simulations held on the device
_Own = TypeVar("_Own", bound="TrialEngine")


@doors
class TrialEngine(BaseEstimator, ABC):
    """An engine that learns from single trials, and answers for as many as there are.

    Those that are made of it store their arguments, among them ``simulator``, ``prior``, ``noise``,
    ``seed``, ``device`` and ``path``, and say what is learned.
    """

    _kind: ClassVar[str]  # of its files
    _chosen: ClassVar[tuple[str, ...]]  # arguments that they keep

    @property
    @abstractmethod
    def _reading(self) -> str | Mapping[str, Any] | nn.Module:
        """How trials are read: a featurizer, or `PLAIN`."""

    @abstractmethod
    def _learned(self, problem: Problem) -> dict[str, Any]:
        """Return what of the `Recipe` is its own."""

    def fit(  # noqa: PLR0913 - the public door
        self: _Own,
        n_sims: int | ArrayLike | None = None,
        x: ArrayLike | Files | None = None,
        *,
        theta: ArrayLike | None = None,
        n_epochs: int | None = None,
        online: bool = False,
        batch_size: int | None = None,
        lr: float | None = None,
        train: TrainConfig | Mapping[str, Any] | None = None,
        augment: Callable[..., Tensor] | None = None,
        max_failed: float = 0.1,
        n_jobs: int | None = None,
        callback: Callable[[History], None] | None = None,
        progress: bool | None = None,
        **inputs: ArrayLike,
    ) -> _Own:
        """Simulate single trials and train.

        Parameters
        ----------
        n_sims : int
            Trials; with ``online`` as many fresh ones for each epoch. An array in this place is
            ``theta``: ``fit(theta, x)``.
        theta, x : array_like, optional
            Trials simulated elsewhere, (n, D) and (n, L) or (n,), or HDF5 files as ``x``.
        n_epochs, online, batch_size, lr, train, augment, max_failed, callback, progress
            As for `Engine.fit`; x of ``augment`` is (n, 1, L).
        n_jobs : int, optional
            Processes that simulate, as for `Engine`.
        **inputs : array_like
            What the simulator asks for by name, the same for all trials.

        Returns
        -------
        TrialEngine
            Itself.
        """
        n_sims, theta = options.positional(n_sims, theta, x)
        binding.check_inputs(inputs, self.simulator, "fit", self.noise)
        if augment is not None and self._reading == PLAIN:
            raise ValueError(
                "augment must be None where the density of the data themselves is learned, which "
                "would be another one. Change the simulator, or take RatioEngine."
            )
        prior = options.prior_of(self.simulator, (self.prior,), None)
        theta, x = stored(theta, x, self._reading, prior.full_names)
        given = FitInputs(theta=theta, x=x, inputs=inputs)
        options.check_start(False, n_sims, online, given)
        chosen = {"n_epochs": n_epochs, "batch_size": batch_size, "lr": lr}
        config = options.train_config(train, chosen, {})
        folder = None if self.path is None else new_folder("path", self.path)
        run = Run(n_sims, online, max_failed, folder, n_jobs, None, callback, progress)
        with preserved_random_state():
            problem = self._problem(prior, given, n_jobs)
            recipe = self._recipe(problem, config).augmented(augment)
            model = run(problem, recipe)
        return self._keep(TrialFit(problem.prior, model, problem.simulator, recipe.device))

    def predict(
        self, trials: ArrayLike, n_samples: int = 2000, *, seed: int | None = None,
        ladder: Ladder | None = None,
    ) -> Posterior:  # fmt: skip
        """Return the posterior of theta given all exchangeable trials.

        Parameters
        ----------
        trials : array_like, shape (T, L), or (T,) where a trial is one number
        n_samples : int
            Draws wanted; at least as many are returned, with their weights.
        seed : int, optional
            Default: the engine's.
        ladder : Ladder, optional

        Returns
        -------
        Posterior
            With status ``LEARNED`` where its weights passed. ``log_likelihood`` and the evidence of
            a ratio are relative to the product of p(x) of all trials.
        """
        posterior = self.predict_many([trials], n_samples, seed=seed, ladder=ladder)[0]
        told = doubts(posterior.status, posterior.flags, posterior.rungs[-1].reason)
        warnings.warn(told, UntrustedWarning, stacklevel=3)
        return posterior

    def predict_many(
        self, sets: Sequence[ArrayLike], n_samples: int = 2000, *, seed: int | None = None,
        ladder: Ladder | None = None,
    ) -> Posteriors:  # fmt: skip
        """Return the posteriors of several sets of trials, which may differ in size, together.

        Parameters
        ----------
        sets : sequence of array_like, each of shape (T, L)
        n_samples, seed, ladder
            As for `predict`.
        """
        fit = self._fitted("predict")
        ladder = Ladder() if ladder is None else ladder
        ladder = replace(ladder, n_draws=max(whole("n_samples", n_samples), ladder.n_draws))
        rows = several(sets, fit.trials)
        likelihood, strange, p_value = fit.summed(rows)
        own = seed_of("seed", self.seed if seed is None else seed)
        return answers(fit.range, likelihood, rows, strange, p_value, ladder, own)

    def summed(self, theta: ArrayLike, trials: ArrayLike) -> NDArray[np.float64]:
        """Return what all trials (T, L) together say of each theta (n, D), shape (n,).

        The sum of log-ratios or log-likelihoods that `predict` weighs with.
        """
        fit = self._fitted("summed")
        draws = fit.prior.check(np.atleast_2d(theta))
        z = torch.as_tensor(fit.prior.to_latent(draws), device=fit.device)
        inside = z.isfinite().all(1)
        likelihood, _, _ = fit.summed(several([trials], fit.trials))
        first = torch.zeros(1, dtype=torch.int64, device=fit.device)
        with torch.no_grad():
            found = likelihood.log_prob(torch.where(inside[:, None], z, 0.0)[None], first)[0]
        return torch.where(inside, found, -torch.inf).cpu().numpy()

    def calibrate(
        self, n: int = 200, n_trials: int = 100, *, n_samples: int = 1000,
        custom: Mapping[str, Custom] | None = None, seed: int | None = None,
    ) -> Calibration:  # fmt: skip
        """Return how the truths of simulated sets of trials rank among the draws of their answers.

        Parameters
        ----------
        n : int
            Draws of the prior.
        n_trials : int
            Trials of each: errors of what was learned add up, so that calibration for few says
            nothing of many.
        n_samples : int
            Draws wanted of each set.
        custom
            As for `Engine.calibrate`.
        seed : int, optional
            Default: the engine's.
        """
        fit, custom = self._fitted("calibrate"), functions_of(custom)
        own = seed_of("seed", self.seed if seed is None else seed)
        truths = fit.prior.sample(whole("n", n, 2), np.random.default_rng(own))
        x = self.simulate(np.repeat(truths, whole("n_trials", n_trials), 0), seed=own)
        good = [rows[np.isfinite(rows).all(1)] for rows in np.split(x, n)]
        return sbc(self.predict_many(good, n_samples, seed=own), truths, seed=own, custom=custom)

    def simulate(self, theta: ArrayLike, *, seed: int | None = None) -> NDArray[np.float64]:
        """Return one trial (L,) for each row of theta (n, D); NaN where the simulator failed.

        Another ``seed`` (default: the engine's) gives other trials of the same parameters.
        """
        fit = self._fitted("simulate")
        draws = fit.prior.check(np.atleast_2d(theta))
        return fit.simulate(draws, seed_of("seed", self.seed if seed is None else seed))

    def save(self, path: str | Path) -> None:
        """Write the fitted engine to a file of JSON and numbers; code is not in it."""
        chosen = {name: getattr(self, name) for name in self._chosen}
        self._fitted("save").save(path, self._kind, chosen)

    # --- behind the verbs ------------------------------------------------------------------------

    def _fitted(self, caller: str) -> TrialFit:
        if not hasattr(self, "fitted_"):
            name = type(self).__name__
            raise NotFittedError(f"This {name} is not fitted yet. Call fit before {caller}.")
        return self.fitted_

    def _keep(self: _Own, fit: TrialFit) -> _Own:
        self.fitted_, self.prior_, self.model_ = fit, fit.prior, fit.model
        self.history_ = fit.model.history
        return self

    def _loaded(self: _Own, fit: TrialFit) -> _Own:
        """Keep a fit that was read from a file, with the simulator of this engine."""
        if self.simulator is not None:
            shaped = of_trials(self.simulator, self._reading)
            bound = binding.bind_simulator(shaped, fit.prior, fit.model.conditions)
            fit = replace(fit, simulator=bound)
        return self._keep(fit)

    def _of_arrays(self, caller: str, theta: ArrayLike, x: ArrayLike) -> NDArray[np.float64]:
        """Return what was learned of pairs of parameters and trials, (n,)."""
        fit = self._fitted(caller)
        draws = torch.as_tensor(fit.prior.check(np.atleast_2d(theta)))
        with torch.no_grad():
            return self._of_pairs(fit, draws, x).cpu().numpy()

    def _of_tensors(self, caller: str, theta: Tensor, x: ArrayLike | Tensor) -> Tensor:
        """Return the same with a graph towards theta."""
        fit = self._fitted(caller)
        n_dim = fit.prior.n_dim
        if not isinstance(theta, Tensor) or theta.ndim != 2 or theta.shape[1] != n_dim:
            came = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise ValueError(
                f"theta must be a tensor of shape (n, {n_dim}) for parameters {fit.prior.names}, "
                f"but is {came}."
            )
        return self._of_pairs(fit, theta.to(torch.float64), x)

    def _of_pairs(self, fit: TrialFit, theta: Tensor, x: ArrayLike | Tensor) -> Tensor:
        statistics = fit.statistics("x", x)
        if len(theta) != len(statistics) and 1 not in (len(theta), len(statistics)):
            raise ValueError(
                f"theta and x must have as many rows, or one of them one, but have {len(theta)} "
                f"and {len(statistics)}."
            )
        return fit.log_prob(theta, statistics)

    def _problem(self, prior: Prior, given: FitInputs, n_jobs: int | None) -> Problem:
        """Return the problem of single trials, or say why it is none."""
        if not prior.has_inverse:
            raise ValueError(
                f"prior must consist of distributions for {type(self).__name__}, whose parameters "
                "come as theta, but is a prior_transform, which has no inverse."
            )
        noise = without_likelihood(self.noise)
        shaped = of_trials(self.simulator, self._reading)
        problem = set_up(prior, shaped, noise, given, n_jobs)
        bound = problem.simulator
        if bound is not None and self.noise is None and not bound.stochastic:
            raise ValueError(
                "simulator must draw its noise, but gave the same x twice for the same theta: "
                "nothing would be left to learn. Draw the noise there, or give "
                "CustomNoise(augment)."
            )
        return problem

    def _recipe(self, problem: Problem, config: TrainConfig) -> fitting.Recipe:
        own = self._learned(problem)
        shared = Cadences(problem.conditions, problem.fixed, None, None, own["custom"] is None)
        return fitting.Recipe(
            prior=problem.prior,
            noise=problem.noise,
            cadences=shared,
            units=problem.units,
            train=config,
            device=options.device_of(self.device),
            seed=seed_of("seed", self.seed),
            memory=options.bytes_of(_MEMORY),
            **own,
        )
