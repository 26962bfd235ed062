"""The contract of a featurizer, which one's own networks are checked against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Featurizer(nn.Module, ABC):
    """A network that summarises a masked series of any length by a fixed number of features.

    The last channel of its input is the mask: 1 for a real point, 0 for padding or a missing one.
    Values under a zero mask, and steps appended with a zero mask, change no feature.

    Attributes
    ----------
    n_features : int
        The number of features F.
    """

    n_features: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the features of each object.

        Parameters
        ----------
        x : Tensor, shape (n, C, L)
            Channels, the mask last.

        Returns
        -------
        Tensor, shape (n, F)
        """


class WrappedFeaturizer(Featurizer):
    """Somebody's own network, known to return ``n_features`` features; made by `as_featurizer`."""

    def __init__(self, module: nn.Module, n_features: int) -> None:
        super().__init__()
        self.module = module
        self.n_features = n_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, L) to (n, F) by the wrapped network."""
        return self.module(x)


def as_featurizer(module: nn.Module, n_channels: int, length: int) -> Featurizer:
    """Check that a network fits the data and wrap it; a Featurizer that fits is returned as it is.

    The network is tried, in evaluation mode, on two small objects of which one has masked points.
    Its training mode and torch's random state are left as they were.

    Parameters
    ----------
    module : nn.Module
        Maps (n, C, L) to (n, F). Whether it honours the mask is its own affair.
    n_channels, length : int
        C, the mask included, and L.

    Returns
    -------
    Featurizer

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(150, 16))
    >>> as_featurizer(net, n_channels=3, length=50).n_features
    16
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"featurizer must be a torch.nn.Module, but is a {type(module).__name__}. "
            "Give an instance (not the class) of a network, or the name of one of ours."
        )
    n_features = _probe(module, n_channels, length)
    return module if isinstance(module, Featurizer) else WrappedFeaturizer(module, n_features)


def _probe(module: nn.Module, n_channels: int, length: int) -> int:
    """Return the number of features, or raise an error that says what the network did instead."""
    rule = f"featurizer must map shape (2, {n_channels}, {length}) to (2, n_features)"
    x = _probe_input(module, n_channels, length)
    try:
        with _untouched(module), torch.no_grad():
            features = module(x)
    except Exception as error:  # noqa: BLE001  (whatever a foreign network raises is reported)
        raise ValueError(
            f"{rule}, but raised {type(error).__name__}: {error}. "
            f"Its input has {n_channels} channels, the last of which is the mask."
        ) from error
    if not isinstance(features, Tensor):
        raise ValueError(
            f"{rule}, but returned a {type(features).__name__}. Return one tensor of features."
        )
    if features.ndim != 2 or features.shape[0] != 2 or features.shape[1] < 1:
        raise ValueError(
            f"{rule}, but returned {tuple(features.shape)}. Flatten, or pool over time."
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"{rule} with finite values, but returned NaN or inf. Check its layers.")
    return features.shape[1]


def _probe_input(module: nn.Module, n_channels: int, length: int) -> Tensor:
    """Make two smooth objects (2, C, L) where the network lives; the second is half masked."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.linspace(-1.0, 1.0, 2 * n_channels * length, device=like.device, dtype=like.dtype)
    x = x.reshape(2, n_channels, length).clone()
    x[:, -1] = 1.0
    x[1, :, (length + 1) // 2 :] = 0.0
    return x


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode for a while; restore it and the random states."""
    modes = [(part, part.training) for part in module.modules()]
    # without a list fork_rng keeps every CUDA device, and warns when there are many
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training
