"""A monotone cubic table of a quantile function: the latent map of any continuous distribution."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor

from nbi_plus.problem.prior.inversion import solve_increasing
from nbi_plus.problem.prior.marginals import (
    LATENT_EDGE,
    LATENT_MAX,
    Marginal,
    normal_log_density,
    outside_to_infinity,
    outside_to_zero,
)

Array = NDArray[np.float64]
_N_COARSE = 167  # first grid: steps of 0.1
_N_KNOTS_MAX = 3000  # refinement stops here: it may be chasing noise in scipy's quantiles
_GAP_CELL = 1e-6  # a jump of the quantile function is confined to a cell narrower than this
_TOLERANCE = 1e-7  # of z, before a cell is halved once more
_ACCEPTED = 1e-4  # of z within 5 sigma, where refinement had to stop


class Distribution(Protocol):
    """What is needed of a frozen scipy distribution."""

    def ppf(self, p: Array) -> Array:
        """Return quantiles."""

    def isf(self, p: Array) -> Array:
        """Return quantiles of upper tail probabilities."""

    def pdf(self, theta: Array) -> Array:
        """Return densities."""

    def logpdf(self, theta: Array) -> Array:
        """Return log-densities."""

    def support(self) -> tuple[float, float]:
        """Return the edges of the support."""


@dataclass(frozen=True, eq=False)
class QuantileTable(Marginal):
    """A C1 monotone piecewise cubic theta(z), linear beyond its knots and kept in the support.

    The forward map and its density ``N(z) / theta'(z)`` are those of the table; they agree with the
    distribution to better than 1e-6 in z wherever scipy's own quantiles do.

    Parameters
    ----------
    z, theta, slope : Tensor, shape (n_knots,)
        Latent values, quantiles and derivatives, both values strictly increasing.
    empty : Tensor of bool, shape (n_knots - 1,)
        Cells that bridge a gap of the support, in which the density is zero.
    edges : tuple of float
        The support.
    """

    z: Tensor
    theta: Tensor
    slope: Tensor
    empty: Tensor
    edges: tuple[float, float]

    @property
    def support(self) -> tuple[float, float]:
        """The support of the tabulated distribution."""
        return self.edges

    def _cells(self, knots: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """Return the cell of every x with its left z, width, left theta, rise, end slopes."""
        last = len(knots) - 2
        cell = (torch.searchsorted(knots, x.detach().contiguous(), right=True) - 1).clamp(0, last)
        z, theta, slope = (knot.to(x.device) for knot in (self.z, self.theta, self.slope))
        width, rise = z[cell + 1] - z[cell], theta[cell + 1] - theta[cell]
        return cell, z[cell], width, theta[cell], rise, slope[cell], slope[cell + 1]

    def _value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return theta and its derivative inside the knots."""
        _, left, width, theta, rise, m_0, m_1 = self._cells(self.z.to(z.device), z)
        t = (z - left) / width
        value, slope = _cubic(t, m_0 * width / rise, m_1 * width / rise)
        return theta + rise * value, rise / width * slope

    def from_latent(self, z: Tensor) -> Tensor:
        """Evaluate the cubic, or the tangent beyond the knots."""
        z = z.clamp(-LATENT_MAX, LATENT_MAX)
        low, high = self.z[0].item(), self.z[-1].item()
        below, above = (z - low).clamp(max=0.0), (z - high).clamp(min=0.0)
        theta = self._value_and_slope(z.clamp(low, high))[0]
        theta = theta + self.slope[0].item() * below + self.slope[-1].item() * above
        return theta.clamp(*self.edges)

    def to_latent(self, theta: Tensor) -> Tensor:
        """Solve the cubic; the gradient is ``1 / theta'(z)``."""
        low, high = self.theta[0].item(), self.theta[-1].item()
        inside = theta.detach().clamp(low, high)
        _, left, width, start, rise, m_0, m_1 = self._cells(self.theta.to(theta.device), inside)
        alpha, beta, y = m_0 * width / rise, m_1 * width / rise, (inside - start) / rise
        zero = torch.zeros_like(y)
        t = solve_increasing(lambda t: _cubic(t, alpha, beta), y, zero, zero + 1, y)
        z = left + width * t
        slope = self._value_and_slope(z)[1]
        z = z + (theta - inside) / slope  # a tangent beyond the knots, zero and a gradient inside
        nearest = [LATENT_EDGE if math.isfinite(edge) else math.inf for edge in self.edges]
        z = z.clamp(-nearest[0], nearest[1])
        return outside_to_infinity(theta, z, self.edges)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the density of the table, ``log N(z) - log theta'(z)``, -inf in a gap."""
        z = self.to_latent(theta)
        inside = z.clamp(self.z[0].item(), self.z[-1].item())
        cell = self._cells(self.z.to(z.device), inside)[0]
        log_prob = normal_log_density(z) - torch.log(self._value_and_slope(inside)[1])
        log_prob = torch.where(self.empty.to(z.device)[cell], -torch.inf, log_prob)
        return outside_to_zero(theta, log_prob, self.edges)


def _cubic(t: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and slope at t of the cubic from (0, 0) to (1, 1) with these end slopes."""
    a, b = alpha + beta - 2, 3 - 2 * alpha - beta
    return t * (alpha + t * (b + t * a)), alpha + t * (2 * b + 3 * a * t)


def tabulate(distribution: Distribution) -> QuantileTable | None:
    """Tabulate a distribution's quantile function until it is resolved.

    Cells are halved where the cubic misses an exact quantile by more than 1e-7 in z, or by more
    than float64 probabilities can tell apart there. A gap of the support ends as a cell narrower
    than 1e-6, in which the density is zero.

    Parameters
    ----------
    distribution : Distribution
        A frozen scipy distribution, or what behaves like one.

    Returns
    -------
    QuantileTable or None
        None where the quantile function could not be resolved.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # far-tail quantiles may underflow or integrate badly
        return _tabulate(distribution)


def _tabulate(distribution: Distribution) -> QuantileTable | None:
    z = np.linspace(-LATENT_EDGE, LATENT_EDGE, _N_COARSE)
    z, theta = _increasing(z, _quantile(distribution, z))
    if len(z) < 9 or z[0] > -3 or z[-1] < 3:
        return None
    miss = np.full(len(z) - 1, np.inf)
    while (miss > 0).any() and len(z) < _N_KNOTS_MAX:
        z, theta, miss = _halve(distribution, z, theta, miss)
    if (miss[np.abs(z[1:]) < 5] > _ACCEPTED).any():
        return None
    gap = np.diff(z) < _GAP_CELL
    empty = gap & (distribution.pdf(0.5 * (theta[1:] + theta[:-1])) <= 0)
    arrays = (z, theta, _slopes(distribution, z, theta), empty)
    low, high = (float(edge) for edge in distribution.support())
    edges = (min(low, float(theta[0])), max(high, float(theta[-1])))
    return QuantileTable(*(torch.from_numpy(array) for array in arrays), edges=edges)


def _quantile(distribution: Distribution, z: Array) -> Array:
    """Return exact quantiles, each from the tail that keeps its digits."""
    theta = np.empty_like(z)
    below = z < 0
    if below.any():
        theta[below] = distribution.ppf(ndtr(z[below]))
    if not below.all():
        theta[~below] = distribution.isf(ndtr(-z[~below]))
    return theta


def _increasing(z: Array, theta: Array) -> tuple[Array, Array]:
    """Keep the knots that are finite and go up, counted from the median outwards."""
    middle = len(z) // 2
    up, down = theta[middle:], theta[middle::-1]
    keep_up = np.isfinite(up) & (up > _before(np.fmax.accumulate(up), -np.inf))
    keep_down = np.isfinite(down) & (down < _before(np.fmin.accumulate(down), np.inf))
    keep = np.concatenate([keep_down[:0:-1], keep_up])
    return z[keep], theta[keep]


def _before(running: Array, first: float) -> Array:
    return np.concatenate([[first], running[:-1]])


def _slopes(distribution: Distribution, z: Array, theta: Array) -> Array:
    """Return d theta / dz at the knots: exact where the density is known, limited to monotone.

    The limit is that of Fritsch and Carlson (1980), a little tighter, so that the slope is
    nowhere zero.
    """
    secant = np.diff(theta) / np.diff(z)
    left, right = np.r_[secant[0], secant], np.r_[secant, secant[-1]]
    exact = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) / distribution.pdf(theta)
    smallest = np.minimum(left, right)
    known = np.isfinite(exact) & (exact > 0)
    slope = np.where(known, exact, 2 * left * right / (left + right))
    return np.clip(slope, 1e-3 * smallest, 2.5 * smallest)


def _halve(
    distribution: Distribution, z: Array, theta: Array, miss: Array
) -> tuple[Array, Array, Array]:
    """Add a knot in the middle of every cell that misses; zero the misses that are good enough.

    A cell's miss is the error in z of the cubic in the middle of the cell it was halved from.
    """
    width, rise, slope = np.diff(z), np.diff(theta), _slopes(distribution, z, theta)
    cells = np.flatnonzero(miss)
    middle = 0.5 * (z[cells] + z[cells + 1])
    exact = _quantile(distribution, middle)
    predicted = 0.5 * (theta[cells] + theta[cells + 1])
    predicted += 0.125 * width[cells] * (slope[cells] - slope[cells + 1])
    usable = (exact > theta[cells]) & (exact < theta[cells + 1])  # else float64 cannot resolve it
    error = np.abs(exact - predicted) / rise[cells] * width[cells]
    noise = 1e-15 * np.exp(0.5 * middle**2)  # probabilities are known to some 1e-16
    noise += 32 * np.spacing(np.abs(exact)) / rise[cells] * width[cells]
    bad = usable & (error > _TOLERANCE + noise)
    missed = np.zeros(len(width))
    missed[cells[bad]] = error[bad]
    finer = np.r_[z, middle[usable]]
    order = np.argsort(finer)
    parents = np.searchsorted(z, finer[order][:-1], side="right") - 1
    return finer[order], np.r_[theta, exact[usable]][order], missed[parents]
