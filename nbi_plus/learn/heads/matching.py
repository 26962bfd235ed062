r"""Matching: a continuous flow, whose velocity is learned by regression on straight paths.

Flow matching (Lipman et al. 2023, arXiv:2210.02747): between noise :math:`u_0` and whitened
parameters :math:`u_1` lies :math:`u_t = (1 - t) u_0 + t u_1`, and the velocity :math:`v(u, t, c)`
is the mean of :math:`u_1 - u_0` there. Draws follow it from t = 0 to 1; their density is

.. math:: \log q(u_1 \mid c) = \log N(u_0; 0, I) - \int_0^1 \nabla \cdot v(u_t, t, c)\, dt,

with the exact divergence, by the tangents of all D coordinates, and Runge-Kutta steps of fourth
order that get shorter towards t = 1, where narrow posteriors bend the paths.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from nbi_plus.batched import filled
from nbi_plus.learn.heads.config import FlowConfig
from nbi_plus.learn.heads.density import LatentDensity, NormalBase
from nbi_plus.problem.random import keyed_normal, keyed_uniform

_N_STEPS = 16  # of draws; exact densities take twice as many, and tell where these do not do
_N_PAIRS = 8  # times and noises that one row of a batch is shown with
_N_TIMES = 3  # numbers that tell the time


class Velocity(nn.Module):
    """v(u, t, context) of whitened u, beside that which keeps a normal as wide as the prior's.

    Parameters
    ----------
    n_dims, n_context, hidden, n_layers : int
    """

    def __init__(self, n_dims: int, n_context: int, hidden: int, n_layers: int) -> None:
        super().__init__()
        self.n_dims, self.sizes = n_dims, [hidden] * n_layers + [n_dims]
        self.first = nn.Linear(n_dims + _N_TIMES, hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(n_layers - 1))
        self.out = nn.Linear(hidden, n_dims)
        self.context = nn.Linear(n_context, sum(self.sizes))
        nn.init.normal_(self.out.weight, std=1e-2)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.context.weight[-n_dims:] *= 0.1

    def terms(self, context: Tensor) -> list[Tensor]:
        """Return what the context (B, F) adds to each layer, each (B, 1, width)."""
        rows = filled(len(context), context.device)
        added = self.context(context if self.training else context[rows])[: len(context), None, :]
        return list(added.split(self.sizes, -1))

    def forward(self, u: Tensor, t: Tensor, terms: list[Tensor]) -> Tensor:
        """Return the velocity (B, S, D) at u (B, S, D) and times t, which broadcast (..., 1)."""
        width, drift = _straight(t)
        h = F.silu(self.first(_inputs(u / width, t)) + terms[0])
        for layer, term in zip(self.hidden, terms[1:-1], strict=True):
            h = F.silu(layer(h) + term)
        return drift * u + self.out(h) + terms[-1]

    def with_divergence(self, u: Tensor, t: Tensor, terms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the velocity (B, S, D) and its divergence (B, S)."""
        width, drift = _straight(t)
        a = self.first(_inputs(u / width, t)) + terms[0]
        # what a step along each coordinate changes in the hidden units: (B, S, D, H)
        tangent = _slope(a)[..., None, :] * self.first.weight[:, : self.n_dims].T
        h = F.silu(a)
        for layer, term in zip(self.hidden, terms[1:-1], strict=True):
            a = layer(h) + term
            tangent = _slope(a)[..., None, :] * (tangent @ layer.weight.T)
            h = F.silu(a)
        trace = (tangent * self.out.weight).sum((-2, -1)) / width[..., 0]
        velocity = drift * u + self.out(h) + terms[-1]
        return velocity, trace + self.n_dims * drift[..., 0]


class FlowMatching(LatentDensity):
    """log q(z | context) of a continuous flow.

    Parameters
    ----------
    n_dims, n_context : int
        D and the length F of the context.
    config : FlowConfig
        Of kind "fm".
    """

    def __init__(self, n_dims: int, n_context: int, config: FlowConfig) -> None:
        super().__init__(n_dims, config)
        self.velocity = Velocity(n_dims, n_context, config.hidden, config.n_layers)
        self.base, self.n_steps = NormalBase(), _N_STEPS

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return self.velocity.out.weight.dtype

    def log_probs(
        self, z: Tensor, context: Tensor, scales: tuple[float, ...]
    ) -> tuple[Tensor, ...]:
        """Return log q (B, S) of z (B, S, D) for several scales of the base, from one way back."""
        u, grown = self._followed(self.white(z), context, backwards=True)
        heights = self.base.log_probs(u, context, scales)
        return tuple(height - grown - self._log_volume() for height in heights)

    def draw(
        self, noise: Tensor, context: Tensor, choice: Tensor | None, scales: tuple[float, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return draws z (B, S, D) of base noise, and their log q for each scale of the base."""
        u, heights = self.base.draw(noise.to(self.dtype), choice, context, scales)
        u, grown = self._followed(u, context, backwards=False)
        return self.coloured(u), tuple(h - grown - self._log_volume() for h in heights)

    def loss(self, z: Tensor, context: Tensor) -> Tensor:
        """Return the mean square (n,) by which velocities miss, less that of knowing nothing.

        No log-density: that would take a way through all times. In training times and noises are
        fresh, else the same at every call.
        """
        n, shape = len(z), (len(z), _N_PAIRS, self.n_dims)
        if self.training:
            noise = torch.randn(shape, dtype=self.dtype, device=z.device)
            comb = torch.rand(n, 1, dtype=self.dtype, device=z.device)
        else:
            rows = torch.arange(n, device=z.device)
            noise = keyed_normal(0, "matching", rows, shape[1:]).to(self.dtype)
            comb = keyed_uniform(0, "matching times", rows, (1,)).to(self.dtype)
        teeth = torch.arange(_N_PAIRS, device=z.device) / _N_PAIRS
        t = ((teeth + comb) % 1.0)[..., None]
        u = self.white(z[:, None])
        path = (1 - t) * noise + t * u
        missed = self.velocity(path, t, self.velocity.terms(context.to(self.dtype))) - (u - noise)
        return missed.square().sum(-1).mean(-1) - 2 * self.n_dims

    def exact(self) -> FlowMatching:
        """Return a float64 copy that takes shorter steps, for densities that become weights."""
        found = super().exact()
        found.n_steps = 2 * self.n_steps
        return found

    def _followed(self, u: Tensor, context: Tensor, *, backwards: bool) -> tuple[Tensor, Tensor]:
        """Return where the velocity leads (B, S, D), and the integral of its divergence (B, S)."""
        terms = self.velocity.terms(context.to(self.dtype))
        times = 1 - torch.linspace(1, 0, self.n_steps + 1, dtype=self.dtype, device=u.device) ** 2
        times = times.flip(0) if backwards else times
        grown = torch.zeros_like(u[..., 0])
        for start, stop in zip(times, times[1:], strict=False):
            step = stop - start
            v1, d1 = self.velocity.with_divergence(u, start.view(1, 1, 1), terms)
            middle = (start + step / 2).view(1, 1, 1)
            v2, d2 = self.velocity.with_divergence(u + step / 2 * v1, middle, terms)
            v3, d3 = self.velocity.with_divergence(u + step / 2 * v2, middle, terms)
            v4, d4 = self.velocity.with_divergence(u + step * v3, stop.view(1, 1, 1), terms)
            u = u + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            grown = grown + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        return u, -grown if backwards else grown


def _straight(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return how wide paths between two standard normals lie, and what keeps them so wide."""
    square = (1 - t).square() + t.square()
    return square.sqrt(), (2 * t - 1) / square


def _inputs(u: Tensor, t: Tensor) -> Tensor:
    told = torch.cat([t, (math.pi * t).cos(), (1 - t).sqrt()], -1)
    return torch.cat([u, told.expand(*u.shape[:-1], _N_TIMES)], -1)


def _slope(a: Tensor) -> Tensor:
    """Return the derivative of silu."""
    sigmoid = torch.sigmoid(a)
    return sigmoid * (1 + a * (1 - sigmoid))
