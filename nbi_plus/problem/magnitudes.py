"""Magnitudes: as fluxes, which is what noise is Gaussian in."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def to_flux(
    mag: NDArray[np.float64], mag_err: NDArray[np.float64] | None, zero_point: float
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    r"""Return fluxes and errors of magnitudes m: :math:`f = 10^{-0.4 (m - m_0)}`.

    Errors are carried over to first order, :math:`\sigma_f = f \sigma_m \ln(10) / 2.5`. What is not
    finite becomes NaN (an infinite magnitude is no measurement of zero flux).

    Parameters
    ----------
    mag, mag_err : ndarray, shape (...)
        Magnitudes and standard deviations, or None.
    zero_point : float
        The magnitude of flux 1: 8.9 for AB magnitudes and Jy, 31.4 for AB magnitudes and nJy.

    Returns
    -------
    flux, flux_err : ndarray, shape (...)

    Examples
    --------
    >>> to_flux(np.array([8.9, 6.4]), None, 8.9)[0]
    array([ 1., 10.])
    """
    if not math.isfinite(zero_point):
        raise ValueError(f"zero_point must be a finite magnitude, but is {zero_point}.")
    flux = np.where(np.isfinite(mag), 10 ** (-0.4 * (mag - zero_point)), np.nan)
    return flux, None if mag_err is None else flux * mag_err * (math.log(10) / 2.5)
