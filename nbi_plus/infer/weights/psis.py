"""Pareto-smoothed importance sampling: the weights' tail is fitted, judged (k-hat) and smoothed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus import launch

NumericArray: TypeAlias = NDArray[np.float64]

_MIN_TAIL = 5  # fewer exceedances than this say nothing about a tail
_FLAT = 1e-12  # a tail of log-weights narrower than this is one value
_TINY = float(np.finfo(np.float64).tiny)
_EPS = float(np.finfo(np.float64).eps)
_PRIOR_K, _PRIOR_DRAWS = 0.5, 10.0  # weak prior on k-hat: worth ten exceedances at one half


def as_float64(values: ArrayLike | Tensor) -> Tensor:
    """Return ``values`` as a float64 tensor; tensors keep their device, arrays are copied."""
    if isinstance(values, Tensor):
        return values.detach().to(torch.float64)
    return torch.from_numpy(np.array(values, dtype=np.float64))


def like_input(result: Tensor, given: ArrayLike | Tensor) -> Tensor | NumericArray:
    """Return ``result`` as a tensor if the caller gave one, else as numpy."""
    return result if isinstance(given, Tensor) else result.numpy()[()]


def check_log_weights(log_weights: ArrayLike | Tensor) -> Tensor:
    """Return log-weights as float64, or say why they cannot be weights."""
    values = as_float64(log_weights)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(
            "log_weights must have shape (..., n_draws) with n_draws > 0, "
            f"but has {tuple(values.shape)}. Give one log-weight per draw."
        )
    bad = values.isnan() | values.isposinf()
    if bad.any():
        raise ValueError(
            f"log_weights must be finite or -inf, but {int(bad.sum())} of {bad.numel()} are NaN or "
            "+inf. Build them with weights.clean, which judges such draws."
        )
    return values


def row_chunks(n_rows: int, bytes_per_row: int, device: torch.device) -> Iterator[slice]:
    """Yield slices over the rows, each within the working memory of its device."""
    size = max(1, launch.of(device).weighing_bytes // max(1, bytes_per_row))
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def threshold(n_draws: ArrayLike | Tensor) -> Tensor | NumericArray:
    r"""Return the largest k-hat at which this many draws can be trusted.

    :math:`\min(1 - 1 / \log_{10} S, 0.7)` (Vehtari et al. 2024).

    Parameters
    ----------
    n_draws : array_like or Tensor, shape (...)
        Number of draws; ``-inf`` is returned for one draw or none.

    Returns
    -------
    ndarray or Tensor, shape (...)

    Examples
    --------
    >>> round(float(threshold(1000)), 3)
    0.667
    """
    draws = as_float64(n_draws).clamp(min=1.0)
    return like_input((1.0 - 1.0 / draws.log10()).clamp(max=0.7), n_draws)


def sample_size_needed(k_hat: ArrayLike | Tensor) -> Tensor | NumericArray:
    r"""Return the draws that weights with this tail need: :math:`10^{1 / (1 - \max(0, k))}`.

    Parameters
    ----------
    k_hat : array_like or Tensor, shape (...)

    Returns
    -------
    ndarray or Tensor, shape (...)
        ``inf`` for ``k_hat >= 1``: no number of draws will do.

    Examples
    --------
    >>> float(sample_size_needed(0.5))
    100.0
    """
    gap = 1.0 - as_float64(k_hat).clamp(min=0.0)
    return like_input(torch.where(gap > 0, 10.0 ** (1.0 / gap), torch.inf), k_hat)


def psis(
    log_weights: ArrayLike | Tensor, n_draws: Tensor | None = None
) -> tuple[Tensor | NumericArray, Tensor | NumericArray]:
    r"""Return Pareto-smoothed log-weights and k-hat of each object.

    The largest :math:`M = 3 \sqrt{S}` weights (a fifth of them for :math:`S \le 225`) are replaced
    by the quantiles of a generalised Pareto distribution fitted to them (Zhang and Stephens 2009;
    Vehtari et al. 2024), never above the largest raw weight. k-hat is that distribution's shape:
    the weights have about :math:`1 / \hat k` finite moments.

    Parameters
    ----------
    log_weights : array_like or Tensor, shape (..., n_draws)
        Unnormalised; ``-inf`` is a weight of zero. NaN and ``+inf`` are errors.
    n_draws : Tensor, shape (...), optional
        Draws that count, where some of the ``-inf`` stand for draws that were dropped.

    Returns
    -------
    smoothed : same type and shape as ``log_weights``
    k_hat : same type, shape (...)
        0 where the tail is one value (a perfect proposal), ``inf`` where fewer than five draws
        reach into the tail; both are left unsmoothed.

    Examples
    --------
    >>> smoothed, k_hat = psis(np.linspace(-1.0, 0.0, 1000))
    >>> bool(k_hat < 0.5)
    True
    """
    values = check_log_weights(log_weights)
    rows = values.reshape(-1, values.shape[-1])
    counts = _counts(rows, n_draws)
    smoothed, k_hat = rows.clone(), rows.new_empty(len(rows))
    for chunk in _fit_chunks(rows):
        fit = _fit_tail(rows[chunk], counts[chunk])
        k_hat[chunk] = fit.k_hat
        smoothed[chunk] = rows[chunk].scatter(1, fit.index, fit.smoothed)
    return (
        like_input(smoothed.reshape(values.shape), log_weights),
        like_input(k_hat.reshape(values.shape[:-1]), log_weights),
    )


def k_hat_moment(
    log_weights: Tensor, z: Tensor, weights: Tensor, n_draws: Tensor | None = None
) -> Tensor:
    """Return the largest k-hat, over parameters, of the weights times (z - mean)^2, shape (B,).

    Above one the variance of that parameter has no finite estimator, whatever k-hat says of the
    weights alone.

    Parameters
    ----------
    log_weights : Tensor, shape (B, S)
        Raw and unnormalised.
    z : Tensor, shape (B, S, D)
    weights : Tensor, shape (B, S)
        Smoothed and normalised; they give the mean.
    n_draws : Tensor, shape (B,), optional
        Draws that count; default S.
    """
    if n_draws is None:
        n_draws = torch.full(log_weights.shape[:1], log_weights.shape[1], device=z.device)
    positive = log_weights > -torch.inf
    z = torch.where(positive[..., None], z.to(log_weights.dtype), 0.0)  # z may be NaN elsewhere
    distance = (z - (weights[..., None] * z).sum(1, keepdim=True)).abs()
    moments = log_weights[..., None] + 2.0 * distance.log()  # -inf at the mean itself
    per_parameter = _k_hat(
        moments.movedim(2, 1).flatten(0, 1), n_draws.repeat_interleave(z.shape[2])
    )
    return per_parameter.reshape(z.shape[0], z.shape[2]).amax(1)


def _k_hat(rows: Tensor, n_draws: Tensor) -> Tensor:
    """Return k-hat (B,) of checked log-weights (B, S), without smoothing them."""
    chunks = [_fit_tail(rows[c], n_draws[c]).k_hat for c in _fit_chunks(rows)]
    return torch.cat(chunks) if chunks else rows.new_empty(0)


@dataclass(frozen=True)
class _TailFit:
    """The top ``K`` draws of each row: where they are, and their log-weights when smoothed."""

    index: Tensor  # (b, K)
    smoothed: Tensor  # (b, K)
    k_hat: Tensor  # (b,)


def _counts(rows: Tensor, n_draws: Tensor | None) -> Tensor:
    if n_draws is None:
        return torch.full((len(rows),), rows.shape[1], device=rows.device)
    return n_draws.to(rows.device).reshape(-1)


def _fit_chunks(rows: Tensor) -> Iterator[slice]:
    n_tail = int(_tail_length(torch.tensor(rows.shape[1])))
    n_grid = 30 + int(n_tail**0.5)
    return row_chunks(len(rows), 8 * (2 * n_grid * n_tail + rows.shape[1]), rows.device)


def _tail_length(n_draws: Tensor) -> Tensor:
    return torch.where(
        n_draws <= 225, n_draws // 5, torch.ceil(3.0 * n_draws.double().sqrt()).long()
    )


def _fit_tail(rows: Tensor, n_draws: Tensor) -> _TailFit:
    """Fit the tail of each row; only the top of a row is ever sorted.

    A row with fewer positive weights than its tail is long has them all in the tail but the
    smallest, which is the cut-off.
    """
    n_draws_row = rows.shape[1]
    longest = int(_tail_length(torch.tensor(n_draws_row)))
    n_top = min(n_draws_row, max(longest + 1, _MIN_TAIL))
    index = torch.topk(rows, n_top, dim=1).indices.sort(1).values
    top, order = rows.gather(1, index).sort(stable=True, dim=1, descending=True)
    index = index.gather(1, order)  # topk leaves to chance which of equal draws comes first
    top_log = top - top[:, :1].clamp(min=-torch.finfo(rows.dtype).max)  # -inf - -inf would be NaN
    n_finite = torch.isfinite(rows).sum(1)
    length = torch.minimum(_tail_length(n_draws), (n_finite - 1).clamp(min=0))
    cutoff = top_log.gather(1, length[:, None]).exp().clamp(min=_TINY)
    rank = torch.arange(n_top, device=rows.device)
    excess = torch.where(rank < length[:, None], top_log.exp() - cutoff, 0.0).clamp(min=0.0)
    n_excess = (excess > 0).sum(1)  # not ties with the cut-off, nor what underflows

    shape, scale = _fit_pareto(excess, n_excess)
    flat = _is_flat(top_log, torch.minimum(n_finite, _tail_length(n_draws).clamp(min=_MIN_TAIL)))
    fitted = (n_excess >= _MIN_TAIL) & torch.isfinite(shape) & ~flat
    k_hat = torch.where(flat, 0.0, torch.where(fitted, shape, torch.inf))

    quantile = _pareto_quantile(rank, n_excess, shape, scale)
    smoothed = (cutoff + quantile).log().clamp(max=0.0) + top[:, :1]
    replace = fitted[:, None] & (rank < n_excess[:, None]) & torch.isfinite(smoothed)
    return _TailFit(index, torch.where(replace, smoothed, top), k_hat)


def _is_flat(top_log: Tensor, n_tail: Tensor) -> Tensor:
    """Return whether the largest ``n_tail`` draws of each row, at least five, weigh the same."""
    lowest = top_log.gather(1, (n_tail[:, None] - 1).clamp(0, top_log.shape[1] - 1))[:, 0]
    return (n_tail >= _MIN_TAIL) & (top_log[:, 0] - lowest < _FLAT)


def _fit_pareto(excess: Tensor, n_excess: Tensor) -> tuple[Tensor, Tensor]:
    """Fit generalised Pareto distributions: profile over b = -k / sigma, averaged over a grid.

    Parameters
    ----------
    excess : Tensor, shape (b, K)
        Exceedances, descending; the zeros after the first ``n_excess`` add nothing to a sum.
    n_excess : Tensor, shape (b,)

    Returns
    -------
    shape, scale : Tensor, shape (b,)
        The shape is shrunk toward one half; the scale belongs to the shape before that.
    """
    count = n_excess.to(excess.dtype).clamp(min=1.0)
    n_grid = 30.0 + count.sqrt().floor()
    grid = torch.arange(1, int(n_grid.max()) + 1, device=excess.device, dtype=excess.dtype)
    on_grid = grid <= n_grid[:, None]
    position = (count - (count / 4.0 + 0.5).floor()).long().clamp(max=excess.shape[1] - 1)
    quartile = excess.gather(1, position[:, None])
    b = (1.0 - (n_grid[:, None] / (grid - 0.5)).sqrt()) / (3.0 * quartile) + 1.0 / excess[:, :1]
    b = torch.where(on_grid, b, b[:, :1])
    k = (-b[:, :, None] * excess[:, None, :]).log1p_().sum(2) / count[:, None]
    log_fit = count[:, None] * ((-b / k).log() - k - 1.0)
    share = torch.where(on_grid, log_fit, -torch.inf).softmax(1)
    share = torch.where(share >= 10.0 * _EPS, share, 0.0)
    b_mean = (share * b).sum(1) / share.sum(1)
    k_mean = (-b_mean[:, None] * excess).log1p_().sum(1) / count
    shrunk = (count * k_mean + _PRIOR_DRAWS * _PRIOR_K) / (count + _PRIOR_DRAWS)
    return shrunk, -k_mean / b_mean


def _pareto_quantile(rank: Tensor, n_excess: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """Return the expected exceedance (b, K) of each rank, counted from the largest."""
    count = n_excess[:, None].to(shape.dtype)
    p = (count - rank - 0.5) / count.clamp(min=1.0)
    k = torch.where(shape.abs() < 1e-9, 1e-9, shape)[:, None]
    return scale[:, None] * torch.expm1(-k * torch.log1p(-p)) / k
