"""Losses: what the training of a network minimises, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.learn.flows import Flow

Loss = Callable[[Flow, Tensor, Tensor, Tensor], Tensor]


def nll(flow: Flow, z: Tensor, features: Tensor, good: Tensor) -> Tensor:  # noqa: ARG001
    """Return -log q(z | features) of each row.

    Its optimum is the posterior under the density that the parameters were drawn from: with draws
    of a proposal it is likelihood times proposal.

    Parameters
    ----------
    flow : Flow
    z : Tensor, shape (n, D)
    features : Tensor, shape (n, F)
    good : Tensor of bool, shape (n,)
        Rows that count; those that do not may have any loss.

    Returns
    -------
    Tensor, shape (n,)
    """
    return -flow.log_prob(z[:, None], features)[:, 0]


@dataclass(frozen=True)
class AtomicLoss:
    r"""The atomic loss of automatic posterior transformation (Greenberg et al. 2019).

    Which of several parameters made the data? For each row the candidates, or atoms, are its own
    parameters and those of the rows after it in the batch, which is in random order:

    .. math:: -\log \frac{q(z_0 \mid x_0) / p(z_0)}{\sum_k q(z_k \mid x_0) / p(z_k)}

    with the standard normal prior :math:`p` of the latent space. Its optimum is the posterior under
    the prior wherever the parameters were drawn from. A batch of B rows costs B times ``n_atoms``
    densities of the flow.

    Attributes
    ----------
    n_atoms : int
        No more than there are rows are used.
    """

    n_atoms: int = 10

    def __post_init__(self) -> None:
        if not self.n_atoms >= 2:
            raise ValueError(f"n_atoms must be at least 2, but is {self.n_atoms!r}.")

    def __call__(self, flow: Flow, z: Tensor, features: Tensor, good: Tensor) -> Tensor:
        """Return the loss of each row; see `nll` for the shapes."""
        n = len(z)
        steps = torch.arange(min(self.n_atoms, n), device=z.device)
        atoms = (torch.arange(n, device=z.device)[:, None] + steps) % n
        candidates = z[atoms]
        log_prior = -0.5 * candidates.square().sum(-1)
        ratio = flow.log_prob(candidates, features) - log_prior
        # a row that does not count is no atom either, except of itself
        ratio = torch.where(good[atoms] | (steps == 0), ratio, -torch.inf)
        return ratio.logsumexp(1) - ratio[:, 0]
