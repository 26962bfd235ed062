"""Simulated objects: draws of the prior, seen as a survey sees its objects, of known truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.data.packing import as_given
from nbi_plus.learn.model import Trained
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import generator, keyed_normal, keyed_uniform
from nbi_plus.problem.simulator.simulator import BoundSimulator
from nbi_plus.problem.target import Target
from nbi_plus.progress import progress as shown


class Believed(Protocol):
    """What is believed of objects: a `Problem`, or what was fitted to one."""

    prior: Prior
    noise: Noise
    simulator: BoundSimulator | None


@dataclass(frozen=True)
class KnownObjects:
    """Simulated objects.

    Attributes
    ----------
    truth : Tensor, shape (n, 1, D)
        In the latent space.
    theta : Tensor, shape (n, P)
        As the simulator sees them.
    data : Batch
        NaN where the simulation failed.
    """

    truth: Tensor
    theta: Tensor
    data: Batch


@torch.no_grad()
def known_objects(
    believed: Believed, bank: Batch, rows: Tensor, seed: int, stage: str, noise_stage: str
) -> KnownObjects:
    """Return simulated objects of these numbers (n,), each with the cadence of one of a bank.

    Randomness is keyed by seed, stage and row; that of the noise by seed and ``noise_stage``.
    """
    prior, index = believed.prior, torch.arange(len(rows), device=rows.device)
    truth = keyed_normal(seed, f"{stage} theta", rows, (prior.n_dim,))[:, None]
    owner = keyed_uniform(seed, f"{stage} owner", rows, ()) * len(bank)
    blank = bank.select(owner.long().cpu()).to(rows.device)
    curves = Target(prior, believed.simulator, believed.noise, blank).simulate(truth, index)
    theta = prior.complete(prior.from_latent(truth))[:, 0]
    rng = generator(seed, noise_stage, rows.device)
    data = believed.noise.observe(curves[:, 0], blank, theta, rng)
    return KnownObjects(truth, theta, data)


def observations_of(batch: Batch, units: dict[str, str], ids: list[str]) -> Observations:
    """Return the objects of a batch as people hold them, points that are masked among them."""
    coords = {k: as_given(v.cpu().numpy(), batch.categories.get(k)) for k, v in
              batch.coords.items()}  # fmt: skip
    return Observations.from_arrays(
        batch.x.cpu().numpy(),
        None if batch.x_err is None else batch.x_err.cpu().numpy(),
        mask=batch.mask.cpu().numpy(),
        scalars={k: v.cpu().numpy() for k, v in batch.scalars.items()},
        ids=ids,
        categories=batch.categories,
        units=units,
        **coords,
    )


def simulated_objects(
    believed: Believed, bank: Batch, n: int, seed: int, units: dict[str, str]
) -> tuple[Observations, NDArray[np.float64]]:
    """Return objects and their truths (n, D); those whose simulation failed are left out."""
    made = known_objects(believed, bank, torch.arange(n), seed, "calibration", "calibration noise")
    good = (made.data.x.isfinite() | ~made.data.mask).all(2).all(1)
    if not good.any():
        raise ValueError(
            f"simulator must answer for draws of the prior, but all {n} simulations failed. Look "
            "at engine.simulate."
        )
    ids = [f"simulated {i:06d}" for i in good.nonzero()[:, 0].tolist()]
    truths = believed.prior.from_latent(made.truth)[:, 0]
    return observations_of(made.data.select(good), units, ids), truths[good].cpu().numpy()


def objects_of(
    fitted: Any,  # noqa: ANN401 - a Fitted, which stands above
    model: Trained, n: int, observations: Observations | None, seed: int, progress: bool | None,
) -> tuple[Observations, NDArray[np.float64]]:  # fmt: skip
    """Return n objects as those of the training, or of others, were seen, and their truths."""
    if fitted.simulator is None:
        raise ValueError(
            "calibrate must have a simulator, but the engine has none. Load it with one, or "
            "give sbc the truths that you know."
        )
    bank = model.conditions
    if observations is not None:
        bank = fitted.like_training(observations).batch()
    with shown("simulating objects", show=progress):
        return simulated_objects(fitted, bank, n, seed, dict(fitted.conventions.units))
