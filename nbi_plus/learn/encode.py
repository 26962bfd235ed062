"""The encoder: turns a batch of observations into network channels and a context of scales.

Each object is centred and scaled by its own masked median and spread and squashed by arcsinh, so
that neither a flux unit, a magnitude range nor a rare high peak can upset the network. What that
removes, location and scale, is given to the flow as context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from nbi_plus.data.batch import Batch

_MAD_TO_SD = 1.4826  # spread of a normal distribution over its median absolute deviation
_LEAST_SPREAD = 1e-100  # of the largest residual: below, their ratio would overflow
_FAINT = 0.01  # share of objects whose spread is below what counts as no flux
_LEAST_GAP = 1e-3  # of a usual gap: bands of one visit


@dataclass(frozen=True)
class EncoderConfig:
    """What the observations look like.

    Attributes
    ----------
    n_channels : int
        Channels C of the data.
    has_errors : bool
        Whether objects bring their own errors.
    coords, own_coords : tuple of str
        Coordinates that are numbers; those of them that differ between objects.
    categories : tuple of str
    n_categories : tuple of int
        Coordinates that are codes, such as bands, and how many codes each has.
    flags : tuple of str
        Coordinates that are true or false, such as ``upper_limit``.
    scalars : tuple of str
        Numbers of each object.
    """

    n_channels: int
    has_errors: bool
    coords: tuple[str, ...] = ()
    own_coords: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    n_categories: tuple[int, ...] = ()
    flags: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()

    @classmethod
    def of(cls, batch: Batch) -> EncoderConfig:
        """Return the config that fits a batch."""
        coords = sorted(batch.coords.items())
        codes = tuple(k for k, v in coords if v.dtype == torch.int64)
        return cls(
            n_channels=batch.mask.shape[1],
            has_errors=batch.x_err is not None,
            coords=tuple(k for k, v in coords if v.is_floating_point()),
            own_coords=tuple(k for k, v in coords if v.is_floating_point() and v.ndim == 2),
            categories=codes,
            n_categories=tuple(len(batch.categories[k]) for k in codes),
            flags=tuple(k for k, v in coords if v.dtype == torch.bool),
            scalars=tuple(sorted(batch.scalars)),
        )

    @property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """The input channels of the featurizer, by name, in their order."""
        own_masks = self.n_channels if self.n_channels > 1 else 0
        sizes = {"x": self.n_channels, "x_err": self.n_channels * self.has_errors}
        sizes |= dict.fromkeys(self.coords, 1)
        sizes |= {f"gap in {k}": 1 for k in self.own_coords}
        sizes |= dict(zip(self.categories, self.n_categories, strict=True))
        sizes |= dict.fromkeys(self.flags, 1)
        sizes |= {"channel masks": own_masks, "mask": 1}
        ends = list(accumulate(sizes.values()))
        return {k: tuple(range(e - n, e)) for (k, n), e in zip(sizes.items(), ends, strict=True)}

    @property
    def n_inputs(self) -> int:
        """Number of channels the featurizer sees, the mask last."""
        return self.layout["mask"][0] + 1

    @property
    def n_context(self) -> int:
        """Length of the context."""
        return 4 * self.n_channels + len(self.own_coords) + len(self.scalars)


class Encoder(nn.Module):
    """Channels of points, as `EncoderConfig.layout` names them, and a context of scales.

    A coordinate becomes a position, from -1 at an object's first point, and where objects have
    their own, the gap since the point before; codes become one channel for each category. Its
    buffers, set once by `fit`, standardise what is not scaled per object.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("faint", torch.ones(config.n_channels, dtype=torch.float64))
        self.register_buffer("centre", torch.zeros(config.n_context, dtype=torch.float64))
        self.register_buffer("width", torch.ones(config.n_context, dtype=torch.float64))
        self.register_buffer("span", torch.ones(len(config.coords), dtype=torch.float64))
        self.register_buffer("gap", torch.ones(len(config.own_coords), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, batch: Batch) -> None:
        """Learn centre and width of the context, spans and usual gaps of coordinates."""
        scale = self._standardise(batch)[2][..., 0].to(self.faint)
        self.faint.copy_(scale.quantile(_FAINT, 0))
        context = self._standardise(batch)[1]
        self.centre.copy_(context.median(0).values)
        spread = _MAD_TO_SD * (context - self.centre).abs().median(0).values
        self.width.copy_(
            torch.where(spread > 1e-12 * self.centre.abs(), spread, torch.ones_like(spread))
        )
        seen = batch.mask.any(1)
        for i, name in enumerate(self.config.coords):
            span = _since_first(self._values(batch, name), seen)[0].abs().max()
            self.span[i] = torch.where(span > 0, span, torch.ones_like(span))
        for i, name in enumerate(self.config.own_coords):
            gaps = _since_previous(self._values(batch, name), seen)
            usual = gaps.masked_fill(gaps <= 0, math.nan).nanmedian()
            self.gap[i] = usual.nan_to_num(1.0)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return channels (n, C', L), the mask last, and the context (n, E), both float32."""
        x, context, scale = self._standardise(batch)
        seen = batch.mask.any(1)
        channels = [x]
        if self.config.has_errors:
            channels.append((batch.x_err / scale).log().masked_fill(~batch.mask, 0.0))
        channels += [c.expand(len(x), *c.shape[1:]) for c in self._coordinates(batch, seen)]
        masks = [batch.mask, seen[:, None]] if self.config.n_channels > 1 else [seen[:, None]]
        masked = torch.cat([c.to(torch.float32) for c in channels], 1) * seen[:, None]
        # linear for ordinary objects, logarithmic for outliers, which must stay finite
        squashed = torch.asinh((context - self.centre) / self.width)
        return torch.cat([masked, *[m.to(torch.float32) for m in masks]], 1), squashed.to(
            torch.float32
        )

    def _coordinates(self, batch: Batch, seen: Tensor) -> list[Tensor]:
        """Return positions, gaps, codes and flags, each of shape (n or 1, channels, L)."""
        config, found = self.config, []
        for name, span in zip(config.coords, self.span, strict=True):
            offsets, _ = _since_first(self._values(batch, name), seen)
            found.append(torch.atleast_2d(2 * offsets / span - 1)[:, None])
        for name, usual in zip(config.own_coords, self.gap, strict=True):
            gaps = _since_previous(self._values(batch, name), seen)
            # logarithmic, for nights and seasons; points of one night differ little from each other
            found.append((gaps / usual + _LEAST_GAP).log()[:, None] / -math.log(_LEAST_GAP))
        for name, n in zip(config.categories, config.n_categories, strict=True):
            codes = torch.atleast_2d(batch.coords[name])
            found.append(nn.functional.one_hot(codes, n).movedim(-1, 1))
        return found + [torch.atleast_2d(batch.coords[name])[:, None] for name in config.flags]

    def _values(self, batch: Batch, name: str) -> Tensor:
        """Return a coordinate, one row for each object where objects have their own."""
        values = batch.coords[name]
        own = name in self.config.own_coords and values.ndim == 1  # of one object, given alone
        return values.expand(len(batch), -1) if own else values

    def _standardise(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return squashed data (n, C, L), raw context (n, E) and scales (n, C, 1)."""
        gaps = batch.x.masked_fill(~batch.mask, math.nan)
        location = gaps.nanmedian(-1, keepdim=True).values.nan_to_num(0.0)
        scale = _spread(gaps - location)
        if self.config.has_errors:  # all points are equal: their errors tell the unit
            errors = batch.x_err.masked_fill(~batch.mask, math.nan)
            usual = errors.nanmedian(-1, keepdim=True).values
            scale = torch.where(scale > 0, scale, usual.nan_to_num(0.0))
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        x = torch.asinh((batch.x - location) / scale) * batch.mask
        seen = batch.mask.any(1)
        origins = [_since_first(self._values(batch, k), seen)[1] for k in self.config.own_coords]
        # the location alone tells those of faint objects apart no more, its logarithm does
        location, spread = location[..., 0], scale[..., 0]
        parts = [location, torch.asinh(location / self.faint), spread.log(),
                 torch.asinh(location / spread)]  # fmt: skip
        parts += [v[:, None] for v in [*origins, *(batch.scalars[k] for k in self.config.scalars)]]
        return x, torch.cat([p.to(torch.float64) for p in parts], 1), scale


def _spread(residual: Tensor) -> Tensor:
    """Return a scale (n, C, 1) of residuals with NaN gaps: robust, else any, else 0."""
    robust = _MAD_TO_SD * residual.abs().nanmedian(-1, keepdim=True).values
    largest = residual.abs().nan_to_num(0.0).amax(-1, keepdim=True)
    # more than half of the points are equal, or as good as equal beside the others
    return torch.where(robust > _LEAST_SPREAD * largest, robust, largest)


def _since_first(values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return a coordinate relative to each object's first real point, and that point (n,).

    A coordinate shared by all objects, shape (L,), is taken relative to its first value.
    """
    if values.ndim == 1:
        return values - values[0], values[:1]
    first = values.masked_fill(~seen, math.inf).amin(-1, keepdim=True)
    first = torch.where(torch.isfinite(first), first, torch.zeros_like(first))
    return torch.where(seen, values - first, torch.zeros_like(values)), first[:, 0]


def _since_previous(values: Tensor, seen: Tensor) -> Tensor:
    """Return how far each real point (n, L) lies from the real one before; 0 for the first."""
    steps = torch.arange(values.shape[1], device=values.device)
    latest = torch.where(seen, steps, -1).cummax(1).values
    before = torch.cat([torch.full_like(latest[:, :1], -1), latest[:, :-1]], 1)[:, : len(steps)]
    gap = (values - values.gather(1, before.clamp(min=0))).abs()
    return torch.where(seen & (before >= 0), gap, torch.zeros_like(gap))
