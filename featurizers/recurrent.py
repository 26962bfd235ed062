"""A recurrent network over every point of a series."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from featurizers.base import Featurizer
from featurizers.checks import check_at_least, check_pool
from featurizers.layers import pool, split_mask


@dataclass(frozen=True)
class GRUOptions:
    """What a recurrent network consists of.

    Parameters
    ----------
    n_features : int
        Features returned.
    width : int
        Size of the recurrent state.
    n_rnn : int
        Recurrent layers.
    pool : str
        What is kept of the states: "last", "mean", "max", or several joined by "+".
    """

    n_features: int
    width: int
    n_rnn: int = 1
    pool: str = "last"

    def __post_init__(self) -> None:
        for name in ("n_features", "width", "n_rnn"):
            check_at_least(name, getattr(self, name), 1)
        check_pool(self.pool)


class GRU(Featurizer):
    """A gated recurrent network that reads the points in order.

    The points are read one after the other: for long series, ``resnet-gru`` is far faster.
    """

    def __init__(self, n_channels: int, options: GRUOptions) -> None:
        super().__init__()
        self.pool = options.pool
        self.n_features = options.n_features
        self.gru = nn.GRU(n_channels, options.width, options.n_rnn, batch_first=True)
        self.head = nn.Linear(options.width * len(self.pool.split("+")), self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F)."""
        channels, mask = split_mask(x)
        states = self.gru(channels.transpose(1, 2))[0]
        return self.head(pool(states, mask.transpose(1, 2), self.pool))
