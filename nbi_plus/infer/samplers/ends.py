"""Ends: places where a posterior goes on and the draws of a proposal do not.

The far end of a long bent ridge has no peak of its own, and no draw near it says that it is there.
But the ratio of the posterior to the proposal grows towards it, and uphill on that it is found.
"""

from __future__ import annotations

import math
from dataclasses import replace
from operator import is_

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import Blend, Conditioned, LatentProposal
from nbi_plus.infer.samplers import peaks
from nbi_plus.infer.samplers.gradients import LogProb
from nbi_plus.infer.samplers.peaks import Peaks


def find(
    log_prob: LogProb, proposal: LatentProposal, starts: Tensor, *, power: float, **options: object
) -> Peaks:
    """Return the places of b objects where log p - power log q peaks, with the heights of p.

    A small power leads to what is near and holds most mass, a large one to what is far.

    Parameters
    ----------
    log_prob : callable
        ``log_prob(z, index)``: z (b, C, D) of the objects ``index`` (b,) -> (b, C): log p.
    proposal : LatentProposal
        Of these objects: q.
    starts : Tensor, shape (b, S, D)
        Draws at the rim of what the proposal knows are the best.
    power : float
    **options
        As for `nbi_plus.infer.samplers.peaks.find`.
    """
    cheap = without_networks(proposal)

    def ratio(z: Tensor, index: Tensor) -> Tensor:
        return log_prob(z, index) - power * cheap.select(index).log_prob(z)

    found = peaks.find(ratio, starts, **options)
    every = torch.arange(len(starts), device=starts.device)
    height = log_prob(found.z.nan_to_num(nan=0.0), every)
    height = torch.where(found.found & height.isfinite(), height, -math.inf)
    return replace(found, log_prob=height, n_gradients=found.n_gradients + found.found.sum(1))


def without_networks(proposal: LatentProposal) -> LatentProposal:
    """Return a proposal without its networks, where it has both; else the very same one.

    Their gradients are most of the work. Places that they reach and the other parts do not are
    found for nothing: whether something is missing there only the whole proposal can say.
    """
    if not isinstance(proposal, Blend):
        return proposal
    each = zip(proposal.parts, proposal.shares, strict=True)
    kept = [(without_networks(q), share) for q, share in each if not isinstance(q, Conditioned)]
    parts = tuple(q for q, _ in kept)
    same = len(parts) == len(proposal.parts) and all(map(is_, parts, proposal.parts))
    return proposal if same or not parts else Blend(parts, tuple(share for _, share in kept))
