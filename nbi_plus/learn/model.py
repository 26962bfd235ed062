"""The trained model: all that one fit has learned, and its file form (JSON and numbers)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import featurizers
from nbi_plus.data.batch import Batch
from nbi_plus.io.archive import Archive
from nbi_plus.io.parts import joined, split
from nbi_plus.learn.encode import EncoderConfig
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.learn.reference import FeatureReference
from nbi_plus.learn.training import History
from nbi_plus.problem.random import preserved_random_state, reseed_global_generators

MULTI = "multi-input"  # one featurizer for each channel of the data


@dataclass(frozen=True)
class FeaturizerSpec:
    """Which featurizer: a registered name with its options, `MULTI`, or ``"custom"``."""

    name: str
    n_channels: int
    length: int
    n_params: int
    options: dict[str, object]

    @property
    def wish(self) -> str | list[str]:
        """The name, or the names for each channel of the data, as `Engine` takes them."""
        return [p["name"] for p in self.options["parts"]] if self.name == MULTI else self.name

    def build(self, custom: nn.Module | None = None) -> nn.Module:
        """Return the module, untrained."""
        if self.name == "custom":
            if custom is None:
                raise ValueError(
                    "featurizer must be passed again, for the file holds none of your code. "
                    "Call Engine.load(path, simulator=..., featurizer=...)."
                )
            # a copy: a second fit must not start where the first one ended
            return featurizers.as_featurizer(copy.deepcopy(custom), self.n_channels, self.length)
        if self.name == MULTI:
            return featurizers.MultiInput(
                [self._part(**part) for part in self.options["parts"]],
                [part["channels"] for part in self.options["parts"]],
            )
        return featurizers.make(
            self.name, self.n_channels, self.length, self.n_params, **self.options
        )

    def _part(
        self, name: str, options: dict[str, object], channels: list[int]
    ) -> featurizers.Featurizer:
        return featurizers.make(name, len(channels), self.length, self.n_params, **options)


@dataclass(frozen=True)
class TrainedModel:
    """What `Engine.fit` has learned.

    Attributes
    ----------
    network : PosteriorNetwork
        In evaluation mode.
    featurizer : FeaturizerSpec
    reference : FeatureReference
    conditions : Batch
        Of the training: errors, masks, coordinates and scalars, on the CPU; a file keeps those of
        one object.
    units : dict of str
        Of the observations trained for.
    window : tuple of float, or None
        Their first and last time.
    history : list of dict
    n_sims : int
        Simulations trained on and validated with.
    """

    network: PosteriorNetwork
    featurizer: FeaturizerSpec
    reference: FeatureReference
    conditions: Batch
    history: History
    n_sims: int
    units: dict[str, str] = field(default_factory=dict)
    window: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and points of one object."""
        return tuple(self.conditions.mask.shape[1:])

    def meta(self) -> dict[str, object]:
        """Return the chosen state as plain JSON."""
        config = self.network.encoder.config
        return {
            "encoder": {
                k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()
            },
            "flow": asdict(self.network.flow.config),
            "n_dims": self.network.flow.n_dims,
            "featurizer": asdict(self.featurizer),
            "n_sims": self.n_sims,
            "coords": sorted(self.conditions.coords),
            "scalars": sorted(self.conditions.scalars),
            "categories": {k: list(v) for k, v in self.conditions.categories.items()},
            "units": self.units,
        }

    def arrays(self) -> dict[str, NDArray]:
        """Return the learned state as named arrays."""
        c = self.conditions.select(slice(0, 1))
        conditions = {"x": c.x, "mask": c.mask}
        if self.window is not None:
            conditions["window"] = torch.tensor(self.window, dtype=torch.float64)
        conditions |= {} if c.x_err is None else {"x_err": c.x_err}
        parts = {
            "network": self.network.state_dict(),
            "reference": self.reference.arrays(),
            "conditions": conditions,
            "coords": c.coords,
            "scalars": c.scalars,
        }
        history = {k: np.array([h[k] for h in self.history]) for k in self.history[0]}
        arrays = {k: v.detach().cpu().numpy() for k, v in joined(parts).items()}
        return arrays | joined({"history": history})

    @classmethod
    def from_archive(
        cls, archive: Archive, device: torch.device, custom: nn.Module | None = None
    ) -> TrainedModel:
        """Return the model that `meta` and `arrays` described."""
        meta, arrays = archive.meta["model"], archive.arrays
        part = split({k: torch.as_tensor(v) for k, v in arrays.items()})
        encoder = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["encoder"].items()}
        spec = FeaturizerSpec(**meta["featurizer"])
        network = without_global_rng(
            0,
            lambda: PosteriorNetwork(
                EncoderConfig(**encoder),
                spec.build(custom),
                meta["n_dims"],
                FlowConfig(**meta["flow"]),
            ),
        )
        network.load_state_dict(part["network"])
        history = part["history"]
        conditions = part["conditions"]
        window = conditions.get("window")
        return cls(
            network=network.to(device).eval(),
            featurizer=spec,
            reference=FeatureReference(**{k: v.to(device) for k, v in part["reference"].items()}),
            conditions=Batch(
                conditions["x"],
                conditions.get("x_err"),
                conditions["mask"],
                {k: part["coords"][k] for k in meta["coords"]},
                {k: part["scalars"][k] for k in meta["scalars"]},
                {k: tuple(v) for k, v in meta["categories"].items()},
            ),
            history=[
                {k: float(v[i]) for k, v in history.items()} for i in range(len(history["val_nll"]))
            ],
            n_sims=meta["n_sims"],
            units=meta["units"],
            window=tuple(window.tolist()) if window is not None else None,
        )


def without_global_rng(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Return a module initialised from ``seed``; the global generators stay as they were."""
    with preserved_random_state():
        reseed_global_generators(seed)
        return make()
