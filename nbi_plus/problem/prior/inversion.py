"""Solve y = f(x) for increasing f, one bracketed root per element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MAX_STEPS = 120  # bisection alone needs about 60 to exhaust float64
_CLOSE = 1e-12  # of 1 + |x|: a Newton step this small is the last


def solve_increasing(
    f: Callable[[Tensor], tuple[Tensor, Tensor]],
    y: Tensor,
    low: Tensor,
    high: Tensor,
    start: Tensor,
) -> Tensor:
    """Return x in [low, high] with f(x) = y, by Newton steps that fall back on bisection.

    Parameters
    ----------
    f : callable
        ``f(x) -> (value, slope)``, elementwise and increasing.
    y, low, high, start : Tensor, shape (...)
        The values to reach, brackets of their roots, and first guesses inside the brackets.

    Returns
    -------
    Tensor, shape (...)
        The roots, without a graph: a caller that wants gradients adds one implicit step.

    Examples
    --------
    >>> y = torch.tensor([8.0, 27.0], dtype=torch.float64)
    >>> zero, ten = torch.zeros_like(y), torch.full_like(y, 10.0)
    >>> solve_increasing(lambda x: (x**3, 3 * x**2), y, zero, ten, zero + 5).tolist()
    [2.0, 3.0]
    """
    with torch.no_grad():
        x, step = start, high - low
        for _ in range(_MAX_STEPS):
            value, slope = f(x)
            error = value - y
            low = torch.where(error <= 0, x, low)
            high = torch.where(error >= 0, x, high)
            move = -error / slope
            arrived = move.abs() <= _CLOSE * (1 + x.abs())
            inside = (x + move >= low) & (x + move <= high)
            # a step that does not at least halve the previous one is a sign of a bend ahead
            good = inside & (2 * move.abs() <= step.abs())
            step = torch.where(good | arrived, move, 0.5 * (low + high) - x)
            x = x + step
            if bool((step.abs() <= _CLOSE * (1 + x.abs())).all()):
                break
    return x
