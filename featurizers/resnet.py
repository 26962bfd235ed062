"""Residual convolutional networks over time, with or without a recurrent layer at the end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from featurizers.base import Featurizer
from featurizers.checks import check_at_least, check_kernel, check_name, check_pool
from featurizers.layers import (
    ACTIVATIONS,
    NORMS,
    ResidualBlock,
    convolution,
    pool,
    shorten_mask,
    split_mask,
)

_WIDTH_FIRST = 32  # the early blocks see the most steps: wide ones cost much and bring little


@dataclass(frozen=True)
class ResNetOptions:
    """What a residual network consists of.

    Parameters
    ----------
    n_features : int
        Features returned.
    depth : int
        Residual blocks; each halves the series.
    width : int
        The largest number of channels.
    width_first : int or None
        Channels of the first block; each further block doubles them, up to ``width``. None starts
        at 32, or higher where doubling would not reach ``width``.
    kernel : int
        Odd length of the filters.
    stem_stride : int
        2 halves the series in the very first convolution already, 1 does not.
    norm : str
        "weight" (filters as length times direction), "layer" (over channels, per step), "none".
    activation : str
        One of "relu", "leaky-relu", "silu", "gelu", "elu".
    pool : str
        What is kept of the last layer: "last", "mean", "max", or several joined by "+".
    """

    n_features: int
    depth: int
    width: int
    width_first: int | None = None
    kernel: int = 5
    stem_stride: int = 2
    norm: str = "weight"
    activation: str = "relu"
    pool: str = "mean+max"

    def __post_init__(self) -> None:
        for name in ("n_features", "depth", "width"):
            check_at_least(name, getattr(self, name), 1)
        if self.width_first is not None:
            check_at_least("width_first", self.width_first, 1)
            if self.width_first > self.width:
                raise ValueError(
                    f"width_first must be at most width = {self.width}, but is "
                    f"{self.width_first}. Change either."
                )
        check_kernel("kernel", self.kernel)
        check_name("stem_stride", self.stem_stride, (1, 2))
        check_name("norm", self.norm, NORMS)
        check_name("activation", self.activation, ACTIVATIONS)
        check_pool(self.pool)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each block."""
        first = self.width_first or max(_WIDTH_FIRST, self.width // 2 ** (self.depth - 1))
        return tuple(min(self.width, first * 2**i) for i in range(self.depth))


@dataclass(frozen=True)
class ResNetGRUOptions(ResNetOptions):
    """What a residual network with a recurrent layer consists of; see also `ResNetOptions`.

    Parameters
    ----------
    hidden : int or None
        Size of the recurrent state; None takes the channels of the last block.
    n_rnn : int
        Recurrent layers.
    """

    pool: str = "last"
    hidden: int | None = None
    n_rnn: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("n_rnn", self.n_rnn, 1)
        if self.hidden is not None:
            check_at_least("hidden", self.hidden, 1)


class ResidualTrunk(nn.Module):
    """A convolution and a chain of residual blocks, each of which halves the series."""

    def __init__(self, n_channels: int, options: ResNetOptions) -> None:
        super().__init__()
        kernel, norm, activation = options.kernel, options.norm, options.activation
        widths = (options.widths[0], *options.widths)
        self.stem = convolution(n_channels, widths[0], kernel, options.stem_stride, norm)
        self.stem_halves = options.stem_stride == 2
        self.blocks = nn.ModuleList(
            ResidualBlock(n_in, n_out, kernel, norm, activation)
            for n_in, n_out in zip(widths, widths[1:], strict=False)
        )
        self.n_out = widths[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, C, L) to hidden channels (n, T, H), zero where masked, and a mask (n, T, 1)."""
        channels, mask = split_mask(x)
        y = self.stem(channels)
        if self.stem_halves:
            mask = shorten_mask(mask)
        for block in self.blocks:
            y, mask = block(y, mask)
        return (y * mask).transpose(1, 2), mask.transpose(1, 2)


class ResNet(Featurizer):
    """A residual network whose last layer is pooled over time."""

    def __init__(self, n_channels: int, options: ResNetOptions) -> None:
        super().__init__()
        self.pool = options.pool
        self.n_features = options.n_features
        self.trunk = ResidualTrunk(n_channels, options)
        self.head = nn.Linear(self.trunk.n_out * len(self.pool.split("+")), self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F)."""
        y, mask = self.trunk(x)
        return self.head(pool(y, mask, self.pool))


class ResNetGRU(Featurizer):
    """A residual network that shortens the series, then a recurrent layer that reads it in order.

    The recurrence runs over every step and the state at the last valid one is taken, so that
    neither packing nor a look at the lengths (a wait for the GPU) is needed.
    """

    def __init__(self, n_channels: int, options: ResNetGRUOptions) -> None:
        super().__init__()
        self.pool = options.pool
        self.n_features = options.n_features
        self.trunk = ResidualTrunk(n_channels, options)
        hidden = options.hidden or self.trunk.n_out
        self.gru = nn.GRU(self.trunk.n_out, hidden, options.n_rnn, batch_first=True)
        self.head = nn.Linear(hidden * len(self.pool.split("+")), self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F)."""
        y, mask = self.trunk(x)
        return self.head(pool(self.gru(y)[0], mask, self.pool))
