"""nbi-plus: neural posterior estimation you can trust."""

from nbi_plus import plots
from nbi_plus.engine import Engine
from nbi_plus.infer.ladder import Ladder
from nbi_plus.infer.meter import Budget
from nbi_plus.infer.posterior import Posterior
from nbi_plus.infer.posteriors import Posteriors
from nbi_plus.infer.status import Flag, Status
from nbi_plus.infer.weights import Gate
from nbi_plus.io.archive import ArchiveError
from nbi_plus.io.store import StoreError
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.training import TrainConfig, TrainingError
from nbi_plus.predictor import UncertifiedWarning
from nbi_plus.problem.batch import Batch
from nbi_plus.problem.custom_noise import CustomNoise
from nbi_plus.problem.noise import GaussianNoise, Noise, PoissonNoise, StudentTNoise
from nbi_plus.problem.observations import Observations
from nbi_plus.problem.prior import Circular, EmpiricalPrior, Prior
from nbi_plus.problem.simulator import SimulationError, Simulator
from nbi_plus.trust.calibration import Calibration, sbc

__version__ = "0.1.0"

__all__ = [
    "ArchiveError",
    "Batch",
    "Budget",
    "Calibration",
    "Circular",
    "CustomNoise",
    "EmpiricalPrior",
    "Engine",
    "Flag",
    "FlowConfig",
    "GaussianNoise",
    "Gate",
    "Ladder",
    "Noise",
    "Observations",
    "PoissonNoise",
    "Posterior",
    "Posteriors",
    "Prior",
    "SimulationError",
    "Simulator",
    "Status",
    "StoreError",
    "StudentTNoise",
    "TrainConfig",
    "TrainingError",
    "UncertifiedWarning",
    "plots",
    "sbc",
]
