"""An object whose times lie where nothing was simulated, and whether that matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi

PRIOR = {"t0": uniform(2, 6), "depth": norm(1, 0.3)}
OFFSET = 2_400_000.5


def dip(theta, t):
    """A dip at an absolute time."""
    return -theta[:, 1:] * torch.exp(-0.5 * ((t - theta[:, :1]) / 0.5) ** 2)


def decay(theta, t):
    """A decay from each object's own first time."""
    return theta[:, 1:] * torch.exp(-(t - t.amin(-1, keepdim=True)) / theta[:, :1])


def survey(shift=0.0, n=12, seed=0):
    rng = np.random.default_rng(seed)
    t = [np.sort(rng.uniform(0, 10, k)) for k in rng.integers(6, 12, n)]
    return nbi.Observations.from_arrays(
        [-np.exp(-0.5 * ((v - 5) / 0.5) ** 2) + 0.2 * rng.normal(size=len(v)) for v in t],
        [np.full(len(v), 0.2) for v in t],
        t=[v + shift for v in t],
    )


def fitted(simulator):
    engine = nbi.Engine(simulator, PRIOR, featurizer="gru", seed=0)
    return engine.fit(n_sims=500, n_epochs=1, observations=survey())


@pytest.fixture(scope="module")
def absolute():
    return fitted(dip)


def one(objects, i=0):
    return {
        "x_obs": objects[i].x[0, 0],
        "x_err": objects[i].x_err[0, 0],
        "t": objects[i].points["t"],
    }


def test_an_object_in_other_times_is_refused_with_both_ranges(absolute):
    away = survey(OFFSET)
    ranges = r"0\.\d+ to 9\.\d+, but goes from 240000\d\.\d+ to 24000"
    with pytest.raises(
        ValueError, match="t must overlap with the times of the training, " + ranges
    ):
        absolute.predict(**one(away))


def test_among_many_objects_it_fails_alone_and_says_why(absolute):
    home, away = survey(seed=1), survey(OFFSET, seed=2)
    mixed = nbi.Observations.from_arrays(
        *([*(getattr(home[i], k)[0, 0] for i in range(3)), getattr(away[0], k)[0, 0]]
          for k in ("x", "x_err")),
        t=[*(home[i].points["t"] for i in range(3)), away[0].points["t"]],
    )  # fmt: skip
    found = absolute.predict_many(mixed)
    assert [s is nbi.Status.FAILED for s in found.status] == [False, False, False, True]
    assert [nbi.Flag.BAD_INPUT in f for f in found.flags] == [False, False, False, True]
    assert "FAIL_INPUT: t must overlap with the times of the training" in found[3].report
    assert found.ess[3] == 0
    alone = absolute.predict_many(mixed[:3])
    np.testing.assert_allclose(found.mean[:3], alone.mean, atol=0.02)


def test_an_object_that_overlaps_or_counts_from_itself_is_welcome(absolute):
    partly = survey(8.0)
    assert nbi.Flag.BAD_INPUT not in absolute.predict_many(partly, keep=0).flags[0]
    relative = survey(OFFSET).relative_to("first")
    assert not any(nbi.Flag.BAD_INPUT in f for f in absolute.predict_many(relative, keep=0).flags)


def test_a_new_season_is_welcome_where_times_are_relative_to_each_object():
    engine = fitted(decay)
    found = engine.predict_many(survey(1000.0), keep=0)
    assert not any(nbi.Flag.BAD_INPUT in flags for flags in found.flags)


def test_the_window_is_that_of_all_objects_and_is_kept_in_files(absolute, tmp_path):
    times = survey().points["t"]
    assert absolute.model_.window == (times.min(), times.max())
    absolute.save(tmp_path / "engine.nbi")
    again = nbi.Engine.load(tmp_path / "engine.nbi", simulator=dip)
    assert again.model_.window == absolute.model_.window
    with pytest.raises(ValueError, match="t must overlap"):
        again.predict(**one(survey(OFFSET)))


def test_a_grid_that_differs_by_days_is_refused_however_large_its_numbers():
    t = np.linspace(0, 9, 10) + OFFSET
    engine = nbi.Engine(decay, PRIOR, noise=0.2, featurizer="gru", seed=0)
    engine.fit(n_sims=300, n_epochs=1, t=t)
    ranges = "2400000.5 to 2400009.5, but differs from it: 2400003.5 to"
    with pytest.raises(ValueError, match="t must be the grid of the training, " + ranges):
        engine.predict(np.zeros(10), t=t + 3.0)
