"""Noise of which some points are outliers."""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.hyper import NumberOrParameter
from nbi_plus.problem.noise.points import Jitter, ScatterNoise

_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


class OutlierNoise(ScatterNoise):
    r"""Gaussian noise that is much broader in a fraction of the points, nobody knows which.

    Each point is :math:`N(f, s^2)` with probability :math:`1 - p` and :math:`N(f, s^2 + w^2)` with
    probability :math:`p`; which of them is summed over (Hogg, Bovy and Lang 2010).

    Parameters
    ----------
    fraction : float or str
        The probability :math:`p`, or the name of the parameter that holds it.
    width : float or str
        :math:`w`, in the unit of the data.
    sigma, jitter, fractional, along
        As for `GaussianNoise`; they set :math:`s`.

    Examples
    --------
    >>> noise = OutlierNoise(0.01, width=5.0)
    """

    def __init__(
        self,
        fraction: float | str,
        width: float | str,
        sigma: ArrayLike | str | None = None,
        *,
        jitter: Jitter | None = None,
        fractional: float | str = 0.0,
        along: str = "band",
    ) -> None:
        super().__init__(sigma, jitter=jitter, fractional=fractional, along=along)
        self.fraction = fraction
        self.width = width
        self._hypers |= {
            "fraction": NumberOrParameter("fraction", fraction, upper=1.0),
            "width": NumberOrParameter("width", width),
        }

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return super().meta() | {"fraction": self.fraction, "width": self.width}

    def log_cdf(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        """Return the log-probability (..., C, L) of data below ``obs.x``."""
        below = [
            torch.special.log_ndtr((obs.x - model) / sigma)
            for sigma in self._scales(model, obs, theta)
        ]
        return self._mixed(*below, theta)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        like = {"generator": rng, "device": model.device, "dtype": model.dtype}
        good, bad = self._scales(model, obs, theta)
        is_bad = torch.rand(model.shape, **like) < self._hypers["fraction"].of(theta)
        return model + torch.where(is_bad, bad, good) * torch.randn(model.shape, **like)

    def _log_density(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        square = (obs.x - model).square()
        each = [
            -sigma.log() - _LOG_ROOT_2PI - 0.5 * square / sigma.square()
            for sigma in self._scales(model, obs, theta)
        ]
        return self._mixed(*each, theta)

    def _scales(self, model: Tensor, obs: Batch, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the standard deviations of good and of bad points."""
        good = self.scale(model, obs, theta)
        return good, (good.square() + self._hypers["width"].of(theta) ** 2).sqrt()

    def _mixed(self, good: Tensor, bad: Tensor, theta: Tensor) -> Tensor:
        """Return the log of the mixture of two densities or probabilities."""
        p = self._hypers["fraction"].of(theta)
        p = torch.as_tensor(p, device=good.device, dtype=good.dtype)
        return torch.logaddexp(_log(1 - p) + good, _log(p) + bad)


def _log(p: Tensor) -> Tensor:
    """Return log p, whose gradient is not NaN where p is 0."""
    return torch.where(p == 0, 1.0, p).log().masked_fill(p == 0, -math.inf)
