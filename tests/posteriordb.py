"""Posteriors of posteriordb as torch densities, with the draws that Stan made of them.

The coordinates z are unconstrained and in the order of the names: a positive parameter is its
logarithm, and log-densities include that Jacobian. They are known up to a constant.
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass

import torch
from torch import Tensor

# --- densities ----------------------------------------------------------------------------------


def normal(x, scale):
    return -0.5 * (x / scale).square()


def cauchy(x, scale):
    return -torch.log1p((x / scale).square())


def half_normal(log_x, scale):
    """Return the log-density of log x, for x half normal."""
    return normal(log_x.exp(), scale) + log_x


def half_cauchy(log_x, scale):
    """Return the log-density of log x, for x half Cauchy."""
    return cauchy(log_x.exp(), scale) + log_x


@dataclass(frozen=True)
class EightSchools:
    """theta = mu + tau * z[:8], measured with known errors; z[8] is mu, z[9] is log tau."""

    y: Tensor
    sigma: Tensor

    def log_prob(self, z, index=None):
        theta = self.to_constrained(z)[..., :-2]
        prior = normal(z[..., :-1], z.new_tensor([1.0] * 8 + [5.0])).sum(-1)
        return prior + half_cauchy(z[..., -1], 5.0) + normal(self.y - theta, self.sigma).sum(-1)

    def to_constrained(self, z):
        mu, tau = z[..., -2:-1], z[..., -1:].exp()
        return torch.cat([mu + tau * z[..., :-2], mu, tau], -1)

    def to_unconstrained(self, theta):
        mu, tau = theta[..., -2:-1], theta[..., -1:]
        return torch.cat([(theta[..., :-2] - mu) / tau, mu, tau.log()], -1)


@dataclass(frozen=True)
class Regression:
    """y = design @ beta + sigma * noise; z is beta and then log sigma."""

    design: Tensor
    y: Tensor

    def log_likelihood(self, z):
        log_sigma = z[..., -1]
        residuals = self.y - z[..., :-1] @ self.design.T
        return normal(residuals, log_sigma.exp()[..., None]).sum(-1) - len(self.y) * log_sigma

    def to_constrained(self, z):
        return torch.cat([z[..., :-1], z[..., -1:].exp()], -1)

    def to_unconstrained(self, theta):
        return torch.cat([theta[..., :-1], theta[..., -1:].log()], -1)


class KidScore(Regression):
    """Flat in beta."""

    def log_prob(self, z, index=None):
        return self.log_likelihood(z) + half_cauchy(z[..., -1], 2.5)


class CorrelatedBeta(Regression):
    """Normal in beta and, above zero, in sigma."""

    def log_prob(self, z, index=None):
        prior = normal(z[..., :-1], 10.0).sum(-1) + half_normal(z[..., -1], 10.0)
        return self.log_likelihood(z) + prior


@dataclass(frozen=True)
class GaussianProcess:
    """Exponentiated quadratic of length rho and height alpha; sigma is the VARIANCE of the noise.

    z is (log rho, log alpha, log sigma).
    """

    x: Tensor
    y: Tensor

    def covariance(self, z):
        rho, alpha, sigma = z.exp()[..., None, None].unbind(-3)
        kernel = normal(self.x[:, None] - self.x, rho).exp()
        return alpha.square() * kernel + sigma * torch.eye(len(self.x), dtype=z.dtype)

    def log_prob(self, z, index=None):
        factor, failed = torch.linalg.cholesky_ex(self.covariance(z))
        white = torch.linalg.solve_triangular(factor, self.y[:, None], upper=False)[..., 0]
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        likelihood = normal(white, 1.0).sum(-1) - diagonal.log().sum(-1)
        length = 25 * z[..., 0] - 4 * z[..., 0].exp()  # gamma(25, 4)
        prior = length + half_normal(z[..., 1], 2.0) + half_normal(z[..., 2], 1.0)
        return (likelihood + prior).masked_fill(failed > 0, -math.inf)

    def to_constrained(self, z):
        return z.exp()

    def to_unconstrained(self, theta):
        return theta.log()


# --- moments ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations of parameters (P,), with their Monte-Carlo errors."""

    mean: Tensor
    mean_error: Tensor
    sd: Tensor
    sd_error: Tensor

    @classmethod
    def of(cls, draws, n_batches=64):
        """Return the moments of chains (chains, n, P)."""
        mean, mean_error = _mean(draws, n_batches)
        variance, error = _mean((draws - mean).square(), n_batches)
        return cls(mean, mean_error, variance.sqrt(), error / (2 * variance.sqrt()))

    def scores(self, other):
        """Return how many errors the means and sds of both differ by, each (P,)."""
        mean = (self.mean - other.mean) / torch.hypot(self.mean_error, other.mean_error)
        sd = (self.sd - other.sd) / torch.hypot(self.sd_error, other.sd_error)
        return mean, sd


def _mean(draws, n_batches):
    """Return means and their errors (P,), from the spread of the means of batches.

    Chains are cut until there are enough batches. Unlike errors from autocorrelations, these are
    right for short chains whose draws repel each other, as those of HMC do.
    """
    n_chains, n, _ = draws.shape
    cuts = math.ceil(n_batches / n_chains)
    batches = draws[:, : n // cuts * cuts].unflatten(1, (cuts, -1)).mean(2).flatten(0, 1)
    return draws.mean((0, 1)), batches.std(0) / len(batches) ** 0.5


# --- references ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """A posterior: a density in z, names of P parameters, and Stan's ``draws`` (10, 1000, P)."""

    names: tuple[str, ...]
    density: EightSchools | Regression | GaussianProcess
    draws: Tensor

    @property
    def z(self):
        """Stan's draws in unconstrained coordinates, (10, 1000, D)."""
        return self.density.to_unconstrained(self.draws)

    @property
    def moments(self):
        """Of Stan's draws: thinned until independent, so that every draw is a batch."""
        return Moments.of(self.draws, n_batches=self.draws[..., 0].numel())

    def approximation(self, width=2.0, off=0.5):
        """Return mean (1, D) and factor (1, D, D) of a rough fit, its mean ``off`` by sds."""
        flat = self.z.flatten(0, 1)
        signs = torch.ones(flat.shape[1]).double()
        signs[1::2] = -1.0
        factor = torch.linalg.cholesky(torch.cov(flat.T))
        return (flat.mean(0) + off * flat.std(0) * signs)[None], width * factor[None]


def superchains(points, n_each):
    """Return every one of points (B, n_super, D) as ``n_each`` consecutive chains (B, C, D)."""
    return points.repeat_interleave(n_each, 1)


def uniform_points(n_dim, n, seed):
    """Return points (1, n, D) as Stan starts from: uniform in -2 to 2."""
    rng = torch.Generator().manual_seed(seed)
    return 4 * torch.rand(1, n, n_dim, generator=rng, dtype=torch.float64) - 2


def rough_points(mean, factor, n, seed):
    """Return points (1, n, D) of normals of a mean (1, D) and a factor (1, D, D)."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, n, mean.shape[1], generator=rng, dtype=torch.float64)
    return mean[:, None] + noise @ factor.mT


def _schools(data):
    return EightSchools(data["y"], data["sigma"])


def _kid_score(data):
    columns = (torch.ones_like(data["mom_hs"]), data["mom_hs"], data["mom_iq"])
    return KidScore(torch.stack(columns, 1), data["kid_score"])


def _correlated_beta(data):
    return CorrelatedBeta(data["X"], data["y"])


def _gaussian_process(data):
    return GaussianProcess(data["x"], data["y"])


POSTERIORS = {
    "eight_schools-eight_schools_noncentered": _schools,
    "kidiq-kidscore_momhsiq": _kid_score,
    "sblrc-blr": _correlated_beta,
    "gp_pois_regr-gp_regr": _gaussian_process,
}


def _read(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def load(folder, name):
    """Return a `Reference` from the folder of posteriors; ``name`` is one of `POSTERIORS`."""
    data = _read(folder / name / "data.json.zip")
    tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in data.items()}
    chains = _read(folder / name / "draws.json.zip")
    names = tuple(chains[0])
    draws = torch.tensor([[c[n] for n in names] for c in chains], dtype=torch.float64).mT
    return Reference(names, POSTERIORS[name](tensors), draws.contiguous())
