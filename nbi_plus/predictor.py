"""Predictor: the doors of a fitted engine, from data to posteriors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError

from nbi_plus import options
from nbi_plus.data.ingest import ingest, point_mask, unit_of
from nbi_plus.data.joining import agreed_units, shared_again
from nbi_plus.data.observations import Observations
from nbi_plus.data.packing import coordinate
from nbi_plus.infer.ladder.amortized import Amortized
from nbi_plus.infer.ladder.earlier import Earlier, can_be_tried_again, places_of
from nbi_plus.infer.ladder.escalation import Answered, in_order
from nbi_plus.infer.ladder.hints import Hints, hints_for
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.ladder.translated import Change
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import doubts
from nbi_plus.infer.sequential.fit import SequentialFit
from nbi_plus.learn.model import TrainedModel
from nbi_plus.problem.binding import (
    NONE_KNOWN,
    Conventions,
    check_inputs,
    is_one_object,
    many_objects,
    one_object,
    with_grid,
)
from nbi_plus.problem.noise.custom import as_noise
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.setup import FitInputs, set_up
from nbi_plus.problem.simulator.simulator import BoundSimulator, Simulator
from nbi_plus.problem.target import Target


class UncertifiedWarning(UserWarning):
    """The posterior that was asked for passed no gate."""


class UntrustedWarning(UncertifiedWarning):
    """The posterior that was asked for passed no gate, or is doubtful although it did."""


class Predictor:
    """Answers for one object or many; `Engine` adds the fit.

    Attributes ending in an underscore are set by `Engine.fit` or `Engine.load`.
    """

    simulator: Simulator | Callable | None
    device: str | None
    n_jobs: int | None
    client: object | None
    prior: Prior | Mapping | list | Callable | None
    priors: Prior | Mapping | list | Callable | None
    labels: list[str] | None
    noise: Noise | ArrayLike | Callable | None
    seed: int
    ladder: Ladder | None
    model_: TrainedModel
    prior_: Prior
    noise_: Noise
    simulator_: BoundSimulator | None
    defaults_: dict[str, NDArray[np.float64]]
    sequential_: SequentialFit

    def predict(
        self,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        n_samples: int = 2000,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        modes: Hints | None = None,
        prior: Prior | Mapping | None = None,
        seed: int | None = None,
        **inputs: ArrayLike,
    ) -> Posterior:
        """Return the posterior of one object.

        Parameters
        ----------
        x_obs : array_like, shape (L,) or (C, L), or a table
            One object; masks and units of numpy and astropy are kept. Or all that belongs to it: a
            Table, TimeSeries, LightCurve, Spectrum, DataFrame, or `Observations` of one object.
        x_err : array_like, optional
            Standard deviations. Default: those given to `fit`.
        n_samples : int
            Draws wanted; at least as many are returned, with their weights.
        mask, bad : array_like of bool, optional
            One of them: ``mask`` is True for a real point, ``bad`` is True for one to leave out, as
            masks of numpy and astropy are.
        modes : array_like, shape (M, D), or callable, optional
            Places in theta where the ladder looks if the network's draws do not pass: see
            `predict_many`.
        prior : Prior, optional
            Another prior on the same parameters, to answer under; default: that of the fit.
        seed : int, optional
            Default: the engine's.
        **inputs : array_like
            Coordinates and scalars; default: those given to `fit`.

        Returns
        -------
        Posterior
        """
        chosen_seed = self.seed if seed is None else seed
        one = self._one(x_obs, x_err, inputs, "predict", mask, bad)
        own = self._sequential_fit(one, "predict")
        if own is not None:
            ladder = self.ladder or Ladder()
            n_draws = max(n_samples, ladder.n_draws)
            change = None if prior is None else Change(own.prior, Prior.coerce(prior))
            posterior = own.predict(
                n_draws, ladder.gate, chosen_seed, self.n_jobs, self.client, change
            )
        else:
            amortized = self._network_answers("predict", one, modes, prior)
            amortized.check_times(one)
            posterior = amortized.posteriors(one, n_samples, None, chosen_seed)[0]
        if not posterior.trusted:
            reason = posterior.rungs[-1].reason
            told = doubts(posterior.status, posterior.flags, reason)
            warnings.warn(told, UntrustedWarning, stacklevel=2)
        return posterior

    def predict_many(
        self,
        observations: Observations,
        *,
        n_samples: int = 2000,
        keep: int | None = None,
        modes: Hints | None = None,
        prior: Prior | Mapping | None = None,
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
        modes : array_like, shape (N, M, D), or callable, optional
            Places in theta where the ladder looks for objects whose network draws do not pass, or
            ``modes(observations)``, as the peaks of a periodogram; NaN where a coordinate is not
            known.
        prior : Prior, optional
            Another prior on the same parameters. The network's draws are taken over to its latent
            space, and objects whose posterior can go on beyond the old prior climb the ladder.
        seed : int, optional
            Default: the engine's. The draws of an object depend on the seed and its id alone.

        Returns
        -------
        Posteriors
        """
        self._require_fit("predict_many")
        objects = self._like_training(observations)
        amortized = self._network_answers("predict_many", objects, modes, prior)
        chosen_seed = self.seed if seed is None else seed
        return amortized.posteriors(objects, n_samples, keep, chosen_seed)

    def retry(
        self, posteriors: Posteriors, observations: Observations, *, ladder: Ladder | None = None
    ) -> Posteriors:
        """Return the posteriors with those that no rung certified tried once more.

        Draws start where the kept ones are, beside those of the network; the budget counts anew,
        and what is certified stays as it is.

        Parameters
        ----------
        posteriors : Posteriors
            From `predict_many`, of this process or another, with draws kept.
        observations : Observations
            Of these objects, and maybe others, in any order.
        ladder : Ladder, optional
            With other thresholds or budgets; default: the engine's.
        """
        self._require_fit("retry")
        if posteriors.draws is None:
            raise ValueError(
                "posteriors must have kept draws to be tried again, but kept summaries only "
                "(keep=0). Predict with keep=None."
            )
        waiting = np.flatnonzero(can_be_tried_again(posteriors))
        if not len(waiting):
            return posteriors
        objects = self._like_training(observations)
        objects = objects[places_of(posteriors[waiting], objects)]
        amortized = self._network_answers("retry")
        chosen = ladder or amortized.ladder
        keys = torch.as_tensor(objects.keys, device=amortized.device)
        family = chosen.refine.family(self.prior_.n_dim)
        with preserved_random_state():
            earlier = Earlier.of(posteriors[waiting], self.prior_, family, keys, self.seed)
        amortized = replace(amortized, earlier=earlier, ladder=chosen)
        again = amortized.posteriors(objects, chosen.n_draws, None, self.seed)
        settled = np.setdiff1d(np.arange(len(posteriors)), waiting)
        return in_order([Answered(posteriors[settled], settled), Answered(again, waiting)])

    def sample(
        self,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        n_samples: int = 1000,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        seed: int | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return draws (n_samples, D) of the network alone: fast, and not corrected."""
        chosen_seed = self.seed if seed is None else seed
        one = self._one(x_obs, x_err, inputs, "sample", mask, bad)
        own = self._sequential_fit(one, "sample")
        if own is not None:
            return own.draws(n_samples, chosen_seed)
        return self._network_answers("sample").draws(one, n_samples, chosen_seed)[0]

    def log_prob(
        self,
        theta: ArrayLike,
        x: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return log q(theta | x) of the network, shape (n,).

        Parameters
        ----------
        theta : array_like, shape (n, D)
        x : array_like, shape (L,) or (C, L) for one object, else (n, L) or (n, C, L)
            One object for all theta, or one for each.
        x_err, mask, bad, **inputs
            As for `predict`.
        """
        self._require_fit("log_prob", sequential=True)
        draws = self.prior_.check(theta)
        check_inputs(inputs, self.simulator, "log_prob")
        make = one_object if is_one_object(x, self._shape(), len(draws)) else many_objects
        real = point_mask(mask, bad)
        objects = make(x, x_err, real, inputs, self._conventions(), self.defaults_)
        own = self._sequential_fit(objects, "log_prob")
        if own is not None:
            return own.log_prob(draws)
        return self._network_answers("log_prob").log_prob(draws, objects)

    def score(
        self, theta: ArrayLike, x: ArrayLike, x_err: ArrayLike | None = None, **inputs: ArrayLike
    ) -> float:
        """Return the mean of `log_prob` over pairs theta (n, D), x (n, L) or (n, C, L)."""
        return float(self.log_prob(theta, x, x_err, **inputs).mean())

    def simulate(self, theta: ArrayLike, **inputs: ArrayLike) -> NDArray[np.float64]:
        """Return noise-free data (n, C, L) of theta (n, D), at the same coordinates for all.

        Parameters
        ----------
        theta : array_like, shape (n, D)
        **inputs : array_like
            Coordinates (L,) and scalars; default: those given to `fit`.
        """
        self._require_fit("simulate", sequential=True)
        if self.simulator_ is None:
            raise ValueError("simulate must have a simulator, but the engine has none.")
        categories, units = self._conventions()
        check_inputs(inputs, self.simulator, "simulate")
        agreed_units({k: unit_of(v) for k, v in inputs.items()}, units)
        known = {k: v for k, v in self.defaults_.items() if k != "x_err"} | inputs
        bare = {k: ingest(k, v, units.get(k))[0] for k, v in known.items()}
        coords = {k: coordinate(k, v, categories.get(k))[0] for k, v in bare.items()}
        draws = self.prior_.check(np.atleast_2d(theta))
        return self.simulator_.run(self.prior_.complete(draws), coords).x

    def log_likelihood(
        self,
        theta: ArrayLike,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return log L(theta) of one object, shape (n,): what every answer is weighted with.

        The data as for `predict`.
        """
        real = point_mask(mask, bad)
        return self._densities(theta, x_obs, x_err, real, inputs, "log_likelihood")[1]

    def log_posterior(
        self,
        theta: ArrayLike,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return log prior + log L of one object in theta, shape (n,); -inf outside the prior.

        The data as for `predict`.
        """
        real = point_mask(mask, bad)
        log_prior, log_like = self._densities(theta, x_obs, x_err, real, inputs, "log_posterior")
        return np.where(np.isfinite(log_prior) & ~np.isnan(log_like), log_prior + log_like, -np.inf)

    def _prior(self) -> Prior:
        given = [p for p in (self.prior, self.priors) if p is not None]
        if len(given) != 1:
            raise ValueError(
                f"Engine must have one prior, but has {len(given)}. Give prior=, or nbi's priors=."
            )
        options.check_not_swapped(self.simulator, given[0])
        return Prior.coerce(given[0], labels=self.labels)

    def _require_fit(self, caller: str, *, sequential: bool = False) -> None:
        """Refuse what needs a fit: an amortized one, or (``sequential``) any."""
        one = hasattr(self, "sequential_")
        if hasattr(self, "model_") or (one and sequential):
            return
        if one:
            raise NotFittedError(
                f"This Engine is fitted to one object, and has no network for {caller}. Fit it "
                "with n_rounds=1 first."
            )
        raise NotFittedError(f"This Engine is not fitted yet. Call fit before {caller}.")

    def _sequential_fit(self, objects: Observations, caller: str) -> SequentialFit | None:
        """Return the sequential fit if it is of this object, or None for the network to answer."""
        self._require_fit(caller, sequential=True)
        fit = getattr(self, "sequential_", None)
        if fit is None:
            return None
        if fit.is_for(objects):
            return fit
        if not hasattr(self, "model_"):
            raise ValueError(
                f"x_obs must be the object that this Engine was fitted to in rounds, for {caller}, "
                "but is another one. Fit with n_rounds=1 for many objects, or fit this one."
            )
        return None

    def _shape(self) -> tuple[int, int]:
        """Return channels and points of one object."""
        if hasattr(self, "model_"):
            return self.model_.shape
        return tuple(self.sequential_.observations.batch().mask.shape[1:])

    def _one(
        self,
        x_obs: ArrayLike,
        x_err: ArrayLike | None,
        inputs: Mapping[str, ArrayLike],
        caller: str,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
    ) -> Observations:
        """Return one object, with what was given to `fit` where nothing is given here."""
        check_inputs(inputs, self.simulator, caller)
        real = point_mask(mask, bad)
        defaults = getattr(self, "defaults_", {})
        return one_object(x_obs, x_err, real, inputs, self._conventions(), defaults)

    def _conventions(self) -> Conventions:
        """Return the categories and units of the observations fitted to; none before a fit."""
        if hasattr(self, "model_"):
            seen = self.model_.conditions
            return Conventions.of(seen.categories, self.model_.units, seen.arguments())
        fit = getattr(self, "sequential_", None)
        if fit is None:
            return NONE_KNOWN
        seen = fit.observations
        return Conventions.of(seen.categories, seen.units, (*seen.points, *seen.scalars))

    def _like_training(self, observations: Observations) -> Observations:
        """Return the objects as the network knows them, with what was given to `fit`."""
        conventions = self._conventions()
        found = with_grid(observations, self.defaults_, conventions).like(*conventions)
        trained = self.model_.conditions.coords if hasattr(self, "model_") else {}
        one_grid = any(v.ndim == 1 for v in trained.values())
        return shared_again(found) if one_grid and not found.shared_grid else found

    def _network_answers(
        self, caller: str, objects: Observations | None = None, modes: Hints | None = None,
        prior: Prior | Mapping | None = None,
    ) -> Amortized:  # fmt: skip
        self._require_fit(caller)
        device = options.device_of(self.device)
        change = None if prior is None else Change(self.prior_, Prior.coerce(prior))
        chosen = self.prior_ if change is None else change.new
        return Amortized(
            prior=chosen,
            noise=self.noise_,
            simulator=self.simulator_,
            model=self.model_,
            ladder=self.ladder or Ladder(),
            device=device,
            earlier=hints_for(modes, objects, chosen, device),
            change=change,
            n_jobs=self.n_jobs,
            client=self.client,
        )

    def _densities(
        self,
        theta: ArrayLike,
        x_obs: ArrayLike,
        x_err: ArrayLike | None,
        real: ArrayLike | None,
        inputs: Mapping[str, ArrayLike],
        caller: str,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return log prior and log likelihood of theta (n, D) for one object, fitted or not."""
        if self.simulator is None:
            raise ValueError(f"{caller} must have a simulator, but the engine has none.")
        with preserved_random_state():
            if hasattr(self, "simulator_"):
                prior, bound, noise = self.prior_, self.simulator_, self.noise_
                data = self._one(x_obs, x_err, inputs, caller, real).batch()
            else:
                check_inputs(inputs, self.simulator, caller)
                given = FitInputs(x_obs=x_obs, x_err=x_err, inputs=inputs, mask=real)
                setup = set_up(self._prior(), self.simulator, as_noise(self.noise), given)
                prior, bound, noise, data = (
                    setup.prior, setup.simulator, setup.noise, setup.conditions,
                )  # fmt: skip
            target = Target(prior, bound, noise, data, self.n_jobs, self.client)
            return target.densities(prior.check(np.atleast_2d(theta)))
