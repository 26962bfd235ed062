r"""Light curves of transits of a planet before a star whose limb is darkened by a quadratic law.

.. math:: I(\mu) / I(1) = 1 - u_1 (1 - \mu) - u_2 (1 - \mu)^2
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nbi_plus.models import kepler
from nbi_plus.models.door import Array, both_kinds, columns, since

_CIRCULAR = ("t0", "period", "k", "a", "b", "u1", "u2")
_ECCENTRIC = (*_CIRCULAR, "sqrt_e_cos_w", "sqrt_e_sin_w")
_N_NODES = 10


def limb_darkening(q1: Array, q2: Array) -> tuple[Array, Array]:
    r"""Return u1 and u2 of Kipping's q1 and q2 (2013, MNRAS 435, 2152).

    A law is physical, positive and brightest at the centre, just where both q are in [0, 1]:
    :math:`u_1 = 2 \sqrt{q_1} q_2`, :math:`u_2 = \sqrt{q_1} (1 - 2 q_2)`.

    Parameters
    ----------
    q1, q2 : ndarray or Tensor, shape (...)

    Returns
    -------
    u1, u2 : ndarray or Tensor, shape (...)

    Examples
    --------
    >>> limb_darkening(0.25, 0.5)
    (0.5, 0.0)
    """
    root = q1**0.5
    return 2.0 * root * q2, root * (1.0 - 2.0 * q2)


def quadratic_transit(theta: Array, t: Array) -> Array:
    r"""Return light curves relative to the star alone.

    Parameters
    ----------
    theta : ndarray or Tensor, shape (n, 7) or (n, 9)
        The time t0 of inferior conjunction, the period, the radius k of the planet and the
        semi-major axis a in stellar radii, the impact parameter b at conjunction, u1 and u2; of
        an eccentric orbit also :math:`\sqrt e \cos\omega` and :math:`\sqrt e \sin\omega` of the
        star's periastron, as in `radial_velocity`.
    t : ndarray or Tensor, shape (L,) or (n, L)
        Times, in the units of t0 and period.

    Returns
    -------
    ndarray or Tensor, shape (n, L)
        1 out of transit, also while the planet is behind the star.

    Examples
    --------
    >>> uniform = np.array([[0.0, 3.0, 0.1, 8.0, 0.3, 0.0, 0.0]])
    >>> quadratic_transit(uniform, np.array([0.0, 0.05, 1.5])).round(6)
    array([[0.99, 0.99, 1.  ]])
    """
    return Transit()(theta, t)


@dataclass(frozen=True)
class Transit:
    """Light curves of transits, averaged over exposures that are not short.

    Attributes
    ----------
    exposure : float
        Duration of an exposure, in the units of t, which is its middle.
    n_samples : int
        Instants over which an exposure is averaged, evenly spread; one does for no duration.

    Examples
    --------
    >>> theta, t = np.array([[0.0, 3.0, 0.1, 8.0, 0.3, 0.0, 0.0]]), np.array([0.0, 0.0635])
    >>> Transit()(theta, t).round(4)  # at the middle, and as the planet has just left
    array([[0.99, 1.  ]])
    >>> Transit(exposure=0.02)(theta, t).round(4)
    array([[0.99  , 0.9982]])
    """

    exposure: float = 0.0
    n_samples: int = 11

    def __post_init__(self) -> None:
        if not 0.0 <= self.exposure < math.inf:
            raise ValueError(f"exposure must be 0 or more and finite, but is {self.exposure}.")
        if self.n_samples < 1:
            raise ValueError(f"n_samples must be 1 or more, but is {self.n_samples}.")

    @both_kinds
    def __call__(self, theta: Tensor, t: Tensor) -> Tensor:
        """Return light curves; see `quadratic_transit`.

        Parameters
        ----------
        theta : ndarray or Tensor, shape (n, 7) or (n, 9)
        t : ndarray or Tensor, shape (L,) or (n, L)

        Returns
        -------
        ndarray or Tensor, shape (n, L)
        """
        if self.exposure == 0.0:
            return _light_curve(theta, t)
        count = torch.arange(self.n_samples, dtype=t.dtype, device=t.device)
        middles = ((count + 0.5) / self.n_samples - 0.5) * self.exposure
        flux = _light_curve(theta, (t[..., None] + middles).flatten(-2))
        return flux.unflatten(-1, (-1, self.n_samples)).mean(-1)


def _light_curve(theta: Tensor, t: Tensor) -> Tensor:
    """Return momentary relative fluxes (n, L)."""
    t0, period, k, a, b, u1, u2, *roots = columns(theta, _CIRCULAR, _ECCENTRIC)
    if roots:
        across, along, before = _eccentric(t0, period, a, b, *roots, t)
    else:
        across, along, before = _circular(t0, period, a, b, t)
    square = torch.addcmul(across * across, along, along)
    # NaN counts as in transit, so that an impossible orbit does not look like a quiet star
    hidden = _masked_loss(square, k, u1, u2, ~(before <= 0.0))
    return 1.0 - hidden


def _circular(
    t0: Tensor, period: Tensor, a: Tensor, b: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the planet's place on the sky, and how far it is before the star, each (n, L)."""
    turns = since(t, t0) / period
    phase = (turns - torch.round(turns)) * (2.0 * math.pi)
    before = torch.cos(phase)
    return a * torch.sin(phase), b * before, before


def _eccentric(
    t0: Tensor, period: Tensor, a: Tensor, b: Tensor, root_x: Tensor, root_y: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same on an eccentric orbit; in its plane X is across, and Y to the observer."""
    e, ex, ey = kepler.eccentricity(root_x, root_y)
    ratio = kepler.axis_ratio(e)
    turns = since(t, t0) / period
    longitude = torch.add(
        kepler.longitude_of_conjunction(e, ex, ey),
        turns - torch.round(turns),
        alpha=2.0 * math.pi,
    )
    f = kepler.eccentric_longitude(longitude, ex, ey)
    sin, cos = torch.sin(f), torch.cos(f)
    beta = 1.0 / (1.0 + ratio)
    mixed = beta * ex * ey
    x = (1.0 - beta * ey * ey) * cos + mixed * sin - ex
    y = (1.0 - beta * ex * ex) * sin + mixed * cos - ey
    # the distance at conjunction is a (1 - e^2) / (1 + e sin(omega)), of which b is a part
    return a * x, b * (1.0 + ey) / (ratio * ratio) * y, y


@both_kinds
def occulted_flux(d: Tensor, k: Tensor, u1: Tensor, u2: Tensor) -> Tensor:
    r"""Return the fraction of a star's light that a dark disc hides.

    All but one of the integrals over the hidden area are elementary. By Green's theorem that of
    :math:`\mu` runs along the rim of the planet, and what is left of it is

    .. math:: Q = \int_0^\Delta \frac{\mu^3}{1 + \mu}\,k\,(k - d \cos\eta)\,d\eta, \qquad
              \mu^2 = 1 - d^2 - k^2 + 2 d k \cos\eta,

    where the angle :math:`\eta` at the planet's centre is counted from the star's centre to where
    the rims cross, or :math:`\pi`. With :math:`\sin(\eta/2) = \sin(\Delta/2) \sin\chi` the
    integrand is smooth in :math:`\chi`, and singular near the contacts only as the cube of a small
    number, so that few Gauss-Legendre nodes do: better than 1e-7 of the flux everywhere. Agol,
    Luger & Foreman-Mackey (2020, AJ 159, 123) give Q by elliptic integrals, to rounding and with
    more cases to tell apart; here one formula holds from disjoint discs to a star all covered.

    Parameters
    ----------
    d : ndarray or Tensor, shape (...)
        Distance of the centres in stellar radii.
    k : ndarray or Tensor, shape (...)
        Radius of the disc in stellar radii.
    u1, u2 : ndarray or Tensor, shape (...)
        Limb darkening.

    Returns
    -------
    ndarray or Tensor, shape (...)

    Examples
    --------
    >>> one = np.ones(3)
    >>> occulted_flux(np.array([0.0, 0.5, 1.2]), 0.1 * one, 0 * one, 0 * one).round(6)
    array([0.01, 0.01, 0.  ])
    """
    return _masked_loss(d * d, k, u1, u2, torch.ones_like(d, dtype=torch.bool))


def _masked_loss(square: Tensor, k: Tensor, u1: Tensor, u2: Tensor, before: Tensor) -> Tensor:
    """Return hidden fractions where the discs overlap, of squared distances, and else zero."""
    touching = before & ~(square >= (1.0 + k) ** 2)
    touching, square, k, u1, u2 = torch.broadcast_tensors(touching, square, k, u1, u2)
    where = touching.flatten().nonzero().squeeze(-1)
    found = _loss(*(v.flatten().index_select(0, where) for v in (square, k, u1, u2)))
    out = torch.zeros(touching.numel(), dtype=found.dtype, device=found.device)
    return out.index_put((where,), found).view(touching.shape)


def _loss(square: Tensor, k: Tensor, u1: Tensor, u2: Tensor) -> Tensor:
    """Return hidden fractions (m,) of discs that overlap the star."""
    # the tiny summand keeps the gradient of concentric discs finite
    d = torch.sqrt(square + torch.finfo(square.dtype).tiny)
    k2 = k * k
    alpha, delta, kite = _crossing(d, k, square, k2)
    sector = k2 * delta
    area = alpha + sector - kite
    m = 1.0 - square - k2
    mu2 = sector * (m - square) + kite * (2.0 * k2 - 0.5 * m)
    mu1 = area + mu2 - _rim(d, k)
    u = u1 + 2.0 * u2
    light = (1.0 - u1 - u2) * area + (2.0 / 3.0) * u * mu1 - 0.5 * u2 * (area + mu2)
    return light / (math.pi * (1.0 - u1 / 3.0 - u2 / 6.0))


def _crossing(d: Tensor, k: Tensor, square: Tensor, k2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the half angles of the crossing at both centres, and the area of half the kite."""
    product = (1.0 + d + k) * (1.0 + k - d) * (1.0 + d - k) * (d + k - 1.0)
    apart = product > 0.0
    # twice a where: the root of what is not taken must have a finite gradient, too
    root = torch.where(apart, torch.sqrt(torch.where(apart, product, 1.0)), 0.0)
    # without the tiny number a star covered exactly, k = 1 and d = 0, would have no angle
    alpha = torch.atan2(root, 1.0 + square - k2 - torch.finfo(d.dtype).tiny)
    delta = torch.atan2(root, square + k2 - 1.0)
    return alpha, delta, 0.5 * root


def _rim(d: Tensor, k: Tensor) -> Tensor:
    """Return Q (m,) of `occulted_flux`, as a sum over nodes in chi.

    There d(eta) is 2 sin(Delta/2) cos(chi) / sqrt(1 - sin^2(Delta/2) sin^2(chi)) d(chi).
    """
    tiny = torch.finfo(d.dtype).tiny
    top = ((1.0 - d + k) * (1.0 + d - k)).clamp(min=tiny)  # mu^2 where the rim is innermost
    drop = 4.0 * d * k
    whole = top >= drop  # the planet's rim lies before the star all round
    reach = torch.where(whole, 1.0, top / torch.where(whole, 1.0, drop))  # sin^2(Delta / 2)
    fall = torch.minimum(top, drop)
    offset = k * (k - d)
    root = torch.sqrt(reach)
    total = torch.zeros_like(d)
    # a loop over the few nodes: all at once would be as many times the memory
    for sin2, weight in _NODES:
        mu2 = torch.add(top, fall, alpha=-sin2)
        mu = torch.sqrt(mu2)
        lever = torch.add(offset, fall, alpha=0.5 * sin2)
        stretch = torch.rsqrt(1.0 / sin2 - reach)
        total.addcmul_(mu2 * mu / (1.0 + mu) * lever, stretch, value=weight)
    return total * root


def _gauss_legendre(n: int) -> list[tuple[float, float]]:
    """Return sin^2 of nodes in chi from 0 to pi/2, and their weights times twice the cotangent."""
    x, w = np.polynomial.legendre.leggauss(n)
    chi = (x + 1.0) * (math.pi / 4.0)
    weights = w * (math.pi / 4.0) * 2.0 / np.tan(chi)
    return list(zip((np.sin(chi) ** 2).tolist(), weights.tolist(), strict=True))


_NODES = _gauss_legendre(_N_NODES)
