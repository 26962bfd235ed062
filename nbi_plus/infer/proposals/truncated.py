"""Truncated priors: the prior, where a network gives an object's posterior some density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import Conditioned, FlowProposal, PriorProposal
from nbi_plus.problem.random import keyed_uniform

_LEVEL = 1e-3  # share of the network's own draws that is cut off
_N_LEVEL = 10_000  # of its draws, that the level is learned from
_BATCH = 2**14
_MAX_BATCHES = 32  # of prior draws, before the network is asked for better ones
_CANDIDATES = 64  # network draws, of which one is resampled
_WIDE = 0.5  # share of them from a wider base, so that the edges are reached


class Truncated(NamedTuple):
    """Draws z (1, n, D) of a truncated prior; how large a share of the prior it is, if known."""

    z: Tensor
    acceptance: float | None


@dataclass(frozen=True)
class TruncatedPrior:
    """The prior, a standard normal, where log q(z | data) of one object exceeds a level.

    Truncated sequential neural posterior estimation (Deistler et al. 2022) draws from it: there
    every proposal is proportional to the prior, and a plain likelihood loss needs no correction.

    Attributes
    ----------
    network : Conditioned
        The posterior of one object, without a defensive part.
    level : float
    """

    network: Conditioned
    level: float

    @classmethod
    def of(cls, network: Conditioned, key: Tensor, seed: int, stage: str) -> TruncatedPrior:
        """Return the prior without the region where the network has its last 0.1 % of mass."""
        own = network.draw(key, _N_LEVEL, seed, f"{stage} level")
        return cls(network, float(network.log_prob(own).quantile(_LEVEL)))

    def contains(self, z: Tensor) -> Tensor:
        """Say which draws z (1, n, D) are inside, bool (1, n)."""
        return self.network.log_prob(z) > self.level

    def draw(self, key: Tensor, n: int, seed: int, stage: str) -> Truncated:
        """Return draws by rejection from the prior; where it is rare, resampled from the network.

        Parameters
        ----------
        key : Tensor of int64, shape (1,)
        n : int
        seed, stage
            Of the randomness.
        """
        prior = PriorProposal(self.network.proposal.exact.n_dims)
        accepted, found = [], 0
        for i in range(_MAX_BATCHES):
            z = prior.draw(key, _BATCH, seed, f"{stage} prior {i}")
            accepted.append(z[:, self.contains(z)[0]])
            found += accepted[-1].shape[1]
            if found >= n:
                return Truncated(torch.cat(accepted, 1)[:, :n], found / ((i + 1) * _BATCH))
            if found / (i + 1) * _MAX_BATCHES < n:  # at this rate it will not do
                break
        return Truncated(self._resampled(prior, key, n, seed, stage), None)

    def _resampled(
        self, prior: PriorProposal, key: Tensor, n: int, seed: int, stage: str
    ) -> Tensor:
        """Return ``n`` draws, each one of many candidates of its own, chosen by weight."""
        flow = self.network.proposal
        wide = Conditioned(FlowProposal(flow.flow, flow.exact, _WIDE), self.network.features)
        step, chosen = _BATCH // _CANDIDATES, []
        for start in range(0, n, step):
            size = min(step, n - start)
            name = f"{stage} candidates {start}"
            z = wide.draw(key, size * _CANDIDATES, seed, name)
            log_weights = prior.log_prob(z) - wide.log_prob(z)
            log_weights = log_weights.masked_fill(~self.contains(z), -torch.inf)
            uniform = keyed_uniform(seed, f"{name} choice", key, log_weights.shape[1:])
            score = log_weights - (-uniform.log()).log()  # Gumbel noise: its largest is a choice
            # both parts come in their order: groups take turns, so that each has its share of both
            pick = score.view(_CANDIDATES, size).argmax(0)
            group = torch.arange(size, device=z.device)
            chosen.append(z[0].view(_CANDIDATES, size, -1)[pick, group])
        return torch.cat(chosen)[None]
