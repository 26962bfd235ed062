"""Objects of an Engine in PyMC models: data whose density is that of its noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.data.ingest import point_mask
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.problem.binding import holds_objects
from nbi_plus.problem.prior.learned_range import LearnedRange
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import generator, preserved_random_state
from nbi_plus.problem.target import Target
from nbi_plus.pymc.operations import LogDensityOp, rows_of
from nbi_plus.torch_state import door

_N_PROBES = 16  # draws of the prior: a simulator may raise for some of them


@dataclass(frozen=True)
class NoiseDensity:
    """The likelihood of the data of N objects, as a source of log-densities.

    Attributes
    ----------
    target : Target
    apart : bool
        Whether each point has a density of its own.
    differentiable : bool
        Whether torch has gradients of simulator and noise.
    """

    target: Target
    apart: bool
    differentiable: bool

    @classmethod
    def of(cls, target: Target) -> NoiseDensity:
        """Return what a few draws of the prior show of the first object."""
        theta = torch.as_tensor(target.prior.sample(_N_PROBES, 0), device=target.data.x.device)
        first = torch.zeros(1, dtype=torch.int64, device=theta.device)
        with preserved_random_state(), torch.enable_grad():
            found = target.terms(theta[None].requires_grad_(True), first)
        models = not target.noise.reads_model or target.simulator.differentiable
        apart = found.shape[2:] == target.data.x.shape[1:]
        return cls(target, apart, models and found.requires_grad)

    @property
    def prior(self) -> Prior:
        """That of the engine, which takes no part."""
        return self.target.prior

    @property
    def range(self) -> LearnedRange | None:
        """Where the likelihood was learned, if it was."""
        return self.target.noise.learned_at

    def statistics(self, name: str, x: NDArray) -> Batch:  # noqa: ARG002 - one for each source
        """Return the objects with data x, of as many numbers as theirs."""
        own = self.target.data
        return own.with_data(torch.as_tensor(x, device=own.x.device).reshape(own.x.shape))

    def log_prob(self, theta: Tensor, statistics: Batch) -> Tensor:
        """Return log-densities of all points, or of each object, of theta (N or 1, D)."""
        n, device = len(statistics), statistics.x.device
        each = theta.to(device).expand(n, -1)[:, None]
        target = replace(self.target, data=statistics)
        with preserved_random_state():
            return target.terms(each, torch.arange(n, device=device)).flatten()

    @door
    def draw(self, theta: NDArray, seed: int) -> NDArray[np.float64]:
        """Return data (B, N, C, L) of theta (B, N, D)."""
        b, n, n_dim = theta.shape
        device = self.target.data.x.device
        rows = torch.as_tensor(theta.reshape(-1, n_dim), dtype=torch.float64, device=device)
        owner = torch.arange(n, device=device).repeat(b)
        with preserved_random_state(), torch.no_grad():
            x = self.target.draw(rows, owner, generator(seed, "predictive", device))
        return x.reshape(b, n, *x.shape[1:]).cpu().numpy()


class ObjectVariable:
    """A variable of PyMC that is the data of one object, or of N.

    Parameters
    ----------
    density : NoiseDensity
    shape : tuple of int
        Of the data as PyMC has them: (L,), (C, L), or (N, C, L).
    """

    def __init__(self, density: NoiseDensity, shape: tuple[int, ...], name: str) -> None:
        self.density, self.shape, self.many = density, shape, len(shape) > 2
        refusal = "" if density.differentiable else (
            f"{name} has no gradient, which NUTS and find_MAP ask for: the engine's simulator or "
            "noise cannot be differentiated. Write them in torch, or sample with step=pm.Slice()."
        )  # fmt: skip
        self.op = LogDensityOp(density, refusal)

    def declare(
        self, name: str, names: tuple[str, ...], own: list[pt.TensorVariable], observe: bool
    ) -> pt.TensorVariable:
        """Return the variable, of parameters of these names, in the model of the context."""
        for parameter, value in zip(names, own, strict=True):
            if value.ndim > self.many:
                raise ValueError(
                    f"{parameter} must be one number{' or one for each object' * self.many}, but "
                    f"has {value.ndim} axes. Give Observations for many objects."
                )
        if self.density.range is not None:
            pm.Deterministic(f"{name}_outside", self.op.outside(*own))
        if self.density.apart:  # each point is a variable, and parameters broadcast to them
            own = [p[:, None, None] if p.ndim else p for p in own]
        x = self.density.target.data.x.cpu().numpy().reshape(self.shape)
        # numbers: PyTensor must know the shape of what is drawn together
        axes = "()" if self.density.apart else f"({','.join(map(str, self.shape[-2:]))})"
        shapes = ",".join(["()"] * len(own))
        return pm.CustomDist(
            name, *own, logp=self.log_prob, random=self.draw, shape=self.shape,
            observed=x if observe else None, signature=f"{shapes}->{axes}",
        )  # fmt: skip

    def log_prob(self, value: pt.TensorVariable, *params: pt.TensorVariable) -> pt.TensorVariable:
        """Return log-densities, each point's in the shape of the data, or each object's."""
        apart = self.density.apart
        n = len(self.density.target.data)
        found = self.op(value.reshape((-1, 1) if apart else (n, -1)), rows_of(params))
        if apart:
            return found.reshape(self.shape)
        return found if self.many else found[0]

    def draw(self, *params: NDArray, rng: np.random.Generator, size: Any) -> NDArray:  # noqa: ANN401
        """Return data for parameters, and of the size that PyMC wants."""
        n = len(self.density.target.data)
        behind = (n, 1, 1) if self.many else (1,) * len(self.shape)
        if not self.density.apart:
            behind = (n,) if self.many else ()
        fill = self.shape if self.density.apart else behind
        whole = np.broadcast_shapes(*(np.shape(p) for p in params), tuple(size or ()), fill)
        lead = whole[: len(whole) - len(fill)]
        theta = [np.broadcast_to(p, (*lead, *behind)).reshape(-1, n) for p in params]
        x = self.density.draw(np.stack(theta, -1), int(rng.integers(2**31)))
        return x.reshape(*lead, *self.shape)


def variable_of(
    engine: Engine, name: str, observed: ArrayLike | Observations | None,
    beside: Mapping[str, ArrayLike | None], inputs: Mapping[str, ArrayLike],
) -> ObjectVariable:  # fmt: skip
    """Return the variable of data ``observed``, what is given ``beside`` them, and inputs.

    ``beside`` has x_err, mask and bad, or None for them.
    """
    given = [k for k, v in (*beside.items(), *inputs.items()) if v is not None]
    objects = isinstance(observed, Observations)
    if objects and given:
        raise TypeError(
            f"{given[0]} must be part of the Observations, but came beside them. Make them with it."
        )
    if observed is None:
        seen = np.zeros(engine._fitted("NeuralDistribution without observed").shape)
    else:
        seen = observed
    real = point_mask(beside["mask"], beside["bad"])
    with preserved_random_state():
        target = engine._target(_CALLER, seen, beside["x_err"], real, inputs)
    if not target.noise.has_likelihood(target.data.x_err is not None):
        raise ValueError(
            "NeuralDistribution must have an engine whose noise has a log_likelihood, but "
            f"{target.noise} has none. Give CustomNoise one, or learn it with a LikelihoodEngine."
        )
    n, *one = target.data.x.shape
    if objects:
        shape = (n, *one)
    else:
        # what is no array of numbers has no shape of its own
        shape = tuple(one[one[0] == 1 :]) if holds_objects(seen) else np.shape(seen)
    return ObjectVariable(NoiseDensity.of(replace(target, n_jobs=1, client=None)), shape, name)


_CALLER = "NeuralDistribution"
