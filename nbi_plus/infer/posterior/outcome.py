"""Outcomes: what one rung of the ladder, or one fit, found for its objects."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.batched import pick
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.samplers.peaks import Peaks
from nbi_plus.infer.weights.clean import CleanWeights, Failure
from nbi_plus.infer.weights.summary import Grade, WeightSummary
from nbi_plus.problem.target import Z_MAX

_RIM, _RIM_MASS = 0.5, 0.01


def bounded(z: Tensor) -> Tensor:
    """Return draws (b, S, D) as they are translated to theta.

    Those beyond the latent bound have weight zero; there, theta need not be finite. They stand on
    the bound, for they count among the draws.
    """
    return z.nan_to_num(nan=Z_MAX).clamp(-Z_MAX, Z_MAX)


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

    @property
    def bounded(self) -> Tensor:
        """The draws (b, S, D) as they are translated to theta."""
        return bounded(self.z)

    def select(self, rows: Tensor) -> Pool:
        """Return some of the objects."""
        return pick(self, rows)


@dataclass(frozen=True)
class Chains:
    """Markov chains of b objects, after warming up.

    Attributes
    ----------
    z : Tensor, shape (b, C, N, D)
    r_hat, ess : Tensor, shape (b, D)
        Nested R-hat (NaN for an ensemble) and effective sample size.
    n_steps : Tensor of int64, shape (b,)
        Made, of which N are kept.
    divergent, converged, disagree : Tensor of bool, shape (b,)
        More than a few trajectories diverged; the chains passed their test; their moments are
        incompatible with those of certified weights.
    """

    z: Tensor
    r_hat: Tensor
    ess: Tensor
    n_steps: Tensor
    divergent: Tensor
    converged: Tensor
    disagree: Tensor


@dataclass(frozen=True)
class Outcome:
    """What a rung found for its objects: draws, weights and grades, and chains where it had any.

    ``family`` says where the judged draws came from, and so by which gate (`weights.gate_of`);
    ``status`` is that of the objects that passed.
    ``fit_p_value`` (b,) says how well the model describes the data, ``misfit`` (b,) where it does
    not, ``chi2_best`` (b,) how far the best draw is from them; None before anybody looked.
    ``beyond`` (b,) says where the proposal of another prior ends inside the posterior; None where
    there is no other prior. ``peaks`` are places that were found by looking for them, and
    ``missed`` (b,) says where one holds mass that the draws do not; None before anybody looked.
    """

    rung: str
    family: str
    pool: Pool
    cleaned: CleanWeights
    summary: WeightSummary
    grade: Tensor
    status: Status = Status.REFINED
    chains: Chains | None = None
    fit_p_value: Tensor | None = None
    chi2_best: Tensor | None = None
    misfit: Tensor | None = None
    beyond: Tensor | None = None
    missed: Tensor | None = None
    peaks: Peaks | None = None

    @property
    def passed(self) -> Tensor:
        """Which objects need no further rung, bool (b,)."""
        return (self.grade > Grade.F) & ~self.cut_off

    @property
    def cut_off(self) -> Tensor:
        """Whose posterior would go on where the latent space ends, bool (b,).

        The data want parameters that the prior all but excludes, by eight standard deviations. A
        long thin tail is enough: with a hundredth of the variance there, much of it may be missing.
        """
        z, weights = self.pool.bounded, self.summary.weights[..., None]
        far = z.abs() > Z_MAX - _RIM
        square = weights * (z - (weights * z).sum(1, keepdim=True)).square()
        spread = (square * far).sum(1) / square.sum(1).clamp(min=1e-300)
        mass = (weights * far.any(-1, keepdim=True)).sum(1)
        return torch.cat([mass, spread], 1).amax(1) > _RIM_MASS

    @property
    def can_improve(self) -> Tensor:
        """Which objects another rung may help: a broken simulator is no matter of draws."""
        settled = (self.grade > Grade.F) & self.cut_off
        return ~self.passed & ~settled & (self.cleaned.failure != Failure.SIMULATOR)

    @property
    def ends_inside(self) -> Tensor:
        """Whose posterior can go on beyond the proposal's end, bool (b,)."""
        return (
            torch.zeros_like(self.grade, dtype=torch.bool) if self.beyond is None else self.beyond
        )

    def unless(self, beyond: Tensor | None) -> Outcome:
        """Return the outcome with nothing certified for those whose proposal ends too early."""
        if beyond is None:
            return self
        grade = torch.where(beyond, torch.zeros_like(self.grade), self.grade)
        return replace(self, grade=grade, beyond=beyond)

    def audited(self, missed: Tensor, peaks: Peaks) -> Outcome:
        """Return the outcome with nothing certified for those whose draws miss a place."""
        grade = torch.where(missed, torch.zeros_like(self.grade), self.grade)
        return replace(self, grade=grade, missed=missed, peaks=peaks)

    def select(self, rows: Tensor) -> Outcome:
        """Return some of the objects."""
        return pick(self, rows)
