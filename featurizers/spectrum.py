"""A residual network for spectra: thousands of pixels, lines far apart, some pixels masked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featurizers.base import Featurizer
from featurizers.checks import check_at_least, check_kernel, check_name
from featurizers.layers import (
    ACTIVATIONS,
    NORMS,
    ResidualBlock,
    convolution,
    normalisation,
    shorten_mask,
    split_mask,
)

_STEPS_LEFT = 128  # after shortening: a line's place is kept to within a few resolution elements


@dataclass(frozen=True)
class SpectrumOptions:
    """What a network for spectra consists of.

    Parameters
    ----------
    length : int
        Usual number of pixels: sets how often the spectrum is halved.
    n_features : int
        Features returned.
    width : int
        Channels.
    n_halvings : int or None
        Residual blocks that halve the spectrum; None leaves some 128 steps.
    n_dilated : int
        Blocks after those, whose filters are spread by 1, 2, 4, ... steps: each sees twice as far.
    n_queries : int
        Learned weightings of the steps that are pooled.
    stem_kernel, stem_stride : int
        Filter of the first convolution, over so many pixels, and how many of them it moves.
    kernel : int
        Odd length of the other filters.
    norm, activation : str
        As for a `ResNet`.
    """

    length: int
    n_features: int
    width: int
    n_halvings: int | None = None
    n_dilated: int = 5
    n_queries: int = 4
    stem_kernel: int = 15
    stem_stride: int = 4
    kernel: int = 5
    norm: str = "weight"
    activation: str = "silu"

    def __post_init__(self) -> None:
        for name in ("length", "n_features", "width", "n_queries", "stem_stride"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("n_dilated", self.n_dilated, 0)
        if self.n_halvings is not None:
            check_at_least("n_halvings", self.n_halvings, 0)
        for name in ("kernel", "stem_kernel"):
            check_kernel(name, getattr(self, name))
        check_name("norm", self.norm, NORMS)
        check_name("activation", self.activation, ACTIVATIONS)

    @property
    def halvings(self) -> int:
        """How often the spectrum is halved."""
        if self.n_halvings is not None:
            return self.n_halvings
        return max(0, round(math.log2(self.length / (self.stem_stride * _STEPS_LEFT))))


class DilatedBlock(nn.Module):
    """A convolution whose filter has gaps, and one over channels, added to the input."""

    def __init__(self, options: SpectrumOptions, dilation: int) -> None:
        super().__init__()
        width = options.width
        self.norm = normalisation(width, options.norm)
        self.wide = convolution(width, width, options.kernel, 1, options.norm, dilation)
        self.mix = convolution(width, width, 1, 1, options.norm)
        self.activation = ACTIVATIONS[options.activation]()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (n, W, L), with its mask (n, 1, L), to the same shape."""
        y = self.wide(self.activation(self.norm(x)) * mask)
        return x + self.mix(self.activation(y))


class QueryPool(nn.Module):
    """Weighted means over steps, with learned weights that depend on what stands there."""

    def __init__(self, width: int, n_queries: int) -> None:
        super().__init__()
        self.scores = nn.Conv1d(width, n_queries, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (n, W, L), with its mask (n, 1, L), to (n, W n_queries); zero where none is valid."""
        scores = self.scores(x).masked_fill(mask == 0, torch.finfo(x.dtype).min)
        weights = scores.softmax(-1) * mask
        return torch.einsum("nwl,nql->nwq", x, weights).flatten(1)


class Spectrum(Featurizer):
    """A residual network that shortens a spectrum, then looks along all of it, then pools."""

    def __init__(self, n_channels: int, options: SpectrumOptions) -> None:
        super().__init__()
        width, norm = options.width, options.norm
        self.n_features = options.n_features
        self.stem_stride = options.stem_stride
        self.stem = convolution(n_channels, width, options.stem_kernel, options.stem_stride, norm)
        block = (width, width, options.kernel, norm, options.activation)
        self.halving = nn.ModuleList(ResidualBlock(*block) for _ in range(options.halvings))
        self.dilated = nn.ModuleList(DilatedBlock(options, 2**i) for i in range(options.n_dilated))
        self.pool = QueryPool(width, options.n_queries)
        kept = width * options.n_queries
        self.head = nn.Sequential(nn.LayerNorm(kept), nn.Linear(kept, options.n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F)."""
        channels, mask = split_mask(x)
        y, mask = self.stem(channels), shorten_mask(mask, self.stem_stride)
        for halve in self.halving:
            y, mask = halve(y, mask)
        for look in self.dilated:
            y = look(y, mask)
        return self.head(self.pool(y, mask))
