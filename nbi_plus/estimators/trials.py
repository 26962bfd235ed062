"""Trials: exchangeable data as people hand them over, and the simulator that makes one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.data.ingest import numbers
from nbi_plus.learn.likelihood import Discrete, refuse_other_labels
from nbi_plus.learn.model import PLAIN
from nbi_plus.options import AUTO, SERIES
from nbi_plus.problem.gathered import (
    Files,
    are_files,
    check_parameters,
    files_of,
    read_files,
)
from nbi_plus.problem.simulator.simulator import Simulator


def takes_columns(featurizer: object, width: int) -> bool:
    """Say whether the numbers of a trial are channels of one point, not points of one channel.

    A reaction time and a choice have nothing in common: each needs a scale of its own.
    """
    return featurizer == PLAIN or (featurizer == AUTO and width < SERIES)


def of_trials(
    simulator: Simulator | Callable | None, featurizer: object
) -> Simulator | Callable | None:
    """Return a simulator of single trials whose answers are shaped as the network sees them."""
    if simulator is None:
        return None
    if isinstance(simulator, Simulator):
        return replace(simulator, f=of_trials(simulator.f, featurizer))

    @functools.wraps(simulator)
    def shaped(theta: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - numpy or torch
        x = simulator(theta, *args, **kwargs)
        columns = np.ndim(x) == np.ndim(theta) and takes_columns(featurizer, np.shape(x)[-1])
        return x[..., None] if columns else x

    return shaped


def stored(
    theta: ArrayLike | None,
    x: ArrayLike | Files | None,
    featurizer: object,
    parameters: Sequence[str],
) -> tuple[ArrayLike | None, NDArray[np.float64] | None]:
    """Return trials made elsewhere, x (n, L) or (n,) or a file, as the network sees them."""
    if are_files(x) and theta is None:
        check_parameters(files_of(x), parameters)
        columns = read_files(x, ("theta", "x"))
        theta, x = columns["theta"], columns["x"]
    if x is None:
        return theta, None
    values = numbers("x", x)
    values = values[:, None] if values.ndim == 1 else values
    columns = values.ndim == 2 and takes_columns(featurizer, values.shape[1])
    return theta, values[..., None] if columns else values


@dataclass(frozen=True)
class TrialShape:
    """How single trials are laid out.

    Attributes
    ----------
    conditions : Batch
        Of one trial, as in the training.
    discrete : tuple
        Columns that are labels, and their values.
    """

    conditions: Batch
    discrete: Discrete = ()

    @property
    def width(self) -> int:
        """Numbers L of one trial."""
        return int(np.prod(self.conditions.mask.shape[1:]))

    @property
    def is_columns(self) -> bool:
        """Whether the numbers of a trial are channels of one point."""
        return self.conditions.mask.shape[-1] == 1

    def rows(self, name: str, x: ArrayLike | Tensor) -> NDArray[np.float64]:
        """Return trials (T, L) of an array (T, L), or (T,) where L is 1."""
        values = numbers(name, x.detach().cpu().numpy() if isinstance(x, Tensor) else x)
        if values.ndim == 1 and self.width == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != self.width or not len(values):
            raise ValueError(
                f"{name} must have shape (T, {self.width}), trials as they were simulated, but has "
                f"{values.shape}. {self._advice(values)}"
            )
        bad = ~np.isfinite(values).all(1)
        if bad.any():
            raise ValueError(
                f"{name} must be finite, but {int(bad.sum())} of {len(bad)} trials are not (first: "
                f"{int(np.argmax(bad))}). Leave them out."
            )
        refuse_other_labels(name, values, self.discrete)
        return values

    def batch(self, rows: NDArray[np.float64], device: torch.device) -> Batch:
        """Return trials (T, L) as the network sees them."""
        own, n = self.conditions, len(rows)
        shape = n, *own.mask.shape[1:]
        return Batch(
            x=torch.as_tensor(rows.reshape(shape), device=device),
            x_err=None,
            mask=torch.ones(shape, dtype=torch.bool, device=device),
            coords={k: v.to(device) for k, v in own.coords.items()},
            scalars={k: v[:1].to(device).expand(n) for k, v in own.scalars.items()},
            categories=own.categories,
        )

    def _advice(self, values: NDArray) -> str:
        if values.ndim == 1 and len(values) == self.width:
            return "One trial is x[None]."
        return "Give one row for each trial."


def several(sets: Sequence[ArrayLike], shape: TrialShape) -> list[NDArray[np.float64]]:
    """Return sets of trials, each (T, L), of a sequence or of an array (N, T, L)."""
    if not len(sets):
        raise ValueError("sets must hold at least one set of trials, but are empty.")
    return [shape.rows(f"set {i}", own) for i, own in enumerate(sets)]
