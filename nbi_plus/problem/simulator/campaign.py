"""Simulations from the prior: numbered rows, made in parallel, stored, and never made twice."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.data.batch import Batch
from nbi_plus.io.fingerprint import digest, fingerprint
from nbi_plus.io.store import SimulationStore
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import keyed_normal
from nbi_plus.problem.simulator.cadence import TIME, shifts
from nbi_plus.problem.simulator.calling import SimulationError
from nbi_plus.problem.simulator.identity import check_reuse
from nbi_plus.problem.simulator.parallel import OnBlock, check_failures, simulate_rows
from nbi_plus.problem.simulator.simulator import OK, BoundSimulator, SimulationBlock

_LOG = logging.getLogger("nbi_plus")
_N_LISTED = 100  # failures that an error names
_UNKNOWN = "failed in an earlier run"
_NOT_FINITE = "the output is not finite"


class LatentDraws(Protocol):
    """What parameters are drawn from, where it is not the prior."""

    def draw(self, seed: int, rows: Tensor) -> Tensor:
        """Return latent draws (n, D) of numbered rows (n,), on their device."""

    def manifest(self) -> str:
        """Return a text that changes with what is drawn."""


@dataclass(frozen=True)
class Campaign:
    """What is simulated: rows of prior draws, under conditions that the row number decides.

    Attributes
    ----------
    prior, simulator
        The problem.
    conditions : Batch
        Coordinates and scalars; row ``i`` takes object ``i mod N`` where they differ by object.
    seed : int
        Of the prior draws.
    shift : float
        Largest share of its owner's time span that a row's times are shifted by.
    n_jobs, client, progress
        How the simulator is run.
    restriction : LatentDraws or None
        What is drawn from instead of the prior.
    """

    prior: Prior
    simulator: BoundSimulator
    conditions: Batch
    seed: int
    shift: float = 0.0
    n_jobs: int | None = None
    client: object | None = None
    progress: bool | None = None
    restriction: LatentDraws | None = None

    def latent(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the latent prior draws z (n, D) of numbered rows."""
        return self._latent(torch.as_tensor(rows, dtype=torch.int64)).numpy()

    def _latent(self, keys: Tensor) -> Tensor:
        if self.restriction is not None:
            return self.restriction.draw(self.seed, keys)
        return keyed_normal(self.seed, "prior", keys, (self.prior.n_dim,))

    def owner(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the object whose coordinates each row is simulated at."""
        return rows % len(self.conditions)

    def shifts(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what the times of each row are shifted by."""
        if not self.shift:
            return np.zeros(len(rows))
        keys, owner = torch.as_tensor(rows), torch.as_tensor(self.owner(rows))
        return shifts(self.conditions, keys, owner, self.shift, self.seed).numpy()

    def manifest(self) -> dict[str, object]:
        """Return what must agree before stored simulations are used again."""
        own = {} if self.restriction is None else {"restricted": self.restriction.manifest()}
        return own | {
            "parameters": list(self.prior.full_names),
            "prior": self.prior.manifest(),
            "coordinates": {k: _digest(v.numpy()) for k, v in self._coords().items()},
            "shape": list(self.simulator.shape),
            "seed": self.seed,
            "shift": self.shift,
            "objects": len(self.conditions) if self._per_row() else 1,
        }

    def file_name(self) -> str:
        """Return the name of the store: another problem never meets this one's simulations."""
        return f"simulations-{fingerprint(self.manifest())}.h5"

    def open(self, folder: Path | None, n: int) -> SimulationStore:
        """Open the store of this campaign with room for ``n`` rows, in memory without a folder."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        d = self.prior.n_dim
        columns = {"z": (d,), "theta": (d,), "x": tuple(self.simulator.shape), "owner": (),
                   "shift": ()}  # fmt: skip
        path = None if folder is None else folder / self.file_name()
        return SimulationStore.open(path, self.manifest(), columns, n)

    def fill(self, store: SimulationStore, n: int, max_failed: float) -> None:
        """Simulate what is missing of the first ``n`` rows; raise when too many fail."""
        check_reuse(self.simulator, store, self._make_rows, n_jobs=self.n_jobs, client=self.client)
        missing = store.missing(n)
        done = np.setdiff1d(np.arange(n), missing)
        earlier = store.read(done, ["state"])["state"] != OK
        failures = _Failures(dict.fromkeys(done[earlier].tolist(), _UNKNOWN))

        def keep(rows: NDArray[np.int64], _: NDArray, block: SimulationBlock) -> None:
            z = self.latent(rows)
            theta = self.prior.from_latent(z)
            store.write(
                int(rows[0]), block.state, z=z, theta=theta, x=block.x, owner=self.owner(rows),
                shift=self.shifts(rows),
            )  # fmt: skip
            failures.add(rows, block)
            self.check(failures.errors, n, max_failed)  # what cannot succeed any more stops at once

        self._run(missing, keep)
        self.check(failures.errors, n, max_failed)

    def simulate(
        self, rows: NDArray[np.int64], max_failed: float | None = None
    ) -> dict[str, NDArray]:
        """Return the columns of successive numbered rows that came out well; store nothing."""
        z = self.latent(rows)
        x = np.full((len(rows), *self.simulator.shape), np.nan)
        good = np.zeros(len(rows), bool)
        failures = _Failures()

        def keep(done: NDArray[np.int64], _: NDArray, block: SimulationBlock) -> None:
            place = done - rows[0]
            x[place], good[place] = block.x, block.state == OK
            failures.add(done, block)

        self._run(rows, keep)
        self.check(failures.errors, len(rows), max_failed)
        return {
            "z": z[good],
            "theta": self.prior.from_latent(z[good]),
            "x": x[good],
            "owner": self.owner(rows[good]),
            "shift": self.shifts(rows[good]),
        }

    def check(self, errors: Mapping[int, str], n: int, max_failed: float | None) -> None:
        """Raise a SimulationError that names the first failed rows when they are too many of n."""
        first = sorted(errors)[:_N_LISTED]
        theta = self.prior.from_latent(self.latent(np.array(first, np.int64))).tolist()
        named = [
            {"row": row, "theta": dict(zip(self.prior.names, values, strict=True)),
             "error": errors[row]}
            for row, values in zip(first, theta, strict=True)
        ]  # fmt: skip
        limit = {} if max_failed is None else {"max_fraction": max_failed}
        check_failures(len(errors), n, failed=named, **limit)

    def _run(self, rows: NDArray[np.int64], keep: OnBlock) -> None:
        simulate_rows(
            self.simulator,
            self._make_rows,
            rows,
            keep,
            n_jobs=self.n_jobs,
            client=self.client,
            progress=self.progress,
        )

    def drawn(self, keys: Tensor, conditions: Batch) -> dict[str, Tensor]:
        """Return the columns of rows numbered ``keys`` (n,) but their simulations.

        The keys say where they are made, and the conditions must be there.
        """
        z = self._latent(keys)
        owner = keys % len(conditions)
        shift = torch.zeros_like(z[:, 0])
        if self.shift:
            shift = shifts(conditions, keys, owner, self.shift, self.seed)
        return {"z": z, "theta": self.prior.from_latent(z), "owner": owner, "shift": shift}

    def asked(
        self, drawn: Mapping[str, Tensor], conditions: Batch
    ) -> tuple[Tensor, dict[str, Tensor], frozenset[str]]:
        """Return theta and coordinates to simulate some rows with, and which are by row."""
        per_row = self._per_row()
        coords = {
            k: v[drawn["owner"]] if k in per_row else v
            for k, v in conditions.arguments().items()
            if k in self.simulator.arguments
        }
        if TIME in per_row and coords[TIME].ndim == 2:
            coords[TIME] = coords[TIME] + drawn["shift"][:, None]
        return self.prior.complete(drawn["theta"]), coords, per_row

    def _coords(self) -> Mapping[str, torch.Tensor]:
        wanted = self.conditions.arguments()
        return {k: v for k, v in wanted.items() if k in self.simulator.arguments}

    def _per_row(self) -> frozenset[str]:
        """Return what the simulator asks for that differs between objects."""
        return self.conditions.per_object() & set(self._coords())

    def _make_rows(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], dict[str, NDArray], frozenset[str]]:
        with torch.no_grad():
            drawn = self.drawn(torch.as_tensor(rows, dtype=torch.int64), self.conditions)
            theta, coords, per_row = self.asked(drawn, self.conditions)
        return theta.numpy(), {k: v.numpy() for k, v in coords.items()}, per_row


@dataclass(frozen=True)
class ResidentCampaign:
    """Rows of a campaign as tensors of one device.

    What takes all rows at once, as tensors, makes them there; others simulate as ever, and what
    they made is sent.
    """

    campaign: Campaign
    device: torch.device
    _conditions: Batch = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_conditions", self.campaign.conditions.to(self.device))

    def simulate(
        self, rows: NDArray[np.int64], max_failed: float | None = None
    ) -> dict[str, Tensor]:
        """Return the columns of successive numbered rows that came out well."""
        simulator = self.campaign.simulator
        stays = simulator.backend == "torch" and simulator.vectorized and simulator.timeout is None
        if stays and self.device.type != "cpu" and len(rows):
            try:
                return self._made_here(int(rows[0]), len(rows), max_failed)
            except (torch.cuda.OutOfMemoryError, SimulationError):
                raise  # no row is to blame
            except Exception as error:  # noqa: BLE001 - user code; the usual way finds the row
                _LOG.debug("simulator raised on a device, simulating on the CPU: %r", error)
        columns = self.campaign.simulate(rows, max_failed)
        return {k: torch.as_tensor(v, device=self.device) for k, v in columns.items()}

    @torch.no_grad()
    def _made_here(self, first: int, n: int, max_failed: float | None) -> dict[str, Tensor]:
        """Return columns of the rows from ``first`` on; one wait says whether all are finite."""
        simulator, most = self.campaign.simulator, launch.of(self.device)
        row_bytes = 8 * most.target_copies * math.prod(simulator.shape)
        at_once = max(1, min(most.target_bytes // row_bytes, most.target_rows))
        parts = []
        for start in range(first, first + n, at_once):
            keys = torch.arange(start, min(start + at_once, first + n), device=self.device)
            drawn = self.campaign.drawn(keys, self._conditions)
            parts.append(
                drawn | {"x": simulator.torch(*self.campaign.asked(drawn, self._conditions))}
            )
        columns = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        good = columns["x"].isfinite().all(-1).all(-1)
        if bool(good.all()):
            return columns
        bad = (first + (~good).nonzero()[:, 0]).tolist()
        self.campaign.check(dict.fromkeys(bad, _NOT_FINITE), n, max_failed)
        kept = good.nonzero()[:, 0]
        return {k: v[kept] for k, v in columns.items()}


@dataclass
class _Failures:
    """Rows that came out badly, and why."""

    errors: dict[int, str] = field(default_factory=dict)

    def add(self, rows: NDArray[np.int64], block: SimulationBlock) -> None:
        bad = np.flatnonzero(block.state != OK)
        self.errors |= {int(rows[i]): _NOT_FINITE for i in bad}
        self.errors |= {int(rows[i]): message for i, message in block.errors}


def _digest(array: NDArray) -> str:
    return f"{list(array.shape)} {digest([array.tobytes()])}"
