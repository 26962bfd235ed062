"""Type Ia supernovae of a survey in two bands: peak time and flux, rise and fall, with one network.

``python examples/supernovae.py`` simulates 100 supernovae as a survey like ZTF would see them, and
``--data FOLDER`` reads real ones: FOLDER holds ``lightcurves.csv.gz`` (ZTFID, time in MJD, mag,
magerr, band: g or R) and ``truth_bts.csv`` of the ZTF Bright Transient Survey (peakt in
JD - 2458000, peakfilt, peakmag, rise, fade). In two to three minutes on a loaded core a network is
trained for the cadences and errors of all of them, every supernova gets a posterior with a verdict,
and peaks and widths are compared with the truth. It writes ``supernovae-curve.png`` and
``supernovae-peaks.png``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from astropy.table import Table
from matplotlib.figure import Figure
from scipy.stats import lognorm, loguniform, norm

import nbi_plus as nbi
from nbi_plus.models.supernova import bazin

BANDS = ("g", "R")
COLUMNS = {"id": "ZTFID", "t": "time", "x": "mag", "x_err": "magerr", "band": "band"}
ZERO_POINT = 23.9  # AB magnitude of 1 microjansky
FAINTEST = 1e-3  # microjansky: a band of one noisy point may have no flux at all
JD_OF_BTS, JD_OF_MJD = 2_458_000.0, 2_400_000.5
WINDOW = (-30.0, 40.0)  # days from the brightest point: a Bazin curve knows no later decline
QUANTITIES = ("mjd", "mag", "rise", "fade")  # of the peak; days above half of it


class Survey(NamedTuple):
    """Light curves in units of their brightest point, and what else is known of them.

    ``observations`` count days from the brightest point, whose flux in microjansky is ``brightest``
    (N,). ``truth`` has the columns ``mjd``, ``band`` (a code), ``mag``, ``rise``, ``fade``.
    """

    observations: nbi.Observations
    brightest: np.ndarray
    truth: Table


def shape(theta, t, band):
    """Return light curves (n, L) of peak 1 in each band, after Bazin et al. (2009).

    Both bands rise alike, and R falls at a pace of its own. Their peak fluxes and the jitter are
    the noise model's business.

    Parameters
    ----------
    theta : array_like, shape (n, 5)
        Time of the peak in g, tau_rise, tau_fall of g and of R, and the jitter.
    t, band : array_like, shape (L,) or (n, L)
        Days, and codes of `BANDS`.
    """
    theta, t = torch.as_tensor(theta), torch.as_tensor(t)
    t_peak, rise, *falls = theta[:, :4].T
    start = t_peak - lead(rise, falls[0])
    curves = [bazin(torch.stack([start, rise, fall, *scale(rise, fall)], -1), t) for fall in falls]
    return torch.where(torch.as_tensor(band) == 0, *curves)


def lead(rise, fall):
    """Return the time from t0 to the peak."""
    return rise * torch.log(fall / rise - 1)


def scale(rise, fall):
    """Return A for a peak of 1, and no background."""
    a = torch.exp(lead(rise, fall) / fall) / (1 - rise / fall)
    return a, torch.zeros_like(a)


def peak_time(theta, band):
    """Return the time of the peak (n,) in a band, a code."""
    t_peak, rise, *falls = torch.as_tensor(theta)[:, :4].T
    return (t_peak + lead(rise, falls[band]) - lead(rise, falls[0])).numpy()


def days_above_half(theta, band, side):
    """Return for how long (n,) curves are above half their peak: before it (-1), after it (1)."""
    step = 0.1
    t = peak_time(theta, band)[:, None] + side * np.arange(step / 2, 150, step)
    return step * (shape(theta, t, np.full(t.shape[1], band)) > 0.5).sum(-1).numpy()


def problem(featurizer="resnet-gru", seed=0):
    """Return the engine, not fitted; fluxes and the jitter are in units of the brightest point."""
    prior = nbi.Prior(
        {
            "t_peak": norm(0, 8),
            "tau_rise": loguniform(1, 12),
            "tau_fall_g": loguniform(12, 120),
            "tau_fall_R": loguniform(12, 120),
            "jitter": lognorm(1.0, scale=0.03),
        },
        units=dict.fromkeys(("t_peak", "tau_rise", "tau_fall_g", "tau_fall_R"), "d"),
    )
    points = nbi.GaussianNoise(jitter="jitter")
    noise = nbi.LinearNuisance(points, "scale", mean=1.0, sd=1.0, along="band")
    return nbi.Engine(shape, prior, noise=noise, featurizer=featurizer, seed=seed)


def peak_fluxes(theta, observation, noise):
    """Return draws (n, 2) of the peak flux in each band, which the likelihood had integrated out.

    Parameters
    ----------
    theta : ndarray, shape (n, 5)
    observation : Observations
        Of one object.
    noise : LinearNuisance
    """
    batch = observation.batch()
    model = shape(theta, batch.coords["t"], batch.coords["band"])
    found = noise.nuisances(theta, model[:, None].numpy(), batch)
    normal = np.random.default_rng(0).normal(size=(*found.mean.shape, 1))
    return found.mean + (np.linalg.cholesky(found.covariance) @ normal)[..., 0]


def around_peak(observations):
    """Return points of `WINDOW` about the brightest, and fluxes in units of that one's.

    Strays of other years may be brighter than the supernova, but are not as many: they go first.
    """
    middle = observations.relative_to("median")
    peak = middle.select_points(np.abs(middle.points["t"]) < 100).relative_to("peak")
    t = peak.points["t"]
    cut = peak.select_points((WINDOW[0] <= t) & (t <= WINDOW[1]))
    brightest = np.maximum.reduceat(cut.values[0], cut.offsets[:-1])
    unit = brightest[cut.owner]
    relative = replace(cut, values=cut.values / unit, errors=cut.errors / unit, units={"t": "d"})
    return relative, brightest


def read(folder):
    """Return the real survey of a folder."""
    folder = Path(folder)
    if not (folder / "lightcurves.csv.gz").exists():
        raise FileNotFoundError(
            f"{folder} must hold lightcurves.csv.gz and truth_bts.csv, but does not. Leave --data "
            "out to simulate a survey."
        )
    raw = nbi.Observations.read(
        folder / "lightcurves.csv.gz",
        categories={"band": BANDS},
        zero_point=ZERO_POINT,
        units={"x": "uJy", "t": "d"},
        **COLUMNS,
    )
    return Survey(*around_peak(raw), published(folder / "truth_bts.csv", raw.ids))


def published(path, ids):
    """Return what the Bright Transient Survey lists of some objects.

    Its peak is the brightest point in one band, not a fit. ``fade`` may be a lower limit: NaN here.
    """
    table = Table.read(path)
    table.add_index("ZTFID")
    table = table.loc[list(ids)]
    return Table(
        {
            "mjd": table["peakt"] + JD_OF_BTS - JD_OF_MJD,
            "band": [BANDS.index({"r": "R"}.get(name, name)) for name in table["peakfilt"]],
            "mag": table["peakmag"],
            "rise": table["rise"],
            "fade": [math.nan if text.startswith(">") else float(text) for text in table["fade"]],
        }
    )


def simulate(n=100, seed=0):
    """Return a survey like the real one: every third night or so, a gap, and detections alone."""
    rng = np.random.default_rng(seed)
    widths = np.exp(rng.normal(np.log([4.5, 17.0, 27.0]), 0.15, (n, 3)))
    theta = np.column_stack([rng.uniform(58_300, 59_300, n), widths, np.zeros(n)])
    mag = rng.uniform(16.5, 19.0, n)
    flux = 10 ** (-0.4 * (mag - ZERO_POINT))
    seen = [_detections(*each, rng) for each in zip(theta, flux, strict=True)]
    table = {k: np.concatenate([one[k] for one in seen]) for k in seen[0]}
    table["ZTFID"] = np.repeat([f"SIM{i:03d}" for i in range(n)], [len(one["mag"]) for one in seen])
    raw = nbi.Observations.from_table(
        table, categories={"band": BANDS}, zero_point=ZERO_POINT, **COLUMNS
    )
    truth = {"mjd": theta[:, 0], "band": np.zeros(n, int), "mag": mag}
    truth |= {"rise": days_above_half(theta, 0, -1), "fade": days_above_half(theta, 0, 1)}
    return Survey(*around_peak(raw), Table(truth))


def _detections(theta, flux, rng):
    """Return the points of one supernova, columns of a table; it is as bright in both bands."""
    nights = theta[0] + np.repeat(np.arange(rng.uniform(-15, -5), 60), 2)
    lost = theta[0] + rng.uniform(-15, 50)  # when a gap of 12 days begins
    visited = (rng.random(len(nights)) < 0.25) & ((nights < lost) | (nights > lost + 12))
    t = nights[visited]
    band = rng.integers(0, len(BANDS), len(t))
    model = flux * shape(theta[None], t, band)[0].numpy()
    error = np.hypot(6.0, 0.04 * model)
    observed = model + error * rng.normal(size=len(t))
    found = observed > 3.5 * error
    return {
        "time": t[found],
        "mag": magnitude(observed[found]),
        "magerr": 2.5 / np.log(10) * (error / observed)[found],
        "band": np.array(BANDS)[band[found]],
    }


def magnitude(flux):
    """Return AB magnitudes of fluxes in microjansky."""
    return ZERO_POINT - 2.5 * np.log10(flux)


def measured(survey, posteriors, noise):
    """Return draws (N, 500, 4) of `QUANTITIES` in the band that the truth lists."""
    draws = []
    for i, posterior in enumerate(posteriors):
        theta = posterior.resample(500, rng=0)
        flux = peak_fluxes(theta, survey.observations[i : i + 1], noise)
        band = survey.truth["band"][i]
        own = survey.brightest[i] * flux[:, band]
        mjd = survey.observations.origins[i] + peak_time(theta, band)
        widths = [days_above_half(theta, band, side) for side in (-1, 1)]
        draws.append(np.column_stack([mjd, magnitude(np.maximum(own, FAINTEST)), *widths]))
    return np.stack(draws)


def comparison(survey, draws):
    """Return a table of how draws (N, 500, 4) differ from the truth, by its band."""
    rows = []
    for k, name in enumerate(QUANTITIES):
        low, middle, high = np.quantile(draws[..., k], [0.16, 0.5, 0.84], axis=1)
        off, error = middle - np.asarray(survey.truth[name]), (high - low) / 2
        for code, band in enumerate(BANDS):
            own = (survey.truth["band"] == code) & np.isfinite(off)
            if own.any():
                figures = *robust(off[own]), np.median(error[own]), robust((off / error)[own])[1]
                far = own & (np.abs(off - figures[0]) > 5 * figures[1])
                rows.append(
                    (name, band, own.sum(), *figures, " ".join(survey.observations.ids[far]))
                )
    names = ("quantity", "band", "n", "median", "scatter", "error", "scatter / error", "far off")
    table = Table(rows=rows, names=names)
    for name in names[3:7]:
        table[name].format = ".3f"
    return table


def robust(values):
    """Return the median and a scatter that outliers do not move."""
    middle = np.median(values)
    return middle, 1.4826 * np.median(np.abs(values - middle))


def verdicts(posteriors, seconds):
    """Return lines on who was certified by what, at what cost, and which flags were raised."""
    last = [next((r.name for r in p.rungs[::-1] if r.passed), "none") for p in posteriors]
    early = np.isin(last, ["reweight", "top up", "refine"])
    flags = Counter(flag.name for own in posteriors.flags for flag in own)
    misfits = [str(p.id) for p in posteriors if nbi.Flag.MISFIT in p.flags]
    return [
        repr(posteriors),
        f"certified before chains: {early.mean():.0%}; by rung: {dict(Counter(last))}",
        f"{seconds / len(last):.2f} s an object, {np.median(posteriors.n_simulated):.0f} "
        f"simulations (median); flags: {dict(flags)}; misfits: {misfits or 'none'}",
        f"jitter: {np.median(posteriors.mean[:, -1]):.3f} of the brightest point (median)",
    ]


def draw(survey, posteriors, noise, draws, out):
    """Write the light curve of most points, and the differences of peak times."""
    i = int(np.argmax(survey.observations.n_points))
    one = survey.observations[i : i + 1]
    figure = nbi.plots.light_curve(
        posteriors[i],
        lambda theta, t, band: (
            peak_fluxes(theta, one, noise)[:, band] * shape(theta, t, band).numpy()
        ),
        one,
        labels=("days from the brightest point", "flux / brightest point"),
    )
    figure.savefig(Path(out) / "supernovae-curve.png")
    off = draws[..., 0] - np.asarray(survey.truth["mjd"])[:, None]
    figure = Figure(figsize=(7.4, 4.4), dpi=150)
    axes = figure.subplots()
    for code in np.unique(survey.truth["band"]):
        own = survey.truth["band"] == code
        look = {"fmt": "o", "markersize": 3, "elinewidth": 0.8, "label": f"listed in {BANDS[code]}"}
        axes.errorbar(survey.observations.n_points[own], off.mean(1)[own], off.std(1)[own], **look)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set(xlabel="points of the object", ylabel="peak less listed peak [d]", ylim=(-15, 15))
    axes.legend()
    figure.savefig(Path(out) / "supernovae-peaks.png")


def main(data=None, n_sims=10_000, n_epochs=7, featurizer="resnet-gru", out="."):
    """Train, predict, print the comparison, and write the pictures."""
    survey = simulate() if data is None else read(data)
    engine = problem(featurizer)
    engine.fit(n_sims=n_sims, n_epochs=n_epochs, observations=survey.observations)
    start = time.perf_counter()
    posteriors = engine.predict_many(survey.observations, keep=1000)
    print("\n".join(verdicts(posteriors, time.perf_counter() - start)))
    draws = measured(survey, posteriors, engine.noise_)
    comparison(survey, draws).pprint_all()
    draw(survey, posteriors, engine.noise_, draws, out)
    return posteriors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of lightcurves.csv.gz and truth_bts.csv")
    parser.add_argument("--n-sims", type=int, default=10_000)
    parser.add_argument("--n-epochs", type=int, default=7)
    parser.add_argument("--featurizer", default="resnet-gru")
    parser.add_argument("--out", default=".")
    main(**vars(parser.parse_args()))
