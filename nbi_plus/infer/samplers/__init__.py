"""Samplers: chains of many objects at once, usable alone."""
