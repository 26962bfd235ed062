"""Chains: how far Markov chains of many objects have converged, and what their draws are worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TAILS = (0.05, 0.95)
_SHORT = 100  # steps


def nested_r_hat(x: Tensor, n_super: int) -> Tensor:
    r"""Return the nested R-hat of Margossian et al. (2024), :math:`\sqrt{1 + B / W}`.

    The chains of a superchain start at one point, so that many short chains can be judged: B is
    the variance of the means of superchains, W the mean variance within them. At stationarity
    :math:`\hat R^2 - 1` is about :math:`\chi^2_{K-1} / ((K - 1) M n)` for K superchains of M chains
    with n effective draws each: below :math:`M n \approx 130` a threshold of 1.01 asks too much.

    Parameters
    ----------
    x : Tensor, shape (B, C, N, D)
        Chains, those of a superchain one after the other.
    n_super : int

    Returns
    -------
    Tensor, shape (B, D)
        Infinite where nothing moved.

    Examples
    --------
    >>> x = torch.randn(1, 8, 200, 1, generator=torch.Generator().manual_seed(0)).double()
    >>> apart = x + torch.arange(8.0)[:, None, None]
    >>> bool(nested_r_hat(x, 4) < 1.02), bool(nested_r_hat(apart, 4) > 2)
    (True, True)
    """
    b, c, n, d = x.shape
    each = x.reshape(b, n_super, c // n_super, n, d)
    chain_means = each.mean(3)
    between = chain_means.mean(2).var(1)
    within = torch.zeros_like(chain_means[:, :, 0])
    if c > n_super:
        within = within + chain_means.var(2)
    if n > 1:
        off = each - chain_means[:, :, :, None]
        within = within + off.square().sum(3).mean(2) / (n - 1)
    within = within.mean(1)
    moved = within > 0
    ratio = between / torch.where(moved, within, torch.ones_like(within))
    return torch.where(moved, (1 + ratio).sqrt(), torch.inf)


def folded(x: Tensor) -> Tensor:
    """Return distances from the median of all draws: where scales differ, these disagree."""
    flat = x.flatten(1, 2)
    return (x - flat.median(1).values[:, None, None]).abs()


def chain_ess(x: Tensor) -> Tensor:
    """Return the effective sample size of the mean, shape (B, D), of chains (B, C, N, D).

    Autocorrelations of split chains, summed by Geyer's (1992) initial monotone sequence; no more
    than ``C N log10(C N)`` (Vehtari et al. 2021). 0 where nothing moved.
    """
    half = x.shape[2] // 2
    split = x[:, :, : 2 * half].unflatten(2, (2, half)).flatten(1, 2)
    n_chains, n = split.shape[1:3]
    total = n_chains * n
    means = split.mean(2, keepdim=True)
    covariance = _autocovariance((split - means).transpose(2, 3))
    within = covariance[..., 0] * n / (n - 1)
    variance = covariance[..., 0] + means[:, :, 0].var(1)
    moved = variance > 0
    safe = torch.where(moved, variance, torch.ones_like(variance))
    rho = 1 - (within[..., None] - covariance) / safe[..., None]
    rho[..., 0] = 1.0
    pairs = rho[..., 0 : n - n % 2 : 2] + rho[..., 1:n:2]
    positive = (pairs > 0).to(x.dtype).cumprod(-1)
    monotone = pairs.cummin(-1).values
    tau = (2 * (monotone * positive).sum(-1) - 1).clamp(min=1 / math.log10(max(total, 10)))
    return torch.where(moved, total / tau, 0.0)


def _autocovariance(x: Tensor) -> Tensor:
    """Return autocovariances (B, D, N) of centred series x (B, C, D, N), the mean over C."""
    n_chains, _, n = x.shape[1:]
    if n <= _SHORT:  # all products, summed along diagonals, cost less than transforms
        products = torch.einsum("bcdi,bcdj->bdij", x, x)
        flat = torch.nn.functional.pad(products, (0, n)).flatten(2)
        # read with rows one longer, row i is shifted by i: column k is the diagonal j - i = k
        sheared = torch.nn.functional.pad(flat, (0, n)).unflatten(2, (n, 2 * n + 1))
        return sheared.sum(2)[..., :n] / (n * n_chains)
    padded = 2 ** math.ceil(math.log2(2 * n))
    waves = torch.fft.rfft(x, n=padded)
    power = (waves.real.square() + waves.imag.square()).mean(1)
    return torch.fft.irfft(power, n=padded)[..., :n] / n


def bulk_ess(x: Tensor) -> Tensor:
    """Return the smaller effective sample size (B, D) of means and of variances."""
    centred = x - x.mean((1, 2), keepdim=True)
    return torch.minimum(chain_ess(x), chain_ess(centred.square()))


def tail_ess(x: Tensor) -> Tensor:
    """Return the smaller effective sample size (B, D) of the 5 % and the 95 % quantile."""
    series = x.permute(0, 3, 1, 2).flatten(2)
    ranks = (round(level * (series.shape[2] - 1)) + 1 for level in _TAILS)
    edges = [series.kthvalue(rank, -1).values[:, None, None] for rank in ranks]
    return torch.minimum(*(chain_ess((x <= edge).to(x.dtype)) for edge in edges))
