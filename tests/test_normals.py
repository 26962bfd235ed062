"""Laws of mixtures of normals as networks: densities, widths, precision, fits, files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contracts import check_flow
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import FlowConfig
from nbi_plus.learn.heads.normals import MixtureDensity
from nbi_plus.problem.random import preserved_random_state, reseed_global_generators

N_CONTEXT = 3


def normals(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@torch.no_grad()
def make(n_dims, n_mog, strength=0.3):
    """Return a network as curved as a trained one, with a whitening that is no identity."""
    with preserved_random_state():
        reseed_global_generators(0)
        head = MixtureDensity(n_dims, N_CONTEXT, FlowConfig("mdn", hidden=16, n_mog=n_mog)).double()
    for i, p in enumerate(head.parameters()):
        p += strength * normals(*p.shape, seed=i)
    head.whiten(normals(500, n_dims, seed=3) @ normals(n_dims, n_dims, seed=4) + 2.0)
    return head.eval()


@pytest.mark.parametrize("n_mog", [1, 4])
@pytest.mark.parametrize("n_dims", [1, 2, 5])
def test_mixtures_keep_the_contract_of_flows(n_mog, n_dims):
    check_flow(make(n_dims, n_mog), normals(3, N_CONTEXT, seed=5))


@torch.no_grad()
def test_the_density_is_that_of_normals_with_full_covariances():
    head, context = make(3, 4), normals(2, N_CONTEXT, seed=5)
    log_share, mean, log_diag, factor = head._components(context)
    root = torch.linalg.inv(factor + log_diag.exp().diag_embed())
    cov = head.chol @ root @ root.mT @ head.chol.T
    places = head.coloured(mean)
    each = torch.distributions.MultivariateNormal(places, cov)
    whole = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_share), each
    )
    z = 2 * normals(100, 2, 3, seed=6) + 2
    expected = whole.log_prob(z).T
    torch.testing.assert_close(head.log_prob(z.transpose(0, 1), context), expected)
    assert float((cov - cov.diagonal(dim1=-2, dim2=-1).diag_embed()).abs().max()) > 0.1


@torch.no_grad()
def test_draws_choose_components_by_their_shares():
    head, context = make(2, 3), normals(2, N_CONTEXT, seed=5)
    noise, choice = (
        normals(2, 40_000, 2, seed=7),
        torch.rand((2, 40_000, 2), generator=torch.Generator().manual_seed(8), dtype=torch.float64),
    )
    z = head.sample(noise, context, choice)
    log_share, mean, _, _ = head._components(context)
    expected = (log_share.exp()[..., None] * head.coloured(mean)).sum(1)
    error = z.std(1) / math.sqrt(40_000)
    assert bool(((z.mean(1) - expected).abs() < 5 * error).all())


@torch.no_grad()
def test_single_precision_is_that_of_single_precision_and_exact_is_double():
    head, context = make(4, 4), normals(2, N_CONTEXT, seed=5)
    head.net.float()  # whitening stays
    z = head.sample(normals(2, 50, 4), context, torch.full((2, 50, 4), 0.3))
    assert z.dtype == torch.float64
    exact = head.exact()
    assert exact.dtype == torch.float64
    assert exact.log_prob(z, context).dtype == torch.float64
    off = head.log_prob(z, context).double() - exact.log_prob(z, context)
    assert float(off.abs().max()) < 1e-3


DESIGN = np.random.default_rng(1).normal(size=(2, 8))


def line(theta):
    return theta @ DESIGN


def engine(**changes):
    prior = {"a": norm(0, 1), "b": norm(0, 1)}
    given = {"noise": 0.5, "featurizer": "mlp", "flow": "mdn"} | changes
    return nbi.Engine(line, prior, **given)


def test_it_goes_where_flows_go(tmp_path):
    both = nbi.Ensemble({"a": engine(), "b": engine(flow="maf")}).fit(
        200, n_epochs=1, truth_test=False, progress=False
    )
    assert len(both.member_weights_) == 2

    def trial(theta):
        return theta + np.random.normal(size=theta.shape)  # noqa: NPY002

    own = nbi.LikelihoodEngine(trial, {"m": norm(0, 3)}, flow="mdn")
    own.fit(400, n_epochs=2, progress=False)
    assert isinstance(own.model_.network.flow.flow, MixtureDensity)
    own.save(tmp_path / "l.nbi")
    nbi.LikelihoodEngine.load(tmp_path / "l.nbi")


def test_unknown_names_list_all():
    with pytest.raises(ValueError, match=r"flow must be one of \['maf', 'nsf', 'mdn'.*\], but is"):
        FlowConfig("glow")
