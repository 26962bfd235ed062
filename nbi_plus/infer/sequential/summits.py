"""Summits: the distinct peaks of one object that several searches have found."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.infer.samplers.peaks import Peaks
from nbi_plus.infer.sequential.journal import Step

NAMES = ("z", "factor", "log_prob", "log_mass")
_SAME = 4.0  # squared distance of two places of one peak, in the shape of the higher one


@dataclass(frozen=True)
class Summits:
    """M peaks of one object, the highest first.

    Attributes
    ----------
    z, factor, log_prob, log_mass : Tensor, shapes (1, M, D), (1, M, D, D), (1, M) and (1, M)
        As `nbi_plus.infer.samplers.peaks.Peaks`.
    n_looked : int
        Calls that it took to find them.
    """

    z: Tensor
    factor: Tensor
    log_prob: Tensor
    log_mass: Tensor
    n_looked: int = 0

    @classmethod
    def none(cls, like: Tensor) -> Summits:
        """Return no peak; ``like`` (..., D) is as places."""
        d, nothing = like.shape[-1], like.new_zeros(1, 0)
        return cls(like.new_zeros(1, 0, d), like.new_zeros(1, 0, d, d), nothing, nothing)

    @classmethod
    def of(cls, peaks: Peaks) -> Summits:
        """Return the peaks that were found of one object."""
        there = peaks.found[0]
        return cls(*(getattr(peaks, name)[:, there] for name in NAMES))

    def __len__(self) -> int:
        return self.z.shape[1]

    def where(self, chosen: Tensor) -> Summits:
        """Return those for which ``chosen`` (1, M) is true."""
        return replace(self, **{name: getattr(self, name)[:, chosen[0]] for name in NAMES})

    def plus(self, other: Summits) -> Summits:
        """Return these and others, which are not told apart."""
        both = (torch.cat([getattr(self, k), getattr(other, k)], 1) for k in NAMES)
        return Summits(*both, self.n_looked + other.n_looked)

    def apart_from(self, others: Summits, circles: tuple[int, ...]) -> Tensor:
        """Say which of these, bool (1, M), belong to none of the peaks of others."""
        z, factor = (torch.cat([getattr(o, k)[0] for o in (others, self)]) for k in NAMES[:2])
        n = len(others)
        alone = [
            not any(_same(z, factor, k, i, circles) for k in range(n)) for i in range(n, len(z))
        ]
        return torch.tensor([alone], dtype=torch.bool, device=self.z.device)

    def joined(
        self, step: Step, circles: tuple[int, ...], depth: float, n_most: int
    ) -> tuple[Summits, int]:
        """Return these and what one more search has found, and how many of that are new.

        Peaks lower than the highest by more than ``depth`` are left out.
        """
        n_looked, state = self.n_looked + step.n_looked, step.state
        if not state:
            return Summits(self.z, self.factor, self.log_prob, self.log_mass, n_looked), 0
        both = {k: torch.cat([getattr(self, k), state[k]], 1) for k in NAMES}
        height = both["log_prob"][0]
        kept: list[int] = []
        # of equal heights the earlier one stays
        for i in height.argsort(descending=True, stable=True).tolist():
            low = float(height[i]) < float(height.max()) - depth
            if len(kept) == n_most or low:
                break
            if not any(_same(both["z"][0], both["factor"][0], k, i, circles) for k in kept):
                kept.append(i)
        own = [i for i in range(len(self)) if float(height[i]) >= float(height.max()) - depth]
        n_new = sum(
            i >= len(self)
            and not any(_same(both["z"][0], both["factor"][0], k, i, circles) for k in own)
            for i in kept
        )
        return Summits(*(both[k][:, kept] for k in NAMES), n_looked), n_new


def _same(z: Tensor, factor: Tensor, first: int, second: int, circles: tuple[int, ...]) -> bool:
    """Say whether the second of the places z (M, D) belongs to the peak of the first."""
    away = z[second] - z[first]
    for column in circles:
        here = z[first, column]
        turn = torch.special.ndtr(z[second, column]) - torch.special.ndtr(here)
        density = (-0.5 * here.square()).exp() / math.sqrt(2 * math.pi)
        away[column] = (turn - turn.round()) / density
    u = torch.linalg.solve_triangular(factor[first], away[:, None], upper=False)
    return float(u.square().sum()) < _SAME
