"""Options: turns what users pass to the Engine into the objects the rooms work with.

Short names and dicts (nbi's included) are accepted here and nowhere else.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

import featurizers
from nbi_plus.arguments import of_kind, one_of, real, whole
from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.infer.sequential.fit import METHODS
from nbi_plus.learn.encode import EncoderConfig
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.model import MULTI, FeaturizerSpec, TrainedModel
from nbi_plus.learn.training import TrainConfig
from nbi_plus.problem.binding import check_observations
from nbi_plus.problem.gathered import Files
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.setup import FitInputs, Problem
from nbi_plus.problem.simulator.cadence import TIME, Perturbation
from nbi_plus.problem.simulator.simulator import Simulator

_LOG = logging.getLogger("nbi_plus")
_ALIKE_DEVICE = {"gpu": " Did you mean 'cuda'?", "metal": " Did you mean 'mps'?"}
AUTO = "auto"
SERIES = 16  # numbers of one object: fewer have no neighbours to speak of
_NBI_FLOW = {"num_blocks": "n_blocks", "flow_hidden": "hidden"}  # nbi's names for ours


def device_of(device: str | torch.device | None) -> torch.device:
    """Return a device that can do float64: CUDA where there is one, unless told otherwise."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"device must be a name that torch knows, as 'cpu', 'cuda' or 'cuda:1', but is "
            f"{device!r}.{_ALIKE_DEVICE.get(str(device).lower(), '')}"
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device must be there, but torch finds no CUDA for {device!r}. Leave device=None, "
            "which takes the CPU then, or install torch for your GPU."
        )
    if chosen.type == "mps":
        _LOG.warning("MPS has no float64, which weights need: using the CPU.")
        return torch.device("cpu")
    try:  # an index that is not there, or a device that stores and computes nothing
        torch.ones((), dtype=torch.float64, device=chosen).item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"device must be one that computes here, but {device!r} does not: "
            f"{str(error).splitlines()[0]} Leave device=None for the best there is."
        ) from error
    return chosen


def bytes_of(memory: float) -> int:
    """Return the bytes of so many gigabytes, which must be positive."""
    if not 0 < real("memory", memory) < math.inf:
        raise ValueError(f"memory must be gigabytes, finite and positive, but is {memory!r}.")
    return int(min(memory * 1e9, 2.0**62))


def flow_config(flow: str | Mapping[str, Any] | FlowConfig, n_dims: int) -> FlowConfig:
    """Return a FlowConfig of a name or of a dict with our keys or nbi's."""
    if isinstance(flow, FlowConfig):
        return flow
    if isinstance(flow, str):
        return FlowConfig(kind=flow)
    of_kind("flow", flow, Mapping, "Give a name, a dict of options or a FlowConfig.")
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


def train_config(
    train: Mapping[str, Any] | TrainConfig | None,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> TrainConfig:
    """Return a TrainConfig of options, overridden by the keywords of `fit` that are not None."""
    if isinstance(train, TrainConfig):
        train = vars(train)
    if train is not None:
        of_kind("train", train, Mapping, "Give a dict of options, or a TrainConfig.")
    options = dict(defaults) | dict(train or {}) | {k: v for k, v in given.items() if v is not None}
    known = [f.name for f in fields(TrainConfig)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"train must have keys among {known}, but has {unknown}.")
    return TrainConfig(**options)


def positional(
    n_sims: int | ArrayLike | None, theta: ArrayLike | None, x: ArrayLike | Files | None
) -> tuple[int | None, ArrayLike | None]:
    """Return n_sims and theta of the first positional argument of `fit`, which may be either."""
    if isinstance(n_sims, Observations) or isinstance(x, Observations):
        raise TypeError(
            "fit must have n_sims, or theta and x, as its positional arguments, but has "
            "Observations. Write fit(n_sims, observations=...)."
        )
    many = isinstance(n_sims, (list, tuple)) or np.ndim(n_sims) > 0  # lists may be ragged
    if not many:
        return n_sims, theta
    if theta is not None:
        raise TypeError("theta must be given once, but came by position and by name.")
    return None, n_sims


def prior_of(
    simulator: Simulator | Callable | None,
    given: Sequence[Prior | Mapping | list | Callable | None],
    labels: list[str] | None,
) -> Prior:
    """Return the one prior that was given, unless it stands where the simulator belongs."""
    known = [p for p in given if p is not None]
    if len(known) != 1:
        raise ValueError(
            f"Engine must have one prior, but has {len(known)}. Give prior=, or nbi's priors=."
        )
    prior = known[0]
    if isinstance(simulator, (Prior, Mapping, list, tuple)):
        raise TypeError(
            f"simulator must be a function f(theta, ...), but is a {type(simulator).__name__}, and "
            f"prior is a {type(prior).__name__}. Did you swap simulator and prior? "
            "Write Engine(simulator, prior)."
        )
    return Prior.coerce(prior, labels=labels)


def method_for(method: str | None, problem: Problem) -> str:
    """Return the method of a sequential fit that this problem allows."""
    if method is not None:
        one_of("method", method, METHODS)
    if problem.simulator is None:
        raise ValueError(
            "fit must have a simulator for more than one round, but the engine has none. Give "
            "Engine(simulator, prior), or n_rounds=1."
        )
    has_likelihood = problem.noise.has_likelihood(problem.conditions.x_err is not None)
    exact = has_likelihood and not problem.simulator.stochastic
    if method is None:
        return "amis" if exact else "tsnpe"
    if not exact and method in ("amis", "snpe-is"):
        raise ValueError(
            f"method {method!r} must have a likelihood, but the noise has none, or the simulator "
            "gives another answer each time. Use method='tsnpe'."
        )
    return method


def featurizer_spec(
    featurizer: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | nn.Module,
    conditions: Batch,
    n_params: int,
) -> tuple[FeaturizerSpec, nn.Module | None]:
    """Return the spec of a featurizer, and the module itself where it is the user's own."""
    config, length = EncoderConfig.of(conditions), conditions.mask.shape[-1]
    n_channels = config.n_inputs
    if isinstance(featurizer, nn.Module):
        return FeaturizerSpec("custom", n_channels, length, n_params, {}), featurizer
    if isinstance(featurizer, (list, tuple)):
        parts = _parts(featurizer, config, conditions)
        return FeaturizerSpec(MULTI, n_channels, length, n_params, parts), None
    name, options = _name_and_options(featurizer, config, conditions)
    return FeaturizerSpec(name, n_channels, length, n_params, options), None


def _name_and_options(
    featurizer: str | Mapping[str, Any], config: EncoderConfig, conditions: Batch
) -> tuple[str, dict[str, Any]]:
    if not isinstance(featurizer, str):
        of_kind("featurizer", featurizer, Mapping, "Give a name, a dict, or an nn.Module.")
    wishes = {} if isinstance(featurizer, str) else dict(featurizer)
    is_transformer = str(wishes.get("type", featurizer)).lower() == "transformer"
    time = wishes.pop("time", None) if is_transformer else None
    if isinstance(featurizer, str):
        name, options = featurizer, {}
    elif wishes.get("type") in set(featurizers.available()) - set(featurizers.NBI_TYPES):
        name, options = wishes.pop("type"), wishes  # nbi has no words for those: they are ours
    else:
        name, options = featurizers.from_nbi(wishes)
    if name == AUTO:
        name = _suitable(config, conditions)
    if name not in featurizers.available():
        raise ValueError(
            f"featurizer must be one of {[AUTO, *featurizers.available()]}, a dict, a list of one "
            f"for each channel of the data, or an nn.Module, but is {name!r}."
        )
    if is_transformer and (config.own_coords or time):
        options = {"time_channel": config.layout[_time_like(time, config, conditions)][0]} | options
    return name, dict(options)


def _suitable(config: EncoderConfig, conditions: Batch) -> str:
    """Return the featurizer that suits the data: a few numbers without order are no series.

    Nor are points of objects' own that no number orders. Where all objects share their points, as
    of ``f(theta)``, the place of each may be what tells them apart.
    """
    if not config.coords and any(v.ndim == 2 for v in conditions.coords.values()):
        return "set"
    ordered = config.coords or config.categories or config.flags
    n_numbers = math.prod(conditions.mask.shape[1:])
    return "resnet-gru" if ordered or n_numbers >= SERIES else "mlp"


def _parts(
    wishes: Sequence[str | Mapping[str, Any]], config: EncoderConfig, conditions: Batch
) -> dict[str, list[dict[str, Any]]]:
    """Return one featurizer for each channel of the data, and the inputs that it sees."""
    if len(wishes) != config.n_channels or config.n_channels < 2:
        raise ValueError(
            f"featurizer must be one name, or a list of one for each of the {config.n_channels} "
            f"channels of the data (at least two), but is a list of {len(wishes)}."
        )
    layout = config.layout
    own = ("x", "x_err", "channel masks")
    shared = [i for k, channels in layout.items() if k not in (*own, "mask") for i in channels]
    parts = []
    for i, wish in enumerate(wishes):
        name, options = _name_and_options(wish, config, conditions)
        data = [layout[k][i] for k in own[:2] if layout[k]]
        channels = [*data, *shared, layout["channel masks"][i]]
        if "time_channel" in options:
            options["time_channel"] = channels.index(options["time_channel"])
        parts.append({"name": name, "options": options, "channels": channels})
    return {"parts": parts}


def _time_like(wish: str | None, config: EncoderConfig, conditions: Batch) -> str:
    """Return the coordinate that orders a transformer's points; say which, if it is not time."""
    if wish is not None and wish not in config.coords:
        raise ValueError(
            f"featurizer's time must be one of the coordinates in numbers {config.coords}, but is "
            f"{wish!r}."
        )
    # the encoder sorts its coordinates; the data still have them as they were given
    own = [k for k in conditions.coords if k in config.own_coords]
    found = wish or next(k for k in (TIME, "wavelength", *own) if k in own)
    if found != TIME:
        _LOG.info(
            "%s orders the points for the transformer. For another coordinate, give "
            "featurizer={'type': 'transformer', 'time': its name}.",
            found,
        )
    return found


def goes_on_from(start: TrainedModel | None, conditions: Batch) -> TrainedModel | None:
    """Return the network that training goes on with, if there is one; it knows such data."""
    if start is None:
        return None
    known, came = start.network.encoder.config, EncoderConfig.of(conditions)
    if came != known:
        raise ValueError(
            "observations must be of the kind that the network was trained on for warm_start, "
            f"{known}, but are {came}. Fit afresh."
        )
    return start


def perturbation(
    wish: Perturbation | bool | None, observations: Observations | None
) -> Perturbation | None:
    """Return how cadences are varied: by default, where there are several to imitate."""
    if isinstance(wish, Perturbation):
        return wish
    if wish is not None:
        of_kind("perturb", wish, bool, "Write True, False or Perturbation(...).")
    several = observations is not None and len(observations) > 1
    return Perturbation() if wish or (wish is None and several) else None


# what only sequential fits are told, and what it is where nothing was said
_OF_ROUNDS = {
    "method": None, "locate": AUTO, "ess_target": 1000.0, "max_sims": None, "max_seconds": None,
    "modes": None,
}  # fmt: skip


def is_sequential(
    n_rounds: int, observations: Observations | None, x_obs: ArrayLike | None,
    wishes: Sequence[object],
) -> bool:  # fmt: skip
    """Say whether one object is asked for; raise when it is not there, not one, or not meant."""
    if whole("n_rounds", n_rounds) == 1:
        for (name, usual), wish in zip(_OF_ROUNDS.items(), wishes, strict=True):
            if wish is not usual and not (np.isscalar(wish) and wish == usual):
                raise ValueError(
                    f"{name} must be left out for one round, but is {reprlib.repr(wish)}. It says "
                    "how a sequential fit of one object goes on: give n_rounds too."
                )
        return False
    if observations is not None:
        check_observations(observations)
    n_objects = 1 if x_obs is not None else 0 if observations is None else len(observations)
    if n_objects != 1:
        raise ValueError(
            f"x_obs must be given for a sequential fit (n_rounds = {n_rounds}), which is of "
            f"one object, but there are {n_objects} objects. Give x_obs, or n_rounds=1."
        )
    return True


def check_start(
    sequential: bool, n_sims: int | None, online: bool, given: FitInputs,
    augment: object = None, restrict: object = None,
) -> None:  # fmt: skip
    """Refuse a fit that has nothing to start from, or too much."""
    if restrict is not None and (sequential or n_sims is None):
        raise ValueError(
            "restrict must be None for a sequential fit, which finds the place of its object "
            "itself, and for simulations made elsewhere. Give it with n_sims and n_rounds=1."
        )
    if sequential and augment is not None:
        raise ValueError(
            "augment must be None for a sequential fit, whose networks only find the place of one "
            "object as it is. Give it with n_rounds=1."
        )
    if sequential and n_sims is None:
        raise ValueError("fit must have n_sims, the simulations of each round.")
    if sequential and online:
        raise ValueError("online must be False for a sequential fit, which keeps what it made.")
    if sequential and given.grid is not None:
        raise ValueError("grid must be None for a sequential fit: one object has one cadence.")
    elsewhere = given.theta is not None or given.x is not None
    if not sequential and elsewhere == (n_sims is not None):
        raise ValueError("fit must have either n_sims, or theta and x.")
