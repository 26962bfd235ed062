"""The benchmark problems, with their exact evidence; no torch, so that every peer reads them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy.special import ndtr

N_VALIDATION = 1000
N_TEST = 500
_STREAMS = {"train": 1, "validation": 2, "test": 3, "fixed noise": 4}


@dataclass(frozen=True)
class Sine:
    """nbi's own demonstration: f(t) = A sin(omega t + phi0), unit noise, uniform priors."""

    name: str = "sine"
    labels: tuple[str, ...] = ("phi0", "A", "omega")
    low: tuple[float, ...] = (0.0, 1.0, 2 * np.pi)
    high: tuple[float, ...] = (2 * np.pi, 5.0, 12 * np.pi)
    sigma: float = 1.0
    n_points: int = 50
    jitter: str | None = None  # the parameter that adds to the noise
    is_set: bool = False  # whether the order of the points says nothing

    @property
    def t(self):
        """Times of the points, shape (n_points,)."""
        return np.linspace(0.0, 1.0, self.n_points)

    def sample(self, n, rng):
        """Draw (n, 3) parameters; the first rows are the same whatever n is."""
        low, high = np.array(self.low), np.array(self.high)
        return low + (high - low) * rng.random((n, len(low)))

    def simulate(self, theta):
        """Return the noise-free curves (..., n_points) of theta (..., 3)."""
        phi0, amplitude, omega = np.moveaxis(np.asarray(theta)[..., None, :], -1, 0)
        return amplitude * np.sin(omega * self.t + phi0)

    def add_noise(self, x, rng, theta):  # noqa: ARG002 - as of other problems
        """Return x (n, n_points) plus one draw of the noise."""
        return x + self.sigma * rng.standard_normal(x.shape)

    def log_prior(self, theta):
        """Return the log prior density (...,) of theta (..., 3), -inf outside the box."""
        low, high = np.array(self.low), np.array(self.high)
        inside = ((theta >= low) & (theta <= high)).all(-1)
        return np.where(inside, -np.log(high - low).sum(), -np.inf)

    def log_likelihood(self, theta, x):
        """Return the normalised Gaussian log-likelihood (...,) of one object x (n_points,)."""
        z = (x - self.simulate(theta)) / self.sigma
        return -0.5 * (z**2).sum(-1) - self.n_points * np.log(self.sigma * np.sqrt(2 * np.pi))

    def log_evidence(self, x, n_phase=96, n_amplitude=32, n_omega=512):
        """Return the exact log-evidence (n,) of the objects x (n, n_points), by quadrature.

        Trapezoids over the phase (periodic) and Gauss-Legendre over the two others converge
        exponentially here: twice as many nodes change it by less than 1e-5.
        """
        phase = np.arange(n_phase) * 2 * np.pi / n_phase
        amplitude, w_amplitude = _legendre(self.low[1], self.high[1], n_amplitude)
        omega, w_omega = _legendre(self.low[2], self.high[2], n_omega)
        angle = omega[:, None] * self.t
        sin, cos = np.sin(angle), np.cos(angle)
        # s = sin(omega t + phase) is linear in (sin phase, cos phase): sums over t come first.
        s_s = np.sin(phase[:, None, None] + angle) ** 2
        s_s = s_s.sum(-1)[..., None]
        weight = np.log(w_omega[:, None] * w_amplitude) - np.log(self.high[1] - self.low[1])
        weight = weight - np.log(self.high[2] - self.low[2]) - np.log(n_phase)
        constant = -self.n_points * np.log(self.sigma * np.sqrt(2 * np.pi))

        def one(row):
            x_s = np.cos(phase)[:, None] * (sin @ row) + np.sin(phase)[:, None] * (cos @ row)
            chi2 = row @ row - 2 * amplitude * x_s[..., None] + amplitude**2 * s_s
            return _logsumexp(weight - 0.5 * chi2 / self.sigma**2) + constant

        return np.array([one(row) for row in x])


@dataclass(frozen=True)
class Normals:
    """Twenty independent draws of a normal distribution, of which mean and width are asked for."""

    name: str = "normals"
    labels: tuple[str, ...] = ("mu", "sd")
    low: tuple[float, ...] = (-5.0, 0.1)
    high: tuple[float, ...] = (5.0, 5.0)
    sigma: float = 1e-3  # in quadrature to sd, as a noise of known errors has it
    n_points: int = 20
    jitter: str | None = "sd"
    is_set: bool = True

    sample = Sine.sample
    log_prior = Sine.log_prior

    def simulate(self, theta):
        """Return the noise-free data (..., n_points) of theta (..., 2)."""
        return np.asarray(theta)[..., :1] * np.ones(self.n_points)

    def add_noise(self, x, rng, theta):
        """Return x (n, n_points) plus one draw of the noise of theta (n, 2)."""
        return x + self._width(np.asarray(theta)[:, 1:]) * rng.standard_normal(x.shape)

    def log_likelihood(self, theta, x):
        """Return the log-likelihood (...,) of theta (..., 2) for one object x (n_points,)."""
        mu, width = np.asarray(theta)[..., 0], self._width(np.asarray(theta)[..., 1])
        square = ((x - mu[..., None]) ** 2).sum(-1)
        return -0.5 * square / width**2 - self.n_points * np.log(width * np.sqrt(2 * np.pi))

    def log_evidence(self, x, n_nodes=1500):
        """Return the exact log-evidence (n,) of the objects x (n, n_points), by quadrature.

        The integral over the mean has a closed form; the other is of Gauss and Legendre.
        """
        sd, weights = _legendre(self.low[1], self.high[1], n_nodes)
        width, n = self._width(sd), self.n_points
        mean, rest = x.mean(1)[:, None], ((x - x.mean(1)[:, None]) ** 2).sum(1)[:, None]
        edges = [
            (np.array(edge) - mean) * np.sqrt(n) / width for edge in (self.low[0], self.high[0])
        ]
        inside = ndtr(edges[1]) - ndtr(edges[0])
        log_one = -0.5 * rest / width**2 - (n - 1) * np.log(width * np.sqrt(2 * np.pi))
        with np.errstate(divide="ignore"):  # far from the data there may be nothing inside
            log_one += np.log(weights * inside / np.sqrt(n))
        volume = np.prod(np.array(self.high) - np.array(self.low))
        top = log_one.max(1)
        return top + np.log(np.exp(log_one - top[:, None]).sum(1)) - np.log(volume)

    def _width(self, sd):
        return np.hypot(sd, self.sigma)


@dataclass(frozen=True)
class Data:
    """What every package is given: simulations to learn from, objects to be judged on."""

    theta_train: np.ndarray  # (n, D)
    x_train: np.ndarray  # (n, L), noise-free
    theta_validation: np.ndarray  # (1000, D)
    x_validation: np.ndarray  # (1000, L), noisy
    theta_test: np.ndarray  # (500, D)
    x_test: np.ndarray  # (500, L), noisy
    log_evidence_test: np.ndarray  # (500,), exact

    def first(self, n_sims):
        """Return the same data with the first n_sims simulations only."""
        cut = {"theta_train": self.theta_train[:n_sims], "x_train": self.x_train[:n_sims]}
        return Data(**{f.name: cut.get(f.name, getattr(self, f.name)) for f in fields(self)})


PROBLEMS = {"sine": Sine(), "normals": Normals()}


def stream(purpose):
    """Return the fixed generator of one purpose."""
    return np.random.default_rng([20261, _STREAMS[purpose]])


def prepare(problem, folder, n_sims):
    """Return the path of ``<folder>/<problem>.npz``, made unless it holds n_sims simulations."""
    path = Path(folder) / f"{problem.name}.npz"
    if path.exists() and len(load(path).theta_train) >= n_sims:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        **{
            f.name: value for f, value in zip(fields(Data), _generate(problem, n_sims), strict=True)
        },
    )
    return path


def load(path):
    """Read the file that `prepare` wrote."""
    with np.load(path) as arrays:
        return Data(**{f.name: arrays[f.name] for f in fields(Data)})


def _generate(problem, n_sims):
    theta_train = problem.sample(n_sims, stream("train"))
    noisy = []
    for purpose, n in (("validation", N_VALIDATION), ("test", N_TEST)):
        rng = stream(purpose)
        theta = problem.sample(n, rng)
        noisy += [theta, problem.add_noise(problem.simulate(theta), rng, theta)]
    return theta_train, problem.simulate(theta_train), *noisy, problem.log_evidence(noisy[-1])


def _legendre(low, high, n):
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2


def _logsumexp(a):
    top = a.max()
    return top + np.log(np.exp(a - top).sum())
