"""Bytes on disk: simulations and model files."""
