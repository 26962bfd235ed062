"""Shared: one posterior behind several sets of data."""
