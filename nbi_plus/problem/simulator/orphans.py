"""Orphans: a process ends when the one that started it does, whatever it is doing."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_WATCH_SECONDS = 1.0


def end_with(parent: int) -> None:
    """End this process with its parent: by the kernel on Linux, elsewhere by a thread that looks.

    On Windows nothing tells; there a process finds out when it next writes to its parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    elif sys.platform != "win32":
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if sys.platform != "win32" and os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)
