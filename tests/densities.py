"""Latent densities with known moments and evidence 1, shared by the tests of proposals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from nbi_plus import Gate
from nbi_plus.infer.ladder import Budget, RungContext
from nbi_plus.infer.ladder.earlier import Earlier
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.weights.clean import clean
from nbi_plus.infer.weights.summary import effective_sample_size
from nbi_plus.problem.random import keyed_normal, keyed_uniform
from nbi_plus.problem.target import Z_MAX, Evaluation

LOG_2PI = math.log(2 * math.pi)


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniforms(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard_log_prob(z):
    return -0.5 * (z.square() + LOG_2PI).sum(-1)


@dataclass(frozen=True)
class Normal:
    """A proposal, or a target: independent normals, mean and sd (B, 1, D)."""

    mean: Tensor
    sd: Tensor

    @classmethod
    def standard(cls, n, n_dim):
        return cls(torch.zeros(n, 1, n_dim).double(), torch.ones(n, 1, n_dim).double())

    def scaled(self, factor):
        return Normal(self.mean, factor * self.sd)

    def draw(self, keys, n, seed, stage):
        return self.mean + self.sd * keyed_normal(seed, stage, keys, (n, self.mean.shape[-1]))

    def log_prob(self, z):
        return standard_log_prob((z - self.mean) / self.sd) - self.sd.log().sum(-1)

    def select(self, rows):
        return Normal(self.mean[rows], self.sd[rows])


@dataclass(frozen=True)
class Bimodal:
    """Two normals (B objects alike), their means at -apart and +apart along the first axis."""

    n_dim: int
    apart: float = 0.5
    sd: float = 0.05
    share: float = 0.3  # of the mode at -apart

    def _modes(self):
        at = torch.zeros(2, self.n_dim).double()
        at[:, 0] = torch.tensor([-self.apart, self.apart])
        return at

    def draw(self, keys, n, seed, stage):
        first = keyed_uniform(seed, stage + " mode", keys, (n,)) < self.share
        noise = keyed_normal(seed, stage, keys, (n, self.n_dim))
        return self._modes()[(~first).long()] + self.sd * noise

    def log_prob(self, z):
        each = [standard_log_prob((z - at) / self.sd) for at in self._modes()]
        shares = (math.log(self.share), math.log1p(-self.share))
        high = torch.logaddexp(each[0] + shares[0], each[1] + shares[1])
        return high - self.n_dim * math.log(self.sd)

    def select(self, rows):  # noqa: ARG002 - objects are alike
        return self


@dataclass(frozen=True)
class Needle:
    """A broad normal around 0, and a narrow one at ``place`` in every parameter."""

    n_dim: int = 2
    share: float = 0.4  # of the narrow one
    broad: float = 0.45
    narrow: float = 0.02
    place: float = 1.6

    def log_prob(self, z):
        parts = ((1 - self.share, 0.0, self.broad), (self.share, self.place, self.narrow))
        each = [math.log(share) + standard_log_prob((z - at) / sd) - self.n_dim * math.log(sd)
                for share, at, sd in parts]  # fmt: skip
        return torch.logaddexp(*each)

    def mass(self, z, weights):
        """Return the weight (B,) of the narrow one."""
        near = (z - self.place).square().sum(-1) < (10 * self.narrow) ** 2
        return (weights * near).sum(1)


@dataclass(frozen=True)
class Banana:
    """Pairs (a, b): a is standard normal, b is normal around bend * (a^2 - 1)."""

    bend: float = 1.0
    width: float = 0.3
    n_dim: int = 4

    @property
    def variance(self):
        return torch.tensor([1.0, 2 * self.bend**2 + self.width**2]).double().tile(self.n_dim // 2)

    def draw(self, keys, n, seed, stage):
        z = keyed_normal(seed, stage, keys, (n, self.n_dim))
        z[..., 1::2] = self.width * z[..., 1::2] + self.bend * (z[..., 0::2].square() - 1)
        return z

    def log_prob(self, z):
        straight = z.clone()
        bent = z[..., 1::2] - self.bend * (z[..., 0::2].square() - 1)
        straight[..., 1::2] = bent / self.width
        return standard_log_prob(straight) - self.n_dim // 2 * math.log(self.width)

    def select(self, rows):  # noqa: ARG002 - objects are alike
        return self


def far_modes(n=8):
    """Return a mixture to jump with, a density with 80 % at -10 and 20 % at 10, and n starts."""
    widths = 1.1 * torch.eye(2).double().expand(1, 2, 2, 2)
    places = torch.tensor([[[-10.0, 0.0], [10.0, 0.0]]]).double()
    jumps = StudentMixture(torch.tensor([[0.5, 0.5]]).double().log(), places, widths, 5.0)

    def log_prob(z):
        far, near = ((z[..., 0] - side).square() for side in (-10.0, 10.0))
        modes = torch.logaddexp(math.log(0.8) - 0.5 * far, math.log(0.2) - 0.5 * near)
        return modes - 0.5 * z[..., 1].square()

    starts = normals(5, n, 2)
    starts[:, 0] += 10 * (2.0 * (torch.arange(n) % 2) - 1)
    return jumps, log_prob, starts


def evaluation(target, z, failed=None):
    """Return what a target of evidence 1 and a standard normal prior would be evaluated to."""
    outside = (z.abs() > Z_MAX).any(-1)
    prior = standard_log_prob(z)
    failed = torch.zeros_like(outside) if failed is None else failed
    likelihood = target.log_prob(z) - prior
    return Evaluation(*(v.masked_fill(outside, -math.inf) for v in (prior, likelihood)), failed)


def efficiency(proposal, target, keys, n=4000, seed=99):
    """Return the effective share (B,) of fresh draws of a proposal."""
    z = proposal.draw(keys, n, seed, "efficiency")
    log_weights = target.log_prob(z) - proposal.log_prob(z)
    return effective_sample_size(log_weights) / n


def share_of_mass(proposal, cells, keys, n=4000, seed=98):
    """Return estimates of the integral of a proposal's density and errors, from N(0, cells^2)."""
    shape = proposal.draw(keys, 1, seed, "shape")
    wide = Normal(torch.zeros_like(shape), cells * torch.ones_like(shape))
    z = wide.draw(keys, n, seed, "mass")
    ratio = (proposal.log_prob(z) - wide.log_prob(z)).exp()
    return ratio.mean(1), ratio.std(1) / n**0.5


def weigh(stream):
    """Return the judged weights of a stream."""
    mixture = stream.log_mixture
    return clean(stream.log_likelihood, stream.log_prior, mixture, ~stream.failed)


@dataclass(frozen=True)
class LatentTarget:
    """A density of evidence 1 as the target of ``n`` objects alike."""

    density: object
    n: int
    n_dim: int
    data: SimpleNamespace = field(init=False)
    prior: SimpleNamespace = field(init=False)
    seconds_per_row = 0.0
    differentiable = False
    n_numbers = 64

    def __post_init__(self):
        object.__setattr__(self, "data", Data(torch.zeros(self.n, 1, 64).double()))
        object.__setattr__(self, "prior", SimpleNamespace(periods=(None,) * self.n_dim))

    def evaluate(self, z, index):  # noqa: ARG002 - all objects are alike
        return evaluation(self.density, z)


@dataclass(frozen=True)
class Data:
    x: torch.Tensor

    def __len__(self):
        return len(self.x)


def context_of(density, n_dim, n=16, gate=None):
    """Return what rungs need besides their objects, for ``n`` objects alike."""
    gate = gate or Gate()
    accounts = Earlier.nothing(n, torch.device("cpu")).accounts(gate)
    return RungContext(LatentTarget(density, n, n_dim), *accounts, gate, Budget(), 0)
