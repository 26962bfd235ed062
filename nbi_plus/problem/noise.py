"""Noise models: one object both makes the training noise and scores the residuals.

A noise model has two methods, ``augment`` (what the network is trained on) and ``log_likelihood``
(what its draws are weighted with), so that training and correction cannot disagree.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from types import CodeType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.problem.observations import Batch, Observations

Data = Batch | Observations
Array = TypeVar("Array", Tensor, NDArray)


class Noise(ABC):
    """How data scatter about a model.

    Subclasses write `_draw` and, where it is known, `_log_density`, for tensors whose leading axes
    broadcast: model (..., C, L) against data (..., C, L).

    Attributes
    ----------
    exact_p_value : bool
        Whether `p_value` has a closed form, instead of comparing with data made up for it.
    """

    exact_p_value = False

    def augment(self, model: Array, obs: Data, theta: Array, rng: torch.Generator) -> Array:
        """Return noisy data of noise-free ``model``.

        Parameters
        ----------
        model : Tensor or ndarray, shape (n, C, L)
            Noise-free simulations.
        obs : Batch or Observations
            Errors and masks to imitate: one object for each row, or one for all.
        theta : Tensor or ndarray, shape (n, P)
            Parameters, as the simulator sees them.
        rng : torch.Generator
            On the device of ``model``.

        Returns
        -------
        Tensor or ndarray, shape (n, C, L)
            In the dtype of ``model``.
        """
        f, t = as_tensor(model), as_tensor(theta)
        return like(self._draw(f, as_batch(obs, f), t, rng).to(f.dtype), model)

    def log_likelihood(self, theta: Array, model: Array, obs: Data) -> Array:
        """Return the normalised log-density of the data.

        Parameters
        ----------
        theta : Tensor or ndarray, shape (n, P) or (n, S, P)
            Parameters, as the simulator sees them.
        model : Tensor or ndarray, shape (n, C, L) or (n, S, C, L)
            Simulations: one, or S draws, for each object.
        obs : Batch or Observations
            The data of n objects (or of one).

        Returns
        -------
        Tensor or ndarray, shape (n,) or (n, S)
        """
        f, t = as_tensor(model), as_tensor(theta)
        data = as_batch(obs, f)
        mask = data.mask.unsqueeze(1) if f.ndim == 4 else data.mask
        x = data.x.unsqueeze(1) if f.ndim == 4 else data.x
        err = None if data.x_err is None else data.x_err.unsqueeze(1) if f.ndim == 4 else data.x_err
        if bool(mask.all()):
            return like(self._log_density(x, f, err, t).sum((-2, -1)), model)
        f = torch.where(mask, f, x)  # a masked point may be NaN, and must not spoil the gradient
        density = self._log_density(x, f, err, t)
        return like(torch.where(mask, density, 0.0).sum((-2, -1)), model)

    def p_value(self, theta: Tensor, model: Tensor, obs: Batch, rng: torch.Generator) -> Tensor:
        """Return the probability that other data of a model would be no likelier than these.

        Here 0 or 1, from one set of other data for each model: average over many.

        Parameters
        ----------
        theta : Tensor, shape (n, P)
        model : Tensor, shape (n, C, L)
        obs : Batch
            The data of n objects.
        rng : torch.Generator

        Returns
        -------
        Tensor of float64, shape (n,)
        """
        other = obs.with_data(self.augment(model, obs, theta, rng))
        seen, again = (self.log_likelihood(theta, model, data) for data in (obs, other))
        return (again <= seen).to(torch.float64)

    def has_likelihood(self, has_errors: bool) -> bool:  # noqa: ARG002 - subclasses need it
        """Say whether `log_likelihood` can be evaluated for data with or without errors."""
        return True

    def bind(self, has_errors: bool, names: tuple[str, ...]) -> Noise:  # noqa: ARG002
        """Return this noise ready for such data and parameters, or raise a ValueError."""
        return self

    def meta(self) -> dict[str, object] | None:
        """Return the arguments as plain JSON, or None when they hold the user's code."""
        return None

    def fingerprint(self) -> str:
        """Return a text that changes with the noise; the user's code counts by its byte code."""
        parts = [str(self.meta())]
        for name, value in sorted(vars(self).items()):
            code = getattr(value, "__code__", None)
            parts.append(f"{name}: {type(value).__name__}")
            if code is not None:
                constants = [c for c in code.co_consts if not isinstance(c, CodeType)]
                captured = [cell.cell_contents for cell in value.__closure__ or ()]
                parts += [code.co_code.hex(), repr((constants, captured, value.__defaults__))]
        return " ".join(parts)

    @abstractmethod
    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor: ...

    @abstractmethod
    def _log_density(self, x: Tensor, model: Tensor, err: Tensor | None, theta: Tensor) -> Tensor:
        """Return the log-density of each point, shape (..., C, L)."""


class GaussianNoise(Noise):
    r"""Independent Gaussian noise of known standard deviation, optionally inflated.

    The variance of a point is :math:`\sigma^2 + \sigma_\mathrm{jitter}^2 + (\eta f)^2`.

    Parameters
    ----------
    sigma : float or array_like, shape broadcastable to (C, L), optional
        Standard deviation for observations without ``x_err`` (theirs win).
    jitter : str, optional
        Name of the parameter that holds :math:`\sigma_\mathrm{jitter}`.
    fractional : float
        The relative error :math:`\eta` of the model.

    Examples
    --------
    >>> obs = Observations.from_arrays([[0.0]], 2.0)
    >>> GaussianNoise().log_likelihood(np.zeros((1, 1)), np.zeros((1, 1, 1)), obs).round(3)
    array([-1.612])
    """

    exact_p_value = True

    def __init__(
        self, sigma: ArrayLike | None = None, *, jitter: str | None = None, fractional: float = 0.0
    ) -> None:
        self.sigma = None if sigma is None else _positive("sigma", sigma)
        self.jitter = jitter
        self.fractional = float(fractional)
        if not 0 <= self.fractional < math.inf:
            raise ValueError(f"fractional must be finite and >= 0, but is {fractional}.")
        self._jitter_column: int | None = None

    def bind(self, has_errors: bool, names: tuple[str, ...]) -> GaussianNoise:
        """Return a copy that knows the column of its jitter; refuse data of unknown errors."""
        if not has_errors and self.sigma is None:
            raise self._no_errors()
        bound = copy.copy(self)
        if self.jitter is not None:
            if self.jitter not in names:
                raise ValueError(
                    f"jitter must name a parameter of {names}, but is {self.jitter!r}."
                )
            bound._jitter_column = names.index(self.jitter)
        return bound

    def p_value(self, theta: Tensor, model: Tensor, obs: Batch, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return the probability of a larger chi-square, shape (n,)."""
        model = torch.where(obs.mask, model, obs.x)
        sigma = self._sigma(model, obs.x_err, theta)
        square = ((obs.x - model) / sigma).square()
        chi2 = torch.where(obs.mask, square, 0.0).sum((1, 2)).double()
        half = 0.5 * obs.mask.sum((1, 2)).double()
        p = torch.special.gammaincc(half.clamp(min=0.5), 0.5 * chi2)
        return torch.where(half > 0, p, torch.nan)

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        sigma = None if self.sigma is None else self.sigma.tolist()
        return {
            "type": "GaussianNoise",
            "sigma": sigma,
            "jitter": self.jitter,
            "fractional": self.fractional,
        }

    def _no_errors(self) -> ValueError:
        name = type(self).__name__
        return ValueError(
            f"{name} must know the size of the errors, but neither the observations have x_err "
            f"nor was sigma given. Give x_err, or {name}(sigma=...)."
        )

    def _sigma(self, model: Tensor, err: Tensor | None, theta: Tensor) -> Tensor:
        if err is None and self.sigma is None:
            raise self._no_errors()
        sigma = (
            torch.as_tensor(self.sigma, device=model.device, dtype=model.dtype)
            if err is None
            else err
        )
        if self.jitter is None and not self.fractional:
            return sigma
        variance = sigma.square() + (self.fractional * model).square()
        if self.jitter is not None:
            if self._jitter_column is None:
                raise ValueError(
                    f"{type(self).__name__} must know which column {self.jitter!r} is, but was not "
                    "bound. Call noise = noise.bind(has_errors, names) first."
                )
            variance = variance + theta[..., self._jitter_column, None, None].square()
        return variance.sqrt()

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        noise = torch.randn(model.shape, generator=rng, device=model.device, dtype=model.dtype)
        return model + self._sigma(model, obs.x_err, theta) * noise

    def _log_density(self, x: Tensor, model: Tensor, err: Tensor | None, theta: Tensor) -> Tensor:
        sigma = self._sigma(model, err, theta)
        height = -sigma.log() - 0.5 * math.log(2 * math.pi)  # the errors' shape: seldom the draws'
        return height - 0.5 * ((x - model) / sigma).square()


class StudentTNoise(GaussianNoise):
    """Student-t noise: like `GaussianNoise`, with tails that forgive outliers.

    Parameters
    ----------
    df : float
        Degrees of freedom; 4 is a common choice.
    sigma, jitter, fractional
        As for `GaussianNoise`; they set the scale of the distribution.
    """

    def __init__(
        self,
        df: float = 4.0,
        sigma: ArrayLike | None = None,
        *,
        jitter: str | None = None,
        fractional: float = 0.0,
    ) -> None:
        super().__init__(sigma, jitter=jitter, fractional=fractional)
        if not 0 < df < math.inf:
            raise ValueError(f"df must be finite and positive, but is {df}.")
        self.df = float(df)

    exact_p_value = False
    p_value = Noise.p_value  # a sum of squares says little of such tails

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return super().meta() | {"type": "StudentTNoise", "df": self.df}

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        # Bailey (1994): a polar method for Student-t, whose two uniforms any generator can give.
        u = torch.rand((2, *model.shape), generator=rng, device=model.device, dtype=torch.float64)
        u = u.clamp(1e-15, 1 - 1e-15)
        radius = (self.df * torch.expm1(-2 / self.df * u[0].log())).sqrt()
        noise = (radius * torch.cos(2 * math.pi * u[1])).to(model.dtype)
        return model + self._sigma(model, obs.x_err, theta) * noise

    def _log_density(self, x: Tensor, model: Tensor, err: Tensor | None, theta: Tensor) -> Tensor:
        sigma = self._sigma(model, err, theta)
        nu = self.df
        constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
        tail = torch.log1p(((x - model) / sigma).square() / nu)
        return constant - sigma.log() - (nu + 1) / 2 * tail


class PoissonNoise(Noise):
    """Counts: data are Poisson with mean ``exposure * model + background``.

    Parameters
    ----------
    exposure, background : float or array_like, shape broadcastable to (C, L)
        The model is a rate; counts are what is observed. A negative mean has zero likelihood.
    """

    def __init__(self, exposure: ArrayLike = 1.0, background: ArrayLike = 0.0) -> None:
        self.exposure = _positive("exposure", exposure)
        self.background = _numbers("background", background)
        if not (np.isfinite(self.background) & (self.background >= 0)).all():
            raise ValueError(f"background must be finite and >= 0, but is {background!r}.")

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return {
            "type": "PoissonNoise",
            "exposure": self.exposure.tolist(),
            "background": self.background.tolist(),
        }

    def _mean(self, model: Tensor) -> Tensor:
        exposure = torch.as_tensor(self.exposure, device=model.device, dtype=model.dtype)
        return exposure * model + torch.as_tensor(
            self.background, device=model.device, dtype=model.dtype
        )

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        mean = self._mean(model).clamp(min=0.0)
        bad = ~torch.isfinite(mean)  # one such point would make torch.poisson raise
        return torch.poisson(mean.masked_fill(bad, 0.0), generator=rng).masked_fill(bad, math.nan)

    def _log_density(self, x: Tensor, model: Tensor, err: Tensor | None, theta: Tensor) -> Tensor:  # noqa: ARG002
        mean = self._mean(model)
        positive = mean.clamp(min=torch.finfo(mean.dtype).tiny)
        density = torch.xlogy(x, positive) - positive - torch.lgamma(x + 1)
        impossible = (mean < 0) | (x < 0) | (x != x.round()) | ((mean == 0) & (x > 0))
        return density.masked_fill(impossible, -math.inf)


def _positive(name: str, value: ArrayLike) -> NDArray[np.float64]:
    array = _numbers(name, value)
    if array.size == 0 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"{name} must be finite and positive, but is {value!r}.")
    return array


def _numbers(name: str, value: ArrayLike) -> NDArray[np.float64]:
    array = np.array(value, np.float64)
    if array.ndim > 2:
        raise ValueError(
            f"{name} must fit one object, shape (C, L) at most, but has {array.shape}. "
            "Give what differs between objects as their x_err."
        )
    return array


def as_tensor(array: Tensor | NDArray) -> Tensor:
    """Return a tensor unchanged, anything else as float64."""
    return array if isinstance(array, Tensor) else torch.as_tensor(np.asarray(array, np.float64))


def as_batch(obs: Data, model: Tensor) -> Batch:
    """Return the data on the device of the model."""
    return obs.batch().to(model.device) if isinstance(obs, Observations) else obs


def like(result: Tensor, original: Tensor | NDArray) -> Tensor | NDArray:
    """Return the result as a tensor or an array, as the original is."""
    return result if isinstance(original, Tensor) else result.numpy()
