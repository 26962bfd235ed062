"""Simulators: calling them, in parallel, and keeping what they gave."""
