"""Needle: a narrow mode beside a broad one, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import chi2, ncx2, norm

import nbi_plus as nbi
from benchmarks.families.base import LOG_2PI, Family, Reference, mixture_moments

_INSIDE = 0.999  # of the narrow mode is where its label is


@dataclass(frozen=True)
class Needle(Family):
    """Data are theta with broad errors, or, as often as ``share``, shifted and with narrow ones.

    Attributes
    ----------
    dim : int
    width : float
        The narrow errors.
    broad : float
    share : float
    shift : float
        How far the modes are from each other.
    """

    name = "needle"
    wrong_at_most = 0.01
    dim: int = 3
    width: float = 0.02
    broad: float = 0.5
    share: float = 0.3
    shift: float = 2.5

    @property
    def _parts(self):
        """Share, shift of each coordinate, and error of both kinds of data."""
        shift = self.shift / np.sqrt(self.dim)
        return ((1 - self.share, 0.0, self.broad), (self.share, shift, self.width))

    def priors(self):
        """Return standard normal ones."""
        return {f"p{i}": norm(0, 1) for i in range(self.dim)}

    def simulator(self, theta):
        """Return theta itself."""
        return theta * 1.0

    def noise(self):
        """Return the noise: one kind or the other, for all points of an object."""
        return nbi.CustomNoise(self._augment, self._log_likelihood)

    def _augment(self, model, obs, theta, rng):  # noqa: ARG002
        like = {"generator": rng, "dtype": model.dtype, "device": model.device}
        (_, _, broad), (share, shift, narrow) = self._parts
        is_narrow = torch.rand((len(model), 1, 1), **like) < share
        noise = torch.randn(model.shape, **like)
        return model + torch.where(is_narrow, shift + narrow * noise, broad * noise)

    def _log_likelihood(self, theta, model, obs):  # noqa: ARG002
        def log_density(share, shift, sigma):
            points = -0.5 * (((obs.x - model - shift) / sigma) ** 2 + LOG_2PI) - np.log(sigma)
            return np.log(share) + torch.where(obs.mask, points, 0.0).sum((-2, -1))

        return torch.logaddexp(*(log_density(*part) for part in self._parts))

    def observe(self, theta, rng):
        """Return noisy data, and None for their errors, which nobody knows."""
        (_, _, broad), (share, shift, narrow) = self._parts
        is_narrow = rng.random((len(theta), 1)) < share
        noise = rng.standard_normal(theta.shape)
        return theta + np.where(is_narrow, shift + narrow * noise, broad * noise), None

    def exact(self, x, err):  # noqa: ARG002
        """Return the reference in closed form: two Gaussians."""
        log_mass, means, variances = self._gaussians(x)
        log_evidence = float(logsumexp(log_mass))
        mass = np.exp(log_mass - log_evidence)
        moments = mixture_moments(mass, means, variances[:, None] * np.ones(self.dim))
        away = ((means[0] - means[1]) ** 2).sum() / variances[0]
        radius2 = self._radius2() / variances[0]
        broad_inside = ncx2.cdf(radius2, self.dim, max(away, 1e-9))
        inside = mass[1] * _INSIDE + mass[0] * broad_inside
        return Reference(*moments, log_evidence, {0: float(1 - inside), 1: float(inside)})

    def label(self, theta, x):
        """Say which are in the ball that holds the narrow mode."""
        centre = self._gaussians(x)[1][1]
        return (((theta - centre) ** 2).sum(1) < self._radius2()).astype(int)

    def _gaussians(self, x):
        """Return log-masses (2,), means (2, D) and variances (2,), unnormalised, of both modes."""
        share, shift, sigma = (np.array(column) for column in zip(*self._parts, strict=True))
        seen = x - shift[:, None]
        evidence = norm.logpdf(seen, 0, np.sqrt(1 + sigma**2)[:, None]).sum(1)
        shrunk = 1 / (1 + sigma**2)
        return np.log(share) + evidence, shrunk[:, None] * seen, sigma**2 * shrunk

    def _radius2(self):
        return chi2.ppf(_INSIDE, self.dim) * self.width**2 / (1 + self.width**2)
