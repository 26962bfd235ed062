"""Problems with known answers, shared by the tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate
from scipy.stats import norm, uniform

import nbi_plus as nbi


@dataclass(frozen=True)
class LinearGaussian:
    """theta ~ N(0, 1)^D, x = theta @ design + N(0, sigma^2)^L: posterior and evidence are known."""

    n_dim: int
    n_points: int
    sigma: float = 1.0
    seed: int = 0

    @property
    def design(self):
        rng = np.random.default_rng(self.seed)
        return 2 * rng.normal(size=(self.n_dim, self.n_points)) / np.sqrt(self.n_points)

    @property
    def prior(self):
        return nbi.Prior({f"p{i}": norm(0, 1) for i in range(self.n_dim)})

    @property
    def simulator(self):
        design = self.design
        return lambda theta: theta @ design

    def observe(self, n, seed=1):
        rng = np.random.default_rng(seed)
        theta = rng.normal(size=(n, self.n_dim))
        return theta, theta @ self.design + self.sigma * rng.normal(size=(n, self.n_points))

    def posterior(self, x):
        """Return means (n, D) and the covariance (D, D) for data (n, L)."""
        design = self.design
        cov = np.linalg.inv(np.eye(self.n_dim) + design @ design.T / self.sigma**2)
        return x @ design.T / self.sigma**2 @ cov, cov

    def log_evidence(self, x):
        cov = self.sigma**2 * np.eye(self.n_points) + self.design.T @ self.design
        chi2 = np.einsum("ni,ij,nj->n", x, np.linalg.inv(cov), x)
        return -0.5 * (chi2 + np.linalg.slogdet(2 * np.pi * cov)[1])


@dataclass(frozen=True)
class Square:
    """theta ~ N(0, 1), x_i ~ N(theta^2, sigma^2): two modes of equal weight."""

    n_points: int = 10
    sigma: float = 0.5

    prior = nbi.Prior({"a": norm(0, 1)})

    @property
    def simulator(self):
        n = self.n_points
        return lambda theta: theta**2 * np.ones((1, n))

    def moments(self, x):
        """Return E|theta|, sd of |theta| and log Z for data (L,), by quadrature."""

        def integral(power):
            def f(a):
                like = norm.logpdf(x, a**2, self.sigma).sum() - offset
                return 2 * a**power * np.exp(norm.logpdf(a) + like)

            return integrate.quad(f, 0, 8, points=[max(x.mean(), 0) ** 0.5], limit=400)[0]

        offset = norm.logpdf(x, max(x.mean(), 0), self.sigma).sum()
        z, m1, m2 = (integral(k) for k in (0, 1, 2))
        return m1 / z, np.sqrt(m2 / z - (m1 / z) ** 2), np.log(z) + offset


# --- needles: a narrow mode beside a broad one, in closed form -----------------------------------

NEEDLE_SHIFT, NEEDLE_NARROW, NEEDLE_BROAD, NEEDLE_SHARE = 1.45, 0.02, 0.5, 0.3


def identity(theta):
    """Return theta: the noise makes the data."""
    return theta * 1.0


def needle_noise(width=NEEDLE_NARROW):
    """Return a noise of data around theta or, rarely, very close to theta and a shift."""

    def augment(model, obs, theta, rng):  # noqa: ARG001
        lot = torch.rand((model.shape[0], 1, 1), generator=rng, dtype=model.dtype) < NEEDLE_SHARE
        noise = torch.randn(model.shape, generator=rng, dtype=model.dtype)
        near = NEEDLE_SHIFT + width * noise
        return model + torch.where(lot, near, NEEDLE_BROAD * noise)

    def log_likelihood(theta, model, obs):  # noqa: ARG001
        off, d = obs.x - model, model.shape[-1]
        parts = ((1 - NEEDLE_SHARE, 0.0, NEEDLE_BROAD), (NEEDLE_SHARE, NEEDLE_SHIFT, width))
        each = [np.log(p) - 0.5 * ((off - at) / sd).square().sum((-2, -1)) - d * np.log(sd)
                for p, at, sd in parts]  # fmt: skip
        return torch.logaddexp(*each) - 0.5 * d * np.log(2 * np.pi)

    return nbi.CustomNoise(augment, log_likelihood)


# an exponential over less than one of its scales: a ridge with a long bent end
DECAY_PRIOR = {"a": uniform(0.1, 9.9), "tau": uniform(0.02, 4.98), "c": uniform(-2, 4)}
DECAY_LOG_Z = -35.134 - 25 * np.log(2 * np.pi * 0.01)  # dynesty and long adaptive runs


def decay(theta):
    return theta[:, :1] * np.exp(-np.linspace(0, 1, 50) / theta[:, 1:2]) + theta[:, 2:]


def decay_in_torch(theta):
    t = torch.linspace(0, 1, 50, dtype=theta.dtype, device=theta.device)
    return theta[:, :1] * torch.exp(-t / theta[:, 1:2]) + theta[:, 2:]


def decay_data():
    noise = torch.randn(1, 50, generator=torch.Generator().manual_seed(123)).numpy()[0]
    return decay(np.array([[2.0, 0.8, 0.3]]))[0] + 0.1 * noise
