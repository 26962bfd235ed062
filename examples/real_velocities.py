"""Real radial velocities: the two planets of K2-24, and the two of HD 164922.

``python examples/real_velocities.py`` fits the velocities that radvel ships, in rounds, and prints
the results beside radvel's. Zero points of instruments are marginalised; each instrument of
HD 164922 has a jitter of its own. Without radvel, ``--folder`` says where its example data are. The
data of each planet, folded, go into ``velocities-STAR-PLANET.png``.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.table import Table
from scipy.stats import lognorm, loguniform, norm, uniform
from torch import nn

import nbi_plus as nbi
from nbi_plus.models.radial_velocity import Orbits

FLAT = 1e4  # m/s, the sd of zero points: so broad that the likelihood does not see it
PERIODS = (1198.6, 75.77)  # days, of HD 164922, where periodograms peak
FULTON = {  # Fulton et al. (2016), with a free jitter
    "period_1": (1201.1, 5.6),
    "e_1": (0.126, 0.050),
    "K_1": (7.15, 0.31),
    "period_2": (75.765, 0.057),
    "e_2": (0.22, 0.13),
    "K_2": (2.22, 0.30),
}
TUTORIAL = {  # radvel's, with all jitters ln 2.6 m/s; it warns that its chains are not converged
    "period_1": (1198.6, 1.2),
    "e_1": (0.114, 0.022),
    "K_1": (7.19, 0.18),
    "period_2": (75.771, 0.027),
    "e_2": (0.19, 0.07),
    "K_2": (2.13, 0.17),
}


@dataclass(frozen=True)
class Star:
    """Velocities of a star, and what is assumed of it.

    Attributes
    ----------
    observations : Observations
        Of one object, its id the name of the star.
    orbits : Orbits
    prior : dict
        Of the parameters of the orbits, in their order, and the jitters; numbers are fixed.
    noise : LinearNuisance
    published : dict of tuple
        Values and errors of what radvel's tutorials find, or others.
    """

    observations: nbi.Observations
    orbits: Orbits
    prior: dict[str, Any]
    noise: nbi.LinearNuisance
    published: dict[str, tuple[float, float]]

    @property
    def t(self):
        """Times (L,)."""
        return self.observations.batch().coords["t"][0].numpy()

    def velocity(self, theta, t):
        """Return velocities (n, L) of theta (n, P), whose last columns are jitters."""
        return self.orbits(theta[:, : len(self.orbits.names)], t)

    def engine(self, seed=0):
        """Return the engine, not fitted yet; for one star and one cadence its network is small."""
        network = nn.Sequential(nn.Flatten(), nn.LazyLinear(64), nn.ReLU())
        prior = nbi.Prior(self.prior, derived=eccentricities(self.prior))
        return nbi.Engine(self.velocity, prior, noise=self.noise, featurizer=network, seed=seed)


def eccentricities(prior):
    """Return the eccentricities as functions of theta (n, D), where they are free."""
    free = [name for name, value in prior.items() if not np.isscalar(value)]

    def of(planet):
        columns = [free.index(f"sqrt_e_{part}_w_{planet}") for part in ("cos", "sin")]
        return lambda theta: (theta[:, columns] ** 2).sum(-1)

    return {f"e_{i}": of(i) for i in (1, 2) if f"sqrt_e_cos_w_{i}" in free}


def read(path, star, layout):
    """Return the velocities of a file of radvel, named by their star."""
    table = Table.read(path, format=layout)
    table["star"] = star
    columns = {"instrument": "tel"} if "tel" in table.colnames else {}
    return nbi.Observations.from_table(table, id="star", x_err="errvel", **columns)


def k2_24(folder, *, tutorial=True):
    """Return K2-24 (Petigura et al. 2016), whose periods are known from transits.

    Parameters
    ----------
    folder : Path
    tutorial : bool
        With priors, eccentricities and time base of radvel's tutorial of nested sampling; else
        orbits are circular, and K and the jitter have broad priors.
    """
    observations = read(folder / "epic203771098.csv", "K2-24", "ascii.csv")
    t = observations.batch().coords["t"]
    amplitude = lognorm(10.0, scale=5.0) if tutorial else loguniform(1e-2, 1e3)
    root = 0.01 if tutorial else 0.0
    prior = {}
    for i, (period, t_conj) in enumerate([(20.885258, 2072.79438), (42.363011, 2082.62516)], 1):
        prior |= {f"period_{i}": period, f"t_conj_{i}": t_conj}
        prior |= {f"sqrt_e_cos_w_{i}": root, f"sqrt_e_sin_w_{i}": root, f"K_{i}": amplitude}
    prior |= {"gamma": 0.0, "dvdt": norm(0, 1), "curv": norm(0, 0.1)}
    prior["jitter"] = norm(np.log(3), 0.5) if tutorial else uniform(0, 15)
    orbits = Orbits(2, n_trend=3, time_base=2420.0 if tutorial else float(t.min() + t.max()) / 2)
    noise = nbi.LinearNuisance(nbi.GaussianNoise(jitter="jitter"), "offset", sd=FLAT)
    return Star(observations, orbits, prior, noise, {"ln Z": (-103.33, 0.01)} if tutorial else {})


def hd_164922(folder, *, jitter=None):
    """Return HD 164922 (Fulton et al. 2016), its velocities binned by night and instrument.

    Parameters
    ----------
    folder : Path
    jitter : float, optional
        Of all instruments; by default each has its own, which is a parameter.
    """
    nights = read(folder / "164922_fixed.txt", "HD 164922", "ascii.basic").bin(1.0)
    prior = {}
    for i, (period, near, t_conj) in enumerate([(1200, 100, 0), (75.75, 1, -500)], 1):
        prior[f"period_{i}"] = uniform(period - near, 2 * near)
        prior[f"t_conj_{i}"] = uniform(t_conj - period / 2, period)
        # so that all orbits are closed; e and omega are uniform below e = 0.49
        prior |= {f"sqrt_e_{part}_w_{i}": uniform(-0.7, 1.4) for part in ("cos", "sin")}
        prior[f"K_{i}"] = loguniform(0.1, 100)
    each = {name: f"jitter_{name}" for name in nights.categories["instrument"]}
    prior |= dict.fromkeys(each.values(), uniform(0, 10) if jitter is None else jitter)
    white = nbi.GaussianNoise(jitter=each, along="instrument")
    noise = nbi.LinearNuisance(white, "offset", sd=FLAT, along="instrument")
    observations = nights.relative_to([2_456_778.0])
    return Star(observations, Orbits(2), prior, noise, FULTON if jitter is None else TUTORIAL)


def fit_in_rounds(star, seed=0, **options):
    """Return the engine of a star fitted in rounds, and its posterior."""
    engine = star.engine(seed)
    options = {"n_sims": 1000, "n_rounds": 30, "n_epochs": 8, "ess_target": 4000} | options
    engine.fit(observations=star.observations, **options)
    return engine, engine.posterior_


def fit_by_chains(star, periods, seed=0):
    """Return the engine of a star, hardly trained, and the posterior that its ladder finds.

    Narrow posteriors of many parameters are left to the chains, which start from a linear fit.
    """
    engine = star.engine(seed).fit(n_sims=2000, n_epochs=3, observations=star.observations)
    place = circular_orbits(star, periods)
    found = engine.predict_many(star.observations, modes=place[None, None])
    # more of the same, if the budget ended the chains
    return engine, engine.retry(found, star.observations)[0]


def circular_orbits(star, periods):
    """Return a place (D,): circular orbits of these periods, fitted, and jitters of 2.6 m/s."""
    batch = star.observations.batch()
    angles = 2 * np.pi * star.t / np.array(periods)[:, None]
    code = batch.coords["instrument"][0].numpy()
    basis = np.concatenate([np.cos(angles), np.sin(angles), np.eye(code.max() + 1)[:, code]])
    error = batch.x_err[0, 0].numpy()
    found = np.linalg.lstsq((basis / error).T, batch.x[0, 0].numpy() / error)[0]
    place = []
    for i, (period, a, b) in enumerate(zip(periods, *found[:4].reshape(2, 2), strict=True), 1):
        low, _ = star.prior[f"t_conj_{i}"].support()
        t_conj = low + (np.arctan2(-a, -b) / (2 * np.pi) * period - low) % period
        place += [period, t_conj, 0.0, 0.0, np.hypot(a, b)]
    n_jitters = sum(not np.isscalar(v) for k, v in star.prior.items() if k.startswith("jitter"))
    return np.array(place + [2.6] * n_jitters)


def flat_evidence(star, posterior):
    """Return ln Z for zero points of density 1 per m/s, instead of a broad Gaussian's."""
    n_points = len(star.observations.categories.get("instrument", ("one",)))
    return posterior.log_evidence + n_points * np.log(np.sqrt(2 * np.pi) * FLAT)


def results(star, posterior):
    """Return value and error of all that was found."""
    values = dict(zip(posterior.names, posterior.samples.T, strict=True)) | posterior.derived
    found = {}
    for name, value in values.items():
        mean = posterior.weights @ value
        found[name] = (mean, np.sqrt(posterior.weights @ (value - mean) ** 2))
    return found | {"ln Z": (flat_evidence(star, posterior), posterior.log_evidence_err)}


def folded(star, engine, posterior, planet):
    """Return the figure of the data of one planet alone, by phase since conjunction."""
    theta = engine.prior_.complete(posterior.samples)
    columns = slice(5 * planet, 5 * planet + 5)
    own, model = Orbits()(theta[:, columns], star.t), star.velocity(theta, star.t)[:, None]
    rest = engine.noise_.corrected(theta, model, star.observations)[:, 0] - own
    batch = star.observations.batch()
    scatter = engine.noise_.noise.scale(torch.from_numpy(model), batch, torch.from_numpy(theta))
    period, start = posterior.weights @ theta[:, columns][:, :2]
    return nbi.plots.predictive(
        posterior,
        lambda free, phase: Orbits()(
            engine.prior_.complete(free)[:, columns], start + phase * period
        ),
        (star.t - start) / period % 1,
        batch.x[0, 0].numpy() - posterior.weights @ rest,
        posterior.weights @ scatter[:, 0].numpy(),
        grid=np.linspace(0, 1, 200),
        labels=("phase since conjunction", "velocity of one planet (m/s)"),
    )


def shipped():
    """Return the folder of radvel's example data."""
    try:
        return Path(importlib.import_module("radvel").DATADIR)
    except ImportError:
        raise SystemExit("radvel is not installed. Give the --folder of its data.") from None


def report(star, engine, posterior, out):
    """Print what was found beside what is published, and draw each planet."""
    print(f"{posterior.report}\n{'':16}{'nbi-plus':>22}{'published':>20}")
    for name, (value, error) in results(star, posterior).items():
        there = star.published.get(name)
        text = "" if there is None else f"{there[0]:11.3f} +-{there[1]:6.3f}"
        print(f"{name:16}{value:13.4f} +-{error:7.4f}{text}")
    for i, letter in enumerate("bc"):
        figure = folded(star, engine, posterior, i)
        figure.savefig(Path(out) / f"velocities-{posterior.id.replace(' ', '')}-{letter}.png")


def main(folder=None, out=".", stars=("K2-24", "HD 164922")):
    """Fit the stars, print the tables, and write the pictures."""
    folder = Path(folder or shipped())
    found = {}
    if "K2-24" in stars:
        star = k2_24(folder)
        found["K2-24"] = star, *fit_in_rounds(star)
    if "HD 164922" in stars:
        star = hd_164922(folder)
        found["HD 164922"] = star, *fit_by_chains(star, PERIODS)
    for each in found.values():
        report(*each, out)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="the example data of radvel; default: of the installed")
    parser.add_argument("--out", default=".")
    options = parser.parse_args()
    main(options.folder, options.out)
