r"""Rules: proper scoring rules of single parameters, and of all together.

A network that minimises the mean of :math:`S(m(x), \theta)` over simulations learns what minimises
its expectation under the posterior: the mean for a square, quantiles for the pinball loss (Gneiting
2011, arXiv:0912.0902).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from nbi_plus.arguments import real, whole

_MOST_POINTS = 2**16


class Score(ABC):
    """A proper scoring rule: what is estimated, and the loss that it is the minimum of.

    Attributes
    ----------
    kind : str
        What the estimate is called.
    equivariant : bool
        Whether the estimate of a monotone function is that function of the estimate.
    single : bool
        Whether it is one number for each parameter.
    n_values : int
        How many it is.
    chances : tuple of float
        With which a truth lies below each value; NaN where errors have the mean zero instead, and
        none where neither holds.
    """

    kind: ClassVar[str]
    equivariant: ClassVar[bool] = False
    joint: ClassVar[bool] = False  # whether its values are vectors of all parameters
    single: ClassVar[bool] = False
    n_values: int
    chances: tuple[float, ...] = ()

    def parts(self) -> list[str]:
        """Return what each of its values is called after the name of the rule."""
        return [""] if self.single else [f"_{i}" for i in range(self.n_values)]

    def shaped(self, raw: Tensor) -> Tensor:
        """Return estimates (n, K, D) of what a network gives (n, K, D)."""
        return raw

    @abstractmethod
    def loss(self, estimates: Tensor, truth: Tensor, growth: Tensor) -> Tensor:
        """Return the score (n,) of estimates (n, K, D) of a truth (n, D), on the scale of learning.

        ``growth`` (D,) are powers of e that one step of this scale is, 0 where it is linear.
        """


@dataclass(frozen=True)
class MeanScore(Score):
    """The posterior mean."""

    kind = "mean"
    single = True
    n_values = 1
    chances = (math.nan,)

    def loss(self, estimates: Tensor, truth: Tensor, growth: Tensor) -> Tensor:
        """Return the square; see `squares`."""
        return squares(truth[:, None] - estimates, growth).sum((1, 2))


@dataclass(frozen=True)
class QuantileScore(Score):
    """Quantiles of each parameter's posterior, which never cross.

    Attributes
    ----------
    levels : tuple of float
        Rising, in (0, 1).
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)
    kind = "quantile"
    equivariant = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", levels_of(self.levels))

    @property
    def n_values(self) -> int:
        """One for each level."""
        return len(self.levels)

    @property
    def chances(self) -> tuple[float, ...]:
        """The levels."""
        return self.levels

    def parts(self) -> list[str]:
        """Return the digits of the levels, as those of q16 and q025."""
        return digits(self.levels)

    def shaped(self, raw: Tensor) -> Tensor:
        """Return rising values: the middle one, and steps that are not negative."""
        return rising(raw)

    def loss(self, estimates: Tensor, truth: Tensor, growth: Tensor) -> Tensor:  # noqa: ARG002
        """Return the pinball loss."""
        off, level = truth[:, None] - estimates, truth.new_tensor(self.levels)[:, None]
        return torch.maximum(level * off, (level - 1) * off).sum((1, 2))


@dataclass(frozen=True)
class MedianScore(Score):
    """The median of each parameter's posterior."""

    kind = "median"
    equivariant = True
    single = True
    n_values = 1
    chances = (0.5,)

    def loss(self, estimates: Tensor, truth: Tensor, growth: Tensor) -> Tensor:  # noqa: ARG002
        """Return half of the distance."""
        return 0.5 * (truth[:, None] - estimates).abs().sum((1, 2))


@dataclass(frozen=True)
class ExpectileScore(Score):
    """Expectiles of each parameter's posterior (Newey and Powell 1987), which never cross.

    Attributes
    ----------
    levels : tuple of float
        Rising, in (0, 1); that of 0.5 is the mean.
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)
    kind = "expectile"

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", levels_of(self.levels))

    @property
    def n_values(self) -> int:
        """One for each level."""
        return len(self.levels)

    def parts(self) -> list[str]:
        """Return the digits of the levels."""
        return digits(self.levels)

    def shaped(self, raw: Tensor) -> Tensor:
        """Return rising values, as of quantiles."""
        return rising(raw)

    def loss(self, estimates: Tensor, truth: Tensor, growth: Tensor) -> Tensor:
        """Return squares, those of truths below weighted otherwise than those above."""
        off, level = truth[:, None] - estimates, truth.new_tensor(self.levels)[:, None]
        side = torch.where(off < 0, 1 - level, level)
        return 2 * (side * squares(off, growth)).sum((1, 2))


@dataclass(frozen=True)
class EnergyScore(Score):
    """A few points that stand for the joint posterior, by the energy score.

    It is strictly proper for distributions (Gneiting and Raftery 2007): of all sets of so many
    points with equal weights the network learns the one that is nearest to the posterior.

    Attributes
    ----------
    n_points : int
    """

    n_points: int = 16
    kind = "energy"
    equivariant = True
    joint = True

    def __post_init__(self) -> None:
        whole("n_points", self.n_points, 2, _MOST_POINTS)

    @property
    def n_values(self) -> int:
        """One for each point."""
        return self.n_points

    def loss(self, estimates: Tensor, truth: Tensor, growth: Tensor) -> Tensor:  # noqa: ARG002
        """Return the mean distance to the truth less half of that between points."""
        near = _distance(estimates - truth[:, None]).mean(1)
        apart = _distance(estimates[:, :, None] - estimates[:, None]).mean((1, 2))
        return near - 0.5 * apart


RULES: dict[str, type[Score]] = {
    rule.kind: rule for rule in (MeanScore, MedianScore, QuantileScore, ExpectileScore, EnergyScore)
}


def squares(off: Tensor, growth: Tensor) -> Tensor:
    r"""Return a loss of differences (..., D) between truths and estimates, whose optimum is a mean.

    :math:`d^2` on a linear scale. On one of logarithms with :math:`\theta = e^{g y}` it is
    :math:`2 (e^{g d} - 1 - g d) / g^2`, the divergence of Itakura and Saito of truth and estimate:
    of relative errors, and its optimum is the mean of :math:`\theta` itself.
    """
    g = torch.where(growth > 0, growth, 1.0)
    return torch.where(growth > 0, 2 * (torch.expm1(g * off) - g * off) / g**2, off.square())


def rising(raw: Tensor) -> Tensor:
    """Return values (n, K, D) that rise along K: the middle one as it is, and steps from there."""
    middle = raw.shape[1] // 2
    steps = F.softplus(torch.cat([raw[:, :middle], raw[:, middle + 1 :]], 1)).cumsum(1)
    height = torch.cat([torch.zeros_like(raw[:, :1]), steps], 1)
    return raw[:, middle : middle + 1] + (height - height[:, middle : middle + 1])


def levels_of(levels: Sequence[float]) -> tuple[float, ...]:
    """Return levels, or say what they must be."""
    found = tuple(real("levels", level) for level in np.atleast_1d(np.asarray(levels, object)))
    edges = np.array([0.0, *found, 1.0])
    if not (len(found) and (np.diff(edges) > 0).all()):
        raise ValueError(f"levels must rise within (0, 1), but are {list(found)}.")
    return found


def digits(levels: Sequence[float]) -> list[str]:
    """Return what levels are called.

    Examples
    --------
    >>> digits((0.025, 0.1, 0.16))
    ['_025', '_10', '_16']
    """
    return [f"_{f'{level:.12f}'[2:].rstrip('0').ljust(2, '0')}" for level in levels]


def _distance(off: Tensor) -> Tensor:
    """Return the length of vectors (..., D), with a gradient where it is zero."""
    return (off.square().sum(-1) + 1e-12).sqrt()
