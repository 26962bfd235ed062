"""Family: a problem whose simulated objects have exact posteriors, and what is known of those."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

import nbi_plus as nbi

LOG_2PI = np.log(2 * np.pi)


@dataclass(frozen=True)
class Reference:
    """Moments of one posterior, to rounding.

    Attributes
    ----------
    mean, sd, kurtosis : ndarray, shape (D,)
        Of the parameters themselves; a Gaussian has kurtosis 3.
    log_evidence : float
    modes : dict of int to float
        The posterior mass of every label that `Family.label` gives.
    mean_error, sd_error : float
        None to speak of: they are what a reference by Monte Carlo would state.
    """

    mean: np.ndarray
    sd: np.ndarray
    kurtosis: np.ndarray
    log_evidence: float
    modes: dict
    mean_error: float = 0.0
    sd_error: float = 0.0


class Family(ABC):
    """Parameters, simulator and noise for the package, and exact answers without weights.

    Objects are drawn from the prior and the noise: nothing about them is odd.
    """

    name: ClassVar[str]
    wrong_at_most: ClassVar[float]  # share of all objects that may be wrong and trusted

    @abstractmethod
    def priors(self):
        """Return a scipy distribution for every name."""

    @abstractmethod
    def simulator(self, theta):
        """Return the data (n, L) without noise of theta (n, D), in torch, with a gradient."""

    @abstractmethod
    def noise(self):
        """Return the noise model of the package."""

    @abstractmethod
    def observe(self, theta, rng):
        """Return noisy data (n, L) of theta (n, D), and their errors (L,), or None."""

    @abstractmethod
    def exact(self, x, err):
        """Return the `Reference` of data x (L,) with the errors that `observe` told."""

    @abstractmethod
    def label(self, theta, x):
        """Return for theta (S, D) in which mode of the object x (L,) they are: integers (S,)."""

    def make(self, n, seed):
        """Return theta (n, D), x (n, L), and err (L,) or None, of n objects."""
        rng = np.random.default_rng([seed, *map(ord, self.name)])
        theta = np.stack([p.rvs(n, random_state=rng) for p in self.priors().values()], 1)
        x, err = self.observe(theta, rng)
        return theta, x, err

    def engine(self, seed=0, ladder=None):
        """Return an engine of the package that is not fitted yet."""
        prior = nbi.Prior(self.priors())
        return nbi.Engine(self.simulator, prior, noise=self.noise(), seed=seed, ladder=ladder)

    def clean(self, theta):
        """Return the data (n, L) without noise, in numpy."""
        return self.simulator(torch.as_tensor(theta)).numpy()


class GaussianFamily(Family):
    """A family with independent Gaussian errors, the same for all objects."""

    @property
    @abstractmethod
    def err(self):
        """Standard deviations (L,)."""

    def noise(self):
        """Return the noise, which knows the errors: objects come without."""
        return nbi.GaussianNoise(sigma=self.err[None])

    def observe(self, theta, rng):
        """Return noisy data (n, L), and the errors (L,)."""
        clean = self.clean(theta)
        return clean + self.err * rng.standard_normal(clean.shape), self.err


def mixture_moments(mass, mean, variance):
    """Return mean, sd and kurtosis (D,) of Gaussians.

    Parameters
    ----------
    mass : ndarray, shape (K,)
        Adds up to one.
    mean, variance : ndarray, shape (K, D)
    """
    middle = mass @ mean
    square = (mean - middle) ** 2
    spread = mass @ (square + variance)
    fourth = mass @ (square**2 + 6 * square * variance + 3 * variance**2)
    return middle, np.sqrt(spread), fourth / spread**2


def midpoints(low, high, n):
    """Return the middles (n,) of n equal steps, and the length of one."""
    step = (high - low) / n
    return low + step * (np.arange(n) + 0.5), step


def masses(labels, weights):
    """Return the summed weight of every label, as a dict."""
    return {int(label): float(weights[labels == label].sum()) for label in np.unique(labels)}
