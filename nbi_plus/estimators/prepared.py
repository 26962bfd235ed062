"""Prepared: what goes before the training of anything that is trained as an engine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import ArrayLike
from torch import Tensor

from nbi_plus import options
from nbi_plus.data.ingest import point_mask
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.learn.fitting import Recipe
from nbi_plus.learn.learned_noise import noise_of
from nbi_plus.learn.run import Run
from nbi_plus.learn.training import History, TrainConfig
from nbi_plus.problem import binding
from nbi_plus.problem.gathered import Files
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.setup import FitInputs, Problem, check_noise_of, set_up
from nbi_plus.problem.simulator.cadence import Perturbation


class Trains(Protocol):
    """Whoever trains a network on simulations of a problem: an Engine, a PointEngine."""

    def _recipe(
        self, problem: Problem, config: TrainConfig, perturbation: Perturbation | None
    ) -> Recipe:
        """Return what the training is a function of."""


@dataclass(frozen=True)
class Prepared:
    """A problem, and how its simulations are made and trained on.

    Attributes
    ----------
    run : Run
    problem : Problem
    config : TrainConfig
    perturbation : Perturbation or None
    given : FitInputs
    augment : callable or None
    """

    run: Run
    problem: Problem
    config: TrainConfig
    perturbation: Perturbation | None
    given: FitInputs
    augment: Callable[..., Tensor] | None = None

    def recipe(self, engine: Trains) -> Recipe:
        """Return what the training of an engine is a function of."""
        made = engine._recipe(self.problem, self.config, self.perturbation)
        return made.augmented(self.augment)


def prepare(  # noqa: PLR0913 - as Engine.fit
    engine: Engine,
    n_sims: int | ArrayLike | None,
    x: ArrayLike | Files | None,
    *,
    theta: ArrayLike | None = None,
    n_epochs: int | None = None,
    observations: Observations | None = None,
    x_obs: ArrayLike | None = None,
    x_err: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    bad: ArrayLike | None = None,
    noise: Noise | ArrayLike | Callable | None = None,
    perturb: Perturbation | bool | None = None,
    grid: ArrayLike | Mapping[str, ArrayLike] | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    train: TrainConfig | Mapping[str, Any] | None = None,
    augment: Callable[..., Tensor] | None = None,
    max_failed: float | None = None,
    callback: Callable[[History], None] | None = None,
    progress: bool | None = None,
    **inputs: ArrayLike,
) -> Prepared:
    """Return the problem of an engine and of what its `fit` was given, checked.

    To be called within `preserved_random_state`; the arguments are those of `Engine.fit`.
    """
    n_sims, theta = options.positional(n_sims, theta, x)
    binding.check_inputs(inputs, engine.simulator, "fit", noise, engine.noise)
    real = point_mask(mask, bad)
    given = FitInputs(observations, x_obs, x_err, theta, x, inputs, grid, mask=real)
    options.check_start(False, n_sims, False, given)
    chosen = {"n_epochs": n_epochs, "batch_size": batch_size, "lr": lr}
    config = options.train_config(train, chosen, {})
    run = engine._run(n_sims, False, max_failed, False, callback, progress)
    believed = noise_of(engine.noise if noise is None else noise, engine.likelihood)
    problem = set_up(engine._prior(), engine.simulator, believed, given, engine.n_jobs)
    check_noise_of(problem, options.device_of(engine.device))
    varied = options.perturbation(perturb, observations)
    return Prepared(run, problem, config, varied, given, augment)
