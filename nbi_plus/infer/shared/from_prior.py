"""From the prior: answers of the ladder for objects that no network knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from nbi_plus import launch
from nbi_plus.infer.ladder.audit import AUDIT_TIMES
from nbi_plus.infer.ladder.earlier import Earlier
from nbi_plus.infer.ladder.escalation import Group, climbed, in_order
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.certificate import fresh_outcome
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.proposals.base import LatentProposal, PriorProposal
from nbi_plus.infer.proposals.cross_fit import Pair
from nbi_plus.infer.weights.summary import gate_of
from nbi_plus.problem.target import LatentTarget

_PRIOR, _FIRST = "prior", "product"


def from_prior(
    target: LatentTarget, objects: verdict.Objects, ladder: Ladder, request: verdict.Request,
    first: LatentProposal | None = None,
) -> Posteriors:  # fmt: skip
    """Return the posteriors of all N objects of a target.

    The first rung weighs draws of the prior, or of the proposal ``first``; the others go on from
    there.
    """
    n = len(objects.ids)
    accounts = Earlier.nothing(n, target.data.x.device).accounts(ladder.gate)
    kept_back = 0.0 if ladder.audit is None else AUDIT_TIMES
    context = RungContext(
        target, *accounts, ladder.gate, ladder.budget, request.seed, n_draws=ladder.n_draws,
        kept_back=kept_back,
    )  # fmt: skip
    features = target.data.x.new_empty(n, 0)
    group = Group(objects, np.arange(n), features, context)
    at_once = max(1, launch.of(features.device).batch_draws // ladder.n_draws)
    waiting = [_opened(i, group, ladder, first) for i in torch.arange(n).split(at_once)]
    return in_order(climbed(waiting, group, ladder, request), n)


@torch.no_grad()
def _opened(
    index: torch.Tensor, group: Group, ladder: Ladder, first: LatentProposal | None
) -> OpenObjects:
    """Return some objects after the first rung."""
    context = group.context
    index = index.to(group.features.device)
    keys = group.objects.keys[index]
    with context.meter.timed(index):
        rung, family = (_PRIOR, "network") if first is None else (_FIRST, "mixture")
        own = PriorProposal(context.target.prior.n_dim) if first is None else first.select(index)
        z = own.draw(keys, ladder.n_draws, context.seed, context.stage(rung))
        found = context.evaluate(z, index)
        outcome = fresh_outcome(
            own, z, found, gate_of(family, context.gate), circles=context.circles,
            seed=context.seed,
        )  # fmt: skip
    pool = replace(outcome.pool, index=index)
    outcome = replace(outcome, rung=rung, pool=pool, status=Status.REWEIGHTED)
    context.report.note(outcome)
    # nothing was fitted to these draws: they may count for the evidence
    pair = replace(Pair.start(own, z, found, pool.log_q), n_shared=0)
    return OpenObjects(index, keys, pair, (outcome,))
