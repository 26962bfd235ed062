"""The problems of `benchmarks.single_problems` in torch, so that they have gradients.

>>> curves = in_torch(load("sine"))  # theta (n, 3) -> (n, 50), as the problem's own simulator
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.single_problems import SingleProblem
from nbi_plus.models import kepler
from nbi_plus.models.microlensing import point_lens
from nbi_plus.models.transit import limb_darkening, quadratic_transit

_PERIOD = 3.0  # days, of the transit


def in_torch(problem: SingleProblem) -> Callable[[Tensor], Tensor]:
    """Return the simulator of a problem in torch."""
    return _MODELS[problem.name](problem)


def _sine(problem: SingleProblem) -> Callable[[Tensor], Tensor]:  # noqa: ARG001
    t = torch.linspace(0.0, 1.0, 50, dtype=torch.float64)

    def curves(theta: Tensor) -> Tensor:
        phase, amplitude, omega = theta.T[..., None]
        return amplitude * torch.sin(omega * t + phase)

    return curves


def _microlensing(problem: SingleProblem) -> Callable[[Tensor], Tensor]:  # noqa: ARG001
    t = np.sort(np.random.default_rng(117).uniform(0.0, 120.0, 117))
    return partial(_at, point_lens, torch.as_tensor(t))


def _transit(problem: SingleProblem) -> Callable[[Tensor], Tensor]:  # noqa: ARG001
    t = torch.linspace(-0.1, 0.1, 200, dtype=torch.float64)

    def curves(theta: Tensor) -> Tensor:
        t0, radius, b, a, q1, q2 = theta.unbind(-1)
        u1, u2 = limb_darkening(q1, q2)
        period = torch.full_like(t0, _PERIOD)
        return quadratic_transit(torch.stack([t0, period, radius, a, b, u1, u2], -1), t)

    return curves


def _kepler(problem: SingleProblem) -> Callable[[Tensor], Tensor]:
    t = torch.as_tensor(problem.times)

    def velocities(theta: Tensor) -> Tensor:
        period, amplitude, h, k, longitude, gamma = theta.T[..., None]
        e, ex, ey = kepler.eccentricity(h, k)
        f = kepler.eccentric_longitude(longitude + 2 * math.pi * t / period, ex, ey)
        sin, cos = torch.sin(f), torch.cos(f)
        ratio = kepler.axis_ratio(e)
        beta = 1 / (1 + ratio)
        rate = (1 - beta * ex * ex) * cos - beta * ex * ey * sin
        return gamma + amplitude * ratio * rate / (1 - ex * cos - ey * sin)

    return velocities


def _k2_24(problem: SingleProblem) -> Callable[[Tensor], Tensor]:
    columns = torch.as_tensor(problem.simulator(np.eye(problem.n_dim)))  # it is linear
    return lambda theta: theta @ columns


def _at(model: Callable[[Tensor, Tensor], Tensor], t: Tensor, theta: Tensor) -> Tensor:
    return model(theta, t)


_MODELS = {
    "sine": _sine,
    "bimodal": _sine,
    "microlensing": _microlensing,
    "transit": _transit,
    "kepler": _kepler,
    "k2_24": _k2_24,
}
