"""Ingest: the one front door for data, whatever holds them: masks, units and times are kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.units import factor

Bare = NDArray | np.ma.MaskedArray
_LOG = logging.getLogger("nbi_plus")
_MJD_0 = np.datetime64("1858-11-17")
_SECONDS = ("unix", "unix_tai", "cxcsec", "gps", "galexsec")  # numeric formats of astropy's Time
_YEARS = ("byear", "jyear", "decimalyear")


def ingest(
    name: str, value: ArrayLike | Sequence[ArrayLike], wanted: str | None = None
) -> tuple[Bare | list[Bare], str | None]:
    """Return bare numbers, masked where the value is, and their unit.

    Masks of numpy, astropy (``Masked``, columns, ``NDData``), pandas and pyarrow, and None among
    numbers, become the mask of a ``numpy.ma`` array; without one the array is plain. A ``Quantity``
    is converted to the ``wanted`` unit. A ``Time`` gives its value where its format is numeric,
    else MJD, as dates do.

    Parameters
    ----------
    name : str
        For the messages.
    value : array_like, or a list of them
        A list of arrays that differ in length stays one.
    wanted : str, optional
        Numbers without a unit are taken to be in it.

    Returns
    -------
    values : ndarray, MaskedArray or list of these
    unit : str or None
        None where neither the value nor ``wanted`` tells.

    Examples
    --------
    >>> ingest("x", np.ma.masked_array([1.0, 2.0], [False, True]))[0].mask.tolist()
    [False, True]
    """
    _report_times(name, value)
    return _ingested(name, value, wanted)


def _ingested(
    name: str, value: ArrayLike | Sequence[ArrayLike], wanted: str | None
) -> tuple[Bare | list[Bare], str | None]:
    if isinstance(value, (list, tuple)) and (any(map(_is_rich, value)) or _is_ragged(value)):
        return _together(name, value, wanted)
    array, bad, unit = _opened(name, value)
    if unit is not None and wanted is not None and unit != wanted:
        array = factor(unit, wanted, name) * np.asarray(array, np.float64)
    return _masked(array, bad), wanted if wanted is not None else unit


def numbers(name: str, value: ArrayLike, wanted: str | None = None) -> NDArray[np.float64]:
    """Return a float64 copy, NaN where masked, or say what came instead of numbers.

    A unit is refused where none is ``wanted``: whoever takes it along calls `ingest`.
    """
    came = unit_of(value)
    if wanted is None and came not in (None, ""):
        raise ValueError(
            f"{name} must be bare numbers where no unit is known, but is in {came!r}. Give a unit "
            "to what it goes with, or its value alone."
        )
    array, _ = ingest(name, value, wanted)
    if isinstance(array, list):
        raise ValueError(f"{name} must be a regular array, but its rows differ in length.")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, but has dtype {array.dtype}.")
    return np.ma.filled(array.astype(np.float64), np.nan)


def errors_of(x_err: ArrayLike | Sequence[ArrayLike], unit: str | None) -> Bare | list[Bare]:
    """Return errors in the unit of the data, or say that the data have none."""
    errors, came = ingest("x_err", x_err, unit)
    if unit is None and came is not None:
        raise ValueError("x must have a unit where x_err has one, but has none.")
    return errors


def point_mask(mask: ArrayLike | None, bad: ArrayLike | None) -> ArrayLike | list[Bare] | None:
    """Return which points are real, of ``mask`` (True = real) or ``bad`` (True = leave out).

    What is itself masked is left out.
    """
    if mask is None and bad is None:
        return None
    if mask is not None and bad is not None:
        raise ValueError(
            "mask and bad must not be given both, but are. Give mask= (True = a real point) or "
            "bad= (True = leave out, as in numpy and astropy)."
        )
    name, came = ("mask", mask) if bad is None else ("bad", bad)
    flags, _ = ingest(name, came)
    parts = [_flags(name, part) for part in (flags if isinstance(flags, list) else [flags])]
    real = [np.ma.filled(part if bad is None else ~part, False) for part in parts]
    return real if isinstance(flags, list) else real[0]


def report_left_out(valid: NDArray[np.bool_]) -> None:
    """Log how many points are not used, if any; loudly where it is most of them."""
    n_out = int((~valid).sum())
    if n_out:
        level = logging.WARNING if 2 * n_out > valid.size else logging.INFO
        hint = " Is the mask the wrong way round? mask= is True for real points, bad= for others."
        _LOG.log(level, "%d of %d points are left out.%s", n_out, valid.size,
                 hint if level == logging.WARNING else "")  # fmt: skip


def _opened(name: str, value: Any) -> tuple[NDArray, NDArray | None, str | None]:  # noqa: ANN401
    """Return the bare values, what of them is masked, and the unit of any one object."""
    if is_time(value):
        return times(value)[:3]
    unit, array = unit_of(value), _values_of(name, value)
    bad = _mask_of(value)
    if array.dtype.kind == "O":
        array, bad = _of_objects(array, bad)
    if array.dtype.kind == "M":
        days = (array - _MJD_0) / np.timedelta64(1, "D")
        return days, _either(bad, np.isnat(array)), "d"
    if array.dtype.kind == "m":
        return array / np.timedelta64(1, "D"), _either(bad, np.isnat(array)), "d"
    return array, bad, unit


def is_time(value: object) -> bool:
    """Say whether a value is of astropy's Time, or a span of it."""
    return getattr(value, "format", None) is not None and getattr(value, "jd", None) is not None


def unit_of(value: object) -> str | None:
    """Return the unit that a value of astropy, unyt or pint carries, or a list of such; or None."""
    if isinstance(value, (list, tuple)):
        return next((unit for part in value if (unit := unit_of(part)) is not None), None)
    unit = getattr(value, "unit", None)
    if unit is None and not callable(getattr(value, "units", None)):
        unit = getattr(value, "units", None)
    return None if unit is None else str(unit)


def times(value: Any) -> tuple[NDArray, NDArray | None, str, str | None]:  # noqa: ANN401
    """Return the numbers of a Time, what is masked, their unit and the format they are of.

    They are those of its own format, or MJD where that has none; a span of time has no format.
    """
    bad = _mask_of(value)
    if getattr(value, "mjd", None) is None:  # a span
        return np.asarray(np.ma.getdata(_plain(value.jd)), np.float64), bad, "d", None
    shown = _plain(value.value)
    form = value.format if np.asarray(shown).dtype.kind in "fiu" else "mjd"
    days = np.asarray(np.ma.getdata(_plain(value.value if form == value.format else value.mjd)),
                      np.float64)  # fmt: skip
    return days, bad, "s" if form in _SECONDS else "yr" if form in _YEARS else "d", form


def _report_times(name: str, value: Any) -> None:  # noqa: ANN401
    """Log the range of one Time, or of a list of them, in the numbers that are used."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    found = [times(part) for part in parts if is_time(part)]
    real = [(days if bad is None else days[~bad]).ravel() for days, bad, _, form in found if form]
    if real and (shown := np.concatenate(real)).size:
        _LOG.info("%s: times from %.10g to %.10g (%s).", name, np.nanmin(shown),
                  np.nanmax(shown), found[0][3])  # fmt: skip


def _mask_of(value: Any) -> NDArray[np.bool_] | None:  # noqa: ANN401
    """Return where a value is masked or missing, None where nothing is."""
    missing = getattr(value, "isna", getattr(value, "is_null", None))
    mask = missing() if callable(missing) else getattr(value, "mask", None)
    if mask is None or callable(mask):
        return None
    found = np.asarray(mask, bool)
    return found if found.any() else None


def _values_of(name: str, value: Any) -> NDArray:  # noqa: ANN401
    """Return the bare array of a value, what is masked in it included."""
    if callable(getattr(value, "isna", None)):
        # pandas' own whole numbers and flags that miss some are no numbers of numpy
        missed = value.dtype.kind in "fiub" and value.isna().any()
        return value.to_numpy(dtype=np.float64, na_value=np.nan) if missed else value.to_numpy()
    if callable(getattr(value, "detach", None)):
        return value.detach().cpu().numpy()
    try:
        return np.asarray(np.ma.getdata(_plain(value)))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be a regular array, but its rows differ: {error}."
        ) from error


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return what is inside a masked or physical value of astropy, unyt or pint."""
    value = getattr(value, "unmasked", value)
    if getattr(value, "uncertainty", value) is not value:  # NDData, whose errors are x_err's matter
        return value.data
    if unit_of(value) is None or isinstance(value, np.ma.MaskedArray):
        return value
    return getattr(value, "value", getattr(value, "magnitude", value))


def _of_objects(array: NDArray, bad: NDArray | None) -> tuple[NDArray, NDArray | None]:
    """Return numbers, texts or dates that came as objects; None is missing."""
    missing = np.array([v is None or v is np.ma.masked for v in array.flat], bool)
    missing = missing.reshape(array.shape) | (False if bad is None else bad)
    kinds = {type(v) for v in array[~missing].flat}
    if kinds & {str, bytes}:
        return array.astype(str), missing if missing.any() else None
    if kinds and all(callable(getattr(kind, "isoformat", None)) for kind in kinds):
        return np.where(missing, None, array).astype("datetime64[us]"), None
    try:
        filled = np.where(missing, np.nan, array).astype(np.float64)
    except (TypeError, ValueError):
        return array, bad  # whoever wants numbers says what came
    return filled, missing if missing.any() else None


def _together(
    name: str, parts: Sequence[ArrayLike], wanted: str | None
) -> tuple[Bare | list[Bare], str | None]:
    """Return parts in one unit: as one array where they have one shape, else as a list."""
    known = [unit_of(part) is not None or is_time(part) for part in parts]
    if any(known) and not all(known):
        raise ValueError(f"{name} must have units for all objects or for none, but only some have.")
    unit = _ingested(name, parts[0], wanted)[1]
    bare = [_ingested(name, part, unit)[0] for part in parts]
    if any(isinstance(part, list) for part in bare) or len({part.shape for part in bare}) > 1:
        return bare, unit
    masked = any(isinstance(part, np.ma.MaskedArray) for part in bare)
    return (np.ma.stack if masked else np.stack)(bare), unit


def _is_ragged(parts: Sequence[ArrayLike]) -> bool:
    """Say whether the parts are arrays of different lengths, and not just an array gone wrong."""
    try:
        shapes = {np.shape(part) for part in parts}
    except ValueError:
        return False
    return len(shapes) > 1 and () not in shapes


def _is_rich(value: object) -> bool:
    """Say whether a part of a list holds more than numpy would keep."""
    if isinstance(value, (int, float, complex, str, bytes, np.generic)):
        return False
    if type(value) is np.ndarray:
        return False
    if isinstance(value, (list, tuple)):
        return any(_is_rich(part) for part in value)
    return is_time(value) or unit_of(value) is not None or _mask_of(value) is not None


def _flags(name: str, value: Bare) -> Bare:
    if value.dtype.kind != "b" and not np.isin(np.ma.compressed(value), (0, 1)).all():
        raise ValueError(
            f"{name} must hold flags, true or false, but has dtype {value.dtype}. Give for "
            "example mask=x_err > 0."
        )
    return value.astype(bool)


def _masked(array: NDArray, bad: NDArray | None) -> Bare:
    return array if bad is None else np.ma.MaskedArray(array, np.broadcast_to(bad, array.shape))


def _either(bad: NDArray | None, more: NDArray) -> NDArray | None:
    found = more if bad is None else bad | more
    return found if found.any() else None
