"""Classes: the probability that data are of one of several kinds, which stand on one parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.arguments import whole
from nbi_plus.learn.heads.latent import LatentInput, perceptron

_WIDEST = 2**16


@dataclass(frozen=True)
class ClassesConfig:
    """Chosen state of a classifier.

    Attributes
    ----------
    n_classes : int
    hidden, n_layers : int
        Of the network from features to scores.
    """

    n_classes: int
    kind: str = "classes"
    hidden: int = 64
    n_layers: int = 2

    def __post_init__(self) -> None:
        if self.kind != "classes":
            raise ValueError(f"kind must be 'classes', but is {self.kind!r}.")
        whole("n_classes", self.n_classes, 2, _WIDEST)
        for name in ("hidden", "n_layers"):
            whole(name, getattr(self, name), 1, _WIDEST)


class Classes(LatentInput):
    """log q(class | features), as `Estimator` asks for it: the first parameter says which class.

    Parameters
    ----------
    n_dims, n_context : int
        The number D of latent parameters and F of features.
    config : ClassesConfig
    """

    def __init__(self, n_dims: int, n_context: int, config: ClassesConfig) -> None:
        super().__init__(n_dims)
        self.config = config
        self.score = perceptron(n_context, config.hidden, config.n_layers, config.n_classes)

    def log_shares(self, context: Tensor) -> Tensor:
        """Return log q (B, M) of all classes given features (B, F)."""
        return self.score(context.to(self.dtype)).log_softmax(-1)

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """Return log q (B, S) of the classes of z (B, S, D) given features (B, F)."""
        return self.log_shares(context).gather(1, class_of(z, self.config.n_classes))


def class_of(z: Tensor, n_classes: int) -> Tensor:
    """Return the classes (...) of latent parameters z (..., D): equal shares of the first one.

    Examples
    --------
    >>> class_of(torch.tensor([[-2.0], [0.1], [9.0]]), 2).tolist()
    [0, 1, 1]
    """
    share = 0.5 * torch.erfc(-z[..., 0] / math.sqrt(2.0))
    return (n_classes * share).long().clamp(0, n_classes - 1)
