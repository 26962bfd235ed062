"""Noise models whose points are independent, of a scale of their own: Gaussian and Student-t."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.arguments import real
from nbi_plus.data.batch import Batch
from nbi_plus.data.ingest import ingest, numbers, unit_of
from nbi_plus.data.units import factor
from nbi_plus.problem.noise.base import (
    Noise,
    PointNoise,
    chi_square_p_value,
    coordinate_of,
    fill_masked,
    has_all_points,
)
from nbi_plus.problem.noise.hyper import NumberOrParameter
from nbi_plus.problem.noise.low_rank import Independent, LowRankGaussian
from nbi_plus.problem.noise.student import log_student_cdf

__all__ = ["GaussianNoise", "Noise", "ScatterNoise", "StudentTNoise"]

Jitter = str | float | Mapping[str, str | float]
_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
# arrays of noises, and the tensors of devices made of them: sent once, not at every step
_SENT: WeakKeyDictionary[Noise, dict[tuple, tuple[NDArray, Tensor]]] = WeakKeyDictionary()


class ScatterNoise(PointNoise):
    r"""Independent noise whose scale is the error of the point, optionally inflated.

    The square of the scale is :math:`\sigma^2 + \sigma_\mathrm{jitter}^2 + (\eta f)^2`.

    Parameters
    ----------
    sigma, jitter, fractional, along
        As for `GaussianNoise`.
    """

    def __init__(
        self,
        sigma: ArrayLike | str | None = None,
        *,
        jitter: Jitter | None = None,
        fractional: float | str = 0.0,
        along: str = "band",
    ) -> None:
        self.along = along
        named = sigma is None or isinstance(sigma, str)
        self._unit = None if named else unit_of(sigma)
        self.sigma = sigma if named else positive("sigma", ingest("sigma", sigma)[0])
        self.jitter = jitter
        self.fractional = (
            fractional if isinstance(fractional, str) else real("fractional", fractional)
        )
        each = {f"jitter[{k}]": v for k, v in jitter.items()} if self._per_category else {}
        if jitter is not None and not each:
            each = {"jitter": jitter}
        self._hypers = {k: NumberOrParameter("jitter", v) for k, v in each.items()}
        self._hypers["fractional"] = NumberOrParameter("fractional", self.fractional)
        if isinstance(sigma, str):
            self._hypers["sigma"] = NumberOrParameter("sigma", sigma)

    def bind(self, has_errors: bool, names: tuple[str, ...]) -> ScatterNoise:
        """Return a copy that knows the columns of its parameters; refuse data of unknown errors."""
        if not has_errors and self.sigma is None:
            raise self._no_errors()
        bound = copy.copy(self)
        bound._hypers = {k: hyper.bind(names) for k, hyper in self._hypers.items()}
        return bound

    def in_unit(self, unit: str | None) -> ScatterNoise:
        """Return a copy whose sigma is in the unit of the data."""
        if self.sigma is None or self._unit in (None, ""):
            return self
        if unit is None:
            raise ValueError(
                f"sigma must be a bare number where the data have no unit, but is in "
                f"{self._unit!r}. Give the data a unit, or sigma as a number in theirs."
            )
        same = copy.copy(self)
        same.sigma, same._unit = self.sigma * factor(self._unit, unit, "sigma"), None
        return same

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return {
            "type": type(self).__name__,
            "sigma": self.sigma.tolist() if isinstance(self.sigma, np.ndarray) else self.sigma,
            "jitter": dict(self.jitter) if isinstance(self.jitter, Mapping) else self.jitter,
            "fractional": self.fractional,
            "along": self.along,
        }

    @property
    def names_sigma(self) -> bool:
        """Whether sigma is a parameter."""
        return isinstance(self.sigma, str)

    def error_bars(self, model: Tensor, obs: Batch) -> Tensor:
        """Return the errors of the points before they are inflated, broadcastable to the model."""
        if obs.x_err is not None:
            return obs.x_err
        if self.sigma is None or self.names_sigma:
            raise self._no_errors()
        return beside(self, "sigma", model)

    def scale(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the scale of each point, broadcastable to the model (..., C, L)."""
        named = obs.x_err is None and self.names_sigma
        sigma = self._hypers["sigma"].of(theta) if named else self.error_bars(model, obs)
        if self.jitter is None and not self.fractional:
            return sigma
        variance = sigma.square()
        if self.fractional:
            variance = variance + (self._hypers["fractional"].of(theta) * model).square()
        if self.jitter is not None:
            variance = variance + self._jitter_square(obs, theta)
        return variance.sqrt()

    @property
    def _per_category(self) -> bool:
        return isinstance(self.jitter, Mapping)

    def _jitter_square(self, obs: Batch, theta: Tensor) -> Tensor | float:
        """Return the square of each point's jitter, broadcastable to the model (..., C, L)."""
        if not self._per_category:
            return self._hypers["jitter"].of(theta) ** 2
        codes = coordinate_of(obs, self.along, type(self).__name__).unsqueeze(-2)
        kinds = obs.categories.get(self.along, ())
        unnamed = sorted(set(kinds) - set(self.jitter))
        if unnamed or not kinds:
            raise ValueError(
                f"jitter must have a value for every {self.along} of {kinds}, but has only "
                f"{tuple(self.jitter)}. Give 0 where there is none."
            )
        each = (self._hypers[f"jitter[{kind}]"].of(theta) ** 2 for kind in kinds)
        return sum((codes == i) * square for i, square in enumerate(each))

    @abstractmethod
    def log_cdf(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the log-probability (..., C, L) of data below ``obs.x``."""

    def _no_errors(self) -> ValueError:
        name = type(self).__name__
        return ValueError(
            f"{name} must know the size of the errors, but neither the observations have x_err "
            f"nor was sigma given. Give x_err, or {name}(sigma=...)."
        )


class GaussianNoise(ScatterNoise):
    r"""Independent Gaussian noise of known standard deviation, optionally inflated.

    The variance of a point is :math:`\sigma^2 + \sigma_\mathrm{jitter}^2 + (\eta f)^2`.

    Parameters
    ----------
    sigma : float, str or array_like, shape broadcastable to (C, L), optional
        Standard deviation for observations without ``x_err`` (theirs win), or the name of the
        parameter that holds it.
    jitter : str, float or mapping of these, optional
        :math:`\sigma_\mathrm{jitter}`, or the name of the parameter that holds it; a mapping has
        one for each category of the coordinate ``along``, by its name.
    fractional : float or str
        The relative error :math:`\eta` of the model, or the name of the parameter that holds it.
    along : str
        A coordinate of categories, such as ``"instrument"``.

    Examples
    --------
    >>> from nbi_plus.data.observations import Observations
    >>> obs = Observations.from_arrays([[0.0]], 2.0)
    >>> GaussianNoise().log_likelihood(np.zeros((1, 1)), np.zeros((1, 1, 1)), obs).round(3)
    array([-1.612])
    """

    exact_p_value = True
    rescales_model = False

    @property
    def follows_model(self) -> bool:
        """Whether the scatter depends on the model."""
        return bool(self.fractional)

    def gaussian(self, model: Tensor, obs: Batch, theta: Tensor) -> LowRankGaussian:
        """Return the distribution of the data, for noise models built upon this one."""
        return LowRankGaussian(model, Independent(self.scale(model, obs, theta).to(model.dtype)))

    def log_cdf(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the log-probability (..., C, L) of data below ``obs.x``."""
        return torch.special.log_ndtr((obs.x - model) / self.scale(model, obs, theta))

    def p_value(self, theta: Tensor, model: Tensor, obs: Batch, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return the probability of a larger chi-square, shape (n,)."""
        model = fill_masked(model, obs)
        square = ((obs.x - model) / self.scale(model, obs, theta)).square()
        return chi_square_p_value(torch.where(obs.mask, square, 0.0).sum((1, 2)), obs.mask)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(model.shape, generator=rng, device=model.device, dtype=model.dtype)
        return model + self.scale(model, obs, theta) * noise

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the sum of `_log_density`, without what is the same for all draws in each."""
        if self.follows_model:
            return super()._log_prob(model, obs, theta)
        sigma = self.scale(model, obs, theta)  # the errors' shape: seldom the draws'
        precision, volume = sigma.square().reciprocal(), sigma.log() + _LOG_ROOT_2PI
        if not has_all_points(obs):
            precision, volume = (torch.where(obs.mask, v, 0.0) for v in (precision, volume))
        volume, _ = torch.broadcast_tensors(volume, obs.x)
        square = (obs.x - model).square() * precision
        return -0.5 * square.sum((-2, -1)) - volume.sum((-2, -1))

    def _log_density(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        sigma = self.scale(model, obs, theta)
        return -0.5 * ((obs.x - model) / sigma).square() - sigma.log() - _LOG_ROOT_2PI


_MOST_DF = 1e8  # its constant, a difference of large numbers, is still good to 1e-6


class StudentTNoise(ScatterNoise):
    """Student-t noise: like `GaussianNoise`, with tails that forgive outliers.

    Parameters
    ----------
    df : float
        Degrees of freedom; 4 is a common choice.
    sigma, jitter, fractional, along
        As for `GaussianNoise`; they set the scale of the distribution.
    """

    def __init__(
        self,
        df: float = 4.0,
        sigma: ArrayLike | str | None = None,
        *,
        jitter: Jitter | None = None,
        fractional: float | str = 0.0,
        along: str = "band",
    ) -> None:
        super().__init__(sigma, jitter=jitter, fractional=fractional, along=along)
        if not 0 < real("df", df) <= _MOST_DF:
            raise ValueError(
                f"df must be positive and at most {_MOST_DF:.0e}, but is {df}. Beyond that take "
                "GaussianNoise."
            )
        self.df = float(df)

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return super().meta() | {"df": self.df}

    def log_cdf(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the log-probability (..., C, L) of data below ``obs.x``."""
        return log_student_cdf((obs.x - model) / self.scale(model, obs, theta), self.df)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        # Bailey (1994): a polar method for Student-t, whose two uniforms any generator can give.
        u = torch.rand((2, *model.shape), generator=rng, device=model.device, dtype=torch.float64)
        u = u.clamp(1e-15, 1 - 1e-15)
        radius = (self.df * torch.expm1(-2 / self.df * u[0].log())).sqrt()
        noise = (radius * torch.cos(2 * math.pi * u[1])).to(model.dtype)
        return model + self.scale(model, obs, theta) * noise

    def _log_density(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        sigma = self.scale(model, obs, theta)
        nu = self.df
        constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
        tail = torch.log1p(((obs.x - model) / sigma).square() / nu)
        return constant - sigma.log() - (nu + 1) / 2 * tail


def positive(name: str, value: ArrayLike) -> NDArray[np.float64]:
    array = numbers_of_one(name, value)
    if array.size == 0 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"{name} must be finite and positive, but is {value!r}.")
    return array


def numbers_of_one(name: str, value: ArrayLike) -> NDArray[np.float64]:
    array = numbers(name, value)
    if array.ndim > 2:
        raise ValueError(
            f"{name} must fit one object, shape (C, L) at most, but has {array.shape}. "
            "Give what differs between objects as their x_err."
        )
    return array


def beside(noise: Noise, name: str, model: Tensor) -> Tensor:
    """Return numbers of a noise as a tensor beside a model (..., C, L), which they must fit."""
    value, shape = getattr(noise, name), tuple(model.shape[-2:])
    if any(n not in (1, m) for n, m in zip(value.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(
            f"{name} must have a shape that fits x (C, L) = {shape}, but has {value.shape}. Give "
            f"one number, one for each of the {shape[1]} points, or x_err with the data."
        )
    if value.size == 1:  # made there: to send it would hold up every step of a training on a GPU
        return torch.full(value.shape, value.item(), device=model.device, dtype=model.dtype)
    if model.device.type == "cpu" or torch.compiler.is_compiling():
        return torch.as_tensor(value, device=model.device, dtype=model.dtype)
    sent = _SENT.setdefault(noise, {})
    key = name, model.device, model.dtype
    if key not in sent or sent[key][0] is not value:
        sent[key] = value, torch.as_tensor(value, device=model.device, dtype=model.dtype)
    return sent[key][1]
