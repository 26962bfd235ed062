"""A multilayer perceptron over all numbers at once, for short vectors that have no order."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from featurizers.base import Featurizer
from featurizers.checks import check_at_least
from featurizers.layers import split_mask


@dataclass(frozen=True)
class MLPOptions:
    """What a multilayer perceptron consists of.

    Parameters
    ----------
    length : int
        The longest series that it takes.
    n_features : int
        Features returned.
    width, n_layers : int
        Of the hidden layers.
    """

    length: int
    n_features: int
    width: int
    n_layers: int = 2

    def __post_init__(self) -> None:
        for name in ("length", "n_features", "width", "n_layers"):
            check_at_least(name, getattr(self, name), 1)


class MLP(Featurizer):
    """A perceptron to which every place of a vector is an input of its own.

    It knows nothing of neighbours: for a handful of summary numbers, not for series.
    """

    def __init__(self, n_channels: int, options: MLPOptions) -> None:
        super().__init__()
        self.n_features, self.length = options.n_features, options.length
        widths = [n_channels * options.length] + [options.width] * options.n_layers
        layers = [[nn.Linear(a, b), nn.SiLU()] for a, b in zip(widths, widths[1:], strict=False)]
        self.layers = nn.Sequential(
            *(part for layer in layers for part in layer), nn.Linear(options.width, self.n_features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F); points beyond the length must be masked."""
        x, _ = split_mask(x)
        beyond = x[:, -1, self.length :]
        if beyond.shape[1] and bool(beyond.any()):
            raise ValueError(
                f"series must have at most {self.length} points for this mlp, but have "
                f"{x.shape[2]}. Make it for the longest, or take another featurizer."
            )
        x = F.pad(x[..., : self.length], (0, max(self.length - x.shape[2], 0)))
        return self.layers(x.flatten(1))
