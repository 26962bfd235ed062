"""Peak search: where one object's posterior is highest, uphill from the best draws so far.

A few ways up are gone at first. Where they lead to more than one peak, or to none, more draws of
the prior and more ways follow, as long as these find anything new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import PriorProposal
from nbi_plus.infer.proposals.cross_fit import Pair
from nbi_plus.infer.proposals.laplace import laplace_mixture
from nbi_plus.infer.samplers import ends, peaks
from nbi_plus.infer.samplers.landscape import at
from nbi_plus.infer.samplers.peaks import Peaks
from nbi_plus.infer.sequential.journal import Step
from nbi_plus.infer.sequential.summits import NAMES, Summits
from nbi_plus.infer.sequential.workspace import Workspace
from nbi_plus.problem.random import stage_key
from nbi_plus.problem.target import Z_MAX

_APART, _AWAY = 0.5, 1.0  # of two starts, and of one from earlier ways' ends, in latent units
_STARTS = (8, 4, 20)  # at first, each time more are wanted, and in all ...
_STARTS_OF_BLACK_BOX = (3, 2, 5)  # ... where each step takes calls in every direction ...
_EACH = 4  # ... or so many for each parameter
_LEAST = 4  # whatever the budget
_STEPS = 20  # of a way up, when the budget is shared among starts
_MOST_STEPS = 20  # of a way up, for each parameter; a cusp has no end
_MAX_PEAKS, _DEPTH = 10, 15.0
_N_ENDS = 4  # ways to the ends of a proposal ...
_POWER = 0.5  # ... whose density counts with this power ...
_NEAR = 8.0  # ... from draws that are lower than the highest by less ...
_SCARCE, _WORTH = 10.0, 1e-4  # ... to where the posterior is so much denser, and has such a share
_PILOT = 5  # of all draws around the peaks, one part says whether these are of any use


Find = Callable[..., Peaks]


@dataclass(frozen=True)
class PeakSearch:
    """Looks for the peaks of one object.

    Attributes
    ----------
    work : Workspace
    circles : tuple of int
        The periodic parameters.
    """

    work: Workspace
    circles: tuple[int, ...]

    def __call__(self, pair: Pair, stage: str) -> tuple[Pair, Summits]:
        """Return the streams with the scouts that were added, and the peaks.

        The search costs at most half of what the budget has left for rounds.
        """
        n_dim = pair.a.z.shape[-1]
        most = self.work.left(self.work.reserve) // 2
        known, used = Summits.none(pair.a.z), pair.a.z[0, :0]
        for i, n_starts in enumerate(self._batches(n_dim, most)):
            if i > 0:
                n = self.work.config.n_scouts
                pair = self.with_scouts(pair, min(n, most - known.n_looked), f"{stage} scouts {i}")
            starts = _starts(pair, n_starts, used, known.z[0])
            if len(starts):
                find = partial(peaks.find, self.work.ledger.log_prob)
                left = most - known.n_looked
                make = partial(self._ascend, find, starts, left, _MAX_PEAKS, f"{stage} {i}")
                step = self.work.journal.step(f"{stage} {i}", self.work.search(make))
                after, n_new = known.joined(step, self.circles, _DEPTH, _MAX_PEAKS)
                used = torch.cat([used, starts])
                known = after
                if i > 0 and n_new == 0 and len(known):
                    break
            if known.n_looked >= most:
                break
        return pair, known

    def beyond(self, pair: Pair, stage: str) -> Summits:
        """Return places where the posterior goes on and the last proposals hardly draw.

        Uphill from the heaviest draws on the ratio of both; what holds next to nothing is left out.
        """
        z, log_w = torch.cat([pair.a.z, pair.b.z], 1), pair.log_weights
        height = torch.cat([s.log_likelihood + s.log_prior for s in (pair.a, pair.b)], 1)
        near = height > pair.highest - _NEAR
        starts = at(z, torch.where(near, log_w, -math.inf).topk(_N_ENDS, 1).indices)
        log_prob, proposal = self.work.ledger.log_prob, pair.frozen
        find = partial(ends.find, log_prob, proposal, power=_POWER)
        most = self.work.left(self.work.reserve) // 2
        make = partial(self._ascend, find, starts[0], most, _N_ENDS, stage)
        step = self.work.journal.step(stage, self.work.search(make))
        if not step.state:
            return Summits.none(z)
        found = Summits(**step.state, n_looked=step.n_looked)
        evidence = log_w.logsumexp(1) - math.log(log_w.shape[1])
        scarce = found.log_prob - evidence - proposal.log_prob(found.z) > math.log(_SCARCE)
        return found.where(scarce & (found.log_mass - evidence > math.log(_WORTH)))

    def draws(self, known: Summits, n: int, stage: str) -> Iterator[Step]:
        """Yield a few draws of a Laplace mixture around the peaks, and the rest of ``n``."""
        proposal = laplace_mixture(known.z, known.factor, known.log_mass, self.circles)
        n_pilot = max(n // _PILOT, 2)
        for name, n_own in ((f"{stage} pilot", n_pilot), (stage, n - n_pilot)):
            if n_own > 0:
                make = partial(self.work.drawn, (proposal,), n_own, name)
                yield self.work.journal.step(name, make)._replace(family="mixture")

    def _batches(self, n_dim: int, most: int) -> Iterator[int]:
        """Yield how many ways up are gone, one batch after the other."""
        each, few = _STEPS * self._slope(n_dim), not self.work.ledger.target.differentiable
        at_first, more, in_all = _STARTS_OF_BLACK_BOX if few else _STARTS
        limit = max(_LEAST, min(in_all, _EACH * n_dim, most // each))
        first = min(at_first, limit)
        yield first
        for done in range(first, limit, more):
            yield min(more, limit - done)

    def _slope(self, n_dim: int) -> int:
        return 1 if self.work.ledger.target.differentiable else 2 * n_dim + 1

    def with_scouts(self, pair: Pair, n: int, stage: str) -> Pair:
        """Return the streams with ``n`` more draws of the prior, up to a round in all."""
        work, first = self.work, pair.a.proposals[0]
        each = zip(pair.a.proposals, pair.a.counts, strict=True)
        so_far = 2 * sum(n_own for own, n_own in each if own is first)
        left = min(work.config.n_per_round - so_far, work.left(work.reserve))
        n = min(n, left) // 2 * 2
        if n < 2 or not isinstance(first, PriorProposal):
            return pair
        step = work.journal.step(stage, partial(work.drawn, (first,), n, stage))
        found = work.evaluate(step.z, keep=True)
        alone = len(pair.a.proposals) == 1
        return pair.more(step.z, found) if alone else pair.share(first, step.z, found)

    def _ascend(self, find: Find, starts: Tensor, most: int, n_peaks: int, stage: str) -> Step:
        """Return the peaks uphill from starts (n, D), as the state of a step without draws.

        It costs at most ``most`` calls.
        """
        target, n_dim = self.work.ledger.target, starts.shape[1]
        shape = (2 * n_dim + 1) * self._slope(n_dim)  # the search spends this besides
        left = most - min(len(starts), n_peaks) * shape
        if left < len(starts) * self._slope(n_dim):
            return Step((), starts[None, :0], {}, "mixture")
        found = find(
            starts[None],
            seed=stage_key(self.work.seed, stage),
            circles=self.circles,
            differentiable=target.differentiable,
            config=peaks.PeaksConfig(
                max_steps=min(_MOST_STEPS * n_dim, peaks.PeaksConfig.max_steps),
                max_peaks=n_peaks,
                depth=_DEPTH,
                max_gradients=left,
            ),
        )
        return _step_of(found)


def _step_of(found: Peaks) -> Step:
    """Return the peaks of one object as the state of a step without draws."""
    inside = (found.found & (found.z.abs() < Z_MAX).all(-1))[0]
    state = {k: getattr(found, k)[:, inside] for k in NAMES}
    return Step((), found.z[:, :0], state, "mixture", int(found.n_gradients.sum()))


def _starts(pair: Pair, n: int, used: Tensor, tops: Tensor) -> Tensor:
    """Return the ``n`` best draws (n, D) apart from each other, from those used and from tops.

    Where these are few, the next best follow.
    """
    z = torch.cat([pair.a.z, pair.b.z], 1)[0]
    height = torch.cat([s.log_likelihood + s.log_prior for s in (pair.a, pair.b)], 1)[0]
    failed = torch.cat([pair.a.failed, pair.b.failed], 1)[0]
    usable = height.isfinite() & ~failed
    z = z[usable][height[usable].argsort(descending=True)]
    apart = (z[:, None] - used).norm(dim=-1)
    taken, near = (apart == 0).any(1), (apart < _APART).any(1)
    near |= ((z[:, None] - tops).norm(dim=-1) < _AWAY).any(1)
    order = []
    for i in range(len(z)):  # each choice decides what is left; they are few
        if len(order) == n:
            break
        if not near[i]:
            order.append(i)
            near |= (z - z[i]).norm(dim=-1) < _APART
    rest = [i for i in range(len(z)) if i not in set(order) and not taken[i]]
    return z[(order + rest)[:n]]
