"""Laws of the truth test: right networks pass, networks that miss a place do not."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import identity, needle_noise
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus.infer.ladder.peak_masses import explained
from nbi_plus.infer.samplers.peaks import Peaks
from nbi_plus.problem.setup import Problem
from nbi_plus.trust.truths import TruthTest, TruthTrial, truth_test


def fitted(noise, n_dim=2, ladder=None, **options):
    prior = {f"p{i}": norm(0, 1) for i in range(n_dim)}
    engine = nbi.Engine(identity, prior, noise=noise, featurizer="gru", seed=1, ladder=ladder)
    x = np.zeros((4, n_dim))
    objects = nbi.Observations.from_arrays(x, *(() if noise is not None else (0.5 + x,)))
    return engine.fit(n_sims=1000, n_epochs=8, observations=objects, perturb=False, **options)


@pytest.fixture(scope="module")
def honest():
    return fitted(0.5, truth_test=100)


@pytest.fixture(scope="module")
def missing():
    return fitted(needle_noise(), n_dim=3, truth_test=200)


def test_a_right_network_passes(honest):
    found = honest.truth_test_
    assert found.n_certified > 50
    assert found.n_above <= found.expected + 4 * np.sqrt(found.expected)
    assert not found.failed


def test_a_network_that_misses_a_place_fails_and_says_what_to_do(missing, caplog):
    found = missing.truth_test_
    assert found.failed
    assert found.n_above > 1
    assert found.expected < 1
    assert found.n_looked == found.n_above
    assert not found.blind
    with caplog.at_level(logging.WARNING, "nbi_plus"):
        fitted(needle_noise(), n_dim=3, truth_test=60)
    assert sum("places that the network does not propose" in m for m in caplog.messages) == 1


def test_answers_of_a_doubted_network_need_an_audit_to_be_trusted(missing):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(12, 3)) + 0.5 * rng.normal(size=(12, 3))
    objects = nbi.Observations.from_arrays(x)
    missing.ladder = nbi.Ladder(audit=None)
    alone = missing.predict_many(objects)
    assert alone.certified.any()
    for p in alone:
        assert (nbi.Flag.UNCALIBRATED in p.flags) == p.certified
        assert not p.trusted
    missing.ladder = None
    looked = missing.predict_many(objects)
    assert not any(nbi.Flag.UNCALIBRATED in p.flags for p in looked)
    assert sum(p.trusted for p in looked) >= 10


def test_a_dear_simulator_is_not_called_for_a_test_that_is_too_long():
    calls = []

    def slow(theta):
        calls.append(len(theta))
        time.sleep(1e-3 * len(theta))
        return theta

    for truths in (None, False):
        engine = nbi.Engine(slow, {"a": norm(0, 1)}, noise=0.5, seed=1)
        engine.fit(n_sims=300, n_epochs=2, perturb=False, truth_test=truths)
        assert engine.truth_test_ is None
        calls.append(0)
    asked = np.split(calls, np.flatnonzero(np.array(calls) == 0))
    assert asked[0].sum() == asked[1].sum()


def trial_of(engine, seed):
    own = engine.fitted_
    problem = Problem(own.prior, own.simulator, own.noise, own.model.conditions, None)
    return TruthTrial(problem, own.model, nbi.Ladder(), torch.device("cpu"), seed)


def test_suspects_are_asked_where_time_is_short():
    """Of a hundred truths some three are missed: eight at random hardly meet one, suspects do."""
    engine = fitted(needle_noise(), n_dim=3, truth_test=False)
    tests = [trial_of(engine, seed).run(200, seconds=0.05) for seed in range(3)]
    assert all(test.failed for test in tests)
    assert all(test.n_certified > 30 for test in tests)


def test_of_a_right_network_nobody_is_suspect(honest):
    tests = [trial_of(honest, seed).run(200, seconds=0.05) for seed in range(3)]
    assert not any(test.failed for test in tests)
    assert all(0 < test.n_certified < 30 and test.doubts is None for test in tests)


def test_nothing_is_trusted_where_audits_find_no_missed_truth_either():
    """A needle 5 times narrower: hardly a scout in a million stands at its foot."""
    blind = fitted(needle_noise(width=0.004), n_dim=3, truth_test=120)
    found = blind.truth_test_
    assert found.failed
    assert found.blind
    assert 0 < found.n_unseen <= found.n_looked == found.n_above
    assert f"in {found.n_looked - found.n_unseen} of {found.n_looked} of these" in str(found)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 3)) + 0.5 * rng.normal(size=(6, 3))
    posteriors = blind.predict_many(nbi.Observations.from_arrays(x))
    assert posteriors.certified.any()
    for p in posteriors:
        assert (nbi.Flag.UNCALIBRATED in p.flags) == p.certified
        assert not p.trusted


@pytest.mark.parametrize("circles", [(), (0,)])
def test_a_place_is_explained_by_the_normal_of_a_peak_that_is_as_high_there(circles):
    """On a circle, by that of a peak beyond the seam, too."""
    u = torch.tensor([0.999, 0.5], dtype=torch.float64)  # of the circle, from 0 to 1
    peaks = Peaks.none(2, 3, torch.zeros(1, 1, 2, dtype=torch.float64))  # room for three
    place = torch.stack([torch.special.ndtri(u), torch.zeros_like(u)], 1)
    slope = torch.exp(-0.5 * place[:, 0] ** 2) / math.sqrt(2 * math.pi)
    peaks.z[:, 0], peaks.log_prob[:, 0] = place, torch.tensor([-3.0, 1.0])
    peaks.factor[:, 0, 0, 0] = 0.01 / slope  # a hundredth of the circle wide
    peaks.factor[:, 0, 1, 1] = 0.5
    over = torch.special.ndtri(torch.tensor([0.009, 0.51], dtype=torch.float64))
    z = torch.stack([over, torch.tensor([0.0, 0.5], dtype=torch.float64)], 1)[:, None]
    height = peaks.log_prob[:, :1] - torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    height += 0.5 * (place[:, :1] ** 2 - z[:, 0, :1] ** 2)  # as dense on the circle
    found = explained(peaks, z, height, circles)[:, 0].tolist()
    assert found == [bool(circles), True]  # without a circle one place is far away
    assert not explained(peaks, z, height + 5.0, circles).any()  # a needle on a broad peak
    nothing = Peaks.none(2, 3, z)
    assert not explained(nothing, z, height, circles).any()


@pytest.mark.parametrize(("n_scouts", "times"), [(4096, 16), (1024, 1)])
def test_where_more_scouts_find_what_few_do_not_doubted_answers_get_more(n_scouts, times, tmp_path):
    """Of so few scouts none stands at the foot of some needles, and sixteen times as few help."""
    ladder = nbi.Ladder(audit=nbi.PeakAudit(n_scouts=n_scouts))
    engine = fitted(needle_noise(), n_dim=3, ladder=ladder, truth_test=200)
    found = engine.truth_test_
    assert found.failed
    assert found.scouts == 16
    assert "with 16 times the scouts" in str(found)
    assert found.blind == (found.n_unseen > 0) == (times == 1)
    assert found.doubting(ladder).audit.n_scouts == times * n_scouts
    engine.save(tmp_path / "e.nbi")
    again = nbi.Engine.load(tmp_path / "e.nbi", simulator=identity, noise=needle_noise())
    assert again.truth_test_ == found


def test_the_test_is_saved_with_the_engine(missing, tmp_path):
    missing.save(tmp_path / "e.nbi")
    again = nbi.Engine.load(tmp_path / "e.nbi", simulator=identity, noise=needle_noise())
    assert again.truth_test_ == missing.truth_test_


def test_the_same_seed_gives_the_same_test(missing):
    again = fitted(needle_noise(), n_dim=3, truth_test=200)
    assert again.truth_test_ == missing.truth_test_


def test_it_can_be_left_out_and_is_refused_without_a_likelihood(honest):
    assert fitted(0.5, truth_test=False).truth_test_ is None
    blind = nbi.CustomNoise(needle_noise().augment)
    assert fitted(blind).truth_test_ is None
    with pytest.raises(ValueError, match="truth_test must have a likelihood"):
        fitted(blind, truth_test=True)
    with pytest.raises(ValueError, match="at least 1"):
        fitted(0.5, truth_test=0)


def test_none_runs_it_only_where_it_is_cheap():
    class Trial:
        problem = None

        def run(self, n, seconds):
            self.asked = n, seconds
            return TruthTest(n, 0, 0.1, 1.0)

    trial = Trial()
    trial.problem = type("Problem", (), {"simulator": type("S", (), {"stochastic": False})})
    truth_test(trial, None, has_likelihood=True, seconds=50.0)
    assert trial.asked == (200, 5.0)
    truth_test(trial, 30, has_likelihood=True, seconds=50.0)
    assert trial.asked == (30, np.inf)
    assert truth_test(trial, None, has_likelihood=False, seconds=50.0) is None


@pytest.mark.parametrize(("above", "failed"), [(0, False), (1, False), (3, True)])
def test_what_fails(above, failed):
    from scipy.stats import poisson

    p_value = float(poisson.sf(above - 1, 0.15)) if above else 1.0
    found = TruthTest(100, above, 0.15, p_value)
    assert found.failed == failed
    assert ("failed" in str(found)) == failed
    assert found.doubts == failed
    assert replace(found, n_certified=3, p_value=1.0).doubts is None
