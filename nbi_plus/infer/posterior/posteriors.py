"""Posteriors: the answers for many objects, batched, with one row and one verdict each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from nbi_plus.infer.posterior import columns, export
from nbi_plus.infer.posterior.posterior import Parameters, Posterior
from nbi_plus.infer.posterior.reweighting import reweighted
from nbi_plus.infer.posterior.status import Flag, RungReport, Status, is_trusted, settled_by
from nbi_plus.infer.weights.moments import LEVELS
from nbi_plus.markup import Shown
from nbi_plus.torch_state import door

if TYPE_CHECKING:
    from astropy.table import QTable

    from nbi_plus.problem.prior.prior import Prior

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Posteriors(columns.FiguresOfMany, Shown):
    """Posteriors of N objects.

    Indexing with a number gives a `Posterior`, with a slice or an array Posteriors.

    Attributes
    ----------
    parameters : Parameters
    ids : ndarray, shape (N,)
    status : tuple of Status
    flags : tuple of frozenset of Flag
    rungs : tuple of tuple of RungReport
    ess, ess_low, efficiency, k_hat, log_evidence, log_evidence_err, evidence_reliable : ndarray
        As for `Posterior`, shape (N,).
    ood_p_value, fit_p_value : ndarray, shape (N,)
        p-values of the feature distance, and of the data given the posterior.
    chi2_best, seconds : ndarray, shape (N,)
        Deviance of the draw of highest posterior, chi-square for Gaussian noise; the share of the
        time that the rungs took.
    n_points, n_masked, n_simulated, n_gradients, n_failed : ndarray of int, shape (N,)
        Points that counted; those masked for not being finite; simulations without and
        with a gradient that the rungs made (`fit_p_value` takes 100 more); draws of the answer
        whose simulation failed.
    mean, std : ndarray, shape (N, D)
    quantiles : ndarray, shape (N, 5, D)
        At 0.16, 0.5, 0.84, 0.025 and 0.975.
    draws : tuple of Posterior, or None
        The kept draws of each object; None when only summaries were kept.
    data_hash : ndarray of str, shape (N,)
        As for `Posterior`.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = columns.ALL_NUMBERS
    LISTS: ClassVar[tuple[str, ...]] = ("status", "flags", "rungs")
    ARRAYS: ClassVar[tuple[str, ...]] = (
        "ids", "data_hash", "mean", "std", "quantiles", *NUMBERS,
    )  # fmt: skip

    parameters: Parameters
    ids: NDArray
    status: tuple[Status, ...]
    flags: tuple[frozenset[Flag], ...]
    rungs: tuple[tuple[RungReport, ...], ...]
    mean: Array
    std: Array
    quantiles: Array
    draws: tuple[Posterior, ...] | None = None
    data_hash: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        if self.data_hash is None:
            object.__setattr__(self, "data_hash", np.full(len(self), ""))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Posterior]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int]) -> Posterior | Posteriors:
        if isinstance(index, (int, np.integer)):
            if self.draws is None:
                raise ValueError(
                    "posteriors must have kept their draws for this, but kept summaries "
                    "only (keep=0). Use to_table(), or predict with keep=None."
                )
            return self.draws[index]
        chosen = np.arange(len(self))[index]
        lists = {k: tuple(getattr(self, k)[i] for i in chosen) for k in self.LISTS}
        arrays = {k: getattr(self, k)[chosen] for k in self.ARRAYS}
        draws = None if self.draws is None else tuple(self.draws[i] for i in chosen)
        return replace(self, **lists, **arrays, draws=draws)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{n} {s}" for s, n in Counter(s.name for s in self.status).most_common()
        )
        return f"Posteriors({len(self)} objects of {self.parameters.names}: {counts})"

    def _repr_html_(self) -> str:
        return export.posteriors_html(self)

    @property
    def certified(self) -> NDArray[np.bool_]:
        """Which objects passed a gate, shape (N,)."""
        return np.array([s.certified for s in self.status], bool)

    @property
    def trusted(self) -> NDArray[np.bool_]:
        """Which are certified, with no flag against model or draws, shape (N,)."""
        each = zip(self.status, self.flags, strict=True)
        return np.array([is_trusted(status, flags) for status, flags in each], bool)

    @property
    def settled_by(self) -> tuple[str, ...]:
        """The last rung of each report; "" where there is no answer."""
        return tuple(map(settled_by, self.status, self.rungs))

    def summary(self) -> QTable:
        """Return one row per object and parameter: mean, std, quantiles, unit.

        Moments of objects that passed no gate are NaN, as in `to_table`.
        """
        return export.long_table(self)

    @door
    def reweight(self, new_prior: Prior) -> Posteriors:
        """Return the posteriors under another prior: see `Posterior.reweight`.

        All objects with as many draws are judged together. The draws must have been kept.
        """
        if self.draws is None:
            raise ValueError(
                "posteriors must have kept their draws to be reweighted, but kept summaries only "
                "(keep=0). Predict with keep=None, or with prior=."
            )
        draws = tuple(reweighted(self.draws, new_prior))
        shown = [p.weights.sum() > 0 and p.status is not Status.FAILED for p in draws]
        nothing = np.full(len(self.parameters.names), np.nan)
        return replace(
            self, draws=draws,
            **{k: tuple(getattr(p, k) for p in draws) for k in self.LISTS},
            **{k: np.array([getattr(p, k) for p in draws]) for k in columns.NUMBERS},
            mean=np.stack([p.mean() if s else nothing for p, s in zip(draws, shown, strict=True)]),
            std=np.stack([p.std() if s else nothing for p, s in zip(draws, shown, strict=True)]),
            quantiles=np.stack([
                p.quantile(LEVELS) if s else np.tile(nothing, (len(LEVELS), 1))
                for p, s in zip(draws, shown, strict=True)
            ]),
        )  # fmt: skip

    def to_table(self, uncertified: str = "nan") -> QTable:
        """Return one row per object.

        Parameters
        ----------
        uncertified : {"nan", "keep"}
            What stands for moments of objects that passed no gate.
        """
        return export.object_table(self, uncertified)

    @classmethod
    def concatenate(cls, parts: Sequence[Posteriors]) -> Posteriors:
        """Join posteriors of the same parameters, all of which have kept draws, or none."""
        if not parts:
            raise ValueError("parts must be at least one set of posteriors, but there are none.")
        if len({part.draws is None for part in parts}) > 1:
            raise ValueError(
                "parts must all have kept draws, or none, but some have none. Predict them with "
                "the same keep."
            )
        ends = np.cumsum([len(part) for part in parts])
        places = (np.arange(end - len(part), end) for part, end in zip(parts, ends, strict=True))
        return cls.placed(zip(parts, places, strict=True), int(ends[-1]))

    @classmethod
    def placed(cls, parts: Iterable[tuple[Posteriors, NDArray[np.int64]]], n: int) -> Posteriors:
        """Return the posteriors of n objects, from parts and the places of each part's objects.

        What was put in its place is let go of before the next part comes, so that many answers
        are in memory once.
        """
        arrays: dict[str, NDArray] = {}
        for i, (part, places) in enumerate(parts):
            if not i:
                first = part
                names = cls.LISTS if part.draws is None else (*cls.LISTS, "draws")
                lists = {name: [None] * n for name in names}
            for name in cls.ARRAYS:
                arrays[name] = _with(arrays.get(name), getattr(part, name), places, n)
            for name, own in lists.items():
                for place, value in zip(places.tolist(), getattr(part, name), strict=True):
                    own[place] = value
        return replace(first, **arrays, **{name: tuple(own) for name, own in lists.items()})


def listed(answers: Posterior | Iterable[Posterior]) -> list[Posterior]:
    """Return answers for one object each as a list; one alone is a list of one."""
    try:
        found = [answers] if isinstance(answers, Posterior) else list(answers)
    except TypeError:
        found = [answers]
    strange = [type(p).__name__ for p in found if not isinstance(p, Posterior)]
    if strange:
        raise TypeError(
            f"posteriors must be Posteriors, or a list of Posterior, but hold a {strange[0]}. "
            "Call Engine.predict_many."
        )
    return found


def _with(column: NDArray | None, values: NDArray, places: NDArray[np.int64], n: int) -> NDArray:
    """Return a column of n objects with values at their places, of a type that holds them all."""
    if column is None:
        column = np.empty((n, *values.shape[1:]), values.dtype)
    column = column.astype(np.result_type(column.dtype, values.dtype), copy=False)
    column[places] = values
    return column
