"""Simulators that misbehave, and what becomes of a fit and a prediction with each.

``python tests/misbehaving.py`` prints the table of outcomes, each from a process of its own; with a
name, a backend, a number of processes and a place, what becomes of one of them here, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import torch
from scipy.stats import norm

import nbi_plus as nbi

# of the first parameter, beyond which a simulator misbehaves: where no probe of `bind` is, or two
EDGES = {"late": 1.31, "probed": 0.9}
DESIGN = 2 * np.random.default_rng(0).normal(size=(2, 8)) / np.sqrt(8)
X_OBS = np.array([1.6, -0.3]) @ DESIGN
COV = np.linalg.inv(np.eye(2) + DESIGN @ DESIGN.T)
MEAN = X_OBS @ DESIGN.T @ COV  # of the posterior, if nothing fails
SIGMA = 1.0
TIMEOUT = 0.03


class OwnError(BaseException):
    """No Exception."""


class MuteError(Exception):
    """An error that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


def raising(error):
    def deed(x, bad, theta):
        raise error

    return deed


def _recurse(x, bad, theta):
    return _recurse(x, bad, theta)


def _hog(x, bad, theta):
    return np.ones(10**15)


def _loop(x, bad, theta):
    while True:
        pass


def _loop_and_swallow(x, bad, theta):
    try:
        _loop(x, bad, theta)
    except BaseException:  # noqa: BLE001
        return x


def _compiled_loop(x, bad, theta):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGINT, signal.SIGTERM})
    time.sleep(3600)


def _stop(x, bad, theta):
    os.kill(os.getpid(), signal.SIGSTOP)


def killing(number):
    return lambda x, bad, theta: os.kill(os.getpid(), number)


def _set(value):
    def deed(x, bad, theta):
        x[bad] = value
        return x

    return deed


def _complex(x, bad, theta):
    return x + 1j * bad[:, None]


def _masked(x, bad, theta):
    return np.ma.array(np.asarray(x), mask=np.repeat(np.asarray(bad)[:, None], x.shape[1], 1))


def _edit_theta(x, bad, theta):
    theta[:] = 1e9
    return x


BUFFER = {"torch": torch.empty(5000, 8, dtype=torch.float64), "numpy": np.empty((5000, 8))}


def _buffer(x, bad, theta):
    buffer = BUFFER["torch" if isinstance(x, torch.Tensor) else "numpy"]
    buffer[:] = -1e9  # what was returned before
    with torch.no_grad():
        buffer[: len(x)] = x
    return buffer[: len(x)]


def _edit_later(x, bad, theta):
    out = x.detach().clone() if isinstance(x, torch.Tensor) else x.copy()
    _edit_later.given.append(out)
    for old in _edit_later.given[:-1]:
        old[:] = -1e9
    return out


_edit_later.given = []


def doing(*acts):
    def deed(x, bad, theta):
        for act in acts:
            act()
        return x

    return deed


def _start_thread():
    threading.Thread(target=time.sleep, args=(0.05,)).start()


def _print_much():
    print("simulating " * 1000)


def _warn_much():
    for _ in range(20):
        warnings.warn("a warning of user code", stacklevel=1)


def _single(x, bad, theta):
    return x.half() if isinstance(x, torch.Tensor) else x.astype(np.float16)


def _leaf(x, bad, theta):
    return torch.as_tensor(x).detach().clone().requires_grad_()


def _noisy(x, bad, theta):
    if isinstance(x, torch.Tensor):
        return x + 0.1 * torch.randn(x.shape, dtype=x.dtype)
    return x + 0.1 * np.random.normal(size=x.shape)


def _handlers():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda *_: None)
    signal.alarm(1000)


FAILS = {
    "raises ValueError": raising(ValueError("t0 < 0")),
    "raises SystemExit": raising(SystemExit(2)),
    "raises KeyboardInterrupt": raising(KeyboardInterrupt()),
    "raises GeneratorExit": raising(GeneratorExit()),
    "raises StopIteration": raising(StopIteration()),
    "raises a BaseException": raising(OwnError()),
    "raises what has no repr": raising(MuteError()),
    "recurses without end": _recurse,
    "wants too much memory": _hog,
    "loops without end": _loop,
    "loops, swallows the alarm": _loop_and_swallow,
    "returns None": lambda x, bad, theta: None,
    "returns a dict": lambda x, bad, theta: {"x": x},
    "returns text": lambda x, bad, theta: np.full(x.shape, "bright"),
    "returns objects": lambda x, bad, theta: np.array([[object()] * 8] * len(x)),
    "returns one row too few": lambda x, bad, theta: x[1:],
    "returns another length": lambda x, bad, theta: x[:, :5],
    "returns one number a row": lambda x, bad, theta: x[:, 0],
}
HARMLESS = {
    "edits its theta": _edit_theta,
    "returns a global buffer": _buffer,
    "edits its output later": _edit_later,
    "prints much": doing(_print_much),
    "warns much": doing(_warn_much),
    "sets seeds": doing(
        lambda: np.random.seed(1), lambda: torch.manual_seed(1), lambda: random.seed(1)
    ),
    "changes np.seterr": doing(lambda: np.seterr(all="raise")),
    "changes the default dtype": doing(lambda: torch.set_default_dtype(torch.float16)),
    "changes the default device": doing(lambda: torch.set_default_device("meta")),
    "disables gradients": doing(lambda: torch.set_grad_enabled(False)),
    "changes the directory": doing(lambda: os.chdir("/")),
    "takes the signals": doing(_handlers),
    "changes torch's threads": doing(lambda: torch.set_num_threads(2)),
    "changes the recursion limit": doing(lambda: sys.setrecursionlimit(5000)),
    "starts threads": doing(_start_thread),
    "returns half precision": _single,
    "changes its precision": _single,
    "returns a leaf with requires_grad": _leaf,
}
VANISHES = {
    "returns NaN": _set(np.nan),
    "returns infinities": _set(np.inf),
    "returns masked values": _masked,
    "returns complex numbers": _complex,
}
KILLS = {
    "ends its process": lambda x, bad, theta: os._exit(3),
    "segmentation fault": killing(signal.SIGSEGV),
    "is killed for its memory": killing(signal.SIGKILL),
    "hangs in compiled code": _compiled_loop,
    "stops its process": _stop,
}
REFUSED = {"is stochastic": _noisy}
ALWAYS = ("is stochastic", "returns half precision")
DEEDS = {**FAILS, **HARMLESS, **VANISHES, **KILLS, **REFUSED}
TIMED = ("loops without end", "loops, swallows the alarm", "hangs in compiled code",
         "stops its process")  # fmt: skip


class Misbehaving:
    """A linear model that does a deed where any row is beyond the edge."""

    def __init__(self, deed, backend, edge):
        self.deed, self.backend, self.edge = deed, backend, edge

    def __call__(self, theta):
        if self.backend == "torch":
            x = theta.matmul(torch.as_tensor(DESIGN, dtype=theta.dtype))
        else:
            x = np.einsum("np,pl->nl", theta, DESIGN)
        bad = theta[:, 0] > self.edge
        always = self.deed in ALWAYS
        return DEEDS[self.deed](x, bad, theta) if always or bool(bad.any()) else x


def edge_for(deed, where):
    """Return the edge: far out where each row costs a process, and no probe shall."""
    return 2.2 if deed in KILLS and where == "late" else EDGES[where]


def state():
    """Return what user code must leave as it was."""
    return {
        "random": random.getstate()[1][:3],
        "numpy": np.random.get_state()[1][:3].tolist(),
        "torch": torch.get_rng_state()[:8].tolist(),
        "errors": np.geterr(),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.empty(0).device),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "folder": os.getcwd(),
        "depth": sys.getrecursionlimit(),
        "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM,
                                                       signal.SIGALRM)],
        "timer": signal.getitimer(signal.ITIMER_REAL),
    }  # fmt: skip


def outcome(deed, backend, n_jobs=1, where="late"):
    """Return what becomes of a fit and of a prediction with one of them."""
    edge, n = edge_for(deed, where), 100 if deed in KILLS else 400
    ladder = nbi.Ladder(n_draws=n, escalate="never", top_up_draws=n, audit=None)
    timeout = TIMEOUT if deed in TIMED else None
    simulator = nbi.Simulator(Misbehaving(deed, backend, edge), timeout=timeout)
    prior = {"p0": norm(0, 1), "p1": norm(0, 1)}
    options = {"featurizer": "mlp", "flow": {"n_blocks": 2, "hidden": 16, "n_mog": 1}, "seed": 1}
    options |= {"ladder": ladder, "n_jobs": n_jobs}
    engine = nbi.Engine(simulator, prior, noise=SIGMA, **options)
    before, start = state(), time.perf_counter()
    found = {"deed": deed, "backend": backend, "n_jobs": n_jobs, "fit": "done"}
    try:
        engine.fit(n_sims=32, n_epochs=1, max_failed=0.9, truth_test=False)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior = engine.predict(X_OBS, n_samples=n)
        p0 = posterior["p0"]
        found |= {
            "predict": posterior.status.name,
            "flags": sorted(flag.name for flag in posterior.flags),
            "mean": [float(v) for v in posterior.mean()],
            "n": len(p0),
            "beyond": float((posterior.weights * (p0 > edge)).sum()),
        }
    except (nbi.SimulationError, ValueError, TypeError) as error:
        found["predict" if hasattr(engine, "fitted_") else "fit"] = (
            f"{type(error).__name__}: {error}"
        )
    after = state()
    found["changed"] = [k for k in before if before[k] != after[k]]
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found


def in_a_child(deed, backend, n_jobs, where="late", limit=180.0):
    """Return `outcome` from another process, or how that ended."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, deed, backend, str(n_jobs), where],
            capture_output=True, text=True, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"ended": f"hangs ({limit:g} s)"}
    if done.returncode:
        return {"ended": f"the process ends with {done.returncode}", "stderr": done.stderr[-2000:]}
    return json.loads(done.stdout.splitlines()[-1])


def table():
    """Print what becomes of each deed."""
    for deed in DEEDS:
        for backend in ("numpy", "torch"):
            for n_jobs in (1, 2):
                found = in_a_child(deed, backend, n_jobs)
                said = found.get("ended") or found.get("predict") or found["fit"]
                print(f"{deed:34s} {backend:6s} {n_jobs}  {said:.90s}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(outcome(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
    else:
        table()
