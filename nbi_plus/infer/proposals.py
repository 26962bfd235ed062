"""Proposals: densities that draws come from, always with a broad defensive part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nbi_plus.infer.assemble import defensive_log_prob
from nbi_plus.learn.flows import Flow
from nbi_plus.problem.random import keyed_normal, keyed_uniform

_ROWS_PER_LAUNCH = {"cpu": 4096, "cuda": 2**19}  # a CPU's cache holds the hidden units of no more


class Draws(NamedTuple):
    """Latent draws z (B, S, D) and their log-density log_q (B, S), both float64."""

    z: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class FlowProposal:
    """The network's posterior, mixed with the same flow from a wider base.

    Attributes
    ----------
    flow : Flow
        Draws; float32 is enough, since it moves them by 1e-5 of a posterior's width or so, and
        densities are evaluated afresh.
    exact : Flow
        The same flow in float64: the density of a stored draw is always this forward pass.
    share, width : float
        Of the defensive part. A share of 0 gives the plain network.
    """

    flow: Flow
    exact: Flow
    share: float = 0.2
    width: float = 2.0

    @torch.no_grad()
    def draw(self, features: Tensor, keys: Tensor, n: int, seed: int, stage: str) -> Draws:
        """Draw n for each object; the draws of one depend on its key alone.

        Parameters
        ----------
        features : Tensor, shape (B, F)
        keys : Tensor of int64, shape (B,)
        n : int
            The last ``share`` of them come from the wide part.
        seed, stage
            Of the randomness.
        """
        noise = keyed_normal(seed, stage, keys, (n, self.flow.n_dims))
        n_wide = int(self.share * n)
        wide = torch.arange(n, device=noise.device) >= n - n_wide
        noise = torch.where(wide[:, None], self.width * noise, noise)
        choice = None
        if self.flow.config.n_mog > 1:
            choice = keyed_uniform(seed, stage + " component", keys, noise.shape[1:])
        z = torch.cat(
            [
                self.flow.sample(noise[i], features[i], None if choice is None else choice[i])
                for i in _pieces(noise)
            ]
        )
        # the share that was really drawn, which n may not divide into
        return Draws(z, self._log_prob(z, features, n_wide / n))

    @torch.no_grad()
    def log_prob(self, z: Tensor, features: Tensor) -> Tensor:
        """Return the log-density (B, S) of draws z (B, S, D), from one pass for both parts."""
        return self._log_prob(z, features, self.share)

    def _log_prob(self, z: Tensor, features: Tensor, share: float) -> Tensor:
        if not share:
            return torch.cat([self.exact.log_prob(z[i], features[i]) for i in _pieces(z)])
        scales = (1.0, self.width)
        both = [self.exact.log_probs(z[i], features[i], scales) for i in _pieces(z)]
        return torch.cat([defensive_log_prob(plain, wide, share) for plain, wide in both])


def _pieces(draws: Tensor) -> Iterator[slice]:
    """Yield slices of objects whose draws (B, S, D) fit a launch."""
    rows = _ROWS_PER_LAUNCH.get(draws.device.type, _ROWS_PER_LAUNCH["cpu"])
    step = max(1, rows // max(draws.shape[1], 1))
    for start in range(0, len(draws), step):
        yield slice(start, start + step)
