"""Noise: what the data add to a model, drawn and weighed."""
