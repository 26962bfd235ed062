"""Scores: estimates of parameters that are minima of proper scoring rules."""
