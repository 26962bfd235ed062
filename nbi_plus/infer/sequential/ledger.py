"""Ledger: every simulation of one object's fit, numbered, written as it comes, never made twice."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.io.store import SimulationStore, StoreError
from nbi_plus.problem.random import generator, preserved_random_state
from nbi_plus.problem.simulator.identity import check_reuse
from nbi_plus.problem.simulator.parallel import simulate_rows
from nbi_plus.problem.simulator.simulator import FAILED, SimulationBlock
from nbi_plus.problem.simulator.workers import Job
from nbi_plus.problem.target import Z_MAX, Evaluation, Target

_LOG = logging.getLogger("nbi_plus")
_ROWS_CHECKED = 1024  # models whose p-values are computed at once
_N_SETS = 4  # of other data for each, where p-values have no closed form


class OutOfTime(Exception):  # noqa: N818 - an expected end
    """The time allowed for simulations is over; what was simulated is stored."""


@dataclass
class Ledger:
    """Evaluates draws for one object, and remembers what was simulated.

    With a store, rows are written as they come; the same draws find them there after a kill.
    Without a likelihood it simulates all the same, and says NaN.

    Attributes
    ----------
    target : Target
        Of one object.
    store : SimulationStore or None
        With columns ``z`` and ``x``.
    progress : bool or None
    deadline : float or None
        Of `time.perf_counter`: past it, `OutOfTime` is raised when a block is written.
    n_simulated, n_failed, n_reused : int
        Simulations asked for, those of them that failed, and those that were found in the store.
    n_gradients, n_beside : int
        Calls that made no draw of the answer: those with a gradient, and those without.
    """

    target: Target
    store: SimulationStore | None = None
    progress: bool | None = None
    deadline: float | None = None
    n_simulated: int = 0
    n_failed: int = 0
    n_reused: int = 0
    n_gradients: int = 0
    n_beside: int = 0
    _n_rows: int = 0
    _z: list[Tensor] = field(default_factory=list)
    _models: list[Tensor] = field(default_factory=list)
    _tails: dict[bytes, tuple[float, float]] = field(default_factory=dict)

    @staticmethod
    def columns(target: Target) -> dict[str, tuple[int, ...]]:
        """Return the columns of a store for this target."""
        return {"z": (target.prior.n_dim,), "x": tuple(target.simulator.shape)}

    @property
    def has_likelihood(self) -> bool:
        """Whether draws can be weighed, or only simulated."""
        return self.target.noise.has_likelihood(self.target.data.x_err is not None)

    @property
    def n_calls(self) -> int:
        """Everything the simulator was asked for, with or without a gradient."""
        return self.n_simulated + self.n_gradients + self.n_beside

    def spend(self, n_calls: int, n_gradients: int) -> None:
        """Count calls without and with a gradient that made no draw of the answer."""
        self.n_beside += n_calls
        self.n_gradients += n_gradients

    def spend_looking(self, n: int) -> None:
        """Count calls of a search, which have gradients where there are any."""
        self.spend(*((0, n) if self.target.differentiable else (n, 0)))

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the log posterior density (b, n) of places z (b, n, D), to look for its peaks.

        Nothing is stored or counted: `spend` says what was done. ``index`` is what samplers of
        many objects ask with; here all places are of the one object.
        """
        self._watch_the_clock()
        return self.target.log_prob(z, torch.zeros_like(index))

    def check_reuse(self) -> None:
        """Refuse simulations in the store that another simulator made."""
        target, store = self.target, self.store
        if store is not None:
            check_reuse(
                target.simulator, store, lambda rows: self._job(store.read(rows, ["z"])["z"]),
                n_jobs=target.n_jobs, client=target.client, whole=f"the folder {store.path.parent}",
            )  # fmt: skip

    def evaluate(self, z: Tensor, *, keep: bool = False) -> Evaluation:
        """Return what the target is at draws z (1, n, D), simulating those that are not stored.

        Draws beyond the support of the prior have weight zero, and are not simulated.

        Parameters
        ----------
        z : Tensor, shape (1, n, D)
        keep : bool
            Whether `pool` shall hold them.
        """
        inside = (z[0].abs() <= Z_MAX).all(-1)
        x, state = self._simulate(z[0, inside].cpu().numpy())
        models = torch.full((1, len(inside), *x.shape[1:]), np.nan, dtype=z.dtype, device=z.device)
        models[0, inside] = torch.as_tensor(x, device=z.device)
        failed = torch.zeros(1, len(inside), dtype=torch.bool, device=z.device)
        failed[0, inside] = torch.as_tensor(state == FAILED, device=z.device)
        if keep:
            self._z.append(z[0])
            self._models.append(models[0])
        return self._judge(z, models, failed)

    def adopt(self, z: Tensor, models: Tensor, failed: Tensor) -> Evaluation:
        """Return what the target is at draws that were simulated already, and keep them.

        Parameters
        ----------
        z : Tensor, shape (1, n, D)
        models : Tensor, shape (1, n, C, L)
            NaN where the simulator failed or was not finite.
        failed : Tensor of bool, shape (1, n)
        """
        self.n_simulated += z.shape[1]
        self.n_failed += int(failed.sum())
        self.n_reused += z.shape[1]
        self._z.append(z[0])
        self._models.append(models[0])
        return self._judge(z, models, failed)

    def pool(self) -> tuple[Tensor, Tensor]:
        """Return the kept draws z (S, D) and their noise-free models (S, C, L), in order."""
        return torch.cat(self._z), torch.cat(self._models)

    def forget(self) -> None:
        """Let go of the kept simulations."""
        self._z.clear()
        self._models.clear()

    def tails(self, z: Tensor) -> Tensor:
        """Return the p-values (S, 2) of the data for the models of draws z (S, D) made here.

        See `Noise.p_values`; they were found when the models were, for these are not kept. NaN
        where there was no model.
        """
        found = [self._tails[row.tobytes()] for row in z.double().cpu().numpy()]
        return torch.tensor(found, dtype=torch.float64, device=z.device)

    def _judge(self, z: Tensor, models: Tensor, failed: Tensor) -> Evaluation:
        if self.has_likelihood:
            self._note_tails(z[0], models[0])
            return self.target.judge(z, models, failed)
        inside = (z.abs() <= Z_MAX).all(-1)
        log_prior = self.target.prior.log_prob_latent(z).masked_fill(~inside, -np.inf)
        return Evaluation(log_prior, torch.full_like(log_prior, np.nan), failed)

    def _note_tails(self, z: Tensor, models: Tensor) -> None:
        """Note the p-values of models (n, C, L) of draws z (n, D)."""
        prior, noise = self.target.prior, self.target.noise
        theta = prior.complete(prior.from_latent(z))
        rng = generator(self.n_simulated, "fit", z.device)  # a step's own, also after resuming
        n_sets = 1 if noise.exact_p_value else _N_SETS
        with preserved_random_state(), torch.no_grad():
            for rows in torch.arange(len(z), device=z.device).split(_ROWS_CHECKED):
                data = self.target.data.select(torch.zeros_like(rows))
                own = theta[rows], models[rows], data, rng
                sets = [torch.stack(noise.p_values(*own), 1) for _ in range(n_sets)]
                tails = torch.stack(sets).mean(0).tolist()
                keys = [row.tobytes() for row in z[rows].double().cpu().numpy()]
                self._tails.update(zip(keys, map(tuple, tails), strict=True))

    def _simulate(self, z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Return models (n, C, L) and states (n,) of draws z (n, D)."""
        first, n = self._n_rows, len(z)
        x = np.full((n, *self.target.simulator.shape), np.nan)
        state = np.full(n, FAILED, np.uint8)
        todo = self._recall(first, z, x, state)

        def on_block(rows: NDArray[np.int64], _: NDArray, block: SimulationBlock) -> None:
            x[rows], state[rows] = block.x, block.state
            if self.store is not None:
                self.store.write(first + int(rows[0]), block.state, z=z[rows], x=block.x)
            for _, message in block.errors[:1]:
                _LOG.debug("a simulation failed: %s", message)
            self._watch_the_clock()

        simulate_rows(
            self.target.simulator, lambda rows: self._job(z[rows]), todo, on_block,
            n_jobs=self.target.n_jobs, client=self.target.client, progress=self.progress,
        )  # fmt: skip
        self._n_rows += n
        self.n_simulated += n
        self.n_failed += int((state == FAILED).sum())
        return x, state

    def _watch_the_clock(self) -> None:
        if self.deadline is not None and time.perf_counter() > self.deadline:
            raise OutOfTime

    def _recall(self, first: int, z: NDArray, x: NDArray, state: NDArray) -> NDArray[np.int64]:
        """Fill in the rows that are stored; return the others."""
        n = len(z)
        if self.store is None:
            return np.arange(n)
        self.store.grow(max(first + n, 1))
        todo = self.store.missing(first + n)
        todo = todo[todo >= first] - first
        done = np.setdiff1d(np.arange(n), todo)
        stored = self.store.read(first + done, ["z", "x", "state"])
        if not np.array_equal(stored["z"], z[done]):
            raise StoreError(
                f"{self.store.path} must hold the draws of this fit, but holds others. "
                "Use another path, or delete it."
            )
        x[done], state[done] = stored["x"], stored["state"]
        self.n_reused += len(done)
        return todo

    def _job(self, z: NDArray[np.float64]) -> Job:
        """Return what the simulator is called with for draws z (n, D)."""
        prior, data = self.target.prior, self.target.data
        asked = {k: v for k, v in data.arguments().items() if k in self.target.simulator.arguments}
        per_row = data.per_object() & set(asked)
        coords = {k: v.cpu().numpy() for k, v in asked.items()}
        own = {k: np.repeat(v, len(z), 0) if k in per_row else v for k, v in coords.items()}
        return prior.complete(prior.from_latent(z)), own, per_row
