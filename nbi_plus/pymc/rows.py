"""Graphs of PyTensor as functions of many rows at once, of arrays and of tensors with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import torch
from numpy.typing import NDArray
from pymc.logprob.utils import CheckParameterValue
from pymc.pytensorf import find_rng_nodes, reseed_rngs
from pytensor.gradient import NullTypeGradError
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.replace import vectorize_graph
from pytensor.tensor.random.op import RandomVariable
from torch import Tensor


class RowFunction:
    """A graph of one row, computed of many.

    Parameters
    ----------
    out : TensorVariable
        Of ``leaf`` and ``others``.
    leaf : TensorVariable, shape (P,)
        What there are gradients towards.
    others : sequence of TensorVariable
    outside : float
        The result where PyMC would refuse parameters: of their row, not of all.
    """

    def __init__(
        self, out: pt.TensorVariable, leaf: pt.TensorVariable, others: tuple = (),
        outside: float = np.nan,
    ) -> None:  # fmt: skip
        out = _without_refusals(out, (leaf, *others), outside)
        rows = tuple(_of_rows(v) for v in (leaf, *others))
        many = vectorize_graph(out, dict(zip((leaf, *others), rows, strict=True)))
        self._value = pm.compile(rows, many, on_unused_input="ignore")
        self._slope = _slope(many, rows)

    @property
    def differentiable(self) -> bool:
        """Whether PyTensor has a gradient of it."""
        return self._slope is not None

    def __call__(self, leaf: NDArray | Tensor, *others: NDArray | Tensor) -> NDArray | Tensor:
        """Return the results of rows (n, P) and others (n, ...), alike in kind."""
        if not isinstance(leaf, Tensor):
            return self.values(leaf, *others)
        found = _Graph.apply(self, leaf, *others)
        return found if self.differentiable else found.detach()

    def values(self, *rows: NDArray) -> NDArray[np.float64]:
        """Return the results of arrays."""
        return np.asarray(self._value(*rows), np.float64)

    def slope(self, *rows: NDArray) -> NDArray[np.float64]:
        """Return the gradient (n, P) of a sum of the results with weights, the last argument."""
        return np.asarray(self._slope(*rows), np.float64)


class RowDraws:
    """Draws of a random variable for many rows, of a seed.

    Parameters
    ----------
    out : TensorVariable
        Drawn given ``leaf``.
    leaf : TensorVariable, shape (P,)
    """

    def __init__(self, out: pt.TensorVariable, leaf: pt.TensorVariable) -> None:
        rows = _of_rows(leaf)
        many = vectorize_graph(_leaning(out, leaf), {leaf: rows})
        self._rngs = find_rng_nodes([many])
        self._draw = pytensor.function([rows], many, on_unused_input="ignore")

    def __call__(self, rows: NDArray, seed: int) -> NDArray[np.float64]:
        """Return one draw for each row."""
        reseed_rngs(self._rngs, seed)
        return np.asarray(self._draw(rows), np.float64)


class _Graph(torch.autograd.Function):
    """What PyTensor computes, and differentiates, as a function of torch."""

    @staticmethod
    def forward(ctx: Any, function: RowFunction, *rows: Tensor) -> Tensor:  # noqa: ANN401
        ctx.function, ctx.device = function, rows[0].device
        ctx.rows = tuple(_array(v) for v in rows)
        return torch.as_tensor(function.values(*ctx.rows), device=ctx.device).to(rows[0].dtype)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple:  # noqa: ANN401
        found = torch.as_tensor(ctx.function.slope(*ctx.rows, _array(weights)), device=ctx.device)
        return None, found.to(weights.dtype), *(None for _ in ctx.rows[1:])


def _leaning(out: pt.TensorVariable, leaf: pt.TensorVariable) -> pt.TensorVariable:
    """Return a variable whose first parameter has rows: PyTensor counts those of no other."""
    node = out.owner
    if not isinstance(node.op, RandomVariable):
        return out
    rng, size, first, *others = node.inputs
    first = first + pt.zeros_like(leaf[0], dtype=first.dtype)
    return node.op.make_node(rng, size, first, *others).outputs[1]


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().cpu().numpy().astype(np.float64)


def _of_rows(one: pt.TensorVariable) -> pt.TensorVariable:
    return pt.tensor(dtype=one.dtype, shape=(None, *one.type.shape))


def _slope(many: pt.TensorVariable, rows: tuple) -> Callable | None:
    weights = pt.tensor(dtype="float64", shape=many.type.shape)
    total = pt.sum(many * weights)
    try:
        found = pt.grad(total, rows[0], disconnected_inputs="ignore")
        return pm.compile([*rows, weights], found, on_unused_input="ignore")
    except (NotImplementedError, NullTypeGradError):
        return None


def _without_refusals(out: pt.TensorVariable, inputs: tuple, outside: float) -> pt.TensorVariable:
    """Return a graph whose checks of parameters give a number.

    PyMC makes them one number for all rows: a single draw at the edge of a prior would hide all.
    """
    graph = FunctionGraph(list(inputs), [out], clone=False)
    for node in graph.toposort():
        if isinstance(node.op, CheckParameterValue):
            value, *good = node.inputs
            kept = pt.switch(pt.all(pt.stack(good)), value, outside)
            graph.replace(node.outputs[0], kept.astype(value.dtype))
    return graph.outputs[0]
