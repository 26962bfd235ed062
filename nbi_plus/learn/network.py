"""The posterior network: encoder, featurizer and flow as one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nbi_plus import launch
from nbi_plus.batched import filled
from nbi_plus.data.batch import Batch
from nbi_plus.data.rearranging import buckets
from nbi_plus.io.header import ArchiveError
from nbi_plus.learn.encode import Encoder, EncoderConfig
from nbi_plus.learn.flows import DENSITIES, AffineBlock, Conditioner, FlowConfig
from nbi_plus.learn.heads.classes import Classes, ClassesConfig
from nbi_plus.learn.heads.density import LatentDensity
from nbi_plus.learn.likelihood import Likelihood, LikelihoodConfig
from nbi_plus.learn.ratio import Ratio, RatioConfig
from nbi_plus.learn.scores.estimates import ScoreConfig, Scores

EstimatorConfig = FlowConfig | RatioConfig | LikelihoodConfig | ScoreConfig | ClassesConfig


class Estimator(Protocol):
    """What is trained on features of the data: a density, of z or of the data, ratio, estimates.

    Attributes
    ----------
    n_dims : int
    config : EstimatorConfig
    averages : bool
        Whether, once it is trained, data are to be averaged over, `Ratio.normalise`, or left.
    """

    n_dims: int
    config: EstimatorConfig
    averages: bool

    def whiten(self, z: Tensor) -> None:
        """Learn where draws z (n, D) lie."""

    def exact(self) -> Estimator:
        """Return a float64 copy."""


# of each kind: what it is trained as, and its chosen state of plain JSON
ESTIMATORS: dict[str, tuple[type[Estimator], Callable[..., EstimatorConfig]]] = {
    **{kind: (made, FlowConfig) for kind, made in DENSITIES.items()},
    "ratio": (Ratio, RatioConfig),
    "likelihood": (Likelihood, LikelihoodConfig.of), "scores": (Scores, ScoreConfig),
    "classes": (Classes, ClassesConfig),
}  # fmt: skip


def estimator(n_dims: int, n_context: int, config: EstimatorConfig) -> Estimator:
    """Return an untrained estimator of the kind that ``config`` names."""
    return ESTIMATORS[config.kind][0](n_dims, n_context, config)


def config_of(meta: Mapping[str, Any]) -> EstimatorConfig:
    """Return the chosen state of an estimator from its plain form."""
    return ESTIMATORS[meta["kind"]][1](**meta)


def refuse_other_state(
    what: str, make: Callable[[], nn.Module], state: Mapping[str, Tensor]
) -> None:
    """Refuse a state that is not finite, or not of the module that ``make`` returns.

    The module is made without memory, so that no number in a file can ask for more than it holds.
    """
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in make().state_dict().items()}
    came = {k: tuple(v.shape) for k, v in state.items()}
    for name in sorted({*wanted, *came}):
        if came.get(name) != wanted.get(name):
            raise ArchiveError(
                f"{name} of the {what} must have shape {wanted.get(name)}, but has "
                f"{came.get(name)}. The file is damaged or forged."
            )
        if not bool(state[name].isfinite().all()):
            raise ArchiveError(
                f"{name} of the {what} must be finite, but is not. The file is damaged or forged."
            )


def load_sound(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state, if what follows from the architecture of its flows is as it must be."""
    for name, part in module.named_modules():
        if not isinstance(part, AffineBlock | Conditioner):
            continue
        made = {k: v.cpu() for k, v in part.named_buffers(recurse=False)}
        came = {k: state[f"{name}.{k}"].cpu() for k in made}
        if isinstance(part, AffineBlock):  # any order will do, if there is a way back
            made = {"order": made["order"].sort().values, "restore": came["order"].argsort()}
            came["order"] = came["order"].sort().values
        if not all(bool((came[k] == made[k]).all()) for k in made):
            raise ArchiveError(
                f"{name} must have the masks and a rearrangement of its parameters, but has others."
                " The file is damaged or forged."
            )
    module.load_state_dict(state)


class PosteriorNetwork(nn.Module):
    """q(z | data): the estimator's density, or ratio, given features of the data.

    Parameters
    ----------
    encoder_config : EncoderConfig
    featurizer : nn.Module or None
        Maps channels (n, C', L) to features (n, F); has ``n_features``. Without one the features
        are the numbers of the data, as they are: what a likelihood is a density of.
    n_dims : int
        Number of parameters D.
    flow_config : FlowConfig, RatioConfig or LikelihoodConfig
    """

    def __init__(
        self,
        encoder_config: EncoderConfig,
        featurizer: nn.Module | None,
        n_dims: int,
        flow_config: EstimatorConfig,
    ) -> None:
        super().__init__()
        width = encoder_config.n_channels if featurizer is None else featurizer.n_features
        self.n_features = width
        self.encoder = Encoder(encoder_config)
        self.featurizer = featurizer
        if featurizer is not None:
            self.join = nn.Linear(width + encoder_config.n_context, width)
            self.mix = nn.Linear(width, width)
        self.flow = estimator(n_dims, width, flow_config)

    def forward(self, batch: Batch) -> Tensor:
        """Return the features (n, F) that the flow is conditioned on."""
        if self.featurizer is None:
            return batch.x.flatten(1).to(torch.float64)
        channels, context = self.encoder(batch)
        joined = self.join(torch.cat([self.featurizer(channels), context], -1))
        return joined + self.mix(nn.functional.silu(joined))

    def learn_scales(self, batch: Batch, z: Tensor) -> None:
        """Learn the scales of data, and where their parameters z (n, D) lie."""
        self.flow.whiten(z[torch.isfinite(z).all(-1)])
        if self.featurizer is None:
            x = self(batch)
            good = torch.isfinite(x).all(-1) & torch.isfinite(z).all(-1)
            self.flow.learn_columns(z[good], x[good])
        else:
            self.encoder.fit(batch)

    @torch.no_grad()
    def features(self, batch: Batch, lengths: NDArray[np.int64] | None = None) -> Tensor:
        """Return `forward` computed in pieces of bounded memory.

        Objects of like lengths (n,) go together, padded no further than the longest of them; where
        none are given, all are as long as the batch.
        """
        n, n_channels, longest = batch.mask.shape
        points = launch.of(batch.mask.device).encoded_points // n_channels
        lengths = np.full(n, longest) if lengths is None else lengths
        pieces = list(buckets(lengths, max(1, points)))
        if len(pieces) == 1:
            return self._alone(batch, points)
        found = [
            self._alone(batch.select(rows).cut(max(1, lengths[rows[0]])), points)
            for rows in pieces
        ]  # fmt: skip
        return torch.cat(found)[np.argsort(np.concatenate(pieces))]

    def _alone(self, batch: Batch, points: int) -> Tensor:
        """Return `forward`, to the last digit the same whoever stands beside an object.

        Except where so many points as it takes to be sure of that are more than these.
        """
        n, _, width = batch.mask.shape
        rows = filled(n, batch.mask.device)
        return self(batch if len(rows) * width > points else batch.select(rows))[:n]

    @property
    def n_not_finite(self) -> int:
        """How many of its numbers are NaN or infinite."""
        bad = [(~torch.isfinite(v)).sum() for v in self.state_dict().values()]
        return int(torch.stack(bad).sum())  # one wait for all, not one each

    def exact_flow(self) -> LatentDensity:
        """Return a float64 copy of the flow, for densities that become weights."""
        return self.flow.exact()
