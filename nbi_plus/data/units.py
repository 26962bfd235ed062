"""Units: how numbers in one unit become numbers in another."""

from __future__ import annotations


def is_flux_density(unit: str) -> bool:
    """Say whether a unit is one of light that is calibrated, and not of counts.

    Examples
    --------
    >>> is_flux_density("mJy"), is_flux_density("electron / s")
    (True, False)
    """
    from astropy.units import Unit

    return "flux" in str(Unit(unit, parse_strict="silent").physical_type)


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
