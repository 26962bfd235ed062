"""The door of user code: whatever it raises or changes, the process that calls it goes on.

Calls run in the caller's process, so what ends a process ends the caller: see `workers` for that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")

_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
_HAS_ALARM = hasattr(signal, "setitimer")
_LONGEST = 500  # characters of an error


class UserCodeError(Exception):
    """User code raised what is no `Exception`; that is its cause."""


class LateError(UserCodeError):
    """User code took too long."""


class _Alarm(BaseException):
    """The time is over: no `Exception`, so that an ``except Exception`` does not swallow it."""


class Guard:
    """A context in which user code is called.

    `call` raises nothing but an `Exception`, unless a handler of signals that was there before
    raised it: a `KeyboardInterrupt` of Ctrl-C passes, also where user code swallowed it, and one
    that user code raises itself does not. After each call numpy's error state, the working
    directory, the recursion limit and torch's default precision, device, gradients and threads are
    as they were; handlers of signals and timers are when the context ends.

    Signals and timers are those of the main thread of a process; elsewhere a limit of time is
    ignored, as it is on Windows. A call that stays inside compiled code is interrupted when it
    returns from it.

    Parameters
    ----------
    on_call : callable, optional
        Told the limit of each call that has one, before it.
    """

    def __init__(self, on_call: Callable[[float], None] | None = None) -> None:
        self._on_call = on_call

    def __enter__(self) -> Guard:
        self._found = _state()
        self._raised: list[BaseException] = []
        self._inside, self._closing = False, False
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._timer = signal.getitimer(signal.ITIMER_REAL) if _HAS_ALARM else (0.0, 0.0)
            self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            for number, handler in self._handlers.items():
                if callable(handler):
                    signal.signal(number, self._heard(handler))
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._closing = True  # from here on what a handler raises waits until all is put back
        if self._in_main:
            if _HAS_ALARM and (self._timer[0] or signal.getitimer(signal.ITIMER_REAL)[0]):
                signal.setitimer(signal.ITIMER_REAL, *self._timer)
            for number in reversed(_SIGNALS):  # Ctrl-C last
                handler = self._handlers[number]
                if handler is not None and handler is not signal.getsignal(number):
                    signal.signal(number, handler)
        for one in self._raised:
            if one is not error:
                raise one

    def call(self, f: Callable[[], T], seconds: float | None = None) -> T:
        """Return ``f()``, or raise what it raised as an `Exception`.

        Raises
        ------
        LateError
            When it takes longer than ``seconds``.
        UserCodeError
            When it raises what is no `Exception`.
        """
        if self._on_call is not None and seconds is not None:
            self._on_call(seconds)
        limited = seconds is not None and self._in_main and _HAS_ALARM
        before = signal.signal(signal.SIGALRM, self._heard(_ring)) if limited else None
        try:
            try:
                self._inside = True
                if limited:  # again and again: the first alarm may be swallowed
                    signal.setitimer(signal.ITIMER_REAL, seconds, max(seconds, 1.0))
                answer = f()
            finally:
                self._come_out(limited, before)
        except BaseException as error:
            if self._inside:  # a signal came at the very end
                self._come_out(limited, before)
            self._settle()
            if isinstance(error, Exception):
                raise
            raise UserCodeError(_text(error)) from error
        self._settle()
        return answer

    def _come_out(self, limited: bool, before: Any) -> None:  # noqa: ANN401  a handler
        self._inside = False  # first: from here on a late alarm does nothing
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
        _put_back(self._found)

    def _settle(self) -> None:
        """Raise what a handler raised during the call, if any did."""
        raised, self._raised = self._raised, []
        outside = next((one for one in raised if not isinstance(one, _Alarm)), None)
        if outside is not None:
            raise outside
        if raised:
            raise LateError

    def _heard(self, handler: Callable[..., Any]) -> Callable[[int, FrameType | None], Any]:
        """Return a handler of signals that notes what it raises."""

        def hear(number: int, frame: FrameType | None) -> Any:  # noqa: ANN401
            if handler is _ring and not self._inside:
                return None
            try:
                return handler(number, frame)
            except BaseException as error:
                self._raised.append(error)
                if self._closing:
                    return None
                raise

        return hear


def guarded(
    f: Callable[[], T],
    seconds: float | None = None,
    on_call: Callable[[float], None] | None = None,
) -> T:
    """Return ``f()`` of user code, called once in a `Guard`."""
    with Guard(on_call) as guard:
        return guard.call(f, seconds)


def described(error: BaseException, seconds: float | None = None) -> str:
    """Return an error of user code as one line, as in ``ValueError('t0 < 0')``."""
    if isinstance(error, LateError):
        return f"TimeoutError('took longer than {seconds:g} s a row')"
    if isinstance(error, UserCodeError):
        return str(error)
    return _text(error)


def _text(error: BaseException) -> str:
    try:
        return repr(error)[:_LONGEST]
    except BaseException:  # noqa: BLE001  a repr is user code, too
        return type(error).__name__


def _ring(*_: object) -> None:
    raise _Alarm


def _state() -> tuple[Any, ...]:
    """Return what user code may change for the whole process."""
    made = torch.empty(0)
    try:
        folder = os.getcwd()
    except OSError:  # it was deleted
        folder = None
    return (
        np.geterr(), made.dtype, made.device, torch.is_grad_enabled(), torch.get_num_threads(),
        sys.getrecursionlimit(), folder,
    )  # fmt: skip


def _put_back(found: tuple[Any, ...]) -> None:
    """Put back what differs from what was found."""
    if found == _state():
        return
    errors, dtype, device, gradients, threads, depth, folder = found
    np.seterr(**errors)
    torch.set_default_dtype(dtype)
    torch.set_default_device(None if device.type == "cpu" else device)
    torch.set_grad_enabled(gradients)
    torch.set_num_threads(threads)
    sys.setrecursionlimit(depth)
    if folder is not None:
        with contextlib.suppress(OSError):  # it may be gone by now
            os.chdir(folder)
