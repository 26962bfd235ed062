"""Rows: a catalogue as a report needs it, numbers of all objects and a bounded number of rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbi_plus.survey.parts import SurveyError, read_manifest
from nbi_plus.survey.sources import open_source
from nbi_plus.survey.summary import SurveySummary, SurveyTally
from nbi_plus.survey.writing import manifest_of

if TYPE_CHECKING:
    import pyarrow

Array = NDArray[np.float32]
_NUMBERS = ("ess", "k_hat", "n_points", "seconds")
_COUNTED = ("status", "trusted", "flags", "reason", "settled_by", "n_simulated", "n_gradients",
            "seconds")  # fmt: skip
_SNR = ("snr", "s_n", "signal_to_noise")  # a column of the source that was carried
_UNCERTAIN, _SLOW = 0.7, 0.1  # of the rows that are shown
_DRAWS = "_draws"


@dataclass(frozen=True)
class Population:
    """All objects of a catalogue, in numbers.

    Attributes
    ----------
    path : Path
    summary : SurveySummary
    manifest : dict
        What was surveyed and by what; empty where nothing tells.
    names : tuple of str
        Of all columns.
    numbers : dict of ndarray, shape (N,)
        In single precision: ``ess``, ``k_hat``, ``n_points``, ``seconds``, and ``snr`` where the
        catalogue has it.
    trusted : ndarray of bool, shape (N,)
    """

    path: Path
    summary: SurveySummary
    manifest: dict[str, Any]
    names: tuple[str, ...]
    numbers: dict[str, Array]
    trusted: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path) -> Population:
        """Read the numbers of a catalogue, some rows at a time."""
        tally, parts, source = SurveyTally(), [], open_source(path)
        names = _checked(path, tuple(source.schema.names))
        snr = next((name for name in names if name.lower() in _SNR), None)
        read = {name: name for name in (*_NUMBERS, "trusted")} | ({"snr": snr} if snr else {})
        for piece in source.pieces([*dict.fromkeys((*_COUNTED, *read.values()))]):
            tally.add(piece.table, new=False)
            parts.append({k: _single(piece.table[column]) for k, column in read.items()})
        keys = parts[0] if parts else ()
        numbers = {k: np.concatenate([part[k] for part in parts]) for k in keys}
        trusted = numbers.pop("trusted", np.zeros(0, np.float32)) > 0
        return cls(path, tally.summary(path), _manifest(path), names, numbers, trusted)

    def __len__(self) -> int:
        return len(self.trusted)

    def with_numbers(self, **more: Array) -> Population:
        """Return the same with further numbers of each object."""
        return replace(self, numbers=self.numbers | more)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters: what has a mean and a 2.5 % quantile."""
        known, end = set(self.names), "_q025"
        stems = (name.removesuffix(end) for name in self.names if name.endswith(end))
        return tuple(stem for stem in stems if f"{stem}_mean" in known)

    @cached_property
    def worst(self) -> NDArray[np.int64]:
        """All objects, those first that are least to be believed."""
        ess = np.nan_to_num(self.numbers["ess"], nan=0.0)
        return np.lexsort((np.arange(len(self)), ess, self.trusted))

    @cached_property
    def slowest(self) -> NDArray[np.int64]:
        """All objects, the slowest first."""
        return np.argsort(-np.nan_to_num(self.numbers["seconds"]), kind="stable")

    def shown(self, most: int) -> NDArray[np.int64]:
        """Return which rows a table of bounded length shows, in the order of the catalogue."""
        if len(self) <= most:
            return np.arange(len(self))
        order = np.concatenate([
            self.worst[: int(_UNCERTAIN * most)], self.slowest[: int(_SLOW * most)],
            np.arange(len(self)),
        ])  # fmt: skip
        _, first = np.unique(order, return_index=True)
        return np.sort(order[np.sort(first)[:most]])

    def rows(self, wanted: NDArray[np.int64], *, draws: bool = False) -> dict[int, dict[str, Any]]:
        """Return some rows by their place, with their draws if these are wanted."""
        found, first = {}, 0
        names = [n for n in self.names if draws or not n.endswith(_DRAWS)]
        for piece in open_source(self.path).pieces(names):
            table = piece.table
            places = wanted[(wanted >= first) & (wanted < first + table.num_rows)]
            own = table.take(places - first).to_pylist()
            found |= dict(zip(places.tolist(), own, strict=True))
            first += table.num_rows
        return found

    def ids(self) -> Iterator[NDArray]:
        """Yield the names of the objects, some at a time."""
        pieces = open_source(self.path).pieces(["id"])
        return (np.asarray(piece.table["id"].to_pylist(), str) for piece in pieces)


def draws_of(row: Mapping[str, Any], names: tuple[str, ...]) -> NDArray[np.float64] | None:
    """Return the draws (S, D) that a row kept; None where it kept none."""
    columns = [row.get(f"{name}{_DRAWS}") for name in names]
    if not columns or any(column is None or not len(column) for column in columns):
        return None
    return np.stack([np.asarray(column, np.float64) for column in columns], 1)


def _checked(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    missing = [name for name in ("id", *_COUNTED, *_NUMBERS) if name not in names]
    if missing:
        raise SurveyError(
            f"{path.name} must be a catalogue of a survey, but has no column {missing[0]!r}. Give "
            "what predict_survey wrote."
        )
    return names


def _single(column: pyarrow.ChunkedArray) -> Array:
    return np.asarray(column.to_numpy(), np.float32)  # what is missing is NaN


def _manifest(path: Path) -> dict[str, Any]:
    try:
        return (read_manifest(path) if path.is_dir() else manifest_of(path)) or {}
    except SurveyError as error:  # maybe another program has written the rows anew
        if "checksum" in str(error):
            warnings.warn(f"{error} The report shows what there is.", stacklevel=2)
        return {}
