"""Spectra of Gaussian emission lines over a polynomial continuum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.models.door import both_kinds, columns, since

SPEED_OF_LIGHT = 299_792.458  # km/s
_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))  # in standard deviations


@both_kinds
def emission_line(theta: Tensor, wavelength: Tensor) -> Tensor:
    r"""Return spectra of one line over a straight continuum.

    .. math:: f(\lambda) = A e^{-(\lambda - \lambda_0)^2 / 2\sigma^2} + c
                           + s\,(\lambda - \lambda_0)

    Parameters
    ----------
    theta : ndarray or Tensor, shape (n, 5)
        Amplitude A (negative for absorption), centre, sigma, level c of the continuum beneath the
        centre, and its slope s.
    wavelength : ndarray or Tensor, shape (L,) or (n, L)
        In the units of centre and sigma.

    Returns
    -------
    ndarray or Tensor, shape (n, L)

    Examples
    --------
    >>> import numpy as np
    >>> emission_line(np.array([[2.0, 5.0, 0.1, 1.0, 0.5]]), np.array([3.0, 5.0, 7.0])).round(9)
    array([[0., 3., 2.]])
    """
    names = ("amplitude", "centre", "sigma", "level", "slope")
    amplitude, centre, sigma, level, slope = columns(theta, names)
    x = since(wavelength, centre)
    return torch.addcmul(torch.addcmul(level, slope, x), amplitude, torch.exp(_power(x, sigma)))


@dataclass(frozen=True)
class EmissionLines:
    r"""Spectra of lines at known rest wavelengths that share one redshift and one width.

    A line of rest wavelength :math:`\lambda_r` stands at :math:`\lambda_0 = \lambda_r (1 + z)`
    with :math:`\sigma^2 = (\lambda_0 \sigma_v / c)^2 + (\lambda_0 / 2.355 R)^2`. Its flux is the
    area beneath it, which the instrument does not change.

    Attributes
    ----------
    rest : tuple of float
        Rest wavelengths.
    resolution : float
        Resolving power R, wavelength over FWHM of the instrument.
    degree : int
        Degree of the continuum, a polynomial in wavelength less the mean of ``rest``.

    Examples
    --------
    >>> import numpy as np
    >>> doublet = EmissionLines((4958.9, 5006.8), resolution=2000.0, degree=0)
    >>> doublet.names
    ('z', 'sigma_v', 'flux_0', 'flux_1', 'c_0')
    >>> spectrum = doublet(np.array([[0.1, 100.0, 1.0, 3.0, 0.0]]), np.arange(5300.0, 5700.0))
    >>> round(float(spectrum.sum()), 6)
    4.0
    """

    rest: tuple[float, ...]
    resolution: float = math.inf
    degree: int = 1

    def __post_init__(self) -> None:
        if not self.rest or min(self.rest) <= 0.0:
            raise ValueError(f"rest must hold positive wavelengths, but is {self.rest}.")
        if not self.resolution > 0.0:
            raise ValueError(f"resolution must be positive, but is {self.resolution}.")
        if self.degree < 0:
            raise ValueError(f"degree must be 0 or more, but is {self.degree}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of theta."""
        fluxes = [f"flux_{i}" for i in range(len(self.rest))]
        return ("z", "sigma_v", *fluxes, *(f"c_{i}" for i in range(self.degree + 1)))

    @both_kinds
    def __call__(self, theta: Tensor, wavelength: Tensor) -> Tensor:
        """Return spectra.

        Parameters
        ----------
        theta : ndarray or Tensor, shape (n, P)
            In the order of `names`: redshift, velocity dispersion in km/s, fluxes, and the
            coefficients of the continuum from the constant upwards.
        wavelength : ndarray or Tensor, shape (L,) or (n, L)
            Observed, in the units of ``rest``.

        Returns
        -------
        ndarray or Tensor, shape (n, L)
        """
        z, sigma_v, *others = columns(theta, self.names)
        fluxes, continuum = others[: len(self.rest)], others[len(self.rest) :]
        blur = 1.0 / (_FWHM * self.resolution)
        width = torch.sqrt((sigma_v / SPEED_OF_LIGHT) ** 2 + blur**2)
        x = (wavelength - sum(self.rest) / len(self.rest)).to(theta.dtype)
        spectrum = _polynomial(continuum, x)
        # a loop over the few lines: all at once would be as many times the memory
        for rest, flux in zip(self.rest, fluxes, strict=True):
            centre = rest * (1.0 + z)
            sigma = centre * width
            height = flux / (math.sqrt(2.0 * math.pi) * sigma)
            spectrum = torch.addcmul(
                spectrum, height, torch.exp(_power(since(wavelength, centre), sigma))
            )
        return spectrum


def _power(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the logarithm of a Gaussian of height 1."""
    scaled = x * (math.sqrt(0.5) / sigma)
    return -scaled * scaled


def _polynomial(coefficients: list[Tensor], x: Tensor) -> Tensor:
    """Return a polynomial by Horner's rule, shape (n, L)."""
    value, _ = torch.broadcast_tensors(coefficients[-1], x)
    for coefficient in coefficients[-2::-1]:
        value = torch.addcmul(coefficient, value, x)
    return value
