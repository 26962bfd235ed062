"""From what a user writes for one parameter to its latent map, or a clear refusal."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nbi_plus.arguments import real
from nbi_plus.problem.prior.marginals import (
    Exponential,
    LogNormal,
    LogUniform,
    Marginal,
    Normal,
    TruncatedNormal,
    Uniform,
)
from nbi_plus.problem.prior.quantile_table import Distribution, tabulate

Array = NDArray[np.float64]
_NEW_STYLE = ("icdf", "iccdf", "pdf", "logpdf", "support")
_DEFAULTS = {"loc": 0.0, "scale": 1.0}
_PROBABILITIES = np.linspace(0.005, 0.995, 100)
_FINGERPRINT = np.array([0.01, 0.07, 0.19, 0.31, 0.5, 0.61, 0.77, 0.86, 0.98])


# whose quantiles take no search or integral, whatever the arguments are: those of others take up to
# minutes, and a file must not decide over that
_FILED = frozenset({
    "alpha", "anglit", "arcsine", "beta", "betaprime", "bradford", "burr", "burr12", "cauchy",
    "chi", "chi2", "cosine", "dgamma", "dweibull", "erlang", "expon", "exponpow", "exponweib",
    "f", "fatiguelife", "fisk", "gamma", "genexpon", "genextreme", "gengamma", "genhalflogistic",
    "genlogistic", "gennorm", "genpareto", "gibrat", "gompertz", "gumbel_l", "gumbel_r",
    "halfcauchy", "halfgennorm", "halflogistic", "halfnorm", "hypsecant", "invgamma",
    "invweibull", "johnsonsb", "johnsonsu", "kappa4", "laplace", "laplace_asymmetric", "levy",
    "levy_l", "loggamma", "logistic", "loglaplace", "lognorm", "loguniform", "lomax", "maxwell",
    "mielke", "moyal", "nakagami", "ncx2", "norm", "pareto", "pearson3", "powerlaw",
    "powerlognorm", "powernorm", "rayleigh", "rdist", "reciprocal", "semicircular", "skewcauchy",
    "skewnorm", "t", "trapezoid", "triang", "truncexpon", "truncnorm", "truncpareto",
    "truncweibull_min", "tukeylambda", "uniform", "wald", "weibull_max", "weibull_min",
    "wrapcauchy",
})  # fmt: skip


@dataclass(frozen=True)
class Circular:
    """A uniform prior on a circle: ``low`` and ``low + period`` are the same point.

    The density is that of a uniform on ``[low, low + period)``; values are not wrapped. That the
    two ends meet is what `Prior.periods` tells the samplers.

    Parameters
    ----------
    period : float
        The circumference, for example ``2 * math.pi`` or ``360.0``.
    low : float
        Where the circle is cut.

    Examples
    --------
    >>> Circular(360.0, low=-180.0)
    Circular(period=360.0, low=-180.0)
    """

    period: float
    low: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(real("period", self.period)) and self.period > 0):
            raise ValueError(
                f"period must be positive and finite, but is {self.period}. "
                "Give the circumference of the circle."
            )
        if not math.isfinite(real("low", self.low)) or self.low + self.period == self.low:
            raise ValueError(
                f"low must be finite and comparable with the period, but is {self.low} for a "
                f"period of {self.period}. Give the left end of the interval."
            )


@dataclass(frozen=True)
class Family:
    """One parameter's prior: the distribution as given, its latent map and its description.

    Parameters
    ----------
    distribution : Distribution
        Whose ``logpdf`` is the exact density.
    marginal : Marginal
        The map to and from the latent variable.
    manifest : dict
        Name and arguments, as JSON.
    period : float or None
        The circumference of a circular parameter.
    """

    distribution: Distribution
    marginal: Marginal
    manifest: dict[str, Any]
    period: float | None = None

    def __str__(self) -> str:
        args = self.manifest.get("args", {})
        told = {key: value for key, value in args.items() if value != _DEFAULTS.get(key)} or args
        text = ", ".join(f"{key}={float(value):g}" for key, value in told.items())
        return f"{self.manifest['family']}({text})" if text else self.manifest["family"]


@dataclass(frozen=True)
class _NewStyle:
    """A distribution of scipy's newer kind (``scipy.stats.Normal``) under the older names."""

    given: Any

    def ppf(self, p: Array) -> Array:
        return self.given.icdf(p)

    def isf(self, p: Array) -> Array:
        return self.given.iccdf(p)

    def pdf(self, theta: Array) -> Array:
        return self.given.pdf(theta)

    def logpdf(self, theta: Array) -> Array:
        return self.given.logpdf(theta)

    def support(self) -> tuple[float, float]:
        return self.given.support()


def read_family(name: str, given: object) -> Family:
    """Return the prior of parameter ``name``.

    Parameters
    ----------
    name : str
        Used in error messages.
    given : frozen scipy.stats continuous distribution, or Circular
        Frozen means with its parameters: ``norm(0, 1)``, not ``norm``.

    Raises
    ------
    TypeError, ValueError
        If it is no distribution, no continuous one, or one whose quantiles are not finite and
        increasing.
    """
    if isinstance(given, Circular):
        low, high = float(given.low), float(given.low) + float(given.period)
        args = {"period": float(given.period), "low": low}
        manifest = {"family": "circular", "args": args}
        return Family(stats.uniform(low, high - low), Uniform(low, high), manifest, args["period"])
    distribution = _distribution(name, given)
    _check_quantiles(name, given, distribution)
    args = _arguments(given)
    closed = _CLOSED_FORMS.get(type(getattr(given, "dist", None)))
    marginal = closed(args) if closed else None
    marginal = tabulate(distribution) if marginal is None else marginal
    if marginal is None:
        raise ValueError(
            f"prior of {name!r} must have a quantile function that can be tabulated, but "
            f"{_show(given)} has one too steep or too noisy. Give Prior a prior_transform instead."
        )
    return Family(distribution, marginal, _manifest(given, distribution, args))


def family_from_manifest(name: str, manifest: Mapping[str, Any]) -> Family:
    """Return the prior that a manifest describes; only scipy's own families can be looked up."""
    family, args = manifest["family"], manifest.get("args")
    if args is None:
        raise ValueError(
            f"prior of {name!r} must be of a named scipy family to be rebuilt from a file, but is "
            f"{family!r}. Pass the prior again."
        )
    args = {key: float(value) for key, value in args.items()}
    if family == "circular":
        return read_family(name, Circular(**args))
    if family not in _FILED or not hasattr(stats, family):
        raise ValueError(
            f"prior of {name!r} must be of a family of scipy.stats with quick quantiles to be "
            f"rebuilt from a file, but is {family!r}. Pass the prior again."
        )
    return read_family(name, getattr(stats, family)(**args))


def _distribution(name: str, given: object) -> Distribution:
    """Return what has ppf, isf, pdf, logpdf and support, or say what came instead."""
    what = f"prior of {name!r} must be a frozen continuous scipy.stats distribution, but"
    bases = {base.__name__ for base in type(given).__mro__}
    if isinstance(given, stats.rv_histogram):
        return given  # has all its parameters from the start
    if isinstance(given, stats.rv_continuous | stats.rv_discrete):
        shapes = f"{given.shapes}, " if given.shapes else ""
        raise TypeError(
            f"{what} {given.name} is not frozen. "
            f"Write {given.name}({shapes}loc, scale) with numbers."
        )
    if isinstance(getattr(given, "dist", None), stats.rv_discrete) or (
        "DiscreteDistribution" in bases
    ):
        raise TypeError(
            f"{what} {_show(given)} is discrete. Marginalise over it, or run one fit per value."
        )
    if all(callable(getattr(given, method, None)) for method in _NEW_STYLE):
        return _NewStyle(given)
    if isinstance(getattr(given, "dist", None), stats.rv_continuous):
        return given
    raise TypeError(
        f"{what} is {_show(given)}. Give for example scipy.stats.uniform(low, width), "
        "nbi_plus.Circular(period), or a number to fix it."
    )


def _check_quantiles(name: str, given: object, distribution: Distribution) -> None:
    """Refuse invalid parameters, infinite widths, arrays of parameters and point masses."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if np.ndim(distribution.ppf(np.float64(0.5))) > 0:
            raise ValueError(
                f"prior of {name!r} must be of one parameter, but {_show(given)} has arrays of "
                "parameters. Give each parameter its own name."
            )
        quantiles = np.asarray(distribution.ppf(_PROBABILITIES), np.float64)
    low, middle, high = (float(q) for q in quantiles[[0, 49, -1]])
    came = f"{_show(given)} has the quantiles {low:.6g} (0.5 %), {middle:.6g} (50 %), {high:.6g}"
    if not np.isfinite(quantiles).all():
        raise ValueError(
            f"prior of {name!r} must have finite quantiles, but {came} (99.5 %). Check its "
            "parameters (scipy takes loc and scale: uniform(low, width), norm(mean, sd))."
        )
    if (np.diff(quantiles) <= 0).any():
        raise ValueError(
            f"prior of {name!r} must not hold a point mass, but {came} (99.5 %), not all "
            "different. Fix the parameter with a number, or widen the distribution."
        )


def _show(given: object) -> str:
    """Return a short description of what came."""
    generator = getattr(given, "dist", None)
    if generator is None:
        return f"{type(given).__name__} {' '.join(str(given).split()):.80}"
    parts = [f"{arg}" for arg in given.args] + [f"{k}={v}" for k, v in given.kwds.items()]
    return f"{generator.name}({', '.join(parts)})"


def _arguments(given: object) -> dict[str, float] | None:
    """Return all parameters of a frozen scipy distribution by name; None for other kinds."""
    generator = getattr(given, "dist", None)
    if not isinstance(generator, stats.rv_continuous):
        return None
    shapes = [shape.strip() for shape in generator.shapes.split(",")] if generator.shapes else []
    names = [*shapes, "loc", "scale"]
    args = _DEFAULTS | dict(zip(names, given.args, strict=False)) | given.kwds
    return {key: float(args[key]) for key in names}


def _manifest(
    given: object, distribution: Distribution, args: dict[str, float] | None
) -> dict[str, Any]:
    """Return name and arguments, or a fingerprint where scipy cannot look the name up."""
    generator = getattr(given, "dist", given)
    name = getattr(generator, "name", "")
    if args is not None and type(getattr(stats, name, None)) is type(generator):
        finite = {key: arg if math.isfinite(arg) else str(arg) for key, arg in args.items()}
        return {"family": name, "args": finite}
    quantiles = [float(f"{q:.12g}") for q in distribution.ppf(_FINGERPRINT)]
    return {"family": type(generator).__name__, "quantiles": quantiles}


def _loguniform(args: dict[str, float]) -> Marginal:
    return LogUniform(args["a"], args["b"], args["loc"], args["scale"])


def _truncnorm(args: dict[str, float]) -> Marginal | None:
    if not TruncatedNormal.is_resolved(args["a"], args["b"]):
        return None  # scipy works with logarithms out there, and so the table does
    return TruncatedNormal(args["a"], args["b"], args["loc"], args["scale"])


_CLOSED_FORMS: dict[type, Callable[[dict[str, float]], Marginal | None]] = {
    type(stats.uniform): lambda args: Uniform(args["loc"], args["loc"] + args["scale"]),
    type(stats.norm): lambda args: Normal(args["loc"], args["scale"]),
    type(stats.loguniform): _loguniform,
    type(stats.truncnorm): _truncnorm,
    type(stats.halfnorm): lambda args: TruncatedNormal(0.0, math.inf, args["loc"], args["scale"]),
    type(stats.expon): lambda args: Exponential(args["loc"], args["scale"]),
    type(stats.lognorm): lambda args: LogNormal(args["s"], args["loc"], args["scale"]),
}
