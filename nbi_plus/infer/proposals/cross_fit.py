"""Cross-fitted adaptive importance sampling, for many objects at once.

Two streams of draws are kept for each object. Stream A draws from what was fitted to stream B, and
the other way round, so that no draw is weighted with a density that was fitted to it: pooled
adaptive importance sampling (Cornuet et al. 2012) without that biases the evidence low.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import Blend, LatentProposal, Separate, free_flow
from nbi_plus.infer.proposals.circles import Cut, CutProposal
from nbi_plus.infer.proposals.flow_fit import DensityConfig, fit_density
from nbi_plus.infer.proposals.mixture import MixtureConfig, Wide, fit_mixture, temper
from nbi_plus.infer.proposals.streams import Stream, take
from nbi_plus.infer.weights.summary import Gate, effective_sample_size, gate_of, normalise
from nbi_plus.problem.target import Z_MAX, Evaluation

WIDE = Wide()
PEAKS_SHARE = 0.15  # of the draws: around places that were found, whatever they seem to weigh


class ProposalFamily(Protocol):
    """A kind of density that can be fitted to weighted draws."""

    name: str

    def gate(self, gate: Gate) -> Gate:
        """Return the gate that draws of its fits must pass, here and everywhere."""

    @property
    def wider(self) -> ProposalFamily | None:
        """What the wide part of a proposal is fitted with; None where the fit has its own."""

    def wanted_ess(self, n_draws: int, n_dim: int) -> float:
        """Return how many effective draws a fit wants: weights are flattened to have them."""

    def within(self, seconds: float) -> ProposalFamily:
        """Return the same, whose fits take no longer for one object if they take long at all."""

    def fit(
        self, z: Tensor, weights: Tensor, keys: Tensor, seed: int, stage: str
    ) -> LatentProposal:
        """Return the proposal fitted to draws z (B, S, D) with normalised weights (B, S)."""


@dataclass(frozen=True)
class MixtureFamily:
    """Mixtures of t: fast, batched over objects, and content with few draws.

    Attributes
    ----------
    config : MixtureConfig
    wide : MixtureConfig or None
        Of the wide part; None takes ``config``.
    """

    config: MixtureConfig = field(default_factory=MixtureConfig)
    wide: MixtureConfig | None = None
    name = "mixture"

    def gate(self, gate: Gate) -> Gate:
        """Return the gate of mixtures."""
        return gate_of(self.name, gate)

    @property
    def wider(self) -> MixtureFamily:
        """The family of the wide part."""
        return self if self.wide is None else MixtureFamily(self.wide)

    def wanted_ess(self, n_draws: int, n_dim: int) -> float:  # noqa: ARG002
        """Return how many effective draws a fit wants."""
        return max(20 * n_dim, 150)

    def within(self, seconds: float) -> MixtureFamily:  # noqa: ARG002 - they are quick
        """Return itself."""
        return self

    def fit(
        self, z: Tensor, weights: Tensor, keys: Tensor, seed: int, stage: str
    ) -> LatentProposal:
        """Return one mixture for each object."""
        return fit_mixture(z, weights, keys, self.config, seed, stage)


@dataclass(frozen=True)
class FlowFamily:
    """Flows: for shapes that no mixture follows, at some seconds for each object and fit."""

    config: DensityConfig = field(default_factory=DensityConfig)
    share: float = 0.2
    width: float = 2.0
    name = "flow"
    wider = None  # flows bring their own wide part

    def gate(self, gate: Gate) -> Gate:
        """Return the gate of flows."""
        return gate_of(self.name, gate)

    def wanted_ess(self, n_draws: int, n_dim: int) -> float:
        """Return how many effective draws a fit wants: flows learn fewer by heart."""
        return max(20 * n_dim, 0.1 * n_draws, 400)

    def within(self, seconds: float) -> FlowFamily:
        """Return flows that are trained for so long at most."""
        return replace(self, config=replace(self.config, max_seconds=seconds))

    def fit(
        self, z: Tensor, weights: Tensor, keys: Tensor, seed: int, stage: str
    ) -> LatentProposal:
        """Return one flow for each object; they are trained one after the other."""
        parts = []
        for draws, own, key in zip(z, weights, keys.tolist(), strict=True):
            flow = fit_density(draws, own, self.config, seed, f"{stage} {key}")
            parts.append(free_flow(flow, self.share, self.width))
        return parts[0] if len(parts) == 1 else Separate(tuple(parts))


@dataclass(frozen=True)
class OnCircles:
    """Another family, in coordinates that cut every circle, or sum of two, where it has no mass.

    Attributes
    ----------
    inner : ProposalFamily
    circles : tuple of int
        The periodic parameters.
    """

    inner: ProposalFamily
    circles: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the inner family."""
        return self.inner.name

    def gate(self, gate: Gate) -> Gate:
        """As the inner family."""
        return self.inner.gate(gate)

    @property
    def wider(self) -> OnCircles | None:
        """The wide part of the inner family, in the same kind of coordinates."""
        return None if self.inner.wider is None else OnCircles(self.inner.wider, self.circles)

    def wanted_ess(self, n_draws: int, n_dim: int) -> float:
        """As the inner family."""
        return self.inner.wanted_ess(n_draws, n_dim)

    def within(self, seconds: float) -> OnCircles:
        """Return the inner family within that time, in the same kind of coordinates."""
        return OnCircles(self.inner.within(seconds), self.circles)

    def fit(
        self, z: Tensor, weights: Tensor, keys: Tensor, seed: int, stage: str
    ) -> LatentProposal:
        """Return one proposal for each object."""
        if not self.circles:
            return self.inner.fit(z, weights, keys, seed, stage)
        cut = Cut.of(z, weights, self.circles, sums=True)
        return CutProposal(self.inner.fit(cut.to(z), weights, keys, seed, stage), cut)


@dataclass(frozen=True)
class Pair:
    """The two streams of B objects.

    Attributes
    ----------
    a, b : Stream
        With as many draws of as many proposals each.
    n_shared : int
        How many of their first proposals were not cross-fitted: draws of these count for moments
        alone, never for the evidence.
    """

    a: Stream
    b: Stream
    n_shared: int = 1

    @classmethod
    def start(
        cls, proposal: LatentProposal, z: Tensor, found: Evaluation, log_q: Tensor | None = None
    ) -> Pair:
        """Return streams that take turns in the draws z (B, S, D) of one proposal.

        ``log_q`` (B, S) is their density, where it is known already.
        """
        log_q = proposal.log_prob(z) if log_q is None else log_q
        turns = (slice(0, None, 2), slice(1, None, 2))
        return cls(*(Stream.start(proposal, z[:, i], take(found, i), log_q[:, i]) for i in turns))

    def share(self, proposal: LatentProposal, z: Tensor, found: Evaluation) -> Pair:
        """Return streams that take turns in the draws of a proposal that was fitted to both."""
        (za, fa), (zb, fb) = _turns(z, found)
        a, b = self.a.add(proposal, za, fa), self.b.add(proposal, zb, fb)
        return Pair(a, b, len(a.proposals))

    def more(self, z: Tensor, found: Evaluation) -> Pair:
        """Return streams with more draws of `to_judge`: of both last proposals, or of the one."""
        first, second = (_turns if len(self.to_judge) == 1 else _halves)(z, found)
        return replace(self, a=self.a.more(*first), b=self.b.more(*second))

    def extend(
        self, proposals: tuple[LatentProposal, LatentProposal], z: Tensor, found: Evaluation
    ) -> Pair:
        """Return streams with draws z: the first half of proposal A, the second of proposal B."""
        (za, fa), (zb, fb) = _halves(z, found)
        return replace(self, a=self.a.add(proposals[0], za, fa), b=self.b.add(proposals[1], zb, fb))

    def fit(
        self, family: ProposalFamily, keys: Tensor, seed: int, stage: str,
        wide: Wide = WIDE,
    ) -> tuple[LatentProposal, LatentProposal]:  # fmt: skip
        """Return what stream A shall draw from, fitted to B, and what B shall, fitted to A."""
        return self._fit(self.b, family, keys, seed, stage + " a", wide), self._fit(
            self.a, family, keys, seed, stage + " b", wide
        )

    @property
    def proposals(self) -> tuple[LatentProposal, LatentProposal]:
        """The last proposals of both."""
        return self.a.proposals[-1], self.b.proposals[-1]

    @property
    def to_judge(self) -> tuple[LatentProposal, ...]:
        """What fresh draws come from, in equal shares: the last proposals, or the one of both."""
        crossed = self.n_shared < len(self.a.proposals)
        return self.proposals if crossed else self.proposals[:1]

    @property
    def frozen(self) -> LatentProposal:
        """The same as one proposal."""
        last = self.to_judge
        return last[0] if len(last) == 1 else Blend(last, (0.5, 0.5))

    def judged(
        self, z: Tensor, found: Evaluation, fresh: Stream | None = None
    ) -> tuple[Pair, Stream]:
        """Return the streams with fresh draws z (B, S, D), and a stream of these alone: it judges.

        ``fresh`` are those that were drawn before.
        """
        fresh = Stream.start(self.frozen, z, found) if fresh is None else fresh.more(z, found)
        return self.more(z, found), fresh

    @property
    def latest(self) -> Stream:
        """The draws of the last proposals, which these were not fitted to, as one stream."""
        last = self.last()
        names = ("z", "log_prior", "log_likelihood", "failed")
        z, *found = (torch.cat([getattr(s, k) for s in (last.a, last.b)], 1) for k in names)
        return Stream.start(self.frozen, z, Evaluation(*found))

    @property
    def log_weights(self) -> Tensor:
        """Raw log-weights of all draws (B, S), to learn from."""
        return torch.cat([self.a.log_weights, self.b.log_weights], 1)

    def in_turns(self) -> Tensor:
        """Return the raw log-weights (S,) of the first object, in the order its draws were made.

        For streams that took turns in every proposal.
        """
        turns = []
        rounds = (s.log_weights[0].split(list(s.counts)) for s in (self.a, self.b))
        for own, twin in zip(*rounds, strict=True):
            turn = own.new_empty(len(own) + len(twin))
            turn[0::2], turn[1::2] = own, twin
            turns.append(turn)
        return torch.cat(turns)

    @property
    def highest(self) -> Tensor:
        """The highest log posterior density among the draws, shape (B,)."""
        each = [(s.log_prior + s.log_likelihood).masked_fill(s.failed, -torch.inf)
                for s in (self.a, self.b)]  # fmt: skip
        return torch.cat(each, 1).nan_to_num(nan=-torch.inf).amax(1)

    @property
    def n_draws(self) -> int:
        """Draws of each object so far."""
        return sum(self.a.counts) + sum(self.b.counts)

    @property
    def ess(self) -> Tensor:
        """Effective sample size of all draws, shape (B,)."""
        return effective_sample_size(self.log_weights)

    def efficiency(self) -> Tensor:
        """Return the share of effective draws of the last proposals, shape (B,)."""
        last = self.last().log_weights
        return effective_sample_size(last) / last.shape[1]

    def last(self) -> Pair:
        """Return the draws of the last proposals alone."""
        return self.since(len(self.a.proposals) - 1)

    def since(self, first: int) -> Pair:
        """Return the draws of the proposals from number ``first`` on."""
        return Pair(self.a.since(first), self.b.since(first), max(self.n_shared - first, 0))

    def unbiased(self) -> Pair:
        """Return the draws that the evidence may use."""
        return self.since(self.n_shared)

    def select(self, rows: Tensor) -> Pair:
        """Return the streams of some of the objects."""
        return replace(self, a=self.a.select(rows), b=self.b.select(rows))

    @staticmethod
    def _fit(
        stream: Stream, family: ProposalFamily, keys: Tensor, seed: int, stage: str,
        wide: Wide,
    ) -> LatentProposal:  # fmt: skip
        return fit_defended(
            stream.z, stream.log_weights, stream.flat_log_weights, family, keys, seed, stage,
            wide,
        )  # fmt: skip


def _turns(z: Tensor, found: Evaluation) -> list[tuple[Tensor, Evaluation]]:
    """Return every second draw, for stream A, and the others for stream B."""
    return [(z[:, i::2], take(found, slice(i, None, 2))) for i in (0, 1)]


def _halves(z: Tensor, found: Evaluation) -> list[tuple[Tensor, Evaluation]]:
    """Return the draws of stream A, and those of stream B."""
    half = z.shape[1] // 2
    return [(z[:, own], take(found, own)) for own in (slice(0, half), slice(half, None))]


def fit_defended(
    z: Tensor, log_weights: Tensor, flat_log_weights: Tensor, family: ProposalFamily, keys: Tensor,
    seed: int, stage: str, wide: Wide = WIDE,
) -> LatentProposal:  # fmt: skip
    """Fit to the target, and for a small share of the draws to its square root.

    That part is wide in the shape of the posterior; a wide ellipse would miss a bent tail.

    Parameters
    ----------
    z : Tensor, shape (B, S, D)
    log_weights, flat_log_weights : Tensor, shape (B, S)
        Of the draws towards the target, and towards its square root.
    family : ProposalFamily
    keys : Tensor of int64, shape (B,)
    seed, stage
        Of the randomness.
    wide : Wide
    """
    wanted = family.wanted_ess(*z.shape[1:])
    close = family.fit(z, _flattened(log_weights, wanted, z), keys, seed, stage)
    if family.wider is None:
        return close
    flat = _flattened(flat_log_weights, wanted, z)
    far = family.wider.fit(z, flat, keys, seed, stage + " wide").wider(wide.factor(z.shape[-1]))
    return Blend((close, far), (1 - wide.share, wide.share))


def _flattened(log_weights: Tensor, wanted: float, z: Tensor) -> Tensor:
    """Return flattened weights (B, S); where no draw has any, all inside the space count alike."""
    weights, _ = temper(log_weights, wanted)
    inside = (z.abs() <= Z_MAX).all(-1).to(weights.dtype)
    inside = torch.where(inside.sum(1, keepdim=True) > 0, inside, torch.ones_like(inside))
    alike = inside / inside.sum(1, keepdim=True)
    return torch.where(weights.sum(1, keepdim=True) > 0, weights, alike)


def with_share(proposal: LatentProposal, around: LatentProposal, share: float) -> LatentProposal:
    """Return a proposal of which another one has a share."""
    return Blend((proposal, around), (1 - share, share))


def best_fit(
    pair: Pair, families: tuple[ProposalFamily, ...], keys: Tensor, seed: int, stage: str,
    wide: Wide = WIDE,
) -> tuple[ProposalFamily, tuple[LatentProposal, LatentProposal]]:  # fmt: skip
    """Return the family, and its proposals for both streams, that fits the streams best.

    The score is the weighted log-density that the draws of each stream get from what was fitted to
    its twin, summed over the objects.
    """
    if len(families) == 1:
        return families[0], pair.fit(families[0], keys, seed, stage, wide)

    def score(proposals: tuple[LatentProposal, LatentProposal]) -> float:
        each = zip((pair.a, pair.b), proposals, strict=True)
        gains = [(normalise(own.log_weights) * q.log_prob(own.z)).sum() for own, q in each]
        return float(sum(gains))

    fits = [(family, pair.fit(family, keys, seed, stage, wide)) for family in families]
    return max(fits, key=lambda fit: score(fit[1]))
