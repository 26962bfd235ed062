"""Kinds of surveys: what their packets, tables and files mean, as points of light curves."""
