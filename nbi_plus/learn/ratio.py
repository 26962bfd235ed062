r"""Ratios: log p(x | z) / p(x) as a learned exponential family, and ridges, whose trials add up.

.. math:: \log r(x \mid z) = f(z, x) - \log \sum_k w_k \exp f(z, x_k), \qquad
          f(z, x) = \eta(z) \cdot t(x) + \sum_h e_h(z)\, \mathrm{silu}(g_h (a_h(z) + b_h(x)))

Natural parameters of z meet statistics of the data, which are summed once, however many trials
there are. The normal law, whose logarithm is a square, is among these families for a few of the
statistics, and so are tails that were never seen. Narrow and bent densities have no few statistics:
ridges follow them. They are evaluated for every trial.

The mean ratio of all data is one at every z. Classification learns that roughly, and the slope of
what is left is multiplied by the number of trials; so it is divided out, over strata of the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from torch.utils.checkpoint import checkpoint

from nbi_plus import launch
from nbi_plus.arguments import whole
from nbi_plus.learn.heads.latent import LatentInput, perceptron
from nbi_plus.learn.heads.strata import strata

_WIDEST = 2**16
_N_LEVELS = 256  # parameters at which means are tried
_TOGETHER = 2**15  # rows of data, or ridges of them, whose ratios are held at once
_STEEPEST = 3.0  # gain of the last ridge, where that of the first is one
_FAR = -1e4  # where a ridge is flat


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
    n_ridges : int
        H, which may be 0.
    """

    kind: str = "ratio"
    n_squares: int = 32
    n_products: int = 32
    hidden: int = 64
    n_layers: int = 3
    n_strata: int = 0
    n_ridges: int = 0

    def __post_init__(self) -> None:
        if self.kind != "ratio":
            raise ValueError(f"kind must be 'ratio', but is {self.kind!r}.")
        for name in ("n_squares", "n_products", "hidden", "n_layers"):
            whole(name, getattr(self, name), 1, _WIDEST)
        for name in ("n_strata", "n_ridges"):
            whole(name, getattr(self, name), 0, _WIDEST)

    @property
    def n_statistics(self) -> int:
        """M, of the exponential family."""
        return 2 * self.n_squares + self.n_products + 2


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
        k, p, h = config.n_squares, config.n_products, config.n_ridges
        size = config.hidden, config.n_layers
        self.of_z = perceptron(n_dims, *size, 2 * k + p + 1 + 2 * h)
        self.of_x = perceptron(n_context, *size, k + p + 1 + h)
        self.straight = nn.Linear(n_context, k + h)  # what is linear goes on beyond the data
        gains = torch.logspace(0, math.log10(_STEEPEST), h)
        self.register_buffer("gains", gains, persistent=False)
        if h:
            self.straight_z = nn.Linear(n_dims, h)
        if config.n_strata:  # statistics of nothing: until there are strata all means are one
            even = torch.full((config.n_strata,), -math.log(config.n_strata))
            nothing = torch.zeros(config.n_strata, config.n_statistics + h)
            nothing[:, config.n_statistics :] = _FAR
            self.register_buffer("centres", nothing)
            self.register_buffer("log_shares", even)

    @property
    def averages(self) -> bool:
        """Whether it is to be normalised over data."""
        return self.config.n_strata > 0

    def natural(self, z: Tensor) -> Tensor:
        """Return the natural parameters (..., M + 2 H) of z (..., D), ridges last."""
        k, n, h = self.config.n_squares, self.config.n_products, self.config.n_ridges
        white = self.white(z)
        raw, middle, slope, level, ridges = self.of_z(white).split([k, k, n, 1, 2 * h], -1)
        scale = F.softplus(raw)
        # the square multiplied out; each part small at first, however many there are
        level = level - 0.5 * middle.square().sum(-1, keepdim=True) / k**0.5
        squares = torch.cat([-0.5 * scale.square(), scale * middle], -1) / k**0.5
        found = torch.cat([squares, slope / n**0.5, level, torch.ones_like(level)], -1)
        if h:
            place, height = ridges.split([h, h], -1)
            place, height = self.gains * (place + self.straight_z(white)), height / self.gains
            found = torch.cat([found, place, height / h**0.5], -1)
        if self.training or not self.config.n_strata:
            return found
        at = self.config.n_statistics - 2
        level = found[..., at : at + 1] - self._log_mean(found)[..., None]
        return torch.cat([found[..., :at], level, found[..., at + 1 :]], -1)

    def statistics(self, context: Tensor) -> Tensor:
        """Return the statistics (..., M + H) of features (..., F), ridges last."""
        context = context.to(self.dtype)
        k, n, h = self.config.n_squares, self.config.n_products, self.config.n_ridges
        phi, product, level, place = self.of_x(context).split([k, n, 1, h], -1)
        straight, slant = self.straight(context).split([k, h], -1)
        phi = phi + straight
        place = self.gains * (place + slant)
        return torch.cat([phi.square(), phi, product, torch.ones_like(level), level, place], -1)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Return the log-ratio (B, S) of z (B, S, D) given features (B, F)."""
        return self.of_trials(z, self.statistics(context)[:, None])

    def of_trials(self, z: Tensor, statistics: Tensor) -> Tensor:
        """Return the log-ratio (...) of z (..., D) and statistics (..., M + H)."""
        m, h = self.config.n_statistics, self.config.n_ridges
        natural = self.natural(z)
        family, places = statistics.split([m, h], -1)
        return (natural[..., :m] * family).sum(-1) + self.on_ridges(natural, places)

    def on_ridges(self, natural: Tensor, places: Tensor) -> Tensor:
        """Return the height (...) of natural parameters (..., M + 2 H) at places (..., H)."""
        m, h = self.config.n_statistics, self.config.n_ridges
        return (natural[..., m + h :] * F.silu(natural[..., m : m + h] + places)).sum(-1)

    def rows_at_once(self, n_numbers: int, device: torch.device) -> int:
        """Return how many rows that bear so many numbers each are evaluated at once."""
        return max(1, launch.of(device).flow_rows * self.config.hidden // n_numbers)

    def of_next(self, z: Tensor, context: Tensor, k: int) -> Tensor:
        """Return the log-ratio (n, k + 1) of z (n, D), and of the k rows after it, given features.

        They are those (n, F) of the first of these rows; the first row follows the last.
        """
        m, h, n = self.config.n_statistics, self.config.n_ridges, len(z)
        natural, statistics = self.natural(z), self.statistics(context)
        steps = torch.arange(k + 1, device=z.device)
        others = (torch.arange(n, device=z.device)[:, None] + steps) % n
        found = (statistics[:, :m] @ natural[:, :m].T).gather(1, others)
        if not h:
            return found
        ridges = torch.cat([natural, natural[:k]])[:, m:].T.contiguous()
        # windows of (2 H, n, k + 1), whose gradient is cheap in this order of the axes
        place, height = ridges.unfold(1, k + 1, 1).split(h)
        return found + (height * F.silu(place + statistics[:, m:].T[..., None])).sum(0)

    def _log_mean(self, natural: Tensor) -> Tensor:
        """Return the logarithm (...) of the mean ratio over strata of natural parameters (...)."""
        n_numbers = self.config.n_strata * (1 + self.config.n_ridges)
        at_once = self.rows_at_once(n_numbers, natural.device)
        if natural[..., 0].numel() <= at_once:
            at_strata = self._every(natural, self.centres.to(self.dtype))
            return (at_strata + self.log_shares.to(self.dtype)).logsumexp(-1)
        # ridges of all strata for each row: kept for a gradient, they would fill the memory
        pieces = natural.flatten(0, -2).split(at_once)
        found = torch.cat([checkpoint(self._log_mean, p, use_reentrant=False) for p in pieces])
        return found.view(natural.shape[:-1])

    def _every(self, natural: Tensor, statistics: Tensor) -> Tensor:
        """Return the log-ratio (..., n) of natural parameters (...) and each statistics (n,)."""
        m, h = self.config.n_statistics, self.config.n_ridges
        family, places = statistics.split([m, h], -1)
        return natural[..., :m] @ family.T + self.on_ridges(natural[..., None, :], places)

    def _at(self, z: Tensor, statistics: Tensor) -> Iterator[Tensor]:
        """Yield the log-ratios (n, J) at z (J, D) of some of the data after the other."""
        natural = self.natural(z)
        # the first of the data, which belong to z, come together
        for some in statistics.split(max(_N_LEVELS, _TOGETHER // max(1, self.config.n_ridges))):
            yield self._every(natural, some).T

    @torch.no_grad()
    def normalise(self, z: Tensor, statistics: Tensor) -> None:
        """Learn strata, or none where those of most of the data do not serve the rest of them.

        Parameters
        ----------
        z : Tensor, shape (N, D)
        statistics : Tensor, shape (N, M + H)
            Of data of these parameters, in random order.
        """
        n_rest, n = len(z) // 4, self.config.n_strata
        if len(z) - n_rest < 2 * n:
            self.leave()
            return
        tried, rest = z[:n_rest][:_N_LEVELS], statistics[:n_rest]
        before = self._off(tried, rest)
        learned = statistics[n_rest:]
        found = strata(learned, torch.cat(list(self._at(tried, learned))), n)
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
        total = z.new_full((len(z),), -math.inf, dtype=statistics.dtype)
        for i, ratio in enumerate(self._at(z, statistics)):
            if not i:  # pairs that belong together
                ratio.diagonal().fill_(-math.inf)
            total = torch.logaddexp(total, ratio.logsumexp(0))
        return float((total - math.log(len(statistics) - 1)).square().mean().sqrt())

    def summed(self, sets: Sequence[Tensor]) -> SummedRatio:
        """Return the log-ratios of N sets of statistics (T, M + H), which may differ in size."""
        m = self.config.n_statistics
        family = torch.stack([own[:, :m].sum(0) for own in sets])
        counts = torch.tensor([len(own) for own in sets], device=family.device)
        ridges = nn.utils.rnn.pad_sequence([own[:, m:] for own in sets], batch_first=True)
        return SummedRatio(self, family, ridges, counts)


@dataclass(frozen=True)
class SummedRatio:
    """The log-ratios of N sets of trials.

    Attributes
    ----------
    ratio : Ratio
    family : Tensor, shape (N, M)
        Sums of their statistics.
    ridges : Tensor, shape (N, T, H)
        Where each trial is on the ridges, padded.
    counts : Tensor of int64, shape (N,)
        Trials of each set.
    """

    ratio: Ratio
    family: Tensor
    ridges: Tensor
    counts: Tensor

    @property
    def n_numbers(self) -> int:
        """Hidden units, statistics and strata of one evaluation, and the ridges of its trials."""
        config, h = self.ratio.config, self.ratio.config.n_ridges
        family = config.hidden * config.n_layers + config.n_statistics
        return family + config.n_strata * (1 + h) + self.ridges.shape[1] * h

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the sums (b, n) at z (b, n, D)."""
        rows, owner = z.flatten(0, 1), index.repeat_interleave(z.shape[1])
        at_once = self.ratio.rows_at_once(self.n_numbers, z.device)
        parts = zip(rows.split(at_once), owner.split(at_once), strict=True)
        return torch.cat([self._of_rows(*part) for part in parts]).unflatten(0, z.shape[:2])

    def _of_rows(self, z: Tensor, owner: Tensor) -> Tensor:
        natural = self.ratio.natural(z)
        found = (natural[:, : self.family.shape[1]] * self.family[owner]).sum(-1)
        each = self.ratio.on_ridges(natural[:, None], self.ridges[owner])
        real = torch.arange(each.shape[1], device=z.device) < self.counts[owner, None]
        return found + torch.where(real, each, 0.0).sum(-1)
