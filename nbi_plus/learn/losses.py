"""Losses: what the training of a network minimises, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.arguments import real, whole
from nbi_plus.learn.flows import Flow
from nbi_plus.learn.heads.matching import FlowMatching
from nbi_plus.learn.likelihood import Likelihood
from nbi_plus.learn.ratio import Ratio

_NEVER = -1e4  # a log-ratio
Loss = Callable[[Flow | Ratio | Likelihood, Tensor, Tensor, Tensor], Tensor]


def nll(
    flow: Flow | Likelihood, z: Tensor, features: Tensor, good: Tensor,  # noqa: ARG001
) -> Tensor:  # fmt: skip
    """Return -log q(z | features) of each row, or -log p(features | z) of a likelihood.

    Or what a continuous flow has in its place: see `FlowMatching.loss`.

    The optimum of a flow is the posterior under the density that the parameters were drawn from:
    with draws of a proposal it is likelihood times proposal.

    Parameters
    ----------
    flow : Flow or Likelihood
    z : Tensor, shape (n, D)
    features : Tensor, shape (n, F)
    good : Tensor of bool, shape (n,)
        Rows that count; those that do not may have any loss.

    Returns
    -------
    Tensor, shape (n,)
    """
    if isinstance(flow, FlowMatching):  # whose density is a way through all times
        return flow.loss(z, features)
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


@dataclass(frozen=True)
class ContrastLoss:
    r"""Contrastive ratio estimation, NRE-C (Miller et al. 2022, arXiv:2210.06170).

    Which of K parameters made the data, or none of them? With odds :math:`\gamma` that one did,

    .. math:: q(k \mid x) = \frac{\gamma\, r(x, z_k)}{K + \gamma \sum_i r(x, z_i)}, \qquad
              q(0 \mid x) = \frac{K}{K + \gamma \sum_i r(x, z_i)},

    the loss is :math:`-\gamma / (1 + \gamma)` times the mean :math:`\log q(k \mid x)` of sets
    that hold the parameters of x, less :math:`1 / (1 + \gamma)` times the mean
    :math:`\log q(0 \mid x)` of sets that do not. Its optimum is :math:`r = p(x \mid z) / p(x)`,
    of the right size, whatever K and :math:`\gamma`; K = 1 is binary classification,
    :math:`\gamma = \infty` the choice among K, which leaves a factor free that depends on x.

    The contrasts of a row are the parameters of the rows after it in the batch, which is in random
    order.

    Attributes
    ----------
    n_contrast : int
        K; no more than the other rows of a batch are used.
    gamma : float
    balance : float
        Weight of the square by which pairs that belong together and pairs that do not, as binary
        classification tells them apart, fail to add up to one (Delaunoy et al. 2022,
        arXiv:2208.13624): positive values, as their 100, make ratios cautious rather than bold.
    """

    n_contrast: int = 32
    gamma: float = 1.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        whole("n_contrast", self.n_contrast)
        if not real("gamma", self.gamma) > 0:
            raise ValueError(f"gamma must be positive, but is {self.gamma!r}.")
        if not 0 <= real("balance", self.balance) < math.inf:
            raise ValueError(f"balance must be finite and >= 0, but is {self.balance!r}.")

    def __call__(self, flow: Ratio, z: Tensor, features: Tensor, good: Tensor) -> Tensor:
        """Return the loss of each row; see `nll` for the shapes."""
        n = len(z)
        if n < 2:
            raise ValueError(f"batch_size must be at least 2 to compare rows, but is {n}.")
        k = min(self.n_contrast, n - 1)
        steps = torch.arange(k + 1, device=z.device)
        others = (torch.arange(n, device=z.device)[:, None] + steps) % n
        ratio = flow.of_next(z, features, k)
        # a row that does not count is no contrast either; infinities would have no gradient
        ratio = torch.where(good[others] | (steps == 0), ratio, _NEVER)
        loss = contrast(ratio[:, :k], ratio[:, 1:], self.gamma)
        if self.balance:
            belong = torch.sigmoid(ratio[:, 0])[good].mean()
            strange = torch.sigmoid(ratio[:, 1])[good].mean()
            loss = loss + self.balance * (belong + strange - 1).square()
        return loss


def contrast(joint: Tensor, apart: Tensor, gamma: float) -> Tensor:
    """Return the loss (n,) of log-ratios (n, K) of two sets of parameters for each row of data.

    Parameters
    ----------
    joint : Tensor, shape (n, K)
        The first of each row belongs to the data.
    apart : Tensor, shape (n, K)
        None does.
    gamma : float
        The odds; may be infinite.
    """
    if math.isinf(gamma):
        return joint.logsumexp(1) - joint[:, 0]
    log_k, log_gamma = math.log(joint.shape[1]), math.log(gamma)

    def log_all(ratio: Tensor) -> Tensor:
        one_did = log_gamma + ratio.logsumexp(1)
        return torch.logaddexp(one_did, torch.full_like(one_did, log_k))

    found = log_all(joint) - log_gamma - joint[:, 0]
    return (gamma * found + log_all(apart) - log_k) / (1 + gamma)
