"""Noise models made of the user's own functions, and the door that accepts any noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.problem.batch import Batch
from nbi_plus.problem.gaussian_process import GaussianProcessNoise
from nbi_plus.problem.kernels import kernel_from_meta
from nbi_plus.problem.linear_nuisance import LinearNuisance
from nbi_plus.problem.noise import GaussianNoise, PoissonNoise, StudentTNoise
from nbi_plus.problem.noise_contract import (
    Array,
    Data,
    Noise,
    PointNoise,
    as_batch,
    as_tensor,
    like,
)
from nbi_plus.problem.outliers import OutlierNoise
from nbi_plus.problem.random import preserved_random_state, reseed_global_generators
from nbi_plus.problem.shared_errors import CalibrationError
from nbi_plus.problem.upper_limits import UpperLimits

_SHIPPED = {
    noise.__name__: noise
    for noise in (
        CalibrationError,
        GaussianNoise,
        GaussianProcessNoise,
        LinearNuisance,
        OutlierNoise,
        PoissonNoise,
        StudentTNoise,
        UpperLimits,
    )
}
_PARTS = {"noise": lambda meta: noise_from_meta(meta), "kernel": kernel_from_meta}


class CustomNoise(Noise):
    """A noise model of your own.

    Parameters
    ----------
    augment : callable
        ``augment(model, obs, theta, rng) -> x``, tensors (n, C, L); ``obs`` is a `Batch`.
    log_likelihood : callable, optional
        ``log_likelihood(theta, model, obs) -> (n,) or (n, S)``, normalised. Without it posteriors
        are not corrected and have status AMORTIZED.
    """

    def __init__(
        self,
        augment: Callable[[Tensor, Batch, Tensor, torch.Generator], Tensor],
        log_likelihood: Callable[[Tensor, Tensor, Batch], Tensor] | None = None,
    ) -> None:
        self._augment = augment
        self._log_likelihood = log_likelihood

    def has_likelihood(self, has_errors: bool) -> bool:  # noqa: ARG002
        """Say whether a log_likelihood was given."""
        return self._log_likelihood is not None

    def log_likelihood(self, theta: Array, model: Array, obs: Data) -> Array:
        """Return what the given function returns."""
        if self._log_likelihood is None:
            raise ValueError(
                "CustomNoise cannot weight draws: it has no log_likelihood. "
                "Give CustomNoise a log_likelihood, or read status AMORTIZED."
            )
        f = as_tensor(model)
        value = self._log_likelihood(as_tensor(theta), f, as_batch(obs, f))
        return like(_checked("log_likelihood", value, f.shape[:-2]), model)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        return _checked("augment", self._augment(model, obs, theta, rng), model.shape)

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        raise NotImplementedError  # log_likelihood is given whole


class CallableNoise(PointNoise):
    """nbi's noise: a function ``(x, y) -> (x, y)`` of one simulation, in numpy.

    A slow path: it runs row by row, between epochs. As in nbi, draws are weighted with independent
    Gaussian errors when the observation has ``x_err``, and not at all when it has none.
    """

    exact_p_value = True

    def __init__(self, function: Callable[[NDArray, NDArray], tuple[NDArray, NDArray]]) -> None:
        self.function = function

    def has_likelihood(self, has_errors: bool) -> bool:
        """Say whether the observation has errors to weight with."""
        return has_errors

    def pairs(self, model: NDArray, theta: NDArray, seed: int) -> tuple[NDArray, NDArray]:
        """Return a noisy copy of every row (n, C, L) and its, maybe changed, parameters (n, P)."""
        x, y = model.copy(), theta.copy()
        with preserved_random_state():
            reseed_global_generators(seed)  # nbi's functions draw from numpy's global state
            for i in range(len(x)):  # the function takes one item at a time
                row = x[i, 0] if x.shape[1] == 1 else x[i]
                noisy, y[i] = self.function(row.copy(), y[i].copy())
                x[i] = np.reshape(noisy, x[i].shape)
        return x, y

    def p_value(self, theta: Tensor, model: Tensor, obs: Batch, rng: torch.Generator) -> Tensor:
        """Return the probability of a larger chi-square, shape (n,), as draws are weighted."""
        return GaussianNoise().p_value(theta, model, obs, rng)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
        x, _ = self.pairs(model.cpu().numpy(), theta.cpu().numpy(), seed)
        return torch.as_tensor(x, device=model.device, dtype=model.dtype)

    def _log_density(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        return GaussianNoise()._log_density(model, obs, theta)


def _checked(name: str, value: object, shape: torch.Size) -> Tensor:
    """Return what a user's function gave, or say what is wrong with it."""
    if not isinstance(value, Tensor) or value.shape != shape:
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must return a tensor of shape {tuple(shape)}, but gave {came}.")
    return value


def as_noise(noise: Noise | ArrayLike | Callable | None) -> Noise:
    """Return a noise model of anything the public doors accept."""
    if isinstance(noise, Noise):
        return noise
    if noise is None:
        return GaussianNoise()
    if isinstance(noise, type):
        raise TypeError(
            f"noise must be a noise model, but is the class {noise.__name__}. "
            f"Write {noise.__name__}(...)."
        )
    if callable(noise):
        return CallableNoise(noise)
    return GaussianNoise(noise)


def noise_from_meta(meta: Mapping[str, object]) -> Noise:
    """Return the shipped noise model that `Noise.meta` described."""
    options = dict(meta)
    kind = options.pop("type", None)
    if kind not in _SHIPPED:
        raise ValueError(
            f"noise must be one of {sorted(_SHIPPED)}, but the file says {kind!r}. Pass noise=."
        )
    parts = {key: make(options[key]) for key, make in _PARTS.items() if key in options}
    return _SHIPPED[kind](**(options | parts))
