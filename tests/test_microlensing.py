"""Laws of the point lens: closed forms and limits, gradients, numpy and torch alike."""

import copy
import math
import pickle
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from nbi_plus import Simulator
from nbi_plus.models.microlensing import (
    PointLensParallax,
    Season,
    excess_magnification,
    magnification,
    point_lens,
)
from nbi_plus.models.parallax import AnnualParallax
from nbi_plus.problem.simulator.simulator import bind

T = np.linspace(0.0, 100.0, 41)
THETA = np.array([[48.0, 0.1, 12.0, 0.7, 0.4], [55.0, -0.8, 30.0, 2.0, -0.1]])
EVENT = PointLensParallax(269.0, -29.0, t0_par=50.0, offset=2457000.0)


@pytest.mark.parametrize(
    ("u", "expected"), [(1.0, 3 / math.sqrt(5)), (2.0, 6 / (2 * math.sqrt(8)))]
)
def test_magnification_equals_the_closed_form(u, expected):
    assert float(magnification(np.array(u))) == pytest.approx(expected, rel=1e-15)


def test_magnification_of_a_close_lens_goes_as_one_over_u():
    u = np.array([1e-3, 1e-8, 1e-100, 1e-300])
    # A = (1 + u^2/2) / (u (1 + u^2/8 + ...)) = 1/u (1 + 3 u^2 / 8 + ...)
    np.testing.assert_allclose(magnification(u) * u, 1 + 0.375 * u**2, rtol=1e-12)


def test_excess_magnification_of_a_far_lens_goes_as_two_over_u_to_the_fourth():
    u = np.array([1e2, 1e4, 1e20, 1e60])
    np.testing.assert_allclose(excess_magnification(u), 2 / u**4 * (1 - 4 / u**2), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_excess_magnification_keeps_its_digits_at_every_u(dtype):
    u = torch.logspace(-6, 6, 200, dtype=torch.float64)
    exact = np.array([_excess_in_many_digits(float(v)) for v in u.to(dtype)])
    found = excess_magnification(u.to(dtype)).double().numpy()
    np.testing.assert_allclose(found, exact, rtol=20 * torch.finfo(dtype).eps)


def test_magnification_is_even_and_falls_with_separation():
    u = np.linspace(0.01, 5, 300)
    np.testing.assert_array_equal(magnification(u), magnification(-u))
    assert (np.diff(magnification(u)) < 0).all()


def test_magnification_of_a_perfect_alignment_is_infinite_in_torch():
    assert magnification(torch.zeros(1)).item() == math.inf


def test_magnification_is_numpy_in_numpy_out_and_torch_in_torch_out():
    u = np.array([0.3, 2.0])
    assert isinstance(magnification(u), np.ndarray)
    assert torch.equal(magnification(torch.tensor(u)), torch.from_numpy(magnification(u)))


def test_point_lens_peaks_at_t0_with_the_magnification_of_u0():
    flux = point_lens(THETA, np.array([[48.0], [55.0]]))[:, 0]
    expected = THETA[:, 3] * magnification(THETA[:, 1]) + THETA[:, 4]
    np.testing.assert_allclose(flux, expected, rtol=1e-14)


def test_point_lens_is_symmetric_in_time_and_ends_at_the_baseline():
    left, right = (point_lens(THETA, THETA[:, :1] + s * np.arange(1.0, 40.0)) for s in (-1, 1))
    np.testing.assert_allclose(left, right, rtol=1e-12)
    np.testing.assert_allclose(
        point_lens(THETA, np.array([1e9])), THETA[:, 3:].sum(1, keepdims=True)
    )


def test_point_lens_without_fluxes_is_a_source_of_unit_flux_alone():
    full = np.column_stack([THETA[:, :3], np.ones(2), np.zeros(2)])
    np.testing.assert_allclose(point_lens(THETA[:, :3], T), point_lens(full, T), rtol=1e-14)


def test_point_lens_depends_only_on_time_in_einstein_times():
    stretched = THETA * [3.0, 1.0, 3.0, 1.0, 1.0]
    np.testing.assert_allclose(point_lens(stretched, 3.0 * T), point_lens(THETA, T), rtol=1e-13)


def test_point_lens_of_one_grid_equals_that_grid_for_each_row():
    np.testing.assert_array_equal(point_lens(THETA, T), point_lens(THETA, np.stack([T, T])))


def test_point_lens_gradient_equals_finite_differences():
    theta = torch.tensor(THETA, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: point_lens(p, torch.tensor(T)), theta)


def test_point_lens_gradient_is_finite_at_the_peak_and_far_from_it():
    theta = torch.tensor([[50.0, 1e-6, 1e-3]], dtype=torch.float64, requires_grad=True)
    point_lens(theta, torch.tensor([50.0, 50.001, 1e6], dtype=torch.float64)).sum().backward()
    assert torch.isfinite(theta.grad).all()


def test_point_lens_refuses_another_number_of_parameters():
    with pytest.raises(ValueError, match=r"theta must have shape \(n, 3\) or \(n, 5\).*\(4, 2\)"):
        point_lens(np.ones((4, 2)), T)


def test_point_lens_is_found_to_be_vectorised_and_differentiable():
    season = Season()
    theta = season.prior.sample(16, 0)
    bound = bind(Simulator(point_lens), theta, {"t": season.t}, frozenset())
    assert (bound.vectorized, bound.differentiable, bound.stochastic) == (True, True, False)
    assert bound.shape == (1, len(season.t))


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
def test_point_lens_agrees_with_mulensmodel():
    mm = pytest.importorskip("MulensModel")
    model = mm.Model({"t_0": 48.0, "u_0": 0.1, "t_E": 12.0})
    np.testing.assert_allclose(
        point_lens(THETA[:1, :3], T)[0], model.get_magnification(T), rtol=1e-9
    )


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("ra", "dec"), [(269.0, -29.0), (10.0, 60.0), (180.0, -66.56)])
def test_parallax_agrees_with_mulensmodel(ra, dec):
    mm = pytest.importorskip("MulensModel")
    names = ("t_0", "u_0", "t_E", "pi_E_N", "pi_E_E")
    rng = np.random.default_rng(0)
    t = 2457000.0 + np.sort(rng.uniform(-500, 900, 300))
    for row in rng.uniform((2457000, -1, 20, -1, -1), (2457400, 1, 200, 1, 1), (5, 5)):
        parameters = dict(zip(names, row, strict=True)) | {"t_0_par": 2457200.5}
        expected = mm.Model(parameters, coords=f"{ra}d {dec}d").get_magnification(t)
        found = PointLensParallax(ra, dec, 2457200.5)(row[None], t)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_parallax_of_nothing_is_a_point_lens():
    theta = np.insert(THETA, 3, np.zeros((2, 2)), axis=1)
    np.testing.assert_allclose(EVENT(theta, T), point_lens(THETA, T), rtol=1e-13)


def test_parallax_vanishes_at_the_reference_time_as_the_square_of_time():
    theta = np.array([[50.0, 0.3, 20.0, 0.8, -0.6]])
    still = np.array([[50.0, 0.3, 20.0]])
    dt = np.array([0.0, 0.1, 0.2])
    effect = np.abs(EVENT(theta, 50.0 + dt) - point_lens(still, 50.0 + dt))[0]
    assert effect[0] < 1e-9
    assert effect[2] == pytest.approx(4 * effect[1], rel=0.05)


def test_parallax_displaces_by_the_acceleration_of_the_earth():
    # at the pole of the ecliptic the Earth's circle is seen face on: 0.0172^2 au/day^2
    pole = AnnualParallax(270.0, 66.56, 2457000.0)
    north, east = pole.offsets(np.array([2457001.0, 2456999.0])).T
    np.testing.assert_allclose(np.hypot(north, east), 0.5 * (2 * np.pi / 365.25) ** 2, rtol=0.05)


def test_parallax_of_another_clock_is_the_same():
    theta = np.array([[50.0, 0.3, 20.0, 0.8, -0.6]])
    full = PointLensParallax(269.0, -29.0, 2457050.0)
    later = theta + [2457000.0, 0, 0, 0, 0]
    np.testing.assert_allclose(full(later, T + 2457000.0), EVENT(theta, T), rtol=1e-8)


def test_parallax_on_the_ecliptic_cannot_tell_on_which_side_the_lens_passes():
    # there the Earth moves to east and west alone, and (u0, piEN) -> -(u0, piEN) changes nothing
    on_ecliptic = PointLensParallax(270.0, -23.4393, t0_par=50.0, offset=2457000.0)
    theta = np.array([[50.0, 0.3, 40.0, 0.4, -0.6], [50.0, -0.3, 40.0, -0.4, -0.6]])
    one, other = on_ecliptic(theta, T)
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_parallax_refuses_times_out_of_reach():
    with pytest.raises(ValueError, match=r"t must lie within 3652.5 days of 2457050.0"):
        EVENT(np.ones((1, 5)), np.array([5000.0]))


def test_parallax_leaves_its_table_behind_when_pickled():
    theta = np.array([[50.0, 0.3, 20.0, 0.8, -0.6]])
    expected = EVENT(theta, T)
    again = pickle.loads(pickle.dumps(EVENT))  # noqa: S301
    assert len(pickle.dumps(EVENT)) < 1000
    assert again == EVENT == copy.deepcopy(EVENT)
    np.testing.assert_array_equal(again(theta, T), expected)


def test_season_data_scatter_about_their_light_curves_by_their_errors():
    season = Season()
    seen, theta = season.observe(200, seed=1)
    residual = (seen.x[:, 0] - point_lens(theta, season.t)) / seen.x_err[:, 0]
    chi2, n = (residual**2).sum(), residual.size
    assert abs(chi2 - n) < 4 * math.sqrt(2 * n)


def test_season_errors_differ_between_events_and_within_each():
    errors = Season().errors(300, np.random.default_rng(0))
    levels = np.median(errors, 1)
    assert levels.max() > 5 * levels.min()
    assert (errors.std(1) > 0.1 * levels).all()


def test_season_of_one_seed_is_the_same_again():
    (a, theta_a), (b, theta_b) = Season().observe(3, seed=5), Season().observe(3, seed=5)
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(theta_a, theta_b)


def _excess_in_many_digits(u):
    """Return A - 1 from the textbook formula, in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        v = Decimal(u)
        return float((v * v + 2) / (v * (v * v + 4).sqrt()) - 1)
