"""How we answer: weights, proposals, samplers, posteriors, the ladder and sequential fits."""

import sys

from nbi_plus.infer.samplers import hmc, peaks

# samplers are of use alone, and short to import: the same module under both names
sys.modules[f"{__name__}.hmc"] = hmc
sys.modules[f"{__name__}.peaks"] = peaks
