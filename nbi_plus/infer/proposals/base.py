"""Proposals: densities that draws come from, always with a broad defensive part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.infer.weights.clean import defensive_log_prob, log_mixture
from nbi_plus.learn.flows import Flow
from nbi_plus.problem.random import keyed_normal, keyed_uniform


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
        Draws; float32 is enough, since it moves them by 1e-5 of a posterior's width or so, and
        densities are evaluated afresh.
    exact : Flow
        The same flow in float64: the density of a stored draw is always this forward pass.
    share, width : float
        Of the defensive part. A share of 0 gives the plain network.
    """

    flow: Flow
    exact: Flow
    share: float = 0.2
    width: float = 2.0

    def draw(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Draws:
        """Return `places` and their density."""
        z = self.places(features, keys, n, seed, stage)
        # the share that was really drawn, which n may not divide into
        return Draws(z, self._log_prob(z, features, round(self.share * n) / n))

    @torch.no_grad()
    def places(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return n draws z (B, n, D) for each object; those of one depend on its key alone.

        Parameters
        ----------
        features : Tensor, shape (B, F)
        keys : Tensor of int64, shape (B,)
        n : int
            The last ``share`` of them come from the wide part.
        seed, stage
            Of the randomness.
        """
        noise = keyed_normal(seed, stage, keys, (n, self.flow.n_dims))
        n_wide = round(self.share * n)
        wide = torch.arange(n, device=noise.device) >= n - n_wide
        noise = torch.where(wide[:, None], self.width * noise, noise)
        choice = None
        if self.flow.config.n_mog > 1:
            choice = keyed_uniform(seed, stage + " component", keys, noise.shape[1:])
        return torch.cat(
            [
                self.flow.sample(noise[i], features[i], None if choice is None else choice[i])
                for i in _pieces(noise)
            ]
        )

    def log_prob(self, z: Tensor, features: Tensor) -> Tensor:
        """Return the log-density (B, S) of draws z (B, S, D), from one pass for both parts."""
        return self._log_prob(z, features, self.share)

    def ends_inside(self, z: Tensor, weights: Tensor, ess: Tensor) -> None:  # noqa: ARG002
        """Say nothing: these draws reach wherever their prior does."""

    @torch.no_grad()
    def _log_prob(self, z: Tensor, features: Tensor, share: float) -> Tensor:
        if not share:
            return torch.cat([self.exact.log_prob(z[i], features[i]) for i in _pieces(z)])
        scales = (1.0, self.width)
        both = [self.exact.log_probs(z[i], features[i], scales) for i in _pieces(z)]
        return torch.cat([defensive_log_prob(plain, wide, share) for plain, wide in both])


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
        return log_mixture(each, torch.tensor(self.shares, dtype=torch.float64))

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


def free_flow(flow: Flow, share: float, width: float) -> Conditioned:
    """Return the defensive proposal of a flow whose context is one zero."""
    nothing = torch.zeros(1, 1, device=flow.mean.device)
    exact = flow.exact()  # draws too: single precision may misplace them where the map is steep
    return Conditioned(FlowProposal(exact, exact, share, width), nothing)


def _pieces(draws: Tensor) -> Iterator[slice]:
    """Yield slices of objects whose draws (B, S, D) fit a launch."""
    step = max(1, launch.of(draws.device).flow_rows // max(draws.shape[1], 1))
    for start in range(0, len(draws), step):
        yield slice(start, start + step)
