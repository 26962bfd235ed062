"""Rings: only the distance from the origin is seen, exact by quadrature over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import chi, norm

from benchmarks.families.base import GaussianFamily, Reference, midpoints


@dataclass(frozen=True)
class Rings(GaussianFamily):
    """The radius of a point is measured a few times: a ring, or a shell in more dimensions.

    Attributes
    ----------
    dim : int
    sigma : float
        Of one measurement.
    n_points : int
        Measurements.
    """

    name = "rings"
    wrong_at_most = 0.01
    dim: int = 2
    sigma: float = 0.15
    n_points: int = 8

    def __post_init__(self):
        if self.dim < 2:
            raise ValueError(f"dim of rings must be at least 2, but is {self.dim}.")

    @property
    def err(self):
        """Standard deviations (L,)."""
        return np.full(self.n_points, self.sigma)

    def priors(self):
        """Return standard normal ones."""
        return {f"p{i}": norm(0, 1) for i in range(self.dim)}

    def simulator(self, theta):
        """Return the radius, again and again."""
        return theta.square().sum(1, keepdim=True).sqrt().expand(-1, self.n_points)

    def exact(self, x, err):
        """Return the reference: all directions are alike."""
        radius, step = midpoints(0.0, 12.0, 20_000)
        log_likelihood = norm.logpdf(x[:, None], radius, err[:, None]).sum(0)
        log_mass = log_likelihood + chi.logpdf(radius, self.dim) + np.log(step)
        log_evidence = float(logsumexp(log_mass))
        mass = np.exp(log_mass - log_evidence)
        variance = mass @ radius**2 / self.dim
        fourth = 3 * (mass @ radius**4) / (self.dim * (self.dim + 2))
        moments = np.outer([0.0, np.sqrt(variance), fourth / variance**2], np.ones(self.dim))
        return Reference(*moments, log_evidence, dict.fromkeys(range(4), 0.25))

    def label(self, theta, x):  # noqa: ARG002
        """Number the quarters of the first plane."""
        return (theta[:, :2] > 0) @ [1, 2]
