"""Mixed: several models as one, whose first parameter says which of them a simulation is of.

The last class is none of them: simulations with something added that no model knows, waves, spikes
and scatter from the size of the noise to many times that. What tells these apart from the others
says of real data whether any model could have made them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.estimators.distortions import distortions, rms
from nbi_plus.io.fingerprint import fingerprint
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.noise.custom import CustomNoise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import keyed_normal
from nbi_plus.problem.setup import FitInputs, Problem, set_up
from nbi_plus.problem.simulator.comparing import Compared
from nbi_plus.problem.simulator.parallel import simulated
from nbi_plus.problem.simulator.simulator import BoundSimulator

WHICH, _BELOW = "model", "below"  # of which model; of none, to which something was added
_N_TRIED = 16  # pairs of simulations that tell how much a simulator scatters
Believed = tuple[Prior, Callable, Noise]  # prior, simulator and noise of an engine


@dataclass(frozen=True)
class MixedModels:
    """The problems of M models of the same data.

    Attributes
    ----------
    problems : tuple of Problem
    scatter : tuple of Tensor, shape (C, 1) each
        Of the simulators themselves, 0 where the same theta always gives the same.
    scaled : bool
        Whether each of them scatters, or has a noise or errors, so that something has a size.
    """

    problems: tuple[Problem, ...]
    scatter: tuple[Tensor, ...]
    scaled: bool

    @classmethod
    def of(
        cls, models: Mapping[str, Believed], given: FitInputs, n_jobs: int | None
    ) -> MixedModels:
        """Return the models, each matched with the data, or say which one does not fit."""
        problems = []
        for name, believed in models.items():  # each is code of its own
            try:
                problem = set_up(*believed, given, n_jobs)
            except (ValueError, TypeError) as error:
                raise type(error)(f"model {name!r}: {error}") from error
            if type(problem.noise)._report is not Noise._report:
                raise ValueError(
                    f"model {name!r} must have a noise without limits, for points become limits "
                    f"by one noise alone, but has {problem.noise!r:.99}."
                )
            problems.append(problem)
        shapes = [tuple(p.simulator.shape) for p in problems]
        if len(set(shapes)) > 1:
            came = dict(zip(models, shapes, strict=True))
            raise ValueError(f"models must have one shape (C, L) of their data, but have {came}.")
        scatter, scaled = zip(*map(_scatter, problems), strict=True)
        return cls(tuple(problems), scatter, all(scaled))

    def problem(self, given: FitInputs, n_jobs: int | None) -> Problem:
        """Return all of them as one problem: which model, and standard normal parameters of it."""
        n_dim, n = max(p.prior.n_dim for p in self.problems), len(self.problems)
        parameters = {WHICH: stats.uniform(0, n + 1), _BELOW: stats.uniform(0, n)}
        parameters |= {f"z{i}": stats.norm(0, 1) for i in range(n_dim)}
        return set_up(Prior(parameters), MixedSimulator(self), MixedNoise(self), given, n_jobs)

    def folder_name(self) -> str:
        """Return where simulations of these priors are kept: z means other theta under others."""
        return f"models-{fingerprint({'priors': [p.prior.manifest() for p in self.problems]})}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What any of the simulators asks for."""
        return tuple(dict.fromkeys(k for p in self.problems for k in p.simulator.arguments))

    def noisy(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        """Return noisy data of ``model`` (n, C, L), each by the noise of its own model."""
        x, which = model.clone(), self.which(theta)
        scatter = torch.stack(self.scatter).to(model)[which]
        for i, problem in enumerate(self.problems):
            rows = (which == i).nonzero()[:, 0]
            own = self.theta_of(problem, theta[rows])
            x[rows] = problem.noise.augment(model[rows], _some(obs, rows, len(model)), own, rng)
        none = (theta[:, 0] >= len(self.problems))[:, None, None]
        scale = torch.hypot(rms(x - model, obs.mask), scatter)
        if obs.x_err is not None:
            scale = torch.where(scale > 0, scale, rms(obs.x_err, obs.mask))
        return torch.where(none, x + distortions(scale, obs.mask, rng), x)

    def which(self, theta: Tensor) -> Tensor:
        """Return the numbers (n,) of the models that simulate theta (n, 2 + D)."""
        n = len(self.problems)
        which = torch.where(theta[:, 0] < n, theta[:, 0], theta[:, 1])
        return which.long().clamp(0, n - 1)

    def theta_of(self, problem: Problem, theta: Tensor) -> Tensor:
        """Return what the simulator of one model sees of theta (n, 2 + D)."""
        prior = problem.prior
        return prior.complete(prior.from_latent(theta[:, 2 : 2 + prior.n_dim].double()))


class MixedNoise(CustomNoise):
    """The noises of several models as one.

    Parameters
    ----------
    models : MixedModels
    """

    def __init__(self, models: MixedModels) -> None:
        super().__init__(models.noisy)
        self.models = models

    def fingerprint(self) -> str:
        """Return a text that changes with any of the noises."""
        own = (problem.noise.fingerprint() for problem in self.models.problems)
        return " ".join([super().fingerprint(), *own])


class MixedSimulator:
    """The simulators of several models as one, of numpy.

    Parameters
    ----------
    models : MixedModels
    """

    def __init__(self, models: MixedModels) -> None:
        self.models = models
        self.simulators = [_unseeded(problem.simulator) for problem in models.problems]
        kinds = inspect.Parameter
        own = [kinds(name, kinds.KEYWORD_ONLY) for name in models.arguments]
        first = kinds("theta", kinds.POSITIONAL_OR_KEYWORD)
        self.__signature__ = inspect.Signature([first, *own])

    def __call__(self, theta: NDArray, **inputs: NDArray) -> NDArray[np.float64]:
        """Return simulations (n, C, L) of theta (n, 2 + D), NaN where a simulator failed."""
        whole = torch.from_numpy(theta)
        which = self.models.which(whole).numpy()
        scalars = self.models.problems[0].conditions.scalars
        coords = {k: np.ravel(v) if k in scalars else v for k, v in inputs.items()}
        per_row = frozenset(k for k, v in coords.items() if k in scalars or v.ndim == 2)
        x = None
        for i, problem in enumerate(self.models.problems):
            rows = np.flatnonzero(which == i)
            if not len(rows):
                continue
            simulator = self.simulators[i]
            asked = {k: coords[k][rows] if k in per_row else coords[k] for k in simulator.arguments}
            own = self.models.theta_of(problem, whole[rows]).numpy()
            found = simulated(simulator, (own, asked, per_row & set(asked))).x
            x = np.full((len(theta), *found.shape[1:]), np.nan) if x is None else x
            x[rows] = found
        return x


def _unseeded(simulator: BoundSimulator) -> BoundSimulator:
    """Return a simulator that draws from the generators as they are, in this process.

    Seeded by the theta of its own rows it would give the mixed one, which is seeded by those of
    all, the look of a function whose answer for a row changes with the rows beside it.
    """
    if not simulator.stochastic:
        return simulator
    return replace(simulator, stochastic=False, compared=Compared(sys.maxsize), n_jobs=1)


@torch.no_grad()
def _scatter(problem: Problem) -> tuple[Tensor, bool]:
    """Return how much (C, 1) a simulator itself scatters, and whether data scatter or have errors.

    By the distance of two simulations of a theta: the median of several.
    """
    prior, simulator, rows = problem.prior, problem.simulator, torch.arange(_N_TRIED)
    obs = problem.conditions.select(rows % len(problem.conditions))
    own = {k: v.numpy() for k, v in obs.arguments().items() if k in simulator.arguments}
    per_row = obs.per_object() & set(own)
    free = prior.from_latent(keyed_normal(0, "scatter", rows, (prior.n_dim,)))
    # theta seeds what a simulator draws: the next float is as good as the same one
    beside = torch.nextafter(free, torch.full_like(free, torch.inf))
    first, second = (prior.complete(values) for values in (free, beside))
    x = torch.from_numpy(simulated(simulator, (first.numpy(), own, per_row)).x)
    off = torch.zeros_like(x)
    if simulator.stochastic:
        off = x - torch.from_numpy(simulated(simulator, (second.numpy(), own, per_row)).x)
    scatter = (rms(off, obs.mask) / 2**0.5).nanmedian(0).values.nan_to_num()
    moved = problem.noise.augment(x, obs, first, torch.Generator()) != x
    known = obs.x_err is not None or bool((scatter > 0).any() | (moved & x.isfinite()).any())
    return scatter, known


def _some(obs: Batch, rows: Tensor, n: int) -> Batch:
    """Return the objects of some rows; one object is that of all rows."""
    return obs.select(rows) if len(obs) == n else obs
