"""The prior: named parameters, their joint distribution and its map to a standard normal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor

from nbi_plus.arguments import generator_of, seed_of, whole
from nbi_plus.data.ingest import numbers
from nbi_plus.problem.prior.families import Circular, family_from_manifest, read_family
from nbi_plus.problem.prior.mixture import fit_prior_mixture, mixture_from_manifest
from nbi_plus.problem.prior.naming import (
    Labels,
    NamedParameters,
    by_name,
    display_labels,
    entries_of,
    finite_number,
    is_number,
    mapping_or_none,
    names_of,
    refuse_duplicates,
    refuse_other_names,
    refuse_too_many,
    units_as_text,
)
from nbi_plus.problem.prior.transport import (
    IndependentPrior,
    Transport,
    probe_transform,
    standard_normal_log_prob,
)
from nbi_plus.torch_state import door, own_state

__all__ = ["Circular", "EmpiricalPrior", "Prior"]

Array = NDArray[np.float64]
ArrayOrTensor = TypeVar("ArrayOrTensor", Array, Tensor)


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Prior(NamedParameters):
    """A prior over named parameters, with a latent space in which it is standard normal.

    Every parameter is mapped by ``z = Phi^-1(F(theta))`` with F its distribution function. All
    methods take and return either numpy arrays or torch tensors (then differentiable, on the
    tensor's device), batched over leading axes, in float64.

    Parameters
    ----------
    parameters : mapping, sequence or callable
        A mapping from name to a frozen continuous scipy.stats distribution, a `Circular`, or a
        number (a fixed value); a sequence of these; or a nested-sampling style
        ``prior_transform(u) -> theta`` for u (n, D) or (D,), numpy or torch. A prior_transform has
        no inverse: `to_latent` and `log_prob` raise.
    labels : sequence or mapping of str, optional
        With a mapping of parameters: how the free ones are displayed (LaTeX). With a sequence or
        a callable: their names. A mapping is always from name to display label.
    units : mapping of str to str or unit, optional
        Units of any parameters, kept as text.
    fixed : mapping of str to float, optional
        Further parameters of the simulator with one value, after the others.
    derived : mapping of str to callable, optional
        Quantities ``f(theta) -> (n,)`` of complete numpy theta (n, P), free and fixed.

    Attributes
    ----------
    names, full_names : tuple of str, shapes (D,), (P,)
        The free parameters, and all that the simulator sees, in order.
    labels : tuple of str, shape (D,)
        Display labels of the free parameters.
    units, fixed, derived : dict
        As given, read.

    Examples
    --------
    >>> from scipy.stats import loguniform, norm
    >>> prior = Prior({"u0": loguniform(0.01, 1.0), "t0": norm(50, 2), "rho": 1e-3})
    >>> prior
    Prior(u0 ~ loguniform(a=0.01, b=1), t0 ~ norm(loc=50, scale=2); rho = 0.001)
    >>> prior.from_latent(np.array([[0.0, 1.0]]))
    array([[ 0.1, 52. ]])
    """

    names: tuple[str, ...]
    full_names: tuple[str, ...]
    labels: tuple[str, ...]
    units: dict[str, str]
    fixed: dict[str, float]
    derived: dict[str, Callable[[Array], ArrayLike]]
    transport: Transport

    @door
    def __init__(
        self,
        parameters: Mapping[str, object] | Sequence[object] | Callable[[Any], Any],
        *,
        labels: Labels | None = None,
        units: Mapping[str, object] | None = None,
        fixed: Mapping[str, float] | None = None,
        derived: Mapping[str, Callable[[Array], ArrayLike]] | None = None,
    ) -> None:
        if _is_prior_transform(parameters):
            names = names_of(labels, None)
            transport = probe_transform(parameters, len(names))
            entries = dict.fromkeys(names)
        else:
            entries = entries_of(parameters, labels)
            free = {name: given for name, given in entries.items() if not is_number(given)}
            if not free:
                raise ValueError(
                    f"parameters must hold a free parameter, but has {list(entries)} with only "
                    "fixed values. Give at least one a distribution."
                )
            transport = IndependentPrior(tuple(read_family(*item) for item in free.items()))
        display = labels if isinstance(parameters, Mapping) else mapping_or_none(labels)
        self._set(transport, entries, display, units, fixed, derived)

    def _set(
        self,
        transport: Transport,
        entries: Mapping[str, object],
        display: Labels | None,
        units: Mapping[str, object] | None,
        fixed: Mapping[str, float] | None,
        derived: Mapping[str, Callable[[Array], ArrayLike]] | None,
    ) -> None:
        """Store everything, once, checked; entries that are numbers are fixed values."""
        inner = {name: value for name, value in entries.items() if is_number(value)}
        outer = dict(fixed or {})
        refuse_duplicates("fixed", [*entries, *outer])
        names = tuple(name for name in entries if name not in inner)
        full_names = (*entries, *outer)
        derived = dict(derived or {})
        refuse_duplicates("derived", [*full_names, *derived])
        for name, function in derived.items():
            if not callable(function):
                raise TypeError(
                    f"derived[{name!r}] must be a function of theta (n, {len(full_names)}), "
                    f"but is {function!r}. Give for example lambda theta: theta[:, 0] ** 2."
                )
        values = {
            "names": names,
            "full_names": full_names,
            "labels": display_labels(names, display),
            "units": units_as_text(units, [*full_names, *derived]),
            "fixed": {
                name: finite_number(name, value) for name, value in {**inner, **outer}.items()
            },
            "derived": derived,
            "transport": transport,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @classmethod
    def coerce(cls, prior: object, labels: Labels | None = None) -> Prior:
        """Return a Prior unchanged, or make one of a mapping, a sequence or a callable."""
        return prior if isinstance(prior, Prior) else Prior(prior, labels=labels)

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], labels: Labels | None = None) -> Prior:
        """Rebuild a prior from `manifest`, where it holds numbers and scipy's own names only.

        Parameters
        ----------
        manifest : mapping
            What `manifest` returned, possibly by way of JSON.
        labels : sequence or mapping of str, optional
            Display labels, which a manifest does not hold; neither does it hold derived ones.
        """
        names, transport = manifest["names"], manifest["transport"]
        refuse_too_many(manifest["full_names"])
        if transport["kind"] == "independent":
            pairs = zip(names, transport["families"], strict=True)
            rebuilt = IndependentPrior(tuple(family_from_manifest(*pair) for pair in pairs))
        elif transport["kind"] == "mixture":
            rebuilt = mixture_from_manifest(transport)
        else:
            raise ValueError(
                f"prior must consist of distributions to be rebuilt from a file, but is the "
                f"prior_transform {transport['name']}. Pass the prior again."
            )
        entries = {name: manifest["fixed"].get(name) for name in manifest["full_names"]}
        prior = cls.__new__(Prior)
        prior._set(rebuilt, entries, labels, manifest["units"], None, None)
        refuse_other_names(prior.names, names, rebuilt.n_dim)
        return prior

    @property
    def n_dim(self) -> int:
        """The number of free parameters D."""
        return len(self.names)

    @property
    def periods(self) -> tuple[float | None, ...]:
        """The period of every circular parameter, None for the others, shape (D,)."""
        return self.transport.periods

    @property
    def support(self) -> Array:
        """Edges (D, 2) of a box that holds all theta, NaN where unknown; a circle has none."""
        return np.array(self.transport.support)

    @property
    def has_inverse(self) -> bool:
        """Whether `to_latent` and `log_prob` exist: not for a prior_transform."""
        return self.transport.has_inverse

    @property
    def differentiable(self) -> bool:
        """Whether `from_latent` of a tensor keeps a graph: not for a numpy prior_transform."""
        return self.transport.differentiable

    def from_latent(self, z: ArrayOrTensor) -> ArrayOrTensor:
        """Return the parameters (..., D) of latent values z (..., D)."""
        return _apply(self.transport.from_latent, self._columns(z, "z"))

    def to_latent(self, theta: ArrayOrTensor) -> ArrayOrTensor:
        """Return z (..., D) of parameters (..., D); infinite where outside the prior."""
        return _apply(self.transport.to_latent, self._columns(theta, "theta"))

    def transform(self, u: ArrayOrTensor) -> ArrayOrTensor:
        """Return the parameters (..., D) of points of the unit cube, as nested samplers ask."""
        u = self._columns(u, "u")
        if not bool(((u >= 0) & (u <= 1)).all()):
            raise ValueError(
                f"u must lie in the unit cube, but has values from {float(u.min()):.6g} to "
                f"{float(u.max()):.6g}. Give uniform numbers; from_latent takes normal ones."
            )
        return _apply(lambda v: self.transport.from_latent(torch.special.ndtri(v)), u)

    def log_prob(self, theta: ArrayOrTensor) -> ArrayOrTensor:
        """Return the log-density (...) of parameters (..., D), -inf outside the support.

        For arrays it is scipy's own density; for tensors that of the latent map, which has a
        gradient and agrees to 1e-4 or better.
        """
        theta = self._columns(theta, "theta")
        if isinstance(theta, Tensor):
            return self.transport.log_prob(theta)
        return door(self.transport.log_prob_numpy)(theta)

    def log_prob_latent(self, z: ArrayOrTensor) -> ArrayOrTensor:
        """Return the log-density (...) of z (..., D): standard normal, whatever the prior."""
        return _apply(standard_normal_log_prob, self._columns(z, "z"))

    def sample(self, n: int, rng: int | np.random.Generator | None = None) -> Array:
        """Draw parameters, shape (n, D)."""
        shape = whole("n", n, 0), self.n_dim
        return self.from_latent(generator_of("rng", rng).standard_normal(shape))

    def complete(self, theta: ArrayOrTensor) -> ArrayOrTensor:
        """Return what the simulator sees: theta (..., D) with the fixed values put in, (..., P)."""
        theta = self._columns(theta, "theta")
        kind = torch if isinstance(theta, Tensor) else np
        columns = {name: theta[..., d] for d, name in enumerate(self.names)}
        filled = {n: kind.full_like(theta[..., 0], value) for n, value in self.fixed.items()}
        return kind.stack([{**columns, **filled}[name] for name in self.full_names], -1)

    def derive(self, theta: ArrayLike) -> dict[str, Array]:
        """Return the derived quantities (n,) of parameters (n, D), by name."""
        full = self.complete(self.check(theta))
        return {name: _derived(name, f, full.copy()) for name, f in self.derived.items()}

    def check(self, theta: ArrayLike, name: str = "theta", *, one: bool = False) -> Array:
        """Return theta (n, D), or of ``one`` row (D,), in float64, or say what is wrong with it."""
        array = numbers(name, by_name(theta, self.names, self.units))
        array = array[None] if one and array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != self.n_dim:
            raise ValueError(
                f"{name} must have shape (n, {self.n_dim}) for parameters {self.names}, but has "
                f"{array.shape}. Did you swap x and theta?"
            )
        bad = ~np.isfinite(array).all(1)
        if bad.any():
            first = int(np.argmax(bad))
            raise ValueError(
                f"{name} must be finite, but {int(bad.sum())} of {len(bad)} rows are not (first: "
                f"row {first}, {array[first].tolist()}). Remove them."
            )
        return array

    def manifest(self) -> dict[str, Any]:
        """Return what defines the distribution, as JSON: equal priors have equal manifests.

        Labels and derived quantities, which change no simulation, are left out.
        """
        return {
            "names": list(self.names),
            "full_names": list(self.full_names),
            "fixed": dict(self.fixed),
            "units": dict(self.units),
            "transport": self.transport.manifest(),
        }

    def __repr__(self) -> str:
        fixed = "".join(f"; {name} = {value:g}" for name, value in self.fixed.items())
        return f"{type(self).__name__}({self.transport.describe(self.names)}{fixed})"

    def __eq__(self, other: object) -> bool:
        return _dump(self) == _dump(other) if isinstance(other, Prior) else NotImplemented

    def __hash__(self) -> int:
        return hash(_dump(self))

    def _columns(self, values: ArrayLike | Tensor, name: str) -> Array | Tensor:
        """Return a float64 tensor or a fresh float64 array, with D columns."""
        if isinstance(values, Tensor):
            values = values.to(torch.float64)
        else:
            values = np.asarray(numbers(name, by_name(values, self.names, self.units)), order="C")
        if values.ndim == 0 or values.shape[-1] != self.n_dim:
            raise ValueError(
                f"{name} must have shape (..., {self.n_dim}) for parameters {self.names}, but has "
                f"{tuple(values.shape)}. Put the parameters on the last axis."
            )
        return values


class EmpiricalPrior(Prior):
    """A joint prior learnt from samples, for example of an earlier posterior.

    It is a *fitted density*: a Gaussian mixture whose size minimises the BIC. `sample` and
    `log_prob` are exact for the mixture and agree with each other, not with the samples. It has no
    hard edges; give a bounded parameter as its logarithm or logit, and undo that in the simulator.

    Parameters
    ----------
    samples : array_like, shape (n, D)
        Equally weighted, at least 10 (D + 1) of them.
    labels : sequence or mapping of str, optional
        Names, or a mapping from name to display label. Default ``theta_0``, ...
    units, fixed, derived : mapping, optional
        As for `Prior`.
    max_components : int
        The largest mixture tried.
    seed : int
        Of the fit.

    Examples
    --------
    >>> draws = np.random.default_rng(0).multivariate_normal([0, 1], [[1, 0.9], [0.9, 1]], 500)
    >>> EmpiricalPrior(draws, ["a", "b"])
    EmpiricalPrior(a, b ~ mixture of 1 Gaussians)
    """

    @door
    def __init__(
        self,
        samples: ArrayLike,
        labels: Labels | None = None,
        units: Mapping[str, object] | None = None,
        *,
        fixed: Mapping[str, float] | None = None,
        derived: Mapping[str, Callable[[Array], ArrayLike]] | None = None,
        max_components: int = 12,
        seed: int = 0,
    ) -> None:
        transport = fit_prior_mixture(samples, max_components, seed_of("seed", seed))
        names = names_of(labels, transport.n_dim)
        entries = dict.fromkeys(names)
        self._set(transport, entries, mapping_or_none(labels), units, fixed, derived)


def _apply(f: Callable[[Tensor], Tensor], values: ArrayOrTensor) -> ArrayOrTensor:
    """Apply a torch function to a tensor, or to an array without a graph."""
    if isinstance(values, Tensor):
        return f(values)
    with own_state(), torch.no_grad():
        return f(torch.from_numpy(values)).numpy()


def _dump(prior: Prior) -> str:
    return json.dumps(prior.manifest(), sort_keys=True)


def _is_prior_transform(parameters: object) -> bool:
    """Tell a callable from a distribution that happens to be one."""
    return callable(parameters) and not isinstance(
        parameters, stats.rv_continuous | stats.rv_discrete
    )


def _derived(name: str, function: Callable[[Array], ArrayLike], theta: Array) -> Array:
    values = np.asarray(function(theta), dtype=np.float64)
    if values.shape != (len(theta),):
        raise ValueError(
            f"derived[{name!r}] must return shape ({len(theta)},) for theta {theta.shape}, but "
            f"returned {values.shape}. Compute it from columns: theta[:, 0]."
        )
    return values
