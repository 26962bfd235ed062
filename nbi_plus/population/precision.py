"""Precision: what the finite draws of objects and selection allow to say of a population."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.population.edges import expected_beyond
from nbi_plus.population.likelihood import PopulationLikelihood

VARIANCE_MAX = 1.0  # of a log likelihood (Talbot and Golomb 2023)
ESS_MIN = 5.0  # of one object: with fewer, the variance itself is not known
PER_OBJECT = 4.0  # effective detections (Farr 2019)
SHIFT_MAX = 0.5  # of a hyper-parameter, in standard deviations: what Farr's bound comes to
BAD_SHARE = 0.01  # of the answer where the draws do not suffice
BEYOND_MAX, BEYOND_SHARE = 1.0, 0.01  # objects beyond the edges of their priors, and as a share
_SIDE_SHARE = 0.01  # of the bound, which one edge of one parameter may have without being widened


@dataclass(frozen=True)
class Precision:
    """What the draws are worth at m hyper-parameters of equal weight.

    Attributes
    ----------
    n_objects : int
    variance : Tensor, shape (m,)
        Of the log likelihood, because the draws of objects are finite.
    ess : Tensor, shape (m,)
        The smallest effective sample size of an object.
    n_detected : Tensor, shape (m,)
        Effective number of detections; infinite without a selection.
    shift : Tensor, shape (H,)
        By how much the means of hyper-parameters would scatter with other draws of objects and
        selection, in standard deviations of the answer.
    each_beyond : ndarray, shape (D, 2, 2)
        Objects that can be missed where the priors of the answers end: see `expected_beyond`.
    """

    n_objects: int
    variance: Tensor
    ess: Tensor
    n_detected: Tensor
    shift: Tensor
    each_beyond: NDArray[np.float64]

    @classmethod
    @torch.no_grad()
    def of(cls, likelihood: PopulationLikelihood, hyper: Tensor, free: Tensor) -> Precision:
        """Return the precision at hyper-parameters of equal weight.

        Parameters
        ----------
        likelihood : PopulationLikelihood
        hyper : Tensor, shape (m, P)
            As the family takes them.
        free : Tensor, shape (m, H)
            Those of them that are inferred.
        """
        spread = free.std(0).clamp(min=1e-300)
        way = (free - free.mean(0)) / spread
        n, m = len(likelihood.objects), len(hyper)
        variance, ess = torch.zeros_like(way[:, 0]), torch.full_like(way[:, 0], torch.inf)
        shift = torch.zeros_like(way[0])
        parts = torch.arange(m, device=hyper.device).split(likelihood.n_together)
        for piece in likelihood.objects.pieces:
            scores = torch.zeros(way.shape[1], *piece.weights.shape).to(piece.weights)
            for own in parts:
                u = torch.softmax(likelihood.log_terms(hyper[own], piece), 2)
                variance[own] += (piece.excess * (u - piece.weights).square().sum(2)).sum(1)
                worth = 1 / piece.excess / u.square().sum(2)
                ess[own] = torch.fmin(ess[own], worth.amin(1))
                scores += torch.einsum("kh,kbs->hbs", way[own] / m, u)
            shift += (piece.excess * scores.square().sum(2)).sum(1)
        n_detected = torch.full_like(ess, torch.inf)
        if likelihood.detected:
            n_detected, own = _detections(likelihood, hyper, way)
            shift += n**2 * own
        beyond = expected_beyond(likelihood, hyper)
        return cls(n, variance, ess, n_detected, shift.sqrt(), beyond)

    @property
    def enough(self) -> bool:
        """Whether there are draws enough where the answer is."""
        return not any(self._lacking().values())

    @property
    def beyond(self) -> float:
        """How many objects can be missed beyond all edges."""
        return float(self.each_beyond.sum((0, 1)).max())

    @property
    def _most_beyond(self) -> float:
        return min(BEYOND_MAX, BEYOND_SHARE * self.n_objects)

    @property
    def inside(self) -> bool:
        """Whether the population lies where the priors of the answers allowed draws."""
        return self.beyond <= self._most_beyond

    @property
    def sides(self) -> NDArray[np.bool_]:
        """Which sides (D, 2) of the priors the population goes beyond; none if it lies inside."""
        return (self.each_beyond.max(2) > _SIDE_SHARE * self._most_beyond) & (not self.inside)

    def _lacking(self) -> dict[str, bool]:
        def often(bad: Tensor) -> bool:
            return bool(bad.double().mean() > BAD_SHARE)

        few = self.n_detected <= PER_OBJECT * self.n_objects
        return {
            f"the draws of objects leave a variance of {VARIANCE_MAX:g} or more to the log "
            "likelihood: keep more draws": often(~(self.variance <= VARIANCE_MAX)),
            f"of an object fewer than {ESS_MIN:g} draws are effective: keep more draws, or answer "
            "under a prior more like the population": often(~(self.ess >= ESS_MIN)),
            f"fewer than {PER_OBJECT:g} effective detections for each object: simulate more for "
            "the selection": often(few),
            f"other draws would move the answer by {SHIFT_MAX:g} standard deviations or more: keep "
            "more": not bool((self.shift <= SHIFT_MAX).all()),
        }  # fmt: skip

    @property
    def reason(self) -> str:
        """What the draws do not allow, in words; "" where they suffice."""
        told = [words for words, on in self._lacking().items() if on]
        if not self.inside:
            told.append(
                f"{min(self.beyond, self.n_objects):.3g} objects of the population or more can lie "
                "beyond the edges of the prior that they were answered under: pass engine= and "
                "observations= to have them answered under a wider one, or give answers under one "
                "(predict_many(observations, prior=...)), or return -inf where the family ends"
            )
        return "; ".join(told)

    def __str__(self) -> str:
        figures = (
            f"{self.n_objects} objects, smallest ess of one {float(self.ess.median()):.3g}, "
            f"variance {float(self.variance.median()):.2g} of log likelihood, "
            f"shift {float(self.shift.max()):.2g} sd"
        )
        if self.n_detected.isfinite().any():
            figures += f", {float(self.n_detected.median()):.4g} effective detections"
        return f"{figures}, {min(self.beyond, self.n_objects):.2g} objects beyond the prior"


def _detections(
    likelihood: PopulationLikelihood, hyper: Tensor, way: Tensor
) -> tuple[Tensor, Tensor]:
    """Return effective detections (m,), and the variance (H,) of the mean of log share times way.

    With s the terms of the mean over all N that were simulated, the effective number is
    mean^2 / var(mean) = 1 / (sum u^2 - 1 / N), u = s / sum s.
    """
    m, total = len(hyper), likelihood.selection.n_simulated
    squares, scores = torch.zeros_like(way[:, 0]), torch.zeros_like(way[0])
    parts = torch.arange(m, device=hyper.device).split(likelihood.n_together)
    shares = torch.cat([likelihood.log_share(hyper[own]) for own in parts])
    for theta, ratio in likelihood.detected:
        each = torch.zeros(way.shape[1], len(theta)).to(way)
        for own in parts:
            log_density = likelihood.family.many(hyper[own], theta)
            u = torch.exp(ratio + log_density - shares[own, None])
            squares[own] += u.square().sum(1)
            each += torch.einsum("kh,kn->hn", way[own] / m, u)
        scores += each.square().sum(1)
    return 1 / (squares - 1 / total).clamp(min=1e-300), scores
