"""nbi-plus: neural posterior estimation you can trust."""

from nbi_plus import plots, population
from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.estimators.compare import compare
from nbi_plus.estimators.likelihood import LikelihoodEngine
from nbi_plus.estimators.ratio import RatioEngine
from nbi_plus.infer.ladder.audit import PeakAudit
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior.accounts import Budget
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Flag, Status, UncertifiedWarning, UntrustedWarning
from nbi_plus.infer.weights.summary import Gate
from nbi_plus.io.archive import ArchiveError
from nbi_plus.io.store import StoreError
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.training import TrainConfig, TrainingError
from nbi_plus.problem.checks.noise_check import check_noise
from nbi_plus.problem.noise import *  # noqa: F403 - a noise is listed there alone
from nbi_plus.problem.noise import __all__ as _noises
from nbi_plus.problem.prior.prior import Circular, EmpiricalPrior, Prior
from nbi_plus.problem.simulator.cadence import Perturbation
from nbi_plus.problem.simulator.simulator import SimulationError, Simulator
from nbi_plus.trust.calibration import Calibration, sbc

__version__ = "0.1.0"

__all__ = [
    "ArchiveError",
    "Batch",
    "Budget",
    "Calibration",
    "Circular",
    "EmpiricalPrior",
    "Engine",
    "Flag",
    "FlowConfig",
    "Gate",
    "Ladder",
    "LikelihoodEngine",
    "Observations",
    "PeakAudit",
    "Perturbation",
    "Posterior",
    "Posteriors",
    "Prior",
    "RatioEngine",
    "SimulationError",
    "Simulator",
    "Status",
    "StoreError",
    "TrainConfig",
    "TrainingError",
    "UncertifiedWarning",
    "UntrustedWarning",
    "check_noise",
    "compare",
    "plots",
    "population",
    "sbc",
]
__all__ += _noises
