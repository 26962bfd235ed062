"""Microlensing by a point lens: light curves of a point source, and a season of such events.

All functions take numpy arrays or torch tensors and return the same kind; in torch they carry
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import loguniform, uniform
from torch import Tensor

from nbi_plus.data.observations import Observations
from nbi_plus.models.door import Array, both_kinds, columns, root, since
from nbi_plus.models.parallax import AnnualParallax
from nbi_plus.problem.prior.prior import Prior


def excess_magnification(u: Array) -> Array:
    r"""Return the magnification of a point source by a point lens, less one.

    .. math:: A - 1 = \frac{4}{s\,(u^2 + 2 + s)}, \qquad s = |u| \sqrt{u^2 + 4}

    has no cancellation: it goes to :math:`1/u` for small and to :math:`2/u^4` for large u.

    Parameters
    ----------
    u : ndarray or Tensor, shape (...)
        Separation of lens and source in Einstein radii, of either sign.

    Returns
    -------
    ndarray or Tensor, shape (...)
        Infinite for a perfect alignment in torch; numpy also warns of it.
    """
    square = u * u
    s = abs(u) * root(square + 4.0)
    return 4.0 / s / (square + 2.0 + s)


def _excess_of_square(square: Array) -> Array:
    """Return the same of squared separations: half the work, for separations above 1e-150."""
    s = root(square * (square + 4.0))
    return 4.0 / (s * (square + 2.0 + s))


def magnification(u: Array) -> Array:
    r"""Return the magnification :math:`A = (u^2 + 2) / (|u| \sqrt{u^2 + 4})`.

    Parameters
    ----------
    u : ndarray or Tensor, shape (...)
        Separation of lens and source in Einstein radii, of either sign.

    Returns
    -------
    ndarray or Tensor, shape (...)

    Examples
    --------
    >>> float(magnification(np.array(1.0)) - 3 / 5**0.5)
    0.0
    """
    return 1.0 + excess_magnification(u)


def point_lens(theta: Array, t: Array) -> Array:
    r"""Return light curves :math:`f_s A(u) + f_b` with :math:`u^2 = u_0^2 + ((t - t_0)/t_E)^2`.

    Parameters
    ----------
    theta : ndarray or Tensor, shape (n, 3) or (n, 5)
        t0, u0, tE and, of the second kind, the fluxes fs of the source and fb of the blend;
        without them the source shines alone with flux 1.
    t : ndarray or Tensor, shape (L,) or (n, L)
        Times, in the units of t0 and tE.

    Returns
    -------
    ndarray or Tensor, shape (n, L)

    Examples
    --------
    >>> point_lens(np.array([[50.0, 1.0, 10.0]]), np.array([50.0, 1e6])).round(4)
    array([[1.3416, 1.    ]])
    """
    n_params = theta.shape[-1]
    if n_params not in (3, 5):
        raise ValueError(
            "theta must have shape (n, 3) or (n, 5) for (t0, u0, tE) or (t0, u0, tE, fs, fb), "
            f"but has {tuple(theta.shape)}."
        )
    t0, u0, te = (theta[..., i : i + 1] for i in range(3))
    phase = (t - t0) / te
    return _flux(u0 * u0 + phase * phase, theta[..., 3:])


def _flux(square: Array, fluxes: Array) -> Array:
    """Return light curves of squared separations (n, L) and of fs and fb (n, 2), or (n, 0)."""
    excess = _excess_of_square(square)
    if not fluxes.shape[-1]:
        return 1.0 + excess
    source, blend = fluxes[..., :1], fluxes[..., 1:]
    # the baseline apart from the excess: far from the peak nothing is lost to rounding
    return (source + blend) + source * excess


@dataclass(frozen=True)
class PointLensParallax:
    r"""Light curves of a point lens as seen from the Earth on its orbit.

    In the geocentric frame of Gould (2004, ApJ 606, 319) t0, u0 and tE are those of an Earth that
    moves straight on as at ``t0_par``; with the displacement (N, E) of the Sun since then, in au,

    .. math:: u^2 = \left(\frac{t - t_0}{t_E} + \pi_{E,N} N + \pi_{E,E} E\right)^2
                    + \left(u_0 + \pi_{E,N} E - \pi_{E,E} N\right)^2 .

    The first call tabulates the orbit of the Earth, which takes a fraction of a second; a copy or
    a pickle leaves the table behind.

    Attributes
    ----------
    ra, dec : float
        The event in degrees (ICRS).
    t0_par : float
        Reference time, on the clock of t.
    offset : float
        What makes full BJD (TDB) of the clock of t and t0, such as 2450000. Times in full BJD must
        be float64.
    reach : float
        Days before and after ``t0_par`` that t may hold.

    Examples
    --------
    >>> event = PointLensParallax(ra=270.0, dec=-30.0, t0_par=8000.0, offset=2450000.0)
    >>> event(np.array([[8000.0, 0.1, 90.0, 0.3, -0.2]]), np.array([7900.0, 8000.0])).round(3)
    array([[ 1.19 , 10.037]])
    """

    ra: float
    dec: float
    t0_par: float
    offset: float = 0.0
    reach: float = 3652.5

    def __post_init__(self) -> None:
        _ = self._parallax  # which checks the attributes

    @cached_property
    def _parallax(self) -> AnnualParallax:
        return AnnualParallax(self.ra, self.dec, self.t0_par + self.offset, self.reach)

    @both_kinds
    def __call__(self, theta: Tensor, t: Tensor) -> Tensor:
        """Return light curves.

        Parameters
        ----------
        theta : ndarray or Tensor, shape (n, 5) or (n, 7)
            t0, u0, tE, piEN, piEE and, of the second kind, fs and fb as in `point_lens`.
        t : ndarray or Tensor, shape (L,) or (n, L)
            Times in days, data alone: no gradient passes through the Earth's orbit to them.

        Returns
        -------
        ndarray or Tensor, shape (n, L)
        """
        names = ("t0", "u0", "tE", "piEN", "piEE", "fs", "fb")
        t0, u0, te, to_north, to_east, *_ = columns(theta, names[:5], names)
        full = t.detach().double().cpu().numpy() + self.offset
        north, east = torch.from_numpy(self._parallax.offsets(full)).to(theta).unbind(-1)
        along = since(t, t0) / te + to_north * north + to_east * east
        across = u0 + to_north * east - to_east * north
        return _flux(along * along + across * across, theta[..., 5:])


@dataclass(frozen=True)
class Season:
    """A season of photometry of point-lens events: when it looks, how well, and at what.

    The errors of an event scatter from night to night about a level of its own, so that no two
    events, and no two points of one, are measured alike.

    Attributes
    ----------
    n_nights : int
        One point a night, at a slightly different hour.
    best_error, worst_error : float
        Range of the events' error levels, in units of the baseline flux.
    """

    n_nights: int = 60
    best_error: float = 0.05
    worst_error: float = 0.3

    @property
    def t(self) -> NDArray[np.float64]:
        """Times of the points in days, shape (n_nights,)."""
        hours = np.random.default_rng(0).uniform(-0.2, 0.2, self.n_nights)
        return np.arange(self.n_nights) + hours

    @property
    def prior(self) -> Prior:
        """What events there are: they peak within the season and last days to weeks."""
        return Prior(
            {
                "t0": uniform(0.3 * self.n_nights, 0.4 * self.n_nights),
                "u0": uniform(0.15, 0.85),
                "tE": loguniform(4.0, 20.0),
            },
            labels={"t0": r"$t_0$", "u0": r"$u_0$", "tE": r"$t_\mathrm{E}$"},
            units={"t0": "d", "tE": "d"},
        )

    def errors(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return standard deviations of n events, shape (n, n_nights)."""
        level = loguniform(self.best_error, self.worst_error).rvs((n, 1), random_state=rng)
        return level * rng.lognormal(0.0, 0.25, (n, self.n_nights))

    def observe(self, n: int, seed: int = 0) -> tuple[Observations, NDArray[np.float64]]:
        """Return simulated data of n events of the prior, and their parameters (n, 3)."""
        rng = np.random.default_rng(seed)
        theta = self.prior.sample(n, rng)
        error = self.errors(n, rng)
        flux = point_lens(theta, self.t) + error * rng.standard_normal(error.shape)
        ids = [f"event {i:04d}" for i in range(n)]
        return Observations.from_arrays(flux, error, t=self.t, ids=ids), theta
