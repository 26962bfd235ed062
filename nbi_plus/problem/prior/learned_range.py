"""The range of a likelihood that was learned: from which parameters to which."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nbi_plus.problem.prior.prior import Prior


@dataclass(frozen=True)
class LearnedRange:
    """What parameters a likelihood was learned at.

    Attributes
    ----------
    prior : Prior
        Of the training.
    reach : Tensor, shape (2, D)
        The least and largest latent parameters of the training.
    columns : tuple of int
        Where these parameters stand among those that a simulator sees.
    """

    prior: Prior
    reach: Tensor
    columns: tuple[int, ...]

    @classmethod
    def of(cls, prior: Prior, reach: Tensor, names: tuple[str, ...]) -> LearnedRange:
        """Return the range among parameters of these names, or say which one is missing."""
        missing = [name for name in prior.names if name not in names]
        if missing:
            raise ValueError(
                f"likelihood must be of parameters among {names}, but is of {prior.names}. Give "
                f"the prior a parameter {missing[0]!r}, or a fixed value."
            )
        return cls(prior, reach, tuple(names.index(name) for name in prior.names))

    def latent(self, theta: Tensor) -> Tensor:
        """Return z (..., D) of all parameters theta (..., P); infinite outside the prior."""
        return self.prior.to_latent(theta[..., list(self.columns)])

    def beyond(self, theta: Tensor) -> Tensor:
        """Say which theta (..., P) lie beyond those of the training."""
        z, reach = self.latent(theta), self.reach.to(theta.device)
        return ((z < reach[0]) | (z > reach[1])).any(-1)
