"""Noise models made of the user's own functions, and the door that accepts any noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.base import (
    Array,
    Data,
    Noise,
    PointNoise,
    as_tensor,
    like,
)
from nbi_plus.problem.noise.points import GaussianNoise
from nbi_plus.problem.random import preserved_random_state, reseed_global_generators


class CustomNoise(Noise):
    """A noise model of your own.

    Both functions get tensors of one dtype, of which coordinates that are numbers are float64:

    ============  ==================  ================================
    argument      of ``augment``      of ``log_likelihood``
    ============  ==================  ================================
    model         (n, C, L)           (n, C, L) or (n, S, C, L)
    theta         (n, P)              (n, P) or (n, S, P)
    obs.x         (n, C, L)           (n, C, L) or (n, 1, C, L)
    obs.x_err     (n, C, L) or None   (n, C, L) or (n, 1, C, L) or None
    obs.mask      (n, C, L)           (n, C, L) or (n, 1, C, L)
    obs.coords    (n, L) or (L,)      (n, L) or (n, 1, L) or (L,)
    obs.scalars   (n,)                (n,) or (n, 1)
    ============  ==================  ================================

    Write axes from the right, and both forms are one: ``obs.x - model``, ``theta[..., i, None,
    None]`` for a parameter, ``obs.coords["t"][..., None, :]`` for a coordinate. Where ``obs.mask``
    is False there is no datum: leave it out of the sum. There the model equals ``obs.x``.

    Parameters
    ----------
    augment : callable
        ``augment(model, obs, theta, rng) -> x``, in the shape of the model; ``obs`` is a `Batch`.
    log_likelihood : callable, optional
        ``log_likelihood(theta, model, obs) -> (n,) or (n, S)``, normalised. Without it posteriors
        are not corrected and have status AMORTIZED.

    Examples
    --------
    Laplace noise of the size of a parameter, the second of theta:

    >>> from nbi_plus.data.observations import Observations
    >>> def augment(model, obs, theta, rng):
    ...     u = torch.rand(model.shape, generator=rng, device=model.device, dtype=model.dtype) - 0.5
    ...     return model - theta[..., 1, None, None] * u.sign() * torch.log1p(-2 * u.abs())
    >>> def log_likelihood(theta, model, obs):
    ...     width = theta[..., 1, None, None]
    ...     density = -(obs.x - model).abs() / width - torch.log(2 * width)
    ...     return torch.where(obs.mask, density, 0.0).sum((-2, -1))
    >>> noise = CustomNoise(augment, log_likelihood)
    >>> obs = Observations.from_arrays([[0.0, 3.0], [1.0, 1.0]], mask=[[True, False], [True, True]])
    >>> theta, model = np.ones((2, 5, 2)), np.zeros((2, 5, 1, 2))  # 5 draws of 2 objects
    >>> noise.log_likelihood(theta, model, obs)[:, 0].round(3)
    array([-0.693, -3.386])
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

    def augment(self, model: Array, obs: Data, theta: Array, rng: torch.Generator) -> Array:
        """Return what the given function makes of float64, as coordinates and predictions are."""
        f = as_tensor(model)
        return like(super().augment(f.double(), obs, theta, rng).to(f.dtype), model)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        return _checked("augment", self._augment(model, obs, theta, rng), model.shape)

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        if self._log_likelihood is None:
            raise ValueError(
                "CustomNoise cannot weight draws: it has no log_likelihood. "
                "Give CustomNoise a log_likelihood, or read status AMORTIZED."
            )
        value = self._log_likelihood(theta, model, obs)
        return _checked("log_likelihood", value, model.shape[:-2], f" {_facing(model, obs)}")


def _facing(model: Tensor, obs: Batch) -> str:
    """Return a hint for functions that give data an axis of draws, which these have already."""
    return (
        f"Its model has shape {tuple(model.shape)} and obs.x {tuple(obs.x.shape)}: they fit as "
        "they are, without unsqueeze or [:, None]. Sum over (-2, -1)."
    )


class CallableNoise(PointNoise):
    """nbi's noise: a function ``(x, y) -> (x, y)`` of one simulation, in numpy.

    A slow path: it runs row by row, between epochs. As in nbi, draws are weighted with independent
    Gaussian errors when the observation has ``x_err``, and not at all when it has none.
    """

    exact_p_value = True
    draws_as_weighted = False

    def __init__(self, function: Callable[[NDArray, NDArray], tuple[NDArray, NDArray]]) -> None:
        self.function = function

    def has_likelihood(self, has_errors: bool) -> bool:
        """Say whether the observation has errors to weight with."""
        return has_errors

    def pairs(self, model: NDArray, theta: NDArray, seed: int) -> tuple[NDArray, NDArray]:
        """Return a noisy copy of every row (n, C, L) and its, maybe changed, parameters (n, P)."""
        x, y = model.copy(), theta.copy()
        with preserved_random_state(alone=True):
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


def _checked(name: str, value: object, shape: torch.Size, hint: str = "") -> Tensor:
    """Return what a user's function gave, or say what is wrong with it."""
    if not isinstance(value, Tensor) or value.shape != shape:
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{name} must return a tensor of shape {tuple(shape)}, but gave {came}.{hint}"
        )
    return value


ALREADY_NOISY = CustomNoise(lambda model, obs, theta, rng: model)  # noqa: ARG005


def without_likelihood(noise: Noise | ArrayLike | Callable | None) -> CustomNoise:
    """Return what simulations lack, as their likelihood is learned; nothing of None."""
    found = ALREADY_NOISY if noise is None else as_noise(noise)
    if not isinstance(found, CustomNoise) or found.has_likelihood(False):
        raise ValueError(
            f"noise must be a CustomNoise without a log_likelihood, but is {found!r:.99}, and "
            "with the likelihood known nothing need be learned. Use Engine with this noise alone, "
            "or draw the noise in the simulator."
        )
    return found


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
