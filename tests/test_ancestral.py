"""Children for each draw of their parents, against closed forms."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus import launch

SIGMA, N_POINTS = 0.5, 6
PARENTS = nbi.Prior({"mu": norm(0, 1), "tau": uniform(0.5, 1.0)})


def child(theta, mu, tau):
    return (mu + tau * theta) * np.ones((1, N_POINTS))


def children(n, seed=1):
    rng = np.random.default_rng(seed)
    return 0.4 + 0.9 * rng.normal(size=(n, 1)) + SIGMA * rng.normal(size=(n, N_POINTS))


@pytest.fixture(scope="module")
def engine():
    mu, tau = PARENTS.sample(2000, 0).T
    bank = nbi.Observations.from_arrays(children(2000), scalars={"mu": mu, "tau": tau})
    engine = nbi.Engine(child, {"z": norm(0, 1)}, noise=SIGMA, featurizer="mlp")
    return engine.fit(1000, n_epochs=5, observations=bank)


def exact(x, mu, tau):
    """Return means (S, N) and sd (S, 1) of z for data (N, L) and parents (S,)."""
    precision = 1 + N_POINTS * (tau / SIGMA) ** 2
    mean = (x.mean(1) - mu[:, None]) * (N_POINTS * tau / SIGMA**2 / precision)[:, None]
    return mean, precision[:, None] ** -0.5


def test_weighed_children_are_those_of_their_parents(engine):
    x, (mu, tau) = children(4), PARENTS.sample(1000, 7).T
    given = {"mu": mu, "tau": tau}
    z = engine.sample(nbi.Observations.from_arrays(x), given=given, n_weighed=32)
    assert z.shape == (1000, 4, 1)
    mean, sd = exact(x, mu, tau)
    score = (z[..., 0] - mean) / sd  # standard normal, whatever the parents are
    assert np.abs(score.mean(0)).max() < 4 / np.sqrt(1000)
    np.testing.assert_allclose(score.std(0), 1, atol=4 / np.sqrt(2 * 1000))


def test_children_of_the_network_alone_know_their_parents(engine):
    x, one = children(3), np.ones(500)
    some = nbi.Observations.from_arrays(x)
    z = [engine.sample(some, given={"mu": mu * one, "tau": one}) for mu in (-1, 1)]
    # a parent that is higher by 2 leaves children that are lower by 2 n tau / (n tau^2 + sigma^2)
    np.testing.assert_allclose((z[0] - z[1]).mean((0, 2)), 1.92, rtol=0.4)


def test_each_child_may_have_parents_of_its_own(engine):
    x, one = children(2), np.full(400, 0.9)
    mu = np.stack([np.full(400, -1.0), np.full(400, 1.0)], 1)
    z = engine.sample(nbi.Observations.from_arrays(x), given={"mu": mu, "tau": one})
    for i in range(2):
        own = nbi.Observations.from_arrays(x[i : i + 1], ids=[i])
        alone = engine.sample(own, given={"mu": mu[:, i], "tau": one})
        np.testing.assert_allclose(z[:, i], alone[:, 0], atol=1e-5)


def test_pieces_change_no_draw(engine, monkeypatch):
    given = dict(zip(("mu", "tau"), PARENTS.sample(50, 2).T, strict=True))
    some = nbi.Observations.from_arrays(children(3))
    whole = engine.sample(some, given=given)
    small = {"cpu": launch.KINDS["cpu"].__class__(**{**vars(launch.KINDS["cpu"]),
                                                     "encoded_points": 40})}  # fmt: skip
    monkeypatch.setattr(launch, "KINDS", small)
    np.testing.assert_allclose(engine.sample(some, given=given), whole, atol=1e-5)


def test_a_posterior_is_resampled_and_one_object_has_no_axis(engine):
    x = children(1)
    parents = nbi.Engine(
        lambda theta: theta @ np.ones((2, 3)), PARENTS, noise=0.5, featurizer="mlp"
    ).fit(300, n_epochs=1).predict(np.ones(3), n_samples=500)  # fmt: skip
    z = engine.sample(x[0], n_samples=70, given=parents, seed=4)
    assert z.shape == (70, 1)
    given = dict(zip(("mu", "tau"), parents.resample(70, 4).T, strict=True))
    np.testing.assert_array_equal(engine.sample(x[0], given=given, seed=4), z)


def test_a_posterior_keeps_its_units():
    """Parents in kilometres for children who know metres are those in metres."""
    mu = np.random.default_rng(0).normal(0, 1000.0, 600)
    x = (mu[:, None] + 500.0 * np.random.default_rng(1).normal(size=(600, N_POINTS))) * u.m
    bank = nbi.Observations.from_arrays(x, scalars={"mu": mu * u.m})
    engine = nbi.Engine(lambda theta, mu: (mu + theta) * np.ones((1, N_POINTS)),
                        {"z": norm(0, 300.0)}, noise=500.0, featurizer="mlp")  # fmt: skip
    engine.fit(300, n_epochs=1, observations=bank)
    prior = nbi.Prior({"mu": norm(0, 1)}, units={"mu": "km"})
    parents = nbi.Engine(lambda theta: theta @ np.ones((1, 3)), prior, noise=0.5, featurizer="mlp")
    parents = parents.fit(300, n_epochs=1).predict(np.ones(3), n_samples=500)
    z = engine.sample(bank[:2], n_samples=40, given=parents, seed=4)
    given = {"mu": parents.resample(40, 4)[:, 0] * u.km}
    np.testing.assert_allclose(engine.sample(bank[:2], given=given, seed=4), z)


def test_masks_are_of_the_observations_and_nothing_is_asked_of_nobody(engine):
    some, ten = nbi.Observations.from_arrays(children(3)), np.ones(10)
    given = {"mu": ten, "tau": ten}
    for mask in ({"mask": np.ones(N_POINTS, bool)}, {"bad": np.zeros(N_POINTS, bool)}):
        with pytest.raises(ValueError, match="must be part of the Observations"):
            engine.sample(some[:1], given=given, **mask)
    with pytest.raises(ValueError, match="n_weighed must be 1 without given, but is 4"):
        engine.sample(children(1)[0], n_weighed=4)
    with pytest.raises(ValueError, match="at least one object"):
        engine.sample(some[:0], given=given)


def test_what_is_not_given_rightly_is_refused(engine):
    some, ten = nbi.Observations.from_arrays(children(3)), np.ones(10)
    for given, told in [
        ({"mu": ten, "sigma": ten}, r"must name scalars .* \['mu', 'tau'\], but has"),
        ({"mu": ten, "tau": ten[:4]}, "as many draws of each scalar, but has {'mu': 10, 'tau': 4}"),
        ({"mu": ten, "tau": np.ones((10, 2))}, r"of shape \(S,\) for all objects or \(S, 3\)"),
        ({"mu": ten, "tau": np.full(10, np.nan)}, "10 not finite"),
        ({"mu": ten}, "tau must be given for each object"),
    ]:
        with pytest.raises(ValueError, match=told):
            engine.sample(some, given=given)
    alone = nbi.Engine()._keep(replace(engine.fitted_, simulator=None))
    with pytest.raises(ValueError, match="n_weighed must be 1, for no simulator was given"):
        alone.sample(some, given={"mu": ten, "tau": ten}, n_weighed=4)
    with pytest.raises(TypeError, match="must be a Posterior, a mapping of arrays or a table"):
        engine.sample(some, given=3.0)


def hierarchy(**options):
    """Return how far the example is from the joint run, and its widths over that of this."""
    path = Path(__file__).parents[1] / "examples" / "hierarchy.py"
    return runpy.run_path(str(path))["main"](**options)


def test_a_small_hierarchy_is_that_of_a_joint_run():
    off, ratio = hierarchy(n=10, n_sims=400, n_epochs=3, n_samples=1000, n_kept=100)
    assert np.abs(off).max() < 0.25
    assert 0.8 < ratio.min() < ratio.max() < 1.25


@pytest.mark.statistics
def test_a_hierarchy_of_forty_is_that_of_a_joint_run():
    off, ratio = hierarchy()
    assert np.abs(off).max() < 0.15
    assert 0.9 < ratio.min() < ratio.max() < 1.1
