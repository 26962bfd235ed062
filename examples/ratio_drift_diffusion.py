"""Reaction times and choices of a drift-diffusion model, learned as if its density were unknown.

``python examples/ratio_drift_diffusion.py`` trains a RatioEngine on single trials, and compares its
posteriors of sets of 200 trials with those of the exact density (Navarro and Fuss 2009, Journal of
Mathematical Psychology 53, 222); ``--likelihood --batch-size 1024`` learns a density instead.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import numpy as np
import torch
from scipy.stats import uniform

import nbi_plus as nbi
from nbi_plus.estimators.learned import answers
from nbi_plus.problem.prior.learned_range import LearnedRange

# drift, distance of the boundaries, where between them it starts, and seconds before it does
PRIOR = {
    "v": uniform(-3, 6), "a": uniform(0.8, 2.2), "z": uniform(0.25, 0.5), "t": uniform(0.1, 0.7),
}  # fmt: skip
FLOW = {"kind": "mdn", "n_mog": 12}  # one column is left: normals are cheap, and many are sharp
STEEP = 1.5  # most that drift may matter within one interval
N_SMALL, N_LARGE = 6, 12  # terms of the two series
CHANGE = 0.3  # of decision times, in units of a^2: from one series to the other
LAW = []  # is tabulated once; a cached function would not go to other processes


def exit_law(n=4096):
    """Return the logarithm (n,) of times at which a path from 0 leaves (-1, 1), and their log odds.

    Without drift: early ones by reflections at both ends, late ones by eigenfunctions.
    """
    tau = torch.logspace(-2, 1.6, n, dtype=torch.float64)
    odd = torch.arange(1, 40, 2, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(10)
    early = 2 * (sign * torch.erfc(odd / (2 * tau[:, None]).sqrt())).sum(1)
    decay = torch.exp(-((odd * math.pi).square()) * tau[:, None] / 8)
    late = 4 / math.pi * (sign / odd * decay).sum(1)
    before, after = (torch.where(tau < 0.6, *two) for two in ((early, 1 - late), (1 - early, late)))
    return tau.log().numpy(), (before.log() - after.log()).numpy()


def exit_time(n):
    """Return n draws of that law."""
    if not LAW:
        LAW[:] = exit_law()
    log_times, odds = LAW
    drawn = torch.rand(n, dtype=torch.float64).logit(1e-15)
    return torch.as_tensor(np.interp(drawn.numpy(), odds, log_times)).exp()


def trial(theta):
    """Return log reaction time and choice (n, 2) for each row of theta (n, 4).

    Exactly: a path leaves an interval around it on a side that does not depend on when, and the
    widest one that fits ends at a boundary.
    """
    v, a, z, t = theta.T
    place, clock, choice = z * a, torch.zeros_like(v), torch.zeros_like(v)
    running = torch.arange(len(v))
    while len(running):
        drift, down = v[running], place[running]
        up = a[running] - down
        half = torch.minimum(torch.minimum(down, up), STEEP / drift.abs())
        tau, u = exit_time(len(running)), torch.rand(2, len(running), dtype=v.dtype)
        rises = u[0] < torch.sigmoid(2 * drift * half)
        # drift makes late exits rarer; what is refused is tried again
        taken = u[1] < torch.exp(-0.5 * (drift * half).square() * tau)
        clock[running] += torch.where(taken, half.square() * tau, 0.0)
        place[running] += torch.where(taken, torch.where(rises, half, -half), 0.0)
        ended = taken & (half == torch.where(rises, up, down))
        choice[running[ended]] = rises[ended].to(v.dtype)
        running = running[~ended]
    return torch.stack([(t + clock).log(), choice], 1)


def small_time(u, w):
    """Return the first-passage density at 0 of a path without drift from w to 0 or 1, at u."""
    k = torch.arange(-N_SMALL, N_SMALL + 1, dtype=u.dtype)
    reach = w[..., None] + 2 * k
    terms = reach * torch.exp(-(reach.square() - w[..., None] ** 2) / (2 * u[..., None]))
    return terms.sum(-1) * torch.exp(-w.square() / (2 * u)) / (2 * math.pi * u**3).sqrt()


def large_time(u, w):
    """Return the same by the series that converges for late times."""
    k = torch.arange(1, N_LARGE + 1, dtype=u.dtype)
    decay = torch.exp(-0.5 * (k * math.pi).square() * u[..., None])
    return math.pi * (k * decay * torch.sin(k * math.pi * w[..., None])).sum(-1)


def log_density(theta, x):
    """Return the log-density (...) of trials x (..., 2) given theta (..., 4)."""
    v, a, z, t = theta.unbind(-1)
    log_time, upper = x.unbind(-1)
    decision = log_time.exp() - t
    drift, start = torch.where(upper > 0.5, -v, v), torch.where(upper > 0.5, 1 - z, z)
    possible = decision > 1e-5
    u = torch.where(possible, decision, 1.0) / a.square()
    early, late = u.clamp(1e-4, CHANGE), u.clamp(min=CHANGE)
    log_early = small_time(early, start).clamp(min=1e-300).log()
    # of what is earlier still, the first term is all that is left
    log_early = log_early - 0.5 * start.square() * (1 / u - 1 / early) - 1.5 * (u / early).log()
    log_late = large_time(late, start).clamp(min=1e-300).log()
    base = torch.where(u < CHANGE, log_early, log_late)
    found = base - drift * a * start - 0.5 * drift.square() * u * a.square() - 2 * a.log()
    return torch.where(possible, found + log_time, -math.inf)


class ExactSums:
    """The exact log-density of sets of trials (N, T, 2), as the ladder asks for it."""

    def __init__(self, prior, sets):
        self.prior, self.sets = prior, torch.as_tensor(sets)
        self.n_numbers = self.sets.shape[1] * (2 * N_SMALL + N_LARGE + 1)

    def log_prob(self, z, index):
        """Return the sums (b, n) at z (b, n, D)."""
        theta = self.prior.from_latent(z)
        return log_density(theta[:, :, None], self.sets[index][:, None]).sum(-1)


def exact(prior, sets):
    """Return the posteriors of the exact density."""
    reach = torch.tensor([[-9.0], [9.0]]).expand(2, 4)
    known = LearnedRange.of(prior, reach, prior.full_names)
    fine = torch.zeros(len(sets), dtype=torch.bool)
    ladder = nbi.Ladder(n_draws=2048)
    return answers(known, ExactSums(prior, sets), list(sets), fine, fine.double(), ladder, 0)


def main(
    n_sims=400_000, n_epochs=25, n_sets=20, n_covered=100, n_trials=200, batch_size=512,
    seed=0, likelihood=False,
):  # fmt: skip
    prior = nbi.Prior(PRIOR)
    engine = (
        nbi.LikelihoodEngine(trial, prior, flow=FLOW, discrete={1: (0, 1)}, seed=seed)
        if likelihood
        else nbi.RatioEngine(trial, prior, n_contrast=64, seed=seed)
    )
    begin = time.process_time()
    engine.fit(n_sims, n_epochs=n_epochs, batch_size=batch_size, online=True)
    print(f"trained in {time.process_time() - begin:.0f} CPU s")
    torch.manual_seed(0)
    truths = prior.sample(max(n_sets, n_covered), 1)
    x = trial(torch.as_tensor(np.repeat(truths, n_trials, 0))).numpy()
    sets = x.reshape(len(truths), n_trials, 2)
    begin = time.perf_counter()
    found = engine.predict_many(sets)
    seconds = (time.perf_counter() - begin) / len(sets)
    n_learned = sum(s is nbi.Status.LEARNED for s in found.status)
    print(f"{n_learned} of {len(sets)} LEARNED, {seconds:.2f} s each")
    inside = [
        (p.quantile(0.025) <= own) & (own <= p.quantile(0.975))
        for p, own in zip(found, truths, strict=True)
    ]
    print("95 % intervals hold the truth:", dict(zip(prior.names, np.mean(inside, 0), strict=True)))
    begin = time.perf_counter()
    wanted = exact(prior, sets[:n_sets])
    seconds = (time.perf_counter() - begin) / n_sets
    some = found[np.arange(n_sets)]
    print(f"exact: {[s.name for s in wanted.status].count('LEARNED')} of {n_sets} weighed well, "
          f"{seconds:.1f} s each")  # fmt: skip
    off, wide = (some.mean - wanted.mean) / wanted.std, some.std / wanted.std - 1
    for name, v in {"means off by (sd)": off, "sds off by": wide}.items():
        print(f"{name}: rms {np.sqrt((v**2).mean(0)).round(2)}, largest {abs(v).max(0).round(2)}")
    return found, wanted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=400_000)
    parser.add_argument("--n-epochs", type=int, default=25)
    parser.add_argument("--n-sets", type=int, default=20)
    parser.add_argument("--n-covered", type=int, default=100)
    parser.add_argument("--n-trials", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--likelihood", action="store_true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        main(**vars(parser.parse_args()))
