"""Flags: what the weights of an answer say besides its grade, for many objects at once."""

from __future__ import annotations

import torch
from torch import Tensor

from nbi_plus.infer.posterior.modes import separate_modes
from nbi_plus.infer.posterior.status import Flag
from nbi_plus.infer.proposals.circles import unwrapped
from nbi_plus.infer.weights.summary import Gate, WeightSummary

_EDGE_Z, _EDGE_MASS = 2.8, 0.05  # flag EDGE: this much mass this far out in the latent space
DOMINATED = 0.5


def weight_rules(
    summary: WeightSummary, z: Tensor, log_weights: Tensor, gate: Gate, circles: tuple[int, ...]
) -> dict[Flag, Tensor]:
    """Return for each flag that weights can raise whom it is raised for, bool (b,).

    Parameters
    ----------
    summary : WeightSummary
        With ``k_hat_moment``.
    z : Tensor, shape (b, S, D)
        The draws in the latent space of their prior.
    log_weights : Tensor, shape (b, S)
        Raw and unnormalised.
    gate : Gate
    circles : tuple of int
        The periodic parameters.
    """
    s = summary
    whole = unwrapped(z, log_weights, circles)
    at_edge = (s.weights[..., None] * (z.abs() > _EDGE_Z)).sum(1)
    at_edge[:, list(circles)] = 0.0  # a circle has no edge
    nothing = s.ess <= 0
    return {
        Flag.LOW_EFF: (s.efficiency < gate.eff_min) & ~nothing,
        Flag.LOW_ESS: s.ess < gate.ess_min,
        Flag.HIGH_KHAT: s.heavy_tail,
        Flag.TAIL: (s.k_hat_moment > gate.k_hat_moment_max) & ~nothing,
        Flag.DOMINATED: s.max_share > DOMINATED,
        Flag.EVIDENCE_SOFT: s.evidence_soft | s.evidence_corrected,
        Flag.MULTIMODAL: separate_modes(whole, s.weights) & (s.ess >= gate.ess_min),
        Flag.EDGE: at_edge.amax(-1) > _EDGE_MASS,
    }


def raised(rules: dict[Flag, Tensor]) -> tuple[frozenset[Flag], ...]:
    """Return the flags of each of b objects, from one bool (b,) for each flag."""
    names, table = list(rules), torch.stack(list(rules.values()), 1).tolist()
    rows = [tuple(row) for row in table]
    # objects that are alike share one set, which in a survey most do
    sets = {row: frozenset(n for n, on in zip(names, row, strict=True) if on) for row in set(rows)}
    return tuple(sets[row] for row in rows)
