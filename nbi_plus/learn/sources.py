"""Sources of training simulations: on the device, streamed from disk, or made while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.io.store import SimulationStore
from nbi_plus.problem.noise.custom import CallableNoise
from nbi_plus.problem.prior.prior import Prior

COLUMNS = ("z", "theta", "x", "owner", "shift")
_BATCHES_SORTED = 16  # enough to save a third of the padding, few enough to mix


class TrainingRows(NamedTuple):
    """Training simulations on the device: z (n, D), theta (n, P), model (n, C, L), owner (n,).

    ``owner`` is the object that a simulation was made for, ``shift`` (n,) what was added to its
    times.
    """

    z: Tensor
    theta: Tensor
    model: Tensor
    owner: Tensor
    shift: Tensor | None = None

    def pick(self, index: Tensor | slice) -> TrainingRows:
        """Return some of the rows."""
        return TrainingRows(*(None if column is None else column[index] for column in self))


@dataclass(frozen=True)
class Resident:
    """Simulations that stay on the device.

    With ``lengths`` (n,) given, those of one batch are of similar length, and little is padded.
    """

    rows: TrainingRows
    lengths: Tensor | None = None

    @property
    def n_rows(self) -> int:
        """Number of simulations."""
        return len(self.rows.z)

    def batches(self, epoch: int, batch_size: int, rng: torch.Generator) -> Iterator[TrainingRows]:  # noqa: ARG002
        """Yield whole batches in random order; a few rows left over wait for another epoch."""
        order = torch.randperm(self.n_rows, generator=rng, device=self.rows.z.device)
        order = order[: self.n_rows // batch_size * batch_size]
        if self.lengths is not None:
            order = self._by_length(order, batch_size, rng)
        for rows in order.split(batch_size):
            yield self.rows.pick(rows)

    def _by_length(self, order: Tensor, batch_size: int, rng: torch.Generator) -> Tensor:
        """Sort every few batches by length, and shuffle the batches again."""
        pools = order.split(batch_size * _BATCHES_SORTED)
        order = torch.cat([pool[self.lengths[pool].argsort()] for pool in pools])
        batches = torch.stack(order.split(batch_size))
        shuffled = torch.randperm(len(batches), generator=rng, device=order.device)
        return batches[shuffled].flatten()


@dataclass(frozen=True)
class Streamed:
    """Simulations on disk, read in shuffled chunks of at most ``buffer_bytes``."""

    store: SimulationStore
    rows: NDArray[np.int64]
    prior: Prior
    device: torch.device
    dtype: torch.dtype
    buffer_bytes: int

    @property
    def n_rows(self) -> int:
        """Number of simulations."""
        return len(self.rows)

    def batches(self, epoch: int, batch_size: int, rng: torch.Generator) -> Iterator[TrainingRows]:  # noqa: ARG002
        """Yield whole batches of shuffled chunks; what is left of one goes before the next."""
        chunks = self.store.stream(
            self.rows, COLUMNS, buffer_bytes=self.buffer_bytes, seed=rng.initial_seed()
        )
        rest: TrainingRows | None = None
        for chunk in chunks:
            rows = to_device(chunk, self.prior, self.device, self.dtype)
            rows = (
                rows
                if rest is None
                else TrainingRows(*map(torch.cat, zip(rest, rows, strict=True)))
            )
            whole = len(rows.z) // batch_size * batch_size
            for start in range(0, whole, batch_size):
                yield rows.pick(slice(start, start + batch_size))
            rest = rows.pick(slice(whole, None))


@dataclass(frozen=True)
class Online:
    """Simulations made for one epoch and never used again.

    ``simulate(rows)`` returns the `COLUMNS` of numbered simulations, best as tensors of the device.
    """

    simulate: Callable[[NDArray[np.int64]], Mapping[str, NDArray | Tensor]]
    n_rows: int
    first_row: int
    prior: Prior
    device: torch.device
    dtype: torch.dtype

    def batches(self, epoch: int, batch_size: int, rng: torch.Generator) -> Iterator[TrainingRows]:
        """Yield whole batches of this epoch's own simulations."""
        rows = self.first_row + epoch * self.n_rows + np.arange(self.n_rows)
        resident = Resident(to_device(self.simulate(rows), self.prior, self.device, self.dtype))
        yield from resident.batches(epoch, min(batch_size, resident.n_rows), rng)


@dataclass(frozen=True)
class NoisyBank:
    """A bank of noisy copies, drawn anew for each epoch by a function of one item."""

    clean: Resident
    noise: CallableNoise
    prior: Prior

    @property
    def n_rows(self) -> int:
        """Number of simulations."""
        return self.clean.n_rows

    def batches(self, epoch: int, batch_size: int, rng: torch.Generator) -> Iterator[TrainingRows]:
        """Yield whole batches of noisy copies."""
        seed = rng.initial_seed() % 2**32
        noisy = noisy_copy(self.clean.rows, self.noise, self.prior, seed)
        yield from Resident(noisy).batches(epoch, batch_size, rng)


def noisy_copy(clean: TrainingRows, noise: CallableNoise, prior: Prior, seed: int) -> TrainingRows:
    """Return rows whose model is noisy data; the function may change theta too."""
    theta = prior.from_latent(clean.z).cpu().numpy()
    x, changed = noise.pairs(clean.model.cpu().to(torch.float64).numpy(), theta, seed)
    z = clean.z
    if not np.array_equal(changed, theta):
        z = torch.as_tensor(prior.to_latent(changed), device=z.device)
    full = prior.complete(prior.from_latent(z))
    return TrainingRows(z, full, torch.as_tensor(x).to(clean.model), clean.owner, clean.shift)


def to_device(
    columns: Mapping[str, NDArray | Tensor], prior: Prior, device: torch.device, dtype: torch.dtype
) -> TrainingRows:
    """Return columns as tensors of the device; the model in the dtype that the data need."""
    theta = prior.complete(torch.as_tensor(columns["theta"], device=device))
    return TrainingRows(
        torch.as_tensor(columns["z"], device=device),
        theta,
        torch.as_tensor(columns["x"], device=device).to(dtype),
        torch.as_tensor(columns["owner"], device=device).long(),
        torch.as_tensor(columns["shift"], device=device),
    )
