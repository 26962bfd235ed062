"""Streams: draws of several proposals, weighted by the one mixture they all came from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.weights.clean import log_mixture
from nbi_plus.infer.weights.summary import effective_sample_size
from nbi_plus.problem.target import Evaluation

_COLUMNS = ("z", "log_prior", "log_likelihood", "failed")


@dataclass(frozen=True)
class Stream:
    r"""Draws of B objects from R proposals, each with its density under all of them.

    A draw's weight is its target over the deterministic mixture
    :math:`\sum_r (N_r / S)\, q_r` (Owen and Zhou 2000), where :math:`N_r` counts every draw made.

    Attributes
    ----------
    z : Tensor, shape (B, S, D)
        In the order of the proposals.
    log_prior, log_likelihood, failed : Tensor, shape (B, S)
        As `nbi_plus.problem.target.Evaluation`.
    log_q : Tensor, shape (R, B, S)
    proposals : tuple of LatentProposal
    counts : tuple of int
        Draws made from each.
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    failed: Tensor
    log_q: Tensor
    proposals: tuple[LatentProposal, ...]
    counts: tuple[int, ...]

    @classmethod
    def start(
        cls, proposal: LatentProposal, z: Tensor, found: Evaluation, log_q: Tensor | None = None
    ) -> Stream:
        """Return a stream of the draws of one proposal; ``log_q`` (B, S) if it is known already."""
        log_q = proposal.log_prob(z) if log_q is None else log_q
        return cls(z, found.log_prior, found.log_likelihood, found.failed, log_q[None],
                   (proposal,), (z.shape[1],))  # fmt: skip

    def add(self, proposal: LatentProposal, z: Tensor, found: Evaluation) -> Stream:
        """Return the stream with the draws of one more proposal."""
        own = proposal.log_prob(self.z)
        knows = replace(
            self, log_q=torch.cat([self.log_q, own[None]]), proposals=(*self.proposals, proposal),
            counts=(*self.counts, 0),
        )  # fmt: skip
        return knows.more(z, found)

    def more(self, z: Tensor, found: Evaluation) -> Stream:
        """Return the stream with more draws of its last proposal."""
        fresh = torch.stack([q.log_prob(z) for q in self.proposals])
        new = {"z": z, "log_prior": found.log_prior, "log_likelihood": found.log_likelihood,
               "failed": found.failed}  # fmt: skip
        return replace(
            self, **{k: torch.cat([getattr(self, k), new[k]], 1) for k in _COLUMNS},
            log_q=torch.cat([self.log_q, fresh], 2),
            counts=(*self.counts[:-1], self.counts[-1] + z.shape[1]),
        )  # fmt: skip

    def since(self, first: int) -> Stream:
        """Return the draws of the proposals from number ``first`` on, weighted among themselves."""
        skip = sum(self.counts[:first])
        kept = {k: getattr(self, k)[:, skip:] for k in _COLUMNS}
        return Stream(**kept, log_q=self.log_q[first:, :, skip:],
                      proposals=self.proposals[first:], counts=self.counts[first:])  # fmt: skip

    @property
    def log_mixture(self) -> Tensor:
        """The log-density of the mixture at every draw, shape (B, S)."""
        return log_mixture(self.log_q, self.counts)

    @property
    def log_weights(self) -> Tensor:
        """Raw log-weights (B, S) to learn from; what has no finite target counts for nothing."""
        value = self.log_likelihood + self.log_prior - self.log_mixture
        return torch.where(value.isfinite() & ~self.failed, value, -torch.inf)

    @property
    def efficiency(self) -> Tensor:
        """Effective share of the draws, shape (B,)."""
        return effective_sample_size(self.log_weights) / self.z.shape[1]

    @property
    def flat_log_weights(self) -> Tensor:
        """As `log_weights`, towards the square root of the target: wider, in its own shape."""
        log_weights = self.log_weights
        flat = log_weights - 0.5 * (self.log_likelihood + self.log_prior)
        return torch.where(log_weights > -torch.inf, flat, -torch.inf)

    def select(self, rows: Tensor) -> Stream:
        """Return the stream of some of the objects."""
        return replace(
            self,
            **{k: getattr(self, k)[rows] for k in _COLUMNS},
            log_q=self.log_q[:, rows],
            proposals=tuple(q.select(rows) for q in self.proposals),
        )


def take(found: Evaluation, draws: slice) -> Evaluation:
    """Return the evaluation of some of the draws."""
    return replace(
        found,
        log_prior=found.log_prior[:, draws],
        log_likelihood=found.log_likelihood[:, draws],
        failed=found.failed[:, draws],
    )
