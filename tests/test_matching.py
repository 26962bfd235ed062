"""Laws of continuous flows: divergences, densities against steps, fits, files, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import FlowConfig, Observations
from nbi_plus.learn.heads.matching import FlowMatching
from nbi_plus.problem.random import preserved_random_state, reseed_global_generators

N_CONTEXT = 3


def normals(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@torch.no_grad()
def make(n_dims, n_layers=2, strength=0.2):
    """Return a flow as curved as a trained one, with a whitening that is no identity."""
    with preserved_random_state():
        reseed_global_generators(0)
        head = FlowMatching(n_dims, N_CONTEXT, FlowConfig("fm", hidden=16, n_layers=n_layers))
    head = head.double()
    for i, p in enumerate(head.parameters()):
        p += strength * normals(*p.shape, seed=i)
    head.whiten(normals(500, n_dims, seed=3) @ normals(n_dims, n_dims, seed=4) + 2.0)
    return head.eval()


@pytest.mark.parametrize("n_dims", [1, 2, 5])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_the_divergence_is_the_trace_of_the_jacobian(n_dims, n_layers):
    field, context = make(n_dims, n_layers).velocity, normals(2, N_CONTEXT, seed=5)
    u, terms = normals(2, 3, n_dims, seed=6), field.terms(context)
    for time in (0.0, 0.3, 0.95):
        t = torch.full((1, 1, 1), time, dtype=torch.float64)
        velocity, divergence = field.with_divergence(u, t, terms)
        torch.testing.assert_close(velocity, field(u, t, terms))
        whole = torch.autograd.functional.jacobian(lambda v, t=t: field(v, t, terms).sum((0, 1)), u)
        trace = whole.diagonal(dim1=0, dim2=3).sum(-1)
        torch.testing.assert_close(divergence, trace)


@torch.no_grad()
def test_an_untrained_flow_is_the_normal_that_it_was_whitened_to():
    head, context = FlowMatching(2, N_CONTEXT, FlowConfig("fm")).double(), normals(1, N_CONTEXT)
    head.velocity.out.weight.zero_()
    head.velocity.context.weight.zero_()
    head.velocity.context.bias.zero_()
    z = normals(4000, 2, seed=3) @ normals(2, 2, seed=4) + 2.0
    head.whiten(z)
    cov = head.chol @ head.chol.T
    expected = torch.distributions.MultivariateNormal(head.mean, cov).log_prob(z[:50])
    found = head.exact().log_prob(z[None, :50], context)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_draws_have_the_density_that_is_claimed_as_far_as_steps_go():
    head, context = make(2).exact(), normals(2, N_CONTEXT, seed=5)
    noise = normals(2, 400, 2, seed=6)
    z, known = head.draw(2 * noise, context, None, (1.0, 2.0))
    later = head.log_probs(z, context, (1.0, 2.0))
    for one, other in zip(known, later, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
    errors = []
    for head.n_steps in (8, 16, 32):  # of fourth order: a sixteenth each time, here less
        z, (log_q,) = head.draw(noise, context, None, (1.0,))
        errors.append(float((log_q - head.log_prob(z, context)).abs().max()))
    assert errors[2] < errors[1] / 4 < errors[0] / 16
    narrow, wide = head.log_probs(z, context, (1.0, 2.0))
    back = (wide - narrow).exp()  # of draws from the narrow one
    assert abs(float(back.mean()) - 1) < 5 * float(back.std()) / math.sqrt(back.numel())


@torch.no_grad()
def test_the_density_integrates_to_one():
    head, context = make(1).exact(), normals(1, N_CONTEXT, seed=5)
    line = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    z = (head.mean + head.chol[0, 0] * line.sinh())[None, :, None]
    total = (head.log_prob(z, context)[0].exp() * line.cosh()).sum() * (line[1] - line[0])
    assert float(total * head.chol[0, 0]) == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_objects_and_draws_together_are_a_loop_over_them():
    head, context = make(3), normals(3, N_CONTEXT, seed=5)
    noise = normals(3, 4, 3, seed=6)
    z = head.sample(noise, context)
    log_q = head.log_prob(z, context)
    for b in range(3):
        one = head.log_prob(z[b : b + 1, 2:3], context[b : b + 1])
        torch.testing.assert_close(one[0, 0], log_q[b, 2], rtol=1e-9, atol=1e-9)


def test_the_held_out_loss_is_the_same_at_every_call_and_that_of_training_is_not():
    head, context = make(2), normals(50, N_CONTEXT, seed=5)
    z = normals(50, 2, seed=6)
    assert torch.equal(head.loss(z, context), head.loss(z, context))
    with preserved_random_state():
        head.train()
        assert not torch.equal(head.loss(z, context), head.loss(z, context))


DESIGN = np.random.default_rng(1).normal(size=(2, 8))


def engine(**changes):
    prior = {"a": norm(0, 1), "b": norm(0, 1)}
    given = {"noise": 0.5, "featurizer": "mlp", "flow": "fm"} | changes
    return nbi.Engine(lambda theta: theta @ DESIGN, prior, **given)


def test_what_trains_by_its_density_refuses_it():
    short = engine(flow="maf").fit(100, n_epochs=1, truth_test=False, progress=False)
    answer = short.predict_many(Observations.from_arrays(np.ones((1, 8))))
    with pytest.raises(ValueError, match="restrict must be None for flow 'fm'"):
        engine().fit(100, restrict=answer)
    with pytest.raises(ValueError, match="flow must not be 'fm' for method 'apt'"):
        engine().fit(50, x_obs=np.ones(8), n_rounds=2, method="apt", n_epochs=1)
    likelihood = nbi.LikelihoodEngine(
        lambda theta: theta + np.random.normal(size=theta.shape),  # noqa: NPY002
        {"m": norm(0, 3)}, flow="fm",
    )  # fmt: skip
    with pytest.raises(ValueError, match="'maf', 'nsf' or 'mdn' for LikelihoodEngine"):
        likelihood.fit(100, n_epochs=1)
