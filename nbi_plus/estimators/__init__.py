"""Estimators beside the engine: what else people hold."""
