"""Labels: two lines that can change places, exact on a grid of both positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import norm, uniform

from benchmarks.families.base import (
    LOG_2PI,
    GaussianFamily,
    Reference,
    midpoints,
    mixture_moments,
)

_HEIGHT = norm(1.0, 0.3)


@dataclass(frozen=True)
class Labels(GaussianFamily):
    """Two lines of one width and height, blended or apart: which is the first is not told.

    Attributes
    ----------
    sigma : float
    n_points : int
    width : float
        Of a line, whose place is between 0 and 1.
    n_grid : int
        Places of each line that the reference tries.
    """

    name = "labels"
    wrong_at_most = 0.01
    sigma: float = 0.2
    n_points: int = 40
    width: float = 0.05
    n_grid: int = 500

    @property
    def err(self):
        """Standard deviations (L,)."""
        return np.full(self.n_points, self.sigma)

    def priors(self):
        """Return those of both places, and of the height."""
        return {"x1": uniform(0, 1), "x2": uniform(0, 1), "height": _HEIGHT}

    def simulator(self, theta):
        """Return the spectrum."""
        lines = self._line(theta[:, 0]) + self._line(theta[:, 1])
        return theta[:, 2, None] * lines

    def _line(self, place):
        points = torch.linspace(0, 1, self.n_points, dtype=place.dtype, device=place.device)
        return (-0.5 * ((points - place[:, None]) / self.width) ** 2).exp()

    def exact(self, x, err):
        """Return the reference: the height is integrated out for each pair of places."""
        places, step = midpoints(0.0, 1.0, self.n_grid)
        line = self._line(torch.as_tensor(places)).numpy() / err
        own, overlap, seen = (line**2).sum(1), line @ line.T, line @ (x / err)
        middle, spread = _HEIGHT.mean(), _HEIGHT.std()
        precision = own[:, None] + own + 2 * overlap + spread**-2
        pull = seen[:, None] + seen + middle / spread**2
        chi2 = ((x / err) ** 2).sum() + (middle / spread) ** 2 - pull**2 / precision
        volume = len(x) * LOG_2PI + 2 * np.log(err).sum() + np.log(precision * spread**2)
        log_mass = -0.5 * (chi2 + volume) + 2 * np.log(step)
        log_evidence = float(logsumexp(log_mass))
        mass = np.exp(log_mass - log_evidence)
        place = mixture_moments(mass.sum(1), places[:, None], np.zeros((self.n_grid, 1)))
        height, variance = ((a.ravel()[:, None]) for a in (pull / precision, 1 / precision))
        height = mixture_moments(mass.ravel(), height, variance)
        # the first line has the posterior of the second
        moments = (np.concatenate([p, p, h]) for p, h in zip(place, height, strict=True))
        return Reference(*moments, log_evidence, {0: 0.5, 1: 0.5})

    def label(self, theta, x):  # noqa: ARG002
        """Say whether the first line is the left one."""
        return (theta[:, 0] < theta[:, 1]).astype(int)
