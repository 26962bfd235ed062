"""Outcomes: what one rung of the ladder, or one fit, found for its objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from nbi_plus.infer.assemble import CleanWeights, Failure
from nbi_plus.infer.weights import Grade, WeightSummary

Batched = TypeVar("Batched", CleanWeights, WeightSummary)


@dataclass(frozen=True)
class Pool:
    """Everything known of the draws of b objects, each (b, S); z is (b, S, D).

    ``index`` (b,) says which objects of the target they are; ``failed`` draws do not count.
    """

    index: Tensor
    z: Tensor
    log_q: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    failed: Tensor

    @classmethod
    def join(cls, first: Pool, second: Pool) -> Pool:
        """Return the draws of both pools, of the same objects."""
        names = ("z", "log_q", "log_prior", "log_likelihood", "failed")
        return cls(
            first.index, *(torch.cat([getattr(first, k), getattr(second, k)], 1) for k in names)
        )

    def select(self, rows: Tensor) -> Pool:
        """Return some of the objects."""
        names = ("index", "z", "log_q", "log_prior", "log_likelihood", "failed")
        return Pool(*(getattr(self, k)[rows] for k in names))


@dataclass(frozen=True)
class Outcome:
    """What a rung found for its objects: draws, weights and grades."""

    rung: str
    pool: Pool
    cleaned: CleanWeights
    summary: WeightSummary
    grade: Tensor

    @property
    def passed(self) -> Tensor:
        """Which objects need no further rung, bool (b,)."""
        return self.grade > Grade.F

    @property
    def can_improve(self) -> Tensor:
        """Which objects another rung may help: a broken simulator is no matter of draws."""
        return ~self.passed & (self.cleaned.failure != Failure.SIMULATOR)

    def select(self, rows: Tensor) -> Outcome:
        """Return some of the objects."""
        return Outcome(
            self.rung,
            self.pool.select(rows),
            _rows(self.cleaned, rows),
            _rows(self.summary, rows),
            self.grade[rows],
        )


def _rows(value: Batched, rows: Tensor) -> Batched:
    """Return some rows of a dataclass of tensors (None stays None)."""
    picked = {k: None if v is None else v[rows] for k, v in vars(value).items()}
    return type(value)(**picked)
