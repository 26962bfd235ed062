"""Laws of the way to arviz: which draws a group holds."""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from nbi_plus import Posterior, Status
from nbi_plus.infer.posterior.posterior import Parameters

# arviz 0.17 says so of every group that its schema does not name
pytestmark = pytest.mark.filterwarnings("ignore:.*not defined in the InferenceData scheme")
C, N, D = 8, 50, 2


@pytest.fixture
def arviz():
    """Return arviz, whose import announces its next version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return pytest.importorskip("arviz", reason="arviz is not installed")


@pytest.fixture
def by_chains():
    """Return the answer of converged chains: equal weights, no evidence."""
    chains = np.random.default_rng(0).standard_normal((C, N, D))
    n, none = C * N, np.zeros(C * N)
    return Posterior(
        Parameters(("a", "b"), ("$a$", "$b$")), chains.reshape(-1, D), none, np.full(n, 1 / n),
        none, none, none, Status.HMC, ess=300.0, chains=chains,
    )  # fmt: skip


@pytest.fixture
def by_weights(by_chains):
    """Return the answer of weighted draws, with the chains that led to them."""
    draws = np.random.default_rng(1).standard_normal((900, D))
    none, weights = np.zeros(900), np.arange(900.0) / np.arange(900.0).sum()
    return replace(
        by_chains, samples=draws, weights=weights, log_weights=none, log_q=none, log_prior=none,
        log_likelihood=none, log_evidence=-3.0,
    )  # fmt: skip


def groups_of(data):
    """Return the names of the groups; they are a property from arviz 1 on."""
    names = data.groups() if callable(data.groups) else data.groups
    return {name.strip("/") for name in names} - {""}


def values(data, group, name):
    return np.asarray(data[group][name].transpose("chain", "draw"))


@pytest.mark.parametrize("status", [Status.HMC, Status.ENSEMBLE])
def test_chains_that_are_the_answer_are_the_posterior(arviz, by_chains, status):
    data = replace(by_chains, status=status).to_arviz()
    assert groups_of(data) == {"posterior"}
    for i, name in enumerate(by_chains.names):
        np.testing.assert_array_equal(values(data, "posterior", name), by_chains.chains[..., i])


@pytest.mark.parametrize("status", [Status.HMC, Status.REFINED, Status.UNCERTIFIED])
def test_weighted_answers_keep_their_chains_in_a_group_of_their_own(arviz, by_weights, status):
    data = replace(by_weights, status=status).to_arviz()
    assert groups_of(data) == {"posterior", "chains"}
    for i, name in enumerate(by_weights.names):
        np.testing.assert_array_equal(values(data, "chains", name), by_weights.chains[..., i])
        drawn = values(data, "posterior", name)
        assert drawn.shape == (1, 300)
        assert np.isin(drawn, by_weights.samples[:, i]).all()


def test_chains_that_are_not_the_answer_are_not_the_posterior(arviz, by_chains):
    data = replace(by_chains, status=Status.UNCERTIFIED).to_arviz()
    assert groups_of(data) == {"posterior", "chains"}


def test_answers_without_chains_have_one_group(arviz, by_weights):
    data = replace(by_weights, chains=None).to_arviz()
    assert groups_of(data) == {"posterior"}
    first, second = (by_weights.to_arviz() for _ in range(2))
    np.testing.assert_array_equal(values(first, "posterior", "a"), values(second, "posterior", "a"))


def test_draws_of_weighted_answers_have_their_moments(arviz, by_weights):
    data = replace(by_weights, ess=4000.0).to_arviz()
    mean = [values(data, "posterior", name).mean() for name in by_weights.names]
    np.testing.assert_allclose(mean, by_weights.mean(), atol=5e-3)


def test_without_arviz_the_error_says_how_to_get_it(by_chains, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r'to_arviz needs arviz\. .*"nbi-plus\[arviz\]"'):
        by_chains.to_arviz()
