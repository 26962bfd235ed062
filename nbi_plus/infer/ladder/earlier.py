"""What is known of objects before their ladder begins: places to look at, and earlier attempts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.data.observations import Observations
from nbi_plus.infer.posterior.accounts import Cost, Meter, ReportLog
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Flag, RungReport, Status
from nbi_plus.infer.posterior.verdict import BROKEN
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.cross_fit import MixtureFamily, OnCircles, fit_defended
from nbi_plus.infer.weights.summary import Gate
from nbi_plus.problem.prior.prior import Prior

HINTS = "hints"  # the rung of the network's draws and those from the places to look at
_FIRST = ("reweight", HINTS)  # the rungs that an attempt begins with
_KEPT_DRAWS = 2000  # of each object are learned from
_COMPARED = 64  # of each object say whether the prior is theirs
_SAME_PRIOR = 1e-6  # of the largest log density


class Tried(Protocol):
    """What is kept of an object that no rung certified: a `Posterior`, or its draws alone."""

    id: str
    data_hash: str
    rungs: tuple[RungReport, ...]
    samples: NDArray[np.float64]
    log_weights: NDArray[np.float64]
    log_prior: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]


@dataclass(frozen=True)
class Earlier:
    """What is known of N objects.

    Attributes
    ----------
    look : LatentProposal or None
        Where draws shall come from besides the network.
    has_look : Tensor of bool, shape (N,)
        For whom.
    reports : tuple of tuple of RungReport
        What rungs came to in earlier attempts, of each object; () for objects without any.
    calls, gradients : ndarray of int, shape (N,)
        What these cost: simulations without a gradient, and with one.
    attempt : int
        How often they were tried at most: another attempt takes other random numbers.
    """

    look: LatentProposal | None
    has_look: Tensor
    reports: tuple[tuple[RungReport, ...], ...]
    calls: NDArray[np.int64]
    gradients: NDArray[np.int64]
    attempt: int = 0

    @classmethod
    def nothing(cls, n: int, device: torch.device) -> Earlier:
        """Return that nothing is known of N objects."""
        zero = np.zeros(n, np.int64)
        return cls(None, torch.zeros(n, dtype=torch.bool, device=device), ((),) * n, zero, zero)

    @classmethod
    def hints(cls, look: LatentProposal, has_look: Tensor, spent: Tensor | None = None) -> Earlier:
        """Return places to look at of objects that nobody tried yet.

        ``spent`` (N,) are the gradients that finding them cost.
        """
        nothing = cls.nothing(len(has_look), has_look.device)
        gradients = nothing.gradients if spent is None else spent.cpu().numpy()
        return replace(nothing, look=look, has_look=has_look, gradients=gradients)

    @classmethod
    def of(
        cls, tried: Sequence[Tried], costs: NDArray[np.int64], prior: Prior, family: MixtureFamily,
        keys: Tensor, seed: int,
    ) -> Earlier:  # fmt: skip
        """Return what answers that no rung certified teach: a mixture fitted to their draws.

        Parameters
        ----------
        tried : sequence of Tried
            With draws.
        costs : ndarray of int, shape (2, N)
            Simulations, and those with a gradient among them.
        prior : Prior
            Theirs.
        family : MixtureFamily
            What is fitted.
        keys : Tensor of int64, shape (N,)
        seed : int
        """
        reports = tuple(p.rungs for p in tried)
        known = cls(
            None, torch.zeros(len(keys), dtype=torch.bool, device=keys.device), reports,
            costs[0] - costs[1], costs[1],
            max(sum(r.name in _FIRST for r in own) for own in reports),
        )  # fmt: skip
        if not prior.has_inverse:
            return known  # draws that cannot be taken back to the latent space teach nothing
        refuse_other_prior(tried, prior)
        draws = [_thinned(p, prior) for p in tried]
        n = max(len(z) for z, _, _ in draws)
        # the objects' draws differ in number: those that are missing have no weight
        z, log_w, flat = (
            torch.as_tensor(np.stack([_padded(v[i], n, fill) for v in draws]), device=keys.device)
            for i, fill in enumerate((0.0, -np.inf, -np.inf))
        )
        stage = f"kept draws attempt {known.attempt}"
        wanted = OnCircles(family, circular_columns(prior.periods))
        look = fit_defended(z, log_w, flat, wanted, keys, seed, stage)
        return replace(known, look=look, has_look=(log_w > -torch.inf).any(1))

    def accounts(self, gate: Gate) -> tuple[Meter, ReportLog]:
        """Return a meter and a report that go on from here; what was spent is in no budget."""
        device = self.has_look.device
        calls, gradients = (torch.as_tensor(v, device=device) for v in (self.calls, self.gradients))
        spent = Cost(calls, gradients, torch.zeros_like(calls, dtype=torch.float64))
        meter = Meter.of(spent, spent)
        return meter, ReportLog.of(meter, gate, [list(own) for own in self.reports])

    def select(self, rows: NDArray[np.int64]) -> Earlier:
        """Return what is known of some of the objects; a place to look at only if all have one."""
        has = self.has_look[torch.as_tensor(rows, device=self.has_look.device)]
        look = self.look_of(rows) if bool(has.all()) else None
        reports = tuple(self.reports[i] for i in rows)
        calls, gradients = self.calls[rows], self.gradients[rows]
        return Earlier(look, has, reports, calls, gradients, self.attempt)

    def look_of(self, rows: NDArray[np.int64]) -> LatentProposal | None:
        """Return where draws of some of the objects shall come from besides the network."""
        if self.look is None:
            return None
        return self.look.select(torch.as_tensor(rows, device=self.has_look.device))


def can_be_tried_again(posteriors: Posteriors) -> NDArray[np.bool_]:
    """Say whom another attempt may help, shape (N,): draws can, data and simulators cannot."""
    hopeless = [
        status is Status.AMORTIZED or Flag.BAD_INPUT in flags or BROKEN in rungs[-1].reason
        for status, flags, rungs in zip(
            posteriors.status, posteriors.flags, posteriors.rungs, strict=True
        )
    ]
    return ~posteriors.certified & ~np.array(hopeless, bool)


def places_of(posteriors: Posteriors, observations: Observations) -> NDArray[np.int64]:
    """Return where the objects of some answers stand among observations, shape (N,)."""
    where = {name: i for i, name in enumerate(observations.ids.astype(str))}
    missing = [name for name in posteriors.ids.astype(str) if name not in where]
    if missing:
        raise ValueError(
            f"observations must hold every object that is tried again, but object {missing[0]!r} "
            "is missing. Give those that were predicted."
        )
    places = np.array([where[name] for name in posteriors.ids.astype(str)])
    other = posteriors.data_hash != observations[places].hashes
    if other.any():
        raise ValueError(
            "observations must be the data that were predicted, but those of object "
            f"{posteriors.ids[other][0]!r} are others. Predict these anew."
        )
    return places


def refuse_other_prior(tried: Iterable[Tried], prior: Prior) -> None:
    """Refuse answers under another prior than the one that is believed now."""
    for p in tried:  # their draws differ in number
        then, now = p.log_prior[:_COMPARED], prior.log_prob(p.samples[:_COMPARED])
        both = np.isfinite(now) & np.isfinite(then)
        scale = 1 + np.abs(now[both]).max(initial=0.0)
        if (np.abs(now[both] - then[both]) > _SAME_PRIOR * scale).any():
            raise ValueError(
                f"posteriors must be under the engine's prior, but that of object {p.id!r} is "
                "under another one. Predict with prior= again."
            )


def _thinned(p: Tried, prior: Prior) -> tuple[NDArray, NDArray, NDArray]:
    """Return some of the draws: z (S, D), log-weights, and those towards the target's root (S,)."""
    step = -(-len(p.samples) // _KEPT_DRAWS)
    some = slice(None, None, max(step, 1))
    z = np.asarray(prior.to_latent(p.samples[some]))
    inside = np.isfinite(z).all(1)
    z = np.where(inside[:, None], z, 0.0)
    log_target = p.log_likelihood[some] - 0.5 * (z**2).sum(1)
    usable = inside & np.isfinite(log_target) & np.isfinite(p.log_weights[some])
    log_w = np.where(usable, p.log_weights[some], -np.inf)
    return z, log_w, np.where(usable, log_w - 0.5 * np.where(usable, log_target, 0.0), -np.inf)


def _padded(values: NDArray, n: int, fill: float) -> NDArray:
    return np.concatenate([values, np.full((n - len(values), *values.shape[1:]), fill)])
