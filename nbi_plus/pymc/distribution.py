"""PyMC's distributions of data whose likelihood an engine has learned, or computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from numpy.typing import ArrayLike, NDArray

from nbi_plus.arguments import of_kind
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.estimators.fits import TrialFit
from nbi_plus.estimators.trial_engine import TrialEngine
from nbi_plus.pymc.objects import variable_of
from nbi_plus.pymc.operations import LogDensityOp, rows_of


class NeuralDistribution:
    """A distribution of PyMC whose log-density is that of an engine.

    Of a LikelihoodEngine it is the log-likelihood, of a RatioEngine the log-ratio: the same less
    the log-density of x under the engine's prior, which no parameter changes. A deterministic
    ``{name}_outside`` tells for each draw of a chain which share of the trials had parameters
    beyond those of the training, where nothing was learned.

    Of an Engine it is the log-likelihood of its simulator and noise, which no network takes part
    in, with gradients where torch has them; without, PyMC takes samplers that need none. Each
    point has a log-likelihood of its own where the noise is independent, else each object.

    The engine's prior takes no part in the model. Where a likelihood is learned, priors of the
    model should lie inside.

    Parameters
    ----------
    engine : RatioEngine, LikelihoodEngine or Engine
        Fitted. An Engine need not be.
    param_names : sequence of str, optional
        Names of the engine's parameters in the order of the engine; default: as they are there.
    exchangeable : bool
        Whether data of single trials are many (T, L), or (T,) where a trial is one number;
        otherwise they are one trial (L,). The data of an Engine are those of one object, or
        Observations of many.

    Examples
    --------
    ``dist = NeuralDistribution(engine)`` and, in a model, ``dist("x", mu=mu, sigma=sigma,
    observed=x)``, where each parameter is one number for all trials, or one for each. Of an Engine
    ``dist("x", slope=a, level=b, observed=flux, x_err=error, t=t)``.
    """

    def __init__(
        self, engine: TrialEngine | Engine, param_names: list[str] | None = None,
        exchangeable: bool = True,
    ) -> None:  # fmt: skip
        self.engine, self.exchangeable = engine, exchangeable
        self._trials = None if isinstance(engine, Engine) else TrialVariables(engine, exchangeable)
        prior = engine._prior() if self._trials is None else self._trials.fit.prior
        names = prior.names if param_names is None else tuple(param_names)
        if len(names) != prior.n_dim or len(set(names)) != len(names):
            raise ValueError(
                f"param_names must be {prior.n_dim} names, for the parameters "
                f"{prior.names}, but are {names}."
            )
        self.param_names = names

    def __call__(  # noqa: PLR0913 - the public door
        self,
        name: str,
        *,
        observed: ArrayLike | Observations | None = None,
        x_err: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        **params: Any,  # noqa: ANN401 - whatever PyMC takes
    ) -> pt.TensorVariable:
        """Return the variable in the model of the context.

        Parameters
        ----------
        name : str
        observed : array_like, shape (T, L) or (T,); or (L,) where trials are not exchangeable
            Of an Engine one object, (L,) or (C, L) or a table as for its `predict`, or Observations
            of N objects, whose variable has the shape (N, C, L).
        x_err, mask, bad : array_like, optional
            Of an Engine's object, as for its `predict`.
        **params : number or tensor, shape () or (T,)
            Each parameter of the engine, by its name; of an Engine of shape (), or (N,) for N
            objects. Its coordinates and scalars are given by name, too: ``t=``, ``redshift=``.
        """
        own, inputs = self._sorted(name, params)
        beside = {"x_err": x_err, "mask": mask, "bad": bad}
        if self._trials is None:
            made = variable_of(self.engine, name, observed, beside, inputs)
            return made.declare(name, self.param_names, own, observed is not None)
        extra = [*inputs, *(k for k, v in beside.items() if v is not None)]
        if extra:
            raise TypeError(
                f"{name} must have the parameters {self.param_names}, but has {extra[0]}, too, "
                "which trials do not have."
            )
        return self._trials.declare(name, own, observed)

    def _sorted(
        self, name: str, params: dict[str, Any]
    ) -> tuple[list[pt.TensorVariable], dict[str, ArrayLike]]:
        """Return the parameters in their order, and all others."""
        if not set(self.param_names) <= set(params):
            raise TypeError(
                f"{name} must have the parameters {self.param_names}, but has {tuple(params)}."
            )
        own = [pt.as_tensor_variable(params[p]) for p in self.param_names]
        return own, {k: v for k, v in params.items() if k not in self.param_names}


class TrialVariables:
    """Variables of PyMC that are trials, or a single one."""

    def __init__(self, engine: TrialEngine, exchangeable: bool) -> None:
        of_kind("engine", engine, TrialEngine, "Fit one, or take an Engine.")
        self.engine, self.exchangeable = engine, exchangeable
        self.fit: TrialFit = engine._fitted("NeuralDistribution")
        # what a simulator holds need not go into other processes
        self.op = LogDensityOp(replace(self.fit, simulator=None))

    def declare(
        self, name: str, own: list[pt.TensorVariable], observed: ArrayLike | None
    ) -> pt.TensorVariable:
        """Return a variable, and another that tells where nothing was learned."""
        plain = self.exchangeable and self.fit.trials.width == 1 and np.ndim(observed) == 1
        pm.Deterministic(f"{name}_outside", self.op.outside(*own))
        # a number: PyTensor must know the shape of what is drawn together
        axes = "()" if plain else f"({self.fit.trials.width})"
        shapes = ",".join(["()"] * len(own))
        return pm.CustomDist(
            name, *own, logp=self.log_prob, random=self.draw, observed=observed,
            signature=f"{shapes}->{axes}",
        )  # fmt: skip

    def log_prob(self, value: pt.TensorVariable, *params: pt.TensorVariable) -> pt.TensorVariable:
        """Return the log-densities of trials, or that of one."""
        found = self.op(_columns(value, self.exchangeable), rows_of(params))
        return found if self.exchangeable else found[0]

    def draw(self, *params: NDArray, rng: np.random.Generator, size: Any) -> NDArray:  # noqa: ANN401
        """Return trials of the simulator for parameters, and of the size that PyMC wants."""
        shape = np.broadcast_shapes(*(np.shape(p) for p in params), tuple(size or ()))
        theta = np.stack([np.broadcast_to(p, shape).ravel() for p in params], 1)
        x = self.engine.simulate(theta, seed=int(rng.integers(2**31)))
        plain = self.exchangeable and x.shape[1] == 1
        return x.reshape(shape if plain else (*shape, x.shape[1]))


def _columns(value: pt.TensorVariable, exchangeable: bool) -> pt.TensorVariable:
    """Return data as trials (T, L)."""
    if not exchangeable:
        return value[None]
    return value[:, None] if value.ndim == 1 else value
