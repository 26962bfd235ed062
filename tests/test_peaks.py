"""Laws of the search for peaks: closed forms, circles, bad densities, budgets, batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from densities import normals

from nbi_plus.infer import peaks
from nbi_plus.infer.ladder import OpenObjects
from nbi_plus.infer.samplers.peaks import Peaks, PeaksConfig

WAYS = pytest.mark.parametrize("differentiable", [True, False], ids=["gradients", "black box"])


class Normals:
    """Mixtures of M normals for each of B objects, in latent coordinates."""

    def __init__(self, mean, factor, log_share):
        self.mean, self.factor, self.log_share = mean, factor, log_share

    @classmethod
    def random(cls, n, n_modes, n_dim, condition, seed=1):
        axes = torch.linalg.qr(normals(seed, n, n_modes, n_dim, n_dim)).Q
        widths = 0.2 * torch.logspace(0, -0.5 * math.log10(condition), n_dim).double()
        factor = torch.linalg.cholesky(axes @ widths.square().diag() @ axes.mT)
        mean = 0.3 * normals(seed + 1, n, n_modes, n_dim)
        return cls(mean, factor, normals(seed + 2, n, n_modes).log_softmax(1))

    def log_prob(self, z, index):
        away = (z[:, None] - self.mean[index][:, :, None]).mT
        u = torch.linalg.solve_triangular(self.factor[index], away, upper=False)
        volume = self.factor[index].diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = (self.log_share[index] - volume)[..., None] - 0.5 * u.square().sum(2)
        return each.logsumexp(1)


def in_sd(found, mean, factor):
    """Return how far places are from means, in standard deviations."""
    away = (found - mean)[..., None]
    return torch.linalg.solve_triangular(factor, away, upper=False)[..., 0].norm(dim=-1)


@WAYS
@pytest.mark.parametrize(("n_dim", "condition"), [(1, 1.0), (3, 1e4), (10, 1e8)])
def test_one_normal_is_found_exactly(n_dim, condition, differentiable):
    law = Normals.random(3, 1, n_dim, condition)
    found = peaks.find(law.log_prob, normals(5, 3, 6, n_dim), differentiable=differentiable)
    assert found.z.shape == (3, 1, n_dim)
    assert found.settled.all()
    assert (in_sd(found.z, law.mean, law.factor) < 0.05).all()
    inside = torch.linalg.solve_triangular(law.factor, found.factor, upper=False)
    # the widest axis has a curvature of 25, far above the least one that is allowed
    assert torch.allclose(inside @ inside.mT, torch.eye(n_dim).double(), atol=0.02)
    top = law.log_prob(law.mean, torch.arange(3))
    assert torch.allclose(found.log_prob, top, atol=2e-3)


@WAYS
def test_all_modes_of_a_mixture_are_found_with_their_masses(differentiable):
    law = Normals.random(4, 3, 2, 30.0)
    law.mean = law.mean + torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]).double()
    found = peaks.find(law.log_prob, normals(6, 4, 48, 2) * 2, differentiable=differentiable)
    for i in range(4):
        nearest = in_sd(found.z[i][:, None], law.mean[i], law.factor[i]).nan_to_num(99.0)
        assert (nearest.amin(0) < 0.1).all(), i
        share = found.log_mass[i].exp() / (2 * math.pi)  # the law leaves (2 pi)^(D / 2) out
        at = nearest.argmin(0)
        assert torch.allclose(share[at], law.log_share[i].exp(), rtol=0.05)
    assert (found.log_prob.diff(dim=1)[found.found[:, 1:]] <= 0).all()
    assert (found.z.isnan().any(-1) == ~found.found).all()


def test_answers_do_not_depend_on_the_objects_beside():
    law, starts = Normals.random(5, 2, 3, 100.0), normals(7, 5, 10, 3)
    whole = peaks.find(law.log_prob, starts, rows=7)
    for i in range(5):
        own = Normals(law.mean[i, None], law.factor[i, None], law.log_share[i, None])
        alone = peaks.find(own.log_prob, starts[i, None])
        m = int(alone.found.sum())
        assert int(whole.found[i].sum()) == m
        assert torch.allclose(whole.z[i, :m], alone.z[0], atol=1e-9)
        assert whole.n_gradients[i] == alone.n_gradients[0]


def test_an_object_that_goes_on_moves_no_other():
    """One is a bent valley, whose shape is looked at more than once."""

    def valley(z, index):  # noqa: ARG001
        bent = (z[..., 1::2] - 3 * z[..., 0::2].square()) / 0.03
        return -0.5 * (z[..., 0::2].square() + bent.square()).sum(-1)

    def both(z, index):
        return torch.where((index == 1)[:, None], valley(z, index), -0.5 * z.square().sum(-1))

    starts, config = normals(13, 2, 8, 4), PeaksConfig(curvature_min=1e-6, max_steps=20)
    whole = peaks.find(both, starts, config=config)
    alone = peaks.find(lambda z, index: -0.5 * z.square().sum(-1), starts[:1], config=config)  # noqa: ARG005
    assert whole.n_gradients[0] == alone.n_gradients[0]
    assert torch.allclose(whole.z[0, :1], alone.z[0, :1], atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.02, 3.0, -1.5])
def test_a_circle_has_no_edge(angle):
    """The peak of a von Mises times a normal, also where the latent space is cut."""

    def log_prob(z, index):  # noqa: ARG001
        turn = 2 * math.pi * torch.special.ndtr(z[..., 0])
        away = 100 * (turn - angle).cos() - 0.5 * ((z[..., 1] - 1) / 0.1).square()
        return away - 0.5 * z[..., 0].square()

    found = peaks.find(log_prob, normals(8, 1, 12, 2), circles=(0,))
    turn = 2 * math.pi * float(torch.special.ndtr(found.z[0, 0, 0]))
    assert found.z.shape[1] == 1
    assert math.remainder(turn - angle, 2 * math.pi) == pytest.approx(0.0, abs=0.01)
    if angle in (3.0, -1.5):
        density = math.exp(-0.5 * float(found.z[0, 0, 0]) ** 2) / math.sqrt(2 * math.pi)
        width = float(found.factor[0, 0, 0, 0]) * 2 * math.pi * density
        assert width == pytest.approx(0.1, rel=0.02)


def test_regions_without_a_density_and_flat_directions_are_survived():
    def log_prob(z, index):  # noqa: ARG001
        value = -0.5 * ((z[..., 0] - 1) / 0.01).square() + 0.0 * z[..., 1]
        value = torch.where(z[..., 0] < -0.5, torch.nan, value)
        return torch.where(z[..., 0] > 2.0, torch.inf, value)

    found = peaks.find(log_prob, normals(9, 2, 16, 2))
    assert (found.found.sum(1) >= 1).all()
    assert torch.allclose(found.z[:, 0, 0], torch.ones(2).double(), atol=1e-3)
    # what nothing is known of is as wide as the least curvature says
    assert torch.allclose(found.factor[:, 0, 1, 1], torch.full((2,), 2**0.5).double(), rtol=1e-3)
    nothing = peaks.find(lambda z, index: z.sum(-1) * torch.nan, normals(9, 2, 16, 2))
    assert not nothing.found.any()
    assert nothing.z.isnan().all()


def test_a_needle_without_an_end_has_a_shape():
    """One direction is 1e6 times narrower than one, and the other falls nowhere."""

    def log_prob(z, index):  # noqa: ARG001
        across, along = z[..., 0] - z[..., 1], z[..., 0] + z[..., 1]
        return -0.5 * (1e6 * across).square() + 1e-3 * along

    found = peaks.find(log_prob, normals(9, 2, 4, 2), config=PeaksConfig(curvature_min=1e-14))
    assert found.factor.isfinite().all()
    assert (found.factor.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_a_bent_valley_ends_at_its_top():
    def log_prob(z, index):  # noqa: ARG001
        x, y = z.unbind(-1)
        return -0.5 * (1 - x).square() - 100 * (y - x.square()).square()

    found = peaks.find(log_prob, 2 * normals(10, 1, 16, 2))
    assert found.settled[0, 0]
    assert found.z[0, 0].tolist() == pytest.approx([1.0, 1.0], abs=0.2)
    inverse = torch.cholesky_inverse(found.factor[0, 0]).diagonal()
    assert inverse.tolist() == pytest.approx([801.0, 200.0], rel=0.1)


def test_a_cusp_has_no_end_and_costs_little():
    """The slope is one on either side of a ridge, however near: no step ever gains what it says."""

    def log_prob(z, index):  # noqa: ARG001
        x, y = z.unbind(-1)
        return -50 * (x + y).abs() - 0.5 * (20 * (x - y)).square() - 30 * (x - 0.3 * y).abs()

    n_starts = 16
    found = peaks.find(log_prob, normals(12, 3, n_starts, 2))
    assert (found.z[:, 0].abs() < 0.05).all()
    assert (found.n_gradients < 50 * n_starts).all()


def test_budget_is_kept():
    law = Normals.random(2, 1, 5, 1e6)
    starts = normals(11, 2, 8, 5)
    free = peaks.find(law.log_prob, starts)
    config = PeaksConfig(max_gradients=100)
    bound = peaks.find(law.log_prob, starts, config=config)
    assert (free.n_gradients > 200).all()
    # what is under way is not broken off: one step of each start, and one shape of each end
    assert (bound.n_gradients < 100 + 8 * 12 + 8 * 11).all()
    calls = []

    def counted(z, index):
        calls.append(z.shape[0] * z.shape[1])
        return law.log_prob(z, index)

    again = peaks.find(counted, starts, differentiable=False)
    assert sum(calls) == int(again.n_gradients.sum())


def test_errors_of_the_density_are_raised_where_it_never_works():
    def broken(z, index):
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        peaks.find(broken, normals(12, 1, 4, 2))
    with pytest.raises(ValueError, match="no gradient"):
        peaks.find(lambda z, index: z.detach().sum(-1), normals(12, 1, 4, 2))
    with pytest.raises(ValueError, match="shape"):
        peaks.find(lambda z, index: z.sum(-1), normals(12, 4, 2))
    with pytest.raises(ValueError, match="finite"):
        peaks.find(lambda z, index: z.sum(-1), torch.full((1, 4, 2), np.nan).double())
    with pytest.raises(ValueError, match="max_steps"):
        PeaksConfig(max_steps=0)


@pytest.mark.parametrize("n_steps", [3, 10])
@pytest.mark.parametrize("bend", [0.0, 0.3, 1.0])
def test_ends_on_the_flank_of_one_peak_crowd_out_no_other(bend, n_steps):
    """Of 202 ways up two lead to a lower peak, far away; the others are not yet over."""

    def log_prob(z, index):  # noqa: ARG001
        x, y = z.unbind(-1)
        high = -0.5 * (x.square() + ((y - bend * x.square()) / 0.02).square())
        low = -6.0 - 0.5 * (((x - 3.0) / 0.1).square() + ((y + 3.0) / 0.1).square())
        return torch.logaddexp(high, low)

    many = torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(0)).double()
    two = torch.tensor([[[3.05, -3.05], [2.95, -2.95]]], dtype=torch.float64)
    starts = torch.cat([many, two], 1)
    found = peaks.find(log_prob, starts, config=PeaksConfig(max_steps=n_steps))
    away = (found.z - torch.tensor([3.0, -3.0], dtype=torch.float64)).norm(dim=-1)
    assert (away < 0.05).any()


def test_rounds_of_the_ladder_draw_as_much_around_light_peaks_as_around_heavy_ones():
    z = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[2.0, 0.0], [math.nan, math.nan]]]).double()
    factor = 0.1 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2, 2)
    height = torch.tensor([[0.0, -9.0], [0.0, -math.inf]], dtype=torch.float64)
    known = Peaks(
        z=z, log_prob=height, factor=factor, n_gradients=torch.zeros(2, dtype=torch.int64),
        settled=height > -math.inf,
    )  # fmt: skip
    keys = torch.arange(2)
    objects = OpenObjects(keys, keys, None, (), peaks=known)
    draws = objects.around_peaks(()).draw(keys, 4000, 0, "around")[..., 0]
    assert ((draws[0] > 0).double().mean() - 0.5).abs() < 4 * 0.5 / 4000**0.5
    assert (draws[1] - 2.0).abs().quantile(0.9) < 0.5
    assert OpenObjects(keys, keys, None, ()).around_peaks(()) is None
