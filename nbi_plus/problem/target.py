"""The target: log prior + log likelihood of draws for objects, the one central function."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import keyed_normal
from nbi_plus.problem.simulator.parallel import simulated
from nbi_plus.problem.simulator.simulator import (
    FAILED,
    BoundSimulator,
    SimulationError,
)

_LOG = logging.getLogger("nbi_plus")

Z_MAX = 8.0  # draws further out in the latent space have weight zero, and are not simulated
_SECONDS = 1e-8  # of one number of a likelihood, about
_N_PROBES = 64  # draws of the prior: a simulator may raise for most of them


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of the target found, each of shape (b, n).

    Attributes
    ----------
    log_prior : Tensor
        Log prior density in the latent space; -inf beyond `Z_MAX`.
    log_likelihood : Tensor
        Log likelihood; NaN where the simulation is not finite, -inf where not simulated.
    failed : Tensor of bool
        True where the simulator raised twice, or ran out of time: such draws do not exist.
    errors : tuple of str
        The first messages of the simulator.
    """

    log_prior: Tensor
    log_likelihood: Tensor
    failed: Tensor
    errors: tuple[str, ...] = ()


class LatentTarget(Protocol):
    """What the ladder asks of a target: shapes as for `Target`, which is one.

    Attributes
    ----------
    prior : Prior
    data : Batch
    differentiable : bool
    n_numbers : int
        How many numbers one evaluation bears, for what fits into memory.
    seconds_per_row : float
        Of one evaluation.
    makes_data : bool
        Whether it can say what other data a model would have made.
    """

    prior: Prior
    data: Batch
    differentiable: bool
    n_numbers: int
    seconds_per_row: float
    makes_data: bool

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the unnormalised log posterior density."""

    def evaluate(self, z: Tensor, index: Tensor) -> Evaluation:
        """Return prior, likelihood and failures of draws."""

    def single(self) -> LatentTarget:
        """Return the same in single precision."""


class DataSets(NamedTuple):
    """The sets of data behind draws: what made each, and whose they are.

    Attributes
    ----------
    target : Target
    z : Tensor, shape (m, n, D)
        The draws that m sets of data are looked at with.
    index : Tensor of int64, shape (m,)
        Which objects of the target they are.
    owner : Tensor of int64, shape (m,)
        Which object of those that were asked for each belongs to.
    """

    target: Target
    z: Tensor
    index: Tensor
    owner: Tensor


@dataclass(frozen=True)
class Target:
    """Prior, simulator and noise for a batch of objects.

    Parameters
    ----------
    prior, simulator, noise
        The problem; the noise is bound.
    data : Batch
        N objects, float64, on the device where the answer is wanted.
    n_jobs, client
        How a numpy simulator is run; see `nbi_plus.problem.simulator.parallel.simulate_rows`.
    """

    prior: Prior
    simulator: BoundSimulator | None
    noise: Noise
    data: Batch
    n_jobs: int | None = 1
    client: object | None = None

    @property
    def makes_data(self) -> bool:
        """Whether there are models to make other data of."""
        return self.simulator is not None and not self.simulator.stochastic

    @property
    def seconds_per_row(self) -> float:
        """What one simulation takes; where none is made, about: nothing depends on the clock."""
        if self.noise.reads_model:
            return self.simulator.seconds_per_row
        return _SECONDS * self.n_numbers * (1 + self.noise.n_copies)

    @property
    def n_numbers(self) -> int:
        """How many numbers one simulation has."""
        return math.prod(self.data.x.shape[1:])

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the unnormalised log posterior density in the latent space.

        Parameters
        ----------
        z : Tensor of float64, shape (b, n, D)
            Latent draws; differentiable when the simulator is.
        index : Tensor of int64, shape (b,)
            Which objects they belong to.

        Returns
        -------
        Tensor of float64, shape (b, n)
            -inf for draws that are impossible, failed or not finite.
        """
        found = self.evaluate(z, index)
        value = found.log_prior + found.log_likelihood
        return torch.where(torch.isnan(value) | found.failed, -math.inf, value)

    def evaluate(self, z: Tensor, index: Tensor) -> Evaluation:
        """Return prior, likelihood and failures of draws; shapes as for `log_prob`."""
        inside = (z.abs() <= Z_MAX).all(-1)
        theta = self.prior.complete(self.prior.from_latent(z))
        likelihood, failed, errors = self._likelihood(theta.to(self.data.x.dtype), index, inside)
        log_prior = self.prior.log_prob_latent(z).masked_fill(~inside, -math.inf)
        return Evaluation(log_prior, likelihood.to(log_prior.dtype), failed, errors[:10])

    @cached_property
    def differentiable(self) -> bool:
        """Whether torch can differentiate it: a few draws of the prior are tried on one object."""
        models = not self.noise.reads_model or self.simulator.differentiable
        if not (models and self.prior.differentiable):
            return False
        first = torch.zeros(1, dtype=torch.int64, device=self.data.x.device)
        z = keyed_normal(0, "gradient", first, (_N_PROBES, self.prior.n_dim))
        with torch.enable_grad():
            return self.log_prob(z.requires_grad_(True), first).requires_grad

    def single(self) -> Target:
        """Return the same target with simulator and noise in single precision.

        Faster by half or more, and wrong where many points, small errors or large times leave no
        digits: compare both before it is believed.
        """
        data = self.data.to(dtype=torch.float32)
        coords = {k: v.float() if v.dtype is torch.float64 else v for k, v in data.coords.items()}
        scalars = {k: v.float() if v.dtype is torch.float64 else v for k, v in data.scalars.items()}
        return replace(self, data=replace(data, coords=coords, scalars=scalars))

    def sets_of_data(self, z: Tensor, index: Tensor) -> DataSets:
        """Return the objects ``index`` (b,) and their draws z (b, n, D): each has its own data."""
        return DataSets(self, z, index, torch.arange(len(index), device=index.device))

    def judge(self, z: Tensor, models: Tensor, failed: Tensor) -> Evaluation:
        """Return what `evaluate` would find for the first object, of simulations made elsewhere.

        Parameters
        ----------
        z : Tensor, shape (1, n, D)
        models : Tensor, shape (1, n, C, L)
        failed : Tensor of bool, shape (1, n)
        """
        inside = (z.abs() <= Z_MAX).all(-1)
        theta = self.prior.complete(self.prior.from_latent(z))
        values = torch.empty_like(theta[..., 0])
        data = self.data.select(torch.zeros(1, dtype=torch.int64, device=z.device))
        for _, j in self._launches(*inside.shape):
            values[:, j] = self.noise.log_likelihood(theta[:, j], models[:, j], data)
        values = values.masked_fill(~inside | failed, -math.inf)
        log_prior = self.prior.log_prob_latent(z).masked_fill(~inside, -math.inf)
        return Evaluation(log_prior, values, failed)

    def densities(
        self, theta: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return log prior and log likelihood of theta (n, D) for the first object, each (n,).

        Both are of theta itself; the likelihood is -inf outside the prior and where it failed.
        """
        log_prior = np.asarray(self.prior.log_prob(theta))
        device = self.data.x.device
        full = torch.as_tensor(self.prior.complete(theta), device=device)[None]
        inside = torch.as_tensor(np.isfinite(log_prior), device=device)[None]
        with torch.no_grad():
            first = torch.zeros(1, dtype=torch.int64, device=device)
            log_like = self._likelihood(full, first, inside)[0][0].cpu().numpy()
        return log_prior, np.where(np.isnan(log_like), -np.inf, log_like)

    def terms(self, theta: Tensor, index: Tensor) -> Tensor:
        """Return what adds up to the log-likelihood, (b, n, C, L) or (b, n, 1, 1), with a graph.

        Of theta (b, n, D), inside the prior or not, and of all at once; see `Noise.log_densities`.
        It is -inf where a simulation failed or is not finite.
        """
        full = self.prior.complete(theta)
        everywhere = torch.ones(theta.shape[:2], dtype=torch.bool, device=theta.device)
        models = self._models if self.noise.reads_model else self._no_models
        model, failed, _ = models(full, index, everywhere)
        found = self.noise.log_densities(full, model, self.data.select(index))
        return found.masked_fill(failed[..., None, None] | found.isnan(), -math.inf)

    def draw(self, theta: Tensor, index: Tensor, rng: torch.Generator) -> Tensor:
        """Return data (b, C, L) of theta (b, D), as the objects ``index`` (b,) could have been.

        NaN where they are masked, and where the simulator failed.
        """
        full, data = self.prior.complete(theta), self.data.select(index)
        if self.simulator.stochastic:  # what it draws for a row is seeded by the row
            digits = torch.randint(2**16, (len(full), 1), generator=rng, device=rng.device)
            full = full + digits * (full.nextafter(full.new_tensor(math.inf)) - full)
        everywhere = torch.ones(len(theta), 1, dtype=torch.bool, device=theta.device)
        model, failed, _ = self._models(full[:, None], index, everywhere)
        x = self.noise.augment(model[:, 0], data, full, rng)
        return x.masked_fill(failed[..., None] | ~data.mask, math.nan)

    def simulate(self, z: Tensor, index: Tensor) -> Tensor:
        """Return noise-free models, shape (b, n, C, L), NaN where the simulator failed."""
        theta = self.prior.complete(self.prior.from_latent(z))
        inside = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
        return self._models(theta, index, inside)[0]

    def _rows_per_launch(self) -> int:
        most = launch.of(self.data.x.device)
        copies = most.target_copies + self.noise.n_copies
        rows = most.target_bytes // (8 * copies * self.n_numbers)
        return max(1, min(rows, most.target_rows))

    def _launches(self, n_objects: int, n_each: int) -> list[tuple[slice, slice]]:
        """Return pieces of objects and draws that fit into memory; compiled code needs none."""
        if torch.compiler.is_compiling():
            return [(slice(None), slice(None))]
        rows = self._rows_per_launch()
        objects, draws = max(1, rows // max(n_each, 1)), min(rows, max(n_each, 1))
        return [
            (slice(i, i + objects), slice(j, j + draws))
            for i in range(0, n_objects, objects)
            for j in range(0, max(n_each, 1), draws)
        ]

    def _likelihood(
        self, theta: Tensor, index: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return likelihood and failures (b, n) of theta (b, n, P), and the first errors."""
        values, failures = torch.zeros_like(theta[..., 0]), torch.zeros_like(inside)
        messages: tuple[str, ...] = ()
        launches = self._launches(*inside.shape)
        for i, j in launches:
            asked = theta[i, j], index[i], inside[i, j]
            models = self._models if self.noise.reads_model else self._no_models
            model, failed, errors = models(*asked)
            value = self.noise.log_likelihood(theta[i, j], model, self.data.select(index[i]))
            value = value.masked_fill(~inside[i, j] | failed, -math.inf)
            if len(launches) == 1:
                return value, failed, errors
            values[i, j], failures[i, j] = value, failed
            messages += errors
        return values, failures, messages

    def _no_models(
        self, theta: Tensor, index: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return the data in place of models that nobody reads."""
        x = self.data.x[index].unsqueeze(1).expand(-1, theta.shape[1], -1, -1)
        return x, torch.zeros_like(inside), ()

    def _models(
        self, theta: Tensor, index: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Simulate the draws ``inside``; the others get NaN, or what nobody looks at."""
        if torch.compiler.is_compiling():  # nothing may depend on what the numbers are
            owner = index.repeat_interleave(theta.shape[1])
            model = self.simulator.call.traced(theta.flatten(0, 1), *self._coords(owner))
            return model.reshape(*inside.shape, *model.shape[1:]), torch.zeros_like(inside), ()
        failed = torch.zeros(inside.numel(), dtype=torch.bool, device=theta.device)
        if self.simulator.backend == "torch" and inside.numel() and _whole(inside):
            owner = index.repeat_interleave(theta.shape[1])
            model = self._torch(theta.flatten(0, 1), *self._coords(owner))
            if model is not None:
                model = model.to(theta.dtype).reshape(*inside.shape, *model.shape[1:])
                return model, failed.reshape(inside.shape), ()
        rows = inside.reshape(-1).nonzero()[:, 0]
        flat = theta.reshape(-1, theta.shape[-1])[rows]
        owner = index.repeat_interleave(theta.shape[1])[rows]
        coords, per_row = self._coords(owner)
        errors: tuple[str, ...] = ()
        model = self._torch(flat, coords, per_row) if self.simulator.backend == "torch" else None
        if model is None:
            arrays = {k: v.cpu().numpy() for k, v in coords.items()}
            block = simulated(
                self.simulator, (flat.detach().cpu().numpy(), arrays, per_row),
                n_jobs=self.n_jobs, client=self.client,
            )  # fmt: skip
            bad = torch.as_tensor(block.state == FAILED, device=theta.device)
            failed[rows] = bad
            errors = tuple(message for _, message in block.errors)
            model = torch.as_tensor(block.x, device=theta.device)
            if flat.requires_grad:
                model = self._with_graph(model, flat, coords, per_row, ~bad)
        whole = torch.full(
            (inside.numel(), *model.shape[1:]), math.nan, dtype=theta.dtype, device=theta.device
        )
        whole = whole.index_copy(0, rows, model.to(theta.dtype))
        return whole.reshape(*inside.shape, *model.shape[1:]), failed.reshape(inside.shape), errors

    def _coords(self, owner: Tensor) -> tuple[dict[str, Tensor], frozenset[str]]:
        """Return what the simulator asks for, for rows of ``owner``, and which of it is by row."""
        per_row = self.data.per_object()
        coords = {
            k: v[owner] if k in per_row else v
            for k, v in self.data.arguments().items()
            if k in self.simulator.arguments
        }
        return coords, per_row & set(coords)

    def _torch(
        self, theta: Tensor, coords: dict[str, Tensor], per_row: frozenset[str]
    ) -> Tensor | None:
        """Run a torch simulator on all rows at once, or return None when a row makes it raise."""
        try:
            return self.simulator.torch(theta, coords, per_row)
        except (torch.cuda.OutOfMemoryError, SimulationError):
            raise  # no single row is to blame
        except Exception as error:  # noqa: BLE001 - user code; `simulated` finds the row and keeps the error
            _LOG.debug("simulator raised on %d rows, trying them one by one: %r", len(theta), error)
            return None

    def _with_graph(
        self, model: Tensor, theta: Tensor, coords: dict[str, Tensor], per_row: frozenset[str],
        good: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return models of which the rows that do not raise carry their gradient."""
        if self.simulator.backend != "torch" or not good.any():
            return model
        own = {k: v[good] if k in per_row else v for k, v in coords.items()}
        again = self._torch(theta[good], own, per_row)
        return model if again is None else model.index_put((good.nonzero()[:, 0],), again)


def _whole(inside: Tensor) -> bool:
    """Say whether all draws are simulated: off the CPU they are, for to look would mean to wait."""
    return inside.device.type != "cpu" or bool(inside.all())
