"""Laws of the verdict: it stays true under other priors, and knows whose data it is about."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy import units
from scipy.stats import norm, truncnorm, uniform

import nbi_plus as nbi
from nbi_plus import Flag, Gate, Status
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.infer.posterior.predictive import MISFIT, averaged
from nbi_plus.infer.posterior.reweighting import RUNG
from nbi_plus.infer.posterior.support import missing_share

N_POINTS, SIGMA = 20, 0.5
UNTRUSTED = (Flag.MISFIT, Flag.MODE_MISSED, Flag.UNCALIBRATED, Flag.SUPPORT)


def level(theta):
    """A constant of N_POINTS points."""
    return np.repeat(theta, N_POINTS, 1)


def data_of_mean(mean, scatter=SIGMA, seed=0):
    x = scatter * np.random.default_rng(seed).normal(size=N_POINTS)
    return x - x.mean() + mean


def truth(low, high, mean):
    """Return mean, sd and log Z of a level uniform in [low, high] for data of a given mean."""
    se = SIGMA / np.sqrt(N_POINTS)
    a, b = (low - mean) / se, (high - mean) / se
    own = truncnorm(a, b, mean, se)
    x = data_of_mean(mean)
    at_peak = norm.logpdf(x, mean, SIGMA).sum() - norm.logpdf(0, 0, se)
    log_z = at_peak + np.log(norm.cdf(b) - norm.cdf(a)) - np.log(high - low)
    return own.mean(), own.std(), log_z


@pytest.fixture(scope="module")
def engine():
    prior = nbi.Prior({"a": uniform(0, 1)})
    engine = nbi.Engine(level, prior, noise=SIGMA, featurizer="resnet", flow={"n_blocks": 2})
    return engine.fit(n_sims=1500, n_epochs=8)


@pytest.fixture(scope="module")
def inside(engine):
    return engine.predict(data_of_mean(0.5))


def draws_of(samples, support, prior=None, **changes):
    """Return a certified answer of draws of equal weight, as a network that is exact makes them."""
    n, d = samples.shape
    zero = np.zeros(n)
    log_prior = zero if prior is None else prior.log_prob(samples)
    fields = {
        "parameters": Parameters(tuple(f"p{i}" for i in range(d)), tuple("p" * d)),
        "samples": samples, "log_weights": zero, "weights": np.full(n, 1 / n), "log_q": zero,
        "log_prior": log_prior, "log_likelihood": zero, "status": Status.REWEIGHTED,
        "ess": float(n), "ess_low": float(n), "efficiency": 1.0, "k_hat": 0.0, "log_evidence": 0.0,
        "log_evidence_err": 0.0, "evidence_reliable": True, "support": np.array(support),
    }  # fmt: skip
    return nbi.Posterior(**fields | changes)


# --- reweighting -------------------------------------------------------------------------------


def test_reweighting_beyond_the_old_edge_is_not_certified(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UncertifiedWarning)
        old = engine.predict(data_of_mean(1.1))
    assert old.certified
    np.testing.assert_array_equal(old.support, [[0.0, 1.0]])
    new = old.reweight(nbi.Prior({"a": uniform(0, 10)}))
    assert Flag.SUPPORT in new.flags
    assert new.status is Status.UNCERTIFIED
    assert not new.trusted
    assert Flag.SUPPORT.sentence in new.report
    assert new.rungs[-1].name == RUNG
    assert "judged as draws of" in new.report


def test_reweighting_to_where_no_draws_are_is_not_certified(inside):
    new = inside.reweight(nbi.Prior({"a": norm(6, 0.05)}))
    assert new.ess < 10
    assert new.status is Status.UNCERTIFIED
    assert {Flag.LOW_ESS, Flag.LOW_EFF} <= new.flags
    assert not new.rungs[-1].passed


@pytest.mark.parametrize(("low", "high"), [(-5.0, 10.0), (0.3, 0.9), (0.0, 1.0)])
def test_a_pass_keeps_the_status_and_equals_its_closed_form(inside, low, high):
    new = inside.reweight(nbi.Prior({"a": uniform(low, high - low)}))
    assert new.status is inside.status
    assert new.trusted
    mean, sd, log_z = truth(max(low, 0), min(high, 1), 0.5)
    log_z += np.log((min(high, 1) - max(low, 0)) / (high - low))
    assert abs(new.mean()[0] - mean) < 4 * sd / np.sqrt(new.ess)
    assert abs(new.log_evidence - log_z) < 4 * new.log_evidence_err
    np.testing.assert_allclose(new.support, [[max(low, 0.0), min(high, 1.0)]])


def test_reweighting_to_the_same_prior_changes_nothing(inside):
    new = inside.reweight(nbi.Prior({"a": uniform(0, 1)}))
    for name in ("ess", "ess_low", "efficiency", "k_hat", "log_evidence", "log_evidence_err"):
        assert getattr(new, name) == pytest.approx(getattr(inside, name))
    assert new.flags == inside.flags


@pytest.mark.parametrize("sd_from_edge", [0.5, 1.0, 2.0])
def test_a_posterior_cut_off_by_the_old_edge_is_caught(sd_from_edge):
    rng = np.random.default_rng(1)
    wide = nbi.Prior({"p0": uniform(-50, 100)})
    for _ in range(40):  # missing are 31, 16 and 2.3 percent
        samples = truncnorm(-sd_from_edge, np.inf).rvs((1600, 1), random_state=rng)
        old = draws_of(samples, [[-sd_from_edge, 50.0]])
        assert Flag.SUPPORT in old.reweight(wide).flags


def test_a_posterior_far_from_the_old_edge_is_not_flagged():
    rng = np.random.default_rng(2)
    wide = nbi.Prior({f"p{i}": uniform(-50, 100) for i in range(5)})
    flagged = []
    for sd_from_edge, n in ((4.0, 1600), (5.0, 500), (10.0, 400)):
        for _ in range(40):
            samples = truncnorm(-sd_from_edge, sd_from_edge).rvs((n, 5), random_state=rng)
            old = draws_of(samples, [[-sd_from_edge, sd_from_edge]] * 5)
            flagged.append(Flag.SUPPORT in old.reweight(wide).flags)
    assert np.mean(flagged) <= 0.01


@pytest.mark.statistics
def test_bound_on_what_is_missing_covers_it():
    """Print bound and truth by distance of the edge; the bound is low in at most 5 percent."""
    rng = np.random.default_rng(3)
    wide = nbi.Prior({"p0": uniform(-50, 100)})
    for n in (400, 1600, 6400):
        for far in (0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 6.0):
            samples = truncnorm(-far, np.inf).rvs((400, n, 1), random_state=rng)
            edges = np.broadcast_to([[-far, 50.0]], (400, 1, 2))
            equal, ess = np.full((400, n), 1 / n), np.full(400, float(n))
            bound = missing_share(samples, equal, ess, edges, wide)
            print(n, far, "truth", norm.cdf(-far), "median bound", np.median(bound),
                  "flagged", (bound > 0.01).mean())  # fmt: skip
            assert (bound >= norm.cdf(-far)).mean() >= 0.95


def test_a_circle_has_no_edge():
    rng = np.random.default_rng(4)
    own = nbi.Prior({"p0": nbi.Circular(360.0)})
    samples = own.from_latent(rng.normal(size=(2000, 1)))
    around = Parameters(("p0",), ("p0",), {}, own.periods)
    old = draws_of(samples, own.support, own, parameters=around)
    turned = old.reweight(nbi.Prior({"p0": nbi.Circular(360.0, low=-180.0)}))
    assert turned.certified
    assert turned.samples.min() < -170
    narrow = old.reweight(nbi.Prior({"p0": norm(0, 40)}))  # across the cut
    assert narrow.certified
    assert abs(narrow.mean()[0]) < 4 * 40 / np.sqrt(narrow.ess)
    assert abs(narrow.std()[0] - 40) < 4 * 40 / np.sqrt(2 * narrow.ess) + 0.1
    assert Flag.SUPPORT in old.reweight(nbi.Prior({"p0": uniform(0, 720)})).flags


def test_draws_of_equal_weight_are_judged_with_what_they_come_from():
    rng = np.random.default_rng(5)
    prior, other = (nbi.Prior({"p0": norm(0, sd)}) for sd in (1.0, 0.8))
    samples = rng.normal(size=(2000, 1))
    base = draws_of(samples, prior.support, prior)
    share = base.reweight(other).ess / 2000
    chains = replace(base, ess=900.0, efficiency=0.02, k_hat=np.nan, log_evidence=np.nan,
                     evidence_reliable=False, status=Status.HMC,
                     gate=Gate(family="chains"))  # fmt: skip
    new = chains.reweight(other)
    assert new.status is Status.HMC
    assert new.ess == pytest.approx(900 * share)
    assert np.isnan(new.log_evidence)
    assert new.chains is None
    few = replace(chains, ess=450.0).reweight(nbi.Prior({"p0": norm(1.0, 0.5)}))
    assert few.status is Status.UNCERTIFIED
    amortized = replace(base, status=Status.AMORTIZED, efficiency=np.nan, log_evidence=np.nan)
    assert amortized.reweight(other).status is Status.AMORTIZED
    assert amortized.reweight(nbi.Prior({"p0": norm(8, 0.1)})).status is Status.UNCERTIFIED
    hopeless = replace(base, status=Status.UNCERTIFIED).reweight(prior)
    assert hopeless.status is Status.UNCERTIFIED


def test_flags_about_data_stay_and_those_about_weights_do_not(inside):
    flagged = replace(inside, flags=frozenset({Flag.OOD, Flag.MISFIT, Flag.LOW_EFF}))
    new = flagged.reweight(nbi.Prior({"a": uniform(0, 1)}))
    assert {Flag.OOD, Flag.MISFIT} <= new.flags
    assert Flag.LOW_EFF not in new.flags
    assert not new.trusted


def test_the_gate_is_that_of_the_answer(engine):
    strict = nbi.Engine(
        **engine.get_params() | {"ladder": nbi.Ladder(gate=Gate(ess_min=1e6), escalate="never")}
    )
    strict.fitted_ = engine.fitted_
    with pytest.warns(nbi.UntrustedWarning, match="UNCERTIFIED"):
        p = strict.predict(data_of_mean(0.5))
    assert p.gate.ess_min == 1e6
    certified = replace(p, status=Status.REWEIGHTED)
    assert certified.reweight(nbi.Prior({"a": uniform(0, 1)})).status is Status.UNCERTIFIED


def test_many_are_reweighted_as_each(engine):
    x = np.stack([data_of_mean(m, seed=i) for i, m in enumerate((0.3, 0.5, 1.1))])
    new_prior = nbi.Prior({"a": uniform(0, 5)})
    many = engine.predict_many(nbi.Observations.from_arrays(x))
    new = many.reweight(new_prior)
    for own, each in zip(new, many, strict=True):
        alone = each.reweight(new_prior)
        assert own.status is alone.status
        assert own.ess == pytest.approx(alone.ess)
    np.testing.assert_allclose(new.mean, [p.mean() for p in new])
    assert list(new.trusted) == [True, True, False]
    assert Flag.SUPPORT in new.flags[2]
    kept = engine.predict_many(nbi.Observations.from_arrays(x), keep=600).reweight(new_prior)
    assert list(kept.trusted) == [True, True, False]
    with pytest.raises(ValueError, match="keep=0"):
        engine.predict_many(nbi.Observations.from_arrays(x), keep=0).reweight(new_prior)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (nbi.Prior({"b": norm(0, 1)}), "must be of parameters"),
        (nbi.Prior({"a": norm(0, 1)}, units={"a": "d"}), "as before"),
    ],
)
def test_priors_of_something_else_are_refused(inside, prior, message):
    own = replace(inside, parameters=Parameters(("a",), ("a",), {"a": "h"}))
    with pytest.raises(ValueError, match=message):
        own.reweight(prior)
    with pytest.raises(ValueError, match="support"):
        replace(inside, support=None).reweight(nbi.Prior({"a": norm(0, 1)}))


def test_what_a_verdict_needs_survives_a_file(inside, tmp_path):
    inside.save(tmp_path / "p.h5")
    loaded = nbi.Posterior.load(tmp_path / "p.h5")
    np.testing.assert_array_equal(loaded.support, inside.support)
    assert loaded.gate == inside.gate
    assert loaded.data_hash == inside.data_hash != ""
    new_prior = nbi.Prior({"a": norm(0.5, 0.2)})
    assert loaded.reweight(new_prior).ess == inside.reweight(new_prior).ess


# --- the hash of the data ----------------------------------------------------------------------


def test_data_hash_is_of_the_data_however_they_are_laid_out():
    rng = np.random.default_rng(6)
    x, t = rng.normal(size=(3, 8)), np.sort(rng.uniform(0, 9, (3, 8)), 1) + 2_459_000
    band = np.array([["g", "r"] * 4] * 3)
    make = nbi.Observations.from_arrays
    hashes = make(x, 0.1, t=t, band=band, scalars={"z": [1.0, 2, 3]}).hashes
    assert len(set(hashes)) == 3
    lists = make(list(x), list(0 * x + 0.1), t=list(t), band=list(band), ids=["u", "v", "w"],
                 scalars={"z": [1.0, 2, 3]}, categories={"band": ["r", "i", "g"]})  # fmt: skip
    padded = make(np.hstack([x, np.full((3, 2), np.nan)]), 0.1, t=np.hstack([t, t[:, :2]]),
                  band=np.hstack([band, band[:, :2]]), scalars={"z": [1.0, 2, 3]})  # fmt: skip
    for same in (lists, padded, lists.relative_to("first")):
        np.testing.assert_array_equal(same.hashes, hashes)
        np.testing.assert_array_equal(same[[2, 0]].hashes, hashes[[2, 0]])
    for other in (
        make(x + 1e-6, 0.1, t=t, band=band, scalars={"z": [1.0, 2, 3]}),
        make(x, 0.11, t=t, band=band, scalars={"z": [1.0, 2, 3]}),
        make(x, 0.1, t=t + 0.1, band=band, scalars={"z": [1.0, 2, 3]}),
        make(x, 0.1, t=t, band=band[:, ::-1], scalars={"z": [1.0, 2, 3]}),
        make(x, 0.1, t=t, band=band, scalars={"z": [1.1, 2.1, 3.1]}),
        make(x, 0.1, t=t, band=band, mask=np.arange(8) > 0, scalars={"z": [1.0, 2, 3]}),
    ):
        assert not set(other.hashes) & set(hashes)


def test_data_hash_does_not_depend_on_the_unit():
    x, t = np.array([[1.1, 2.2, 3.3]]), [0.1, 0.2, 0.7]
    make = nbi.Observations.from_arrays
    one = make(x * units.mJy, 0.1 * x * units.mJy, t=t * units.d)
    other = make((x * units.mJy).to("uJy"), (0.1 * x * units.mJy).to("Jy"),
                 t=(t * units.d).to("h"))  # fmt: skip
    assert one.hashes[0] == other.hashes[0]


def test_every_answer_carries_the_hash_of_its_data(engine, inside):
    x = np.stack([data_of_mean(0.5), data_of_mean(0.6)])
    objects = nbi.Observations.from_arrays(x)
    many = engine.predict_many(objects, keep=0)
    np.testing.assert_array_equal(many.data_hash, objects.hashes)
    assert many[1:].data_hash[0] == objects.hashes[1]
    assert inside.data_hash == objects.hashes[0]


# --- trust -------------------------------------------------------------------------------------


def test_trusted_is_certified_without_a_doubt(inside):
    assert inside.trusted
    for flag in nbi.Flag:
        doubted = replace(inside, flags=frozenset({flag}))
        assert doubted.trusted is (flag not in UNTRUSTED)
    for status in nbi.Status:
        assert replace(inside, status=status).trusted is status.certified
    assert not replace(inside, status=Status.AMORTIZED).trusted


def test_trusted_is_a_column(engine):
    x = np.stack([data_of_mean(0.5), data_of_mean(0.5, scatter=4.0)])
    many = engine.predict_many(nbi.Observations.from_arrays(x))
    assert list(many.certified) == [True, True]
    assert list(many.trusted) == [True, False]
    np.testing.assert_array_equal(many.to_table()["trusted"], many.trusted)


def test_predict_warns_of_what_is_certified_and_doubtful(engine):
    with pytest.warns(nbi.UntrustedWarning, match="MISFIT"):
        posterior = engine.predict(data_of_mean(0.5, scatter=4.0))
    assert posterior.certified
    assert issubclass(nbi.UntrustedWarning, nbi.UncertifiedWarning)


def test_an_engine_without_its_simulator_says_so(engine, tmp_path):
    engine.save(tmp_path / "e.nbi")
    alone = nbi.Engine.load(tmp_path / "e.nbi")
    with pytest.warns(nbi.UntrustedWarning, match="no simulator was given"):
        posterior = alone.predict(data_of_mean(0.5))
    assert posterior.status is Status.AMORTIZED
    assert "no simulator was given" in posterior.report
    assert "no likelihood" not in posterior.report


def test_draws_are_found_by_name(inside):
    derived = replace(inside, derived={"square": inside.samples[:, 0] ** 2})
    np.testing.assert_array_equal(derived["a"], inside.samples[:, 0])
    np.testing.assert_array_equal(derived["square"], inside.samples[:, 0] ** 2)
    with pytest.raises(KeyError, match="'a', 'square'"):
        derived["b"]


def test_summary_of_many_has_a_row_for_each_object_and_parameter(engine):
    x = np.stack([data_of_mean(0.5), np.full(N_POINTS, np.nan)])
    many = engine.predict_many(nbi.Observations.from_arrays(x, ids=["u", "v"]))
    table = many.summary()
    moments = ["mean", "std", "q16", "median", "q84", "q025", "q975"]
    assert table.colnames == ["id", "parameter", *moments, "unit"]
    assert list(table["id"]) == ["u", "v"]
    assert table["mean"][0] == pytest.approx(many[0].mean()[0])
    assert np.isnan(table["median"][1])


# --- misfit ------------------------------------------------------------------------------------


def misfits(engine, x):
    return np.array([Flag.MISFIT in f for f in engine.predict_many(x, keep=0).flags])


@pytest.fixture(scope="module")
def long_engine():
    """Return an engine for 50 points that answers a known level: sigma is the data's own error."""
    prior = nbi.Prior({"a": norm(0, 1)})
    ladder = nbi.Ladder(audit=None)  # which says nothing of a misfit
    engine = nbi.Engine(lambda a: np.repeat(a, 50, 1), prior, featurizer="resnet", ladder=ladder)
    rng = np.random.default_rng(7)
    seen = nbi.Observations.from_arrays(rng.normal(size=(50, 50)), 1.0)
    return engine.fit(n_sims=1500, n_epochs=6, observations=seen)


def test_errors_that_are_too_large_are_a_misfit(long_engine):
    rng = np.random.default_rng(8)
    level, noise = rng.normal(size=(200, 1)), rng.normal(size=(200, 50))
    make = nbi.Observations.from_arrays
    assert misfits(long_engine, make(level + noise / 1.6, 1.0)).mean() > 0.8  # 90 % at best
    assert misfits(long_engine, make(level + noise / 2.5, 1.0)).all()  # variances for errors
    assert misfits(long_engine, make(level + noise * 1.6, 1.0)).mean() > 0.9
    assert misfits(long_engine, make(level + noise, 1.0)).sum() <= 1


@pytest.mark.parametrize("n_points", [2, 50])
def test_false_misfits_are_as_rare_as_they_should_be(n_points):
    """Averages of p-values over the exact posterior of a level, which has a closed form."""
    rng = np.random.default_rng(9)
    n = 20_000
    x = rng.normal(size=(n, 1)) + rng.normal(size=(n, n_points))
    var = 1 / (1 + n_points)
    theta = x.sum(1, keepdims=True) * var + np.sqrt(var) * rng.normal(size=(n, 100))
    chi2 = ((x - x.mean(1, keepdims=True)) ** 2).sum(1)[:, None]
    chi2 = chi2 + n_points * (theta - x.mean(1, keepdims=True)) ** 2
    upper = torch.special.gammaincc(torch.tensor(n_points / 2.0), torch.as_tensor(chi2 / 2))
    tails = torch.stack([upper, 1 - upper], -1).double()
    found = averaged(tails, torch.full((n, 100), 0.01), exact=True)
    assert (found < MISFIT).double().mean(0).max() < 1.6 * MISFIT  # three standard errors above


def test_counts_that_cannot_be_likelier_are_no_misfit():
    rng = np.random.default_rng(10)
    noise, n = nbi.PoissonNoise(), 4000
    model = torch.full((n, 1, 3), 0.05, dtype=torch.float64)
    data = nbi.Observations.from_arrays(rng.poisson(0.05, (n, 3)).astype(float)).batch()
    generator = torch.Generator().manual_seed(0)
    upper, lower = noise.p_values(torch.zeros(n, 1), model, data, generator)
    nothing = data.x.sum((1, 2)) == 0
    assert nothing.float().mean() > 0.8
    assert upper[nothing].mean() == 1.0  # nothing is likelier than no counts at all,
    assert 0.8 < lower[nothing].mean() < 0.92  # and that is no news


def test_sequential_answer_has_its_misfit_from_the_simulations_there_are(tmp_path):
    prior = nbi.Prior({"a": norm(0, 1)})
    for factor, wanted in ((1.0, False), (0.25, True), (3.0, True)):
        engine = nbi.Engine(level, prior, noise=SIGMA, featurizer="resnet", path=tmp_path)
        x = data_of_mean(0.4, factor * SIGMA)
        engine.fit(n_sims=600, n_rounds=5, x_obs=x, n_epochs=5)
        p = engine.posterior_
        assert p.certified
        assert (Flag.MISFIT in p.flags) is wanted
        again = nbi.Engine(level, prior, noise=SIGMA, featurizer="resnet", path=tmp_path)
        again.fit(n_sims=600, n_rounds=5, x_obs=x, n_epochs=5)
        assert again.posterior_.fit_p_value == pytest.approx(p.fit_p_value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nbi.UncertifiedWarning)
            assert abs(engine.predict(x).fit_p_value - p.fit_p_value) < 0.05


# --- another prior -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "mean"),
    [(-2.0, 3.0, 0.5), (0.4, 1.2, 0.6), (0.45, 0.7, 0.5), (0.0, 10.0, 0.9), (-1.0, 2.0, 1.1)],
    ids=["wider", "shifted", "narrower", "partly outside", "mostly outside"],
)
def test_answers_under_another_prior_equal_their_closed_form(engine, low, high, mean):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UncertifiedWarning)
        p = engine.predict(
            data_of_mean(mean), prior=nbi.Prior({"a": uniform(low, high - low)}), n_samples=4000
        )
    want, sd, log_z = truth(low, high, mean)
    assert p.certified
    assert abs(p.mean()[0] - want) < 4 * sd / np.sqrt(p.ess)
    assert abs(p.std()[0] / sd - 1) < 4 / np.sqrt(2 * p.ess) + 0.01
    assert abs(p.log_evidence - log_z) < 4 * p.log_evidence_err
    np.testing.assert_array_equal(p.support, [[low, high]])


def test_the_network_alone_cannot_answer_beyond_its_prior(engine):
    stays = nbi.Engine(**engine.get_params() | {"ladder": nbi.Ladder(escalate="never")})
    stays.fitted_ = engine.fitted_
    objects = nbi.Observations.from_arrays(np.stack([data_of_mean(0.5), data_of_mean(1.1)]))
    many = stays.predict_many(objects, prior=nbi.Prior({"a": uniform(0, 10)}))
    assert list(many.certified) == [True, False]
    assert Flag.SUPPORT in many.flags[1]
    assert "old prior" in many[1].report


def test_a_prior_of_something_else_is_refused(engine):
    with pytest.raises(ValueError, match="must be of the parameters"):
        engine.predict(data_of_mean(0.5), prior=nbi.Prior({"b": uniform(0, 1)}))
    with pytest.raises(ValueError, match="inverse"):
        engine.predict(data_of_mean(0.5), prior=nbi.Prior(lambda u: u, labels=["a"]))


def test_a_sequential_fit_answers_under_another_prior():
    prior = nbi.Prior({"a": uniform(0, 1)})
    engine = nbi.Engine(level, prior, noise=SIGMA, featurizer="resnet")
    engine.fit(n_sims=600, n_rounds=5, x_obs=data_of_mean(0.5), n_epochs=5)
    new_prior = nbi.Prior({"a": norm(0.3, 0.2)})
    se = SIGMA / np.sqrt(N_POINTS)
    var = 1 / (1 / se**2 + 1 / 0.04)
    mean = var * (0.5 / se**2 + 0.3 / 0.04)
    own = truncnorm((0 - mean) / var**0.5, (1 - mean) / var**0.5, mean, var**0.5)
    fresh = engine.predict(data_of_mean(0.5), prior=new_prior)
    pooled = engine.posterior_.reweight(new_prior)
    for p in (fresh, pooled):
        assert p.certified
        assert abs(p.mean()[0] - own.mean()) < 4 * own.std() / np.sqrt(p.ess)
        assert abs(p.std()[0] / own.std() - 1) < 4 / np.sqrt(2 * p.ess) + 0.01
    error = np.hypot(fresh.log_evidence_err, pooled.log_evidence_err)
    assert abs(fresh.log_evidence - pooled.log_evidence) < 4 * error
    edge = nbi.Engine(level, prior, noise=SIGMA, featurizer="resnet")
    edge.fit(n_sims=400, n_rounds=4, x_obs=data_of_mean(1.1), n_epochs=5)
    with pytest.warns(nbi.UntrustedWarning, match="SUPPORT"):
        edge.predict(data_of_mean(1.1), prior=nbi.Prior({"a": uniform(0, 10)}))
