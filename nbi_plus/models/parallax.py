"""The annual parallax: how far the Earth strays from a straight path, seen from a point on the sky.

In the conventions of Gould (2004, ApJ 606, 319) that path is the Earth's own at a reference time.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from astropy.coordinates import get_body_barycentric_posvel
from astropy.time import Time
from numpy.typing import NDArray
from scipy.interpolate import BSpline, make_interp_spline

_STEP = 2.0  # days between nodes: a spline of degree 5 is then good to 1e-9 au, the Moon included


@dataclass(frozen=True)
class AnnualParallax:
    """Projected offsets of the Sun about a reference time, for one direction.

    The first call tabulates the Earth's orbit, which takes 30 microseconds a day of ``reach``, and
    keeps it with the object; a pickled or copied object makes its own again.

    Attributes
    ----------
    ra, dec : float
        Direction in degrees (ICRS).
    t_ref : float
        Reference time in full BJD (TDB).
    reach : float
        Days before and after ``t_ref`` that can be asked for.
    """

    ra: float
    dec: float
    t_ref: float
    reach: float = 3652.5

    def __post_init__(self) -> None:
        if not -90.0 <= self.dec <= 90.0:
            raise ValueError(f"dec must be in degrees from -90 to 90, but is {self.dec}.")
        first, last = self.t_ref - self.reach, self.t_ref + self.reach
        if not 2415020.0 < first <= last < 2488070.0:
            raise ValueError(
                "t_ref and reach must stay within the years 1900 to 2100 in full BJD, but span "
                f"{first:.1f} to {last:.1f}. Give times in full, or the offset of their clock."
            )

    def offsets(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far the Sun seems displaced to north and east.

        Parameters
        ----------
        t : ndarray, shape (...)
            Full BJD (TDB).

        Returns
        -------
        ndarray, shape (..., 2)
            In au; zero with zero rate at ``t_ref``.
        """
        outside = np.abs(t - self.t_ref) > self.reach
        if outside.any():
            raise ValueError(
                f"t must lie within {self.reach:g} days of {self.t_ref:.1f} in full BJD, but "
                f"reaches from {np.nanmin(t):.1f} to {np.nanmax(t):.1f}. Raise reach, or give the "
                "offset of the clock."
            )
        return self._spline(t)

    @cached_property
    def _spline(self) -> BSpline:
        """Offsets as a function of time."""
        n = int(np.ceil(self.reach / _STEP)) + 1
        t = self.t_ref + _STEP * np.arange(-n, n + 1)
        position, velocity = _earth(t)
        straight = position[n] + (t - self.t_ref)[:, None] * velocity[n]
        return make_interp_spline(t, (straight - position) @ self._axes, k=5)

    @property
    def _axes(self) -> NDArray[np.float64]:
        """Unit vectors to north and east on the sky, shape (3, 2)."""
        ra, dec = np.radians([self.ra, self.dec])
        north = [-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)]
        return np.array([north, [-np.sin(ra), np.cos(ra), 0.0]]).T

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), dataclasses.astuple(self)


def _earth(t: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return barycentric positions in au and velocities in au/day, each of shape (n, 3)."""
    time = Time(t, format="jd", scale="tdb")
    position, velocity = get_body_barycentric_posvel("earth", time, ephemeris="builtin")
    return position.xyz.to_value("au").T, velocity.xyz.to_value("au/d").T
