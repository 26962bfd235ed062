"""Laws of a small survey of sines, whose errors differ from point to point and are known."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, uniform

import nbi_plus as nbi
from nbi_plus import SimulationError, launch
from nbi_plus.infer.ladder import (
    DensityConfig,
    EnsembleConfig,
    EnsembleRung,
    FlowRung,
    HmcRung,
    RefineRung,
)

T = np.linspace(0, 1, 50)
AMPLITUDES, FREQUENCIES = (1.0, 5.0), (2 * np.pi, 12 * np.pi)
WIDE = np.ptp(AMPLITUDES), np.ptp(FREQUENCIES)
PRIOR = nbi.Prior(
    {
        "amplitude": uniform(AMPLITUDES[0], WIDE[0]),
        "frequency": uniform(FREQUENCIES[0], WIDE[1]),
        "phase": nbi.Circular(2 * np.pi),
    }
)
OWN_DRAWS = {"reweight", "top up"}
BEFORE_CHAINS = OWN_DRAWS | {"peaks", "refine"}
NO_CHAINS = {
    "hmc": HmcRung(n_super=0),
    "flow": FlowRung(n_rounds=0),
    "ensemble": EnsembleRung(EnsembleConfig(n_walkers=0)),
}


def wave(theta, t):
    amplitude, frequency, phase = (theta[:, i : i + 1] for i in range(3))
    return amplitude * torch.sin(frequency * t + phase)


def observe(n, seed, shrink=1.0, offset=0.0):
    """Return x (n, L), x_err (n, L) and truths (n, 3) of objects measured unequally well."""
    rng = np.random.default_rng(seed)
    theta = PRIOR.sample(n, rng)
    level = np.exp(rng.uniform(np.log(0.2), np.log(1.5), (n, 1)))
    error = shrink * level * rng.lognormal(0.0, 0.2, (n, len(T)))
    model = wave(torch.as_tensor(theta), torch.as_tensor(T)).numpy()
    return model + error * rng.normal(size=error.shape) + offset, error, theta


def survey(n, seed, **options):
    x, error, theta = observe(n, seed, **options)
    return nbi.Observations.from_arrays(x, error, t=T), theta


def train(n_sims, n_epochs):
    engine = nbi.Engine(wave, PRIOR, featurizer="resnet")
    conditions = survey(2000, seed=99)[0]
    # the bank is as large as the population is varied: nothing is gained by varying it further
    return engine.fit(
        n_sims=n_sims, n_epochs=n_epochs, batch_size=256, observations=conditions, perturb=False
    )


def last_rungs(posteriors):
    """Return the rung that each object's answer came from."""
    return [next((r.name for r in reversed(rungs) if r.passed), "") for rungs in posteriors.rungs]


@dataclass(frozen=True)
class Moments:
    """Mean, sd, kurtosis (3,) and log Z of one posterior."""

    mean: np.ndarray
    sd: np.ndarray
    kurtosis: np.ndarray
    log_z: float


def exact(x, error, n_frequencies=3000, n_phases=1000, n_amplitudes=48):
    """Return the moments of one object: sums over a grid of frequency, phase and amplitude."""
    frequency = FREQUENCIES[0] + WIDE[1] * (np.arange(n_frequencies) + 0.5) / n_frequencies
    phase = 2 * np.pi * (np.arange(n_phases) + 0.5) / n_phases
    sine, cosine = np.sin(frequency[:, None] * T), np.cos(frequency[:, None] * T)
    ivar, s, c = error**-2.0, np.sin(phase), np.cos(phase)
    # scalar products of sin(f t + p) with the data and with itself: all of a likelihood
    xm = np.outer(sine @ (x * ivar), c) + np.outer(cosine @ (x * ivar), s)
    mm = np.outer(sine**2 @ ivar, c**2) + np.outer(cosine**2 @ ivar, s**2)
    mm += 2 * np.outer((sine * cosine) @ ivar, s * c)
    best = np.clip(xm / mm, *AMPLITUDES)
    log_like = best * (xm - 0.5 * best * mm)
    i, j = np.nonzero(log_like > log_like.max() - 25)
    xm, mm, best = (v[i, j][:, None] for v in (xm, mm, best))
    low, high = (np.clip(best + sign * 8 * mm**-0.5, *AMPLITUDES) for sign in (-1, 1))
    node, width = np.polynomial.legendre.leggauss(n_amplitudes)
    amplitude = low + (high - low) * (node + 1) / 2
    weight = np.exp(amplitude * (xm - 0.5 * amplitude * mm) - log_like.max())
    weight *= width * (high - low) / 2
    total = weight.sum()
    const = -0.5 * (x**2 @ ivar) - np.log(error).sum() - 0.5 * len(T) * np.log(2 * np.pi)
    volume = WIDE[0] * n_frequencies * n_phases
    places = (amplitude, frequency[i][:, None], phase[j][:, None])
    mean = np.array([(weight * v).sum() / total for v in places])
    second, fourth = (
        np.array([(weight * (v - m) ** k).sum() / total for v, m in zip(places, mean, strict=True)])
        for k in (2, 4)
    )
    log_z = np.log(total / volume) + log_like.max() + const
    return Moments(mean, np.sqrt(second), fourth / second**2, log_z)


def check_against_exact(posteriors, x, error, n):
    """Judge the first n answers that are not the network's own draws."""
    refined = [i for i, name in enumerate(last_rungs(posteriors)) if name not in OWN_DRAWS]
    rows = [i for i in refined if posteriors.evidence_reliable[i]][:n]
    assert len(rows) == n
    means, sds, evidences = [], [], []
    for i in rows:
        own, want, n_eff = posteriors[i], exact(x[i], error[i]), posteriors.ess[i]
        means.append((own.mean() - want.mean) / want.sd * n_eff**0.5)
        sds.append((own.std() / want.sd - 1) / np.sqrt((want.kurtosis - 1) / 4 / n_eff))
        off = max(abs(own.log_evidence - want.log_z) - 0.02, 0.0)
        evidences.append(off / own.log_evidence_err)
    for name, off in {"means": means, "sds": sds, "log Z beyond 0.02": evidences}.items():
        rms = np.sqrt(np.mean(np.square(off)))
        print(f"{n} exact, {name}: worst {np.max(np.abs(off)):.2f}, rms {rms:.2f} errors")
        assert np.max(np.abs(off)) < 4.5
        assert rms < 1 + 4.5 / np.sqrt(2 * np.size(off))


def misfits(posteriors):
    return np.array([nbi.Flag.MISFIT in flags for flags in posteriors.flags])


def with_ladder(engine, ladder):
    other = nbi.Engine(**engine.get_params() | {"ladder": ladder})
    other.fitted_ = engine.fitted_
    return other


# --- references ----------------------------------------------------------------------------------


def test_exact_equals_weighted_draws_of_the_prior():
    x, error, _ = observe(1, seed=3, shrink=8.0)
    theta = PRIOR.sample(200_000, 4)
    model = wave(torch.as_tensor(theta), torch.as_tensor(T)).numpy()
    log_like = -0.5 * (((x - model) / error) ** 2 + np.log(2 * np.pi * error**2)).sum(1)
    weights = np.exp(log_like - log_like.max())
    ess = weights.sum() ** 2 / (weights**2).sum()
    found = exact(x[0], error[0], 600, 200, 16)
    assert ess > 400
    log_z = np.log(weights.mean()) + log_like.max()
    assert abs(log_z - found.log_z) < 4.5 / np.sqrt(ess)
    weights /= weights.sum()
    mean = weights @ theta
    central = [weights @ (theta - mean) ** k for k in (2, 4)]
    assert (np.abs(mean - found.mean) < 4.5 * found.sd / np.sqrt(ess)).all()
    sd_error = np.sqrt((found.kurtosis - 1) / 4 / ess)
    assert (np.abs(np.sqrt(central[0]) / found.sd - 1) < 4.5 * sd_error).all()
    assert (np.abs(central[1] / central[0] ** 2 / found.kurtosis - 1) < 0.2).all()


def test_exact_does_not_depend_on_its_grid():
    x, error, _ = observe(1, seed=3, shrink=0.5)
    coarse, fine = exact(x[0], error[0], 2000, 700, 32), exact(x[0], error[0])
    for name in ("mean", "sd", "kurtosis", "log_z"):
        np.testing.assert_allclose(getattr(coarse, name), getattr(fine, name), rtol=1e-4)


# --- a network trained for seconds ---------------------------------------------------------------


@pytest.fixture(scope="module")
def quick():
    return train(n_sims=3000, n_epochs=8)


@pytest.fixture(scope="module")
def few(quick):
    """Return 24 objects and their answers: hardly any passes with the network's own draws."""
    objects, _ = survey(24, seed=17)
    return objects, quick.predict_many(objects)


def test_few_objects_are_all_certified_and_right(few):
    objects, posteriors = few
    print(Counter(last_rungs(posteriors)), posteriors.n_simulated.mean())
    assert posteriors.certified.all()
    assert not misfits(posteriors).any()
    check_against_exact(posteriors, objects.x[:, 0], objects.x_err[:, 0], n=5)


@pytest.mark.statistics
def test_a_hundred_refined_objects_equal_exact_posteriors(quick):
    objects, _ = survey(120, seed=5)
    posteriors = quick.predict_many(objects)
    check_against_exact(posteriors, objects.x[:, 0], objects.x_err[:, 0], n=100)


def test_an_offset_that_no_sine_makes_is_a_misfit(quick):
    posteriors = quick.predict_many(survey(12, seed=6, offset=3.0)[0])
    print(Counter(s.name for s in posteriors.status), misfits(posteriors).sum())
    assert misfits(posteriors).mean() >= 0.9


class Fragile:
    """The sine of a simulator that breaks some day."""

    broken = False

    def __call__(self, theta, t):
        return wave(theta, t) * (torch.nan if self.broken else 1.0)


def test_a_simulator_that_is_nan_everywhere_fails_every_object(quick, tmp_path):
    quick.save(tmp_path / "quick.nbi")
    fragile = Fragile()
    engine = nbi.Engine.load(tmp_path / "quick.nbi", simulator=fragile)
    fragile.broken = True
    objects, _ = survey(3, seed=5)
    posteriors = engine.predict_many(objects)
    for posterior in posteriors:
        assert posterior.status is nbi.Status.FAILED
        assert "FAIL_SIMULATOR" in posterior.report
        assert nbi.Flag.SIM_ERRORS in posterior.flags
        assert posterior.ess == 0
    assert np.isnan(posteriors.mean).all()
    with pytest.warns(nbi.UncertifiedWarning, match="FAILED"):
        engine.predict(objects.x[0, 0], objects.x_err[0, 0], t=T)
    with pytest.raises(SimulationError, match="every probe"):
        nbi.Engine.load(tmp_path / "quick.nbi", simulator=fragile)


@pytest.mark.parametrize("error", [-0.3, 0.0])
def test_error_bars_of_the_wrong_sign_are_refused(quick, error):
    x, x_err, _ = observe(2, seed=5)
    x_err[1, 7] = error
    with pytest.raises(ValueError, match="x_err must be positive, but has values down to"):
        nbi.Observations.from_arrays(x, x_err, t=T)
    with pytest.raises(ValueError, match="x_err must be positive"):
        quick.predict(x[1], x_err[1], t=T)
    # a masked point may have any error
    nbi.Observations.from_arrays(x, x_err, mask=x_err > 0, t=T)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_points_without_an_error_bar_are_masked_and_counted(quick, bad):
    x, x_err, _ = observe(3, seed=5)
    mask = np.ones(x.shape, bool)
    mask[1, 10:14] = mask[2] = False
    given_as_bad = nbi.Observations.from_arrays(x, np.where(mask, x_err, bad), t=T)
    masked = nbi.Observations.from_arrays(x, x_err, mask=mask, t=T)
    one, other = quick.predict_many(given_as_bad), quick.predict_many(masked)
    assert one.n_masked.tolist() == [0, 4, 50]
    assert other.n_masked.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(one.mean, other.mean)
    for posteriors in (one, other):
        assert posteriors.certified.tolist() == [True, True, False]
        assert posteriors.status[2] is nbi.Status.FAILED
        assert "FAIL_INPUT" in posteriors[2].report
        assert nbi.Flag.BAD_INPUT in posteriors.flags[2]
        assert posteriors.ess[2] == 0
        assert np.isnan(posteriors.mean[2]).all()
        assert np.isnan(posteriors.fit_p_value[2])
        assert np.isnan(posteriors.log_evidence[2])
        assert [rung.name for rung in posteriors.rungs[2]] == ["reweight"]


# --- nobody is lost ------------------------------------------------------------------------------


def mixed():
    """Return x, x_err of 20 objects: ordinary, precise, offset, with gaps, and without a point."""
    kinds = [{}, {}, {"shrink": 0.2}, {"offset": 3.0}]
    x, error, _ = (np.concatenate(c) for c in zip(
        *(observe(5, seed=40 + i, **k) for i, k in enumerate(kinds)), strict=True))  # fmt: skip
    error[5:10, 20:30] = np.nan
    error[7] = np.nan
    return x, error


X, X_ERR = mixed()
LADDERS = {
    "never": {"escalate": "never"},
    "auto": {},
    "always": {"escalate": "always"},
    "refined alone": NO_CHAINS,
    "straight to chains": {"top_up_draws": 2048, "refine": RefineRung(n_rounds=0)},
    "few calls": {"budget": nbi.Budget(calls=3000), "top_up_draws": 2048},
    "no gradients": {"budget": nbi.Budget(calls=9000, gradients=0)},
    "no time": {"budget": nbi.Budget(seconds=0.0)},
}
QUICK_FLOW = {"flow": FlowRung(n_rounds=1, density=DensityConfig(n_steps=100))}
SUBSETS = st.lists(st.integers(0, len(X) - 1), min_size=1, max_size=6, unique=True)


def check_ownership(engine, rows, posteriors):
    """Judge that each answer, in its place, is of its own data: its likelihood says so."""
    names = [f"object {i}" for i in rows]
    assert list(posteriors.ids) == names
    assert [p.id for p in posteriors] == names
    assert posteriors.n_masked.tolist() == np.isnan(X_ERR[rows]).sum(1).tolist()
    for place, (i, own) in enumerate(zip(rows, posteriors, strict=True)):
        assert own.report.startswith(f"object {i}: {posteriors.status[place].name}.")
        assert own.status is posteriors.status[place]
        assert own.ess == posteriors.ess[place]
        assert sum(r.n_calls for r in own.rungs) == posteriors.n_simulated[place]
        if np.isnan(X_ERR[i]).all():
            assert own.status is nbi.Status.FAILED
            continue
        np.testing.assert_allclose(own.mean(), posteriors.mean[place], rtol=1e-9)
        inside = np.flatnonzero(np.isfinite(own.log_prior))[::40]
        want = engine.log_likelihood(own.samples[inside], X[i], X_ERR[i], t=T)
        np.testing.assert_allclose(own.log_likelihood[inside], want, rtol=1e-6)


def check_nobody_is_lost(engine, rows, name, n_samples, at_once):
    ladder = nbi.Ladder(**QUICK_FLOW | LADDERS[name])
    objects = nbi.Observations.from_arrays(
        X[rows], X_ERR[rows], t=T, ids=[f"object {i}" for i in rows]
    )
    chosen = with_ladder(engine, ladder)
    few = replace(launch.KINDS["cpu"], escalated_objects=at_once)
    with mock.patch.dict(launch.KINDS, cpu=few):
        posteriors = chosen.predict_many(objects, n_samples=n_samples)
    check_ownership(engine, rows, posteriors)
    place = len(rows) // 2
    alone = chosen.predict_many(objects[[place]], n_samples=n_samples)
    first, again = posteriors.rungs[place][0], alone.rungs[0][0]
    assert first.n_draws == again.n_draws
    # single precision of the features differs in the last digit with the batch
    np.testing.assert_allclose(first.ess, again.ess, rtol=0.05)
    if posteriors.certified[place] and alone.certified[0]:
        sd = np.hypot(posteriors[place].std(), alone[0].std())
        off = np.abs(posteriors.mean[place] - alone.mean[0]) / sd
        assert (off < 4.5 / np.sqrt(min(posteriors.ess[place], alone.ess[0]))).all()
    retried = engine.retry(posteriors, objects, ladder=nbi.Ladder(**NO_CHAINS))
    check_ownership(engine, rows, retried)
    for old, new in zip(posteriors, retried, strict=True):
        assert new is old or not old.certified
        assert repr(new.rungs[: len(old.rungs)]) == repr(old.rungs)


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(
    rows=SUBSETS,
    name=st.sampled_from(["never", "refined alone", "few calls", "no time"]),
    n_samples=st.sampled_from([2000, 20_000]),
    at_once=st.sampled_from([1, 2, 256]),
)
def test_nobody_is_lost_before_chains(quick, rows, name, n_samples, at_once):
    check_nobody_is_lost(quick, rows, name, n_samples, at_once)


@pytest.mark.statistics
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    rows=SUBSETS,
    name=st.sampled_from(list(LADDERS)),
    n_samples=st.sampled_from([2000, 20_000]),
    at_once=st.sampled_from([1, 2, 256]),
)
def test_nobody_is_lost_on_any_ladder(quick, rows, name, n_samples, at_once):
    check_nobody_is_lost(quick, rows, name, n_samples, at_once)


# --- the survey ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    """Return an engine whose plain weights pass for a half to three quarters of all objects."""
    return train(n_sims=20_000, n_epochs=15)


@pytest.fixture(scope="module")
def answered(engine):
    """Return 300 ordinary objects, their truths, and their answers."""
    objects, theta = survey(300, seed=5)
    return objects, theta, engine.predict_many(objects)


def describe(posteriors):
    calls = posteriors.n_simulated
    print(
        Counter(last_rungs(posteriors)), Counter(s.name for s in posteriors.status),
        f"first rung {np.mean([r[0].passed for r in posteriors.rungs]):.3f}, calls mean "
        f"{calls.mean():.0f} max {calls.max()}, misfits {misfits(posteriors).mean():.3f}",
    )  # fmt: skip


def calibration(posteriors, theta):
    """Return raw p-values of uniform ranks (3,) and the coverage of 90 % intervals (3,)."""
    found = nbi.sbc(posteriors, theta)
    print(found.report)
    p_values = np.array([kstest(u, "uniform").pvalue for u in found.ranks.T])
    return p_values, found.coverage[:, found.levels.index(0.9)]


@pytest.mark.statistics
def test_ordinary_objects_are_certified_before_chains(answered):
    _, _, posteriors = answered
    describe(posteriors)
    first = np.mean([rungs[0].passed for rungs in posteriors.rungs])
    assert 0.5 <= first <= 0.75
    early = [name in BEFORE_CHAINS for name in last_rungs(posteriors)]
    assert np.mean(early) >= 0.95
    assert posteriors.certified.all()
    assert misfits(posteriors).mean() <= 0.01


@pytest.mark.statistics
def test_ordinary_objects_are_calibrated(answered):
    _, theta, posteriors = answered
    p_values, _ = calibration(posteriors, theta)
    print("p", p_values)
    assert (p_values > 0.01).all()
    refined = np.array([name not in OWN_DRAWS for name in last_rungs(posteriors)])
    p_values, _ = calibration(posteriors[refined], theta[refined])
    print("p of the refined", p_values)
    assert (p_values > 0.01).all()


@pytest.mark.statistics
def test_refined_objects_equal_exact_posteriors(answered):
    objects, _, posteriors = answered
    check_against_exact(posteriors, objects.x[:, 0], objects.x_err[:, 0], n=20)


@pytest.mark.statistics
def test_ordinary_objects_cost_few_simulations(engine, answered):
    _, _, posteriors = answered
    assert posteriors.n_simulated.mean() <= 7000
    plain = with_ladder(engine, nbi.Ladder(top_up_draws=2048))
    objects, theta, _ = answered
    posteriors = plain.predict_many(objects)
    describe(posteriors)
    assert posteriors.certified.all()
    assert posteriors.n_simulated.mean() <= 7000
    check_against_exact(posteriors, objects.x[:, 0], objects.x_err[:, 0], n=20)
    p_values, _ = calibration(posteriors, theta)
    print("p", p_values)
    assert (p_values > 0.01).all()


@pytest.mark.statistics
def test_errors_smaller_than_in_training_are_certified_and_covered(engine):
    objects, theta = survey(300, seed=7, shrink=0.2)
    posteriors = engine.predict_many(objects)
    describe(posteriors)
    assert posteriors.certified.mean() >= 0.9
    _, coverage = calibration(posteriors, theta)  # 0.06 are 3.5 errors of a share of 0.9
    assert (coverage >= 0.84).all()
    assert (coverage <= 0.96).all()


@pytest.mark.statistics
def test_offset_objects_are_misfits(engine):
    posteriors = engine.predict_many(survey(60, seed=8, offset=3.0)[0])
    describe(posteriors)
    assert misfits(posteriors).mean() >= 0.9
