"""Torch's state: what a caller may have switched on in torch, and the package computes without.

Anything that torch takes from its surroundings and that could change a number is put aside at the
doors. The default type of numbers is not: every tensor of the package has a type of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import TorchFunctionMode

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


class _WithoutAnomalies:
    """Torch's search for anomalies is of the whole process: the last to leave puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._found = False, True

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._found = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
                if self._found[0]:
                    torch.autograd.set_detect_anomaly(False)
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._found[0]:
                torch.autograd.set_detect_anomaly(*self._found)


_without_anomalies = _WithoutAnomalies()

_OF_FLOATS = frozenset({
    torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randn,
    torch.zeros,
})  # fmt: skip
_RANDOM = frozenset(
    {torch.rand, torch.randn, torch.randperm, torch.Tensor.normal_, torch.Tensor.uniform_}
)


class Building(TorchFunctionMode):
    """While networks are built: single precision, and random numbers of one seed.

    Both are of this thread alone, unlike torch's default type and its global generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - whatever torch returns
        """Return what ``func`` returns with the type and the generator of this mode."""
        wish = dict(kwargs or {})
        if func in _OF_FLOATS and wish.get("dtype") is None:
            wish["dtype"] = torch.float32
        # whatever of torch.nn.init takes a generator says so
        if (func in _RANDOM or "generator" in wish) and wish.get("generator") is None:
            wish["generator"] = self._rng
        return func(*args, **wish)


@contextmanager
def own_state() -> Iterator[None]:
    """Compute with gradients, on the CPU unless said otherwise, in the precision of the tensors.

    Examples
    --------
    >>> with torch.inference_mode(), own_state():
    ...     leaf = torch.ones(2, requires_grad=True)
    >>> leaf.requires_grad, torch.is_inference_mode_enabled()
    (True, False)
    """
    with ExitStack() as stack:
        # a gradient that is not finite is an answer here, which the search would raise
        stack.enter_context(_without_anomalies)
        stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def doors(owner: type[_Made]) -> type[_Made]:
    """Return the class, each public method of which is a `door`."""
    for name, member in list(vars(owner).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, FunctionType):
            setattr(owner, name, door(member))
        elif isinstance(member, classmethod):
            setattr(owner, name, classmethod(door(member.__func__)))
    return owner


def door(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Return the same function, computed in a state of torch of our own: see `own_state`."""

    @wraps(function)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        with own_state():
            return function(*args, **kwargs)

    return call
