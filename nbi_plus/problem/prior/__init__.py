"""Priors: what is believed of the parameters before the data."""
