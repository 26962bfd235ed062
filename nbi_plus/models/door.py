"""The door of the models: arrays of either kind come in, and the same kind goes out.

Behind it a model is torch code alone: it runs where its theta is, in theta's dtype, and carries
gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", NDArray[np.float64], Tensor)


def both_kinds(model: Callable[..., Tensor]) -> Callable[..., Any]:
    """Let a model written in torch take numpy arrays as well, which it then also returns.

    Parameters
    ----------
    model : callable
        A function of tensors, or a method; it returns one tensor.

    Returns
    -------
    callable
        The same function of tensors or of arrays, of which integers become float64. Beside a
        tensor, arrays follow its device.

    Examples
    --------
    >>> double = both_kinds(lambda x: 2 * x)
    >>> double(np.ones(2)), double(torch.ones(2))
    (array([2., 2.]), tensor([2., 2.]))
    """

    @functools.wraps(model)
    def of_either_kind(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  arrays and a self
        given = (*args, *kwargs.values())
        device = next((a.device for a in given if isinstance(a, Tensor)), None)
        output = model(
            *(_tensor(a, device) for a in args),
            **{name: _tensor(a, device) for name, a in kwargs.items()},
        )
        return output.numpy() if device is None else output

    return of_either_kind


def _tensor(argument: Any, device: torch.device | None) -> Any:  # noqa: ANN401
    """Return arrays as tensors of floats on a device, and leave the rest alone."""
    if not isinstance(argument, np.ndarray):
        return argument
    floating = argument.dtype if argument.dtype.kind == "f" else np.dtype(np.float64)
    # a copy: torch shares no read-only memory, and reads no other byte order than the machine's
    native = argument.astype(floating.newbyteorder("="), order="C")
    return torch.from_numpy(native).to(device)


def root(square: Array) -> Array:
    """Return the square root of an array or a tensor: compiled, half a power costs far more."""
    return square.sqrt() if isinstance(square, Tensor) else np.sqrt(square)


def columns(theta: Tensor, *choices: Sequence[str]) -> list[Tensor]:
    """Return the parameters one by one, so shaped that they broadcast against times.

    Parameters
    ----------
    theta : Tensor, shape (..., P)
    *choices : sequence of str
        The lists of names that theta may have, of different lengths.

    Returns
    -------
    list of Tensor, each of shape (..., 1)

    Raises
    ------
    ValueError
        When theta has none of the numbers of columns.
    TypeError
        When theta holds integers, in whose dtype nothing can be computed.
    """
    if theta.ndim == 0 or theta.shape[-1] not in map(len, choices):
        shapes = " or ".join(f"(n, {len(names)})" for names in choices)
        lists = " or ".join(f"({', '.join(names)})" for names in choices)
        raise ValueError(
            f"theta must have shape {shapes} for {lists}, but has {tuple(theta.shape)}."
        )
    if not theta.is_floating_point():
        raise TypeError(
            f"theta must have a floating dtype, but has {theta.dtype}. Call theta.double()."
        )
    return [theta[..., i : i + 1] for i in range(theta.shape[-1])]


def since(t: Tensor, start: Tensor) -> Tensor:
    """Return ``t - start`` in the dtype of ``start``, but subtracted in the finer of the two.

    Parameters
    ----------
    t : Tensor, shape (L,) or (n, L)
    start : Tensor, shape (n, 1)

    Returns
    -------
    Tensor, shape (n, L)
    """
    return (t - start).to(start.dtype)
