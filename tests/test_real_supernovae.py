"""Real type Ia supernovae of ZTF, against the list of peaks of the survey and long emcee runs."""

from __future__ import annotations

import runpy
from pathlib import Path

import emcee
import numpy as np
import pytest

import nbi_plus as nbi

pytestmark = pytest.mark.reference
EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "supernovae.py"))
NO_PEAK = ["ZTF18abrqedj", "ZTF18acefxko"]  # whose points begin a month or more after the peak
WELL_SAMPLED, SPARSE, NOISY = "ZTF19acazaug", "ZTF20aazbqvr", "ZTF21aaqdxzv"


@pytest.fixture(scope="module")
def folder(reference_folder):
    return reference_folder / "sn" / "ztf_bts_snia"


@pytest.fixture(scope="module")
def survey(folder):
    return EXAMPLE["read"](folder)


@pytest.fixture(scope="module")
def engine(survey):
    """Return a network that is trained for a minute: the ladder does the rest."""
    engine = EXAMPLE["problem"]()
    return engine.fit(n_sims=6000, n_epochs=6, observations=survey.observations)


@pytest.fixture(scope="module")
def posteriors(engine, survey):
    found = engine.predict_many(survey.observations, keep=1000)
    print("\n".join(EXAMPLE["verdicts"](found, np.nan)))
    return found


def emcee_of(engine, one, start, n_steps=3000, seed=3):
    """Return draws of a long run of emcee for one object, and its integrated autocorrelation time.

    The likelihood is that of the weights; ``start`` (W, D) are the places of the walkers.
    """
    coords = {name: values[0].numpy() for name, values in one.batch().coords.items()}

    def log_prob(theta):
        return engine.log_posterior(theta, one.x[0, 0], one.x_err[0, 0], **coords)

    sampler = emcee.EnsembleSampler(*start.shape, log_prob, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(start, n_steps)
    return sampler.get_chain(discard=n_steps // 6, flat=True), sampler.get_autocorr_time(tol=0)


def test_survey_is_read_as_it_is(folder, survey):
    raw = nbi.Observations.read(folder / "lightcurves.csv.gz")
    observations = survey.observations
    assert len(raw) == len(observations) == 100
    assert raw.values.shape == (1, 1930)
    assert not raw.n_masked.any()
    assert not raw.origins.any()
    assert observations.categories == {"band": ("g", "R")}
    assert np.bincount(observations.points["band"]).min() > 800
    assert observations.n_points.min() >= 3
    assert observations.ids.tolist() == raw.ids.tolist()


def test_strays_of_other_years_are_cut(survey):
    t = survey.observations.points["t"]
    low, high = EXAMPLE["WINDOW"]
    assert len(t) == 1774  # of 1930
    assert low <= t.min()
    assert t.max() <= high
    off = survey.observations.origins - survey.truth["mjd"]
    assert set(survey.observations.ids[np.abs(off) > 30]) == set(NO_PEAK)


def test_brightest_point_is_most_often_the_listed_peak(survey):
    """The list is in JD and names a point: half a day of error in the times would show."""
    off = survey.observations.origins - survey.truth["mjd"]
    listed = np.abs(off) < 0.01
    assert listed.sum() > 50
    mag = EXAMPLE["magnitude"](survey.brightest)
    assert np.median(np.abs(mag - survey.truth["mag"])[listed]) < 1e-3


@pytest.mark.statistics
def test_every_supernova_is_certified_and_most_before_chains(posteriors):
    last = [next((r.name for r in p.rungs[::-1] if r.passed), "none") for p in posteriors]
    # one has a tail too heavy for its variance: k-hat of the moments above 1 on every rung
    assert posteriors.certified.mean() >= 0.99
    assert np.isin(last, ["reweight", "top up", "peaks", "refine"]).mean() >= 0.9


@pytest.mark.statistics
def test_peaks_are_the_listed_ones(engine, posteriors, survey):
    """The list names the brightest of the points in a band, which come every three days."""
    draws = EXAMPLE["measured"](survey, posteriors, engine.noise_)
    table = EXAMPLE["comparison"](survey, draws)
    table.pprint_all()
    of_time, of_mag = (table[table["quantity"] == name] for name in ("mjd", "mag"))
    assert np.abs(of_time["median"]).max() < 1.5  # half of that cadence
    assert of_time["scatter"].max() < 4.0
    assert np.abs(of_mag["median"]).max() < 0.05  # half the error of a point
    assert of_mag["scatter"].max() < 0.12
    far = set(" ".join(of_time["far off"]).split())
    assert far <= set(NO_PEAK)


@pytest.mark.statistics
@pytest.mark.parametrize("name", [WELL_SAMPLED, SPARSE, NOISY])
def test_posterior_is_that_of_emcee(engine, survey, name):
    """Tolerances: 0.1 sd and 10 %, where means of 1000 effective draws err by 0.03 sd."""
    i = survey.observations.ids.tolist().index(name)
    one = survey.observations[i : i + 1]
    ours = engine.predict_many(one, n_samples=16_000)[0]
    rng = np.random.default_rng(2)
    start = ours.mean() + 0.1 * ours.std() * rng.normal(size=(64, len(ours.names)))
    draws, times = emcee_of(engine, one, start)
    n_effective = len(draws) / times.max()
    off = (ours.mean() - draws.mean(0)) / draws.std(0)
    ratio = ours.std() / draws.std(0)
    print(name, ours.status.name, f"ess {ours.ess:.0f}, emcee {n_effective:.0f}", off, ratio)
    assert ours.certified
    assert min(ours.ess, n_effective) > 1000
    assert np.abs(off).max() < 0.1
    assert np.abs(ratio - 1).max() < 0.1
