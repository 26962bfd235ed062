r"""Light curves of supernovae after Bazin et al. (2009, A&A 499, 653).

.. math:: f(t) = A \frac{e^{-(t - t_0)/\tau_\mathrm{fall}}}{1 + e^{-(t - t_0)/\tau_\mathrm{rise}}}

plus a constant. The curve vanishes long before and after :math:`t_0` when
:math:`\tau_\mathrm{rise} < \tau_\mathrm{fall}`, and has no bound else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.models.door import both_kinds, columns, since


@both_kinds
def bazin(theta: Tensor, t: Tensor) -> Tensor:
    """Return light curves in one band.

    Parameters
    ----------
    theta : ndarray or Tensor, shape (n, 5)
        t0, tau_rise, tau_fall, the scale A of the flux, and the background B.
    t : ndarray or Tensor, shape (L,) or (n, L)
        Times, in the units of t0 and of the two time scales.

    Returns
    -------
    ndarray or Tensor, shape (n, L)

    Examples
    --------
    >>> import numpy as np
    >>> bazin(np.array([[0.0, 2.0, 20.0, 10.0, 1.0]]), np.array([-1e9, 0.0, 1e9]))
    array([[1., 6., 1.]])
    """
    *times, scale, background = columns(theta, ("t0", "tau_rise", "tau_fall", "A", "B"))
    return torch.addcmul(background, scale, _form(*times, t))


@dataclass(frozen=True)
class BazinBands:
    """Light curves of which each band has a flux scale, and on demand a background, of its own.

    Attributes
    ----------
    n_bands : int
    background : bool
        One constant for each band follows the flux scales.

    Examples
    --------
    >>> import numpy as np
    >>> model = BazinBands(2)
    >>> model.names
    ('t0', 'tau_rise', 'tau_fall', 'A_0', 'A_1')
    >>> theta, t = np.array([[0.0, 2.0, 20.0, 10.0, 4.0]]), np.zeros(3)
    >>> model(theta, t, np.array([0, 1, 1]))
    array([[5., 2., 2.]])
    """

    n_bands: int
    background: bool = False

    def __post_init__(self) -> None:
        if self.n_bands < 1:
            raise ValueError(f"n_bands must be 1 or more, but is {self.n_bands}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of theta."""
        kinds = ("A", "B") if self.background else ("A",)
        each = [f"{kind}_{i}" for kind in kinds for i in range(self.n_bands)]
        return ("t0", "tau_rise", "tau_fall", *each)

    @both_kinds
    def __call__(self, theta: Tensor, t: Tensor, band: Tensor) -> Tensor:
        """Return light curves.

        Parameters
        ----------
        theta : ndarray or Tensor, shape (n, P)
            In the order of `names`.
        t : ndarray or Tensor, shape (L,) or (n, L)
            Times, in the units of t0 and of the two time scales.
        band : ndarray or Tensor of integers, shape (L,) or (n, L)
            Which band each point is of: 0 to ``n_bands - 1``.

        Returns
        -------
        ndarray or Tensor, shape (n, L)
        """
        t0, tau_rise, tau_fall = columns(theta, self.names)[:3]
        code = self._codes(band)
        flux = self._of_band(theta, 0, code) * _form(t0, tau_rise, tau_fall, t)
        return flux + self._of_band(theta, 1, code) if self.background else flux

    def _codes(self, band: Tensor) -> Tensor:
        """Return the codes as indices; a simulator may receive them as floats."""
        if band.numel() and not 0 <= band.min() <= band.max() < self.n_bands:
            raise ValueError(
                f"band must hold codes 0 to {self.n_bands - 1}, but reaches from "
                f"{float(band.min()):g} to {float(band.max()):g}. Raise n_bands, or number the "
                "bands from 0."
            )
        return band.long()

    def _of_band(self, theta: Tensor, which: int, code: Tensor) -> Tensor:
        """Return the first or second parameter of the band of each point, shape (n, L)."""
        start = 3 + which * self.n_bands
        values = theta[..., start : start + self.n_bands]
        if code.ndim == 1:
            return values.index_select(-1, code)
        return values.expand(*code.shape[:-1], self.n_bands).gather(-1, code)


def _form(t0: Tensor, tau_rise: Tensor, tau_fall: Tensor, t: Tensor) -> Tensor:
    """Return the curves (n, L) with A = 1; no power exceeds 1 unless the curve itself does."""
    x = since(t, t0)
    rise = x / tau_rise
    return torch.exp(rise.clamp(max=0.0) - x / tau_fall) / (1.0 + torch.exp(-rise.abs()))
