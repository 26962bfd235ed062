"""Calibration: simulation-based calibration of many posteriors against known truths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from nbi_plus.arguments import new_file, path_of, seed_of, whole
from nbi_plus.data.ingest import numbers
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Status
from nbi_plus.io.archive import Archive, fitting_parts, read_archive, write_archive

Array = NDArray[np.float64]

LEVELS = (0.5, 0.68, 0.9, 0.95)
DOUBTED = 0.01  # p-values below this are evidence against a calibration
_GRID = np.linspace(0.0, 1.0, 101)
_N_SETS = 1000  # uniform sets behind the band
_CONFIDENCE = 0.95
_FEW = 300  # fewer objects than these test little
_ARRAYS = (
    "ranks", "p_values", "max_deviation", "grid", "ecdf_difference", "band", "coverage",
    "coverage_low", "coverage_high",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Calibration:
    """How the truths of N objects rank among the draws of their posteriors.

    Where the posteriors are exact, the ranks of each parameter are uniform: too many in the middle
    are the mark of posteriors that are too wide, too many at both ends of posteriors too narrow, a
    slope of a bias. A rejection is evidence; a pass says only that N objects showed nothing.

    Attributes
    ----------
    names, labels : tuple of str, shape (D,)
    ranks : ndarray, shape (N, D)
        In (0, 1), dithered within their steps.
    ids : ndarray of str, shape (N,)
        Of the objects that entered.
    n_ranks : int
        Draws that each truth is ranked among.
    p_values : ndarray, shape (D,)
        Kolmogorov-Smirnov against uniform, Holm-adjusted for the number of parameters.
    max_deviation : ndarray, shape (D,)
        Largest distance of the ranks' distribution function from that of the uniform.
    grid : ndarray, shape (G,)
        Where `ecdf_difference` and `band` are given.
    ecdf_difference : ndarray, shape (D, G)
        Distribution function of the ranks less that of the uniform.
    band : ndarray, shape (2, G)
        The difference of one parameter of exact posteriors stays inside, everywhere, in 95 % of
        all cases.
    levels : tuple of float
        Of the central credible intervals behind `coverage`.
    coverage, coverage_low, coverage_high : ndarray, shape (D, 4)
        Share of truths inside each interval, and its 95 % binomial (Clopper-Pearson) interval.
    n_excluded : int
        Objects left out, for their posteriors are not certified.
    n_amortized : int
        Objects among the N whose posteriors are the network's own, not corrected.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    ranks: Array
    ids: NDArray[np.str_]
    n_ranks: int
    p_values: Array
    max_deviation: Array
    grid: Array
    ecdf_difference: Array
    band: Array
    levels: tuple[float, ...]
    coverage: Array
    coverage_low: Array
    coverage_high: Array
    n_excluded: int
    n_amortized: int

    def __len__(self) -> int:
        return len(self.ranks)

    def save(self, path: str | Path) -> None:
        """Write the calibration to an HDF5 file of JSON and numbers, with checksums."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {k: v for k, v in own.items() if k in _ARRAYS}
        meta = {k: v for k, v in own.items() if k not in _ARRAYS} | {"ids": self.ids.tolist()}
        write_archive(new_file("path", path), "calibration", meta, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration; nothing in the file is executed."""
        return cls.from_archive(read_archive(path_of("path", path), "calibration"), str(path))

    @classmethod
    def from_archive(cls, archive: Archive, name: str) -> Calibration:
        """Return what an archive holds; ``name`` is what errors call it."""
        with fitting_parts(name, "calibration"):
            meta = dict(archive.meta)
            told = {k: tuple(meta.pop(k)) for k in ("names", "labels", "levels")}
            ids = np.array(meta.pop("ids"), np.str_)
            found = cls(**told, ids=ids, **meta, **{k: archive.arrays[k] for k in _ARRAYS})
            found._check()
        return found

    def _check(self) -> None:
        """Refuse parts of other sizes, and figures that do not follow from the ranks."""
        n, n_dim = self.ranks.shape
        low, high = self.band
        sound = {
            "ids": len(self.ids) == n,
            "names": len(self.names) == len(self.labels) == n_dim,
            "n_ranks": self.n_ranks >= 1,
            "n_excluded": self.n_excluded >= 0,
            "n_amortized": 0 <= self.n_amortized <= n,
            "band": low.shape == _GRID.shape and bool((low <= high).all()),
            "ranks": bool(((self.ranks > 0) & (self.ranks < 1)).all()),
        }
        for name, value in figures_of(self.ranks).items():
            own = np.asarray(getattr(self, name))
            sound[name] = own.shape == np.shape(value) and np.allclose(own, value, 1e-6, 1e-9)
        for name, is_sound in sound.items():
            if not is_sound:
                raise ValueError(f"{name} must agree with the ranks, but does not.")

    def __repr__(self) -> str:
        values = ", ".join(f"{n}: {p:.3g}" for n, p in zip(self.names, self.p_values, strict=True))
        return f"Calibration({len(self)} objects, {self.n_excluded} excluded; p-values {values})"

    @property
    def scope(self) -> str:
        """Which posteriors were judged, and which left out, in a sentence."""
        if self.n_amortized == len(self):
            kind = "network posteriors, not corrected (AMORTIZED)"
        elif self.n_amortized:
            kind = f"posteriors, certified but for {self.n_amortized} AMORTIZED"
        else:
            kind = "certified posteriors"
        return f"{len(self)} {kind}; {self.n_excluded} uncertified left out."

    @property
    def report(self) -> str:
        """The verdict in words: what entered, p-values, deviations and coverage."""
        lines = [f"Calibration of {self.scope}"]
        if len(self) < _FEW:
            lines.append(f"Fewer than {_FEW} objects: small faults would not be seen.")
        width = max(9, *(len(n) for n in self.names))
        levels = "".join(f"{f'in {level:.0%}':>19}" for level in self.levels)
        lines.append(f"{'parameter':>{width}}  p-value  deviation{levels}")
        for i, name in enumerate(self.names):
            shares = zip(self.coverage[i], self.coverage_low[i], self.coverage_high[i], strict=True)
            inside = "".join(f"  {c:.3f} ({low:.2f}-{high:.2f})" for c, low, high in shares)
            figures = f"{self.p_values[i]:7.3f}  {self.max_deviation[i]:9.3f}"
            lines.append(f"{name:>{width}}  {figures}{inside}")
        return "\n".join(lines)


def sbc(
    posteriors: Posteriors | Sequence[Posterior],
    theta_true: ArrayLike,
    n_ranks: int = 200,
    seed: int = 0,
) -> Calibration:
    r"""Return how the truths rank among the draws: simulation-based calibration.

    The weighted share of an object's draws below the truth, :math:`F = \sum_s w_s
    [\theta_s < \theta^*]` with the smoothed (PSIS) weights, makes the rank among ``n_ranks`` draws
    resampled with these weights binomial, :math:`r \sim B(n_\mathrm{ranks}, F)`. It is dithered,
    :math:`u = (r + U) / (n_\mathrm{ranks} + 1)`, for ranks are discrete and the test is not.

    Parameters
    ----------
    posteriors : Posteriors or sequence of Posterior
        Of N objects simulated from the prior, with their draws. Only certified ones enter, and
        network posteriors that were never to be corrected (AMORTIZED): weights that passed no gate
        give wrong ranks. Which objects enter depends on their data alone, so the rest is still
        uniform.
    theta_true : array_like, shape (N, D)
        The parameters they were simulated with.
    n_ranks : int
        Draws that each truth is ranked among.
    seed : int
        Of the resampling and the dither.

    Returns
    -------
    Calibration
    """
    n_ranks = whole("n_ranks", n_ranks)
    truths = _checked(posteriors, theta_true)
    entered, truths = _entered(posteriors, truths)
    n, n_dim = truths.shape
    rng = np.random.default_rng(seed_of("seed", seed))
    below = rng.binomial(n_ranks, weighted_share_below(entered, truths))
    ranks = (below + rng.random((n, n_dim))) / (n_ranks + 1)
    first = entered[0].parameters
    return Calibration(
        names=first.names,
        labels=first.labels,
        ranks=ranks,
        ids=np.array([p.id for p in entered]),
        n_ranks=n_ranks,
        band=ecdf_band(n),
        n_excluded=len(posteriors) - n,
        n_amortized=sum(p.status is Status.AMORTIZED for p in entered),
        **figures_of(ranks),
    )


def figures_of(ranks: Array) -> dict[str, Any]:
    """Return what follows from ranks (N, D) alone."""
    deviation, p_values = _kolmogorov_smirnov(ranks)
    coverage, low, high = _coverage(ranks)
    return {
        "p_values": holm(p_values), "max_deviation": deviation, "grid": _GRID,
        "ecdf_difference": _ecdf(ranks) - _GRID, "levels": LEVELS,
        "coverage": coverage, "coverage_low": low, "coverage_high": high,
    }  # fmt: skip


def weighted_share_below(posteriors: Sequence[Posterior], truths: Array) -> Array:
    """Return the weight of each posterior's draws below its truth, shape (N, D).

    Objects may have different numbers of draws: all draws lie in one array, object after object.
    """
    sizes = np.array([len(p) for p in posteriors])
    draws = np.concatenate([p.samples for p in posteriors])
    weights = np.concatenate([p.weights for p in posteriors])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    below = weights[:, None] * (draws < np.repeat(truths, sizes, axis=0))
    total = np.add.reduceat(weights, starts)[:, None]
    return np.clip(np.add.reduceat(below, starts) / total, 0.0, 1.0)


def holm(p_values: ArrayLike) -> Array:
    """Return p-values adjusted for their number (Holm's step-down), shape (D,).

    Examples
    --------
    >>> holm([0.01, 0.5, 0.04]).tolist()
    [0.03, 0.5, 0.08]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def ecdf_band(n: int, seed: int = 0) -> Array:
    """Return the simultaneous 95 % band of ECDF(u) - u for n uniform values, shape (2, G).

    The band is made of pointwise binomial quantiles, at the level at which 95 % of simulated
    uniform sets lie inside everywhere on the grid.

    Parameters
    ----------
    n : int
    seed : int
        Of the 1000 simulated sets.
    """
    inner = _GRID[1:-1]
    rng = np.random.default_rng(seed)
    # counts in the cells of the grid: all that an ECDF on it knows of n uniform values
    cells = rng.multinomial(n, np.full(len(_GRID) - 1, 1 / (len(_GRID) - 1)), size=_N_SETS)
    counts = np.cumsum(cells, 1)[:, :-1]
    least = counts.min(0)
    seen = least + np.arange((counts - least).max() + 1)[:, None]
    table = np.minimum(stats.binom.cdf(seen, n, inner), stats.binom.sf(seen - 1, n, inner))
    tails = np.take_along_axis(table, counts - least, 0)
    tail = np.quantile(tails.min(1), 1 - _CONFIDENCE)
    low, high = stats.binom.ppf(tail, n, inner), stats.binom.isf(tail, n, inner)
    return np.pad(np.stack([low, high]) / n - inner, ((0, 0), (1, 1)))


def _checked(posteriors: Posteriors | Sequence[Posterior], theta_true: ArrayLike) -> Array:
    """Return the truths (N, D) as numbers, if they fit the posteriors."""
    if not isinstance(posteriors, Posteriors) and not (
        isinstance(posteriors, Sequence) and all(isinstance(p, Posterior) for p in posteriors)
    ):
        raise TypeError(
            f"posteriors must be Posteriors or a sequence of Posterior, but are {posteriors!r:.80}."
        )
    if not len(posteriors):
        raise ValueError("posteriors must hold at least one object, but are empty.")
    names = posteriors[0].names
    truths = numbers("theta_true", theta_true)
    shape = (len(posteriors), len(names))
    if truths.shape != shape:
        raise ValueError(
            f"theta_true must have shape {shape}, a row of {names} for each posterior, but has "
            f"{truths.shape}."
        )
    if not np.isfinite(truths).all():
        raise ValueError(
            f"theta_true must be finite, but {int((~np.isfinite(truths)).sum())} values are not."
        )
    return truths


def _entered(posteriors: Iterable[Posterior], truths: Array) -> tuple[list[Posterior], Array]:
    """Return the posteriors whose ranks mean something, and their truths."""
    everyone = list(posteriors)
    uncorrected = (Status.AMORTIZED, Status.LEARNED)  # whether they should be is what ranks say
    valid = np.array([p.certified or p.status in uncorrected for p in everyone])
    if valid.sum() < 2:
        raise ValueError(
            f"posteriors must hold at least 2 that are certified, AMORTIZED or LEARNED, but "
            f"{valid.sum()} of {len(valid)} are. Train longer, or look at posterior.report."
        )
    return [p for p, v in zip(everyone, valid, strict=True) if v], truths[valid]


def _kolmogorov_smirnov(ranks: Array) -> tuple[Array, Array]:
    """Return the distance from uniform and its p-value for each column of (N, D)."""
    n = len(ranks)
    ordered = np.sort(ranks, 0)
    step = np.arange(n)[:, None] / n
    distance = np.maximum(ordered - step, step + 1 / n - ordered).max(0)
    return distance, stats.kstwo.sf(distance, n)


def _ecdf(ranks: Array) -> Array:
    """Return the distribution function of each column of (N, D) on the grid, shape (D, G)."""
    return np.stack([np.searchsorted(c, _GRID, side="right") for c in np.sort(ranks, 0).T]) / len(
        ranks
    )


def _coverage(ranks: Array) -> tuple[Array, Array, Array]:
    """Return the share of ranks in each central interval, with its 95 % interval, each (D, 4)."""
    n = len(ranks)
    inside = np.stack([(np.abs(ranks - 0.5) <= 0.5 * level).sum(0) for level in LEVELS], -1)
    tail = 0.5 * (1 - _CONFIDENCE)
    # Clopper-Pearson: none inside has the lower end 0, all inside the upper end 1
    low = np.where(inside == 0, 0.0, stats.beta.ppf(tail, np.maximum(inside, 1), n - inside + 1))
    high = np.where(inside == n, 1.0, stats.beta.isf(tail, inside + 1, np.maximum(n - inside, 1)))
    return inside / n, low, high
