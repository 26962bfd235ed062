"""Reliability: how often what was given a probability came true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_N_BINS = 10


@dataclass(frozen=True)
class Reliability:
    """How often a model was right, in bins of the probability that it was given.

    Attributes
    ----------
    probability, share : ndarray, shape (B,)
        Mean probability of a bin, and how often models of such a probability were the right ones.
    error : ndarray, shape (B,)
        Standard error of the share, if the probabilities are right. Of the models of one object
        that share a bin one at most is right, so that they do not count as chances of their own.
    count : ndarray of int, shape (B,)
        Pairs of objects and models in the bin, none of which is empty.
    log_score : float
        Mean log-probability of the right model.
    """

    probability: NDArray[np.float64]
    share: NDArray[np.float64]
    error: NDArray[np.float64]
    count: NDArray[np.int64]
    log_score: float

    @classmethod
    def of(cls, log_shares: NDArray[np.float64], labels: NDArray[np.int64]) -> Reliability:
        """Return that of log-probabilities (n, M) of objects whose models (n,) are known."""
        p = np.exp(log_shares)
        right = labels[:, None] == np.arange(p.shape[1])
        bins = np.minimum((p * _N_BINS).astype(int), _N_BINS - 1)
        inside = bins[..., None] == np.arange(_N_BINS)
        chance = (p[..., None] * inside).sum(1)  # (n, B), that the right model is in the bin
        count, spread = inside.sum((0, 1)), (chance * (1 - chance)).clip(0).sum(0)
        seen = count > 0
        count, hits = count[seen], (right[..., None] & inside).sum((0, 1))[seen]
        error = np.sqrt(spread[seen]) / count
        own = float(log_shares[right].mean())
        return cls(chance.sum(0)[seen] / count, hits / count, error, count, own)
