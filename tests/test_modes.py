"""Laws of telling separate modes."""

from __future__ import annotations

import pytest
import torch

from nbi_plus.infer.posterior.modes import separate_modes
from nbi_plus.problem.random import keyed_normal, keyed_uniform

KEYS = torch.arange(200)


def equal_weights(z):
    return torch.full(z.shape[:2], 1.0 / z.shape[1], dtype=torch.float64)


SHAPES = {
    "normal": lambda n: keyed_normal(0, "z", KEYS, (n, 2)),
    "uniform": lambda n: keyed_uniform(0, "z", KEYS, (n, 2)),
    "exponential": lambda n: -keyed_uniform(0, "z", KEYS, (n, 2)).log(),
    "heavy": lambda n: keyed_normal(0, "z", KEYS, (n, 2)) / keyed_uniform(1, "u", KEYS, (n, 1)),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_one_mode_is_one(shape):
    z = SHAPES[shape](500)
    assert separate_modes(z, equal_weights(z)).double().mean() <= 0.01


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("gap", [8.0, 100.0])
def test_two_modes_are_two(share, gap):
    z = keyed_normal(0, "z", KEYS, (500, 2))
    z[..., 1] += gap * (keyed_uniform(1, "side", KEYS, (500,)) < share)
    assert separate_modes(z, equal_weights(z)).double().mean() >= 0.99
    assert not separate_modes(z[..., :1], equal_weights(z)).any()


def test_a_mode_without_weight_does_not_count():
    z = keyed_normal(0, "z", KEYS, (500, 1))
    far = keyed_uniform(1, "side", KEYS, (500,)) < 0.5
    z[..., 0] += 50.0 * far
    weights = torch.where(far, 0.0, 1.0).double()
    assert not separate_modes(z, weights / weights.sum(1, keepdim=True)).any()
    assert not separate_modes(z, torch.zeros_like(weights)).any()


def test_scale_and_place_change_nothing():
    z = keyed_normal(0, "z", KEYS, (500, 1))
    z += 6.0 * (keyed_uniform(1, "side", KEYS, (500, 1)) < 0.3)
    moved = 1e6 + 1e-3 * z
    assert torch.equal(separate_modes(z, equal_weights(z)), separate_modes(moved, equal_weights(z)))
