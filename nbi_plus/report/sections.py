"""Sections of a report: what each part of the page says of a catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbi_plus import plots
from nbi_plus.data.observations import Observations
from nbi_plus.infer.posterior.status import Flag, Status
from nbi_plus.markup import Html, beside, number, table
from nbi_plus.report.page import bar, grid, paragraph, section, wide
from nbi_plus.report.pictures import against_data, corner, image
from nbi_plus.report.rows import Population, draws_of
from nbi_plus.report.source import Curves, SeenAgain
from nbi_plus.trust.calibration import DOUBTED, Calibration

Rows = Mapping[int, Mapping[str, Any]]
_MOST_ROWS, _MOST_PARAMETERS = 1000, 6
_N_EXAMPLES = 3  # of the worst, and of the slowest
_MOST_BYTES = 2_500_000  # of the pictures of objects
_LONGEST = 80  # letters of a name or a reason
_N_CURVES = 300  # behind a band
_UNFIT = (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, AttributeError)
_FIGURES = {
    "status": "status", "trusted": "trusted", "flags": "flags", "ESS": "ess", "k-hat": "k_hat",
    "points": "n_points", "seconds": "seconds", "settled by": "settled_by",
}  # fmt: skip


def overview(population: Population) -> Html:
    """Return the few numbers that come first, and what the catalogue says of itself."""
    s, survey = population.summary, population.manifest.get("survey", {})
    n = len(population)
    share = f" ({s.n_trusted / n:.0%})" if n else ""
    total = float(np.nansum(population.numbers["seconds"], dtype=np.float64)) if n else 0.0
    told = (("objects", f"{n}"), ("trusted", f"{s.n_trusted}{share}"),
            ("seconds in all", number(total)))  # fmt: skip
    key = "".join(f"<li><strong>{escape(v)}</strong>{escape(k)}</li>" for k, v in told)
    known = {k: survey.get(k) for k in ("engine", "version", "seed", "n_samples")}
    made = ", ".join(f"{k} {v}" for k, v in known.items() if v is not None)
    names = ", ".join(population.parameters)
    return Html(
        f'<ul class="key">{key}</ul>\n' + paragraph(f"Parameters: {names}.")
        + (paragraph(f"Made by {made}.") if made else "")
    )  # fmt: skip


def verdicts(population: Population) -> Html:
    """Return how many objects have each status and each flag."""
    s, n = population.summary, max(len(population), 1)
    status = [(k, v, bar(v / n), _sentence(Status, k)) for k, v in s.status.items()]
    flags = [(k, v, bar(v / n), _sentence(Flag, k)) for k, v in s.flags.items()]
    parts = [_plain(("status", "objects", "share", "meaning"), status, "Statuses")]
    if flags:
        parts.append(_plain(("flag", "objects", "share", "meaning"), flags, "Flags"))
    else:
        parts.append(paragraph("No object has a flag."))
    if s.reasons:
        reasons = [(v, _short(k)) for k, v in s.reasons.items()]
        parts.append(_plain(("objects", "reason"), reasons, "Why objects have no answer"))
    return section("Verdicts", *parts)


def data(population: Population) -> Html:
    """Return how the answers depend on what the data are worth."""
    if not len(population):
        return section("Answers against data", paragraph("The catalogue is empty."))
    pictures = _drawn(lambda: grid(against_data(population), "grid pairs"))
    known = "" if "snr" in population.numbers else paragraph(
        "The S/N is not known: give the source, or carry a column that is called snr."
    )  # fmt: skip
    return section("Answers against data", pictures, known)


def costs(population: Population) -> Html:
    """Return what each rung settled, and at what cost."""
    rungs, n = population.summary.rungs, max(len(population), 1)
    whole = sum(own["objects"] * own["seconds"] for own in rungs.values()) or 1.0
    rows = [
        (name, int(own["objects"]), bar(own["objects"] / n), own["calls"], own["gradients"],
         own["seconds"], own["objects"] * own["seconds"],
         bar(own["objects"] * own["seconds"] / whole))
        for name, own in rungs.items()
    ]  # fmt: skip
    names = ("settled by", "objects", "share", "calls of one", "gradients of one", "seconds of one",
             "seconds in all", "share of the time")  # fmt: skip
    return section("Cost of each rung", _plain(names, rows, "Means of the objects it settled"))


def calibrated(calibration: Calibration | None) -> Html:
    """Return what simulated objects of known truth say of the engine."""
    if calibration is None:
        return section("Calibration", paragraph(
            "No calibration was given: nbi-plus calibrate makes one."
        ))  # fmt: skip
    c = calibration
    shares = zip(c.coverage, c.coverage_low, c.coverage_high, strict=True)
    inside = [[f"{s:.3f} ({a:.2f} to {b:.2f})" for s, a, b in zip(*own, strict=True)]
              for own in shares]  # fmt: skip
    figures = zip(c.names, c.p_values.tolist(), c.max_deviation.tolist(), inside, strict=True)
    rows = [(name, p, d, *own) for name, p, d, own in figures]
    names = ("parameter", "p-value", "deviation", *(f"inside {v:.0%}" for v in c.levels))
    bad = [name for name, p in zip(c.names, c.p_values, strict=True) if p < DOUBTED]
    verdict = f"Against it speak the ranks of {', '.join(bad)}." if bad else (
        f"No p-value is below {DOUBTED:.0%}: {len(c)} objects showed nothing."
    )  # fmt: skip
    words = f"Ranks of the truths of {len(c)} simulated objects; in grey what exact answers give."
    picture = _drawn(lambda: wide(image(plots.ranks(c), words), "Ranks of the truths"))
    return section("Calibration", paragraph(c.scope), paragraph(verdict),
                   _plain(names, rows, "Truths inside central intervals"), picture)  # fmt: skip


def pictured(population: Population) -> NDArray[np.int64]:
    """Return which objects are shown one by one."""
    return np.union1d(population.worst[:_N_EXAMPLES], population.slowest[:_N_EXAMPLES])


def examples(
    population: Population, rows: Rows, seen: SeenAgain | None, curves: Curves | None
) -> Iterator[Html]:
    """Yield the objects that are least to be believed, and those that took longest."""
    left = _MOST_BYTES
    told: set[int] = set()
    for title, order in (("Worst objects", population.worst), ("Slowest objects",
                                                               population.slowest)):  # fmt: skip
        cards = []
        for place in order[:_N_EXAMPLES].tolist():
            card = _card(population, rows[place], seen, curves)
            if place in told or len(card) > left:
                card = _card(population, rows[place], None, None, pictures=False)
            told.add(place)
            left -= len(card)
            cards.append(card)
        yield section(title, grid(cards) if cards else paragraph("There is none."))


def objects(population: Population) -> Html:
    """Return the table of objects, sorted by whoever reads it; of very many only some."""
    chosen = population.shown(_MOST_ROWS)
    names = population.parameters[:_MOST_PARAMETERS]
    some = [(*_figures(row).values(), *_values(row, names))
            for row in population.rows(chosen).values()]  # fmt: skip
    headings = [Html(f'<button type="button">{escape(name)}</button>')
                for name in ("id", *_FIGURES, *names)]  # fmt: skip
    told = f"{len(chosen)} of {len(population)} objects"
    if len(chosen) < len(population):
        told += ": those that are least to be trusted, the slowest, and the first"
    if len(names) < len(population.parameters):
        told += f"; {len(names)} of {len(population.parameters)} parameters"
    made = table(headings, some, f"{told}. A button sorts.", styled=False, name="objects")
    return section("Objects", wide(made, "Table of objects", tall=True))


# --- parts of parts ------------------------------------------------------------------------------


def _card(
    population: Population, row: Mapping[str, Any], seen: SeenAgain | None, curves: Curves | None,
    *, pictures: bool = True,
) -> Html:  # fmt: skip
    """Return one object: its figures, its parameters, its data and its draws."""
    figures = _figures(row)
    name, names = figures.pop("id"), population.parameters
    told = figures | {"calls": row.get("n_simulated"), "reason": _short(row.get("reason") or "")}
    rows = [(k, v) for k, v in told.items() if v not in (None, "")]
    values = zip(names, _values(row, names), strict=True)
    rows += [(k, v) for k, v in values if v]
    parts = [f"<h3>{escape(name)}</h3>\n", table((), rows, styled=False)]
    if pictures:
        parts += _pictures(row, names, seen, curves)
    return Html(f"<article>{''.join(parts)}</article>\n")


def _pictures(
    row: Mapping[str, Any], names: tuple[str, ...], seen: SeenAgain | None, curves: Curves | None
) -> Iterator[Html]:
    draws = draws_of(row, names)
    one = None if seen is None else seen.objects.get(str(row["id"]))
    if one is not None:
        band, why = _band(one, draws, curves)
        words = f"Data of {_short(row['id'])}" + (" with the band of its draws." if why == "" else
                                                  "; no band: " + why)  # fmt: skip
        yield _drawn(lambda: image(plots.observed(one, band), words))
    if draws is not None:
        yield _drawn(lambda: corner(dict(row), names, draws))


def _band(
    one: Observations,
    draws: NDArray[np.float64] | None,
    curves: Curves | None,
) -> tuple[NDArray[np.float64] | None, str]:
    """Return the models of draws, or why there are none."""
    if draws is None:
        return None, "no draws were kept."
    if curves is None:
        return None, "no engine was given."
    try:
        found = curves(one, draws[:_N_CURVES])
    except _UNFIT as error:  # the user's simulator: whatever is wrong, the page is wanted
        return None, _short(f"{type(error).__name__}: {error}", 3 * _LONGEST)
    good = np.isfinite(found).all((1, 2))
    return (found[good], "") if good.any() else (None, "no model is finite.")


def _figures(row: Mapping[str, Any]) -> dict[str, object]:
    """Return what is told of each object, by the names of the columns."""
    told = {label: row.get(name) for label, name in _FIGURES.items()}
    told = {k: "yes" if v is True else "no" if v is False else v for k, v in told.items()}
    return {"id": _short(row["id"])} | told


def _values(row: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Return mean and standard deviation of parameters; nothing where there is no answer."""
    pairs = [(row[f"{name}_mean"], row[f"{name}_std"]) for name in names]
    known = (m is not None and s is not None and np.isfinite(m) for m, s in pairs)
    each = zip(pairs, known, strict=True)
    return [f"{beside(m, s)} ± {number(s)}" if own else "" for (m, s), own in each]


def _drawn(make: Any) -> Html:  # noqa: ANN401 - a function without arguments
    """Return a picture, or say that there is nothing to draw with."""
    try:
        return make()
    except ImportError as error:
        return paragraph(f"No picture: {error}")


def _plain(headings: tuple[str, ...], rows: list, caption: str) -> Html:
    return wide(table(headings, rows, caption, styled=False), caption)


def _sentence(kind: Any, name: str) -> str:  # noqa: ANN401 - Status or Flag
    """Return what a name means; nothing for one of another version."""
    known = kind.__members__.get(name)
    return "" if known is None else getattr(known, "sentence", known.value)


def _short(text: object, most: int = _LONGEST) -> str:
    told = str(text)
    return told if len(told) <= most else f"{told[: most - 3]}..."
