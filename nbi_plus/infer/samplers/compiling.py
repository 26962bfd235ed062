"""Compiling: log-densities and gradients as compiled code, once there are enough of them to pay.

Compiling takes five to ten seconds, once in a process for all data of one problem, and makes a
gradient several times cheaper. What torch cannot compile, or compiles to something else or
something slower, is differentiated as before.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from types import FunctionType

import torch
from torch import Tensor

_LOG = logging.getLogger("nbi_plus")

_TOLERANCE = 1e-8  # relative: between compiled and plain numbers
_N_TIMED = 5

LogProb = Callable[[Tensor, Tensor], Tensor]  # z (b, C, D), index (b,) -> (b, C)
Way = Callable[[LogProb, Tensor, Tensor], tuple[Tensor, Tensor]]


class Compiler:
    """Compiles one log-density after so many gradients of it.

    Parameters
    ----------
    log_prob : callable
        ``log_prob(z, index)``: z (b, C, D) of the objects ``index`` (b,) -> (b, C).
    after : float
        Gradients, of single rows, before it pays.
    """

    def __init__(self, log_prob: LogProb, after: float) -> None:
        self._log_prob, self._left = log_prob, after
        self._way: Way | None = None

    @property
    def is_ready(self) -> bool:
        """Whether compiled code is there and in use."""
        return self._way is not None and self._left <= 0

    def __call__(self, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return values (b, C) and gradients (b, C, D), or None where plain code is the way."""
        if self._left > 0:
            self._left -= z.shape[0] * z.shape[1]
            return None
        try:
            if self._way is None:
                self._way = self._tested(z, index)
            return self._way(self._log_prob, z, index)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the caller's code, or a missing C++ compiler
            _LOG.debug("gradients are not compiled: %.500r", error)
            self._left = math.inf
            return None

    def _tested(self, z: Tensor, index: Tensor) -> Way:
        way, rough = self._made(z, index)
        exact = differentiate(self._log_prob, z, index)
        usable = exact[0].isfinite() & exact[1].isfinite().all(-1)
        for own, other in zip(rough, exact, strict=True):
            off = ((own - other).abs() / (1 + other.abs()))[usable]
            if not bool((off < _TOLERANCE).all()):
                raise ValueError(f"compiled numbers are off by {float(off.amax()):.2g}")
        if not torch.equal(rough[0].isfinite(), exact[0].isfinite()):
            raise ValueError("compiled numbers are finite where plain ones are not, or not there")
        if not self._seconds(way, z, index) < self._seconds(differentiate, z, index):
            raise ValueError("compiled code is no faster, as of densities of a few operations")
        return way

    def _made(self, z: Tensor, index: Tensor) -> tuple[Way, tuple[Tensor, Tensor]]:
        try:
            return _in_one_pass, _in_one_pass(self._log_prob, z, index)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as of code that looks at arrays of numpy
            _LOG.debug("gradients are not compiled together with values: %.500r", error)
            return _taped, _taped(self._log_prob, z, index)

    def _seconds(self, way: Way, z: Tensor, index: Tensor) -> float:
        """Return what a call takes, the best of a few."""
        best = math.inf
        for _ in range(_N_TIMED):
            began = time.perf_counter()
            way(self._log_prob, z, index)
            best = min(best, time.perf_counter() - began)
        return best


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


class _SharedCode:
    """The compiled code of a function whose first argument is one of many log-densities.

    torch keeps what it makes with the function that it makes it of, finds it again for densities
    that differ in numbers alone, and gives up after the eighth: then a copy begins anew.
    """

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        self._compiled: Callable | None = None

    def __call__(self, log_prob: LogProb, z: Tensor, index: Tensor) -> object:
        """Return what the function does; no number of objects or chains is compiled in."""
        for tensor, axis in ((z, 0), (z, 1), (index, 0)):
            torch._dynamo.mark_dynamic(tensor, axis)
        try:
            if self._compiled is not None:
                return self._compiled(log_prob, z, index)
        except getattr(torch._dynamo.exc, "FailOnRecompileLimitHit", ()):
            _LOG.debug("compiled code begins anew")
        function = self._function
        copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        self._compiled = torch.compile(copy, fullgraph=True)
        return self._compiled(log_prob, z, index)


def _value_and_gradient(log_prob: LogProb, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    def total(z: Tensor) -> tuple[Tensor, Tensor]:
        value = log_prob(z, index)
        return value.sum(), value

    grad, value = torch.func.grad(total, has_aux=True)(z)
    return value, grad


def _value(log_prob: LogProb, z: Tensor, index: Tensor) -> Tensor:
    return log_prob(z, index)


_PAIRS, _VALUES = _SharedCode(_value_and_gradient), _SharedCode(_value)


def _in_one_pass(log_prob: LogProb, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `differentiate` does; value and gradient are one computation."""
    n, n_chains, _ = z.shape
    with torch.inference_mode(False), torch.no_grad():
        value, grad = _PAIRS(log_prob, *_of_two(z, index))
    return value[:n, :n_chains].to(z.dtype), grad[:n, :n_chains]


def _taped(log_prob: LogProb, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `differentiate` does; gradients follow a tape of values."""
    n, n_chains, _ = z.shape
    value, grad = differentiate(partial(_VALUES, log_prob), *_of_two(z, index))
    return value[:n, :n_chains], grad[:n, :n_chains]


def _of_two(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies of at least two objects and chains: axes of one would always be one.

    Of views torch would remember what they are views of.
    """
    n, n_chains, _ = z.shape
    if n > 1 and n_chains > 1:
        return z.clone(), index.clone()
    return z.repeat(1 + (n == 1), 1 + (n_chains == 1), 1), index.repeat(1 + (n == 1))
