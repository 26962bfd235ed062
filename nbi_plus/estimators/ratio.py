"""RatioEngine: parameters of many exchangeable trials, from simulations of single ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from nbi_plus import options
from nbi_plus.arguments import new_folder, seed_of, whole
from nbi_plus.estimators import trials
from nbi_plus.estimators.fits import RatioFit
from nbi_plus.estimators.learned import answers, told_of_range
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import UntrustedWarning, doubts
from nbi_plus.learn import fitting
from nbi_plus.learn.losses import ContrastLoss
from nbi_plus.learn.ratio import RatioConfig
from nbi_plus.learn.run import Run
from nbi_plus.learn.training import History, TrainConfig
from nbi_plus.problem import binding
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.noise.custom import CustomNoise, as_noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.setup import FitInputs, Problem, set_up
from nbi_plus.problem.simulator.cadence import Cadences
from nbi_plus.problem.simulator.simulator import Simulator
from nbi_plus.torch_state import doors
from nbi_plus.trust.calibration import Calibration, sbc

_MEMORY = 4.0  # gigabytes of simulations held on the device


@doors
class RatioEngine(BaseEstimator):
    r"""Contrastive ratio estimation on single trials, summed over as many as there are.

    A network learns :math:`\log r(x \mid \theta) = \log p(x \mid \theta) / p(x)` of one trial from
    simulations alone (NRE-C, Miller et al. 2022). Of exchangeable trials the log-ratios add up, and
    the ladder of `Engine` answers with their sum: peaks, weights, chains. Answers have status
    ``LEARNED``: their weights passed, but the likelihood is only as good as its training, and small
    errors add up, too. `calibrate` says for how many trials they still do not matter.

    Parameters
    ----------
    simulator : callable or Simulator, optional
        ``f(theta)`` gives one trial for each row of theta (n, P): (n, L), or (n,). It draws its own
        noise, from the global generators of numpy, torch or Python, which are seeded for it.
    prior : Prior, mapping or sequence
    noise : CustomNoise, optional
        Noise to add to the simulations. One whose likelihood is known has no use for this engine.
    n_contrast, gamma : int, float
        How many parameters each trial is compared with, and the odds that one of them is its own.
    featurizer : str, dict or nn.Module
        ``"auto"``: fewer than 16 numbers are columns, each with a scale of its own; more are a
        series. Any other choice is of a series; see `Engine`.
    seed : int
    device : str, optional
    path : str or Path, optional
        Folder for simulations and checkpoints, as for `Engine`.
    balance : float
        Weight of the balancing term of Delaunoy et al. (2022), whose own choice is 100: it makes
        answers cautious where there are few simulations.

    Attributes
    ----------
    prior_ : Prior
    model_ : TrainedModel
    history_ : list of dict

    Examples
    --------
    >>> from scipy.stats import uniform
    >>> def simulator(theta):
    ...     return theta + torch.randn(theta.shape, dtype=theta.dtype)
    >>> engine = RatioEngine(simulator, {"mu": uniform(-3, 6)})
    >>> engine = engine.fit(n_sims=2000, n_epochs=5)
    >>> engine.log_ratio([[0.0]], [[0.1], [2.5]]).shape
    (2,)
    """

    def __init__(  # noqa: PLR0913 - the public door
        self,
        simulator: Simulator | Callable | None = None,
        prior: Prior | Mapping | list | None = None,
        noise: Noise | None = None,
        *,
        n_contrast: int = 32,
        gamma: float = 1.0,
        featurizer: str | Mapping[str, Any] | nn.Module = options.AUTO,
        seed: int = 0,
        device: str | None = None,
        path: str | Path | None = None,
        balance: float = 0.0,
    ) -> None:
        self.simulator = simulator
        self.prior = prior
        self.noise = noise
        self.n_contrast = n_contrast
        self.gamma = gamma
        self.featurizer = featurizer
        self.seed = seed
        self.device = device
        self.path = path
        self.balance = balance

    def fit(  # noqa: PLR0913 - the public door
        self,
        n_sims: int | ArrayLike | None = None,
        x: ArrayLike | str | Path | None = None,
        *,
        theta: ArrayLike | None = None,
        n_epochs: int | None = None,
        online: bool = False,
        batch_size: int | None = None,
        lr: float | None = None,
        train: TrainConfig | Mapping[str, Any] | None = None,
        max_failed: float = 0.1,
        n_jobs: int | None = None,
        callback: Callable[[History], None] | None = None,
        progress: bool | None = None,
        **inputs: ArrayLike,
    ) -> RatioEngine:
        """Simulate single trials and train.

        Parameters
        ----------
        n_sims : int
            Trials; with ``online`` as many fresh ones for each epoch. An array in this place is
            ``theta``: ``fit(theta, x)``.
        theta, x : array_like, optional
            Trials simulated elsewhere, (n, D) and (n, L) or (n,), or an HDF5 file as ``x``.
        n_epochs, online, batch_size, lr, train, max_failed, callback, progress
            As for `Engine.fit`.
        n_jobs : int, optional
            Processes that simulate, as for `Engine`.
        **inputs : array_like
            What the simulator asks for by name, the same for all trials.

        Returns
        -------
        RatioEngine
            Itself.
        """
        n_sims, theta = options.positional(n_sims, theta, x)
        binding.check_inputs(inputs, self.simulator, "fit")
        theta, x = trials.stored(theta, x, self.featurizer)
        given = FitInputs(theta=theta, x=x, inputs=inputs)
        options.check_start(False, n_sims, online, given)
        chosen = {"n_epochs": n_epochs, "batch_size": batch_size, "lr": lr}
        config = options.train_config(train, chosen, {})
        folder = None if self.path is None else new_folder("path", self.path)
        run = Run(n_sims, online, max_failed, folder, n_jobs, None, callback, progress)
        with preserved_random_state():
            problem = self._problem(given, n_jobs)
            recipe = self._recipe(problem, config)
            model = run(problem, recipe)
        return self._keep(RatioFit(problem.prior, model, problem.simulator, recipe.device))

    def log_ratio(self, theta: ArrayLike, x: ArrayLike) -> NDArray[np.float64]:
        """Return log p(x | theta) / p(x), shape (n,); -inf outside the prior.

        Parameters
        ----------
        theta : array_like, shape (n, D)
        x : array_like, shape (n, L), or (n,) where a trial is one number
            They pair row by row; one row of either goes with all of the other.
        """
        fit = self._fitted("log_ratio")
        draws = torch.as_tensor(fit.prior.check(np.atleast_2d(theta)))
        with torch.no_grad():
            return self._log_ratio(fit, draws, x).cpu().numpy()

    def log_ratio_torch(self, theta: Tensor, x: ArrayLike | Tensor) -> Tensor:
        """Return the same of a tensor theta (n, D), with a graph towards theta."""
        fit = self._fitted("log_ratio_torch")
        n_dim = fit.prior.n_dim
        if not isinstance(theta, Tensor) or theta.ndim != 2 or theta.shape[1] != n_dim:
            came = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise ValueError(
                f"theta must be a tensor of shape (n, {n_dim}) for parameters {fit.prior.names}, "
                f"but is {came}."
            )
        return self._log_ratio(fit, theta.to(torch.float64), x)

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
            With status ``LEARNED`` where its weights passed. ``log_likelihood`` and the evidence
            are relative to the product of p(x) of all trials.
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
        rows = trials.several(sets, fit.trials)
        likelihood, strange, p_value = fit.summed(rows)
        own = seed_of("seed", self.seed if seed is None else seed)
        found = answers(fit.prior, likelihood, rows, strange, p_value, ladder, own)
        return told_of_range(found, fit.prior, fit.reach, strange.tolist())

    def calibrate(
        self, n: int = 200, n_trials: int = 100, *, n_samples: int = 1000, seed: int | None = None
    ) -> Calibration:
        """Return how the truths of simulated sets of trials rank among the draws of their answers.

        Parameters
        ----------
        n : int
            Draws of the prior.
        n_trials : int
            Trials of each: errors of a ratio add up, so that calibration for few says nothing of
            many.
        n_samples : int
            Draws wanted of each set.
        seed : int, optional
            Default: the engine's.
        """
        fit = self._fitted("calibrate")
        own = seed_of("seed", self.seed if seed is None else seed)
        truths = fit.prior.sample(whole("n", n, 2), np.random.default_rng(own))
        x = self.simulate(np.repeat(truths, whole("n_trials", n_trials), 0), seed=own)
        good = [rows[np.isfinite(rows).all(1)] for rows in np.split(x, n)]
        return sbc(self.predict_many(good, n_samples, seed=own), truths, seed=own)

    def imbalance(self, n: int = 4096, *, seed: int | None = None) -> tuple[float, float]:
        r"""Return by how much the ratio fails to be balanced, and the standard error of that.

        Where the ratio is right, the mean of :math:`r / (1 + r)` over pairs that belong together
        and that over pairs that do not add up to one (Delaunoy et al. 2022, arXiv:2208.13624).
        Returned is that sum less one: away from 0 the ratio is wrong, at 0 it need not be right.

        Parameters
        ----------
        n : int
            Simulations to try it on.
        seed : int, optional
            Default: the engine's.
        """
        fit = self._fitted("imbalance")
        own = seed_of("seed", self.seed if seed is None else seed)
        theta = fit.prior.sample(whole("n", n, 2), np.random.default_rng([own, 1]))
        x = self.simulate(theta, seed=own)
        good = np.isfinite(x).all(1)
        theta, x = theta[good], x[good]
        together, apart = self.log_ratio(theta, x), self.log_ratio(np.roll(theta, 1, 0), x)
        each = expit(together) + expit(apart) - 1
        return float(each.mean()), float(each.std() / np.sqrt(len(each)))

    def simulate(self, theta: ArrayLike, *, seed: int | None = None) -> NDArray[np.float64]:
        """Return one trial (L,) for each row of theta (n, D); NaN where the simulator failed.

        Another ``seed`` (default: the engine's) gives other trials of the same parameters.
        """
        fit = self._fitted("simulate")
        draws = fit.prior.check(np.atleast_2d(theta))
        return fit.simulate(draws, seed_of("seed", self.seed if seed is None else seed))

    def save(self, path: str | Path) -> None:
        """Write the fitted engine to a file of JSON and numbers; code is not in it."""
        names = ("n_contrast", "gamma", "seed", "balance")
        self._fitted("save").save(path, {name: getattr(self, name) for name in names})

    @classmethod
    def load(
        cls,
        path: str | Path,
        simulator: Simulator | Callable | None = None,
        *,
        prior: Prior | None = None,
        featurizer: nn.Module | None = None,
        device: str | None = None,
    ) -> RatioEngine:
        """Read a fitted engine; nothing in the file is executed.

        Parameters
        ----------
        path : str or Path
        simulator : callable, optional
            To simulate and calibrate with.
        prior, featurizer
            Needed only where they are your own code.
        device : str, optional
        """
        own = options.device_of(device)
        fit, chosen = RatioFit.load(path, own, prior, featurizer)
        wish = fit.model.featurizer.wish if featurizer is None else featurizer
        if fit.trials.is_columns:
            wish = options.AUTO
        engine = cls(simulator, fit.prior, featurizer=wish, device=device, **chosen)
        if simulator is not None:
            shaped = trials.of_trials(simulator, wish)
            bound = binding.bind_simulator(shaped, fit.prior, fit.model.conditions)
            fit = replace(fit, simulator=bound)
        return engine._keep(fit)

    # --- behind the verbs ------------------------------------------------------------------------

    def _fitted(self, caller: str) -> RatioFit:
        if not hasattr(self, "fitted_"):
            raise NotFittedError(f"This RatioEngine is not fitted yet. Call fit before {caller}.")
        return self.fitted_

    def _keep(self, fit: RatioFit) -> RatioEngine:
        self.fitted_, self.prior_, self.model_ = fit, fit.prior, fit.model
        self.history_ = fit.model.history
        return self

    def _log_ratio(self, fit: RatioFit, theta: Tensor, x: ArrayLike | Tensor) -> Tensor:
        statistics = fit.statistics("x", x)
        if len(theta) != len(statistics) and 1 not in (len(theta), len(statistics)):
            raise ValueError(
                f"theta and x must have as many rows, or one of them one, but have {len(theta)} "
                f"and {len(statistics)}."
            )
        return fit.log_ratio(theta, statistics)

    def _problem(self, given: FitInputs, n_jobs: int | None) -> Problem:
        """Return the problem of single trials, or say why it is none."""
        prior = options.prior_of(self.simulator, (self.prior,), None)
        if not prior.has_inverse:
            raise ValueError(
                "prior must consist of distributions for a ratio, whose parameters come as theta, "
                "but is a prior_transform, which has no inverse."
            )
        noise = fitting.ALREADY_NOISY if self.noise is None else as_noise(self.noise)
        if not isinstance(noise, CustomNoise) or noise.has_likelihood(False):
            raise ValueError(
                f"noise must be a CustomNoise without a log_likelihood, but is {noise!r:.99}, and "
                "with the likelihood known nothing need be learned. Use Engine, or draw the noise "
                "in the simulator."
            )
        shaped = trials.of_trials(self.simulator, self.featurizer)
        problem = set_up(prior, shaped, noise, given, n_jobs)
        bound = problem.simulator
        if bound is not None and self.noise is None and not bound.stochastic:
            raise ValueError(
                "simulator must draw its noise for a ratio, but gave the same x twice for the same "
                "theta: nothing would be left to learn. Draw the noise there, or give "
                "CustomNoise(augment)."
            )
        return problem

    def _recipe(self, problem: Problem, config: TrainConfig) -> fitting.Recipe:
        prior = problem.prior
        spec, custom = options.featurizer_spec(self.featurizer, problem.conditions, prior.n_dim)
        return fitting.Recipe(
            prior=prior,
            noise=problem.noise,
            cadences=Cadences(problem.conditions, problem.fixed, None, None, custom is None),
            units=problem.units,
            featurizer=spec,
            custom=custom,
            flow=RatioConfig(),
            train=config,
            device=options.device_of(self.device),
            seed=seed_of("seed", self.seed),
            memory=options.bytes_of(_MEMORY),
            loss=ContrastLoss(self.n_contrast, self.gamma, self.balance),
        )
