"""Heads: what is trained on features of data, beside densities of parameters."""
