"""Agreeing: what the numbers of one answer must say of each other, wherever they come from.

An answer holds its raw weights beside all that was made of them, and its verdict beside the rules.
A file in which these disagree is damaged or forged, whatever its checksums say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from nbi_plus.infer.posterior.columns import BY_NAME, NUMBERS, WEIGHT_NUMBERS
from nbi_plus.infer.posterior.flags import DOMINATED
from nbi_plus.infer.posterior.reweighting import RUNG as NEW_PRIOR
from nbi_plus.infer.posterior.status import Flag, RungReport, Status
from nbi_plus.infer.weights.evidence import kish, normalise
from nbi_plus.infer.weights.summary import Grade, WeightSummary, gate_of, summarise

if TYPE_CHECKING:
    from nbi_plus.infer.posterior.posterior import Posterior

_ROUNDING = 1e-6  # relative; the same sums in another order, or on another device, differ by 1e-12
_OTHER_SEED = 0.25  # of the effective sample: its bootstrap quantile depends on a seed
_OTHER_DRAWS = 1.0, 8.0  # in log, and in errors: the evidence of a part of the draws, or of more
_TYPES = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}
_BELOW_A_GATE = frozenset({
    Flag.HIGH_KHAT, Flag.MODE_MISSED, Flag.SUPPORT, Flag.BAD_INPUT, Flag.FEW_DRAWS,
})  # fmt: skip


def contradictions(p: Posterior) -> Iterator[str]:
    """Yield what an answer says that cannot be, each as the end of a sentence.

    What comes later takes for granted that nothing came before.
    """
    for rule in (_types, _shapes, _numbers):
        yield from rule(p)
    seen = _Seen.of(p)
    for rule in _RULES:
        yield from rule(seen)


def _types(p: Posterior) -> Iterator[str]:
    names = p.parameters.names
    texts = [*names, *p.parameters.labels, *p.parameters.units.values(), p.id, p.data_hash]
    if not names or not all(isinstance(text, str) for text in texts):
        yield "its names are not all text"
    elif len({*names, *p.derived}) < len(names) + len(p.derived):
        yield f"a name comes twice among {[*names, *p.derived]}"
    for name in NUMBERS:
        if not _is_of(getattr(p, name), BY_NAME[name].kind.__name__):
            yield f"{name} is {getattr(p, name)!r}"
    for part in (*p.rungs, p.gate):
        for own in fields(part):
            if not _is_of(getattr(part, own.name), own.type):
                yield f"{own.name} of {type(part).__name__} is {getattr(part, own.name)!r}"


def _is_of(value: object, kind: str) -> bool:
    """Say whether a value has the type that is written in a dataclass; True is no number."""
    return isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "bool")


def _shapes(p: Posterior) -> Iterator[str]:
    n, d = len(p.samples), len(p.names)
    own = p.parameters
    if len(own.labels) != d or len(own.periods) not in (0, d):
        yield f"{d} parameters have {len(own.labels)} labels and {len(own.periods)} periods"
    columns = ("log_weights", "weights", "log_q", "log_prior", "log_likelihood")
    arrays = {name: (getattr(p, name), (n,)) for name in columns}
    arrays |= {"samples": (p.samples, (n, d))} | {k: (v, (n,)) for k, v in p.derived.items()}
    if p.chains is not None:
        arrays["chains"] = p.chains, (*p.chains.shape[:2], d)
    if p.support is not None:
        arrays["support"] = p.support, (d, 2)
    for name, (array, shape) in arrays.items():
        if array.shape != shape or array.dtype != np.float64:
            yield f"{name} must be float64 of shape {shape}, but is {array.dtype} of {array.shape}"


def _numbers(p: Posterior) -> Iterator[str]:
    used = p.weights > 0
    if np.isnan(p.log_weights).any() or np.isposinf(p.log_weights).any():
        yield "log_weights are NaN or infinite"
    if not (p.weights >= 0).all() or not np.isfinite(p.weights).all():
        yield "weights are negative or not finite"
    elif used.any() and not math.isclose(p.weights.sum(), 1.0, rel_tol=_ROUNDING):
        yield f"weights sum to {p.weights.sum():.9g}"
    if (used & ~np.isfinite(p.samples).all(1)).any():
        yield "draws of positive weight are NaN or infinite"
    for name in ("ood_p_value", "fit_p_value"):
        if not (math.isnan(getattr(p, name)) or 0.0 <= getattr(p, name) <= 1.0):
            yield f"{name} is {getattr(p, name)}"


@dataclass(frozen=True)
class _Seen:
    """An answer of sound shapes, and what its raw weights are worth.

    ``plain`` draws weigh the same: draws of a network, of chains, or resampled ones. What they are
    worth cannot be seen from them. ``moved`` answers are those under another prior than their own.
    ``raw`` ones are of a published method that smooths no weights, and is never certified.
    """

    p: Posterior
    worth: WeightSummary
    n_draws: float
    plain: bool
    moved: bool
    raw: bool

    @classmethod
    def of(cls, p: Posterior) -> _Seen:
        positive = np.isfinite(p.log_weights)
        plain = bool(positive.all() and (p.log_weights == p.log_weights[:1]).all())
        moved = any(line.name == NEW_PRIOR for line in p.rungs)
        told = p.ess / p.efficiency if p.efficiency > 0 else math.nan
        n_draws = told if math.isfinite(told) else float(len(p))
        # which draws of zero weight failed, and count for nothing, is not known: only how many
        keep = np.ones(len(p), bool)
        if not (plain or moved):
            n_left_out = min(max(len(p) - round(n_draws), 0), int((~positive).sum()))
            keep[np.flatnonzero(~positive)[:n_left_out]] = False
        rows, counts = (torch.from_numpy(v)[None] for v in (p.log_weights, keep))
        worth = summarise(rows, keep=counts)
        never = p.status is Status.UNCERTIFIED and p.gate.family == "flow"
        raw = never and math.isnan(p.log_evidence) and not (plain or moved)
        if raw:
            ess = kish(rows)
            own = {"weights": normalise(rows), "ess": ess, "efficiency": ess / worth.n_draws}
            worth = replace(worth, **own)
        return cls(p, worth, n_draws, plain, moved, raw)

    @property
    def unweighted(self) -> bool:
        """Whether draws of a network are the answer, and nothing was made of them since."""
        return self.p.status is Status.AMORTIZED and not self.moved

    @property
    def all_equal(self) -> bool:
        """Whether all draws are said to count, those that were not kept among them."""
        lines = (line for line in self.p.rungs if not line.passed and line.n_draws >= len(self.p))
        return self.p.ess == len(self.p) or any(r.ess == r.n_draws == self.p.ess for r in lines)

    @property
    def told(self) -> WeightSummary:
        """What the answer says its weights are worth."""
        names = ("ess", "efficiency", "k_hat")
        told = {k: torch.full_like(self.worth.ess, float(getattr(self.p, k))) for k in names}
        n_draws = torch.full_like(self.worth.n_draws, round(self.n_draws))
        return replace(self.worth, n_draws=self.worth.n_draws if self.moved else n_draws, **told)

    @property
    def lines(self) -> list[RungReport]:
        """The lines of the report that tell of these very weights."""
        p = self.p
        names = ("ess", "efficiency", "k_hat")
        return [r for r in p.rungs if all(_near(getattr(r, k), getattr(p, k)) for k in names)]


def _weights(seen: _Seen) -> Iterator[str]:
    p, worth = seen.p, seen.worth.weights[0].numpy()
    if not np.allclose(p.weights, worth, rtol=_ROUNDING, atol=_ROUNDING * worth.max(initial=0.0)):
        yield "weights are not those of log_weights"
    if seen.plain or seen.moved or seen.raw or p.status is Status.FAILED:
        return
    used = np.isfinite(p.log_weights)
    parts = np.stack([p.log_likelihood, p.log_prior, -p.log_q])[:, used]
    off = np.abs(parts.sum(0) - p.log_weights[used])
    if not (off <= _ROUNDING * (1.0 + np.abs(parts).sum(0))).all():
        yield "log_weights are not log_likelihood + log_prior - log_q"


def _figures(seen: _Seen) -> Iterator[str]:
    p, worth = seen.p, seen.worth
    if p.status is Status.FAILED:
        yield from _failed(seen)
        return
    if seen.unweighted:
        yield from _of_nothing(seen)
        return
    if not (p.ess > 0.0 and 0.0 < p.efficiency <= 1.0 + _ROUNDING):
        yield f"ess is {p.ess:g} and efficiency {p.efficiency:g}"
        return
    if seen.moved or seen.plain:
        yield from _told_again(seen)
    elif not (_is_whole(seen.n_draws) and round(seen.n_draws) == int(worth.n_draws)):
        yield f"ess / efficiency is {seen.n_draws:.9g}, and no number of its {len(p)} draws"
    else:
        for name in ("ess", "efficiency", "k_hat"):
            if not _near(getattr(p, name), float(getattr(worth, name))):
                told = f"{name} is {getattr(p, name):.9g}, but its weights say"
                yield f"{told} {float(getattr(worth, name)):.9g}"
    low = float(worth.ess_low) * p.ess / float(worth.ess)
    most = p.ess * (1.0 + (_OTHER_SEED if seen.raw else _ROUNDING))  # that of smoothed weights
    shown = not (seen.plain or seen.raw)
    if not 0.0 <= p.ess_low <= most or (shown and abs(p.ess_low - low) > _OTHER_SEED * p.ess):
        yield f"ess_low is {p.ess_low:g}, and ess {p.ess:g}"


def _of_nothing(seen: _Seen) -> Iterator[str]:
    p = seen.p
    if not (seen.plain and seen.all_equal):
        yield f"ess of {len(p)} draws that nothing weighs is {p.ess:g}"
    for name in WEIGHT_NUMBERS[1:]:
        if not _near(getattr(p, name), BY_NAME[name].unknown):
            yield f"{name} of draws that nothing weighs is {getattr(p, name)}"


def _failed(seen: _Seen) -> Iterator[str]:
    p = seen.p
    known = {k: BY_NAME[k].failed for k in WEIGHT_NUMBERS}
    if Flag.BAD_INPUT in p.flags and seen.all_equal:  # nobody looked at its data before
        known = {k: BY_NAME[k].unknown for k in WEIGHT_NUMBERS} | {"ess": p.ess}
    for name, value in known.items():
        if not _near(getattr(p, name), value):
            yield f"{name} of an answer that failed is {getattr(p, name)}"


def _told_again(seen: _Seen) -> Iterator[str]:
    """Check figures that draws of equal weight do not show, and those of another prior."""
    p, worth = seen.p, seen.worth
    if seen.moved and (
        p.ess > float(worth.ess) * (1.0 + _ROUNDING)
        or p.k_hat < float(worth.k_hat) - _ROUNDING
        or p.efficiency > float(worth.efficiency) * (1.0 + _ROUNDING)
    ):
        yield f"ess {p.ess:.9g} and k_hat {p.k_hat:.6g} are better than its weights"
    if not seen.moved and not _is_whole(seen.n_draws):
        yield f"ess / efficiency is {seen.n_draws:.9g}, and no number of draws"
    lines = seen.lines
    if not seen.moved and p.gate.family == "chains" and math.isnan(p.k_hat):
        # what chains are worth is told of their worst parameter, and may be more than they are
        n = round(seen.n_draws)
        lines = [r for r in p.rungs if _near(min(r.ess, n), p.ess) and r.n_draws == n]
    if not lines:
        yield f"no line of its report has ess {p.ess:.9g}, efficiency {p.efficiency:.6g} and k_hat"


def _evidence(seen: _Seen) -> Iterator[str]:
    p, worth = seen.p, seen.worth
    if p.status is Status.FAILED or seen.unweighted:
        return
    value, error = p.log_evidence, p.log_evidence_err
    sound = math.isfinite(value) and math.isfinite(error) and error >= 0.0
    if p.evidence_reliable != sound:
        yield f"log_evidence {value} +- {error} is called reliable: {p.evidence_reliable}"
    if p.gate.family == "chains" and not math.isnan(value):
        yield f"log_evidence of chains is {value}"
    if p.gate.family == "network" and not (seen.plain or seen.moved):
        for name in ("log_evidence", "log_evidence_err"):
            if not _near(getattr(p, name), float(getattr(worth, name))):
                yield f"{name} is {getattr(p, name):.9g}, but its weights say another"
        return
    if not p.evidence_reliable:
        return
    used = p.weights > 0
    density = p.log_likelihood[used] + p.log_prior[used] - p.log_q[used]
    if not np.isfinite(density).all():
        yield "log_likelihood, log_prior or log_q are not finite where weights are positive"
        return
    # the mean of 1 / L over the posterior is that of the draws over the evidence
    mean = -np.logaddexp.reduce(np.log(p.weights[used]) - density)
    known = [e for e in (error, float(worth.log_evidence_err)) if math.isfinite(e)]
    slack = _OTHER_DRAWS[0] + _OTHER_DRAWS[1] * max(known, default=0.0)
    if not (mean + math.log(p.efficiency) - slack <= value <= mean + slack):
        yield f"log_evidence is {value:.9g}, but its draws say about {mean:.6g}"


def _verdict(seen: _Seen) -> Iterator[str]:
    p, told, gate = seen.p, seen.told, gate_of("network", seen.p.gate)
    if not p.status.certified:
        own = [r for r in seen.lines if r.passed and r.n_draws]
        doubted = p.flags & _BELOW_A_GATE
        if p.status is Status.UNCERTIFIED and own and not (doubted or seen.moved):
            yield "its report says that it passed, but its status that it did not"
        return
    if p.gate.family == "chains" and not seen.moved:
        if not (p.status.from_chains and seen.plain):
            yield f"status {p.status.name} is of chains, but its draws are not"
        return
    by_network = p.gate.family == "network" and not seen.moved
    good = gate.grade(told) > Grade.F if by_network else told.ess >= gate.ess_min
    if not bool(good & ~told.heavy_tail):
        yield f"status {p.status.name} asks for a gate that its weights do not pass"
    if by_network and p.status is not Status.REWEIGHTED:
        yield f"status {p.status.name} is not that of draws of a network"
    if not any(line.passed for line in p.rungs):
        yield f"status is {p.status.name}, but no line of its report has passed"


def _flags(seen: _Seen) -> Iterator[str]:
    p, told, gate = seen.p, seen.told, seen.p.gate
    wrong = p.flags & _BELOW_A_GATE if p.status.certified else frozenset()
    if wrong:
        yield f"flag {min(wrong).name} stands beside status {p.status.name}"
    if Flag.BAD_INPUT in p.flags and p.status is not Status.FAILED:
        yield f"flag BAD_INPUT stands beside status {p.status.name}"
    if p.status is Status.FAILED or seen.unweighted:
        return
    rules = {Flag.LOW_ESS: told.ess < gate.ess_min, Flag.LOW_EFF: told.efficiency < gate.eff_min}
    if not seen.plain:
        rules |= {Flag.HIGH_KHAT: told.heavy_tail, Flag.DOMINATED: told.max_share > DOMINATED}
    for flag, on in rules.items():
        if bool(on) != (flag in p.flags):
            yield f"flag {flag.name} is {'missing' if on else 'raised'}, but its weights say not"


_RULES: tuple[Callable[[_Seen], Iterator[str]], ...] = (
    _weights, _figures, _evidence, _verdict, _flags,
)  # fmt: skip


def _near(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(
        a, b, rel_tol=_ROUNDING, abs_tol=_ROUNDING
    )  # fmt: skip


def _is_whole(n: float) -> bool:
    return abs(n - round(n)) <= _ROUNDING * max(n, 1.0)
