"""Families of problems with exact posteriors, on which wrong answers have passed every gate."""

from benchmarks.families.base import Family, Reference
from benchmarks.families.labels import Labels
from benchmarks.families.needle import Needle
from benchmarks.families.rings import Rings
from benchmarks.families.separable import Aliases, Bananas, Funnel, Pulse

FAMILIES = {
    family.name: family for family in (Needle, Aliases, Pulse, Labels, Rings, Bananas, Funnel)
}

__all__ = ["FAMILIES", "Family", "Reference"]
