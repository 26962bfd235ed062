"""The target of several objects together: prior, and the sum of their log-likelihoods."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.infer.shared.layout import SharedLayout
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.learned_range import LearnedRange
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.target import Z_MAX, DataSets, Evaluation, Target


@dataclass(frozen=True)
class SharedTarget:
    """One object that is made of N: see `LatentTarget`.

    Attributes
    ----------
    members : Target
        Of the N objects, each with its own points, coordinates and scalars.
    layout : SharedLayout
        Which parameters each of them sees.
    """

    members: Target
    layout: SharedLayout

    @property
    def makes_data(self) -> bool:
        """Whether there are models to make other data of."""
        return self.members.makes_data

    @property
    def noise(self) -> Noise:
        """That of each object."""
        return self.members.noise

    @property
    def prior(self) -> Prior:
        """That of all parameters together."""
        return self.layout.prior

    @property
    def data(self) -> Batch:
        """Those of the first object, whose device counts alone."""
        return self.members.data.select(slice(0, 1))

    @property
    def differentiable(self) -> bool:
        """Whether torch can differentiate it."""
        return self.members.differentiable

    @property
    def n_numbers(self) -> int:
        """How many numbers the simulations of one draw have."""
        return self.n_members * self.members.n_numbers

    @property
    def seconds_per_row(self) -> float:
        """What these simulations take."""
        return self.n_members * self.members.seconds_per_row

    @property
    def n_members(self) -> int:
        """How many objects there are."""
        return len(self.layout.columns)

    def log_prob(self, z: Tensor, index: Tensor) -> Tensor:
        """Return the unnormalised log posterior (b, n) of z (b, n, J)."""
        found = self.evaluate(z, index)
        value = found.log_prior + found.log_likelihood
        return torch.where(torch.isnan(value) | found.failed, -math.inf, value)

    def evaluate(self, z: Tensor, index: Tensor) -> Evaluation:  # noqa: ARG002 - there is one
        """Return log prior, log-likelihood and failures; a draw fails where any object's does."""
        inside = (z.abs() <= Z_MAX).all(-1)
        each = self.layout.of_each(z.flatten(0, 1))
        found = self.members.evaluate(each, torch.arange(len(each), device=z.device))
        log_prior = self.prior.log_prob_latent(z).masked_fill(~inside, -math.inf)
        value = found.log_likelihood.sum(0).reshape(inside.shape)
        # of a draw outside only some objects are simulated, and one of these may be NaN
        value = value.masked_fill(~inside, -math.inf)
        return Evaluation(log_prior, value, found.failed.any(0).reshape(inside.shape), found.errors)

    def single(self) -> SharedTarget:
        """Return the same with simulator and noise in single precision."""
        return replace(self, members=self.members.single())

    def sets_of_data(self, z: Tensor, index: Tensor) -> DataSets:
        """Return the objects behind draws z (1, n, J), of which each could have made its own."""
        each = self.layout.of_each(z[0])
        own = torch.arange(len(each), device=z.device)
        return DataSets(self.members, each, own, index.expand(len(each)))


@dataclass(frozen=True)
class MembersRange:
    """Where a likelihood was learned, of the parameters of all objects together.

    Attributes
    ----------
    each : LearnedRange
        Of those of one object.
    prior : Prior
        Of these.
    layout : SharedLayout
    """

    each: LearnedRange
    prior: Prior
    layout: SharedLayout

    def beyond(self, theta: Tensor) -> Tensor:
        """Say which theta (..., J) have an object beyond those of the training."""
        return self.each.beyond(self.prior.complete(theta[..., self.layout.columns])).any(-1)
