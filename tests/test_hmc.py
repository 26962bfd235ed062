"""Laws of the batched sampler: moments, independence of the batch, bad densities, budgets."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import pytest
import torch
from densities import Banana, Bimodal, Normal, far_modes, normals
from torch import Tensor

from nbi_plus.infer.samplers import hmc
from nbi_plus.infer.samplers.gradients import Gradients
from nbi_plus.infer.samplers.lane import Lane, Places, Tally, Transition
from nbi_plus.infer.samplers.tuning import Tuning
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.problem.random import keyed_normal, keyed_uniform

N_SUPER, N_EACH = 8, 8


@dataclass(frozen=True)
class Correlated:
    """Normals of a given condition, each object with its own mean and axes."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def random(cls, n, n_dim, condition, seed=1):
        axes = torch.linalg.qr(normals(seed, n, n_dim, n_dim)).Q
        widths = torch.logspace(0, -0.5 * math.log10(condition), n_dim).double()
        return cls(normals(seed + 1, n, n_dim), torch.linalg.cholesky(
            axes @ widths.square().diag() @ axes.transpose(1, 2)))  # fmt: skip

    def log_prob(self, z, index):
        u = torch.linalg.solve_triangular(
            self.factor[index], (z - self.mean[index][:, None]).transpose(1, 2), upper=False
        )
        return -0.5 * u.square().sum(1)

    def guess(self, shift, width, seed=3):
        """Return starts, mean and factor of a proposal ``shift`` sigma off, and too wide."""
        n, n_dim = self.mean.shape
        way = torch.nn.functional.normalize(normals(seed, n, n_dim), dim=1)
        mean = self.mean + shift * (self.factor @ way[..., None])[..., 0]
        factor = width * self.factor
        noise = normals(seed + 1, n, N_SUPER, n_dim)
        starts = mean[:, None] + noise @ factor.transpose(1, 2)
        return starts.repeat_interleave(N_EACH, 1), mean, factor

    def whiten(self, samples):
        u = samples.flatten(1, 2) - self.mean[:, None]
        return torch.linalg.solve_triangular(self.factor, u.transpose(1, 2), upper=False)


def starts(n, n_dim, seed=0, scale=1.0):
    return scale * normals(seed, n, N_SUPER, n_dim).repeat_interleave(N_EACH, 1)


@pytest.mark.parametrize(
    ("n_dim", "condition", "shift", "width"),
    [(5, 1e2, 1.0, 1.3), (10, 1e4, 4.0, 0.4), (20, 1e6, 1.0, 1.3), (20, 1e4, 5.0, 4.0)],
)
def test_correlated_normals_from_a_bad_start(n_dim, condition, shift, width):
    target = Correlated.random(16, n_dim, condition)
    z0, mean, factor = target.guess(shift, width)
    found = hmc.sample(target.log_prob, z0, seed=3, mean=mean, factor=factor)
    u = target.whiten(found.samples)
    assert found.converged.all()
    assert (found.r_hat <= 1.01).all()
    assert (found.ess >= 1000).all()
    assert found.n_gradients.double().mean() <= 30_000
    error = 4.5 / 1000**0.5  # of the mean of 1000 effective draws, for the worst of 320
    assert u.mean(2).abs().max() <= error
    assert (u.var(2) - 1).abs().max() <= 2**0.5 * error


def test_objects_are_the_same_alone_and_among_others():
    target = Correlated.random(64, 4, 1e2)
    z0, mean, factor = target.guess(1.0, 1.3)
    among = hmc.sample(target.log_prob, z0, seed=3, mean=mean, factor=factor)
    for i in (5, 9, 20):
        alone = hmc.sample(
            lambda z, index, i=i: target.log_prob(z, index + i),
            z0[i : i + 1], seed=3, mean=mean[i : i + 1], factor=factor[i : i + 1],
        )  # fmt: skip
        assert (alone.samples[0] - among.samples[i]).abs().max() <= 1e-8
        assert int(alone.n_gradients) == int(among.n_gradients[i])
    pieces = hmc.sample(target.log_prob, z0, seed=3, mean=mean, factor=factor, rows=100)
    assert (pieces.samples - among.samples).abs().max() <= 1e-8


def test_a_step_is_a_leapfrog_trajectory_whatever_the_others_do():
    n, n_chains, n_dim, seed = 5, 6, 3, 7
    u0, most = normals(1, n, n_chains, n_dim), torch.tensor([64, 7, 7, 1, 2])
    start = Tuning.start(n, 1.0, u0)
    tuning = replace(start, log_step=torch.linspace(-2.5, 0.6, n).double())
    n_leaps = tuning.n_leaps(0.5, most)  # the first term of van der Corput's sequence
    assert n_leaps.tolist() == [10, 5, 3, 1, 1]
    gradients = Gradients(lambda z, _: -0.5 * z.square().sum(-1), 1000)
    index, whitening = torch.arange(n), Whitening.none(u0)
    places = Places(u0, *gradients(u0, index, whitening))
    nothing, centres = u0.new_empty(n, n_chains, 0, n_dim + 1), u0.new_full((n, 1, n_dim), math.nan)
    lane = Lane(index, index, places, whitening, tuning, Tally.zero(n, u0), nothing, index < 0,
                centres)  # fmt: skip
    kernel = Transition(gradients, seed, 64, 0.65, 0.025, None, 5)
    draws = kernel.stretch(lane, 1, range(1, 2), most, adapts=False).draws[:, :, 0]

    p0 = keyed_normal(seed, "hmc 1", index, (1, n_chains, n_dim))[:, 0]
    u, p = u0.clone(), p0.clone()
    for i, step in enumerate(tuning.log_step.exp().tolist()):
        for _ in range(int(n_leaps[i])):
            p[i] -= 0.5 * step * u[i]
            u[i] += step * p[i]
            p[i] -= 0.5 * step * u[i]
    gain = 0.5 * (u0.square() + p0.square() - u.square() - p.square()).sum(-1)
    uniform = keyed_uniform(seed, "hmc 1 accept", index, (1, n_chains))[:, 0]
    moves = uniform.log() < gain
    assert 0 < moves.sum() < moves.numel()
    z = torch.where(moves[..., None], u, u0)
    torch.testing.assert_close(draws[..., :-1], z)
    torch.testing.assert_close(draws[..., -1], -0.5 * z.square().sum(-1))


def test_seeds_and_starts_decide_the_draws():
    normal = Normal.standard(1, 2)
    log_prob = lambda z, index: normal.log_prob(z)  # noqa: E731, ARG005
    z0 = starts(2, 2)
    first, again, other = (hmc.sample(log_prob, z0, seed=s).samples for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_a_straggler_changes_nothing_for_the_others():
    """One object lives on a scale that needs far more leapfrog steps than the others'."""
    banana = Banana(bend=3.0, width=0.03, n_dim=4)
    normal = Normal.standard(1, 4)

    def log_prob(z, index):
        bent = banana.log_prob(z)
        return torch.where((index == 7)[:, None], bent, normal.log_prob(z))

    z0 = starts(16, 4, seed=2)
    found = hmc.sample(log_prob, z0, seed=1)
    without = hmc.sample(lambda z, index: normal.log_prob(z), z0, seed=1)  # noqa: ARG005
    others = torch.arange(16) != 7
    assert found.converged[others].all()
    assert not found.converged[7]
    # rounding on the way to the peaks, a little more of it than that of chains alone
    assert (found.samples[others] - without.samples[others]).abs().max() <= 1e-6
    assert torch.equal(found.n_gradients[others], without.n_gradients[others])


def test_far_starts_without_a_metric_find_the_way():
    scale = torch.tensor([100.0, 1.0, 0.01]).double()
    log_prob = lambda z, index: -0.5 * (z / scale).square().sum(-1)  # noqa: E731, ARG005
    found = hmc.sample(log_prob, 3 + starts(4, 3, seed=4), seed=0)
    u = (found.samples / scale).flatten(1, 2)
    assert found.converged.all()
    assert u.mean(1).abs().max() <= 4.5 / 1000**0.5
    assert (u.std(1) - 1).abs().max() <= 4.5 / 2000**0.5


def half_normal(kind):
    """Return the density of normals with a forbidden half-space z_0 < -1.2816, 10 % of it."""

    def log_prob(z, index):  # noqa: ARG001
        value = -0.5 * z.square().sum(-1)
        outside = z[..., 0] < -1.2815515655
        if kind == "raise" and bool(outside.any()):
            raise ValueError("no model here")
        return torch.where(outside, {"nan": math.nan}.get(kind, -math.inf), value)

    return log_prob


@pytest.mark.parametrize("kind", ["nan", "inf", "raise"])
def test_forbidden_regions_are_never_entered(kind):
    n = 2 if kind == "raise" else 8
    z0 = starts(n, 2, seed=5).abs()
    found = hmc.sample(half_normal(kind), z0, seed=0)
    assert found.samples.isfinite().all()
    assert found.log_prob.isfinite().all()
    x = found.samples[..., 0].flatten(1)
    assert (x >= -1.2815515655).all()
    # a normal cut below at a: mean phi(a) / (1 - Phi(a))
    mean = math.exp(-0.5 * 1.2815515655**2) / math.sqrt(2 * math.pi) / 0.9
    error = 5 * (x.var(1) / found.ess[:, 0]).sqrt()
    assert ((x.mean(1) - mean).abs() <= error).all()


def test_a_density_that_always_raises_raises():
    def broken(z, index):  # noqa: ARG001
        raise ZeroDivisionError("never works")

    with pytest.raises(ZeroDivisionError, match="never works"):
        hmc.sample(broken, starts(2, 2))


def test_a_density_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="differentiable by torch"):
        hmc.sample(lambda z, index: -z.detach().square().sum(-1), starts(1, 2))  # noqa: ARG005


def test_a_density_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 64\)"):
        hmc.sample(lambda z, index: -z.square().sum(), starts(1, 2))  # noqa: ARG005


@pytest.mark.parametrize("z0", [torch.zeros(2, 10, 3), torch.full((1, 8, 2), torch.nan)])
def test_bad_starts_are_refused(z0):
    with pytest.raises(ValueError, match="z0 must"):
        hmc.sample(lambda z, index: -z.square().sum(-1), z0)  # noqa: ARG005


def test_a_gradient_of_zero_costs_time_but_not_the_truth():
    """Trajectories are straight lines then: a random walk that Metropolis' rule keeps honest."""
    log_prob = lambda z, index: -0.5 * z.detach().square().sum(-1) + 0 * z.sum(-1)  # noqa: E731, ARG005
    found = hmc.sample(log_prob, starts(4, 1), seed=0)
    x = found.samples[..., 0].flatten(1)
    error = 5 * (x.var(1) / found.ess[:, 0]).sqrt()
    assert (x.mean(1).abs() <= error).all()


def test_a_constant_density_never_converges_and_ends():
    found = hmc.sample(lambda z, index: 0 * z.sum(-1), starts(2, 2), seed=0)  # noqa: ARG005
    assert not found.converged.any()
    assert (found.n_steps <= hmc.HmcConfig().max_steps).all()


def test_budgets_are_kept():
    banana = Banana(bend=3.0, width=0.03, n_dim=4)
    log_prob = lambda z, index: banana.log_prob(z)  # noqa: E731, ARG005
    z0 = starts(2, 4, scale=0.1)
    config = hmc.HmcConfig(max_gradients=20_000, max_laps=1)
    found = hmc.sample(log_prob, z0, seed=0, config=config)
    most_more = config.block * config.max_leaps * z0.shape[1]
    assert (found.n_gradients <= 20_000 + most_more).all()
    begin = time.perf_counter()
    hmc.sample(log_prob, z0, seed=0, max_seconds=0.0)
    assert time.perf_counter() - begin < 60


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_it_works_where_somebody_switched_autograd_off(switch):
    normal = Normal.standard(1, 2)
    with switch():
        found = hmc.sample(lambda z, index: normal.log_prob(z), starts(1, 2), seed=0)  # noqa: ARG005
    assert found.converged.all()


def test_jumps_weigh_separate_modes():
    bimodal = Bimodal(n_dim=2, apart=0.5, sd=0.05, share=0.3)
    wide = Bimodal(n_dim=2, apart=0.5, sd=0.08, share=0.5)
    n = 8
    here = torch.where(normals(1, n, N_SUPER, 1) > 0, 0.5, -0.5)
    z0 = torch.cat([here, torch.zeros_like(here)], -1).double()
    z0 = (z0 + 0.05 * normals(2, n, N_SUPER, 2)).repeat_interleave(N_EACH, 1)

    @dataclass(frozen=True)
    class Jumps:
        draw = staticmethod(wide.draw)
        log_prob = staticmethod(wide.log_prob)

        def select(self, rows):  # noqa: ARG002
            return self

    log_prob = lambda z, index: bimodal.log_prob(z)  # noqa: E731, ARG005
    found = hmc.sample(log_prob, z0, seed=0, jumps=Jumps())
    share = (found.samples[..., 0] < 0).double().mean((1, 2))
    assert (share - 0.3).abs().max() <= 5 * (0.21 / 500) ** 0.5
    without = hmc.sample(log_prob, z0, seed=0, config=hmc.HmcConfig(climbs=False))
    assert not without.converged.any()


def test_jumps_from_a_mixture_give_every_chain_every_component():
    """A mixture draws in the order of its components; chains must not inherit that order."""
    jumps, log_prob, z0 = far_modes()
    eye = torch.eye(2).double()[None]
    found = hmc.sample(
        lambda z, index: log_prob(z), z0.repeat_interleave(N_EACH, 0)[None], seed=0,  # noqa: ARG005
        jumps=jumps, mean=torch.zeros(1, 2).double(), factor=eye * torch.tensor([10.0, 1.0]),
    )  # fmt: skip
    share = (found.samples[..., 0] < 0).double().mean()
    assert found.converged.all()
    assert float(share) == pytest.approx(0.8, abs=4.5 * (0.16 / 1000) ** 0.5)


def test_chains_that_start_where_the_density_is_zero_get_out():
    """The density ends at a wall, and some superchains start behind it."""

    def log_prob(z, index):  # noqa: ARG001
        return torch.where(z[..., 0] < -3, -math.inf, -0.5 * z.square().sum(-1))

    z0 = starts(1, 2, seed=3).clone()
    z0[:, :8, 0] = -3.05
    found = hmc.sample(log_prob, z0, seed=0)
    assert found.log_prob.isfinite().all()
    assert found.converged.all()


def test_time_and_gradients_end_the_warming_up_too():
    banana = Banana(bend=3.0, width=0.03, n_dim=4)
    log_prob = lambda z, index: banana.log_prob(z)  # noqa: E731, ARG005
    found = hmc.sample(log_prob, starts(2, 4), seed=0, config=hmc.HmcConfig(max_gradients=1000))
    # the shapes of peaks, the stretch that had begun, with trajectories of one step, a new metric
    assert (found.n_gradients <= 1000 + 1000 + 10 * 64 + 64).all()
    assert not found.converged.any()
