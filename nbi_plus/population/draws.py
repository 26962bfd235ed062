"""ObjectDraws: the weighted draws of many objects, padded and in pieces that fit into memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.arguments import one_of
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors, listed
from nbi_plus.io.fingerprint import digest

_LOG = logging.getLogger("nbi_plus")
_UNCERTIFIED = ("refuse", "leave out")
_NAMED = 3  # objects that an error names
_AGAIN = "Predict again with keep=None or a number of draws, and prior="


@dataclass(frozen=True)
class PaddedDraws:
    """Draws of b objects, each filled up to S of them by draws of no weight.

    Attributes
    ----------
    theta : Tensor, shape (b, S, D)
    weights : Tensor, shape (b, S)
        Of the posterior, normalised.
    log_ratio : Tensor, shape (b, S)
        Log of the weight over the prior density that it was found under; -inf for no weight.
    excess : Tensor, shape (b,)
        How many times more draws there are than are worth anything, as of resampled ones: at least
        1.
    support : Tensor, shape (b, D, 2)
        Where the prior of each object ends.
    """

    theta: Tensor
    weights: Tensor
    log_ratio: Tensor
    excess: Tensor
    support: Tensor

    @classmethod
    def of(cls, answers: Sequence[Posterior], device: torch.device) -> PaddedDraws:
        """Return the draws of some answers."""
        used = [p.weights > 0 for p in answers]
        shape = len(answers), max(int(u.sum()) for u in used)
        weights, prior = np.zeros(shape), np.zeros(shape)
        theta = np.empty((*shape, len(answers[0].names)))
        for i, (p, own) in enumerate(zip(answers, used, strict=True)):  # each has its own number
            n = int(own.sum())
            theta[i, :n], weights[i, :n], prior[i, :n] = (
                p.samples[own], p.weights[own], p.log_prior[own])  # fmt: skip
            theta[i, n:] = theta[i, 0]  # a place where the family can be computed
        with np.errstate(divide="ignore"):
            ratio = np.log(weights) - prior
        told = np.array([p.ess for p in answers])
        excess = np.fmax(1.0, 1.0 / (weights**2).sum(1) / told)
        arrays = theta, weights, ratio, excess, np.stack([p.support for p in answers])
        return cls(*(torch.as_tensor(a, device=device) for a in arrays))

    @property
    def rows(self) -> Tensor:
        """The draws of all its objects, shape (b S, D)."""
        return self.theta.flatten(0, 1)


@dataclass(frozen=True)
class ObjectDraws:
    """The objects of a population.

    Attributes
    ----------
    pieces : tuple of PaddedDraws
    names : tuple of str, shape (D,)
        The parameters of each object.
    data_hash : str
        Of the data of all objects, and of the priors that they were answered under, in whatever
        order.
    """

    pieces: tuple[PaddedDraws, ...]
    names: tuple[str, ...]
    data_hash: str

    def __len__(self) -> int:
        return sum(len(piece.theta) for piece in self.pieces)

    @classmethod
    def of(
        cls, posteriors: Posteriors | Iterable[Posterior], uncertified: str, device: torch.device
    ) -> ObjectDraws:
        """Return the draws of all objects; ``uncertified`` ones are refused or left out."""
        answers = _usable(_listed(posteriors), uncertified)
        for p in answers:
            _check(p, answers[0])
        # objects of like numbers of draws stand together, for all are filled up to the most
        answers.sort(key=lambda p: int((p.weights > 0).sum()))
        hashes = sorted(p.data_hash.encode() + p.log_prior.tobytes() for p in answers)
        pieces = tuple(PaddedDraws.of(part, device) for part in _parts(answers, device))
        return cls(pieces, answers[0].names, digest(hashes))


def _listed(posteriors: Posteriors | Iterable[Posterior]) -> list[Posterior]:
    if isinstance(posteriors, Posteriors):
        if posteriors.draws is None:
            raise ValueError(
                f"posteriors must have kept their draws, but kept summaries only. {_AGAIN}."
            )
        posteriors = posteriors.draws
    return listed(posteriors)


def _usable(answers: list[Posterior], uncertified: str) -> list[Posterior]:
    """Return the certified answers, or refuse all where one is not."""
    one_of("uncertified", uncertified, _UNCERTIFIED)
    good = [p for p in answers if p.certified]
    bad = Counter(p.status.name for p in answers if not p.certified)
    told = ", ".join(f"{n} {name}" for name, n in bad.most_common())
    if bad and uncertified == "refuse":
        names = ", ".join([p.id for p in answers if not p.certified][:_NAMED])
        raise ValueError(
            f"posteriors must be certified, but {told} of {len(answers)} are not (as of {names}). "
            "Answer them with Engine.retry, or pass uncertified='leave out', which biases the "
            "population unless they are a fair sample of it."
        )
    if not good:
        raise ValueError(f"posteriors must hold a certified answer, but hold {told or 'none'}.")
    doubted = sum(not p.trusted for p in good)
    if bad or doubted:
        _LOG.warning(
            "of %d objects %d are left out (%s), and %d are certified but flagged as doubtful",
            len(answers), sum(bad.values()), told or "none", doubted,
        )  # fmt: skip
    return good


def _check(p: Posterior, first: Posterior) -> None:
    """Refuse answers of other parameters, without draws, or whose prior has no density of theta."""
    if p.names != first.names:
        raise ValueError(
            f"posteriors must be of the same parameters, but object {first.id} has {first.names} "
            f"and object {p.id} {p.names}."
        )
    if not p.weights.sum() > 0:
        raise ValueError(f"posteriors must have draws, but object {p.id} kept none. {_AGAIN}.")
    if p.support is None or np.isnan(p.support).any():
        raise ValueError(
            f"posteriors must know the support of their prior, but object {p.id} does not: the "
            f"prior was a bare transform, or the file is an old one. {_AGAIN}."
        )
    if not np.isfinite(p.log_prior[p.weights > 0]).all():
        raise ValueError(
            f"posteriors must have a finite log_prior where draws have a weight, but object {p.id} "
            "has not. Predict it again."
        )


def _parts(answers: list[Posterior], device: torch.device) -> list[list[Posterior]]:
    """Return answers in parts of bounded numbers of draws."""
    most = launch.of(device).gradient_numbers
    counts: NDArray[np.int64] = np.array([int((p.weights > 0).sum()) for p in answers])
    parts: list[list[Posterior]] = [[]]
    for p, n in zip(answers, counts.tolist(), strict=True):  # ascending: the last one is the widest
        if parts[-1] and (len(parts[-1]) + 1) * n > most:
            parts.append([])
        parts[-1].append(p)
    return parts
