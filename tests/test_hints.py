"""Laws of hints: places that the user wants looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from astropy import units
from densities import Needle, Normal, context_of
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.infer.ladder import EnsembleRung, FlowRung, RefineRung
from nbi_plus.infer.ladder.earlier import HINTS
from nbi_plus.infer.ladder.hints import Look, hints_for, latent_hints
from nbi_plus.infer.ladder.ladder import climb, open_objects_of, reweight
from nbi_plus.infer.proposals.base import Draws
from nbi_plus.infer.proposals.mixture import around

PRIOR = nbi.Prior({"place": uniform(0, 1), "height": norm(0, 1)})
WIDTH = 1e-3
T = np.linspace(0, 1, 30)


def needle(theta, t):
    """A height, and a wave at two places that are too narrow for a network to find."""
    place, height = theta[:, :1], theta[:, 1:]
    near = torch.exp(-0.5 * ((place - 0.3) / WIDTH) ** 2)
    twin = torch.exp(-0.5 * ((place - 0.8) / WIDTH) ** 2)
    return height + (near + twin) * torch.sin(12 * t)


def survey(n=6):
    rng = np.random.default_rng(0)
    x = 1 + np.sin(12 * T) + 0.2 * rng.normal(size=(n, len(T)))
    return nbi.Observations.from_arrays(x, 0.2, t=T)


@pytest.fixture(scope="module")
def engine():
    ladder = nbi.Ladder(budget=nbi.Budget(calls=20_000, gradients=1))
    engine = nbi.Engine(needle, PRIOR, featurizer="gru", ladder=ladder)
    return engine.fit(n_sims=300, n_epochs=1, observations=survey())


def clone_of(engine, ladder):
    """Return the engine with another ladder."""
    other = nbi.Engine(needle, PRIOR, featurizer="gru", ladder=ladder)
    return other._keep(engine.fitted_)


def hints(observations):
    """Return both places for each object, one with a guess of the height."""
    return np.tile([[0.3, 1.1], [0.8, np.nan]], (len(observations), 1, 1))


def test_hints_find_what_no_network_sees(engine):
    found = engine.predict_many(survey(), modes=hints)
    assert found.certified.all()
    for posterior in found:
        draws = posterior.resample(2000, rng=0)
        share = (draws[:, 0] > 0.5).mean()  # the two places are exactly as good
        assert share == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(posterior.ess))
        near = np.where(draws[:, 0] > 0.5, 0.8, 0.3)
        assert np.abs(draws[:, 0] - near).max() < 10 * WIDTH
    blind = nbi.Ladder(rungs=(RefineRung(),), audit=None, budget=engine.ladder.budget)
    alone = clone_of(engine, blind).predict_many(survey())
    assert not any(np.isclose(p.resample(500, rng=0)[:, 0], 0.3, atol=5e-4).any()
                   and p.certified for p in alone)  # fmt: skip


def test_hints_are_the_same_for_one_object_as_for_many(engine):
    many = engine.predict_many(survey(), modes=hints(survey()))
    one = engine.predict(survey().x[0, 0], 0.2, t=T, modes=hints(survey())[0])
    error = np.hypot(*(p.std() / np.sqrt(p.ess) for p in (one, many[0])))
    np.testing.assert_array_less(np.abs(one.mean() - many[0].mean()), 5 * error)


def test_hints_go_to_the_latent_space_and_unknowns_stay_unknown():
    z = latent_hints(PRIOR, [[0.5, np.nan], [0.5, 1.0]])
    np.testing.assert_allclose(z, [[0.0, np.nan], [0.0, 1.0]], atol=1e-12)
    several = hints_for(lambda o: np.zeros((len(o), 3, 2)) + 0.5, survey(), PRIOR, "cpu")
    assert several.has_look.tolist() == [True] * 6
    assert several.look.draw(torch.arange(6), 5, 0, "look").shape == (6, 5, 2)


@dataclass(frozen=True)
class Network:
    """A network that knows the broad mode of a needle, and nothing of the narrow one."""

    proposal: Normal

    def draw(self, features, keys, n, seed, stage):
        z = self.proposal.draw(keys, n, seed, stage)
        return Draws(z, self.log_prob(z, features))

    def log_prob(self, z, features):  # noqa: ARG002
        return self.proposal.log_prob(z)

    def ends_inside(self, z, weights, ess):  # noqa: ARG002
        return None


def answered(target, modes, n=30):
    """Return the outcomes of ``n`` objects after the first rung, and at the end of the ladder."""
    network = Network(Normal.standard(1, target.n_dim).scaled(1.1 * target.broad))
    context, keys, features = (
        context_of(target, target.n_dim, n),
        torch.arange(n),
        torch.zeros(n, 1),
    )
    walkers = replace(EnsembleRung().sampler, n_walkers=0)
    ladder = nbi.Ladder(flow=FlowRung(n_rounds=0), ensemble=EnsembleRung(sampler=walkers))
    look = None if modes is None else around(modes)
    first = list(reweight(network, features, keys, context, ladder, look))
    groups = [open_objects_of(o, network, features[o.pool.index], keys[o.pool.index],
                               None if look is None else look.select(o.pool.index))
              for o in first]  # fmt: skip
    return first, [o for group in climb(groups, context, ladder) for o in group.answers()], context


@pytest.mark.parametrize("n_dim", [2, 3])
def test_a_hinted_mode_is_weighed_before_any_certificate(n_dim):
    """A needle beside a broad mode: the network's draws pass, and are wrong by its whole mass."""
    target = Needle(n_dim)
    first, _, context = answered(target, None)
    assert all(o.passed.all() for o in first)
    assert (context.meter.read(slice(None)).calls == 2048).all()  # who has no hints pays for none
    modes = torch.full((30, 1, n_dim), target.place).double()
    first, last, context = answered(target, modes)
    assert {o.rung for o in first} == {HINTS}
    names = [line[0].name for line in context.report.lines]
    assert names == [HINTS] * 30
    for outcome in (*first, *last):
        off = (target.mass(outcome.pool.z, outcome.summary.weights) - target.share).abs()
        assert (off[outcome.passed] < 0.05).all()
        assert (outcome.summary.log_evidence.abs()[outcome.passed] < 0.1).all()
    n_certified = sum(int(o.passed.sum()) for o in last)
    assert n_certified >= 25


def test_a_hint_that_misses_by_five_widths_certifies_nothing_wrong():
    target = Needle(2)
    modes = torch.full((12, 1, 2), target.place + 5 * target.narrow).double()
    for outcome in (o for part in answered(target, modes, 12)[:2] for o in part):
        off = (target.mass(outcome.pool.z, outcome.summary.weights) - target.share).abs()
        assert (off[outcome.passed] < 0.05).all()


def test_objects_without_a_place_to_look_at_are_answered_as_without_hints(engine):
    modes = np.full((6, 1, 2), np.nan)
    modes[2] = [0.3, 1.1]
    found = engine.predict_many(survey(), modes=modes)
    names = [rungs[0].name for rungs in found.rungs]
    assert names == ["reweight"] * 2 + ["hints"] + ["reweight"] * 3
    assert list(found.ids) == list(range(6))


@pytest.mark.parametrize(("modes", "message"), [
    (np.zeros((6, 2, 3)), r"modes must have shape \(M, 2\) for parameters"),
    (np.zeros(2), r"modes must have shape \(M, 2\)"),
    (np.full((5, 1, 2), 0.5), r"modes must hold places for each of the 6 objects"),
    (np.full((1, 2), 0.5), r"modes must hold places for each of the 6 objects"),
    (np.full((6, 1, 2), 1.5), "modes must lie inside the prior"),
])  # fmt: skip
def test_hints_of_the_wrong_shape_or_place_are_refused(engine, modes, message):
    with pytest.raises(ValueError, match=message):
        engine.predict_many(survey(), modes=modes)


# --- hints with a shape --------------------------------------------------------------------------


def test_a_shape_in_theta_is_that_shape_in_the_latent_space():
    """Normal priors: the latent space is theta itself, less its mean, over its sd."""
    prior = nbi.Prior({"a": norm(1, 2), "b": norm(0, 0.5)})
    cov = np.array([[0.04, 0.006], [0.006, 0.0025]])
    for given in (
        {"points": [[1.5, 0.1]], "cov": cov[None]},
        {"points": [[1.5, 0.1]], "std": [[0.2, 0.05]]},
        {"samples": np.random.default_rng(0).multivariate_normal([1.5, 0.1], cov, 4000)},
    ):
        look = Look.of(given, prior, torch.device("cpu"))
        z = look.proposal.draw(torch.arange(1), 4000, 0, "test")[0]
        near = z[: int(0.4 * len(z))] if "samples" not in given else z[:2800]
        sd = near.std(0)
        # of t with 7 degrees of freedom; the wider fifth comes later
        wanted = torch.tensor([0.1, 0.1]) * (7 / 5) ** 0.5
        if "samples" in given:
            assert (sd / 0.1 - 1).abs().max() < 0.4
        else:
            assert torch.allclose(sd.float(), wanted, rtol=0.1)
        assert torch.allclose(near.mean(0).float(), torch.tensor([0.25, 0.2]), atol=0.03)


def test_a_point_is_moved_uphill_before_anything_is_drawn(engine):
    """A published solution off by twenty widths, and by errors given too small."""
    modes = np.tile([[0.3 + 2 * WIDTH, 1.5]], (6, 1, 1))
    for given in (modes, {"points": modes, "std": np.full_like(modes, 0.1 * WIDTH)}):
        found = clone_of(engine, nbi.Ladder(rungs=(), audit=None)).predict_many(
            survey(), modes=given
        )
        near = [np.abs(p.resample(200, rng=0)[:, 0] - 0.3).max() < 10 * WIDTH for p in found]
        assert all(near)
        assert (found.n_gradients > 0).all()


def test_samples_of_one_object_are_hints_for_a_fit_in_rounds():
    rng = np.random.default_rng(1)
    x = needle(torch.tensor([[0.3, 1.1]]), torch.as_tensor(T)).numpy()[0] + 0.2 * rng.normal(
        size=30
    )
    chain = np.column_stack([rng.normal(0.3, WIDTH, 500), rng.normal(1.1, 0.05, 500)])
    one = nbi.Engine(needle, PRIOR, noise=0.2, featurizer="gru")
    one.fit(n_sims=300, n_rounds=8, x_obs=x, t=T, modes={"samples": chain}, n_epochs=2)
    assert "modes" in [row.phase for row in one.rounds_]
    assert abs(one.posterior_.mean()[0] - 0.3) < 5 * WIDTH


@pytest.mark.parametrize(("modes", "message"), [
    ({"points": np.full((6, 1, 2), 0.5), "sd": 1}, "dict of points"),
    ({"points": np.full((6, 1, 2), 0.5), "std": np.ones((6, 2, 2))}, "std of shape"),
    ({"points": np.full((6, 1, 2), 0.5), "std": -np.ones((6, 1, 2))}, "above 0"),
    ({"points": np.full((6, 1, 2), 0.5), "cov": -np.ones((6, 1, 2, 2))}, "positive definite"),
    ({"samples": np.full((6, 3, 2), 0.5)}, "at least 4"),
    ({"samples": np.full((6, 9, 2), 7.5)}, "inside the prior"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(engine, modes, message):
    with pytest.raises(ValueError, match=message):
        engine.predict_many(survey(), modes=modes)


def test_masked_coordinates_are_unknown_and_units_refused_at_every_door():
    """`fit` in rounds, `predict` and `predict_many` take the same hints for the same."""
    masked = np.ma.array([[0.3, 9.0]], mask=[[False, True]])
    plain = Look.of([[0.3, np.nan]], PRIOR, torch.device("cpu")).points
    assert torch.equal(Look.of(masked, PRIOR, torch.device("cpu")).points.isnan(), plain.isnan())
    one = nbi.Engine(needle, PRIOR, noise=0.2, featurizer="gru")
    x = needle(torch.tensor([[0.3, 1.1]]), torch.as_tensor(T)).numpy()[0]
    options = {"n_sims": 200, "n_rounds": 3, "x_obs": x, "t": T, "n_epochs": 1}
    found = [one.fit(**options, modes=m).rounds_[1].ess for m in (masked, [[0.3, np.nan]])]
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="bare numbers"):
        one.fit(**options, modes=[[0.3, 1.1]] * units.m)
