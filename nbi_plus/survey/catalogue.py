"""Catalogue: one row for each object, always the same columns, described for whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.tables.tables import unit_of_field
from nbi_plus.infer.posterior.columns import ALL_NUMBERS, BY_NAME, MOMENTS, Figure, Stored
from nbi_plus.infer.posterior.export import moments_of, verdicts
from nbi_plus.infer.posterior.posterior import Parameters
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Flag, Status

if TYPE_CHECKING:
    import pyarrow

# of all columns, in order; those of parameters stand behind what is carried
_FIRST = ("id",)
_OF_PARAMETERS = ("mean", "std", "median", "q16", "q84", "q025", "q975")
_LAST = (
    "status", "certified", "trusted", "flags", "settled_by", "ess", "ess_low", "efficiency",
    "k_hat", "log_evidence", "log_evidence_err", "evidence_reliable", "ood_p_value",
    "fit_p_value", "chi2_best", "n_points", "n_masked", "n_simulated", "n_gradients", "seconds",
)  # fmt: skip
_OWN = (
    Figure("reason", str, Stored.CATALOGUE, "Why there is no certified answer."),
    Figure("seed", int, Stored.CATALOGUE, "Of all that is random in the answer."),
    Figure("engine", str, Stored.CATALOGUE, "Fingerprint of the network and the problem."),
    Figure("version", str, Stored.CATALOGUE, "Of nbi-plus."),
)
_UCDS = {
    "id": "meta.id;meta.main", "mean": "stat.mean", "std": "stat.stdev", "median": "stat.median",
    "q16": "stat.value", "q84": "stat.value", "q025": "stat.value", "q975": "stat.value",
    "status": "meta.code.status", "certified": "meta.code.qual", "trusted": "meta.code.qual",
    "flags": "meta.code.qual", "settled_by": "meta.note", "reason": "meta.note",
    "ess": "meta.number", "ess_low": "meta.number", "efficiency": "stat.value",
    "k_hat": "stat.value", "log_evidence": "stat.likelihood",
    "log_evidence_err": "stat.error;stat.likelihood", "evidence_reliable": "meta.code.qual",
    "ood_p_value": "stat.probability", "fit_p_value": "stat.probability",
    "chi2_best": "stat.fit.chi2", "n_points": "meta.number", "n_masked": "meta.number",
    "n_simulated": "meta.number", "n_gradients": "meta.number", "seconds": "time.duration",
    "seed": "meta.number", "engine": "meta.id", "version": "meta.version",
    "ra": "pos.eq.ra;meta.main", "dec": "pos.eq.dec;meta.main", "redshift": "src.redshift",
}  # fmt: skip
_UNITS = {"seconds": "s"}
_HIDDEN = (Status.UNCERTIFIED, Status.FAILED)  # whose moments are nobody's answer


@dataclass(frozen=True)
class Provenance:
    """What made a catalogue.

    Attributes
    ----------
    engine : str
        Fingerprint of the network, its prior and its noise.
    version : str
    seed : int
    parameters : Parameters
    n_draws : int
        Draws of equal weight that each row holds.
    """

    engine: str
    version: str
    seed: int
    parameters: Parameters
    n_draws: int = 0


@dataclass(frozen=True)
class Catalogue:
    """The columns of one survey.

    Attributes
    ----------
    made_by : Provenance
    carried : tuple of pyarrow.Field
    """

    made_by: Provenance
    carried: tuple[pyarrow.Field, ...] = ()

    def __post_init__(self) -> None:
        names = self.schema.names
        twice = [field.name for field in self.carried if names.count(field.name) > 1]
        if twice:
            raise ValueError(
                f"carry must name columns that a catalogue has not anyway, but names {twice}. "
                "Rename them in the source, or leave them out."
            )

    @property
    def schema(self) -> pyarrow.Schema:
        """Names, types, units, UCDs and descriptions of all columns."""
        import pyarrow as pa

        parameters = self.made_by.parameters
        fields = [_field(name, BY_NAME[name]) for name in _FIRST] + list(self.carried)
        for name in parameters.names:
            unit = parameters.units.get(name)
            fields += [_field(f"{name}_{k}", BY_NAME[k], unit, name) for k in _OF_PARAMETERS]
        fields += [_field(name, BY_NAME[name]) for name in _LAST]
        fields += [_field(figure.name, figure) for figure in _OWN]
        if self.made_by.n_draws:
            told = {"description": "Draws of equal weight."}
            kind = pa.list_(pa.float64())
            fields += [pa.field(f"{n}_draws", kind, metadata=told) for n in parameters.names]
        return pa.schema(fields)

    def rows(
        self, posteriors: Posteriors, carried: Mapping[str, pyarrow.Array], seconds: float
    ) -> pyarrow.Table:
        """Return the rows of answers; ``seconds`` stand where the rungs did not count them."""
        numbers = {k: getattr(posteriors, k) for k in ALL_NUMBERS}
        spent = np.where(np.isnan(posteriors.seconds), seconds, posteriors.seconds)
        hide = np.array([status in _HIDDEN for status in posteriors.status])[:, None]
        shown = {k: np.where(hide, np.nan, v) for k, v in moments_of(posteriors).items()}
        values = numbers | verdicts(posteriors) | {"seconds": spent, "reason": _reasons(posteriors)}
        if self.made_by.n_draws:
            kept = np.stack([p.samples for p in posteriors.draws])
            each = enumerate(self.made_by.parameters.names)
            values |= {f"{name}_draws": list(kept[..., d]) for d, name in each}
        return self._table(values, shown, carried)

    def refusals(
        self, ids: NDArray, carried: Mapping[str, pyarrow.Array], reasons: Sequence[str],
        flag: Flag | None,
    ) -> pyarrow.Table:  # fmt: skip
        """Return the rows of objects without an answer, with one flag or none."""
        n, names = len(ids), self.made_by.parameters.names
        values: dict[str, ArrayLike] = {
            k: np.full(n, f.unknown if f.failed is None else f.failed)
            for k in _LAST
            if (f := BY_NAME[k]).kind is not str
        }
        words = {"id": ids, "status": [Status.FAILED.name] * n, "settled_by": [""] * n,
                 "flags": ["" if flag is None else flag.name] * n,
                 "reason": list(reasons)}  # fmt: skip
        shown = dict.fromkeys(MOMENTS, np.full((n, len(names)), np.nan))
        if self.made_by.n_draws:
            values |= {f"{name}_draws": [[]] * n for name in names}
        return self._table(values | words | {"seconds": np.zeros(n)}, shown, carried)

    def _table(
        self, values: Mapping[str, ArrayLike], moments: Mapping[str, NDArray[np.float64]],
        carried: Mapping[str, pyarrow.Array],
    ) -> pyarrow.Table:  # fmt: skip
        """Return a table of this schema; moments (n, D) are those of the parameters."""
        import pyarrow as pa

        by, n = self.made_by, len(values["id"])
        columns = dict(values) | dict(carried)
        for d, name in enumerate(by.parameters.names):
            columns |= {f"{name}_{k}": v[:, d] for k, v in moments.items()}
        columns |= {"id": [str(i) for i in np.asarray(values["id"]).tolist()]}
        columns |= {"seed": np.full(n, by.seed), "engine": [by.engine] * n,
                    "version": [by.version] * n}  # fmt: skip
        schema = self.schema
        return pa.table([_typed(columns[f.name], f.type) for f in schema], schema=schema)


def _typed(values: ArrayLike, kind: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow as pa

    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.cast(kind)
    return pa.array(values, kind)


def _reasons(posteriors: Posteriors) -> list[str]:
    """Return why each object is not certified; nothing where it is."""
    each = zip(posteriors.status, posteriors.rungs, strict=True)
    return ["" if status.certified or not own else own[-1].reason for status, own in each]


def _field(
    name: str, figure: Figure, unit: str | None = None, parameter: str = ""
) -> pyarrow.Field:
    import pyarrow as pa

    kinds = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    sentence = f"{parameter}: {figure.sentence}" if parameter else figure.sentence
    told = {"description": sentence, "ucd": _UCDS.get(figure.name, "")}
    unit = unit or _UNITS.get(name)
    return pa.field(name, kinds[figure.kind], metadata=told | ({"unit": unit} if unit else {}))


def carried_fields(fields: Sequence[pyarrow.Field]) -> tuple[pyarrow.Field, ...]:
    """Return columns of a source as those of a catalogue, dictionaries of texts as texts."""
    import pyarrow as pa

    made = []
    for one in fields:
        kind = one.type.value_type if pa.types.is_dictionary(one.type) else one.type
        kind = pa.string() if pa.types.is_large_string(kind) or pa.types.is_null(kind) else kind
        unit = unit_of_field(one)
        told = {"description": f"{one.name} of the source.", "ucd": _UCDS.get(one.name.lower(), "")}
        made.append(pa.field(one.name, kind, metadata=told | ({"unit": unit} if unit else {})))
    return tuple(made)
