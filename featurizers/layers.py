"""The masked building blocks that every featurizer is made of.

The rule that makes padding harmless: a value at a masked step is set to zero before anything
that looks at a neighbouring step (a convolution, a recurrence, a pooling) can see it. Convolutions
pad with zeros too, so a masked step and a step beyond the end of the array are the same thing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
}
NORMS = ("weight", "layer", "none")


def split_mask(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the channels with zeros (even for NaN) under the mask, and the mask itself.

    Parameters
    ----------
    x : Tensor, shape (n, C, L)
        Channels, the last of which is the mask: 1 for a real point, 0 for none.

    Returns
    -------
    channels : Tensor, shape (n, C, L)
    mask : Tensor of ones and zeros in the type of ``x``, shape (n, 1, L)
    """
    valid = x[:, -1:] > 0.5
    return torch.where(valid, x, 0.0), valid.to(x.dtype)


def shorten_mask(mask: Tensor, stride: int = 2) -> Tensor:
    """Return the mask after a convolution with a stride: valid where any step of a group is."""
    return F.max_pool1d(mask, kernel_size=stride, ceil_mode=True)


def masked_mean(y: Tensor, mask: Tensor) -> Tensor:
    """Average ``y`` (n, L, H) over the valid steps of ``mask`` (n, L, 1); zero where none is."""
    return (y * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def masked_max(y: Tensor, mask: Tensor) -> Tensor:
    """Take the maximum of ``y`` (n, L, H) over the valid steps of ``mask``; zero where none is."""
    valid = mask > 0
    largest = torch.where(valid, y, torch.finfo(y.dtype).min).amax(1)
    return torch.where(valid.any(1), largest, 0.0)


def masked_last(y: Tensor, mask: Tensor) -> Tensor:
    """Take ``y`` (n, L, H) at the last valid step of ``mask`` (n, L, 1); step 0 where none is."""
    steps = torch.arange(y.shape[1], device=y.device)
    last = torch.where(mask[..., 0] > 0, steps, 0).amax(1)
    return y.gather(1, last[:, None, None].expand(-1, 1, y.shape[2])).squeeze(1)


POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": masked_last,
    "mean": masked_mean,
    "max": masked_max,
}


def pool(y: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool ``y`` (n, L, H) over time: ``how`` joins names of `POOLS` by a plus, as ``mean+max``."""
    return torch.cat([POOLS[name](y, mask) for name in how.split("+")], dim=1)


class WeightNormConv(nn.Conv1d):
    r"""A convolution whose filters are written as length times direction, :math:`w = g v / |v|`.

    It conditions the training as layer normalisation does, at the cost of the (small) filters
    instead of the (large) data, and looks at no other step or object.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(n_in, n_out, kernel, stride, padding, dilation)
        self.scale = nn.Parameter(self.weight.detach().flatten(1).norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, L) to (n, n_out, ceil(L / stride))."""
        factor = self.scale / self.weight.flatten(1).norm(dim=1)
        return self._conv_forward(x, self.weight * factor[:, None, None], self.bias)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each step alone, hence blind to padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to the same shape."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def convolution(
    n_in: int, n_out: int, kernel: int, stride: int, norm: str, dilation: int = 1
) -> nn.Module:
    """Make a convolution that divides the length by its stride, rounded up."""
    if norm == "weight":
        return WeightNormConv(n_in, n_out, kernel, stride, dilation)
    return nn.Conv1d(n_in, n_out, kernel, stride, dilation * (kernel // 2), dilation)


def normalisation(n_channels: int, norm: str) -> nn.Module:
    """Make the normalisation of activations that ``norm`` asks for."""
    return ChannelNorm(n_channels) if norm == "layer" else nn.Identity()


class ResidualBlock(nn.Module):
    """Two convolutions, the first of stride 2, added to every second step of the input.

    Parameters
    ----------
    n_in, n_out : int
        Channels before and after.
    kernel : int
        Odd length of the filters.
    norm, activation : str
        Names from `NORMS` and `ACTIVATIONS`.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, norm: str, activation: str) -> None:
        super().__init__()
        self.norm_1 = normalisation(n_in, norm)
        self.conv_1 = convolution(n_in, n_out, kernel, 2, norm)
        self.norm_2 = normalisation(n_out, norm)
        self.conv_2 = convolution(n_out, n_out, kernel, 1, norm)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv1d(n_in, n_out, 1)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, n_in, L) and its mask (n, 1, L) to (n, n_out, ceil(L / 2)) and its mask."""
        y = self.conv_1(self.activation(self.norm_1(x)) * mask)
        mask = shorten_mask(mask)
        y = self.conv_2(self.activation(self.norm_2(y)) * mask)
        return self.shortcut(x[:, :, ::2]) + y, mask
