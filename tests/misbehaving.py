"""Simulators that misbehave, and what becomes of a fit and a prediction with each.

``python tests/misbehaving.py > docs/misbehaving.md`` writes the table of outcomes. Each comes from
a process of its own, forked from one that has imported everything and fitted nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from itertools import product

import numpy as np
import torch
from full_disk import import_all
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus.problem.simulator import workers

BACKENDS, N_JOBS = ("numpy", "torch"), (1, 2)
LIMIT, HELD = 1200.0, 60.0  # seconds of a case, and of one that nothing guards against
AT_ONCE = 2  # of those that do not hang
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
HOLDS = ("hangs in compiled code", "stops its process")
ALWAYS = ("is stochastic", "returns half precision")
DEEDS = {**FAILS, **HARMLESS, **VANISHES, **KILLS, **REFUSED}
TIMED = ("loops without end", "loops, swallows the alarm", *HOLDS)


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


# ------------------------------------------------------------------------------ in processes


def cases():
    """Return every deed x backend x number of processes x edge."""
    return list(product(DEEDS, BACKENDS, N_JOBS, EDGES))


def ends_here(deed, backend, n_jobs):
    """Say whether nothing guards against a deed, as docs/trust.md tells."""
    return deed in KILLS and (n_jobs == 1 or backend == "torch")


def outcomes(wanted):
    """Return the outcome of each of these cases, two of which are at work at a time."""
    done = subprocess.run(
        [sys.executable, __file__, "serve"], input=json.dumps(wanted), stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    return {tuple(case): found for case, found in json.loads(done.stdout)}


def _serve(wanted):
    """Print the outcomes of cases; those that will hang do so beside the others."""
    import_all()
    waiting, running, found = sorted(wanted, key=_hangs), {}, []
    while waiting or running:
        at_work = sum(not _hangs(case) for case, *_ in running.values())
        if waiting and (_hangs(waiting[-1]) or at_work < AT_ONCE):
            case = waiting.pop()
            pid, pipe = _begun(case)
            running[pid] = case, pipe, time.monotonic()
            continue
        for pid, (case, pipe, began) in list(running.items()):
            limit = HELD if ends_here(*case[:3]) else LIMIT
            how = _ended(pid, pipe, limit if time.monotonic() > began + limit else None)
            if how is not None:
                found.append((case, how))
                del running[pid]
        time.sleep(0.01)
    print(json.dumps(found))


def _hangs(case):
    return case[0] in HOLDS and ends_here(*case[:3])


def _begun(case):
    """Return a process that is at work on a case, and the pipe that it will answer through."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if case[0] not in KILLS or case[3] == "probed":  # others import all: that takes seconds
            workers.get_context = lambda _: _Forking
        os.write(theirs, json.dumps(outcome(*case)).encode())
        workers.release_workers()
        status = 0
    except BaseException:  # noqa: BLE001 - its traceback is all that a forked process leaves
        traceback.print_exc()
    finally:
        os._exit(status)


class _Forking:
    """What workers ask of their context, where they are forked."""

    @staticmethod
    def Process(target, args, env):  # noqa: N802, ARG004 - the name it has there; threads are one
        return multiprocessing.get_context("fork").Process(target=target, args=args)


def _ended(pid, pipe, limit):
    """Return the answer of a process or how it ended; None while it may go on."""
    gone, status = os.waitpid(pid, os.WNOHANG)
    if not gone and limit is None:
        return None
    if not gone:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with open(pipe, "rb") as file:
        os.set_blocking(pipe, False)
        told = file.read()
    if not gone:
        return {"ended": f"hangs ({limit:g} s)"}
    code = os.waitstatus_to_exitcode(status)
    return {"ended": f"the process ends with {code}"} if code else json.loads(told)


# ------------------------------------------------------------------------------ the table


def in_words(deed, found):
    """Return the outcome of a case in the words of the table."""
    if "ended" in found:
        return "hangs" if "hangs" in found["ended"] else "ends the process"
    for verb in ("fit", "predict"):
        if ":" in found.get(verb, ""):
            return f"{verb} refuses"
    if deed in VANISHES:
        return "weight zero"
    return "rows fail" if "SIM_ERRORS" in found["flags"] else "no harm"


HEAD = """# What misbehaving simulators do

Each row is a simulator that does this where its first parameter is beyond an edge. Engines are
fitted with it and predict, while it runs in this process (`n_jobs=1`) or in two others. Where a
cell has two outcomes, the second one is of an edge so near that the simulator does it already when
it is first tried, on draws of the prior.

- **rows fail**: these rows are tried twice, leave the draws, and are counted (`SIM_ERRORS`); the
  rest is right.
- **weight zero**: the model does not exist there (`SIM_ERRORS` where it is often NaN); the rest is
  right.
- **no harm**: the answer is that of a simulator that behaves, and all state is put back.
- **fit refuses**, **predict refuses**: an error of ours says what the simulator must do.
- **ends the process**, **hangs**: in this process nothing guards against it.

`python tests/misbehaving.py > docs/misbehaving.md` makes this page, and
`pytest -m faults tests/test_user_code.py` holds it to what happens. [Trust](trust.md) says more.

"""


def page(found):
    """Return the page of outcomes."""
    columns = list(product(BACKENDS, N_JOBS))
    lines = ["| what it does | " + " | ".join(f"{b}, `n_jobs={n}`" for b, n in columns) + " |"]
    lines += ["|" + "---|" * (1 + len(columns))]
    for deed in DEEDS:
        cells = []
        for backend, n_jobs in columns:
            words = [in_words(deed, found[deed, backend, n_jobs, where]) for where in EDGES]
            cells.append("; ".join(dict.fromkeys(words)))
        lines.append(f"| {deed} | " + " | ".join(cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def told_by(text):
    """Return what a page says of each case."""
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    told = {}
    for deed, *cells in rows[1:]:
        for (backend, n_jobs), cell in zip(product(BACKENDS, N_JOBS), cells, strict=True):
            words = cell.split("; ")
            told |= {(deed, backend, n_jobs, where): words[min(i, len(words) - 1)]
                     for i, where in enumerate(EDGES)}  # fmt: skip
    return told


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        _serve([tuple(case) for case in json.load(sys.stdin)])
    else:
        print(page(outcomes(cases())), end="")
