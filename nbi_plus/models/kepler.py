r"""Kepler's equation, solved for whole arrays in a fixed number of steps, with its gradient.

In terms of the eccentric longitude :math:`F = E + \omega` and the eccentricity vector
:math:`(e_x, e_y) = e\,(\cos\omega, \sin\omega)` nothing is singular at e = 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def eccentricity(root_x: Tensor, root_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return e, e cos(omega) and e sin(omega) of sqrt(e) cos(omega) and sqrt(e) sin(omega).

    Parameters
    ----------
    root_x, root_y : Tensor, shape (...)
        :math:`\sqrt e \cos\omega` and :math:`\sqrt e \sin\omega`. A prior uniform in the unit disc
        of these is uniform in e and omega.

    Returns
    -------
    e, ex, ey : Tensor, shape (...)
    """
    e = root_x * root_x + root_y * root_y
    # the tiny summand keeps the gradient of a circular orbit finite, and changes no other
    root = torch.sqrt(e + torch.finfo(e.dtype).tiny)
    return e, root * root_x, root * root_y


def axis_ratio(e: Tensor) -> Tensor:
    """Return sqrt(1 - e^2), NaN for orbits that are not closed."""
    return torch.sqrt((1.0 - e) * (1.0 + e))


def longitude_of_conjunction(e: Tensor, ex: Tensor, ey: Tensor) -> Tensor:
    r"""Return the mean longitude at which the planet stands before the star.

    There :math:`\nu + \omega = \pi/2`, whence
    :math:`F = \pi/2 - 2 \arctan\frac{\beta e_x}{1 + \beta e_y}` with
    :math:`\beta = 1 / (1 + \sqrt{1 - e^2})`.

    Parameters
    ----------
    e, ex, ey : Tensor, shape (...)

    Returns
    -------
    Tensor, shape (...)
        :math:`M + \omega` in radians.
    """
    beta = 1.0 / (1.0 + axis_ratio(e))
    f = 0.5 * math.pi - 2.0 * torch.atan(beta * ex / (1.0 + beta * ey))
    return f - ex * torch.sin(f) + ey * torch.cos(f)


def eccentric_longitude(longitude: Tensor, ex: Tensor, ey: Tensor) -> Tensor:
    r"""Solve :math:`F - e_x \sin F + e_y \cos F = \lambda` for F, to rounding.

    Parameters
    ----------
    longitude : Tensor, shape (..., L)
        Mean longitudes :math:`\lambda = M + \omega` in radians.
    ex, ey : Tensor, shape (..., 1)
        The eccentricity vector.

    Returns
    -------
    Tensor, shape (..., L)
        Up to whole turns; NaN where e >= 1. The gradient, of any order, is that of the solution
        and not of the steps to it.

    Examples
    --------
    >>> zero = torch.zeros(1, dtype=torch.float64)
    >>> eccentric_longitude(torch.tensor([1.0], dtype=torch.float64), zero, zero)
    tensor([1.], dtype=torch.float64)
    """
    return _Solution.apply(longitude, ex, ey)


class _Solution(torch.autograd.Function):
    """The solution F, with the gradient of the equation that it solves."""

    @staticmethod
    def forward(ctx: Any, longitude: Tensor, ex: Tensor, ey: Tensor) -> Tensor:  # noqa: ANN401
        omega = torch.atan2(ey, ex)
        mean = longitude - omega
        mean -= 2.0 * math.pi * torch.round(mean / (2.0 * math.pi))
        f = eccentric_anomaly(mean, torch.hypot(ex, ey)).add_(omega)
        ctx.save_for_backward(f, ex, ey)
        return f

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        f, ex, ey = ctx.saved_tensors
        sin, cos = torch.sin(f), torch.cos(f)
        d_longitude = gradient / (1.0 - ex * cos - ey * sin)
        d_ex = (d_longitude * sin).sum_to_size(ex.shape)
        d_ey = (-d_longitude * cos).sum_to_size(ey.shape)
        return d_longitude, d_ex, d_ey


def eccentric_anomaly(mean: Tensor, e: Tensor) -> Tensor:
    r"""Solve :math:`E - e \sin E = M` by the starter and the one step of Markley (1995).

    Celestial Mechanics and Dynamical Astronomy 63, 101: a cubic in E, made of a Pade approximant
    of the sine, is at most 5e-4 off, and a step of fifth order leaves rounding.

    Parameters
    ----------
    mean : Tensor, shape (..., L)
        Mean anomalies M in [-pi, pi].
    e : Tensor, shape (..., 1)
        Eccentricities in [0, 1).

    Returns
    -------
    Tensor, shape (..., L)
        Without a gradient of its own: see `eccentric_longitude`.
    """
    start = _starter(mean, e)
    e_sin = torch.sin(start).mul_(e)
    e_cos = torch.cos(start).mul_(e)
    residual = (start - e_sin).sub_(mean)
    slope = 1.0 - e_cos
    half = 0.5 * e_sin
    # each line a better estimate of one and the same step, by a further derivative
    step = residual / (slope - residual * half / slope)
    step = residual / (slope - step * (half - step * e_cos / 6.0))
    step = residual / (slope - step * (half - step / 6.0 * (e_cos + 0.5 * step * half)))
    return start - step


def _starter(mean: Tensor, e: Tensor) -> Tensor:
    """Return the root of Markley's cubic."""
    square = mean * mean
    rest = 1.0 - e
    slope = 1.6 * math.pi / (math.pi**2 - 6.0) / (1.0 + e)
    alpha = 3.0 * math.pi**2 / (math.pi**2 - 6.0) + slope * (math.pi - mean.abs())
    d = torch.addcmul(3.0 * rest, alpha, e)
    alpha_d = alpha.mul_(d)
    q = 2.0 * rest * alpha_d - square
    r = (d - rest).mul_(alpha_d).mul_(3.0).add_(square).mul_(mean)
    w = torch.addcmul(q * q * q, r, r).sqrt_().add_(r.abs()).pow_(2.0 / 3.0)
    return (2.0 * w * r / ((w + q) * w).addcmul_(q, q) + mean).div_(d)
