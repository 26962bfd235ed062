"""Source of a catalogue, read once more for a report: the S/N of all, and the data of a few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.observations import Observations
from nbi_plus.problem.noise.custom import as_noise
from nbi_plus.problem.setup import FitInputs, set_up
from nbi_plus.problem.simulator.parallel import simulated
from nbi_plus.survey.chunks import Reading, chunks, none_done
from nbi_plus.survey.sources import SurveySource

Curves = Callable[[Observations, NDArray[np.float64]], NDArray[np.float64]]
_AT_ONCE = 1024


@dataclass(frozen=True)
class SeenAgain:
    """What a source holds of the objects of a catalogue.

    Attributes
    ----------
    snr : dict of str to float
        The median of the absolute value over its error, of each object that could be read.
    objects : dict of str to Observations
        The data of those that were asked for.
    """

    snr: dict[str, float]
    objects: dict[str, Observations]


def seen_again(source: SurveySource, reading: Reading, wanted: set[str]) -> SeenAgain:
    """Read a source: the S/N of all objects, and the data of those whose ids are wanted."""
    snr, objects = {}, {}
    for chunk in chunks(source, reading, _AT_ONCE, none_done):
        if chunk.observations is None:
            continue
        ids = [str(i) for i in chunk.ids[chunk.places].tolist()]
        snr |= dict(zip(ids, signal_to_noise(chunk.observations).tolist(), strict=True))
        for place, name in enumerate(ids):
            if name in wanted:
                objects[name] = chunk.observations[place : place + 1]
    return SeenAgain(snr, objects)


def signal_to_noise(observations: Observations) -> NDArray[np.float64]:
    """Return the median of the points' S/N of each object, shape (N,); NaN without errors."""
    n = len(observations)
    if observations.errors is None:
        return np.full(n, np.nan)
    good = observations.valid
    ratio = np.abs(observations.values[good] / observations.errors[good])
    owner = np.broadcast_to(np.repeat(np.arange(n), observations.lengths), good.shape)[good]
    order = np.lexsort((ratio, owner))
    counts = np.bincount(owner, minlength=n)
    starts = np.cumsum(counts) - counts
    middles = [starts + np.maximum(counts - 1, 0) // 2, starts + counts // 2]
    sorted_ = np.append(ratio[order], np.nan)
    values = np.mean([sorted_[np.minimum(m, len(ratio))] for m in middles], 0)
    return np.where(counts > 0, values, np.nan)


def curves_of(engine: Any) -> Curves:  # noqa: ANN401 - an Engine, fitted or not
    """Return what makes models (n, C, L) of one object and theta (n, D), at its own points."""

    def curves(one: Observations, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        prior = engine._prior()
        problem = set_up(prior, engine.simulator, as_noise(engine.noise), FitInputs(one), 1)
        batch = one.batch()
        full = prior.complete(prior.check(theta))
        coords = {k: np.atleast_2d(v.numpy())[0] for k, v in batch.coords.items()}
        scalars = {k: np.repeat(v.numpy(), len(full)) for k, v in batch.scalars.items()}
        return simulated(problem.simulator, (full, coords | scalars, frozenset(scalars))).x

    return curves
