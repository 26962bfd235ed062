"""Run: a survey from its source to its catalogue, chunk by chunk, resumed where it was left."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbi_plus.infer.ladder.waiting import MOST_BYTES
from nbi_plus.io.memory import give_back
from nbi_plus.progress import progress as shown
from nbi_plus.survey.answering import Answering, Pending, Rows, SurveyModel
from nbi_plus.survey.beside import Beside
from nbi_plus.survey.catalogue import Catalogue, Provenance, carried_fields
from nbi_plus.survey.chunks import Chunk, Reading, chunks
from nbi_plus.survey.parts import Parts, following
from nbi_plus.survey.sources import SurveySource
from nbi_plus.survey.summary import SurveySummary, SurveyTally
from nbi_plus.survey.unfinished import unfinished_beside, write_unfinished
from nbi_plus.survey.writing import check_columns, check_out, manifest_of, rows_of, write_catalogue

if TYPE_CHECKING:
    import pyarrow

_LOG = logging.getLogger("nbi_plus")
_LEAST, _MOST = 64, 4096  # objects of a chunk, where nobody says how many
_SHARE = 1 / 64  # of the machine's memory, for the draws of a chunk
_BYTES = 2048 * 8 * 16  # of the draws of one object, while they are weighed
_AHEAD = 2  # chunks of a worker that wait for it

Answered = tuple[Rows, int]  # and how far the source is read with them


@dataclass(frozen=True)
class SurveyRequest:
    """What a survey is to do.

    Attributes
    ----------
    out : Path
    reading : Reading
    settings : dict
        What the answers depend on besides engine and source, as JSON: a survey goes on only with
        the same.
    chunk_size : int or None
    client : object or None
        Of Dask: chunks are answered by its workers.
    resume, append : bool
    progress : bool or None
        See `nbi_plus.progress.progress`.
    beside : Beside
        Other estimators that are asked about the same objects.
    """

    out: Path
    reading: Reading
    settings: Mapping[str, object] = field(default_factory=dict)
    chunk_size: int | None = None
    client: Any = None
    resume: bool = True
    append: bool = False
    progress: bool | None = None
    beside: Beside = Beside()


def run_survey(
    model: SurveyModel, made_by: Provenance, source: SurveySource, request: SurveyRequest
) -> SurveySummary:
    """Return the summary of a survey, whose catalogue is then complete on disk.

    Parameters
    ----------
    model : SurveyModel
    made_by : Provenance
    source : SurveySource
    request : SurveyRequest
    """
    out = request.out
    check_out(out, made_by.n_draws)
    manifest = {"survey": _survey(made_by, request), "source": source.said}
    if not out.suffix or out.is_dir():
        return _into_parts(model, made_by, source, request, out, manifest, None)
    known = manifest_of(out) if out.exists() and request.resume else None
    if known is not None:
        wanted = following(known, manifest, out.name, append=request.append)
        if wanted == known:
            return counted(out, rows_of(out))
    folder = out.with_name(f"{out.name}.parts")
    return _into_parts(model, made_by, source, request, folder, manifest, known)


def _survey(made_by: Provenance, request: SurveyRequest) -> dict[str, object]:
    """Return what the answers depend on besides the source."""
    reading = request.reading
    return {
        "engine": made_by.engine, "version": made_by.version, "seed": made_by.seed,
        "columns": dict(reading.columns), "carry": list(reading.carry), **request.settings,
    } | ({"beside": request.beside.said} if request.beside.tellers else {})  # fmt: skip


def _into_parts(
    model: SurveyModel, made_by: Provenance, source: SurveySource, request: SurveyRequest,
    folder: Path, manifest: Mapping[str, object], known: dict[str, object] | None,
) -> SurveySummary:  # fmt: skip
    """Answer a source part by part, and join these where one file is wanted."""
    out, tally = request.out, SurveyTally()
    catalogue = Catalogue(made_by, carried(source, request))
    check_columns(out, catalogue.schema)
    parts = Parts.open(
        folder, manifest, known, append=request.append, anew=not request.resume
    )  # fmt: skip
    try:
        for table in parts.tables():
            tally.add(table, new=False)
        answer_all(Answering(model, catalogue, request.beside), source, parts, tally, request)
        parts.finish(in_order=folder == out)
        if folder == out:
            return tally.summary(out)
        if known is not None:
            for table in rows_of(out):
                tally.add(table, new=False)

        def tables() -> Iterator[pyarrow.Table]:
            return chain(rows_of(out) if known is not None else (), parts.tables())

        before = unfinished_beside(out) if known is not None else []
        write_unfinished(out, chain(before, parts.unfinished()))
        write_catalogue(out, tables, catalogue.schema, parts.manifest)
        parts.remove()
        return tally.summary(out)
    finally:
        parts.close()


def counted(out: Path, tables: Iterable[pyarrow.Table]) -> SurveySummary:
    """Return the summary of a catalogue that is complete."""
    tally = SurveyTally()
    for table in tables:
        tally.add(table, new=False)
    return tally.summary(out)


def carried(source: SurveySource, request: SurveyRequest) -> tuple[pyarrow.Field, ...]:
    """Return the columns that go through, and those of other estimators."""
    import pyarrow as pa

    reading = request.reading
    if source.sets is not None:
        own = [pa.field(name, pa.float64()) for name in reading.carry]
    else:
        reading.check_carried(source.schema.names)
        own = [source.schema.field(name) for name in reading.carry]
    return carried_fields(own) + request.beside.fields


def answer_all(
    answering: Answering, source: SurveySource, parts: Parts, tally: SurveyTally,
    request: SurveyRequest, wanted: NDArray[np.int64] | None = None,
) -> None:  # fmt: skip
    """Answer what is left of a source, or of some of its objects; what is answered is on disk."""
    size = request.chunk_size or _chunk_size()

    def done(positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        elsewhere = False if wanted is None else ~np.isin(positions, wanted)
        return parts.done(positions) | elsewhere

    found, client = chunks(source, request.reading, size, done), request.client
    begin = next(found, None)
    if begin is None:
        return
    found = map(tally.noted, chain((begin,), found))
    answered = _here(answering, found) if client is None else _by_dask(answering, found, client)
    how = {"unit": "objects" if source.sets is not None else "rows", "done": begin.start}
    with (
        shown("answering", source.n_rows, request.progress, **how) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        writing, at = writer.submit(int), begin.start
        for rows, end in answered:
            writing.result()  # one at a time: what cannot be written must end the survey
            writing = writer.submit(parts.write, rows.table, rows.positions, rows.unfinished)
            tally.add(rows.table, new=True)
            bar.step(end - at, f"{tally.n_objects} objects")
            at = end
            give_back()
            _LOG.info("%s: %d objects answered", parts.folder, tally.n_objects)
        writing.result()


def _chunk_size() -> int:
    """Return how many objects the memory of this machine bears at once."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = 2**33
    return int(np.clip(memory * _SHARE // _BYTES, _LEAST, _MOST))


# --- who answers ---------------------------------------------------------------------------------


@dataclass
class _Pool:
    """Objects of any chunks that wait until enough are there to climb together."""

    at_once: int
    waiting: list[Pending] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether there are enough, or more than the memory should hold."""
        n_bytes = sum(own.waiting.n_bytes for own in self.waiting)
        return sum(map(len, self.waiting)) >= self.at_once or n_bytes > MOST_BYTES

    def take(self) -> list[Pending]:
        """Return those that go first, about as many as climb together."""
        ends = np.cumsum([len(own) for own in self.waiting])
        n = int(np.searchsorted(ends, self.at_once)) + 1
        taken, self.waiting = self.waiting[:n], self.waiting[n:]
        return taken


def _here(answering: Answering, found: Iterator[Chunk]) -> Iterator[Answered]:
    """Yield the rows of chunks that this process answers, while the next one is read.

    What the first rung settles comes at once; who climbs waits for the company of other chunks.
    With all comes how far the source is read.
    """
    pool, end = _Pool(answering.model.at_once), 0
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, found, None)
        while (chunk := coming.result()) is not None:
            coming = reader.submit(next, found, None)
            end = chunk.end
            rows, pending = answering.begin(chunk)
            if rows is not None:
                yield rows, end
            pool.waiting += pending
            while pool.is_full:
                yield answering.climb(pool.take()), end
    while pool.waiting:
        yield answering.climb(pool.take()), end


def _by_dask(
    answering: Answering,
    found: Iterator[Chunk],
    client: Any,  # noqa: ANN401 - of dask
) -> Iterator[Answered]:
    """Yield the rows of chunks that workers answer; they get the model once each."""
    sent = client.scatter(answering, broadcast=True)
    most = _AHEAD * max(len(client.scheduler_info()["workers"]), 1)
    waiting: deque[tuple[Any, int]] = deque()
    for chunk in found:
        # a worker that is lost loses its chunk to another one
        coming = client.submit(Answering.__call__, sent, chunk, pure=False, retries=3)
        waiting.append((coming, chunk.end))
        if len(waiting) >= most:
            yield _result(*waiting.popleft())
    while waiting:
        yield _result(*waiting.popleft())


def _result(coming: Any, end: int) -> Answered:  # noqa: ANN401 - of dask
    return coming.result(), end
