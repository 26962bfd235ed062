"""nbi-plus: neural posterior estimation you can trust."""

from nbi_plus import plots
from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
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
from nbi_plus.problem.noise.base import Noise, PointNoise
from nbi_plus.problem.noise.custom import CustomNoise
from nbi_plus.problem.noise.gaussian_process import GaussianProcessNoise
from nbi_plus.problem.noise.joint import CalibrationError
from nbi_plus.problem.noise.kernels import DampedRandomWalk, Harmonic
from nbi_plus.problem.noise.linear_nuisance import LinearNuisance
from nbi_plus.problem.noise.outliers import OutlierNoise
from nbi_plus.problem.noise.points import GaussianNoise, PoissonNoise, StudentTNoise
from nbi_plus.problem.noise.upper_limits import UpperLimits
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
