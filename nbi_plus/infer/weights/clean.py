"""From log-densities to raw log-weights: proposals are mixed, special values judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

_NAN_SHARE_FAILED = 0.5
_NAN_SHARE_FLAG = 0.01


class Failure(IntEnum):
    """Why an object has no weights; 0 where it has."""

    NONE = 0
    SIMULATOR = 30
    NUMERIC = 31
    NO_SUPPORT = 32

    @property
    def sentence(self) -> str:
        """Return what a reader of the report is told."""
        return _SENTENCES[self]


_SENTENCES = {
    Failure.NONE: "The draws have weights.",
    Failure.SIMULATOR: "The likelihood is infinite, NaN in most draws, or was never computed.",
    Failure.NUMERIC: "A draw's proposal or prior density is not finite where its target is.",
    Failure.NO_SUPPORT: "No draw has a positive posterior density.",
}


@dataclass(frozen=True)
class CleanWeights:
    """Raw log-weights without NaN or ``+inf``, and what was found on the way to them.

    Attributes
    ----------
    log_weights : Tensor, shape (B, S)
        Unnormalised. All ``-inf`` where ``failure`` is not 0.
    n_draws : Tensor of int64, shape (B,)
        Draws that count: those kept.
    n_nan : Tensor of int64, shape (B,)
        Kept draws inside the prior whose likelihood is NaN; they count, with weight zero.
    infinite_likelihood : Tensor of bool, shape (B,)
        Whether a likelihood is ``+inf``.
    bad_density : Tensor of bool, shape (B, S)
        Draws whose ``log_q`` or ``log_prior`` makes their weight ``+inf`` or meaningless: compute
        them again in float64 and clean again before giving up (``Failure.NUMERIC``).
    failure : Tensor of uint8, shape (B,)
        Values of `Failure`.
    """

    log_weights: Tensor
    n_draws: Tensor
    n_nan: Tensor
    infinite_likelihood: Tensor
    bad_density: Tensor
    failure: Tensor

    @property
    def many_nan(self) -> Tensor:
        """Return whether more than 1 % of an object's likelihoods are NaN, shape (B,)."""
        return self.n_nan > _NAN_SHARE_FLAG * self.n_draws.double()


def clean(
    log_likelihood: Tensor, log_prior: Tensor, log_q: Tensor, keep: Tensor | None = None
) -> CleanWeights:
    """Return log L + log prior - log q, with every special value judged and none dropped silently.

    Outside the prior (``log_prior = -inf``) a weight is zero whatever the likelihood says, for it
    need not have been computed. A NaN likelihood is a weight of zero and counted; a likelihood or a
    weight of ``+inf`` fails its object.

    Parameters
    ----------
    log_likelihood, log_prior, log_q : Tensor, shape (B, S)
    keep : Tensor of bool, shape (B, S), optional
        False for draws that are not to count at all, as where the simulator raised.

    Returns
    -------
    CleanWeights

    Examples
    --------
    >>> zero = torch.zeros(1, 3)
    >>> cleaned = clean(torch.tensor([[0.0, torch.nan, -torch.inf]]), zero, zero)
    >>> cleaned.log_weights.tolist(), int(cleaned.n_nan)
    ([[0.0, -inf, -inf]], 1)
    """
    log_likelihood, log_prior, log_q = (v.double() for v in (log_likelihood, log_prior, log_q))
    kept = torch.ones_like(log_q, dtype=torch.bool) if keep is None else keep.to(log_q.device)
    inside = kept & (log_prior != -torch.inf)
    is_nan = inside & log_likelihood.isnan()
    is_infinite = inside & log_likelihood.isposinf()
    alive = inside & ~is_nan & (log_likelihood != -torch.inf)
    bad_density = alive & ~(log_prior.isfinite() & log_q.isfinite())

    n_draws, n_nan = kept.sum(1), is_nan.sum(1)
    failure = torch.zeros(len(log_q), dtype=torch.uint8, device=log_q.device)
    failure[~alive.any(1)] = Failure.NO_SUPPORT
    failure[bad_density.any(1)] = Failure.NUMERIC
    broken = is_infinite.any(1) | (n_nan > _NAN_SHARE_FAILED * n_draws.double()) | (n_draws == 0)
    failure[broken] = Failure.SIMULATOR
    valid = alive & (failure == Failure.NONE)[:, None]
    log_weights = torch.where(valid, log_likelihood + log_prior - log_q, -torch.inf)
    return CleanWeights(log_weights, n_draws, n_nan, is_infinite.any(1), bad_density, failure)


def log_mixture(log_q: Tensor, counts: Tensor | Sequence[float]) -> Tensor:
    r"""Return the log-density of the deterministic mixture that all the draws came from.

    :math:`\log \sum_r (N_r / S)\, q_r(z)` (Owen and Zhou 2000). Every draw of every proposal gets
    this one density, and every draw counts in its :math:`N_r`, those of zero weight included.

    Parameters
    ----------
    log_q : Tensor, shape (R, ...)
        Density of every draw under each of R proposals.
    counts : Tensor or sequence of float, shape (R,) or (R, B)
        Draws made from each proposal, or their shares.

    Returns
    -------
    Tensor of float64, shape (...)

    Examples
    --------
    >>> log_q = torch.tensor([[0.0], [-torch.inf]])
    >>> round(float(log_mixture(log_q, torch.tensor([1, 3])).exp()), 6)
    0.25
    """
    counts = counts if isinstance(counts, Tensor) else _filled(counts, log_q.device)
    shares = counts.to(log_q.device, torch.float64)
    log_shares = (shares / shares.sum(0)).log()
    shape = log_shares.shape + (1,) * (log_q.ndim - log_shares.ndim)
    return torch.logsumexp(log_shares.reshape(shape) + log_q.double(), dim=0)


def defensive_log_prob(log_q: Tensor, log_q_wide: Tensor, alpha: float = 0.2) -> Tensor:
    """Return the log-density of a proposal mixed with a share ``alpha`` of its wider self.

    Parameters
    ----------
    log_q, log_q_wide : Tensor, shape (...)
        Densities of the same draws, whichever part they came from.
    alpha : float
        The share of the draws that really came from the wide part, in [0, 1].

    Returns
    -------
    Tensor of float64, shape (...)
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], but is {alpha}. It is a share of the draws.")
    return log_mixture(torch.stack([log_q, log_q_wide]), (1.0 - alpha, alpha))


def _filled(values: Sequence[float], device: torch.device) -> Tensor:
    """Return a few numbers (R,) as a tensor that is made on the device: nothing is sent there."""
    each = [torch.full((), value, dtype=torch.float64, device=device) for value in values]
    return torch.stack(each)
