"""Laws of t-mixtures: what they draw, how they are fitted, and what breaks no fit."""

import math

import numpy as np
import pytest
import torch
from densities import Banana, Bimodal, Normal, efficiency, normals, share_of_mass, uniforms
from scipy import stats
from scipy.special import logsumexp

from nbi_plus.infer.ladder import MixtureConfig
from nbi_plus.infer.proposals.mixture import (
    _MODE_SCALES,
    StudentMixture,
    around,
    fit_mixture,
    temper,
)
from nbi_plus.infer.weights.summary import normalise

N_DIM = 3
LABELS = torch.tensor([41, 7, 2**40, 0])


def some_mixture(n=4, k=3, d=N_DIM, seed=0):
    lower = torch.tril(0.3 * normals(seed, n, k, d, d), -1)
    factors = lower + (0.3 * normals(seed + 1, n, k, d)).exp().diag_embed()
    shares = uniforms(seed + 2, n, k).log_softmax(1)
    return StudentMixture(shares, 1.5 * normals(seed + 3, n, k, d), factors, 10.0)


def moments(mixture):
    """Return the exact means (B, D) and covariances (B, D, D)."""
    shares = mixture.log_shares.exp()[..., None]
    mean = (shares * mixture.means).sum(1)
    scale = mixture.factors @ mixture.factors.mT * mixture.dof / (mixture.dof - 2)
    apart = mixture.means - mean[:, None]
    between = apart[..., None] * apart[..., None, :]
    return mean, (shares[..., None] * (scale + between)).sum(1)


def weighted(target, proposal, keys, n, seed=1):
    """Return draws of a proposal and their normalised weights."""
    z = proposal.draw(keys, n, seed, "learn")
    return z, normalise(target.log_prob(z) - proposal.log_prob(z))


def fitted(target, proposal, keys, n=2000, n_components=None):
    z, weights = weighted(target, proposal, keys, n)
    config = MixtureConfig(n_components=n_components)
    return fit_mixture(z, weights, keys, config, 3, "fit")


# --- draws and densities ------------------------------------------------------------------------


def test_draws_follow_the_density():
    mixture, n = some_mixture(), 20_000
    z = mixture.draw(LABELS, n, 5, "draw")
    mean, cov = moments(mixture)
    each = (z - mean[:, None])[..., None] * (z - mean[:, None])[..., None, :]
    assert ((z.mean(1) - mean).abs() < 4.5 * z.std(1) / n**0.5).all()
    assert ((each.mean(1) - cov).abs() < 4.5 * each.std(1) / n**0.5).all()
    # and not in two moments alone: E_q[p / q] = 1 and E_q[p^2 / q^2] for a normal p, from both
    wide = Normal(mean[:, None], cov.diagonal(dim1=1, dim2=2).sqrt()[:, None])
    other = wide.draw(LABELS, n, 6, "other")
    ratio = (wide.log_prob(z) - mixture.log_prob(z)).exp()
    twin = (wide.log_prob(other) - mixture.log_prob(other)).exp()
    assert ((ratio.mean(1) - 1).abs() < 4.5 * ratio.std(1) / n**0.5).all()
    error = ((ratio.square().var(1) + twin.var(1)) / n).sqrt()
    assert ((ratio.square().mean(1) - twin.mean(1)).abs() < 4.5 * error).all()


def test_the_density_is_normalised():
    value, error = share_of_mass(some_mixture(), 3.0, LABELS, n=100_000)
    assert ((value - 1).abs() < 4.5 * error).all()
    assert (error < 0.02).all()


def test_objects_do_not_see_each_other():
    mixture, z = some_mixture(), 2 * normals(9, 4, 50, N_DIM)
    drawn = mixture.draw(LABELS, 100, 5, "draw")
    order = torch.tensor([2, 0, 3, 1])
    shuffled = mixture.select(order)
    torch.testing.assert_close(shuffled.draw(LABELS[order], 100, 5, "draw"), drawn[order])
    for i in range(4):
        alone = mixture.select(torch.tensor([i]))
        own = slice(i, i + 1)
        torch.testing.assert_close(alone.draw(LABELS[own], 100, 5, "draw"), drawn[own])
        torch.testing.assert_close(
            alone.log_prob(z[own]), mixture.log_prob(z)[own], rtol=1e-12, atol=1e-12
        )
    assert not torch.equal(mixture.draw(LABELS + 1, 100, 5, "draw"), drawn)
    assert not torch.equal(mixture.draw(LABELS, 100, 5, "else"), drawn)


def test_components_get_their_share_of_the_draws():
    apart = torch.tensor([[[-50.0], [0.0], [50.0]]]).double()
    shares, factors = torch.tensor([[0.25, 0.05, 0.7]]).double(), torch.ones(1, 3, 1, 1).double()
    mixture = StudentMixture(shares.log(), apart, factors, 10.0)
    for n in (7, 100):
        z = mixture.draw(torch.tensor([3]), n, 0, "draw")
        counts = (z[0] - apart[0].mT).abs().argmin(-1).bincount(minlength=3)
        assert ((counts - n * shares[0]).abs() < 1 + 1e-9).all()


# --- tempering ----------------------------------------------------------------------------------


def test_temper_reaches_the_target_and_no_more():
    raw = 4 * normals(0, 20, 1000)
    raw[:, ::3] = -math.inf
    weights, beta = temper(raw, 150.0)
    assert ((beta > 0) & (beta < 1)).all()
    torch.testing.assert_close(1 / weights.square().sum(1), torch.full((20,), 150.0).double())
    assert (weights[:, ::3] == 0).all()
    # the shape is w^beta: log-weights stay in proportion
    slope = (weights[:, 1] / weights[:, 2]).log() / (raw[:, 1] - raw[:, 2])
    torch.testing.assert_close(slope, beta)


def test_temper_leaves_good_weights_alone():
    raw = 0.3 * normals(1, 5, 1000)
    weights, beta = temper(raw, 150.0)
    assert (beta == 1).all()
    torch.testing.assert_close(weights, raw.softmax(1))


@pytest.mark.parametrize("n_positive", [1, 3])
def test_temper_of_too_few_positive_draws_is_no_crash(n_positive):
    raw = torch.full((2, 100), -math.inf).double()
    raw[:, 10 : 10 + n_positive] = torch.arange(n_positive) * 500.0
    weights, beta = temper(raw, 50.0)
    torch.testing.assert_close(weights.sum(1), torch.ones(2).double())
    assert (weights[:, 10 : 10 + n_positive] >= 0).all()
    assert (weights[raw == -math.inf] == 0).all()
    assert beta.isfinite().all()


# --- fits ---------------------------------------------------------------------------------------


# a t of 7 degrees of freedom with a wide part reaches 0.91 and 0.86 when its moments are exact
@pytest.mark.parametrize(("n_dim", "least"), [(3, 0.86), (5, 0.8)])
def test_a_gaussian_is_found(n_dim, least):
    n, keys = 16, torch.arange(16)
    target = Normal(normals(20, n, 1, n_dim), (0.5 * normals(21, n, 1, n_dim) - 2).exp())
    proposal = Normal(target.mean + 0.3 * target.sd, 1.3 * target.sd)
    z, weights = weighted(target, proposal, keys, 2000)
    ess = 1 / weights.square().sum(1)[:, None]
    one = fit_mixture(z, weights, keys, MixtureConfig(n_components=1), 3, "fit")
    scale = one.factors[:, 0] @ one.factors[:, 0].mT / (target.sd.mT * target.sd)
    assert ((one.means[:, 0] - target.mean[:, 0]).abs() < 5 * target.sd[:, 0] / ess.sqrt()).all()
    error = (1 + torch.eye(n_dim)) ** 0.5 / ess[..., None].sqrt()
    assert ((scale - torch.eye(n_dim)).abs() < 6 * error).all()
    best = fit_mixture(z, weights, keys, MixtureConfig(), 3, "fit")
    for mixture in (one, best):
        assert efficiency(mixture, target, keys).mean() >= least
    assert efficiency(best, target, keys).min() >= least - 0.05


@pytest.mark.parametrize("n_components", [2, None])
@pytest.mark.parametrize("n_dim", [2, 3, 5])
def test_two_far_modes_are_both_kept(n_dim, n_components):
    target, keys = Bimodal(n_dim), torch.arange(16)  # each mode is 10 sd from the middle
    proposal = Bimodal(n_dim, sd=0.065, share=0.5)
    mixture = fitted(target, proposal, keys, 4000, n_components)
    left = (mixture.draw(keys, 2000, 0, "draw")[..., 0] < 0).double().mean(1)
    assert ((left - 0.3).abs() < 0.05).all()
    assert efficiency(mixture, target, keys).min() > 0.6
    assert efficiency(mixture, target, keys).mean() > 0.7


TARGETS = {
    "gaussian": (Normal.standard(12, 4), Normal.standard(12, 4).scaled(1.3)),
    "bimodal": (Bimodal(4), Bimodal(4, sd=0.065)),
    "banana": (Banana(0.6, 0.5), Banana(0.6, 0.6)),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_the_chosen_number_of_components_is_near_the_best(kind):
    (target, proposal), keys = TARGETS[kind], torch.arange(12)
    fixed = [
        efficiency(fitted(target, proposal, keys, 1500, k), target, keys).mean()
        for k in (1, 2, 4, 8, 16)
    ]
    chosen = efficiency(fitted(target, proposal, keys, 1500), target, keys).mean()
    assert chosen >= 0.9 * max(fixed)


def test_fits_depend_on_the_own_draws_and_key_alone():
    target, keys = Banana(0.6, 0.5), torch.tensor([4, 9, 1])
    z, weights = weighted(target, Banana(0.6, 0.6), keys, 600)
    config = MixtureConfig(n_components=(1, 3, 6), n_points=400)
    together = fit_mixture(z, weights, keys, config, 3, "fit")
    value = together.log_prob(z)
    for i in range(3):
        own = slice(i, i + 1)
        alone = fit_mixture(z[own], weights[own], keys[own], config, 3, "fit")
        torch.testing.assert_close(alone.log_prob(z[own]), value[own], rtol=1e-9, atol=1e-9)
    moved = fit_mixture(1e-3 * z + 5, weights, keys, config, 3, "fit")
    torch.testing.assert_close(
        moved.log_prob(1e-3 * z + 5) + 4 * math.log(1e-3), value, rtol=1e-4, atol=1e-4
    )


def one_draw_has_all(z, weights):
    return z, torch.zeros_like(weights).index_fill_(1, torch.tensor([7]), 1.0)


def two_draws_have_all(z, weights):
    return z, torch.zeros_like(weights).index_fill_(1, torch.tensor([6, 7]), 0.5)


def one_coordinate_is_fixed(z, weights):
    return torch.cat([z[..., :-1], torch.full_like(z[..., -1:], 0.7)], -1), weights


def all_draws_are_one(z, weights):
    return z[:, :1].expand_as(z), weights


def fewer_draws_than_components(z, weights):
    return z[:, :3], weights[:, :3] / weights[:, :3].sum(1, keepdim=True)


@pytest.mark.parametrize("n_components", [1, 8, None])
@pytest.mark.parametrize("broken", [
    one_draw_has_all, two_draws_have_all, one_coordinate_is_fixed, all_draws_are_one,
    fewer_draws_than_components,
])  # fmt: skip
def test_degenerate_draws_give_finite_densities(broken, n_components):
    z, weights = broken(normals(30, 2, 60, N_DIM), torch.full((2, 60), 1 / 60).double())
    keys = torch.arange(2)
    config = MixtureConfig(n_components=n_components)
    mixture = fit_mixture(z.contiguous(), weights, keys, config, 3, "fit")
    assert mixture.log_prob(z).isfinite().all()
    drawn = mixture.draw(keys, 200, 0, "draw")
    assert drawn.isfinite().all()
    assert mixture.log_prob(drawn).isfinite().all()


@pytest.mark.parametrize("wrong", [
    {"n_components": 0}, {"n_components": (1, 0)}, {"n_points": 0}, {"n_steps": 0}, {"dof": 0},
    {"wide_share": 0.0}, {"wide_share": 1.0}, {"wide_scale": -1.0},
])  # fmt: skip
def test_nonsense_options_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be"):
        MixtureConfig(**wrong)


def test_around_looks_at_the_places_and_nowhere_else_but_at_what_is_unknown():
    modes = torch.tensor([[2.0, -1.0], [-2.0, math.nan]]).double()
    mixture, n, keys = around(modes[None]), 6000, torch.tensor([5])
    z = mixture.draw(keys, n, 0, "draw")[0]
    first = z[:, 0] > 0
    assert abs(first.double().mean() - 0.5) < 0.01
    near = (z[first] - modes[0]).abs() < 0.1
    assert 0.6 < near.all(1).double().mean() < 0.85  # three widths of four
    assert (z[first] - modes[0]).abs().median() < 0.05
    unknown, count = z[~first, 1], (~first).sum() ** 0.5
    scale = (mixture.dof / (mixture.dof - 2)) ** 0.5
    assert unknown.mean().abs() < 4 * scale / count
    assert abs((unknown.abs() < 0.7267).double().mean() - 0.5) < 4 * 0.5 / count  # of a t5
    parts = []
    for place, known in (([2.0, -1.0], [1, 1]), ([-2.0, 0.0], [1, 0])):
        for scale in _MODE_SCALES:
            widths = np.where(known, scale, 1.0)
            unit = stats.multivariate_t([0, 0], np.eye(2), mixture.dof)
            parts.append(unit.logpdf((z[:200].numpy() - place) / widths) - np.log(widths).sum())
    exact = logsumexp(parts, axis=0) - np.log(len(parts))
    np.testing.assert_allclose(mixture.log_prob(z[None, :200])[0], exact, rtol=1e-7)
