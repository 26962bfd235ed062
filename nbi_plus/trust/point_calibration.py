"""PointCalibration: what estimates of many simulated objects say beside their truths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.tables.tables import frame_of
from nbi_plus.trust.recovery import grouped
from nbi_plus.trust.uniformity import clopper_pearson

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointCalibration:
    """Estimates of N objects of known truth.

    Of all truths a share q must lie below quantiles of level q, and errors of means must add up to
    nothing: both hold for whatever is learned from the data as far as it was learned.

    Attributes
    ----------
    names : tuple of str, shape (D,)
    truths : ndarray, shape (N, D)
        On circles within half a period of where each object's estimates are told from.
    estimates : dict of ndarray, shape (N, Q, D)
        By rule; NaN for objects without any. On circles as the truths.
    levels : dict of tuple of float, shape (Q,)
        Of which levels they are, NaN for means.
    groups : ndarray of str, shape (N,)
        In which bin each object is.
    """

    names: tuple[str, ...]
    truths: Array
    estimates: Mapping[str, Array]
    levels: Mapping[str, tuple[float, ...]]
    groups: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.truths)

    def __repr__(self) -> str:
        return f"PointCalibration({len(self)} objects)\n{self.to_frame().to_string(index=False)}"

    def to_frame(self) -> pandas.DataFrame:
        """Return a row for each rule, level and parameter, of each group and then of all.

        Columns: ``group``, ``rule``, ``parameter``, ``level``, ``n``; ``share_below`` of the truths
        with its 95 % interval ``low`` to ``high``; ``bias``, the mean error, with its standard
        error ``bias_err`` and ``nrmse``, the root mean square error, in standard deviations of the
        truths. Levels have no bias, and means no share, that they ought to have: there is NaN.
        """
        lines = [line for own in grouped(self.groups) for line in self._lines(*own)]
        return frame_of({name: [line[name] for line in lines] for name in lines[0]})

    def _lines(self, group: str, rows: NDArray[np.bool_]) -> Iterator[dict[str, object]]:
        for rule, every in self.estimates.items():
            known = rows & np.isfinite(every).all((1, 2))
            truth, n = self.truths[known], int(known.sum())
            if n < 2:
                continue
            for q, level in enumerate(self.levels[rule]):
                error = every[known, q] - truth
                spread, is_mean = truth.std(0), np.isnan(level)
                below = (error > 0).sum(0)
                low, high = clopper_pearson(below, n)
                bias, rms = error.mean(0) / spread, np.sqrt((error**2).mean(0)) / spread
                bias_err = error.std(0, ddof=1) / np.sqrt(n) / spread
                for d, name in enumerate(self.names):
                    share = {"share_below": below[d] / n, "low": low[d], "high": high[d]}
                    off = {"bias": bias[d], "bias_err": bias_err[d], "nrmse": rms[d]}
                    yield {
                        "group": group, "rule": rule, "parameter": name, "level": level, "n": n,
                        **{k: np.nan if is_mean else v for k, v in share.items()},
                        **{k: v if is_mean else np.nan for k, v in off.items()},
                    }  # fmt: skip
