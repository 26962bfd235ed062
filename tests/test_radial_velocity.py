"""Laws of Keplerian orbits: Kepler's equation to rounding, closed forms, gradients, and radvel."""

import math

import numpy as np
import pytest
import torch

from nbi_plus.models import kepler
from nbi_plus.models.radial_velocity import Orbits

T = np.linspace(-40.0, 60.0, 301)


def planet(period, t_conj, e, omega, k):
    """Return a row of theta from the textbook's parameters."""
    root = math.sqrt(e)
    return [period, t_conj, root * math.cos(omega), root * math.sin(omega), k]


@pytest.mark.parametrize("e", [0.0, 1e-8, 0.1, 0.5, 0.9, 0.95, 0.99])
def test_eccentric_anomaly_solves_keplers_equation_to_rounding(e):
    near = np.logspace(-9, 0, 200)  # where E and e sin(E) cancel
    anomaly = torch.tensor(np.r_[-near, np.linspace(-np.pi, np.pi, 5001), near])
    mean = anomaly - e * torch.sin(anomaly)
    found = kepler.eccentric_anomaly(mean, torch.tensor([e], dtype=torch.float64))
    rounding = 4e-16 * math.pi
    assert (found - e * torch.sin(found) - mean).abs().max() < rounding
    assert (found - anomaly).abs().max() < rounding / (1.0 - e)


def test_eccentric_longitude_solves_its_equation_over_many_turns():
    rng = np.random.default_rng(0)
    longitude = torch.tensor(rng.uniform(-100, 100, (50, 40)))
    e, omega = (torch.tensor(rng.uniform(0, high, (50, 1))) for high in (0.95, 2 * np.pi))
    ex, ey = e * torch.cos(omega), e * torch.sin(omega)
    f = kepler.eccentric_longitude(longitude, ex, ey)
    turns = (f - ex * torch.sin(f) + ey * torch.cos(f) - longitude) / (2 * math.pi)
    assert (turns - turns.round()).abs().max() < 1e-14


def test_eccentric_longitude_has_the_gradients_of_the_solution():
    longitude = torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(1, 7).repeat(2, 1)
    ex, ey = (torch.tensor(v, dtype=torch.float64) for v in ([[0.3], [0.0]], [[-0.6], [0.0]]))
    arguments = [v.requires_grad_() for v in (longitude, ex, ey)]

    def place(*arguments):  # without the whole turns, which may change with omega
        f = kepler.eccentric_longitude(*arguments)
        return torch.cos(f), torch.sin(f)

    assert torch.autograd.gradcheck(place, arguments)
    assert torch.autograd.gradgradcheck(place, arguments)


def test_conjunction_is_where_true_longitude_is_a_quarter_turn():
    rng = np.random.default_rng(1)
    e, omega = (torch.tensor(rng.uniform(0, high, 100)) for high in (0.95, 2 * np.pi))
    ex, ey = e * torch.cos(omega), e * torch.sin(omega)
    nu = math.pi / 2 - omega
    anomaly = torch.atan2(torch.sqrt(1 - e**2) * torch.sin(nu), e + torch.cos(nu))
    expected = anomaly - e * torch.sin(anomaly) + omega
    turns = (kepler.longitude_of_conjunction(e, ex, ey) - expected) / (2 * math.pi)
    assert (turns - turns.round()).abs().max() < 1e-14


def test_orbits_of_a_circular_planet_are_a_sine_from_conjunction():
    theta = np.array([planet(7.0, 3.0, 0.0, 0.0, 5.0)])
    expected = -5.0 * np.sin(2 * np.pi * (T - 3.0) / 7.0)
    np.testing.assert_allclose(Orbits()(theta, T)[0], expected, atol=1e-13)


def test_orbits_are_continuous_at_zero_eccentricity():
    circular = Orbits()(np.array([planet(7.0, 3.0, 0.0, 0.0, 5.0)]), T)
    nearly = Orbits()(np.array([planet(7.0, 3.0, 1e-12, 2.0, 5.0)]), T)
    np.testing.assert_allclose(nearly, circular, atol=5e-11)


def test_orbits_gradient_is_finite_and_right_at_zero_eccentricity():
    theta = torch.tensor([planet(7.0, 3.0, 0.0, 0.0, 5.0)], requires_grad=True).double()
    assert torch.autograd.gradcheck(lambda p: Orbits()(p, torch.tensor(T[:9])), theta)


def test_orbits_reach_the_textbooks_extremes():
    e, omega, k = 0.6, 0.7, 5.0
    t = np.linspace(0.0, 10.0, 200001)
    velocity = Orbits()(np.array([planet(10.0, 1.0, e, omega, k)]), t)[0]
    extremes = k * (e * math.cos(omega) + np.array([-1.0, 1.0]))
    np.testing.assert_allclose([velocity.min(), velocity.max()], extremes, atol=1e-7)


def test_orbits_have_no_net_displacement_over_a_period():
    t = np.arange(2000) / 2000 * 10.0
    theta = np.array([planet(10.0, 1.0, e, 2.0, 5.0) for e in (0.0, 0.3, 0.8)])
    np.testing.assert_allclose(Orbits()(theta, t).mean(1), 0.0, atol=1e-12)


def test_orbits_of_several_planets_and_a_trend_add_up():
    first, second = planet(7.0, 3.0, 0.2, 0.5, 5.0), planet(30.0, 3.0, 0.7, -2.0, 9.0)
    both = Orbits(2, n_trend=3, time_base=10.0)
    found = both(np.array([[*first, *second, 3.0, 0.2, -0.01]]), T)
    x = T - 10.0
    parts = Orbits()(np.array([first, second]), T).sum(0) + 3.0 + 0.2 * x - 0.01 * x**2
    np.testing.assert_allclose(found[0], parts, atol=1e-12)


def test_orbits_name_the_columns_of_theta():
    names = Orbits(2, n_trend=2).names
    assert names[4:7] == ("K_1", "period_2", "t_conj_2")
    assert names[10:] == ("gamma", "dvdt")


def test_orbits_that_are_not_closed_have_no_velocity():
    theta = np.array([planet(7.0, 3.0, 1.1, 0.3, 5.0), planet(7.0, 3.0, 0.5, 0.3, 5.0)])
    open_, closed = Orbits()(theta, T)
    assert np.isnan(open_).all()
    assert np.isfinite(closed).all()


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("e", [0.0, 0.05, 0.5, 0.9, 0.95])
def test_orbits_agree_with_radvel(e):
    radvel = pytest.importorskip("radvel")
    for omega in (-3.0, -1.0, 0.2, 1.5, 2.9):
        start = radvel.orbit.timetrans_to_timeperi(3.0, 17.0, e, omega)
        expected = radvel.kepler.rv_drive(T, [17.0, start, e, omega, 5.0])
        found = Orbits()(np.array([planet(17.0, 3.0, e, omega, 5.0)]), T)[0]
        np.testing.assert_allclose(found, expected, atol=5e-9)
