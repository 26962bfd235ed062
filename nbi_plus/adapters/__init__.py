"""Adapters: priors and models of other packages, which none of these modules imports."""

from nbi_plus.adapters.lightcurves import LightCurveLynxSimulator, cadences_of
from nbi_plus.adapters.priors import prior_of_bilby, prior_of_torch
from nbi_plus.adapters.supernovae import SncosmoSimulator

__all__ = [
    "LightCurveLynxSimulator",
    "SncosmoSimulator",
    "cadences_of",
    "prior_of_bilby",
    "prior_of_torch",
]
