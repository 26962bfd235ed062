"""Reweighting: what answers are worth under another prior on the same parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.arguments import of_kind
from nbi_plus.infer.posterior.columns import WEIGHT_NUMBERS
from nbi_plus.infer.posterior.flags import raised, weight_rules
from nbi_plus.infer.posterior.status import Flag, RungReport, Status
from nbi_plus.infer.posterior.support import MISSING_MAX, box_of, missing_share
from nbi_plus.infer.proposals.circles import circular_columns, unwrapped
from nbi_plus.infer.weights.summary import Grade, WeightSummary, summarise
from nbi_plus.problem.prior.prior import Prior

if TYPE_CHECKING:
    from nbi_plus.infer.posterior.posterior import Posterior

Array = NDArray[np.float64]

RUNG = "new prior"
_OF_WEIGHTS = frozenset({
    Flag.LOW_EFF, Flag.LOW_ESS, Flag.HIGH_KHAT, Flag.TAIL, Flag.DOMINATED, Flag.EVIDENCE_SOFT,
    Flag.MULTIMODAL, Flag.EDGE,
})  # fmt: skip
_JUDGED_AS = {
    "network": "draws of the network",
    "mixture": "draws of fitted mixtures",
    "flow": "draws of fitted flows",
    "chains": "draws of Markov chains",
}
_OUTSIDE = "the posterior can go on where the old prior allowed no draws"


@dataclass(frozen=True)
class _Group:
    """Answers with as many draws each, that one gate judges, as arrays (b, S) and (b, S, D).

    ``old`` and ``new`` are raw log-weights, and ``edges`` (b, D, 2) where the draws end.
    """

    answers: tuple[Posterior, ...]
    samples: Array
    log_prior: Array
    old: Array
    new: Array
    edges: Array

    @classmethod
    def of(cls, answers: Sequence[Posterior], prior: Prior) -> _Group:
        """Return the weights under the new prior; draws on circles move to its side of the cut."""
        samples = np.stack([p.samples for p in answers])
        edges = np.stack([p.support for p in answers])
        middle = prior.from_latent(np.zeros(prior.n_dim))
        for d, period in enumerate(answers[0].parameters.periods):
            if period is not None:
                low = middle[d] - 0.5 * period
                edges[:, d] = low, middle[d] + 0.5 * period
                samples[..., d] = low + (samples[..., d] - low) % period
        log_prior = np.asarray(prior.log_prob(samples))
        old = np.stack([p.log_weights for p in answers])
        with np.errstate(invalid="ignore"):
            change = old + log_prior - np.stack([p.log_prior for p in answers])
        new = np.where(np.isfinite(old) & np.isfinite(log_prior), change, -np.inf)
        return cls(tuple(answers), samples, log_prior, old, new, edges)

    def column(self, name: str) -> Tensor:
        """Return a number of each answer, shape (b,)."""
        return torch.tensor([float(getattr(p, name)) for p in self.answers], dtype=torch.float64)

    @property
    def plain(self) -> Tensor:
        """Whose draws weigh the same: chains, resampled draws, draws of a network alone."""
        return torch.from_numpy((self.old == self.old[:, :1]).all(1) & np.isfinite(self.old[:, 0]))


def reweighted(answers: Sequence[Posterior], prior: Prior) -> list[Posterior]:
    """Return answers under another prior, judged anew: see `Posterior.reweight`."""
    of_kind("new_prior", prior, Prior, "Write Prior({...}).")
    for answer in answers:
        _check(answer, prior)
    alike: dict[tuple, list[int]] = {}
    for i, p in enumerate(answers):
        alike.setdefault((len(p), p.gate), []).append(i)
    found: dict[int, Posterior] = {}
    for rows in alike.values():
        group = _Group.of([answers[i] for i in rows], prior)
        found |= dict(zip(rows, _judged(group, prior), strict=True))
    return [found[i] for i in range(len(answers))]


def refuse_other_units(known: Mapping[str, str], prior: Prior) -> None:
    """Refuse a prior that has parameters in other units than are known; none is any unit."""
    for name in prior.full_names:
        was, now = known.get(name), prior.units.get(name)
        if was and now and was != now:
            raise ValueError(
                f"prior must have {name} in {was!r}, as before, but has it in {now!r}."
            )


def _check(answer: Posterior, prior: Prior) -> None:
    """Refuse a prior of other parameters, and answers whose densities are not of theta."""
    own = answer.parameters
    if tuple(prior.names) != own.names:
        raise ValueError(
            f"new_prior must be of parameters {own.names}, but is of {tuple(prior.names)}."
        )
    refuse_other_units(own.units, prior)
    for name, was, now in zip(own.names, own.periods, prior.periods, strict=False):
        if was and now and not np.isclose(was, now):
            raise ValueError(
                f"new_prior must have {name} on a circle of {was:g}, but has one of {now:g}."
            )
    if answer.support is None or np.isnan(answer.support).any():
        raise ValueError(
            "posterior must know the support of its prior to be reweighted, but does not: the "
            "prior was a bare transform, or the file is an old one. Predict again with prior=."
        )


def _judged(group: _Group, prior: Prior) -> list[Posterior]:
    """Return the answers of a group with new weights, numbers, flags and statuses."""
    new = torch.from_numpy(group.new)
    circles = circular_columns(prior.periods)
    alive = torch.isfinite(new)[..., None]
    z = torch.where(alive, torch.from_numpy(prior.to_latent(group.samples)), 0.0)
    s = summarise(new, unwrapped(z, new, circles))
    s, share = _numbers(group, s)
    first = group.answers[0]
    gate, seen = first.gate, replace(s, efficiency=share)
    grade, why = gate.grade(seen), gate.reasons(seen)
    weights = s.weights.numpy()
    missing = missing_share(group.samples, weights, s.ess.numpy(), group.edges, prior) > MISSING_MAX
    flags = raised(weight_rules(s, z, new, first.gate, circles))
    edges = _intersection(group.edges, box_of(prior))
    passed = (grade > Grade.F).numpy() & ~missing
    return [
        replace(
            p, samples=group.samples[i], log_prior=group.log_prior[i], log_weights=group.new[i],
            weights=weights[i], chains=None, support=edges[i],
            status=p.status if passed[i] or p.status is Status.FAILED else Status.UNCERTIFIED,
            flags=(p.flags - _OF_WEIGHTS) | flags[i] | ({Flag.SUPPORT} if missing[i] else set()),
            rungs=(*p.rungs, _line(p, s, i, bool(passed[i]), why[i], bool(missing[i]))),
            **{k: getattr(s, k)[i].item() for k in WEIGHT_NUMBERS},
        )
        for i, p in enumerate(group.answers)
    ]  # fmt: skip


def _numbers(group: _Group, s: WeightSummary) -> tuple[WeightSummary, Tensor]:
    """Return what the new weights are worth, and the efficiency (b,) that the gate shall see.

    Draws of equal weight are themselves worth the effective sample that they were taken from, and
    carry its k-hat and evidence; the evidence of pooled draws may be that of a part of them. What
    changed is told by the ratio of the old weights' mean to the new one's.
    """
    before, plain = summarise(torch.from_numpy(group.old)), group.plain
    n_draws = s.n_draws.double()
    kept = (group.column("ess") / n_draws).clamp(max=1.0)
    kept = torch.where(plain, kept, 1.0)
    share = torch.where(before.ess > 0, s.ess / before.ess, 0.0).clamp(max=1.0)
    worth = group.column("efficiency").nan_to_num(nan=1.0)
    k_hat = torch.fmax(s.k_hat, group.column("k_hat"))
    told = group.column("log_evidence")
    err = group.column("log_evidence_err").square() - before.log_evidence_err.square()
    err = torch.where(plain, err, err.nan_to_num(nan=0.0)).clamp(min=0.0)
    err = (s.log_evidence_err.square() + err).sqrt()
    fresh = (
        group.answers[0].gate.family == "network"
    )  # all draws are of the proposal that was judged
    judged = torch.where(plain | (not fresh), share, s.efficiency)
    summary = replace(
        s, ess=s.ess * kept, ess_low=s.ess_low * kept,
        efficiency=torch.where(plain, worth * s.efficiency, s.efficiency),
        k_hat=torch.where(plain & (s.ess > 0), k_hat, s.k_hat),
        log_evidence=torch.where(s.ess > 0, told + s.log_evidence - before.log_evidence, torch.nan),
        log_evidence_err=err,
        evidence_reliable=s.evidence_reliable & err.isfinite() & ~told.isnan(),
    )  # fmt: skip
    return summary, judged


def _line(
    p: Posterior, s: WeightSummary, i: int, passed: bool, why: str, missing: bool
) -> RungReport:
    """Return the line of the report."""
    told = f"judged as {_JUDGED_AS[p.gate.family]}"
    reasons = [told, *([why] if why and not passed else []), *([_OUTSIDE] if missing else [])]
    figures = (float(getattr(s, k)[i]) for k in ("ess", "efficiency", "k_hat"))
    return RungReport(RUNG, len(p), *figures, passed, "; ".join(reasons))


def _intersection(edges: Array, box: Array) -> Array:
    """Return where draws can lie that have a weight, shape (b, D, 2)."""
    return np.stack(
        [np.maximum(edges[..., 0], box[:, 0]), np.minimum(edges[..., 1], box[:, 1])], -1
    )
