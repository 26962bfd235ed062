"""An attention network for irregular series: a few latent vectors read all the points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurizers.base import Featurizer
from featurizers.checks import check_at_least, check_name
from featurizers.layers import ACTIVATIONS, split_mask


@dataclass(frozen=True)
class TransformerOptions:
    """What an attention network consists of.

    Parameters
    ----------
    length : int
        Usual number of points: sets the shortest period of the Fourier features.
    n_features : int
        Features returned.
    width : int
        Channels of a token; a multiple of ``n_heads``.
    n_layers : int
        How many times the latent vectors read the points.
    n_heads : int
        Heads of each attention.
    n_latents : int
        Latent vectors; time and memory grow with ``n_latents`` times the number of points.
    n_periods : int
        Periods of the Fourier features of time, spaced evenly in their logarithm.
    time_channel : int or None
        The channel that holds time, scaled to about [-1, 1]; the order of the points then plays
        no role. With None the number of the step stands for time.
    activation : str
        One of "relu", "leaky-relu", "silu", "gelu", "elu".
    """

    length: int
    n_features: int
    width: int
    n_layers: int = 2
    n_heads: int = 4
    n_latents: int = 8
    n_periods: int = 16
    time_channel: int | None = None
    activation: str = "silu"

    def __post_init__(self) -> None:
        whole = ("length", "n_features", "width", "n_layers", "n_heads", "n_latents", "n_periods")
        for name in whole:
            check_at_least(name, getattr(self, name), 1)
        check_name("activation", self.activation, ACTIVATIONS)
        if self.width % self.n_heads:
            raise ValueError(
                f"width must be a multiple of n_heads, but {self.width} is none of {self.n_heads}. "
                "Change either."
            )


class FourierTime(nn.Module):
    """Sines and cosines of time at periods from twice its span to twice the mean spacing."""

    angular_frequencies: Tensor

    def __init__(self, n_periods: int, length: int) -> None:
        super().__init__()
        span = 2.0  # of a time scaled to [-1, 1]
        slowest, fastest = math.pi / span, math.pi / span * max(length, 2)
        steps = torch.linspace(math.log(slowest), math.log(fastest), n_periods)
        self.register_buffer("angular_frequencies", steps.exp())

    def forward(self, time: Tensor) -> Tensor:
        """Map times (n, L) to waves (n, L, 2 n_periods)."""
        phase = time[..., None] * self.angular_frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class ReadingBlock(nn.Module):
    """Latent vectors attend to some tokens, then pass through a two-layer network each."""

    def __init__(self, width: int, n_heads: int, activation: str) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_queries = nn.LayerNorm(width)
        self.norm_keys = nn.LayerNorm(width)
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            ACTIVATIONS[activation](),
            nn.Linear(2 * width, width),
        )

    def forward(self, latents: Tensor, tokens: Tensor, readable: Tensor | None) -> Tensor:
        """Map latents (n, M, W) to the same shape, given tokens (n, L, W) and who may be read.

        ``readable`` is a bool tensor (n, 1, 1, L) with a True in every row, or None for all.
        """
        heads = (self.n_heads, latents.shape[-1] // self.n_heads)
        queries = self.queries(self.norm_queries(latents)).unflatten(-1, heads).transpose(1, 2)
        both = self.keys(self.norm_keys(tokens)).unflatten(-1, (2, *heads))
        keys, values = both.permute(2, 0, 3, 1, 4).unbind(0)
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=readable)
        latents = latents + self.output(read.transpose(1, 2).flatten(2))
        return latents + self.mlp(latents)


class Transformer(Featurizer):
    """An attention network whose cost grows in proportion to the number of points.

    Each point becomes a token; latent vectors read the tokens and then each other, ``n_layers``
    times, and together they are the summary (the Perceiver of Jaegle et al., 2021; its first
    reading is the pooling by learned queries of the Set Transformer, Lee et al., 2019).
    """

    def __init__(self, n_channels: int, options: TransformerOptions) -> None:
        super().__init__()
        self.n_features = options.n_features
        self.length = options.length
        self.time_channel = options.time_channel
        if self.time_channel is not None:
            check_name("time_channel", self.time_channel, range(n_channels))
        width, blocks = options.width, range(options.n_layers)
        self.fourier = FourierTime(options.n_periods, options.length)
        self.embed = nn.Sequential(
            nn.Linear(n_channels + 2 * options.n_periods, width),
            ACTIVATIONS[options.activation](),
            nn.Linear(width, width),
        )
        self.latents = nn.Parameter(torch.randn(options.n_latents, width) / 2)
        block = (width, options.n_heads, options.activation)
        self.readers = nn.ModuleList(ReadingBlock(*block) for _ in blocks)
        self.mixers = nn.ModuleList(ReadingBlock(*block) for _ in blocks)
        kept = options.n_latents * width
        self.head = nn.Sequential(nn.LayerNorm(kept), nn.Linear(kept, self.n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F)."""
        channels, mask = split_mask(x)
        tokens = self.embed(
            torch.cat([channels.transpose(1, 2), self.fourier(self._time(channels))], dim=-1)
        )
        may_read = readable(mask > 0)
        latents = self.latents.expand(len(x), -1, -1)
        for read, mix in zip(self.readers, self.mixers, strict=True):
            latents = read(latents, tokens, may_read)
            latents = mix(latents, latents, None)
        return self.head(latents.flatten(1))

    def _time(self, channels: Tensor) -> Tensor:
        """Return the time (n, L) of each point, by its channel or by its number."""
        if self.time_channel is not None:
            return channels[:, self.time_channel]
        steps = torch.arange(channels.shape[2], device=channels.device, dtype=channels.dtype)
        return (2 * steps / self.length - 1).expand(len(channels), -1)


def readable(valid: Tensor) -> Tensor:
    """Return who may be read (n, 1, 1, L): the valid points, or the first, zero, where none is."""
    first = torch.arange(valid.shape[2], device=valid.device) == 0
    nothing = ~valid.any(dim=2, keepdim=True)
    return (valid | (nothing & first))[:, None]
