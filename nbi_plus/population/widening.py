"""Widening: objects answered anew, under a prior that goes on where their population does."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nbi_plus.arguments import of_kind
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.infer.ladder.earlier import places_of
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.problem.prior.families import Family, read_family
from nbi_plus.problem.prior.marginals import LogUniform
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.prior.transport import IndependentPrior

_LOG = logging.getLogger("nbi_plus")
_CENTRAL = 0.005, 0.995  # quantiles between which a prior without edges is as wide as it is


@dataclass(frozen=True)
class Widening:
    """An engine that can answer the objects of a population anew.

    Attributes
    ----------
    engine : Engine
    observations : Observations
        Of all objects, in any order.
    sides : ndarray of bool, shape (D, 2)
        Of which parameters the prior is wider than the engine's, below and above.
    """

    engine: Engine
    observations: Observations
    sides: NDArray[np.bool_]

    @classmethod
    def of(cls, posteriors: object, engine: object, observations: object) -> Widening | None:
        """Return what was given for it; None where nothing was."""
        if engine is None and observations is None:
            return None
        of_kind("engine", engine, Engine, "Give it and observations, or neither.")
        of_kind("observations", observations, Observations, "Give those that were predicted.")
        of_kind("posteriors", posteriors, Posteriors, "For engine=, give those of predict_many.")
        places_of(posteriors, observations)
        sides = np.zeros((len(posteriors.parameters.names), 2), bool)
        return cls(engine, observations, sides)

    def retried(self, posteriors: Posteriors) -> Posteriors:
        """Return the answers with those that nothing certified tried once more."""
        tried_again = posteriors.draws is not None and not posteriors.certified.all()
        return self.engine.retry(posteriors, self.observations) if tried_again else posteriors

    def by(self, sides: NDArray[np.bool_]) -> Widening | None:
        """Return the same for further sides; None where these are wider already."""
        return replace(self, sides=self.sides | sides) if (sides & ~self.sides).any() else None

    def answered(self, posteriors: Posteriors) -> Posteriors:
        """Return answers under the wider prior, and the old ones where that certifies nothing."""
        prior = widened(self.engine.prior_, self.sides)
        _LOG.warning(
            "the population goes on beyond the prior of its %d objects: they are answered under %r",
            len(posteriors), prior,
        )  # fmt: skip
        objects = self.observations[places_of(posteriors, self.observations)]
        resampled = all(np.ptp(p.weights) == 0 for p in posteriors)
        keep = max(map(len, posteriors)) if resampled else None
        anew = self.engine.predict_many(objects, keep=keep, prior=prior)
        lost = np.flatnonzero(~anew.certified)
        places = np.arange(len(anew))
        return Posteriors.placed([(anew, places), (posteriors[lost], lost)], len(anew))


def widened(prior: Prior, sides: NDArray[np.bool_]) -> Prior:
    """Return a prior that has no edge on some sides (D, 2) of its parameters.

    A parameter that loses one is normal: its standard deviation is the width of what it was, so
    that it is flat there, and the edge that it keeps cuts it. What was uniform in its logarithm is
    lognormal, and keeps none.

    Examples
    --------
    >>> prior = Prior({"a": stats.uniform(0, 2), "b": stats.uniform(0, 2)})
    >>> widened(prior, np.array([[True, True], [False, False]]))
    Prior(a ~ norm(loc=1, scale=2), b ~ uniform(scale=2))
    """
    if not isinstance(prior.transport, IndependentPrior):
        raise ValueError(
            f"engine must have a prior of independent parameters to answer anew, but has {prior}. "
            "Predict under a wider prior, and fit the population to these answers."
        )
    each = zip(prior.names, prior.transport.families, sides, strict=True)
    families = tuple(_wider(*own) if own[2].any() else own[1] for own in each)
    wider = copy.copy(prior)
    object.__setattr__(wider, "transport", IndependentPrior(families))
    return wider


def _wider(name: str, family: Family, sides: NDArray[np.bool_]) -> Family:
    low, high = edges = np.array(family.marginal.support)
    if isinstance(family.marginal, LogUniform):
        law = stats.lognorm(math.log(high / low), scale=math.sqrt(low * high))
        return read_family(name, law)
    inner = family.distribution.ppf(np.array(_CENTRAL))
    low, high = np.where(np.isfinite(edges), edges, inner)
    middle, width = 0.5 * (low + high), high - low
    a, b = np.where(sides, [-np.inf, np.inf], (edges - middle) / width)
    if np.isinf([a, b]).all():
        return read_family(name, stats.norm(middle, width))
    return read_family(name, stats.truncnorm(a, b, middle, width))
