"""A Gaussian mixture fitted to samples, as a triangular map from the standard normal."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.arguments import whole
from nbi_plus.data.ingest import numbers
from nbi_plus.problem.prior.inversion import solve_increasing
from nbi_plus.problem.prior.marginals import LATENT_MAX, normal_log_density
from nbi_plus.problem.prior.transport import Transport

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

Array = NDArray[np.float64]
_LOG_P_MIN = -690.0  # of a tail probability: beyond |z| = 37
_N_FIT_MAX = 20_000  # samples used for the fit; more change little and cost minutes
_N_COMPONENTS_MAX = 1000  # of a mixture in a file
_SUM_OF_ONE = 1e-6  # what its weights may be off, in log
_PATIENCE = 2  # larger mixtures tried after the best one


@dataclass(frozen=True, eq=False)
class MixtureTransport(Transport):
    r"""The Knothe-Rosenblatt map of a Gaussian mixture in whitened coordinates.

    With :math:`\theta = \mu + A w` and w a mixture, each coordinate is the normal score of its
    conditional distribution function, :math:`z_d = \Phi^{-1}(F(w_d | w_{<d}))`. Its inverse is
    solved one coordinate after the other; gradients follow from the implicit function theorem.

    Parameters
    ----------
    shift, whitening : Tensor, shapes (D,), (D, D)
        The mean and the Cholesky factor A of the samples' covariance.
    log_weights, means, factors : Tensor, shapes (K,), (K, D), (K, D, D)
        The components of w, with Cholesky factors of their covariances.
    """

    shift: Tensor
    whitening: Tensor
    log_weights: Tensor
    means: Tensor
    factors: Tensor
    has_inverse = True
    differentiable = True

    @property
    def n_dim(self) -> int:
        """The number of columns of the samples."""
        return len(self.shift)

    @property
    def periods(self) -> tuple[float | None, ...]:
        """None is circular."""
        return (None,) * self.n_dim

    @property
    def support(self) -> tuple[tuple[float, float], ...]:
        """The whole line."""
        return ((-math.inf, math.inf),) * self.n_dim

    def _on(self, device: torch.device) -> MixtureTransport:
        parts = (self.shift, self.whitening, self.log_weights, self.means, self.factors)
        return MixtureTransport(*(part.to(device) for part in parts))

    def _conditional(self, d: int, residuals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the components' means (..., K) and scales (K,) of w_d given those before it."""
        centre = self.means[:, d]
        for before, residual in enumerate(residuals):
            centre = centre + self.factors[:, d, before] * residual
        return centre, self.factors[:, d, d]

    def from_latent(self, z: Tensor) -> Tensor:
        """Solve for one coordinate after the other."""
        here = self._on(z.device)
        z = z.clamp(-LATENT_MAX, LATENT_MAX)
        log_weights, residuals, w = here.log_weights, [], []
        for d in range(self.n_dim):
            centre, scale = here._conditional(d, residuals)
            w.append(_mixture_quantile(z[..., d], log_weights, centre, scale))
            residuals.append((w[d][..., None] - centre) / scale)
            log_weights = log_weights + _log_terms(residuals[d], scale)
        return here.shift + torch.stack(w, -1) @ here.whitening.T

    def _whiten(self, theta: Tensor) -> Tensor:
        centred = (theta - self.shift).reshape(-1, self.n_dim).T
        w = torch.linalg.solve_triangular(self.whitening, centred, upper=False)
        return w.T.reshape(theta.shape)

    def _forward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and the log-density of theta."""
        here = self._on(theta.device)
        w = here._whiten(theta)
        log_weights, residuals, z = here.log_weights, [], []
        for d in range(self.n_dim):
            centre, scale = here._conditional(d, residuals)
            residuals.append((w[..., d, None] - centre) / scale)
            z.append(_mixture_score(residuals[d], torch.log_softmax(log_weights, -1)))
            log_weights = log_weights + _log_terms(residuals[d], scale)
        log_prob = torch.logsumexp(log_weights, -1) - torch.log(here.whitening.diagonal()).sum()
        return torch.stack(z, -1), log_prob

    def to_latent(self, theta: Tensor) -> Tensor:
        """Return the normal scores of the conditional distribution functions."""
        return self._forward(theta)[0]

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the mixture's log-density."""
        return self._forward(theta)[1]

    def log_prob_numpy(self, theta: Array) -> Array:
        """Return the mixture's log-density."""
        with torch.no_grad():
            return self.log_prob(torch.from_numpy(theta)).numpy()

    def manifest(self) -> dict[str, Any]:
        """Return all numbers of the mixture."""
        return {
            "kind": "mixture",
            "shift": self.shift.tolist(),
            "whitening": self.whitening.tolist(),
            "log_weights": self.log_weights.tolist(),
            "means": self.means.tolist(),
            "factors": self.factors.tolist(),
        }

    def describe(self, names: Sequence[str]) -> str:
        """Return the parameters and the size of the mixture."""
        return f"{', '.join(names)} ~ mixture of {len(self.log_weights)} Gaussians"


def mixture_from_manifest(manifest: dict[str, Any]) -> MixtureTransport:
    """Return the transport that `MixtureTransport.manifest` describes."""
    names = ("shift", "whitening", "log_weights", "means", "factors")
    parts = [torch.tensor(manifest[name], dtype=torch.float64) for name in names]
    made = MixtureTransport(*parts)
    d, k = len(made.shift), len(made.log_weights)
    shapes = [(d,), (d, d), (k,), (k, d), (k, d, d)]
    sound = [tuple(part.shape) for part in parts] == shapes and 0 < k <= _N_COMPONENTS_MAX
    if sound:
        triangles = torch.cat([made.whitening[None], made.factors])
        sound = (
            all(bool(part.isfinite().all()) for part in parts)
            and bool((triangles.diagonal(dim1=1, dim2=2) > 0).all())
            and bool((triangles == triangles.tril()).all())
            and abs(float(made.log_weights.logsumexp(0))) < _SUM_OF_ONE
        )
    if not sound:
        raise ValueError(
            f"prior must be a mixture of at most {_N_COMPONENTS_MAX} Gaussians with finite means, "
            f"triangular factors and weights that sum to one, but its parts are of the shapes "
            f"{[tuple(part.shape) for part in parts]}, or hold other numbers. Pass the prior again."
        )
    return made


def _mixture_score(residual: Tensor, log_weights: Tensor) -> Tensor:
    """Return the normal score of a mixture's distribution function; last axis: components."""
    lower = torch.logsumexp(log_weights + torch.special.log_ndtr(residual), -1)
    upper = torch.logsumexp(log_weights + torch.special.log_ndtr(-residual), -1)
    left = torch.special.ndtri(torch.exp(lower.clamp(_LOG_P_MIN, -0.3)))
    right = -torch.special.ndtri(torch.exp(upper.clamp(_LOG_P_MIN, -0.3)))
    return torch.where(lower < upper, left, right)


def _mixture_quantile(z: Tensor, log_weights: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Return w with score z under a mixture (..., K), differentiable in all arguments.

    The quantile of a mixture lies between those of its components, so the bracket is exact.
    """
    log_weights = torch.log_softmax(log_weights, -1)
    with torch.no_grad():
        w = _solve_quantile(z, log_weights, centre, scale)
    residual = (w[..., None] - centre) / scale
    value = _mixture_score(residual, log_weights)
    log_density = torch.logsumexp(log_weights + _log_terms(residual, scale), -1)
    slope = torch.exp(log_density - normal_log_density(value)).detach()
    return w + (z - value) / slope


def _log_terms(residual: Tensor, scale: Tensor) -> Tensor:
    return normal_log_density(residual) - torch.log(scale)


def _solve_quantile(z: Tensor, log_weights: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Return w with score z, from the logarithm of the smaller tail."""
    side = torch.where(z < 0, torch.ones_like(z), -1.0)  # mirrored, all targets are lower tails
    target = torch.special.log_ndtr(side * z)
    centre = side[..., None] * centre

    def log_tail(w: Tensor) -> tuple[Tensor, Tensor]:
        residual = (w[..., None] - centre) / scale
        value = torch.logsumexp(log_weights + torch.special.log_ndtr(residual), -1)
        log_terms = log_weights + _log_terms(residual, scale)
        return value, torch.exp(torch.logsumexp(log_terms, -1) - value)

    each = centre + scale * (side * z)[..., None]
    low, high = each.amin(-1), each.amax(-1)
    start = (torch.exp(log_weights) * each).sum(-1).clamp(low, high)
    return side * solve_increasing(log_tail, target, low, high, start)


def fit_prior_mixture(samples: ArrayLike, max_components: int, seed: int) -> MixtureTransport:
    """Fit a Gaussian mixture to whitened samples; its size minimises the BIC.

    Sizes 1, 2, ... are tried until two in a row do not improve. A component must stand for at
    least ``5 (D + 1)`` samples, so that repeated rows of a Markov chain make no spikes.

    Parameters
    ----------
    samples : array_like, shape (n, D)
        At least 10 (D + 1) finite rows that vary in D independent directions.
    max_components : int
        The largest mixture tried.
    seed : int
        Of the initialisation; the global generators are not used.

    Returns
    -------
    MixtureTransport
    """
    whole("max_components", max_components)
    samples = _checked(samples)
    n_rows, n_dim = samples.shape
    if n_rows > _N_FIT_MAX:
        kept = np.random.default_rng(seed).choice(n_rows, _N_FIT_MAX, replace=False)
        samples, n_rows = samples[kept], _N_FIT_MAX
    shift, whitening = samples.mean(0), _cholesky(samples)
    w = np.linalg.solve(whitening, (samples - shift).T).T
    best, best_bic, best_size = None, math.inf, 0
    for size in range(1, max_components + 1):
        fitted = _fit_one(w, size, seed)
        bic = fitted.bic(w)
        crowded = fitted.weights_.min() * n_rows >= 5 * (n_dim + 1)
        if best is None or (crowded and bic < best_bic):
            best, best_bic, best_size = fitted, bic, size
        if size - best_size >= _PATIENCE:
            break
    arrays = (shift, whitening, np.log(best.weights_), best.means_)
    factors = np.linalg.cholesky(best.covariances_)
    return MixtureTransport(*(torch.from_numpy(array) for array in (*arrays, factors)))


def _checked(samples: ArrayLike) -> Array:
    """Return samples as a new array, or say why they cannot be fitted."""
    samples = numbers("samples", samples)
    if samples.ndim != 2 or len(samples) < 10 * (samples.shape[1] + 1):
        raise ValueError(
            "samples must have shape (n, D) with n at least 10 (D + 1), but has "
            f"{samples.shape}. Give one row per draw, and more of them."
        )
    bad = ~np.isfinite(samples).all(1)
    if bad.any():
        raise ValueError(
            f"samples must be finite, but {int(bad.sum())} of {len(samples)} rows are not. "
            "Remove them."
        )
    return samples


def _cholesky(samples: Array) -> Array:
    """Return the Cholesky factor of the covariance, computed at unit scales."""
    scale = samples.std(0)
    correlation = (
        np.atleast_2d(np.corrcoef(samples.T)) if (np.ptp(samples, axis=0) > 0).all() else None
    )
    if correlation is None or np.linalg.eigvalsh(correlation)[0] < 1e-10:
        raise ValueError(
            "samples must vary in as many independent directions as they have columns, but have "
            f"standard deviations {[float(f'{value:.3g}') for value in scale]} and are degenerate. "
            "Drop constant or dependent columns (see fixed and derived)."
        )
    return scale[:, None] * np.linalg.cholesky(correlation)


def _fit_one(w: Array, size: int, seed: int) -> GaussianMixture:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(size, random_state=seed, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a slow tail of EM is still a density
        return mixture.fit(w)
