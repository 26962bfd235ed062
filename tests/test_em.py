"""Laws of expectation and maximisation by products: numbers of the formula, object by object."""

import math
from dataclasses import replace

import pytest
import torch
from densities import Banana, Bimodal, Normal, normals, uniforms
from direct_em import direct_em, spread_starts

from nbi_plus import launch
from nbi_plus.batched import pick
from nbi_plus.infer.proposals import em
from nbi_plus.infer.proposals.em import FeaturedDraws, NormalMixtures, maximise
from nbi_plus.infer.proposals.mixture import MixtureConfig, fit_mixture
from nbi_plus.infer.weights.resample import systematic_resample
from nbi_plus.infer.weights.summary import normalise
from nbi_plus.problem.random import keyed_uniform

NEVER = -math.inf  # no rise is too small for another step


def lumps(n, n_draws, d, seed=0):
    """Return draws of unequal groups, about as wide as whitened ones, and unequal weights."""
    at = (uniforms(seed, n, n_draws) * 3).long()[..., None]
    z = 0.4 * normals(seed + 1, n, n_draws, d) + 1.2 * (at - 1)
    return z, normalise(2 * normals(seed + 2, n, n_draws))


def resampled(z, weights, n_points):
    return FeaturedDraws.resampled(z, weights, n_points, uniforms(9, len(z)))


def check_same(found, expected, rtol=1e-8):
    for name, value in zip(("shares", "means", "cov"), expected, strict=True):
        torch.testing.assert_close(getattr(found, name), value, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("d", [1, 3, 10])
def test_products_give_the_numbers_of_the_formula(d, k):
    z, weights = lumps(5, 400, d)
    n_points, uniform = 300, uniforms(8, 5, 1, k)
    draws = resampled(z, weights, n_points)
    start = draws.far_apart(k, uniform)
    chosen = systematic_resample(weights, n_points, uniforms(9, 5))
    assert draws.counts.shape[1] < n_points  # each draw once, however often it was chosen
    repeated = z.gather(1, chosen[..., None].expand(-1, -1, d))
    torch.testing.assert_close(start[:, 0], spread_starts(repeated, uniform[:, 0]))
    ess = 1 / weights.square().sum(1)
    found, _ = maximise(draws, NormalMixtures.around(start), 25, NEVER)
    expected = direct_em(repeated, start[:, 0], ess, 25)
    check_same(found, [v[:, None] for v in expected])
    assert all(v.dtype == torch.float64 for v in vars(found).values())


def test_a_whole_fit_gives_the_numbers_of_the_formula(monkeypatch):
    monkeypatch.setattr(maximise, "__defaults__", (NEVER,))
    z, weights = lumps(3, 500, 3)
    z = 1e-3 * (z @ normals(4, 3, 3, 3)) + 7.0  # narrow, far off, and not along the axes
    keys, config = torch.tensor([5, 1, 8]), MixtureConfig(4, n_points=400, n_starts=1, n_steps=20)
    found = fit_mixture(z, weights, keys, config, 3, "fit")
    mean = (weights[..., None] * z).sum(1, keepdim=True)
    cov = torch.einsum("bs,bsi,bsj->bij", weights, z - mean, z - mean)
    cov = cov + (1e-6 * cov.diagonal(dim1=1, dim2=2)).diag_embed()
    factor = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(factor, (z - mean).mT, upper=False).mT
    chosen = systematic_resample(weights, 400, keyed_uniform(3, "fit 4 comb", keys, (1,))[:, 0])
    points = white.gather(1, chosen[..., None].expand(-1, -1, 3))
    start = spread_starts(points, keyed_uniform(3, "fit 4 0 starts", keys, (4,)))
    shares, means, cov = direct_em(points, start, 1 / weights.square().sum(1), 20)
    scale = factor[:, None] @ torch.linalg.cholesky(cov)
    near = {"rtol": 1e-8, "atol": 1e-13}
    torch.testing.assert_close(found.log_shares[:, :4].exp() / 0.95, shares, **near)
    torch.testing.assert_close(found.means[:, :4], mean + means @ factor.mT, **near)
    torch.testing.assert_close(
        found.factors[:, :4] @ found.factors[:, :4].mT, scale @ scale.mT, rtol=1e-8, atol=1e-14
    )


def test_objects_end_when_they_like_and_do_not_see_each_other():
    z, weights = lumps(12, 300, 2)
    z[::2] = 0.7 * normals(3, 6, 300, 2)  # normal ones are done early
    draws = resampled(z, weights, 300)
    start = NormalMixtures.around(draws.far_apart(3, uniforms(8, 12, 2, 3)))
    together, height = maximise(draws, start, 60, 1e-4)
    for i in range(12):
        own = torch.tensor([i])
        alone, own_height = maximise(pick(draws, own), pick(start, own), 60, 1e-4)
        check_same(alone, vars(pick(together, own)).values(), rtol=1e-9)
        torch.testing.assert_close(own_height, height[own])
    _, highest = maximise(draws, start, 60, NEVER)
    assert ((highest - height) < 0.02).all()  # what ended early had little to gain
    assert (highest > height).any()


def test_the_likelihood_rises_until_it_ends():
    z, weights = lumps(4, 500, 3)
    draws = resampled(z, weights, 500)
    start = NormalMixtures.around(draws.far_apart(4, uniforms(8, 4, 1, 4)))
    heights = torch.stack([maximise(draws, start, n, NEVER)[1][:, 0] for n in range(2, 20)])
    assert (heights.diff(dim=0) > -2e-3).all()  # the prior may cost a little
    assert (heights[-1] > heights[0] + 0.05).all()


def test_what_has_no_weight_changes_nothing():
    z, weights = lumps(3, 200, 2)
    weights[:, ::3] = 0.0
    weights /= weights.sum(1, keepdim=True)
    moved = torch.where(weights[..., None] > 0, z, 1e6)
    keys, config = torch.arange(3), MixtureConfig(3, n_points=150)
    first, second = (fit_mixture(v, weights, keys, config, 3, "fit") for v in (z, moved))
    torch.testing.assert_close(first.log_prob(z), second.log_prob(z), rtol=1e-12, atol=1e-12)


def test_components_that_start_alike_stay_alike():
    z, weights = lumps(2, 200, 3)
    draws = resampled(z, weights, 200)
    start = NormalMixtures.around(torch.zeros(2, 1, 4, 3).double())
    found, _ = maximise(draws, start, 10, NEVER)
    one, _ = maximise(draws, NormalMixtures.around(torch.zeros(2, 1, 1, 3).double()), 10, NEVER)
    torch.testing.assert_close(found.shares, torch.full((2, 1, 4), 0.25).double())
    torch.testing.assert_close(found.means, one.means.expand(-1, -1, 4, -1))


@pytest.mark.parametrize("share", [0.5, 1 - 1e-6, 1.0])
def test_all_mass_on_few_draws_gives_finite_mixtures(share):
    z = normals(0, 2, 300, 3)
    weights = torch.full((2, 300), (1 - share) / 298).double()
    weights[:, 10:12] = share / 2
    draws = resampled(z, weights, 300)
    start = NormalMixtures.around(draws.far_apart(5, uniforms(8, 2, 2, 5)))
    found, height = maximise(draws, start, 30, NEVER)
    assert all(v.isfinite().all() for v in (*vars(found).values(), height))
    assert (torch.linalg.eigvalsh(found.cov) > 0).all()


def test_a_needle_far_away_is_described_as_by_the_formula():
    z = normals(0, 1, 1000, 2)
    z[:, :20] = 30.0 + 1e-3 * z[:, :20]
    z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)
    draws = resampled(z, torch.full((1, 1000), 1e-3).double(), 1000)
    start = torch.stack([z[:, 5], z[:, 500]], 1)[:, None]
    found, _ = maximise(draws, NormalMixtures.around(start), 15, NEVER)
    expected = direct_em(z, start[:, 0], torch.tensor([1000.0]).double(), 15)
    check_same(found, [v[:, None] for v in expected], rtol=1e-7)


# --- many objects, and sizes ----------------------------------------------------------------------


def watched(monkeypatch, name):
    """Return a list that fills with the first argument and the answer of every call."""
    calls, original = [], getattr(em, name)

    def watching(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(em, name, watching)
    return calls


def test_a_launch_bounds_what_is_held_and_changes_nothing(monkeypatch):
    z, weights = lumps(20, 100, 2)
    keys, config = torch.arange(20), MixtureConfig((1, 3), n_points=100)
    whole = fit_mixture(z, weights, keys, config, 3, "fit")
    for bound in (1, 3000):
        few = replace(launch.KINDS["cpu"], mixture_numbers=bound)
        with monkeypatch.context() as patch:
            patch.setitem(launch.KINDS, "cpu", few)
            calls = watched(patch, "_step")
            pieces = fit_mixture(z, weights, keys, config, 3, "fit")
        for draws, found, _ in calls:
            held = max(draws.features.numel(), found.shares.numel() * draws.counts.shape[1])
            assert held <= max(bound, 6 * 100)
        torch.testing.assert_close(pieces.log_prob(z), whole.log_prob(z), rtol=1e-9, atol=1e-9)


def test_objects_that_fell_at_a_size_are_not_fitted_with_more(monkeypatch):
    keys, d = torch.arange(8), 10
    bent, plain = Banana(1.0, 0.3, d), Normal.standard(4, d)
    z = torch.cat([t.draw(k, 1500, 1, "z") for t, k in ((bent, keys[:4]), (plain, keys[4:]))])
    weights = torch.full((8, 1500), 1 / 1500).double()
    calls = watched(monkeypatch, "_step")
    fitted = fit_mixture(z, weights, keys, MixtureConfig(), 3, "fit")
    n_objects = {k: max(len(draws.counts) for draws, found, _ in calls
                        if found.shares.shape[-1] == k) for k in (1, 2, 4, 8)}  # fmt: skip
    sizes = (fitted.log_shares > -math.inf).sum(1) - 1
    assert (sizes[:4] >= 4).all()
    assert (sizes[4:] <= 2).all()
    assert n_objects == {1: 8, 2: 8, 4: 4 + int((sizes[4:] == 2).sum()), 8: 4}


def test_sizes_are_tried_in_ascending_order():
    target, keys = Bimodal(2), torch.arange(3)
    z = target.draw(keys, 600, 1, "z")
    weights = torch.full((3, 600), 1 / 600).double()
    first, second = (
        fit_mixture(z, weights, keys, MixtureConfig(sizes), 3, "fit") for sizes in ((1, 2), (2, 1))
    )
    assert torch.equal(first.log_prob(z), second.log_prob(z))
