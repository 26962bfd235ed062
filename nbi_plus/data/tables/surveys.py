"""Surveys: which column of a table is the time, the flux, its error, the band and the object.

Names are compared in lower case and without ``_``, ``.``, ``-`` and blanks. Of the lines below, the
first that fits decides; two columns that fit the same line are ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nbi_plus.data.tables.columns import Table

Names = str | Sequence[str] | bool | None

_KNOWN = {
    "id": (
        ("id",),
        ("diaobjectid",),  # Rubin
        ("objectid", "oid", "ztfid", "objid", "starid", "targetid", "sourceid", "ticid", "kepid"),
        ("object", "objectname", "name", "target", "star", "sn", "event", "num"),
    ),
    "t": (
        ("t", "time"),
        ("midpointmjdtai",),  # Rubin
        ("mjd", "obsmjd", "mjdobs"),
        ("bjd", "bjdtdb", "bkjd", "btjd", "bmjd"),
        ("hjd", "hmjd"),  # ZTF has mjd, too
        ("jd", "obsjd"),
        ("date", "days", "epoch"),
    ),
    "x": (
        ("x",),
        ("psfflux",),  # Rubin
        ("forcediffimflux",),  # ZTF forced photometry
        ("flux", "fnu", "mag", "magnitude", "magpsf", "psfmag", "vel", "mnvel", "rv"),
        ("pdcsapflux",),  # Kepler, TESS
        ("f",),
        ("y", "u", "b", "g", "v", "r", "i", "j", "h", "k"),  # OGLE; several are a wide table
    ),
    "band": (
        ("band",),
        ("filtercode", "filter", "passband", "bandpass", "filt", "fid", "photfilter"),
        ("tel", "telescope", "instrument", "inst"),
    ),
    "upper_limit": (("upperlimit", "isupperlimit", "isupper", "uplim"),),
    "wavelength": (("wavelength", "wave", "lambda", "wl", "spectralaxis"),),
}
_ZERO_POINTS = (("zp",), ("zeropoint",), ("zeropt",), ("zpdiff",), ("magzpsci",))
_SYSTEMS = (("zpsys", "zpsystem", "magsys"),)
_CALIBRATED = "fluxcal"  # of SNANA: at 27.5, whatever the ZEROPT of the image beside it
_NO_FLUX = (*"yubgvrijhk", "vel", "mnvel", "rv")  # OGLE's magnitudes, and velocities
_ERROR_OF = ("{}err", "{}error", "{}unc", "{}uncertainty", "e{}", "err{}", "sig{}", "sigma{}")
_ERRORS = ("xerr", "yerr", "err", "error", "e", "sigma", "sig", "uncertainty", "unc")
_ERRORS_OF_OTHERS = {"mnvel": "errvel", "magpsf": "sigmapsf", "psfmag": "psfmagerr"}
COORDINATES = ("t", "wavelength", "band", "upper_limit")


@dataclass(frozen=True)
class Roles:
    """Which columns are what.

    Attributes
    ----------
    id : str or None
    x, x_err : tuple of str
        One for each channel; no errors are an empty tuple.
    coords : dict of str
        The column of each coordinate.
    """

    id: str | None
    x: tuple[str, ...]
    x_err: tuple[str, ...]
    coords: dict[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that have a role."""
        own = () if self.id is None else (self.id,)
        return (*own, *self.x, *self.x_err, *self.coords.values())


def find_roles(names: Sequence[str], given: Mapping[str, Names]) -> Roles:
    """Return the role of each column: as given, else guessed.

    Parameters
    ----------
    names : sequence of str
        The columns of the table.
    given : mapping of role to column
        ``id``, ``x``, ``x_err`` and coordinates. None is guessed, False says that there is none;
        ``x`` and ``x_err`` may be several columns, one for each channel.

    Examples
    --------
    >>> find_roles(["oid", "hjd", "mjd", "mag", "magerr", "filtercode"], {}).coords
    {'t': 'mjd', 'band': 'filtercode'}
    """
    _check_keywords(names, given)
    x = _listed(given.get("x")) or _channels(names, "x") or (_guess("x", names),)
    if x == (None,):
        raise ValueError(f"x must name the column of the data, but none was found. {_seen(names)}")
    chosen = {role: given.get(role) for role in (*COORDINATES, "id")}
    taken = {*x, *(came for came in given.values() if isinstance(came, str))}
    left = [n for n in names if n not in taken]
    found = {
        role: _guess(role, left) if came is None else came or None for role, came in chosen.items()
    }
    further = {k: v for k, v in given.items() if k not in ("id", "x", "x_err", *COORDINATES) and v}
    coords = {k: found[k] for k in COORDINATES if found[k]} | further
    if given.get("t") is None and not {"t", "wavelength"} & set(coords):
        raise ValueError(
            f"t must name the column of the times, but none was found. {_seen(names)} "
            "Give t=False for data without times."
        )
    return Roles(found["id"], x, _errors(names, x, given.get("x_err")), coords)


def zero_points(names: Sequence[str], x: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the columns of the zero points of fluxes ``x`` and of their systems, if any."""
    calibrated = _CALIBRATED in map(key, x)
    lines = [line for line in _ZERO_POINTS if not (calibrated and line == ("zeropt",))]
    return _first("zp", lines, names), _first("zpsys", _SYSTEMS, names)


def is_flux(name: str) -> bool | None:
    """Say whether a column of data is a flux by its name; None where the name leaves it open."""
    called = key(name)
    if "mag" in called or called in _NO_FLUX:
        return False
    return True if "flux" in called or called in ("f", "fnu") else None


def telling(names: Sequence[str]) -> list[str]:
    """Return the columns of bands and instruments, of which one may have no role."""
    return [n for n in names if any(key(n) in line for line in _KNOWN["band"])]


def curve_columns(table: Table) -> dict[str, Names]:
    """Return the columns of a light curve of lightkurve, which has errors of NaN for none."""
    has_errors = "flux_err" in table.names
    if has_errors:
        error = table.load(["flux_err"])["flux_err"]
        has_errors = bool((np.isfinite(error.values) & ~error.missing).any())
    errors = "flux_err" if has_errors else False
    return {"id": False, "t": "time", "x": "flux", "x_err": errors, "band": False}


def _check_keywords(names: Sequence[str], given: Mapping[str, Names]) -> None:
    """Refuse columns that are not there, and other words for roles that are not given."""
    roles = {key(alias): role for role, lines in _KNOWN.items() for line in lines
             for alias in line} | dict.fromkeys(_ERRORS, "x_err")  # fmt: skip
    for role, came in given.items():
        meant = roles.get(key(role), "x_err" if key(role).endswith("err") else role)
        free = role in (*_KNOWN, "x_err", "instrument")
        if not free and meant != role and given.get(meant) is None:
            raise TypeError(f"from_table got the keyword {role!r}. Give {meant}={came!r} instead.")
        if not isinstance(came, str) and came and (came is True or role not in ("x", "x_err")):
            raise TypeError(f"{role} must be the name of one column, but is {came!r}.")
        missing = [c for c in _listed(came) if c not in names]
        if missing:
            raise ValueError(
                f"{role} must name a column, but {missing[0]!r} is none. {_seen(names)}"
            )


def _errors(names: Sequence[str], x: tuple[str, ...], came: Names) -> tuple[str, ...]:
    """Return the columns of errors: as given, of the same name as the data, or none."""
    if came is not None:
        return _listed(came)
    found = tuple(_error_of(one, names) for one in x)
    if None in found and any(found):
        raise ValueError(
            f"x_err must have a column for each of {x}, but found {found}. Give x_err=[...]."
        )
    return () if None in found else found


def _error_of(x: str, names: Sequence[str]) -> str | None:
    """Return the column of errors that belongs to the column ``x``."""
    called = key(x)
    own = re.sub(r"^(x)(\d+)$", r"\1err\2", called)  # as Observations.write calls channels
    found = tuple(one.format(called) for one in _ERROR_OF)
    likely = [(_ERRORS_OF_OTHERS.get(called, own),), found]
    rest = [n for n in names if n != x]
    return _first("x_err", [*likely, _ERRORS], rest)


def _channels(names: Sequence[str], role: str) -> tuple[str, ...]:
    """Return the columns role_0, role_1, ... as Observations.write calls them."""
    numbered = [f"{role}_{i}" for i in range(len(names))]
    return tuple(n for n in numbered if n in names) if numbered[0] in names else ()


def _guess(role: str, names: Sequence[str]) -> str | None:
    return _first(role, _KNOWN[role], names)


def _first(role: str, lines: Sequence[Sequence[str]], names: Sequence[str]) -> str | None:
    """Return the column that fits the first line that any fits."""
    for line in lines:
        found = [n for n in names if key(n) in line]
        if len(found) > 1:
            raise ValueError(
                f"{role} must be one column, but may be any of {found}. Say which: "
                f"{role}={found[0]!r}."
            )
        if found:
            return found[0]
    return None


def _listed(came: Names) -> tuple[str, ...]:
    if came is None or isinstance(came, bool):
        return ()
    return (came,) if isinstance(came, str) else tuple(came)


def key(name: str) -> str:
    """Return a name as names are compared."""
    return re.sub(r"[\s_.\-]", "", name.lower())


def _seen(names: Sequence[str]) -> str:
    return f"The columns are {list(names)}."
