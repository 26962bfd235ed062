"""Laws of the sawtooth: the sinusoid, the period, the shape, single precision."""

import numpy as np
import pytest
import torch

from nbi_plus.models.periodic import sawtooth

T = np.linspace(-3.0, 5.0, 1201)
SHAPES = [0.0, 0.3, 0.7, 1.0, 1.25]


def cycle(skew, n=20_000):
    """Return phases (n,) and the curve of one cycle."""
    phase = np.arange(n) / n
    return phase, sawtooth(np.array([[1.0, 0.0, skew]]), phase)[0]


def test_without_skew_it_is_a_sinusoid():
    expected = -np.cos(2 * np.pi * (T / 0.7 - 0.3))
    np.testing.assert_allclose(sawtooth(np.array([[0.7, 0.3, 0.0]]), T)[0], expected, atol=1e-13)


def test_it_is_its_formula():
    period, phase, s = 0.53, 0.81, 0.9
    x = 2 * np.pi * (T / period - phase)
    warp = 0.45 * s**2 * np.sin(x) - 0.3 * s**2 * np.sin(2 * x) + 0.13 * s**3 * np.cos(2 * x)
    expected = -np.cos(x + s * np.cos(x) + warp)
    np.testing.assert_allclose(sawtooth(np.array([[period, phase, s]]), T)[0], expected, atol=1e-12)


@pytest.mark.parametrize("skew", SHAPES)
def test_it_repeats_after_a_period_and_after_a_cycle_of_phase(skew):
    theta = np.array([[0.6, 0.2, skew], [0.6, 1.2, skew]])
    first = sawtooth(theta, T)
    np.testing.assert_allclose(first[1], first[0], atol=1e-12)
    np.testing.assert_allclose(sawtooth(theta, T + 7 * 0.6), first, atol=1e-11)


@pytest.mark.parametrize("skew", SHAPES)
def test_it_fills_its_range(skew):
    curve = cycle(skew)[1]
    assert curve.min() == pytest.approx(-1, abs=1e-6)
    assert curve.max() == pytest.approx(1, abs=1e-6)


def test_the_rise_is_the_shorter_the_more_skew_there_is():
    def rise(skew):
        phase, curve = cycle(skew)
        return (phase[curve.argmin()] - phase[curve.argmax()]) % 1.0

    lasts = [rise(skew) for skew in SHAPES[:4]]
    assert lasts[0] == pytest.approx(0.5, abs=1e-3)
    assert (np.diff(lasts) < -0.03).all()
    assert lasts[-1] < 0.25


def test_thousands_of_cycles_cost_no_more_than_single_precision_of_theta():
    theta = torch.tensor([[0.5, 0.25, 0.8]])  # a half and a quarter have no rounding error
    t = torch.linspace(-2000, 2000, 999).double()
    fine = sawtooth(theta.double(), t)
    coarse = sawtooth(theta, t)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), fine, atol=1e-6, rtol=0)


def test_gradients_are_those_of_differences():
    theta = torch.tensor([[0.51, 0.3, 0.9], [0.8, 0.9, 0.1]], dtype=torch.float64)
    t = torch.linspace(-2, 2, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: sawtooth(p, t), theta.requires_grad_(True))
