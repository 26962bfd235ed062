"""A light curve, a spectrum and a redshift of one object, inferred from together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi

PRIOR = {"level": norm(0, 1), "line": uniform(5000, 100)}
PIXELS = np.linspace(4950, 5450, 64)


def both(theta, t, wavelength, redshift):
    """A level (n, L) at all times, and a line whose place is redshifted."""
    place = theta[:, 1:2] * (1 + redshift)
    line = torch.exp(-0.5 * ((wavelength - place) / 15) ** 2)
    return torch.stack([theta[:, :1] + 0 * t, line], 1)


def objects(n=40, seed=0):
    rng = np.random.default_rng(seed)
    theta = nbi.Prior(PRIOR).sample(n, rng)
    redshift = rng.uniform(0, 0.05, n)
    lengths = rng.integers(5, 20, n)
    ids = [f"{seed}-{i}" for i in range(n)]
    light = nbi.Observations.from_arrays(
        [p + rng.normal(size=k) for p, k in zip(theta[:, 0], lengths, strict=True)],
        [np.ones(k) for k in lengths],
        t=[np.sort(rng.uniform(0, 50, k)) for k in lengths],
        ids=ids,
    )
    place = theta[:, 1:] * (1 + redshift[:, None])
    spectra = np.exp(-0.5 * ((PIXELS - place) / 15) ** 2) + 0.2 * rng.normal(size=(n, 64))
    spectra[0, 10:20] = np.nan
    spectrum = nbi.Observations.from_arrays(
        spectra, 0.2, wavelength=PIXELS, scalars={"redshift": redshift}, ids=ids
    )
    return nbi.Observations.joint({"light": light, "spectrum": spectrum}), theta


@pytest.fixture(scope="module")
def engine():
    engine = nbi.Engine(both, PRIOR, featurizer=["gru", "spectrum"], seed=0)
    return engine.fit(n_sims=1500, n_epochs=4, observations=objects()[0])


def test_both_kinds_of_data_constrain_their_own_parameters(engine):
    joint, theta = objects(30, seed=5)
    posteriors = engine.predict_many(joint, keep=0)
    assert posteriors.certified.mean() > 0.9
    sure = posteriors.certified
    z = (posteriors.mean - theta)[sure] / posteriors.std[sure]
    assert (z.std(0) < 1.5).all()
    assert np.abs(z).max() < 5
    lengths = joint.n_points - 64
    exact = 1 / np.sqrt(1 + lengths)  # a normal prior and so many unit errors
    assert joint.n_masked[0] == 10
    ratio = posteriors.std[sure, 0] / exact[sure]
    assert np.abs(ratio - 1)[1:].max() < 0.15  # 400 effective draws or more
    assert np.median(posteriors.std[:, 1]) < 5


def test_the_network_of_a_list_is_saved_and_loaded(engine, tmp_path):
    engine.save(tmp_path / "joint.nbi")
    again = nbi.Engine.load(tmp_path / "joint.nbi", simulator=both)
    assert again.featurizer == ["gru", "spectrum"]
    joint, _ = objects(3, seed=6)
    np.testing.assert_array_equal(again.predict_many(joint).mean, engine.predict_many(joint).mean)


def test_simulate_gives_the_model_at_any_points(engine):
    theta = np.array([[0.5, 5050.0], [-1.0, 5020.0]])
    t, wavelength = np.arange(7.0), np.linspace(5000, 5100, 7)
    found = engine.simulate(theta, t=t, wavelength=wavelength, redshift=0.01)
    coords = (torch.tensor(v)[None] for v in (t, wavelength))
    exact = both(torch.tensor(theta), *coords, torch.tensor(0.01, dtype=torch.float64))
    np.testing.assert_allclose(found, exact.numpy())


@pytest.mark.parametrize(("featurizer", "message"), [
    (["gru"], "a list of one for each of the 2 channels of the data .* but is a list of 1"),
    (["gru", "resnet50"], "featurizer must be one of .* but is 'resnet50'"),
])  # fmt: skip
def test_a_list_that_does_not_fit_the_data_is_refused(featurizer, message):
    engine = nbi.Engine(both, PRIOR, featurizer=featurizer)
    with pytest.raises(ValueError, match=message):
        engine.fit(n_sims=20, n_epochs=1, observations=objects(3)[0])
