"""Counts: Poisson, binomial, and binomial with probabilities that scatter."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.base import Noise, PointNoise
from nbi_plus.problem.noise.hyper import NumberOrParameter
from nbi_plus.problem.noise.points import beside, numbers_of_one, positive

PerPoint = str | ArrayLike
_SMALL_STEPS = 1e-4  # the fourth power of which is nothing


class PoissonNoise(PointNoise):
    """Counts: data are Poisson with mean ``exposure * model + background``.

    Parameters
    ----------
    exposure : str, float or array_like, shape broadcastable to (C, L)
        The model is a rate; counts are what is observed. A text names a coordinate of the points,
        or a number of each object.
    background : float or array_like, shape broadcastable to (C, L)
        A negative mean has zero likelihood.
    """

    named_by = ("exposure",)

    def __init__(self, exposure: PerPoint = 1.0, background: ArrayLike = 0.0) -> None:
        self.exposure = exposure if isinstance(exposure, str) else positive("exposure", exposure)
        self.background = numbers_of_one("background", background)
        if not (np.isfinite(self.background) & (self.background >= 0)).all():
            raise ValueError(f"background must be finite and >= 0, but is {background!r}.")

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return {
            "type": "PoissonNoise", "exposure": _plain(self.exposure),
            "background": self.background.tolist(),
        }  # fmt: skip

    def _mean(self, model: Tensor, obs: Batch) -> Tensor:
        background = beside(self, "background", model)
        return _per_point(self, "exposure", model, obs) * model + background

    def saturated(self, obs: Batch) -> Tensor:
        """Return the rates of which the counts are the mean."""
        above = (obs.x - beside(self, "background", obs.x)).clamp(min=0.0)
        return above / _per_point(self, "exposure", obs.x, obs)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        mean = self._mean(model, obs).clamp(min=0.0)
        bad = ~torch.isfinite(mean)  # one such point would make torch.poisson raise
        return torch.poisson(mean.masked_fill(bad, 0.0), generator=rng).masked_fill(bad, math.nan)

    def _log_density(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:  # noqa: ARG002
        x, mean = obs.x, self._mean(model, obs)
        above = mean.clamp(min=torch.finfo(mean.dtype).tiny)
        density = torch.xlogy(x, above) - above - torch.lgamma(x + 1)
        impossible = (mean < 0) | (x < 0) | (x != x.round()) | ((mean == 0) & (x > 0))
        return density.masked_fill(impossible, -math.inf)


class BinomialNoise(PointNoise):
    """Successes in ``n`` trials, of a probability that is the model.

    Parameters
    ----------
    n : str, int or array_like, shape broadcastable to (C, L)
        Trials of each point; a text names a coordinate of the points, or a number of each object.
        Of a number that is not whole there are neither draws nor a likelihood.

    Examples
    --------
    >>> from nbi_plus.data.observations import Observations
    >>> obs = Observations.from_arrays([[1.0, 0.0]], n=[2.0, 3.0])
    >>> BinomialNoise("n").log_likelihood(np.zeros((1, 1)), np.full((1, 1, 2), 0.5), obs).round(3)
    array([-2.773])
    """

    named_by = ("n",)

    def __init__(self, n: PerPoint = "n") -> None:
        self.n = n if isinstance(n, str) else positive("n", n)
        if not isinstance(n, str) and (self.n != self.n.round()).any():
            raise ValueError(f"n must be whole numbers of trials, but is {n!r}.")

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return {"type": type(self).__name__, "n": _plain(self.n)}

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        n = _per_point(self, "n", model, obs).expand(model.shape)
        p = self._chance(model, theta, rng)
        bad = ~((p >= 0) & (p <= 1)) | ~_whole(n)
        drawn = torch.binomial(n.masked_fill(bad, 0.0), p.masked_fill(bad, 0.0), generator=rng)
        return drawn.masked_fill(bad, math.nan)

    def _log_density(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        k, n = obs.x, _per_point(self, "n", model, obs)
        impossible = ~_whole(k) | ~_whole(n) | (k > n) | (model < 0) | (model > 1)
        some = torch.where(impossible, 0.0, k)
        p = model.clamp(0.0, 1.0)
        ways = torch.lgamma(n + 1) - torch.lgamma(some + 1) - torch.lgamma(n - some + 1)
        found = ways + self._log_chances(some, n, p, theta)
        return found.masked_fill(impossible, -math.inf)

    def saturated(self, obs: Batch) -> Tensor:
        """Return the shares of successes."""
        return obs.x / _per_point(self, "n", obs.x, obs).clamp(min=1.0)

    def _chance(self, model: Tensor, theta: Tensor, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return the probability of each point."""
        return model

    def _log_chances(self, k: Tensor, n: Tensor, p: Tensor, theta: Tensor) -> Tensor:  # noqa: ARG002
        """Return the log-probability of one sequence of k successes in n."""
        return torch.xlogy(k, p) + torch.special.xlog1py(n - k, -p)


class BetaBinomialNoise(BinomialNoise):
    r"""Successes in ``n`` trials, of a probability that scatters about the model.

    For each point it has the law Beta(c p, c (1 - p)), :math:`c = 1 / \nu^2 - 1`: of the variance
    :math:`\nu^2 p (1 - p)`. Its logarithms, :math:`\sum_{j<k} \log(p + j d) + \dots` with
    :math:`d = 1 / c`, are summed by a series where the scatter is small: there differences of
    lgamma would lose all digits.

    Parameters
    ----------
    n : str, int or array_like
        As for `BinomialNoise`.
    scatter : float or str
        :math:`\nu` in [0, 1), or the name of the parameter that holds it.
    """

    n_copies = 16

    def __init__(self, n: PerPoint = "n", scatter: float | str = "nu") -> None:
        super().__init__(n)
        self.scatter = scatter
        self._scatter = NumberOrParameter("scatter", scatter, upper=1 - 1e-9)

    def bind(self, has_errors: bool, names: tuple[str, ...]) -> BetaBinomialNoise:  # noqa: ARG002
        """Return a copy that knows the column of its parameter."""
        bound = copy.copy(self)
        bound._scatter = self._scatter.bind(names)
        return bound

    def meta(self) -> dict[str, object]:
        """Return the arguments as plain JSON."""
        return super().meta() | {"scatter": self.scatter}

    def _spread(self, p: Tensor, theta: Tensor) -> Tensor:
        """Return d, beside p."""
        square = torch.as_tensor(self._scatter.of(theta), dtype=p.dtype, device=p.device).square()
        return square / (1 - square)

    def _chance(self, model: Tensor, theta: Tensor, rng: torch.Generator) -> Tensor:
        d = self._spread(model, theta).expand(model.shape)
        inside = (model > 0) & (model < 1) & (d > 0)
        p, c = torch.where(inside, model, 0.5), 1 / torch.where(inside, d, 1.0)
        ones, others = (_log_gamma((c * share).double(), rng) for share in (p, 1 - p))
        return torch.where(inside, torch.sigmoid(ones - others).to(model.dtype), model)

    def _log_chances(self, k: Tensor, n: Tensor, p: Tensor, theta: Tensor) -> Tensor:
        numbers = k, n - k, n, self._spread(p, theta)
        right, wrong, every, d = (v.double() for v in numbers)
        q = p.double()
        total = _log_rising(q, right, d) + _log_rising(1 - q, wrong, d)
        return (total - _log_rising(torch.ones_like(q), every, d)).to(p.dtype)


def _log_rising(p: Tensor, k: Tensor, d: Tensor) -> Tensor:
    """Return the sum of log(p + j d) over j < k, in double precision.

    By gamma functions; where steps are small beside p, of which these would keep no digits, by the
    series of log(1 + j d / p).
    """
    p, k, d = torch.broadcast_tensors(p, k, d)
    impossible = (p <= 0) & (k > 0)
    p, small = p.masked_fill(p <= 0, 1.0), k * d < _SMALL_STEPS * p
    step, wide = torch.where(small, d / p, 0.0), d.masked_fill(small, 1.0)
    series = k * p.log()
    # of 1, 2, ... k - 1, their squares and cubes
    sums = k * (k - 1) / 2, k * (k - 1) * (2 * k - 1) / 6, (k * (k - 1) / 2).square()
    for power, total in enumerate(sums, 1):
        series = series - total * (-step) ** power / power
    start = p.masked_fill(small, 1.0) / wide
    gammas = k * wide.log() + torch.lgamma(start + k) - torch.lgamma(start)
    return torch.where(small, series, gammas).masked_fill(impossible, -math.inf)


def _whole(values: Tensor) -> Tensor:
    return (values >= 0) & (values == values.round())


def _log_gamma(shape: Tensor, rng: torch.Generator) -> Tensor:
    """Return logarithms of gamma variates, which are too small for a number where shapes are.

    One of shape a is one of shape a + 1 times u to the power of 1 / a (Marsaglia & Tsang 2000).
    """
    u = 1 - torch.rand(shape.shape, generator=rng, dtype=shape.dtype, device=shape.device)
    return torch._standard_gamma(shape + 1, generator=rng).log() + u.log() / shape


def _plain(value: str | NDArray) -> object:
    return value if isinstance(value, str) else value.tolist()


def _per_point(noise: Noise, name: str, model: Tensor, obs: Batch) -> Tensor:
    """Return numbers of a noise, or of the objects, as a tensor beside a model (..., C, L)."""
    value = getattr(noise, name)
    if not isinstance(value, str):
        return beside(noise, name, model)
    if value in obs.coords:
        return obs.coords[value].to(model.dtype).unsqueeze(-2)
    if value in obs.scalars:
        return obs.scalars[value].to(model.dtype)[..., None, None]
    raise ValueError(
        f"{name} must name a coordinate or a number of each object, but the observations have no "
        f"{value!r}. Give {value}= with the data."
    )
