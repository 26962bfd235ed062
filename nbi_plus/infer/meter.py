"""Meters: a target whose use is counted, object by object, and held to a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.problem.target import Evaluation, Target


@dataclass(frozen=True)
class Budget:
    """What one object may cost at most.

    Attributes
    ----------
    calls : int
        Simulations without a gradient.
    gradients : int
    seconds : float
        Of wall-clock time; what is computed for many objects together is shared among them.
    """

    calls: int = 200_000
    gradients: int = 200_000
    seconds: float = math.inf

    def __post_init__(self) -> None:
        for name in ("calls", "gradients", "seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, but is {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Cost:
    """Calls, gradients and seconds, each of shape (b,)."""

    calls: Tensor
    gradients: Tensor
    seconds: Tensor


@dataclass
class Meter:
    """Counts what the objects of a target cost.

    Attributes
    ----------
    target : Target
        Of N objects.
    calls, gradients, seconds : Tensor, shape (N,)
    free : Cost
        What no budget counts: it was spent in earlier attempts.
    """

    target: Target
    calls: Tensor
    gradients: Tensor
    seconds: Tensor
    free: Cost

    @classmethod
    def of(cls, target: Target, before: Cost | None = None, *, is_free: bool = False) -> Meter:
        """Return a meter at zero, or at what the objects have cost before."""
        zero = torch.zeros(len(target.data), dtype=torch.int64, device=target.data.x.device)
        nothing = Cost(zero, zero, zero.double())
        start = nothing if before is None else before
        return cls(
            target, start.calls.clone(), start.gradients.clone(), start.seconds.clone(),
            start if is_free else nothing,
        )  # fmt: skip

    def evaluate(self, z: Tensor, index: Tensor) -> Evaluation:
        """Return what the target is at draws z (b, n, D), and count the simulations."""
        found = self.target.evaluate(z, index)
        self.calls.index_add_(0, index, (found.log_prior > -math.inf).sum(1))
        return found

    def add_gradients(self, index: Tensor, n: Tensor) -> None:
        """Count ``n`` (b,) gradients."""
        self.gradients.index_add_(0, index, n)

    @contextmanager
    def timed(self, index: Tensor) -> Iterator[None]:
        """Share the time of what is done inside among some objects."""
        start = time.perf_counter()
        try:
            yield
        finally:
            each = (time.perf_counter() - start) / max(len(index), 1)
            self.seconds[index] += each

    def left(self, index: Tensor, budget: Budget) -> Cost:
        """Return what is left of the budget of some objects."""
        return Cost(
            budget.calls - (self.calls - self.free.calls)[index],
            budget.gradients - (self.gradients - self.free.gradients)[index],
            budget.seconds - (self.seconds - self.free.seconds)[index],
        )

    def read(self, index: Tensor) -> Cost:
        """Return what some objects have cost so far."""
        return Cost(self.calls[index], self.gradients[index], self.seconds[index])
