"""Laws that every shipped model keeps: kinds of arrays, shapes, gradients, what it refuses."""

import math

import numpy as np
import pytest
import torch

from nbi_plus import Simulator
from nbi_plus.models.microlensing import PointLensParallax, point_lens
from nbi_plus.models.radial_velocity import Orbits
from nbi_plus.models.spectrum import EmissionLines, emission_line
from nbi_plus.models.supernova import BazinBands, bazin
from nbi_plus.models.transit import Transit, quadratic_transit
from nbi_plus.models.variability import damped_random_walk
from nbi_plus.problem.simulator.simulator import bind

N = 3
T = np.linspace(2.0, 98.0, 23)
NORMALS = np.random.default_rng(0).standard_normal((N, len(T)))
BAND = np.arange(len(T)) % 2
PARALLAX = PointLensParallax(269.0, -29.0, t0_par=50.0, offset=2457000.0)

# model, ranges of its parameters, and its arguments after theta
MODELS = {
    "point_lens": (point_lens, [(40, 60), (0.1, 0.5), (10, 20), (1, 2), (0, 1)], {"t": T}),
    "parallax": (
        PARALLAX,
        [(40, 60), (0.1, 0.5), (30, 50), (-0.5, 0.5), (-0.5, 0.5), (1, 2), (0, 1)],
        {"t": T},
    ),
    "bazin": (bazin, [(40, 60), (2, 5), (10, 30), (1, 2), (0, 1)], {"t": T}),
    "bazin_bands": (
        BazinBands(2, background=True),
        [(40, 60), (2, 5), (10, 30), (1, 2), (3, 4), (0, 1), (5, 6)],
        {"t": T, "band": BAND},
    ),
    "orbits": (
        Orbits(2, n_trend=3, time_base=50.0),
        2 * [(8, 30), (0, 5), (-0.6, 0.6), (-0.6, 0.6), (1, 10)]
        + [(-1, 1), (-0.1, 0.1), (-0.01, 0.01)],
        {"t": T},
    ),
    "transit": (
        quadratic_transit,
        [(48, 52), (300, 500), (0.05, 0.2), (4, 8), (0, 0.5), (0.1, 0.5), (0.1, 0.3)],
        {"t": T},
    ),
    "transit_eccentric": (
        Transit(exposure=1.0, n_samples=3),
        [(48, 52), (300, 500), (0.05, 0.2), (4, 8), (0, 0.5), (0.1, 0.5), (0.1, 0.3)]
        + 2 * [(-0.5, 0.5)],
        {"t": T},
    ),
    "walk": (damped_random_walk, [(0, 1), (1, 2), (5, 30)], {"t": T, "normals": NORMALS}),
    "line": (emission_line, [(1, 2), (40, 60), (3, 8), (1, 2), (-0.1, 0.1)], {"wavelength": T}),
    "lines": (
        EmissionLines((40.0, 50.0), resolution=10.0, degree=2),
        [(0, 0.2), (1000, 9000), (1, 2), (1, 2), (1, 2), (-0.1, 0.1), (-0.01, 0.01)],
        {"wavelength": T},
    ),
}
every = pytest.mark.parametrize("name", MODELS)


def setting(name, dtype=None):
    """Return a model, theta (N, P) and the model's other arguments, in numpy or in torch."""
    f, ranges, coords = MODELS[name]
    low, high = np.array(ranges, float).T
    theta = np.random.default_rng(1).uniform(low, high, (N, len(ranges)))
    if dtype is None:
        return f, theta, coords
    coords = {k: torch.tensor(v) for k, v in coords.items()}
    return f, torch.tensor(theta, dtype=dtype), coords


@every
def test_model_is_numpy_in_numpy_out_and_torch_in_torch_out(name):
    f, theta, coords = setting(name)
    there = f(torch.tensor(theta), **{k: torch.tensor(v) for k, v in coords.items()})
    here = f(theta, *coords.values())
    assert isinstance(here, np.ndarray)
    assert here.dtype == np.float64
    assert here.shape == (N, len(T))
    np.testing.assert_allclose(there.numpy(), here, rtol=1e-13)


@every
def test_model_in_single_precision_is_close_to_double(name):
    f, theta, coords = setting(name, torch.float32)
    if name == "point_lens":  # which takes the finer of theta's precision and t's
        coords = {"t": coords["t"].float()}
    single, double = f(theta, **coords), f(theta.double(), **coords)
    assert single.dtype == torch.float32
    scale = double.abs().max()
    assert (single - double).abs().max() < 1e-5 * scale


@every
def test_model_of_one_grid_equals_that_grid_for_each_row(name):
    f, theta, coords = setting(name)
    own = {k: np.broadcast_to(v, (N, len(T))) for k, v in coords.items()}
    np.testing.assert_allclose(f(theta, **own), f(theta, **coords), rtol=1e-13)


@every
def test_model_of_one_row_equals_that_row_of_many(name):
    f, theta, coords = setting(name)
    one = {k: v[1:2] if v.ndim == 2 else v for k, v in coords.items()}
    np.testing.assert_allclose(f(theta[1:2], **one)[0], f(theta, **coords)[1], rtol=1e-13)


@every
def test_model_gradient_equals_finite_differences(name):
    f, theta, coords = setting(name, torch.float64)
    theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: f(p, **coords), theta)


@every
def test_model_leaves_its_arguments_alone(name):
    f, theta, coords = setting(name)
    before = theta.copy(), {k: v.copy() for k, v in coords.items()}
    f(theta, **coords)
    np.testing.assert_array_equal(theta, before[0])
    for k, v in coords.items():
        np.testing.assert_array_equal(v, before[1][k])


@every
def test_model_refuses_another_number_of_parameters(name):
    f, theta, coords = setting(name)
    wrong = np.ones((N, 50))
    with pytest.raises(ValueError, match=rf"theta must have shape \(n, \d.*has \({N}, 50\)"):
        f(wrong, **coords)


@every
def test_model_is_found_to_be_vectorised_and_differentiable(name):
    f, theta, coords = setting(name)
    per_row = frozenset(k for k, v in coords.items() if v.ndim == 2)
    theta = np.tile(theta, (4, 1))
    coords = {k: np.tile(v, (4, 1)) if k in per_row else v for k, v in coords.items()}
    bound = bind(Simulator(f), theta, coords, per_row)
    assert (bound.vectorized, bound.differentiable, bound.stochastic) == (True, True, False)
    assert bound.shape == (1, len(T))


def test_models_take_integers_of_numpy_as_floats_and_refuse_those_of_torch():
    theta, t = np.array([[48, 2, 20, 7, 1]]), np.arange(40, 90)
    np.testing.assert_array_equal(bazin(theta, t), bazin(theta.astype(float), t.astype(float)))
    with pytest.raises(TypeError, match=r"theta must have a floating dtype, but has torch.int64"):
        bazin(torch.tensor(theta), torch.tensor(t))


def test_models_read_foreign_and_frozen_arrays():
    f, theta, coords = setting("bazin")
    expected = f(theta, **coords)
    foreign = theta.astype(">f8")  # as a FITS table has it
    backwards = coords["t"][::-1]
    frozen = theta.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(f(foreign, backwards)[:, ::-1], expected)
    np.testing.assert_array_equal(f(frozen, **coords), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Orbits(0), "n_planets must be 1 or more, but is 0"),
        (lambda: Orbits(n_trend=4), "n_trend must be 0 to 3"),
        (lambda: BazinBands(0), "n_bands must be 1 or more, but is 0"),
        (lambda: Transit(exposure=-1.0), "exposure must be 0 or more and finite, but is -1"),
        (lambda: Transit(n_samples=0), "n_samples must be 1 or more, but is 0"),
        (lambda: EmissionLines(()), r"rest must hold positive wavelengths, but is \(\)"),
        (lambda: EmissionLines((1.0,), resolution=0.0), "resolution must be positive, but is 0"),
        (lambda: EmissionLines((1.0,), degree=-1), "degree must be 0 or more, but is -1"),
        (lambda: PointLensParallax(0.0, 91.0, 2457000.0), "dec must be in degrees"),
        (lambda: PointLensParallax(0.0, 0.0, 7000.0), "within the years 1900 to 2100"),
        (lambda: PointLensParallax(0.0, 0.0, math.nan), "within the years 1900 to 2100"),
    ],
)
def test_models_refuse_impossible_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
