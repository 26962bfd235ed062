"""Points that are upper limits: the source was fainter than what could be seen."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.base import PointNoise
from nbi_plus.problem.noise.points import ScatterNoise

FLAG = "upper_limit"


class UpperLimits(PointNoise):
    r"""Noise of data of which the faint ones are given as upper limits.

    A point flagged in the coordinate ``upper_limit`` says that the data lie below ``x``: it counts
    with their probability, :math:`\log \Phi((x - f) / s)` for Gaussian noise. The others count
    with their density. Observations without the coordinate have detections only. For fluxes: in
    magnitudes the faint lie above.

    Parameters
    ----------
    noise : GaussianNoise, StudentTNoise or OutlierNoise
        How measurements scatter, seen or not.
    n_sigma : float or None
        What is below ``n_sigma`` times the error of the point becomes a limit of that size when
        data are made. None keeps the flags and limits of the observations: then a limit in the
        training data does not depend on the parameters, so that the network learns nothing from
        it, and the weights alone do.

    Examples
    --------
    >>> from nbi_plus.problem.noise.points import StudentTNoise
    >>> noise = UpperLimits(StudentTNoise(4), n_sigma=3.0)
    """

    def __init__(self, noise: ScatterNoise, n_sigma: float | None = 5.0) -> None:
        if not isinstance(noise, ScatterNoise):
            raise TypeError(
                "noise must have independent points and a distribution function, but is "
                f"{noise!r}. Give GaussianNoise(...), StudentTNoise(...) or OutlierNoise(...)."
            )
        if n_sigma is not None and not 0 < n_sigma < math.inf:
            raise ValueError(f"n_sigma must be finite and positive, or None, but is {n_sigma!r}.")
        self.noise = noise
        self.n_sigma = n_sigma

    def in_unit(self, unit: str | None) -> UpperLimits:
        """Return a copy of which the noise that is wrapped is in the unit of the data."""
        same = copy.copy(self)
        same.noise = self.noise.in_unit(unit)
        return same

    def bind(self, has_errors: bool, names: tuple[str, ...]) -> UpperLimits:
        """Return a copy that knows the columns of its parameters."""
        if self.n_sigma is not None and not has_errors and self.noise.names_sigma:
            raise ValueError(
                f"sigma must be known for limits of n_sigma = {self.n_sigma} times it, but is the "
                f"parameter {self.noise.sigma!r}, which each limit would tell. Give x_err with the "
                "data, or n_sigma=None."
            )
        bound = copy.copy(self)
        bound.noise = self.noise.bind(has_errors, names)
        return bound

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return {"type": "UpperLimits", "noise": self.noise.meta(), "n_sigma": self.n_sigma}

    def fingerprint(self) -> str:
        """Return a text that changes with the noise."""
        return f"{super().fingerprint()} ({self.noise.fingerprint()})"

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        return self.noise._draw(model, obs, theta, rng)

    def _log_density(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        seen = self.noise._log_density(model, obs, theta)
        if FLAG not in obs.coords:
            return seen
        flagged = obs.coords[FLAG].bool().unsqueeze(-2)
        return torch.where(flagged, self.noise.log_cdf(model, obs, theta), seen)

    def _report(self, x: Tensor, obs: Batch) -> Batch:
        if self.n_sigma is not None:
            return self._censored(x, obs)
        flagged = obs.coords.get(FLAG, torch.zeros_like(obs.mask[:, 0])).bool().unsqueeze(-2)
        return obs.with_data(torch.where(flagged, obs.x, x).to(x.dtype))

    def _censored(self, x: Tensor, obs: Batch) -> Batch:
        """Return measurements x (n, 1, L) of which the faint are limits."""
        if FLAG not in obs.coords:
            raise ValueError(
                f"UpperLimits must have the coordinate {FLAG!r} to make training data with limits, "
                f"but the observations have {sorted(obs.coords) or 'none'}. Give {FLAG}= (True "
                "for a limit) with the data, all False if there is none, or n_sigma=None."
            )
        if x.shape[1] != 1:
            raise ValueError(
                f"x must have one channel for UpperLimits with n_sigma, but has {x.shape[1]}. "
                "Give the bands as a coordinate, or n_sigma=None."
            )
        limit = (self.n_sigma * self.noise.error_bars(x, obs)).to(x.dtype).expand_as(x)
        faint = (x < limit) & obs.mask
        data = obs.with_data(torch.where(faint, limit, x))
        return replace(data, coords=obs.coords | {FLAG: faint.squeeze(1)})
