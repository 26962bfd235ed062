"""The one rule that chooses how large a network is."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MIN_WIDTH = 64  # narrower nets learn a three-parameter sinusoid no faster on a CPU
_MAX_WIDTH = 256
_MIN_FEATURES = 32
_MAX_FEATURES = 128  # a Mahalanobis distance of d features wants some 50 d reference objects


@dataclass(frozen=True)
class Size:
    """How large a network is.

    Parameters
    ----------
    length : int
        The number of steps L the network is made for; it accepts any other.
    depth : int
        The number of residual blocks, each of which halves the series.
    width : int
        The largest number of hidden channels.
    n_features : int
        The number of features F returned for each object.
    """

    length: int
    depth: int
    width: int
    n_features: int


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def default_size(n_channels: int, length: int, n_params: int) -> Size:
    r"""Choose depth, width and number of features from the shape of the problem.

    With C channels, L steps and D parameters:

    - ``depth`` :math:`= \max(1, \mathrm{round}(\log_2 L) - 4)`: with the halving of the
      first convolution, about eight steps remain;
    - ``width`` :math:`= \max(4 D^2, 8 C)`, rounded up to a multiple of 16, within [64, 256];
    - ``n_features`` :math:`= 4 D^2`, rounded up to a multiple of 8, within [32, 128].

    Parameters
    ----------
    n_channels, length, n_params : int
        C (with the mask), L and D.

    Returns
    -------
    Size

    Examples
    --------
    >>> default_size(n_channels=3, length=50, n_params=3)
    Size(length=50, depth=2, width=64, n_features=40)
    """
    for name, value in (("n_channels", n_channels), ("length", length), ("n_params", n_params)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}. Give the data's shape.")
    few_squares = 4 * n_params**2
    width = _round_up(max(few_squares, 8 * n_channels), 16)
    return Size(
        length=length,
        depth=max(1, round(math.log2(length)) - 4),
        width=min(max(width, _MIN_WIDTH), _MAX_WIDTH),
        n_features=min(max(_round_up(few_squares, 8), _MIN_FEATURES), _MAX_FEATURES),
    )
