"""Models of PyMC as problems: a prior, a simulator and a noise that an Engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import torch
from numpy.typing import NDArray
from pymc.distributions.continuous import TruncatedNormalRV
from pymc.distributions.distribution import support_point
from pymc.model.transform.optimization import freeze_dims_and_data
from pytensor.graph.replace import clone_replace
from torch import Tensor

from nbi_plus.arguments import of_kind
from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.pymc.rows import RowDraws, RowFunction
from nbi_plus.torch_state import door

_DEEPEST = 2  # axes of data: channels, and points


@door
def problem(model: pm.Model) -> tuple[ModelSimulator, Prior, ModelNoise]:
    """Return simulator, prior and noise of a PyMC model, as `Engine` takes them.

    The parameters are its free variables, one for each of their numbers (``b[0]``, ``b[1]``). The
    prior goes from a cube to them in the order of the model, so that they may depend on each other;
    it is a ``prior_transform``, which has no density of its own. The simulator answers with what
    PyMC starts from in place of data (as a rule their mean or median); the noise draws them, and
    weighs them with the density of the model, with gradients.

    Parameters
    ----------
    model : pymc.Model
        Of one observed variable, (L,) or (C, L), whose shape data have. What it observes does not
        matter, and constants are as they are now.

    Returns
    -------
    simulator : callable
        ``f(theta)``, theta (n, D), numpy or torch.
    prior : Prior
    noise : ModelNoise

    Raises
    ------
    ValueError, TypeError
        For potentials, discrete parameters, those that are several numbers which depend on each
        other (write these as functions of independent ones), several observed variables, and data
        of which some are missing.

    Examples
    --------
    ``simulator, prior, noise = problem(model)``, and then ``Engine(simulator, prior,
    noise=noise).fit(n_sims=10_000).predict(x)``.
    """
    of_kind("model", model, pm.Model, "Write with pm.Model() as model: ...")
    observed = _observed(model)
    frozen = freeze_dims_and_data(model)
    free, data = [frozen[rv.name] for rv in model.free_RVs], frozen[observed.name]
    sizes = [_size(rv) for rv in free]
    theta = pt.tensor("theta", shape=(sum(sizes),), dtype="float64")
    pieces = _pieces(theta, free, sizes)
    prior = Prior(ModelPrior(free, sizes), labels=_names(free))
    given = dict(zip(free, pieces, strict=True))
    usual = clone_replace([pt.atleast_1d(support_point(data))], given)[0]
    return ModelSimulator(usual, theta), prior, ModelNoise(data, given, theta)


class ModelPrior:
    """The prior_transform of free variables, each given those before it."""

    def __init__(self, free: Sequence[pt.TensorVariable], sizes: Sequence[int]) -> None:
        u = pt.tensor("u", shape=(sum(sizes),), dtype="float64")
        found: dict[pt.TensorVariable, pt.TensorVariable] = {}
        for rv, own in zip(free, _pieces(u, free, sizes), strict=True):
            found[rv] = clone_replace([_quantile(rv, own)], found)[0]
        flat = [pt.cast(v.ravel(), "float64") for v in found.values()]
        self._function = RowFunction(pt.concatenate(flat), u)

    def __call__(self, u: NDArray | Tensor) -> NDArray | Tensor:
        """Return theta (n, D) of u (n, D)."""
        return self._function(u)


class ModelSimulator:
    """What data are like for given parameters, without noise."""

    def __init__(self, usual: pt.TensorVariable, theta: pt.TensorVariable) -> None:
        self._function = RowFunction(pt.cast(usual, "float64"), theta)

    def __call__(self, theta: NDArray | Tensor) -> NDArray | Tensor:
        """Return data (n, L) or (n, C, L) of theta (n, D)."""
        return self._function(theta)


class ModelNoise(Noise):
    """The observed variable of a model, drawn and weighed given the parameters."""

    reads_model = False

    def __init__(self, data: pt.TensorVariable, given: dict, theta: pt.TensorVariable) -> None:
        n_axes = data.type.ndim
        x = pt.tensor("x", shape=(None,) * n_axes, dtype="float64")
        density = _log_density(data, x)
        self._axes, self._each = n_axes, density.type.ndim == n_axes
        own = clone_replace([density], given)[0]
        self._density = RowFunction(own, theta, (x,), outside=-np.inf)
        self._draws = RowDraws(clone_replace([data], given)[0], theta)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
        x = self._draws(theta.cpu().numpy().astype(np.float64), seed)
        return torch.as_tensor(x, device=model.device).reshape(model.shape).to(model.dtype)

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        shape = model.shape
        x, mask = (v.expand(shape).flatten(0, -3) for v in (obs.x, obs.mask))
        if not self._each and not bool(mask.all()):
            raise ValueError(
                "mask must be True for all points, which the model draws together, but is not. "
                "Leave these points out of the model."
            )
        rows = theta.expand(*shape[:-2], theta.shape[-1]).flatten(0, -2)
        own = x.reshape(len(x), *shape[len(shape) - self._axes :])
        found = self._density(rows.double(), own.double()).reshape(len(x), -1)
        if self._each:
            found = torch.where(mask.flatten(1), found, 0.0)
        return found.sum(-1).reshape(shape[:-2])


def _observed(model: pm.Model) -> pt.TensorVariable:
    """Return the one variable that is observed, or say why this is no problem of ours."""
    if model.potentials:
        raise ValueError(
            f"model must draw all that it weighs, but has potentials: {_listed(model.potentials)}. "
            "Write them as priors or as observed variables."
        )
    if len(model.observed_RVs) != 1:
        raise ValueError(
            "model must have one observed variable, but has "
            f"{_listed(model.observed_RVs) or 'none'}. Write what is measured as one array."
        )
    (data,) = model.observed_RVs
    values = model.rvs_to_values[data]
    if f"{data.name.removesuffix('_observed')}_unobserved" in {rv.name for rv in model.free_RVs}:
        raise ValueError(
            f"{data.name} must have no missing data, but has. Give all points to the model, "
            "and mask= to predict."
        )
    if values.type.ndim > _DEEPEST:
        raise ValueError(
            f"{data.name} must have shape (L,) or (C, L), but has {values.type.ndim} axes."
        )
    if not model.free_RVs:
        raise ValueError("model must have a free variable, but has none.")
    return data


def _quantile(rv: pt.TensorVariable, u: pt.TensorVariable) -> pt.TensorVariable:
    """Return the quantile of a free variable, of the variables that it depends on."""
    if rv.dtype.startswith(("int", "uint", "bool")):
        raise TypeError(
            f"{rv.name} must be continuous, but is discrete. Sum over its values in the model."
        )
    op = rv.owner.op
    if isinstance(op, TruncatedNormalRV):
        return _truncated(u, *op.dist_params(rv.owner))
    try:
        return pm.icdf(rv, u, warn_rvs=False)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise TypeError(
            f"{rv.name} must have a quantile function, one number after the other, but is a "
            f"{type(op).__name__}. Write it as a function of independent variables."
        ) from error


def _truncated(u, mu, sigma, lower, upper):  # noqa: ANN001, ANN202 - graphs all
    """Return quantiles of a truncated normal, measured from the nearer tail."""
    low, high = (lower - mu) / sigma, (upper - mu) / sigma
    right = low > 0
    ends = pt.switch(right, -high, low), pt.switch(right, -low, high)
    share = pt.switch(right, 1 - u, u)
    first, last = (0.5 * pt.erfc(-end / np.sqrt(2)) for end in ends)
    z = -np.sqrt(2) * pt.erfcinv(2 * (first + share * (last - first)))
    return mu + sigma * pt.switch(right, -z, z)


def _log_density(data: pt.TensorVariable, x: pt.TensorVariable) -> pt.TensorVariable:
    """Return the log-density of the data, of each number where there is one."""
    own = pt.cast(x, data.dtype)
    density = pm.logp(data, own, warn_rvs=False)
    if own.dtype == "float64":
        return density
    same = pt.eq(own, x)
    together = same if density.type.ndim == x.type.ndim else pt.all(same)
    return pt.switch(together, density, -np.inf)


def _pieces(
    whole: pt.TensorVariable, free: Sequence[pt.TensorVariable], sizes: Sequence[int]
) -> list[pt.TensorVariable]:
    """Return the parts of one vector that stand for the free variables."""
    ends = np.cumsum(sizes)
    parts = zip(free, ends - sizes, ends, strict=True)
    return [whole[a:b].reshape(_shape(rv)) for rv, a, b in parts]


def _shape(rv: pt.TensorVariable) -> tuple[int, ...]:
    return tuple(int(n) for n in rv.shape.eval())


def _size(rv: pt.TensorVariable) -> int:
    return int(np.prod(_shape(rv)))


def _names(free: Sequence[pt.TensorVariable]) -> list[str]:
    """Return ``b`` of one number, ``b[0]``, ``b[1]`` and so on of several."""
    places = [product(*map(range, _shape(rv))) for rv in free]
    return [
        f"{rv.name}[{','.join(map(str, place))}]" if place else rv.name
        for rv, own in zip(free, places, strict=True)
        for place in own
    ]


def _listed(variables: Sequence) -> str:
    return ", ".join(repr(v.name) for v in variables)
