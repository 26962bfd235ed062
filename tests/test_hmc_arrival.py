"""Laws of HMC that starts around peaks: it arrives, cheaply, from starts that know nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import pytest
import torch
from densities import normals, uniforms
from posteriordb import Moments, superchains, uniform_points
from scipy.optimize import minimize
from torch import Tensor

from nbi_plus.infer.ladder import HmcRung
from nbi_plus.infer.ladder.rung_hmc import _reasons
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.samplers import hmc
from nbi_plus.infer.samplers.gradients import Gradients
from nbi_plus.infer.samplers.starting import Starting
from nbi_plus.problem.random import content_keys

N_SUPER, N_EACH = 8, 8
MOST = 20  # gradients for each effective draw, the way up among them


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd).square()


@dataclass(frozen=True)
class Trend:
    """A straight line through numbers of calendar years: z is intercept, slope, log sigma.

    Flat in all three, so that moments are known: beta is a t, sigma^2 inverse chi-squared.
    """

    years: Tensor = field(default_factory=lambda: torch.arange(1985.0, 2018.0).double())
    dims: int = 3

    @cached_property
    def y(self):
        return 2.0 + 0.3 * (self.years - 2000.0) + 1.5 * normals(1, len(self.years))

    def log_prob(self, z, index=None):  # noqa: ARG002
        residuals = self.y - z[..., :1] - z[..., 1:2] * self.years
        scatter = residuals.square().sum(-1) * (-2 * z[..., 2]).exp()
        return -0.5 * scatter - len(self.years) * z[..., 2]

    def moments(self):
        """Return means, sds and their errors, which are none; and the covariance of beta."""
        design = torch.stack([torch.ones_like(self.years), self.years], 1)
        inverse = torch.linalg.inv(design.T @ design)
        beta = inverse @ design.T @ self.y
        n = len(self.years) - 2
        total = (self.y - design @ beta).square().sum()
        covariance = inverse * total / (n - 2)
        half = torch.tensor(n / 2).double()
        log_sigma = 0.5 * ((total / 2).log() - torch.digamma(half))
        variance = torch.polygamma(1, half) / 4
        mean = torch.cat([beta, log_sigma[None]])
        sd = torch.cat([covariance.diagonal(), variance[None]]).sqrt()
        return Moments(mean, 0 * mean, sd, 0 * sd), covariance


@dataclass(frozen=True)
class TwoGroups:
    """A mixture of two normals: z is the lower mean, log of the gap, log sds, logit of the share.

    The priors are those of posteriordb's low_dim_gauss_mix.
    """

    n: int = 500
    dims: int = 5
    truth: tuple[float, ...] = (-1.6, math.log(3.4), math.log(0.8), math.log(1.2), -0.4)

    @cached_property
    def y(self):
        low, gap, sd_low, sd_high, share = torch.tensor(self.truth).double()
        first = uniforms(3, self.n) < share.sigmoid()
        mean = torch.where(first, low, low + gap.exp())
        return mean + torch.where(first, sd_low, sd_high).exp() * normals(4, self.n)

    def in_z(self, truth):
        return truth

    def log_prob(self, z, index=None):  # noqa: ARG002
        low, gap, sd_low, sd_high, share = (v[..., None] for v in z.unbind(-1))
        high, log_share = low + gap.exp(), torch.nn.functional.logsigmoid
        each = torch.logaddexp(
            log_share(share) + normal(self.y, low, sd_low.exp()) - sd_low,
            log_share(-share) + normal(self.y, high, sd_high.exp()) - sd_high,
        )
        prior = normal(low, 0.0, 2.0) + normal(high, 0.0, 2.0) + gap
        prior = prior + sum(normal(v.exp(), 0.0, 2.0) + v for v in (sd_low, sd_high))
        prior = prior + 5 * (log_share(share) + log_share(-share))  # beta(5, 5)
        return each.sum(-1) + prior[..., 0]


@dataclass(frozen=True)
class Predators:
    """Lotka and Volterra's hares and lynxes, counted for 21 years with lognormal errors.

    z is the logarithm of four rates, of both first numbers and of both errors; the priors are
    those of Stan's case study.
    """

    n_years: int = 20
    n_each: int = 5  # steps of a year
    dims: int = 8
    truth: tuple[float, ...] = (0.55, 0.028, 0.80, 0.024, 33.4, 5.9, 0.25, 0.25)

    def in_z(self, truth):
        return truth.log()

    def path(self, z):
        """Return log numbers (..., years, 2), by Runge and Kutta's method in the logarithms."""
        rates = z[..., :4].exp()
        grow, eat, die, feed = rates.unbind(-1)
        gain, loss = torch.stack([grow, -die], -1), torch.stack([-eat, feed], -1)

        def slope(v):
            return gain + loss * v.clamp(max=30.0).exp().flip(-1)

        v, h = z[..., 4:6], 1.0 / self.n_each
        path = [v]
        for i in range(self.n_years * self.n_each):
            k1 = slope(v)
            k2 = slope(v + 0.5 * h * k1)
            k3 = slope(v + 0.5 * h * k2)
            k4 = slope(v + h * k3)
            v = v + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            if (i + 1) % self.n_each == 0:
                path.append(v)
        return torch.stack(path, -2)

    @cached_property
    def y(self):
        z = self.in_z(torch.tensor(self.truth).double())
        return self.path(z) + z[6:].exp() * normals(6, self.n_years + 1, 2)

    def log_prob(self, z, index=None):  # noqa: ARG002
        log_sd = z[..., None, 6:]
        value = (normal(self.y, self.path(z), log_sd.exp()) - log_sd).sum((-2, -1))
        at, width = z.new_tensor([[1.0, 0.05, 1.0, 0.05], [0.5, 0.05, 0.5, 0.05]])
        prior = normal(z[..., :4].exp(), at, width) + z[..., :4]
        start = normal(z[..., 4:6], math.log(10), 1.0) + normal(z[..., 6:], -1.0, 1.0)
        return value + prior.sum(-1) + start.sum(-1)


# --- moments that no chain made -----------------------------------------------------------------


def weighed(target, n=100_000, n_pilot=20_000):
    """Return moments by importance sampling with a t, its shape learned from weighted draws."""

    def slope(z):
        leaf = torch.tensor(z, requires_grad=True)
        value = target.log_prob(leaf)
        return -value.item(), -torch.autograd.grad(value, leaf)[0].numpy()

    begin = target.in_z(torch.tensor(target.truth).double())
    found = minimize(slope, begin.numpy(), jac=True, method="BFGS")
    mean = torch.tensor(found.x)
    covariance = 2 * torch.tensor(found.hess_inv)
    for n_draws in (n_pilot, n_pilot, n):
        factor = torch.linalg.cholesky(covariance)[None, None]
        t = StudentMixture(torch.zeros(1, 1).double(), mean[None, None], factor, 9.0)
        z = t.draw(torch.tensor([1]), n_draws, n_draws, "reference")
        density = torch.cat([target.log_prob(part) for part in z[0].split(10_000)])
        weights = (density - t.log_prob(z)[0]).softmax(0)[:, None]
        z, mean = z[0], (weights * z[0]).sum(0)
        covariance = (weights * (z - mean)).T @ (z - mean)
    assert 1 / weights.square().sum() > 0.2 * n
    sd = covariance.diagonal().sqrt()
    away = (z - mean).square()
    mean_error = (weights.square() * away).sum(0).sqrt()
    sd_error = (weights.square() * (away - sd.square()).square()).sum(0).sqrt() / (2 * sd)
    return Moments(mean, mean_error, sd, sd_error)


def assert_right_and_cheap(target, moments, seed):
    z0 = superchains(uniform_points(target.dims, N_SUPER, seed), N_EACH)
    found = hmc.sample(target.log_prob, z0, N_SUPER, seed=seed)
    cost = (found.n_gradients / found.ess.amin(1)).item()
    own = Moments.of(found.samples[0])
    means, sds = (score.abs().max().item() for score in own.scores(moments))
    print(f"\n{type(target).__name__} {seed}: {found.n_gradients.item()} gradients, {cost:.1f} for"
          f" each effective draw, scores of means {means:.2f}, of sds {sds:.2f}")  # fmt: skip
    assert found.converged.all()
    assert not found.travelling.any()
    assert cost <= MOST
    assert means < 4.5
    assert sds < 4.5


SEEDS = [0, pytest.param(1, marks=pytest.mark.statistics),
         pytest.param(2, marks=pytest.mark.statistics)]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_a_trend_over_calendar_years_is_sampled(seed):
    target = Trend()
    moments, covariance = target.moments()
    sd = covariance.diagonal().sqrt()
    assert torch.linalg.cond(covariance / sd / sd[:, None]) > 1.7e5
    assert_right_and_cheap(target, moments, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_groups_are_sampled(seed):
    target = TwoGroups()
    assert_right_and_cheap(target, weighed(target), seed)


@pytest.mark.statistics
def test_predators_and_their_prey_are_sampled():
    target = Predators()
    moments = weighed(target)
    for seed in (0, 1, 2):
        assert_right_and_cheap(target, moments, seed)


# --- several modes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unlike:
    """A needle of 30 % at (5, 0), and 70 % round at (-5, 0), each object's turned."""

    angle: Tensor
    places: tuple[float, ...] = (5.0, -5.0)
    log_shares: tuple[float, ...] = (math.log(0.3), math.log(0.7))
    widths: tuple[tuple[float, float], ...] = ((1.0, 0.05), (0.4, 0.4))

    def log_prob(self, z, index):
        turn = self.angle[index][:, None]
        x = z[..., 0] * turn.cos() + z[..., 1] * turn.sin()
        y = z[..., 1] * turn.cos() - z[..., 0] * turn.sin()
        each = [
            log_share + normal(x, at, a) + normal(y, 0.0, b) - math.log(a * b)
            for at, log_share, (a, b) in zip(self.places, self.log_shares, self.widths, strict=True)
        ]
        return torch.logaddexp(*each)

    def starts(self):
        """Return places (B, 8, 2) on both sides, far from where the modes are."""
        sides = 4.0 * torch.tensor([1.0, -1.0]).double().repeat(N_SUPER // 2)
        axis = torch.stack([self.angle.cos(), self.angle.sin()], -1)
        return sides[:, None] * axis[:, None] + 0.5 * normals(1, len(self.angle), N_SUPER, 2)

    def on_the_right(self, z):
        turn = self.angle[:, None, None]
        return z[..., 0] * turn.cos() + z[..., 1] * turn.sin() > 0


def test_modes_of_unlike_shapes_get_their_weights():
    target = Unlike(torch.linspace(0, 3, 6).double())
    z0 = superchains(target.starts(), N_EACH)
    found = hmc.sample(target.log_prob, z0, N_SUPER, seed=0)
    assert found.converged.all()
    share = target.on_the_right(found.samples).double().mean((1, 2))
    assert (share - 0.3).abs().max() <= 4.5 * (0.21 / 1000) ** 0.5


def test_objects_around_their_peaks_are_the_same_alone_and_among_others():
    target = Unlike(torch.linspace(0, 3, 6).double())
    z0 = superchains(target.starts(), N_EACH)
    among = hmc.sample(target.log_prob, z0, N_SUPER, seed=0)
    for i in (0, 3, 5):
        own = Unlike(target.angle[i : i + 1])
        alone = hmc.sample(own.log_prob, z0[i : i + 1], N_SUPER, seed=0)
        # rounding, that grows along the way
        assert (alone.samples[0] - among.samples[i]).abs().max() <= 1e-6
        assert alone.n_gradients[0] == among.n_gradients[i]


# --- where chains start -------------------------------------------------------------------------


def around(log_prob, z0, seed=1):
    return Starting.around_peaks(
        Gradients(log_prob, 4096), z0, N_SUPER, content_keys(z0), seed, math.inf
    )


def test_starts_are_wider_than_the_posterior_and_a_superchain_has_one():
    scale = torch.tensor([1e3, 1.0, 1e-3]).double()
    z0 = superchains(normals(2, 200, N_SUPER, 3), N_EACH)
    start = around(lambda z, index: normal(z, 0.0, scale).sum(-1), z0)  # noqa: ARG005
    points = start.z.unflatten(1, (N_SUPER, N_EACH))
    assert start.near.all()
    assert (points == points[:, :, :1]).all()
    spread = (points[:, :, 0] / scale).std((0, 1))
    assert torch.allclose(spread, torch.tensor(1.3).double(), rtol=4.5 / (2 * 1600) ** 0.5)


def test_superchains_are_shared_out_by_mass_and_every_mode_has_one():
    def log_prob(z, index):  # noqa: ARG001
        log_shares = (math.log(0.7), math.log(0.3), -10.0, -40.0)
        each = [p + normal(z, 10.0 * i, 1.0).sum(-1) for i, p in enumerate(log_shares)]
        return torch.stack(each).logsumexp(0)

    places = 10.0 * torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]).double()
    z0 = superchains(places[None, :, None].expand(5, -1, 2) + normals(3, 5, N_SUPER, 2), N_EACH)
    start = around(log_prob, z0)
    at = (start.z[:, ::N_EACH, 0] / 10).round()
    counts = torch.stack([(at == i).sum(1) for i in range(4)], 1)
    assert counts.tolist() == [[5, 2, 1, 0]] * 5
    assert start.may_jump.all()


def centred_schools(z, index=None):  # noqa: ARG001
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]).double()
    errors = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]).double()
    theta, mean, log_sd = z[..., :8], z[..., 8], z[..., 9]
    schools = normal(theta, mean[..., None], log_sd.exp()[..., None]) - log_sd[..., None]
    prior = normal(mean, 0.0, 5.0) - torch.log1p((log_sd.exp() / 5).square()) + log_sd
    return (schools + normal(y, theta, errors)).sum(-1) + prior


def funnel(z, index=None):  # noqa: ARG001
    log_variance, x = z[..., :1], z[..., 1:]
    return normal(z[..., 0], 0.0, 3.0) - 0.5 * (
        x.square() * (-log_variance).exp() + log_variance
    ).sum(-1)


def valley(z, index=None):  # noqa: ARG001
    return normal(z[..., 0], 0.0, 1.0) + normal(z[..., 1] - 3 * z[..., 0].square(), 0.0, 0.03)


def saddle(z, index=None):  # noqa: ARG001
    return z[..., 0].square() - z[..., 1].square()


def box(z, index=None):  # noqa: ARG001
    return torch.where((z.abs() < 2).all(-1), 0 * z.sum(-1), math.nan)


@pytest.mark.parametrize(
    ("log_prob", "n_dim"),
    [(centred_schools, 10), (funnel, 10), (valley, 2), (saddle, 2), (box, 2)],
)
def test_where_a_mode_says_little_chains_keep_their_own_starts(log_prob, n_dim):
    z0 = superchains(torch.cat([uniform_points(n_dim, N_SUPER, s) for s in range(3)]), N_EACH)
    start = around(log_prob, z0)
    assert not start.near.any()
    assert torch.equal(start.z, z0)
    assert not start.may_jump.any()
    assert (start.n_gradients > 0).all()


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
def test_starts_are_where_there_is_a_density(outside):
    def log_prob(z, index):  # noqa: ARG001
        return torch.where(z[..., 0] > -1.0, normal(z, 0.0, 1.0).sum(-1), outside)

    z0 = superchains(normals(4, 20, N_SUPER, 2).abs(), N_EACH)
    start = around(log_prob, z0)
    assert start.near.any()
    assert (start.z[..., 0] > -1.0).all()


def test_single_precision_stays_so():
    scale = torch.tensor([10.0, 1.0, 0.1])

    def log_prob(z, index):  # noqa: ARG001
        assert z.dtype == torch.float32
        return normal(z, 0.0, scale).sum(-1)

    found = hmc.sample(log_prob, superchains(normals(5, 2, N_SUPER, 3).float(), N_EACH), seed=0)
    assert found.samples.dtype == torch.float32
    assert found.converged.all()


# --- chains that do not arrive ------------------------------------------------------------------


def test_chains_on_their_way_are_said_to_be_and_not_sampled():
    target = Trend()
    z0 = superchains(uniform_points(3, N_SUPER, 0), N_EACH)
    found, lost = (
        hmc.sample(target.log_prob, z0, seed=0, config=hmc.HmcConfig(climbs=climbs))
        for climbs in (True, False)
    )
    assert found.converged.all()
    assert not found.travelling.any()
    assert lost.travelling.all()
    assert not lost.converged.any()
    assert (lost.n_steps == 0).all()
    assert (lost.ess == 0).all()
    assert lost.samples.shape == found.samples.shape
    assert lost.samples.isfinite().all()
    assert _reasons(lost, lost.n_divergent > 0, HmcRung()) == ["chains still on their way"]


@pytest.mark.parametrize("budget", [20_000, 200_000])
def test_a_lap_takes_half_of_the_budget(budget):
    z0 = superchains(uniform_points(3, N_SUPER, 0), N_EACH)
    config = hmc.HmcConfig(climbs=False, max_laps=1, max_gradients=budget)
    lost = hmc.sample(Trend().log_prob, z0, seed=0, config=config)
    assert lost.travelling.all()
    assert (lost.n_gradients <= 0.55 * budget).all()
