"""Setup: what a user gave to `fit`, checked and matched into one consistent problem."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nbi_plus.io.store import read_columns
from nbi_plus.problem.batch import Batch
from nbi_plus.problem.inputs import bind_simulator, one_object, split_inputs, with_grid
from nbi_plus.problem.noise import Noise
from nbi_plus.problem.observations import Observations
from nbi_plus.problem.prior import Prior
from nbi_plus.problem.simulator import BoundSimulator, Simulator

_LOG = logging.getLogger("nbi_plus")


@dataclass(frozen=True)
class Given:
    """Data as they came through a public door; see `Engine.fit` for their meaning."""

    observations: Observations | None = None
    x_obs: ArrayLike | None = None
    x_err: ArrayLike | None = None
    theta: ArrayLike | None = None
    x: ArrayLike | str | Path | None = None
    inputs: Mapping[str, ArrayLike] = field(default_factory=dict)

    def objects(self) -> Observations | None:
        """Return the objects to train for, or None when only a simulator tells the shape."""
        if self.observations is not None and self.x_obs is not None:
            raise ValueError("fit must have observations or x_obs, but has both.")
        if self.x_obs is not None:
            return one_object(self.x_obs, self.x_err, None, self.inputs)
        if self.observations is not None and not isinstance(self.observations, Observations):
            came = type(self.observations).__name__
            raise TypeError(f"observations must be Observations, but are {came}.")
        if self.observations is not None and self.x_err is not None:
            raise ValueError("x_err must be part of the observations, but was given beside them.")
        if self.observations is None:
            return None
        grid, _ = split_inputs(self.inputs)
        return with_grid(self.observations, {k: v.astype(np.float64) for k, v in grid.items()})

    def defaults(self) -> dict[str, NDArray[np.float64]]:
        """Return what other doors use when they are given nothing."""
        seen = self.objects()
        grid = dict(seen.points) if seen is not None and seen.shared_grid else {}
        errors = {} if self.x_err is None else {"x_err": self.x_err}
        given = {**self.inputs, **errors}
        return grid | {k: np.asarray(v, np.float64) for k, v in given.items()}

    def columns(self, prior: Prior) -> dict[str, NDArray] | None:
        """Return simulations made elsewhere, or None; rows that are not finite are left out."""
        if self.theta is None and self.x is None:
            return None
        theta, x = self.theta, self.x
        if isinstance(x, (str, Path)) and theta is None:
            stored = read_columns(x, ("theta", "x"))
            theta, x = stored["theta"], stored["x"]
        if theta is None or x is None:
            raise ValueError("theta and x must be given together, but one of them is missing.")
        return _columns(prior, theta, np.asarray(x, np.float64))


@dataclass(frozen=True)
class Setup:
    """One consistent problem.

    Attributes
    ----------
    prior : Prior
    simulator : BoundSimulator or None
    noise : Noise
        Bound.
    conditions : Batch
        Errors, masks, coordinates and scalars of the objects; float64, on the CPU.
    columns : dict of ndarray or None
        Simulations made elsewhere.
    """

    prior: Prior
    simulator: BoundSimulator | None
    noise: Noise
    conditions: Batch
    columns: dict[str, NDArray] | None


def set_up(
    prior: Prior, simulator: Simulator | Callable | None, noise: Noise, given: Given
) -> Setup:
    """Match prior, simulator, noise and data, or say what does not fit."""
    columns = given.columns(prior)
    if columns is None and simulator is None:
        raise ValueError(
            "fit must have a simulator or simulations, but has neither. "
            "Give Engine(simulator, prior), or fit(theta=..., x=...)."
        )
    seen = given.objects()
    start = _bare(given.inputs) if seen is None else seen.batch()
    bound = None if simulator is None else bind_simulator(simulator, prior, start)
    shape = tuple(bound.shape if columns is None else columns["x"].shape[1:])
    if seen is None:
        seen = one_object(np.zeros(shape), given.x_err, None, given.inputs)
    conditions = seen.batch()
    for came in (tuple(conditions.mask.shape[1:]), shape if bound is None else tuple(bound.shape)):
        if came != shape:
            raise ValueError(
                f"simulations and observations must have one shape (C, L), but have {shape} and "
                f"{came}. Did you swap x and theta?"
            )
    has_errors = conditions.x_err is not None
    bound_noise = noise.bind(has_errors, prior.full_names)
    if bound is not None and bound.stochastic and bound_noise.has_likelihood(has_errors):
        raise ValueError(
            "simulator must give the same x for the same theta, but gave two different ones: "
            "weights would be silently wrong. Move its noise into noise=, or give a "
            "CustomNoise without a log_likelihood and read status AMORTIZED."
        )
    return Setup(prior, bound, bound_noise, conditions, columns)


def _bare(inputs: Mapping[str, ArrayLike]) -> Batch:
    """Return a batch of one object that has inputs but no data, to bind a simulator with."""
    coords, scalars = split_inputs(inputs)
    return Batch(
        x=torch.zeros(1, 1, 1),
        x_err=None,
        mask=torch.ones(1, 1, 1, dtype=torch.bool),
        coords={k: torch.as_tensor(v.astype(np.float64)) for k, v in coords.items()},
        scalars={k: torch.as_tensor(v[None].astype(np.float64)) for k, v in scalars.items()},
    )


def _columns(prior: Prior, theta: ArrayLike, x: NDArray[np.float64]) -> dict[str, NDArray]:
    values = prior.check(theta)
    n = len(values)
    if x.ndim not in (2, 3) or len(x) != n or 0 in x.shape:
        raise ValueError(
            f"x must have shape ({n}, L) or ({n}, C, L), but has {x.shape}. "
            "Did you swap x and theta?"
        )
    x = x[:, None] if x.ndim == 2 else x
    z = np.asarray(prior.to_latent(values))  # infinite outside the prior, and on its edges
    good = np.isfinite(x).all((1, 2)) & np.isfinite(z).all(1)
    n_bad = int((~good).sum())
    if good.sum() < 2:
        raise ValueError(
            f"theta and x must have finite rows inside the prior, but {n_bad} of {n} have not."
        )
    if n_bad:
        _LOG.warning("%d of %d simulations are not finite or not inside the prior", n_bad, n)
    owner = np.zeros(int(good.sum()), np.int64)
    return {"z": z[good], "theta": values[good], "x": x[good], "owner": owner}
