"""Distortions: what is added to simulations that shall be of no model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALLEST, _LARGEST = 1.0, 30.0  # rms, in units of that of the noise
_SPIKES = 2.0  # points of one object that stick out, about


def distortions(scale: Tensor, mask: Tensor, rng: torch.Generator) -> Tensor:
    """Return waves, spikes or scatter (n, C, L) of random sizes, a third of the rows each.

    Parameters
    ----------
    scale : Tensor, shape (n, C, 1)
        Root mean square of the noise of each channel.
    mask : Tensor of bool, shape (n, C, L) or (1, C, L)
    rng : torch.Generator
    """
    n, length = len(scale), mask.shape[-1]
    every = (n, *mask.shape[1:])

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, device=scale.device, dtype=scale.dtype)

    kind, log_size, log_turns, phase = uniform(4, n, 1, 1)
    turns = 0.25 * torch.exp(log_turns * math.log(max(2.0 * length, 2.0)))  # up to every second
    along = torch.linspace(0, 1, length, device=scale.device, dtype=scale.dtype)
    wave = torch.sin(2 * math.pi * (turns * along + phase))
    rough = torch.special.ndtri(uniform(*every).clamp(1e-7, 1 - 1e-7))
    chance = uniform(*every).masked_fill(~mask, 1.0)
    one = chance.amin((1, 2), keepdim=True)  # sticks out at least
    hit = (chance < _SPIKES / length) | (chance == one)
    shape = torch.where(kind < 1 / 3, wave, torch.where(kind < 2 / 3, rough * hit, rough))
    size = _SMALLEST * torch.exp(log_size * math.log(_LARGEST / _SMALLEST))
    return size * scale * torch.where(mask, shape / rms(shape, mask).clamp(min=1e-30), 0.0)


def rms(values: Tensor, mask: Tensor) -> Tensor:
    """Return the root mean square (n, C, 1) of the real points of each channel."""
    real = mask.expand_as(values)
    square = torch.where(real, values, 0.0).square().sum(-1, keepdim=True)
    return (square / real.sum(-1, keepdim=True).clamp(min=1)).sqrt()
