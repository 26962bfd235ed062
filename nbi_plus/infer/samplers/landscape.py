"""Starts of ascents: draws of each object from which the way up may lead to a place unseen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.infer.samplers.gradients import Gradients
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.problem.random import keyed_normal, keyed_uniform

_NEAR = (
    20.0  # below the highest log density: what lies deeper says nothing of the places that count
)
_WIDTHS = (1.5, 6.0)  # of places around a posterior, in its own


@dataclass(frozen=True)
class Landscape:
    """What draws of b objects know of their densities.

    Attributes
    ----------
    z : Tensor, shape (b, S, D)
    height : Tensor, shape (b, S)
        Unnormalised log posterior density; -inf where there is none.
    log_weights : Tensor, shape (b, S)
        Raw; -inf for draws without a weight.
    index, keys : Tensor of int64, shape (b,)
        Which objects of the target they are, and what their randomness is keyed by.
    """

    z: Tensor
    height: Tensor
    log_weights: Tensor
    index: Tensor
    keys: Tensor

    def highest(self, n: int) -> Tensor:
        """Return the n draws (b, n, D) of highest density."""
        return at(self.z, _top(self.height, n))

    def heaviest(self, n: int) -> Tensor:
        """Return the n draws (b, n, D) of the largest weights."""
        return at(self.z, _top(self.log_weights, n))

    def best_of_cells(self, n: int, seed: int, stage: str) -> Tensor:
        """Return the highest draw (b, n, D) of each of n cells around draws chosen at random."""
        usable = self.height > -math.inf
        lot = keyed_uniform(seed, f"{stage} cells", self.keys, self.height.shape[1:])
        centres = at(self.z, _top(torch.where(usable, lot, -math.inf), n))
        scale = self.spread[:, None]
        cell = torch.cdist(self.z / scale, centres / scale).argmin(2)
        own = cell[:, None] == torch.arange(n, device=cell.device)[:, None]
        height = torch.where(own, self.height[:, None], -math.inf)
        best = height.argmax(2)
        empty = height.amax(2) == -math.inf
        best = torch.where(empty, self.height.argmax(1, keepdim=True), best)
        return at(self.z, best)

    def suspects(self, n: int, other: Landscape) -> Tensor:
        """Return the n draws (b, n, D) of another landscape that are most above what one expects.

        That is the normal of this one's mean, covariance and greatest height. A draw at the foot
        of a narrow place is too high for where it is.
        """
        near = other.height > self.height.amax(1, keepdim=True) - _NEAR
        return at(other.z, _top(torch.where(near, self._excess(other), -math.inf), n))

    def some(self, n: int, seed: int, stage: str) -> Tensor:
        """Return n draws (b, n, D) at random of those that are not far below the highest."""
        near = self.height > self.height.amax(1, keepdim=True) - _NEAR
        lot = keyed_uniform(seed, f"{stage} some", self.keys, self.height.shape[1:])
        return at(self.z, _top(torch.where(near, lot, -math.inf), n))

    def steepest(self, n: int, places: Tensor, gradients: Gradients) -> tuple[Tensor, Tensor]:
        """Return the n places (b, n, D) of the steepest density, and how steep it is there (b, n).

        In coordinates in which the posterior is round, the gradient of a normal is as long as the
        draw is far from the middle: steepness is the ratio of both. At the foot of a narrow place
        that nobody visited it is much larger than one.

        Parameters
        ----------
        n : int
        places : Tensor, shape (b, m, D)
        gradients : Gradients
            Of ``log_prob(z, i)`` for rows i of these objects.
        """
        white = self.whitening
        u = white.to(places)
        _, slope = gradients(u, torch.arange(len(u), device=u.device), white)
        steep = slope.norm(dim=-1) / u.norm(dim=-1).clamp(min=u.shape[-1] ** 0.5)
        chosen = _top(steep, n)
        return at(places, chosen), steep.gather(1, chosen)

    def _excess(self, other: Landscape) -> Tensor:
        top = self.height.amax(1, keepdim=True)
        return other.height - top + 0.5 * self.whitening.to(other.z).square().sum(-1)

    def wider(self, n: int, seed: int, stage: str) -> Tensor:
        """Return n places (b, n, D) around the posterior, up to several times as wide as it."""
        shape = (n, self.z.shape[-1])
        noise = keyed_normal(seed, f"{stage} wider", self.keys, shape)
        low, high = (math.log(v) for v in _WIDTHS)
        scale = low + (high - low) * keyed_uniform(seed, f"{stage} widths", self.keys, (n, 1))
        return self.whitening.back(scale.exp() * noise)

    @property
    def whitening(self) -> Whitening:
        """Coordinates in which the posterior, as the weights have it, is round."""
        return Whitening.of(self.z, self.log_weights.softmax(1).nan_to_num(nan=0.0))

    @property
    def spread(self) -> Tensor:
        """Standard deviations (b, D) of all draws that have a density."""
        usable = self.height > -math.inf
        share = usable.to(self.z) / usable.sum(1, keepdim=True).clamp(min=1)
        z = torch.where(usable[..., None], self.z, 0.0)
        mean = (share[..., None] * z).sum(1, keepdim=True)
        return (share[..., None] * (z - mean).square()).sum(1).sqrt().clamp(min=1e-9)


def at(z: Tensor, which: Tensor) -> Tensor:
    """Return draws (b, n, D) by their numbers (b, n)."""
    return z.gather(1, which[..., None].expand(-1, -1, z.shape[-1]))


def _top(score: Tensor, n: int) -> Tensor:
    """Return the numbers (b, n) of the n largest scores, the best again where there are too few."""
    value, which = score.topk(min(n, score.shape[1]), 1)
    which = torch.where(value > -math.inf, which, which[:, :1])
    return which[:, torch.arange(n, device=which.device) % which.shape[1]]
