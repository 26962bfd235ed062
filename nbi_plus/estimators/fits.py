"""What a learned likelihood leaves behind, a ratio or a density, and its file: JSON and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nbi_plus.arguments import new_file, path_of
from nbi_plus.estimators.learned import SummedLikelihood
from nbi_plus.estimators.trials import TrialShape
from nbi_plus.files import check_sizes
from nbi_plus.io.archive import ArchiveError, fitting_parts, read_archive, write_archive
from nbi_plus.learn.likelihood import Likelihood
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.ratio import Ratio
from nbi_plus.problem.prior.learned_range import LearnedRange
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.simulator.parallel import simulated
from nbi_plus.problem.simulator.simulator import BoundSimulator

# of each kind of file: what was trained
KINDS: dict[str, type[Ratio] | type[Likelihood]] = {
    "ratio engine": Ratio, "likelihood engine": Likelihood,
}  # fmt: skip


@dataclass(frozen=True)
class TrialFit:
    """A trained ratio or likelihood, and the prior it was trained under.

    Attributes
    ----------
    prior : Prior
    model : TrainedModel
    simulator : BoundSimulator or None
    device : torch.device
    """

    prior: Prior
    model: TrainedModel
    simulator: BoundSimulator | None
    device: torch.device

    @cached_property
    def learned(self) -> Ratio | Likelihood:
        """What was learned, in double precision."""
        return self.model.network.flow.exact()

    @cached_property
    def trials(self) -> TrialShape:
        """How trials are laid out."""
        return TrialShape(self.model.conditions, self.learned.discrete)

    @cached_property
    def range(self) -> LearnedRange:
        """The parameters of the training."""
        return LearnedRange.of(self.prior, self.learned.reach, self.prior.full_names)

    def features(self, name: str, x: ArrayLike | Tensor) -> Tensor:
        """Return the features (T, F) of trials (T, L)."""
        rows = self.trials.rows(name, x)
        return self.model.network.features(self.trials.batch(rows, self.device))

    def statistics(self, name: str, x: ArrayLike | Tensor) -> Tensor:
        """Return the statistics (T, M) of trials (T, L), float64."""
        with torch.no_grad():
            return self.learned.statistics(self.features(name, x))

    def log_prob(self, theta: Tensor, statistics: Tensor) -> Tensor:
        """Return what was learned, (n,), of theta (n, D) and statistics (n, M) of trials.

        One row of either goes with all of the other. Outside the prior it is -inf, and its
        gradient zero.
        """
        z = self.prior.to_latent(theta.to(self.device))
        inside = z.isfinite().all(-1)
        value = self.learned.of_trials(torch.where(inside[:, None], z, 0.0), statistics)
        return torch.where(inside, value, -torch.inf)

    def summed(self, sets: list[NDArray[np.float64]]) -> tuple[SummedLikelihood, Tensor, Tensor]:
        """Return the likelihood of N sets of trials, who is strange (N,), and p-values (N,)."""
        lengths = [len(own) for own in sets]
        features = self.features("trials", np.concatenate(sets))
        with torch.no_grad():
            statistics = self.learned.statistics(features).split(lengths)
        strange = [self.model.reference.judge_together(own) for own in features.split(lengths)]
        flags, p_values = zip(*strange, strict=True)
        device = self.device
        return (
            self.learned.summed(statistics),
            torch.tensor(flags, device=device),
            torch.tensor(p_values, dtype=torch.float64, device=device),
        )

    def simulate(self, theta: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        """Return one trial (L,) for each row of theta (n, D); NaN where the simulator failed."""
        if self.simulator is None:
            raise ValueError(
                "simulate must have a simulator, but the engine has none. Load it "
                "with load(path, simulator)."
            )
        # what a row draws is seeded by its theta: those that are alike differ in the last digits
        n = np.arange(len(theta)) + np.random.default_rng(seed).integers(2**16)
        rows = self.prior.complete(theta)
        rows = rows + np.spacing(rows) * n[:, None]
        known = self.model.conditions
        coords = {k: v.numpy() for k, v in known.coords.items()}
        coords |= {k: v[0].numpy() for k, v in known.scalars.items()}
        asked = {k: v for k, v in coords.items() if k in self.simulator.arguments}
        return simulated(self.simulator, (rows, asked, frozenset())).x.reshape(len(rows), -1)

    def save(self, path: str | Path, kind: str, chosen: dict[str, object]) -> None:
        """Write a file of some kind of it, and of what was chosen for it."""
        prior = self.prior
        meta = {
            "model": self.model.meta(), "prior": prior.manifest(), "chosen": chosen,
            "labels": dict(zip(prior.names, prior.labels, strict=True)),
        }  # fmt: skip
        write_archive(new_file("path", path), kind, meta, self.model.arrays())

    @classmethod
    def load(
        cls,
        path: str | Path,
        kind: str,
        device: torch.device,
        prior: Prior | None,
        custom: nn.Module | None = None,
    ) -> tuple[TrialFit, dict[str, object]]:
        """Return what `save` wrote; ``prior`` and ``custom`` are code that no file holds."""
        path = path_of("path", path)
        archive = read_archive(path, kind)
        check_sizes(archive)
        with fitting_parts(path, kind):
            meta = archive.meta
            if prior is None:
                prior = Prior.from_manifest(meta["prior"], meta["labels"])
            model = TrainedModel.from_archive(archive, device, custom)
            flow = model.network.flow
            if not isinstance(flow, KINDS[kind]) or flow.n_dims != prior.n_dim:
                raise ArchiveError(
                    f"{path} must hold the {kind}'s network of {prior.n_dim} parameters, but "
                    "holds another. Pass the prior of the training."
                )
            return cls(prior, model, None, device), meta["chosen"]
