"""PyMC: learned likelihoods in its models, and its models as problems to learn."""

from __future__ import annotations

try:
    import pymc as _pymc  # noqa: F401 - whether it is there
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'nbi_plus.pymc needs pymc. Install it with: pip install "nbi-plus[pymc]"'
    ) from error

from nbi_plus.pymc.distribution import NeuralDistribution
from nbi_plus.pymc.whole_models import problem

__all__ = ["NeuralDistribution", "problem"]
