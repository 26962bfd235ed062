r"""Light curves of pulsating stars: a cosine whose phase is warped until it is a sawtooth.

.. math:: f(t) = -\cos \psi, \quad x = 2 \pi (t / P - \phi), \quad
    \psi = x + s \cos x + 0.45 s^2 \sin x - 0.3 s^2 \sin 2x + 0.13 s^3 \cos 2x

With the skew :math:`s = 0` it is a sinusoid. With :math:`s = 1` it is, in magnitudes (-1 is
brightest), the slow decline, flat minimum and steep rise of an RR Lyrae star of type ab. The
coefficients follow how the shapes of 40 stars of Sesar et al. (2010) change together; a typical
misfit is 0.04 magnitudes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbi_plus.models.door import both_kinds, columns

_SINE, _SECOND_SINE, _SECOND_COSINE = 0.45, -0.30, 0.13


@both_kinds
def sawtooth(theta: Tensor, t: Tensor) -> Tensor:
    """Return periodic curves between -1 and 1, whose brightest point is -1.

    Parameters
    ----------
    theta : ndarray or Tensor, shape (n, 3)
        Period, phase at ``t = 0`` in cycles, and skew: 0 for a sinusoid, about 1 for a sawtooth.
        Period and phase are least correlated when ``t = 0`` is in the middle of the data.
    t : ndarray or Tensor, shape (L,) or (n, L)
        Times, in the unit of the period.

    Returns
    -------
    ndarray or Tensor, shape (n, L)

    Examples
    --------
    >>> import numpy as np
    >>> sawtooth(np.array([[0.5, 0.0, 0.0]]), np.array([0.0, 0.25, 0.5]))
    array([[-1.,  1., -1.]])
    """
    period, phase, skew = columns(theta, ("period", "phase", "skew"))
    cycles = t / period - phase  # whole ones go in the finer of the dtypes of t and theta
    x = 2 * math.pi * (cycles - cycles.round()).to(period.dtype)
    warp = skew * torch.cos(x) + skew**3 * _SECOND_COSINE * torch.cos(2 * x)
    warp = warp + skew**2 * (_SINE * torch.sin(x) + _SECOND_SINE * torch.sin(2 * x))
    return -torch.cos(x + warp)
