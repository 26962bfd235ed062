"""Checks: whether noise that users wrote keeps its contract."""
