"""Printed tables: what is told of parameters, to three significant digits and with all columns.

Imported where a table is wanted alone: astropy takes half a second.
"""

from __future__ import annotations

import numpy as np
from astropy.table import QTable, Table
from numpy.typing import NDArray

from nbi_plus.markup import beside, number, table

_MOST = 60  # rows that are printed whole


class Summary(QTable):
    """A table such as one row for each parameter. Its numbers are whole; what is printed is short.

    A number is rounded as its error is, to three significant digits: ``std`` is that of all of its
    row, ``x_err`` and ``x_err_y`` those of ``x`` and ``x_y``.
    """

    def texts(self) -> dict[str, list[str]]:
        """Return what is printed, column by column."""
        return {name: self._texts(name) for name in self.colnames}

    def _texts(self, name: str) -> list[str]:
        values = np.asarray(self[name])
        if values.dtype.kind != "f":
            return [str(value) for value in values.tolist()]
        pairs = zip(values.tolist(), self._spread(name, values).tolist(), strict=True)
        return [beside(v, s) if name != "std" else number(v) for v, s in pairs]

    def _spread(self, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
        known = (c for c in self.colnames if c == "std" or c.replace("_err", "", 1) == name != c)
        error = next(known, None)
        return np.full_like(values, np.nan) if error is None else np.asarray(self[error])

    def __repr__(self) -> str:
        most = -1 if len(self) <= _MOST else None
        return "\n".join(Table(self.texts()).pformat(most, max_width=-1, show_dtype=False))

    __str__ = __repr__

    def _repr_html_(self) -> str:
        texts = self[:_MOST].texts()
        more = f"{_MOST} of {len(self)} rows" if len(self) > _MOST else ""
        return table(list(texts), zip(*texts.values(), strict=True), more)
