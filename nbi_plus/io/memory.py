"""Memory that was freed, and goes back to the system."""

from __future__ import annotations

import ctypes
from functools import cache


def give_back() -> None:
    """Return freed memory to the system, where the C library would keep it in pieces.

    glibc gives back what is freed at the end of its heap alone: chunk after chunk of a survey the
    heap is cut into smaller pieces, and grows. What other systems do is left to them.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> ctypes._CFuncPtr | None:
    """Return ``malloc_trim`` of glibc; None where there is none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return None
