"""What numbers mean is the same at every door: bands, units, grids, and whose points are whose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy import units as u
from scipy.stats import norm
from torch import nn

import nbi_plus as nbi

PRIOR = {"level": norm(0, 3)}


def steps(theta, t, band):
    """A level that each further band shows once more."""
    return theta * (1 + band) + 0 * t


def survey(bands=("g", "i", "r"), n=12, **options):
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 12, n)
    return nbi.Observations.from_arrays(
        [rng.normal(size=k) for k in lengths],
        [np.full(k, 0.5) for k in lengths],
        t=[np.sort(rng.uniform(0, 10, k)) for k in lengths],
        band=[rng.choice(bands, k) for k in lengths],
        **options,
    )


@pytest.fixture(scope="module")
def engine():
    engine = nbi.Engine(steps, PRIOR, featurizer="gru", seed=0)
    return engine.fit(n_sims=600, n_epochs=2, observations=survey(units={"x": "mJy", "t": "d"}))


def test_a_fit_in_rounds_after_a_network_keeps_its_bands_and_units(engine):
    one = nbi.Engine(**engine.get_params())
    vars(one).update({k: v for k, v in vars(engine).items() if k.endswith("_")})
    x = np.full(6, 2000.0) * u.uJy  # of level 1 in the second band
    band, t = ["i"] * 6, np.arange(6.0) * 24 * u.h
    one.fit(n_sims=300, n_rounds=6, x_obs=x, x_err=500 * u.uJy, t=t, band=band,
            n_epochs=2, ess_target=300)  # fmt: skip
    assert one.sequential_.observations.points["band"].tolist() == [1] * 6
    np.testing.assert_allclose(one.sequential_.observations.points["t"], np.arange(6.0))
    exact_sd = (1 / 9 + 6 * 4 / 0.25) ** -0.5
    exact = exact_sd**2 * 6 * 2 * 2 / 0.25
    assert abs(one.posterior_.mean()[0] - exact) < 0.3 * exact_sd
    again = one.predict(np.full(6, 2.0), 0.5, t=np.arange(6.0), band=band)
    assert again.id == one.posterior_.id
    assert abs(again.mean()[0] - exact) < 0.3 * exact_sd


def test_going_on_with_data_of_another_kind_is_refused(engine):
    other = nbi.Engine(**engine.get_params())
    vars(other).update({k: v for k, v in vars(engine).items() if k.endswith("_")})
    with pytest.raises(ValueError, match=r"band must be one of .* but has \['z'\]"):
        other.fit(n_sims=50, n_epochs=1, observations=survey(("i", "z")), warm_start=True)
    lacking = nbi.Observations.from_arrays(np.zeros((2, 5)), 1.0, t=np.arange(5),
                                           band=["g"] * 5)  # fmt: skip
    with pytest.raises(ValueError, match="must be of the kind that the network was trained on"):
        other.fit(n_sims=50, n_epochs=1, observations=lacking, warm_start=True)


def test_every_door_converts_units(engine):
    x, t, band = np.full(5, 1.2), np.arange(5.0), ["g"] * 5
    theta = np.array([[1.0], [0.5]])
    for door in (engine.log_prob, engine.log_likelihood, engine.log_posterior):
        plain = door(theta, x, 0.5, t=t, band=band)
        other = door(theta, x * 1e3 * u.uJy, 500 * u.uJy, t=t * 24 * u.h, band=band)
        np.testing.assert_allclose(other, plain, rtol=1e-5)
        error_alone = door(theta, x, 500 * u.uJy, t=t, band=band)
        np.testing.assert_allclose(error_alone, plain, rtol=1e-6)
    hours = engine.simulate(theta, t=t * 24 * u.h, band=band)
    np.testing.assert_allclose(hours, engine.simulate(theta, t=t, band=band))


def test_units_of_errors_alone_or_of_some_objects_are_refused():
    with pytest.raises(ValueError, match="x must have a unit where x_err has one"):
        nbi.Observations.from_arrays(np.ones((1, 3)), np.ones((1, 3)) * u.mJy)
    with pytest.raises(ValueError, match="x must have units for all objects or for none"):
        nbi.Observations.from_arrays([np.ones(2), np.ones(3) * u.mJy])


@pytest.mark.filterwarnings("ignore::nbi_plus.UncertifiedWarning")  # no level fits both bands
def test_bands_with_numbers_for_names_are_told_by_name_at_every_door():
    table = {"oid": [0] * 4 + [1] * 4, "mjd": np.arange(8.0), "flux": np.ones(8),
             "fluxerr": np.full(8, 0.1), "fid": [1, 2, 1, 2, 2, 2, 1, 1]}  # fmt: skip
    objects = nbi.Observations.from_table(table)
    assert objects.categories == {"band": ("1", "2")}
    engine = nbi.Engine(steps, PRIOR, featurizer="gru", seed=0)
    engine.fit(n_sims=200, n_epochs=1, observations=objects)
    one = objects[0]
    for band in ([1, 2, 1, 2], ["1", "2", "1", "2"]):
        alone = engine.predict(one.x[0, 0], one.x_err[0, 0], t=one.points["t"], band=band)
        np.testing.assert_array_equal(alone.samples, nbi_samples(engine, one))
    grid = nbi.Engine(steps, PRIOR, noise=0.3, featurizer="gru", seed=0)
    grid.fit(n_sims=100, n_epochs=1, t=np.arange(4.0), band=[1, 2, 1, 2])
    x = grid.simulate([[1.0]])[0, 0]  # the default bands are those of the fit
    np.testing.assert_array_equal(x, [2.0, 3.0, 2.0, 3.0])


def nbi_samples(engine, one):
    return engine.predict_many(one)[0].samples


@pytest.mark.filterwarnings("ignore::nbi_plus.UncertifiedWarning")  # so small a fit proves nothing
def test_an_object_of_a_table_is_recognised_after_its_fit_in_rounds():
    one = survey()[0]
    engine = nbi.Engine(steps, PRIOR, featurizer="gru", seed=0)
    engine.fit(n_sims=200, n_rounds=4, observations=one, n_epochs=2, ess_target=200)
    names = np.array(one.categories["band"])[one.points["band"]]
    again = engine.predict(one.x[0, 0], one.x_err[0, 0], t=one.points["t"], band=names)
    assert abs(again.mean()[0] - engine.posterior_.mean()[0]) < 0.3 * again.std()[0]


def test_a_table_of_the_grid_of_the_training_is_on_that_grid():
    t = np.arange(5.0)
    engine = nbi.Engine(lambda theta, t: theta + 0 * t, PRIOR, noise=0.5, featurizer="gru", seed=0)
    engine.fit(n_sims=100, n_epochs=1, t=t)
    table = {"id": np.repeat([3, 4], 5), "t": np.tile(t, 2), "x": np.ones(10)}
    found = engine.predict_many(nbi.Observations.from_table(table, x_err=False))
    plain = engine.predict_many(nbi.Observations.from_arrays(np.ones((2, 5)), t=t, ids=[3, 4]))
    np.testing.assert_array_equal(found.mean, plain.mean)


def test_a_simulator_that_mixes_the_points_of_an_object_is_refused():
    def centred(theta, t, band):
        y = steps(theta, t, band) * t
        return y - y.mean(-1, keepdim=True)

    with pytest.raises(ValueError, match="simulator must give each point whatever other points"):
        nbi.Engine(centred, PRIOR).fit(n_sims=50, n_epochs=1, observations=survey())
    on_a_grid = nbi.Engine(lambda theta, t: centred(theta, t, 0), PRIOR, noise=1.0)
    on_a_grid.fit(n_sims=50, n_epochs=1, t=np.arange(6.0))


def test_simulations_of_nobodys_points_are_refused():
    theta = np.random.default_rng(0).normal(size=(30, 1))
    x = np.ones((30, int(survey().lengths.max())))
    with pytest.raises(ValueError, match="theta and x must come with objects that share one grid"):
        nbi.Engine(None, PRIOR).fit(theta=theta, x=x, observations=survey(), n_epochs=1)
    longest = int(survey().lengths.max())
    with pytest.raises(ValueError, match="simulator must take a coordinate of the points"):
        nbi.Engine(lambda theta: theta * np.ones((1, longest)), PRIOR).fit(
            n_sims=30, n_epochs=1, observations=survey()
        )


def test_a_grid_works_without_bands_and_when_the_survey_shrinks(tmp_path):
    rng = np.random.default_rng(0)
    t = [np.sort(rng.uniform(0, 10, k)) for k in rng.integers(4, 9, 12)]
    objects = nbi.Observations.from_arrays([v * 0 for v in t], [v * 0 + 1 for v in t], t=t)
    engine = nbi.Engine(lambda theta, t: theta * t, PRIOR, featurizer="gru", path=tmp_path)
    for some in (objects, objects[:4]):
        engine.fit(n_sims=60, n_epochs=1, observations=some, grid=np.linspace(0, 10, 20))
    with pytest.raises(ValueError, match="grid must be None for a sequential fit"):
        engine.fit(n_sims=60, n_rounds=2, x_obs=t[0], x_err=1.0, t=t[0], grid=[0.0, 10.0])


def test_networks_of_a_fixed_length_see_that_length():
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(8))
    x = np.ones((6, 9))
    x[:, -1] = np.nan
    objects = nbi.Observations.from_arrays(x, 0.5, t=np.arange(9.0))
    engine = nbi.Engine(lambda theta, t: theta + 0 * t, PRIOR, featurizer=network, seed=0)
    engine.fit(n_sims=64, n_epochs=1, batch_size=2, observations=objects)
    assert len(engine.predict_many(objects, keep=0)) == 6


def test_missing_scalars_are_named(engine):
    def shifted(theta, t, redshift):
        return theta * (1 + redshift) + 0 * t

    t = np.arange(5.0)
    objects = nbi.Observations.from_arrays(np.zeros((4, 5)), 1.0, t=t,
                                           scalars={"redshift": np.arange(4.0)})  # fmt: skip
    fitted = nbi.Engine(shifted, PRIOR, featurizer="gru").fit(
        n_sims=50, n_epochs=1, observations=objects
    )
    with pytest.raises(ValueError, match="redshift must be given for each object"):
        fitted.predict_many(nbi.Observations.from_arrays(np.zeros((2, 5)), 1.0, t=t))


def test_what_the_perturbation_shows_is_ordinary():
    t, n = np.arange(30.0), 40
    objects = nbi.Observations.from_arrays(np.zeros((n, 30)), 1.0, t=t)
    engine = nbi.Engine(lambda theta, t: theta + 0 * t, PRIOR, featurizer="gru", seed=0)
    engine.fit(n_sims=1000, n_epochs=2, observations=objects)
    rng = np.random.default_rng(1)
    mask = rng.random((n, 30)) > 0.2
    x = rng.normal(0, 3, (n, 1)) + 1.2 * rng.normal(size=(n, 30))
    fewer = nbi.Observations.from_arrays(x, 1.2, t=t, mask=mask)
    flagged = [nbi.Flag.OOD in flags for flags in engine.predict_many(fewer, keep=0).flags]
    assert np.mean(flagged) < 0.15


def test_callable_noise_keeps_its_errors_true():
    from nbi_plus.learn.fitting import task_of

    seen = {}

    def watch(problem):
        seen["perturbation"] = problem.cadences.perturbation
        return problem

    objects = nbi.Observations.from_arrays(np.zeros((5, 6)), 0.1, t=np.arange(6.0))
    rng = np.random.default_rng(0)
    engine = nbi.Engine(lambda theta, t: theta + 0 * t, PRIOR, featurizer="gru",
                        noise=lambda x, y: (x + 0.1 * rng.normal(size=x.shape), y))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbi_plus.learn.fitting.task_of", lambda *a: watch(task_of(*a)))
        engine.fit(n_sims=60, n_epochs=1, observations=objects)
    assert seen["perturbation"].error_scale == 1.0
    assert seen["perturbation"].drop > 0


def test_torch_and_numpy_simulators_agree_on_bands(engine):
    def slow(theta, t, band):
        return np.asarray(theta) * (1 + np.asarray(band)) + 0 * t

    theta, x, t, band = np.array([[0.7]]), np.ones(4), np.arange(4.0), ["g", "r", "i", "g"]
    other = nbi.Engine(slow, PRIOR, featurizer="gru", seed=0)
    other.fit(n_sims=100, n_epochs=1, observations=survey(units={"x": "mJy", "t": "d"}))
    assert other.simulator_.backend == "numpy"
    for door in ("log_likelihood", "log_posterior"):
        found = [getattr(e, door)(theta, x, 0.5, t=t, band=band) for e in (engine, other)]
        np.testing.assert_allclose(found[0], found[1])
    assert torch.is_grad_enabled()
