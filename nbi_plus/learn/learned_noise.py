"""Learned noise: data that are simulated with their noise, and weighed by a learned likelihood."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.arguments import of_kind
from nbi_plus.data.batch import Batch
from nbi_plus.io.archive import Archive, ArchiveError
from nbi_plus.io.fingerprint import content, digest
from nbi_plus.learn.likelihood import Likelihood
from nbi_plus.learn.model import TrainedModel
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.noise.custom import (
    ALREADY_NOISY,
    CustomNoise,
    as_noise,
    without_likelihood,
)
from nbi_plus.problem.prior.learned_range import LearnedRange
from nbi_plus.problem.prior.prior import Prior


class LikelihoodSource(ABC):
    """Whatever has learned a likelihood that an `Engine` can weigh with."""

    @abstractmethod
    def as_noise(self, draws: CustomNoise = ALREADY_NOISY) -> LearnedNoise:
        """Return it as a noise, with what is added to simulations that have none."""


class LearnedNoise(Noise, LikelihoodSource):
    """The likelihood of single trials as a noise of objects of one or many of them.

    An object (C, L) is L trials of C numbers where these are as many as a trial has, else one
    trial of L numbers. A trial of which a number is masked does not count.

    Parameters
    ----------
    prior : Prior
        Of the training.
    model : TrainedModel
        Whose network is a `Likelihood`.
    draws : CustomNoise
        What simulations lack.
    """

    draws_as_weighted = False
    reads_model = False

    def __init__(
        self, prior: Prior, model: TrainedModel, draws: CustomNoise = ALREADY_NOISY
    ) -> None:
        self.prior, self.model, self.draws = prior, model, draws
        self._density = model.network.flow.exact()
        flow = self._density.config.flow
        self.width = math.prod(model.shape)
        # a pass of the flow for each trial
        self.n_copies = 2 * flow.hidden * flow.n_layers * flow.n_blocks // self.width

    def as_noise(self, draws: CustomNoise = ALREADY_NOISY) -> LearnedNoise:
        """Return the same with other draws."""
        return LearnedNoise(self.prior, self.model, draws)

    def bind(self, has_errors: bool, names: tuple[str, ...]) -> LearnedNoise:
        """Return a copy that knows where its parameters are; refuse data with errors."""
        if has_errors:
            raise ValueError(
                "x_err must not be given with a learned likelihood, which knows nothing of errors. "
                "Learn it of data that have them, as columns."
            )
        bound = copy.copy(self)
        bound.learned_at = LearnedRange.of(self.prior, self._density.reach, names)
        return bound

    def meta(self) -> dict[str, object]:
        """Return what the file of an engine holds besides `arrays`."""
        prior = self.prior
        return {
            "type": type(self).__name__, "model": self.model.meta(), "prior": prior.manifest(),
            "labels": dict(zip(prior.names, prior.labels, strict=True)),
            "draws": None if self.draws is ALREADY_NOISY else "custom",
        }  # fmt: skip

    def arrays(self) -> dict[str, NDArray]:
        """Return what was learned."""
        return self.model.arrays()

    @classmethod
    def from_archive(
        cls, archive: Archive, draws: CustomNoise | None, device: torch.device
    ) -> LearnedNoise:
        """Return what `meta` and `arrays` described; ``draws`` are code that no file holds."""
        meta = archive.meta
        if meta["draws"] is not None and draws is None:
            raise ValueError(
                "noise must be passed again, for the file holds none of your code. Call "
                "Engine.load(path, simulator=..., noise=...)."
            )
        prior = Prior.from_manifest(meta["prior"], meta["labels"])
        model = TrainedModel.from_archive(archive, device)
        flow = model.network.flow
        if not isinstance(flow, Likelihood) or flow.n_dims != prior.n_dim:
            raise ArchiveError(
                f"the likelihood must be of the {prior.n_dim} parameters of its prior, but is "
                "another network. The file is damaged or forged."
            )
        return cls(prior, model, ALREADY_NOISY if draws is None else draws)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.width} numbers a trial, of {self.prior.names})"

    def fingerprint(self) -> str:
        """Return a text that changes with what was learned, and with the draws."""
        state = sorted(self.model.network.state_dict().items())
        learned = digest(part for name, v in state for part in (name.encode(), content(v)))
        return f"{self.meta()} {learned} ({self.draws.fingerprint()})"

    def strange(self, obs: Batch) -> Tensor:
        """Say which of N objects have trials unlike those that it was learned of, bool (N,)."""
        trials, valid = self._trials(obs.x, obs.mask)
        known = self.model.reference
        # objects have so many trials each
        each = (x[good] for x, good in zip(trials, valid, strict=True))
        found = [bool(len(own)) and known.judge_together(own)[0] for own in each]
        return torch.tensor(found, device=obs.x.device)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        return self.draws.augment(model, obs, theta, rng)

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:  # noqa: ARG002
        trials, valid = self._trials(obs.x.double(), obs.mask)
        z = self.learned_at.latent(theta.double())
        inside = z.isfinite().all(-1)
        z = torch.where(inside[..., None], z, 0.0)[..., None, :]
        if self._density.mean.device != z.device:
            self._density = self._density.to(z.device)
        each = self._density.of_trials(z, trials)
        return torch.where(valid, each, 0.0).sum(-1).masked_fill(~inside, -torch.inf)

    def _trials(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trials (..., T, W) of data (..., C, L), and which of them count."""
        n_channels, n_points = x.shape[-2:]
        if n_channels == self.width:
            return x.mT, mask.all(-2)
        if n_channels == 1 and n_points == self.width:
            return x, mask.all(-1)
        raise ValueError(
            f"x must be trials of {self.width} numbers, as the likelihood was learned, (C, L) = "
            f"({self.width}, T) of T trials or (1, {self.width}) of one, but has "
            f"({n_channels}, {n_points})."
        )


def noise_of(
    noise: Noise | ArrayLike | Callable | None, likelihood: LikelihoodSource | None,
    in_rounds: bool = False,
) -> Noise:  # fmt: skip
    """Return what an engine believes of data: its noise, or a learned likelihood beside it."""
    if likelihood is None:
        return as_noise(noise)
    of_kind("likelihood", likelihood, LikelihoodSource, "Give a fitted LikelihoodEngine.")
    if in_rounds:
        raise ValueError(
            "fit in rounds must have a likelihood that is known, but it is learned. Use "
            "n_rounds=1, or predict of the LikelihoodEngine itself."
        )
    return likelihood.as_noise(without_likelihood(noise))


def arguments_of(noise: Noise) -> dict[str, Noise | None]:
    """Return the arguments of an engine that believes in this noise."""
    if not isinstance(noise, LearnedNoise):
        return {"noise": noise}
    own = None if noise.draws is ALREADY_NOISY else noise.draws
    return {"noise": own, "likelihood": noise}
