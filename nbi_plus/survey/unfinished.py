"""Unfinished: what objects that nothing certified need to be tried again, kept as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import RungReport
from nbi_plus.io.sealed import sealed
from nbi_plus.survey.manifest import SurveyError
from nbi_plus.survey.parts import check_sealed, write_tables

if TYPE_CHECKING:
    import pyarrow

KEPT_DRAWS = 256  # of equal weight: enough for a mixture of a few components
_DRAWS = ("log_weights", "log_prior", "log_likelihood")
_NUMBERS = ("n_simulated", "n_gradients")


@dataclass(frozen=True, eq=False)
class Unfinished:
    """What is kept of one object, as `nbi_plus.infer.ladder.earlier.Earlier.of` takes it.

    Attributes
    ----------
    id, data_hash : str
    rungs : tuple of RungReport
    n_simulated, n_gradients : int
    samples : ndarray, shape (S, D)
    log_weights, log_prior, log_likelihood : ndarray, shape (S,)
    """

    id: str
    data_hash: str
    rungs: tuple[RungReport, ...]
    n_simulated: int
    n_gradients: int
    samples: NDArray[np.float64]
    log_weights: NDArray[np.float64]
    log_prior: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]


def unfinished_rows(left: Posteriors, positions: NDArray[np.int64]) -> pyarrow.Table:
    """Return one row for each object, at its position in the source."""
    import pyarrow as pa

    each = list(left.draws)
    draws = {k: pa.array([getattr(p, k) for p in each], _list()) for k in _DRAWS}
    return pa.table({
        "position": pa.array(positions, pa.int64()),
        "id": [p.id for p in each],
        "data_hash": [p.data_hash for p in each],
        **{k: pa.array(getattr(left, k), pa.int64()) for k in _NUMBERS},
        "rungs": [json.dumps([asdict(line) for line in p.rungs]) for p in each],
        "samples": pa.array([p.samples.ravel() for p in each], _list()), **draws,
    })  # fmt: skip


def write_unfinished(out: Path, tables: Iterable[pyarrow.Table]) -> None:
    """Write what unfinished objects need beside a catalogue that is one file, if there are any."""
    tables = iter(tables)
    first = next(tables, None)
    if first is None:
        _beside(out).unlink(missing_ok=True)
        return
    with sealed(_beside(out), SurveyError) as file:
        write_tables(file, chain((first,), tables), first.schema, {})


def unfinished_beside(out: Path) -> Iterator[pyarrow.Table]:
    """Yield what stands beside a catalogue that is one file; nothing where all is finished."""
    import pyarrow.parquet

    if _beside(out).exists():
        check_sealed(_beside(out))
        with pyarrow.parquet.ParquetFile(_beside(out)) as file:
            for i in range(file.num_row_groups):
                yield file.read_row_group(i)


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.unfinished")


def unfinished_of(table: pyarrow.Table) -> Iterator[Unfinished]:
    """Yield what is kept of each object."""
    for row in table.to_pylist():
        n = len(row["log_weights"])
        draws = {k: np.array(row[k], float) for k in _DRAWS}
        rungs = tuple(RungReport(**line) for line in json.loads(row["rungs"]))
        costs = [row[k] for k in _NUMBERS]
        samples = np.reshape(row["samples"], (n, -1))
        yield Unfinished(row["id"], row["data_hash"], rungs, *costs, samples, **draws)


def _list() -> pyarrow.DataType:
    import pyarrow as pa

    return pa.list_(pa.float64())
