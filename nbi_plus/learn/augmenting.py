"""Augmentation: what a user does to the data of training batches, beyond the noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.base import code_text

_OWN = ("x", "rng", "theta", "x_err", "mask")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Augmentation:
    """A user's ``augment(x, rng, ...)``: noisy data (n, C, L) in, other data of that shape out.

    Attributes
    ----------
    function : callable
        Its first argument is the data; others are looked up by name (`of`).
    names : tuple of str
        Of the others.
    """

    function: Callable[..., Tensor]
    names: tuple[str, ...]

    @classmethod
    def of(cls, function: Callable[..., Tensor] | None, known: Batch) -> Augmentation | None:
        """Return that of a function which asks for what batches like ``known`` have; none of None.

        These are ``rng``, ``theta``, ``x_err``, ``mask``, coordinates and scalars.
        """
        if function is None:
            return None
        remedy = "Write it as augment(x, rng)."
        if not callable(function):
            raise TypeError(
                f"augment must be a function, but is a {type(function).__name__}. {remedy}"
            )
        try:
            first, *others = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # it tells nothing of its arguments, or has none
            first, others = None, []
        if first is None or first.kind not in _POSITIONAL:
            raise ValueError(f"augment must take the data as its first argument. {remedy}")
        offered = [*_OWN[1:], *known.arguments()]
        asked = [p for p in others if p.name in offered or p.default is p.empty]
        asked = [p for p in asked if p.kind is not p.VAR_KEYWORD]
        for p in asked:
            if p.name not in offered or p.kind not in _NAMED:
                raise ValueError(
                    f"augment must take x and, by name, some of {offered}, but asks for "
                    f"{p.name!r}. {remedy}"
                )
        return cls(function, tuple(p.name for p in asked))

    def __call__(self, batch: Batch, theta: Tensor, rng: torch.Generator) -> Batch:
        """Return the batch with other data; masked points stay masked."""
        own = {"rng": rng, "theta": theta, "x_err": batch.x_err, "mask": batch.mask}
        own |= batch.arguments()
        x = batch.x.clone()  # it may be changed in place, and lie in the memory of simulations
        found = self.function(x, **{name: own[name] for name in self.names})
        if not isinstance(found, Tensor):
            raise TypeError(
                f"augment must return a tensor of shape {tuple(x.shape)}, but gave a "
                f"{type(found).__name__}. Compute with torch."
            )
        if found.shape != x.shape or found.device != x.device:
            raise ValueError(
                f"augment must return a tensor of shape {tuple(x.shape)} on {x.device}, as it got, "
                f"but gave {tuple(found.shape)} on {found.device}."
            )
        if not found.is_floating_point():
            raise TypeError(
                f"augment must return floats, as {x.dtype}, but gave {found.dtype}. "
                "Write .to(x.dtype)."
            )
        return batch.with_data(found.detach().to(x.dtype))

    def try_out(self, batch: Batch, theta: Tensor, rng: torch.Generator) -> None:
        """Raise where data that are finite do not stay so.

        Once, before training: a step of it never waits for the device. What is not finite there is
        left out, and counted.
        """
        good = batch.x.isfinite().flatten(1).all(1) & theta.isfinite().all(1)
        rows = batch.select(good)
        found = self(rows, theta[good], rng)
        n_bad = int((~found.x.isfinite()).flatten(1).any(1).sum())
        if n_bad:
            raise ValueError(
                f"augment must keep finite data finite, but {n_bad} of {len(rows)} tried rows then "
                "hold NaN or infinities. Leave points out by noise and masks instead."
            )

    def fingerprint(self) -> str:
        """Return a text that changes with the function, which counts by its byte code.

        Of an object that is called so, what it holds counts, too.
        """
        function, held = self.function, {}
        if isinstance(function, partial):
            function, held = function.func, {"args": function.args, **function.keywords}
        elif not hasattr(function, "__code__"):
            function, held = type(function).__call__, vars(function)
        return f"{code_text('augment', function)} {sorted(held.items())!r}"
