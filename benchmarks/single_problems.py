"""The problems of one object each, for sequential fits and samplers; numpy and scipy only.

    >>> problem = load("sine")
    >>> problem.log_likelihood(problem.prior_transform(np.full((1, problem.n_dim), 0.5)))

Every observation comes from its own fixed seed, so that all packages see the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy import special
from scipy.stats import loguniform, norm, uniform

REFERENCE_DATA = "NBI_PLUS_REFERENCE_DATA"  # environment variable: the folder that holds rv/K2-24
# The quantile functions of scipy's frozen distributions, without the 0.1 ms that each call of
# theirs costs: samplers that ask for one point at a time would be timed by that alone.
_QUANTILE = {
    "uniform": lambda u, loc, scale: loc + scale * u,
    "loguniform": lambda u, low, high: low * (high / low) ** u,
    "norm": lambda u, loc, scale: loc + scale * special.ndtri(u),
}


class MissingDataError(Exception):
    """The problem needs data that are not here; the message says which, and what to do."""


@dataclass(frozen=True, eq=False)
class SingleProblem:
    """One observed object with a simulator, independent priors and Gaussian noise.

    Attributes
    ----------
    name : str
        Of the problem.
    priors : dict of str to frozen scipy.stats distribution
        Per parameter, in order; uniform, loguniform or norm, made with positional arguments.
    simulator : callable
        ``simulator(theta (n, D)) -> (n, L)``, noise-free.
    x_obs : ndarray, shape (L,)
        The observation.
    sigma : ndarray, shape (L,)
        The standard deviations of its noise.
    truth : ndarray, shape (D,), or None
        The parameters behind x_obs, where they are known.
    jitter : str, optional
        The parameter that is added to sigma in quadrature; the simulator leaves it alone.
    times : ndarray, shape (L,), optional
        When it was observed, for periodograms.
    regions : dict of str to callable
        Parts of parameter space whose posterior mass is worth knowing: theta (n, D) to bool (n,).
    """

    name: str
    priors: dict
    simulator: Callable
    x_obs: np.ndarray
    sigma: np.ndarray
    truth: np.ndarray | None = None
    jitter: str | None = None
    times: np.ndarray | None = None
    regions: dict = field(default_factory=dict)

    @property
    def names(self):
        """The parameters, in order."""
        return tuple(self.priors)

    @property
    def n_dim(self):
        """How many parameters there are."""
        return len(self.priors)

    def prior_transform(self, u):
        """Return theta (..., D) of u (..., D) in the unit cube."""
        columns = zip(np.moveaxis(u, -1, 0), self.priors.values(), strict=True)
        return np.stack([_QUANTILE[p.dist.name](c, *p.args) for c, p in columns], axis=-1)

    def log_prior(self, theta):
        """Return the log prior density (n,) of theta (n, D), -inf outside."""
        columns = zip(theta.T, self.priors.values(), strict=True)
        return sum(p.logpdf(column) for column, p in columns)

    def noise_sd(self, theta):
        """Return the standard deviations of the noise, (L,) or with jitter (n, L)."""
        if self.jitter is None:
            return self.sigma
        jitter = theta[:, self.names.index(self.jitter), None]
        return np.sqrt(self.sigma**2 + jitter**2)

    def log_likelihood(self, theta):
        """Return the normalised Gaussian log-likelihood (n,) of theta (n, D)."""
        sd = self.noise_sd(theta)
        z = (self.x_obs - self.simulator(theta)) / sd
        return (-0.5 * z**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)).sum(-1)

    def masses(self, theta, weights):
        """Return the posterior mass of every region, from weighted draws (n, D), (n,)."""
        return {
            name: float(np.average(inside(theta), weights=weights))
            for name, inside in self.regions.items()
        }


@dataclass
class CountedLikelihood:
    """The log-likelihood of a problem, counting its simulator calls in ``n_calls``."""

    problem: SingleProblem
    n_calls: int = field(default=0, init=False)

    def __call__(self, theta):
        """Return the log-likelihood (n,) of theta (n, D), or a float of theta (D,)."""
        theta = np.asarray(theta)
        rows = np.atleast_2d(theta)
        self.n_calls += len(rows)
        values = self.problem.log_likelihood(rows)
        return values if theta.ndim == 2 else float(values[0])


def load(name):
    """Return the problem of this name; `MissingDataError` where its data are not here."""
    return PROBLEMS[name]()


def _observed(name, priors, simulator, truth, sigma, rng, **regions):
    """Return the problem whose observation is drawn at truth, with one draw of the noise."""
    truth = np.asarray(truth, dtype=float)
    curve = simulator(truth[None])[0]
    sigma = np.full(len(curve), sigma)
    x_obs = curve + sigma * rng.standard_normal(len(curve))
    return SingleProblem(name, priors, simulator, x_obs, sigma, truth, regions=regions)


def _columns(theta):
    """Return the parameters of theta (n, D), each of shape (n, 1)."""
    return np.asarray(theta, dtype=float).T[:, :, None]


# --- The sine of nbi's demonstration.

_SINE_TIMES = np.linspace(0.0, 1.0, 50)


def _sine_curves(theta):
    phase, amplitude, omega = _columns(theta)
    return amplitude * np.sin(omega * _SINE_TIMES + phase)


def sine():
    """Return a sine of amplitude 3 under unit noise. Exact, by quadrature: log Z = -79.799."""
    priors = {
        "phi0": uniform(0.0, 2 * np.pi),
        "A": uniform(1.0, 4.0),
        "omega": uniform(2 * np.pi, 10 * np.pi),
    }
    truth = (2.0, 3.0, 5 * np.pi)
    return _observed("sine", priors, _sine_curves, truth, 1.0, np.random.default_rng(123))


def bimodal():
    """Return the demonstration of nbi 0.4.1: every mode has the twin (phi0 + pi, -A).

    Exact: log Z = 28.493, P(A > 0) = 0.496.
    """
    priors = {
        "phi0": uniform(0.0, 2 * np.pi),
        "A": uniform(-4.0, 8.0),
        "omega": uniform(2 * np.pi, 10 * np.pi),
    }
    # The demonstration seeds numpy's global legacy generator with 4: this is the same stream.
    rng = np.random.RandomState(4)  # noqa: NPY002
    truth = [prior.rvs(1, random_state=rng)[0] for prior in priors.values()]
    return _observed(
        "bimodal", priors, _sine_curves, truth, 0.1, rng, positive=lambda theta: theta[:, 1] > 0
    )


# --- A point lens.


def microlensing():
    """Return a Paczynski light curve: t0 (d), u0, tE (d), source and blended flux."""
    rng = np.random.default_rng(117)
    times = np.sort(rng.uniform(0.0, 120.0, 117))

    def light_curves(theta):
        t0, u0, t_einstein, f_source, f_blend = _columns(theta)
        u2 = u0**2 + ((times - t0) / t_einstein) ** 2
        return f_source * (u2 + 2) / np.sqrt(u2 * (u2 + 4)) + f_blend

    priors = {
        "t0": uniform(20.0, 80.0),
        "u0": loguniform(0.01, 1.5),
        "tE": loguniform(2.0, 100.0),
        "fs": loguniform(1.0, 100.0),
        "fb": uniform(-20.0, 40.0),
    }
    return _observed("microlensing", priors, light_curves, (55, 0.2, 20, 10, 2), 0.6, rng)


# --- A planet before a limb-darkened star.

_TRANSIT_TIMES = np.linspace(-0.1, 0.1, 200)  # days
_TRANSIT_PERIOD = 3.0  # days, known
_N_RADII = 8


def quadratic_transit(z, radius, u1, u2):
    """Return the relative flux of a star with quadratic limb darkening behind a dark disc.

    The blocked light is the integral over stellar radii r of 2 r kappa(r) I(r), where kappa is
    half the angle of the circle of radius r that the disc covers: a fixed Gauss-Legendre rule in
    phi, r = middle - half * cos(phi), takes out the roots at both ends. Where the disc covers the
    centre, kappa = pi for r < radius - z, and that part is a closed form. The error is below
    1e-6 for discs up to 0.2.

    Parameters
    ----------
    z : ndarray, shape (n, L)
        Distance of the centres in stellar radii.
    radius, u1, u2 : ndarray, shape (n, 1)
        Of the disc in stellar radii; limb darkening I = 1 - u1 (1 - mu) - u2 (1 - mu)^2.

    Returns
    -------
    ndarray, shape (n, L)
        The flux, 1 outside the transit.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_N_RADII)
    phi = 0.5 * np.pi * (nodes + 1)
    inner = np.clip(np.abs(z - radius), 0.0, 1.0)
    half = 0.5 * (np.clip(z + radius, 0.0, 1.0) - inner)
    z, radius, u1, u2 = (a[..., None] for a in (z, radius, u1, u2))
    r = inner[..., None] + half[..., None] * (1 - np.cos(phi))
    cosine = (r**2 + z**2 - radius**2) / np.maximum(2 * r * z, 1e-12)
    kappa = np.arccos(np.clip(cosine, -1.0, 1.0))
    dark = 1 - np.sqrt(np.maximum(1 - r**2, 0.0))
    integrand = 2 * r * kappa * (1 - u1 * dark - u2 * dark**2)
    ring = half * (integrand * np.sin(phi) * weights).sum(-1) * 0.5 * np.pi
    u1, u2 = u1[..., 0], u2[..., 0]
    core = _light_within(np.maximum(radius - z, 0.0)[..., 0], u1, u2)
    return 1 - (ring + core) / _light_within(np.ones_like(u1), u1, u2)


def _light_within(r, u1, u2):
    """Return the light of the stellar disc within radius r, a closed form in mu."""
    mu = np.sqrt(1 - r**2)
    flat = 0.5 * (1 - u1 - u2) * (1 - mu**2)
    return 2 * np.pi * (flat + (u1 + 2 * u2) / 3 * (1 - mu**3) - 0.25 * u2 * (1 - mu**4))


def _transit_curves(theta):
    t0, radius, b, a, q1, q2 = _columns(theta)
    angle = 2 * np.pi * (_TRANSIT_TIMES - t0) / _TRANSIT_PERIOD
    z = a * np.hypot(np.sin(angle), b / a * np.cos(angle))
    u1, u2 = 2 * np.sqrt(q1) * q2, np.sqrt(q1) * (1 - 2 * q2)
    return quadratic_transit(z, radius, u1, u2)


def transit():
    """Return one transit on a circular orbit of known period, with Kipping's limb darkening.

    t0 (d), radius ratio rp, impact parameter b, a = semi-major axis in stellar radii, q1, q2.
    """
    priors = {
        "t0": uniform(-0.05, 0.1),
        "rp": uniform(0.02, 0.18),
        "b": uniform(0.0, 1.0),
        "a": loguniform(3.0, 30.0),
        "q1": uniform(0.0, 1.0),
        "q2": uniform(0.0, 1.0),
    }
    truth = (0.003, 0.1, 0.4, 10.0, 0.3, 0.4)
    return _observed("transit", priors, _transit_curves, truth, 3e-4, np.random.default_rng(200))


# --- Radial velocities.


def eccentric_anomaly(mean_anomaly, e, n_steps=8):
    """Return E of M = E - e sin E, in radians; eight Newton steps are enough up to e = 0.8."""
    wrapped = np.remainder(mean_anomaly + np.pi, 2 * np.pi) - np.pi
    anomaly = wrapped + 0.85 * e * np.sign(wrapped)
    for _ in range(n_steps):
        residual = anomaly - e * np.sin(anomaly) - wrapped
        anomaly = anomaly - residual / (1 - e * np.cos(anomaly))
    return anomaly


def kepler():
    """Return the velocities of one planet, seen once a night: its period has a one-day alias.

    Period P (d), semi-amplitude K (m/s), h = sqrt(e) cos(w), k = sqrt(e) sin(w), mean longitude
    L0 at the middle of the 60 nights (mean anomaly plus w), systemic velocity gamma (m/s).
    By nautilus in a box around either period, which finds what it may miss in the whole prior:
    log Z = -97.908 +- 0.009, of which the alias has 0.145 +- 0.002.
    """
    rng = np.random.default_rng(30)
    nights = np.sort(rng.choice(60, 30, replace=False))
    times = nights + rng.uniform(-0.08, 0.08, 30) - 30.0

    def velocities(theta):
        period, amplitude, h, k, longitude, gamma = _columns(theta)
        e, w = h**2 + k**2, np.arctan2(k, h)
        anomaly = eccentric_anomaly(2 * np.pi * times / period + longitude - w, e)
        cos_e, sin_e = np.cos(anomaly), np.sin(anomaly)
        cos_nu = (cos_e - e) / (1 - e * cos_e)
        sin_nu = np.sqrt(1 - e**2) * sin_e / (1 - e * cos_e)
        swing = np.cos(w) * cos_nu - np.sin(w) * sin_nu
        return amplitude * (swing + e * np.cos(w)) + gamma

    priors = {
        "P": loguniform(1.1, 60.0),
        "K": loguniform(1.0, 100.0),
        "h": uniform(-0.6, 1.2),
        "k": uniform(-0.6, 1.2),
        "L0": uniform(0.0, 2 * np.pi),
        "gamma": uniform(-50.0, 100.0),
    }
    truth = (3.3, 10.0, 0.24, 0.38, 3.0, 5.0)
    alias = 1 / (1 - 1 / truth[0])  # 1.43 d: the two peaks are far apart, and narrow
    problem = _observed(
        *("kepler", priors, velocities, truth, 4.0, rng),
        true_period=lambda theta: np.abs(theta[:, 0] / truth[0] - 1) < 0.05,
        alias=lambda theta: np.abs(theta[:, 0] / alias - 1) < 0.05,
    )
    return replace(problem, times=times)


def k2_24():
    """Return the two planets of K2-24 (Petigura et al. 2016) on circular orbits of known phase.

    Semi-amplitudes K1, K2 (m/s), dvdt (m/s/d), curv (m/s/d^2), gamma (m/s), jitter (m/s); trend
    and curvature about the middle of the observations. The jitter acts in the noise alone.
    log Z = -104.160 +- 0.003 (importance sampling, 40 000 draws).
    """
    t, velocity, sigma = _read_k2_24()
    orbits = ((20.885258, 2072.79438), (42.363011, 2082.62516))  # period, time of conjunction
    waves = [-np.sin(2 * np.pi * (t - start) / period) for period, start in orbits]
    since = t - 0.5 * (t.min() + t.max())

    def velocities(theta):
        k1, k2, dvdt, curv, gamma, _ = _columns(theta)
        return k1 * waves[0] + k2 * waves[1] + gamma + dvdt * since + curv * since**2

    priors = {
        "K1": loguniform(1e-2, 1e3),
        "K2": loguniform(1e-2, 1e3),
        "dvdt": norm(0.0, 1.0),
        "curv": norm(0.0, 0.1),
        "gamma": uniform(-50.0, 100.0),
        "jit": uniform(0.0, 15.0),
    }
    return SingleProblem("k2_24", priors, velocities, velocity, sigma, jitter="jit")


def _read_k2_24():
    folder = os.environ.get(REFERENCE_DATA)
    if folder is None:
        raise MissingDataError(
            f"k2_24 needs data, but {REFERENCE_DATA} is not set. Set it to the folder that holds "
            "rv/K2-24/epic203771098.csv (of radvel's example data)."
        )
    path = Path(folder) / "rv" / "K2-24" / "epic203771098.csv"
    if not path.exists():
        raise MissingDataError(f"k2_24 needs {path}, but it is not there.")
    sigma, t, velocity = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(1, 2, 3)).T
    return t, velocity, sigma


PROBLEMS = {
    function.__name__: function
    for function in (sine, bimodal, microlensing, transit, kepler, k2_24)
}
