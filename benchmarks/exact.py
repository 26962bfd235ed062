"""Exact posterior moments of one object with few parameters: what answers are judged against.

Nothing of the package is used. Prior draws and descents from the best of them find the modes, a
mixture of t learns their shapes from weighted draws, and those of the flatter square root of the
posterior, whose tails matter; a hundred thousand fresh draws are weighted. All is done in the
latent space, where the prior is standard normal.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, ndtr, ndtri

N_BANK = 2**16  # prior draws that every object is compared with
N_FINAL = 100_000
N_LEARN = 6000  # draws of each round that learns the mixture
ESS_SOUND = 20_000.0
ERROR_SOUND = 0.02  # of a mean in sd, and of an sd as a share
_DOF = 5.0
_WIDE = 2.0  # the defensive part is so many times wider ...
_SHARES = (0.86, 0.1, 0.04)  # ... and has the second share; the third is the prior's
_FLAT_SHARE = 0.3  # of the draws are learnt from the square root of the posterior
_Z_MAX = 8.0
_CHUNK = 1024  # curves at once: they stay in the cache
_LOG_MASS = 25.0  # modes of less than exp(-25) of the best density do not matter


@dataclass(frozen=True)
class Reference:
    """Moments of one posterior.

    Attributes
    ----------
    mean, sd, kurtosis : ndarray, shape (D,)
        Of the parameters themselves, not of the latent ones; a Gaussian has kurtosis 3.
    log_evidence : float
    mean_error, sd_error : ndarray, shape (D,)
        Monte-Carlo errors of the mean in sd, and of the sd as a share, by the delta method.
    ess : float
        Effective draws behind it.
    chi2 : float
        Of the best draw.
    n_modes : int
        Where descents ended.
    seconds : float
    """

    mean: np.ndarray
    sd: np.ndarray
    kurtosis: np.ndarray
    mean_error: np.ndarray
    sd_error: np.ndarray
    log_evidence: float
    ess: float
    chi2: float
    n_modes: int
    seconds: float

    @property
    def sound(self):
        """Whether it is good enough to judge others."""
        error = max(self.mean_error.max(), self.sd_error.max())
        return bool(self.ess >= ESS_SOUND and error <= ERROR_SOUND)


@dataclass(frozen=True)
class Mixture:
    """A mixture of t: log_share (K,), centre (K, D), factor (K, D, D), lower triangular."""

    log_share: np.ndarray
    centre: np.ndarray
    factor: np.ndarray
    dof: float = _DOF

    def joined(self, other, share):
        """Return a mixture of which the other one has a share."""
        shares = (np.log1p(-share) + self.log_share, np.log(share) + other.log_share)
        pairs = ((self.centre, other.centre), (self.factor, other.factor))
        return Mixture(np.concatenate(shares), *map(np.concatenate, pairs))

    def draw(self, n, rng):
        """Return (n, D) draws: narrow, wide, and of the prior, in the fixed shares."""
        n_dim = self.centre.shape[1]
        part = rng.choice(3, n, p=_SHARES)
        k = rng.choice(len(self.log_share), n, p=np.exp(self.log_share))
        g = rng.standard_normal((n, n_dim))
        stretch = np.sqrt(self.dof / rng.chisquare(self.dof, n)) * np.where(part == 1, _WIDE, 1.0)
        z = g.copy()
        for i in range(len(self.centre)):
            own = (k == i) & (part < 2)
            z[own] = self.centre[i] + stretch[own, None] * (g[own] @ self.factor[i].T)
        return z

    def log_prob(self, z):
        """Return the log-density (n,) of what `draw` draws."""
        n_dim = z.shape[1]
        squares = self._squares(z)
        close = np.log(_SHARES[0]) + _log_t(squares, n_dim, self.dof)
        wide = _log_t(squares / _WIDE**2, n_dim, self.dof) - n_dim * np.log(_WIDE)
        learnt = _log_sum(np.logaddexp(close, np.log(_SHARES[1]) + wide) + self._scale)
        return np.logaddexp(learnt, np.log(_SHARES[2]) + log_normal(z))

    def responsibilities(self, z):
        """Return the share (K, n) of every component in z, and t's weight of every point."""
        n_dim = z.shape[1]
        squares = self._squares(z)
        log_r = _log_t(squares, n_dim, self.dof) + self._scale
        return np.exp(log_r - _log_sum(log_r)), (self.dof + n_dim) / (self.dof + squares)

    @property
    def _scale(self):
        """Log-share over volume of every component, shape (K, 1)."""
        volume = np.log(np.diagonal(self.factor, axis1=1, axis2=2)).sum(1)
        return (self.log_share - volume)[:, None]

    def _squares(self, z):
        """Return the squared distance (K, n) of z from every component, in its own units."""
        inverse = np.linalg.inv(self.factor)
        columns = np.ascontiguousarray(z.T)  # sums over a short last axis are slow
        away = (f @ (columns - c[:, None]) for f, c in zip(inverse, self.centre, strict=True))
        return np.stack([np.einsum("dn,dn->n", y, y) for y in away])


@dataclass(frozen=True, eq=False)
class Exact:
    """Finds the references of the objects of one problem.

    Parameters
    ----------
    priors : dict of str to frozen scipy.stats distribution
    simulate : callable
        ``simulate(theta (n, D)) -> (n, L)``, noise-free, in numpy.
    seed : int
    """

    priors: dict
    simulate: object
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng([self.seed, 1])
        z = rng.standard_normal((N_BANK, len(self.priors)))
        curves = np.concatenate([self.simulate(self.theta(part)) for part in _chunks(z)])
        object.__setattr__(self, "_bank", (z, curves, curves**2))

    def theta(self, z):
        """Return the parameters (n, D) of latent z (n, D)."""
        u = ndtr(np.clip(z, -_Z_MAX, _Z_MAX))  # further out, u is 0 or 1
        return np.stack([p.ppf(u[:, d]) for d, p in enumerate(self.priors.values())], 1)

    def latent(self, theta):
        """Return z (D,) of parameters (D,)."""
        u = np.array([p.cdf(theta[d]) for d, p in enumerate(self.priors.values())])
        return ndtri(np.clip(u, 1e-9, 1 - 1e-9))

    def best_chi2(self, x, err, mask=None, truth=None):
        """Return the chi2 of the best mode; arguments as for a call."""
        data = _Data.of(x, err, mask)
        modes, _ = self._modes(data, self._starts(self._bank_score(data), truth))
        return float(-2 * self.log_density(modes[:1], data)[1][0])

    def __call__(self, x, err, mask=None, truth=None):
        """Return the `Reference` of data x (L,) with errors err (L,) of real points mask (L,).

        ``truth`` (D,), where it is known, is one more place to start from.
        """
        began = time.perf_counter()
        data = _Data.of(x, err, mask)
        rng = np.random.default_rng([self.seed, 2])
        score = self._bank_score(data)
        modes = self._modes(data, self._starts(score, truth))
        z, weights = self._learnt(data, score, modes, rng)
        return _reference(self.theta(z), weights, data, len(modes[0]), began)

    def log_density(self, z, data):
        """Return log prior and log likelihood without constants, each (n,), of z (n, D)."""
        parts = [
            -0.5 * ((data.x - self.simulate(self.theta(part))) ** 2 @ data.precision)
            for part in _chunks(z)
        ]
        return log_normal(z), np.concatenate(parts)

    # --- places ----------------------------------------------------------------------------------

    def _bank_score(self, data):
        """Return the log-likelihood (N_BANK,) of the prior draws: two products with the curves."""
        _, curves, squares = self._bank
        linear = curves @ (data.precision * data.x)
        chi2 = squares @ data.precision - 2 * linear + data.precision @ data.x**2
        return -0.5 * chi2

    def _starts(self, score, truth, n_best=12, n_far=12):
        """Return where to descend from: the best prior draws, and those best far from them."""
        z = self._bank[0]
        order = np.argsort(score)[::-1][:4000]
        chosen = list(order[:n_best])
        apart = z[order]
        for _ in range(n_far):
            distance = np.linalg.norm(apart[:, None] - z[chosen], axis=2).min(1)
            far = order[distance > 0.5]
            if not len(far):
                break
            chosen.append(far[0])
        starts = z[chosen]
        return starts if truth is None else np.concatenate([self.latent(truth)[None], starts])

    def _modes(self, data, starts, n_steps=30):
        """Return different modes (M, D), best first, and their precisions (M, D, D)."""
        z, damping = starts.copy(), np.full(len(starts), 1e-2)
        value = self._energy(z, data)
        for _ in range(n_steps):
            gradient, hessian = self._slopes(z, data)
            scale = np.einsum("mdd->md", hessian)[:, :, None] * np.eye(z.shape[1])
            step = np.linalg.solve(hessian + damping[:, None, None] * scale, -gradient[..., None])
            trial = np.clip(z + step[..., 0], -6, 6)
            there = self._energy(trial, data)
            better = there < value
            gain = np.where(better, value - there, 0.0)
            z[better], value[better] = trial[better], there[better]
            damping = np.where(better, damping / 5, damping * 5).clip(1e-12, 1e8)
            if better.any() and gain.max() < 1e-4:
                break
        hessian = self._slopes(z, data)[1]
        return _different(z, value, hessian)

    def _energy(self, z, data):
        prior, like = self.log_density(z, data)
        return -prior - like

    def _slopes(self, z, data, h=1e-6):
        """Return gradient (m, D) and Gauss-Newton Hessian (m, D, D) of the energy."""
        m, n_dim = z.shape
        ends = z[:, None, None] + h * np.stack([np.eye(n_dim), -np.eye(n_dim)])
        curves = self.simulate(self.theta(ends.reshape(-1, n_dim))).reshape(m, 2, n_dim, -1)
        jacobian = (curves[:, 0] - curves[:, 1]) / (2 * h)
        residual = data.x - self.simulate(self.theta(z))
        weighted = jacobian * data.precision
        gradient = z - np.einsum("mdl,ml->md", weighted, residual)
        return gradient, np.eye(n_dim) + np.einsum("mdl,mel->mde", weighted, jacobian)

    # --- draws -----------------------------------------------------------------------------------

    def _learnt(self, data, score, modes, rng, n_rounds=3, n_more=4):
        """Return the final draws and their weights: more rounds where they are not sound yet."""
        mixture = self._first(score, modes)
        z, w = self._weighted(mixture, data, N_LEARN, rng)
        for i in range(n_rounds + n_more):
            n_components = 8 if i < n_rounds else 16
            close = _fit(z, w.values, n_components, rng)
            mixture = close.joined(_fit(z, w.flat, n_components // 2, rng), _FLAT_SHARE)
            last = i + 1 >= n_rounds
            z, w = self._weighted(mixture, data, N_FINAL if last else N_LEARN, rng)
            if last and _sound(self.theta(z), w.values):
                break
        return z, w

    def _first(self, score, modes):
        """Return t of few degrees at every mode, narrow and wide, and one for the bank's share."""
        centres, precisions = modes
        covariance = np.linalg.inv(precisions)
        factors = [np.linalg.cholesky(c) for c in covariance]
        bank = normalised(score)
        if ess(bank) > 20:
            z = self._bank[0]
            middle = bank @ z
            spread = ((z - middle) * bank[:, None]).T @ (z - middle)
            factors.append(np.linalg.cholesky(spread + 1e-10 * np.eye(z.shape[1])))
            centres = np.concatenate([centres, middle[None]])
        factor = np.stack([scale * f for scale in (1.0, 2.0) for f in factors])
        n = len(factor)
        return Mixture(np.full(n, -np.log(n)), np.concatenate([centres, centres]), factor, dof=3.0)

    def _weighted(self, mixture, data, n, rng):
        z = mixture.draw(n, rng)
        prior, like = self.log_density(z, data)
        log_q = mixture.log_prob(z)
        return z, _Weights(prior + like - log_q, 0.5 * (prior + like) - log_q, like)


@dataclass(frozen=True)
class _Data:
    x: np.ndarray
    precision: np.ndarray  # 0 for a point that is missing
    constant: float

    @classmethod
    def of(cls, x, err, mask):
        mask = np.ones(x.shape, bool) if mask is None else mask
        constant = -np.log(err[mask]).sum() - 0.5 * mask.sum() * np.log(2 * np.pi)
        precision = np.where(mask, 1 / np.where(mask, err, 1.0) ** 2, 0.0)
        return cls(np.where(mask, x, 0.0), precision, constant)


@dataclass(frozen=True)
class _Weights:
    values: np.ndarray  # log-weights (n,)
    flat: np.ndarray  # for the square root of the posterior
    log_like: np.ndarray  # without constants (n,)


def log_normal(z):
    """Return the log-density (n,) of the standard normal at z (n, D)."""
    return -0.5 * np.einsum("nd,nd->n", z, z) - 0.5 * z.shape[1] * np.log(2 * np.pi)


def normalised(log_weights):
    """Return weights that sum to one."""
    w = np.exp(log_weights - log_weights.max())
    return w / w.sum()


def ess(weights):
    """Return Kish's effective sample size of normalised weights."""
    return 1 / (weights**2).sum()


def _reference(theta, weights, data, n_modes, began):
    log_weights = weights.values
    w = normalised(log_weights)
    mean, sd, mean_error, sd_error = _moments(theta, w)
    log_z = _log_sum(log_weights) - np.log(len(log_weights)) + data.constant
    return Reference(
        mean=mean,
        sd=sd,
        kurtosis=w @ (theta - mean) ** 4 / sd**4,
        mean_error=mean_error,
        sd_error=sd_error,
        log_evidence=float(log_z),
        ess=float(ess(w)),
        chi2=float(-2 * weights.log_like.max()),
        n_modes=n_modes,
        seconds=time.perf_counter() - began,
    )


def _moments(theta, w):
    """Return mean and sd, and the errors of both, in units of the sd, each (D,)."""
    mean = w @ theta
    sd = np.sqrt(w @ (theta - mean) ** 2)
    away = (theta - mean) / sd
    mean_error, sd_error = np.sqrt(w**2 @ away**2), 0.5 * np.sqrt(w**2 @ (away**2 - 1) ** 2)
    return mean, sd, mean_error, sd_error


def _sound(theta, log_weights):
    w = normalised(log_weights)
    errors = _moments(theta, w)[2:]
    return ess(w) >= ESS_SOUND and np.max(errors) <= ERROR_SOUND


def _different(z, value, hessian, most=8):
    """Return the modes that are more than 3 sd from every better one, and matter."""
    chosen = []
    for i in np.argsort(value):
        if value[i] > value.min() + _LOG_MASS or len(chosen) == most:
            break
        away = [(z[i] - z[j]) @ hessian[j] @ (z[i] - z[j]) > 9 for j in chosen]
        if all(away):
            chosen.append(i)
    return z[chosen], hessian[chosen]


def _fit(z, log_weights, n_components, rng, n_points=2000, n_steps=12):
    """Return a mixture of t fitted by EM to draws resampled by their weights, tempered if few."""
    weights = _tempered(log_weights)
    points = z[_resample(weights, n_points, rng)]
    spread = np.cov(points.T) + 1e-14 * np.eye(z.shape[1])
    start = points[rng.choice(n_points, n_components, replace=False)]
    factor = np.linalg.cholesky(spread / n_components ** (2 / z.shape[1]))
    mixture = Mixture(
        np.full(n_components, -np.log(n_components)), start, np.stack([factor] * n_components)
    )
    for _ in range(n_steps):
        mixture = _step(mixture, points, 1e-4 * spread)
    return mixture


def _step(mixture, points, floor):
    r, u = mixture.responsibilities(points)
    mass, ru = r.sum(1), r * u
    alive = mass > 5 * points.shape[1]
    mass, ru = mass[alive], ru[alive]
    centre = ru @ points / ru.sum(1)[:, None]
    away = [points - c for c in centre]
    covariance = [(w * y.T) @ y / m for w, y, m in zip(ru, away, mass, strict=True)]
    factor = np.linalg.cholesky(np.stack(covariance) + floor)
    return Mixture(np.log(mass / mass.sum()), centre, factor)


def _tempered(log_weights, wanted=500.0):
    """Return normalised weights to the largest power that leaves enough of them."""
    low, high = 0.0, 1.0
    if ess(normalised(log_weights)) >= wanted:
        return normalised(log_weights)
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (
            (middle, high) if ess(normalised(middle * log_weights)) >= wanted else (low, middle)
        )
    return normalised(low * log_weights)


def _resample(weights, n, rng):
    comb = (np.arange(n) + rng.random()) / n
    return np.searchsorted(np.cumsum(weights), comb * weights.sum()).clip(max=len(weights) - 1)


def _log_sum(values):
    """Return the log of the sum of exponentials over the first axis."""
    top = values.max(0)
    return top + np.log(np.exp(values - top).sum(0))


def _log_t(squares, n_dim, dof):
    constant = gammaln((dof + n_dim) / 2) - gammaln(dof / 2) - 0.5 * n_dim * np.log(dof * np.pi)
    return constant - 0.5 * (dof + n_dim) * np.log1p(squares / dof)


def _chunks(z):
    return (z[i : i + _CHUNK] for i in range(0, len(z), _CHUNK))
