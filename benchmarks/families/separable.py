"""Families with one parameter on a grid and the others, linear ones, integrated out on it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import norm, uniform

from benchmarks.families.base import (
    LOG_2PI,
    GaussianFamily,
    Reference,
    masses,
    midpoints,
    mixture_moments,
)


def integrated(x, err, offset, design):
    """Integrate linear parameters with standard normal priors out of a Gaussian likelihood.

    Parameters
    ----------
    x, err : ndarray, shape (L,)
    offset : ndarray, shape (G, L) or (L,)
        What the model is where all linear parameters are zero, at every point of a grid.
    design : ndarray, shape (G, L, P)
        What one unit of each of them adds.

    Returns
    -------
    log_likelihood : ndarray, shape (G,)
    mean, variance : ndarray, shape (G, P)
        Of the linear parameters, given the point of the grid.
    """
    away = (x - offset) / err
    columns = design / err[:, None]
    precision = np.swapaxes(columns, 1, 2) @ columns + np.eye(design.shape[2])
    covariance = np.linalg.inv(precision)
    pull = np.swapaxes(columns, 1, 2) @ np.broadcast_to(away, columns.shape[:2])[..., None]
    mean = (covariance @ pull)[..., 0]
    chi2 = (away**2).sum(-1) - (pull[..., 0] * mean).sum(-1)
    volume = np.linalg.slogdet(precision)[1] + len(x) * LOG_2PI + 2 * np.log(err).sum()
    return -0.5 * (chi2 + volume), mean, np.diagonal(covariance, axis1=1, axis2=2)


def reference_on_grid(grid, log_mass, mean, variance, labels):
    """Return the `Reference` of a parameter on a grid (G,), followed by its linear ones (G, P)."""
    log_evidence = float(logsumexp(log_mass))
    mass = np.exp(log_mass - log_evidence)
    mean = np.column_stack([grid, mean])
    moments = mixture_moments(mass, mean, np.column_stack([np.zeros(len(grid)), variance]))
    return Reference(*moments, log_evidence, masses(labels, mass))


class Separable(GaussianFamily):
    """A family whose first parameter is on a grid, and whose others have priors N(0, 1)."""

    @abstractmethod
    def grid(self):
        """Return points (G,) that fill the prior of the first parameter, and their step."""

    @abstractmethod
    def design(self, first):
        """Return what a unit of each linear parameter adds, (n, L, P) for first (n,), in torch."""

    def simulator(self, theta):
        """Return the sum of the linear parameters' parts."""
        return (self.design(theta[:, 0]) @ theta[:, 1:, None])[..., 0]

    def exact(self, x, err):
        """Return the reference by quadrature over the grid."""
        grid, step = self.grid()
        design = self.design(torch.as_tensor(grid)).numpy()
        log_likelihood, mean, variance = integrated(x, err, np.zeros(len(x)), design)
        first = next(iter(self.priors().values()))
        log_mass = log_likelihood + first.logpdf(grid) + np.log(step)
        return reference_on_grid(grid, log_mass, mean, variance, self.label(grid[:, None], x))


@dataclass(frozen=True)
class Aliases(Separable):
    """A sinusoid of unknown frequency, seen at few irregular times: its aliases are modes.

    Attributes
    ----------
    sigma : float
    n_points : int
    duration : float
    low, high : float
        The range of frequencies.
    """

    name = "aliases"
    wrong_at_most = 0.005
    sigma: float = 0.5
    n_points: int = 14
    duration: float = 60.0
    low: float = 0.05
    high: float = 1.0

    @property
    def err(self):
        """Standard deviations (L,)."""
        return np.full(self.n_points, self.sigma)

    def priors(self):
        """Return those of the frequency and both amplitudes."""
        amplitude = norm(0, 1)
        return {"f": uniform(self.low, self.high - self.low), "a": amplitude, "b": amplitude}

    def grid(self):
        """Return frequencies: some eight in the width of the narrowest usual peak."""
        return midpoints(self.low, self.high, 8000)

    def design(self, first):
        """Return cosine and sine at the times."""
        times = np.sort(np.random.default_rng(3).uniform(0, self.duration, self.n_points))
        phase = 2 * np.pi * first[:, None] * torch.as_tensor(times).to(first)
        return torch.stack([phase.cos(), phase.sin()], -1)

    def label(self, theta, x):  # noqa: ARG002
        """Number the peaks: they are 1 / duration wide."""
        return np.floor(theta[:, 0] * self.duration).astype(int)


@dataclass(frozen=True)
class Pulse(Separable):
    """A pulse of known width on a constant, anywhere among many points.

    Attributes
    ----------
    sigma : float
    n_points : int
    width : float
        Of the pulse, whose time is between 0 and 1.
    """

    name = "pulse"
    wrong_at_most = 0.0
    sigma: float = 0.35
    n_points: int = 160
    width: float = 0.008

    @property
    def err(self):
        """Standard deviations (L,)."""
        return np.full(self.n_points, self.sigma)

    def priors(self):
        """Return those of the time, the height and the constant."""
        return {"t0": uniform(0, 1), "A": norm(0, 1), "c": norm(0, 1)}

    def grid(self):
        """Return times: four in the width of the narrowest usual peak."""
        return midpoints(0.0, 1.0, 4000)

    def design(self, first):
        """Return the pulse and the constant."""
        times = torch.linspace(0, 1, self.n_points, dtype=first.dtype, device=first.device)
        pulse = (-0.5 * ((times - first[:, None]) / self.width) ** 2).exp()
        return torch.stack([pulse, torch.ones_like(pulse)], -1)

    def label(self, theta, x):  # noqa: ARG002
        """Number stretches of two and a half widths."""
        return np.floor(theta[:, 0] / (2.5 * self.width)).astype(int)


@dataclass(frozen=True)
class Funnel(Separable):
    """A hierarchy: the logarithm of a scale, and group effects that it multiplies.

    Attributes
    ----------
    sigma : float
    n_groups : int
    n_points : int
        Of each group.
    """

    name = "funnel"
    wrong_at_most = 0.01
    sigma: float = 0.3
    n_groups: int = 5
    n_points: int = 3

    @property
    def err(self):
        """Standard deviations (L,)."""
        return np.full(self.n_groups * self.n_points, self.sigma)

    def priors(self):
        """Return those of the logarithm of the scale, and of the effects in units of it."""
        effects = {f"effect_{i}": norm(0, 1) for i in range(self.n_groups)}
        return {"log_scale": norm(-1.0, 1.5), **effects}

    def grid(self):
        """Return logarithms of the scale, seven standard deviations to either side."""
        return midpoints(-11.5, 9.5, 2000)

    def design(self, first):
        """Return the scale, at the points of each group."""
        own = torch.eye(self.n_groups, dtype=first.dtype, device=first.device)
        return first.exp()[:, None, None] * own.repeat_interleave(self.n_points, 0)

    def label(self, theta, x):  # noqa: ARG002
        """Tell the neck, where the errors hide all differences of groups, from the mouth."""
        return (np.exp(theta[:, 0]) > self.sigma / np.sqrt(self.n_points)).astype(int)


@dataclass(frozen=True)
class Bananas(GaussianFamily):
    """Bent ridges in planes: y1 = a and y2 = b + bend a^2 are seen, for every pair (a, b).

    Attributes
    ----------
    n_pairs : int
    bend : float
    along, across : float
        Errors of y1, how long a ridge is, and of y2, how thin.
    """

    name = "bananas"
    wrong_at_most = 0.01
    n_pairs: int = 2
    bend: float = 1.0
    along: float = 1.0
    across: float = 0.1

    @property
    def err(self):
        """Standard deviations (L,)."""
        return np.tile([self.along, self.across], self.n_pairs)

    def priors(self):
        """Return standard normal ones."""
        return {f"{name}{i}": norm(0, 1) for i in range(self.n_pairs) for name in "ab"}

    def simulator(self, theta):
        """Return y1, y2 of every pair."""
        a, b = theta[:, ::2], theta[:, 1::2]
        return torch.stack([a, b + self.bend * a**2], -1).flatten(1)

    def exact(self, x, err):
        """Return the reference of all pairs: they are independent."""
        parts = zip(x.reshape(-1, 2), err.reshape(-1, 2), strict=True)
        pairs = [self._exact_pair(*part) for part in parts]
        moments = (
            np.concatenate([getattr(p, k) for p in pairs]) for k in ("mean", "sd", "kurtosis")
        )
        modes = {0: 1.0}
        for i, pair in enumerate(pairs):
            modes = {
                old + (label << i): mass * share
                for old, mass in modes.items()
                for label, share in pair.modes.items()
            }
        return Reference(*moments, sum(p.log_evidence for p in pairs), modes)

    def _exact_pair(self, x, err):
        grid, step = midpoints(-8.0, 8.0, 4000)
        offset = np.stack([grid, self.bend * grid**2], 1)
        design = np.broadcast_to([[0.0], [1.0]], (len(grid), 2, 1))
        log_likelihood, mean, variance = integrated(x, err, offset, design)
        log_mass = log_likelihood + norm.logpdf(grid) + np.log(step)
        return reference_on_grid(grid, log_mass, mean, variance, (grid > 0).astype(int))

    def label(self, theta, x):  # noqa: ARG002
        """Number the arms: on which side of its bend each pair is."""
        return (theta[:, ::2] > 0) @ (1 << np.arange(self.n_pairs))
