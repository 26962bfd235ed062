"""Calibration: simulation-based calibration of many posteriors against known truths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.arguments import new_file, of_kind, path_of, seed_of, whole
from nbi_plus.data.ingest import numbers
from nbi_plus.data.tables.tables import frame_of
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Status
from nbi_plus.io.archive import Archive, fitting_parts, read_archive, write_archive
from nbi_plus.io.parts import joined, split
from nbi_plus.trust.recovery import ALL, AllDraws, Recovery, grouped, moments_about
from nbi_plus.trust.uniformity import GRID, ecdf_band, figures_of

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]
Custom = Callable[[list[Posterior], Array], ArrayLike]

DOUBTED = 0.01  # p-values below this are evidence against a calibration
_FEW = 300  # fewer objects than these test little
_ARRAYS = (
    "ranks", "p_values", "max_deviation", "grid", "ecdf_difference", "band", "coverage",
    "coverage_low", "coverage_high",
)  # fmt: skip
_CUSTOM = "custom"
_MOMENTS = ("truths", "means", "sds")  # not in files that were written before there were any


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
    truths, means, sds : ndarray, shape (N, D), or None
        What `recovery` is of.
    periods : tuple of float or None, shape (D,)
        Of circular parameters.
    groups : ndarray of str, shape (N,), or None
        In which bin each object is.
    custom : dict of ndarray
        What functions of the user say.
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
    truths: Array | None = None
    means: Array | None = None
    sds: Array | None = None
    periods: tuple[float | None, ...] = ()
    groups: NDArray[np.str_] | None = None
    custom: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ranks)

    def save(self, path: str | Path) -> None:
        """Write the calibration to an HDF5 file of JSON and numbers, with checksums."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        numbers_of = {k: own.pop(k) for k in (*_ARRAYS, *_MOMENTS)}
        arrays = {k: v for k, v in numbers_of.items() if v is not None}
        arrays |= joined({_CUSTOM: own.pop("custom")})
        groups = None if self.groups is None else self.groups.tolist()
        meta = own | {"ids": self.ids.tolist(), "groups": groups}
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
            told["periods"] = tuple(meta.pop("periods", ()))
            ids, groups = np.array(meta.pop("ids"), np.str_), meta.pop("groups", None)
            groups = None if groups is None else np.array(groups, np.str_)
            custom = split(archive.arrays).get(_CUSTOM, {})
            moments = {k: archive.arrays.get(k) for k in _MOMENTS}
            own = {k: archive.arrays[k] for k in _ARRAYS}
            found = cls(**told, ids=ids, groups=groups, custom=custom, **meta, **own, **moments)
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
            "band": low.shape == GRID.shape and bool((low <= high).all()),
            "ranks": bool(((self.ranks > 0) & (self.ranks < 1)).all()),
            "groups": self.groups is None or self.groups.shape == (n,),
            "periods": self.truths is None or len(self.periods) == n_dim,
        }
        for name in _MOMENTS:
            own = getattr(self, name)
            same = (own is None) == (self.truths is None)
            sound[name] = same and (own is None or own.shape == (n, n_dim))
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
    def recovery(self) -> Recovery:
        """How near the posteriors come to the truths."""
        if self.truths is None:
            raise ValueError("This calibration was saved without truths. Calibrate anew.")
        return Recovery(self.truths, self.means, self.sds, self.periods)

    def to_frame(self) -> pandas.DataFrame:
        """Return a row for each parameter, of each group where there are `bins`, then of all.

        Columns: ``group``, ``parameter``, ``n``, ``p_value``, ``max_deviation``, ``coverage_50``
        and others, and those of `Recovery.figures`. Of a few objects p-values and coverages say
        little; those of a row are adjusted for its own group's parameters alone.
        """
        words = np.full(len(self), ALL) if self.groups is None else self.groups
        parts = [self._columns(*own) for own in grouped(words) if own[1].sum() > 1]
        return frame_of({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _columns(self, group: str, rows: NDArray[np.bool_]) -> dict[str, NDArray]:
        """Return the columns (D,) of one group."""
        own, n_dim = figures_of(self.ranks[rows]), len(self.names)
        shares = zip(self.levels, own["coverage"].T, strict=True)
        columns = {
            "group": np.full(n_dim, group), "parameter": np.array(self.names),
            "n": np.full(n_dim, rows.sum()), "p_value": own["p_values"],
            "max_deviation": own["max_deviation"],
            **{f"coverage_{100 * level:.0f}": share for level, share in shares},
        }  # fmt: skip
        return columns | ({} if self.truths is None else self.recovery.of(rows).figures())

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
    *,
    groups: Sequence[str] | None = None,
    custom: Mapping[str, Custom] | None = None,
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
    groups : sequence of str, shape (N,), optional
        A word for each object, by which `Calibration.to_frame` tells them apart. It must not
        depend on the truths.
    custom : mapping of name to callable, optional
        ``f(posteriors, truths)`` of those n that enter, a list of Posterior and truths (n, D),
        gives numbers: ``Calibration.custom``.

    Returns
    -------
    Calibration
    """
    n_ranks = whole("n_ranks", n_ranks)
    truths = _checked(posteriors, theta_true)
    entered, truths, rows = _entered(posteriors, truths)
    groups = None if groups is None else np.asarray(groups, np.str_)
    if groups is not None and groups.shape != (len(posteriors),):
        raise ValueError(f"groups must be a word for each object, but have shape {groups.shape}.")
    custom = functions_of(custom)
    n, n_dim = truths.shape
    rng = np.random.default_rng(seed_of("seed", seed))
    draws = AllDraws.of(entered)
    below = rng.binomial(n_ranks, share_below(draws, truths))
    ranks = (below + rng.random((n, n_dim))) / (n_ranks + 1)
    first = entered[0].parameters
    periods = first.periods or (None,) * n_dim
    means, sds = moments_about(draws, truths, periods)
    return Calibration(
        names=first.names,
        labels=first.labels,
        ranks=ranks,
        ids=np.array([p.id for p in entered]),
        n_ranks=n_ranks,
        band=ecdf_band(n),
        n_excluded=len(posteriors) - n,
        n_amortized=sum(p.status is Status.AMORTIZED for p in entered),
        truths=truths,
        means=means,
        sds=sds,
        periods=periods,
        groups=None if groups is None else groups[rows],
        custom={
            k: np.atleast_1d(numbers(f"custom[{k!r}]", f(entered, truths)))
            for k, f in custom.items()
        },  # fmt: skip
        **figures_of(ranks),
    )


def functions_of(custom: Mapping[str, Custom] | None) -> Mapping[str, Custom]:
    """Return the functions that ``custom`` names; raise where something else is there."""
    custom = {} if custom is None else of_kind("custom", custom, Mapping, "Name functions.")
    for name, function in custom.items():
        if not callable(function):
            raise TypeError(
                f"custom[{name!r}] must be a function of posteriors and truths, but is a "
                f"{type(function).__name__}. Give f(posteriors, truths), which returns numbers."
            )
    return custom


def weighted_share_below(posteriors: Sequence[Posterior], truths: Array) -> Array:
    """Return the weight of each posterior's draws below its truth, shape (N, D)."""
    return share_below(AllDraws.of(posteriors), truths)


def share_below(draws: AllDraws, truths: Array) -> Array:
    """Return the same of draws that are together."""
    return np.clip(draws.mean(draws.samples < draws.spread(truths)), 0.0, 1.0)


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


def _entered(
    posteriors: Iterable[Posterior], truths: Array
) -> tuple[list[Posterior], Array, NDArray[np.bool_]]:
    """Return the posteriors whose ranks mean something, their truths, and which these are."""
    everyone = list(posteriors)
    uncorrected = (Status.AMORTIZED, Status.LEARNED)  # whether they should be is what ranks say
    valid = np.array([p.certified or p.status in uncorrected for p in everyone])
    if valid.sum() < 2:
        raise ValueError(
            f"posteriors must hold at least 2 that are certified, AMORTIZED or LEARNED, but "
            f"{valid.sum()} of {len(valid)} are. Train longer, or look at posterior.report."
        )
    return [p for p, v in zip(everyone, valid, strict=True) if v], truths[valid], valid
