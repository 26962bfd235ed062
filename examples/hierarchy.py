"""A hierarchy: forty decays, whose times are of one population, from the top down.

Each source is answered alone (`predict_many`), their population from these answers
(`population.fit`), and each source again for every draw of the population: ancestral sampling
(`Engine.sample` with ``given=``). Beside it stands one HMC run of all 42 parameters together.

``python examples/hierarchy.py`` takes a minute on one core, and prints both.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.infer import hmc

T = np.linspace(0.0, 4.0, 12)
SIGMA = 0.15
N_TOLD = 3  # sources whose parameters are printed


def decay(theta, t):
    """Return exp(-t / exp(ell)) of theta (n, 1), the logarithm of a time."""
    return torch.exp(-t / theta[:, :1].exp())


def child(theta, t, mu, tau):
    """Return the same of a standard normal z (n, 1), where ell is mu + tau z."""
    return torch.exp(-t / (mu + tau * theta[:, :1]).exp())


def population(hyper, theta):
    """Return the log density (n,) of theta (n, 1) in a population of mean mu and width tau."""
    mu, tau = hyper
    return -0.5 * ((theta[:, 0] - mu) / tau) ** 2 - torch.log(math.sqrt(2 * math.pi) * tau)


population.prior = nbi.Prior({"mu": uniform(-2, 4), "tau": uniform(0.05, 1.45)})


def simulated(n, seed=0):
    """Return light curves (n, L) of sources of one population."""
    rng = np.random.default_rng(seed)
    ell = rng.normal(0.3, 0.5, n)
    return np.exp(-T / np.exp(ell[:, None])) + rng.normal(0, SIGMA, (n, len(T)))


def joint_run(x, seed=0):
    """Return draws of mu and tau (S, 2) and of ell (S, N) by one HMC run of everything."""
    data, t = torch.as_tensor(x), torch.as_tensor(T)

    def log_prob(v, index):  # noqa: ARG001 - of latent mu, tau and z, all standard normal a priori
        hyper = population.prior.from_latent(v[..., :2])
        ell = hyper[..., :1] + hyper[..., 1:] * v[..., 2:]
        model = torch.exp(-t / ell.exp()[..., None])
        misfit = ((model - data) / SIGMA).square().sum((-2, -1))
        return -0.5 * (misfit + v.square().sum(-1))

    starts = torch.randn(1, 8, 2 + len(x), generator=torch.Generator().manual_seed(seed))
    starts = 0.1 * starts.double().repeat_interleave(8, 1)
    found = hmc.sample(log_prob, starts, seed=seed, rows=64)
    if not bool(found.converged):
        raise RuntimeError("the joint run has not converged")
    v = found.samples[0].flatten(0, 1)
    hyper = population.prior.from_latent(v[:, :2])
    return hyper.numpy(), (hyper[:, :1] + hyper[:, 1:] * v[:, 2:]).numpy()


def main(n=40, n_sims=5000, n_epochs=15, n_samples=2000, n_kept=500, seed=0):
    x = simulated(n, seed)
    observations = nbi.Observations.from_arrays(x, t=T)

    alone = nbi.Engine(decay, nbi.Prior({"ell": norm(0, 1.5)}), noise=SIGMA, seed=seed)
    alone.fit(n_sims, n_epochs=n_epochs, observations=observations)
    answers = alone.predict_many(observations, keep=n_kept)
    hyper = nbi.population.fit(answers, population, seed=seed)
    print(hyper.report)

    # children know their parents as scalars: a network for all that these may be
    parents = population.prior.sample(n_sims, seed)
    bank = nbi.Observations.from_arrays(
        np.resize(x, (n_sims, len(T))),
        t=T,
        scalars=dict(zip(("mu", "tau"), parents.T, strict=True)),
    )
    below = nbi.Engine(child, nbi.Prior({"z": norm(0, 1)}), noise=SIGMA, seed=seed)
    below.fit(n_sims, n_epochs=n_epochs, observations=bank)
    given = dict(zip(("mu", "tau"), hyper.resample(n_samples, seed).T, strict=True))
    z = below.sample(observations, given=given, n_weighed=32, seed=seed)  # (n_samples, n, 1)
    ell = given["mu"][:, None] + given["tau"][:, None] * z[..., 0]

    top = np.stack([given["mu"], given["tau"]], 1)
    ours = np.concatenate([top, ell], 1)
    joint = np.concatenate(joint_run(x, seed), 1)
    off = (ours.mean(0) - joint.mean(0)) / joint.std(0)
    ratio = ours.std(0) / joint.std(0)
    names = ["mu", "tau", *(f"ell {i}" for i in range(n))]
    print("name      step by step        all together        off / sd   ratio of sd")
    for i in range(2 + N_TOLD):
        told = (f"{v[:, i].mean():8.3f} +- {v[:, i].std():6.3f}" for v in (ours, joint))
        print(f"{names[i]:6}", *told, f"{off[i]:9.2f} {ratio[i]:10.2f}")
    print(f"all: {np.abs(off).max():.2f} sd off; widths {ratio.min():.2f} to {ratio.max():.2f}")
    return off, ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=5000)
    parser.add_argument("--n-epochs", type=int, default=15)
    options = parser.parse_args()
    main(n_sims=options.n_sims, n_epochs=options.n_epochs)
