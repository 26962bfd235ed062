"""A number of a noise model that is given, or is itself a parameter of the prior."""

from __future__ import annotations

import copy
import math

from torch import Tensor

from nbi_plus.arguments import real
from nbi_plus.data.ingest import unit_of


class NumberOrParameter:
    """A number, or the name of the parameter that holds it.

    Parameters
    ----------
    label : str
        What errors call it.
    value : float or str
    lower, upper : float
        Range of a number, ends included; its square must be a number, too. What a parameter may
        be is for its prior to say.
    """

    def __init__(
        self, label: str, value: float | str, lower: float = 0.0, upper: float = 1e150
    ) -> None:
        if unit_of(value) is not None:
            raise ValueError(
                f"{label} must be a bare number, in the unit of the data or of their times, but is "
                f"{value!r}. Give its value in that unit."
            )
        self.label = label
        self.value = value if isinstance(value, str) else real(label, value)
        self._column: int | None = None
        if not isinstance(value, str) and not (
            lower <= self.value <= upper and math.isfinite(self.value)
        ):
            raise ValueError(
                f"{label} must be finite and in [{lower:g}, {upper:g}], but is {value!r}."
            )

    @property
    def is_name(self) -> bool:
        """Whether the value is that of a parameter."""
        return isinstance(self.value, str)

    def bind(self, names: tuple[str, ...]) -> NumberOrParameter:
        """Return a copy that knows its column in theta."""
        if not self.is_name:
            return self
        if self.value not in names:
            raise ValueError(
                f"{self.label} must name a parameter of {names}, but is {self.value!r}."
            )
        bound = copy.copy(self)
        bound._column = names.index(self.value)
        return bound

    def of(self, theta: Tensor) -> Tensor | float:
        """Return the number, or the parameter of theta (..., P) with shape (..., 1, 1)."""
        if not self.is_name:
            return self.value
        if self._column is None:
            raise ValueError(
                f"{self.label} must know which column {self.value!r} is, but was not bound. "
                "Call noise = noise.bind(has_errors, names) first."
            )
        return theta[..., self._column, None, None]
