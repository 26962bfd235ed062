"""AdamW on one buffer: clipping, step and running average of all weights in a few kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8
_ALIGNED = 16  # numbers: a weight that begins at the start of a cache line is multiplied faster


class FlatAdamW:
    r"""AdamW (Loshchilov & Hutter 2019) of a network whose weights are views of one tensor.

    A step of many small weights is mostly the cost of its launches, and these are no more than for
    one weight. Nothing is asked of the device: where a gradient is not finite, the step is void.

    Parameters
    ----------
    network : Module
        Its weights are moved into a buffer, one for each of their types; they stay what they are.
    average : Module
        A copy of it, whose weights follow.
    weight_decay : float
        Of weights with more than one dimension.
    clip : float
        Largest norm of the gradient.
    """

    def __init__(
        self, network: nn.Module, average: nn.Module, weight_decay: float, clip: float
    ) -> None:
        self.weight_decay, self.clip = weight_decay, clip
        pairs = list(zip(network.parameters(), average.parameters(), strict=True))
        pairs = [pair for pair in pairs if pair[0].requires_grad]
        pairs.sort(key=lambda pair: pair[0].ndim <= 1)  # what decays comes first
        self._order = [own for own, _ in pairs]
        kinds = dict.fromkeys(own.dtype for own in self._order)
        self._buffers = [_Buffer([pair for pair in pairs if pair[0].dtype == k]) for k in kinds]
        self._widest = reduce(torch.promote_types, kinds)
        self._n_steps = torch.zeros((), dtype=torch.float32, device=self._order[0].device)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradient of a loss."""
        for buffer in self._buffers:
            buffer.grad.zero_()
        loss.backward()

    @torch.no_grad()
    def step(self, lr: float, loss: Tensor) -> Tensor:
        """Move the weights by the gradient of a loss, and say whether it was finite."""
        norms = [torch.linalg.vector_norm(buffer.grad).to(self._widest) for buffer in self._buffers]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        good = torch.isfinite(norm) & torch.isfinite(loss)
        self._n_steps += good
        scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        for buffer in self._buffers:
            buffer.step(lr, self.weight_decay, scale, good, self._n_steps)
        return good

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move the average a share of the way to the weights."""
        for buffer in self._buffers:
            buffer.average.lerp_(buffer.flat, share)

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return what a checkpoint must bring back, for each weight, as torch's AdamW names it."""
        moments = {k: v for buffer in self._buffers for k, v in buffer.moments().items()}
        return {
            i: {"step": self._n_steps, "exp_avg": moments[own][0], "exp_avg_sq": moments[own][1]}
            for i, own in enumerate(self._order)
        }

    def restore(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Bring back what `state` gave."""
        for i, own in self.state().items():
            for name, value in own.items():
                value.copy_(state[i][name])


class _Buffer:
    """The weights of one type, their average, their gradient and its moments: a tensor each."""

    def __init__(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
        self._weights = [own for own, _ in pairs]
        self.flat, self.average = (_gathered(own) for own in zip(*pairs, strict=True))
        self.grad, self.mean, self.square = (torch.zeros_like(self.flat) for _ in range(3))
        for own, grad in zip(self._weights, self._views(self.grad), strict=True):
            own.grad = grad
        self._n_decaying = sum(_room(own) for own in self._weights if own.ndim > 1)

    def step(self, lr: float, decay: float, scale: Tensor, good: Tensor, n_steps: Tensor) -> None:
        """Move the weights by the scaled gradient, or not at all where it is not good."""
        kind = self.flat.dtype
        one, n = good.to(kind), n_steps.to(kind).clamp(min=1.0)
        grad = torch.where(good, self.grad * scale.to(kind), 0.0)
        self.mean.lerp_(grad, (1 - _BETA_1) * one)
        self.square.lerp_(grad.square(), (1 - _BETA_2) * one)
        self.flat[: self._n_decaying] *= 1 - lr * decay * one
        size = (self.square / (1 - _BETA_2**n)).sqrt_().add_(_EPS)
        self.flat -= (lr * one / (1 - _BETA_1**n)) * self.mean / size

    def moments(self) -> dict[nn.Parameter, tuple[Tensor, Tensor]]:
        """Return both moments of the gradient of each weight."""
        each = zip(self._views(self.mean), self._views(self.square), strict=True)
        return dict(zip(self._weights, each, strict=True))

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([_room(own) for own in self._weights])
        return [p[: w.numel()].view_as(w) for p, w in zip(parts, self._weights, strict=True)]


def _room(weight: Tensor) -> int:
    return -(-weight.numel() // _ALIGNED) * _ALIGNED


def _gathered(weights: Sequence[nn.Parameter]) -> Tensor:
    """Return one tensor that holds all weights, which become views of it."""
    flat = weights[0].new_zeros(sum(map(_room, weights)), requires_grad=False)
    for weight, part in zip(weights, flat.split([_room(w) for w in weights]), strict=True):
        view = part[: weight.numel()].view_as(weight)
        view.copy_(weight.detach())
        weight.data = view
    return flat
