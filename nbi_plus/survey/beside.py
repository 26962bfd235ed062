"""Beside: what other estimators say of the objects of a survey, as columns of its catalogue."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nbi_plus.arguments import of_kind
from nbi_plus.data.observations import Observations
from nbi_plus.survey.chunks import Chunk
from nbi_plus.survey.manifest import SurveyError

if TYPE_CHECKING:
    import pyarrow

_LOG = logging.getLogger("nbi_plus")
_REMEDY = "Give a dict of name to a fitted PointEngine or ModelClassifier."
_ALL_OF = 4  # objects: where none of them can be told of, it is not theirs to fail


@runtime_checkable
class Tells(Protocol):
    """Whoever says numbers of objects: a fitted PointEngine, a ModelClassifier."""

    def catalogue_columns(self) -> dict[str, str]:
        """Return the names of the numbers, and a sentence for each."""

    def catalogue_values(self, observations: Observations) -> dict[str, NDArray[np.float64]]:
        """Return the numbers, (N,) each, under these names."""

    def catalogue_hash(self) -> str:
        """Return a fingerprint of what was fitted."""


@dataclass(frozen=True)
class Beside:
    """Several estimators, whose columns go through as those of the source do.

    Attributes
    ----------
    tellers : dict of Tells
    """

    tellers: Mapping[str, Tells] = field(default_factory=dict)

    @classmethod
    def of(cls, beside: Mapping[str, Tells] | None) -> Beside:
        """Return those that were given by name, or say what cannot stand beside an answer."""
        if beside is None:
            return cls()
        for name, teller in of_kind("beside", beside, Mapping, _REMEDY).items():
            of_kind("names of beside", name, str, _REMEDY)
            if not isinstance(teller, Tells):
                raise TypeError(
                    f"beside[{name!r}] must be fitted and have columns, but is a "
                    f"{type(teller).__name__}. {_REMEDY}"
                )
            teller.catalogue_columns()  # whoever is not fitted says so here
        return cls(dict(beside))

    @property
    def said(self) -> dict[str, str]:
        """What was fitted, for a survey goes on with the same only."""
        return {name: teller.catalogue_hash() for name, teller in self.tellers.items()}

    @property
    def fields(self) -> tuple[pyarrow.Field, ...]:
        """The columns, with what each is."""
        import pyarrow as pa

        return tuple(
            pa.field(f"{name}_{column}", pa.float64(), metadata={"description": sentence})
            for name, teller in self.tellers.items()
            for column, sentence in teller.catalogue_columns().items()
        )

    def joined(self, chunk: Chunk) -> Chunk:
        """Return a chunk with these columns; NaN for objects of which nothing can be said."""
        import pyarrow as pa

        values = {one.name: np.full(len(chunk), np.nan) for one in self.fields}
        for name, teller in self.tellers.items() if chunk.observations is not None else ():
            for column, known in _told(name, teller, chunk.observations).items():
                values[f"{name}_{column}"][chunk.places] = known
        return replace(chunk, carried=chunk.carried | {k: pa.array(v) for k, v in values.items()})


def _told(name: str, teller: Tells, observations: Observations) -> dict[str, NDArray[np.float64]]:
    """Return the numbers of a teller; what it cannot take in one batch it is asked in halves."""
    n, reasons = len(observations), {}
    values = {column: np.full(n, np.nan) for column in teller.catalogue_columns()}

    def fill(rows: NDArray[np.int64]) -> None:
        try:
            found = teller.catalogue_values(observations[rows])
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end a survey
            if len(rows) > 1:
                for half in np.array_split(rows, 2):
                    fill(half)
            else:
                reasons[int(rows[0])] = f"{type(error).__name__}: {error}"[:500]
            return
        for column, own in found.items():
            values[column][rows] = own

    fill(np.arange(n))
    if reasons:
        first = min(reasons)
        told = f"{name} says nothing of {len(reasons)} objects, as {observations.ids[first]}: "
        if len(reasons) == n >= _ALL_OF:
            raise SurveyError(f"beside[{name!r}] must know such data, but {told}{reasons[first]}")
        _LOG.warning("%s%s", told, reasons[first])
    return values
