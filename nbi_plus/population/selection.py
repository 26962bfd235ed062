"""Selection: simulated objects that tell which share of a population would be detected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nbi_plus.arguments import of_kind, seed_of, whole
from nbi_plus.data.ingest import numbers
from nbi_plus.problem.prior.prior import Prior

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Selection:
    """Simulated objects that were detected, and how many were simulated.

    Parameters
    ----------
    theta : array_like, shape (M, D)
        Parameters of the detected ones, as of the posteriors.
    log_prob : array_like, shape (M,)
        Log density of theta, normalised, that these were drawn from.
    n_simulated : int
        How many were drawn, the undetected ones among them.
    probability : array_like, shape (M,), optional
        With which each of them is detected. Default: 1.

    Examples
    --------
    >>> from scipy.stats import uniform
    >>> prior = Prior({"m": uniform(0, 10)})
    >>> bright = Selection.of(lambda theta: theta[:, 0] > 2, prior, n=1000)
    >>> bright.n_simulated, 700 < len(bright) < 900
    (1000, True)
    """

    theta: ArrayLike
    log_prob: ArrayLike
    n_simulated: int
    probability: ArrayLike | None = None

    def __post_init__(self) -> None:
        theta = np.atleast_2d(numbers("theta", self.theta))
        n = len(theta)
        given = 1.0 if self.probability is None else numbers("probability", self.probability)
        columns = {"log_prob": numbers("log_prob", self.log_prob), "probability": given}
        for name, value in columns.items():
            if np.shape(value) not in ((n,), ()) or not np.isfinite(value).all():
                raise ValueError(
                    f"{name} must be {n} finite numbers, one for each of theta, but has shape "
                    f"{np.shape(value)}{'' if np.isfinite(value).all() else ' and is not finite'}."
                )
            object.__setattr__(self, name, np.broadcast_to(value, (n,)).astype(np.float64))
        if not ((self.probability >= 0) & (self.probability <= 1)).all():
            raise ValueError("probability must lie in [0, 1], but does not.")
        if not np.isfinite(theta).all():
            raise ValueError("theta must be finite, but is not. Leave out what failed.")
        whole("n_simulated", self.n_simulated, n)
        if not self.probability.sum() > 0:
            raise ValueError(
                f"theta must hold detected objects, but of {self.n_simulated} none was detected. "
                "Simulate more, from where objects are detected."
            )
        object.__setattr__(self, "theta", theta.astype(np.float64))

    def __len__(self) -> int:
        return len(self.theta)

    @classmethod
    def of(
        cls, detects: Callable[[Array], ArrayLike], prior: Prior, n: int = 100_000, seed: int = 0
    ) -> Selection:
        """Return the selection of n draws of a prior.

        Parameters
        ----------
        detects : callable
            ``detects(theta)`` of theta (n, D) -> (n,), whether each is detected, or with which
            probability.
        prior : Prior
            Of the parameters of an object; as wide as any population that shall be tried.
        n : int
        seed : int
        """
        of_kind("prior", prior, Prior, "Write Prior({...}).")
        theta = prior.sample(whole("n", n), seed_of("seed", seed))
        found = np.asarray(detects(theta.copy()), np.float64)
        if found.shape != (n,) or np.isnan(found).any():
            raise ValueError(
                f"detects must return ({n},) truths or probabilities for theta {theta.shape}, but "
                f"gave shape {found.shape}{' with NaN' if np.isnan(found).any() else ''}."
            )
        seen = found > 0
        return cls(theta[seen], np.asarray(prior.log_prob(theta[seen])), n, found[seen])

    @property
    def log_ratio(self) -> Array:
        """Log of what each draw adds to the detected share, over the density of a population."""
        with np.errstate(divide="ignore"):
            return np.log(self.probability) - self.log_prob - np.log(self.n_simulated)

    def tensors(self, n_each: int, device: torch.device) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Return pieces of at most ``n_each`` draws: theta (b, D) and `log_ratio` (b,)."""
        whole_ones = (torch.as_tensor(v, device=device) for v in (self.theta, self.log_ratio))
        return tuple(zip(*(v.split(n_each) for v in whole_ones), strict=True))
