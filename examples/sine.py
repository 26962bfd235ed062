"""nbi's own problem: the phase, amplitude and frequency of a noisy sine, for 100 curves at once.

``python examples/sine.py`` trains in two to three minutes on one core, prints verdicts and writes
``sine-corner.png`` and ``sine-ranks.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import uniform

import nbi_plus as nbi

T = np.linspace(0.0, 1.0, 50)


def sine(theta, t):
    """Return A sin(omega t + phi0) of theta (n, 3) at t (L,); torch, so that it has gradients."""
    phi0, amplitude, omega = theta.T[..., None]
    return amplitude * torch.sin(omega * t + phi0)


def main(n_sims=20_000, n_epochs=30, n_curves=100, out="."):
    prior = nbi.Prior(
        {
            "phi0": nbi.Circular(2 * np.pi),
            "A": uniform(1, 4),
            "omega": uniform(2 * np.pi, 10 * np.pi),
        },
        labels=[r"$\phi_0$", "$A$", r"$\omega$"],
    )
    engine = nbi.Engine(sine, prior, noise=nbi.GaussianNoise(sigma=1.0), seed=0)
    engine.fit(n_sims=n_sims, n_epochs=n_epochs, t=T)

    rng = np.random.default_rng(1)
    truth = prior.sample(n_curves, rng)
    clean = sine(torch.as_tensor(truth), torch.as_tensor(T)).numpy()
    curves = nbi.Observations.from_arrays(clean + rng.normal(size=clean.shape), t=T)
    posteriors = engine.predict_many(curves)
    print(posteriors)
    print(f"median efficiency {np.median(posteriors.efficiency):.2f}")
    print(posteriors[0].report)
    nbi.plots.corner(posteriors[0], truths=truth[0]).savefig(Path(out) / "sine-corner.png")
    if posteriors.certified.sum() >= 2:
        calibration = nbi.sbc(posteriors, truth)
        print(calibration.report)
        nbi.plots.ranks(calibration).savefig(Path(out) / "sine-ranks.png")
    return posteriors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-sims", type=int, default=20_000)
    parser.add_argument("--n-epochs", type=int, default=30)
    parser.add_argument("--out", default=".")
    options = parser.parse_args()
    main(options.n_sims, options.n_epochs, out=options.out)
