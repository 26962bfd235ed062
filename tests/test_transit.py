"""Laws of transits: integrals over the hidden area, contacts, orbits, gradients, and batman."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from nbi_plus.models.transit import (
    Transit,
    limb_darkening,
    occulted_flux,
    quadratic_transit,
)

RADII = [0.01, 0.1, 0.3, 0.5, 1.0, 1.5, 3.0]
LAWS = [(0.4, 0.3), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]
T = np.linspace(-0.3, 0.3, 301)
CIRCULAR = [0.02, 3.0, 0.1, 8.0, 0.3, 0.4, 0.3]


def hidden(d, k, u1=0.4, u2=0.3):
    return occulted_flux(*np.broadcast_arrays(*(np.asarray(v, float) for v in (d, k, u1, u2))))


def distances(k):
    """Return distances all over, at the contacts, and close to them."""
    contacts = np.array([0.0, abs(1 - k), k, 1 + k])
    near = np.array([0.0, 1e-12, 1e-8, 1e-5, 1e-3, 3e-3, 1e-2])
    d = np.concatenate([np.add.outer(contacts, s * near).ravel() for s in (-1, 1)])
    return np.r_[d[(d >= 0) & (d <= 1 + k)], np.linspace(0, 1 + k, 41)]


@pytest.mark.parametrize(("u1", "u2"), LAWS)
@pytest.mark.parametrize("k", RADII)
def test_occulted_flux_equals_the_integral_over_radii(k, u1, u2):
    d = distances(k)
    expected = [_by_radii(v, k, u1, u2) for v in d]
    np.testing.assert_allclose(hidden(d, k, u1, u2), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("k", RADII)
def test_occulted_flux_of_a_uniform_star_is_an_area(k):
    d = np.linspace(abs(1 - k) + 1e-6, 1 + k - 1e-6, 50)
    at_star = np.arccos((1 + d**2 - k**2) / (2 * d))
    at_planet = np.arccos((d**2 + k**2 - 1) / (2 * d * k))
    kite = d * np.sin(at_star)
    expected = (at_star + k**2 * at_planet - kite) / math.pi
    np.testing.assert_allclose(hidden(d, k, 0.0, 0.0), expected, atol=1e-12)


@pytest.mark.parametrize("k", RADII)
def test_occulted_flux_is_nothing_beyond_contact_and_all_behind_a_larger_disc(k):
    beyond = hidden(1 + k + np.array([0.0, 1e-12, 1.0, 1e8]), k)
    np.testing.assert_array_equal(beyond, 0.0)
    if k >= 1:
        np.testing.assert_allclose(hidden(np.linspace(0, k - 1, 20), k), 1.0, atol=1e-14)


def test_occulted_flux_of_a_small_disc_is_the_intensity_times_its_area():
    d, k = np.linspace(0, 0.9, 30), 1e-4
    mu = np.sqrt(1 - d**2)
    intensity = (1 - 0.4 * (1 - mu) - 0.3 * (1 - mu) ** 2) / (1 - 0.4 / 3 - 0.3 / 6)
    np.testing.assert_allclose(hidden(d, k), intensity * k**2, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", RADII)
def test_occulted_flux_has_finite_gradients_everywhere(k, dtype):
    d = torch.tensor(distances(k), dtype=dtype, requires_grad=True)
    others = [torch.full_like(d, v).requires_grad_() for v in (k, 0.4, 0.3)]
    occulted_flux(d, *others).sum().backward()
    for leaf in (d, *others):
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("k", RADII)
def test_occulted_flux_gradient_equals_finite_differences(k):
    d = torch.linspace(0.02, 0.98 + k, 23, dtype=torch.float64)
    d = d[(d - abs(1 - k)).abs() > 0.01].requires_grad_()
    others = [torch.full_like(d, v).requires_grad_() for v in (k, 0.4, 0.3)]
    assert torch.autograd.gradcheck(occulted_flux, (d, *others))


def test_occulted_flux_falls_as_the_disc_moves_out():
    d = np.linspace(0, 1.1, 2001)
    assert (np.diff(hidden(d, 0.1)) <= 1e-15).all()


def test_transit_follows_the_distance_on_the_sky():
    t0, period, k, a, b, u1, u2 = CIRCULAR
    phase = 2 * np.pi * (T - t0) / period
    d = np.hypot(a * np.sin(phase), b * np.cos(phase))
    expected = 1 - hidden(d, k, u1, u2)
    np.testing.assert_allclose(quadratic_transit(np.array([CIRCULAR]), T)[0], expected, atol=1e-14)


def test_transit_recurs_each_period_and_hides_nothing_from_behind():
    theta = np.array([CIRCULAR])
    flux = quadratic_transit(theta, T)
    np.testing.assert_allclose(quadratic_transit(theta, T + 9.0), flux, atol=1e-13)
    np.testing.assert_array_equal(quadratic_transit(theta, T + 1.5), 1.0)


def test_transit_of_zero_eccentricity_is_circular():
    flux = quadratic_transit(np.array([CIRCULAR]), T)
    same = quadratic_transit(np.array([[*CIRCULAR, 0.0, 0.0]]), T)
    np.testing.assert_allclose(same, flux, atol=1e-14)


@pytest.mark.parametrize(("e", "omega"), [(0.1, 0.3), (0.5, -2.0), (0.7, 1.6), (0.8, 4.0)])
def test_transit_of_an_eccentric_orbit_follows_the_textbook(e, omega):
    t0, period, k, a, b, u1, u2 = row = [0.02, 3.0, 0.1, 12.0, 0.3, 0.4, 0.3]
    d, front = _distance_of_the_textbook(T, t0, period, a, b, e, omega)
    expected = 1 - np.where(front, hidden(d, k, u1, u2), 0.0)
    roots = math.sqrt(e) * math.cos(omega), math.sqrt(e) * math.sin(omega)
    found = quadratic_transit(np.array([[*row, *roots]]), T)[0]
    np.testing.assert_allclose(found, expected, atol=1e-11)
    assert found.min() < 0.995


def test_transit_has_finite_gradients_at_every_contact():
    k = 0.1
    for b in (0.0, 1 - k, k, 1 + k):
        theta = torch.tensor([[0.0, 3.0, k, 8.0, b, 0.4, 0.3, 0.0, 0.0]], dtype=torch.float64)
        theta.requires_grad_()
        quadratic_transit(theta, torch.tensor([0.0, 0.01], dtype=torch.float64)).sum().backward()
        assert torch.isfinite(theta.grad).all()


def test_transit_of_an_open_orbit_is_no_quiet_star():
    theta = np.array([[*CIRCULAR, 1.0, 0.5], [*CIRCULAR, 0.1, 0.5]])
    impossible, possible = quadratic_transit(theta, T)
    assert np.isnan(impossible).all()
    assert np.isfinite(possible).all()


def test_transit_without_any_point_in_transit_is_one_with_a_gradient_of_zero():
    theta = torch.tensor([CIRCULAR], dtype=torch.float64, requires_grad=True)
    flux = quadratic_transit(theta, torch.tensor([1.0, 1.5], dtype=torch.float64))
    assert (flux == 1.0).all()
    flux.sum().backward()
    assert (theta.grad == 0.0).all()


def test_transit_of_long_exposures_is_the_mean_over_them():
    theta, exposure = np.array([CIRCULAR]), 0.03
    fine = T[:, None] + exposure * ((np.arange(1000) + 0.5) / 1000 - 0.5)
    expected = quadratic_transit(theta, fine.ravel()).reshape(fine.shape).mean(1)
    found = Transit(exposure, n_samples=31)(theta, T)[0]
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_limb_darkening_of_kippings_square_is_physical():
    q1, q2 = np.meshgrid(*2 * [np.linspace(0, 1, 21)])
    u1, u2 = limb_darkening(q1, q2)
    eps = 1e-12
    assert (u1 + u2 <= 1 + eps).all()
    assert (u1 >= 0).all()
    assert (u1 + 2 * u2 >= -eps).all()
    np.testing.assert_allclose((u1 + u2) ** 2, q1)
    np.testing.assert_allclose((2 * q2 * (u1 + u2)), u1)


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("k", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("b", [0.0, 0.3, 0.7, 0.9, 0.99, 1.0])
def test_transit_agrees_with_batman(k, b):
    batman = pytest.importorskip("batman")
    parameters = batman.TransitParams()
    parameters.t0, parameters.per, parameters.rp, parameters.a = 0.02, 3.0, k, 8.0
    parameters.u, parameters.limb_dark = [0.4, 0.3], "quadratic"
    # not at t0 itself: where d = k to rounding, batman 2.5.3 is 111 ppm beside its own neighbours
    t = np.linspace(-0.1, 0.14, 2000)
    for e, omega in [(0.0, 90.0), (0.3, 40.0), (0.5, 200.0)]:
        away = (1 - e**2) / (1 + e * math.sin(math.radians(omega)))
        parameters.ecc, parameters.w = e, omega
        parameters.inc = math.degrees(math.acos(b / 8.0 / away))
        expected = batman.TransitModel(parameters, t).light_curve(parameters)
        angle = math.radians(omega)
        roots = math.sqrt(e) * math.cos(angle), math.sqrt(e) * math.sin(angle)
        found = quadratic_transit(np.array([[0.02, 3.0, k, 8.0, b, 0.4, 0.3, *roots]]), t)[0]
        np.testing.assert_allclose(found, expected, atol=5e-7, rtol=0)


def _by_radii(d, k, u1, u2):
    """Return hidden light as an integral over stellar radii of the hidden part of each circle."""

    def covered(r):
        if r + d <= k:
            return math.pi
        if d == 0 or r <= d - k or r >= d + k:
            return 0.0
        return math.acos(max(-1.0, min(1.0, (r * r + d * d - k * k) / (2 * r * d))))

    def light(r):
        mu = math.sqrt(max(0.0, 1 - r * r))
        return 2 * r * covered(r) * (1 - u1 * (1 - mu) - u2 * (1 - mu) ** 2)

    edges = sorted({max(0.0, d - k), min(1.0, abs(k - d)), min(1.0, d + k)})
    total = sum(_smoothly(light, *ends) for ends in zip(edges[:-1], edges[1:], strict=True))
    if k > d:
        total += _smoothly(light, 0.0, min(1.0, k - d)) if edges[0] > 0 else 0.0
    return total / (math.pi * (1 - u1 / 3 - u2 / 6))


def _smoothly(f, low, high):
    """Integrate a function with roots at its ends, by r = middle + half sin(phi)."""
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    scaled = lambda phi: f(middle + half * math.sin(phi)) * half * math.cos(phi)  # noqa: E731
    return quad(scaled, -math.pi / 2, math.pi / 2, epsabs=1e-11, epsrel=1e-11, limit=200)[0]


def _distance_of_the_textbook(t, t0, period, a, b, e, omega):
    """Return distances on the sky, and where the planet is in front, by the true anomaly."""

    def eccentric(nu):
        return 2 * math.atan(math.sqrt((1 - e) / (1 + e)) * math.tan(nu / 2))

    start = eccentric(math.pi / 2 - omega)
    mean = start - e * math.sin(start) + 2 * np.pi * (t - t0) / period
    anomaly = np.array([brentq(lambda x, m=m: x - e * math.sin(x) - m, m - 1, m + 1, xtol=1e-15)
                        for m in mean])  # fmt: skip
    nu = 2 * np.arctan(math.sqrt((1 + e) / (1 - e)) * np.tan(anomaly / 2))
    r = a * (1 - e * np.cos(anomaly))
    cos_i = b / a * (1 + e * math.sin(omega)) / (1 - e**2)
    sin = np.sin(nu + omega)
    return r * np.sqrt(1 - sin**2 * (1 - cos_i**2)), sin > 0
