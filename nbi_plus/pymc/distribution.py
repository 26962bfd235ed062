"""PyMC: learned likelihoods as distributions of PyMC models, with gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import torch
from numpy.typing import ArrayLike, NDArray
from pytensor.gradient import DisconnectedType, grad_undefined
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from torch import Tensor

from nbi_plus.arguments import of_kind
from nbi_plus.estimators.fits import TrialFit
from nbi_plus.estimators.trial_engine import TrialEngine
from nbi_plus.torch_state import door

_OUTSIDE = "outside"


class NeuralDistribution:
    """A distribution of PyMC whose log-density was learned.

    Its log-density is the log-likelihood of a LikelihoodEngine, or the log-ratio of a RatioEngine:
    the same less the log-density of x under the engine's prior, which no parameter changes. The
    engine's prior says where it was learned, and takes no part in the model: priors of the model
    should lie inside. A deterministic ``{name}_outside`` tells for each draw of a chain which share
    of the trials had parameters beyond those of the training, where nothing was learned.

    Parameters
    ----------
    engine : RatioEngine or LikelihoodEngine
        Fitted.
    param_names : sequence of str, optional
        Names of the engine's parameters in the order of the engine; default: as they are there.
    exchangeable : bool
        Whether the data are trials (T, L), or (T,) where a trial is one number; otherwise they are
        one trial (L,).

    Examples
    --------
    ``dist = NeuralDistribution(engine)`` and, in a model, ``dist("x", mu=mu, sigma=sigma,
    observed=x)``, where each parameter is one number for all trials, or one for each.
    """

    def __init__(
        self, engine: TrialEngine, param_names: list[str] | None = None, exchangeable: bool = True
    ) -> None:
        of_kind("engine", engine, TrialEngine, "Fit a RatioEngine or LikelihoodEngine first.")
        self.engine, self.exchangeable = engine, exchangeable
        fit = engine._fitted("NeuralDistribution")
        names = fit.prior.names if param_names is None else tuple(param_names)
        if len(names) != fit.prior.n_dim or len(set(names)) != len(names):
            raise ValueError(
                f"param_names must be {fit.prior.n_dim} names, for the parameters "
                f"{fit.prior.names}, but are {names}."
            )
        self.param_names = names
        # what a simulator holds need not go into other processes
        self._op = LogDensityOp(replace(fit, simulator=None))

    def __call__(
        self,
        name: str,
        *,
        observed: ArrayLike | None = None,
        **params: Any,  # noqa: ANN401 - whatever PyMC takes
    ) -> pt.TensorVariable:
        """Return the variable in the model of the context.

        Parameters
        ----------
        name : str
        observed : array_like, shape (T, L) or (T,); or (L,) where trials are not exchangeable
        **params : number or tensor, shape () or (T,)
            Each parameter of the engine, by its name.
        """
        if set(params) != set(self.param_names):
            raise TypeError(
                f"{name} must have the parameters {self.param_names}, but has {tuple(params)}."
            )
        own = [pt.as_tensor_variable(params[p]) for p in self.param_names]
        rows = self._op.fit.trials
        plain = self.exchangeable and rows.width == 1 and np.ndim(observed) == 1
        pm.Deterministic(f"{name}_{_OUTSIDE}", self._op.outside(*own))
        shapes = ",".join(["()"] * len(own))
        return pm.CustomDist(
            name, *own, logp=self._log_prob, random=self._draw, observed=observed,
            signature=f"{shapes}->{'()' if plain else '(k)'}",
        )  # fmt: skip

    def _log_prob(self, value: pt.TensorVariable, *params: pt.TensorVariable) -> pt.TensorVariable:
        found = self._op(_columns(value, self.exchangeable), _rows(params))
        return found if self.exchangeable else found[0]

    def _draw(self, *params: NDArray, rng: np.random.Generator, size: Any) -> NDArray:  # noqa: ANN401
        shape = np.broadcast_shapes(*(np.shape(p) for p in params), tuple(size or ()))
        theta = np.stack([np.broadcast_to(p, shape).ravel() for p in params], 1)
        x = self.engine.simulate(theta, seed=int(rng.integers(2**31)))
        plain = self.exchangeable and x.shape[1] == 1
        return x.reshape(shape if plain else (*shape, x.shape[1]))


class LogDensityOp(Op):
    """What was learned, (T,), of trials (T, L) and parameters (T or 1, D), in float64."""

    def __init__(self, fit: TrialFit) -> None:
        self.fit = fit
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
        """Return the shape, as long as the trials."""
        return [(shapes[0][0],)]

    def L_op(self, inputs: list, outputs: list, output_grads: list) -> list:  # noqa: ARG002, N802
        """Return the gradient towards theta; data have none."""
        x, theta = inputs
        (weights,) = output_grads
        if isinstance(weights.type, DisconnectedType):
            return [grad_undefined(self, 0, x), theta.zeros_like()]
        return [grad_undefined(self, 0, x), self.gradient(x, theta, weights)]

    def outside(self, *params: pt.TensorVariable) -> pt.TensorVariable:
        """Return the share of the rows of parameters beyond those of the training."""
        return OutsideOp(self.fit)(_rows(params))


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

    def __init__(self, fit: TrialFit) -> None:
        self._fit = fit
        self._seen: tuple[NDArray, Tensor] | None = None  # observed trials are always the same
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

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

    def _evaluated(self, x: NDArray, theta: NDArray) -> tuple[Tensor, Tensor, Tensor]:
        """Return statistics of trials, parameters, and log-densities with a graph towards them."""
        statistics = self._statistics(x)
        leaf = torch.as_tensor(np.array(theta)).requires_grad_(True)
        with torch.enable_grad():
            return statistics, leaf, self._fit.log_prob(leaf, statistics)

    def _statistics(self, x: NDArray) -> Tensor:
        seen = self._seen
        if seen is None or not np.array_equal(seen[0], x):
            self._seen = seen = np.array(x), self._fit.statistics("observed", x)
        return seen[1]


class OutsideOp(Op):
    """The share of rows of theta (n, D) beyond the parameters of the training."""

    def __init__(self, fit: TrialFit) -> None:
        self.fit = fit

    def make_node(self, theta: pt.TensorVariable) -> Apply:
        """Return the node of this operation."""
        return Apply(self, [pt.cast(theta, "float64")], [pt.scalar(dtype="float64")])

    @door
    def perform(self, node: Apply, inputs: list[NDArray], outputs: list[list[NDArray]]) -> None:  # noqa: ARG002
        """Compute it."""
        theta = torch.as_tensor(self.fit.prior.complete(np.array(inputs[0])))
        outputs[0][0] = self.fit.range.beyond(theta).double().mean().numpy()


def _rows(params: tuple[pt.TensorVariable, ...]) -> pt.TensorVariable:
    """Return parameters, each () or (T,), as rows (T or 1, D)."""
    columns = pt.broadcast_arrays(*(pt.atleast_1d(p) for p in params))
    return pt.stack(columns, axis=1)


def _columns(value: pt.TensorVariable, exchangeable: bool) -> pt.TensorVariable:
    """Return data as trials (T, L)."""
    if not exchangeable:
        return value[None]
    return value[:, None] if value.ndim == 1 else value
