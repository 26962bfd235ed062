"""Translated: proposals learnt in the latent space of one prior, for that of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nbi_plus.infer.posterior.reweighting import refuse_other_units
from nbi_plus.infer.posterior.support import MISSING_MAX, missing_share
from nbi_plus.infer.proposals.base import Draws, FlowProposal, LatentProposal
from nbi_plus.infer.proposals.several import MemberProposals
from nbi_plus.problem.prior.prior import Prior

_NOWHERE = 99.0  # beyond the support of every prior


@dataclass(frozen=True)
class Change:
    """From the prior that a proposal was learnt with to another one on the same parameters.

    With theta in common, log-densities of z change by ``log p(theta) - log N(z)`` of each prior.

    Attributes
    ----------
    old, new : Prior
    """

    old: Prior
    new: Prior

    def __post_init__(self) -> None:
        old, new = self.old, self.new
        if (new.full_names, new.fixed) != (old.full_names, old.fixed):
            raise ValueError(
                f"prior must be of the parameters {old.full_names} with fixed values {old.fixed}, "
                f"as in training, but is of {new.full_names} with {new.fixed}."
            )
        refuse_other_units(old.units, new)
        if not (old.has_inverse and new.has_inverse):
            raise ValueError(
                "prior must have an inverse, as that of the training, for draws to be translated, "
                "but one of them is a prior_transform. Fit again with the new prior."
            )
        if new.periods != old.periods:
            raise ValueError(
                f"prior must have the circles of the training, of periods {old.periods}, but has "
                f"{new.periods}. Use posterior.reweight, or fit again."
            )

    def draws(self, z: Tensor, log_q: Tensor) -> Draws:
        """Return draws (B, S, D) and their density; those outside the new prior are nowhere."""
        theta = _turned(self.old.from_latent(z), self.new)
        moved = self.new.to_latent(theta)
        inside = moved.isfinite().all(-1)
        moved = torch.where(inside[..., None], moved, 0.0)
        density = log_q + self._gained(z, theta, moved)
        nowhere = torch.full_like(moved, _NOWHERE)
        return Draws(
            torch.where(inside[..., None], moved, nowhere), torch.where(inside, density, 0.0)
        )

    def places(self, z: Tensor) -> Tensor:
        """Return draws (B, S, D) without their density."""
        return self.draws(z, torch.zeros_like(z[..., 0])).z

    def log_prob(self, z: Tensor, density: Callable[[Tensor], Tensor]) -> Tensor:
        """Return log-densities (B, S) of z of the new prior, from that of z of the old one."""
        theta = _turned(self.new.from_latent(z), self.old)
        own = self.old.to_latent(theta)
        inside = own.isfinite().all(-1) & (z < _NOWHERE).all(-1)
        own = torch.where(inside[..., None], own, 0.0)
        value = density(own) + self._gained(own, theta, z)
        return torch.where(inside, value, -torch.inf)

    def ends_inside(self, z: Tensor, weights: Tensor, ess: Tensor) -> Tensor:
        """Say whose posterior (b,) can go on where the old prior ends: see `missing_share`.

        Of draws z (b, S, D) of the new prior with weights (b, S).
        """
        with np.errstate(over="ignore"):
            theta = self.new.from_latent(z).cpu().numpy()
        edges = np.broadcast_to(self.old.support, (len(theta), self.old.n_dim, 2))
        own = weights.cpu().numpy(), ess.cpu().numpy()
        missing = missing_share(theta, *own, edges, self.new)
        return torch.as_tensor(missing > MISSING_MAX, device=z.device)

    def _gained(self, own: Tensor, theta: Tensor, moved: Tensor) -> Tensor:
        old, new = self.old, self.new
        learnt = old.log_prob(_turned(theta, old)) - old.log_prob_latent(own)
        return learnt + new.log_prob_latent(moved) - new.log_prob(_turned(theta, new))


@dataclass(frozen=True)
class TranslatedFlow:
    """A network's posterior, as `FlowProposal`, under another prior than its own."""

    inner: FlowProposal | MemberProposals
    change: Change

    def draw(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Draws:
        """Return n draws of each object; see `FlowProposal.draw`."""
        return self.change.draws(*self.inner.draw(features, keys, n, seed, stage))

    def places(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return them without their density."""
        return self.change.places(self.inner.places(features, keys, n, seed, stage))

    def log_prob(self, z: Tensor, features: Tensor) -> Tensor:
        """Return the log-density (B, S) of draws z (B, S, D)."""
        return self.change.log_prob(z, lambda own: self.inner.log_prob(own, features))

    def ends_inside(self, z: Tensor, weights: Tensor, ess: Tensor) -> Tensor:
        """Say whose posterior (b,) can go on where these draws end."""
        return self.change.ends_inside(z, weights, ess)


@dataclass(frozen=True)
class Translated:
    """A proposal of given objects under another prior than that it was fitted with."""

    inner: LatentProposal
    change: Change

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D)."""
        return self.change.places(self.inner.draw(keys, n, seed, stage))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities (B, S) of draws z (B, S, D); 0 for draws that are nowhere."""
        value = self.change.log_prob(z, self.inner.log_prob)
        return torch.where((z < _NOWHERE).all(-1), value, 0.0)

    def select(self, rows: Tensor) -> Translated:
        """Return the proposals of some of the objects."""
        return Translated(self.inner.select(rows), self.change)


def _turned(theta: Tensor, prior: Prior) -> Tensor:
    """Return theta with every angle on the side of the cut where this prior has it."""
    circles = [d for d, period in enumerate(prior.periods) if period is not None]
    if not circles:
        return theta
    whole = torch.tensor([prior.periods[d] for d in circles], dtype=theta.dtype)
    middle = prior.from_latent(torch.zeros(prior.n_dim, dtype=theta.dtype))[circles]
    whole, low = whole.to(theta.device), (middle - 0.5 * whole).to(theta.device)
    turned = theta.clone()
    turned[..., circles] = low + (theta[..., circles] - low) % whole
    return turned
