"""Laws of the diagnostics of Markov chains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from densities import normals

from nbi_plus.infer.samplers import diagnostics as chains
from nbi_plus.infer.samplers.diagnostics import bulk_ess, chain_ess, folded, nested_r_hat, tail_ess


def autoregressive(phi, n_objects, n_chains, n_steps, seed=0):
    noise = normals(seed, n_objects, n_chains, n_steps, 1)
    x = noise.clone()
    for t in range(1, n_steps):
        x[:, :, t] = phi * x[:, :, t - 1] + (1 - phi**2) ** 0.5 * noise[:, :, t]
    return x


@pytest.mark.parametrize(
    ("n_super", "n_each", "n_steps"), [(16, 128, 1), (8, 8, 25), (16, 4, 50), (8, 8, 10)]
)
def test_nested_r_hat_of_independent_draws_follows_its_law(n_super, n_each, n_steps):
    """(R^2 - 1) (K - 1) M N is chi-square with K - 1 degrees of freedom.

    Within superchains the means of chains scatter, too, by a share of 1 / N.
    """
    n = 2000
    x = normals(1, n, n_super * n_each, n_steps, 1)
    within = 1 + 1 / n_steps if n_steps > 1 else 1.0
    scaled = (nested_r_hat(x, n_super).square() - 1)[:, 0] * n_each * n_steps * within
    assert float(scaled.mean()) == pytest.approx(1.0, abs=4 * (2 / (n_super - 1) / n) ** 0.5 + 0.01)
    assert float(scaled.var()) == pytest.approx(2 / (n_super - 1), rel=0.3)


@pytest.mark.parametrize(
    ("n_super", "n_each", "n_steps", "share"),
    [(16, 128, 1, 1.0), (16, 16, 1, 0.0), (8, 8, 1, 0.0), (8, 8, 10, 0.62), (8, 8, 25, 1.0)],
)
def test_a_threshold_of_one_percent_needs_enough_draws(n_super, n_each, n_steps, share):
    x = normals(2, 1000, n_super * n_each, n_steps, 5)
    passes = float((nested_r_hat(x, n_super) <= 1.01).all(1).double().mean())
    assert passes == pytest.approx(share, abs=0.06)


def test_nested_r_hat_sees_superchains_that_disagree():
    x = normals(3, 20, 64, 50, 2)
    moved = x.clone()
    moved[:, :8, :, 1] += 0.5
    assert (nested_r_hat(x, 8) < 1.01).all()
    assert (nested_r_hat(moved, 8)[:, 1] > 1.01).all()
    assert (nested_r_hat(moved, 8)[:, 0] < 1.01).all()


def test_folding_sees_scales_that_disagree():
    x = normals(4, 20, 64, 50, 1)
    x[:, :32] *= 1.5
    assert (nested_r_hat(x, 8) < 1.01).all()
    assert (nested_r_hat(folded(x), 8) > 1.01).all()


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_effective_sample_size_of_autoregressions(phi):
    n_chains, n_steps = 16, 600
    truth = n_chains * n_steps * (1 - phi) / (1 + phi)
    found = chain_ess(autoregressive(phi, 30, n_chains, n_steps))[:, 0]
    assert float(found.mean()) == pytest.approx(truth, rel=0.1)


def test_effective_sample_size_matches_the_scatter_of_means():
    x = autoregressive(0.7, 400, 8, 200, seed=5)
    means = x.mean((1, 2))[:, 0]
    assert float(1 / means.var()) == pytest.approx(float(chain_ess(x).mean()), rel=0.25)


def test_bulk_and_tail_look_at_more_than_the_mean():
    """The sign flips at random, its size hardly moves: the mean alone would see no trouble."""
    size = autoregressive(0.98, 10, 16, 400, seed=6).abs()
    sign = (normals(7, *size.shape) > 0).double() * 2 - 1
    x = sign * (0.2 + size)
    assert (chain_ess(x) > 5 * bulk_ess(x)).all()
    assert (chain_ess(x) > 3 * tail_ess(x)).all()


def test_short_and_long_series_are_counted_alike():
    """Short ones by products, long ones by transforms."""
    x = autoregressive(0.6, 3, 8, 180, seed=9)[:, :, :, 0, None].transpose(2, 3)
    short = chains._autocovariance(x[..., :90])
    padded = torch.nn.functional.pad(x[..., :90], (0, 90))
    assert torch.allclose(short, chains._autocovariance(padded)[..., :90] * 2, rtol=1e-12)


def test_stuck_chains_have_no_effective_draws():
    x = torch.ones(2, 8, 20, 1, dtype=torch.float64)
    assert chain_ess(x).tolist() == [[0.0], [0.0]]
    assert torch.isinf(nested_r_hat(x, 4)).all()


def test_diagnostics_do_not_depend_on_other_objects():
    x = normals(8, 5, 16, 30, 2)
    for law in (chain_ess, bulk_ess, tail_ess, lambda v: nested_r_hat(v, 4)):
        assert np.allclose(law(x)[3], law(x[3:4])[0], rtol=1e-12)
