"""What a fit leaves behind, and who answers for which object: the network, or a fit in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError
from torch import nn

from nbi_plus.arguments import of_kind
from nbi_plus.data.ingest import ingest, unit_of
from nbi_plus.data.joining import agreed_units, shared_again
from nbi_plus.data.observations import Observations
from nbi_plus.data.packing import coordinate
from nbi_plus.infer.ladder.amortized import Amortized
from nbi_plus.infer.ladder.hints import Hints
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.translated import Change
from nbi_plus.infer.sequential.fit import SequentialFit
from nbi_plus.learn.fitting import Recipe
from nbi_plus.learn.model import Trained, TrainedModel
from nbi_plus.learn.run import Run
from nbi_plus.learn.scores.estimates import Scores
from nbi_plus.problem.binding import Conventions, bind_simulator, with_grid
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.setup import FitInputs, Problem
from nbi_plus.problem.simulator.parallel import simulated
from nbi_plus.problem.simulator.simulator import BoundSimulator, Simulator
from nbi_plus.problem.target import Target
from nbi_plus.progress import progress as shown
from nbi_plus.trust.truths import TruthTest, TruthTrial, truth_test


@dataclass(frozen=True)
class Computing:
    """How answers are computed: with which ladder, where, and by how many processes."""

    ladder: Ladder
    device: torch.device
    n_jobs: int | None = None
    client: object | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        of_kind("ladder", self.ladder, Ladder, "Write ladder=Ladder(...).")


class Answers(Protocol):
    """Whoever answers for one object: the network and its ladder, or the fit of that object."""

    def looking_at(self, modes: Hints | None, objects: Observations) -> Answers:
        """Return the same with places to look at besides."""

    def posterior(self, one: Observations, n_samples: int, seed: int) -> Posterior:
        """Return the posterior of the object."""

    def sample(self, one: Observations, n_samples: int, seed: int) -> NDArray[np.float64]:
        """Return draws (n, D) that nothing corrects."""

    def log_prob(self, theta: NDArray[np.float64], objects: Observations) -> NDArray[np.float64]:
        """Return log q (n,) of theta (n, D)."""


@dataclass(frozen=True)
class Fitted:
    """What `Engine.fit` leaves behind.

    Attributes
    ----------
    prior : Prior
    noise : Noise
        Bound.
    simulator : BoundSimulator or None
    defaults : dict of ndarray
        Errors and coordinates that are used where none are given.
    model : Trained or None
        The network for many objects, or several.
    sequential : SequentialFit or None
        The fit of one object.
    truth : TruthTest or None
        What the truths of simulated objects say of the network.
    """

    prior: Prior
    noise: Noise
    simulator: BoundSimulator | None
    defaults: Mapping[str, NDArray]
    model: Trained | None = None
    sequential: SequentialFit | None = None
    truth: TruthTest | None = None

    @classmethod
    def of(
        cls, problem: Problem, defaults: Mapping[str, NDArray], model: Trained | None = None,
        truth: TruthTest | None = None,
    ) -> Fitted:  # fmt: skip
        """Return what was fitted to a problem."""
        return cls(problem.prior, problem.noise, problem.simulator, defaults, model, truth=truth)

    def with_simulator(
        self, simulator: Simulator | Callable | None, n_jobs: int | None = None
    ) -> Fitted:
        """Return the same with a simulator, bound to what was fitted."""
        if simulator is None:
            return self
        seen = self.sequential.observations if self.model is None else self.model
        data = seen.batch() if self.model is None else seen.conditions
        bound = bind_simulator(simulator, self.prior, data, seen.units.get("x"), n_jobs)
        one = None if self.sequential is None else replace(self.sequential, simulator=bound)
        return replace(self, simulator=bound, sequential=one)

    def wishes(self, featurizer: nn.Module | None = None) -> dict[str, object]:
        """Return what was trained as its engine takes it; a featurizer may be the user's own."""
        own = {} if featurizer is None else {"featurizer": featurizer}
        if self.model is None:
            return own
        trained = self.model.network.flow
        what = {"rules": trained.rules} if isinstance(trained, Scores) else {"flow": trained.config}
        return {**what, "featurizer": self.model.featurizer.wish, **own}

    def __str__(self) -> str:
        network = "no network" if self.model is None else f"a network for {self.shape} (C, L)"
        rounds = "" if self.sequential is None else f", and {self.sequential.posterior}"
        return f"{network} of {self.prior.names}{rounds}"

    def told(self) -> dict[str, object]:
        """Return what was fitted, in words and numbers."""
        network, one = self.model, self.sequential
        told = {"parameters": ", ".join(self.prior.names), "noise": self.noise,
                "truth test": self.truth}  # fmt: skip
        if network is not None:
            last = min(network.history, key=lambda epoch: epoch["val_nll"], default=None)
            told["network"] = f"for {self.shape} (C, L), {len(network.history)} epochs"
            told["best held-out loss"] = None if last is None else last["val_nll"]
        if one is not None:
            told["fit in rounds"] = f"{one.rounds.n_simulated} calls, {one.rounds.reason}"
            told["its answer"] = one.posterior
        return told

    # --- what was seen ---------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and points of one object."""
        if self.model is not None:
            return self.model.shape
        return tuple(self.sequential.observations.batch().mask.shape[1:])

    @property
    def conventions(self) -> Conventions:
        """Categories and units of the observations fitted to."""
        if self.model is not None:
            seen = self.model.conditions
            return Conventions.of(seen.categories, self.model.units, seen.arguments())
        seen = self.sequential.observations
        return Conventions.of(seen.categories, seen.units, (*seen.points, *seen.scalars))

    def like_training(self, observations: Observations) -> Observations:
        """Return the objects as the network knows them, with what was given to `fit`."""
        conventions = self.conventions
        found = with_grid(observations, self.defaults, conventions)
        if not conventions.fit(found):  # else a survey would be in memory twice
            found = found.like(*conventions)
        one_grid = any(v.ndim == 1 for v in self.model.conditions.coords.values())
        return shared_again(found) if one_grid and not found.shared_grid else found

    # --- who answers -----------------------------------------------------------------------------

    def network(self, caller: str) -> Trained:
        """Return the network, or say that there is none."""
        if self.model is None:
            raise NotFittedError(
                f"This Engine is fitted to one object, and has no network for {caller}. Fit it "
                "with n_rounds=1 first."
            )
        return self.model

    def answers_for(
        self, data_hash: str | None, how: Computing, caller: str, prior: object = None
    ) -> Answers:
        """Return who answers: the sequential fit if it is of this very object, or the network.

        No hash stands for several objects. Maybe for another prior than that of the fit.
        """
        own = self.sequential
        if own is not None and data_hash is not None and own.is_for(data_hash):
            return SequentialAnswers(own, how, _change(own.prior, prior))
        if self.model is None:
            raise ValueError(
                f"x_obs must be the object that this Engine was fitted to in rounds, for {caller}, "
                "but is another one. Fit with n_rounds=1 for many objects, or fit this one."
            )
        return self.amortized(how, caller, prior)

    def amortized(self, how: Computing, caller: str, prior: object = None) -> Amortized:
        """Return the network and its ladder, maybe for another prior."""
        change = _change(self.prior, prior)
        chosen = self.prior if change is None else change.new
        return Amortized(
            prior=chosen,
            noise=self.noise,
            simulator=self.simulator,
            model=self.network(caller),
            ladder=how.ladder if self.truth is None else self.truth.doubting(how.ladder),
            device=how.device,
            change=change,
            n_jobs=how.n_jobs,
            client=how.client,
            progress=how.progress,
            doubted=None if self.truth is None else self.truth.doubts,
            blind=self.truth is not None and self.truth.blind,
        )

    def simulate(self, theta: ArrayLike, inputs: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Return noise-free data (n, C, L) of theta (n, D), at the same coordinates for all."""
        if self.simulator is None:
            raise ValueError("simulate must have a simulator, but the engine has none.")
        categories, units = self.conventions
        agreed_units({k: unit_of(v) for k, v in inputs.items()}, units)
        known = {k: v for k, v in self.defaults.items() if k != "x_err"} | dict(inputs)
        bare = {k: ingest(k, v, units.get(k))[0] for k, v in known.items()}
        coords = {k: coordinate(k, v, categories.get(k))[0] for k, v in bare.items()}
        draws = self.prior.check(theta, one=True)
        return simulated(self.simulator, (self.prior.complete(draws), coords, frozenset())).x

    def target(self, data: Observations, how: Computing) -> Target:
        """Return what is believed of some objects."""
        return Target(self.prior, self.simulator, self.noise, data.batch(), how.n_jobs, how.client)


def _change(old: Prior, new: object) -> Change | None:
    """Return the way to another prior, or to what `Prior.coerce` makes one of; None stays."""
    return None if new is None else Change(old, Prior.coerce(new))


def trained(
    run: Run, problem: Problem, recipe: Recipe, start: TrainedModel | None, given: FitInputs,
    how: Computing, truths: bool | int | None,
) -> Fitted:  # fmt: skip
    """Return a trained network, and what the truths of simulated objects say of it.

    ``truths`` is as for `truth_test`.
    """
    began = time.perf_counter()
    model = run(problem, recipe, start)
    seconds = time.perf_counter() - began
    return tried(model, run, problem, recipe, given, how, (truths, seconds))


def tried(
    model: Trained, run: Run, problem: Problem, recipe: Recipe, given: FitInputs, how: Computing,
    truths: tuple[bool | int | None, float],
) -> Fitted:  # fmt: skip
    """Return what was trained, and what the truths of simulated objects say of it.

    ``truths`` are as wanted of `truth_test`, and the seconds that the training took.
    """
    trial = TruthTrial(problem, model, how.ladder, recipe.device, recipe.seed)
    known = problem.noise.has_likelihood(problem.conditions.x_err is not None)
    with shown("testing with truths", show=run.progress):
        test = truth_test(trial, truths[0], known, truths[1])
    return Fitted.of(problem, given.defaults(), model, test)


@dataclass(frozen=True)
class SequentialAnswers:
    """The fit of one object, how to compute, and the way to another prior."""

    fit: SequentialFit
    how: Computing
    change: Change | None = None

    def looking_at(self, modes: Hints | None, objects: Observations) -> SequentialAnswers:  # noqa: ARG002
        """Return itself: its rounds have looked already."""
        return self

    def posterior(self, one: Observations, n_samples: int, seed: int) -> Posterior:  # noqa: ARG002
        """Return the posterior of fresh draws."""
        how = self.how
        chosen = how.ladder, seed, how.n_jobs, how.client, self.change
        with shown("answering", show=how.progress):
            return self.fit.predict(n_samples, *chosen)

    def sample(self, one: Observations, n_samples: int, seed: int) -> NDArray[np.float64]:  # noqa: ARG002
        """Return draws (n, D) of the frozen proposal."""
        return self.fit.draws(n_samples, seed)

    def log_prob(
        self,
        theta: NDArray[np.float64],
        objects: Observations,  # noqa: ARG002 - it is its own
    ) -> NDArray[np.float64]:
        """Return log q (n,) of the frozen proposal."""
        return self.fit.log_prob(theta)
