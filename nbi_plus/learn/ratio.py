r"""Ratios: log p(x | z) / p(x) as a learned exponential family, whose trials add up.

.. math:: \log r(x \mid z) = \eta(z) \cdot t(x) - \log \sum_k w_k \exp(\eta(z) \cdot t_k)

Natural parameters of z meet statistics of the data. Those of many exchangeable trials are summed
once, after which any number of trials costs what one does; and a batch of n pairs has n^2 ratios
for n of each. The normal law, whose logarithm is a square, is among these families for a few of
the statistics, and so are tails that were never seen.

The mean ratio of all data is one at every z. Classification learns that roughly, and the slope of
what is left is multiplied by the number of trials; so it is divided out, over strata of the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from nbi_plus.arguments import whole
from nbi_plus.learn.heads.latent import LatentInput, perceptron
from nbi_plus.learn.heads.strata import strata

_WIDEST = 2**16
_N_LEVELS = 256  # parameters at which means are tried
_TOGETHER = 2**15  # rows of data whose ratios are held at once


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
    n_strata : int
        Of the data, over which ratios are normalised; 0 where they are not.
    """

    kind: str = "ratio"
    n_squares: int = 32
    n_products: int = 32
    hidden: int = 64
    n_layers: int = 3
    n_strata: int = 0

    def __post_init__(self) -> None:
        if self.kind != "ratio":
            raise ValueError(f"kind must be 'ratio', but is {self.kind!r}.")
        for name in ("n_squares", "n_products", "hidden", "n_layers"):
            whole(name, getattr(self, name), 1, _WIDEST)
        whole("n_strata", self.n_strata, 0, _WIDEST)


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
        if config.n_strata:  # statistics of nothing: until there are strata all means are one
            even = torch.full((config.n_strata,), -math.log(config.n_strata))
            self.register_buffer("centres", torch.zeros(config.n_strata, 2 * k + p + 2))
            self.register_buffer("log_shares", even)

    @property
    def averages(self) -> bool:
        """Whether it is to be normalised over data."""
        return self.config.n_strata > 0

    def natural(self, z: Tensor) -> Tensor:
        """Return the natural parameters (..., M) of z (..., D)."""
        k, n = self.config.n_squares, self.config.n_products
        raw, middle, slope, level = self.of_z(self.white(z)).split([k, k, n, 1], -1)
        scale = F.softplus(raw)
        # the square multiplied out; each part small at first, however many there are
        level = level - 0.5 * middle.square().sum(-1, keepdim=True) / k**0.5
        squares = torch.cat([-0.5 * scale.square(), scale * middle], -1) / k**0.5
        found = torch.cat([squares, slope / n**0.5, level, torch.ones_like(level)], -1)
        if self.training or not self.config.n_strata:
            return found
        at_strata = found @ self.centres.to(self.dtype).T + self.log_shares.to(self.dtype)
        level = level - at_strata.logsumexp(-1, keepdim=True)
        return torch.cat([found[..., :-2], level, found[..., -1:]], -1)

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

    @torch.no_grad()
    def normalise(self, z: Tensor, statistics: Tensor) -> None:
        """Learn strata, or none where those of most of the data do not serve the rest of them.

        Parameters
        ----------
        z : Tensor, shape (N, D)
        statistics : Tensor, shape (N, M)
            Of data of these parameters, in random order.
        """
        n_rest, n = len(z) // 4, self.config.n_strata
        if len(z) - n_rest < 2 * n:
            self.leave()
            return
        tried, rest = z[:n_rest][:_N_LEVELS], statistics[:n_rest]
        before = self._off(tried, rest)
        found = strata(statistics[n_rest:], self.natural(tried), n)
        for buffer, value in zip((self.centres, self.log_shares), found, strict=True):
            buffer.copy_(value)
        if not self._off(tried, rest) < before:
            self.leave()

    def leave(self) -> None:
        """Leave the ratio as it was learned, without strata that would cost what they do not do."""
        self.config = replace(self.config, n_strata=0)
        del self.centres, self.log_shares

    def _off(self, z: Tensor, statistics: Tensor) -> float:
        """Return how far mean ratios are from one, rms, at z (n, D) of the first of the data."""
        natural = self.natural(z)
        total = torch.full_like(natural[:, 0], -math.inf)
        for i, some in enumerate(statistics.split(_TOGETHER)):
            ratio = some @ natural.T
            if not i:  # pairs that belong together
                ratio.diagonal().fill_(-math.inf)
            total = torch.logaddexp(total, ratio.logsumexp(0))
        return float((total - math.log(len(statistics) - 1)).square().mean().sqrt())

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
        """Hidden units, statistics and strata of one evaluation."""
        config = self.ratio.config
        return config.hidden * config.n_layers + self.statistics.shape[1] + config.n_strata

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the sums (b, n) at z (b, n, D)."""
        return self.ratio.of_trials(z, self.statistics[index][:, None])
