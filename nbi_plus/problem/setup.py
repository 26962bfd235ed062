"""Setup: what a user gave to `fit`, checked and matched into one consistent problem."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.batch import Batch
from nbi_plus.data.ingest import numbers, unit_of
from nbi_plus.data.observations import Observations
from nbi_plus.data.packing import as_given, coordinate, scalar
from nbi_plus.problem.binding import (
    COMMON,
    NONE_KNOWN,
    Conventions,
    asked_for,
    bind_simulator,
    check_observations,
    one_object,
    split_inputs,
    with_grid,
)
from nbi_plus.problem.checks.noise_check import checks_of, require, rows_of, simulated_rows
from nbi_plus.problem.gathered import Files, GatheredFiles, are_files
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.simulator.cadence import TIME
from nbi_plus.problem.simulator.dense import DenseGrid
from nbi_plus.problem.simulator.simulator import BoundSimulator, Simulator
from nbi_plus.problem.target import Target
from nbi_plus.problem.window import window_of

_LOG = logging.getLogger("nbi_plus")
_N_TRIED = 6  # simulations that the noise is tried on
_BANK_NUMBERS = 2**22  # padded data of the objects that simulations imitate


@dataclass(frozen=True)
class FitInputs:
    """Data as they came through a public door; see `Engine.fit` for their meaning."""

    observations: Observations | None = None
    x_obs: ArrayLike | None = None
    x_err: ArrayLike | None = None
    theta: ArrayLike | None = None
    x: ArrayLike | Files | None = None
    inputs: Mapping[str, ArrayLike] = field(default_factory=dict)
    grid: ArrayLike | Mapping[str, ArrayLike] | None = None
    known: Conventions = NONE_KNOWN
    mask: ArrayLike | None = None

    @property
    def unit(self) -> str | None:
        """That of the data, or of the errors where there are no data."""
        seen = self.objects
        return unit_of(self.x_err) if seen is None else seen.units.get("x")

    @cached_property
    def objects(self) -> Observations | None:
        """Return the objects to train for, or None when only a simulator tells the shape."""
        if self.observations is not None and self.x_obs is not None:
            raise ValueError("fit must have observations or x_obs, but has both.")
        if self.x_obs is not None:
            return one_object(self.x_obs, self.x_err, self.mask, self.inputs, self.known)
        if self.mask is not None:
            raise ValueError("mask or bad must come with x_obs, whose points they are of.")
        if self.observations is None:
            return None
        if self.x_err is not None:
            raise ValueError("x_err must be part of the observations, but was given beside them.")
        check_observations(self.observations)
        _check_new(self.inputs, self.observations)
        coords, scalars, units = self._split()
        one = {k: v for k, v in scalars.items() if not v.ndim}
        n = len(self.observations)
        each = {k: scalar(k, v, n) for k, v in scalars.items() if v.ndim}
        found = replace(
            self.observations,
            scalars=self.observations.scalars | each,
            units=self.observations.units | {k: u for k, u in units.items() if k in each},
        )
        own = Conventions(self.known.categories, {**self.known.units, **units})
        return with_grid(found, coords | one, own).like(*self.known)

    def _split(self) -> tuple[dict[str, NDArray], dict[str, NDArray], dict[str, str]]:
        """Return coordinates, scalars and units of the inputs.

        Beside observations, an array of one number for each object is a scalar.
        """
        coords, scalars, units = split_inputs(self.inputs)
        if self.observations is None:
            return coords, scalars, units
        each = {k: v for k, v in coords.items() if _is_each(k, v, self.observations)}
        return {k: v for k, v in coords.items() if k not in each}, scalars | each, units

    def defaults(self) -> dict[str, NDArray[np.float64]]:
        """Return what other doors use when they are given nothing."""
        seen = self.objects
        grid = {}
        if seen is not None and seen.shared_grid:
            grid = {k: as_given(v, seen.categories.get(k)) for k, v in seen.points.items()}
        coords, scalars, _ = self._split()
        given = {k: v.astype(np.float64) for k, v in scalars.items() if not v.ndim}
        # what is masked was good for this object alone
        whole = {k: v for k, v in coords.items() if not np.ma.getmaskarray(v).any()}
        grid = {k: v for k, v in grid.items() if k in whole or k not in coords}
        for name, value in whole.items():
            given[name] = as_given(*coordinate(name, value, self.known.categories.get(name)))
        if self.x_err is not None:
            given["x_err"] = numbers("x_err", self.x_err, self.unit)
        return grid | {k: v for k, v in given.items() if k not in grid}

    def dense_grid(self, bank: Batch, wanted: set[str]) -> DenseGrid | None:
        """Return the grid to simulate on, for a simulator that asks for the ``wanted``."""
        if self.grid is None:
            return None
        grids = dict(self.grid) if isinstance(self.grid, Mapping) else {TIME: self.grid}
        codes = [k for k in bank.categories if k in wanted]
        name = next(iter(grids), TIME)
        if len(grids) != 1 or name not in bank.coords or name not in wanted or len(codes) > 1:
            raise ValueError(
                "grid must hold values of one coordinate of the observations that the simulator "
                f"asks for, besides at most one of categories, but has {tuple(grids)}; the "
                f"observations have {tuple(bank.coords)}, and the simulator asks for "
                f"{tuple(sorted(wanted))}."
            )
        units = {} if self.objects is None else self.objects.units
        nodes = torch.as_tensor(numbers(name, grids[name], units.get(name)))
        grid = DenseGrid(name, nodes)
        if codes:
            grid = DenseGrid(name, nodes, codes[0], len(bank.categories[codes[0]]))
        n_out = int((~grid.covers(torch.atleast_2d(bank.coords[name]))).sum())
        if n_out:
            raise ValueError(
                f"grid must cover every {name} of the observations, but {n_out} objects have "
                f"points outside {nodes[0]:g} to {nodes[-1]:g}. Widen it, or make times relative "
                "to each object with observations.relative_to."
            )
        return grid

    def columns(self, prior: Prior) -> dict[str, NDArray] | None:
        """Return simulations made elsewhere, in the unit of the data, or None.

        Rows that are not finite are left out.
        """
        if self.theta is None and self.x is None:
            return None
        if are_files(self.x):
            return None
        if self.theta is None or self.x is None:
            raise ValueError("theta and x must be given together, but one of them is missing.")
        return _columns(prior, self.theta, numbers("x", self.x, self.unit))

    def files(self, prior: Prior) -> GatheredFiles | None:
        """Return the files of simulations made elsewhere, looked through, or None."""
        return GatheredFiles.open(self.x, prior, self.theta) if are_files(self.x) else None


@dataclass(frozen=True)
class Problem:
    """One consistent problem.

    Attributes
    ----------
    prior : Prior
    simulator : BoundSimulator or None
    noise : Noise
        Bound.
    conditions : Batch
        Errors, masks, coordinates and scalars of the objects, or of as many as are imitated;
        float64, on the CPU.
    columns : dict of ndarray or None
        Simulations made elsewhere.
    files : GatheredFiles or None
        Of these, where they are read from there.
    grid : DenseGrid or None
        Where simulations are made, if not at the objects' own points.
    units : dict of str
        Of the observations.
    window : tuple of float, or None
        Their first and last time.
    """

    prior: Prior
    simulator: BoundSimulator | None
    noise: Noise
    conditions: Batch
    columns: dict[str, NDArray] | None
    grid: DenseGrid | None = None
    units: dict[str, str] = field(default_factory=dict)
    window: tuple[float, float] | None = None
    files: GatheredFiles | None = None

    def made(self, rows: slice = slice(None)) -> dict[str, NDArray] | None:
        """Return simulations made elsewhere, in memory, or None where the simulator makes them."""
        if self.files is not None:
            return self.files.read(rows)
        return None if self.columns is None else {k: v[rows] for k, v in self.columns.items()}

    @property
    def simulated_at(self) -> Batch:
        """Coordinates and scalars that simulations are made with."""
        return self.conditions if self.grid is None else self.grid.conditions(self.conditions)

    @property
    def fixed(self) -> bool:
        """Whether a simulation is good for the object alone that it was made for."""
        asked = set() if self.simulator is None else set(self.simulator.arguments)
        return self.grid is None and bool(self.conditions.per_object() & asked)

    def target(
        self, n_jobs: int | None, client: object | None, device: torch.device | str = "cpu"
    ) -> Target:
        """Return what is believed of the objects."""
        data = self.conditions.to(device)
        return Target(self.prior, self.simulator, self.noise, data, n_jobs, client)


def set_up(
    prior: Prior,
    simulator: Simulator | Callable | None,
    noise: Noise,
    given: FitInputs,
    n_jobs: int | None = None,
) -> Problem:
    """Match prior, simulator, noise and data, or say what does not fit."""
    if given.theta is None and given.x is None and simulator is None:
        raise ValueError(
            "fit must have a simulator or simulations, but has neither. "
            "Give Engine(simulator, prior), or fit(theta=..., x=...)."
        )
    seen, unit = given.objects, given.unit
    columns, files = given.columns(prior), given.files(prior)
    elsewhere = files is not None or columns is not None
    start = _bare(given.inputs) if seen is None else _bank(seen).batch()
    grid = given.dense_grid(start, asked_for(simulator, start))
    place = start if grid is None else grid.conditions(start)
    bound = None
    if simulator is not None:
        bound = bind_simulator(simulator, prior, place, unit, n_jobs)
    made = bound if files is None else files
    shape = tuple(made.shape if columns is None else columns["x"].shape[1:])
    if seen is None:
        units = {} if unit is None else {"x": unit}
        seen = one_object(np.zeros(shape), given.x_err, None, given.inputs, Conventions({}, units))
        start = place = seen.batch()
    _check_points(seen, bound, elsewhere and grid is None)
    for came in (tuple(place.mask.shape[1:]), shape if bound is None else tuple(bound.shape)):
        if came != shape:
            raise ValueError(
                f"simulations and observations must have one shape (C, L), but have {shape} and "
                f"{came}. Did you swap x and theta?"
            )
    has_errors = start.x_err is not None
    bound_noise = noise.in_unit(unit).bind(has_errors, prior.full_names)
    weighs = bound_noise.reads_model and bound_noise.has_likelihood(has_errors)
    if bound is not None and bound.stochastic and weighs:
        raise ValueError(
            "simulator must give the same x for the same theta, but gave two different ones: "
            "weights would be silently wrong. Move its noise into noise=, or give a "
            "CustomNoise without a log_likelihood and read status AMORTIZED."
        )
    window = window_of(seen)
    return Problem(prior, bound, bound_noise, start, columns, grid, seen.units, window, files)


def _check_new(inputs: Mapping[str, ArrayLike], observations: Observations) -> None:
    """Refuse inputs that the observations have themselves."""
    twice = sorted({*observations.points, *observations.scalars} & set(inputs))
    if twice:
        raise ValueError(
            f"{twice[0]} must be given once, but the observations have it and fit was given "
            f"{twice[0]}= beside them. Leave out one of the two."
        )


def _is_each(name: str, value: NDArray, observations: Observations) -> bool:
    """Say whether an array given beside observations has one number for each object."""
    n, length = len(observations), int(observations.lengths.max(initial=0))
    each = value.shape == (n,) and name not in COMMON
    points = observations.shared_grid and value.shape == (length,)
    if each == points:
        raise ValueError(
            f"{name} must be a number for all {n} objects, an array ({n},) of one for each, or one "
            f"for each point ({length},) that they share, and only one of these, beside "
            f"observations, but has shape {value.shape}. Give it to the Observations themselves."
        )
    return each


def check_noise_of(problem: Problem, device: torch.device) -> None:
    """Raise where the noise fails its checks, tried on a few rows on the device of the training."""
    made = problem.made(slice(0, _N_TRIED))
    if made is None:
        rows = simulated_rows(problem.simulator, problem.prior, problem.conditions)
    else:
        z, theta, x = (torch.as_tensor(made[k]) for k in ("z", "theta", "x"))
        owner = torch.arange(len(z)) % len(problem.conditions)
        obs = problem.conditions.select(owner)
        model = x if problem.grid is None else problem.grid.interpolate(x.to(torch.float64), obs)
        rows = rows_of(z, problem.prior.complete(theta), model, obs)
    require(checks_of(problem.noise, problem.prior, rows.to(device)))


def _check_points(seen: Observations, bound: BoundSimulator | None, made_elsewhere: bool) -> None:
    """Refuse simulations whose points can not be those of the objects they are shown with."""
    own = [k for k, v in seen.points.items() if not seen.shared_grid and v.dtype.kind == "f"]
    if made_elsewhere and own and len(seen) > 1:
        raise ValueError(
            f"theta and x must come with objects that share one grid, but these have {own[0]} of "
            "their own: nothing says which simulation was made for whom. Give a simulator, or "
            "x at the values of grid=."
        )
    follows = bound is None or any(name in bound.arguments for name in own)
    if not follows and (seen.lengths != seen.lengths[0]).any():
        raise ValueError(
            f"simulator must take a coordinate of the points, as f(theta, t), for objects of "
            f"{seen.lengths.min()} to {seen.lengths.max()} points, but takes {bound.arguments}."
        )


def _bank(observations: Observations) -> Observations:
    """Return as many objects as fit into memory when padded, chosen by their ids."""
    longest = max(int(observations.lengths.max(initial=0)), 1)
    n = max(1, _BANK_NUMBERS // (observations.n_channels * longest))
    if len(observations) <= n:
        return observations
    _LOG.info("simulations imitate %d of the %d objects", n, len(observations))
    return observations[np.sort(np.argsort(observations.keys)[:n])]


def _bare(inputs: Mapping[str, ArrayLike]) -> Batch:
    """Return a batch of one object that has inputs but no data, to bind a simulator with."""
    coords, scalars, _ = split_inputs(inputs)
    named = {k: coordinate(k, v, None) for k, v in coords.items()}
    return Batch(
        x=torch.zeros(1, 1, 1, dtype=torch.float64),
        x_err=None,
        mask=torch.ones(1, 1, 1, dtype=torch.bool),
        coords={k: torch.as_tensor(v) for k, (v, _) in named.items()},
        scalars={k: torch.as_tensor(v[None].astype(np.float64)) for k, v in scalars.items()},
        categories={k: names for k, (_, names) in named.items() if names is not None},
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
    columns = {"z": z[good], "theta": values[good], "x": x[good], "owner": owner}
    return columns | {"shift": np.zeros(len(owner))}
