"""Hints: places in theta that are worth a look, such as the peaks of a periodogram.

They come as points, as points with their errors, or as samples of an earlier answer. Points are
moved uphill before anything is drawn around them, for a published solution can be several widths
off under another likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.data.ingest import numbers
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.earlier import Earlier
from nbi_plus.infer.proposals.base import Blend, LatentProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.proposals.cross_fit import MixtureFamily, OnCircles
from nbi_plus.infer.proposals.laplace import laplace_mixture
from nbi_plus.infer.proposals.mixture import COARSE, around
from nbi_plus.infer.samplers import peaks
from nbi_plus.infer.samplers.peaks import Peaks, PeaksConfig
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.target import Target

Hints = ArrayLike | Mapping[str, ArrayLike] | Callable[[Observations], ArrayLike | Mapping]

_KINDS = {"points"}, {"points", "std"}, {"points", "cov"}, {"samples"}
_N_SKETCH = 16
_N_SHAPE = 400  # draws in theta that say how wide a point is in the latent space
_SHAPED, _POLISHED = 0.5, 0.75  # of the draws: from the given shapes, from the peaks above points
_UNSHAPED = 0.03  # latent width where no peak was found
_CHEAP = 1e-2  # seconds of one simulation, of those that ascents may be made with
_POLISH = PeaksConfig(max_steps=40, max_gradients=3000, max_peaks=8)


@dataclass(frozen=True)
class Look:
    """Where to look, for N objects.

    Attributes
    ----------
    points : Tensor, shape (N, M, D)
        Latent; NaN where a coordinate is not known.
    proposal : LatentProposal
        Of all that is known.
    """

    points: Tensor
    proposal: LatentProposal

    @classmethod
    def of(cls, modes: ArrayLike | Mapping, prior: Prior, device: torch.device) -> Look:
        """Return where hints of any kind say to look: the forms of ``modes=``."""
        told = modes if isinstance(modes, Mapping) else {"points": modes}
        if set(told) not in _KINDS:
            raise ValueError(
                "modes must be points, or a dict of points, of points and std or cov, or of "
                f"samples, but is a dict of {sorted(map(str, told))}."
            )
        if "samples" in told:
            return cls._of_samples(told["samples"], prior, device)
        z = latent_hints(prior, told["points"])
        z = z[None] if z.ndim == 2 else z
        points = torch.as_tensor(z, device=device)
        spread = next((k for k in ("std", "cov") if k in told), None)
        if spread is None:
            return cls(points, around(points))
        centre, factor = _latent_shapes(prior, told["points"], spread, told[spread])
        centre, factor = (torch.as_tensor(v, device=device) for v in (centre, factor))
        equal = torch.zeros_like(centre[..., 0])
        shaped = laplace_mixture(centre, factor, equal, circular_columns(prior.periods))
        both = Blend((shaped, around(points)), (_SHAPED, 1 - _SHAPED))
        return cls(points, both)

    @classmethod
    def _of_samples(cls, samples: ArrayLike, prior: Prior, device: torch.device) -> Look:
        given = numbers("modes", samples)
        n_dim = prior.n_dim
        if given.ndim not in (2, 3) or given.shape[-1] != n_dim or given.shape[-2] < 2 * n_dim:
            raise ValueError(
                f"modes must hold samples of shape (S, {prior.n_dim}), or (N, S, {prior.n_dim}) "
                f"for N objects, S at least {2 * prior.n_dim}, but have {given.shape}."
            )
        given = given[None] if given.ndim == 2 else given
        z = np.asarray(prior.to_latent(given.reshape(-1, prior.n_dim))).reshape(given.shape)
        inside = np.isfinite(z).all(-1)
        if not inside.any(1).all():
            raise ValueError("modes must hold samples inside the prior, but some hold none.")
        z = torch.as_tensor(np.where(inside[..., None], z, 0.0), device=device)
        weights = torch.as_tensor(inside / inside.sum(1, keepdims=True), device=device)
        keys = torch.arange(len(z), device=device)
        circles = circular_columns(prior.periods)
        close, wide = (
            OnCircles(family, circles).fit(z, weights, keys, 0, "samples")
            for family in (MixtureFamily(), MixtureFamily(COARSE))
        )
        best = torch.where(weights > 0, _closeness(z, weights), math.inf).argmin(1)
        middle = z.gather(1, best[:, None, None].expand(-1, 1, z.shape[2]))
        return cls(middle, Blend((close, wide), (1 - _SHAPED / 2, _SHAPED / 2)))

    @property
    def sketch(self) -> Tensor:
        """A few draws, which tell one look from another."""
        keys = torch.arange(len(self.points), device=self.points.device)
        return self.proposal.draw(keys, _N_SKETCH, 0, "sketch")

    def polished(
        self, target_of: Callable[[NDArray[np.int64]], Target]
    ) -> tuple[LatentProposal, Tensor]:
        """Return the proposal with the peaks above the points, and what finding them cost (N,).

        Parameters
        ----------
        target_of : callable
            Returns the target of some of the N objects, by their numbers.
        """
        known = self.points.isfinite().all(-1, keepdim=True)
        starts = torch.where(known, self.points, math.nan)
        found = Peaks.none(len(starts), _POLISH.max_peaks, starts)
        rows_of_known = known.any(1)[:, 0].nonzero()[:, 0]
        if not len(rows_of_known):
            return self.proposal, found.n_gradients
        at_once = launch.of(starts.device).escalated_objects
        for rows in rows_of_known.split(at_once):
            target = target_of(rows.cpu().numpy())
            if target.seconds_per_row > _CHEAP:
                return self.proposal, found.n_gradients
            circles = circular_columns(target.prior.periods)
            some = peaks.find(
                target.log_prob, starts[rows], circles=circles,
                differentiable=target.differentiable, config=_POLISH,
            )  # fmt: skip
            found.put(rows, some)
        none = ~found.found.any(1)
        centre, log_mass, factor = found.z, found.log_mass, found.factor
        centre[none, 0] = self.points[none, 0].nan_to_num(nan=0.0)
        factor[none, 0] *= _UNSHAPED
        log_mass[none, 0] = 0.0
        above = laplace_mixture(centre, factor, log_mass, circles)
        return Blend((above, self.proposal), (_POLISHED, 1 - _POLISHED)), found.n_gradients


def latent_hints(prior: Prior, theta: ArrayLike) -> NDArray[np.float64]:
    """Return places theta (..., M, D) in the latent space; NaN stays a coordinate nobody knows."""
    given = numbers("modes", theta)
    if given.ndim not in (2, 3) or given.shape[-1] != prior.n_dim or not given.shape[-2]:
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
    modes: Hints, observations: Observations, prior: Prior, device: torch.device,
    target_of: Callable[[NDArray[np.int64]], Target] | None = None,
) -> Earlier:  # fmt: skip
    """Return proposals around the places for each of N objects.

    ``target_of`` some of them, by their numbers, lets the points be moved uphill.
    """
    look = Look.of(modes(observations) if callable(modes) else modes, prior, device)
    n = len(observations)
    if len(look.points) != n:
        raise ValueError(
            f"modes must hold places for each of the {n} objects, shape ({n}, M, {prior.n_dim}), "
            f"but have {tuple(look.points.shape)}."
        )
    has_look = look.points.isfinite().any(-1).any(-1)
    if target_of is None:
        return Earlier.hints(look.proposal, has_look)
    proposal, spent = look.polished(target_of)
    return Earlier.hints(proposal, has_look, spent)


def _latent_shapes(
    prior: Prior, points: ArrayLike, kind: str, spread: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centres (N, M, D) and factors (N, M, D, D) of normals in theta, in the latent space.

    Draws are taken there: a transport of all parameters together bends ellipses.
    """
    centre, width = numbers("modes", points), numbers(f"modes, {kind}", spread)
    wanted = (*centre.shape, prior.n_dim) if kind == "cov" else centre.shape
    if width.shape != wanted or not np.isfinite(centre).all():
        raise ValueError(
            f"modes must give {kind} of shape {wanted} for known points of shape {centre.shape}, "
            f"but give {width.shape}."
        )
    if kind == "std" and not (width > 0).all():
        raise ValueError("modes must give std above 0, but some are not.")
    try:
        factor = np.linalg.cholesky(width) if kind == "cov" else None
    except np.linalg.LinAlgError as error:
        raise ValueError("modes must give positive definite cov, but some are not.") from error
    noise = np.random.default_rng(0).standard_normal((_N_SHAPE, prior.n_dim))
    moved = width[..., None, :] * noise if factor is None else noise @ np.swapaxes(factor, -1, -2)
    theta = (centre[..., None, :] + moved).reshape(-1, prior.n_dim)
    z = np.asarray(prior.to_latent(theta)).reshape(*centre.shape[:-1], _N_SHAPE, prior.n_dim)
    inside = np.isfinite(z).all(-1, keepdims=True)
    n = np.maximum(inside.sum(-2), 1)
    z = np.where(inside, z, 0.0)
    mean = z.sum(-2) / n
    away = np.where(inside, z - mean[..., None, :], 0.0)
    cov = np.swapaxes(away, -1, -2) @ away / n[..., None]
    cov += 1e-12 * np.eye(prior.n_dim) + 1e-6 * np.eye(prior.n_dim) * cov
    mean, factor = (v[None] if centre.ndim == 2 else v for v in (mean, np.linalg.cholesky(cov)))
    return mean, factor


def _closeness(z: Tensor, weights: Tensor) -> Tensor:
    """Return squared distances (N, S) from the mean, in standard deviations of each axis."""
    mean = (weights[..., None] * z).sum(1, keepdim=True)
    variance = (weights[..., None] * (z - mean).square()).sum(1, keepdim=True).clamp(min=1e-300)
    return ((z - mean).square() / variance).sum(-1)
