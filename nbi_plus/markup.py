"""Markup: tables of HTML for notebooks and reports, in which whatever people named is text."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_LARGE, _SMALL = 1e7, 1e-4  # beyond these numbers have exponents
_STYLE = "text-align:left;font-variant-numeric:tabular-nums;padding:.2em .8em .2em 0"


class Html(str):
    """Text that is HTML already, and is put in as it is."""

    __slots__ = ()


class Shown(ABC):
    """What a notebook shows as a table."""

    @abstractmethod
    def _repr_html_(self) -> str:
        """Return what it is, in HTML."""

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


def table(
    headings: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "",
    *, styled: bool = True, name: str = "",
) -> Html:  # fmt: skip
    """Return a table; the first cell of each row names it.

    Parameters
    ----------
    headings : sequence
        Without any, there is no row of them.
    rows : iterable of sequences
        `Html` stands as it is, floats have three digits, all else is text.
    caption : str
    styled : bool
        Whether each cell says how it looks, for want of a page that does.
    name : str
        Of the table in the page.
    """
    look = f' style="{_STYLE}"' if styled else ""
    own = f' id="{escape(name)}"' if name else ""
    above = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    names = "".join(f'<th scope="col"{look}>{cell(h)}</th>' for h in headings)
    head = f"<thead><tr>{names}</tr></thead>\n" if names else ""
    body = "".join(f"<tr>{_row(row, look)}</tr>\n" for row in rows)
    return Html(f"<table{own}>{above}{head}<tbody>\n{body}</tbody></table>\n")


def facts(told: Mapping[str, object], caption: str = "", *, styled: bool = True) -> Html:
    """Return a table of names and what they are; what is None is left out."""
    known = (pair for pair in told.items() if pair[1] is not None)
    return table((), known, caption, styled=styled)


def cell(value: object) -> Html:
    """Return what stands in a cell."""
    if isinstance(value, Html):
        return value
    return Html(escape(number(value) if isinstance(value, float) else str(value)))


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits.

    Examples
    --------
    >>> [number(v) for v in (0.012345, 1.5, 123456.7, 3.2e-9, float("nan"))]
    ['0.0123', '1.50', '123457', '3.20e-09', 'nan']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not _SMALL <= abs(value) < _LARGE:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def beside(value: float, spread: float, digits: int = 3) -> str:
    """Return a number to the digits that its spread has with three significant ones.

    Examples
    --------
    >>> beside(2458123.123456, 0.01234), beside(1.5, 0.0), beside(0.1234, 250.0)
    ('2458123.1235', '1.50', '0')
    """
    if not (math.isfinite(value) and math.isfinite(spread) and spread > 0):
        return number(value, digits)
    places = digits - 1 - math.floor(math.log10(spread))
    if places > 15 or abs(value) >= 1e15:
        return f"{value:.{min(max(digits + places, 1), 16)}g}"
    return f"{value:.{max(places, 0)}f}"


def _row(row: Sequence[object], look: str) -> str:
    name, *others = row
    own = f'<th scope="row"{look}>{cell(name)}</th>'
    return own + "".join(f"<td{look}>{cell(value)}</td>" for value in others)
