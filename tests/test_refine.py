"""Laws of the rung that adapts a proposal to each object that failed the gate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import LinearGaussian

import nbi_plus as nbi
from nbi_plus.infer.ladder import DensityConfig, FlowRung


@pytest.fixture(scope="module")
def problem():
    return LinearGaussian(3, 12, sigma=0.4)


@pytest.fixture(scope="module")
def poor(problem):
    """Return an engine that was trained too little to pass on its own."""
    engine = nbi.Engine(problem.simulator, problem.prior, noise=problem.sigma, featurizer="resnet")
    return engine.fit(n_sims=400, n_epochs=3)


@pytest.fixture(scope="module")
def objects(problem):
    return problem.observe(24, seed=5)[1]


@pytest.fixture(scope="module")
def refined(poor, objects):
    return poor.predict_many(nbi.Observations.from_arrays(objects))


def test_refined_posteriors_equal_closed_form(refined, problem, objects):
    adapted = np.array([s is nbi.Status.REFINED for s in refined.status])
    mean, cov = problem.posterior(objects)
    sd = np.sqrt(np.diag(cov))
    error = 1 / np.sqrt(refined.ess)[:, None]
    assert adapted.sum() >= 12
    assert refined.certified.all()
    assert (np.abs((refined.mean - mean) / sd) < 4.5 * error)[adapted].all()
    assert (np.abs(refined.std / sd - 1) < 4.5 * error / np.sqrt(2) + 0.01)[adapted].all()
    off = (refined.log_evidence - problem.log_evidence(objects)) / refined.log_evidence_err
    assert (np.abs(off) < 4.5)[adapted].all()


def test_escalating_can_be_left_out(poor, objects):
    ladder = nbi.Ladder(escalate="never")
    plain = nbi.Engine(**poor.get_params() | {"ladder": ladder})
    plain.fitted_ = poor.fitted_
    posteriors = plain.predict_many(nbi.Observations.from_arrays(objects))
    assert not posteriors.certified.all()
    assert nbi.Status.REFINED not in posteriors.status


def test_refining_depends_on_the_object_alone(poor, refined, objects):
    order = np.random.default_rng(0).permutation(len(objects))
    survey = nbi.Observations.from_arrays(objects)
    shuffled = poor.predict_many(survey[order])
    assert [shuffled.status[i] for i in np.argsort(order)] == list(refined.status)
    one = poor.predict_many(survey[3:4])
    assert one.status[0] is refined.status[3]
    # float32 features differ in the last digit with the batch, and fits amplify it
    assert np.abs(one.mean[0] - refined.mean[3]).max() < 4 * refined.std[3].max() / np.sqrt(400)
    assert np.abs(shuffled.log_evidence[np.argsort(order)] - refined.log_evidence).max() < 0.1


def test_every_object_leaves_once_with_its_draws(refined, objects):
    assert len(refined) == len(objects)
    assert list(refined.ids) == list(range(len(objects)))
    for posterior in refined:
        assert np.isfinite(posterior.samples[posterior.weights > 0]).all()
        assert posterior.weights.sum() == pytest.approx(1)
        rung = posterior.rungs[-1]
        assert rung.n_draws == len(posterior)
        assert rung.passed == posterior.certified


def test_hopeless_objects_end_uncertified(problem, poor):
    """A likelihood that no smooth density follows: a comb of needles."""
    needles = lambda theta: 40 * np.cos(200 * theta @ problem.design)  # noqa: E731
    engine = nbi.Engine(needles, problem.prior, noise=0.4, featurizer="resnet")
    engine.fit(n_sims=200, n_epochs=1)
    # what these cost is bounded, whatever the rungs would like to spend
    flow = FlowRung(n_rounds=1, density=DensityConfig(n_steps=100))
    engine.set_params(ladder=nbi.Ladder(budget=nbi.Budget(calls=20_000), flow=flow))
    posteriors = engine.predict_many(nbi.Observations.from_arrays(40 * np.ones((2, 12))))
    assert not posteriors.certified.any()
    assert set(posteriors.status) <= {nbi.Status.UNCERTIFIED, nbi.Status.FAILED}
    assert torch.isfinite(torch.as_tensor(posteriors.ess)).all()
