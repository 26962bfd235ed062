"""Launches: how much is computed at once, on each kind of device."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

_NO_LIMIT = sys.maxsize


class Device(Protocol):
    """What tells its kind, as a ``torch.device`` does."""

    type: str


@dataclass(frozen=True)
class Launch:
    """Bounds of what one device computes at once; none of them changes an answer.

    Attributes
    ----------
    target_rows : int
        Simulated draws of one evaluation of the target. More fall out of a CPU's cache and cost
        five times as much each.
    target_bytes : int
        Memory of that evaluation.
    target_copies : int
        Tensors of the size of the simulations that are alive in it, beside those of the noise.
    gradient_numbers : int
        Simulated numbers of one gradient of the target: a CPU's cache, a GPU's memory.
    gradient_rows : int
        Draws of one gradient of a density that does not say how many it bears.
    compiled_launches : int
        Launches of gradients that compiled code takes at once: it keeps little of what it
        computes, and each call of it costs a third of a millisecond.
    random_numbers : int
        Random numbers that are made at once: beyond a CPU's cache each costs twice as much.
    flow_rows : int
        Draws that a flow makes or weighs. A CPU's cache holds the hidden units of no more.
    encoded_points : int
        Padded data that the featurizer sees: more are padded further where lengths differ, and
        are no faster on a CPU.
    mixture_numbers : int
        Densities of components, or features of draws, of the objects whose mixtures are fitted at
        once: those of a CPU's cache.
    factor_numbers : int
        Numbers of the Cholesky factors of draws of mixtures that are made at once.
    weighing_bytes : int
        Memory in which weights are smoothed and summed up: small enough for a CPU's cache to help.
    chain_bytes : int
        Memory of the draws of all objects whose chains are sampled together.
    batch_draws : int
        Draws of all objects of one batch: bounds the memory of a survey.
    escalated_objects : int
        Objects that climb the ladder together. More are no faster on a CPU, which 16 of them fill.
    """

    target_rows: int
    target_bytes: int
    target_copies: int
    gradient_numbers: int
    gradient_rows: int
    compiled_launches: int
    random_numbers: int
    flow_rows: int
    encoded_points: int
    mixture_numbers: int
    factor_numbers: int
    weighing_bytes: int
    chain_bytes: int
    batch_draws: int
    escalated_objects: int


KINDS = {
    "cpu": Launch(
        target_rows=16_384,
        target_bytes=2**24,
        target_copies=6,
        gradient_numbers=2**17,
        gradient_rows=4096,
        compiled_launches=8,
        random_numbers=2**16,
        flow_rows=4096,
        encoded_points=2**16,
        mixture_numbers=2**20,
        factor_numbers=2**17,
        weighing_bytes=2**26,
        chain_bytes=2**30,
        batch_draws=2**16,
        escalated_objects=256,
    ),
    "cuda": Launch(
        target_rows=_NO_LIMIT,
        target_bytes=2**31,
        target_copies=6,
        gradient_numbers=2**25,
        gradient_rows=2**19,
        compiled_launches=8,
        random_numbers=_NO_LIMIT,
        flow_rows=2**19,
        encoded_points=2**21,
        mixture_numbers=2**27,
        factor_numbers=2**27,
        weighing_bytes=2**31,
        chain_bytes=2**30,
        batch_draws=2**16,
        escalated_objects=4096,
    ),
}


def of(device: Device) -> Launch:
    """Return the bounds of a device; those of the CPU where its kind is not known.

    Examples
    --------
    >>> import torch
    >>> of(torch.device("cpu")).flow_rows
    4096
    """
    return KINDS.get(device.type, KINDS["cpu"])
