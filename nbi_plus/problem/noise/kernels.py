"""Kernels of Gaussian processes in time whose covariance matrix is factorised in linear time.

They are sums of exponentials, of which some oscillate (Foreman-Mackey et al. 2017, eq. 8).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.problem.noise.hyper import NumberOrParameter

_NEARLY_CRITICAL = 1e-8  # 1 / 4 Q^2 - 1, below which two decays lose more digits than one swing
_LEAST_DETUNING = 1e-12  # 1 - 1 / 4 Q^2 of that swing


@dataclass(frozen=True)
class Generators:
    r"""A kernel at given times: :math:`k(t_n - t_m) = \sum_j U_{nj} V_{mj} e^{-c_j (t_n - t_m)}`.

    Attributes
    ----------
    u, v : tuple of Tensor, broadcastable to shape (..., L)
        One for each of the J terms; :math:`t_n \geq t_m`.
    rates : tuple of Tensor, broadcastable to shape (..., L)
        The :math:`c_j`.
    variance : Tensor, broadcastable to shape (..., L)
        The value at lag zero.
    """

    u: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    rates: tuple[Tensor, ...]
    variance: Tensor

    def __add__(self, other: Generators) -> Generators:
        return Generators(
            self.u + other.u,
            self.v + other.v,
            self.rates + other.rates,
            self.variance + other.variance,
        )


class Kernel(ABC):
    """A stationary covariance in time. Kernels can be added."""

    _hypers: dict[str, NumberOrParameter]

    def __add__(self, other: Kernel) -> Kernel:
        return Sum(self, other)

    def bind(self, names: tuple[str, ...]) -> Kernel:
        """Return a copy that knows the columns of its parameters."""
        bound = copy.copy(self)
        bound._hypers = {k: hyper.bind(names) for k, hyper in self._hypers.items()}
        return bound

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return {"type": type(self).__name__} | {k: h.value for k, h in self._hypers.items()}

    @abstractmethod
    def generators(self, t: Tensor, theta: Tensor) -> Generators:
        """Return the kernel at times t (..., 1, L), for theta (..., P)."""

    def _values(self, t: Tensor, theta: Tensor) -> list[Tensor]:
        """Return the hyper-parameters as tensors that broadcast against t."""
        like = {"device": t.device, "dtype": t.dtype}
        return [torch.as_tensor(h.of(theta), **like) for h in self._hypers.values()]


class DampedRandomWalk(Kernel):
    r"""Variability that forgets: :math:`\sigma^2 e^{-|\Delta t| / \tau}`.

    Parameters
    ----------
    sigma : float or str
        Standard deviation, or the name of the parameter that holds it.
    tau : float or str
        Time scale.
    """

    def __init__(self, sigma: float | str, tau: float | str) -> None:
        self._hypers = {"sigma": NumberOrParameter("sigma", sigma), "tau": _positive("tau", tau)}

    def generators(self, t: Tensor, theta: Tensor) -> Generators:
        """Return the kernel at times t (..., 1, L), for theta (..., P)."""
        sigma, tau = self._values(t, theta)
        variance = sigma.square()
        return Generators((variance,), (torch.ones_like(variance),), (1 / tau,), variance)


class Harmonic(Kernel):
    r"""A harmonic oscillator that is damped, and driven by white noise.

    With :math:`\omega = 2 \pi / P` and :math:`\eta = |1 - 1 / 4 Q^2|^{1/2}`, the covariance is

    .. math:: \sigma^2 e^{-\omega \Delta t / 2 Q} \left[ \cos(\eta \omega \Delta t)
        + \frac{1}{2 \eta Q} \sin(\eta \omega \Delta t) \right]

    for :math:`Q > 1/2`, and with hyperbolic functions for :math:`Q < 1/2` (Foreman-Mackey et al.
    2017, eq. 23). Large :math:`Q` is nearly periodic; :math:`Q = 1/\sqrt{2}` describes granulation.

    Parameters
    ----------
    sigma : float or str
        Standard deviation, or the name of the parameter that holds it.
    period : float or str
        :math:`P`, of the oscillator without damping.
    quality : float or str
        :math:`Q`.
    """

    def __init__(self, sigma: float | str, period: float | str, quality: float | str) -> None:
        self._hypers = {
            "sigma": NumberOrParameter("sigma", sigma),
            "period": _positive("period", period),
            "quality": _positive("quality", quality),
        }

    def generators(self, t: Tensor, theta: Tensor) -> Generators:
        """Return the kernel at times t (..., 1, L), for theta (..., P)."""
        sigma, period, quality = self._values(t, theta)
        variance, omega = sigma.square(), 2 * math.pi / period
        detuning = 1 - 1 / (4 * quality.square())
        swings = detuning > -_NEARLY_CRITICAL  # else two decays: the same number of terms
        eta = torch.where(swings, detuning.clamp(min=_LEAST_DETUNING), detuning.abs()).sqrt()
        damping, side = omega / (2 * quality), variance / (2 * eta * quality)
        beat = torch.where(swings, eta * omega, 0.0)
        split = torch.where(swings, 0.0, eta * omega)
        cos, sin, zero = torch.cos(beat * t), torch.sin(beat * t), torch.zeros_like(t)
        return Generators(
            (
                torch.where(swings, variance * cos + side * sin, 0.5 * (variance + side) + zero),
                torch.where(swings, variance * sin - side * cos, 0.5 * (variance - side) + zero),
            ),
            (torch.where(swings, cos, 1.0), torch.where(swings, sin, 1.0)),
            (damping - split, damping + split),
            variance,
        )


class Sum(Kernel):
    """The sum of two kernels: of two independent processes."""

    def __init__(self, first: Kernel, second: Kernel) -> None:
        self.first = first
        self.second = second

    def bind(self, names: tuple[str, ...]) -> Sum:
        """Return a copy that knows the columns of its parameters."""
        return Sum(self.first.bind(names), self.second.bind(names))

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return {"type": "Sum", "first": self.first.meta(), "second": self.second.meta()}

    def generators(self, t: Tensor, theta: Tensor) -> Generators:
        """Return the kernel at times t (..., 1, L), for theta (..., P)."""
        return self.first.generators(t, theta) + self.second.generators(t, theta)


def _positive(label: str, value: float | str) -> NumberOrParameter:
    if value == 0:
        raise ValueError(f"{label} must be positive, but is {value!r}.")
    return NumberOrParameter(label, value)
