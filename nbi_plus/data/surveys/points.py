"""Points: those of a survey's light curves, with what each kind of survey says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.ingested import Act, Ingest
from nbi_plus.data.tables.columns import Column, Table, column
from nbi_plus.data.tables.grouping import whole
from nbi_plus.data.tables.surveys import key

GIVEN_SIGMA = 5.0  # of the limits that surveys give
Quality = Mapping[str, int | bool] | bool | None


class SurveyWishes(NamedTuple):
    """What a reader of a survey asks for; see `Observations.from_survey`."""

    nested: str | Sequence[str] | None = None
    zero_point: float | None = None
    limits: float | bool | None = None
    quality: Quality = None
    scalars: Mapping[str, str] | None = None

    def checked(self) -> SurveyWishes:
        """Return the same, names of scalars as a mapping, or say what is no wish."""
        scalars, names = self.scalars, self.scalars
        if isinstance(names, str) or (names is not None and not isinstance(names, Mapping)):
            listed = [names] if isinstance(names, str) else list(names)
            scalars = {name.rpartition(".")[2]: name for name in listed}
        zero, limits = self.zero_point, self.limits
        if zero is not None and not (_is_number(zero) and np.isfinite(zero)):
            raise ValueError(f"zero_point must be a finite magnitude, but is {zero!r}.")
        if not (
            isinstance(limits, (bool, type(None))) or (_is_number(limits) and 0 < limits < np.inf)
        ):
            raise ValueError(
                f"limits must be a positive number of sigma, or True or False, but is {limits!r}."
            )
        quality = self.quality
        bits = quality.values() if isinstance(quality, Mapping) else ()
        wrong = [b for b in bits if not isinstance(b, (bool, int, np.integer))]
        if wrong or not isinstance(quality, (Mapping, bool, type(None))):
            raise TypeError(
                "quality must give the bits of flags that cut a point, as {'catflags': 32768} "
                f"(True for any), or be False, but is {quality!r}."
            )
        return self._replace(scalars=scalars)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


@dataclass(frozen=True)
class SurveyPoints:
    """Points of n rows, in any order.

    Attributes
    ----------
    ids : ndarray, shape (n,)
        The object of each, texts or whole numbers.
    t, x, x_err, zp : ndarray, shape (n,)
        NaN where missing; zero points are of magnitudes.
    band : ndarray of str, shape (n,)
        "" where missing.
    limit : ndarray of bool, shape (n,)
        Where x is no measurement but an upper limit of `GIVEN_SIGMA` errors.
    flags : dict of Column
        Signs of quality.
    system : ndarray of str, shape (n,), or None
        The system of zero points, "" where it has no name.
    rank : ndarray of int, shape (n,), or None
        Of points of one image that several lists have, those of the lowest rank count.
    """

    ids: NDArray
    t: NDArray[np.float64]
    band: NDArray[np.str_]
    x: NDArray[np.float64]
    x_err: NDArray[np.float64]
    zp: NDArray[np.float64]
    limit: NDArray[np.bool_]
    flags: dict[str, Column] = field(default_factory=dict)
    system: NDArray[np.str_] | None = None
    rank: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.t)

    def take(self, rows: NDArray) -> SurveyPoints:
        """Return the rows of an index, or of flags."""
        arrays = {k: v[rows] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        flags = {k: replace(c, values=c.values[rows], missing=c.missing[rows])
                 for k, c in self.flags.items()}  # fmt: skip
        return replace(self, **arrays, flags=flags)


class About(NamedTuple):
    """Numbers of objects, each perhaps several times: ids, when that was said, and what (m,)."""

    ids: NDArray
    when: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]


def latest(parts: Sequence[About]) -> tuple[NDArray, dict[str, NDArray[np.float64]]]:
    """Return the ids of objects and the last numbers that each has."""
    ids = np.concatenate([part.ids for part in parts])
    when = np.concatenate([part.when for part in parts])
    values = {k: np.concatenate([part.values[k] for part in parts]) for k in parts[0].values}
    names, place = np.unique(ids, return_inverse=True)
    order = np.lexsort((*values.values(), when, place))
    last = order[np.searchsorted(place[order], np.arange(len(names)), side="right") - 1]
    return names, {k: v[last] for k, v in values.items()}


@dataclass(frozen=True)
class SurveyCurves:
    """What a survey holds, on its way to Observations.

    Attributes
    ----------
    points : SurveyPoints
    clock : str or None
        What times count from.
    zero_point : float or None
        What fluxes are brought to; None for magnitudes.
    unit : str or None
        Of x, at that zero point.
    bands : tuple of str
        All that the survey has, in order; none if that is not known.
    acts : tuple of Act
    scalars : dict of ndarray, shape (N,)
        Of the objects `ids`.
    ids : ndarray, shape (N,)
    flagged : bool
        Whether the survey says which points are upper limits.
    """

    points: SurveyPoints
    clock: str | None
    zero_point: float | None
    unit: str | None
    bands: tuple[str, ...]
    acts: tuple[Act, ...]
    scalars: dict[str, NDArray[np.float64]]
    ids: NDArray
    flagged: bool


def joined(parts: Sequence[SurveyPoints]) -> SurveyPoints:
    """Return the points of all parts; a flag that a part does not have is missing there."""
    names = [k for k, v in vars(parts[0]).items() if isinstance(v, np.ndarray)]
    arrays = {k: np.concatenate([getattr(part, k) for part in parts]) for k in names}
    flags = dict.fromkeys(name for part in parts for name in part.flags)
    return replace(parts[0], **arrays, flags={k: _joined_flag(k, parts) for k in flags})


def _joined_flag(name: str, parts: Sequence[SurveyPoints]) -> Column:
    found = [numbers(p.flags[name]) if name in p.flags else np.full(len(p), np.nan) for p in parts]
    return column(name, np.concatenate(found))


def numbers(column: Column) -> NDArray[np.float64]:
    """Return a column as numbers: NaN where missing, texts by the number they are or begin with."""
    values = column.values
    if column.texts is not None:
        values = np.array([_number(text) for text in column.texts])[values]
    return np.where(column.missing, np.nan, values.astype(np.float64))


def _number(text: str) -> float:
    """Return the largest of the numbers of a text such as "56,61"; 1 for other texts."""
    known = {"t": 1.0, "true": 1.0, "f": 0.0, "false": 0.0}
    try:
        return max(float(part) for part in text.split(","))
    except ValueError:
        return known.get(text.lower(), 1.0)


def texts(column: Column) -> NDArray[np.str_]:
    """Return a column as texts, "" where missing."""
    if column.texts is None:
        found = [f"{value:g}" if value.dtype.kind == "f" else str(value) for value in column.values]
        return np.where(column.missing, "", np.array(found or [""])[: len(found)])
    return np.where(column.missing, "", column.texts[column.values])


def names_of_objects(column: Column) -> NDArray:
    """Return a column of ids as texts or whole numbers, whatever stands where they are missing."""
    if column.texts is not None:
        return column.texts[column.values]
    return whole(np.where(column.missing, 0, column.values))


def one_of(part: str, names: Sequence[str], known: Sequence[str]) -> str:
    """Return the first name that is there, as people write it; or say what must be and what is."""
    called = {key(name): name for name in reversed(names)}
    found = [called[key(name)] for name in known if key(name) in called]
    if not found:
        raise ValueError(
            f"{part} must have one of {list(known)}, but has {list(names)}. Give the data of that "
            "kind of survey, or another kind."
        )
    return found[0]


def check_columns(source: Mapping[str, object]) -> None:
    """Refuse a packet, whose fields hold structures, where a dict of columns must be."""
    nested = [
        name for name, value in source.items()
        if isinstance(value, Mapping)
        or (isinstance(value, (list, tuple)) and any(isinstance(v, Mapping) for v in value))
    ]  # fmt: skip
    if nested:
        raise TypeError(
            f"source must be tables of plain columns for this kind, but {nested} hold structures, "
            "as alerts do. Give the kind of the alert."
        )


def asked_flags(quality: Quality) -> tuple[str, ...]:
    """Return the flags that are asked to cut points."""
    return tuple(quality) if isinstance(quality, Mapping) else ()


def without(values: NDArray[np.float64], *sentinels: float) -> NDArray[np.float64]:
    """Return numbers, NaN where they stand for none."""
    return np.where(np.isin(values, sentinels), np.nan, values)


def cut(
    points: SurveyPoints, wished: Quality, usual: Mapping[str, int | bool]
) -> tuple[SurveyPoints, list[Act]]:
    """Return the points without those whose flags say so, and how many have which flag.

    Parameters
    ----------
    points : SurveyPoints
    wished : mapping of flag to bits, True, False or None
        Bits (or True for any) that cut a point, beside what is `usual`; False cuts nothing.
    usual : mapping of flag to bits
    """
    asked = wished if isinstance(wished, Mapping) else {}
    chosen = {} if wished is False else {**usual, **asked}
    unknown = [k for k in asked if k not in points.flags]
    if unknown:
        raise ValueError(
            f"quality must name flags of the points, but {unknown} are none. They have "
            f"{sorted(points.flags) or 'no flags'}."
        )
    acts, keep = [], np.ones(len(points), bool)
    for name, found in points.flags.items():
        values = numbers(found)
        whole = np.where(np.isfinite(values), values, 0.0).astype(np.int64)
        bits = chosen.get(name, False)
        bad = whole != 0 if bits is True or not bits else (whole & int(bits)) != 0
        said = f"{name} & {bits}" if bits and bits is not True else f"{name} is set"
        if name in chosen and bits:
            keep &= ~bad
        if bad.any() or name in chosen:
            done = "cut" if name in chosen and bits else f"kept; quality={{{name!r}: True}} cuts"
            acts.append(Act("quality", int(bad.sum()), "points", f"{said}: {done}"))
    return points.take(keep), acts


def limited(
    points: SurveyPoints, wished: float | bool | None, fluxes: bool
) -> tuple[SurveyPoints, list[Act]]:
    """Return the points with the upper limits that are wished for: given, of n sigma, or none."""
    given = int(points.limit.sum())
    if wished is False:
        acts = [Act("left out", given, "points", "limits=False: non-detections")] if given else []
        return points.take(~points.limit), acts
    if wished is None or wished is True:
        note = "non-detections, flagged in upper_limit: for the noise UpperLimits"
        acts = [Act("limits", given, "points", note)] if given else []
        return points, acts + _negative(points)
    if not fluxes:
        raise ValueError(
            f"limits={wished!r} must be asked of fluxes, but x holds magnitudes. Give zero_point=, "
            "the magnitude of flux 1."
        )
    n = float(wished)
    measured = np.isfinite(points.x) & (points.x_err > 0)
    faint = measured & ~points.limit & (points.x < n * points.x_err)
    limit = points.limit | faint
    note = (
        f"{given} given, {int(faint.sum())} measured below {n:g} sigma; now limits of {n:g} sigma"
    )
    made = replace(points, x=np.where(limit, n * points.x_err, points.x), limit=limit)
    return made, [Act("limits", int(limit.sum()), "points", note)]


def _negative(points: SurveyPoints) -> list[Act]:
    n = int(((points.x < 0) & ~points.limit).sum())
    note = "measured fluxes below zero stay measurements; limits=5 makes limits of 5 sigma"
    return [Act("negative", n, "points", note)] if n else []


def table_of(curves: SurveyCurves, limits: float | bool | None) -> tuple[Table, dict[str, object]]:
    """Return points as a table whose rows stand in one order however they came, and its roles."""
    points = curves.points
    if not len(points):
        raise ValueError(
            f"source must hold at least one point that is used, but:\n{Ingest(curves.acts)}"
        )
    _, first, place = np.unique(points.ids, return_index=True, return_inverse=True)
    owner = first[place]  # objects keep the order of appearance
    order = np.lexsort((points.x_err, points.x, points.band, points.t, owner))
    points = points.take(order)
    flagged = curves.flagged and limits is not False or bool(points.limit.any())
    made = {
        "id": column("id", points.ids),
        "t": replace(column("t", points.t), unit="d" if curves.clock else None,
                     clock=curves.clock),
        "flux": column("flux", points.x, unit=curves.unit),
        "flux_err": column("flux_err", points.x_err, unit=curves.unit),
        "zp": column("zp", points.zp),
        "band": column("band", points.band),
        "upper_limit": column("upper_limit", points.limit),
    }  # fmt: skip
    roles = {"id": "id", "t": "t", "x": "flux", "x_err": "flux_err", "band": "band",
             "upper_limit": "upper_limit" if flagged else False}  # fmt: skip
    if points.system is not None:
        made["zpsys"] = column("zpsys", points.system)
    return Table(tuple(made), len(points), lambda names: {k: made[k] for k in names}), roles
