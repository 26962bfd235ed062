"""The ladder: from the draws of the network to an answer that passes its gate.

`Ladder` and everything that configures it; a rung of your own follows the contract `Rung`.
"""

from nbi_plus.infer.ladder.audit import PeakAudit
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.ladder.layered import LayeredConfig
from nbi_plus.infer.ladder.open_objects import OpenObjects
from nbi_plus.infer.ladder.rung import Rung, RungContext
from nbi_plus.infer.ladder.rung_ensemble import EnsembleRung
from nbi_plus.infer.ladder.rung_hmc import HmcRung
from nbi_plus.infer.ladder.rung_peaks import PeaksRung
from nbi_plus.infer.ladder.rung_refine import FlowRung, RefineRung
from nbi_plus.infer.posterior.accounts import Budget
from nbi_plus.infer.proposals.flow_fit import DensityConfig
from nbi_plus.infer.proposals.mixture import MixtureConfig
from nbi_plus.infer.samplers.ensemble import EnsembleConfig
from nbi_plus.infer.samplers.hmc import HmcConfig
from nbi_plus.infer.samplers.peaks import PeaksConfig

__all__ = [
    "Budget",
    "DensityConfig",
    "EnsembleConfig",
    "EnsembleRung",
    "FlowRung",
    "HmcConfig",
    "HmcRung",
    "Ladder",
    "LayeredConfig",
    "MixtureConfig",
    "OpenObjects",
    "PeakAudit",
    "PeaksConfig",
    "PeaksRung",
    "RefineRung",
    "Rung",
    "RungContext",
]
