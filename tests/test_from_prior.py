"""The ladder from draws of the prior alone, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import LinearGaussian, Square

import nbi_plus as nbi
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.shared.from_prior import from_prior
from nbi_plus.problem.setup import FitInputs, set_up

PROBLEM = LinearGaussian(n_dim=2, n_points=8, sigma=0.3)


def target_and_objects(problem, x):
    observations = nbi.Observations.from_arrays(x)
    given = FitInputs(observations=observations)
    target = set_up(problem.prior, problem.simulator, nbi.GaussianNoise(problem.sigma), given)
    n = len(x)
    objects = verdict.Objects(
        ids=observations.ids, keys=torch.as_tensor(observations.keys),
        ood=torch.zeros(n, dtype=torch.bool), p_value=torch.full((n,), torch.nan),
        n_points=observations.n_points, n_masked=observations.n_masked,
        n_duplicates=observations.n_duplicates, refusals=np.full(n, ""),
        hashes=observations.hashes,
    )  # fmt: skip
    return target.target(1, None), objects


def answered(problem, x, seed=0, **options):
    target, objects = target_and_objects(problem, x)
    ladder = nbi.Ladder(**options)
    return from_prior(
        target, objects, ladder, verdict.Request(problem.prior, None, ladder.gate, seed)
    )


def test_answers_from_the_prior_are_the_exact_ones():
    _, x = PROBLEM.observe(12)
    found = answered(PROBLEM, x)
    mean, cov = PROBLEM.posterior(x)
    sd = np.sqrt(np.diag(cov))
    assert found.certified.all()
    errors = (found.mean - mean) / sd * np.sqrt(found.ess)[:, None]
    assert np.abs(errors).max() < 4.5
    np.testing.assert_allclose(found.std, np.tile(sd, (12, 1)), rtol=0.12)
    off = (found.log_evidence - PROBLEM.log_evidence(x)) / np.maximum(found.log_evidence_err, 1e-3)
    assert np.abs(off).max() < 5


def test_answers_from_the_prior_hold_both_twins():
    problem = Square()
    x = np.random.default_rng(0).normal(1.2**2, problem.sigma, problem.n_points)
    found = answered(problem, x[None])[0]
    size, spread, log_z = problem.moments(x)
    assert found.certified
    share = found.weights @ (found["a"] > 0)
    assert share == pytest.approx(0.5, abs=4 * 0.5 / found.ess**0.5)
    assert found.weights @ np.abs(found["a"]) == pytest.approx(
        size, abs=5 * spread / found.ess**0.5
    )
    assert found.log_evidence == pytest.approx(log_z, abs=5 * found.log_evidence_err + 1e-3)


def test_objects_beside_change_no_answer():
    _, x = PROBLEM.observe(3)
    together, alone = answered(PROBLEM, x), answered(PROBLEM, x[:1])
    np.testing.assert_allclose(together.mean[0], alone.mean[0], atol=1e-6)


def test_the_first_rung_is_the_prior_and_says_what_it_cost():
    _, x = PROBLEM.observe(1)
    lines = answered(PROBLEM, x, escalate="never").rungs[0]
    assert [line.name for line in lines] == ["prior"]
    assert lines[0].n_calls == 2048
