"""The trained model: all that one fit has learned, and its file form (JSON and numbers)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import featurizers
from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.io.archive import Archive, ArchiveError
from nbi_plus.io.parts import joined, split
from nbi_plus.learn.encode import EncoderConfig
from nbi_plus.learn.network import PosteriorNetwork, config_of, load_sound, refuse_other_state
from nbi_plus.learn.reference import FeatureReference
from nbi_plus.learn.training import History
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.torch_state import Building

_SAME_GRID = 1e-6  # of its span: relative to its values, Julian dates would differ by weeks
MULTI = "multi-input"  # one featurizer for each channel of the data
PLAIN = "plain"  # none: the numbers of the data, as they are


@dataclass(frozen=True)
class FeaturizerSpec:
    """Which featurizer: a registered name with its options, `MULTI`, `PLAIN`, or ``"custom"``."""

    name: str
    n_channels: int
    length: int
    n_params: int
    options: dict[str, object]

    @property
    def wish(self) -> str | list[str]:
        """The name, or the names for each channel of the data, as `Engine` takes them."""
        return [p["name"] for p in self.options["parts"]] if self.name == MULTI else self.name

    def build(self, custom: nn.Module | None = None) -> nn.Module | None:
        """Return the module, untrained."""
        if self.name == PLAIN:
            return None
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


class Trained(Protocol):
    """What answers for many objects: one network, or several that were trained for the same.

    Attributes
    ----------
    networks : tuple of PosteriorNetwork
    shares : tuple of float
        Of the draws that each makes; their sum is one.
    divergences : Tensor or None
        How far the networks lie apart on simulations that none was trained on; None of one.
    conditions, units, window, history
        As of `TrainedModel`.
    """

    networks: tuple[PosteriorNetwork, ...]
    shares: tuple[float, ...]
    divergences: Tensor | None
    conditions: Batch
    units: dict[str, str]
    window: tuple[float, float] | None
    history: History

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and points of one object."""

    def check_grid(self, observations: Observations) -> None:
        """Refuse data of another shape or grid than those of the training."""

    def features(self, batch: Batch, lengths: NDArray[np.int64] | None = None) -> Tensor:
        """Return the features (n, F) of all networks, one beside the other."""

    def unlike(self, features: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """Say which objects are unlike the simulations, bool (n,), and the p-values (n,)."""

    def judge_together(self, features: Tensor) -> tuple[bool, float]:
        """Say whether objects of one kind are unlike the simulations, and a p-value."""


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
    shares = (1.0,)
    divergences = None

    @property
    def networks(self) -> tuple[PosteriorNetwork, ...]:
        """The one network."""
        return (self.network,)

    def features(self, batch: Batch, lengths: NDArray[np.int64] | None = None) -> Tensor:
        """Return the features (n, F) of a batch on the device; see `PosteriorNetwork.features`."""
        return self.network.features(batch, lengths)

    def unlike(self, features: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """Say which objects are unlike the simulations, bool (n,), and the p-values (n,)."""
        return self.reference.flag(features, coverage), self.reference.p_value(features)

    def judge_together(self, features: Tensor) -> tuple[bool, float]:
        """Say whether objects of one kind are unlike the simulations, and a p-value."""
        return self.reference.judge_together(features)

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and points of one object."""
        return tuple(self.conditions.mask.shape[1:])

    def check_grid(self, observations: Observations) -> None:
        """Refuse data of another shape or grid than the network was trained for."""
        shape = (observations.n_channels, int(observations.lengths.max(initial=0)))
        trained = self.conditions
        own_points = any(v.ndim == 2 for v in trained.coords.values())
        if shape[0] != self.shape[0] or not (own_points or shape == self.shape):
            raise ValueError(
                f"x must have shape {self.shape} (C, L), that of the simulations, as in training, "
                f"but has {shape}. Let the simulator return what the data are, and fit again."
            )
        if trained.x_err is not None and observations.errors is None:
            raise ValueError(
                "x_err must be given, for the network was trained with errors, but is missing."
            )
        missing = sorted(set(trained.scalars) - set(observations.scalars))
        if missing:
            raise ValueError(
                f"{missing[0]} must be given for each object, as in training, but the observations "
                f"have the scalars {tuple(observations.scalars)}."
            )
        for name, values in trained.coords.items():
            if name not in observations.points:
                raise ValueError(
                    f"{name} must be given, as in training, but the observations have "
                    f"{tuple(observations.points)}."
                )
            if values.ndim != 1:
                continue
            if not observations.shared_grid:
                raise ValueError(
                    f"{name} must be given as one grid of shape ({shape[1]},), as in training."
                )
            came, grid = observations.points[name], values.numpy()
            if not np.allclose(came, grid, rtol=0.0, atol=_SAME_GRID * np.ptp(grid)):
                raise ValueError(
                    f"{name} must be the grid of the training, {grid.min():.10g} to "
                    f"{grid.max():.10g}, but differs from it: {came.min():.10g} to "
                    f"{came.max():.10g}. Fit again for these data."
                )

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
        flow = config_of(meta["flow"])

        def make(featurizer: nn.Module | None = None) -> PosteriorNetwork:
            made = spec.build(custom) if featurizer is None else featurizer
            return PosteriorNetwork(EncoderConfig(**encoder), made, meta["n_dims"], flow)

        # a module of the user's is there already, and has the size that it has
        own = None if custom is None else spec.build(custom)
        refuse_other_state("network", lambda: make(own), part["network"])
        network = without_global_rng(0, make)
        load_sound(network, part["network"])
        history = part["history"]
        conditions = part["conditions"]
        window = conditions.get("window")
        seen = Batch(
            conditions["x"],
            conditions.get("x_err"),
            conditions["mask"],
            {k: part["coords"][k] for k in meta["coords"]},
            {k: part["scalars"][k] for k in meta["scalars"]},
            {k: tuple(v) for k, v in meta["categories"].items()},
        )
        network = network.eval()
        if not bool(network.features(seen).isfinite().all()):
            raise ArchiveError(
                "the network must have finite features of the data that it was trained for, but "
                "has others. The file is damaged or forged."
            )
        return cls(
            network=network.to(device),
            featurizer=spec,
            reference=FeatureReference.of(
                {k: v.to(device) for k, v in part["reference"].items()}, network.n_features
            ),
            conditions=seen,
            history=[
                {k: float(v[i]) for k, v in history.items()} for i in range(len(history["val_nll"]))
            ],
            n_sims=meta["n_sims"],
            units=meta["units"],
            window=tuple(window.tolist()) if window is not None else None,
        )


def without_global_rng(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Return a module initialised from ``seed``; the global generators stay as they were."""
    with preserved_random_state(alone=True), Building(seed):
        return make()
