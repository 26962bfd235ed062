"""The example of drift diffusion: its density against another series, its mass and its draws."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLE = runpy.run_path(
    str(Path(__file__).parents[1] / "examples" / "ratio_drift_diffusion.py"), run_name="example"
)
THETA = torch.tensor([[1.0, 1.5, 0.4, 0.3]], dtype=torch.float64)


def density(grid, choice):
    """Return the density (n,) of reaction times with a choice."""
    x = torch.stack([grid.log(), torch.full_like(grid, choice)], 1)
    return (EXAMPLE["log_density"](THETA, x) - grid.log()).exp()


def test_series_of_early_and_of_late_times_agree():
    u = torch.linspace(0.15, 0.6, 10, dtype=torch.float64)
    for start in (0.25, 0.5, 0.75):
        w = torch.full_like(u, start)
        torch.testing.assert_close(
            EXAMPLE["small_time"](u, w), EXAMPLE["large_time"](u, w), rtol=1e-10, atol=0
        )


def test_shares_of_choices_are_those_of_a_gambler():
    """That of the lower boundary is (e^{-2va} - e^{-2vza}) / (e^{-2va} - 1) (Wald)."""
    v, a, z, t = THETA[0].tolist()
    grid = t + torch.linspace(1e-5, 15, 100_001, dtype=torch.float64)
    lower, upper = (torch.trapezoid(density(grid, c), grid).item() for c in (0.0, 1.0))
    whole, part = np.exp(-2 * v * a), np.exp(-2 * v * z * a)
    assert lower == pytest.approx((whole - part) / (whole - 1), abs=1e-6)
    assert lower + upper == pytest.approx(1, abs=1e-6)


def test_draws_have_the_density():
    n = 100_000
    torch.manual_seed(0)
    x = EXAMPLE["trial"](THETA.expand(n, 4))
    grid = THETA[0, 3] + torch.linspace(1e-5, 15, 50_001, dtype=torch.float64)
    for choice in (0.0, 1.0):
        own = x[x[:, 1] == choice, 0].exp()
        height = density(grid, choice)
        mass = torch.trapezoid(height, grid)
        mean = torch.trapezoid(height * grid, grid) / mass
        assert abs(len(own) / n - mass) < 4 * (mass * (1 - mass) / n) ** 0.5
        assert abs(own.mean() - mean) < 4 * own.std() / len(own) ** 0.5
        share = np.interp(own.sort().values, grid[1:], torch.cumulative_trapezoid(height, grid))
        steps = mass * (torch.arange(len(own)) + 0.5) / len(own)
        # the largest distance of a true distribution: 1e-6 of them have more (Kolmogorov)
        assert (torch.as_tensor(share) - steps).abs().max() < 2.7 * mass / len(own) ** 0.5


def test_example_runs():
    tiny = {"n_sims": 500, "n_epochs": 1, "n_sets": 1, "n_covered": 2, "n_trials": 5}
    found, wanted = EXAMPLE["main"](**tiny)
    assert [len(found), len(wanted)] == [2, 1]
