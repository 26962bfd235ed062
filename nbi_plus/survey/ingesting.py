"""Ingesting: what a survey hands out in its own schema, as a source that is read piece by piece."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nbi_plus.data.ingested import Act, Ingest
from nbi_plus.data.observations import Observations
from nbi_plus.data.surveys.kinds import check_kind
from nbi_plus.data.surveys.packets import PACKET_FILES, UNREAD
from nbi_plus.data.surveys.points import SurveyWishes
from nbi_plus.data.tables.table_files import found_files, suffix_of
from nbi_plus.survey.manifest import SurveyError
from nbi_plus.survey.sources import SurveySource, Unread, open_source, said_of_files

_ALERTS = ("ztf-alert", "rubin-alert", "elasticc")
_FILES, _ROWS = 4096, 4096  # of packets, that are read at once
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.{3}")  # or what stands for several
Part = Callable[[list[int]], object]
_BAD_FILES = (ValueError, TypeError, KeyError, OSError, ArithmeticError)


def open_survey(
    source: object, kind: str | None, options: Mapping[str, Any] | None
) -> SurveySource:
    """Return what a survey reads, through `Observations.from_survey` where a kind is given.

    Parameters
    ----------
    source : object
        As for `nbi_plus.survey.sources.open_source`, or for `from_survey`.
    kind : str or None
    options : mapping or None
        Of `from_survey`.
    """
    chosen = dict(options or {})
    if kind is None:
        if chosen:
            raise ValueError(
                f"ingest must come with kind=, but names {list(chosen)} without one. Give kind=, "
                "or columns= for other tables."
            )
        return open_source(source)

    wishes = {k: v for k, v in chosen.items() if k in SurveyWishes._fields}
    check_kind(kind, {k: v for k, v in chosen.items() if k not in wishes})
    SurveyWishes(**wishes).checked()

    def read(some: object) -> Observations:
        return Observations.from_survey(kind, some, **chosen)

    told = {"survey": kind, "ingest": repr(sorted(chosen.items()))}
    paths = _paths(source) if kind in _ALERTS else None
    if paths is None:
        opened = open_source(read(source))
        return replace(opened, said=opened.said | told)
    return SurveySource(said_of_files(paths) | told, sets=lambda: _sets(paths, read))


def _paths(source: object) -> list[Path] | None:
    """Return the files of packets that a source names; None where it is in memory."""
    given = [source] if isinstance(source, (str, Path)) else source
    listed = isinstance(given, (list, tuple)) and all(isinstance(p, (str, Path)) for p in given)
    if not (listed and given):
        return None
    return [path for one in given for path in found_files("source", one, PACKET_FILES)]


def _sets(
    paths: Sequence[Path], read: Callable[[object], Observations]
) -> Iterator[Observations | Unread]:
    """Yield the objects of files; refuse a source of whose first piece nothing can be read."""
    some_read = False
    for names, piece in _pieces(paths):
        found = list(_read(names, piece, read))
        some_read |= any(isinstance(one, Observations) for one in found)
        if not some_read:
            raise SurveyError(
                f"source must have alerts that can be read, but of its first {len(names)} none "
                f"can: {found[0].reason}"
            )
        yield from found


def _pieces(paths: Sequence[Path]) -> Iterator[tuple[list[str], Part]]:
    """Yield the names of some files, or of rows of one, and a function that takes some of them."""
    plain = [path for path in paths if suffix_of(path) != ".parquet"]
    for start in range(0, len(plain), _FILES):
        group = plain[start : start + _FILES]
        yield [path.name for path in group], lambda some, group=group: [group[i] for i in some]
    for path in (path for path in paths if suffix_of(path) == ".parquet"):
        file, first = open_source(path), 0
        wanted = [name for name in file.schema.names if not name.startswith(UNREAD)]
        for piece in file.pieces(wanted):
            for start in range(0, piece.table.num_rows, _ROWS):
                rows = piece.table.slice(start, _ROWS)
                names = [f"{path.name}:{first + start + i}" for i in range(rows.num_rows)]
                yield names, lambda some, rows=rows: rows.take(some)
            first += piece.table.num_rows


def _read(
    names: list[str], part: Part, read: Callable[[object], Observations]
) -> Iterator[Observations | Unread]:
    """Yield what can be read, together, and why the rest cannot: found in halves of halves."""
    todo, refused = [list(range(len(names)))], {}
    while todo:
        some = todo.pop()
        try:
            found = read(part(some))
        except _BAD_FILES as error:
            middle = len(some) // 2
            todo += [some[:middle], some[middle:]] if middle else []
            if not middle:
                refused[some[0]] = f"{type(error).__name__}: {error}"[:500]
        else:
            if len(some) == len(names):
                yield found
    good = [i for i in range(len(names)) if i not in refused]
    if refused and good:
        yield read(part(good))
    for i, reason in sorted(refused.items()):
        yield Unread(np.array([names[i]]), reason)


def summed(parts: Iterable[Ingest]) -> Ingest:
    """Return what was done to many pieces as one table; numbers in which notes differ are left out.

    Examples
    --------
    >>> print(summed([Ingest((Act("kept", n, "points", f"of {n} objects"),)) for n in (2, 3)]))
    act   n  of      note
    -------------------------------
    kept  5  points  of ... objects
    """
    counts: dict[tuple[str, str, str], int] = {}
    notes: dict[tuple[str, str, str], list[str]] = {}
    for act in (act for part in parts for act in part):
        key = act.act, act.of, _NUMBER.sub("#", act.note)
        counts[key] = counts.get(key, 0) + act.n
        told = _NUMBER.findall(act.note)
        known = notes.setdefault(key, told)
        notes[key] = [a if a == b else "..." for a, b in zip(known, told, strict=True)]
    acts = []
    for (act, of, note), n in counts.items():
        numbers = iter(notes[act, of, note])
        acts.append(Act(act, n, of, re.sub("#", lambda _, own=numbers: next(own), note)))
    return Ingest(tuple(acts))
