"""Conditional autoregressive flows: densities of latent parameters given a context.

Maps draws z to base noise u through blocks of masked autoregressive transforms. Objects and draws
stay two axes: the context (B, F) of B objects meets the draws (B, S, D) by broadcasting, so that
what depends on the context alone is computed once for each object.
"""

from __future__ import annotations

import math

import torch
from nflows.transforms.autoregressive import AutoregressiveTransform
from nflows.transforms.splines import unconstrained_rational_quadratic_spline
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from nbi_plus.batched import filled
from nbi_plus.learn.heads.config import FlowConfig
from nbi_plus.learn.heads.density import LatentDensity, NormalBase
from nbi_plus.learn.heads.matching import FlowMatching
from nbi_plus.learn.heads.normals import MixtureDensity

# One block may narrow the prior by e^-12; the bound is smooth, so that the gradient never dies.
LOG_SCALE_BOUND = 12.0
_TAIL_BOUND = 6.0
_UNIT_SLOPE = math.log(math.expm1(1 - 1e-3))  # makes an untrained spline the identity
_LOG_2PI = math.log(2 * math.pi)


class Conditioner(nn.Module):
    """A masked network: output d depends on inputs before d and, directly, on the context.

    Hidden units are sorted by degree; those of degree m see inputs 0..m-1, so that units of
    degree 0 see the context alone. A plain MADE gives its first output no path from the context
    [1]_. Sorted units also let `step` compute each unit once while sampling.

    References
    ----------
    .. [1] Germain et al. 2015, MADE, arXiv:1502.03509.
    """

    def __init__(self, n_dims: int, n_context: int, n_out: int, hidden: int, n_layers: int) -> None:
        super().__init__()
        self.n_dims, self.n_out, self.n_layers = n_dims, n_out, n_layers
        hidden = max(hidden, n_dims)
        degree = torch.arange(hidden) * n_dims // hidden
        # units that output d may see
        self.ends = [-(-(d + 1) * hidden // n_dims) for d in range(n_dims)]
        self.register_buffer("mask_in", (degree[:, None] > torch.arange(n_dims)).float())
        self.register_buffer("mask_hidden", (degree[:, None] >= degree).float())
        of_output = torch.arange(n_dims).repeat_interleave(n_out)
        self.register_buffer("mask_out", (of_output[:, None] >= degree).float())
        self.first = nn.Linear(n_dims, hidden)
        self.hidden = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(n_layers - 1))
        self.out = nn.Linear(hidden, n_dims * n_out)
        self.context = nn.Linear(n_context, n_layers * hidden + n_dims * n_out)
        nn.init.normal_(self.out.weight, std=1e-2)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.context.weight[n_layers * hidden :] *= 0.1

    def terms(self, context: Tensor) -> list[Tensor]:
        """Return what the context (B, F) adds to each layer, each (B, 1, width)."""
        rows, hidden = filled(len(context), context.device), self.first.out_features
        added = self.context(context if self.training else context[rows])[: len(context), None, :]
        return list(added.split([hidden] * self.n_layers + [self.n_dims * self.n_out], -1))

    def forward(self, u: Tensor, terms: list[Tensor]) -> Tensor:
        """Return the parameters (B, S, D, n_out) of all outputs for inputs (B, S, D)."""
        h = _activate(F.linear(u, self.first.weight * self.mask_in, self.first.bias), terms[0])
        for layer, term in zip(self.hidden, terms[1:-1], strict=True):
            h = _activate(F.linear(h, layer.weight * self.mask_hidden, layer.bias), term)
        out = F.linear(h, self.out.weight * self.mask_out, self.out.bias) + terms[-1]
        return out.unflatten(-1, (self.n_dims, self.n_out))

    def step(self, d: int, known: Tensor, terms: list[Tensor], cache: list[Tensor]) -> Tensor:
        """Return the parameters (B, S, n_out) of output ``d``, given inputs 0..d-1.

        ``cache`` holds the hidden units computed so far and is extended in place: all D steps
        together cost one forward pass.
        """
        start, stop = self.ends[d - 1] if d else 0, self.ends[d]
        weight, bias = self.first.weight[start:stop, :d], self.first.bias[start:stop]
        new = _activate(F.linear(known, weight, bias), terms[0][..., start:stop])
        for i, (layer, term) in enumerate(zip(self.hidden, terms[1:-1], strict=True)):
            cache[i] = torch.cat([cache[i], new], -1)
            weight, bias = layer.weight[start:stop, :stop], layer.bias[start:stop]
            new = _activate(F.linear(cache[i], weight, bias), term[..., start:stop])
        cache[-1] = torch.cat([cache[-1], new], -1)
        rows = slice(d * self.n_out, (d + 1) * self.n_out)
        return (
            F.linear(cache[-1], self.out.weight[rows, :stop], self.out.bias[rows])
            + terms[-1][..., rows]
        )

    def empty_cache(self, like: Tensor) -> list[Tensor]:
        """Return the cache before the first `step`, for draws like ``like`` (B, S, D)."""
        return [like.new_empty((*like.shape[:-1], 0)) for _ in range(self.n_layers)]


class AffineBlock(AutoregressiveTransform):
    """Masked affine autoregressive transform u = (z - shift) exp(-log_scale)."""

    n_out = 2

    def __init__(self, n_dims: int, n_context: int, config: FlowConfig, order: Tensor) -> None:
        super().__init__(Conditioner(n_dims, n_context, self.n_out, config.hidden, config.n_layers))
        self.register_buffer("order", order)
        self.register_buffer("restore", order.argsort())

    def forward(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, S, D) towards the base; also the log-determinant (B, S)."""
        z = inputs[..., self.order]
        params = self.autoregressive_net(z, self.autoregressive_net.terms(context))
        u, log_det = self._elementwise_forward(z, params)
        return u[..., self.restore], log_det.sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, S, D) away from the base, at the cost of one forward pass; also the log-det."""
        net = self.autoregressive_net
        terms, cache = net.terms(context), net.empty_cache(inputs)
        u, known, total = inputs[..., self.order], inputs[..., :0], torch.zeros_like(inputs[..., 0])
        for d in range(net.n_dims):
            params = net.step(d, known, terms, cache)
            value, log_det = self._elementwise_inverse(u[..., d], params)
            known, total = torch.cat([known, value[..., None]], -1), total + log_det
        return known[..., self.restore], total

    def _elementwise_forward(self, inputs: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = _bounded(params[..., 1])
        return (inputs - params[..., 0]) * torch.exp(-log_scale), -log_scale

    def _elementwise_inverse(self, inputs: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = _bounded(params[..., 1])
        return inputs * torch.exp(log_scale) + params[..., 0], log_scale


class SplineBlock(AffineBlock):
    """The affine map of `AffineBlock`, then a monotone rational-quadratic spline [1]_.

    The affine part narrows and places, which bins of a bounded spline cannot; outside its bound
    the spline is the identity.

    References
    ----------
    .. [1] Durkan et al. 2019, Neural spline flows, arXiv:1906.04032.
    """

    def __init__(self, n_dims: int, n_context: int, config: FlowConfig, order: Tensor) -> None:
        self.n_bins = config.n_bins
        self.n_out = 2 + 3 * config.n_bins - 1
        super().__init__(n_dims, n_context, config, order)

    def _elementwise_forward(self, inputs: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        u, log_det = super()._elementwise_forward(inputs, params)
        u, more = self._spline(u, params, inverse=False)
        return u, log_det + more

    def _elementwise_inverse(self, inputs: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        u, log_det = self._spline(inputs, params, inverse=True)
        z, more = super()._elementwise_inverse(u, params)
        return z, log_det + more

    def _spline(self, u: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = params[..., 2:].split(
            [self.n_bins, self.n_bins, self.n_bins - 1], -1
        )
        return unconstrained_rational_quadratic_spline(
            u,
            widths,
            heights,
            slopes + _UNIT_SLOPE,
            inverse=inverse,
            tails="linear",
            tail_bound=_TAIL_BOUND,
        )


class MixtureBase(nn.Module):
    """An autoregressive mixture of Gaussians given the context; wide means wider components."""

    def __init__(self, n_dims: int, n_context: int, config: FlowConfig) -> None:
        super().__init__()
        self.net = Conditioner(n_dims, n_context, 3 * config.n_mog, config.hidden, config.n_layers)
        with torch.no_grad():  # components that start equal would stay equal
            means = torch.linspace(-1.0, 1.0, config.n_mog)
            self.net.out.bias.view(n_dims, 3, config.n_mog)[:, 1] += means

    def log_probs(
        self, u: Tensor, context: Tensor, scales: tuple[float, ...]
    ) -> tuple[Tensor, ...]:
        """Return log-densities, shape (B, S), with every component ``scale`` times wider."""
        log_share, mean, log_sd = self._components(self.net(u, self.net.terms(context)))
        each = self._heights(u[..., None], log_share, mean, log_sd, scales)
        return tuple(height.sum(-1) for height in each)

    def draw(
        self, noise: Tensor, choice: Tensor | None, context: Tensor, scales: tuple[float, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return draws (B, S, D) and their log-densities, as `log_probs` has them.

        ``noise`` (B, S, D) is scaled already, ``choice`` are uniforms that choose components.
        """
        terms, cache, known = self.net.terms(context), self.net.empty_cache(noise), noise[..., :0]
        totals = [torch.zeros_like(noise[..., 0]) for _ in scales]
        for d in range(self.net.n_dims):
            log_share, mean, log_sd = self._components(self.net.step(d, known, terms, cache))
            below = log_share.exp().cumsum(-1)[..., :-1] < choice[..., d : d + 1]
            k = below.sum(-1, keepdim=True)
            draw = mean.gather(-1, k) + noise[..., d : d + 1] * torch.exp(log_sd.gather(-1, k))
            each = self._heights(draw, log_share, mean, log_sd, scales)
            totals = [total + height for total, height in zip(totals, each, strict=True)]
            known = torch.cat([known, draw], -1)
        return known, tuple(totals)

    def _components(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, mean, raw = params.chunk(3, -1)
        return logits.log_softmax(-1), mean, _bounded(raw)

    def _heights(
        self, u: Tensor, log_share: Tensor, mean: Tensor, log_sd: Tensor, scales: tuple[float, ...]
    ) -> list[Tensor]:
        """Return log-densities (...) of u (..., 1) under components (..., K), for each scale."""
        square = ((u - mean) * torch.exp(-log_sd)).square()
        height = log_share - log_sd - 0.5 * _LOG_2PI
        return [
            torch.logsumexp(height - 0.5 * square / scale**2, -1) - math.log(scale)
            for scale in scales
        ]


class Flow(LatentDensity):
    """A conditional density q(z | context) of D latent parameters by blocks, after a whitening.

    Parameters
    ----------
    n_dims, n_context : int
        D and the length F of the context.
    config : FlowConfig
    """

    def __init__(self, n_dims: int, n_context: int, config: FlowConfig) -> None:
        super().__init__(n_dims, config)
        block = AffineBlock if config.kind == "maf" else SplineBlock
        orders = _orders(n_dims, config.n_blocks, config.perm_seed)
        self.blocks = nn.ModuleList(block(n_dims, n_context, config, order) for order in orders)
        self.base = NormalBase() if config.n_mog == 1 else MixtureBase(n_dims, n_context, config)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the blocks compute in; whitening is always float64."""
        return self.blocks[0].autoregressive_net.first.weight.dtype

    def log_probs(
        self, z: Tensor, context: Tensor, scales: tuple[float, ...]
    ) -> tuple[Tensor, ...]:
        """Return log q for several scales of the base, from one pass through the blocks."""
        context = context.to(self.dtype)
        u, log_det = self._to_base(z, context)
        return tuple(log_base + log_det for log_base in self.base.log_probs(u, context, scales))

    def draw(
        self, noise: Tensor, context: Tensor, choice: Tensor | None, scales: tuple[float, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return draws z (B, S, D), float64, of base noise (B, S, D), and their log q (B, S).

        The densities cost nothing beside the draws, and are exact for those before rounding.
        """
        context = context.to(self.dtype)
        u, heights = self.base.draw(noise.to(self.dtype), choice, context, scales)
        total = self._log_volume()
        for block in reversed(self.blocks):
            u, log_det = block.inverse(u, context)
            total = total + log_det
        return self.coloured(u), tuple(height - total for height in heights)

    def _to_base(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        u, total = self.white(z), -self._log_volume()
        for block in self.blocks:
            u, log_det = block(u, context)
            total = total + log_det
        return u, total


DENSITIES: dict[str, type[LatentDensity]] = {
    "maf": Flow,
    "nsf": Flow,
    "mdn": MixtureDensity,
    "fm": FlowMatching,
}


def density(n_dims: int, n_context: int, config: FlowConfig) -> LatentDensity:
    """Return an untrained density of the kind that ``config`` names."""
    return DENSITIES[config.kind](n_dims, n_context, config)


def _activate(h: Tensor, term: Tensor) -> Tensor:
    """Return silu(h + term), in place: memory traffic is what a flow of many draws costs."""
    return F.silu(h.add_(term), inplace=not torch.is_grad_enabled())


def _bounded(raw: Tensor) -> Tensor:
    return LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND)


def _orders(n_dims: int, n_blocks: int, seed: int) -> list[Tensor]:
    """Return the order of parameters in each block: a random one, then its reverse, and so on."""
    rng = torch.Generator().manual_seed(seed)
    orders: list[Tensor] = []
    while len(orders) < n_blocks:
        order = torch.randperm(n_dims, generator=rng)
        orders += [order, order.flip(0)]
    return orders[:n_blocks]
