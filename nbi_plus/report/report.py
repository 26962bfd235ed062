"""Report: a catalogue on one page, for whoever has to believe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nbi_plus.arguments import new_file, path_of
from nbi_plus.io.placing import place, temporary_beside
from nbi_plus.report import sections
from nbi_plus.report.page import page
from nbi_plus.report.rows import Population
from nbi_plus.report.source import SeenAgain, curves_of, seen_again
from nbi_plus.survey.chunks import Reading
from nbi_plus.survey.ingesting import open_survey
from nbi_plus.survey.summary import SurveySummary
from nbi_plus.trust.calibration import Calibration


@dataclass(frozen=True)
class Report:
    """A page, and what it counts.

    Attributes
    ----------
    page : Path
    n_bytes : int
    summary : SurveySummary
    """

    page: Path
    n_bytes: int
    summary: SurveySummary


def write_report(
    catalogue: str | Path, out: str | Path, *, source: object = None,
    columns: Mapping[str, Any] | None = None, kind: str | None = None,
    ingest: Mapping[str, Any] | None = None, calibration: str | Path | Calibration | None = None,
    engine: Any = None,  # noqa: ANN401 - an Engine
) -> Report:  # fmt: skip
    """Write one page of HTML about a catalogue.

    Parameters
    ----------
    catalogue : path
        What `predict_survey` wrote: ``.parquet``, ``.h5``, ``.fits``, or a folder.
    out : path
        The page: below 5 MB, whatever the catalogue; it asks the network for nothing.
    source : object, optional
        What was surveyed, as for `predict_survey`: for S/N, and the light curves of a few objects.
    columns : mapping of role to column, optional
        Of the source. Default: as they were read for the catalogue.
    kind, ingest : str and mapping, optional
        Of the source, as for `predict_survey`.
    calibration : path or Calibration, optional
    engine : Engine, optional
        Fitted or not: its simulator draws the band of the models behind the draws that were kept.

    Returns
    -------
    Report
    """
    found, path = path_of("catalogue", catalogue), new_file("out", out)
    if not found.exists():
        raise FileNotFoundError(f"catalogue must exist, but there is no file {found}.")
    if isinstance(calibration, (str, Path)):
        calibration = Calibration.load(calibration)
    population = Population.read(found)
    rows = population.rows(sections.pictured(population), draws=True)
    seen = None
    if source is not None:
        asked = population.manifest.get("survey", {}).get("columns", {})
        wanted = {str(row["id"]) for row in rows.values()}
        reading = Reading(dict(asked if columns is None else columns))
        seen = seen_again(open_survey(source, kind, ingest), reading, wanted)
        population = _with_snr(population, seen)
    curves = None if engine is None else curves_of(engine)
    parts = [
        sections.overview(population),
        sections.verdicts(population),
        sections.data(population),
        sections.costs(population),
        sections.calibrated(calibration),
        *sections.examples(population, rows, seen, curves),
        sections.objects(population),
    ]
    size = _write(path, page(f"Report on {found.name}", parts))
    return Report(path, size, population.summary)


def _with_snr(population: Population, seen: SeenAgain) -> Population:
    """Return the population with the S/N of its objects, as their data have it."""
    own = [
        np.array([seen.snr.get(name, np.nan) for name in ids.tolist()], np.float32)
        for ids in population.ids()
    ]
    return population.with_numbers(snr=np.concatenate(own)) if own else population


def _write(path: Path, text: str) -> int:
    """Write a page at once, and return how many bytes it has."""
    data = text.encode()
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(data)
