"""DESI: coadded spectra, whose arms are joined, in files or as records in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.ingested import Act
from nbi_plus.data.surveys.points import SurveyWishes, numbers, one_of
from nbi_plus.data.tables.columns import Column, column
from nbi_plus.data.tables.surveys import key
from nbi_plus.data.tables.table_files import found_files
from nbi_plus.data.tables.tables import arrow_of_frame, as_table
from nbi_plus.io.fingerprint import digest

_FITS = (".fits", ".fits.gz", ".fit", ".fit.gz")
_UNIT = "1e-17 erg / (s cm2 Angstrom)"
_TABLES = ("FIBERMAP", "REDSHIFTS", "ZBEST")
_STATUS = ("COADD_FIBERSTATUS", "FIBERSTATUS")
_IDS = ("TARGETID", "SPECID", "SPARCL_ID")

Fields = dict[str, Column]


class SurveySpectra(NamedTuple):
    """Spectra on one grid: fluxes, errors and mask (n, L), wavelengths (L,), and scalars (n,)."""

    ids: NDArray
    flux: NDArray[np.float64]
    error: NDArray[np.float64]
    mask: NDArray[np.bool_]
    wavelength: NDArray[np.float64]
    unit: str
    scalars: dict[str, NDArray[np.float64]]
    acts: tuple[Act, ...]


def read_spectra(source: object, wishes: SurveyWishes) -> list[SurveySpectra]:
    """Return the spectra of each file, or of each grid of wavelengths."""
    for name in ("nested", "zero_point", "limits"):
        if getattr(wishes, name) not in (None, False):
            raise ValueError(
                f"{name} must be left out for spectra, but is {getattr(wishes, name)!r}."
            )
    parts = [_joined(name, record, wishes) for name, record in _records(source)]
    own = {}
    for part in parts:
        own.setdefault(part.wavelength.tobytes(), []).append(part)
    return [_stacked(alike) for alike in own.values()]


def _records(source: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield arrays by name, and tables of the targets, as files of DESI hold them."""
    if isinstance(source, (str, Path)):
        for path in found_files("source", source, _FITS):
            if not path.name.startswith(("redrock", "zbest")):
                yield path.name, _of_file(path)
    elif isinstance(source, Mapping):
        yield "source", source
    elif (arrow := arrow_of_frame(source)) is not None:
        for row in arrow.to_pylist():
            yield "source", row
    elif isinstance(source, (Sequence, Iterator)):
        for one in source:
            yield from _records(one)
    else:
        raise TypeError(
            "source must be paths of coadds of DESI, or records with wavelength, flux and ivar, "
            f"but is {type(source).__name__}."
        )


def _of_file(path: Path) -> dict[str, Any]:
    """Return the arrays in a file, and its redshifts, which may stand in the file of redrock."""
    from astropy.io import fits

    found: dict[str, Any] = {}
    beside = path.with_name(path.name.replace("coadd-", "redrock-").replace("spectra-", "redrock-"))
    for one in dict.fromkeys([path, beside]):
        if not one.is_file():
            continue
        with fits.open(one, memmap=False) as file:
            for hdu in file[1:]:
                if one != path and hdu.name not in ("REDSHIFTS", "ZBEST"):
                    continue
                if isinstance(hdu, fits.BinTableHDU) and hdu.name in _TABLES:
                    found[hdu.name] = {n: np.array(hdu.data[n]) for n in hdu.columns.names}
                elif hdu.data is not None and "RESOLUTION" not in hdu.name:
                    found[hdu.name] = np.array(hdu.data)
                    if hdu.name.endswith("FLUX"):
                        found["UNIT"] = hdu.header.get("BUNIT")
    return found


def _joined(name: str, record: Mapping[str, Any], wishes: SurveyWishes) -> SurveySpectra:
    """Return the arms of spectra as one, in the order of wavelength."""
    given = {key(k): v for k, v in record.items()}
    arms = [k.removesuffix("wavelength") for k in given if k.endswith("wavelength")]
    if not arms:
        raise ValueError(
            f"{name} must hold spectra, as B_WAVELENGTH, B_FLUX, B_IVAR, or wavelength, flux, "
            f"ivar, but holds {list(record)}. Give coadds of DESI, or another kind."
        )
    read = {what: _arms(name, given, arms, what) for what in ("wavelength", "flux", "ivar")}
    bits = [given.get(f"{arm}mask") for arm in arms]
    masks = [np.zeros(flux.shape, np.int64) if bit is None else np.atleast_2d(bit).astype(np.int64)
             for bit, flux in zip(bits, read["flux"], strict=True)]  # fmt: skip
    wavelength = np.concatenate([w.reshape(-1) for w in read["wavelength"]])
    order = np.argsort(wavelength, kind="stable")
    flux, ivar = (np.concatenate(read[k], 1)[:, order] for k in ("flux", "ivar"))
    mask = np.concatenate(masks, 1)[:, order]
    ids, targets = _targets(record, given, len(flux))
    chosen = {} if wishes.quality is False else {"MASK": True, **dict(
        wishes.quality if isinstance(wishes.quality, Mapping) else {})}  # fmt: skip
    bad = _hit(mask, chosen.pop("MASK", False))
    empty = ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0))
    used = ~(bad | empty)
    acts = [Act("read", len(flux), "spectra", f"of {len(arms)} arms, {len(wavelength)} pixels"),
            Act("masked", int(empty.sum()), "pixels", "ivar 0, or not finite"),
            Act("quality", int((mask != 0).sum()), "pixels",
                f"mask is set: {int((bad & ~empty).sum())} cut for it")]  # fmt: skip
    scalars, told = _scalars(ids, targets, given, wishes.scalars)
    keep, cut = _kept(targets, chosen, len(flux))
    error = 1 / np.sqrt(np.where(used, ivar, 1.0))
    return SurveySpectra(
        ids[keep], np.where(used, flux, np.nan)[keep], error[keep], used[keep], wavelength[order],
        _unit(given.get("unit")), {k: v[keep] for k, v in scalars.items()}, (*acts, *cut, *told),
    )  # fmt: skip


def _arms(
    name: str, given: Mapping[str, Any], arms: Sequence[str], what: str
) -> list[NDArray[np.float64]]:
    """Return what there is of each arm, shape (n, L)."""
    missing = [f"{arm.upper()}{'_' if arm else ''}{what}" for arm in arms
               if f"{arm}{what}" not in given]  # fmt: skip
    if missing:
        raise ValueError(
            f"{name} must hold wavelength, flux and ivar of each arm, but misses {missing}. Give "
            "whole coadds."
        )
    return [np.atleast_2d(np.asarray(given[f"{arm}{what}"], np.float64)) for arm in arms]


def _targets(record: Mapping[str, Any], given: Mapping[str, Any], n: int) -> tuple[NDArray, Fields]:
    """Return the ids of spectra, and what is known of the targets."""
    table = given.get("fibermap")
    plain = {k: v for k, v in record.items() if np.size(v) == n and np.ndim(v) < 2}
    own = plain if table is None else table
    columns: Fields = {}
    if own:
        held = as_table({k: np.atleast_1d(v) for k, v in own.items() if np.ndim(v) < 2})
        columns = held.load(held.names)
    name = one_of("FIBERMAP" if table is not None else "source", list(columns), _IDS)
    ids = columns[name]
    return (ids.values if ids.texts is None else ids.texts[ids.values]), columns


def _hit(values: NDArray[np.int64], bits: int | bool) -> NDArray[np.bool_]:
    if bits is True:
        return values != 0
    return (values & int(bits)) != 0


def _kept(
    targets: Fields, chosen: Mapping[str, int | bool], n: int
) -> tuple[NDArray[np.bool_], list[Act]]:
    """Return which spectra stay, by flags of their fibres, and how many have which."""
    unknown = [name for name in chosen if name not in targets]
    if unknown:
        raise ValueError(
            f"quality must name MASK or flags of the targets, but {unknown} are none. They have "
            f"{list(targets)}."
        )
    keep, acts = np.ones(n, bool), []
    for name in dict.fromkeys([*chosen, *(k for k in _STATUS if k in targets)]):
        values = numbers(targets[name])
        bad = _hit(np.where(np.isfinite(values), values, 0).astype(np.int64),
                   chosen.get(name, True))  # fmt: skip
        done = "cut" if chosen.get(name) else f"kept; quality={{{name!r}: True}} cuts"
        keep &= ~bad if chosen.get(name) else True
        acts.append(Act("quality", int(bad.sum()), "spectra", f"{name} is set: {done}"))
    return keep, acts


def _scalars(
    ids: NDArray, targets: Fields, given: Mapping[str, Any], wished: Mapping[str, str] | None
) -> tuple[dict[str, NDArray[np.float64]], list[Act]]:
    """Return numbers of the targets: as asked, else their redshifts where all have one."""
    table = given.get("redshifts", given.get("zbest"))
    found = dict(targets)
    acts = []
    if table is not None:
        found |= _by_target(ids, table)
    elif "redshift" in targets:
        found.setdefault("Z", targets["redshift"])
    if "ZWARN" in found:
        n = int((numbers(found["ZWARN"]) != 0).sum())
        acts.append(Act("redshifts", n, "spectra", "ZWARN is set: kept"))
    known = "Z" in found and bool(np.isfinite(numbers(found["Z"])).all())
    if wished is None and known:
        acts.append(Act("redshifts", len(ids), "spectra", "scalar redshift, of Z"))
    names = ({"redshift": "Z"} if known else {}) if wished is None else wished
    missing = [name for name in names.values() if name not in found]
    if missing:
        raise ValueError(
            f"scalars must name columns of the targets, but {missing} are none. There are "
            f"{list(found)}. Redshifts are read of a file redrock-... beside coadd-... ."
        )
    return {role: numbers(found[name]) for role, name in names.items()}, acts


def _by_target(ids: NDArray, table: Any) -> Fields:  # noqa: ANN401 - whatever holds columns
    """Return the columns of another table of targets in the order of these; missing where none."""
    held = as_table(table)
    columns = held.load([n for n in held.names if n in ("TARGETID", "Z", "ZERR", "ZWARN")])
    theirs = columns[one_of("redshifts", list(columns), ("TARGETID",))].values
    order = np.argsort(theirs, kind="stable")
    place = order[np.minimum(np.searchsorted(theirs[order], ids), len(theirs) - 1)]
    there = theirs[place] == ids
    return {k: column(k, np.where(there & ~c.missing[place], c.values[place].astype(float), np.nan))
            for k, c in columns.items() if k != "TARGETID"}  # fmt: skip


def _unit(came: str | None) -> str:
    """Return the unit of fluxes as astropy reads it: DESI writes a power of ten as 10**-17."""
    return _UNIT if not came else came.replace("10**-17", "1e-17").replace("10**(-17)", "1e-17")


def _stacked(parts: Sequence[SurveySpectra]) -> SurveySpectra:
    """Return spectra of one grid together; one that comes again, alike, is used once."""
    if len({tuple(sorted(part.scalars)) for part in parts}) > 1:
        raise ValueError(
            "source must have redshifts for all files or for none, but some have none. Put the "
            "files of redrock beside the coadds, or give scalars={}."
        )
    first = parts[0]
    ids = np.concatenate([part.ids for part in parts])
    flux, error, mask = (np.concatenate([getattr(part, k) for part in parts])
                         for k in ("flux", "error", "mask"))  # fmt: skip
    scalars = {k: np.concatenate([part.scalars[k] for part in parts]) for k in first.scalars}
    seen: dict[object, str] = {}
    keep = np.ones(len(ids), bool)
    for i, name in enumerate(ids.tolist()):  # few are there twice, and only these are compared
        said = digest([np.where(mask[i], v[i], 0).tobytes() for v in (flux, error)])
        if name in seen and seen[name] != said:
            raise ValueError(
                f"source must have one spectrum of each target, but {name} has two that differ. "
                "Coadd them first, or give one of them."
            )
        keep[i] = name not in seen
        seen[name] = said
    acts = tuple(act for part in parts for act in part.acts)
    acts += (Act("duplicates", int((~keep).sum()), "spectra", "merged"),)
    return SurveySpectra(ids[keep], flux[keep], error[keep], mask[keep], first.wavelength,
                         first.unit, {k: v[keep] for k, v in scalars.items()}, acts)  # fmt: skip
