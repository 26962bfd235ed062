"""Recovery: how near answers come to known truths, and how far they contract the prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.arguments import whole
from nbi_plus.data.ingest import numbers
from nbi_plus.data.observations import Observations
from nbi_plus.infer.posterior.posterior import Posterior

Array = NDArray[np.float64]

_FAR = 4.0  # standard deviations: 6 of 100 000 normal truths lie further out
_NORMAL = 1.4826  # by which a median absolute deviation is the sd of normals
_OF_OBJECTS = ("snr", "n_points")
ALL = "all"  # objects, told as a group


@dataclass(frozen=True, eq=False)
class Recovery:
    """Means and standard deviations of the posteriors of N objects, beside their truths.

    Attributes
    ----------
    truth, mean, sd : ndarray, shape (N, D)
    periods : tuple of float or None, shape (D,)
        Of circular parameters, whose differences are taken the short way round.
    """

    truth: Array
    mean: Array
    sd: Array
    periods: tuple[float | None, ...]

    def __post_init__(self) -> None:
        n, n_dim = self.truth.shape
        if not (self.mean.shape == self.sd.shape == (n, n_dim) and len(self.periods) == n_dim):
            raise ValueError("truth, mean, sd and periods must be of one shape, but are not.")

    @property
    def error(self) -> Array:
        """Mean less truth, (N, D)."""
        return _short_way(self.mean - self.truth, self.periods)

    @property
    def z_score(self) -> Array:
        """The error in units of the posterior's standard deviation, (N, D)."""
        return self.error / self.sd

    @property
    def contraction(self) -> Array:
        r"""One less the ratio of variances of posterior and prior, (N, D).

        1 where the data say all, 0 where they say nothing. The truths are draws of the prior.
        """
        return 1 - self.sd**2 / self._spread().var(0, ddof=1)

    def figures(self) -> dict[str, Array]:
        """Return what all objects say together, (D,) each.

        ``bias`` and ``scatter`` are the median and the scaled median absolute deviation of the
        z-scores, 0 and 1 for exact normal posteriors; ``outliers`` the share beyond 4; ``r2`` the
        share of the variance of truths that means explain; ``nrmse`` the root mean square error in
        standard deviations of the truths; ``contraction`` the median.
        """
        z, spread = self.z_score, self._spread()
        bias, mse = np.median(z, 0), (self.error**2).mean(0)
        variance = spread.var(0)
        return {
            "bias": bias, "scatter": _NORMAL * np.median(np.abs(z - bias), 0),
            "outliers": (np.abs(z) > _FAR).mean(0), "r2": 1 - mse / variance,
            "nrmse": np.sqrt(mse / variance), "contraction": np.median(self.contraction, 0),
        }  # fmt: skip

    def of(self, rows: NDArray[np.bool_]) -> Recovery:
        """Return that of some objects (N,)."""
        return Recovery(self.truth[rows], self.mean[rows], self.sd[rows], self.periods)

    def _spread(self) -> Array:
        """Return the truths (N, D) about a place that no circle tears apart."""
        about = [
            np.median(own) if period is None
            else np.angle(np.exp(2j * np.pi * own / period).mean()) * period / (2 * np.pi)
            for own, period in zip(self.truth.T, self.periods, strict=True)
        ]  # fmt: skip
        return _short_way(self.truth - np.array(about), self.periods)


class AllDraws(NamedTuple):
    """The draws of N posteriors in one array, object after object; their numbers may differ."""

    samples: Array  # (S, D)
    weights: Array  # (S,)
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, posteriors: Sequence[Posterior]) -> AllDraws:
        """Return those of posteriors."""
        samples = np.concatenate([p.samples for p in posteriors])
        weights = np.concatenate([p.weights for p in posteriors])
        return cls(samples, weights, np.array([len(p) for p in posteriors]))

    def spread(self, values: Array) -> Array:
        """Return values (N, D) of objects for each of their draws."""
        return np.repeat(values, self.sizes, axis=0)

    def mean(self, values: Array) -> Array:
        """Return the weighted means (N, D) of values (S, D) of the draws of each object."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        total = np.add.reduceat(self.weights, starts)[:, None]
        return np.add.reduceat(self.weights[:, None] * values, starts) / total


def moments_about(
    draws: AllDraws, truths: Array, periods: Sequence[float | None]
) -> tuple[Array, Array]:
    """Return means and standard deviations (N, D), on circles of what is nearest to the truths."""
    off = _short_way(draws.samples - draws.spread(truths), periods)
    mean = draws.mean(off)
    return truths + mean, np.sqrt(draws.mean((off - draws.spread(mean)) ** 2))


Bins = int | Mapping[str, int | ArrayLike]


def groups(bins: Bins | None, observations: Observations) -> NDArray[np.str_]:
    """Return the group (N,) of each object, in words; one group where no bins are asked for.

    Parameters
    ----------
    bins : int or mapping of one name to int or edges, optional
        Bins of what is known of an object before it is answered: its ``"snr"``, its ``"n_points"``
        or a scalar; an integer alone is of ``"snr"``. So many bins hold the same number of objects.
    observations : Observations
    """
    if bins is None:
        return np.full(len(observations), ALL)
    wish = bins if isinstance(bins, Mapping) else {"snr": bins}
    if len(wish) != 1:
        raise ValueError(f"bins must be of one name, but are of {list(wish)}. Ask for one by one.")
    (name, own), *_ = wish.items()
    values = _known(name, observations)
    if np.ndim(own):
        edges = numbers("bins", own)
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ValueError(f"bins must have rising edges, two at least, but has {own!r:.80}.")
    else:
        edges = np.quantile(values, np.linspace(0, 1, whole("bins", own, 1) + 1))
    inner = np.unique(edges[1:-1])
    ends = [f"{edge:.4g}" for edge in (edges[0], *inner, edges[-1])]
    place = np.searchsorted(inner, values, side="right")
    words = [f"{name} {low} to {high}" for low, high in zip(ends, ends[1:], strict=False)]
    inside = (values >= edges[0]) & (values <= edges[-1])
    return np.where(inside, np.array(words)[place], f"other {name}")


def grouped(words: NDArray[np.str_]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return each group of objects by its word (N,), which rows are of it, and then all."""
    some = [(str(word), words == word) for word in np.unique(words) if word != ALL]
    return [*some, (ALL, np.full(len(words), True))]


def _known(name: str, observations: Observations) -> Array:
    """Return a number for each object that the data alone say, or refuse."""
    if name == "n_points":
        return observations.n_points.astype(float)
    if name in observations.scalars:
        return np.asarray(observations.scalars[name], float)
    if name != "snr":
        raise ValueError(
            f"bins must be of {[*_OF_OBJECTS, *observations.scalars]}, but are of {name!r}. "
            "Parameters are not known of an object: ranks in bins of truths are not uniform."
        )
    batch = observations.batch()
    if batch.x_err is None:
        raise ValueError(
            "bins of snr must have errors, but the observations have none. Give x_err to fit, or "
            'bins of what is known: bins={"n_points": 3}.'
        )
    square = (batch.x / batch.x_err).square().where(batch.mask, 0.0).sum((1, 2))
    return (square / batch.mask.sum((1, 2)).clamp(min=1)).sqrt().cpu().numpy()


def unwound(values: Array, middles: Array, periods: Sequence[float | None]) -> Array:
    """Return values (N, D), those on circles within half a period of the middles (N, D)."""
    about = np.where(np.isfinite(middles), middles, 0.0)
    return about + _short_way(values - about, periods)


def _short_way(difference: Array, periods: Sequence[float | None]) -> Array:
    """Return differences (N, D), those of circles within half a period."""
    period = np.array([np.inf if p is None else p for p in periods])
    on_circle = np.isfinite(period)
    turns = np.round(difference / np.where(on_circle, period, 1.0))
    return difference - np.where(on_circle, turns * np.where(on_circle, period, 0.0), 0.0)
