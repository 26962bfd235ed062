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
from nbi_plus.predictor import UncertifiedWarning, UntrustedWarning
from nbi_plus.problem.batch import Batch
from nbi_plus.problem.cadence import Perturbation
from nbi_plus.problem.custom_noise import CustomNoise
from nbi_plus.problem.gaussian_process import GaussianProcessNoise
from nbi_plus.problem.kernels import DampedRandomWalk, Harmonic
from nbi_plus.problem.linear_nuisance import LinearNuisance
from nbi_plus.problem.noise import GaussianNoise, PoissonNoise, StudentTNoise
from nbi_plus.problem.noise_check import check_noise
from nbi_plus.problem.noise_contract import Noise, PointNoise
from nbi_plus.problem.observations import Observations
from nbi_plus.problem.outliers import OutlierNoise
from nbi_plus.problem.prior import Circular, EmpiricalPrior, Prior
from nbi_plus.problem.shared_errors import CalibrationError
from nbi_plus.problem.simulator import SimulationError, Simulator
from nbi_plus.problem.upper_limits import UpperLimits
from nbi_plus.trust.calibration import Calibration, sbc

__version__ = "0.1.0"

__all__ = [
    "ArchiveError",
    "Batch",
    "Budget",
    "Calibration",
    "CalibrationError",
    "Circular",
    "CustomNoise",
    "DampedRandomWalk",
    "EmpiricalPrior",
    "Engine",
    "Flag",
    "FlowConfig",
    "GaussianNoise",
    "GaussianProcessNoise",
    "Gate",
    "Harmonic",
    "Ladder",
    "LinearNuisance",
    "Noise",
    "Observations",
    "OutlierNoise",
    "Perturbation",
    "PointNoise",
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
    "UntrustedWarning",
    "UpperLimits",
    "check_noise",
    "plots",
    "sbc",
]
