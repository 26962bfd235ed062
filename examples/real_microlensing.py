"""OGLE-2008-BLG-092, a real microlensing event: t0, u0 and tE, its fluxes marginalised.

``python examples/real_microlensing.py`` fits the 383 points that MulensModel ships, in about a
minute on one core, prints the result beside MulensModel's own, and writes
``microlensing-light-curve.png``. Without MulensModel, give the path of ``phot_ob08092_O4.dat``.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
from astropy.table import Table
from scipy.stats import uniform

import nbi_plus as nbi
from nbi_plus.models.microlensing import point_lens

ORIGIN = 5379.0  # HJD - 2450000: times count from here
REACH = 60.0  # days about the peak that are drawn
SHIPPED = "data/photometry_files/OB08092/phot_ob08092_O4.dat"
NOISE = nbi.LinearNuisance(nbi.GaussianNoise(), ("scale", "offset"), sd=1e5)
PRIOR = {"t0": uniform(0.40, 0.36), "u0": uniform(0.30, 0.35), "tE": uniform(16.0, 3.6)}
PUBLISHED = {  # MulensModel's example 16 with MultiNest; fluxes are fitted there, not marginalised
    "t0": (0.570, 0.045),
    "u0": (0.524, 0.025),
    "tE": (17.92, 0.53),
    "scale": (1668.9, 123.7),
    "offset": (22.9, 123.6),
}


def shipped():
    """Return the path of the photometry within the installed MulensModel."""
    found = importlib.util.find_spec("MulensModel")
    if found is None:
        raise SystemExit("MulensModel is not installed. Give the path of phot_ob08092_O4.dat.")
    return Path(found.origin).parent / SHIPPED


def read(path):
    """Return the photometry as fluxes, of which magnitude 22 is 1."""
    table = Table.read(path, format="ascii.no_header", names=["t", "mag", "mag_err"])
    table["event"] = "OGLE-2008-BLG-092"
    return nbi.Observations.from_table(table, id="event", zero_point=22.0).relative_to([ORIGIN])


def fit(event, n_sims=1000, ess_target=4000):
    """Return an engine fitted to the event in rounds."""
    engine = nbi.Engine(point_lens, nbi.Prior(PRIOR), noise=NOISE, featurizer="resnet", seed=0)
    return engine.fit(
        n_sims=n_sims, n_rounds=20, observations=event, ess_target=ess_target, n_epochs=8
    )


def fluxes(engine, event, theta):
    """Return mean (n, 2) and covariance (n, 2, 2) of the fluxes of source and blend."""
    model = point_lens(theta, event.batch().coords["t"].numpy())
    found = engine.noise_.nuisances(theta, model[:, None], event)
    return found.mean, found.covariance


def summary(engine, event):
    """Return mean and sd of each parameter and each flux."""
    posterior = engine.posterior_
    mean, covariance = fluxes(engine, event, posterior.samples)
    values = np.c_[posterior.samples, mean]
    center = posterior.weights @ values
    variance = posterior.weights @ (values - center) ** 2
    variance[-2:] += posterior.weights @ np.diagonal(covariance, axis1=1, axis2=2)
    return dict(zip(PUBLISHED, zip(center, np.sqrt(variance), strict=True), strict=True))


def draw(engine, event):
    """Return the figure of the light curve about its peak."""

    def curve(theta, t):
        source, blend = fluxes(engine, event, theta)[0].T[..., None]
        return source * point_lens(theta, t) + blend

    batch = event.batch()
    t = batch.coords["t"][0].numpy()
    near = np.abs(t) < REACH
    return nbi.plots.predictive(
        engine.posterior_,
        curve,
        t[near],
        batch.x[0, 0].numpy()[near],
        batch.x_err[0, 0].numpy()[near],
        grid=np.linspace(-REACH, REACH, 400),
        labels=("HJD - 2455379", "flux"),
    )


def main(path=None, n_sims=1000, ess_target=4000, out="."):
    """Fit the event, print the table, and write the picture."""
    event = read(path or shipped())
    engine = fit(event, n_sims, ess_target)
    print(f"{engine.rounds_}\n{engine.posterior_.report}\n")
    print(f"{'':8}{'nbi-plus':>20}{'published':>20}")
    for name, (mean, sd) in summary(engine, event).items():
        there = PUBLISHED[name]
        print(f"{name:8}{mean:11.3f} +-{sd:6.3f}{there[0]:11.3f} +-{there[1]:6.3f}")
    draw(engine, event).savefig(Path(out) / "microlensing-light-curve.png")
    return engine


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", help="phot_ob08092_O4.dat; default: MulensModel's")
    parser.add_argument("--n-sims", type=int, default=1000)
    parser.add_argument("--ess-target", type=float, default=4000)
    parser.add_argument("--out", default=".")
    options = parser.parse_args()
    main(options.path, options.n_sims, options.ess_target, options.out)
