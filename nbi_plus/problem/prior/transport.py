"""Joint maps between all parameters and the standard normal latent space."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.problem.prior.families import Family
from nbi_plus.problem.prior.marginals import normal_cdf

Array = NDArray[np.float64]
_U_MIN, _U_MAX = 1e-300, 1 - 2.0**-53  # a quantile function may be infinite at 0 and 1


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Return the log-density of N(0, I) over the last axis."""
    return -0.5 * (z**2).sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


class Transport(ABC):
    """A map from z (..., D), standard normal, to theta (..., D), distributed as the prior.

    Tensors are float64 and stay on their device. ``has_inverse`` says whether `to_latent` and the
    densities exist, ``differentiable`` whether `from_latent` keeps a graph.
    """

    n_dim: int
    has_inverse: bool
    differentiable: bool

    @property
    @abstractmethod
    def periods(self) -> tuple[float | None, ...]:
        """The circumferences of circular parameters, None for the others."""

    @property
    @abstractmethod
    def support(self) -> tuple[tuple[float, float], ...]:
        """The least and largest value of each parameter, NaN where they are not known."""

    @abstractmethod
    def from_latent(self, z: Tensor) -> Tensor:
        """Return theta of z."""

    @abstractmethod
    def to_latent(self, theta: Tensor) -> Tensor:
        """Return z of theta."""

    @abstractmethod
    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the log-density of theta (..., D), shape (...)."""

    @abstractmethod
    def log_prob_numpy(self, theta: Array) -> Array:
        """Return the log-density of an array, as exactly as it is known."""

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Return what defines the map, as JSON."""

    @property
    def laws(self) -> tuple[str, ...]:
        """What each parameter is distributed as, where that is known of one alone."""
        return ("joint",) * self.n_dim

    @abstractmethod
    def describe(self, names: Sequence[str]) -> str:
        """Return one readable line, without line breaks."""


@dataclass(frozen=True, eq=False)
class IndependentPrior(Transport):
    """One distribution for each parameter."""

    families: tuple[Family, ...]
    has_inverse = True
    differentiable = True

    @property
    def n_dim(self) -> int:
        """The number of distributions."""
        return len(self.families)

    @property
    def laws(self) -> tuple[str, ...]:
        """The distributions."""
        return tuple(map(str, self.families))

    @property
    def periods(self) -> tuple[float | None, ...]:
        """The circumferences of the `Circular` ones."""
        return tuple(family.period for family in self.families)

    @property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The edges of the distributions; a circle has none."""
        line = (-math.inf, math.inf)
        return tuple(line if f.period else f.marginal.support for f in self.families)

    def from_latent(self, z: Tensor) -> Tensor:
        """Map each column."""
        columns = zip(self.families, z.unbind(-1), strict=True)
        return torch.stack([family.marginal.from_latent(column) for family, column in columns], -1)

    def to_latent(self, theta: Tensor) -> Tensor:
        """Map each column back."""
        columns = zip(self.families, theta.unbind(-1), strict=True)
        return torch.stack([family.marginal.to_latent(column) for family, column in columns], -1)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Add the log-densities of the latent maps."""
        columns = zip(self.families, theta.unbind(-1), strict=True)
        return torch.stack([family.marginal.log_prob(column) for family, column in columns]).sum(0)

    def log_prob_numpy(self, theta: Array) -> Array:
        """Add scipy's log-densities."""
        total = np.zeros(theta.shape[:-1])
        with np.errstate(all="ignore"):
            for column, family in enumerate(self.families):
                total = total + family.distribution.logpdf(theta[..., column])
        return total

    def manifest(self) -> dict[str, Any]:
        """Return the manifests of the distributions."""
        manifests = [copy.deepcopy(family.manifest) for family in self.families]
        return {"kind": "independent", "families": manifests}

    def describe(self, names: Sequence[str]) -> str:
        """Return ``name ~ family(arguments)`` for each parameter."""
        pairs = zip(names, self.families, strict=True)
        return ", ".join(f"{name} ~ {family}" for name, family in pairs)


@dataclass(frozen=True, eq=False)
class PriorTransform(Transport):
    """A user's map from the unit cube, as nested samplers take it; it has no inverse.

    Parameters
    ----------
    function : callable
        ``f(u) -> theta`` for u (n, D) if vectorised, else for u (D,); numpy or torch.
    n_dim : int
        The number of parameters.
    vectorized, in_numpy, differentiable : bool
        How the function may be called; `probe_transform` finds out.
    """

    function: Callable[[Any], Any]
    n_dim: int
    vectorized: bool
    in_numpy: bool
    differentiable: bool
    has_inverse = False

    @property
    def periods(self) -> tuple[float | None, ...]:
        """Nothing is known of circles."""
        return (None,) * self.n_dim

    @property
    def support(self) -> tuple[tuple[float, float], ...]:
        """Nothing is known of edges."""
        return ((math.nan, math.nan),) * self.n_dim

    def from_latent(self, z: Tensor) -> Tensor:
        """Return ``f(Phi(z))``, with a graph if the function keeps one."""
        if z.numel() == 0:
            return z.clone()
        u = normal_cdf(z).clamp(_U_MIN, _U_MAX).reshape(-1, self.n_dim)
        as_torch = not self.in_numpy or (self.differentiable and z.requires_grad)
        call = _call_torch if as_torch else _call_numpy
        return call(self.function, u, self.vectorized).reshape(z.shape)

    def to_latent(self, theta: Tensor) -> Tensor:
        """Raise: a prior_transform cannot be inverted."""
        raise ValueError(_no_inverse("z", theta))

    def log_prob(self, theta: Tensor) -> Tensor:
        """Raise: a prior_transform has no density of theta."""
        raise ValueError(_no_inverse("the density", theta))

    def log_prob_numpy(self, theta: Array) -> Array:
        """Raise: a prior_transform has no density of theta."""
        raise ValueError(_no_inverse("the density", theta))

    def manifest(self) -> dict[str, Any]:
        """Return the function's name and its values at three fixed points."""
        z = torch.special.ndtri(_probe_points(3, self.n_dim))
        values = [[float(f"{value:.12g}") for value in row] for row in self.from_latent(z).tolist()]
        return {"kind": "prior_transform", "name": _name(self.function), "values": values}

    def describe(self, names: Sequence[str]) -> str:
        """Return the parameters and the function's name."""
        return f"{', '.join(names)} ~ prior_transform {_name(self.function)}"


def probe_transform(function: Callable[[Any], Any], n_dim: int) -> PriorTransform:
    """Find out how a prior_transform wants to be called, by calling it.

    It is vectorised if seven rows (eleven for D = 7) give as many, each depending on its own row
    alone; numpy is tried before torch; it is differentiable if, in torch, its output requires grad
    and repeats the same values.

    Parameters
    ----------
    function : callable
        ``f(u) -> theta`` with u uniform in the unit cube.
    n_dim : int
        The number of parameters D.

    Returns
    -------
    PriorTransform

    Raises
    ------
    ValueError
        If no way of calling it gives D finite numbers for each point, always the same.
    """
    u = _probe_points(7 if n_dim != 7 else 11, n_dim)
    calls = [(in_numpy, vectorized) for in_numpy in (True, False) for vectorized in (True, False)]
    outcomes = {call: _try(function, u, *call) for call in calls}
    good = [call for call in calls if isinstance(outcomes[call], Tensor)]
    if not good:
        reasons = "; ".join(dict.fromkeys(str(outcome) for outcome in outcomes.values()))
        raise ValueError(
            f"prior_transform must map u (n, {n_dim}) or ({n_dim},) to finite theta of the same "
            f"shape, but {_name(function)} did not: {reasons}. "
            "Check it on u = 0.5, and that labels names all its parameters."
        )
    in_numpy, vectorized = good[0]
    in_torch = outcomes[False, vectorized]
    differentiable = isinstance(in_torch, Tensor) and in_torch.requires_grad
    if differentiable and in_numpy:
        differentiable = torch.allclose(outcomes[good[0]], in_torch.detach(), rtol=1e-9)
    return PriorTransform(function, n_dim, vectorized, in_numpy, differentiable)


def _probe_points(n_rows: int, n_dim: int) -> Tensor:
    """Return fixed points of the unit cube, all coordinates different and none near its walls."""
    golden = torch.arange(1, n_rows * n_dim + 1, dtype=torch.float64) * 0.6180339887498949 % 1.0
    return 0.02 + 0.96 * golden.reshape(n_rows, n_dim)


def _try(
    function: Callable[[Any], Any], u: Tensor, in_numpy: bool, vectorized: bool
) -> Tensor | str:
    """Return the values of one way of calling, or why it will not do."""
    call = _call_numpy if in_numpy else _call_torch
    try:
        with torch.enable_grad():
            u = u.clone().requires_grad_()  # numpy refuses tensors that require grad
            values, again = call(function, u, vectorized), call(function, u[2:5], vectorized)
            if values.requires_grad:
                torch.autograd.grad(values.sum(), u, retain_graph=True)
    except Exception as error:  # noqa: BLE001  a user's function may raise anything
        return f"{type(error).__name__}: {error}"
    if values.shape != u.shape:
        return f"u {tuple(u.shape)} gave theta {tuple(values.shape)}"
    if not bool(torch.isfinite(values).all()):
        return "theta is not finite"
    if not torch.allclose(values[2:5], again, rtol=1e-9, atol=0.0):
        return "the same u gave another theta, alone and among others"
    return values


def _call_numpy(function: Callable[[Any], Any], u: Tensor, vectorized: bool) -> Tensor:
    """Call with fresh arrays, so that a function that writes into its input does no harm."""
    array = np.array(u.detach().cpu().numpy(), dtype=np.float64)
    values = function(array) if vectorized else [function(row) for row in array]
    return torch.from_numpy(np.array(values, dtype=np.float64)).to(u.device)


def _call_torch(function: Callable[[Any], Any], u: Tensor, vectorized: bool) -> Tensor:
    u = u.clone()
    values = function(u) if vectorized else torch.stack([function(row.clone()) for row in u])
    return values.to(torch.float64)


def _name(function: Callable[[Any], Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _no_inverse(what: str, theta: Tensor | Array) -> str:
    return (
        f"prior must have an inverse to give {what} of theta, but it is a prior_transform, and "
        f"theta has shape {tuple(theta.shape)}. Keep the z the draws came from, or give Prior a "
        "mapping of distributions or an EmpiricalPrior."
    )
