"""Zero points: fluxes of rows that have different ones, brought to one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.tables.columns import Column
from nbi_plus.data.tables.surveys import is_flux, zero_points
from nbi_plus.data.units import is_flux_density

_LOG = logging.getLogger("nbi_plus")


class ZeroPoints(NamedTuple):
    """The columns of zero points and of their systems, if any, and whether that was said."""

    value: str | None = None
    system: str | None = None
    said: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Both columns, those that there are."""
        return tuple(name for name in (self.value, self.system) if name is not None)


def find_zero_points(names: Sequence[str], x: Sequence[str], came: str | bool | None) -> ZeroPoints:
    """Return the columns of zero points: as given, else guessed among ``names``; False is none."""
    if came is False:
        return ZeroPoints()
    if came is None:
        value, system = zero_points(names, x)
        return ZeroPoints(value, system) if value else ZeroPoints()
    if came not in names:
        raise ValueError(
            f"zp must name the column of zero points, but {came!r} is none. The columns are "
            f"{list(names)}. Give zp=False to leave fluxes as they are."
        )
    return ZeroPoints(came, zero_points([n for n in names if n != came], x)[1], said=True)


def scaling(
    found: ZeroPoints,
    columns: Mapping[str, Column],
    x: Sequence[str],
    band: Column | None,
    wanted: float | None,
) -> NDArray[np.float64] | None:
    r"""Return what the fluxes of rows are multiplied by, :math:`10^{-0.4 (z - z_0)}`.

    Parameters
    ----------
    found : ZeroPoints
    columns : mapping of name to Column
    x : sequence of str
        The columns of the data.
    band : Column or None
        Systems are told apart band by band.
    wanted : float or None
        The zero point z_0; by default the most common one.

    Returns
    -------
    ndarray, shape (n,), or None
        NaN where the zero point is missing; None where x stays as it is.
    """
    if found.value is None or not _are_fluxes(found, columns, x):
        return None
    zero = _numbers(found.value, columns[found.value])
    known = np.isfinite(zero)
    if not known.any():
        _LOG.warning("The column %r of zero points is empty: fluxes stay as they are.", found.value)
        return None
    if found.system is not None:
        _check_systems(found.system, columns[found.system], band)
    values = np.unique(zero[known])
    target = most_common(zero) if wanted is None else wanted
    if not math.isfinite(target):
        raise ValueError(f"zero_point must be a finite magnitude, but is {target}.")
    _report(found.value, values, target, int((~known).sum()))
    return 10 ** (-0.4 * (zero - target))


def most_common(zero: NDArray[np.float64]) -> float | None:
    """Return the zero point that most rows have, None where none has any."""
    values, counts = np.unique(zero[np.isfinite(zero)], return_counts=True)
    return float(values[counts.argmax()]) if len(values) else None


def _are_fluxes(found: ZeroPoints, columns: Mapping[str, Column], x: Sequence[str]) -> bool:
    """Say whether x are fluxes that the zero points belong to; refuse what may be or not."""
    units = [columns[name].unit for name in x]
    sure = [_is_flux(name, unit) for name, unit in zip(x, units, strict=True)]
    if False in sure:
        if found.said:
            raise ValueError(
                f"zp must be the zero points of fluxes, but x is {list(x)}. Leave zp= out: "
                "magnitudes have their zero point in them."
            )
        return False
    if found.said or None not in sure:
        return True
    zero = _numbers(found.value, columns[found.value])
    if len(np.unique(zero[np.isfinite(zero)])) < 2:
        return False  # whatever x is, its rows are alike
    raise ValueError(
        f"x must be fluxes where rows differ in their zero point, but {list(x)} (in {units}) "
        f"may be calibrated already, or no fluxes. Give zp={found.value!r} to scale them, or "
        "zp=False to leave them as they are."
    )


def _is_flux(name: str, unit: str | None) -> bool | None:
    if unit is not None and unit.startswith("mag"):
        return False
    if unit is not None and is_flux_density(unit):
        return None  # calibrated: the zero point may be that of the image
    return is_flux(name)


def _numbers(name: str, column: Column) -> NDArray[np.float64]:
    if column.texts is not None and not column.missing.all():
        raise TypeError(
            f"zp must be a column of numbers, but {name!r} holds texts. Convert it, or give "
            "zp=False."
        )
    return np.where(column.missing, np.nan, column.values.astype(np.float64))


def _check_systems(name: str, column: Column, band: Column | None) -> None:
    """Refuse two systems within one band, which differ by a constant that we do not know."""
    known = ~column.missing
    texts = column.values if column.texts is None else np.char.lower(column.texts)
    texts = texts if column.texts is None else texts[column.values]
    systems, codes = np.unique(texts[known], return_inverse=True)
    if len(systems) < 2:
        return
    bands = np.zeros(len(codes), np.int64) if band is None else band.values[known]
    for one in np.unique(bands):  # few, and only where there are several systems
        mixed = systems[np.unique(codes[bands == one])].tolist()
        if len(mixed) > 1:
            named = "x" if band is None else one if band.texts is None else band.texts[int(one)]
            raise ValueError(
                f"{name} must be one system in each band, but {named!s} has {mixed}. Convert the "
                "fluxes to one (sncosmo can), read the rows of one, or give zp=False if they are "
                "alike."
            )
    _LOG.info("Zero points are of the systems %s, one in each band.", systems.tolist())


def _report(name: str, values: NDArray[np.float64], target: float, n_missing: int) -> None:
    """Log what fluxes are scaled to, if any are, and how many points have no zero point."""
    if len(values) > 1 or values[0] != target:
        _LOG.warning("Fluxes with zero points from %g to %g (%r) are scaled to %g. Give "
                     "zero_point= for another, as that of the data trained on, or zp=False.",
                     values[0], values[-1], name, target)  # fmt: skip
    else:
        _LOG.info("All fluxes have the zero point %g (%r).", target, name)
    if n_missing:
        _LOG.warning("%d points are masked, as %r misses their zero point.", n_missing, name)
