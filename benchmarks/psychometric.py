"""Psychometric functions of a hundred real sessions: how many are certified, how fast, how well.

``python -m benchmarks.psychometric --data FOLDER`` trains the network of
``examples/psychometric.py`` on designs that are made up, shown counts or shares, and answers for
``psychometric/datasets.npz`` of FOLDER: stimulus (9,), n_trials and n_right (N, 9). Twenty of the
answers are compared with long chains of emcee, whose density is written here once more.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import emcee
import numpy as np
from scipy.special import betaln, gammaln, ndtr, xlog1py, xlogy

import nbi_plus as nbi
from examples.psychometric import PRIOR, learned, sessions

WALKERS, STEPS, BURN = 40, 8000, 500
CHAINS = 3  # of which the middle one counts: walkers that stay far out widen some of them
DRAWS = 20_000  # of answers that are compared: errors of fewer would be seen
SMALLEST = 1e-8  # below this overdispersion counts are binomial to 1e-4


def shares():
    """Return a noise whose data are shares k / n: what the network then sees."""
    counts = nbi.BetaBinomialNoise("n", "nu").bind(False, tuple(PRIOR))

    def of_counts(obs, draws):
        if draws:  # noises of our own make room for draws themselves
            coords = {k: v[:, 0] for k, v in obs.coords.items()}
            obs = replace(obs, x=obs.x[:, 0], mask=obs.mask[:, 0], coords=coords)
        return obs.with_data((obs.x * obs.coords["n"].unsqueeze(-2)).round())

    def draw(model, obs, theta, rng):
        return counts.augment(model, obs, theta, rng) / obs.coords["n"].unsqueeze(-2)

    def density(theta, model, obs):
        return counts.log_likelihood(theta, model, of_counts(obs, theta.ndim == 3))

    return nbi.CustomNoise(draw, density)


def log_density(theta, stimulus, n, k):
    """Return log prior + log-likelihood (m,) of theta (m, 5), in closed form."""
    log_prior = sum(law.logpdf(v) for law, v in zip(PRIOR.values(), theta.T, strict=True))
    good = np.isfinite(log_prior)
    gamma, lapse, nu, mu, sigma = theta[good].T[..., None]
    p = gamma + (1 - gamma - lapse) * ndtr((stimulus - mu) / sigma)
    d = nu**2 / (1 - nu**2)
    c = 1 / np.maximum(d, SMALLEST)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = betaln(k + c * p, n - k + c * (1 - p)) - betaln(c * p, c * (1 - p))
        plain = xlogy(k, p) + xlog1py(n - k, -p)
        found = ways + np.where(d > SMALLEST, spread, plain)
    found = np.where((p >= 0) & (p <= 1), found, -np.inf).sum(-1)
    total = np.full(len(theta), -np.inf)
    total[good] = log_prior[good] + np.where(np.isnan(found), -np.inf, found)
    return total


def chains(stimulus, n, k, start, seed):
    """Return draws of emcee (S, 5), and the longest autocorrelation time."""
    sampler = emcee.EnsembleSampler(
        WALKERS, start.shape[1], log_density, args=(stimulus, n, k), vectorize=True,
        moves=emcee.moves.DEMove(),
    )  # fmt: skip
    sampler.random_state = np.random.RandomState(seed).get_state()  # noqa: NPY002 - what emcee takes
    sampler.run_mcmc(start, STEPS)
    tau = sampler.get_autocorr_time(discard=BURN, tol=0).max()
    return sampler.get_chain(discard=BURN, flat=True), tau


def compared(engine, data, which, seed):
    """Print by how much means and sds of some answers are off those of chains."""
    off, wide, apart, most = [], [], [], 0.0
    real = sessions(data["n_trials"][which], data["n_right"][which])
    for i, posterior in zip(which, engine.predict_many(real, n_samples=DRAWS), strict=True):
        own = data["n_trials"][i].astype(float), data["n_right"][i].astype(float)
        means, sds = [], []
        for k in range(CHAINS):
            start = posterior.resample(WALKERS, np.random.default_rng([seed, k]))
            draws, tau = chains(data["stimulus"], *own, start, seed + k)
            means.append(draws.mean(0))
            sds.append(draws.std(0))
            most = max(most, tau)
        sd = np.median(sds, 0)
        off.append((posterior.mean() - np.median(means, 0)) / sd)
        wide.append(posterior.std() / sd - 1)
        apart.append(np.ptp(sds, 0) / sd)
        one = f"{len(draws) / tau:.0f} effective draws of a chain, ess {posterior.ess:.0f}"
        print(f"  set {i}: means off by {abs(off[-1]).max():.3f} sd, sds by "
              f"{abs(wide[-1]).max():.3f}; sds of chains apart by {apart[-1].max():.3f}; {one}",
              flush=True)  # fmt: skip
    told = {"means off by (sd)": off, "sds off by": wide, "sds of chains apart by": apart}
    for name, v in told.items():
        v = np.array(v)
        print(f"{name}: rms {np.sqrt((v**2).mean(0)).round(3)}, largest {abs(v).max(0).round(3)}")
    print(f"longest autocorrelation time {most:.0f} of {STEPS - BURN} steps")


def main(data, n_sims=10_000, n_epochs=30, references=20, seed=0, shown=("counts", "shares")):
    """Train, answer, compare."""
    found = np.load(Path(data) / "psychometric" / "datasets.npz")
    sets = {k: found[k] for k in found.files}
    rows = np.linspace(0, len(sets["n_trials"]) - 1, references).astype(int)
    for what in shown:
        begin = time.process_time()
        engine = learned(n_sims, n_epochs, seed, shares() if what == "shares" else None)
        print(f"{what}: trained in {time.process_time() - begin:.0f} CPU s", flush=True)
        x = sets["n_right"] / (sets["n_trials"] if what == "shares" else 1)
        real = sessions(sets["n_trials"], x)
        begin = time.perf_counter(), time.process_time()
        answers = engine.predict_many(real)
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        print(f"{len(real)} sets in {wall:.1f} s ({cpu:.1f} CPU s)")
        print("status:", dict(Counter(s.name for s in answers.status)))
        print("settled by:", dict(Counter(answers.settled_by)))
        print("trusted:", int(answers.trusted.sum()), "flags:",
              dict(Counter(f.name for p in answers for f in p.flags)))  # fmt: skip
        first = np.median([rungs[0].ess for rungs in answers.rungs])
        print(f"ess of the network's own draws: median {first:.0f}", flush=True)
        if what == shown[0] and references:
            compared(engine, sets, rows, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--n-sims", type=int, default=10_000)
    parser.add_argument("--n-epochs", type=int, default=30)
    parser.add_argument("--references", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", nargs="+", default=("counts", "shares"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        main(**vars(parser.parse_args()))
