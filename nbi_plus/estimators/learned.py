"""Learned likelihoods as targets of the ladder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.shared.from_prior import from_prior
from nbi_plus.problem.prior.learned_range import LearnedRange
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.target import Z_MAX, Evaluation

_SECONDS = 1e-8  # of one number of an evaluation, about


class SummedLikelihood(Protocol):
    """The learned log-likelihood of the trials of N sets.

    Attributes
    ----------
    n_numbers : int
        How many numbers one evaluation bears.
    """

    n_numbers: int

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the sums (b, n) over the trials of the sets ``index`` (b,) at z (b, n, D)."""


@dataclass(frozen=True)
class LearnedTarget:
    """Prior and learned likelihood for N sets of trials; see `LatentTarget`.

    Attributes
    ----------
    prior : Prior
    data : Batch
        Of N objects, whose device counts alone.
    likelihood : SummedLikelihood
    """

    prior: Prior
    data: Batch
    likelihood: SummedLikelihood
    makes_data = False

    @property
    def n_numbers(self) -> int:
        """How many numbers one evaluation bears."""
        return self.likelihood.n_numbers

    @property
    def seconds_per_row(self) -> float:
        """What one evaluation takes, about: nothing may depend on the clock."""
        return _SECONDS * self.n_numbers

    @property
    def differentiable(self) -> bool:
        """Whether torch can differentiate it: networks of z always."""
        return True

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the unnormalised log posterior (b, n) of z (b, n, D)."""
        found = self.evaluate(z, index)
        value = found.log_prior + found.log_likelihood
        return torch.where(torch.isnan(value), -math.inf, value)

    def evaluate(self, z: Tensor, index: Tensor) -> Evaluation:
        """Return log prior and log-likelihood; nothing fails."""
        inside = (z.abs() <= Z_MAX).all(-1)
        value = self.likelihood.log_prob(z.clamp(-Z_MAX, Z_MAX), index)
        log_prior = self.prior.log_prob_latent(z)
        nothing = torch.zeros_like(inside)
        return Evaluation(
            log_prior.masked_fill(~inside, -math.inf), value.masked_fill(~inside, -math.inf),
            nothing,
        )  # fmt: skip

    def single(self) -> LearnedTarget:
        """Return itself: sums over many trials have no digits to lose."""
        return self


def answers(
    learned: LearnedRange, likelihood: SummedLikelihood, sets: Sequence[NDArray], strange: Tensor,
    p_value: Tensor, ladder: Ladder, seed: int,
) -> Posteriors:  # fmt: skip
    """Return the posteriors of N sets of trials, status LEARNED where weights passed.

    Parameters
    ----------
    learned : LearnedRange
        With the prior.
    likelihood : SummedLikelihood
    sets : sequence of ndarray
        The trials, by which sets are told apart.
    strange, p_value : Tensor, shape (N,)
        Whose trials are unlike those of the training, and how unlike.
    ladder : Ladder
    seed : int
    """
    objects, data = _objects_of(sets, strange, p_value)
    request = verdict.Request(learned.prior, None, ladder.gate, seed, learned=learned)
    target = LearnedTarget(learned.prior, data, likelihood)
    with preserved_random_state():
        return from_prior(target, objects, ladder, request)


def _objects_of(
    sets: Sequence[NDArray], strange: Tensor, p_value: Tensor
) -> tuple[verdict.Objects, Batch]:
    """Return what verdicts ask of sets of trials, and an empty batch of them."""
    n, device = len(sets), strange.device
    known = Observations.from_arrays([own.ravel() for own in sets])
    objects = verdict.Objects(
        ids=known.ids,
        keys=torch.as_tensor(known.keys, device=device),
        ood=strange,
        p_value=p_value,
        n_points=np.array([len(own) for own in sets]),
        n_masked=np.zeros(n, np.int64),
        n_duplicates=np.zeros(n, np.int64),
        refusals=np.full(n, ""),
        hashes=known.hashes,
        strange=strange,
    )
    return objects, Observations.from_arrays(np.zeros((n, 1))).batch().to(device)
