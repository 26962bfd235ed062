r"""Radial velocities of a star that planets move.

Conventions: :math:`v = K [\cos(\nu + \omega) + e \cos\omega]` is positive when the star recedes,
:math:`\omega` is the argument of periastron of the star's orbit, and at conjunction,
:math:`\nu + \omega = \pi/2`, the planet stands before the star.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.models import kepler
from nbi_plus.models.door import both_kinds, columns, since

_PLANET = ("period", "t_conj", "sqrt_e_cos_w", "sqrt_e_sin_w", "K")
_TREND = ("gamma", "dvdt", "curv")


@dataclass(frozen=True)
class Orbits:
    r"""Radial velocities of one or several planets on Keplerian orbits that do not interact.

    A planet has five parameters: its period, a time of conjunction, :math:`\sqrt e \cos\omega`,
    :math:`\sqrt e \sin\omega` and the semi-amplitude K. They are regular at e = 0, and so is the
    gradient. Orbits with e >= 1 have velocities NaN.

    Attributes
    ----------
    n_planets : int
    n_trend : int
        How many of the coefficients gamma (velocity), dvdt (velocity per time) and curv (velocity
        per time squared) of :math:`\gamma + \dot v\,(t - t_b) + c\,(t - t_b)^2` follow in theta.
    time_base : float
        :math:`t_b`, on the clock of t.

    Examples
    --------
    >>> import numpy as np
    >>> star = Orbits(n_trend=1)
    >>> star.names
    ('period', 't_conj', 'sqrt_e_cos_w', 'sqrt_e_sin_w', 'K', 'gamma')
    >>> star(np.array([[4.0, 0.0, 0.0, 0.0, 10.0, 2.0]]), np.arange(4.0)).round(6)
    array([[ 2., -8.,  2., 12.]])
    """

    n_planets: int = 1
    n_trend: int = 0
    time_base: float = 0.0

    def __post_init__(self) -> None:
        if self.n_planets < 1:
            raise ValueError(f"n_planets must be 1 or more, but is {self.n_planets}.")
        if self.n_trend not in range(len(_TREND) + 1):
            raise ValueError(
                f"n_trend must be 0 to {len(_TREND)}, as many as there are of {_TREND}, "
                f"but is {self.n_trend}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of theta; with several planets they end in the planet's number."""
        endings = [f"_{i + 1}" for i in range(self.n_planets)] if self.n_planets > 1 else [""]
        planets = [name + ending for ending in endings for name in _PLANET]
        return (*planets, *_TREND[: self.n_trend])

    @both_kinds
    def __call__(self, theta: Tensor, t: Tensor) -> Tensor:
        """Return radial velocities.

        Parameters
        ----------
        theta : ndarray or Tensor, shape (n, P)
            In the order of `names`.
        t : ndarray or Tensor, shape (L,) or (n, L)

        Returns
        -------
        ndarray or Tensor, shape (n, L)
            In the units of K.
        """
        values = columns(theta, self.names)
        planets = (values[i : i + 5] for i in range(0, 5 * self.n_planets, 5))
        velocity = sum(_reflex(*planet, t) for planet in planets)
        if self.n_trend:
            x = (t - self.time_base).to(theta.dtype)
            velocity = velocity + sum(c * x**i for i, c in enumerate(values[5 * self.n_planets :]))
        return velocity


def _reflex(
    period: Tensor, t_conj: Tensor, root_x: Tensor, root_y: Tensor, k: Tensor, t: Tensor
) -> Tensor:
    r"""Return the velocities (n, L) that one planet makes, all its parameters being (n, 1).

    They are the rate of :math:`Y = (1 - \beta e_x^2) \sin F + \beta e_x e_y \cos F - e_y`, the
    planet's place along the line of sight, times :math:`K \sqrt{1 - e^2}`.
    """
    e, ex, ey = kepler.eccentricity(root_x, root_y)
    ratio = kepler.axis_ratio(e)
    start = kepler.longitude_of_conjunction(e, ex, ey)
    f = kepler.eccentric_longitude(
        torch.addcmul(start, since(t, t_conj), 2.0 * math.pi / period), ex, ey
    )
    sin, cos = torch.sin(f), torch.cos(f)
    beta, scale = 1.0 / (1.0 + ratio), k * ratio
    rate = scale * (1.0 - beta * ex * ex) * cos - scale * beta * ex * ey * sin
    return rate / (1.0 - ex * cos - ey * sin)
