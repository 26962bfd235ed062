"""One run of fit: get simulations, train on them, return the trained model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.arguments import real, whole
from nbi_plus.data.batch import Batch
from nbi_plus.io.store import SimulationStore
from nbi_plus.learn import fitting
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.training import History
from nbi_plus.problem.random import keyed_uniform
from nbi_plus.problem.setup import Problem
from nbi_plus.problem.simulator.campaign import Campaign, LatentDraws
from nbi_plus.problem.simulator.parallel import simulated

_LOG = logging.getLogger("nbi_plus")
_N_COMPARED = 8  # simulations that are made at an object's own points, too
_TOLERATED = 0.1  # rms error of interpolation, in units of the errors of the data


class Shared(NamedTuple):
    """How simulations are laid out for several members."""

    n_members: int
    n_shared: int  # of all
    n_own: int  # of each

    @classmethod
    def of_each(cls, n_each: int, n_members: int, reuse: float) -> Shared:
        """Return the layout that gives so many simulations to each member."""
        n_shared = round(reuse * n_each)
        return cls(n_members, n_shared, n_each - n_shared)

    @classmethod
    def of_all(cls, n: int, n_members: int, reuse: float) -> Shared:
        """Return the layout of n simulations: what members cannot share out among them is of all.

        Nothing is where ``reuse`` is 0: then it is left over.

        Examples
        --------
        >>> layouts = [(160, 10, 0.5), (160, 10, 1.0), (42, 4, 0.0)]
        >>> tuple(tuple(Shared.of_all(*layout)) for layout in layouts)
        ((10, 20, 14), (10, 160, 0), (4, 0, 10))
        """
        n_own = int((1 - reuse) * n / (reuse + n_members * (1 - reuse)) + 1e-9)  # .1 is no float
        return cls(n_members, n - n_members * n_own if reuse > 0 else 0, n_own)

    @property
    def n_total(self) -> int:
        """All simulations."""
        return self.n_shared + self.n_members * self.n_own


def shared_out(
    rows: NDArray[np.int64], places: NDArray[np.int64], shared: Shared, recipe: fitting.Recipe
) -> list[fitting.Parts]:
    """Return the parts of each of several members, of numbered rows, good ones alone.

    The first ``places`` (n,) belong to all members, and each has others of its own after them.
    Whoever sees a row trains on it, or nobody does.
    """
    edges = np.concatenate([[0], shared.n_shared + shared.n_own * np.arange(shared.n_members + 1)])
    pieces = [rows[(places >= a) & (places < b)] for a, b in zip(edges, edges[1:], strict=False)]
    split = [fitting.split(piece, recipe) if len(piece) else (piece, piece) for piece in pieces]
    parts = [
        tuple(np.concatenate(both) for both in zip(split[0], own, strict=True)) for own in split[1:]
    ]
    if any(len(part) == 0 for both in parts for part in both):
        raise ValueError(
            f"n_sims must leave each of {shared.n_members} members simulations to train on and to "
            f"hold out, but {shared.n_own} of its own and {shared.n_shared} of all do not. Make "
            "more, or share more."
        )
    return parts


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
    restriction : LatentDraws or None
        What simulations are drawn from instead of the prior.
    """

    n_sims: int | None
    online: bool
    max_failed: float
    folder: Path | None
    n_jobs: int | None = None
    client: object | None = None
    callback: Callable[[History], None] | None = None
    progress: bool | None = None
    restriction: LatentDraws | None = None

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
        if problem.files is not None:
            found = fitting.from_store(problem.files, problem.files.n_rows, recipe)
            return self._train(found, recipe, start)
        if self.online:
            campaign = self._campaign_of(problem, recipe)
            training_set = fitting.online(campaign, self.n_sims, recipe, self.max_failed)
            return self._train(training_set, recipe, start)
        with self._filled(problem, recipe, self.n_sims) as store:
            return self._train(fitting.from_store(store, self.n_sims, recipe), recipe, start)

    def several(
        self, problem: Problem, recipes: Sequence[fitting.Recipe], reuse: float
    ) -> tuple[list[TrainedModel], tuple[Tensor, Batch]]:
        """Return a model of each recipe, and z (n, D) and data that none of them was trained on.

        ``n_sims`` are of each; they share ``reuse`` of these. Simulations that the setup brings are
        laid out so, in an order of our own, for theirs may mean something. A model that is trained
        is not trained again where the run is resumed before all are.
        """
        n, first, columns, files = len(recipes), recipes[0], problem.columns, problem.files
        if columns is not None or files is not None:
            rows = np.arange(len(columns["z"]) if files is None else files.n_rows)
            chance = keyed_uniform(first.seed, "members", torch.as_tensor(rows), ())
            shared = Shared.of_all(len(rows), n, reuse)
            own = shared_out(rows, chance.argsort().argsort().numpy(), shared, first)
            made = (partial(fitting.from_arrays, columns) if files is None
                    else partial(fitting.from_store, files, len(rows)))  # fmt: skip
            return self._trained(made, recipes, own)
        shared = Shared.of_each(self.n_sims, n, reuse)
        total = shared.n_total
        with self._filled(problem, first, total) as store:
            good = store.good_rows(total)
            own = shared_out(good, good, shared, first)
            return self._trained(partial(fitting.from_store, store, total), recipes, own)

    def _trained(
        self, make: Callable[..., fitting.TrainingSet], recipes: Sequence[fitting.Recipe],
        own: Sequence[fitting.Parts],
    ) -> tuple[list[TrainedModel], tuple[Tensor, Batch]]:  # fmt: skip
        """Return `several` of training sets that ``make(recipe, parts)`` gives."""
        finished: list[Path] = []
        models = [
            self._train(make(recipe, parts), recipe, None, finished)
            for recipe, parts in zip(recipes, own, strict=True)
        ]
        unseen = own[0][0], np.unique(np.concatenate([held_out for _, held_out in own]))
        data = fitting.held_out_data(make(recipes[0], unseen), recipes[0])
        for checkpoint in finished:
            checkpoint.unlink(missing_ok=True)
        return models, data

    @contextmanager
    def _filled(
        self, problem: Problem, recipe: fitting.Recipe, n: int
    ) -> Iterator[SimulationStore]:
        """Open the store of n simulations, all made."""
        campaign = self._campaign_of(problem, recipe)
        with campaign.open(self.folder, n) as store:
            campaign.fill(store, n, self.max_failed)
            if problem.grid is not None:
                rows = store.good_rows(n)[:_N_COMPARED]
                _compare(problem, store.read(rows, ["theta", "x", "owner"]))
            yield store

    def _campaign_of(self, problem: Problem, recipe: fitting.Recipe) -> Campaign:
        perturbation = recipe.cadences.perturbation
        shift = 0.0 if perturbation is None else perturbation.shift
        return self.campaign(problem, recipe.seed, shift if problem.fixed else 0.0)

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
            restriction=self.restriction,
        )

    def _train(
        self, training_set: fitting.TrainingSet, recipe: fitting.Recipe,
        start: TrainedModel | None, finished: list[Path] | None = None,
    ) -> TrainedModel:  # fmt: skip
        folder = self.folder if start is None else None  # a continued run has another beginning
        return fitting.fit(
            training_set,
            recipe,
            start=start,
            folder=folder,
            finished=finished,
            callback=self.callback,
            progress=self.progress,
        )
