"""Clocks: what counts of days begin with, and how those of one become those of another."""

from __future__ import annotations

import re
from dataclasses import replace

from nbi_plus.data.tables.columns import Column
from nbi_plus.data.tables.surveys import key
from nbi_plus.data.units import factor

# the Julian date at which each is 0
ZERO = {"jd": 0.0, "mjd": 2400000.5, "bkjd": 2454833.0, "btjd": 2457000.0}
_CALLED = dict.fromkeys(("hjd", "bjd", "bjdtdb", "obsjd"), "jd") | dict.fromkeys(
    ("obsmjd", "mjdobs", "midpointmjdtai", "hmjd", "bmjd"), "mjd"
)
_SINCE = re.compile(r"[BH]?JD\s*-\s*([\d.]+)")  # a unit of Kepler and TESS: "BJD - 2457000, days"
_DATES = 1e6, 4e6  # Julian dates that people observe at


def with_clock(name: str, column: Column) -> Column:
    """Return times with the clock that they, their unit or their name say, if any.

    Examples
    --------
    >>> from nbi_plus.data.tables.columns import column
    >>> with_clock("HJD", column("HJD", [2450000.5])).clock
    'jd'
    """
    since = _SINCE.match(column.unit or "")
    if since is not None:
        clock = next((k for k, zero in ZERO.items() if zero == float(since[1])), None)
        return replace(column, unit="d", clock=clock)
    called = key(name)
    named = _CALLED.get(called, called if called in ZERO else None)
    return replace(column, clock=column.clock or named)


def on_clock(name: str, column: Column, wanted: str) -> Column:
    """Return times by another clock: constants are added, whatever their time scale."""
    if wanted not in ZERO:
        raise ValueError(
            f"time must be one of {list(ZERO)}, what times are to count from, but is {wanted!r}. "
            "Name the column of the times with t=."
        )
    if column.clock is None:
        raise ValueError(
            f"time={wanted!r} must be asked of times that say what they count from, but {name!r} "
            f"holds bare numbers. Call the column by one of {[*ZERO, *_CALLED]}, give a Time of "
            "astropy, or leave time= out to keep the numbers."
        )
    if column.clock not in ZERO:
        raise ValueError(
            f"time={wanted!r} must be asked of times in one of {list(ZERO)}, but {name!r} has the "
            f"format {column.clock!r}. Set its format before, as in table[{name!r}].format = "
            f"{wanted!r}."
        )
    unit = column.unit or "d"
    step = (ZERO[column.clock] - ZERO[wanted]) * factor("d", unit, "t")
    values = column.values + step if step else column.values
    return replace(column, values=values, unit=unit, clock=wanted)


def are_dates(first: float, last: float, clock: str) -> bool:
    """Say whether days by a clock that is known are days that people observe at."""
    start = ZERO.get(clock)
    return start is None or (_DATES[0] < first + start and last + start < _DATES[1])
