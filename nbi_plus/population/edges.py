"""Edges: how much of a population can lie where the priors of the answers allowed no draws."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.infer.posterior.support import beyond_edge
from nbi_plus.population.draws import PaddedDraws
from nbi_plus.population.likelihood import PopulationLikelihood

_LOG = logging.getLogger("nbi_plus")

_N_LOOKED = 32  # hyper-parameters of the answer at which edges are looked at
_N_POOLED = 4  # of these, draws of all objects together
_N_TRIED = 16  # draws of the hyper-prior that tell whether the family can go on
_NEAREST = 64  # draws of a piece, that they are told by
_HALVINGS = 6
_SEED = 1


def expected_beyond(likelihood: PopulationLikelihood, hyper: Tensor) -> NDArray[np.float64]:
    """Return how many objects of a population can be missed beyond the edges of their priors.

    The two numbers of each parameter and side, shape (D, 2, 2), are by two rules.

    Nothing is known there of what an object's data say. If they say what they say as far inside the
    edge, its draws, mirrored at the edge, are to be weighed by the density of the population. Where
    data are precise, the sum over objects is the mass of the population outside times their number.

    Families whose own edge is a hyper-parameter follow the draws inside, and no answer goes beyond.
    Where any hyper-parameters do, draws of all objects that pile up before the edge tell:
    `nbi_plus.infer.posterior.support.missing_share` has the rule. Of the sums over edges by either
    rule the larger one counts.

    Parameters
    ----------
    likelihood : PopulationLikelihood
    hyper : Tensor, shape (m, P)
        Hyper-parameters of equal weight.
    """
    looked = hyper[:: max(1, len(hyper) // _N_LOOKED)]
    pooled = hyper[:: max(1, len(hyper) // _N_POOLED)]
    prior = likelihood.family.prior
    tried = torch.from_numpy(prior.complete(prior.sample(_N_TRIED, _SEED))).to(hyper)
    beyond = np.zeros((len(likelihood.objects.names), 2, 2))
    for d in range(len(beyond)):
        for side in (0, 1):
            found = [piece for piece in likelihood.objects.pieces
                     if piece.support[:, d, side].isfinite().any()]  # fmt: skip
            sides = [_Side.of(piece, d, side) for piece in found]
            lost = sum(s.lost(likelihood, row) for s in sides for row in looked) / len(looked)
            goes_on = any(s.goes_on(likelihood, row) for s in sides for row in (*tried, *pooled))
            piled = _piled(likelihood, sides, pooled) if goes_on else 0.0
            beyond[d, side] = lost, piled
    return beyond


@dataclass(frozen=True)
class _Side:
    """Draws of a piece, mirrored at one edge of their priors.

    Attributes
    ----------
    piece : PaddedDraws
        Of objects that all have this edge.
    mirrored : Tensor, shape (b S, D)
    depth : Tensor, shape (b S,)
        How far from the edge they are.
    """

    piece: PaddedDraws
    mirrored: Tensor
    depth: Tensor

    @classmethod
    def of(cls, piece: PaddedDraws, d: int, side: int) -> _Side:
        """Return those objects of a piece that have an edge on a side of parameter d."""
        own = piece.support[:, d, side].isfinite()
        parts = (piece.theta, piece.weights, piece.log_ratio, piece.excess, piece.support)
        piece = PaddedDraws(*(v[own] for v in parts))
        away = piece.theta[..., d] - piece.support[:, d, side, None]
        mirrored = piece.theta.clone()
        mirrored[..., d] -= 2 * away
        return cls(piece, mirrored.flatten(0, 1), away.abs().flatten())

    def lost(self, likelihood: PopulationLikelihood, row: Tensor) -> float:
        """Return the sum over objects of what is outside over what is inside."""
        inside = torch.logsumexp(likelihood.log_terms(row[None], self.piece)[0], 1)
        density = _tried(likelihood, row, self.mirrored, self.depth)
        outside = self.piece.log_ratio + density.reshape(self.piece.weights.shape)
        return float(torch.exp(torch.logsumexp(outside, 1) - inside).nan_to_num(nan=0.0).sum())

    def goes_on(self, likelihood: PopulationLikelihood, row: Tensor) -> bool:
        """Say whether a family has any density beyond the edge, next to where draws are."""
        near = self.depth.topk(min(_NEAREST, len(self.depth)), largest=False).indices
        found = _tried(likelihood, row, self.mirrored[near], self.depth[near])
        return bool((found > -torch.inf).any())


def _piled(likelihood: PopulationLikelihood, sides: list[_Side], pooled: Tensor) -> float:
    """Return how many objects can lie beyond an edge before which draws of all objects pile up."""
    weights = []
    for own in sides:
        u = torch.softmax(likelihood.log_terms(pooled, own.piece), 2).nan_to_num(nan=0.0)
        weights.append(u.mean(0).flatten())
    depth, each = torch.cat([s.depth for s in sides]), torch.cat(weights)
    total = float(each.sum())
    if not total > 0:
        return 0.0
    used = each > 0
    share = (each[used] / total).cpu().numpy()
    likely, _ = beyond_edge(depth[used].cpu().numpy(), share, float(len(share)))
    return likely * total


def _tried(likelihood: PopulationLikelihood, row: Tensor, theta: Tensor, depth: Tensor) -> Tensor:
    """Return log densities of draws that a family need not know; -inf where it cannot tell.

    Families that end inside raise there, or give NaN. Those that raise at all draws together are
    asked again for the nearest ones.
    """
    found = torch.full_like(depth, -torch.inf)
    near = depth.isfinite()
    for _ in range(_HALVINGS):
        if not bool(near.any()):
            break
        try:
            found[near] = likelihood.family(row, theta[near]).nan_to_num(
                nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf
            )
            break
        except Exception as error:  # noqa: BLE001 - user code, outside of what it was made for
            _LOG.debug("the family knows nothing beyond the prior: %r", error)
            near = near & (depth <= depth[near].median())
            if bool((depth[near] == depth[near].max()).all()):
                break
    return found
