"""Frozen: exact copies of networks, for densities that become weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

_Own = TypeVar("_Own", bound=nn.Module)


def frozen(module: _Own) -> _Own:
    """Return a float64 copy of a network that is not trained on.

    Settings are shared, which nothing changes; `copy.deepcopy` would go through all of them.
    """
    twin = copy.copy(module)
    twin._parameters = {
        name: None if v is None else nn.Parameter(_exact(v.detach()), requires_grad=False)
        for name, v in module._parameters.items()
    }
    twin._buffers = {n: None if v is None else _exact(v) for n, v in module._buffers.items()}
    twin._modules = {n: None if m is None else frozen(m) for n, m in module._modules.items()}
    return twin


def _exact(values: Tensor) -> Tensor:
    dtype = torch.float64 if values.is_floating_point() else values.dtype
    return values.to(dtype, copy=True)
