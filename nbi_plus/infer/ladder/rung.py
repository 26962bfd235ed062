"""The contract of a rung: one way of answering for objects that are still open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from nbi_plus.infer.ladder.open_objects import OpenObjects, RungContext
from nbi_plus.infer.posterior.status import Status
from nbi_plus.problem.target import Target


class Rung(Protocol):
    """One way of answering, with its chosen state.

    Attributes
    ----------
    name : str
        How its lines in the report begin.
    status : Status
        Of the objects that it certifies.
    """

    name: str
    status: Status

    def applies(self, target: Target) -> bool:
        """Say whether it can do anything for objects of this target."""

    def run(self, objects: OpenObjects, context: RungContext) -> Iterator[OpenObjects]:
        """Yield objects that together hold every object once, after this rung.

        Those it tried come back with one more `Outcome` (`OpenObjects.after`) and a line in
        ``context.report``; those it cannot help come back as they were.
        """
