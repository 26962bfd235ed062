"""Windows: whether an object's times lie where simulations were made, and whether that matters."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nbi_plus.data.batch import Batch
from nbi_plus.data.flat import FlatData
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.simulator.cadence import TIME
from nbi_plus.problem.simulator.parallel import simulated
from nbi_plus.problem.simulator.simulator import BoundSimulator

Window = tuple[float, float]
_N_TRIED = 8
_SAME = 1e-6  # relative: the digits that large times leave


def window_of(objects: FlatData) -> Window | None:
    """Return the first and last time of any valid point, None where there are no times."""
    if TIME not in objects.points:
        return None
    first, last = _spans(objects)
    seen = np.isfinite(first)
    return (float(first[seen].min()), float(last[seen].max())) if seen.any() else None


def strangers(
    objects: FlatData,
    window: Window,
    simulator: BoundSimulator | None,
    prior: Prior,
    trained: Batch,
) -> NDArray[np.str_]:
    """Return for each object why its times rule an answer out, "" where they do not.

    They do where all of them lie outside the window and the simulator gives other answers at other
    times: its times are absolute then, and so are those of the prior. One that reads times from
    each object's own origin is welcome to a new season.

    Parameters
    ----------
    objects : FlatData
        In the units of the training.
    window : tuple of float
        Of the training.
    simulator : BoundSimulator or None
    prior : Prior
    trained : Batch
        An object of the training, the first one if there are more.
    """
    nothing = np.full(len(objects), "", dtype=object)
    if simulator is None or TIME not in objects.points:
        return nothing.astype(str)
    first, last = _spans(objects)
    outside = (last < window[0]) | (first > window[1])
    away = np.flatnonzero(outside & np.isfinite(first))
    if not len(away) or not _follows_the_clock(simulator, prior, trained, first[away[0]]):
        return nothing.astype(str)
    for i in away:  # a sentence each
        nothing[i] = (
            f"{TIME} must overlap with the times of the training, {window[0]:.10g} to "
            f"{window[1]:.10g}, but goes from {first[i]:.10g} to {last[i]:.10g}. Convert them, "
            "count them from each object (relative_to), or fit for these times."
        )
    return nothing.astype(str)


def _spans(objects: FlatData) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first and last time of each object, shape (N,); infinite without a point."""
    flat = objects.laid_out()
    seen = flat.valid.any(0)
    first, last = np.full(len(flat), np.inf), np.full(len(flat), -np.inf)
    np.minimum.at(first, flat.owner[seen], flat.points[TIME][seen])
    np.maximum.at(last, flat.owner[seen], flat.points[TIME][seen])
    return first, last


def _follows_the_clock(
    simulator: BoundSimulator, prior: Prior, trained: Batch, there: float
) -> bool:
    """Say whether answers at an object's times change when all of these are moved."""
    if TIME not in simulator.arguments:
        return False
    theta = prior.complete(prior.sample(_N_TRIED, np.random.default_rng(0)))
    one = trained.select(torch.zeros(_N_TRIED, dtype=torch.int64))
    coords = {k: v.numpy() for k, v in one.arguments().items() if k in simulator.arguments}
    per_row = one.per_object() & set(coords)
    moved = coords | {TIME: coords[TIME] - coords[TIME].min() + there}
    here, elsewhere = (simulated(simulator, (theta, c, per_row)).x for c in (coords, moved))
    size = np.nanmax(np.abs(here), initial=0.0)
    return not np.allclose(here, elsewhere, rtol=_SAME, atol=_SAME * size, equal_nan=True)
