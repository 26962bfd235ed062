"""Mixin: the verbs by which an engine draws, and answers for several objects at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.arguments import whole
from nbi_plus.data.ingest import point_mask
from nbi_plus.data.observations import Observations
from nbi_plus.infer.posterior.status import UntrustedWarning, doubts
from nbi_plus.infer.shared.ancestral import Children, Given
from nbi_plus.infer.shared.answering import shared_posterior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.torch_state import doors

if TYPE_CHECKING:
    from nbi_plus.infer.posterior.posterior import Posterior


@doors
class SharedMixin:
    """For an engine that knows its ``_fitted``, ``_one``, ``_answers``, ``_how`` and ``_seed``."""

    def sample(
        self,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        n_samples: int = 1000,
        given: Given | None = None,
        n_weighed: int = 1,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        seed: int | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return draws of the network: fast, and without a verdict.

        Parameters
        ----------
        x_obs, x_err, mask, bad, **inputs
            As for `predict`; with ``given`` also `Observations` of several objects.
        n_samples : int
            Draws wanted.
        given : Posterior, mapping of str to array_like of shape (S,) or (S, N), or table, optional
            Draws of scalars that the simulator asks for, such as the parameters of what the N
            objects are part of: of each object one draw is returned for each of them. A posterior
            is resampled to ``n_samples`` draws.
        n_weighed : int
            With ``given``: so many draws of the network are weighed with the likelihood, and one is
            taken by its weight. 1 takes what the network says.
        seed : int, optional
            Default: the engine's.

        Returns
        -------
        ndarray, shape (n_samples, D)
            With ``given`` (S, D), or (S, N, D) of `Observations`.
        """
        n_weighed, real = whole("n_weighed", n_weighed), point_mask(mask, bad)
        if given is None:
            if n_weighed > 1:
                raise ValueError(f"n_weighed must be 1 without given, but is {n_weighed}.")
            one = self._one("sample", x_obs, x_err, real, inputs)
            return self._answers("sample", one).sample(one, n_samples, self._seed(seed))
        several = isinstance(x_obs, Observations) and x_err is None and real is None and not inputs
        fitted = self._fitted("sample")
        amortized = fitted.amortized(self._how(), "sample(given=)")
        objects = (
            _some(fitted.like_training(x_obs))
            if several
            else self._one("sample", x_obs, x_err, real, inputs)
        )
        with preserved_random_state():
            children = Children(amortized, objects, n_weighed, self._seed(seed))
            found = children.of(given, whole("n_samples", n_samples))
        return found if isinstance(x_obs, Observations) else found[:, 0]

    def predict_shared(
        self,
        observations: Observations,
        n_samples: int = 2000,
        shared: Sequence[str] | None = None,
        *,
        seed: int | None = None,
        progress: bool | None = None,
    ) -> Posterior:
        """Return the posterior of one theta behind all objects, or epochs of one object.

        Log-likelihoods add up; each object keeps its own points, errors, coordinates and scalars.
        Draws come from the product of what the network says of each object, and climb the ladder as
        those of one object do.

        Parameters
        ----------
        observations : Observations
        n_samples : int
            Draws wanted; at least as many are returned, with their weights.
        shared : sequence of str, optional
            The parameters that all objects have in common. Of the others each object has its own,
            called ``{name}[{id}]``. Default: all are shared.
        seed : int, optional
            Default: the engine's.
        progress : bool, optional
            As for `fit`.

        Returns
        -------
        Posterior
            A draw takes one simulation of each object: the report counts all of them, budgets count
            draws.

        Raises
        ------
        ValueError
            Where there is no likelihood, for an object that cannot be used, and for more than 100
            parameters in all (40 of a simulator without gradients) where objects have own ones.
        """
        fitted = self._fitted("predict_shared")
        objects = _some(fitted.like_training(observations))
        amortized = fitted.amortized(self._how(progress=progress), "predict_shared")
        chosen = whole("n_samples", n_samples), self._seed(seed)
        if len(objects) == 1 and shared is None:
            posterior = amortized.posterior(objects, *chosen)
        else:
            posterior = shared_posterior(amortized, objects, shared, *chosen)
        if not posterior.trusted:
            told = doubts(posterior.status, posterior.flags, posterior.rungs[-1].reason)
            warnings.warn(told, UntrustedWarning, stacklevel=3)
        return posterior


def _some(objects: Observations) -> Observations:
    if not len(objects):
        raise ValueError("observations must hold at least one object, but hold none.")
    return objects
