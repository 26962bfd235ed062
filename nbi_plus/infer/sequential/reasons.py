"""Reasons: which rules of its gate an answer of a sequential fit does not meet, in words."""

from __future__ import annotations

from nbi_plus.infer.posterior.accounts import CUT_OFF
from nbi_plus.infer.posterior.certificate import MISSING, summary_of
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.weights.summary import Gate

_SCATTER = 0.25  # of the k-hat of a thousand draws


def why_not(outcome: Outcome, fresh: Stream, gate: Gate, circles: tuple[int, ...]) -> str:
    """Return what stands against an answer that did not pass.

    Parameters
    ----------
    outcome : Outcome
        All draws, of one object.
    fresh : Stream
        Those that judge.
    gate : Gate
        Of the family of their proposals.
    circles : tuple of int
        The periodic parameters.
    """
    if outcome.cut_off.any():
        return CUT_OFF
    judged = summary_of(fresh, circles)
    own = gate.reasons(judged)[0]
    if own:
        return f"fresh draws: {own}"
    pooled, most = outcome.summary, gate.moment_max(judged.efficiency)
    rules = {
        "k_hat above its threshold": pooled.heavy_tail,
        f"ess below {gate.ess_min:g}": pooled.ess < gate.ess_min,
        "k_hat of the moments too high": pooled.k_hat_moment > most,
    }
    told = "; ".join(words for words, broken in rules.items() if broken.any())
    return f"all draws: {told}" if told else MISSING


def may_be_luck(fresh: Stream, gate: Gate, circles: tuple[int, ...]) -> bool:
    """Say whether tails of fresh draws are too heavy by so little that more of them may pass."""
    judged = summary_of(fresh, circles)
    by_weight = (judged.k_hat - judged.k_hat_threshold) * judged.heavy_tail
    by_moment = judged.k_hat_moment - gate.moment_max(judged.efficiency)
    return bool(max(by_weight, by_moment) < _SCATTER)
