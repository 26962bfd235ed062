"""The logarithm of Student's distribution function: exact in the far tail, differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_N_TERMS = 100  # of the continued fraction: an error of 1e-10 for any df between 0.1 and 1e4


def log_student_cdf(z: Tensor, df: float) -> Tensor:
    """Return log P(Z < z), in the shape and type of z, of Student's t with ``df`` degrees."""
    return _LogStudentCdf.apply(z, df)


class _LogStudentCdf(torch.autograd.Function):
    """The gradient is density over probability, which needs no gradient of the fraction."""

    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, df: float) -> Tensor:
        value = _log_cdf(z.double(), df).to(z.dtype)
        ctx.save_for_backward(z, value)
        ctx.df = df
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        z, value = ctx.saved_tensors
        nu = ctx.df
        constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
        density = constant - (nu + 1) / 2 * torch.log1p(z.square() / nu)
        return gradient * torch.exp(density - value), None


def _log_cdf(z: Tensor, df: float) -> Tensor:
    """Return log P(Z < z): half of the incomplete beta function I_x(df / 2, 1 / 2), below zero."""
    a, b = df / 2, 0.5
    x, y = df / (df + z.square()), 1 / (1 + df / z.square())
    tail = x < (a + 1) / (a + b + 2)  # where the fraction converges fast; else its mirror does
    first, second = torch.full_like(z, a), torch.full_like(z, b)
    log_i = _log_incomplete_beta(
        torch.where(tail, x, y),
        torch.where(tail, y, x),
        torch.where(tail, first, second),
        torch.where(tail, second, first),
    )
    lower = torch.where(tail, log_i, torch.log1p(-torch.exp(log_i))) - math.log(2)
    return torch.where(z <= 0, lower, torch.log1p(-torch.exp(lower)))


def _log_incomplete_beta(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return log I_x(a, b), y = 1 - x, by its continued fraction (NIST DLMF 8.17.22)."""
    ratio = torch.zeros_like(x)
    for m in range(_N_TERMS, 0, -1):  # from the innermost term outwards
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        ratio = odd / (1 + even / (1 + ratio))
    norm = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b) - a.log()
    return norm + a * x.log() + b * y.log() - torch.log1p(ratio)
