"""The encoder: turns a batch of observations into network channels and a context of scales.

Each object is centred and scaled by its own masked median and spread and squashed by arcsinh, so
that neither a flux unit, a magnitude range nor a rare high peak can upset the network. What that
removes, location and log-scale, is given to the flow as context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbi_plus.problem.batch import Batch

_MAD_TO_SD = 1.4826  # spread of a normal distribution over its median absolute deviation
_LEAST_SPREAD = 1e-100  # of the largest residual: below, their ratio would overflow


@dataclass(frozen=True)
class EncoderConfig:
    """What the observations look like.

    Attributes
    ----------
    n_channels : int
        Channels C of the data.
    has_errors : bool
        Whether objects bring their own errors.
    coords, own_coords, scalars : tuple of str
        Coordinates; those of them that differ between objects; numbers of each object.
    """

    n_channels: int
    has_errors: bool
    coords: tuple[str, ...] = ()
    own_coords: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()

    @classmethod
    def of(cls, batch: Batch) -> EncoderConfig:
        """Return the config that fits a batch."""
        own = tuple(sorted(k for k, v in batch.coords.items() if v.ndim == 2))
        return cls(
            n_channels=batch.mask.shape[1],
            has_errors=batch.x_err is not None,
            coords=tuple(sorted(batch.coords)),
            own_coords=own,
            scalars=tuple(sorted(batch.scalars)),
        )

    @property
    def n_inputs(self) -> int:
        """Number of channels the featurizer sees, the mask last."""
        own_masks = self.n_channels if self.n_channels > 1 else 0
        errors = self.n_channels if self.has_errors else 0
        return self.n_channels + errors + len(self.coords) + own_masks + 1

    @property
    def n_context(self) -> int:
        """Length of the context."""
        return 2 * self.n_channels + len(self.own_coords) + len(self.scalars)


class Encoder(nn.Module):
    """Channels ``[x, log x_err, coords, masks of channels, mask]`` and a context of scales.

    Its buffers, set once by `fit`, standardise what is not scaled per object.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("centre", torch.zeros(config.n_context, dtype=torch.float64))
        self.register_buffer("width", torch.ones(config.n_context, dtype=torch.float64))
        self.register_buffer("span", torch.ones(len(config.coords), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, batch: Batch) -> None:
        """Learn centre and width of the context, and the span of the coordinates, from a batch."""
        _, context, _ = self._standardise(batch)
        self.centre.copy_(context.median(0).values)
        spread = _MAD_TO_SD * (context - self.centre).abs().median(0).values
        self.width.copy_(
            torch.where(spread > 1e-12 * self.centre.abs(), spread, torch.ones_like(spread))
        )
        for i, name in enumerate(self.config.coords):
            span = _since_first(batch.coords[name], batch.mask.any(1))[0].abs().max()
            self.span[i] = torch.where(span > 0, span, torch.ones_like(span))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return channels (n, C', L), the mask last, and the context (n, E), both float32."""
        x, context, scale = self._standardise(batch)
        seen = batch.mask.any(1)
        channels = [x]
        if self.config.has_errors:
            channels.append((batch.x_err / scale).log().masked_fill(~batch.mask, 0.0))
        for i, name in enumerate(self.config.coords):
            offsets, _ = _since_first(batch.coords[name], seen)
            channels.append((2 * offsets / self.span[i] - 1).expand(len(x), -1)[:, None])
        masks = [batch.mask, seen[:, None]] if self.config.n_channels > 1 else [seen[:, None]]
        masked = torch.cat([c.to(torch.float32) for c in channels], 1) * seen[:, None]
        # linear for ordinary objects, logarithmic for outliers, which must stay finite
        squashed = torch.asinh((context - self.centre) / self.width)
        return torch.cat([masked, *[m.to(torch.float32) for m in masks]], 1), squashed.to(
            torch.float32
        )

    def _standardise(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return squashed data (n, C, L), raw context (n, E) and scales (n, C, 1)."""
        gaps = batch.x.masked_fill(~batch.mask, math.nan)
        location = gaps.nanmedian(-1, keepdim=True).values.nan_to_num(0.0)
        scale = _spread(gaps - location)
        x = torch.asinh((batch.x - location) / scale) * batch.mask
        seen = batch.mask.any(1)
        origins = [_since_first(batch.coords[k], seen)[1] for k in self.config.own_coords]
        parts = [location[..., 0], scale[..., 0].log()]
        parts += [v[:, None] for v in [*origins, *(batch.scalars[k] for k in self.config.scalars)]]
        return x, torch.cat([p.to(torch.float64) for p in parts], 1), scale


def _spread(residual: Tensor) -> Tensor:
    """Return a positive scale (n, C, 1) of residuals with NaN gaps: robust, else any."""
    robust = _MAD_TO_SD * residual.abs().nanmedian(-1, keepdim=True).values
    largest = residual.abs().nan_to_num(0.0).amax(-1, keepdim=True)
    # more than half of the points are equal, or as good as equal beside the others
    scale = torch.where(robust > _LEAST_SPREAD * largest, robust, largest)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _since_first(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return a coordinate relative to each object's first real point, and that point (n,).

    A coordinate shared by all objects, shape (L,), is taken relative to its first value.
    """
    if values.ndim == 1:
        return values - values[0], values[:1]
    first = values.masked_fill(~seen, math.inf).amin(-1, keepdim=True)
    first = torch.where(torch.isfinite(first), first, torch.zeros_like(first))
    return torch.where(seen, values - first, torch.zeros_like(values)), first[:, 0]
