"""What the package offers, and whence: tools read it, and `__init__.py` does."""

from nbi_plus import infer as infer
from nbi_plus import plots as plots
from nbi_plus import population as population
from nbi_plus.data.batch import Batch as Batch
from nbi_plus.data.observations import Observations as Observations
from nbi_plus.engine import Engine as Engine
from nbi_plus.estimators.classifier import ModelClassifier as ModelClassifier
from nbi_plus.estimators.compare import compare as compare
from nbi_plus.estimators.ensemble import Ensemble as Ensemble
from nbi_plus.estimators.likelihood import LikelihoodEngine as LikelihoodEngine
from nbi_plus.estimators.point import PointEngine as PointEngine
from nbi_plus.estimators.ratio import RatioEngine as RatioEngine
from nbi_plus.infer.ladder.audit import PeakAudit as PeakAudit
from nbi_plus.infer.ladder.ladder import Ladder as Ladder
from nbi_plus.infer.posterior.accounts import Budget as Budget
from nbi_plus.infer.posterior.posterior import Posterior as Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors as Posteriors
from nbi_plus.infer.posterior.status import Flag as Flag
from nbi_plus.infer.posterior.status import Status as Status
from nbi_plus.infer.posterior.status import UncertifiedWarning as UncertifiedWarning
from nbi_plus.infer.posterior.status import UntrustedWarning as UntrustedWarning
from nbi_plus.infer.weights.summary import Gate as Gate
from nbi_plus.io.archive import ArchiveError as ArchiveError
from nbi_plus.io.store import StoreError as StoreError
from nbi_plus.learn.flows import FlowConfig as FlowConfig
from nbi_plus.learn.scores.rules import EnergyScore as EnergyScore
from nbi_plus.learn.scores.rules import ExpectileScore as ExpectileScore
from nbi_plus.learn.scores.rules import MeanScore as MeanScore
from nbi_plus.learn.scores.rules import MedianScore as MedianScore
from nbi_plus.learn.scores.rules import QuantileScore as QuantileScore
from nbi_plus.learn.training import TrainConfig as TrainConfig
from nbi_plus.learn.training import TrainingError as TrainingError
from nbi_plus.problem.checks.noise_check import check_noise as check_noise
from nbi_plus.problem.noise import *  # noqa: F403 - a noise is listed there alone
from nbi_plus.problem.prior.prior import Circular as Circular
from nbi_plus.problem.prior.prior import EmpiricalPrior as EmpiricalPrior
from nbi_plus.problem.prior.prior import Prior as Prior
from nbi_plus.problem.simulator.cadence import Perturbation as Perturbation
from nbi_plus.problem.simulator.simulator import SimulationError as SimulationError
from nbi_plus.problem.simulator.simulator import Simulator as Simulator
from nbi_plus.trust.calibration import Calibration as Calibration
from nbi_plus.trust.calibration import sbc as sbc

__version__: str
