"""Kinds: the surveys that have a door of their own, and how each is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.flat import FlatData
from nbi_plus.data.ingested import Act, Ingest
from nbi_plus.data.surveys.alerts import ELASTICC, RUBIN, ZTF, read_alerts
from nbi_plus.data.surveys.desi import SurveySpectra
from nbi_plus.data.surveys.light_curves import read_release, read_sncosmo
from nbi_plus.data.surveys.points import SurveyCurves, SurveyWishes
from nbi_plus.data.surveys.snana import read_snana
from nbi_plus.data.tables.repeats import check_way

SPECTRA = "desi"
CURVES: dict[str, Callable[[object, SurveyWishes], SurveyCurves]] = {
    "ztf-alert": partial(read_alerts, ZTF),
    "rubin-alert": partial(read_alerts, RUBIN),
    "elasticc": partial(read_alerts, ELASTICC),
    "ztf-dr": read_release,
    "snana": read_snana,
    "sncosmo": read_sncosmo,
}


_OPTIONS = ("time", "duplicates")


def check_kind(kind: str, options: Mapping[str, object]) -> None:
    """Refuse an unknown kind of survey, and words that it has no meaning for."""
    if kind not in (*CURVES, SPECTRA):
        raise ValueError(
            f"kind must be one of {[*CURVES, SPECTRA]}, but is {kind!r}. Read other tables with "
            "Observations.read or from_table."
        )
    known = _OPTIONS[1:] if kind == SPECTRA else _OPTIONS
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(
            f"from_survey of the kind {kind!r} takes nested, zero_point, limits, quality, scalars, "
            f"{', '.join(known)}, but got {unknown}."
        )
    check_way(options.get("duplicates"))


def as_told(curves: SurveyCurves, made: FlatData) -> Ingest:
    """Return what was done to the light curves of a survey, from first to last."""
    points, zero = curves.points, curves.zero_point
    if zero is None:
        note = "magnitudes stay magnitudes; zero_point= makes fluxes of them"
    else:
        came = points.zp[np.isfinite(points.zp)]
        rows = f"{came.min():g} to {came.max():g}" if len(came) else "none"
        note = f"fluxes are at {zero:g}{f' ({curves.unit})' if curves.unit else ''}; came at {rows}"
    codes, names = made.points["band"], made.categories["band"]
    counts = np.bincount(codes, minlength=len(names)).tolist()
    acts = [
        *curves.acts,
        Act("zero point", 0 if zero is None else len(points), "points", note),
        *(act for act in made.ingest if act.act not in ("read", "kept")),
        *(Act("band", n, "points", name) for n, name in zip(counts, names, strict=True) if n),
        *(act for act in made.ingest if act.act == "kept"),
    ]
    limits = made.valid[0] & made.points.get("upper_limit", np.zeros(len(codes), bool))
    if limits.any():
        acts.append(Act("upper limits", int(limits.sum()), "points", "among these"))
    return Ingest(tuple(acts))


def numbers_of(curves: SurveyCurves, ids: NDArray) -> dict[str, NDArray[np.float64]]:
    """Return the scalars of objects; refuse those that some have not."""
    place = np.searchsorted(curves.ids, ids.astype(curves.ids.dtype))
    found = {name: values[place] for name, values in curves.scalars.items()}
    for name, values in found.items():
        wrong = ~np.isfinite(values)
        if wrong.any():
            raise ValueError(
                f"{name} must be known of each object, but is missing of {int(wrong.sum())} of "
                f"{len(ids)} (first: {ids[wrong.argmax()]}). Leave it out of scalars, or these "
                "objects out of the source."
            )
    return found


def spectra_acts(spectra: SurveySpectra, duplicates: str | None) -> Ingest:
    """Return what was done to spectra; refuse repeats where they are to be refused."""
    done = Ingest((*spectra.acts, Act("kept", int(spectra.mask.sum()), "pixels",
                                      f"of {len(spectra.ids)} spectra")))  # fmt: skip
    n = done["duplicates"]
    if duplicates == "refuse" and n:
        raise ValueError(
            f'source must hold each spectrum once, but {n} come again. Give duplicates="merge".'
        )
    return done
