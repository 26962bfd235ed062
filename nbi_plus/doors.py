"""Doors: turns what users pass to the Engine into the objects the rooms work with.

Short names, dicts (nbi's included) and arrays are accepted here and nowhere else.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

import featurizers
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.model import FeaturizerSpec
from nbi_plus.learn.training import TrainConfig
from nbi_plus.problem.observations import Observations
from nbi_plus.problem.prior import Prior
from nbi_plus.problem.simulator import BoundSimulator, Simulator, bind

_LOG = logging.getLogger("nbi_plus")
_N_PROBES = 16
_NBI_FLOW = {"num_blocks": "n_blocks", "flow_hidden": "hidden"}  # nbi's names for ours


def device_of(device: str | torch.device | None) -> torch.device:
    """Return a device that can do float64: CUDA where there is one, unless told otherwise."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "mps":
        _LOG.warning("MPS has no float64, which weights need: using the CPU.")
        return torch.device("cpu")
    return chosen


def flow_config(flow: str | Mapping[str, Any] | FlowConfig, n_dims: int) -> FlowConfig:
    """Return a FlowConfig of a name or of a dict with our keys or nbi's."""
    if isinstance(flow, FlowConfig):
        return flow
    if isinstance(flow, str):
        return FlowConfig(kind=flow)
    known = {f.name for f in fields(FlowConfig)}
    options = {}
    for key, value in flow.items():
        if key == "n_dims":
            if value != n_dims:
                raise ValueError(f"flow['n_dims'] must be the prior's {n_dims}, but is {value}.")
        elif key in known or key in _NBI_FLOW:
            options[_NBI_FLOW.get(key, key)] = value
        else:
            names = sorted(known | set(_NBI_FLOW) | {"n_dims"})
            raise ValueError(f"flow must have keys among {names}, but has {key!r}.")
    return FlowConfig(**options)


def train_config(train: Mapping[str, Any] | TrainConfig | None, given: Mapping[str, Any]) -> TrainConfig:
    """Return a TrainConfig of options, overridden by the keywords of `fit` that are not None."""
    if isinstance(train, TrainConfig):
        train = vars(train)
    options = dict(train or {}) | {k: v for k, v in given.items() if v is not None}
    known = [f.name for f in fields(TrainConfig)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"train must have keys among {known}, but has {unknown}.")
    return TrainConfig(**options)


def featurizer_spec(
    featurizer: str | Mapping[str, Any] | nn.Module, n_channels: int, length: int, n_params: int
) -> tuple[FeaturizerSpec, nn.Module | None]:
    """Return the spec of a featurizer, and the module itself where it is the user's own."""
    if isinstance(featurizer, nn.Module):
        return FeaturizerSpec("custom", n_channels, length, n_params, {}), featurizer
    name, options = (featurizer, {}) if isinstance(featurizer, str) else featurizers.from_nbi(featurizer)
    if name not in featurizers.available():
        raise ValueError(f"featurizer must be one of {list(featurizers.available())}, a dict or an nn.Module, "
                         f"but is {name!r}.")
    return FeaturizerSpec(name, n_channels, length, n_params, dict(options)), None


def one_object(
    x_obs: ArrayLike, x_err: ArrayLike | None, mask: ArrayLike | None, inputs: Mapping[str, ArrayLike]
) -> Observations:
    """Return Observations of one object x_obs (L,) or (C, L); inputs are coordinates and scalars."""
    try:
        x = np.asarray(x_obs, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"x_obs must be an array of numbers, but {error}.") from error
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise ValueError(f"x_obs must have shape (L,) or (C, L) for one object, but has {x.shape}. "
                         "Use predict_many with Observations for many objects.")
    coords, scalars = split_inputs(inputs)
    lift = {"x_err": x_err, "mask": mask}
    lifted = {k: None if v is None else _lift(k, v, x) for k, v in lift.items()}
    return Observations.from_arrays(x[None], lifted["x_err"], mask=lifted["mask"],
                                    scalars={k: v[None] for k, v in scalars.items()}, **coords)


def many_objects(x: ArrayLike, x_err: ArrayLike | None, inputs: Mapping[str, ArrayLike]) -> Observations:
    """Return Observations of x (N, L) or (N, C, L), with the same inputs for all."""
    array = np.asarray(x)
    coords, scalars = split_inputs(inputs)
    full = {k: np.full(len(array), v) for k, v in scalars.items()}
    return Observations.from_arrays(array, x_err, scalars=full, **coords)


def is_one_object(x: ArrayLike, shape: tuple[int, int], n_draws: int) -> bool:
    """Say whether x is one object (L,) or (C, L) rather than n_draws of them."""
    came = np.shape(x)
    if len(came) == 2 and came == shape:
        return shape[0] > 1 or n_draws != 1
    return len(came) == 1


def with_grid(observations: Observations, defaults: Mapping[str, NDArray]) -> Observations:
    """Return observations that have the coordinates given to `fit` where they had none."""
    if not isinstance(observations, Observations):
        raise TypeError(f"observations must be Observations, but are {type(observations).__name__}. "
                        "Make them with Observations.from_arrays.")
    grid = {k: v for k, v in defaults.items() if k != "x_err" and v.ndim == 1}
    missing = {k: v for k, v in grid.items() if k not in observations.points}
    if missing and observations.shared_grid:
        return replace(observations, points=observations.points | missing)
    return observations


def split_inputs(inputs: Mapping[str, ArrayLike]) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Split inputs by name into coordinates (arrays) and per-object scalars (numbers)."""
    arrays = {k: np.asarray(v) for k, v in inputs.items()}
    return ({k: v for k, v in arrays.items() if v.ndim}, {k: v for k, v in arrays.items() if not v.ndim})


def check_inputs(inputs: Mapping[str, ArrayLike], simulator: Simulator | Callable | None, door: str) -> None:
    """Refuse a keyword that no simulator asks for: it is most likely a misspelt option."""
    if simulator is None:
        return
    function = simulator.f if isinstance(simulator, Simulator) else simulator
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    names = [p.name for p in parameters][1:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [k for k in inputs if k not in names and k not in ("t", "wavelength", "band")]
    if unknown and not takes_any:
        raise TypeError(f"{door} got unexpected keywords {unknown}: they are no option of {door}, and the "
                        f"simulator takes {names} besides its parameters.")


def bind_simulator(
    simulator: Simulator | Callable, prior: Prior, inputs: Mapping[str, NDArray], per_row: frozenset[str]
) -> BoundSimulator:
    """Return the simulator probed at prior draws, with the coordinates of the first object."""
    wish = simulator if isinstance(simulator, Simulator) else Simulator(simulator)
    # keyed, so that the probes are the same in every session
    theta = prior.complete(prior.sample(_N_PROBES, np.random.default_rng(0)))
    first = {k: np.repeat(v[:1], _N_PROBES, 0) if k in per_row else v for k, v in inputs.items()}
    return bind(wish, theta, first, per_row)


def _lift(name: str, value: ArrayLike, x: NDArray) -> NDArray:
    """Return errors or a mask of one object with the axes of x (L,) or (C, L), and a first axis."""
    try:
        return np.broadcast_to(np.asarray(value), x.shape)[None].copy()
    except ValueError:
        raise ValueError(f"{name} must have a shape that fits x_obs {x.shape}, but has {np.shape(value)}.") from None
