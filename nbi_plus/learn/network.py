"""The posterior network: encoder, featurizer and flow as one module."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nbi_plus import launch
from nbi_plus.data.batch import Batch
from nbi_plus.learn.encode import Encoder, EncoderConfig
from nbi_plus.learn.flows import Flow, FlowConfig

ESTIMATORS: dict[str, type[Flow]] = {"maf": Flow, "nsf": Flow}  # of each kind of `FlowConfig`


def estimator(n_dims: int, n_context: int, config: FlowConfig) -> Flow:
    """Return an untrained density of the kind that ``config`` names."""
    return ESTIMATORS[config.kind](n_dims, n_context, config)


class PosteriorNetwork(nn.Module):
    """q(z | data): the flow's density given features of the data.

    Parameters
    ----------
    encoder_config : EncoderConfig
    featurizer : nn.Module
        Maps channels (n, C', L) to features (n, F); has ``n_features``.
    n_dims : int
        Number of parameters D.
    flow_config : FlowConfig
    """

    def __init__(
        self,
        encoder_config: EncoderConfig,
        featurizer: nn.Module,
        n_dims: int,
        flow_config: FlowConfig,
    ) -> None:
        super().__init__()
        width = featurizer.n_features
        self.encoder = Encoder(encoder_config)
        self.featurizer = featurizer
        self.join = nn.Linear(width + encoder_config.n_context, width)
        self.mix = nn.Linear(width, width)
        self.flow = estimator(n_dims, width, flow_config)

    def forward(self, batch: Batch) -> Tensor:
        """Return the features (n, F) that the flow is conditioned on."""
        channels, context = self.encoder(batch)
        joined = self.join(torch.cat([self.featurizer(channels), context], -1))
        return joined + self.mix(nn.functional.silu(joined))

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Return `forward` computed in pieces of bounded memory."""
        points = launch.of(batch.mask.device).encoded_points
        step = max(1, points // max(1, batch.mask[0].numel()))
        return torch.cat([self(piece) for piece in _pieces(batch, step)])

    def exact_flow(self) -> Flow:
        """Return a float64 copy of the flow, for densities that become weights."""
        return self.flow.exact()


def _pieces(batch: Batch, step: int) -> Iterator[Batch]:
    for start in range(0, len(batch), step):
        yield batch.select(slice(start, start + step))
