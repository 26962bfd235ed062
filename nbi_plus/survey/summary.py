"""Summary: what a survey came to, counted row by row."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nbi_plus.data.ingested import Ingest
from nbi_plus.survey.chunks import Chunk
from nbi_plus.survey.ingesting import summed

if TYPE_CHECKING:
    import pyarrow

_N_REASONS, _MOST_REASONS = 5, 1000  # that are told, and that are counted at once
_COSTS = ("n_simulated", "n_gradients", "seconds")


@dataclass(frozen=True)
class SurveySummary:
    """What a survey came to.

    Attributes
    ----------
    out : Path
    n_objects : int
        Rows of the catalogue.
    n_new, n_trusted : int
        Those of them that this run has answered; those that are to be trusted.
    seconds : float
        That this run took.
    status, flags : dict of str to int
        Objects of each.
    rungs : dict of str to dict
        For each rung that settled objects: ``objects``, and the means ``calls``, ``gradients`` and
        ``seconds`` of one of them.
    reasons : dict of str to int
        Why objects have no answer, the commonest first.
    ingest : Ingest
        What was done to the data that this run has read, act by act, where they came as
        `Observations` or by a survey's own schema.
    """

    out: Path
    n_objects: int
    n_new: int
    n_trusted: int
    seconds: float
    status: dict[str, int]
    flags: dict[str, int]
    rungs: dict[str, dict[str, float]]
    reasons: dict[str, int]
    ingest: Ingest = field(default_factory=Ingest)

    @property
    def rate(self) -> float:
        """Objects that this run has answered in a second."""
        return self.n_new / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.out}: {self.n_objects} objects, {self.n_new} of them now, in "
            f"{self.seconds:.1f} s ({self.rate:.3g} a second)"
        ]
        lines += [f"  {name:<12} {n:>9}" for name, n in self.status.items()]
        if self.flags:
            lines.append("flags: " + ", ".join(f"{name} {n}" for name, n in self.flags.items()))
        if self.rungs:
            lines.append(f"{'settled by':<14}{'objects':>9}{'calls':>9}{'gradients':>11}{'s':>9}")
        lines += [
            f"{name:<14}{own['objects']:>9.0f}{own['calls']:>9.0f}{own['gradients']:>11.0f}"
            f"{own['seconds']:>9.2g}"
            for name, own in self.rungs.items()
        ]
        lines += [f"{n} without an answer: {reason}" for reason, n in self.reasons.items()]
        lines += [str(self.ingest)] if len(self.ingest) else []
        return "\n".join(lines)


@dataclass
class SurveyTally:
    """Counts rows as they are written."""

    began: float = field(default_factory=time.perf_counter)
    n_objects: int = 0
    n_new: int = 0
    n_trusted: int = 0
    _status: Counter[str] = field(default_factory=Counter)
    _flags: Counter[str] = field(default_factory=Counter)
    _costs: dict[str, np.ndarray] = field(default_factory=dict)
    _reasons: Counter[str] = field(default_factory=Counter)
    _ingest: Ingest = field(default_factory=Ingest)
    _last: Ingest | None = None  # of the piece that the last chunk was a part of

    def noted(self, chunk: Chunk) -> Chunk:
        """Return a chunk that is read, after noting what was done to its data."""
        sets = chunk.observations
        if sets is not None and sets.ingest is not self._last:
            self._last = sets.ingest
            self._ingest = summed((self._ingest, sets.ingest))
        return chunk

    def add(self, table: pyarrow.Table, *, new: bool) -> None:
        """Count the rows of a part of the catalogue."""
        import pyarrow.compute as pc

        self.n_objects += table.num_rows
        self.n_new += table.num_rows if new else 0
        self.n_trusted += pc.sum(table["trusted"]).as_py() or 0
        self._status.update(_counts(table["status"]))
        for text, n in _counts(table["flags"]).items():
            self._flags.update(dict.fromkeys(text.split(), n))
        failed = table.filter(pc.equal(table["status"], "FAILED"))
        self._reasons.update(_counts(failed["reason"]))
        self._reasons = Counter(dict(self._reasons.most_common(_MOST_REASONS)))
        settled = table.filter(pc.not_equal(table["settled_by"], ""))
        asked = [("settled_by", "count"), *((name, "sum") for name in _COSTS)]
        for own in settled.group_by("settled_by").aggregate(asked).to_pylist():
            total = [own["settled_by_count"], *(own[f"{name}_sum"] for name in _COSTS)]
            so_far = self._costs.get(own["settled_by"], np.zeros(len(total)))
            self._costs[own["settled_by"]] = so_far + total

    def summary(self, out: Path) -> SurveySummary:
        """Return what was counted."""
        by_number = sorted(self._costs.items(), key=lambda own: -own[1][0])
        rungs = {
            name: dict(zip(("calls", "gradients", "seconds"), total[1:] / total[0], strict=True))
            | {"objects": total[0]}
            for name, total in by_number
        }
        return SurveySummary(
            out, self.n_objects, self.n_new, self.n_trusted, time.perf_counter() - self.began,
            dict(self._status.most_common()), dict(self._flags.most_common()), rungs,
            dict(self._reasons.most_common(_N_REASONS)), self._ingest,
        )  # fmt: skip


def _counts(values: pyarrow.ChunkedArray) -> dict[str, int]:
    return {own["values"]: own["counts"] for own in values.value_counts().to_pylist()}
