"""Proposals: densities to draw from, and how they are fitted."""
