"""Spectra: what a specutils spectrum holds, as arrays with their units."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LOG = logging.getLogger("nbi_plus")


class Spectrum(NamedTuple):
    """Fluxes, errors (n, L), and wavelengths (L,), with units; redshifts (n,), 0 for none."""

    flux: Any
    error: Any | None
    mask: NDArray[np.bool_]
    wavelength: Any
    redshift: NDArray[np.float64]


def of_spectrum(spectrum: Any) -> Spectrum:  # noqa: ANN401 - an object of specutils
    """Return the arrays of an object like ``specutils.Spectrum``.

    Parameters
    ----------
    spectrum : object
        Read are its ``flux`` and ``spectral_axis`` (both with units), ``uncertainty`` (None, or of
        ``uncertainty_type`` ``"std"``, ``"var"`` or ``"ivar"``), ``mask`` (True is bad).
        A frequency or energy becomes a wavelength; pixels are sorted by that. What is per unit of
        frequency stays so. ``redshift`` is read where there is one.
    """
    axis = spectrum.spectral_axis
    if axis.unit.physical_type != "length":
        axis = axis.to("Angstrom")
    flux = _in_rows(spectrum.flux, spectrum)
    bad = np.asarray(False if spectrum.mask is None else spectrum.mask, bool)
    error = None if spectrum.uncertainty is None else _deviations(spectrum)
    good = ~_in_rows(np.broadcast_to(bad, spectrum.flux.shape), spectrum)
    rows = np.argsort(axis.value, kind="stable")
    error = None if error is None else error[:, rows]
    return Spectrum(flux[:, rows], error, good[:, rows], axis[rows], _redshifts(spectrum, flux))


def redshifts(parts: Sequence[Spectrum]) -> dict[str, NDArray[np.float64]]:
    """Return the redshifts of all objects by that name, or nothing where none has any."""
    found = np.concatenate([part.redshift for part in parts])
    n_none = int((found == 0).sum())
    if 0 < n_none < len(found):
        _LOG.warning("%d of %d spectra have no redshift, which is taken as 0. Give "
                     'scalars={"redshift": ...} if it is not.', n_none, len(found))  # fmt: skip
    return {"redshift": found} if n_none < len(found) else {}


def _redshifts(spectrum: Any, flux: Any) -> NDArray[np.float64]:  # noqa: ANN401 - of specutils
    came = getattr(spectrum, "redshift", None)
    found = np.asarray(0.0 if came is None else getattr(came, "value", came), np.float64)
    return np.broadcast_to(found.reshape(-1), (len(flux),)).copy()


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
    return _in_rows(good**power * unit, spectrum).to(spectrum.flux.unit)


def _in_rows(values: Any, spectrum: Any) -> Any:  # noqa: ANN401 - arrays, and of specutils
    """Return values (n, L), whichever axis of the spectrum is that of its pixels."""
    axis = getattr(spectrum, "spectral_axis_index", None)
    length = len(spectrum.spectral_axis)
    return np.moveaxis(values, -1 if axis is None else axis, -1).reshape(-1, length)
