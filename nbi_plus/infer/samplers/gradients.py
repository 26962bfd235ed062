"""Gradients of the log-densities of many objects, in launches of bounded memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.infer.samplers.compiling import Compiler, LogProb, differentiate
from nbi_plus.infer.samplers.whitening import Whitening

_LOG = logging.getLogger("nbi_plus")


@dataclass(frozen=True)
class Gradients:
    """A log-density of z and its gradient in whitened coordinates.

    Attributes
    ----------
    log_prob : callable
        ``log_prob(z, index)``: z (b, C, D) of the objects ``index`` (b,) -> (b, C).
    rows : int
        Rows of one launch at most, unless one object alone has more.
    compiler : Compiler, optional
        Compiles the log-density once that pays.
    """

    log_prob: LogProb
    rows: int
    compiler: Compiler | None = None

    def __call__(self, u: Tensor, index: Tensor, whitening: Whitening) -> tuple[Tensor, Tensor]:
        """Return log-densities (b, C) and gradients (b, C, D) with respect to u (b, C, D).

        What is not finite is -inf, and a gradient that is not finite is zero: that makes a poor
        proposal, but Metropolis' rule stays right, since it looks at the density alone.
        """
        z = whitening.back(u)
        ready = self.compiler is not None and self.compiler.is_ready
        at_once = self.rows * (launch.of(u.device).compiled_launches if ready else 1)
        each = [self._safely(z[i], index[i]) for i in _launches(*u.shape[:2], at_once)]
        values, grads = each[0] if len(each) == 1 else map(torch.cat, zip(*each, strict=True))
        if u.device.type == "cpu" and math.isfinite(values.sum() + grads.sum()):
            return values, whitening.gradient(grads)  # to look would mean to wait elsewhere
        values = torch.where(torch.isfinite(values), values, -math.inf)
        usable = torch.isfinite(grads).all(-1, keepdim=True) & (values > -math.inf)[..., None]
        grads = torch.where(usable, grads, 0.0)
        return values, whitening.gradient(grads)

    def check(self, z: Tensor, index: Tensor) -> None:
        """Raise what the log-density raises when it does so at the starts of every object."""
        first_launch = next(_launches(*z.shape[:2], self.rows))
        try:
            self._differentiate(z[first_launch], index[first_launch])
            return
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the caller's code
            first = error
        each = (self._safely(z[i], index[i])[0] for i in _launches(*z.shape[:2], self.rows))
        if all(bool((values == -math.inf).all()) for values in each):
            raise first

    def _safely(self, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and gradients; rows that make the log-density raise are -inf."""
        try:
            return self._differentiate(z, index)
        except torch.cuda.OutOfMemoryError:
            raise  # no row is to blame
        except Exception as error:  # noqa: BLE001 - the caller's code; halved until the row is found
            n, n_chains = z.shape[:2]
            if n * n_chains == 1:
                _LOG.debug("the log-density raised at %s: %r", z.tolist(), error)
                return torch.full_like(z[..., 0], -math.inf), torch.zeros_like(z)
        dim = 0 if n > 1 else 1
        owners = index.chunk(2) if n > 1 else (index, index)
        halves = [
            self._safely(part, own) for part, own in zip(z.chunk(2, dim), owners, strict=True)
        ]
        values, grads = zip(*halves, strict=True)
        return torch.cat(values, dim), torch.cat(grads, dim)

    def _differentiate(self, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        found = None if self.compiler is None else self.compiler(z, index)
        return differentiate(self.log_prob, z, index) if found is None else found


def _launches(n_objects: int, n_chains: int, rows: int) -> Iterator[slice]:
    step = max(1, rows // n_chains)
    for start in range(0, n_objects, step):
        yield slice(start, start + step)
