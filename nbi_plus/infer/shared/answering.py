"""Answering: the posterior of what several objects have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.data.hashing import keys_of, together
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.amortized import Amortized
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.outcome import bounded
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.proposals.base import Conditioned, LatentProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.cross_fit import MixtureFamily, OnCircles
from nbi_plus.infer.shared.from_prior import from_prior
from nbi_plus.infer.shared.layout import SharedLayout
from nbi_plus.infer.shared.product import shared_proposal
from nbi_plus.infer.shared.target import MembersRange, SharedTarget
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.progress import progress as shown

ID = "shared"
_FEWEST, _MOST = 256, 2048  # draws of each object that its normal is made of
_N_MEMBERS = 8  # posteriors of objects, the narrowest, that joint draws come from


def shared_posterior(
    amortized: Amortized, observations: Observations, shared: Sequence[str] | None,
    n_samples: int, seed: int,
) -> Posterior:  # fmt: skip
    """Return the posterior of the parameters behind N objects.

    Parameters
    ----------
    amortized : Amortized
    observations : Observations
        As the network knows them.
    shared : sequence of str, or None
        The parameters that all objects have in common; None: all.
    n_samples, seed : int
    """
    reason = amortized.why_not(observations)
    if reason:
        raise ValueError(
            f"predict_shared must weigh its draws with the likelihood of all objects, but {reason}."
            " Give the engine a simulator and a noise that has a log_likelihood; or learn one of "
            "single trials with RatioEngine or LikelihoodEngine, whose predict takes all trials."
        )
    amortized.model.check_grid(observations)
    layout = SharedLayout.of(amortized.prior, shared, observations.ids, amortized.device)
    if layout.is_whole:  # sums depend on their order, by rounding
        observations = observations[np.argsort(observations.hashes)]
    with preserved_random_state(), shown("answering", show=amortized.progress):
        objects, batch, features = amortized.see(observations)
        target = SharedTarget(amortized.target_of(batch), layout)
        layout.refuse_large(target.differentiable)
        _refuse_useless(objects)
        whole = _together(objects, amortized, features)
        network = Conditioned(amortized.proposal(0.0), features)
        first = _first(network, objects, layout, amortized.prior.periods, seed)
        asked = amortized.asked(n_samples, None, seed)
        request = _of_all(asked.request, layout)
        found = from_prior(target, whole, asked.ladder, request, first)[0]
    return _counted(found, len(observations))


def _of_all(request: verdict.Request, layout: SharedLayout) -> verdict.Request:
    """Return what is asked of all parameters together, of what is asked of those of one object."""
    if layout.is_whole or request.learned is None:
        return replace(request, prior=layout.prior)
    learned = MembersRange(request.learned, request.prior, layout)
    return replace(request, prior=layout.prior, learned=learned)


def _refuse_useless(objects: verdict.Objects) -> None:
    bad = np.flatnonzero(~objects.usable)
    if len(bad):
        raise ValueError(
            f"observations must be of objects that can be answered, but {len(bad)} cannot (first: "
            f"{objects.ids[bad[0]]}, {objects.refusals[bad[0]]}). Leave them out."
        )


def _together(objects: verdict.Objects, amortized: Amortized, features: Tensor) -> verdict.Objects:
    """Return what verdicts ask of all objects as one."""
    # unlike the training are those of which more lie far out than chance allows
    strange, p_value = amortized.model.judge_together(features)
    device = features.device
    return verdict.Objects(
        ids=np.array([ID]),
        keys=torch.as_tensor(keys_of(np.array([ID])), device=device),
        ood=torch.tensor([strange], device=device),
        p_value=torch.tensor([p_value], dtype=torch.float64, device=device),
        n_points=objects.n_points.sum(keepdims=True),
        n_masked=objects.n_masked.sum(keepdims=True),
        n_duplicates=objects.n_duplicates.sum(keepdims=True),
        refusals=np.array([""]),
        hashes=np.array([together(objects.hashes.tolist())]),
        strange=None if objects.strange is None else objects.strange.any()[None],
    )


def _first(
    network: Conditioned,
    objects: verdict.Objects,
    layout: SharedLayout,
    periods: tuple[float | None, ...],
    seed: int,
) -> LatentProposal:
    """Return where draws come from first: what the network says of each object, multiplied."""
    n, keys = len(objects.ids), objects.keys
    n_draws = min(max(launch.of(keys.device).batch_draws // n, _FEWEST), _MOST)
    z = bounded(network.draw(keys, n_draws, seed, "members"))
    members = None
    if layout.is_whole:
        narrow = z.std(1).log().sum(-1).argsort()[:_N_MEMBERS]
        pooled = z[narrow].flatten(0, 1)[None]
        equal = torch.full_like(pooled[..., 0], 1 / pooled.shape[1])
        family = OnCircles(MixtureFamily(), circular_columns(periods))
        members = family.fit(pooled, equal, keys[:1], seed, "members")
    return shared_proposal(z, layout, periods, members)


def _counted(found: Posterior, n: int) -> Posterior:
    """Return the answer with a report that counts simulations, of which each draw took n."""
    rungs = tuple(
        replace(r, n_calls=n * r.n_calls, n_gradients=n * r.n_gradients, n_apart=n * r.n_apart)
        for r in found.rungs
    )
    return replace(found, rungs=rungs)
