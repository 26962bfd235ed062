"""Tuning: step size and trajectory of each object, learned while its chains warm up."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_GAMMA, _T0, _KAPPA = 0.05, 10.0, 0.75  # of dual averaging (Hoffman and Gelman 2014)
_STEPS = (math.log(1e-6), math.log(10.0))
_DECAY = 0.95
_MAX_CHANGE = 0.35  # of the log of the trajectory in one step
_START_TIME = math.log(math.pi / 2)  # a quarter of the period of a standard normal
_LEAST_ACCEPT = 1e-4
_FLOOR = 0.05  # acceptance below which a chain is stuck, however little it is


@dataclass(frozen=True)
class Proposed:
    """What one step of the chains proposed, each of shape (B, C), and in u (B, C, D).

    ``accept`` are probabilities; ``jitter`` is the share of the trajectory that was taken.
    """

    before: Tensor
    after: Tensor
    momentum: Tensor
    accept: Tensor
    jitter: float


@dataclass(frozen=True)
class Tuning:
    """Adaptive state of B objects, every tensor of shape (B,).

    Attributes
    ----------
    centre : Tensor
        Where dual averaging pulls the logarithm of the step to.
    log_step, log_step_mean, error : Tensor
        Now, averaged, and the running difference between wanted and found acceptance.
    log_time, log_time_mean, scale : Tensor
        Length of a trajectory, the same averaged, and the running square of its gradient.
    """

    centre: Tensor
    log_step: Tensor
    log_step_mean: Tensor
    error: Tensor
    log_time: Tensor
    log_time_mean: Tensor
    scale: Tensor

    @classmethod
    def start(cls, n: int, step: float, like: Tensor) -> Tuning:
        """Return the state before a window of adaptation."""
        nothing = torch.zeros(n, dtype=like.dtype, device=like.device)
        log_step, log_time = nothing + math.log(step), nothing + _START_TIME
        centre = log_step + math.log(2.0)
        return cls(centre, log_step, log_step, nothing, log_time, log_time, nothing)

    @property
    def frozen(self) -> Tuning:
        """The averages, to sample with."""
        return replace(self, log_step=self.log_step_mean, log_time=self.log_time_mean)

    def n_leaps(self, jitter: float, most: Tensor) -> Tensor:
        """Return the leapfrog steps (B,), of ``most`` (B,), of a ``jitter`` of the trajectory."""
        wanted = (jitter * (self.log_time - self.log_step).exp()).ceil()
        return torch.minimum(wanted.clamp(min=1), most.to(wanted)).long()

    def update(self, trial: Proposed, t: int, wanted: float, rate: float, most: Tensor) -> Tuning:
        """Return the state after step ``t`` (from 1) of a window.

        Steps by dual averaging of the harmonic mean of the acceptances of all chains, so that few
        stuck ones cannot hide among many: one update of each object in each step. Trajectories by
        the ChEES criterion (Hoffman, Radul and Sountsov 2021).
        """
        eta = 1 / (t + _T0)
        found = 1 / (1 / trial.accept.clamp(min=_FLOOR)).mean(1)
        error = (1 - eta) * self.error + eta * (wanted - found)
        log_step = (self.centre - math.sqrt(t) / _GAMMA * error).clamp(*_STEPS)
        share = t**-_KAPPA
        step_mean = (1 - share) * self.log_step_mean + share * log_step

        gradient = trial.jitter * self.log_time.exp() * _chees_gradient(trial)
        scale = _DECAY * self.scale + (1 - _DECAY) * gradient.square()
        size = (scale / (1 - _DECAY**t)).sqrt()
        change = (rate * gradient / (size + 1e-20)).clamp(-_MAX_CHANGE, _MAX_CHANGE)
        longest = log_step + most.to(log_step).log()
        log_time = (self.log_time + change).clamp(min=log_step, max=longest)
        share = t**-0.5
        time_mean = (1 - share) * self.log_time_mean + share * log_time
        return Tuning(self.centre, log_step, step_mean, error, log_time, time_mean, scale)


def _chees_gradient(trial: Proposed) -> Tensor:
    """Return the gradient (B,) of the expected change of squared distance from the mean."""
    weight = trial.accept
    after = torch.where(torch.isfinite(trial.after), trial.after, 0.0)
    total = weight.sum(1) + 1e-20
    mean_after = (weight[..., None] * after).sum(1, keepdim=True) / total[:, None, None]
    near = trial.before - trial.before.mean(1, keepdim=True)
    far = after - mean_after
    gain = far.square().sum(-1) - near.square().sum(-1)
    each = gain * (far * trial.momentum).sum(-1)
    counts = torch.isfinite(each) & (weight > _LEAST_ACCEPT)
    return (weight * torch.where(counts, each, 0.0)).sum(1) / total
