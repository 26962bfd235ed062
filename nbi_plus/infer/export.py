"""Export: posteriors as astropy tables and arviz InferenceData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from astropy import units
from astropy.table import QTable
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nbi_plus.infer.posterior import Posterior
    from nbi_plus.infer.posteriors import Posteriors

_LEVELS = {"q16": 0.16, "median": 0.5, "q84": 0.84}


def parameter_table(posterior: Posterior) -> QTable:
    """Return one row per parameter of one posterior."""
    quantiles = posterior.quantile(list(_LEVELS.values()))
    table = QTable(
        {"parameter": list(posterior.names), "mean": posterior.mean(), "std": posterior.std()}
    )
    for name, row in zip(_LEVELS, quantiles, strict=True):
        table[name] = row
    table["unit"] = [posterior.parameters.units.get(n, "") for n in posterior.names]
    table.meta |= {"status": posterior.status.name, "ess": posterior.ess, "k_hat": posterior.k_hat}
    return table


def object_table(posteriors: Posteriors, uncertified: str) -> QTable:
    """Return one row per object; moments of uncertified ones are NaN unless they are to be kept."""
    if uncertified not in ("nan", "keep"):
        raise ValueError(f"uncertified must be 'nan' or 'keep', but is {uncertified!r}.")
    table = QTable({"id": posteriors.ids})
    table["status"] = [s.name for s in posteriors.status]
    table["certified"] = posteriors.certified
    table["flags"] = [" ".join(sorted(f.name for f in flags)) for flags in posteriors.flags]
    for name in posteriors.NUMBERS:
        table[name] = getattr(posteriors, name)
    hide = ~posteriors.certified & (uncertified == "nan")
    for i, name in enumerate(posteriors.parameters.names):
        unit = posteriors.parameters.units.get(name)
        columns = {"mean": posteriors.mean[:, i], "std": posteriors.std[:, i]}
        columns |= {k: posteriors.quantiles[:, j, i] for j, k in enumerate(_LEVELS)}
        for kind, values in columns.items():
            table[f"{name}_{kind}"] = _with_unit(np.where(hide, np.nan, values), unit)
    return table


def _with_unit(
    values: NDArray[np.float64], unit: str | None
) -> NDArray[np.float64] | units.Quantity:
    return values if unit is None else values * units.Unit(unit)


def to_arviz(posterior: Posterior, seed: int = 0) -> Any:  # noqa: ANN401 - arviz is optional
    """Return an InferenceData of as many resampled draws as are effective, one chain."""
    try:
        import arviz
    except ImportError as error:
        raise ImportError(
            'to_arviz needs arviz. Install it with: pip install "nbi-plus[arviz]"'
        ) from error
    draws = posterior.resample(max(int(posterior.ess), 1), np.random.default_rng(seed))
    return arviz.from_dict(
        {"posterior": {n: draws[None, :, i] for i, n in enumerate(posterior.names)}}
    )


def plain_table(names: list[str], rows: list[dict[str, Any]], stop_reason: str) -> QTable:
    """Return a table of rows of numbers and words."""
    return QTable({k: [row[k] for row in rows] for k in names}, meta={"stop_reason": stop_reason})
