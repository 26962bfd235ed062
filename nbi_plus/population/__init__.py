"""Populations: what many weighted posteriors say of the objects they are drawn from."""

from nbi_plus.population.answering import fit
from nbi_plus.population.selection import Selection

__all__ = ["Selection", "fit"]
