"""Disks that are full or broken, files that rot, and processes that are killed, on purpose."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import subprocess
import time
import traceback
from contextlib import contextmanager

import numpy as np
import torch

CALLS = ("pwrite", "fsync", "ftruncate", "posix_fallocate")  # what can meet a full or broken disk
FULL, BROKEN = "must have room on its disk", "must lie on a sound disk"
FAULTS = {errno.ENOSPC: FULL, errno.EFBIG: FULL, errno.EDQUOT: FULL, errno.EIO: BROKEN}


@contextmanager
def calls_watched(on_call, names=CALLS):
    """Let ``on_call(k, name, call, *args)`` stand for the k-th of these system calls, from 0."""
    real, count = {name: getattr(os, name) for name in names}, [0]

    def watched(name):
        def call(*args):
            count[0] += 1
            return on_call(count[0] - 1, name, real[name], *args)

        return call

    for name in names:
        setattr(os, name, watched(name))
    try:
        yield count
    finally:
        for name in names:
            setattr(os, name, real[name])


def counted(act):
    """Return how many of the watched calls an act makes."""
    with calls_watched(lambda k, name, call, *args: call(*args)) as count:
        act()
    return count[0]


@contextmanager
def failing_from(k, code):
    """Let the k-th watched call and all later ones fail; a write does half of its work first."""

    def on_call(i, name, call, *args):
        if i < k:
            return call(*args)
        if i == k and name == "pwrite":
            handle, data, offset = args
            if len(data) > 1:
                call(handle, data[: len(data) // 2], offset)
        raise OSError(code, os.strerror(code))

    with calls_watched(on_call) as count:
        yield count


@contextmanager
def small_disk(folder, n_bytes, *, pretended=False):
    """Give a folder on a disk of so many bytes; where none can be mounted, a pretended one."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    if not pretended and subprocess.run(command, check=False, capture_output=True).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return

    def on_call(k, name, call, *args):
        used = sum(512 * item.stat().st_blocks for item in folder.iterdir())
        if name == "posix_fallocate" and used + args[2] > n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*args)

    with calls_watched(on_call):
        yield folder


def import_all():
    """Import what a first fit does, so that processes which are forked need not, each for itself.

    They may use one thread: none that was started before is theirs.
    """
    torch.set_num_threads(1)
    importlib.import_module("torch.fx.experimental.symbolic_shapes")


def in_child(act):
    """Run an act in a forked process; return its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        act()
        status = 0
    except BaseException:  # noqa: BLE001 - its traceback is all that a forked process leaves
        traceback.print_exc()
    finally:
        os._exit(status)


def killed(act, rng, n_calls, seconds):
    """Run an act in a process that is killed: at a random call, in the midst of it, or moment."""
    at_call = rng.integers(n_calls) if rng.integers(2) else None
    when, share = rng.uniform(0, seconds), rng.uniform()

    def on_call(k, name, call, *args):
        if k != at_call:
            return call(*args)
        if name == "pwrite" and share > 0.2:
            handle, data, offset = args
            call(handle, data[: int(len(data) * share)], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    def watched_act():
        with calls_watched(on_call):
            act()

    child = in_child(watched_act)
    if at_call is None:
        time.sleep(when)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def with_limited_files(n_bytes, act):
    """Return the exit status of a process that may write no file beyond so many bytes."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
        act()

    return os.waitstatus_to_exitcode(os.waitpid(in_child(limited), 0)[1])


# --- rot -----------------------------------------------------------------------------------------


def flipped(raw, rng):
    """Return the bytes with one bit changed."""
    out = bytearray(raw)
    out[rng.integers(len(out))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def zeroed(raw, rng, page=512):
    """Return them with a page of zeros."""
    start = int(rng.integers(-(-len(raw) // page))) * page
    return raw[:start] + bytes(len(raw[start : start + page])) + raw[start + page :]


def swapped(raw, rng, page=512):
    """Return them with two pages in each other's place."""
    a, b = sorted(rng.choice(len(raw) // page, 2, replace=False) * page)
    one, other = raw[a : a + page], raw[b : b + page]
    return raw[:a] + other + raw[a + page : b] + one + raw[b + page :]


def truncated(raw, rng):
    """Return them without their end."""
    return raw[: rng.integers(len(raw))]


ROT = (flipped, zeroed, swapped, truncated)


def rotten(raw, seed):
    """Return damaged bytes and the name of the damage."""
    damage = ROT[seed % len(ROT)]
    return damage(raw, np.random.default_rng(seed)), damage.__name__
