"""Posteriors: the answers for many objects, batched, with one row and one verdict each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from nbi_plus.infer import export
from nbi_plus.infer.posterior import NUMBERS, Flag, Parameters, Posterior, Rung, Status

if TYPE_CHECKING:
    from astropy.table import QTable

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Posteriors:
    """Posteriors of N objects.

    Indexing with a number gives a `Posterior`, with a slice or an array Posteriors.

    Attributes
    ----------
    parameters : Parameters
    ids : ndarray, shape (N,)
    status : tuple of Status
    flags : tuple of frozenset of Flag
    rungs : tuple of tuple of Rung
    ess, ess_low, efficiency, k_hat, log_evidence, log_evidence_err, evidence_reliable : ndarray
        As for `Posterior`, shape (N,).
    ood_p_value, n_masked, n_simulated, n_failed : ndarray, shape (N,)
        p-value of the feature distance; points masked for not being finite; draws simulated, and
        those of them that failed.
    mean, std : ndarray, shape (N, D)
    quantiles : ndarray, shape (N, 3, D)
        At 0.16, 0.5 and 0.84.
    draws : tuple of Posterior, or None
        The kept draws of each object; None when only summaries were kept.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = (*NUMBERS, "n_masked", "n_simulated", "n_failed")

    parameters: Parameters
    ids: NDArray
    status: tuple[Status, ...]
    flags: tuple[frozenset[Flag], ...]
    rungs: tuple[tuple[Rung, ...], ...]
    ess: Array
    ess_low: Array
    efficiency: Array
    k_hat: Array
    log_evidence: Array
    log_evidence_err: Array
    evidence_reliable: NDArray[np.bool_]
    ood_p_value: Array
    n_masked: NDArray[np.int64]
    n_simulated: NDArray[np.int64]
    n_failed: NDArray[np.int64]
    mean: Array
    std: Array
    quantiles: Array
    draws: tuple[Posterior, ...] | None = None

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
        lists = {
            k: tuple(getattr(self, k)[i] for i in chosen) for k in ("status", "flags", "rungs")
        }
        arrays = {
            k: getattr(self, k)[chosen] for k in ("ids", "mean", "std", "quantiles", *self.NUMBERS)
        }
        draws = None if self.draws is None else tuple(self.draws[i] for i in chosen)
        return replace(self, **lists, **arrays, draws=draws)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{n} {s}" for s, n in Counter(s.name for s in self.status).most_common()
        )
        return f"Posteriors({len(self)} objects of {self.parameters.names}: {counts})"

    @property
    def certified(self) -> NDArray[np.bool_]:
        """Which objects passed a gate, shape (N,)."""
        return np.array([s.certified for s in self.status], bool)

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
        """Join posteriors of the same parameters."""
        first = parts[0]
        lists = {k: sum((getattr(p, k) for p in parts), ()) for k in ("status", "flags", "rungs")}
        names = ("ids", "mean", "std", "quantiles", *cls.NUMBERS)
        arrays = {k: np.concatenate([getattr(p, k) for p in parts]) for k in names}
        draws = None if first.draws is None else tuple(d for p in parts for d in p.draws)
        return replace(first, **lists, **arrays, draws=draws)
