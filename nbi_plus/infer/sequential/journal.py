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
from torch import Tensor

from nbi_plus.infer.proposals.base import (
    Blend,
    Conditioned,
    FlowProposal,
    LatentProposal,
    PriorProposal,
)
from nbi_plus.infer.proposals.circles import Cut, CutProposal
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.io.archive import ArchiveError, read_archive, write_archive
from nbi_plus.io.parts import split
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.model import without_global_rng
from nbi_plus.learn.network import estimator

Arrays = dict[str, NDArray]
_STATE = "network"


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
        try:
            return self._play(archive.meta, archive.arrays)
        except (KeyError, TypeError, IndexError, RuntimeError) as error:
            raise ArchiveError(
                f"{path} must hold a complete step, but its parts do not fit: {error!r}. "
                "Delete the folder."
            ) from error

    def _play(self, meta: Mapping[str, Any], arrays: Arrays) -> Step:
        parts = enumerate(meta["proposals"])
        proposals = tuple(decode(part, f"{i}/", arrays, self.device) for i, part in parts)
        own = split(arrays).get(_STATE, {})
        state = {k: torch.as_tensor(v, device=self.device) for k, v in own.items()}
        z = torch.as_tensor(arrays["z"], device=self.device)
        return Step(proposals, z, state, meta["family"], meta.get("n_looked", 0))


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
    """Undo `encode`."""
    readers = {kind.__name__: codec[1] for kind, codec in _CODECS.items()}
    if meta["kind"] not in readers:
        raise ArchiveError(f"a proposal must be one of {sorted(readers)}, but is {meta['kind']!r}.")
    return readers[meta["kind"]](meta, prefix, arrays, device)


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
    parts = (_get(arrays, prefix + k, device) for k in ("log_shares", "means", "factors"))
    return StudentMixture(*parts, meta["dof"])


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
    parts = enumerate(meta["parts"])
    return Blend(
        tuple(decode(part, f"{prefix}{i}/", arrays, device) for i, part in parts),
        tuple(meta["shares"]),
    )


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
    _check_size(meta, prefix, arrays)
    flow = without_global_rng(
        0, lambda: estimator(meta["n_dims"], features.shape[1], FlowConfig(**meta["config"]))
    )
    start = prefix + "flow/"
    names = [k[len(start) :] for k in arrays if k.startswith(start)]
    exact = flow.double()
    exact.load_state_dict({k: _get(arrays, start + k, device) for k in names})
    exact = exact.to(device).requires_grad_(False)
    return Conditioned(FlowProposal(exact, exact, meta["share"], meta["width"]), features)


def _check_size(meta: Mapping, prefix: str, arrays: Arrays) -> None:
    """Refuse numbers that would build a flow larger than the arrays that are really there."""
    own = [v.shape for k, v in arrays.items() if k.startswith(prefix)]
    largest = max([64, len(own), *(n for shape in own for n in shape)])
    told = {"n_dims": meta["n_dims"], **meta["config"]}
    sizes = {k: v for k, v in told.items() if k != "perm_seed" and not isinstance(v, str)}
    for name in sorted(sizes):
        if not 0 <= sizes[name] <= largest:
            raise ArchiveError(
                f"{name} of a flow must be at most {largest}, the largest size in the file, but "
                f"is {sizes[name]}. The file is damaged or forged."
            )


_CODECS: dict[type, tuple[Callable, Callable]] = {
    PriorProposal: (_encode_prior, _decode_prior),
    StudentMixture: (_encode_mixture, _decode_mixture),
    CutProposal: (_encode_cut, _decode_cut),
    Blend: (_encode_blend, _decode_blend),
    Conditioned: (_encode_flow, _decode_flow),
}
