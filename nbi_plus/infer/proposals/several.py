"""Several networks as one proposal: the mixture of their posteriors, and how far these differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import Draws, FlowProposal, probed
from nbi_plus.infer.weights.clean import log_mixture
from nbi_plus.learn.model import Trained

_GOLDEN = (math.sqrt(5) - 1) / 2
_N_COMPARED = 64  # draws of each member that tell how far it lies from the others
_CUT = 0.99  # the quantile of ordinary objects beyond which members disagree


@dataclass(frozen=True)
class MemberProposals:
    """The mixture of several networks' posteriors; as a proposal, what `FlowProposal` is.

    Attributes
    ----------
    members : tuple of FlowProposal
    shares : tuple of float
        Of the draws; their sum is one.
    widths : tuple of int
        How many of the features belong to each.
    """

    members: tuple[FlowProposal, ...]
    shares: tuple[float, ...]
    widths: tuple[int, ...]

    @torch.no_grad()
    def draw(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Draws:
        """Return n draws of each object and their density, of what they were really drawn from."""
        owner = owners(self.shares, n)
        z = self._placed(owner, features, keys, seed, stage)
        counts = torch.bincount(owner, minlength=len(self.members)).tolist()
        members = tuple(
            replace(member, share=round(member.share * count) / max(count, 1))
            for member, count in zip(self.members, counts, strict=True)
        )
        exact = replace(self, members=members)
        quick = replace(self, members=tuple(replace(m, exact=m.flow) for m in members))
        log_q = quick._mixed(z, features, counts)
        return Draws(z, probed(z, log_q, features, lambda *own: exact._mixed(*own, counts)))

    @torch.no_grad()
    def places(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return the draws z (B, n, D) of `draw` alone."""
        return self._placed(owners(self.shares, n), features, keys, seed, stage)

    def log_prob(self, z: Tensor, features: Tensor) -> Tensor:
        """Return the log-density (B, S) of draws z (B, S, D)."""
        return self._mixed(z, features, self.shares)

    def log_probs(self, z: Tensor, features: Tensor) -> Tensor:
        """Return the log-densities (M, B, S) of draws z (B, S, D) under each member."""
        each = zip(self.members, self._own(features), strict=True)
        return torch.stack([member.log_prob(z, own).to(torch.float64) for member, own in each])

    def ends_inside(self, z: Tensor, weights: Tensor, ess: Tensor) -> None:  # noqa: ARG002
        """Say nothing: these draws reach wherever their prior does."""

    @torch.no_grad()
    def divergence(self, features: Tensor, keys: Tensor) -> Tensor:
        r"""Return how far the members lie apart for each object, shape (B,), in nats.

        The mean over all pairs of members of :math:`\mathrm{KL}(q_i \Vert q_j)`, by draws of each
        that are the same whenever they are asked for.
        """
        n, total = len(self.members), torch.zeros(len(features), dtype=torch.float64,
                                                  device=features.device)  # fmt: skip
        for i, (member, own) in enumerate(zip(self.members, self._own(features), strict=True)):
            z = member.places(own, keys, _N_COMPARED, 0, f"divergence {i}")
            heights = self.log_probs(z, features)
            total += (heights[i] - heights).mean(2).sum(0) / (n * (n - 1))
        return total

    def _own(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return what belongs to each member of features (B, F)."""
        return features.split(self.widths, -1)

    def _placed(
        self, owner: Tensor, features: Tensor, keys: Tensor, seed: int, stage: str
    ) -> Tensor:
        """Return draws (B, n, D), each of the member ``owner`` (n,)."""
        z = None
        for i, (member, own) in enumerate(zip(self.members, self._own(features), strict=True)):
            rows = (owner == i).nonzero()[:, 0].to(features.device)
            if not len(rows):
                continue
            made = member.places(own, keys, len(rows), seed, f"{stage} member {i}")
            z = made.new_empty((len(keys), len(owner), made.shape[2])) if z is None else z
            z[:, rows] = made
        return z

    def _mixed(self, z: Tensor, features: Tensor, shares: Sequence[float]) -> Tensor:
        return log_mixture(self.log_probs(z, features), shares)


def owners(shares: Sequence[float], n: int) -> Tensor:
    """Return which member makes each of n draws, (n,): any part of them has each at its share.

    Examples
    --------
    >>> owners((0.75, 0.25), 8).tolist()
    [0, 0, 1, 0, 0, 0, 0, 1]
    """
    steps = (torch.arange(1, n + 1, dtype=torch.float64) * _GOLDEN) % 1.0
    edges = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    return torch.searchsorted(edges, steps, right=True)


def proposal_of(model: Trained, share: float, width: float) -> FlowProposal | MemberProposals:
    """Return the posterior of a network, or the mixture of several, with its defensive part."""
    flows = tuple(
        FlowProposal(network.flow, network.exact_flow(), share, width) for network in model.networks
    )
    return flows[0] if len(flows) == 1 else _together(model, flows)


def divergence(model: Trained, features: Tensor, keys: Tensor) -> Tensor:
    """Return how far the networks of a model lie apart: see `MemberProposals.divergence`."""
    plain = tuple(FlowProposal(n.flow, n.flow, 0.0, 1.0) for n in model.networks)  # near enough
    return _together(model, plain).divergence(features, keys)


def disagreeing(model: Trained, features: Tensor, keys: Tensor) -> Tensor | None:
    """Say where networks lie further apart than on most simulations; None where nobody knows."""
    if model.divergences is None:
        return None
    return divergence(model, features, keys) > torch.quantile(model.divergences, _CUT)


def _together(model: Trained, flows: tuple[FlowProposal, ...]) -> MemberProposals:
    return MemberProposals(flows, model.shares, tuple(n.n_features for n in model.networks))
