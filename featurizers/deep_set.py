"""A deep set: points that have no order, each seen alone, and what they have on average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featurizers.base import Featurizer
from featurizers.checks import check_at_least, check_name
from featurizers.layers import ACTIVATIONS, pool, split_mask


@dataclass(frozen=True)
class DeepSetOptions:
    """What a deep set consists of.

    Parameters
    ----------
    n_features : int
        Features returned.
    width, n_layers : int
        Hidden channels and layers of the network of a point, and of that of the summary.
    activation : str
        One of "relu", "leaky-relu", "silu", "gelu", "elu".
    """

    n_features: int
    width: int
    n_layers: int = 2
    activation: str = "silu"

    def __post_init__(self) -> None:
        for name in ("n_features", "width", "n_layers"):
            check_at_least(name, getattr(self, name), 1)
        check_name("activation", self.activation, ACTIVATIONS)


class DeepSet(Featurizer):
    r"""Features :math:`\rho(\mathrm{mean}_i\,\phi(x_i), \max_i \phi(x_i), \log(1 + n))` of a set.

    Any function of a set that ignores its order can be written like this (Zaheer et al. 2017,
    arXiv:1703.06114). Means keep sets of all sizes alike; their number is told apart.
    """

    def __init__(self, n_channels: int, options: DeepSetOptions) -> None:
        super().__init__()
        self.n_features = options.n_features
        hidden = [options.width] * options.n_layers
        self.point = perceptron([n_channels, *hidden], options.activation)
        widths = [2 * options.width + 1, *hidden, self.n_features]
        self.summary = perceptron(widths, options.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F), whatever the order of the points."""
        channels, mask = split_mask(x)
        points, there = self.point(channels.transpose(1, 2)), mask.transpose(1, 2)
        pooled = pool(points, there, "mean+max")
        return self.summary(torch.cat([pooled, torch.log1p(there.sum(1))], -1))


def perceptron(widths: list[int], activation: str) -> nn.Sequential:
    """Return linear layers of these widths with activations between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
