"""Inputs: arrays, coordinates and scalars given by name, matched with what a simulator asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from os import PathLike
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.batch import Batch
from nbi_plus.data.ingest import Bare, errors_of, ingest, numbers
from nbi_plus.data.joining import shared_again
from nbi_plus.data.observations import Observations
from nbi_plus.data.packing import Categories, coordinate, scalar
from nbi_plus.data.tables.tables import is_table
from nbi_plus.data.units import factor
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.simulator.calling import arguments_of
from nbi_plus.problem.simulator.parallel import simulated, workers_for
from nbi_plus.problem.simulator.scouting import bind_elsewhere
from nbi_plus.problem.simulator.simulator import BoundSimulator, Simulator, bind

_N_PROBES = 16
# what an object has tells which constructor reads it, the first that fits
_MADE_OF = {
    "iloc": "from_table(table, id=, t=, x=, x_err=)",
    "spectral_axis": "from_spectrum1d(spectra)",
    "flux": "from_lightkurve(curves)",
    "columns": "from_table(table, id=, t=, x=, x_err=)",
    "column_names": "from_table(table, id=, t=, x=, x_err=)",
}
# coordinates that a network or a noise model may use though no simulator asks
COMMON = ("t", "wavelength", "band", "instrument", "upper_limit")


class Conventions(NamedTuple):
    """What numbers mean: the order of categories, and units of ``x``, coordinates and scalars.

    A unit of None says that the numbers are known to have none.
    """

    categories: Categories = MappingProxyType({})
    units: Mapping[str, str | None] = MappingProxyType({})

    @classmethod
    def of(
        cls, categories: Categories, units: Mapping[str, str], names: Iterable[str]
    ) -> Conventions:
        """Return those of fitted data, whose coordinates and scalars have these names."""
        return cls(categories, {k: units.get(k) for k in ("x", *names)})

    def fit(self, found: Observations) -> bool:
        """Say whether data mean already what is wanted."""
        return all(found.units.get(k) == unit for k, unit in self.units.items()) and all(
            tuple(self.categories.get(k, names)) == names for k, names in found.categories.items()
        )


NONE_KNOWN = Conventions()


def one_object(
    x_obs: Any,  # noqa: ANN401 - an array, or whatever holds one object
    x_err: ArrayLike | None,
    mask: ArrayLike | None,
    inputs: Mapping[str, ArrayLike],
    known: Conventions = NONE_KNOWN,
    defaults: Mapping[str, ArrayLike] = MappingProxyType({}),
) -> Observations:
    """Return Observations of one object x_obs (L,) or (C, L), its coordinates and scalars.

    Numbers without a unit are in the ``known`` one, and codes are of the known categories.

    Parameters
    ----------
    x_obs : array_like, or a table, light curve, spectrum or Observations of one object
    x_err, mask, inputs
        As for `Observations.from_arrays`; of a table only scalars and what it lacks.
    known : Conventions
    defaults : mapping
        What stands in for what was not given, ``x_err`` among it, in the known units.
    """
    if holds_objects(x_obs):
        return _completed(_objects_of(x_obs), x_err, mask, inputs, known, defaults)
    bare, error, unit = _with_errors("x_obs", x_obs, x_err, known, defaults)
    try:
        x = numbers("x_obs", bare)
    except (TypeError, ValueError) as reason:
        raise ValueError(f"x_obs must be an array of numbers, but {reason}") from reason
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise ValueError(
            f"x_obs must have shape (L,) or (C, L) for one object, but has {x.shape}. "
            "Use predict_many with Observations for many objects."
        )
    coords, scalars, units = split_inputs(_without_errors(defaults) | dict(inputs))
    _check_lengths(x, coords)
    found = Observations.from_arrays(
        x[None],
        None if error is None else _lift("x_err", error, x),
        mask=None if mask is None else _lift("mask", mask, x),
        scalars={k: v[None] for k, v in scalars.items()},
        categories=known.categories,
        units=units if unit is None else units | {"x": unit},
        **coords,
    )
    return found if known.fit(found) else found.like(*known)


def holds_objects(value: Any) -> bool:  # noqa: ANN401
    """Say whether a value holds objects with all that belongs to them, and is no plain array."""
    if isinstance(value, np.ndarray) and value.dtype.names is None:
        return False  # whatever library made it
    return isinstance(value, Observations) or _is_spectrum(value) or is_table(value)


def _objects_of(value: Any) -> Observations:  # noqa: ANN401
    if isinstance(value, Observations):
        return value
    if _is_spectrum(value):
        return Observations.from_spectrum1d(value)
    # a light curve of lightkurve is a table of astropy whose flux is an attribute, too
    is_curve = getattr(value, "colnames", ()) and getattr(value, "flux", None) is not None
    return (Observations.from_lightkurve if is_curve else Observations.from_table)(value)


def _is_spectrum(value: Any) -> bool:  # noqa: ANN401
    return getattr(value, "spectral_axis", None) is not None


def _completed(
    held: Observations,
    x_err: ArrayLike | None,
    mask: ArrayLike | None,
    inputs: Mapping[str, ArrayLike],
    known: Conventions,
    defaults: Mapping[str, ArrayLike],
) -> Observations:
    """Return the one object of a table with the errors and scalars that it does not hold."""
    if len(held) != 1:
        raise ValueError(
            f"x_obs must be one object, but holds {len(held)}. Use predict_many for all of them "
            "(Observations.from_table makes them of a table), or give one."
        )
    beside = [k for k, v in inputs.items() if k in held.scalars or np.ndim(v)]
    beside += ["mask"] if mask is not None else []
    beside += ["x_err"] if x_err is not None and held.errors is not None else []
    if beside:
        raise ValueError(
            f"{beside[0]} must be part of the Observations or table given as x_obs, but came "
            "beside it. Make it with it; data or errors of NaN are left out."
        )
    if x_err is not None:
        held = _with_error(held, errors_of(x_err, held.units.get("x")))
    _, scalars, units = split_inputs(inputs)
    added = {k: scalar(k, v[None], 1) for k, v in scalars.items()}
    given = replace(held, scalars=held.scalars | added, units=held.units | units)
    found = with_grid(shared_again(given).like(*known), defaults, known)
    if found.errors is None and np.ndim(defaults.get("x_err")) == 0 and "x_err" in defaults:
        found = _with_error(found, defaults["x_err"])
    return found


def _with_error(obs: Observations, error: ArrayLike) -> Observations:
    """Return objects of one error for all points."""
    size = numbers("x_err", error)
    if size.ndim or not size > 0:
        raise ValueError(
            f"x_err must be one positive number beside a table, but is {error!r}. Put the errors "
            "of the points into a column."
        )
    return replace(obs, errors=np.where(obs.valid, size, 1.0))


def many_objects(
    x: ArrayLike,
    x_err: ArrayLike | None,
    mask: ArrayLike | None,
    inputs: Mapping[str, ArrayLike],
    known: Conventions = NONE_KNOWN,
    defaults: Mapping[str, ArrayLike] = MappingProxyType({}),
) -> Observations:
    """Return Observations of x (N, L) or (N, C, L), with the same inputs for all."""
    x, error, unit = _with_errors("x", x, x_err, known, defaults)
    coords, scalars, units = split_inputs(_without_errors(defaults) | dict(inputs))
    full = {k: np.full(len(x), v) for k, v in scalars.items()}
    units = units if unit is None else units | {"x": unit}
    found = Observations.from_arrays(
        x, error, mask=mask, scalars=full, categories=known.categories, units=units, **coords
    )
    return found.like(*known)


def _with_errors(
    name: str,
    x: ArrayLike,
    x_err: ArrayLike | None,
    known: Conventions,
    defaults: Mapping[str, ArrayLike],
) -> tuple[Bare | list[Bare], Bare | list[Bare] | None, str | None]:
    """Return data and errors in one unit, and that unit; errors may be those of an earlier fit."""
    data, unit = ingest(name, x)
    noted = known.units.get("x")
    if x_err is None and "x_err" in defaults:
        # what a fit noted is in its own unit, whatever that of these data
        scale = factor(noted, unit, "x_err") if unit and noted else 1.0
        x_err = scale * np.asarray(defaults["x_err"])
    unit = noted if unit is None else unit
    return data, None if x_err is None else errors_of(x_err, unit), unit


def _without_errors(defaults: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    return {k: v for k, v in defaults.items() if k != "x_err"}


def is_one_object(x: ArrayLike, shape: tuple[int, int], n_draws: int) -> bool:
    """Say whether x is one object (L,) or (C, L) rather than n_draws of them."""
    if holds_objects(x):
        return True
    array, _ = ingest("x", x)
    if isinstance(array, list):  # objects of several lengths
        return False
    came = array.shape
    if len(came) == 2 and came == shape:
        return shape[0] > 1 or n_draws != 1
    return len(came) == 1


def check_observations(observations: Observations) -> None:
    """Refuse what is not Observations, and say which constructor makes them of it."""
    if isinstance(observations, Observations):
        return
    found = {name for name in _MADE_OF if getattr(observations, name, None) is not None}
    how = next((way for name, way in _MADE_OF.items() if name in found), "from_arrays(x, x_err)")
    how = "read(path)" if isinstance(observations, (str, PathLike)) else how
    raise TypeError(
        f"observations must be Observations, but are {type(observations).__name__}. "
        f"Make them with nbi.Observations.{how}."
    )


def with_grid(
    observations: Observations,
    defaults: Mapping[str, NDArray],
    known: Conventions = NONE_KNOWN,
) -> Observations:
    """Return observations with the coordinates and numbers given to `fit` where they had none."""
    check_observations(observations)
    grid = {k: v for k, v in defaults.items() if k != "x_err" and v.ndim == 1}
    missing = {
        k: coordinate(k, v, known.categories.get(k))
        for k, v in grid.items()
        if k not in observations.points and observations.shared_grid
    }
    alone = {
        k: scalar(k, np.full(len(observations), v), len(observations))
        for k, v in defaults.items()
        if k != "x_err" and not v.ndim and k not in observations.scalars
    }
    if not (missing or alone):
        return observations
    added = {*missing, *alone}
    return replace(
        observations,
        points=observations.points | {k: v for k, (v, _) in missing.items()},
        scalars=observations.scalars | alone,
        categories=observations.categories
        | {k: names for k, (_, names) in missing.items() if names is not None},
        units=observations.units | {k: u for k, u in known.units.items() if k in added and u},
    )


def split_inputs(
    inputs: Mapping[str, ArrayLike],
) -> tuple[dict[str, NDArray], dict[str, NDArray], dict[str, str]]:
    """Split inputs into coordinates (arrays), per-object scalars (numbers), and their units."""
    split = {k: ingest(k, v) for k, v in inputs.items()}
    ragged = [k for k, (v, _) in split.items() if isinstance(v, list)]
    if ragged:
        raise ValueError(f"{ragged[0]} must be one array, but is a list of several lengths.")
    arrays = {k: v for k, (v, _) in split.items()}
    return (
        {k: v for k, v in arrays.items() if v.ndim},
        {k: v for k, v in arrays.items() if not v.ndim},
        {k: unit for k, (_, unit) in split.items() if unit is not None},
    )


def asked_for(simulator: Simulator | Callable | None, conditions: Batch) -> set[str]:
    """Return the coordinates and scalars that a simulator asks for."""
    if simulator is None:
        return set(conditions.arguments())
    function = simulator.f if isinstance(simulator, Simulator) else simulator
    return set(arguments_of(function, conditions.arguments())[0])


def check_inputs(
    inputs: Mapping[str, ArrayLike], simulator: Simulator | Callable | None, caller: str,
    *noises: object,
) -> None:  # fmt: skip
    """Refuse a keyword that neither simulator nor noise asks for: most likely a misspelt option."""
    if simulator is None:
        return
    function = simulator.f if isinstance(simulator, Simulator) else simulator
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    names = [p.name for p in parameters][1:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = {*names, *COMMON}.union(*(n.asked_for() for n in noises if isinstance(n, Noise)))
    unknown = [k for k in inputs if k not in known]
    if unknown and not takes_any:
        raise TypeError(
            f"{caller} got unexpected keywords {unknown}: they are no option of {caller}, and the "
            f"simulator takes {names} besides its parameters."
        )


def bind_simulator(
    simulator: Simulator | Callable,
    prior: Prior,
    conditions: Batch,
    unit: str | None = None,
    n_jobs: int | None = None,
) -> BoundSimulator:
    """Return the simulator probed at prior draws, with the inputs of the first object.

    Its answers are in ``unit``, that of the data. Where worker processes are asked for it is tried
    in one, which it may end.
    """
    wish = simulator if isinstance(simulator, Simulator) else Simulator(simulator)
    # keyed, so that the probes are the same in every session
    theta = prior.complete(prior.sample(_N_PROBES, np.random.default_rng(0)))
    per_row = conditions.per_object()
    inputs = {k: v.numpy() for k, v in conditions.arguments().items()}
    first = {k: np.repeat(v[:1], _N_PROBES, 0) if k in per_row else v for k, v in inputs.items()}
    if workers_for(n_jobs) > 1:
        bound = bind_elsewhere(wish, theta, first, per_row, unit, n_jobs)
    else:
        bound = bind(wish, theta, first, per_row, unit)
    _check_points_apart(bound, theta[:2], {k: v[:2] if k in per_row else v
                                           for k, v in first.items()}, conditions)  # fmt: skip
    return bound


def _check_points_apart(
    bound: BoundSimulator,
    theta: NDArray,
    coords: Mapping[str, NDArray],
    conditions: Batch,
) -> None:
    """Refuse a simulator that mixes the points of objects that differ in their number.

    Such objects are padded with repeated points, which would change the real ones.
    """
    own = {k for k, v in conditions.coords.items() if v.ndim == 2} & set(bound.arguments)
    if not own or bound.length_from not in own or bound.stochastic:
        return
    longer = {k: np.concatenate([v, v[:, -1:], v[:, -1:]], 1) if k in own else v
              for k, v in coords.items()}  # fmt: skip
    per_row = conditions.per_object() & set(coords)
    alone, padded = (simulated(bound, (theta, c, per_row)).x for c in (coords, longer))
    if not np.allclose(padded[..., : alone.shape[-1]], alone, rtol=1e-6, equal_nan=True):
        raise ValueError(
            "simulator must give each point whatever other points there are, for objects with "
            "points of their own, but two more points changed the others. Leave means, peaks and "
            "smoothing over an object's points out of it: nbi.LinearNuisance takes offsets and "
            "scales, and what must be smoothed can be simulated on a grid of its own inside."
        )


def _check_lengths(x: NDArray, coords: Mapping[str, NDArray]) -> None:
    """Refuse data of one object and coordinates that differ in their number of points."""
    for name, value in coords.items():
        if value.shape != x.shape[-1:]:
            raise ValueError(
                f"x_obs and {name} must have the same number of points, but x_obs has shape "
                f"{x.shape} and {name} {value.shape}. Give both for the same points "
                "(what is left out here is what fit was given)."
            )


def _lift(name: str, value: ArrayLike, x: NDArray) -> NDArray:
    """Return errors or a mask of one object with the axes of x (L,) or (C, L), and a first axis."""
    array = value if name == "mask" else numbers(name, value)
    try:
        return np.broadcast_to(array, x.shape)[None]
    except ValueError:
        raise ValueError(
            f"{name} must have a shape that fits x_obs {x.shape}, but has {np.shape(array)}."
        ) from None
