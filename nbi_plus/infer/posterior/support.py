"""Support: how much of a posterior can lie where an earlier prior allowed no draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from nbi_plus.problem.prior.prior import Prior

Array = NDArray[np.float64]

MISSING_MAX = 0.01  # of a posterior outside the support of its draws
_OUTERMOST = 0.1  # of the posterior next to an edge, from which its tail is extrapolated
_SURE = 0.95


def missing_share(samples: Array, weights: Array, ess: Array, edges: Array, prior: Prior) -> Array:
    r"""Return a bound (b,) on the share of posteriors beyond the edges of their draws.

    Draws cannot show what lies where there are none, but a posterior that matters beyond an edge is
    piled up in front of it. In the latent coordinate of the new prior, where that prior is regular
    and decays, take the outermost tenth of the weight before the edge and cut it half way: of the
    two halves, of equal width, the outer one holds :math:`m_0` and the inner one :math:`m_1`. Bins
    of equal width of a log-concave density hold masses whose ratios never grow outwards (Prekopa),
    so that beyond the edge there is at most :math:`m_0 r + m_0 r^2 + \dots` with
    :math:`r = m_0 / m_1`, that is :math:`m_0^2 / (m_1 - m_0)`, and no bound where
    :math:`m_0 \ge m_1`: the density does not fall towards the edge. For a Gaussian 2.6 standard
    deviations from its cut this comes to one percent, of which one half is really there.

    Masses are known to a few draws: each edge is judged by the upper 95 % limit of :math:`m_0`
    (Clopper and Pearson), and the sum over edges by the masses themselves. A separate mode outside
    is not seen, as nowhere.

    Parameters
    ----------
    samples : ndarray, shape (b, S, D)
    weights : ndarray, shape (b, S)
        Under the new prior, normalised.
    ess : ndarray, shape (b,)
    edges : ndarray, shape (b, D, 2)
        The box that the draws come from; infinite where there is no edge.
    prior : Prior
        The new one, with an inverse.
    """
    sums, worst = np.zeros(len(samples)), np.zeros(len(samples))
    reach = box_of(prior)
    with np.errstate(invalid="ignore"):
        z = prior.to_latent(samples)
    for d in range(samples.shape[2]):
        for side, sign in ((0, 1.0), (1, -1.0)):
            beyond = sign * edges[:, d, side] > sign * reach[d, side]
            rows = np.flatnonzero(beyond & np.isfinite(edges[:, d, side]) & (weights.sum(1) > 0))
            for i in rows:  # few objects have an edge to look at, and sorting is all there is to do
                at_edge = samples[i].copy()
                at_edge[:, d] = edges[i, d, side]
                used = weights[i] > 0
                start = prior.to_latent(at_edge[used])[:, d]
                inward = np.clip(sign * (z[i, used, d] - start), 0.0, None)
                likely, most = beyond_edge(inward, weights[i, used], float(ess[i]))
                sums[i] += likely
                worst[i] = max(worst[i], most)
    bound = np.maximum(sums, worst)
    return 1.0 - 1.0 / (1.0 + bound)


def beyond_edge(inward: Array, weights: Array, ess: float) -> tuple[float, float]:
    """Return the mass beyond an edge in terms of that before it: as estimated, and at most.

    ``inward`` (n,) are the distances of draws from the edge, their weights sum to one.
    """
    order = np.argsort(inward)
    inward, weights = inward[order], weights[order]
    n_outer = min(int(np.searchsorted(np.cumsum(weights), _OUTERMOST)) + 1, len(weights))
    own = weights[:n_outer]
    mass = own.sum()
    share = own[inward[:n_outer] <= 0.5 * inward[n_outer - 1]].sum() / mass
    n_draws = min(mass**2 / (own**2).sum(), max(mass * ess, 1.0))
    hits = share * n_draws
    upper = beta.ppf(_SURE, hits + 1.0, max(n_draws - hits, 1e-9))
    return tuple(mass * s**2 / (1.0 - 2.0 * s) if s < 0.5 else np.inf for s in (share, upper))


def box_of(prior: Prior) -> Array:
    """Return the support (D, 2) of a prior, with every circle cut opposite its median."""
    box, centre = prior.support, prior.from_latent(np.zeros(prior.n_dim))
    for d, period in enumerate(prior.periods):
        if period is not None:
            box[d] = centre[d] - 0.5 * period, centre[d] + 0.5 * period
    return box
