"""A network for objects with several kinds of data, such as a light curve and a spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featurizers.base import Featurizer


class MultiInput(Featurizer):
    """One featurizer for each kind of data; their features stand side by side.

    Each kind has points of its own, anywhere in a row along the series, where the mask of that kind
    is 1; an object may lack a kind altogether.

    Parameters
    ----------
    parts : sequence of Featurizer
        One for each kind.
    channels : sequence of sequences of int
        The channels of the input that each one sees, that kind's own mask last.

    Examples
    --------
    >>> from featurizers import make
    >>> parts = [make("gru", 2, 50, 3), make("resnet", 2, 200, 3)]
    >>> MultiInput(parts, [[0, 2], [1, 3]]).n_features
    80
    """

    def __init__(self, parts: Sequence[Featurizer], channels: Sequence[Sequence[int]]) -> None:
        super().__init__()
        if len(parts) != len(channels):
            raise ValueError(
                f"channels must be given for each part, but there are {len(channels)} for "
                f"{len(parts)} parts."
            )
        self.parts = nn.ModuleList(parts)
        self.channels = [list(own) for own in channels]
        self.n_features = sum(part.n_features for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L), whose last channel says where there is a point at all, to (n, F)."""
        real = x[:, -1:] > 0.5
        x = torch.where(real, x, 0.0)
        found = [part(_own_stretch(x[:, own])) for part, own in zip(self.parts, self.channels,
                                                                   strict=True)]  # fmt: skip
        return torch.cat(found, 1)


def _own_stretch(x: Tensor) -> Tensor:
    """Return each object's stretch (n, C, L') from its first real point on, zeros after the last.

    Gaps inside stay; what other kinds of data have before and after is cut away.
    """
    valid = x[:, -1] > 0.5
    steps = torch.arange(x.shape[2], device=x.device)
    first = torch.where(valid, steps, x.shape[2]).amin(1, keepdim=True)
    last = torch.where(valid, steps, -1).amax(1, keepdim=True)
    length = x.shape[2]
    if x.device.type == "cpu":  # elsewhere, asking for the longest stretch would wait for the GPU
        length = max(1, int((last - first).max()) + 1)
    where = first + steps[:length]
    inside = (where <= last)[:, None]
    where = where.clamp(max=x.shape[2] - 1)[:, None].expand(-1, x.shape[1], -1)
    return torch.where(inside, x.gather(2, where), 0.0)
