"""Retrying: objects of a finished catalogue that nothing certified, once more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbi_plus.survey.answering import Answering, SurveyModel
from nbi_plus.survey.catalogue import Catalogue, Provenance
from nbi_plus.survey.manifest import SurveyError, read_manifest
from nbi_plus.survey.parts import Parts, Replacing
from nbi_plus.survey.run import SurveyRequest, answer_all, carried, counted
from nbi_plus.survey.sources import SurveySource
from nbi_plus.survey.summary import SurveySummary, SurveyTally
from nbi_plus.survey.unfinished import unfinished_beside, write_unfinished
from nbi_plus.survey.writing import manifest_of, rows_of, write_catalogue

if TYPE_CHECKING:
    import pyarrow

    from nbi_plus.data.tables.surveys import Names


@dataclass(frozen=True)
class Known:
    """What a finished catalogue says of one of its nights.

    Attributes
    ----------
    out : Path
    source : SurveySource
        Of the night.
    manifest : dict
    night : int
    unfinished : pyarrow.Table or None
        What is kept of its objects that nothing certified; None where there are none.
    others : pyarrow.Table or None
        The same of other nights.
    """

    out: Path
    source: SurveySource
    manifest: dict[str, object]
    night: int
    unfinished: pyarrow.Table | None
    others: pyarrow.Table | None

    @classmethod
    def of(cls, out: Path, source: SurveySource) -> Known:
        """Return what is known, or refuse what is no finished catalogue of the source."""
        import pyarrow as pa
        import pyarrow.compute as pc

        manifest = _manifest(out)
        nights = [i for i, one in enumerate(manifest["nights"]) if one["source"] == source.said]
        if not nights or not manifest["nights"][nights[-1]]["finished"]:
            raise SurveyError(
                f"{out.name} must be a finished catalogue of this source, but is none. Give the "
                "source that was surveyed, or finish that survey first."
            )
        tables = list(_unfinished(out))
        if not tables:
            return cls(out, source, manifest, nights[-1], None, None)
        every = pa.concat_tables(tables)
        own = pc.equal(every["night"], nights[-1])
        others = every.filter(pc.invert(own))
        return cls(out, source, manifest, nights[-1], every.filter(own), others)

    @property
    def survey(self) -> dict[str, object]:
        """What the answers depended on."""
        return self.manifest["survey"]

    @property
    def columns(self) -> dict[str, Names]:
        """Which columns of the source are what."""
        named = self.survey["columns"].items()
        return {role: tuple(own) if isinstance(own, list) else own for role, own in named}

    @property
    def first(self) -> int:
        """The row of the catalogue that its first object has."""
        return sum(night["objects"] for night in self.manifest["nights"][: self.night])


def run_retry(
    model: SurveyModel, made_by: Provenance, known: Known, request: SurveyRequest
) -> SurveySummary:
    """Return the summary of a catalogue whose unfinished rows are replaced.

    Parameters
    ----------
    model : SurveyModel
    made_by : Provenance
    known : Known
    request : SurveyRequest
    """
    began, out = time.perf_counter(), known.out
    if known.unfinished is None or not known.unfinished.num_rows:
        return counted(out, _rows(out))
    folder = out.with_name(f"{out.name}.retry")
    manifest = {"survey": dict(known.survey) | request.settings, "source": known.source.said}
    parts = Parts.open(folder, manifest, append=False, anew=not request.resume)
    try:
        catalogue = Catalogue(made_by, carried(known.source, request))
        wanted = known.unfinished["position"].to_numpy()
        answering, tally = Answering(model, catalogue, request.beside), SurveyTally()
        answer_all(answering, known.source, parts, tally, request, wanted)
        _put(known, parts, catalogue.schema)
        parts.remove()
    finally:
        parts.close()
    summary = counted(out, _rows(out))
    return replace(summary, n_new=tally.n_new, seconds=time.perf_counter() - began)


def _put(known: Known, parts: Parts, schema: pyarrow.Schema) -> None:
    """Put new rows into a catalogue, then what is still unfinished beside it."""
    import pyarrow as pa

    rows = Replacing(pa.concat_tables(parts.tables()), parts.positions)
    left = [known.others, *(_of_night(table, known.night) for table in parts.unfinished())]
    if known.out.is_dir():
        with closing(Parts.held(known.out)) as held:
            held.replace(known.night, rows)
            held.replace_unfinished(pa.concat_tables(left))
        return

    def tables() -> Iterator[pyarrow.Table]:
        first = -known.first
        for table in rows_of(known.out):
            positions = np.arange(first, first + table.num_rows)
            first += table.num_rows
            yield rows(table, positions)

    write_catalogue(known.out, tables, schema, known.manifest)
    write_unfinished(known.out, (table for table in left if table.num_rows))


def _of_night(table: pyarrow.Table, night: int) -> pyarrow.Table:
    place = table.schema.get_field_index("night")
    return table.set_column(place, "night", [np.full(table.num_rows, night)])


def _rows(out: Path) -> Iterator[pyarrow.Table]:
    """Yield the rows of a catalogue."""
    if not out.is_dir():
        yield from rows_of(out)
        return
    with closing(Parts.held(out)) as held:
        yield from held.tables()


def _unfinished(out: Path) -> Iterator[pyarrow.Table]:
    """Yield what unfinished objects of a catalogue need."""
    if not out.is_dir():
        yield from unfinished_beside(out)
        return
    with closing(Parts.held(out)) as held:
        yield from held.unfinished()


def _manifest(out: Path) -> dict[str, object]:
    """Return what a catalogue was made of."""
    found = read_manifest(out) if out.is_dir() else manifest_of(out) if out.exists() else None
    if found is None:
        raise SurveyError(f"{out} must be a catalogue of a survey, but is none. Predict it first.")
    return found
