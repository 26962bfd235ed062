"""Progress: what long work says of itself, by bars where somebody looks and by lines elsewhere.

On a terminal and in a notebook it is a bar. Elsewhere (``nohup``, a batch system, CI) it is a line
on stderr, at most every five seconds, and one at least every thirty, with the time that is left.
Work inside other work has no bar of its own: what it says stands behind that of the outer.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from tqdm import tqdm

_BAR = 2.0  # seconds after which a bar appears that nobody asked for
_EVERY, _SILENT = 5.0, 25.0  # seconds between lines: at least, and at most where nothing happens


class Work:
    """Long work that nobody hears of."""

    def step(self, n: int = 1, note: str = "") -> None:
        """Note that n more are done."""

    def say(self, note: str) -> None:
        """Note what is being done."""

    def close(self, finished: bool) -> None:
        """Say no more."""


@contextmanager
def progress(
    what: str, total: int | None = None, show: bool | None = None, *, unit: str = "",
    done: int = 0,
) -> Iterator[Work]:  # fmt: skip
    """Yield work that tells how far it is.

    Parameters
    ----------
    what : str
        What is done, as in "training".
    total : int, optional
        How many steps it has, where that is known.
    show : bool, optional
        True always tells, False never, nor does work inside. Default: a bar on terminals and in
        notebooks after two seconds, elsewhere lines after five.
    unit : str
        What a step is, as in "epochs".
    done : int
        Steps that are done already.
    """
    outer = _OUTER.get()
    if show is False:
        work = Work()
    elif outer is not None and not (show and type(outer) is Work):
        work = _Inner(outer, what, total, done)
    elif (bar := _bar_class()) is not None:
        options = {"unit": f" {unit}" if unit else "it", "delay": 0.0 if show else _BAR}
        work = _Bar(bar(total=total, desc=what, initial=done, **options))
    else:
        work = _Lines(what, total, unit, done, at_once=bool(show))
    token = _OUTER.set(work)
    finished = False
    try:
        yield work
        finished = True
    finally:
        _OUTER.reset(token)
        work.close(finished)


def step(n: int = 1, note: str = "") -> None:
    """Note that n more steps are done of the work that is going on here, if any."""
    (_OUTER.get() or Work()).step(n, note)


def say(note: str) -> None:
    """Note what the work that is going on here is doing, if any."""
    (_OUTER.get() or Work()).say(note)


_OUTER: ContextVar[Work | None] = ContextVar("nbi_plus.progress", default=None)


def _bar_class() -> Any:  # noqa: ANN401 - of tqdm, which has several
    """Return what draws bars here; None where nobody looks."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        return tqdm if _is_terminal(sys.stderr) else None
    if find_spec("ipywidgets") is None:
        return tqdm
    from tqdm.notebook import tqdm as widget

    return widget


def _is_terminal(stream: Any) -> bool:  # noqa: ANN401 - whatever stands for stderr
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return False


class _Bar(Work):
    """A bar of tqdm."""

    def __init__(self, bar: Any) -> None:  # noqa: ANN401
        self._bar = bar

    def step(self, n: int = 1, note: str = "") -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(n)

    def say(self, note: str) -> None:
        self._bar.set_postfix_str(note)

    def close(self, finished: bool) -> None:  # noqa: ARG002
        self._bar.close()


class _Inner(Work):
    """Work inside other work, which tells of it."""

    def __init__(self, outer: Work, what: str, total: int | None, done: int) -> None:
        self._outer, self._what, self._total, self._done = outer, what, total, done

    def step(self, n: int = 1, note: str = "") -> None:
        self._done += n
        self.say(note)

    def say(self, note: str) -> None:
        share = "" if self._total is None else f" {self._done} of {self._total}"
        self._outer.say(f"{self._what}{share}{note and ', '}{note}")


class _Lines(Work):
    """Lines on stderr; a thread of its own speaks where the work says nothing for long."""

    def __init__(
        self, what: str, total: int | None, unit: str, done: int, *, at_once: bool
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._first = done
        self._note, self._news, self._told = "", False, False
        self._began = self._last = time.perf_counter()
        self._lock, self._over = threading.RLock(), threading.Event()
        if at_once:
            self._tell()
        self._thread = threading.Thread(target=self._watch, name="nbi_plus.progress", daemon=True)
        self._thread.start()

    def step(self, n: int = 1, note: str = "") -> None:
        with self._lock:
            self._done += n
            self.say(note)

    def say(self, note: str) -> None:
        with self._lock:
            self._note, self._news = note, True
            if time.perf_counter() - self._last >= _EVERY:
                self._tell()

    def close(self, finished: bool) -> None:
        self._over.set()
        self._thread.join()
        if finished and self._told:
            self._tell()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY / 2):
            with self._lock:
                silent = time.perf_counter() - self._last
                if silent >= (_EVERY if self._news else _SILENT):
                    self._tell()

    def _tell(self) -> None:
        """Write one line, if there is still somebody to write to."""
        self._news, self._told, self._last = False, True, time.perf_counter()
        try:
            sys.stderr.write(f"{self._line()}\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # closed, or none: no reason to end the work
            self._over.set()

    def _line(self) -> str:
        spent, steps = self._last - self._began, self._done - self._first
        unit = f" {self._unit}" if self._unit else ""
        counted = f"{self._done}{unit}"
        parts = [duration(spent)]
        if self._total is not None:
            counted = f"{self._done} of {self._total}{unit}"
            left = self._total - self._done
            if steps > 0 and left > 0:
                parts.append(f"about {duration(spent * left / steps)} left")
        elif steps > 0 and spent > 0:
            parts.append(f"{steps / spent:.3g} a second")
        return f"{self._what}: {', '.join([counted, *parts])}{self._note and '; '}{self._note}"


def duration(seconds: float) -> str:
    """Return a time in words.

    Examples
    --------
    >>> duration(5.2), duration(75), duration(7260)
    ('5 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
