r"""Ratios: log p(x | z) / p(x) as a learned exponential family, whose trials add up.

.. math:: \log r(x \mid z) = \eta(z) \cdot t(x)

Natural parameters of z meet statistics of the data. Those of many exchangeable trials are summed
once, after which any number of trials costs what one does; and a batch of n pairs has n^2 ratios
for n of each. The normal law, whose logarithm is a square, is among these families for a few of
the statistics, and so are tails that were never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from nbi_plus.arguments import whole
from nbi_plus.learn.heads.latent import LatentInput, perceptron

_WIDEST = 2**16


@dataclass(frozen=True)
class RatioConfig:
    """Chosen state of a ratio.

    Attributes
    ----------
    n_squares : int
        Statistics of the form ``-(w(z) phi(x) - m(z))^2``.
    n_products : int
        Statistics of the form ``a(z) b(x)``.
    hidden, n_layers : int
        Of the networks of z and of the features of x.
    """

    kind: str = "ratio"
    n_squares: int = 32
    n_products: int = 32
    hidden: int = 64
    n_layers: int = 2

    def __post_init__(self) -> None:
        if self.kind != "ratio":
            raise ValueError(f"kind must be 'ratio', but is {self.kind!r}.")
        for name in ("n_squares", "n_products", "hidden", "n_layers"):
            whole(name, getattr(self, name), 1, _WIDEST)


class Ratio(LatentInput):
    """log p(x | z) / p(x) of D latent parameters and features of the data.

    Parameters
    ----------
    n_dims, n_context : int
        D and the number F of features.
    config : RatioConfig
    """

    discrete = ()  # labels are numbers like all others

    def __init__(self, n_dims: int, n_context: int, config: RatioConfig) -> None:
        super().__init__(n_dims)
        self.config = config
        k, p, size = config.n_squares, config.n_products, (config.hidden, config.n_layers)
        self.of_z = perceptron(n_dims, *size, 2 * k + p + 1)
        self.of_x = perceptron(n_context, *size, k + p + 1)
        self.straight = nn.Linear(n_context, k)  # squares of what is linear go on beyond the data

    def natural(self, z: Tensor) -> Tensor:
        """Return the natural parameters (..., M) of z (..., D)."""
        k, n = self.config.n_squares, self.config.n_products
        raw, middle, slope, level = self.of_z(self.white(z)).split([k, k, n, 1], -1)
        scale = F.softplus(raw)
        # the square multiplied out; each part small at first, however many there are
        level = level - 0.5 * middle.square().sum(-1, keepdim=True) / k**0.5
        squares = torch.cat([-0.5 * scale.square(), scale * middle], -1) / k**0.5
        return torch.cat([squares, slope / n**0.5, level, torch.ones_like(level)], -1)

    def statistics(self, context: Tensor) -> Tensor:
        """Return the statistics (..., M) of features (..., F)."""
        context = context.to(self.dtype)
        k, n = self.config.n_squares, self.config.n_products
        phi, product, level = self.of_x(context).split([k, n, 1], -1)
        phi = phi + self.straight(context)
        return torch.cat([phi.square(), phi, product, torch.ones_like(level), level], -1)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Return the log-ratio (B, S) of z (B, S, D) given features (B, F)."""
        return self.of_trials(z, self.statistics(context)[:, None])

    def of_trials(self, z: Tensor, statistics: Tensor) -> Tensor:
        """Return the log-ratio (...) of z (..., D) and statistics (..., M)."""
        return (self.natural(z) * statistics).sum(-1)

    def log_ratios(self, z: Tensor, context: Tensor) -> Tensor:
        """Return the log-ratio (n, m) of every z (m, D) given every row of features (n, F)."""
        return self.statistics(context) @ self.natural(z).T

    def summed(self, sets: Sequence[Tensor]) -> SummedRatio:
        """Return the log-ratios of N sets of statistics (T, M)."""
        return SummedRatio(self, torch.stack([own.sum(0) for own in sets]))


@dataclass(frozen=True)
class SummedRatio:
    """The log-ratios of N sets of trials, whose statistics (N, M) are summed already."""

    ratio: Ratio
    statistics: Tensor

    @property
    def n_numbers(self) -> int:
        """Hidden units and statistics of one evaluation."""
        config = self.ratio.config
        return config.hidden * config.n_layers + self.statistics.shape[1]

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the sums (b, n) at z (b, n, D)."""
        return self.ratio.of_trials(z, self.statistics[index][:, None])
