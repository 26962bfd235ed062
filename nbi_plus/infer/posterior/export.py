"""Export: posteriors as astropy tables, tables of HTML and arviz InferenceData."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus import markup
from nbi_plus.arguments import one_of
from nbi_plus.infer.posterior.columns import ALL_NUMBERS, BY_NAME, MOMENTS, Figure
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.weights.moments import LEVELS

if TYPE_CHECKING:
    from astropy.table import QTable
    from astropy.units import Quantity

    from nbi_plus.infer.posterior.posterior import Posterior
    from nbi_plus.infer.posterior.posteriors import Posteriors
    from nbi_plus.printed import Summary

_N_SHOWN = 10
_LEVELS = dict(zip(MOMENTS[2:], LEVELS, strict=True))


def parameter_table(posterior: Posterior) -> QTable:
    """Return one row per parameter of one posterior."""
    table = _summary({"parameter": list(posterior.names)})
    rows = (posterior.mean(), posterior.std(), *posterior.quantile(list(_LEVELS.values())))
    for name, row in zip(MOMENTS, rows, strict=True):
        _add(table, name, row, BY_NAME[name])
    table["unit"] = [posterior.parameters.units.get(n, "") for n in posterior.names]
    table.meta |= {"status": posterior.status.name, "ess": posterior.ess, "k_hat": posterior.k_hat}
    return table


def object_table(posteriors: Posteriors, uncertified: str) -> QTable:
    """Return one row per object; moments of uncertified ones are NaN unless they are to be kept."""
    one_of("uncertified", uncertified, ("nan", "keep"))
    hide = ~posteriors.certified & (uncertified == "nan")
    plain = verdicts(posteriors) | {k: getattr(posteriors, k) for k in ALL_NUMBERS}
    table = _table()
    for name, values in plain.items():
        _add(table, name, values, BY_NAME[name], hide)
    moments = moments_of(posteriors)
    for i, name in enumerate(posteriors.parameters.names):
        unit = posteriors.parameters.units.get(name)
        for kind, values in moments.items():
            _add(table, f"{name}_{kind}", values[:, i], BY_NAME[kind], hide, unit)
    return table


def long_table(posteriors: Posteriors) -> QTable:
    """Return one row per object and parameter; moments of uncertified objects are NaN."""
    names, n = posteriors.parameters.names, len(posteriors)
    hide = ~posteriors.certified
    table = _summary()
    _add(table, "id", np.repeat(posteriors.ids, len(names)), BY_NAME["id"])
    table["parameter"] = list(names) * n
    for kind, values in moments_of(posteriors).items():
        _add(table, kind, values.ravel(), BY_NAME[kind], np.repeat(hide, len(names)))
    table["unit"] = [posteriors.parameters.units.get(name, "") for name in names] * n
    return table


def verdicts(posteriors: Posteriors) -> dict[str, Any]:
    """Return the verdict on each object, by the names of the columns."""
    return {
        "id": posteriors.ids,
        "status": [s.name for s in posteriors.status],
        "certified": posteriors.certified,
        "trusted": posteriors.trusted,
        "flags": [" ".join(sorted(f.name for f in flags)) for flags in posteriors.flags],
        "settled_by": list(posteriors.settled_by),
    }


def moments_of(posteriors: Posteriors) -> dict[str, NDArray[np.float64]]:
    """Return each moment, shape (N, D), by the names of the columns."""
    quantiles = np.moveaxis(posteriors.quantiles, 1, 0)
    return dict(zip(MOMENTS, (posteriors.mean, posteriors.std, *quantiles), strict=True))


def _add(
    table: QTable, name: str, values: ArrayLike, figure: Figure,
    hide: NDArray[np.bool_] | None = None, unit: str | None = None,
) -> None:  # fmt: skip
    """Put one figure into a table: NaN in the rows to hide, if it is hidden, and described."""
    if figure.hidden and hide is not None:
        values = np.where(hide, np.nan, values)
    table[name] = _with_unit(values, figure.unit if unit is None else unit)
    table[name].info.description = figure.sentence


def _with_unit(values: NDArray[np.float64], unit: str | None) -> NDArray[np.float64] | Quantity:
    from astropy.units import Unit

    return values if unit is None else values * Unit(unit)


def _table(*columns: dict[str, Any], **options: Any) -> QTable:  # noqa: ANN401 - as QTable
    from astropy.table import QTable  # half a second, which only tables are worth

    return QTable(*columns, **options)


def _summary(*columns: dict[str, Any]) -> Summary:
    from nbi_plus.printed import Summary  # as slow

    return Summary(*columns)


def posterior_html(posterior: Posterior) -> str:
    """Return what a notebook shows of one object: verdict, moments and flags."""
    p = posterior
    told = {
        "status": f"{p.status.name}: {p.status.value}", "trusted": p.trusted,
        "draws": len(p), "ess": p.ess, "k-hat": p.k_hat,
        "log evidence": f"{p.log_evidence:.3f} +- {p.log_evidence_err:.3f}",
        **{flag.name: flag.sentence for flag in sorted(p.flags)},
    }  # fmt: skip
    moments = p.summary()._repr_html_() if p.weights.sum() > 0 else ""
    return markup.facts(told, f"Posterior of {p.id}") + moments


def posteriors_html(posteriors: Posteriors) -> str:
    """Return what a notebook shows of many objects: their verdicts, and the first of them."""
    n = len(posteriors)
    counts = Counter(status.name for status in posteriors.status)
    told = {name: f"{k} ({k / n:.0%})" for name, k in counts.most_common()}
    told["trusted"] = f"{posteriors.trusted.sum()} of {n}"
    flags = Counter(flag.name for own in posteriors.flags for flag in own)
    told |= {f"flag {name}": k for name, k in flags.most_common()}
    some = posteriors[:_N_SHOWN]
    spreads = zip(some.mean.tolist(), some.std.tolist(), strict=True)
    values = (
        [
            f"{markup.beside(m, s)} +- {markup.number(s)}" if c else ""
            for m, s in zip(*own, strict=True)
        ]
        for own, c in zip(spreads, some.certified, strict=True)
    )
    figures = zip(some.ids.tolist(), (s.name for s in some.status), some.ess.tolist(),
                  some.k_hat.tolist(), values, strict=True)  # fmt: skip
    rows = [[*row, *own] for *row, own in figures]
    names = ("id", "status", "ess", "k-hat", *posteriors.parameters.names)
    above = f"The first {len(some)} of {n} objects" if n > len(some) else ""
    return markup.facts(told, f"Posteriors of {n} objects") + markup.table(names, rows, above)


def to_arviz(posterior: Posterior, seed: int = 0) -> Any:  # noqa: ANN401 - arviz is optional
    """Return an InferenceData; from arviz 1 on the DataTree that has taken its place.

    Group ``posterior`` is the answer: where converged chains alone are that, these chains; else as
    many resampled draws as are effective, one chain, with what chains there are in a group
    ``chains`` of their own.
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError(
            'to_arviz needs arviz. Install it with: pip install "nbi-plus[arviz]"'
        ) from error
    groups = {k: _named(posterior, v) for k, v in _chain_groups(posterior, seed).items()}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups)
    return arviz.InferenceData(**{k: arviz.dict_to_dataset(v) for k, v in groups.items()})


def _chain_groups(posterior: Posterior, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return the draws (C, N, D) of each group."""
    p = posterior
    by_chains = p.status in (Status.HMC, Status.ENSEMBLE) and np.isnan(p.log_evidence)
    if p.chains is not None and by_chains:
        return {"posterior": p.chains}
    draws = p.resample(max(int(p.ess), 1), np.random.default_rng(seed))[None]
    return {"posterior": draws} | ({} if p.chains is None else {"chains": p.chains})


def _named(posterior: Posterior, draws: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {name: draws[..., i] for i, name in enumerate(posterior.names)}


def plain_table(names: list[str], rows: list[dict[str, Any]], stop_reason: str) -> QTable:
    """Return a table of rows of numbers and words."""
    return _table({k: [row[k] for row in rows] for k in names}, meta={"stop_reason": stop_reason})
