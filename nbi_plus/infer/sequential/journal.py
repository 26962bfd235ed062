"""Journals: the proposals and draws of every round, written before they are simulated.

A fit that was killed goes through the journal again up to its end: same proposals, same draws, and
the simulations that the ledger holds. Nothing that was random or rounded has to be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nbi_plus.infer.proposals.base import (
    Blend,
    Conditioned,
    FlowProposal,
    LatentProposal,
    PriorProposal,
)
from nbi_plus.infer.proposals.circles import Cut, CutProposal
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.weights.summary import FAMILIES
from nbi_plus.io.archive import ArchiveError, fitting_parts, read_archive, write_archive
from nbi_plus.io.parts import split
from nbi_plus.io.sizes import refuse_larger
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.model import without_global_rng
from nbi_plus.learn.network import estimator, load_sound, refuse_other_state

Arrays = dict[str, NDArray]
_STATE = "network"
_ROUNDING = 1e-6


class Step(NamedTuple):
    """One step: proposals, draws z (1, n, D), and the network's state where one was trained.

    ``family`` says which gate draws of the proposals must pass; ``n_looked`` is how many calls it
    took to find the proposals.
    """

    proposals: tuple[LatentProposal, ...]
    z: Tensor
    state: dict[str, Tensor]
    family: str = "flow"
    n_looked: int = 0


@dataclass
class Journal:
    """Steps of one fit, in a folder; without a folder nothing is kept.

    Attributes
    ----------
    folder : Path or None
    device : torch.device
    """

    folder: Path | None
    device: torch.device
    n_steps: int = 0

    def step(self, name: str, make: Callable[[], Step]) -> Step:
        """Return the next step: the recorded one, or a new one that is recorded first."""
        path = None if self.folder is None else self.folder / f"round-{self.n_steps:03d}.h5"
        self.n_steps += 1
        if path is None:
            return make()
        if not path.exists():
            _record(path, name, make())
        # a new step is played back too, so that both ways give the same numbers
        archive = read_archive(path, "round")
        if archive.meta["name"] != name:
            raise ArchiveError(
                f"{path} must hold the step {name!r} of this fit, but holds "
                f"{archive.meta['name']!r}. Delete the folder, or use another path."
            )
        with fitting_parts(path, "step"):
            return self._play(archive.meta, archive.arrays)

    def _play(self, meta: Mapping[str, Any], arrays: Arrays) -> Step:
        parts = enumerate(meta["proposals"])
        proposals = tuple(decode(part, f"{i}/", arrays, self.device) for i, part in parts)
        own = split(arrays).get(_STATE, {})
        state = {k: torch.as_tensor(v, device=self.device) for k, v in own.items()}
        z = torch.as_tensor(arrays["z"], device=self.device)
        family, n_looked = meta["family"], meta.get("n_looked", 0)
        if z.ndim != 3 or bool(z.isnan().any()) or family not in FAMILIES:
            raise ArchiveError(
                f"a step must hold draws (1, n, D) of one of {FAMILIES}, but holds "
                f"{tuple(z.shape)} of {family!r:.99}, or NaN. Delete the folder."
            )
        if type(n_looked) is not int or n_looked < 0:
            raise ArchiveError(f"n_looked must be a number of calls, but is {n_looked!r:.99}.")
        for proposal in proposals:
            refuse_unsound(proposal, z.shape[2], self.device)
        return Step(proposals, z, state, family, n_looked)


def _record(path: Path, name: str, step: Step) -> None:
    arrays: Arrays = {"z": step.z.cpu().numpy()}
    parts = [encode(q, f"{i}/", arrays) for i, q in enumerate(step.proposals)]
    _put(arrays, f"{_STATE}/", **step.state)
    meta = {"name": name, "proposals": parts, "family": step.family, "n_looked": step.n_looked}
    write_archive(path, "round", meta, arrays)


def encode(proposal: LatentProposal, prefix: str, arrays: Arrays) -> dict[str, Any]:
    """Return a proposal as JSON, and put its numbers into ``arrays``."""
    kind = type(proposal)
    if kind not in _CODECS:
        raise TypeError(f"{kind.__name__} must be one of {sorted(c.__name__ for c in _CODECS)}.")
    return {"kind": kind.__name__, **_CODECS[kind][0](proposal, prefix, arrays)}


def decode(
    meta: Mapping[str, Any], prefix: str, arrays: Arrays, device: torch.device
) -> LatentProposal:
    """Undo `encode`; see `refuse_unsound` for what must be true of the whole."""
    readers = {kind.__name__: codec[1] for kind, codec in _CODECS.items()}
    if meta["kind"] not in readers:
        raise ArchiveError(f"a proposal must be one of {sorted(readers)}, but is {meta['kind']!r}.")
    return readers[meta["kind"]](meta, prefix, arrays, device)


def refuse_unsound(proposal: LatentProposal, n_dim: int, device: torch.device) -> None:
    """Refuse a proposal that has no density where the prior has most, in so many dimensions."""
    with torch.no_grad():
        value = proposal.log_prob(torch.zeros(1, 1, n_dim, dtype=torch.float64, device=device))
    # far from what was fitted a density may come to nothing, but never to NaN
    if tuple(value.shape) != (1, 1) or bool((value.isnan() | value.isposinf()).any()):
        raise ArchiveError(
            f"a proposal must have a density in {n_dim} dimensions, but has "
            f"{value.tolist()!r:.99}. The file is damaged or forged."
        )


def _put(arrays: Arrays, prefix: str, **tensors: Tensor) -> None:
    arrays |= {prefix + k: v.detach().cpu().numpy() for k, v in tensors.items()}


def _get(arrays: Arrays, name: str, device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(arrays[name]), device=device)


def _encode_prior(q: PriorProposal, *_: object) -> dict[str, Any]:
    return {"n_dim": q.n_dim}


def _decode_prior(meta: Mapping, *_: object) -> PriorProposal:
    return PriorProposal(meta["n_dim"])


def _encode_mixture(q: StudentMixture, prefix: str, arrays: Arrays) -> dict[str, Any]:
    _put(arrays, prefix, log_shares=q.log_shares, means=q.means, factors=q.factors)
    return {"dof": q.dof}


def _decode_mixture(
    meta: Mapping, prefix: str, arrays: Arrays, device: torch.device
) -> StudentMixture:
    shares, means, factors = (
        _get(arrays, prefix + k, device) for k in ("log_shares", "means", "factors")
    )
    b, k, d = means.shape
    triangular = torch.equal(factors, factors.tril()) and bool(
        (factors.diagonal(0, 2, 3) > 0).all()
    )
    shapes = (tuple(shares.shape), tuple(factors.shape)) == ((b, k), (b, k, d, d))
    one = shares.exp().sum(1) - 1.0
    if not (shapes and triangular and bool((one.abs() < _ROUNDING).all()) and meta["dof"] > 0):
        raise ArchiveError(
            "a mixture must have triangular factors and shares that sum to one, but has others. "
            "The file is damaged or forged."
        )
    return StudentMixture(shares, means, factors, float(meta["dof"]))


def _encode_cut(q: CutProposal, prefix: str, arrays: Arrays) -> dict[str, Any]:
    _put(arrays, prefix, start=q.cut.start)
    if q.cut.sums is not None:
        _put(arrays, prefix, sums=q.cut.sums)
    return {"columns": list(q.cut.columns), "inner": encode(q.inner, prefix + "inner/", arrays)}


def _decode_cut(meta: Mapping, prefix: str, arrays: Arrays, device: torch.device) -> CutProposal:
    sums = _get(arrays, prefix + "sums", device) if prefix + "sums" in arrays else None
    cut = Cut(tuple(meta["columns"]), _get(arrays, prefix + "start", device), sums)
    return CutProposal(decode(meta["inner"], prefix + "inner/", arrays, device), cut)


def _encode_blend(q: Blend, prefix: str, arrays: Arrays) -> dict[str, Any]:
    parts = [encode(part, f"{prefix}{i}/", arrays) for i, part in enumerate(q.parts)]
    return {"shares": list(q.shares), "parts": parts}


def _decode_blend(meta: Mapping, prefix: str, arrays: Arrays, device: torch.device) -> Blend:
    parts, shares = enumerate(meta["parts"]), tuple(map(float, meta["shares"]))
    if len(shares) != len(meta["parts"]) or min(shares) < 0 or abs(sum(shares) - 1) > _ROUNDING:
        raise ArchiveError(
            f"a blend must have one share for each part, all of them one, but has {shares!r:.99}. "
            "The file is damaged or forged."
        )
    return Blend(tuple(decode(p, f"{prefix}{i}/", arrays, device) for i, p in parts), shares)


def _encode_flow(q: Conditioned, prefix: str, arrays: Arrays) -> dict[str, Any]:
    """Keep the flow in double precision and the features; the network around it is not needed."""
    inner, state = q.proposal, q.proposal.exact.state_dict()
    _put(arrays, prefix + "flow/", **state)
    _put(arrays, prefix, features=q.features)
    return {
        "config": vars(inner.exact.config),
        "n_dims": inner.exact.n_dims,
        "share": inner.share,
        "width": inner.width,
    }


def _decode_flow(meta: Mapping, prefix: str, arrays: Arrays, device: torch.device) -> Conditioned:
    features = _get(arrays, prefix + "features", device)
    start = prefix + "flow/"
    own = {k[len(start) :]: v for k, v in arrays.items() if k.startswith(start)}
    refuse_larger("flow", {"n_dims": meta["n_dims"], **meta["config"]}, own, ("perm_seed",))
    state = {k: torch.as_tensor(v, device=device) for k, v in own.items()}

    def make() -> nn.Module:
        return estimator(meta["n_dims"], features.shape[1], FlowConfig(**meta["config"]))

    refuse_other_state("flow", make, state)
    exact = without_global_rng(0, make).double()
    load_sound(exact, state)
    exact = exact.to(device).requires_grad_(False)
    share, width = float(meta["share"]), float(meta["width"])
    if not (0 <= share <= 1 and width > 0 and bool(features.isfinite().all())):
        raise ArchiveError(
            f"a flow must have finite features, a share in [0, 1] and a positive width, but has "
            f"{share} and {width}. The file is damaged or forged."
        )
    return Conditioned(FlowProposal(exact, exact, share, width), features)


_CODECS: dict[type, tuple[Callable, Callable]] = {
    PriorProposal: (_encode_prior, _decode_prior),
    StudentMixture: (_encode_mixture, _decode_mixture),
    CutProposal: (_encode_cut, _decode_cut),
    Blend: (_encode_blend, _decode_blend),
    Conditioned: (_encode_flow, _decode_flow),
}
