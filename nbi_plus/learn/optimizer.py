"""The optimizer: Muon for matrices and AdamW for the rest, on one buffer, in few kernels."""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import reduce
from itertools import groupby

import torch
from torch import Tensor, nn

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8
_MOMENTUM = 0.95  # of matrices
_SIDES = range(8, 129)  # the shorter: of less, little is turned; of more, it costs too much
_AS_ADAM = 0.2  # root mean square of a step of AdamW, which one of Muon gets, in learning rates
_QUINTIC, _N_TIMES = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. (2024)
_ALIGNED = 16  # numbers: a weight that begins at the start of a cache line is multiplied faster


class FlatOptimizer:
    r"""Muon and AdamW of a network whose weights are views of one tensor.

    Matrices, convolutions among them, move by the nearest orthogonal matrix to their momentum [1]_,
    as far as AdamW [2]_ would [3]_, by which all others move. A step of many small weights is
    mostly the cost of its launches, and these are few. Nothing is asked of the device: where a
    gradient is not finite, the step is void.

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
    muon : bool
        Whether matrices move so; without, AdamW moves all.

    References
    ----------
    .. [1] Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    .. [2] Loshchilov & Hutter 2019, arXiv:1711.05101.
    .. [3] Liu et al. 2025, Muon is scalable for LLM training, arXiv:2502.16982.
    """

    def __init__(
        self, network: nn.Module, average: nn.Module, weight_decay: float, clip: float,
        *, muon: bool = True,
    ) -> None:  # fmt: skip
        self.weight_decay, self.clip = weight_decay, clip
        pairs = list(zip(network.parameters(), average.parameters(), strict=True))
        pairs = [pair for pair in pairs if pair[0].requires_grad]
        matrices = {
            own: tuple(own.flatten(1).shape) for own, _ in pairs if muon and _is_matrix(own)
        }
        pairs.sort(key=lambda p: (p[0] not in matrices, p[0].ndim <= 1, matrices.get(p[0], ())))
        self._order = [own for own, _ in pairs]
        kinds = dict.fromkeys(own.dtype for own in self._order)
        self._buffers = [
            _Buffer([pair for pair in pairs if pair[0].dtype == k], matrices) for k in kinds
        ]
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
        """Return what a checkpoint must bring back, for each weight."""
        moments = {k: v for buffer in self._buffers for k, v in buffer.moments().items()}
        return {i: {"step": self._n_steps} | moments[own] for i, own in enumerate(self._order)}

    def restore(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Bring back what `state` gave."""
        for i, own in self.state().items():
            for name, value in own.items():
                value.copy_(state[i][name])


class _Buffer:
    """The weights of one type, their average, their gradient and its moments: a tensor each.

    Matrices stand first, those of one shape together; then what else decays.
    """

    def __init__(
        self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]], matrices: Container[nn.Parameter]
    ) -> None:
        self._weights = [own for own, _ in pairs]
        self.flat, self.average = (_gathered(own) for own in zip(*pairs, strict=True))
        self.grad, self.mean = (torch.zeros_like(self.flat) for _ in range(2))
        for own, grad in zip(self._weights, _views(self.grad, self._weights), strict=True):
            own.grad = grad
        self._n_decaying = sum(_room(own.numel()) for own in self._weights if own.ndim > 1)
        shapes = [own.flatten(1).shape for own in self._weights if own in matrices]
        self._shapes = [(len(list(alike)), shape) for shape, alike in groupby(shapes)]
        self._others = self._weights[len(shapes) :]
        self._n_in_matrices = sum(_room(shape.numel()) for shape in shapes)
        self.square = torch.zeros_like(self.flat[self._n_in_matrices :])

    def step(self, lr: float, decay: float, scale: Tensor, good: Tensor, n_steps: Tensor) -> None:
        """Move the weights by the scaled gradient, or not at all where it is not good."""
        kind, n = self.flat.dtype, self._n_in_matrices
        one = good.to(kind)
        grad = torch.where(good, self.grad * scale.to(kind), 0.0)
        self.flat[: self._n_decaying] *= 1 - lr * decay * one
        self._move_matrices(lr * one, grad[:n], one)
        self._move_others(lr * one, grad[n:], one, n_steps.to(kind).clamp(min=1.0))

    def _move_matrices(self, lr: Tensor, grad: Tensor, one: Tensor) -> None:
        n = self._n_in_matrices
        mean = self.mean[:n].lerp_(grad, (1 - _MOMENTUM) * one)
        ways = _orthogonal(self._stacks(grad.lerp(mean, _MOMENTUM)))
        for own, way in zip(self._stacks(self.flat[:n]), ways, strict=True):
            own -= (_AS_ADAM * max(own.shape[1:]) ** 0.5 * lr) * way

    def _move_others(self, lr: Tensor, grad: Tensor, one: Tensor, n_steps: Tensor) -> None:
        n = self._n_in_matrices
        mean = self.mean[n:].lerp_(grad, (1 - _BETA_1) * one)
        self.square.lerp_(grad.square(), (1 - _BETA_2) * one)
        size = (self.square / (1 - _BETA_2**n_steps)).sqrt_().add_(_EPS)
        self.flat[n:] -= (lr / (1 - _BETA_1**n_steps)) * mean / size

    def moments(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """Return the moments of the gradient of each weight; a matrix has but the first."""
        found = {
            own: {"mean": mean}
            for own, mean in zip(self._weights, _views(self.mean, self._weights), strict=True)
        }
        for own, square in zip(self._others, _views(self.square, self._others), strict=True):
            found[own]["square"] = square
        return found

    def _stacks(self, flat: Tensor) -> list[Tensor]:
        """Return views of the matrices (n, rows, columns) of each shape."""
        sizes = [n * _room(shape.numel()) for n, shape in self._shapes]
        return [
            part.view(n, -1)[:, : shape.numel()].unflatten(1, shape)
            for part, (n, shape) in zip(flat.split(sizes), self._shapes, strict=True)
        ]


def _orthogonal(stacks: list[Tensor]) -> list[Tensor]:
    """Return about the nearest orthogonal matrices to stacks (n, rows, columns) of them.

    A quintic polynomial, five times, brings singular values above a hundredth of the norm to
    between 0.7 and 1.2. Its powers are squares of the shorter side, which many shapes share.
    """
    a, b, c = _QUINTIC
    wide = [s if s.shape[1] <= s.shape[2] else s.mT for s in stacks]
    wide = [s / (torch.linalg.matrix_norm(s, keepdim=True) + 1e-30) for s in wide]
    sides = {}
    for i, s in enumerate(wide):
        sides.setdefault(s.shape[1], []).append(i)
    found = dict.fromkeys(range(len(stacks)))
    for own in sides.values():
        gram = torch.cat([wide[i] @ wide[i].mT for i in own])
        product = factor = None
        for _ in range(_N_TIMES):
            gram = gram if factor is None else factor @ gram @ factor
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor if product is None else factor @ product
        for i, part in zip(own, product.split([len(wide[i]) for i in own]), strict=True):
            found[i] = part @ wide[i]
    pairs = zip(stacks, found.values(), strict=True)
    return [way if way.shape == s.shape else way.mT for s, way in pairs]


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim > 1 and min(weight.flatten(1).shape) in _SIDES


def _views(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([_room(own.numel()) for own in weights])
    return [p[: w.numel()].view_as(w) for p, w in zip(parts, weights, strict=True)]


def _room(n: int) -> int:
    return -(-n // _ALIGNED) * _ALIGNED


def _gathered(weights: Sequence[nn.Parameter]) -> Tensor:
    """Return one tensor that holds all weights, which become views of it."""
    flat = weights[0].new_zeros(sum(_room(w.numel()) for w in weights), requires_grad=False)
    for weight, view in zip(weights, _views(flat, weights), strict=True):
        view.copy_(weight.detach())
        weight.data = view
    return flat
