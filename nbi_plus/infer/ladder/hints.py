"""Hints: places in theta that are worth a look, such as the peaks of a periodogram."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.ingest import numbers
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.earlier import Earlier
from nbi_plus.infer.proposals.mixture import around
from nbi_plus.problem.prior.prior import Prior

Hints = ArrayLike | Callable[[Observations], ArrayLike]


def latent_hints(prior: Prior, theta: ArrayLike) -> NDArray[np.float64]:
    """Return places theta (..., M, D) in the latent space; NaN stays a coordinate nobody knows."""
    given = numbers("modes", theta)
    if given.ndim < 2 or given.shape[-1] != prior.n_dim or not given.shape[-2]:
        raise ValueError(
            f"modes must have shape (M, {prior.n_dim}) for parameters {prior.names}, or "
            f"(N, M, {prior.n_dim}) for N objects, but have {given.shape}."
        )
    known = np.isfinite(given)
    middle = np.asarray(prior.from_latent(np.zeros((1, prior.n_dim))))[0]
    filled = np.where(known, given, middle)
    z = np.asarray(prior.to_latent(filled.reshape(-1, prior.n_dim))).reshape(given.shape)
    outside = ~np.isfinite(z) & known
    if outside.any():
        worst = given[outside.any(-1)][0]
        raise ValueError(f"modes must lie inside the prior, but {worst} does not.")
    return np.where(known, z, np.nan)


def hints_for(
    modes: Hints, observations: Observations, prior: Prior, device: torch.device
) -> Earlier:
    """Return proposals around the places for each of N objects."""
    found = latent_hints(prior, modes(observations) if callable(modes) else modes)
    n = len(observations)
    if found.ndim == 2 and n == 1:
        found = found[None]
    if found.shape[:-2] != (n,):
        raise ValueError(
            f"modes must hold places for each of the {n} objects, shape ({n}, M, {prior.n_dim}), "
            f"but have {found.shape}."
        )
    places = torch.as_tensor(found, device=device)
    return Earlier.hints(around(places), places.isfinite().any(-1).any(-1))
