"""Checkpoints: the state of a training run, and its file form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nbi_plus.io.archive import fitting_parts, read_archive, write_archive
from nbi_plus.io.parts import joined, split
from nbi_plus.learn.network import PosteriorNetwork, load_sound, refuse_other_state
from nbi_plus.learn.optimizer import FlatOptimizer

History = list[dict[str, float]]


@dataclass
class TrainingState:
    """Everything that a checkpoint must bring back.

    Attributes
    ----------
    network, average : PosteriorNetwork
        The one that is trained, and the running average of its weights.
    optimizer : FlatOptimizer
    best : dict of Tensor
        State of the average after its best epoch.
    history : list of dict
        Figures of every epoch.
    """

    network: PosteriorNetwork
    average: PosteriorNetwork
    optimizer: FlatOptimizer
    best: dict[str, Tensor]
    history: History = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The epoch of the lowest finite validation loss, -1 before there is one."""
        losses = [h["val_nll"] for h in self.history]
        finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
        return min(finite, key=lambda i: losses[i], default=-1)


def save(run: TrainingState, path: Path) -> None:
    """Write a checkpoint; the file is replaced whole, so that a kill leaves the last one."""
    parts = {
        "network": run.network.state_dict(),
        "average": run.average.state_dict(),
        "best": run.best,
        "optimizer": joined(run.optimizer.state()),
    }
    numbers = {k: v.detach().cpu().numpy() for k, v in joined(parts).items()}
    history = {k: np.array([h[k] for h in run.history]) for k in run.history[0]}
    write_archive(path, "training", {}, numbers | joined({"history": history}))


def restore(run: TrainingState, path: Path) -> None:
    """Bring a run back to the end of the epoch that a checkpoint was written after."""
    arrays = read_archive(path, "training").arrays
    with fitting_parts(path, "training run"):
        parts = split(arrays)
        load_sound(run.network, _tensors(parts["network"]))
        load_sound(run.average, _tensors(parts["average"]))
        best = _tensors(parts["best"])
        refuse_other_state("best epoch", lambda: run.network, best)
        run.best = best
        run.optimizer.restore({int(i): _tensors(o) for i, o in split(parts["optimizer"]).items()})
        keys, columns = list(parts["history"]), parts["history"].values()
        run.history = [
            dict(zip(keys, map(float, row), strict=True)) for row in zip(*columns, strict=True)
        ]


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {k: torch.as_tensor(v) for k, v in arrays.items()}
