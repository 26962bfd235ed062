"""Importance weights: what they are worth, for many objects at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nbi_plus.arguments import one_of
from nbi_plus.infer.weights.evidence import Evidence, heavy, kish, log_evidence, normalise
from nbi_plus.infer.weights.psis import (
    NumericArray,
    check_log_weights,
    k_hat_moment,
    like_input,
    psis,
    row_chunks,
    threshold,
)
from nbi_plus.problem.random import generator

_N_BOOTSTRAP = 100
_BOOTSTRAP_RANK = 5  # the fifth smallest of a hundred is the 5 % quantile


def effective_sample_size(log_weights: ArrayLike | Tensor) -> Tensor | NumericArray:
    r"""Return Kish's effective sample size of importance weights.

    With normalised weights :math:`w_i`, :math:`n_\mathrm{eff} = 1 / \sum_i w_i^2`: ``n_draws`` for
    equal weights, 1 when one draw carries all the weight, 0 when none carries any.

    Parameters
    ----------
    log_weights : array_like or Tensor, shape (..., n_draws)
        Unnormalised log-weights; ``-inf`` is a weight of zero.

    Returns
    -------
    ndarray, or Tensor for a Tensor, shape (...)
        The effective sample size, in ``[0, n_draws]``.

    Examples
    --------
    >>> import numpy as np
    >>> float(effective_sample_size([0.0, 0.0, -np.inf]))
    2.0
    """
    return like_input(kish(check_log_weights(log_weights)), log_weights)


def nbi_effective_sample_size(log_weights: ArrayLike | Tensor) -> Tensor | NumericArray:
    r"""Return the effective sample size as nbi defines it: :math:`1 / \sum_i w_i^2 - 1`.

    Parameters
    ----------
    log_weights : array_like or Tensor, shape (..., n_draws)
        Unnormalised log-weights; ``-inf`` is a weight of zero.

    Returns
    -------
    ndarray, or Tensor for a Tensor, shape (...)
        0 (not nbi's infinity) when no draw carries any weight.

    Examples
    --------
    >>> import numpy as np
    >>> float(nbi_effective_sample_size([0.0, 0.0, -np.inf]))
    1.0
    """
    ess = kish(check_log_weights(log_weights))
    return like_input((ess - 1.0).clamp(min=0.0), log_weights)


@dataclass(frozen=True)
class WeightSummary:
    """What the weights of each object are worth: tensors of shape (B,), ``weights`` of (B, S).

    Attributes
    ----------
    weights
        PSIS-smoothed and normalised; zero rows where no draw has a positive weight.
    n_draws
        Draws that count, those of zero weight included.
    ess, ess_low
        Kish's effective sample size of ``weights``, and the 5 % quantile of its bootstrap; that is
        a bound for light tails only, for draws that were never made cannot be drawn again.
    ess_nbi
        nbi's number, of the raw weights.
    efficiency, perplexity
        ``ess / n_draws``, and the exponential of the weights' entropy over ``n_draws``.
    k_hat, k_hat_threshold
        Pareto shape of the raw weights, and the largest one to trust with ``n_draws``.
    max_share
        The largest of ``weights``.
    log_evidence, log_evidence_err, evidence_reliable, evidence_soft, evidence_corrected
        See `Evidence`.
    log_evidence_psis
        The same mean of the smoothed weights: less scatter, no honest error.
    k_hat_moment
        See `k_hat_moment`; None if no ``z`` was given.
    """

    weights: Tensor
    n_draws: Tensor
    ess: Tensor
    ess_low: Tensor
    ess_nbi: Tensor
    efficiency: Tensor
    perplexity: Tensor
    k_hat: Tensor
    k_hat_threshold: Tensor
    max_share: Tensor
    log_evidence: Tensor
    log_evidence_err: Tensor
    evidence_reliable: Tensor
    evidence_soft: Tensor
    evidence_corrected: Tensor
    log_evidence_psis: Tensor
    k_hat_moment: Tensor | None

    @property
    def heavy_tail(self) -> Tensor:
        """Whether the tail is too heavy for so many draws: k-hat too large, and weights unequal."""
        return heavy(self.k_hat, self.k_hat_threshold, self.max_share, self.n_draws)


_FIELDS = fields(WeightSummary)


def summarise(
    log_weights: ArrayLike | Tensor,
    z: Tensor | None = None,
    keep: Tensor | None = None,
    *,
    seed: int = 0,
) -> WeightSummary:
    """Return what the weights of each object are worth.

    Parameters
    ----------
    log_weights : array_like or Tensor, shape (B, S)
        Raw and unnormalised, as `clean` gives them.
    z : Tensor, shape (B, S, D), optional
        The draws; needed for ``k_hat_moment``.
    keep : Tensor of bool, shape (B, S), optional
        False for draws that do not count at all.
    seed : int
        For the bootstrap behind ``ess_low``.

    Examples
    --------
    >>> summary = summarise(torch.zeros(1, 1000, dtype=torch.float64))
    >>> float(summary.ess), float(summary.k_hat), float(summary.log_evidence)
    (1000.0, 0.0, 0.0)
    """
    rows = check_log_weights(log_weights)
    n_objects, n_each = rows.shape
    kept = torch.ones_like(rows, dtype=torch.bool) if keep is None else keep.to(rows.device)
    shares = _bootstrap_shares(n_each, seed, rows.device)
    row_bytes = 8 * n_each * (8 + (0 if z is None else 4 * z.shape[2]))
    parts = [
        _summarise(
            torch.where(kept[chunk], rows[chunk], -torch.inf),
            None if z is None else z[chunk],
            kept[chunk],
            shares,
        )
        for chunk in row_chunks(max(n_objects, 1), row_bytes, rows.device)
    ]
    return WeightSummary(**{f.name: _join([getattr(p, f.name) for p in parts]) for f in _FIELDS})


def _summarise(rows: Tensor, z: Tensor | None, kept: Tensor, shares: Tensor) -> WeightSummary:
    n_draws = kept.sum(1)
    count = n_draws.to(rows.dtype)
    smoothed, k_hat = psis(rows, n_draws)
    weights = normalise(smoothed)
    ess = kish(smoothed)
    entropy = -torch.xlogy(weights, weights).sum(1)
    evidence = log_evidence(rows, k_hat, n_draws)
    return WeightSummary(
        weights=weights,
        n_draws=n_draws,
        ess=ess,
        ess_low=torch.minimum(_bootstrap_low(weights, kept, shares), ess),
        ess_nbi=nbi_effective_sample_size(rows),
        efficiency=ess / count.clamp(min=1.0),
        perplexity=torch.where(ess > 0, entropy.exp() / count.clamp(min=1.0), 0.0),
        k_hat=k_hat,
        k_hat_threshold=threshold(count),
        max_share=weights.amax(1),
        log_evidence_psis=smoothed.logsumexp(1) - count.clamp(min=1.0).log(),
        k_hat_moment=None if z is None else k_hat_moment(rows, z, weights, n_draws),
        **{f.name: getattr(evidence, f.name) for f in fields(Evidence)},
    )


class Grade(IntEnum):
    """How far the weights of one object can be trusted, as `Gate` sees it."""

    F = 0  # not certified
    B = 1  # certified by many draws at a low efficiency: flag LOW_EFF
    A = 2


FAMILIES = ("network", "mixture", "flow", "chains")


@dataclass(frozen=True)
class Gate:
    """The rules that weights must pass. k-hat alone is none: it passes wrong answers.

    A passed gate is evidence, not proof: a mode or tail that the proposal never visits is invisible
    to every diagnostic of weights. Judge draws that the proposal was not fitted to.

    Attributes
    ----------
    ess_min, eff_min : float
        Least effective sample size and efficiency for grade A.
    eff_min_mix, k_hat_moment_max : float
        What a proposal must reach besides that was fitted to one object.
    k_hat_moment_max_flow : float
        The same for flows, which have no heavy tails: what they leave out is not seen.
    k_hat_moment_max_lean, eff_lean : float
        The same where the efficiency is below ``eff_lean``: a mixture that follows a bent posterior
        badly leaves out the end of its tail.
    eff_min_low, draws_min_low, ess_min_low : float
        Grade B: a lower efficiency made up for by more draws.
    family : {"network", "mixture", "flow", "chains"}
        Whose draws are judged; `gate_of` gives the gate of another family.
    """

    ess_min: float = 400.0
    eff_min: float = 0.2
    eff_min_mix: float = 0.3
    k_hat_moment_max: float = 1.0
    eff_min_low: float = 0.1
    draws_min_low: int = 16384
    ess_min_low: float = 1000.0
    k_hat_moment_max_flow: float = 0.5
    k_hat_moment_max_lean: float = 0.7
    eff_lean: float = 0.5
    family: str = "network"

    def __post_init__(self) -> None:
        one_of("family", self.family, FAMILIES)

    @property
    def fitted(self) -> bool:
        """Whether the draws come from what was fitted to their own object."""
        return self.family != "network"

    @property
    def efficiency_min(self) -> float:
        """The least efficiency that grade A asks of this family."""
        return max(self.eff_min, self.eff_min_mix) if self.fitted else self.eff_min

    def needed(self, efficiency: float, effective: float = 0.0) -> int:
        """Return how many draws grade A takes at an efficiency, some being effective already."""
        least = max(self.ess_min - effective, 0.0)
        return math.ceil(least / max(efficiency, self.efficiency_min))

    def moment_max(self, efficiency: Tensor) -> Tensor:
        """Return the largest k-hat of the second moments that draws may have, shape (B,).

        Parameters
        ----------
        efficiency : Tensor, shape (B,)
            Of draws of the proposals that are judged.
        """
        flow = self.k_hat_moment_max_flow if self.family == "flow" else self.k_hat_moment_max
        most = torch.full_like(efficiency, min(self.k_hat_moment_max, flow))
        return torch.where(
            efficiency < self.eff_lean, most.clamp(max=self.k_hat_moment_max_lean), most
        )

    def grade(self, summary: WeightSummary) -> Tensor:
        """Return values of `Grade`, uint8, shape (B,), for draws of the gate's family.

        Examples
        --------
        >>> summary = summarise(torch.zeros(1, 1000, dtype=torch.float64))
        >>> Grade(int(Gate().grade(summary))).name
        'A'
        """
        s = summary
        passed = ~s.heavy_tail & (s.ess >= self.ess_min)
        if self.fitted:
            if s.k_hat_moment is None:
                raise ValueError(
                    f"summary must hold k_hat_moment to grade draws of family {self.family!r}, but "
                    "was made without draws. Call summarise(log_weights, z)."
                )
            tame = s.k_hat_moment <= self.moment_max(s.efficiency)
            passed = passed & tame & (s.efficiency >= self.eff_min_mix)
        many = (s.n_draws >= self.draws_min_low) & (s.ess >= self.ess_min_low)
        grade = torch.zeros_like(s.k_hat, dtype=torch.uint8)
        grade[passed & many & (s.efficiency >= self.eff_min_low)] = Grade.B
        grade[passed & (s.efficiency >= self.eff_min)] = Grade.A
        return grade

    def reasons(self, summary: WeightSummary) -> list[str]:
        """Return what stands against grade A, in words, for each object."""
        s = summary
        rules = {
            "no draw has a weight": s.ess <= 0,
            f"ess below {self.ess_min:g}": (s.ess > 0) & (s.ess < self.ess_min),
            f"efficiency below {self.efficiency_min:g}": (s.ess > 0)
            & (s.efficiency < self.efficiency_min),
            "k_hat above its threshold": s.heavy_tail,
        }
        if self.fitted:
            wild = s.k_hat_moment > self.moment_max(s.efficiency)
            rules["k_hat of the moments too high"] = wild & (s.ess > 0)
        table = torch.stack(list(rules.values()), 1).tolist()
        return ["; ".join(w for w, on in zip(rules, row, strict=True) if on) for row in table]


def gate_of(family: str, gate: Gate) -> Gate:
    """Return the gate by which draws of a family of proposals are judged, here and everywhere.

    Parameters
    ----------
    family : {"network", "mixture", "flow", "chains"}
        The network with its wide part; mixtures of t; flows trained for one object; Markov chains.
    gate : Gate
        Of any family.

    Examples
    --------
    >>> gate_of("flow", Gate()).moment_max(torch.tensor(0.9)).item()
    0.5
    """
    return replace(gate, family=family)


def _bootstrap_shares(n_draws: int, seed: int, device: torch.device) -> Tensor:
    """Return one Bayesian bootstrap, shared by all objects: exponential shares (S, R).

    They are drawn on the CPU, so that every device sees the same.
    """
    shares = torch.empty(n_draws, _N_BOOTSTRAP, dtype=torch.float64)
    return shares.exponential_(generator=generator(seed, "bootstrap")).to(device)


def _bootstrap_low(weights: Tensor, kept: Tensor, shares: Tensor) -> Tensor:
    """Return the 5 % quantile of Kish's number when the draws themselves are drawn again.

    Only sums of w and w^2 matter, so three matrix products do it for all objects. Dividing by the
    shares of the draws that count makes the number of equal weights exactly their number.
    """
    first, second = weights @ shares, weights.square() @ shares
    size = kept.to(shares.dtype) @ shares
    n_draws = kept.sum(1, keepdim=True)
    replicates = torch.where(second > 0, n_draws * first.square() / (second * size), 0.0)
    return replicates.kthvalue(_BOOTSTRAP_RANK, dim=1).values


def _join(column: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in column if part is not None]
    return torch.cat(tensors) if tensors else None
