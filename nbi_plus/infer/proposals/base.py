"""Proposals: densities that draws come from, always with a broad defensive part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.infer.weights.clean import defensive_log_prob, log_mixture
from nbi_plus.learn.flows import Flow
from nbi_plus.problem.random import keyed_normal, keyed_uniform

_N_PROBES = 64  # draws of each object that tell what single precision costs
_PROBE_MAX = 1e-3  # of a log-weight: far below what a few thousand draws can see


class LatentProposal(Protocol):
    """A density of latent draws for each of B objects, that can be drawn from."""

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D), which depend on the key of their object alone."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities (B, S), float64, of draws z (B, S, D)."""

    def select(self, rows: Tensor) -> LatentProposal:
        """Return the proposals of some of the objects."""


class Draws(NamedTuple):
    """Latent draws z (B, S, D) and their log-density log_q (B, S), both float64."""

    z: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class FlowProposal:
    """The network's posterior, mixed with the same flow from a wider base.

    Attributes
    ----------
    flow : Flow
        Draws, in float32, and knows their density from the same pass.
    exact : Flow
        The same flow in float64. It says what that density is worth, by some draws of each object,
        and takes its place where rounding moved draws by too much of a posterior's width.
    share, width : float
        Of the defensive part. A share of 0 gives the plain network.
    """

    flow: Flow
    exact: Flow
    share: float = 0.2
    width: float = 2.0

    @torch.no_grad()
    def draw(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Draws:
        """Return n draws of each object and their density; those of one depend on its key alone.

        Parameters
        ----------
        features : Tensor, shape (B, F)
        keys : Tensor of int64, shape (B,)
        n : int
            The last ``share`` of them come from the wide part.
        seed, stage
            Of the randomness.
        """
        share = round(self.share * n) / n  # that was really drawn, which n may not divide into
        z, log_q = self._made(features, keys, n, seed, stage, share)
        log_q = log_q.to(torch.float64)
        if self.flow is not self.exact:
            log_q = probed(z, log_q, features, lambda *own: self._log_prob(*own, share))
        return Draws(z, log_q)

    @torch.no_grad()
    def places(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return the draws z (B, n, D) of `draw` alone."""
        return self._made(features, keys, n, seed, stage, self.share)[0]

    def log_prob(self, z: Tensor, features: Tensor) -> Tensor:
        """Return the log-density (B, S) of draws z (B, S, D), from one pass for both parts."""
        return self._log_prob(z, features, self.share)

    def ends_inside(self, z: Tensor, weights: Tensor, ess: Tensor) -> None:  # noqa: ARG002
        """Say nothing: these draws reach wherever their prior does."""

    def _made(
        self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str, share: float
    ) -> Draws:
        """Return draws and the density that the pass which made them knows."""
        noise = keyed_normal(seed, stage, keys, (n, self.flow.n_dims))
        n_wide = round(self.share * n)
        wide = torch.arange(n, device=noise.device) >= n - n_wide
        noise = torch.where(wide[:, None], self.width * noise, noise)
        choice = None
        if self.flow.config.n_mog > 1:
            choice = keyed_uniform(seed, stage + " component", keys, noise.shape[1:])
        made = [
            self.flow.draw(
                noise[i], features[i], None if choice is None else choice[i], self._scales(share)
            )
            for i in _pieces(noise)
        ]
        z = torch.cat([own for own, _ in made])
        return Draws(z, _joined([heights for _, heights in made], share))

    def _scales(self, share: float) -> tuple[float, ...]:
        return (1.0, self.width) if share else (1.0,)

    def _log_prob(self, z: Tensor, features: Tensor, share: float) -> Tensor:
        scales = self._scales(share)
        each = [self.exact.log_probs(z[i], features[i], scales) for i in _pieces(z)]
        return _joined(each, share)


@dataclass(frozen=True)
class Conditioned:
    """A network's proposal for given objects.

    Attributes
    ----------
    proposal : FlowProposal
    features : Tensor, shape (B, F)
    """

    proposal: FlowProposal
    features: Tensor

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D)."""
        return self.proposal.places(self.features, keys, n, seed, stage)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities (B, S) of draws z (B, S, D)."""
        return self.proposal.log_prob(z, self.features).to(torch.float64)

    def select(self, rows: Tensor) -> Conditioned:
        """Return the proposals of some of the objects."""
        return Conditioned(self.proposal, self.features[rows])


@dataclass(frozen=True)
class PriorProposal:
    """The prior: a standard normal in the latent space."""

    n_dim: int

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D)."""
        return keyed_normal(seed, stage, keys, (n, self.n_dim))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities (B, S) of draws z (B, S, D)."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def select(self, rows: Tensor) -> PriorProposal:  # noqa: ARG002 - the same for all objects
        """Return itself."""
        return self


@dataclass(frozen=True)
class Blend:
    """Several proposals in fixed shares; draws come in their order, so that each gets its share.

    Attributes
    ----------
    parts : tuple of LatentProposal
    shares : tuple of float
    """

    parts: tuple[LatentProposal, ...]
    shares: tuple[float, ...]

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D)."""
        edges = [math.floor(n * sum(self.shares[:i]) + 0.001) for i in range(len(self.parts) + 1)]
        drawn = [
            part.draw(keys, stop - start, seed, f"{stage} part {i}")
            for i, (part, start, stop) in enumerate(
                zip(self.parts, edges[:-1], edges[1:], strict=True)
            )
            if stop > start
        ]
        return torch.cat(drawn, 1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities (B, S) of draws z (B, S, D)."""
        each = torch.stack([part.log_prob(z) for part in self.parts])
        return log_mixture(each, self.shares)

    def select(self, rows: Tensor) -> Blend:
        """Return the proposals of some of the objects."""
        return Blend(tuple(part.select(rows) for part in self.parts), self.shares)


@dataclass(frozen=True)
class Separate:
    """One proposal for each of B objects, that nothing batches."""

    parts: tuple[LatentProposal, ...]

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D)."""
        each = zip(self.parts, keys.split(1), strict=True)
        return torch.cat([part.draw(key, n, seed, stage) for part, key in each])

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities (B, S) of draws z (B, S, D)."""
        return torch.cat([p.log_prob(own) for p, own in zip(self.parts, z.split(1), strict=True)])

    def select(self, rows: Tensor) -> Separate:
        """Return the proposals of some of the objects."""
        chosen = torch.arange(len(self.parts))[rows.cpu()].tolist()
        return Separate(tuple(self.parts[i] for i in chosen))


def probed(
    z: Tensor, log_q: Tensor, features: Tensor, exact: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Return log-densities (B, S) of draws z (B, S, D), exact ones where single precision shows.

    ``exact(z, features)`` gives those; a few draws of each object tell where it must be asked.
    """
    n = z.shape[1]
    probe = torch.arange(0, n, max(n // _N_PROBES, 1), device=z.device)
    error = log_q[:, probe] - exact(z[:, probe], features)
    rows = (~(error.abs().amax(1) < _PROBE_MAX)).nonzero()[:, 0]  # also what is NaN
    if len(rows):
        log_q[rows] = exact(z[rows], features[rows])
    return log_q


def free_flow(flow: Flow, share: float, width: float) -> Conditioned:
    """Return the defensive proposal of a flow whose context is one zero."""
    nothing = torch.zeros(1, 1, device=flow.mean.device)
    exact = flow.exact()  # draws too: single precision may misplace them where the map is steep
    return Conditioned(FlowProposal(exact, exact, share, width), nothing)


def _joined(pieces: list[tuple[Tensor, ...]], share: float) -> Tensor:
    """Return log-densities of all pieces, of the plain part or of it and the wide one."""
    parts = [torch.cat(each) for each in zip(*pieces, strict=True)]
    return defensive_log_prob(*parts, share) if len(parts) > 1 else parts[0]


def _pieces(draws: Tensor) -> Iterator[slice]:
    """Yield slices of objects whose draws (B, S, D) fit a launch."""
    step = max(1, launch.of(draws.device).flow_rows // max(draws.shape[1], 1))
    for start in range(0, len(draws), step):
        yield slice(start, start + step)
