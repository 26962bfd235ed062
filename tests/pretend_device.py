"""A device that does not exist, for testing on any machine what must stay on a GPU.

Inside `pretended` tensors can be made on, and moved to, the device `NAME`. They compute on the
CPU, but refuse to meet the CPU's tensors as those of a GPU would. What a GPU is asked for that
costs more than its launch is counted in a `Traffic`, by the line of the library that asked:

- transfers, to the device (``"in"``) and from it (``"out"``): copies, numbers and arrays that
  become tensors, and CPU indices;
- waits for all that was launched before: values that Python reads, and results whose shape
  depends on values.

The numbers are those of the CPU, generators included, so that a run on the device must end where
one on the CPU does. It pretends to be no more than it is:

- torch has no room for a name of its own, and what is always there, "meta", stands in for it. Its
  real tensors, which hold nothing, are an error here.
- A tensor here is a shell around one of the CPU. ``shell.data = other``, which is how
  ``module.to(dtype)`` and weights in one buffer work, changes what torch knows of the shell, and
  so must change what is inside (`OnDevice.data`).
- ``torch.tensor``, ``torch.as_tensor`` and lists as indices do not fill "meta" tensors, generators
  do not exist there, and ``torch.autocast`` does not know it: within `pretended` they are ours.
- Time, memory and the order of sums are those of the CPU, and nothing is asynchronous: a wait
  costs nothing here. Kernels that wait inside are known by name (`_WAITING`).
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from nbi_plus import launch

NAME = "meta"
DEVICE = torch.device(NAME, 0)  # tensors of a GPU have its number, whatever name it was asked by
_HOST = torch.device("cpu")
_Generator = torch.Generator
_LIBRARY = ("/nbi_plus/", "/featurizers/")
_READING = {"_local_scalar_dense", "equal"}
_SHAPING = {"nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
            "bincount"}  # fmt: skip
_WAITING = {  # their kernels look at what they found before they return
    "_linalg_check_errors", "_linalg_eigh", "_linalg_eigvals", "_linalg_svd", "linalg_lstsq",
    "multinomial",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


@dataclass
class Traffic:
    """What went to and from the device, and what waited for it, by (kind, line of the library)."""

    transfers: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)

    @property
    def n_transfers(self) -> int:
        return self.transfers.total()

    @property
    def n_waits(self) -> int:
        return self.waits.total()

    def since(self, earlier: Traffic) -> Traffic:
        """Return what came after an earlier copy."""
        return Traffic(self.transfers - earlier.transfers, self.waits - earlier.waits)

    def copy(self) -> Traffic:
        return Traffic(self.transfers.copy(), self.waits.copy())

    def moved(self, inward: bool) -> None:
        self.transfers["in" if inward else "out", _line()] += 1

    def waited(self, kind: str) -> None:
        self.waits[kind, _line()] += 1


class OnDevice(Tensor):
    """A tensor that claims to be on the device; ``host`` is where its numbers are."""

    @staticmethod
    def __new__(cls, host):
        shell = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(),
            dtype=host.dtype, layout=host.layout, device=DEVICE,
        )  # fmt: skip
        shell.host = host
        return shell

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, _Pretence.traffic)

    @property
    def data(self):
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other):
        Tensor.data.__set__(self, other)
        self.host = other.host

    def tolist(self):
        if _Pretence.traffic is not None:
            _Pretence.traffic.waited("tolist")
        return self.host.tolist()

    def __repr__(self, *, tensor_contents=None):
        return f"on_device({self.host!r})"


class DeviceGenerator(_Generator):
    """A generator that draws on the device alone, and the numbers that the CPU would draw."""


class AnyGenerator(_Generator):
    """Stands in for `torch.Generator`, of which the device has a kind of its own."""

    def __new__(cls, device="cpu"):
        return DeviceGenerator() if _is_ours(device) else _Generator(device)


class _Pretence(TorchDispatchMode):
    """Every operation of torch, of tensors of the device or not, is seen here."""

    traffic: Traffic | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, _Pretence.traffic)


class _Filling(TorchFunctionMode):
    """Numbers and arrays that become tensors of the device are sent there; draws are made there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = list(_leaves((args, kwargs)))
        device = kwargs.get("device")
        here = any(isinstance(x, OnDevice) for x in leaves)
        there = here if device is None else _is_ours(device)
        for rng in leaves:
            if isinstance(rng, _Generator) and isinstance(rng, DeviceGenerator) != there:
                own, other = ("device", "CPU") if there else ("CPU", "device")
                raise RuntimeError(f"{func.__name__} must draw on the {own} with a generator that "
                                   f"was made there, but got one of the {other}")  # fmt: skip
        if there and not here and func in (torch.tensor, torch.as_tensor):
            return func(*args, **{**kwargs, "device": _HOST}).to(DEVICE)
        if here and func == Tensor.__getitem__:
            args = (args[0], _indices(args[1]))
        elif func == Tensor.__setitem__ and isinstance(args[0], OnDevice):
            own, index, value = args
            if isinstance(value, (bool, int, float)):  # torch has it on the CPU at first
                value = torch.tensor(value, dtype=own.dtype)
            args = own, _indices(index), value
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretended(**bounds: int) -> Iterator[Traffic]:
    """Let the device exist, and yield its traffic.

    It computes as much at once as the CPU, so that answers are the CPU's to the last digit, but
    for the ``bounds`` of a `launch.Launch` that are given.
    """
    if _Pretence.traffic is not None:
        raise RuntimeError("pretended must not be entered twice: there is one device only.")
    traffic = Traffic()
    plain_autocast = torch.autocast

    def autocast(device_type, *args, **kwargs):
        unknown = device_type == NAME
        return contextlib.nullcontext() if unknown else plain_autocast(device_type, *args, **kwargs)

    with (
        mock.patch.dict(launch.KINDS, {NAME: replace(launch.KINDS["cpu"], **bounds)}),
        mock.patch.object(torch, "autocast", autocast),
        mock.patch.object(torch, "Generator", AnyGenerator),
        mock.patch.object(_Pretence, "traffic", traffic),
        _Filling(),
        _Pretence(),
    ):
        yield traffic


def host_of(value):
    """Return the tensor of the CPU behind one of the device, also within lists."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(host_of, value))
    return value.host if isinstance(value, OnDevice) else value


def _is_ours(device) -> bool:
    return torch.device(device).type == NAME


def _indices(index):
    """Return an index whose lists and arrays are tensors of the device, as torch makes them."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    if isinstance(index, (list, np.ndarray)):
        return torch.as_tensor(index, dtype=None if len(index) else torch.int64).to(DEVICE)
    return index


def _line() -> str:
    """Return the innermost line of the library that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        for room in _LIBRARY:
            if room in name:
                return f"{room[1:]}{name.rpartition(room)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _run(func, args, kwargs, traffic):
    """Run one operation of torch on the CPU, and say where its result is."""
    traffic = Traffic() if traffic is None else traffic
    name = func.overloadpacket.__name__
    tensors = [x for x in _leaves((args, kwargs)) if isinstance(x, Tensor)]
    if any(x.device.type == NAME and not isinstance(x, OnDevice) for x in tensors):
        raise RuntimeError(f"{name} met a tensor of torch's own {NAME} device, which holds nothing")
    here = any(isinstance(x, OnDevice) for x in tensors)
    device = kwargs.get("device")
    there = here if device is None else _is_ours(device)
    if name == "_to_copy" or name == "copy_":
        target = there if name == "_to_copy" else isinstance(args[0], OnDevice)
        source = isinstance(args[0] if name == "_to_copy" else args[1], OnDevice)
        if target != source:
            traffic.moved(inward=target)
    elif here:
        _check_meeting(name, func, args, kwargs, tensors, traffic)
        _count_wait(name, args, kwargs, traffic)
    own = {k: _HOST if k == "device" and v is not None else host_of(v) for k, v in kwargs.items()}
    out = func(*map(host_of, args), **own)
    return _placed(out, func, args, kwargs, there) if there or here else out


def _placed(out, func, args, kwargs, there):
    """Return what an operation gave as tensors of the device, or those that it wrote to."""
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # the shape that the shell claims must follow
            func(*args, **kwargs)
        return args[0]
    written = _written(func, args, kwargs)
    if written and isinstance(out, Tensor):
        return written[0]
    if written and isinstance(out, (tuple, list)) and len(out) == len(written):
        return type(out)(written)
    return _on_device(out) if there else out


def _on_device(out):
    if isinstance(out, (tuple, list)):
        return type(out)(map(_on_device, out))
    return OnDevice(out) if isinstance(out, Tensor) else out


def _leaves(values):
    """Yield what lists, tuples and dicts hold, ten times as fast as torch's `tree_leaves`."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (list, tuple, dict)):
            yield from _leaves(value)
        else:
            yield value


@functools.cache
def _written_places(func):
    """Return place and name of the arguments that an operation writes to."""
    return [
        (i, argument.name)
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _written(func, args, kwargs):
    """Return the arguments that an operation writes to."""
    each = (args[i] if i < len(args) else kwargs.get(name) for i, name in _written_places(func))
    return [value for value in each if isinstance(value, Tensor)]


def _check_meeting(name, func, args, kwargs, tensors, traffic) -> None:
    """Refuse tensors of the CPU beside those of the device, but single numbers and indices."""
    indices = []
    if name in _INDEXING and isinstance(args[0], OnDevice):
        indices = [x for x in args[1] if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
        values = [] if _fills(name, args) else [x for x in args[2:3] if isinstance(x, Tensor)]
        n_sent = len(indices) + sum(not isinstance(x, OnDevice) for x in values)
        for _ in range(n_sent):
            traffic.moved(inward=True)
    written = _written(func, args, kwargs)
    away = [x for x in tensors if not isinstance(x, OnDevice)
            and not any(x is index for index in indices)
            and (x.ndim or any(x is w for w in written))]  # fmt: skip
    if away:
        shapes = [("device" if isinstance(x, OnDevice) else "cpu", tuple(x.shape)) for x in tensors]
        raise RuntimeError(f"{name} must get tensors of one device, but got {shapes}")


def _fills(name, args) -> bool:
    """Say whether a number of the CPU is put under a mask, of which torch need not know where."""
    indices = [x for x in args[1] if isinstance(x, Tensor)]
    put = name.startswith(("index_put", "_index_put"))
    return (put and not isinstance(args[2], OnDevice) and args[2].ndim == 0
            and all(x.dtype == torch.bool for x in indices))  # fmt: skip


def _count_wait(name, args, kwargs, traffic) -> None:
    """Count an operation that cannot return before the device has come so far."""
    if name in _READING:
        traffic.waited("value")
    elif name in _SHAPING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        traffic.waited("shape")
    elif name in _WAITING:
        traffic.waited("check")
    elif name in _INDEXING:
        flags = any(isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1])
        if flags and not _fills(name, args):
            traffic.waited("flags")
