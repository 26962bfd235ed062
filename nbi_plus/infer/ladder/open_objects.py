"""OpenObjects: objects on the ladder, with everything that earlier rungs found out about them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.batched import pick
from nbi_plus.infer.posterior.outcome import Chains, Outcome
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.proposals.cross_fit import Pair
from nbi_plus.infer.proposals.laplace import laplace_mixture
from nbi_plus.infer.samplers.landscape import Landscape
from nbi_plus.infer.samplers.peaks import Peaks

_FAR_BELOW = 10.0  # in log density: draws that low have not seen the place that matters


@dataclass(frozen=True)
class OpenObjects:
    """Objects that came the same way.

    Attributes
    ----------
    index, keys : Tensor of int64, shape (b,)
        Which objects of the target they are, and what their randomness is keyed by.
    pair : Pair
        Every weighted draw so far, and where it came from.
    tried : tuple of Outcome
        Of every rung so far, the last one last.
    chains : Chains or None
    peaks : Peaks or None
        Places that were found by looking for them.
    """

    index: Tensor
    keys: Tensor
    pair: Pair
    tried: tuple[Outcome, ...]
    chains: Chains | None = None
    peaks: Peaks | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def passed(self) -> Tensor:
        """Whom any rung certified, bool (b,)."""
        return torch.stack([o.passed for o in self.tried]).any(0)

    @property
    def can_improve(self) -> Tensor:
        """Whom another rung may help, bool (b,)."""
        return ~self.passed & self.tried[-1].can_improve

    @property
    def z(self) -> Tensor:
        """All weighted draws, shape (b, S, D)."""
        return torch.cat([self.pair.a.z, self.pair.b.z], 1)

    @property
    def n_dim(self) -> int:
        """How many parameters there are."""
        return self.pair.a.z.shape[-1]

    @property
    def landscape(self) -> Landscape:
        """What all weighted draws know of the densities."""
        streams = (self.pair.a, self.pair.b)
        height = torch.cat([s.log_prior + s.log_likelihood for s in streams], 1)
        failed = torch.cat([s.failed for s in streams], 1)
        height = torch.where(height.isfinite() & ~failed, height, -math.inf)
        return Landscape(self.z, height, self.pair.log_weights, self.index, self.keys)

    def around_peaks(self, circles: tuple[int, ...]) -> LatentProposal | None:
        """Return a proposal that gives all known peaks the same share, if any were looked for.

        What is fitted to draws gives a peak as many as it seems to weigh, and a light one too few
        to say what it weighs.
        """
        if self.peaks is None:
            return None
        alike = torch.zeros_like(self.peaks.log_mass).masked_fill(~self.peaks.found, -math.inf)
        return laplace_mixture(self.peaks.z, self.peaks.factor, alike, circles)

    def select(self, rows: Tensor) -> OpenObjects:
        """Return some of the objects."""
        return replace(
            self, index=self.index[rows], keys=self.keys[rows], pair=self.pair.select(rows),
            tried=tuple(o.select(rows) for o in self.tried), chains=pick(self.chains, rows),
            peaks=pick(self.peaks, rows),
        )  # fmt: skip

    def of(self, outcome: Outcome) -> OpenObjects:
        """Return those objects whose outcome it is, in its order: one of `answers`."""
        return self.where(torch.isin(self.index, outcome.pool.index))

    def where(self, chosen: Tensor) -> OpenObjects:
        """Return the objects for which ``chosen`` (b,) is true."""
        return self if bool(chosen.all()) else self.select(chosen.nonzero()[:, 0])

    def after(self, outcome: Outcome) -> OpenObjects:
        """Return the same objects after one more rung."""
        return replace(self, tried=(*self.tried, outcome))

    def again(self, outcome: Outcome) -> OpenObjects:
        """Return the objects with an outcome that an audit found wanting, and nothing before it."""
        return replace(self, tried=(outcome,), peaks=outcome.peaks)

    def answers(self) -> Iterator[Outcome]:
        """Yield outcomes that together hold each object once.

        That of the last rung that certified it, chains alone only where no weights were; without
        any, that of the largest effective sample among those that saw the highest densities.
        The chains of an object go along, converged or not.
        """
        passed = torch.stack([o.passed for o in self.tried])
        effective = torch.stack([o.summary.ess for o in self.tried])
        highest = torch.stack([_highest(o) for o in self.tried])
        effective = effective.masked_fill(highest < highest.amax(0) - _FAR_BELOW, -1.0)
        late = torch.arange(len(passed), device=passed.device)[:, None] + 1
        # certified weights know the evidence: they go before certified chains
        weighted = torch.stack([o.summary.log_evidence.isfinite() for o in self.tried])
        rank = passed * (late + len(passed) * weighted)
        score = torch.where(passed.any(0), rank, effective)
        best = score.argmax(0)
        for i, outcome in enumerate(self.tried):
            rows = (best == i).nonzero()[:, 0]
            if len(rows):
                yield replace(outcome, chains=self.chains).select(rows)


def _highest(outcome: Outcome) -> Tensor:
    """Return the highest log posterior density among the draws of each object, shape (b,)."""
    pool = outcome.pool
    found = (pool.log_prior + pool.log_likelihood).nan_to_num(nan=-math.inf)
    return found.masked_fill(pool.failed, -math.inf).amax(1).clamp(min=-1e300)
