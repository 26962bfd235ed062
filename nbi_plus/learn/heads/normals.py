r"""Normals: a conditional mixture of normals with full covariances, by one plain network.

.. math:: q(u \mid c) = \sum_k \pi_k(c)\, |P_k(c)|\, (2 \pi)^{-D/2}
          \exp\left(-\tfrac12 |P_k(c)\, (u - \mu_k(c))|^2\right)

with upper triangular P_k, whose diagonals are positive. A density costs products alone, a draw a
triangular system; both cost less than those of a flow, and know nothing but bumps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nbi_plus.batched import filled
from nbi_plus.learn.heads.config import FlowConfig
from nbi_plus.learn.heads.density import LatentDensity
from nbi_plus.learn.heads.latent import perceptron

_LOG_2PI = math.log(2 * math.pi)
_BOUND = 12.0  # of log-scales: smooth, so that the gradient never dies
_SPREAD = 0.5  # of the means before training: components that start equal would stay equal


class MixtureDensity(LatentDensity):
    """log q(z | context) of a mixture of normals.

    Parameters
    ----------
    n_dims, n_context : int
        D and the length F of the context.
    config : FlowConfig
        Of kind "mdn".
    """

    def __init__(self, n_dims: int, n_context: int, config: FlowConfig) -> None:
        super().__init__(n_dims, config)
        self.sizes = [1, n_dims, n_dims, n_dims * (n_dims - 1) // 2]  # of each component
        n_out = config.n_mog * sum(self.sizes)
        self.net = perceptron(n_context, config.hidden, config.n_layers, n_out)
        with torch.no_grad():
            self.net[-1].weight *= 0.1
            self.net[-1].bias.zero_()
            means = self.net[-1].bias.view(config.n_mog, -1)[:, 1 : 1 + n_dims]
            means += _SPREAD * torch.randn(means.shape) * (config.n_mog > 1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return self.net[-1].weight.dtype

    def log_probs(
        self, z: Tensor, context: Tensor, scales: tuple[float, ...]
    ) -> tuple[Tensor, ...]:
        """Return log q (B, S) of z (B, S, D) with every component ``scale`` times wider."""
        heights = self._heights(self.white(z), self._components(context), scales)
        return tuple(height - self._log_volume() for height in heights)

    def draw(
        self, noise: Tensor, context: Tensor, choice: Tensor | None, scales: tuple[float, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return draws z (B, S, D) and their log q; the first uniform of a draw chooses for it."""
        log_share, mean, log_diag, factor = parts = self._components(context)
        noise = noise.to(self.dtype)
        if choice is None:
            k = torch.zeros(noise.shape[:2], dtype=torch.int64, device=noise.device)
        else:
            edges = log_share.exp().cumsum(-1)[:, None, :-1]
            k = (edges < choice[..., :1]).sum(-1)
        rows = torch.arange(len(noise), device=noise.device)[:, None]
        chosen = factor[rows, k] + log_diag[rows, k].exp().diag_embed()
        u = torch.linalg.solve_triangular(chosen, noise[..., None], upper=True)[..., 0]
        u = mean[rows, k] + u
        heights = self._heights(u, parts, scales)
        return self.coloured(u), tuple(height - self._log_volume() for height in heights)

    def _components(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log-shares (B, K), means, log-diagonals (B, K, D) and strict triangles of P."""
        rows = filled(len(context), context.device)
        context = context.to(self.dtype)
        found = self.net(context if self.training else context[rows])[: len(context)]
        found = found.unflatten(-1, (self.config.n_mog, -1))
        logits, mean, raw, beside = found.split(self.sizes, -1)
        log_diag = _BOUND * torch.tanh(raw / _BOUND)
        i, j = torch.triu_indices(self.n_dims, self.n_dims, 1, device=found.device)
        factor = found.new_zeros(*mean.shape, self.n_dims)
        # of rows as wide as the diagonal says, so that narrow components keep their shape
        factor[..., i, j] = beside * log_diag[..., i].exp()
        return logits[..., 0].log_softmax(-1), mean, log_diag, factor

    def _heights(
        self, u: Tensor, parts: tuple[Tensor, Tensor, Tensor, Tensor], scales: tuple[float, ...]
    ) -> tuple[Tensor, ...]:
        """Return log-densities (B, S) of whitened u (B, S, D) for each scale."""
        log_share, mean, log_diag, factor = parts
        full = factor + log_diag.exp().diag_embed()
        centred = u[:, :, None] - mean[:, None]
        square = torch.einsum("bkij,bskj->bski", full, centred).square().sum(-1)
        height = log_share + log_diag.sum(-1) - 0.5 * self.n_dims * _LOG_2PI
        return tuple(
            torch.logsumexp(height[:, None] - 0.5 * square / scale**2, -1)
            - self.n_dims * math.log(scale)
            for scale in scales
        )
