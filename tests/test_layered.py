"""Laws of the weighing of chains: evidence, weights of modes, and who is certified."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from densities import Banana, Bimodal, Normal, context_of, evaluation

from nbi_plus.infer.ladder import FlowRung, HmcRung, LayeredConfig, OpenObjects
from nbi_plus.infer.ladder.layered import weigh_chains
from nbi_plus.infer.posterior.outcome import Chains
from nbi_plus.infer.proposals.cross_fit import Pair

N = 16


def open_objects_from(proposal, density, n_draws=2048):
    """Return objects with draws of a proposal, and no outcome that certifies them."""
    keys = torch.arange(N)
    z = proposal.draw(keys, n_draws, 0, "first")
    pair = replace(Pair.start(proposal, z, evaluation(density, z)), n_shared=0)
    return OpenObjects(keys, keys, pair, (nobody_of(N),))


def nobody_of(n):
    return SimpleNamespace(passed=torch.zeros(n, dtype=torch.bool),
                           select=lambda rows: nobody_of(len(rows)))  # fmt: skip


def chains_of(z, *, converged=True):
    """Return draws (N, S, D) as 64 chains."""
    cut = z.unflatten(1, (64, -1))
    n, d = len(z), z.shape[-1]
    yes = torch.full((n,), converged)
    flat = torch.full((n, d), 1000.0).double()
    return Chains(cut, torch.ones_like(flat), flat, torch.full((n,), cut.shape[2]), ~yes, yes,
                  torch.zeros_like(yes))  # fmt: skip


def outcomes(groups):
    return [group.tried[-1] for group in groups]


def joined(groups, value):
    parts = [(group.index, value(group.tried[-1])) for group in groups]
    order = torch.cat([index for index, _ in parts]).argsort()
    return torch.cat([part for _, part in parts])[order]


def test_modes_get_their_weights_whatever_the_chains_say():
    """Chains put 60 % on the mode that holds 30 %."""
    target = Bimodal(n_dim=5, apart=0.5, sd=0.05, share=0.3)
    wrong = replace(target, share=0.6)
    z = wrong.draw(torch.arange(N), 3200, 1, "chains")
    context = context_of(target, 5)
    objects, chains = open_objects_from(wrong, target), chains_of(z, converged=False)
    groups = list(weigh_chains(objects, chains, context, LayeredConfig(), HmcRung()))
    passed = joined(groups, lambda o: o.passed)
    share = joined(groups, lambda o: (o.summary.weights * (o.pool.z[..., 0] < 0)).sum(1))
    log_z = joined(groups, lambda o: o.summary.log_evidence)
    efficiency = joined(groups, lambda o: o.summary.efficiency)
    assert passed.all()
    assert efficiency.median() >= 0.4
    assert (share - 0.3).abs().max() <= 0.03
    assert log_z.abs().max() <= 0.05


@pytest.mark.parametrize(("n_dim", "bend", "width"), [(2, 1.0, 0.2), (8, 0.3, 0.5)])
def test_evidence_of_bent_posteriors(n_dim, bend, width):
    target = Banana(bend, width, n_dim)
    z = target.draw(torch.arange(N), 3200, 1, "chains")
    context = context_of(target, n_dim)
    groups = list(weigh_chains(open_objects_from(target, target), chains_of(z), context,
                               LayeredConfig(), HmcRung()))  # fmt: skip
    weighted = [o for o in outcomes(groups) if o.rung == "hmc weights"]
    assert weighted
    error = torch.cat([o.summary.log_evidence for o in weighted])
    assert error.square().mean().sqrt() <= 0.04


def test_chains_answer_where_the_mixture_fails_and_disagreement_is_said():
    target = Normal.standard(N, 3)
    z = target.draw(torch.arange(N), 3200, 1, "chains") + torch.tensor([0.5, 0.0, 0.0])
    context = context_of(target, 3)
    groups = list(weigh_chains(open_objects_from(target, target), chains_of(z), context,
                               LayeredConfig(), HmcRung()))  # fmt: skip
    assert joined(groups, lambda o: o.passed).all()
    assert joined(groups, lambda o: o.chains.disagree).all()
    right = target.draw(torch.arange(N), 3200, 2, "chains")
    groups = list(weigh_chains(open_objects_from(target, target), chains_of(right), context,
                               LayeredConfig(), HmcRung()))  # fmt: skip
    assert not joined(groups, lambda o: o.chains.disagree).any()


@pytest.fixture(scope="module")
def bent():
    """Return a strong banana of four parameters after the rungs that may not settle it."""
    target = Banana(bend=1.0, width=0.2, n_dim=4)
    rough = Normal.standard(N, 4)
    rough = Normal(rough.mean, rough.sd * torch.tensor([1.2, 1.8, 1.2, 1.8]))
    context = context_of(target, 4)
    return target, context, list(HmcRung().run(open_objects_from(rough, target), context))


def test_a_strong_banana_is_no_success_of_chains(bent):
    target, _, groups = bent
    for outcome in outcomes(groups):
        if outcome.rung == "hmc":  # certified by chains alone
            z = outcome.pool.z
            assert (z.var(1) / target.variance - 1).abs().max() <= 0.15 + 4.5 * (2 / 1000) ** 0.5
        if bool(outcome.passed.any()) and outcome.rung == "hmc weights":
            w = outcome.summary.weights[..., None]
            mean = (w * outcome.pool.z).sum(1)
            variance = (w * (outcome.pool.z - mean[:, None]).square()).sum(1)
            error = 4.5 * (2 / outcome.summary.ess) ** 0.5
            off = (variance / target.variance - 1).abs().amax(1) - error
            assert (off[outcome.passed] <= 0.15).all()


@pytest.mark.statistics
def test_flows_do_not_certify_a_tail_that_they_left_out(bent):
    """Both b have a kurtosis of 15: what a flow misses of their tail, their variance misses."""
    target, context, groups = bent
    n_tried = 0
    for group in groups:
        if group.passed.all():
            continue
        left = group.where(~group.passed)
        for after in FlowRung().run(left.select(torch.arange(min(len(left), 4))), context):
            outcome = after.tried[-1]
            n_tried += len(outcome.grade)
            w = outcome.summary.weights[..., None]
            mean = (w * outcome.pool.z).sum(1)
            sd = (w * (outcome.pool.z - mean[:, None]).square()).sum(1).sqrt()
            off = (sd / target.variance.sqrt() - 1).abs().amax(1)
            assert (off[outcome.passed] <= 0.15).all()
            assert outcome.summary.log_evidence.abs().max() <= 0.15
    assert n_tried >= 4
