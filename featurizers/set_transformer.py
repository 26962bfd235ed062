"""An attention network for points that have no order: induced points carry what others hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featurizers.base import Featurizer
from featurizers.checks import check_at_least, check_name
from featurizers.layers import ACTIVATIONS, split_mask
from featurizers.transformer import ReadingBlock, readable


@dataclass(frozen=True)
class SetTransformerOptions:
    """What a set transformer consists of.

    Parameters
    ----------
    n_features : int
        Features returned.
    width : int
        Channels of a token; a multiple of ``n_heads``.
    n_layers, n_heads : int
        Layers in which the points read each other, and heads of each attention.
    n_induced : int
        Points that stand between: time and memory grow with ``n_induced`` times the number of
        points.
    n_seeds : int
        Vectors that read the points at last.
    activation : str
        One of "relu", "leaky-relu", "silu", "gelu", "elu".
    """

    n_features: int
    width: int
    n_layers: int = 2
    n_heads: int = 4
    n_induced: int = 16
    n_seeds: int = 4
    activation: str = "silu"

    def __post_init__(self) -> None:
        for name in ("n_features", "width", "n_layers", "n_heads", "n_induced", "n_seeds"):
            check_at_least(name, getattr(self, name), 1)
        check_name("activation", self.activation, ACTIVATIONS)
        if self.width % self.n_heads:
            raise ValueError(
                f"width must be a multiple of n_heads, but {self.width} is none of {self.n_heads}. "
                "Change either."
            )


class InducedBlock(nn.Module):
    """Induced points read the tokens, and the tokens read these: everybody hears of everybody."""

    def __init__(self, options: SetTransformerOptions) -> None:
        super().__init__()
        block = (options.width, options.n_heads, options.activation)
        self.induced = nn.Parameter(torch.randn(options.n_induced, options.width) / 2)
        self.gather, self.spread = ReadingBlock(*block), ReadingBlock(*block)

    def forward(self, tokens: Tensor, may_read: Tensor) -> Tensor:
        """Map tokens (n, L, W) to the same shape; ``may_read`` as for `ReadingBlock`."""
        heard = self.gather(self.induced.expand(len(tokens), -1, -1), tokens, may_read)
        return self.spread(tokens, heard, None)


class SetTransformer(Featurizer):
    """The set transformer of Lee et al. (2019, arXiv:1810.00825), with a mask.

    Attention averages, so the number of points is told to the summary apart.
    """

    def __init__(self, n_channels: int, options: SetTransformerOptions) -> None:
        super().__init__()
        self.n_features = options.n_features
        width = options.width
        self.embed = nn.Sequential(
            nn.Linear(n_channels, width), ACTIVATIONS[options.activation](), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(InducedBlock(options) for _ in range(options.n_layers))
        self.seeds = nn.Parameter(torch.randn(options.n_seeds, width) / 2)
        self.read = ReadingBlock(width, options.n_heads, options.activation)
        self.norm = nn.LayerNorm(options.n_seeds * width)
        self.head = nn.Linear(options.n_seeds * width + 1, self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F), whatever the order of the points."""
        channels, mask = split_mask(x)
        tokens, may_read = self.embed(channels.transpose(1, 2)), readable(mask > 0)
        for block in self.blocks:
            tokens = block(tokens, may_read)
        found = self.read(self.seeds.expand(len(x), -1, -1), tokens, may_read)
        number = torch.log1p(mask.sum(2))
        return self.head(torch.cat([self.norm(found.flatten(1)), number], -1))
