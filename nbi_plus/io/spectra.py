"""Spectra: what a specutils spectrum holds, as arrays with their units."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Spectrum(NamedTuple):
    """Fluxes and errors (n, L) and wavelengths (L,), the first and last with units."""

    flux: Any
    error: Any | None
    mask: NDArray[np.bool_]
    wavelength: Any


def of_spectrum(spectrum: Any) -> Spectrum:  # noqa: ANN401 - an object of specutils
    """Return the arrays of an object like ``specutils.Spectrum``.

    Parameters
    ----------
    spectrum : object
        Read are its ``flux`` and ``spectral_axis`` (both with units), ``uncertainty`` (None, or of
        ``uncertainty_type`` ``"std"``, ``"var"`` or ``"ivar"``), ``mask`` (True is bad).
        A frequency or energy becomes a wavelength.
    """
    axis = spectrum.spectral_axis
    if axis.unit.physical_type != "length":
        axis = axis.to("Angstrom")
    flux = spectrum.flux.reshape(-1, len(axis))
    bad = np.zeros(flux.shape, bool) if spectrum.mask is None else np.asarray(spectrum.mask, bool)
    error = None if spectrum.uncertainty is None else _deviations(spectrum)
    return Spectrum(flux, error, ~np.broadcast_to(bad, flux.shape), axis)


def _deviations(spectrum: Any) -> Any:  # noqa: ANN401 - a Quantity
    """Return standard deviations in the unit of the flux; NaN where there is none."""
    kind, values = spectrum.uncertainty.uncertainty_type, np.asarray(spectrum.uncertainty.array)
    power = {"std": 1.0, "var": 0.5, "ivar": -0.5}.get(kind)
    if power is None:
        raise ValueError(
            f"uncertainty must be of type std, var or ivar, but is {kind!r}. Represent it as "
            "StdDevUncertainty."
        )
    good = np.where(np.isfinite(values) & (values > 0), values, np.nan).astype(np.float64)
    unit = (1.0 * spectrum.uncertainty.unit) ** power
    return (good**power * unit).reshape(-1, len(spectrum.spectral_axis)).to(spectrum.flux.unit)
