r"""Ratios: log p(x | z) / p(x) as a learned exponential family, whose trials add up.

.. math:: \log r(x \mid z) = \eta(z) \cdot t(x)

Natural parameters of z meet statistics of the data. Those of many exchangeable trials are summed
once, after which any number of trials costs what one does; and a batch of n pairs has n^2 ratios
for n of each. The normal law, whose logarithm is a square, is among these families for a few of
the statistics, and so are tails that were never seen.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from nbi_plus.arguments import whole

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


class Ratio(nn.Module):
    """log p(x | z) / p(x) of D latent parameters and features of the data.

    Parameters
    ----------
    n_dims, n_context : int
        D and the number F of features.
    config : RatioConfig
    """

    def __init__(self, n_dims: int, n_context: int, config: RatioConfig) -> None:
        super().__init__()
        self.n_dims, self.config = n_dims, config
        k, p = config.n_squares, config.n_products
        self.of_z = _perceptron(n_dims, config, 2 * k + p + 1)
        self.of_x = _perceptron(n_context, config, k + p + 1)
        self.straight = nn.Linear(n_context, k)  # squares of what is linear go on beyond the data
        self.register_buffer("mean", torch.zeros(n_dims, dtype=torch.float64))
        self.register_buffer("width", torch.ones(n_dims, dtype=torch.float64))
        self.register_buffer("reach", torch.zeros(2, n_dims, dtype=torch.float64))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that networks compute in."""
        return self.straight.weight.dtype

    @torch.no_grad()
    def whiten(self, z: Tensor) -> None:
        """Learn where draws z (n, D) lie, and how far they reach."""
        z = z.to(torch.float64)
        self.mean.copy_(z.mean(0))
        self.width.copy_(z.std(0, correction=0).clamp(min=1e-30))
        self.reach.copy_(torch.stack([z.amin(0), z.amax(0)]))

    def natural(self, z: Tensor) -> Tensor:
        """Return the natural parameters (..., M) of z (..., D)."""
        white = ((z.to(torch.float64) - self.mean) / self.width).to(self.dtype)
        k, n = self.config.n_squares, self.config.n_products
        raw, middle, slope, level = self.of_z(white).split([k, k, n, 1], -1)
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
        return (self.natural(z) * self.statistics(context)[:, None]).sum(-1)

    def log_ratios(self, z: Tensor, context: Tensor) -> Tensor:
        """Return the log-ratio (n, m) of every z (m, D) given every row of features (n, F)."""
        return self.statistics(context) @ self.natural(z).T

    def exact(self) -> Ratio:
        """Return a float64 copy, for sums over many trials."""
        return copy.deepcopy(self).to(torch.float64).requires_grad_(False)


def _perceptron(n_in: int, config: RatioConfig, n_out: int) -> nn.Sequential:
    widths = [n_in, *[config.hidden] * config.n_layers]
    layers = [[nn.Linear(a, b), nn.SiLU()] for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*(part for pair in layers for part in pair), nn.Linear(widths[-1], n_out))
