"""Evidence: the mean of the raw weights, and how far it can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.infer.weights.psis import threshold

_HONEST_K_HAT = 0.5  # up to here the error of log Z means what it says
_SOFT_ERROR = 1.5  # factor on the error between there and the threshold
_BIAS_ERROR = 0.3  # above this error the first-order bias of log Z is removed
_FLAT = 3.0  # weights of at most so many times their mean have no tail, whatever k-hat says


def normalise(log_weights: Tensor) -> Tensor:
    """Return weights that sum to one over the last axis, or are all zero where none is positive."""
    total = log_weights.logsumexp(-1, keepdim=True)
    return torch.where(total == -torch.inf, 0.0, (log_weights - total).exp())


def kish(log_weights: Tensor) -> Tensor:
    """Return Kish's number, exact for equal weights and never above the positive ones."""
    top = log_weights.amax(-1, keepdim=True).clamp(min=-torch.finfo(log_weights.dtype).max)
    weights = (log_weights - top).exp()
    ess = weights.sum(-1).square() / weights.square().sum(-1)
    n_positive = (weights > 0).sum(-1)
    return torch.where(n_positive > 0, torch.minimum(ess, n_positive.to(ess.dtype)), 0.0)


def heavy(k_hat: Tensor, limit: Tensor | float, largest: Tensor, n_draws: Tensor) -> Tensor:
    """Say where k-hat is above a limit and means something.

    Of almost equal weights it only describes the shape of small differences: a Pareto tail that
    starts there and ends at three times the mean hides a hundredth of the total at most.
    """
    return (k_hat > limit) & (largest * n_draws > _FLAT * (1 + 1e-9))  # whatever rounding says


@dataclass(frozen=True)
class Evidence:
    """Log-evidence from raw weights, all of shape (B,)."""

    log_evidence: Tensor
    log_evidence_err: Tensor  # NaN where not reliable
    evidence_reliable: Tensor  # k-hat within its threshold
    evidence_soft: Tensor  # reliable, with an error widened by one half for a k-hat above 0.5
    evidence_corrected: Tensor  # first-order bias removed, for the error is above 0.3


def log_evidence(log_weights: Tensor, k_hat: Tensor, n_draws: Tensor | None = None) -> Evidence:
    r"""Return log Z of each object: the mean of the raw weights over all draws.

    The error is :math:`\sqrt{(S - n_\mathrm{eff}) / (S\, n_\mathrm{eff})}` (delta method), the bias
    :math:`-\frac{1}{2}` of its square. PSIS lowers the scatter of log Z but not its honesty, so
    smoothed weights have no place here. Reliable is a word about k-hat: without a defensive part, a
    proposal narrower than the target can pass it by luck, with log Z too low. Believe those that
    the gate certified.

    Parameters
    ----------
    log_weights : Tensor, shape (B, S)
        Raw and unnormalised, zero weights included.
    k_hat : Tensor, shape (B,)
        From `psis`.
    n_draws : Tensor, shape (B,), optional
        Draws that count; default S.

    Returns
    -------
    Evidence
    """
    if n_draws is None:
        n_draws = torch.full_like(k_hat, log_weights.shape[-1])
    n_draws = n_draws.to(log_weights.dtype)
    ess = kish(log_weights)
    error = ((n_draws - ess).clamp(min=0.0) / (n_draws * ess)).sqrt()
    largest = normalise(log_weights).amax(-1)
    reliable = ~heavy(k_hat, threshold(n_draws), largest, n_draws) & (ess > 0)
    soft = reliable & heavy(k_hat, _HONEST_K_HAT, largest, n_draws)
    corrected = (error > _BIAS_ERROR) & (ess > 0)
    value = torch.where(ess > 0, log_weights.logsumexp(-1) - n_draws.log(), -torch.inf)
    widened = torch.where(soft, _SOFT_ERROR * error, error)
    return Evidence(
        log_evidence=torch.where(corrected, value + 0.5 * error**2, value),
        log_evidence_err=torch.where(reliable, widened, torch.nan),
        evidence_reliable=reliable,
        evidence_soft=soft,
        evidence_corrected=corrected,
    )
