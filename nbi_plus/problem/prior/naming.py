"""What the parameters are called: names, display labels, units and fixed values, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.ingest import numbers
from nbi_plus.data.tables.tables import as_table, is_table
from nbi_plus.markup import Shown, table

if TYPE_CHECKING:
    from nbi_plus.problem.prior.transport import Transport

Labels = Sequence[str] | Mapping[str, str]
_N_FILED_MAX = 500  # each takes up to some 20 ms


class NamedParameters(Shown):
    """Parameters as a notebook shows them: each with its unit, its distribution and its edges."""

    names: tuple[str, ...]
    units: Mapping[str, str]
    fixed: Mapping[str, float]
    transport: Transport

    def _repr_html_(self) -> str:
        units, edges = self.units, self.transport.support
        each = zip(self.names, self.transport.laws, edges, strict=True)
        rows = [(name, law, *ends, units.get(name, "")) for name, law, ends in each]
        rows += [(name, "fixed", v, v, units.get(name, "")) for name, v in self.fixed.items()]
        headings = ("parameter", "distribution", "least", "largest", "unit")
        return table(headings, rows, f"{type(self).__name__} of {len(self.names)} parameters")


def is_number(given: object) -> bool:
    """Tell whether a parameter was given as a fixed value."""
    return isinstance(given, Real) and not isinstance(given, bool)


def entries_of(parameters: object, labels: Labels | None) -> dict[str, object]:
    """Return what was given for each name."""
    if isinstance(parameters, Mapping):
        refuse_duplicates("parameters", list(parameters))
        return dict(parameters)
    if isinstance(parameters, Sequence) and not isinstance(parameters, str):
        names = names_of(labels, len(parameters)) if parameters else []
        return dict(zip(names, parameters, strict=True))
    raise TypeError(
        "parameters must be a mapping of names to distributions, a sequence of distributions or a "
        f"prior_transform, but is {type(parameters).__name__} {parameters!s:.80}. "
        "Write for example {'t0': scipy.stats.uniform(0, 10)}."
    )


def mapping_or_none(labels: Labels | None) -> Mapping[str, str] | None:
    """Return labels if they are a mapping to display labels; else they were the names."""
    return labels if isinstance(labels, Mapping) else None


def names_of(labels: Labels | None, n_dim: int | None) -> list[str]:
    """Return parameter names from labels; ``n_dim`` is None for a prior_transform."""
    if labels is None and n_dim is not None:
        return [f"theta_{d}" for d in range(n_dim)]
    if labels is None or isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ValueError(
            "labels must be a list with one name for every parameter, but is "
            f"{labels!r}. Write for example labels=['t0', 'u0']."
        )
    names = list(labels)
    if not names or n_dim not in (None, len(names)):
        wanted = "at least one parameter" if n_dim is None else f"all {n_dim} parameters"
        raise ValueError(
            f"labels must name {wanted}, but has {len(names)}: {names}. "
            "Give one name for every parameter."
        )
    refuse_duplicates("labels", names)
    return names


def refuse_duplicates(what: str, names: Sequence[object]) -> None:
    """Raise unless all names are different, non-empty text."""
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"{what} must have names that are non-empty text, but one is {name!r}. Use str."
            )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"{what} must not repeat a name, but {repeated} came twice among {list(names)}. "
            "Rename or drop one of them."
        )


def refuse_too_many(names: Sequence[str]) -> None:
    """Raise unless a file names so few parameters that their distributions are soon there."""
    if len(names) > _N_FILED_MAX:
        raise ValueError(
            f"prior must have at most {_N_FILED_MAX} parameters to be rebuilt from a file, but has "
            f"{len(names)}. Pass the prior again."
        )


def refuse_other_names(names: tuple[str, ...], told: Sequence[str], n_dim: int) -> None:
    """Raise unless a file names its free parameters twice alike, and as many as there are."""
    if names != tuple(told) or len(names) != n_dim:
        raise ValueError(
            f"prior must name its {n_dim} free parameters, but has {names} and {tuple(told)}. "
            "Pass the prior again."
        )


def display_labels(names: tuple[str, ...], display: Labels | None) -> tuple[str, ...]:
    """Return a display label for every name: its own name where none is given."""
    if isinstance(display, Mapping):
        _refuse_unknown("labels", display, names)
        return tuple(str(display.get(name, name)) for name in names)
    return tuple(names_of(display, len(names))) if display is not None else names


def units_as_text(units: Mapping[str, object] | None, names: Sequence[str]) -> dict[str, str]:
    """Return units, of whatever type, as text."""
    _refuse_unknown("units", units or {}, names)
    return {name: str(unit) for name, unit in (units or {}).items() if unit is not None}


def _refuse_unknown(what: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(
            f"{what} must be for parameters {tuple(known)}, but names {unknown}. "
            "Correct the spelling, or remove them."
        )


def finite_number(name: str, value: object) -> float:
    """Return the value of a fixed parameter."""
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(
            f"fixed value of {name!r} must be a finite number, but is {value!r}. "
            "Give a number, or a distribution in parameters."
        )
    return float(value)


def by_name(
    theta: ArrayLike, names: Sequence[str], known: Mapping[str, str]
) -> ArrayLike | NDArray[np.float64]:
    """Return an array unchanged, the columns of a table in the order and units of the parameters.

    Parameters
    ----------
    theta : array_like or table
    names : sequence of str
    known : mapping of str
        The units of the parameters that have one.
    """
    if not is_table(theta):
        return theta
    held = () if isinstance(theta, Mapping) and not theta else as_table(theta).names
    missing = [n for n in names if n not in held]
    if missing:
        raise ValueError(
            f"theta must have columns for {tuple(names)}, but the table lacks {missing}."
        )
    return np.stack([numbers(n, theta[n], known.get(n)) for n in names], -1)
