"""Laws of circles: where they are cut, and that a cut changes neither densities nor efficiency."""

import math
from dataclasses import dataclass

import pytest
import torch
from densities import LOG_2PI, Normal, efficiency, evaluation, normals, weigh

from nbi_plus.infer.ladder import MixtureConfig
from nbi_plus.infer.proposals.base import PriorProposal
from nbi_plus.infer.proposals.circles import Cut, CutProposal, circular_columns
from nbi_plus.infer.proposals.cross_fit import MixtureFamily, OnCircles
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.weights.summary import normalise
from nbi_plus.problem.target import Z_MAX


@dataclass(frozen=True)
class Wrapped:
    """Around ``centre`` (B, M), a share of the circle, von Mises modes; the rest N(1, 0.3^2)."""

    centre: torch.Tensor
    concentration: float = 30.0
    n_dim: int = 2

    def log_prob(self, z):
        u = torch.special.ndtr(z[..., :1])
        angle = 2 * math.pi * (u - self.centre[:, None])
        kappa = torch.tensor(self.concentration).double()
        height = self.concentration * (angle.cos() - 1) - torch.special.i0e(kappa).log()
        on_circle = height.logsumexp(-1) - math.log(self.centre.shape[1])
        prior = -0.5 * (z[..., 0].square() + LOG_2PI)
        rest = Normal(torch.ones(1, 1, 1).double(), torch.full((1, 1, 1), 0.3).double())
        return on_circle + prior + (rest.log_prob(z[..., 1:]) if self.n_dim > 1 else 0.0)


def centres(*rows):
    return torch.tensor(rows).double()


def learned(target, keys, n=4000):
    """Return prior draws and their normalised weights."""
    z = PriorProposal(target.n_dim).draw(keys, n, 0, "learn")
    return z, normalise(target.log_prob(z) - PriorProposal(target.n_dim).log_prob(z))


def far_from(start, centre):
    """Return the distance on a circle of circumference 1."""
    lag = (start - centre).abs() % 1
    return torch.minimum(lag, 1 - lag)


def narrow(n, n_dim=1, sd=0.4):
    """Return a t-mixture of one component around 0.5 in every coordinate."""
    factor = sd * torch.eye(n_dim).double().expand(n, 1, n_dim, n_dim)
    return StudentMixture(torch.zeros(n, 1).double(), torch.full((n, 1, n_dim), 0.5).double(),
                          factor, 10.0)  # fmt: skip


@pytest.mark.parametrize("centre", [0.0, 0.02, 0.3, 0.5, 0.98])
def test_the_cut_is_far_from_a_mode(centre):
    target, keys = Wrapped(centres([centre], [centre])), torch.arange(2)
    cut = Cut.of(*learned(target, keys), (0,))
    assert (far_from(cut.start[:, 0], centre) > 0.3).all()


def test_the_cut_lies_between_two_modes_half_a_circle_apart():
    modes = centres([0.0, 0.5], [0.1, 0.6], [0.25, 0.75])
    cut = Cut.of(*learned(Wrapped(modes), torch.arange(3)), (0,))
    assert (far_from(cut.start, modes) > 0.15).all()


def test_each_circle_gets_its_own_cut():
    z = torch.stack([normals(0, 1, 2000), 0.1 * normals(1, 1, 2000), 6 + normals(2, 1, 2000)], -1)
    cut = Cut.of(z, torch.full((1, 2000), 1 / 2000).double(), (1, 2))
    assert far_from(cut.start[0, 0], 0.5) > 0.3
    assert far_from(cut.start[0, 1], 1.0) > 0.3


def test_there_and_back_is_the_same():
    cut = Cut((0, 2), torch.tensor([[0.1, 0.9], [0.5, 0.0]]).double())
    z = 1.5 * normals(1, 2, 1000, 3)
    moved = cut.to(z)
    torch.testing.assert_close(cut.back(moved), z, rtol=0, atol=1e-9)
    assert torch.equal(moved[..., 1], z[..., 1])
    one = cut.select(torch.tensor([1]))
    assert torch.equal(one.to(z[1:]), moved[1:])
    none = Cut((), torch.zeros(2, 0).double())
    assert torch.equal(none.to(z), z)


@dataclass(frozen=True)
class KnownSums:
    """Four circles: (0, 1) with a known sum, (2, 3) with a known difference; else uniform."""

    mode: float
    concentration: float = 100.0
    n_dim: int = 4

    def log_prob(self, z):
        u = torch.special.ndtr(z)
        off = torch.stack([u[..., 0] + u[..., 1] - self.mode, u[..., 2] - u[..., 3] - 0.9], -1)
        height = self.concentration * ((2 * math.pi * off).cos() - 1).sum(-1)
        return height - 0.5 * (z.square() + LOG_2PI).sum(-1)


def test_sums_and_differences_that_are_known_take_the_place_of_loose_angles():
    n, mode = 20_000, 0.97
    u = torch.special.ndtr(normals(0, 3, n, 4))
    narrow = 0.01 * normals(1, 3, n, 2)
    u[..., 1], u[..., 3] = mode - u[..., 0] + narrow[..., 0], u[..., 2] + 0.9 + narrow[..., 1]
    z = torch.special.ndtri((u - u.floor()).clamp(1e-12, 1 - 1e-12))
    weights = torch.full((3, n), 1 / n).double()
    cut = Cut.of(z, weights, (0, 1, 2, 3), sums=True)
    moved = torch.special.ndtr(cut.to(z))
    # two of four have become narrow, in the middle of their circles
    assert (torch.sort(moved.std(1), 1).values[:, 1] < 0.02).all()
    torch.testing.assert_close(cut.back(cut.to(z)), z, rtol=0, atol=1e-6)
    row = torch.tensor([2])
    assert torch.equal(cut.select(row).to(z[row]), cut.to(z)[row])
    assert Cut.of(z, weights, (0, 1, 2, 3)).sums is None
    own = Cut.of(torch.special.ndtri(0.5 + narrow), weights, (0, 1), sums=True)
    assert own.sums is None or not own.sums.any(), "angles that are known must stay"


def test_a_known_sum_of_angles_is_as_easy_as_a_known_angle():
    keys = torch.arange(6)
    family = OnCircles(MixtureFamily(MixtureConfig(n_components=(1, 2, 4))), (0, 1, 2, 3))
    for mode in (0.0, 0.3, 0.5, 0.97):
        target = KnownSums(mode)
        proposal = family.fit(*learned(target, keys, 20_000), keys, 1, "fit")
        assert efficiency(proposal, target, keys).mean() > 0.6


STARTS = [0.0, 0.01, 0.4, 0.69, 0.99]  # 0.69 is where the mode of `narrow` lies


def test_the_density_of_sums_is_that_of_the_draws():
    sums = torch.tensor([[[0.0, 0.0], [-1.0, 0.0]]]).double()
    proposal = CutProposal(narrow(1, 2), Cut((0, 1), torch.tensor([[0.2, 0.9]]).double(), sums))
    grid = (torch.arange(400).double() + 0.5) / 400
    u = torch.cartesian_prod(grid, grid)[None]
    z = torch.special.ndtri(u)
    density = (proposal.log_prob(z) - PriorProposal(2).log_prob(z)).exp()[0]
    assert abs(density.mean() - 1) < 1e-3
    n = 40_000
    drawn = torch.special.ndtr(proposal.draw(torch.tensor([3]), n, 0, "draw")[0])
    cell = (drawn * 8).long().clamp(0, 7) @ torch.tensor([8, 1])
    expected = density.new_zeros(64).index_add_(
        0, (u[0] * 8).long() @ torch.tensor([8, 1]), n * density / density.numel()
    )
    found = cell.bincount(minlength=64)
    assert ((found - expected).abs() < 4.5 * expected.sqrt() + 1e-3 * n / 64).all()


@pytest.mark.parametrize("start", STARTS)
def test_the_density_is_normalised_on_the_circle_and_drawn_from(start):
    proposal = CutProposal(narrow(1), Cut((0,), torch.tensor([[start]]).double()))
    u = torch.linspace(1e-9, 1 - 1e-9, 400_001, dtype=torch.float64)
    grid = torch.special.ndtri(u)[None, :, None]
    on_circle = (proposal.log_prob(grid)[0] + 0.5 * (grid[0, :, 0].square() + LOG_2PI)).exp()
    each = 0.5 * (on_circle[1:] + on_circle[:-1]) * u.diff()
    assert abs(each.sum() - 1) < 1e-3
    n, n_bins = 40_000, 20
    z = proposal.draw(torch.tensor([3]), n, 0, "draw")[0, :, 0]
    found = (torch.special.ndtr(z) * n_bins).long().clamp(0, n_bins - 1).bincount(minlength=n_bins)
    edges = (u[1:] * n_bins).long().clamp(0, n_bins - 1)
    expected = n * torch.zeros(n_bins).double().index_add_(0, edges, each)
    assert ((found - expected).abs() < 4.5 * expected.sqrt() + 1e-3 * n / n_bins).all()


def test_objects_do_not_see_each_other():
    cut = Cut((0,), torch.tensor([[0.1], [0.7], [0.2]]).double())
    proposal, keys = CutProposal(narrow(3, 2), cut), torch.tensor([5, 1, 9])
    z = normals(0, 3, 20, 2)
    for i in range(3):
        rows = torch.tensor([i])
        alone = proposal.select(rows)
        torch.testing.assert_close(
            alone.log_prob(z[rows]), proposal.log_prob(z)[rows], rtol=1e-12, atol=1e-12
        )
        drawn = proposal.draw(keys, 50, 0, "draw")
        torch.testing.assert_close(alone.draw(keys[rows], 50, 0, "draw"), drawn[rows])


@pytest.mark.parametrize("concentration", [3.0, 30.0, 300.0])
def test_a_posterior_around_the_cut_is_as_easy_as_one_in_the_middle(concentration):
    keys = torch.arange(12)
    family = OnCircles(MixtureFamily(MixtureConfig(n_components=(1, 2, 4))), (0,))

    def reached(centre):
        target = Wrapped(torch.full((12, 1), centre).double(), concentration)
        proposal = family.fit(*learned(target, keys), keys, 1, "fit")
        return efficiency(proposal, target, keys).mean()

    middle = reached(0.5)
    assert middle > 0.6
    for centre in (0.0, 0.01, 0.97):
        assert reached(centre) >= 0.9 * middle


def beside_the_cut():
    """Return a proposal with mass at one side of its cut alone."""
    mean = torch.tensor([[[6.0, 1.0]]]).double().expand(2, 1, 2)
    return Normal(mean, torch.full((2, 1, 2), 0.5).double())


@pytest.mark.parametrize("inner", [narrow(2, 2, sd=5.0), beside_the_cut()], ids=["wide", "beside"])
@pytest.mark.parametrize("start", STARTS)
def test_draws_at_the_very_cut_have_weight_zero(start, inner):
    proposal = CutProposal(inner, Cut((0,), torch.full((2, 1), start).double()))
    target, keys = Wrapped(centres([start], [start])), torch.arange(2)
    z = proposal.draw(keys, 5000, 0, "draw")
    stream = Stream.start(proposal, z, evaluation(target, z))
    beyond = (z.abs() > Z_MAX).any(-1)
    assert beyond.double().mean() > 0.1
    assert not stream.log_weights.isnan().any()
    assert (stream.log_weights[beyond] == -math.inf).all()
    assert stream.log_weights.max() < 6.0
    assert (weigh(stream).failure == 0).all()


def test_no_place_on_the_circle_has_an_exploding_weight():
    start = 0.4
    proposal = CutProposal(narrow(1), Cut((0,), torch.tensor([[start]]).double()))
    u = start + torch.cat([-(10.0 ** torch.arange(-17, -1)), 10.0 ** torch.arange(-17, -1)])
    z = torch.special.ndtri(u.double())[None, :, None]
    value = proposal.log_prob(z)
    assert value.isfinite().all()
    prior = PriorProposal(1).log_prob(z)
    # a normal's tail at the cut is e^-18 at most, for draws further out are nowhere
    assert (prior - value).max() < 18.5


def test_periods_name_the_circles():
    assert circular_columns((None, 360.0, None, 1.0)) == (1, 3)
    assert circular_columns((None,)) == ()
