r"""Variability as a damped random walk, the Ornstein-Uhlenbeck process of quasars.

A Gaussian process of covariance :math:`\sigma^2 e^{-|\Delta t| / \tau}` (Kelly et al. 2009, ApJ
698, 895), which is Markov: each point depends on the one before it alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nbi_plus.models.door import both_kinds, columns


@both_kinds
def damped_random_walk(theta: Tensor, t: Tensor, normals: Tensor) -> Tensor:
    r"""Return exact draws of the process at sorted times, however uneven.

    .. math:: y_i = a_i y_{i-1} + \sqrt{1 - a_i^2}\, \sigma n_i, \qquad
              a_i = e^{-(t_i - t_{i-1}) / \tau}, \qquad y_0 = \sigma n_0

    about the mean. The recursion runs as a scan in :math:`\log_2 L` passes over whole arrays:
    steps compose to steps whose factor is a product of the :math:`a_i`, at most 1, so that
    rounding does not grow.

    Parameters
    ----------
    theta : ndarray or Tensor, shape (n, 3)
        mean, sigma (the rms of long stretches) and tau (the damping time, in the units of t).
    t : ndarray or Tensor, shape (L,) or (n, L)
        Times, ascending.
    normals : ndarray or Tensor, shape (n, L) or (L,)
        Standard normal numbers; the same ones give the same curve.

    Returns
    -------
    ndarray or Tensor, shape (n, L)

    Examples
    --------
    >>> import numpy as np
    >>> theta, t = np.array([[20.0, 0.5, np.inf]]), np.arange(3.0)
    >>> damped_random_walk(theta, t, np.array([[1.0, 2.0, 3.0]]))  # never forgets: a constant
    array([[20.5, 20.5, 20.5]])
    """
    mean, sigma, tau = columns(theta, ("mean", "sigma", "tau"))
    steps = torch.diff(t, dim=-1).to(theta.dtype)
    if (steps < 0.0).any():
        raise ValueError("t must ascend, but goes back in time. Sort each row by time.")
    gaps = steps / tau
    # the tiny summand keeps the gradient finite where two points share their time
    fresh = torch.sqrt(torch.finfo(theta.dtype).tiny - torch.expm1(-2.0 * gaps))
    first, later = normals[..., :1].to(theta.dtype), normals[..., 1:].to(theta.dtype)
    start, _ = torch.broadcast_tensors(first, tau)
    y = torch.cat([start, fresh * later], -1)
    return torch.addcmul(mean, sigma, _scan(gaps, y))


def _scan(gaps: Tensor, y: Tensor) -> Tensor:
    """Return the running sums of y (n, L) in which all before fades by exp(-gaps), (n, L - 1).

    After passes over 1, 2, 4, ... points each sum reaches back over twice as many.
    """
    reach = 1
    while reach < y.shape[-1]:
        faded = torch.exp(-gaps) * y[..., :-reach]
        y = torch.cat([y[..., :reach], y[..., reach:] + faded], -1)
        # the gap over 2 * reach points is the sum of two over reach
        gaps = gaps[..., reach:] + gaps[..., :-reach]
        reach *= 2
    return y
