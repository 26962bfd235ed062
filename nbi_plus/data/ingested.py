"""Ingested: what was done to data on their way in, act by act."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nbi_plus.data.tables.tables import astropy_table

if TYPE_CHECKING:
    from astropy.table import QTable


class Act(NamedTuple):
    """One act: what it is called, how many it concerned, of what, and what to know of it."""

    act: str
    n: int
    of: str
    note: str = ""


@dataclass(frozen=True)
class Ingest:
    """What was done to data on their way in: a table of one line an act, which prints.

    Attributes
    ----------
    acts : tuple of Act
        In the order in which they were done.

    Examples
    --------
    >>> done = Ingest((Act("duplicates", 2, "points", "merged"),))
    >>> done["duplicates"], done["limits"]
    (2, 0)
    """

    acts: tuple[Act, ...] = ()

    def __len__(self) -> int:
        return len(self.acts)

    def __iter__(self) -> Iterator[Act]:
        return iter(self.acts)

    def __getitem__(self, act: str) -> int:
        return sum(one.n for one in self.acts if one.act == act)

    def __str__(self) -> str:
        rows = [("act", "n", "of", "note"), *((a.act, str(a.n), a.of, a.note) for a in self.acts)]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            f"{act:<{wide[0]}}  {n:>{wide[1]}}  {of:<{wide[2]}}  {note}".rstrip()
            for act, n, of, note in rows
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__

    def to_table(self) -> QTable:
        """Return the acts as an astropy table with columns ``act``, ``n``, ``of`` and ``note``."""
        columns = zip(*self.acts, strict=True) if self.acts else ((), (), (), ())
        return astropy_table(dict(zip(Act._fields, map(list, columns), strict=True)))


def together(parts: Iterable[Ingest]) -> Ingest:
    """Return the acts of several data sets as those of one; of equal acts the numbers add up.

    Parts of one data set, which have the acts of the whole, count once.
    """
    counts: dict[tuple[str, str, str], int] = {}
    different = {id(part): part for part in parts}
    for act in (act for part in different.values() for act in part):
        key = act.act, act.of, act.note
        counts[key] = counts.get(key, 0) + act.n
    return Ingest(tuple(Act(act, n, of, note) for (act, of, note), n in counts.items()))
