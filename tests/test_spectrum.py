"""Laws of emission lines: the formula, areas, widths, redshift."""

import math

import numpy as np
import pytest

from nbi_plus.models.spectrum import SPEED_OF_LIGHT, EmissionLines, emission_line

REST = (4861.3, 4958.9, 5006.8)
WAVELENGTH = np.arange(5200.0, 5700.0, 0.25)


def moments(spectrum):
    """Return area, mean and standard deviation of a spectrum over no continuum."""
    area = spectrum.sum() * 0.25
    mean = (spectrum * WAVELENGTH).sum() * 0.25 / area
    return area, mean, math.sqrt((spectrum * (WAVELENGTH - mean) ** 2).sum() * 0.25 / area)


def test_emission_line_equals_its_formula():
    theta = np.array([[2.0, 5400.0, 6.0, 1.0, 0.01], [-0.5, 5500.0, 2.0, 1.0, 0.0]])
    amplitude, centre, sigma, level, slope = theta.T[..., None]
    x = WAVELENGTH - centre
    expected = amplitude * np.exp(-0.5 * (x / sigma) ** 2) + level + slope * x
    np.testing.assert_allclose(emission_line(theta, WAVELENGTH), expected, atol=1e-14)


def test_emission_lines_have_their_flux_place_and_width():
    model = EmissionLines((5006.8,), degree=0)
    z, velocity = 0.08, 150.0
    spectrum = model(np.array([[z, velocity, 3.0, 0.0]]), WAVELENGTH)[0]
    centre = 5006.8 * (1 + z)
    expected = 3.0, centre, centre * velocity / SPEED_OF_LIGHT
    np.testing.assert_allclose(moments(spectrum), expected, rtol=1e-9)


def test_emission_lines_widen_by_the_instrument_in_quadrature():
    theta = np.array([[0.08, 150.0, 3.0, 0.0]])
    sharp = moments(EmissionLines((5006.8,), degree=0)(theta, WAVELENGTH)[0])
    seen = moments(EmissionLines((5006.8,), resolution=1000.0, degree=0)(theta, WAVELENGTH)[0])
    blur = sharp[1] / 1000.0 / (2 * math.sqrt(2 * math.log(2)))
    np.testing.assert_allclose(seen[:2], sharp[:2], rtol=1e-9)
    assert seen[2] == pytest.approx(math.hypot(sharp[2], blur), rel=1e-9)


def test_emission_lines_and_their_continuum_add_up():
    full = EmissionLines(REST, degree=2)
    continuum = [1.0, 2e-3, 3e-6]
    found = full(np.array([[0.08, 150.0, 3.0, 1.0, 2.0, *continuum]]), WAVELENGTH)[0]
    x = WAVELENGTH - np.mean(REST)
    expected = continuum[0] + continuum[1] * x + continuum[2] * x**2
    for rest, flux in zip(REST, (3.0, 1.0, 2.0), strict=True):
        alone = EmissionLines((rest,), degree=0)
        expected += alone(np.array([[0.08, 150.0, flux, 0.0]]), WAVELENGTH)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-13)
