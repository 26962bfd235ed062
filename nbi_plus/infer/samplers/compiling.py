"""Compiling: log-densities and gradients as compiled code, once there are enough of them to pay.

Compiling takes ten seconds or so, and makes a gradient several times cheaper. What torch cannot
compile, or compiles to something else or something slower, is differentiated as before.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

_LOG = logging.getLogger("nbi_plus")

_TOLERANCE = 1e-8  # relative: between compiled and plain numbers
_N_TIMED = 5

LogProb = Callable[[Tensor, Tensor], Tensor]  # z (b, C, D), index (b,) -> (b, C)


class Compiler:
    """Compiles one log-density after so many gradients of it.

    Parameters
    ----------
    log_prob : callable
        ``log_prob(z, index)``: z (b, C, D) of the objects ``index`` (b,) -> (b, C).
    rows : int
        Rows of one call, as many objects as these are chains of. The compiled code has this shape
        and no other.
    after : float
        Gradients, of single rows, before it pays.
    """

    def __init__(self, log_prob: LogProb, rows: int, after: float) -> None:
        self.rows, self._left = rows, after
        self._plain = log_prob
        self._compiled: LogProb | None = None

    def __call__(self, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return values (b, C) and gradients (b, C, D), or None where plain code is the way."""
        if self._left == math.inf:
            return None
        if self._left > 0:
            self._left -= z.shape[0] * z.shape[1]
            return None
        try:
            if self._compiled is None:
                self._compile(z, index)
            return self._in_launches(self._compiled, z, index)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the caller's code, or a missing C++ compiler
            _LOG.debug("gradients are not compiled: %.500r", error)
            self._left = math.inf
            return None

    def _compile(self, z: Tensor, index: Tensor) -> None:
        compiled = torch.compile(_renewed(self._plain), fullgraph=True, dynamic=False)
        rough, exact = (self._in_launches(f, z, index) for f in (compiled, self._plain))
        usable = exact[0].isfinite() & exact[1].isfinite().all(-1)
        for own, other in zip(rough, exact, strict=True):
            off = ((own - other).abs() / (1 + other.abs()))[usable]
            if not bool((off < _TOLERANCE).all()):
                raise ValueError(f"compiled numbers are off by {float(off.amax()):.2g}")
        if not torch.equal(rough[0].isfinite(), exact[0].isfinite()):
            raise ValueError("compiled numbers are finite where plain ones are not, or not there")
        if not self._seconds(compiled, z, index) < self._seconds(self._plain, z, index):
            raise ValueError("compiled code is no faster, as of densities of a few operations")
        self._compiled = compiled

    def _seconds(self, log_prob: LogProb, z: Tensor, index: Tensor) -> float:
        """Return what a call takes, the best of a few."""
        best = math.inf
        for _ in range(_N_TIMED):
            began = time.perf_counter()
            self._in_launches(log_prob, z, index)
            best = min(best, time.perf_counter() - began)
        return best

    def _in_launches(self, log_prob: LogProb, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and gradients, from calls of one shape; the last one is filled up."""
        n, n_chains = z.shape[:2]
        step = max(1, self.rows // n_chains)
        own = torch.arange(n + -n % step, device=z.device).clamp(max=n - 1)
        each = [differentiate(log_prob, z[rows], index[rows]) for rows in own.split(step)]
        values, grads = zip(*each, strict=True)
        return torch.cat(values)[:n], torch.cat(grads)[:n]


def differentiate(log_prob: LogProb, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (b, C), as z's type, and gradients (b, C, D) of a log-density."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z.detach().clone().requires_grad_(True)
        value = log_prob(leaf, index)
        if value.shape != z.shape[:2]:
            raise ValueError(
                f"log_prob must return shape {tuple(z.shape[:2])} for z of shape "
                f"{tuple(z.shape)}, but returned {tuple(value.shape)}."
            )
        if not value.requires_grad:
            raise ValueError(
                "log_prob must be differentiable by torch, but its result carries no gradient. "
                "Compute it with torch functions of z alone, or sample with emcee."
            )
        (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().to(z.dtype), grad


def _renewed(log_prob: LogProb) -> LogProb:
    """Return the same function with code of its own.

    torch keeps what it compiled with the code, and gives up after the eighth log-density.
    """

    def call(z: Tensor, index: Tensor) -> Tensor:
        return log_prob(z, index)

    return FunctionType(
        call.__code__.replace(), call.__globals__, closure=call.__closure__, name="log_prob"
    )
