"""Laws of the setup: what users give to fit becomes one consistent problem, or a clear refusal."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import nbi_plus as nbi
from nbi_plus import CustomNoise, GaussianNoise, Observations
from nbi_plus.problem.setup import FitInputs, set_up

PRIOR = nbi.Prior({"a": stats.uniform(0, 1), "b": stats.norm(0, 1)})
T = np.arange(4)


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


def flat(theta):
    return theta[:, :1] + np.zeros(4)


def test_observations_take_the_grid_given_beside_them():
    bare = Observations.from_arrays(np.zeros((3, 4)), 0.1)
    setup = set_up(PRIOR, line, GaussianNoise(), FitInputs(observations=bare, inputs={"t": T}))
    assert setup.conditions.coords["t"].tolist() == [0, 1, 2, 3]
    assert setup.simulator.shape == (1, 4)
    assert len(setup.conditions) == 3


def test_simulator_alone_tells_the_shape_of_the_data():
    setup = set_up(PRIOR, line, GaussianNoise(0.1), FitInputs(inputs={"t": T}))
    assert setup.conditions.mask.shape == (1, 1, 4)
    assert setup.conditions.mask.all()
    assert setup.conditions.coords["t"].dtype == setup.conditions.x.dtype


def test_one_object_brings_errors_and_scalars():
    def shifted(theta, t, z):
        return line(theta, t) + z

    given = FitInputs(x_obs=np.zeros(4), x_err=0.2, inputs={"t": T, "z": 0.5})
    setup = set_up(PRIOR, shifted, GaussianNoise(), given)
    assert setup.conditions.scalars["z"].tolist() == [0.5]
    assert setup.conditions.x_err.tolist() == [[[0.2] * 4]]
    defaults = given.defaults()
    assert defaults["t"].tolist() == [0, 1, 2, 3]
    assert (defaults["x_err"], defaults["z"]) == (0.2, 0.5)


def test_simulations_that_cannot_be_used_are_left_out_and_counted(caplog):
    theta = np.array([[0.5, 0.0], [0.0, 0.0], [1.0, 1.0], [0.3, 2.0], [1.5, 0.0], [0.9, 0.0]])
    x = np.ones((6, 4))
    x[3, 1] = np.nan  # row 4 lies outside of the prior, rows 1 and 2 on its edges
    setup = set_up(PRIOR, None, GaussianNoise(0.1), FitInputs(theta=theta, x=x))
    assert setup.columns["theta"].tolist() == theta[[0, 1, 2, 5]].tolist()
    assert np.isfinite(setup.columns["z"]).all()
    assert setup.columns["x"].shape == (4, 1, 4)
    assert "2 of 6 simulations" in caplog.text
    with pytest.raises(ValueError, match="5 of 6 have not"):
        set_up(PRIOR, None, GaussianNoise(0.1), FitInputs(theta=theta[[0, 4, 4, 3, 4, 4]], x=x))


def test_stochastic_simulator_needs_a_noise_without_likelihood():
    def noisy(theta):
        return np.asarray(theta)[:, :1] + np.random.normal(size=(len(theta), 4))  # noqa: NPY002

    with pytest.raises(ValueError, match="gave two different ones"):
        set_up(PRIOR, noisy, GaussianNoise(0.1), FitInputs())
    free = CustomNoise(lambda model, obs, theta, rng: model)
    assert set_up(PRIOR, noisy, free, FitInputs()).simulator.stochastic


@pytest.mark.parametrize(("simulator", "given", "message"), [
    (flat, {"observations": Observations.from_arrays(np.ones((2, 4)), 1), "x_obs": [1.0] * 4},
     "observations or x_obs"),
    (flat, {"observations": Observations.from_arrays(np.ones((2, 4))), "x_err": 0.1},
     "x_err must be part of the observations"),
    (flat, {"observations": np.ones((2, 4))}, "observations must be Observations"),
    (flat, {"x_obs": [1.0] * 5, "x_err": 1.0}, r"one shape \(C, L\)"),
    (flat, {}, "size of the errors"),
    (None, {}, "neither"),
    (None, {"theta": np.zeros((3, 2))}, "given together"),
    (None, {"theta": np.zeros((3, 5)), "x": np.zeros((3, 2))}, "swap x and theta"),
    (None, {"theta": np.full((3, 2), 0.5), "x": np.zeros((4, 2))}, r"x must have shape \(3, L\)"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(simulator, given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        set_up(PRIOR, simulator, GaussianNoise(), FitInputs(**given))
