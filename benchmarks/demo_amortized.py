"""nbi's amortized demonstration with this package: ``python -m benchmarks.demo_amortized``.

12 800 simulations, one network for noise of unknown sigma ~ U(0.05, 0.5), asked about one object of
sigma 0.1 whose posterior has two modes of equal weight. nbi 0.4.1 states an efficiency of 20.8 %.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch

import nbi_plus as nbi
from benchmarks.single_problems import load
from nbi_plus.infer.ladder.rung_refine import RefineRung

SIGMA = 0.1  # of the object


def blurred(model, obs, theta, rng):  # noqa: ARG001 - the contract of a noise function
    """Return noisy curves, each with a sigma of its own that the network is not told."""
    shape = (len(model), 1, 1)
    sigma = 0.05 + 0.45 * torch.rand(shape, generator=rng, device=model.device, dtype=model.dtype)
    noise = torch.randn(model.shape, generator=rng, device=model.device, dtype=model.dtype)
    return model + sigma * noise


def main():
    """Train, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=12_800)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = load("bimodal")
    prior = nbi.Prior({**problem.priors, "phi0": nbi.Circular(2 * math.pi)})
    noise = nbi.CustomNoise(blurred)
    engine = nbi.Engine(problem.simulator, prior, noise=noise, seed=options.seed)
    start = time.process_time()
    engine.fit(n_sims=options.n_sims, n_epochs=options.epochs)
    print(f"{time.process_time() - start:.0f} CPU s")
    engine.noise_ = nbi.GaussianNoise(SIGMA)  # the object is weighted with its own sigma
    for share in (0.0, 0.2):  # of draws from a wider base: nbi has none, our default is a fifth
        # the network's own draws, without help for objects that fail the gate
        ladder = nbi.Ladder(
            n_draws=12_800, top_up_draws=12_800, defensive_share=share,
            refine=RefineRung(n_rounds=0),
        )  # fmt: skip
        engine.set_params(ladder=ladder)
        posterior = engine.predict_many(nbi.Observations.from_arrays(problem.x_obs[None]))[0]
        positive = posterior.weights[posterior.samples[:, 1] > 0].sum()
        print(posterior)
        print(f"defensive share {share}: efficiency {posterior.efficiency:.3f}, "
              f"P(A > 0) = {np.round(positive, 3)}")  # fmt: skip


if __name__ == "__main__":
    main()
