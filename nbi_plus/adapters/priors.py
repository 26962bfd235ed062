"""Priors of bilby and of torch as a Prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from nbi_plus.problem.prior.prior import Circular, Prior

Array = NDArray[np.float64]

# those that scipy has, too, keep their names in files
_OF_BILBY: dict[str, Callable[[Any], Any]] = {
    "Uniform": lambda p: stats.uniform(p.minimum, p.maximum - p.minimum),
    "LogUniform": lambda p: stats.loguniform(p.minimum, p.maximum),
    "Gaussian": lambda p: stats.norm(p.mu, p.sigma),
    "TruncatedGaussian": lambda p: stats.truncnorm(
        (p.minimum - p.mu) / p.sigma, (p.maximum - p.mu) / p.sigma, p.mu, p.sigma
    ),
    "Exponential": lambda p: stats.expon(scale=p.mu),
    "Beta": lambda p: stats.beta(p.alpha, p.beta, p.minimum, p.maximum - p.minimum),
}
_NO_DENSITY = ("Constraint", "JointPrior", "ConditionalBasePrior")
_OF_TORCH: dict[str, Callable[[Any], Any]] = {
    "Uniform": lambda d: stats.uniform(float(d.low), float(d.high - d.low)),
    "Normal": lambda d: stats.norm(float(d.loc), float(d.scale)),
    "LogNormal": lambda d: stats.lognorm(float(d.scale), scale=math.exp(float(d.loc))),
    "HalfNormal": lambda d: stats.halfnorm(scale=float(d.scale)),
    "Cauchy": lambda d: stats.cauchy(float(d.loc), float(d.scale)),
    "HalfCauchy": lambda d: stats.halfcauchy(scale=float(d.scale)),
    "Laplace": lambda d: stats.laplace(float(d.loc), float(d.scale)),
    "Exponential": lambda d: stats.expon(scale=1 / float(d.rate)),
    "Gamma": lambda d: stats.gamma(float(d.concentration), scale=1 / float(d.rate)),
    "Chi2": lambda d: stats.chi2(float(d.df)),
    "Beta": lambda d: stats.beta(float(d.concentration1), float(d.concentration0)),
    "StudentT": lambda d: stats.t(float(d.df), float(d.loc), float(d.scale)),
    "Gumbel": lambda d: stats.gumbel_r(float(d.loc), float(d.scale)),
    "Pareto": lambda d: stats.pareto(float(d.alpha), scale=float(d.scale)),
    "Weibull": lambda d: stats.weibull_min(float(d.concentration), scale=float(d.scale)),
}


class OfQuantiles(stats.rv_continuous):
    """A distribution of scipy made of a prior of bilby, which knows its quantiles and density."""

    def __init__(self, given: Any = None, **others: Any) -> None:  # noqa: ANN401 - of bilby
        self.given = given
        super().__init__(**others)

    def _updated_ctor_param(self) -> dict[str, Any]:
        return {**super()._updated_ctor_param(), "given": self.given}

    def _ppf(self, q: Array) -> Array:
        return np.asarray(self.given.rescale(q), np.float64)

    def _cdf(self, x: Array) -> Array:
        return np.asarray(self.given.cdf(x), np.float64)

    def _pdf(self, x: Array) -> Array:
        return np.asarray(self.given.prob(x), np.float64)

    def _logpdf(self, x: Array) -> Array:
        return np.asarray(self.given.ln_prob(x), np.float64)


def prior_of_bilby(
    priors: Mapping[str, Any],
    *,
    derived: Mapping[str, Callable[[Array], ArrayLike]] | None = None,
) -> Prior:
    """Return the Prior of a ``PriorDict`` of bilby, with its units and labels.

    Delta functions and numbers are fixed values; a uniform prior whose boundary is periodic is
    `Circular`.

    Parameters
    ----------
    priors : mapping of name to bilby.core.prior.Prior or float
    derived : mapping of str to callable, optional
        As for `Prior`.

    Raises
    ------
    TypeError
        For constraints, joint and conditional priors, which are no distributions of one parameter.
    """
    laws = {name: _of_bilby(name, given) for name, given in priors.items()}
    named = {name: given for name, given in priors.items() if hasattr(given, "latex_label")}
    free = [name for name in named if not isinstance(laws[name], float)]
    labels = {name: named[name].latex_label for name in free if named[name].latex_label}
    units = {name: str(own.unit) for name, own in named.items() if own.unit}
    return Prior(laws, labels=labels, units=units, derived=derived)


def _of_bilby(name: str, given: Any) -> Any:  # noqa: ANN401 - both ways
    bases = [base.__name__ for base in type(given).__mro__]
    if isinstance(given, (int, float)):
        return float(given)
    if "DeltaFunction" in bases:
        return float(given.peak)
    refused = [base for base in bases if base in _NO_DENSITY]
    if refused or not hasattr(given, "rescale"):
        raise TypeError(
            f"prior of {name!r} must be a prior of bilby of one parameter, but is a "
            f"{refused[0] if refused else bases[0]}. Write what it stands for as a prior_transform "
            "of Prior."
        )
    if bases[0] == "Uniform" and given.boundary == "periodic":
        return Circular(given.maximum - given.minimum, given.minimum)
    if bases[0] in _OF_BILBY:
        return _OF_BILBY[bases[0]](given)
    return OfQuantiles(given, a=given.minimum, b=given.maximum, name=bases[0])()


def prior_of_torch(distributions: Mapping[str, Any], **options: Any) -> Prior:  # noqa: ANN401
    """Return the Prior of distributions of torch, each of one number.

    Parameters
    ----------
    distributions : mapping of name to torch.distributions.Distribution or float
    **options
        ``labels``, ``units``, ``fixed`` and ``derived`` of `Prior`.

    Examples
    --------
    >>> from torch.distributions import LogNormal, Uniform
    >>> prior_of_torch({"t0": Uniform(0.0, 9.0), "tE": LogNormal(3.0, 1.0), "rho": 0.01})
    Prior(t0 ~ uniform(scale=9), tE ~ lognorm(s=1, scale=20.0855); rho = 0.01)
    """
    return Prior({name: _of_torch(name, d) for name, d in distributions.items()}, **options)


def _of_torch(name: str, given: Any) -> Any:  # noqa: ANN401 - both ways
    if isinstance(given, (int, float)):
        return float(given)
    kind = type(given).__name__
    if kind not in _OF_TORCH or given.batch_shape.numel() != 1:
        raise TypeError(
            f"prior of {name!r} must be one of {sorted(_OF_TORCH)} of torch.distributions, of one "
            f"number, but is {given}. Give one of scipy.stats, or a prior_transform."
        )
    return _OF_TORCH[kind](given)
