"""Laws of every head that a network may end in: exact copies, fits, files."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from problems import LinearGaussian

import nbi_plus as nbi
from nbi_plus.learn.flows import density
from nbi_plus.learn.heads.classes import Classes, ClassesConfig
from nbi_plus.learn.heads.frozen import frozen

PROBLEM = LinearGaussian(2, 8, sigma=0.5)
KINDS = ("maf", "nsf", "mdn", "fm")
# what so many epochs come to, in nats; a posterior that knows nothing is 2 to 3 off
NEAR = {"mdn": 0.3, "fm": 0.5}


def head(kind):
    torch.manual_seed(0)
    made = Classes(2, 4, ClassesConfig(3)) if kind == "classes" else density(
        2, 4, nbi.FlowConfig(kind, n_blocks=2, hidden=16)
    )  # fmt: skip
    made.whiten(torch.randn(100, 2, dtype=torch.float64) * 3 + 1)
    return made


@pytest.mark.parametrize("kind", [*KINDS, "classes"])
def test_an_exact_copy_is_a_deep_one_in_double_precision(kind):
    made = head(kind)
    own, deep = frozen(made), copy.deepcopy(made).to(torch.float64)
    state, expected = own.state_dict(), deep.state_dict()
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        assert values.dtype == state[name].dtype
        assert torch.equal(values, state[name])
    assert not any(p.requires_grad for p in own.parameters())
    before = {k: v.clone() for k, v in state.items()}
    with torch.no_grad():  # nothing that is trained on reaches the copy
        for values in made.state_dict().values():
            values.zero_()
    assert all(torch.equal(before[k], v) for k, v in own.state_dict().items())


@pytest.fixture(scope="module", params=NEAR)
def fitted(request):
    engine = nbi.Engine(PROBLEM.simulator, PROBLEM.prior, noise=PROBLEM.sigma, featurizer="mlp",
                        flow=request.param)  # fmt: skip
    return engine.fit(2000, n_epochs=40, truth_test=False, progress=False)


def test_a_fit_is_close_to_the_posterior_and_its_answers_are_certified(fitted):
    theta, x = PROBLEM.observe(400, 2)
    mean, cov = PROBLEM.posterior(x)
    off = theta - mean
    square = np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off)
    exact = -0.5 * (square + np.linalg.slogdet(2 * np.pi * cov)[1])
    assert (exact - fitted.log_prob(theta, x)).mean() < NEAR[fitted.flow]
    found = fitted.predict_many(nbi.Observations.from_arrays(x[:5]), progress=False)
    assert found.certified.all()
    error = np.sqrt(cov.diagonal() / found.ess[:, None])
    assert (np.abs(found.mean - mean[:5]) < 5 * error).all()


def test_files_bring_it_back(fitted, tmp_path):
    fitted.save(tmp_path / "m.nbi")
    again = nbi.Engine.load(tmp_path / "m.nbi")
    theta, x = PROBLEM.observe(3, 5)
    np.testing.assert_array_equal(again.log_prob(theta, x), fitted.log_prob(theta, x))
    assert again.model_.network.flow.config.kind == fitted.flow
