"""Units: physical units of what comes in, made explicit as texts and bare numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def split_unit(
    name: str, value: ArrayLike | Sequence[ArrayLike], wanted: str | None = None
) -> tuple[ArrayLike | Sequence[NDArray], str | None]:
    """Return bare numbers and their unit, converted to the ``wanted`` one where that is given.

    Numbers without a unit are taken to be in the wanted one. A time of astropy becomes days (MJD).

    Parameters
    ----------
    name : str
        For the error message.
    value : array_like, Quantity or Time, or a list of them
    wanted : str, optional

    Returns
    -------
    values : array_like
    unit : str or None
        None where neither the value nor ``wanted`` tells.
    """
    if isinstance(value, (list, tuple)) and any(_is_physical(row) for row in value):
        if not all(_is_physical(row) for row in value):
            raise ValueError(
                f"{name} must have units for all objects or for none, but only some have."
            )
        first = split_unit(name, value[0], wanted)[1]
        return [split_unit(name, row, first)[0] for row in value], first
    if not _is_physical(value):
        return value, wanted
    if _is_time(value):
        days = np.asarray(value.mjd, np.float64)
        return (days, "d") if wanted is None else (factor("d", wanted, name) * days, wanted)
    unit = wanted or value.unit.to_string()
    return factor(value.unit.to_string(), unit, name) * np.asarray(value.value, np.float64), unit


def factor(came: str, wanted: str, name: str) -> float:
    """Return what numbers in one unit are multiplied by to be in another.

    Examples
    --------
    >>> factor("h", "d", "t") * 24
    1.0
    """
    if came == wanted:
        return 1.0
    from astropy.units import Unit, UnitConversionError

    try:
        return float(Unit(came).to(Unit(wanted)))
    except (UnitConversionError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be in a unit that converts to {wanted!r}, but is in {came!r} ({error}). "
            "Convert it, or give the unit that the data have."
        ) from error


def base_factor(unit: str) -> float:
    """Return what numbers are multiplied by to be in base units (SI); 1 where there are none.

    Examples
    --------
    >>> base_factor("d")
    86400.0
    """
    from astropy.units import Unit

    try:
        return float(Unit(unit).decompose().scale)
    except (AttributeError, TypeError, ValueError):  # magnitudes, or no unit of astropy
        return 1.0


def _is_time(value: object) -> bool:
    return getattr(value, "mjd", None) is not None


def _is_physical(value: object) -> bool:
    # a column without a unit has the attribute, too, and it is None
    return getattr(value, "unit", None) is not None or _is_time(value)
