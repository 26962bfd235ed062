"""Periods of many RR Lyrae stars with one network: Stripe 82 of SDSS, after Sesar et al. (2010).

``python examples/rr_lyrae.py FOLDER`` reads ``lightcurves.csv.gz`` (Num, time, mag, magerr, band)
and ``truth.csv`` (Num, Per), of which https://github.com/light-curve/test-data has a copy, and
``python examples/rr_lyrae.py --simulate`` makes stars of like cadence. One network is trained over
the survey's own cadences and errors. A posterior is a million times narrower in period than the
prior, which no network learns: the ladder is told where to look, around the peaks of a periodogram,
and certifies no star without that. Prints how many known periods lie in a mode of the posterior,
and draws one star, folded, in ``rr-lyrae.png``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.table import Table, vstack
from scipy.optimize import least_squares
from scipy.stats import loguniform, uniform

import nbi_plus as nbi
from nbi_plus.infer.ladder.rung_refine import RefineRung
from nbi_plus.models.periodic import sawtooth

BANDS = ("g", "r", "i")
PERIODS = (0.2, 1.0)  # days
CLOSE = 1e-4  # days: a period is right when it is as close as that
PRIOR = nbi.Prior(
    {
        "period": uniform(PERIODS[0], PERIODS[1] - PERIODS[0]),
        "phase": nbi.Circular(1.0),
        "skew": uniform(0.0, 1.25),
        "jitter": loguniform(0.003, 0.3),  # magnitudes: also what the template cannot follow
    },
    units={"period": "d", "jitter": "mag"},
)
# mean and amplitude of each band are integrated out
NOISE = nbi.LinearNuisance(
    nbi.GaussianNoise(jitter="jitter"),
    ("scale", "offset"),
    mean=(0.3, 18.0),
    sd=(0.2, 3.0),
    along="band",
)
# twice the usual draws for the mixtures, after which the budget lets neither flows nor chains begin
LADDER = nbi.Ladder(refine=RefineRung(n_each=1000), budget=nbi.Budget(22_000, gradients=0))
MISFIT = 0.05  # magnitudes: error of the template in least squares
N_PEAKS, N_MODES, N_PLACES = 40, 6, 64  # of the periodogram; of them followed up; draws of these


class Star(NamedTuple):
    """Times, magnitudes, inverse errors and codes of bands of one star, each of shape (L,)."""

    t: np.ndarray
    x: np.ndarray
    weight: np.ndarray
    band: np.ndarray

    @classmethod
    def of(cls, observations):
        """Return the one star of some observations."""
        t, band = (np.ravel(observations.coords[name]) for name in ("t", "band"))
        error = np.hypot(np.ravel(observations.x_err), MISFIT)
        return cls(t, np.ravel(observations.x), 1 / error, band)


def curve(theta, t):
    """Return the curves (n, L) of theta (n, 4); the jitter is the noise model's business."""
    return sawtooth(theta[:, :3], t)


def spectrum(values, t, frequency):
    """Return sum(values * exp(2 pi i f t)) at evenly spaced frequencies (F,), by one product."""
    n_fine = int(len(frequency) ** 0.5)
    coarse, fine = frequency[::n_fine], frequency[:n_fine] - frequency[0]
    turns = [np.exp(2j * np.pi * np.outer(part, t)) for part in (coarse, fine)]
    return ((values * turns[0]) @ turns[1].T).ravel()[: len(frequency)]


def power(star, frequency):
    """Return the Lomb-Scargle power (F,) with floating means, summed over the bands."""
    total = np.zeros(len(frequency))
    for code in np.unique(star.band):
        t, x, weight = (v[star.band == code] for v in star[:3])
        share = weight**2 / (weight**2).sum()
        data = spectrum(share * (x - share @ x), t, frequency)
        window, twice = spectrum(share, t, frequency), spectrum(share, 2 * t, frequency)
        cc = (1 + twice.real) / 2 - window.real**2
        ss = (1 - twice.real) / 2 - window.imag**2
        cs = twice.imag / 2 - window.real * window.imag
        cross = data.real**2 * ss + data.imag**2 * cc - 2 * data.real * data.imag * cs
        total += (weight**2).sum() * cross / (cc * ss - cs**2)
    return total


def peaks(star):
    """Return the periods (N_PEAKS,) of the highest peaks of the periodogram, highest first."""
    step = 0.1 / np.ptp(star.t)
    frequency = np.arange(1 / PERIODS[1], 1 / PERIODS[0], step)
    height = power(star, frequency)
    inner = height[1:-1]
    at = 1 + np.flatnonzero((inner > height[:-2]) & (inner >= height[2:]))
    return 1 / frequency[at[np.argsort(-height[at])[:N_PEAKS]]]


def residuals(theta, star):
    """Return weighted residuals (n, L) of theta (n, 3) at each band's best mean and amplitude."""
    model = sawtooth(theta, star.t)
    found = np.empty_like(model)
    for code in np.unique(star.band):
        own = star.band == code
        share = star.weight[own] ** 2 / (star.weight[own] ** 2).sum()
        f, x = (v - (v @ share)[..., None] for v in (model[:, own], star.x[own]))
        scale = (f * x) @ share / ((f * f) @ share)
        found[:, own] = star.weight[own] * (x - np.maximum(scale, 0.01)[:, None] * f)
    return found


def starts(star, periods):
    """Return the best of a grid of phases and skews for each period, (n, 3), and its chi2 (n,)."""
    phase, skew = (v.ravel() for v in np.meshgrid(np.arange(20) / 20, [0.2, 0.6, 1.0]))
    grid = [np.column_stack([np.full(len(phase), p), phase, skew]) for p in periods]
    chi2 = (residuals(np.concatenate(grid), star) ** 2).sum(1).reshape(len(grid), -1)
    best = chi2.argmin(1)
    return np.array([rows[i] for rows, i in zip(grid, best, strict=True)]), chi2.min(1)


def solve(star, start):
    """Return period, phase and skew (3,) of least squares, their covariance, and the scatter."""
    found = least_squares(
        lambda p: residuals(p[None], star)[0], start, method="lm", x_scale=[1e-6, 0.01, 0.05]
    )
    variance = 2 * found.cost / len(star.t)  # of residuals in units of their errors
    return found.x, variance * np.linalg.inv(found.jac.T @ found.jac), variance**0.5 * MISFIT


def places(star, rng):
    """Return draws (N_PLACES, 4) around the least-squares solutions of the best peaks.

    Their numbers follow the likelihoods of the solutions; the last of them still gets a few.
    """
    theta, chi2 = starts(star, peaks(star))
    solved = [solve(star, theta[i]) for i in np.argsort(chi2)[:N_MODES]]
    scatter = np.array([s[2] for s in solved])
    share = (scatter.min() / scatter) ** len(star.t) + 0.05
    owner = np.searchsorted(np.cumsum(share / share.sum()), (np.arange(N_PLACES) + 0.5) / N_PLACES)
    draws = np.array([rng.multivariate_normal(*solved[i][:2]) for i in owner])
    jitter = scatter[owner] * np.exp(rng.normal(size=N_PLACES) / len(star.t) ** 0.5)
    return inside(np.column_stack([draws, jitter]))


def inside(theta):
    """Return places (n, 4) that the prior allows."""
    low, high = PRIOR.transform(np.array([[1e-4] * 4, [1 - 1e-4] * 4]))
    turned = theta - np.floor(theta) * [0, 1, 0, 0]
    return np.clip(turned, low, high)


def hints(observations, seed=0):
    """Return where the ladder shall look, (N, N_PLACES, 4)."""
    rng = np.random.default_rng(seed)
    return np.array([places(Star.of(observations[i]), rng) for i in range(len(observations))])


def read(folder):
    """Return the stars, with times that count from the middle of each, and their periods (N,)."""
    names = [Path(folder) / name for name in ("lightcurves.csv.gz", "truth.csv")]
    missing = [str(name) for name in names if not name.exists()]
    if missing:
        raise FileNotFoundError(
            f"{' and '.join(missing)} must exist, but cannot be found. Copy them from "
            "https://github.com/light-curve/test-data, or use --simulate."
        )
    points, truth = (Table.read(name, format="ascii.csv") for name in names)
    real = np.isin(points["band"], BANDS) & (points["magerr"] < 1)  # 99.999 stands for no value
    survey = nbi.Observations.from_table(
        points[real], id="Num", t="time", x="mag", x_err="magerr", categories={"band": BANDS}
    )
    known = dict(zip(truth["Num"], truth["Per"], strict=True))
    return survey.relative_to("median"), np.array([known[i] for i in survey.ids])


def simulate(n_stars, seed=1):
    """Return stars as in Stripe 82: some 55 nights in ten autumns, three bands within minutes."""
    rng = np.random.default_rng(seed)
    theta = PRIOR.sample(n_stars, rng)
    theta[:, 3] = 0.02
    rows = []
    for i, star in enumerate(theta):
        night = 365.25 * rng.choice(10, 55, p=np.r_[np.full(7, 0.04), np.full(3, 0.24)])
        t = np.sort(np.floor(night + rng.uniform(0, 90, 55)) + rng.normal(0.35, 0.06, 55))
        wave = sawtooth(star[None, :3], t - np.median(t))[0]
        for band, scale, delay in zip(BANDS, (0.45, 0.33, 0.27), (0.003, 0.0, 0.001), strict=True):
            error = rng.uniform(0.005, 0.02, 55)
            noise = np.hypot(error, star[3]) * rng.normal(size=55)
            rows.append(Table({"id": [i] * 55, "t": t + delay, "x": 17 + scale * wave + noise,
                               "x_err": error, "band": [band] * 55}))  # fmt: skip
    survey = nbi.Observations.from_table(vstack(rows), categories={"band": BANDS})
    return survey.relative_to("median"), theta[:, 0]


def modes(posterior, share=0.05):
    """Return the mean periods of all clusters, further than CLOSE apart, of such a weight."""
    order = np.argsort(posterior.samples[:, 0])
    period, weight = posterior.samples[order, 0], posterior.weights[order]
    cluster = np.cumsum(np.diff(period, prepend=period[0]) > CLOSE)
    mass = np.bincount(cluster, weight)
    heavy = mass > share
    return np.bincount(cluster, weight * period)[heavy] / mass[heavy]


def is_close(found, period):
    """Say whether any of some periods is right."""
    return bool((np.abs(np.asarray(found) - period) < CLOSE).any())


def best_at(engine, star, period):
    """Return the highest log-likelihood near a period, at a least-squares solution."""
    theta, variance, scatter = solve(Star.of(star), starts(Star.of(star), [period])[0][0])
    jitter = scatter * np.geomspace(0.3, 2, 40)
    trial = inside(np.column_stack([np.tile(theta, (len(jitter), 1)), jitter]))
    return likelihoods(engine, star, trial).max()


def likelihoods(engine, star, theta):
    """Return the log-likelihoods of theta (n, 4) for one star."""
    coordinates = {name: np.ravel(star.coords[name]) for name in ("t", "band")}
    return engine.log_likelihood(theta, star.x[0], star.x_err[0], **coordinates)


def draw(engine, star, posterior):
    """Return a figure of one star, folded, with the models of its posterior."""
    period = posterior.best[0]

    def model(theta, phase, band):
        return magnitudes(engine, star, theta, phase * period, band)

    return nbi.plots.light_curve(
        posterior, model, star.fold(period, star.origins), coordinate="phase",
        grid=np.linspace(0, 1, 400), labels=(f"phase of {period:.6f} d", "magnitude"),
        magnitudes=True,
    )  # fmt: skip


def magnitudes(engine, star, theta, t, band):
    """Return the curves (n, G) at times t, with the best mean and amplitude of each band."""
    data = star.batch()
    at_data = curve(theta, np.ravel(star.coords["t"]))[:, None]
    fitted = engine.noise_.nuisances(theta[None], at_data[None], data)
    scale, offset = (
        [fitted.names.index(f"{kind}[{BANDS[code]}]") for code in band]
        for kind in ("scale", "offset")
    )
    return fitted.mean[0][:, scale] * curve(theta, t) + fitted.mean[0][:, offset]


def report(engine, survey, posteriors, period):
    """Print what was found, and each star whose known period is in no mode."""
    lombscargle = [is_close(peaks(Star.of(survey[i]))[0], p) for i, p in enumerate(period)]
    in_mode = np.array([is_close(modes(q), p) for q, p in zip(posteriors, period, strict=True)])
    best = [is_close(q.best[0], p) for q, p in zip(posteriors, period, strict=True)]
    print(posteriors)
    for name, flags in (
        ("Lomb-Scargle's highest peak is the known period", lombscargle),
        ("a mode of the posterior is the known period", in_mode),
        ("the best draw is at the known period", best),
        ("certified", posteriors.certified),
        ("certified ones with a mode at the known period", in_mode[posteriors.certified]),
    ):
        print(f"{name:52s} {np.sum(flags)} of {len(flags)}")
    print(f"simulations of a star: {np.median(posteriors.n_simulated):.0f} (median)")
    for i in np.flatnonzero(~in_mode):
        ours = posteriors[i].log_likelihood.max()
        there = best_at(engine, survey[i], period[i])
        print(
            f"{posteriors.ids[i]}: {posteriors.status[i].name} at {posteriors[i].best[0]:.6f} d, "
            f"known {period[i]:.6f} d; ln L {ours:.1f} and {there:.1f}"
        )


def main(folder=None, n_stars=40, n_sims=3000, n_epochs=6, out="."):
    """Train on the cadences of the stars, answer for all of them, print and draw."""
    survey, period = simulate(n_stars) if folder is None else read(folder)
    survey, period = survey[:n_stars], period[:n_stars]
    engine = nbi.Engine(curve, PRIOR, noise=NOISE, featurizer="resnet", ladder=LADDER, seed=0)
    start = time.perf_counter()
    engine.fit(n_sims=n_sims, n_epochs=n_epochs, observations=survey)
    trained = time.perf_counter()
    posteriors = engine.predict_many(survey, modes=hints)
    print(f"{trained - start:.0f} s to train, {time.perf_counter() - trained:.0f} s to answer")
    report(engine, survey, posteriors, period)
    shown = int(np.argmax(posteriors.certified))
    draw(engine, survey[shown : shown + 1], posteriors[shown]).savefig(Path(out) / "rr-lyrae.png")
    return posteriors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="of lightcurves.csv.gz and truth.csv")
    parser.add_argument("--simulate", action="store_true", help="make stars of like cadence")
    parser.add_argument("--n-stars", type=int, default=40)
    parser.add_argument("--n-sims", type=int, default=3000)
    parser.add_argument("--out", default=".")
    options = parser.parse_args()
    if (options.folder is None) != options.simulate:
        parser.error("give either a folder or --simulate")
    main(options.folder, options.n_stars, options.n_sims, out=options.out)
