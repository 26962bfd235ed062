"""Gaussian noise whose points are correlated."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from nbi_plus.problem.batch import Batch
from nbi_plus.problem.low_rank import Fit, LowRankGaussian
from nbi_plus.problem.noise_contract import Noise, chi_square_p_value, harmless


class JointGaussianNoise(Noise):
    """Noise for which the data of an object are one Gaussian vector.

    Subclasses write `gaussian`; draws, density and p-value follow from it.
    """

    exact_p_value = True
    n_copies = 16
    follows_model = False
    rescales_model = False

    @abstractmethod
    def gaussian(self, model: Tensor, obs: Batch, theta: Tensor) -> LowRankGaussian:
        """Return the distribution of data about a model.

        Parameters
        ----------
        model : Tensor of float64, shape (..., C, L)
        obs : Batch
            With axes that broadcast against those of the model (`facing`).
        theta : Tensor, shape (..., P)
        """

    def p_value(self, theta: Tensor, model: Tensor, obs: Batch, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return the probability of a larger chi-square, shape (n,)."""
        return chi_square_p_value(self._fit(harmless(model, obs), obs, theta).chi2, obs.mask)

    def _fit(self, model: Tensor, obs: Batch, theta: Tensor) -> Fit:
        # in float64: strong correlations leave float32 no digits
        return self.gaussian(model.double(), obs, theta).fit(obs.x.double(), obs.mask)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        return self.gaussian(model.double(), obs, theta).draw(rng)

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        return self._fit(model, obs, theta).log_prob.to(obs.x.dtype)
