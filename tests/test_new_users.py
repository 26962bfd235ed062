"""A new user's first hour: typical mistakes, each right, refused or doubted, none wrong and silent.

The problem is a straight line in flux with known errors, whose posterior has a closed form. Every
case says how it must end: ``right`` (trusted, and as the closed form for what was meant),
``refused`` (an error that names what came), or ``doubted`` (an answer that is not trusted, with a
warning).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.table import Table
from astropy.time import Time
from astropy.timeseries import TimeSeries
from astropy.utils.masked import Masked
from scipy.stats import norm, uniform

import nbi_plus as nbi

START, N = 60000.0, 50  # the first day (MJD), and the points of the object
PRIOR = {"level": uniform(50, 100), "slope": norm(0, 5)}  # mJy, mJy / d
T = START + np.sort(np.random.default_rng(1).uniform(0, 10, N))
E = np.full(N, 2.0)
X = 60 + 0.5 * (T - START) + E * np.random.default_rng(2).normal(size=N)
PRECISE = 60 + 0.5 * (T - START) + 0.25 * (X - 60 - 0.5 * (T - START))  # errors of 0.5
BAD = np.arange(N) % 5 == 2
SPIKY = np.where(BAD, 400.0, X)
MAG, MAG_ERR = 23.9 - 2.5 * np.log10(1e3 * X), 1.086 * E / X
ONES = {"id": np.zeros(N, int), "time": T, "flux": X, "flux_err": E}


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * (t - START)


def exact(x, x_err, t):
    """Return mean (2,) and standard deviations (2,) of level and slope."""
    design = np.stack([np.ones_like(t), t - START])
    precision = design / x_err**2 @ design.T + np.diag([0, 1 / 25])
    covariance = np.linalg.inv(precision)
    return covariance @ design @ (x / x_err**2), np.sqrt(np.diag(covariance))


def survey(n=40):
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 70, n)
    return nbi.Observations.from_arrays(
        [rng.normal(100, 20, k) for k in lengths],
        [np.full(k, np.exp(rng.uniform(-1, 1.6))) for k in lengths],
        t=[START + np.sort(rng.uniform(0, 10, k)) for k in lengths],
        units={"x": "mJy", "t": "d"},
    )


def make(simulator=line, prior=PRIOR, **options):
    return nbi.Engine(simulator, prior, **({"featurizer": "resnet"} | options))


@pytest.fixture(scope="module")
def engine():
    return make().fit(n_sims=3000, n_epochs=6, observations=survey())


@dataclass(frozen=True)
class Case:
    """What is done with the fitted engine, and how it must end."""

    end: str
    act: Callable[[nbi.Engine], nbi.Posterior]
    says: str = ""
    truth: dict = field(default_factory=dict)


def right(act, **truth):
    return Case("right", act, truth=truth)


def refused(act, says):
    return Case("refused", act, says)


def doubted(act, says="MISFIT"):
    return Case("doubted", act, says)


def good(**arrays):
    """Return the truth of the points that are not bad."""
    return {k: v[~BAD] for k, v in ({"x": X, "x_err": E, "t": T} | arrays).items()}


def spoilt(array, value=np.nan):
    return np.where(BAD, value, array)


def in_rounds(x_obs=X, x_err=None, simulator=line, prior=PRIOR, t=T, **options):
    """Return the answer of a sequential fit."""
    engine = make(simulator, prior, **options)
    engine.fit(n_sims=500, n_rounds=8, x_obs=x_obs, x_err=x_err, t=t, n_epochs=3)
    return engine.posterior_


def wave(theta, phase):
    return theta[:, :1] * np.sin(phase) + theta[:, 1:]


PHASE = np.linspace(0, 6, N)
WAVE = 5 * np.sin(PHASE) + X - 60 - 0.5 * (T - START)


def of_waves(phase, told):
    """Return the answer of an engine made for ``phase`` in radians that is told another one."""
    engine = make(wave, {"amplitude": norm(0, 10), "offset": norm(0, 10)})
    engine.fit(n_sims=1000, n_epochs=5, x_obs=WAVE, x_err=E, phase=phase)
    return engine.predict(WAVE, E, phase=told)


def simulated(n=300):
    theta = nbi.Prior(PRIOR).sample(n, rng=0)
    return theta, line(theta, T)


def from_simulations(theta, x):
    return make().fit(theta=theta, x=x, x_obs=X, x_err=E, t=T, n_epochs=1).predict(X)


QUICK = {"n_sims": 300, "n_epochs": 1, "x_obs": X, "x_err": E, "t": T}
TWICE = {k: np.repeat(v, 2) for k, v in ONES.items()}
ORDER = np.random.default_rng(3).permutation(N)

UNITS = {
    "flux in microjansky": right(lambda e: e.predict(X * 1e3 * u.uJy, E * 1e3 * u.uJy, t=T)),
    "errors in another unit than the flux": right(
        lambda e: e.predict(X * u.mJy, E * 1e3 * u.uJy, t=T)
    ),
    "flux with a unit, errors without": right(lambda e: e.predict(X * u.mJy, E, t=T)),
    "times in hours": right(lambda e: e.predict(X, E, t=T * 24 * u.h)),
    "magnitudes with their unit": refused(lambda e: e.predict(MAG * u.mag, E, t=T), "x.*'mag'"),
    "times in metres": refused(lambda e: e.predict(X, E, t=T * u.m), "t must .*'m'"),
    "magnitudes for fluxes": doubted(lambda e: e.predict(MAG, MAG_ERR, t=T), ""),
    "jansky for millijansky": doubted(lambda e: e.predict(X / 1e3, E / 1e3, t=T), ""),
    "a sigma with a unit": right(
        lambda e: in_rounds(X * u.mJy, noise=nbi.GaussianNoise(sigma=2e3 * u.uJy))
    ),
    "degrees with their unit": Case(
        "right", lambda e: of_waves(PHASE * u.rad, np.rad2deg(PHASE) * u.deg), truth={"wave": True}
    ),
    "degrees for radians": refused(
        lambda e: of_waves(PHASE, np.rad2deg(PHASE)), "phase must be the grid of the training"
    ),
}

MASKS = {
    "numpy's masked array": right(
        lambda e: e.predict(np.ma.array(spoilt(X, 1e30), mask=BAD), E, t=T), **good()
    ),
    "masked errors": right(
        lambda e: e.predict(X, np.ma.array(spoilt(E, 1e-9), mask=BAD), t=T), **good()
    ),
    "astropy's masked array": right(
        lambda e: e.predict(Masked(spoilt(X, 1e30), mask=BAD), E, t=T), **good()
    ),
    "astropy's masked quantity": right(
        lambda e: e.predict(Masked(spoilt(X, 1e30) * u.mJy, mask=BAD), E * u.mJy, t=T), **good()
    ),
    "NaN in the flux": right(lambda e: e.predict(spoilt(X), E, t=T), **good()),
    "NaN in the errors": right(lambda e: e.predict(X, spoilt(E), t=T), **good()),
    "mask=, True for real points": right(lambda e: e.predict(SPIKY, E, mask=~BAD, t=T), **good()),
    "bad=, True for bad points": right(lambda e: e.predict(SPIKY, E, bad=BAD, t=T), **good()),
    "mask= and bad=": refused(
        lambda e: e.predict(X, E, mask=~BAD, bad=BAD, t=T), "mask.*bad|bad.*mask"
    ),
    "mask= in numpy's sense": doubted(lambda e: e.predict(SPIKY, E, mask=BAD, t=T), ""),
    "-999 for no data": doubted(lambda e: e.predict(spoilt(X, -999.0), E, t=T), ""),
}

TYPES = {
    "whole numbers": right(
        lambda e: e.predict(X.round().astype(int), E.astype(int), t=T), x=X.round()
    ),
    "lists": right(lambda e: e.predict(X.tolist(), E.tolist(), t=T.tolist())),
    "series of pandas": right(
        lambda e: e.predict(*(pd.Series(v, index=ORDER) for v in (X, E)), t=pd.Series(T))
    ),
    "single precision": right(lambda e: e.predict(X.astype("f4"), E.astype("f4"), t=T)),
    "byte order of FITS": right(
        lambda e: e.predict(*(v.astype(">f8") for v in (X, E)), t=T.astype(">f8"))
    ),
    "one number for all errors": right(lambda e: e.predict(X, 2.0, t=T)),
    "one channel": right(lambda e: e.predict(X[None], E[None], t=T)),
    "a table": right(lambda e: e.predict(Table(ONES))),
    "a table with units": right(
        lambda e: e.predict(Table(ONES | {"flux": X * 1e3 * u.uJy, "flux_err": E * 1e3 * u.uJy}))
    ),
    "a data frame": right(lambda e: e.predict(pd.DataFrame(ONES))),
    "a table of many objects": refused(
        lambda e: e.predict(pd.DataFrame(ONES | {"id": np.arange(N)})), "predict_many"
    ),
    "a time series": right(
        lambda e: e.predict(TimeSeries(time=Time(T, format="mjd"), data={"flux": X, "flux_err": E}))
    ),
    "Observations of one": right(
        lambda e: e.predict(nbi.Observations.from_arrays(X[None], E[None], t=T))
    ),
    "Observations in another unit": right(
        lambda e: e.predict(
            nbi.Observations.from_arrays(X[None] / 1e3 * u.Jy, E[None] / 1e3 * u.Jy, t=T)
        )
    ),
    "Observations of many": refused(lambda e: e.predict(survey()), "predict_many"),
    "text": refused(lambda e: e.predict(["bright"] * N, E, t=T), "x_obs must be"),
}

TIMES = {
    "Time in MJD": right(lambda e: e.predict(X, E, t=Time(T, format="mjd"))),
    "Time in words": right(lambda e: e.predict(X, E, t=Time(Time(T, format="mjd").isot))),
    "Time in JD": refused(
        lambda e: e.predict(X, E, t=Time(T + 2400000.5, format="jd")), r"t .*2460000.*60000"
    ),
    "JD for MJD": refused(lambda e: e.predict(X, E, t=T + 2400000.5), r"t .*2460000.*60000"),
    "BTJD for MJD": refused(lambda e: e.predict(X, E, t=T - 56999.5), r"t .*3000.*60000"),
    "days since the first point": refused(lambda e: e.predict(X, E, t=T - T[0]), "t .*60000"),
    "unsorted times": right(lambda e: e.predict(X[ORDER], E[ORDER], t=T[ORDER])),
    "times from last to first": right(lambda e: e.predict(X[::-1], E[::-1], t=T[::-1])),
    "every row of a table twice": right(lambda e: e.predict(Table(TWICE))),
    "another name for t": refused(lambda e: e.predict(X, E, time=T), "time.*'t'"),
    "no times": refused(lambda e: e.predict(X, E), r"\bt\b"),
    "times of other points": refused(lambda e: e.predict(X, E, t=T[1:]), r"x_obs.*50.*t.*49"),
    "a NaN among the times": refused(lambda e: e.predict(X, E, t=spoilt(T)), "t must be finite"),
}

ERRORS = {
    "variances, above one": doubted(lambda e: e.predict(X, E**2, t=T)),
    "variances, below one": doubted(lambda e: e.predict(PRECISE, np.full(N, 0.25), t=T)),
    "inverse variances": doubted(lambda e: e.predict(X, 1 / E**2, t=T)),
    "percent": doubted(lambda e: e.predict(X, 100 * E / X, t=T)),
    "fractions": doubted(lambda e: e.predict(X, E / X, t=T), ""),
    "logarithms": refused(lambda e: e.predict(X, np.log10(E / 10), t=T), "x_err must be positive"),
    "a zero": refused(lambda e: e.predict(X, spoilt(E, 0.0), t=T), "x_err must be positive"),
    "a negative": refused(lambda e: e.predict(X, spoilt(E, -1.0), t=T), "x_err must be positive"),
    "none": refused(lambda e: e.predict(X, t=T), "x_err must be given"),
    "of both sides": refused(
        lambda e: e.predict(X, np.stack([E, E], 1), t=T), r"x_err must .*\(50, 2\)"
    ),
}

ORDERS = {
    "x_obs and x_err swapped": doubted(lambda e: e.predict(E, X, t=T), ""),
    "times for data": doubted(lambda e: e.predict(T, X, t=T), ""),
    "times by position": refused(lambda e: e.predict(T, X, E), "positional"),
    "transposed x": refused(lambda e: e.predict(X[:, None], E[:, None], t=T), "x_obs.*50, 1"),
    "x and theta swapped in fit": refused(
        lambda e: from_simulations(*simulated()[::-1]), "Did you swap x and theta"
    ),
    "x before theta by position": refused(
        lambda e: make(noise=2.0).fit(*simulated()[::-1], t=T), "Did you swap x and theta"
    ),
    "x and theta swapped in log_prob": refused(
        lambda e: e.log_prob(np.tile(X, (3, 1)), np.ones((3, 2)), E, t=T),
        "Did you swap x and theta",
    ),
    "parameters in another order": refused(
        lambda e: from_simulations(simulated()[0][:, ::-1], simulated()[1]), "inside the prior"
    ),
    "data for n_sims": refused(lambda e: make().fit(X, E), "theta must have shape"),
    "Observations for n_sims": refused(lambda e: make().fit(survey()), "observations="),
    "simulator and prior swapped": refused(
        lambda e: make(PRIOR, line).fit(**QUICK), "Did you swap simulator and prior"
    ),
    "noise as a class": refused(
        lambda e: make(noise=nbi.GaussianNoise).fit(**QUICK), "GaussianNoise"
    ),
    "simulator of another length": refused(
        lambda e: make(lambda theta, t: line(theta, t[:-1])).fit(**QUICK), r"50.*49|49.*50"
    ),
    "simulator of parameters one by one": refused(
        lambda e: make(lambda level, slope, t: level + slope * t).fit(**QUICK), "'slope'"
    ),
    "simulator that adds noise": refused(
        lambda e: make(lambda theta, t: line(theta, t) + np.random.normal(size=N)).fit(**QUICK),  # noqa: NPY002
        "the same x for the same theta",
    ),
    "simulator that returns a dict": refused(
        lambda e: make(lambda theta, t: {"flux": line(theta, t)}).fit(**QUICK), "dict"
    ),
    "sigma of another length": refused(
        lambda e: make(noise=np.ones(9)).fit(**QUICK | {"x_err": None}), "sigma must"
    ),
    "another object after a fit in rounds": refused(
        lambda e: make().fit(**QUICK | {"n_rounds": 2}).predict(X + 1), "another one"
    ),
    "a mistyped option": refused(lambda e: e.predict(X, E, t=T, n_sample=5), "n_sample"),
    "a table as observations": refused(
        lambda e: make().fit(n_sims=300, observations=pd.DataFrame(ONES)), "from_table"
    ),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in (
        ("units", UNITS),
        ("masks", MASKS),
        ("types", TYPES),
        ("times", TIMES),
        ("errors", ERRORS),
        ("order", ORDERS),
    )
    for name, case in cases.items()
}


def is_right(posterior, x=X, x_err=E, t=T, wave=False):
    """Say whether the moments are those of the closed form, to five standard errors."""
    if wave:
        design = np.stack([np.sin(PHASE), np.ones(N)])
        covariance = np.linalg.inv(design @ design.T / 4 + np.eye(2) / 100)
        mean, sd = covariance @ design @ WAVE / 4, np.sqrt(np.diag(covariance))
    else:
        mean, sd = exact(x, x_err, t)
    off = np.abs(posterior.mean() - mean) / sd
    wide = np.abs(posterior.std() / sd - 1)
    return (off < 5 * posterior.ess**-0.5).all() and (wide < 5 * (2 * posterior.ess) ** -0.5).all()


def end_of(case, engine):
    """Return how a case ends, and what the user is told."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            posterior = case.act(engine)
        except (ValueError, TypeError, nbi.SimulationError) as error:
            return "refused", str(error)
    if posterior.trusted:
        return ("right" if is_right(posterior, **case.truth) else "trusted, wrong and silent"), ""
    told = [str(w.message) for w in caught if issubclass(w.category, nbi.UntrustedWarning)]
    return ("doubted" if told else "not trusted, and silent"), " ".join(told)


@pytest.mark.parametrize("name", CASES)
def test_mistake_ends_right_refused_or_doubted(engine, name):
    case = CASES[name]
    end, told = end_of(case, engine)
    assert end == case.end, told
    assert re.search(case.says, told, re.DOTALL), told


def test_leaving_out_most_points_is_logged(engine, caplog):
    with caplog.at_level("WARNING", logger="nbi_plus"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine.predict(X, E, mask=BAD, t=T)
    assert re.search("40 of (the )?50", caplog.text)


def test_untrusted_answers_warn_as_uncertified_ones_do():
    assert issubclass(nbi.UntrustedWarning, nbi.UncertifiedWarning)
