"""Laplace mixtures: proposals from where densities peak, and how they bend there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.proposals.circles import Cut, CutProposal, stretch
from nbi_plus.infer.proposals.mixture import MANY_DIMS, MANY_DIMS_DOF, StudentMixture

FLOOR = 0.05  # share of all draws that every peak keeps
_FLOORS = 0.5  # of all peaks together, at most
_WIDTHS = (1.0, 1.8)
_WIDTH_SHARES = (0.8, 0.2)
_DOF = 7


def laplace_mixture(
    centre: Tensor, factor: Tensor, log_mass: Tensor, circles: tuple[int, ...] = ()
) -> LatentProposal:
    """Return one mixture of t around the peaks of each of B objects.

    Peaks have their shares of the mass, but no less than a floor: what a normal approximation
    thinks of a mode can be wrong by far.

    Parameters
    ----------
    centre : Tensor, shape (B, M, D)
        NaN where an object has fewer than M; one without any gets a part as wide as the prior.
    factor : Tensor, shape (B, M, D, D)
        Lower Cholesky factors of the covariances.
    log_mass : Tensor, shape (B, M)
        -inf where there is no peak.
    circles : tuple of int
        The periodic parameters.

    Examples
    --------
    >>> centre = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    >>> factor = torch.full((1, 2, 1, 1), 0.1, dtype=torch.float64)
    >>> mixture = laplace_mixture(centre, factor, torch.tensor([[0.0, -50.0]]).double())
    >>> mixture.log_shares.exp().round(decimals=2).tolist()
    [[0.76, 0.04, 0.19, 0.01]]
    """
    there = log_mass > -math.inf
    none = ~there.any(1)
    first = torch.arange(there.shape[1], device=there.device) == 0
    fallback = none[:, None] & first
    log_mass, there = torch.where(fallback, 0.0, log_mass), there | fallback
    shares = floored(log_mass.softmax(1), there)
    centre = torch.where(fallback[..., None], 0.0, centre)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    factor = torch.where(fallback[..., None, None], eye, factor)
    centre = torch.where(there[..., None], centre, 0.0)
    if circles:
        cut = Cut.of(centre, shares, circles)
        turned = cut.to(centre)
        factor = stretch(centre, turned, circles)[..., None] * factor
        centre = turned
    both = [(math.log(p), width) for p, width in zip(_WIDTH_SHARES, _WIDTHS, strict=True)]
    n_dim = centre.shape[-1]
    mixture = StudentMixture(
        torch.cat([shares.log() + log_p for log_p, _ in both], 1),
        torch.cat([centre for _ in both], 1),
        torch.cat([width * factor for _, width in both], 1),
        float(_DOF if n_dim <= MANY_DIMS else MANY_DIMS_DOF),
    )
    return CutProposal(mixture, cut) if circles else mixture


def floored(shares: Tensor, there: Tensor) -> Tensor:
    """Return shares (B, M) of which those of every mode ``there`` (B, M) have a floor."""
    n = there.sum(1, keepdim=True).clamp(min=1).to(shares)
    floor = torch.clamp(_FLOORS / n, max=FLOOR)
    return torch.where(there, (1 - n * floor) * shares + floor, 0.0)
