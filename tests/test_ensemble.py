"""Laws of the ensemble sampler for black boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from densities import Bimodal, Normal, far_modes, normals

from nbi_plus.infer.samplers import ensemble

CONFIG = ensemble.EnsembleConfig()


def test_moments_of_a_correlated_normal():
    axes = torch.linalg.qr(normals(0, 5, 5)).Q
    cov = axes @ torch.logspace(0, -2, 5).double().diag() @ axes.T
    factor, mean = torch.linalg.cholesky(cov), normals(1, 5)

    def log_prob(z):
        u = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False)
        return -0.5 * u.square().sum(0)

    found = ensemble.sample(log_prob, normals(2, 64, 5), seed=3)
    u = torch.linalg.solve_triangular(factor, (found.samples.flatten(0, 1) - mean).T, upper=False)
    n = min(float(found.ess.min()), u.shape[1])
    assert found.converged
    assert u.mean(1).abs().max() < 4.5 / n**0.5
    assert (u.var(1) - 1).abs().max() < 4.5 * (2 / n) ** 0.5 + 0.02


def test_independence_moves_weigh_separate_modes():
    target = Bimodal(n_dim=3, apart=0.5, sd=0.05, share=0.3)
    jumps = Bimodal(n_dim=3, apart=0.5, sd=0.1, share=0.5)
    z0 = jumps.draw(torch.tensor([0]), 64, 0, "start")[0]
    found = ensemble.sample(target.log_prob, z0, seed=1, jumps=jumps)
    share = float((found.samples[..., 0] < 0).double().mean())
    assert found.converged
    assert share == pytest.approx(0.3, abs=4.5 * (0.21 / float(found.ess.min())) ** 0.5)


def test_seed_decides_and_global_generators_stay():
    target = Normal.standard(1, 2)
    log_prob = lambda z: target.log_prob(z[None])[0]  # noqa: E731
    z0 = normals(0, 64, 2)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (ensemble.sample(log_prob, z0, seed=s).samples for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_calls_stay_within_the_budget_and_short_walks_are_not_believed():
    n_calls = 0

    def log_prob(z):
        nonlocal n_calls
        n_calls += len(z)
        return -0.5 * z.square().sum(-1)

    found = ensemble.sample(log_prob, normals(0, 64, 2), seed=0, max_calls=5000)
    assert n_calls <= 5000
    assert not found.converged
    nothing = ensemble.sample(log_prob, normals(0, 64, 2), seed=0, max_calls=64)
    assert nothing.n_steps == 0
    assert torch.equal(nothing.samples[:, 0], normals(0, 64, 2))


def test_a_walk_ends_at_the_step_after_its_time():
    n_calls = 0

    def log_prob(z):
        nonlocal n_calls
        n_calls += len(z)
        return -0.5 * z.square().sum(-1)

    found = ensemble.sample(log_prob, normals(0, 64, 2), seed=0, over=lambda: n_calls > 64 * 30)
    assert n_calls <= 64 * 32
    assert 20 <= found.n_steps <= 31
    assert not found.converged


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_impossible_places_are_never_kept(bad):
    def log_prob(z):
        return torch.where(z[:, 0] < 0, bad, -0.5 * z.square().sum(-1))

    found = ensemble.sample(log_prob, normals(0, 64, 2).abs(), seed=0, max_calls=64_000)
    assert (found.samples[..., 0] >= 0).all()


def test_stuck_walkers_do_not_converge():
    """Only the very starting places are possible."""
    z0 = normals(0, 64, 2)

    def log_prob(z):
        known = (z[:, None] == z0).all(-1).any(1)
        return torch.where(known, 0.0, -math.inf).double()

    found = ensemble.sample(log_prob, z0, seed=0, max_calls=100_000)
    assert not found.converged


def test_jumps_from_a_mixture_give_every_walker_every_component():
    """A mixture draws in the order of its components; walkers must not inherit that order."""
    jumps, log_prob, starts = far_modes(n=64)
    found = ensemble.sample(log_prob, starts, seed=0, jumps=jumps)
    share = float((found.samples[..., 0] < 0).double().mean())
    assert found.converged
    assert share == pytest.approx(0.8, abs=4.5 * (0.16 / float(found.ess.min())) ** 0.5)
