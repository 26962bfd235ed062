"""Fits of mixtures of t: products of matrices against the formula, draw by draw.

``python -m benchmarks.mixtures`` fits the same draws in both ways, at the settings of the rung that
refines many objects (``first``, from draws of a broad proposal; ``refine``, from those of a good
one, and ``coarse`` for its wide part) and of sequential fits of one object (``search``, which looks
for the number of components). The direct way tries every number with all steps and starts. Printed
are CPU milliseconds for an object and their ratio, the median over repetitions in turns; the median
over objects of the largest difference of log-densities at their draws; and what matters: the
efficiency of importance weights, and the mean log-density of fresh draws of the target.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from statistics import median

import torch

from nbi_plus.infer.ladder import RefineRung
from nbi_plus.infer.proposals.cross_fit import MixtureFamily
from nbi_plus.infer.proposals.mixture import (
    COARSE,
    MixtureConfig,
    StudentMixture,
    fit_mixture,
    temper,
)
from nbi_plus.infer.weights.resample import systematic_resample
from nbi_plus.infer.weights.summary import effective_sample_size
from nbi_plus.problem.random import keyed_uniform
from tests.densities import Banana, Bimodal, Normal
from tests.direct_em import direct_em, spread_starts

SEED, STAGE = 3, "fit"
SETTINGS = {
    "first": (RefineRung().mixture, 2000, 64),
    "refine": (RefineRung().mixture, 1000, 64),
    "coarse": (COARSE, 1000, 64),
    "search": (MixtureConfig(n_points=4000), 4000, 1),
}


@dataclass(frozen=True)
class Tailed:
    """A t of 5 degrees of freedom in every direction."""

    n_dim: int
    scale: float = 1.0

    def _mixture(self, n):
        eye = self.scale * torch.eye(self.n_dim).double()
        zero = torch.zeros(n, 1, self.n_dim).double()
        return StudentMixture(zero[..., 0], zero, eye.expand(n, 1, -1, -1), 5.0)

    def draw(self, keys, n, seed, stage):
        return self._mixture(len(keys)).draw(keys, n, seed, stage)

    def log_prob(self, z):
        return self._mixture(len(z)).log_prob(z)


def normal(n_dim, width=1.0):
    return Normal.standard(1, n_dim).scaled(width)


# the target, and what its draws are made of: wider, as a proposal on its way
TARGETS = {
    "banana (2)": (Banana(1.0, 0.3, 2), Banana(1.0, 0.4, 2)),
    "two modes (3)": (Bimodal(3), Bimodal(3, sd=0.065, share=0.5)),
    "t-tailed (3)": (Tailed(3), Tailed(3, 1.3)),
    "banana (4)": (Banana(1.0, 0.3, 4), Banana(1.0, 0.4, 4)),
    "two modes (5)": (Bimodal(5), Bimodal(5, sd=0.06, share=0.5)),
    "normal (5)": (normal(5), normal(5, 1.3)),
    "normal (10)": (normal(10), normal(10, 1.15)),
    "banana (10)": (Banana(1.0, 0.3, 10), Banana(1.0, 0.33, 10)),
}


def broad(proposal, keys, width=2.0):
    """Return one t, that much wider than a proposal."""
    z = proposal.draw(keys, 4000, 2, "shape")
    centred = z - z.mean(1, keepdim=True)
    factor = torch.linalg.cholesky(centred.mT @ centred / z.shape[1])[:, None]
    shares = torch.zeros(len(keys), 1).double()
    return StudentMixture(shares, z.mean(1, keepdim=True), width * factor, 5.0)


def drawn(target, proposal, keys, n):
    """Return draws, and weights flattened as before a fit."""
    z = proposal.draw(keys, n, 1, "learn")
    log_weights = target.log_prob(z) - proposal.log_prob(z)
    return z, temper(log_weights, MixtureFamily().wanted_ess(*z.shape[1:]))[0]


# --- the direct way -------------------------------------------------------------------------------


def direct_fit(z, weights, keys, config, seed, stage):
    """Fit draw by draw; where the size is open, to one object, by trying every one to the end."""
    mean = (weights[..., None] * z).sum(1, keepdim=True)
    centred = z - mean
    cov = torch.einsum("bs,bsi,bsj->bij", weights, centred, centred)
    factor = torch.linalg.cholesky(cov + 1e-6 * cov.diagonal(dim1=1, dim2=2).diag_embed())
    white = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT

    def of_size(k, weights):
        return direct_size(white, weights, keys, k, config, seed, f"{stage} {k}")

    (best, *others), judged = config.sizes(z.shape[-1]), weights.clone()
    if others:
        judged[:, torch.arange(z.shape[1]) % 5 != 0] = 0.0
        scores = {k: float((judged * of_size(k, weights - judged).log_prob(white)).sum())
                  for k in (best, *others)}  # fmt: skip
        best = max(scores, key=scores.get)
    found = of_size(best, weights)
    means = mean + found.means @ factor.mT
    return StudentMixture(found.log_shares, means, factor[:, None] @ found.factors, found.dof)


def direct_size(white, weights, keys, k, config, seed, stage):
    """Return mixtures of ``k`` components and a wide one, the likeliest of several starts."""
    n, n_draws, d = white.shape
    comb = keyed_uniform(seed, stage + " comb", keys, (1,))[:, 0]
    pick = systematic_resample(weights, min(config.n_points, n_draws), comb)
    points = white.gather(1, pick[..., None].expand(-1, -1, d))
    n_starts = 1 if k == 1 else config.n_starts
    starts = [spread_starts(points, keyed_uniform(seed, f"{stage} {i} starts", keys, (k,)))
              for i in range(n_starts)]  # fmt: skip
    ess = (weights.sum(1).square() / weights.square().sum(1)).repeat(n_starts)
    points = points.repeat(n_starts, 1, 1)
    shares, means, cov = direct_em(points, torch.cat(starts), ess, config.n_steps)
    wide = config.wide_scale * torch.eye(d).double().expand(len(means), 1, d, d)
    shares = (1 - config.wide_share) * shares
    found = StudentMixture(
        torch.cat([shares, torch.full_like(shares[:, :1], config.wide_share)], 1).log(),
        torch.cat([means, torch.zeros_like(means[:, :1])], 1),
        torch.cat([torch.linalg.cholesky(cov), wide], 1),
        float(config.dof),
    )
    score = found.log_prob(points).mean(1).view(n_starts, n)
    return found.select(score.argmax(0) * n + torch.arange(n))


# --- both -----------------------------------------------------------------------------------------


def timed(fit, *args):
    """Return CPU milliseconds, and the answer."""
    start = time.process_time()
    found = fit(*args, SEED, STAGE)
    return 1e3 * (time.process_time() - start), found


def quality(mixture, target, keys, n=4000):
    """Return the efficiency (B,) of fresh draws, and the log-density (B,) of the target's."""
    z = mixture.draw(keys, n, 99, "efficiency")
    log_weights = target.log_prob(z) - mixture.log_prob(z)
    fresh = target.draw(keys, n, 77, "fresh")
    return effective_sample_size(log_weights) / n, mixture.log_prob(fresh).mean(1)


def compare(name, setting, n_repeats):
    """Print one row: objects of one batch are repeated, single ones are as many as repetitions."""
    (target, proposal), (config, n_draws, n) = TARGETS[name], SETTINGS[setting]
    seconds, ratios, apart, gains, old = [], [], [], [], []
    for i in range(n_repeats):
        keys = torch.arange(n) + n * i
        source = broad(proposal, keys) if setting == "first" else proposal
        z, weights = drawn(target, source, keys, n_draws)
        way = z, weights, keys, config.in_dims(z.shape[-1])
        (before, direct), (after, fast) = timed(direct_fit, *way), timed(fit_mixture, *way)
        seconds.append((before / n, after / n))
        ratios.append(before / after)
        if setting != "search":  # there, other steps lead to other mixtures
            apart.append(float((direct.log_prob(z) - fast.log_prob(z)).abs().amax(1).median()))
        old.append(torch.stack(quality(direct, target, keys)))
        gains.append(torch.stack(quality(fast, target, keys)) - old[-1])
    efficiency, gain = torch.cat(old, 1)[0].mean(), torch.cat(gains, 1)
    error = gain.std(1) / gain.shape[1] ** 0.5
    same = f"{max(apart):.0e}" if apart else "-"
    before, after = (median(column) for column in zip(*seconds, strict=True))
    print(f"| {name} | {setting} | {before:.2f} | {after:.2f} | {median(ratios):.1f} | "
          f"{same} | {efficiency:.3f} | {gain[0].mean():+.4f} +- {error[0]:.4f} | "
          f"{gain[1].mean():+.4f} +- {error[1]:.4f} |", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--repeats", type=int, default=5, help="four times as many of one object")
    own = parser.parse_args()
    torch.set_num_threads(1)
    print("| target (D) | fit | direct / ms | products / ms | ratio | log-densities apart | "
          "efficiency | its gain | gain in log-density |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for setting in own.settings:
        for name in own.targets:
            compare(name, setting, own.repeats * (4 if SETTINGS[setting][2] == 1 else 1))


if __name__ == "__main__":
    main()
