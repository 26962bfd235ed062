"""Alerts: light curves in the packets of ZTF, Rubin and ELAsTiCC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.ingested import Act
from nbi_plus.data.long_format import to_flux
from nbi_plus.data.surveys.packets import Packets, Part, open_packets
from nbi_plus.data.surveys.points import (
    GIVEN_SIGMA,
    About,
    SurveyCurves,
    SurveyPoints,
    SurveyWishes,
    asked_flags,
    cut,
    joined,
    latest,
    limited,
    names_of_objects,
    numbers,
    one_of,
    texts,
    without,
)
from nbi_plus.data.tables.columns import Column

_NONE = -99999.0, -9999.0, -999.0  # what stands for no value in packets of ZTF
_FAINTEST = 90.0  # beyond which numbers are no magnitudes
_WITHDRAWN = "timeWithdrawnMjdTai"


@dataclass(frozen=True)
class AlertSchema:
    """Where the packets of a survey hold what.

    Attributes
    ----------
    kind : str
    ids : tuple of str
        Fields of the id of the object, ``structure.field``; the first that is there counts.
    trigger, about : str
        The structures of the detection that made the alert, and of its object.
    histories : tuple of str
        The lists that are read by default.
    limits : tuple of str
        Lists of limits alone.
    t, band, flux, flux_err : tuple of str
        Their names in the versions of the schema.
    clock : str
    bands : tuple of str
        All, in order.
    zero_point : float
        The magnitude of flux 1.
    unit : str or None
    numbered : mapping of str
        Names of bands that are numbers.
    flags : tuple of str
        Of quality.
    usual : mapping of flag to bits
        What is cut by default.
    foreign : tuple of str
        Fields of `about` that packets of another kind have.
    """

    kind: str
    ids: tuple[str, ...]
    trigger: str
    about: str
    histories: tuple[str, ...]
    t: tuple[str, ...]
    band: tuple[str, ...]
    flux: tuple[str, ...]
    flux_err: tuple[str, ...]
    clock: str
    bands: tuple[str, ...]
    zero_point: float
    limits: tuple[str, ...] = ()
    unit: str | None = None
    numbered: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    usual: Mapping[str, int | bool] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()


ZTF = AlertSchema(
    kind="ztf-alert",
    ids=("objectId",),
    trigger="candidate",
    about="",
    histories=("prv_candidates",),
    t=("jd",),
    band=("fid",),
    flux=("magpsf", "forcediffimflux"),
    flux_err=("sigmapsf", "forcediffimfluxunc"),
    clock="jd",
    bands=("g", "r", "i"),
    zero_point=23.9,
    numbered={"1": "g", "2": "r", "3": "i"},
    flags=("procstatus",),
)
RUBIN = AlertSchema(
    kind="rubin-alert",
    ids=("diaObject.diaObjectId", "diaSource.diaObjectId", "diaObjectId"),
    trigger="diaSource",
    about="diaObject",
    histories=("prvDiaSources",),
    limits=("prvDiaNondetectionLimits",),
    t=("midpointMjdTai", "midPointTai"),
    band=("band", "filterName"),
    flux=("psfFlux", "psFlux"),
    flux_err=("psfFluxErr", "psFluxErr"),
    clock="mjd",
    bands=("u", "g", "r", "i", "z", "y"),
    zero_point=31.4,
    unit="nJy",
    flags=("psfFlux_flag", "psfFlux_flag_edge", "psfFlux_flag_noGoodPixels", "centroid_flag",
           "shape_flag", "isDipole", "pixelFlags", "pixelFlags_bad", "pixelFlags_cr",
           "pixelFlags_edge", "pixelFlags_interpolated", "pixelFlags_saturated",
           "pixelFlags_suspect", "pixelFlags_streak", _WITHDRAWN),
    usual={"psfFlux_flag": True, _WITHDRAWN: True},
    foreign=("hostgal_zspec", "hostgal_ra", "z_final", "mwebv"),
)  # fmt: skip
ELASTICC = replace(
    RUBIN,
    kind="elasticc",
    t=("midPointTai",),
    band=("filterName",),
    flux=("psFlux",),
    flux_err=("psFluxErr",),
    bands=("u", "g", "r", "i", "z", "Y"),
    zero_point=27.5,
    unit=None,
    flags=(),
    usual={},
    foreign=(),
)


class _Objects(NamedTuple):
    """The object of each packet, and where it is known."""

    ids: NDArray
    known: NDArray[np.bool_]


def read_alerts(schema: AlertSchema, source: object, wishes: SurveyWishes) -> SurveyCurves:
    """Return the light curves in alerts: the lists that are read, and the triggering detections."""
    packets = open_packets(source)
    target = _target(schema, wishes)
    ranks = _lists(schema, packets, wishes.nested)
    acts = [Act("read", sum(map(len, packets)), "alerts", f"of the kind {schema.kind}")]
    found, about, nameless = [], [], 0
    for some in packets:
        objects = _objects(schema, some)
        nameless += int((~objects.known).sum())
        found += [(name, _points(schema, some, name, objects, wishes)) for name in ranks
                  if name in some.names]  # fmt: skip
        about.append(_about(schema, some, objects, wishes.scalars or {}))
    if nameless:
        acts.append(Act("left out", nameless, "alerts", "without an object: Solar System"))
    acts += _counted(schema, found, ranks) + _unread(schema, packets, ranks)
    ranked = [replace(part, rank=np.full(len(part), ranks[name])) for name, part in found]
    points, flagged = cut(joined(ranked), wishes.quality, schema.usual)
    shadowed = _shadowed(points)
    if shadowed.any():
        note = f"of the same object, time and band as one of {next(iter(ranks))}"
        flagged.append(Act("left out", int(shadowed.sum()), "points", note))
    points, limits = limited(points.take(~shadowed), wishes.limits, fluxes=True)
    ids, scalars = latest(about)
    unit = schema.unit if target == schema.zero_point else None
    return SurveyCurves(points, schema.clock, target, unit, schema.bands,
                        (*acts, *flagged, *limits), scalars, ids, flagged=True)  # fmt: skip


def _target(schema: AlertSchema, wishes: SurveyWishes) -> float:
    """Return the zero point that fluxes are brought to."""
    return schema.zero_point if wishes.zero_point is None else float(wishes.zero_point)


def _lists(
    schema: AlertSchema, packets: Sequence[Packets], nested: str | Sequence[str] | None
) -> dict[str, int]:
    """Return the lists to read and their ranks: which of them counts for one image."""
    names = list(dict.fromkeys(name for some in packets for name in some.names))
    known = list(dict.fromkeys(name for some in packets for name in some.nested))
    _check_kind(schema, packets, names)
    if nested is None:
        if schema.trigger not in names:
            raise ValueError(
                f"source must be alerts of the kind {schema.kind!r}, with {schema.trigger!r}, but "
                f"has {names}. Give another kind, or nested= to read a list without it."
            )
        wanted = {schema.trigger: 0} | dict.fromkeys(schema.histories, 0)
        return wanted | dict.fromkeys(schema.limits, 1)
    asked = [nested] if isinstance(nested, str) else list(nested)
    missing = [name for name in asked if name not in names]
    if missing or not asked:
        raise ValueError(
            f"nested must name lists of the packets, but {missing} are none. There are {known}."
        )
    wanted = {name: i for i, name in enumerate(asked)}
    holders = [some for some in packets if schema.trigger in some.names]
    if schema.trigger in wanted or not all(some.is_one(schema.trigger) for some in holders):
        return wanted  # catalogues may hold all detections under the name of the trigger
    alike = [wanted[name] for name in schema.histories if name in wanted]
    return wanted | {schema.trigger: min(alike, default=len(asked))}


def _check_kind(schema: AlertSchema, packets: Sequence[Packets], names: Sequence[str]) -> None:
    """Refuse packets whose fluxes are of another survey, though their fields have these names."""
    if not schema.foreign or schema.about not in names:
        return
    fields = {f for some in packets if schema.about in some.names
              for f in some.part(schema.about).names}  # fmt: skip
    found = sorted(fields & set(schema.foreign))
    if found:
        raise ValueError(
            f"source must be alerts of the kind {schema.kind!r}, but {schema.about!r} has {found}, "
            "as packets of ELAsTiCC have, whose fluxes are of another zero point. Give "
            'kind="elasticc".'
        )


def _objects(schema: AlertSchema, packets: Packets) -> _Objects:
    """Return the ids of the objects of packets."""
    ids, known = np.empty(len(packets), object), np.zeros(len(packets), bool)
    for path in schema.ids:
        column, owner = _field(packets, path)
        if column is not None:
            rows = ~column.missing & ~known[owner]
            ids[owner[rows]] = names_of_objects(column)[rows].tolist()
            known[owner[rows]] = True
    if not known.any():
        raise ValueError(
            f"source must say the id of objects in one of {list(schema.ids)}, but no packet does; "
            f"it has {list(packets.names)}. Give the data of that kind of survey, or another kind."
        )
    ids[~known] = ids[known.argmax()]
    return _Objects(np.array(ids.tolist()), known)


def _field(packets: Packets, path: str) -> tuple[Column | None, NDArray[np.int64]]:
    """Return the column of a field, and the packet of each of its rows."""
    place, _, name = path.rpartition(".")
    if place and place not in packets.names:
        return None, np.zeros(0, np.int64)
    part = packets.part(place)
    held = name in part.names and (place or name not in packets.nested)
    return (part.load(name) if held else None), part.owner


def _points(
    schema: AlertSchema, packets: Packets, name: str, objects: _Objects, wishes: SurveyWishes
) -> SurveyPoints:
    """Return the points of one list, or of the triggering detections."""
    target = _target(schema, wishes)
    flags = dict.fromkeys((*schema.flags, *asked_flags(wishes.quality)))
    part = packets.part(name)
    if not len(part.owner):
        return _none(objects.ids)
    load = {role: part.load(one_of(repr(name), part.names, known)) for role, known in
            (("t", schema.t), ("band", schema.band))}  # fmt: skip
    bands = texts(load["band"])
    x, x_err, zp, limit = _measured(schema, name, part, target)
    points = SurveyPoints(
        ids=objects.ids[part.owner],
        t=numbers(load["t"]),
        band=np.array([schema.numbered.get(b, b) for b in bands.tolist()]),
        x=x,
        x_err=x_err,
        zp=zp,
        limit=limit,
        flags={k: part.load(k) for k in flags if k in part.names},
    )
    return points.take(objects.known[part.owner])


def _none(ids: NDArray) -> SurveyPoints:
    empty, text = np.zeros(0), np.zeros(0, "U1")
    return SurveyPoints(ids[:0], empty, text, empty, empty, empty, np.zeros(0, bool))


def _measured(
    schema: AlertSchema, name: str, part: Part, target: float
) -> tuple[NDArray, NDArray, NDArray, NDArray[np.bool_]]:
    """Return fluxes, errors and zero points of rows, and which are limits."""
    names, n = part.names, len(part.owner)
    limit, same = np.zeros(n, bool), np.full(n, target)
    if name in schema.limits and "diaNoise" in names:
        noise = numbers(part.load("diaNoise"))
        return GIVEN_SIGMA * noise, noise, np.full(n, schema.zero_point), ~limit
    flux = one_of(repr(name), names, schema.flux)
    error = one_of(repr(name), names, schema.flux_err)
    x, x_err = (without(numbers(part.load(k)), *_NONE) for k in (flux, error))
    if flux == "magpsf":
        faintest = _magnitudes(part, "diffmaglim")
        x, x_err = to_flux(np.where(np.abs(x) < _FAINTEST, x, np.nan), x_err, target)
        x = np.where(_is_negative(part), -x, x)
        limit = np.isnan(x) & np.isfinite(faintest)
        deep = to_flux(faintest, None, target)[0]
        return (np.where(limit, deep, x), np.where(limit, deep / GIVEN_SIGMA, x_err), same, limit)
    if "magzpsci" in names:
        return x, x_err, _magnitudes(part, "magzpsci"), limit
    return x, x_err, np.full(n, schema.zero_point), limit


def _magnitudes(part: Part, name: str) -> NDArray[np.float64]:
    """Return magnitudes, NaN where there are none."""
    if name not in part.names:
        return np.full(len(part.owner), np.nan)
    values = numbers(part.load(name))
    return np.where(np.abs(values) < _FAINTEST, values, np.nan)


def _is_negative(part: Part) -> NDArray[np.bool_]:
    """Return which detections are of the reference minus the image."""
    if "isdiffpos" not in part.names:
        return np.zeros(len(part.owner), bool)
    return numbers(part.load("isdiffpos")) == 0


def _shadowed(points: SurveyPoints) -> NDArray[np.bool_]:
    """Return which points are of an image that a list of a lower rank has measured."""
    used = np.isfinite(points.x) & (points.x_err > 0)
    keys = [np.unique(v, return_inverse=True)[1] for v in (points.ids, points.band, points.t)]
    place = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)[1].reshape(-1)
    best = np.full(place.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(best, place[used], points.rank[used])
    return points.rank > best[place]


def _counted(
    schema: AlertSchema, found: Sequence[tuple[str, SurveyPoints]], lists: Mapping[str, int]
) -> list[Act]:
    """Say how many points each list has."""
    acts = []
    for name in lists:
        n = sum(len(part) for own, part in found if own == name)
        act = "trigger" if name == schema.trigger else "history"
        if n or act == "trigger" or any(own == name for own, _ in found):
            acts.append(Act(act, n, "points", name if n else f"{name}: there is none"))
    return acts


def _unread(schema: AlertSchema, packets: Sequence[Packets], lists: Mapping[str, int]) -> list[Act]:
    """Say which lists of points are not read."""
    acts: dict[str, int] = {}
    for some in packets:
        for name in some.nested:
            if name in lists or name == schema.about or name.startswith("cutout"):
                continue
            part = some.part(name)
            if set(part.names) & set(schema.t):
                acts[name] = acts.get(name, 0) + len(part.owner)
    return [Act("not read", n, "points", f"{name}; nested={name!r} reads it")
            for name, n in acts.items()]  # fmt: skip


def _about(
    schema: AlertSchema, packets: Packets, objects: _Objects, scalars: Mapping[str, str]
) -> About:
    """Return what is asked of the objects of packets, and when each packet was made."""
    when = np.full(len(packets), -np.inf)
    times = [f"{schema.trigger}.{name}" for name in schema.t]
    for path in times:
        column, owner = _field(packets, path)
        if column is not None:
            np.maximum.at(when, owner, np.nan_to_num(numbers(column), nan=-np.inf))
    found = {}
    for role, name in scalars.items():
        places = () if "." in name else (schema.about, schema.trigger)
        paths = [name, *(f"{place}.{name}" for place in places if place)]
        tried = [one for one in (_field(packets, path) for path in paths) if one[0] is not None]
        if not tried:
            raise ValueError(
                f"scalars must name fields of the packets, but {name!r} is none. Give a field of "
                f"{[p for p in (schema.about, schema.trigger) if p]}, as 'structure.field'; the "
                f"packets have {list(packets.names)}."
            )
        values = np.full(len(packets), np.nan)
        values[tried[0][1]] = numbers(tried[0][0])
        found[role] = values[objects.known]
    return About(objects.ids[objects.known], when[objects.known], found)
