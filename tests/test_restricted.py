"""Laws of restricted simulations: bounded exact weights, better where posteriors lie, no bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import Observations
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.shared.restricted import SHARE, RestrictedLoss, Restriction

PRIOR = nbi.Prior({"a": norm(0, 1), "b": norm(0, 1)})  # z is theta
DESIGN = np.random.default_rng(1).normal(size=(2, 8))
SIGMA = 0.3
COV = np.linalg.inv(np.eye(2) + DESIGN @ DESIGN.T / SIGMA**2)
CENTRE = np.array([1.5, -1.0])
QUICK = {"n_epochs": 2, "truth_test": False, "progress": False}


def line(theta):
    return theta @ DESIGN


def make(**changes):
    given = {"noise": SIGMA, "featurizer": "mlp", "flow": {"n_blocks": 3, "hidden": 32, "n_mog": 1}}
    return nbi.Engine(line, PRIOR, **given | changes)


def objects(n, seed, centre=CENTRE, sd=0.1):
    rng = np.random.default_rng(seed)
    theta = centre + sd * rng.normal(size=(n, 2))
    return theta, line(theta) + SIGMA * rng.normal(size=(n, 8))


def means(x):
    return x @ DESIGN.T @ COV / SIGMA**2


def restriction(seed=0):
    rng = np.random.default_rng(seed)
    factors = torch.as_tensor(0.1 * np.stack([np.eye(2), [[1.0, 0.0], [0.7, 0.4]]]))[None]
    places = torch.as_tensor(rng.normal(size=(1, 2, 2)))
    return Restriction(
        StudentMixture(torch.tensor([[0.3, 0.7]]).double().log(), places, factors, 7)
    )


@pytest.fixture(scope="module")
def answers():
    """Return exact answers, as a first fit would have given, for objects of one place."""
    fitted = make().fit(600, **QUICK)
    return fitted.predict_many(Observations.from_arrays(objects(12, 0)[1]))


def test_weights_are_bounded_and_their_mean_gives_that_of_the_prior():
    found = restriction()
    z = found.draw(0, torch.arange(200_000))
    w = found.log_weights(z).exp()
    assert float(w.max()) <= 1 / SHARE * (1 + 1e-9)
    for f in (torch.ones(len(z)), z[:, 0], z[:, 0] * z[:, 1], z[:, 1].square(), z[:, 0].cos()):
        expected = {0: 1.0, 1: 0.0, 2: 0.0, 3: 1.0, 4: float(np.exp(-0.5))}
        value, error = float((w * f).mean()), float((w * f).std()) / len(z) ** 0.5
        assert min(abs(value - e) for e in expected.values()) < 5 * error


def test_a_row_is_drawn_by_its_number_alone():
    found, rows = restriction(), torch.arange(1000)
    whole = found.draw(3, rows)
    assert torch.equal(found.draw(3, rows[400:500]), whole[400:500])
    assert not torch.equal(found.draw(4, rows), whole)
    from_prior = (whole - restriction(1).draw(3, rows)).abs().sum(1) == 0  # same whatever mixture
    assert abs(float(from_prior.double().mean()) - SHARE) < 5 * (SHARE * (1 - SHARE) / 1000) ** 0.5


def test_most_simulations_lie_where_the_posteriors_do(answers):
    found = Restriction.of(answers, PRIOR, 0)
    z = found.draw(0, torch.arange(4000)).numpy()
    inside = (np.abs(z - CENTRE) < 1).all(1)
    assert inside.mean() > 0.75  # one prior draw in fourteen does
    assert float((found.log_weights(torch.as_tensor(z)) < 0).double().mean()) > 0.75


def test_the_stored_simulations_are_those_of_this_restriction(answers, tmp_path):
    engine = make(path=tmp_path)
    plain = engine.fit(200, **QUICK).model_
    stores = set(tmp_path.glob("*.h5"))
    once = engine.fit(200, restrict=answers, **QUICK).model_
    assert len(set(tmp_path.glob("*.h5")) - stores) == 1
    again = engine.fit(200, restrict=answers, **QUICK).model_
    assert len(set(tmp_path.glob("*.h5")) - stores) == 1
    state = [m.network.state_dict()["flow.mean"] for m in (plain, once, again)]
    assert torch.equal(state[1], state[2])
    assert not torch.equal(state[0], state[1])
    online = make().fit(200, restrict=answers, online=True, **QUICK).model_
    assert float((online.network.flow.mean - torch.as_tensor(CENTRE)).abs().max()) < 0.5


class Exact(torch.nn.Module):
    """The posterior itself, or one that is off, where a flow stands."""

    n_dims, dtype = 2, torch.float64

    def __init__(self, off=0.0, wide=1.0):
        super().__init__()
        self.off, self.cov = off, wide * torch.as_tensor(COV)

    def log_prob(self, z, features):
        centred = z - features[:, None] - self.off
        square = torch.einsum("bsi,ij,bsj->bs", centred, torch.linalg.inv(self.cov), centred)
        return -0.5 * square - 0.5 * torch.logdet(2 * torch.pi * self.cov)

    def sample(self, noise, features, choice):
        return features[:, None] + self.off + noise @ torch.linalg.cholesky(self.cov).T


def test_both_losses_are_least_for_the_posterior_under_the_prior():
    found = restriction()
    z = found.draw(0, torch.arange(40_000))
    rng = np.random.default_rng(0)
    x = line(z.numpy()) + SIGMA * rng.normal(size=(len(z), 8))
    features, good = torch.as_tensor(means(x)), torch.ones(len(z), dtype=torch.bool)
    loss = RestrictedLoss.of(found, torch.device("cpu"))
    sd = float(np.sqrt(COV[0, 0]))
    for training in (True, False):
        best = loss(Exact().train(training), z, features, good)
        assert bool(best.isfinite().all())
        for other in (Exact(0.5 * sd), Exact(-0.5 * sd), Exact(wide=1.8), Exact(wide=0.5)):
            other.train(training)
            if training:  # what data count is that of the posterior in both
                other.sample = Exact().sample
            rise = loss(other, z, features, good) - best
            assert float(rise.mean()) > 3 * float(rise.std()) / len(z) ** 0.5


@pytest.mark.statistics
def test_it_is_better_where_objects_lie_unbiased_and_answers_others(answers):
    fit = {"n_epochs": 40, "truth_test": False, "progress": False}
    plain = make(seed=5).fit(1500, **fit)
    near = make(seed=5).fit(1500, restrict=answers, **fit)
    theta, x = objects(1000, 7)
    gain = near.log_prob(theta, x) - plain.log_prob(theta, x)
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))
    draws = np.stack([near.sample(row, n_samples=2000) for row in x[:60]])
    found, wanted = draws.mean(1), means(x[:60])
    slope = ((wanted - wanted.mean(0)) * (found - found.mean(0))).sum(0) / 60 / wanted.var(0)
    # uncorrected, means are drawn to the mixture's middle (a slope of 0.79 here)
    assert np.abs(slope - 1).max() < 0.1
    assert np.abs(np.median(draws.std(1) / np.sqrt(COV.diagonal()), 0) - 1).max() < 0.2
    elsewhere = objects(10, 8, np.zeros(2), 1.0)[1]
    found = near.predict_many(Observations.from_arrays(elsewhere))
    assert found.certified.all()
    error = np.sqrt(COV.diagonal() / found.ess[:, None])
    assert (np.abs(found.mean - means(elsewhere)) < 5 * error).all()


WRONG = {
    "not answers": (lambda a: np.ones((3, 2)), TypeError, "restrict must be a .*Give what predict"),
    "summaries": (lambda a: replace(a, draws=None), ValueError, r"summaries only \(keep=0\)"),
    "other parameters": (
        lambda a: replace(a, parameters=replace(a.parameters, names=("a", "c"))),
        ValueError, r"of the parameters \('a', 'b'\), but is of \('a', 'c'\)",
    ),
    "all failed": (
        lambda a: replace(a, draws=(replace(a.draws[0], status=nbi.Status.FAILED),)),
        ValueError, "all 1 have FAILED",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_says_nothing_of_a_place_is_refused(case, answers):
    given, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        make().fit(100, restrict=given(answers), **QUICK)


def test_fits_of_one_object_and_of_given_simulations_refuse_it(answers):
    for given in ({"n_rounds": 2, "x_obs": np.ones(8), "n_sims": 100},
                  {"theta": np.ones((9, 2)), "x": np.ones((9, 8))}):  # fmt: skip
        with pytest.raises(ValueError, match="restrict must be None for a sequential fit"):
            make().fit(restrict=answers, **given)
    transform = nbi.Engine(line, lambda u: norm.ppf(u), labels=["a", "b"], noise=SIGMA)
    with pytest.raises(ValueError, match="restrict must be None for a prior_transform"):
        transform.fit(100, restrict=answers, **QUICK)
    one = make().fit(100, restrict=answers[0], **QUICK)
    assert float((one.model_.network.flow.mean - torch.as_tensor(CENTRE)).abs().max()) < 0.5
