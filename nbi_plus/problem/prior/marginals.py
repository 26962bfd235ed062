"""One-dimensional maps between a parameter and its standard normal latent variable.

With F the prior's distribution function, ``z = Phi^-1(F(theta))``. Probabilities are carried as a
lower and an upper tail, so that neither end of a distribution loses digits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.special import log_ndtr
from torch import Tensor

LATENT_EDGE = 8.3  # |z| of a parameter that sits exactly on a finite edge of its support
LATENT_MAX = 36.0  # beyond this the tail probabilities near the end of float64's range
_P_TINY = 1e-300
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT2 = math.sqrt(2.0)
_ERF_BULK = math.erf(1 / _SQRT2)


def _phi(x: float) -> float:
    """Return the standard normal distribution function of one number."""
    return 0.5 * math.erfc(-x / _SQRT2)


_P_EDGE = _phi(-LATENT_EDGE)


def normal_cdf(z: Tensor) -> Tensor:
    """Return Phi(z) with full relative accuracy; torch.special.ndtr loses it below -5."""
    return 0.5 * torch.erfc(z / -_SQRT2)


def normal_log_density(z: Tensor) -> Tensor:
    """Return the standard normal log-density, elementwise."""
    return -0.5 * z**2 - _LOG_SQRT_2PI


def _tails(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return Phi(z) and 1 - Phi(z), both with full relative accuracy."""
    z = z.clamp(-LATENT_MAX, LATENT_MAX)
    return normal_cdf(z), normal_cdf(-z)


def _normal_score(lower: Tensor, upper: Tensor, open_ends: tuple[bool, bool]) -> Tensor:
    """Return z from the two tail probabilities; a closed end is reached at ``LATENT_EDGE``."""
    p_lower, p_upper = (_P_TINY if is_open else _P_EDGE for is_open in open_ends)
    left = torch.special.ndtri(lower.clamp(p_lower, 0.75))
    right = -torch.special.ndtri(upper.clamp(p_upper, 0.75))
    return torch.where(lower < upper, left, right)


def outside_to_infinity(theta: Tensor, z: Tensor, support: tuple[float, float]) -> Tensor:
    """Return z with the infinity of the same side where theta is outside the support."""
    z = torch.where(theta < support[0], -math.inf, z)
    return torch.where(theta > support[1], math.inf, z)


def outside_to_zero(theta: Tensor, log_prob: Tensor, support: tuple[float, float]) -> Tensor:
    """Return the log-density with -inf where theta is outside the support."""
    outside = (theta < support[0]) | (theta > support[1])
    return torch.where(outside, -math.inf, log_prob)


class Marginal(ABC):
    """A one-dimensional prior as a map from its latent variable, elementwise and differentiable.

    All tensors are float64. Values outside the support have latent ``-inf`` or ``+inf`` and
    log-density ``-inf``; a value on a finite edge has latent ``-8.3`` or ``+8.3``.
    """

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]:
        """The smallest and largest possible value."""

    @abstractmethod
    def from_latent(self, z: Tensor) -> Tensor:
        """Return the parameter whose distribution function is Phi(z)."""

    @abstractmethod
    def to_latent(self, theta: Tensor) -> Tensor:
        """Return z, the inverse of `from_latent`."""

    @abstractmethod
    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the log-density of the parameter."""


@dataclass(frozen=True)
class Uniform(Marginal):
    """Uniform between ``low`` and ``high``."""

    low: float
    high: float

    @property
    def support(self) -> tuple[float, float]:
        """The two edges."""
        return self.low, self.high

    def from_latent(self, z: Tensor) -> Tensor:
        """Measure from the nearer edge."""
        lower, upper = _tails(z)
        width = self.high - self.low
        return torch.where(z < 0, self.low + width * lower, self.high - width * upper)

    def to_latent(self, theta: Tensor) -> Tensor:
        """Return the normal score of the two distances to the edges."""
        width = self.high - self.low
        lower, upper = (theta - self.low) / width, (self.high - theta) / width
        return outside_to_infinity(theta, _normal_score(lower, upper, (False, False)), self.support)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return minus the log of the width."""
        flat = 0 * theta - math.log(self.high - self.low)
        return outside_to_zero(theta, flat, self.support)


@dataclass(frozen=True)
class Normal(Marginal):
    """Normal: the one linear map."""

    loc: float
    scale: float

    @property
    def support(self) -> tuple[float, float]:
        """The whole line."""
        return -math.inf, math.inf

    def from_latent(self, z: Tensor) -> Tensor:
        """Return ``loc + scale * z``."""
        return self.loc + self.scale * z

    def to_latent(self, theta: Tensor) -> Tensor:
        """Return ``(theta - loc) / scale``."""
        return (theta - self.loc) / self.scale

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the normal log-density."""
        return normal_log_density(self.to_latent(theta)) - math.log(self.scale)


@dataclass(frozen=True)
class LogNormal(Marginal):
    """Log-normal: ``loc + scale * exp(sigma z)``."""

    sigma: float
    loc: float
    scale: float

    @property
    def support(self) -> tuple[float, float]:
        """Everything above ``loc``."""
        return self.loc, math.inf

    def _log(self, theta: Tensor) -> Tensor:
        return torch.log(((theta - self.loc) / self.scale).clamp(min=_P_TINY))

    def from_latent(self, z: Tensor) -> Tensor:
        """Return ``loc + scale * exp(sigma z)``."""
        return self.loc + self.scale * torch.exp(self.sigma * z)

    def to_latent(self, theta: Tensor) -> Tensor:
        """Return the standardised logarithm."""
        z = (self._log(theta) / self.sigma).clamp(min=-LATENT_EDGE)
        return outside_to_infinity(theta, z, self.support)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the log-normal log-density."""
        log = self._log(theta)
        norm = math.log(self.sigma) + math.log(self.scale)
        return outside_to_zero(
            theta, normal_log_density(log / self.sigma) - log - norm, self.support
        )


@dataclass(frozen=True)
class LogUniform(Marginal):
    """Uniform in ``log((theta - loc) / scale)`` between ``log a`` and ``log b``."""

    a: float
    b: float
    loc: float
    scale: float

    @property
    def support(self) -> tuple[float, float]:
        """The two edges."""
        return self.loc + self.scale * self.a, self.loc + self.scale * self.b

    @property
    def _range(self) -> float:
        return math.log(self.b) - math.log(self.a)

    def _unit(self, theta: Tensor) -> Tensor:
        return ((theta - self.loc) / self.scale).clamp(self.a, self.b)

    def from_latent(self, z: Tensor) -> Tensor:
        """Measure the logarithm from the nearer edge."""
        lower, upper = _tails(z)
        up = self.a * torch.exp(self._range * lower)
        down = self.b * torch.exp(-self._range * upper)
        return (self.loc + self.scale * torch.where(z < 0, up, down)).clamp(*self.support)

    def to_latent(self, theta: Tensor) -> Tensor:
        """Return the normal score of the two log-distances to the edges."""
        y = self._unit(theta)
        lower = torch.log1p((y - self.a) / self.a) / self._range
        upper = torch.log1p((self.b - y) / y) / self._range
        return outside_to_infinity(theta, _normal_score(lower, upper, (False, False)), self.support)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return ``-log(theta - loc) - log(log(b / a))``."""
        log_y = torch.log(self._unit(theta))
        norm = math.log(self._range) + math.log(self.scale)
        return outside_to_zero(theta, -log_y - norm, self.support)


@dataclass(frozen=True)
class Exponential(Marginal):
    """Exponential above ``loc``."""

    loc: float
    scale: float

    @property
    def support(self) -> tuple[float, float]:
        """Everything above ``loc``."""
        return self.loc, math.inf

    def from_latent(self, z: Tensor) -> Tensor:
        """Return ``loc - scale * log(1 - Phi(z))``."""
        z = z.clamp(-LATENT_MAX, LATENT_MAX)
        small = -torch.log1p(-normal_cdf(z.clamp(max=0.0)))
        large = -torch.special.log_ndtr(-z.clamp(min=0.0))
        return self.loc + self.scale * torch.where(z < 0, small, large)

    def to_latent(self, theta: Tensor) -> Tensor:
        """Return the normal score of ``exp(-x)``."""
        x = (theta - self.loc) / self.scale
        z = _normal_score(-torch.expm1(-x), torch.exp(-x), (False, True))
        return outside_to_infinity(theta, z, self.support)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the exponential log-density."""
        x = (theta - self.loc) / self.scale
        return outside_to_zero(theta, -x - math.log(self.scale), self.support)


@dataclass(frozen=True)
class TruncatedNormal(Marginal):
    """Normal cut at ``loc + scale * a`` and ``loc + scale * b``; half-normal for (0, inf).

    The interval is mirrored, if need be, to lie mostly below the mean, where ``Phi`` keeps its
    digits. Three expressions of one probability are used: ``Phi`` below -1 sigma, ``erf`` around
    the mean and ``1 - Phi`` above +1 sigma.
    """

    a: float
    b: float
    loc: float
    scale: float

    @property
    def support(self) -> tuple[float, float]:
        """The two cuts."""
        return self.loc + self.scale * self.a, self.loc + self.scale * self.b

    @cached_property
    def _sign(self) -> float:
        return -1.0 if self.b > -self.a else 1.0

    @cached_property
    def _cuts(self) -> tuple[float, float]:
        return (self.a, self.b) if self._sign > 0 else (-self.b, -self.a)

    @cached_property
    def _mass(self) -> float:
        low, high = self._cuts
        if max(abs(low), abs(high)) < 1:
            return 0.5 * (math.erf(high / _SQRT2) - math.erf(low / _SQRT2))
        return _phi(high) - _phi(low)

    def from_latent(self, z: Tensor) -> Tensor:
        """Invert whichever of the three expressions keeps its digits."""
        low, high = self._cuts
        z = self._sign * z
        lower, upper = (self._mass * tail for tail in _tails(z))
        bulk = torch.where(
            z < 0, math.erf(low / _SQRT2) + 2 * lower, math.erf(high / _SQRT2) - 2 * upper
        )
        left = torch.special.ndtri((_phi(low) + lower).clamp(_P_TINY, 0.4))
        right = -torch.special.ndtri((_phi(-high) + upper).clamp(_P_TINY, 0.4))
        x = torch.where(bulk < 0, left, right)
        middle = _SQRT2 * torch.erfinv(bulk.clamp(-_ERF_BULK, _ERF_BULK))
        x = torch.where(bulk.abs() < _ERF_BULK, middle, x)
        return (self.loc + self.scale * self._sign * x).clamp(*self.support)

    def to_latent(self, theta: Tensor) -> Tensor:
        """Return the normal score of the probabilities below and above theta."""
        low, high = self._cuts
        x = (self._sign * (theta - self.loc) / self.scale).clamp(low, high)
        phi, phi_above, bulk = normal_cdf(x), normal_cdf(-x), torch.erf(x / _SQRT2)
        lower, upper = phi - _phi(low), _phi(high) - phi
        upper = torch.where(x > 0, phi_above - _phi(-high), upper)
        near = x.abs() < 1
        if abs(low) < 1:
            lower = torch.where(near, 0.5 * (bulk - math.erf(low / _SQRT2)), lower)
        if abs(high) < 1:
            upper = torch.where(near, 0.5 * (math.erf(high / _SQRT2) - bulk), upper)
        open_ends = (math.isinf(low), math.isinf(high))
        z = self._sign * _normal_score(lower / self._mass, upper / self._mass, open_ends)
        return outside_to_infinity(theta, z, self.support)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the normal log-density over the mass between the cuts."""
        norm = math.log(self.scale) + math.log(self._mass)
        log_prob = normal_log_density((theta - self.loc) / self.scale) - norm
        return outside_to_zero(theta, log_prob, self.support)

    @staticmethod
    def is_resolved(a: float, b: float) -> bool:
        """Tell whether the mass between the cuts, and its tails, are representable numbers."""
        nearest = max(a, -b, 0.0)  # distance of the interval from the mean
        return bool(log_ndtr(-nearest) > -400.0)
