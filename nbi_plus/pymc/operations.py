"""Operations of PyTensor: log-densities that torch computes, with gradients towards parameters."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytensor.tensor as pt
import torch
from numpy.typing import NDArray
from pytensor.gradient import DisconnectedType, grad_undefined
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from torch import Tensor

from nbi_plus.problem.prior.learned_range import LearnedRange
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.torch_state import door


class DensitySource(Protocol):
    """What log-densities come from.

    Attributes
    ----------
    prior : Prior
    range : LearnedRange or None
        Where they were learned, if they were.
    """

    prior: Prior
    range: LearnedRange | None

    def statistics(self, name: str, x: NDArray) -> object:
        """Return what is computed of data (T, L) once for all parameters."""

    def log_prob(self, theta: Tensor, statistics: Any) -> Tensor:  # noqa: ANN401
        """Return log-densities (T,) of theta (T or 1, D), with a graph towards them."""


class LogDensityOp(Op):
    """Log-densities (T,) of rows of data (T, L) and parameters (T or 1, D), in float64.

    ``refusal`` says why there is no gradient, if there is none.
    """

    def __init__(self, fit: DensitySource, refusal: str = "") -> None:
        self.fit, self.refusal = fit, refusal
        self.gradient = LogDensityGradient(_Evaluations(fit))

    def make_node(self, x: pt.TensorVariable, theta: pt.TensorVariable) -> Apply:
        """Return the node of this operation."""
        x, theta = (pt.cast(pt.as_tensor_variable(v), "float64") for v in (x, theta))
        return Apply(self, [x, theta], [pt.vector(dtype="float64")])

    @door
    def perform(self, node: Apply, inputs: list[NDArray], outputs: list[list[NDArray]]) -> None:  # noqa: ARG002
        """Compute it."""
        outputs[0][0] = self.gradient.evaluations.values(*inputs)

    def infer_shape(self, fgraph: Any, node: Apply, shapes: list[tuple]) -> list[tuple]:  # noqa: ANN401, ARG002
        """Return the shape, as long as the data."""
        return [(shapes[0][0],)]

    def L_op(self, inputs: list, outputs: list, output_grads: list) -> list:  # noqa: ARG002, N802
        """Return the gradient towards theta; data have none."""
        if self.refusal:  # PyMC then chooses a sampler that asks for none
            raise NotImplementedError(self.refusal)
        x, theta = inputs
        (weights,) = output_grads
        if isinstance(weights.type, DisconnectedType):
            return [grad_undefined(self, 0, x), theta.zeros_like()]
        return [grad_undefined(self, 0, x), self.gradient(x, theta, weights)]

    def outside(self, *params: pt.TensorVariable) -> pt.TensorVariable:
        """Return the share of the rows of parameters beyond those of the training."""
        return OutsideOp(self.fit)(rows_of(params))


class LogDensityGradient(Op):
    """The gradient (T or 1, D) of a weighted sum of log-densities towards theta."""

    def __init__(self, evaluations: _Evaluations) -> None:
        self.evaluations = evaluations

    def make_node(
        self, x: pt.TensorVariable, theta: pt.TensorVariable, weights: pt.TensorVariable
    ) -> Apply:
        """Return the node of this operation."""
        return Apply(self, [x, theta, weights], [theta.type()])

    @door
    def perform(self, node: Apply, inputs: list[NDArray], outputs: list[list[NDArray]]) -> None:  # noqa: ARG002
        """Compute it."""
        outputs[0][0] = self.evaluations.slope(*inputs)

    def infer_shape(self, fgraph: Any, node: Apply, shapes: list[tuple]) -> list[tuple]:  # noqa: ANN401, ARG002
        """Return the shape, that of theta."""
        return [shapes[1]]


class _Evaluations:
    """Log-densities and their gradients, which are asked for one after the other at one place.

    What the last call found is kept in one attribute, whole: another thread sees it or not.
    """

    def __init__(self, fit: DensitySource) -> None:
        self._fit = fit
        self._seen: tuple[NDArray, object] | None = None  # observed data are always the same
        self._last: tuple[object, Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Leave behind what was computed: graphs do not go into other processes."""
        return {"_fit": self._fit, "_seen": None, "_last": None}

    def values(self, x: NDArray, theta: NDArray) -> NDArray:
        """Return the log-densities (T,)."""
        self._last = last = self._evaluated(x, theta)
        return last[-1].detach().cpu().numpy()

    def slope(self, x: NDArray, theta: NDArray, weights: NDArray) -> NDArray:
        """Return the gradient of their weighted sum, in the shape of theta."""
        last, self._last = self._last, None
        same = last is not None and last[0] is self._statistics(x)
        if not same or not np.array_equal(last[1].detach().cpu().numpy(), theta):
            last = self._evaluated(x, theta)
        _, leaf, found = last
        total = (
            torch.as_tensor(np.array(weights)) * torch.where(found.isfinite(), found, 0.0)
        ).sum()
        return torch.autograd.grad(total, leaf)[0].cpu().numpy()

    def _evaluated(self, x: NDArray, theta: NDArray) -> tuple[object, Tensor, Tensor]:
        """Return statistics of data, parameters, and log-densities with a graph towards them."""
        statistics = self._statistics(x)
        leaf = torch.as_tensor(np.array(theta)).requires_grad_(True)
        with torch.enable_grad():
            return statistics, leaf, self._fit.log_prob(leaf, statistics)

    def _statistics(self, x: NDArray) -> object:
        seen = self._seen
        if seen is None or not np.array_equal(seen[0], x):
            self._seen = seen = np.array(x), self._fit.statistics("observed", x)
        return seen[1]


class OutsideOp(Op):
    """The share of rows of theta (n, D) beyond the parameters of the training."""

    def __init__(self, fit: DensitySource) -> None:
        self.fit = fit

    def make_node(self, theta: pt.TensorVariable) -> Apply:
        """Return the node of this operation."""
        return Apply(self, [pt.cast(theta, "float64")], [pt.scalar(dtype="float64")])

    @door
    def perform(self, node: Apply, inputs: list[NDArray], outputs: list[list[NDArray]]) -> None:  # noqa: ARG002
        """Compute it."""
        theta = torch.as_tensor(self.fit.prior.complete(np.array(inputs[0])))
        outputs[0][0] = self.fit.range.beyond(theta).double().mean().numpy()


def rows_of(params: tuple[pt.TensorVariable, ...]) -> pt.TensorVariable:
    """Return parameters, each of one number or T, as rows (T or 1, D)."""
    columns = pt.broadcast_arrays(*(p.ravel() for p in params))
    return pt.stack(columns, axis=1)
