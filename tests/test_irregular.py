"""Laws of a fit to irregular curves in two bands: what must not change an answer, does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy import units as u
from scipy.stats import ks_2samp, norm, uniform

import nbi_plus as nbi

PRIOR = {"level": norm(0, 2), "swing": norm(0, 2), "phase": uniform(0, 2)}


def curve(theta, t, band):
    """A slow wave (n, L) of period 40 days, twice as strong in the second band."""
    wave = torch.sin(t * (2 * np.pi / 40) + theta[:, 2:3])
    return theta[:, :1] + theta[:, 1:2] * (1 + band) * wave


def survey(n=60, seed=0, **options):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(8, 40, n)
    t = [np.sort(rng.uniform(0, 60, k)) for k in lengths]
    band = [rng.choice(["g", "r"], k) for k in lengths]
    err = [np.full(k, rng.uniform(0.3, 1.0)) for k in lengths]
    theta = nbi.Prior(PRIOR).sample(n, rng)
    x = [
        curve(torch.tensor(p)[None], torch.tensor(a)[None], torch.tensor(b == "r")[None] * 1)[0]
        for p, a, b in zip(theta, t, band, strict=True)
    ]
    x = [v.numpy() + e * rng.normal(size=len(e)) for v, e in zip(x, err, strict=True)]
    ids = [f"{seed}-{i}" for i in range(n)]
    return nbi.Observations.from_arrays(
        x, err, t=t, band=band, ids=ids, units={"t": "d", "x": "mJy"}, **options
    )


@pytest.fixture(scope="module")
def engine():
    engine = nbi.Engine(curve, PRIOR, noise=nbi.GaussianNoise(), featurizer="transformer", seed=1)
    return engine.fit(n_sims=2000, n_epochs=5, observations=survey())


@pytest.fixture(scope="module")
def objects():
    return survey(12, seed=7)


@pytest.fixture(scope="module")
def answers(engine, objects):
    return engine.predict_many(objects)


def features(engine, observations):
    matched = observations.like(engine.model_.conditions.categories, engine.model_.units)
    return engine.model_.network.features(matched.batch())


def same_draws(one, other):
    """Fail unless two posteriors are of one distribution (Kolmogorov and Smirnov)."""
    a, b = one.resample(800, rng=0), other.resample(800, rng=1)
    # exact p-values of draws that are almost the same round to more than one, and scipy warns
    p = [ks_2samp(a[:, i], b[:, i], method="asymp").pvalue for i in range(a.shape[1])]
    assert min(p) > 0.001, p


def padded(observations, extra=30):
    """Return the same objects with masked points at their ends, full of nonsense."""
    rows = [observations[i] for i in range(len(observations))]
    more = np.full(extra, np.nan)
    names = np.array(observations.categories["band"])
    return nbi.Observations.from_arrays(
        [np.append(o.x[0, 0], more) for o in rows],
        [np.append(o.x_err[0, 0], more) for o in rows],
        t=[np.append(o.points["t"], o.points["t"][-1] + np.arange(extra)) for o in rows],
        band=[np.append(names[o.points["band"]], ["g"] * extra) for o in rows],
        ids=observations.ids.tolist(),
        units=observations.units,
    )


def test_padding_changes_no_answer(engine, objects, answers):
    other = padded(objects)
    assert other.n_masked.tolist() == [30] * len(objects)
    torch.testing.assert_close(features(engine, other), features(engine, objects),
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    again = engine.predict_many(other)
    for i in range(len(objects)):
        same_draws(again[i], answers[i])


def test_order_and_batch_size_change_no_answer(engine, objects, answers):
    backwards = engine.predict_many(objects[::-1])
    for i in range(len(objects)):
        alone = engine.predict_many(objects[i])[0]
        torch.testing.assert_close(
            features(engine, objects[i]), features(engine, objects)[i : i + 1], rtol=1e-5, atol=1e-5
        )
        for other in (alone, backwards[len(objects) - 1 - i]):
            assert other.id == answers[i].id
            same_draws(other, answers[i])


def test_units_change_no_answer(engine, objects, answers):
    hours = objects.like({}, {"t": "h", "x": "uJy"})
    assert hours.points["t"][0] == pytest.approx(24 * objects.points["t"][0])
    torch.testing.assert_close(features(engine, hours), features(engine, objects),
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    again = engine.predict_many(hours)
    for i in range(len(objects)):
        same_draws(again[i], answers[i])
    with pytest.raises(ValueError, match="t must be in a unit that converts to 'd'"):
        engine.predict_many(replace(objects, units={"t": "m", "x": "mJy"}))


def test_a_network_trained_in_other_time_units_gives_the_same_features(engine):
    scaled = nbi.Engine(
        lambda theta, t, band: curve(theta, t / 24, band), PRIOR, noise=nbi.GaussianNoise(),
        featurizer="transformer", seed=1,
    )  # fmt: skip
    hours = survey().like({}, {"t": "h"})
    scaled.fit(n_sims=2000, n_epochs=5, observations=hours)
    losses = [[e["val_nll"] for e in one.history_] for one in (scaled, engine)]
    np.testing.assert_allclose(losses[0], losses[1], atol=0.02)
    other = hours[:5]
    batch = other.batch()
    torch.testing.assert_close(
        scaled.model_.network.encoder(batch)[0],
        engine.model_.network.encoder(survey()[:5].batch())[0],
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_one_object_given_by_arrays_is_answered_as_among_many(engine, objects, answers):
    one = objects[3]
    names = np.array(objects.categories["band"])[one.points["band"]]
    alone = engine.predict(
        one.x[0, 0], one.x_err[0, 0], t=one.points["t"], band=names, n_samples=2000
    )
    same_draws(alone, answers[3])
    quantity = engine.predict(
        one.x[0, 0] * u.mJy, one.x_err[0, 0] * 1e3 * u.uJy, t=one.points["t"] * 24 * u.h, band=names
    )
    same_draws(quantity, answers[3])
    only_g = one.select_points(one.points["band"] == 0)
    engine.predict(only_g.x[0, 0], only_g.x_err[0, 0], t=only_g.points["t"],
                   band=["g"] * only_g.n_points[0])  # fmt: skip
    with pytest.raises(ValueError, match=r"band must be one of \('g', 'r'\), but has \['z'\]"):
        engine.predict(one.x[0, 0], one.x_err[0, 0], t=one.points["t"], band=["z"] * len(names))
    with pytest.raises(ValueError, match="t must be given, as in training"):
        engine.predict(one.x[0, 0], one.x_err[0, 0], band=names)


def test_a_saved_network_knows_its_bands_and_units(engine, objects, answers, tmp_path):
    engine.save(tmp_path / "irregular.nbi")
    again = nbi.Engine.load(tmp_path / "irregular.nbi", simulator=curve)
    assert again.model_.units == {"t": "d", "x": "mJy"}
    assert again.model_.conditions.categories == {"band": ("g", "r")}
    hours = objects.like({"band": ("r", "g")}, {"t": "h"})
    posteriors = again.predict_many(hours)
    for i in range(len(objects)):
        same_draws(posteriors[i], answers[i])


def test_answers_are_those_of_the_posterior(objects, answers):
    """Linear in level and swing at each phase: the exact posterior by quadrature."""
    assert answers.certified.mean() > 0.9
    for i in np.flatnonzero(answers.certified)[:6]:
        one = objects[int(i)]
        t, band = one.points["t"], one.points["band"]
        x, err = one.x[0, 0], one.x_err[0, 0]
        phases = np.linspace(0, 2, 801)
        wave = (1 + band) * np.sin(t * (2 * np.pi / 40) + phases[:, None])
        basis = np.stack([np.ones_like(wave), wave], -1) / err[:, None]
        precision = np.swapaxes(basis, 1, 2) @ basis + np.eye(2) / 4
        right = np.einsum("plk,l->pk", basis, x / err)
        mean = np.linalg.solve(precision, right[..., None])[..., 0]
        log_z = 0.5 * (right * mean).sum(-1) - 0.5 * np.linalg.slogdet(precision)[1]
        weight = np.exp(log_z - log_z.max())
        weight /= weight.sum()
        exact = np.array([*(weight @ mean), weight @ phases])
        own = answers[int(i)]
        tolerance = 5 * own.std() / np.sqrt(own.ess)
        np.testing.assert_array_less(np.abs(own.mean() - exact), tolerance)


def test_bands_on_a_grid_shared_by_all_are_remembered():
    t, band = np.linspace(0, 60, 24), np.array(["g", "r"] * 12)
    engine = nbi.Engine(curve, PRIOR, noise=nbi.GaussianNoise(0.5), featurizer="gru", seed=0)
    engine.fit(n_sims=1000, n_epochs=3, t=t, band=band)
    x = engine.simulate([[1.0, 1.0, 1.0]])[:, 0] + 0.5 * np.random.default_rng(0).normal(size=24)
    bare = engine.predict_many(nbi.Observations.from_arrays(x))[0]
    named = engine.predict_many(nbi.Observations.from_arrays(x, t=t, band=band))[0]
    np.testing.assert_array_equal(bare.samples, named.samples)
    np.testing.assert_array_equal(engine.predict(x[0]).samples, named.samples)
