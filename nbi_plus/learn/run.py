"""One run of fit: get simulations, train on them, return the trained model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from numpy.typing import NDArray

from nbi_plus.arguments import real, whole
from nbi_plus.learn import fitting
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.training import History
from nbi_plus.problem.setup import Problem
from nbi_plus.problem.simulator.campaign import Campaign
from nbi_plus.problem.simulator.parallel import simulated

_LOG = logging.getLogger("nbi_plus")
_N_COMPARED = 8  # simulations that are made at an object's own points, too
_TOLERATED = 0.1  # rms error of interpolation, in units of the errors of the data


def _compare(problem: Problem, columns: Mapping[str, NDArray]) -> None:
    """Warn where interpolating on the grid is worse than the errors of the data allow."""
    owner = torch.as_tensor(columns["owner"]).long() % len(problem.conditions)
    objects = problem.conditions.select(owner)
    found = problem.grid.interpolate(torch.as_tensor(columns["x"]), objects)
    theta = problem.prior.complete(columns["theta"])
    own = {k: v.numpy() for k, v in objects.arguments().items()}
    job = theta, own, objects.per_object()
    exact = torch.as_tensor(simulated(problem.simulator, job).x)
    off = torch.where(objects.mask, found - exact, torch.nan)
    size = torch.where(objects.mask, exact, torch.nan).flatten(1)
    if objects.x_err is None:
        off = off / (size - size.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()[:, None, None]
    else:
        off = off / objects.x_err
    worst = float(off.square().flatten(1).nanmean(1).sqrt().max())
    if not worst <= _TOLERATED:
        _LOG.warning(
            "curves interpolated on the grid are off by up to %.2g of the data's errors (rms of "
            "one of %d curves): the network learns that. Give a denser grid.",
            worst,
            len(owner),
        )


@dataclass(frozen=True)
class Run:
    """How simulations are made and where they are kept.

    Attributes
    ----------
    n_sims : int or None
        None when the setup brings simulations.
    online : bool
        Whether each epoch gets fresh ones.
    max_failed : float
        Largest share that may fail.
    folder : Path or None
        For the store and the checkpoint.
    n_jobs, client
        How the simulator is run.
    callback, progress
        See `nbi_plus.learn.training.train`.
    """

    n_sims: int | None
    online: bool
    max_failed: float
    folder: Path | None
    n_jobs: int | None = None
    client: object | None = None
    callback: Callable[[History], None] | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.n_sims is not None:
            whole("n_sims", self.n_sims, 2)
        if not 0 <= real("max_failed", self.max_failed) <= 1:
            raise ValueError(f"max_failed must lie in [0, 1], but is {self.max_failed!r}.")

    def __call__(
        self, problem: Problem, recipe: fitting.Recipe, start: TrainedModel | None = None
    ) -> TrainedModel:
        """Return the trained model, or a copy of ``start`` trained on."""
        if start is not None:
            start = replace(start, network=copy.deepcopy(start.network))
        if problem.columns is not None:
            return self._train(fitting.from_arrays(problem.columns, recipe), recipe, start)
        perturbation = recipe.cadences.perturbation
        shift = 0.0 if perturbation is None else perturbation.shift
        campaign = self.campaign(problem, recipe.seed, shift if problem.fixed else 0.0)
        if self.online:
            training_set = fitting.online(campaign, self.n_sims, recipe, self.max_failed)
            return self._train(training_set, recipe, start)
        with campaign.open(self.folder, self.n_sims) as store:
            campaign.fill(store, self.n_sims, self.max_failed)
            if problem.grid is not None:
                rows = store.good_rows(self.n_sims)[:_N_COMPARED]
                _compare(problem, store.read(rows, ["theta", "x", "owner"]))
            return self._train(fitting.from_store(store, self.n_sims, recipe), recipe, start)

    def campaign(self, problem: Problem, seed: int, shift: float = 0.0) -> Campaign:
        """Return the simulations of the prior that this run makes or finds."""
        return Campaign(
            prior=problem.prior,
            simulator=problem.simulator,
            conditions=problem.simulated_at,
            seed=seed,
            shift=shift,
            n_jobs=self.n_jobs,
            client=self.client,
            progress=self.progress,
        )

    def _train(
        self, training_set: fitting.TrainingSet, recipe: fitting.Recipe, start: TrainedModel | None
    ) -> TrainedModel:
        folder = self.folder if start is None else None  # a continued run has another beginning
        return fitting.fit(
            training_set,
            recipe,
            start=start,
            folder=folder,
            callback=self.callback,
            progress=self.progress,
        )
