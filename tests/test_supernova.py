"""Laws of the Bazin curve: the formula in many digits, limits, bands."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from nbi_plus.models.supernova import BazinBands, bazin

T = np.linspace(-100.0, 400.0, 57)
THETA = np.array([[50.0, 3.0, 30.0, 7.0, 0.5], [40.3, 0.2, 60.0, 2.0, -1.0]])


def test_bazin_equals_its_formula_in_many_digits():
    expected = [[_bazin_in_many_digits(row, t) for t in T] for row in THETA]
    np.testing.assert_allclose(bazin(THETA, T), expected, rtol=1e-13)


def test_bazin_is_half_its_scale_at_t0():
    flux = bazin(THETA, THETA[:, :1])[:, 0]
    np.testing.assert_allclose(flux, THETA[:, 3] / 2 + THETA[:, 4], rtol=1e-15)


def test_bazin_peaks_where_its_derivative_vanishes():
    rise, fall = THETA[0, 1:3]
    peak = THETA[0, 0] + rise * np.log(fall / rise - 1)
    flux = bazin(THETA[:1], peak + np.array([-0.1, 0.0, 0.1]))[0]
    assert flux.argmax() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bazin_far_from_the_explosion_is_its_background_with_a_finite_gradient(dtype):
    theta = torch.tensor(THETA, dtype=dtype, requires_grad=True)
    flux = bazin(theta, torch.tensor([-1e9, -1e5, 1e5, 1e9], dtype=dtype))
    assert torch.equal(flux.detach(), theta.detach()[:, 4:].expand(2, 4))
    flux.sum().backward()
    assert torch.isfinite(theta.grad).all()


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float64])
def test_bazin_bands_are_curves_of_one_band_each(kind):
    band = np.arange(len(T)) % 3
    model = BazinBands(3, background=True)
    scales, backgrounds = np.array([[1.0, 2.0, 3.0]] * 2), np.array([[4.0, 5.0, 6.0]] * 2)
    found = model(np.hstack([THETA[:, :3], scales, backgrounds]), T, band.astype(kind))
    for i in range(3):
        alone = np.column_stack([THETA[:, :3], scales[:, i], backgrounds[:, i]])
        np.testing.assert_allclose(found[:, band == i], bazin(alone, T[band == i]), rtol=1e-14)


def test_bazin_bands_may_differ_from_row_to_row():
    theta = np.hstack([THETA[:, :3], [[1.0, 2.0]] * 2])
    band = np.stack([np.zeros(len(T), int), np.ones(len(T), int)])
    found = BazinBands(2)(theta, T, band)
    one = np.column_stack([THETA[:, :3], [1.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(found, bazin(one, T), rtol=1e-14)


@pytest.mark.parametrize("wrong", [-1, 2])
def test_bazin_bands_refuse_codes_that_they_do_not_have(wrong):
    band = np.zeros(len(T), int)
    band[3] = wrong
    with pytest.raises(ValueError, match="band must hold codes 0 to 1, but reaches from"):
        BazinBands(2)(np.ones((4, 5)), T, band)


def _bazin_in_many_digits(row, t):
    with localcontext() as context:
        context.prec = 60
        t0, rise, fall, scale, background = (Decimal(float(v)) for v in row)
        x = Decimal(float(t)) - t0
        return float(scale * (-x / fall).exp() / (1 + (-x / rise).exp()) + background)
