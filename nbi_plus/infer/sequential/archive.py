"""Keeping: a sequential fit as JSON and numbers, for the file of its engine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nbi_plus.data.observations import Observations
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.sequential.fit import SequentialFit
from nbi_plus.infer.sequential.journal import decode, encode, refuse_unsound
from nbi_plus.infer.sequential.rounds import Round, Rounds, Stop
from nbi_plus.infer.weights.summary import FAMILIES
from nbi_plus.io.archive import Archive, ArchiveError
from nbi_plus.io.parts import joined, split
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior

_PARTS = ("posterior", "object", "coords", "scalars", "rounds", "frozen")
_WORDS = ("phase", "reason")  # of a round; all else are numbers


def to_archive(fit: SequentialFit) -> Archive:
    """Return everything but prior, noise and simulator."""
    posterior, batch = fit.posterior.to_archive(), fit.observations.batch()
    data = {"x": batch.x, "mask": batch.mask}
    data |= {} if batch.x_err is None else {"x_err": batch.x_err}
    tensors = joined({"object": data, "coords": batch.coords, "scalars": batch.scalars})
    rows = [asdict(row) for row in fit.rounds]
    numbers = {k: np.array([row[k] for row in rows]) for k in rows[0] if k not in _WORDS}
    arrays: dict[str, NDArray] = joined({"posterior": posterior.arrays})
    arrays |= {k: v.numpy() for k, v in tensors.items()} | joined({"rounds": numbers})
    meta = {
        "posterior": posterior.meta,
        "id": str(fit.observations.ids[0]),
        "categories": {k: list(v) for k, v in fit.observations.categories.items()},
        "units": fit.observations.units,
        "phases": [row["phase"] for row in rows],
        "reasons": [row["reason"] for row in rows],
        "stop": fit.rounds.stop.name,
        "caution": fit.rounds.caution,
        "family": fit.family,
        "frozen": encode(fit.frozen, "frozen/", arrays),
    }
    return Archive(meta, arrays)


def from_archive(
    archive: Archive, prior: Prior, noise: Noise, device: torch.device
) -> SequentialFit:
    """Undo `to_archive`, without a simulator; the noise is bound."""
    meta, arrays = archive.meta, archive.arrays
    parts = split(arrays, _PARTS)
    filed = Archive(meta["posterior"], parts["posterior"])
    posterior = Posterior.from_archive(filed, "the sequential fit")
    observations, family = _observations(meta, parts), _family(meta)
    frozen = decode(meta["frozen"], "frozen/", arrays, device)
    refuse_unsound(frozen, prior.n_dim, device)
    if family not in FAMILIES or posterior.names != tuple(prior.names):
        raise ArchiveError(
            f"the sequential fit must be of the parameters {tuple(prior.names)} and one of "
            f"{FAMILIES}, but is of {posterior.names} and {family!r:.99}. Save it again."
        )
    if posterior.data_hash not in ("", observations.hashes[0]):
        raise ArchiveError(
            f"the sequential fit must be of its own data, but these have the hash "
            f"{observations.hashes[0]}, and its answer {posterior.data_hash}. Save it again."
        )
    return SequentialFit(
        observations=observations,
        posterior=posterior,
        rounds=_rounds(meta, parts["rounds"]),
        frozen=frozen,
        family=family,
        prior=prior,
        noise=noise,
        simulator=None,
        device=device,
    )


def _family(meta: dict[str, Any]) -> str:
    """Return whose gate the draws must pass; files of the first versions know mixtures alone."""
    return meta["family"] if "family" in meta else "mixture" if meta["is_mixture"] else "flow"


def _observations(meta: dict[str, Any], parts: dict[str, dict[str, NDArray]]) -> Observations:
    own = parts["object"]
    return Observations.from_arrays(
        own["x"],
        own.get("x_err"),
        mask=own["mask"],
        ids=[meta["id"]],
        scalars=parts["scalars"],
        categories=meta["categories"],
        units=meta["units"],
        **parts["coords"],
    )


def _rounds(meta: dict[str, Any], numbers: dict[str, NDArray]) -> Rounds:
    phases = meta["phases"]
    reasons = meta.get("reasons", [""] * len(phases))  # the first versions knew none
    rows = [
        Round(phase=phase, reason=reason, **{k: v[i].item() for k, v in numbers.items()})
        for i, (phase, reason) in enumerate(zip(phases, reasons, strict=True))
    ]
    return Rounds(tuple(rows), Stop[meta["stop"]], meta["caution"])
