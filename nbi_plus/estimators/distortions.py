"""Distortions: what is added to simulations that shall be of no model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALLEST, _LARGEST = 1.0, 30.0  # rms, in units of that of the noise
_SPIKES = 2.0  # points of one object that stick out, about


def distortions(noise: Tensor, mask: Tensor, rng: torch.Generator) -> Tensor:
    """Return waves, spikes or scatter (n, C, L) of random sizes, a third of the rows each.

    Parameters
    ----------
    noise : Tensor, shape (n, C, L)
        What was added to simulations as their noise: it gives the scale.
    mask : Tensor of bool, shape (n, C, L) or (1, C, L)
    rng : torch.Generator
    """
    n, _, length = noise.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, device=noise.device, dtype=noise.dtype)

    kind, log_size, log_turns, phase = uniform(4, n, 1, 1)
    turns = 0.25 * torch.exp(log_turns * math.log(max(2.0 * length, 2.0)))  # up to every second
    along = torch.linspace(0, 1, length, device=noise.device, dtype=noise.dtype)
    wave = torch.sin(2 * math.pi * (turns * along + phase)).expand_as(noise)
    rough = torch.special.ndtri(uniform(*noise.shape).clamp(1e-7, 1 - 1e-7))
    spikes = rough * (uniform(*noise.shape) < _SPIKES / length)
    shape = torch.where(kind < 1 / 3, wave, torch.where(kind < 2 / 3, spikes, rough))
    size = _SMALLEST * torch.exp(log_size * math.log(_LARGEST / _SMALLEST))
    return size * _rms(noise, mask) * shape / _rms(shape, mask).clamp(min=1e-30)


def _rms(values: Tensor, mask: Tensor) -> Tensor:
    """Return the root mean square (n, 1, 1) of the real points."""
    real = mask.expand_as(values)
    square = torch.where(real, values, 0.0).square().sum((-2, -1), keepdim=True)
    return (square / real.sum((-2, -1), keepdim=True).clamp(min=1)).sqrt()
