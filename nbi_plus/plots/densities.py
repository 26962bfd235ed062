"""Densities of weighted draws on a grid, for pictures: ranges, smoothing, credible regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbi_plus.infer.posterior.posterior import Posterior, weighted_quantile

Array = NDArray[np.float64]
Span = tuple[float, float]

_RANGE = (0.001, 0.999)
_MARGIN = 0.08
_N_BINS = 80
_SCOTT = 0.8  # of the width of Scott's rule


def span(posteriors: Sequence[Posterior], i: int, truth: float = np.nan) -> Span:
    """Return the range of parameter i to draw: all posteriors, and the truth unless far away."""
    levels = np.array(_RANGE)
    ends = np.array([weighted_quantile(p.samples[:, i], p.weights, levels) for p in posteriors])
    low, high = ends[:, 0].min(), ends[:, 1].max()
    width = high - low if high > low else max(abs(low), 1.0) * 1e-3
    if low - 2 * width < truth < high + 2 * width:
        low, high = min(low, truth), max(high, truth)
    margin = _MARGIN * max(high - low, width)
    return float(low - margin), float(high + margin)


@dataclass(frozen=True)
class Density:
    """A smoothed density of two parameters: ``values`` (X, Y) at cells centred on x and y."""

    x: Array
    y: Array
    values: Array


def density(posterior: Posterior, pair: tuple[int, int], spans: tuple[Span, Span]) -> Density:
    """Return the weighted histogram of two parameters, smoothed along their correlation."""
    draws = posterior.samples[:, pair]
    mass, *edges = np.histogram2d(*draws.T, _N_BINS, spans, weights=posterior.weights)
    cells = (draws - [e[0] for e in edges]) / [e[1] - e[0] for e in edges]
    values = smoothed(mass, kernel_covariance(cells, posterior.weights))
    return Density(*(0.5 * (e[1:] + e[:-1]) for e in edges), values)


def kernel_covariance(draws: Array, weights: Array) -> Array:
    """Return the covariance (2, 2) of the smoothing kernel: Scott's rule, made narrower.

    The kernel has the shape of the draws (S, 2), so that a narrow correlation is not blurred; for
    a thousand effective draws it widens a contour by three percent.
    """
    n_effective = weights.sum() ** 2 / (weights**2).sum()
    return (_SCOTT * n_effective ** (-1 / 6)) ** 2 * np.cov(draws.T, aweights=weights, ddof=0)


def smoothed(mass: Array, covariance: Array) -> Array:
    """Return a gridded density convolved with a Gaussian of a covariance in units of cells."""
    frequencies = np.meshgrid(
        *(f(n) for f, n in zip((np.fft.fftfreq, np.fft.rfftfreq), mass.shape, strict=True)),
        indexing="ij",
    )
    k = 2 * np.pi * np.stack(frequencies, -1)
    kernel = np.exp(-0.5 * ((k @ covariance) * k).sum(-1))
    return np.maximum(np.fft.irfft2(np.fft.rfft2(mass) * kernel, mass.shape), 0.0)


def credible_heights(values: Array, levels: Sequence[float]) -> Array:
    """Return heights above which a gridded density holds the given shares of its mass, ascending.

    Examples
    --------
    >>> credible_heights(np.array([0.6, 0.3, 0.1]), [0.5, 0.8]).tolist()
    [0.3, 0.6]
    """
    ordered = np.sort(values.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    # a few draws can share one height, and contours must differ
    return np.unique(ordered[np.searchsorted(mass, np.asarray(levels) * (1 - 1e-12))])


def interval_text(low: float, middle: float, high: float) -> str:
    """Return ``$m^{+a}_{-b}$`` with two digits of the smaller error.

    Examples
    --------
    >>> interval_text(49.873, 50.0, 50.111)
    '$50.00^{+0.11}_{-0.13}$'
    """
    smaller = min(high - middle, middle - low)
    digits = int(np.clip(1 - np.floor(np.log10(smaller)), 0, 12)) if smaller > 0 else 3
    up, down = f"{high - middle:.{digits}f}", f"{middle - low:.{digits}f}"
    return f"${middle:.{digits}f}^{{+{up}}}_{{-{down}}}$"
