"""The noise contract: one object both makes the training noise and scores the residuals.

A noise model has two methods, ``augment`` (what the network is trained on) and ``log_likelihood``
(what its draws are weighted with), so that training and correction cannot disagree.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from dataclasses import replace
from types import CodeType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.problem.prior.learned_range import LearnedRange

Data = Batch | Observations
Array = TypeVar("Array", Tensor, NDArray)
_SHORT = reprlib.Repr()
_SHORT.maxother, _SHORT.maxstring = 80, 80
_TIE = 1e-10  # relative to a log-likelihood


class Noise(ABC):
    """How data scatter about a model.

    Subclasses write `_draw` and, where it is known, `_log_prob` (`PointNoise`: `_log_density`).

    Attributes
    ----------
    exact_p_value : bool
        Whether `p_value` has a closed form, instead of comparing with data made up for it.
    draws_as_weighted : bool
        Whether `augment` and `log_likelihood` are of one distribution.
    reads_model : bool
        Whether data scatter about the model; else the parameters alone say how they are drawn.
    learned_at : LearnedRange or None
        Where its likelihood was learned, if it was.
    n_copies : int
        Tensors of the size of the simulations that `log_likelihood` holds at once, beyond a few.
    named_by : tuple of str
        Arguments of which a text names a coordinate or a scalar.
    """

    exact_p_value = False
    draws_as_weighted = True
    reads_model = True
    learned_at: LearnedRange | None = None
    n_copies = 0
    named_by: tuple[str, ...] = ("along",)

    def augment(self, model: Array, obs: Data, theta: Array, rng: torch.Generator) -> Array:
        """Return noisy data of noise-free ``model``, before a survey's limits.

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

        `_draw` gets all but the coordinates in the dtype of ``model``.

        Returns
        -------
        Tensor or ndarray, shape (n, C, L)
            In the dtype of ``model``.
        """
        f, data, t = _alike(model, obs, theta)
        return like(self._draw(f, data, t, rng).to(f.dtype), model)

    def observe(self, model: Array, obs: Data, theta: Array, rng: torch.Generator) -> Batch:
        """Return ``obs`` with data of ``model`` as a survey reports them, 0 where masked.

        The data of `augment`; where points become upper limits, their flags are set as well.
        Parameters as for `augment`.
        """
        f, data, t = _alike(model, obs, theta)
        return self._report(self.augment(f, data, t, rng), data)

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
        f, data, t = _alike(model, obs, theta)
        data = add_draw_axis(data, f)
        return like(self._log_prob(fill_masked(f, data), data, t).to(f.dtype), model)

    def log_densities(self, theta: Array, model: Array, obs: Data) -> Array:
        """Return what adds up to `log_likelihood`.

        Parameters
        ----------
        theta, model, obs
            As for `log_likelihood`.

        Returns
        -------
        Tensor or ndarray, shape (n, C, L) or (n, S, C, L)
            A term for each point, 0 where it is masked, if points are independent; else one term
            for all of an object, with C and L of 1.
        """
        f, data, t = _alike(model, obs, theta)
        data = add_draw_axis(data, f)
        return like(self._terms(fill_masked(f, data), data, t).to(f.dtype), model)

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
        return self.p_values(theta, model, obs, rng)[0]

    def p_values(
        self, theta: Tensor, model: Tensor, obs: Batch, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the probabilities that other data would be no likelier, and no less likely.

        Of data that can be equally likely (counts) they add up to more than one. Arguments as for
        `p_value`, each result of shape (n,).
        """
        if self.exact_p_value:
            upper = self.p_value(theta, model, obs, rng)
            return upper, 1.0 - upper
        other = self.observe(model, obs, theta, rng)
        seen, again = (self.log_likelihood(theta, model, data).double() for data in (obs, other))
        excess = again - seen
        # the same counts in another order differ by rounding
        level = _TIE * (1.0 + seen.nan_to_num(neginf=0.0).abs())
        known = ~excess.isnan()
        both = (excess <= level, excess >= -level)
        upper, lower = (torch.where(known, side.double(), torch.nan) for side in both)
        return upper, lower

    def saturated(self, obs: Batch) -> Tensor:
        """Return the model (n, C, L) that makes data likelier than any other: here these data."""
        return obs.x

    def has_likelihood(self, has_errors: bool) -> bool:  # noqa: ARG002 - subclasses need it
        """Say whether `log_likelihood` can be evaluated for data with or without errors."""
        return True

    def in_unit(self, unit: str | None) -> Noise:  # noqa: ARG002 - subclasses need it
        """Return this noise with its numbers in the unit of the data, None where these have none.

        Numbers without a unit are in that of the data already.
        """
        return self

    def bind(self, has_errors: bool, names: tuple[str, ...]) -> Noise:  # noqa: ARG002
        """Return this noise ready for such data and parameters, or raise a ValueError."""
        return self

    def asked_for(self) -> set[str]:
        """Return the coordinates and scalars of an object that are read by name.

        What a function of the user reads nobody knows.
        """
        own = (getattr(self, name, None) for name in self.named_by)
        inner = (v.asked_for() for v in vars(self).values() if isinstance(v, Noise))
        return {name for name in own if isinstance(name, str)}.union(*inner)

    def meta(self) -> dict[str, object] | None:
        """Return the arguments as plain JSON, or None when they hold the user's code."""
        return None

    def __repr__(self) -> str:
        told = self.meta()
        if told is None:  # it holds functions, or says nothing of itself
            members = {k.lstrip("_"): v for k, v in vars(self).items()
                       if callable(v) or not k.startswith("_")}  # fmt: skip
            told = {"type": type(self).__name__, **members}
        return _told(told)

    def fingerprint(self) -> str:
        """Return a text that changes with the noise; the user's code counts by its byte code."""
        members = (code_text(name, value) for name, value in sorted(vars(self).items()))
        return " ".join([str(self.meta()), *members])

    @abstractmethod
    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        """Return noisy data, shape (n, C, L), of model (n, C, L) and theta (n, P)."""

    @abstractmethod
    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the log-density of the valid points together, shape (...).

        Model (..., C, L) and theta (..., P) broadcast against all tensors of ``obs``, which have an
        axis of length one for the draws when the model has draws (`add_draw_axis`). Where points
        are masked, the model is finite.
        """

    def _terms(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the terms of `log_densities`; arguments as `_log_prob`."""
        return self._log_prob(model, obs, theta)[..., None, None]

    def _report(self, x: Tensor, obs: Batch) -> Batch:
        """Return what a survey would tell of measurements x (n, C, L)."""
        return obs.with_data(x)


class PointNoise(Noise):
    """Noise that is independent from point to point.

    Subclasses write `_draw` and `_log_density`.
    """

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        return self._terms(model, obs, theta).sum((-2, -1))

    def _terms(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        density = self._log_density(model, obs, theta)
        return density if has_all_points(obs) else torch.where(obs.mask, density, 0.0)

    @abstractmethod
    def _log_density(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the log-density of each point, shape (..., C, L); arguments as `_log_prob`."""


def as_tensor(array: Tensor | NDArray) -> Tensor:
    """Return a tensor unchanged, anything else as float64."""
    return array if isinstance(array, Tensor) else torch.as_tensor(np.asarray(array, np.float64))


def as_batch(obs: Data, model: Tensor) -> Batch:
    """Return the data on the device of the model."""
    return obs.batch().to(model.device) if isinstance(obs, Observations) else obs


def _alike(
    model: Tensor | NDArray, obs: Data, theta: Tensor | NDArray
) -> tuple[Tensor, Batch, Tensor]:
    """Return all three as tensors, in the dtype of the model.

    Coordinates keep theirs: a Julian date in float32 moves in steps of a quarter of a day.
    """
    f = as_tensor(model)
    data = as_batch(obs, f).to(dtype=f.dtype)
    data = replace(data, scalars={k: v.to(f.dtype) for k, v in data.scalars.items()})
    return f, data, as_tensor(theta).to(f.dtype)


def like(result: Tensor, original: Tensor | NDArray) -> Tensor | NDArray:
    """Return the result as a tensor or an array, as the original is."""
    return result if isinstance(original, Tensor) else result.numpy()


def add_draw_axis(obs: Batch, model: Tensor) -> Batch:
    """Return the data with an axis for draws, (n, 1, ...), where the model (n, S, C, L) has one."""
    if model.ndim == 3:
        return obs
    return replace(
        obs,
        x=obs.x.unsqueeze(1),
        x_err=None if obs.x_err is None else obs.x_err.unsqueeze(1),
        mask=obs.mask.unsqueeze(1),
        coords={k: v if v.ndim == 1 else v.unsqueeze(1) for k, v in obs.coords.items()},
        scalars={k: v.unsqueeze(1) for k, v in obs.scalars.items()},
    )


def fill_masked(model: Tensor, obs: Batch) -> Tensor:
    """Return the model with the data where they are masked.

    There it may be NaN, and must not spoil the gradient.
    """
    return model if has_all_points(obs) else torch.where(obs.mask, model, obs.x)


def has_all_points(obs: Batch) -> bool:
    """Say whether no point is known to be masked.

    Compiled code does not look, and a GPU would be waited for at every gradient.
    """
    looks = obs.mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return looks and bool(obs.mask.all())


def coordinate_of(obs: Batch, name: str, owner: str) -> Tensor:
    """Return a coordinate (..., L) of the points, or say which noise misses it."""
    if name not in obs.coords:
        raise ValueError(
            f"{owner} must have the coordinate {name!r}, but the observations have "
            f"{sorted(obs.coords) or 'none'}. Give {name}= with the data."
        )
    return obs.coords[name]


def chi_square_p_value(chi2: Tensor, mask: Tensor) -> Tensor:
    """Return the probability (n,) of a chi-square above ``chi2`` (n,); NaN where all is masked.

    It has one degree of freedom for each valid point of ``mask`` (n, C, L).
    """
    half = 0.5 * mask.sum((1, 2)).double()
    p = torch.special.gammaincc(half.clamp(min=0.5), 0.5 * chi2.double())
    return torch.where(half > 0, p, torch.nan)


def _told(value: object) -> str:
    """Return an argument as it would be written; what is None is what nobody gave."""
    if isinstance(value, dict) and "type" in value:
        arguments = ((k, v) for k, v in value.items() if k != "type" and v is not None)
        return f"{value['type']}({', '.join(f'{k}={_told(v)}' for k, v in arguments)})"
    return getattr(value, "__name__", None) or _SHORT.repr(value)


def code_text(name: str, value: object) -> str:
    """Return a text that names the type of a value; of a function it tells what it does."""
    told = f"{name}: {type(value).__name__}"
    code = getattr(value, "__code__", None)
    if code is None:
        return told
    captured = [cell.cell_contents for cell in value.__closure__ or ()]
    return f"{told} {_code(code)} {(captured, value.__defaults__, value.__kwdefaults__)!r}"


def _code(code: CodeType) -> str:
    """Return what a function does: its byte code means little without the names in it."""
    constants = [_code(c) if isinstance(c, CodeType) else c for c in code.co_consts]
    return f"{code.co_code.hex()} {(constants, code.co_names)!r}"
