r"""Likelihoods: p(x | z) of single trials, learned by a flow, and a table where columns are labels.

.. math:: p(x \mid z) = P(k \mid z)\, q(c \mid z, k)

The labels of a trial, all columns of them together, are one class k; c are its other columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.arguments import of_kind
from nbi_plus.data.ingest import numbers
from nbi_plus.learn.flows import FlowConfig, density
from nbi_plus.learn.heads.latent import LatentInput, perceptron
from nbi_plus.learn.heads.trend import Trend

_MOST_CLASSES = 1024
_REPEATED = 0.02  # share of the simulations that one number of a continuous column never has
_LISTED = 64  # values that an error lists
_SAME = 1e-6  # relative: labels may come in single precision
Discrete = tuple[tuple[int, tuple[float, ...]], ...]


@dataclass(frozen=True)
class LikelihoodConfig:
    """Chosen state of a likelihood.

    Attributes
    ----------
    flow : FlowConfig
        Of the columns that are no labels; its ``hidden`` and ``n_layers`` are those of the table,
        too.
    discrete : tuple of (int, tuple of float)
        Columns that are labels, and their values.
    trend : bool
        Whether the flow is of what a `Trend` leaves of the columns that are no labels.
    """

    flow: FlowConfig
    discrete: Discrete = ()
    kind: str = "likelihood"
    trend: bool = False

    def __post_init__(self) -> None:
        if self.kind != "likelihood":
            raise ValueError(f"kind must be 'likelihood', but is {self.kind!r}.")
        if self.n_classes > _MOST_CLASSES:
            raise ValueError(
                f"discrete must have at most {_MOST_CLASSES} combinations of labels, but has "
                f"{self.n_classes}. For counts of so many values take RatioEngine."
            )

    @property
    def n_classes(self) -> int:
        """Combinations of labels."""
        return math.prod(len(values) for _, values in self.discrete)

    @classmethod
    def of(
        cls, flow: FlowConfig | Mapping[str, Any], discrete: Sequence, **others: str | bool
    ) -> LikelihoodConfig:
        """Return it of plain JSON."""
        flow = flow if isinstance(flow, FlowConfig) else FlowConfig(**flow)
        return cls(flow, labels(dict(discrete)), **others)


def labels(discrete: Mapping[int, ArrayLike] | None) -> Discrete:
    """Return labelled columns in their order, with their values in order.

    Parameters
    ----------
    discrete : mapping of int to array_like of float
        Values of each column.
    """
    if discrete is None:
        return ()
    of_kind("discrete", discrete, Mapping, "Give {column: (0, 1)}.")
    found = []
    for column, values in discrete.items():
        own = np.unique(numbers(f"discrete[{column!r}]", values))
        whole = isinstance(column, (int, np.integer)) and column >= 0
        if not whole or len(own) < 2 or not np.isfinite(own).all():
            raise ValueError(
                "discrete must map columns, counted from 0, to two or more finite values, but maps "
                f"{column!r} to {values!r}."
            )
        found.append((int(column), tuple(own.tolist())))
    return tuple(sorted(found))


def refuse_other_labels(name: str, x: NDArray[np.float64], discrete: Discrete) -> None:
    """Refuse trials (T, L) whose labels are none of those declared."""
    for column, values in discrete:
        own = np.asarray(values)
        off = np.abs(x[:, column, None] - own).min(1) > _SAME * np.abs(own).max()
        if off.any():
            raise ValueError(
                f"{name} must have labels among {values} in column {column}, as declared, but has "
                f"{x[np.argmax(off), column]:.10g} (first: trial {int(np.argmax(off))})."
            )


class Likelihood(LatentInput):
    """log p(x | z) of trials x of L columns and D latent parameters z.

    Parameters
    ----------
    n_dims, n_context : int
        D and L.
    config : LikelihoodConfig
    """

    def __init__(self, n_dims: int, n_context: int, config: LikelihoodConfig) -> None:
        super().__init__(n_dims)
        self.config = config
        columns, values = dict(config.discrete), [v for _, v in config.discrete]
        if not all(column < n_context for column in columns):
            raise ValueError(
                f"discrete must name columns of trials of {n_context} numbers, 0 to "
                f"{n_context - 1}, but names {tuple(columns)}."
            )
        self.continuous = [c for c in range(n_context) if c not in columns]
        every = np.array(list(product(*values))).reshape(config.n_classes, len(values))
        ones = [every[:, [i]] == np.array(own) for i, own in enumerate(values)]
        codes = np.concatenate([np.zeros((config.n_classes, 0)), *ones], 1)
        # what the config says need not be in a file
        self.register_buffer("combinations", torch.as_tensor(every), persistent=False)
        self.register_buffer("codes", torch.as_tensor(codes), persistent=False)
        size = config.flow.hidden, config.flow.n_layers
        self.table = perceptron(n_dims, *size, config.n_classes) if columns else None
        width = n_dims + codes.shape[1]
        self.flow = density(len(self.continuous), width, config.flow) if self.continuous else None
        self.trend = Trend(n_dims, len(self.continuous)) if config.trend else None

    @property
    def discrete(self) -> Discrete:
        """Columns that are labels, and their values."""
        return self.config.discrete

    @torch.no_grad()
    def learn_columns(self, z: Tensor, x: Tensor) -> None:
        """Learn what trials x (n, L) simulated at z (n, D) are like, or say what is wrong."""
        if not len(x):
            return  # training says that no data are finite
        rows = x.cpu().numpy()
        refuse_other_labels("x", rows, self.discrete)
        for column in self.continuous:
            _refuse_labels(rows[:, column], column)
        if self.flow is None:
            return
        own, white = x[:, self.continuous], self.white(z)
        if self.trend is not None:
            self.trend.learn(white, own)
        self.flow.whiten((own[:, None] - self._middle(white))[:, 0])

    def statistics(self, context: Tensor) -> Tensor:
        """Return trials (T, L) as the density takes them, float64."""
        return context.to(torch.float64)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Return log p(x | z), shape (B, S), of z (B, S, D) and trials (B, L)."""
        return self.of_trials(z, context[:, None])

    def of_trials(self, z: Tensor, statistics: Tensor) -> Tensor:
        """Return log p(x | z), shape (...), of z (..., D) and trials (..., L)."""
        shape = torch.broadcast_tensors(z[..., 0], statistics[..., 0])[0].shape
        white = self.white(z).expand(*shape, -1).reshape(-1, self.n_dims)
        x = statistics.expand(*shape, -1).reshape(len(white), -1)
        k = self._classes(x)
        found = self.log_shares(white).gather(1, k[:, None])[:, 0]
        if self.flow is not None:
            own = x[:, None, self.continuous] - self._middle(white)
            found = found + self.flow.log_prob(own, self._given(white, k))[:, 0]
        return found.reshape(shape)

    def log_shares(self, white: Tensor) -> Tensor:
        """Return log P(k | z), shape (n, K), of whitened parameters (n, D)."""
        if self.table is None:
            return torch.zeros_like(white[:, :1])
        return self.table(white).log_softmax(-1)

    def log_others(self, white: Tensor, k: int, others: Tensor) -> Tensor:
        """Return log q(c | z, k), shape (n, T), of whitened (n, D) and other columns (n, T, C)."""
        classes = torch.full((len(white),), k, device=white.device)
        return self.flow.log_prob(others - self._middle(white), self._given(white, classes))

    def sample(self, z: Tensor, n: int, rng: torch.Generator) -> Tensor:
        """Return trials (B, n, L) drawn for each z (B, D)."""
        white = self.white(z)
        k = torch.multinomial(self.log_shares(white).exp(), n, replacement=True, generator=rng)
        n_columns = len(self.discrete) + len(self.continuous)
        x = z.new_empty((*k.shape, n_columns), dtype=torch.float64)
        x[..., [column for column, _ in self.discrete]] = self.combinations[k]
        if self.flow is not None:
            shape = k.numel(), 1, len(self.continuous)
            noise = torch.randn(shape, generator=rng, dtype=torch.float64, device=z.device)
            choice = torch.rand(shape, generator=rng, dtype=torch.float64, device=z.device)
            given = self._given(white.repeat_interleave(n, 0), k.flatten())
            own = self.flow.sample(noise, given, choice).reshape(*k.shape, -1)
            x[..., self.continuous] = own + self._middle(white)
        return x

    def summed(self, sets: Sequence[Tensor]) -> SummedDensity:
        """Return the log-likelihoods of N sets of trials (T, L), which may differ in size."""
        classes = [self._classes(own) for own in sets]
        n_classes = self.config.n_classes
        counts = torch.stack([torch.bincount(own, minlength=n_classes) for own in classes])
        groups = {}
        for k in counts.any(0).nonzero()[:, 0].tolist() if self.flow is not None else ():
            rows = [x[own == k][:, self.continuous] for x, own in zip(sets, classes, strict=True)]
            longest = int(counts[:, k].max())
            some = torch.cat(rows)[:1]  # stands where a set has no more
            full = [torch.cat([own, some.expand(longest - len(own), -1)]) for own in rows]
            groups[k] = torch.stack(full)
        return SummedDensity(self, counts, groups)

    def _classes(self, x: Tensor) -> Tensor:
        """Return the class (n,) of trials (n, L), that of the nearest labels."""
        columns = [column for column, _ in self.discrete]
        if not columns:
            return torch.zeros(len(x), dtype=torch.int64, device=x.device)
        labelled = x[:, None, columns].to(torch.float64)
        return (labelled - self.combinations).abs().sum(-1).argmin(-1)

    def _middle(self, white: Tensor) -> Tensor | float:
        """Return the trend (n, 1, C) of the other columns at whitened parameters (n, D), or 0."""
        return 0.0 if self.trend is None else self.trend(white)[:, None]

    def _given(self, white: Tensor, k: Tensor) -> Tensor:
        """Return what the flow is conditioned on: parameters and labels."""
        return torch.cat([white, self.codes[k].to(white.dtype)], -1)


@dataclass(frozen=True)
class SummedDensity:
    """The log-likelihoods of N sets of trials, which share the parameters of each set.

    Attributes
    ----------
    density : Likelihood
    counts : Tensor, shape (N, K)
        Trials of each class.
    groups : dict of Tensor, shape (N, T, C)
        The other columns of the trials of a class, padded.
    """

    density: Likelihood
    counts: Tensor
    groups: dict[int, Tensor]

    @property
    def n_numbers(self) -> int:
        """Hidden units of one evaluation: those of the flow for each trial."""
        flow = self.density.config.flow
        return flow.hidden * flow.n_layers * flow.n_blocks * self._longest

    @property
    def _longest(self) -> int:
        return max([1, *(group.shape[1] for group in self.groups.values())])

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the sums (b, n) at z (b, n, D)."""
        rows, owner = z.flatten(0, 1), index.repeat_interleave(z.shape[1])
        at_once = max(1, launch.of(z.device).flow_rows // self._longest)
        parts = zip(rows.split(at_once), owner.split(at_once), strict=True)
        return torch.cat([self._of_rows(*part) for part in parts]).unflatten(0, z.shape[:2])

    def _of_rows(self, z: Tensor, owner: Tensor) -> Tensor:
        white, counts = self.density.white(z), self.counts[owner]
        total = (self.density.log_shares(white) * counts).sum(-1)
        for k, group in self.groups.items():
            each = self.density.log_others(white, k, group[owner])
            real = torch.arange(group.shape[1], device=z.device) < counts[:, k, None]
            total = total + torch.where(real, each, 0.0).sum(-1)
        return total


def _refuse_labels(own: NDArray[np.float64], column: int) -> None:
    """Refuse a column (n,) in which one number comes again and again: it has no density."""
    values, counts = np.unique(own, return_counts=True)
    share = counts.max() / len(own)
    if counts.max() <= max(2, _REPEATED * len(own)):
        return
    if len(values) == 1:
        advice = "Leave it out: it says nothing."
    elif len(values) <= _LISTED:
        advice = f"Declare discrete={{{column}: ({', '.join(f'{v:.6g}' for v in values)})}}."
    else:
        advice = "Declare all its values as discrete, or use RatioEngine."
    raise ValueError(
        f"x must have continuous numbers in columns that are not declared discrete, but column "
        f"{column} has {len(values)} values in {len(own)} simulations, and {share:.0%} of them are "
        f"{values[counts.argmax()]:.10g}. {advice}"
    )
