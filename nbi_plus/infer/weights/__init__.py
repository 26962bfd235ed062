"""Weights: how far draws can be believed."""
