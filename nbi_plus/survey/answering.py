"""Answering: the rows of a chunk, whatever its objects do; those that climb come later."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.escalation import Answered
from nbi_plus.infer.ladder.waiting import Begun, Waiting
from nbi_plus.infer.posterior.status import Flag
from nbi_plus.survey.beside import Beside
from nbi_plus.survey.catalogue import Catalogue
from nbi_plus.survey.chunks import Chunk
from nbi_plus.survey.parts import SurveyError
from nbi_plus.survey.unfinished import unfinished_rows

if TYPE_CHECKING:
    import pyarrow

_LOG = logging.getLogger("nbi_plus")
_ALL_OF = 4  # objects: where they all fail alike, it is not theirs to fail


class SurveyModel(Protocol):
    """What answers the objects of a survey: a fitted engine, and how it is asked.

    Attributes
    ----------
    at_once : int
        Objects that climb the ladder together.
    """

    at_once: int

    def answer(self, observations: Observations) -> Begun:
        """Return the answers that the first rung settles, and the objects that climb later."""

    def climb(self, waiting: Sequence[Waiting]) -> list[Answered]:
        """Return the answers for objects that waited."""


@dataclass(frozen=True)
class Rows:
    """Rows of the catalogue, in the order of the source.

    Attributes
    ----------
    table : pyarrow.Table
    positions : ndarray of int, shape (n,)
        Which objects of the source they are.
    unfinished : pyarrow.Table or None
        What those of them need to be tried again that nothing certified.
    """

    table: pyarrow.Table
    positions: NDArray[np.int64]
    unfinished: pyarrow.Table | None = None

    @classmethod
    def of(cls, parts: Sequence[Rows]) -> Rows:
        """Return the rows of all parts."""
        import pyarrow as pa

        positions = np.concatenate([part.positions for part in parts])
        order = np.argsort(positions, kind="stable")
        table = pa.concat_tables([part.table for part in parts]).take(order)
        left = [part.unfinished for part in parts if part.unfinished is not None]
        return cls(table, positions[order], pa.concat_tables(left) if left else None)


@dataclass(frozen=True)
class Pending:
    """Objects of a chunk that wait to climb.

    Attributes
    ----------
    chunk : Chunk
    waiting : Waiting
        Its positions are among the objects of the chunk.
    """

    chunk: Chunk
    waiting: Waiting

    def __len__(self) -> int:
        return len(self.waiting)


@dataclass(frozen=True)
class Answering:
    """What turns chunks into rows of the catalogue.

    Attributes
    ----------
    model : SurveyModel
    catalogue : Catalogue
    beside : Beside
        Whose columns are among those that the catalogue carries.
    """

    model: SurveyModel
    catalogue: Catalogue
    beside: Beside = Beside()

    def __call__(self, chunk: Chunk) -> Rows:
        """Return one row for each object of a chunk."""
        rows, pending = self._begun(chunk)
        rows += list(self._climbed(pending)) if pending else []
        return _checked(Rows.of(rows))

    def begin(self, chunk: Chunk) -> tuple[Rows | None, list[Pending]]:
        """Return the rows of a chunk that the first rung settles, and who climbs later."""
        rows, pending = self._begun(chunk)
        if pending:  # not all have failed
            return Rows.of(rows) if rows else None, pending
        return _checked(Rows.of(rows)), []

    def climb(self, pending: Sequence[Pending]) -> Rows:
        """Return the rows of objects that waited, of any chunks."""
        return Rows.of(list(self._climbed(pending)))

    def _begun(self, chunk: Chunk) -> tuple[list[Rows], list[Pending]]:
        rows: list[Rows] = []
        pending: list[Pending] = []
        chunk = self.beside.joined(chunk)
        if chunk.refused:
            places = np.array(sorted(chunk.refused))
            reasons = [chunk.refused[i] for i in places]
            rows.append(self._refused(chunk, places, reasons, Flag.BAD_INPUT))
        if chunk.observations is not None:
            every = np.arange(len(chunk.observations))
            rows += self._answers(chunk, every, pending)
        return rows, pending

    def _answers(
        self, chunk: Chunk, rows: NDArray[np.int64], pending: list[Pending]
    ) -> Iterator[Rows]:
        """Yield rows for some objects; what fails all together is tried in halves."""
        began = time.perf_counter()
        try:
            begun = self.model.answer(chunk.observations[rows])
        except (MemoryError, SurveyError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end a survey
            if len(rows) > 1:
                for half in np.array_split(rows, 2):
                    yield from self._answers(chunk, half, pending)
                return
            yield self._failed(chunk, chunk.places[rows], error)
            return
        each = (time.perf_counter() - began) / len(rows)
        for own in begun.waiting:
            own = own.at(chunk.places[rows[own.positions]])
            pending.append(Pending(chunk.of(own.positions), own))
        for own in begun.answered:
            yield self._rows(chunk, chunk.places[rows[own.positions]], own, each)

    def _climbed(self, pending: Sequence[Pending]) -> Iterator[Rows]:
        """Yield rows of objects that waited; what fails all together is tried in halves."""
        ends = np.cumsum([len(own) for own in pending])
        starts = ends - [len(own) for own in pending]
        each = zip(starts, pending, strict=True)
        try:
            found = self.model.climb([
                own.waiting.at(np.arange(start, start + len(own))) for start, own in each
            ])  # fmt: skip
        except (MemoryError, SurveyError):
            raise
        except Exception as error:  # noqa: BLE001 - as above
            parts = _halves(pending)
            if len(parts) > 1:
                for part in parts:
                    yield from self._climbed(part)
            else:
                chunk = pending[0].chunk
                yield self._failed(chunk, np.arange(len(chunk)), error)
            return
        chunk = Chunk.of_several([own.chunk for own in pending])
        for own in found:
            yield self._rows(chunk, own.positions, own, 0.0)

    def _rows(self, chunk: Chunk, places: NDArray[np.int64], own: Answered, seconds: float) -> Rows:
        """Return the rows of answers about some objects of a chunk."""
        table = self.catalogue.rows(own.posteriors, _taken(chunk.carried, places), seconds)
        left = own.unfinished
        if left is None:
            return Rows(table, chunk.positions[places])
        order = {name: i for i, name in enumerate(own.posteriors.ids.tolist())}
        some = places[[order[name] for name in left.ids.tolist()]]
        unfinished = unfinished_rows(left, chunk.positions[some])
        return Rows(table, chunk.positions[places], unfinished)

    def _failed(self, chunk: Chunk, places: NDArray[np.int64], error: Exception) -> Rows:
        why = f"{type(error).__name__}: {error}"[:500]
        _LOG.warning("%s has no answer: %s", chunk.ids[places[0]], why)
        return self._refused(chunk, places, [why] * len(places), None)

    def _refused(
        self, chunk: Chunk, places: NDArray[np.int64], reasons: list[str], flag: Flag | None
    ) -> Rows:
        carried = _taken(chunk.carried, places)
        table = self.catalogue.refusals(chunk.ids[places], carried, reasons, flag)
        return Rows(table, chunk.positions[places])


def _halves(pending: Sequence[Pending]) -> list[list[Pending]]:
    """Return the two halves of what waits; of one object, that."""
    if len(pending) == 1 and len(pending[0]) > 1:
        one, rows = pending[0], np.arange(len(pending[0]))
        return [
            [replace(one, chunk=one.chunk.of(half), waiting=one.waiting.select(half))]
            for half in np.array_split(rows, 2)
        ]
    middle = len(pending) // 2
    return [list(part) for part in (pending[:middle], pending[middle:]) if part]


def _checked(rows: Rows) -> Rows:
    """Return rows, or raise where all of them failed for one reason: then it is not theirs.

    Where data themselves are bad, they may well be alike.
    """
    table = rows.table
    reasons, status, flags = (table[k].unique() for k in ("reason", "status", "flags"))
    alike = len(reasons) == 1 and status.to_pylist() == ["FAILED"]
    theirs = any(Flag.BAD_INPUT.name in text.split() for text in flags.to_pylist())
    if table.num_rows >= _ALL_OF and alike and not theirs:
        raise SurveyError(
            f"source must have objects that can be answered, but {table.num_rows} of "
            f"{table.num_rows} failed alike: {reasons[0].as_py()} What was answered is kept."
        )
    return rows


def _taken(
    carried: Mapping[str, pyarrow.Array], places: NDArray[np.int64]
) -> dict[str, pyarrow.Array]:
    return {name: values.take(places) for name, values in carried.items()}
