"""Ascent: many places at once uphill, by quasi-Newton steps that need no tuning.

Every row is one place with its own estimate of the inverse Hessian (BFGS: Nocedal and Wright 2006,
chapter 6). Rows that have arrived cost nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from nbi_plus.infer.samplers.gradients import Gradients, LogProb
from nbi_plus.infer.samplers.whitening import Whitening

_FIRST_STEP, _FIRST_GAIN = 0.3, 2.0  # at most: a longer step leaps over a narrow place
_REACH = 2.0  # of one step; it grows while steps of this length succeed
_GROWTH = 4.0  # of steps where the density curves upwards, and of the reach
_ARMIJO = 1e-4
_TRIES = 10  # shorter and shorter steps
_DECREMENT = 1e-3  # what one more step would gain in log density: 0.04 standard deviations away
_ROUNDING = 1e-11  # of a log density
# A cusp has no end: at each step the slope promises much, and hardly a hundredth of the way is up.
_SHORT, _LITTLE, _ENOUGH = 0.1, 0.1, 3  # shares of a step, gains, and how often in a row


class Slope(Protocol):
    """A density and its gradient at places v (n, D), which are rows ``rows`` (n,) of all starts.

    Attributes
    ----------
    step : float
        Of differences, in standard deviations.
    """

    step: float

    def __call__(self, v: Tensor, rows: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities (n,), -inf where there is none, and gradients (n, D)."""

    def cost(self, n_dim: int) -> int:
        """Return the evaluations behind the slope of one row."""


@dataclass(frozen=True)
class AutogradSlope:
    """Gradients by torch.

    Attributes
    ----------
    gradients : Gradients
    """

    gradients: Gradients
    step: ClassVar[float] = 3e-3

    def __call__(self, v: Tensor, rows: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return log-densities and gradients."""
        value, grad = self.gradients(v[:, None], rows, Whitening.none(v[:, None]))
        return value[:, 0], grad[:, 0]

    def cost(self, n_dim: int) -> int:  # noqa: ARG002 - whatever the dimension
        """Return that one gradient is enough."""
        return 1


@dataclass(frozen=True)
class DifferenceSlope:
    """Central differences along the axes of the estimated covariance, for black boxes.

    In these coordinates every direction is about as wide as one, and so one step fits all.

    Attributes
    ----------
    log_prob : callable
        ``log_prob(v, rows)``: v (n, C, D) -> (n, C).
    n_rows : int
        Rows of one call.
    """

    log_prob: LogProb
    n_rows: int
    step: ClassVar[float] = 0.03

    def __call__(self, v: Tensor, rows: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities and gradients."""
        step = max(1, self.n_rows // self.cost(v.shape[1]))
        parts = zip(v.split(step), rows.split(step), inverse.split(step), strict=True)
        values, grads = zip(*(self._few(*part) for part in parts), strict=True)
        return torch.cat(values), torch.cat(grads)

    def cost(self, n_dim: int) -> int:
        """Return the place itself, and two for each dimension."""
        return 2 * n_dim + 1

    def _few(self, v: Tensor, rows: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        axes = torch.linalg.cholesky(inverse)
        away = self.step * axes.transpose(1, 2)  # one direction after the other
        places = torch.cat([v[:, None], v[:, None] + away, v[:, None] - away], 1)
        value = self.log_prob(places, rows).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
        up, down = value[:, 1:].chunk(2, 1)
        along = (up - down) / (2 * self.step)
        along = torch.where(along.isfinite(), along, 0.0)
        grad = torch.linalg.solve_triangular(axes.transpose(1, 2), along[..., None], upper=True)
        return value[:, 0], grad[..., 0]


@dataclass
class Ascent:
    """n places on their way up.

    Attributes
    ----------
    v : Tensor, shape (n, D)
    log_prob, grad : Tensor, shapes (n,) and (n, D)
    inverse : Tensor, shape (n, D, D)
        Estimate of the inverse Hessian of the negative log-density.
    reach : Tensor, shape (n,)
        Longest step.
    n_updates : Tensor of int64, shape (n,)
        Of the estimate since it began anew.
    n_slopes : Tensor of int64, shape (n,)
    n_short : Tensor of int64, shape (n,)
        Last steps that were short and gained little.
    settled, stopped : Tensor of bool, shape (n,)
        At an optimum; nothing leads further up, or there is no density to start from.
    """

    v: Tensor
    log_prob: Tensor
    grad: Tensor
    inverse: Tensor
    reach: Tensor
    n_updates: Tensor
    n_slopes: Tensor
    n_short: Tensor
    settled: Tensor
    stopped: Tensor

    @classmethod
    def begin(cls, slope: Slope, v: Tensor) -> Ascent:
        """Return rows at their starts v (n, D)."""
        n, d = v.shape
        none = torch.zeros(n, dtype=torch.int64, device=v.device)
        eye = torch.eye(d, dtype=v.dtype, device=v.device).expand(n, d, d)
        log_prob, grad = slope(v, torch.arange(n, device=v.device), eye)
        no = torch.zeros(n, dtype=torch.bool, device=v.device)
        reach = torch.full_like(log_prob, _REACH)
        dead = ~log_prob.isfinite()
        first = _first_inverse(grad)
        return cls(v.clone(), log_prob, grad, first, reach, none, none + 1, none.clone(), no, dead)

    @property
    def moving(self) -> Tensor:
        """Which rows are still on their way, bool (n,)."""
        return ~(self.settled | self.stopped)

    def step(self, slope: Slope, rows: Tensor) -> None:
        """Take one step with these rows."""
        v, f, g = self.v[rows], self.log_prob[rows], self.grad[rows]
        p = (self.inverse[rows] @ g[..., None])[..., 0]
        rise = (p * g).sum(-1)
        length = p.norm(dim=-1).clamp(min=1e-300)
        limited = length > self.reach[rows]
        shrink = torch.where(limited, self.reach[rows] / length, 1.0)
        p, rise = p * shrink[:, None], rise * shrink
        found, t = self._search(slope, rows, (v, f, p, rise))
        moved = t > 0
        new_f, new_g = found
        s = t[:, None] * p
        self.v[rows] = v + s
        self.log_prob[rows] = torch.where(moved, new_f, f)
        self.grad[rows] = torch.where(moved[:, None], new_g, g)
        longer = moved & limited & (t == 1)
        self.reach[rows] = torch.where(longer, _GROWTH * self.reach[rows], self.reach[rows])
        gain = torch.where(moved, new_f - f, 0.0)
        short = (t < _SHORT) & (gain < _LITTLE)
        self.n_short[rows] = torch.where(short, self.n_short[rows] + 1, 0)
        self._learn(rows, s, g - new_g, moved)
        self._judge(rows, gain, moved)

    def _search(
        self, slope: Slope, rows: Tensor, line: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return density and gradient after the longest step that rises enough, and its length."""
        v, f, p, rise = line
        t, best = torch.ones_like(f), torch.zeros_like(f)
        new_f, new_g = f.clone(), self.grad[rows].clone()
        slack = _ROUNDING * (1 + f.abs())
        left = torch.arange(len(rows), device=rows.device)
        for _ in range(_TRIES):
            trial = v[left] + t[left, None] * p[left]
            value, grad = slope(trial, rows[left], self.inverse[rows[left]])
            self.n_slopes[rows[left]] += 1
            wanted = f[left] + _ARMIJO * t[left] * rise[left] - slack[left]
            good = value.isfinite() & (value >= wanted)
            best[left] = torch.where(good, t[left], best[left])
            new_f[left] = torch.where(good, value, new_f[left])
            new_g[left] = torch.where(good[:, None], grad, new_g[left])
            lost = (~good).nonzero()[:, 0]
            left, value = left[lost], value[lost]
            if not len(left):
                break
            # the parabola through what is known of this line
            drop = (f[left] + t[left] * rise[left] - value).clamp(min=1e-300)
            parabola = 0.5 * t[left] * rise[left] / drop
            t[left] = t[left] * parabola.nan_to_num(nan=0.0, posinf=0.0).clamp(0.1, 0.5)
        return (new_f, new_g), best

    def _learn(self, rows: Tensor, s: Tensor, y: Tensor, moved: Tensor) -> None:
        """Update the estimate of the inverse Hessian with steps s and falls of the gradient y."""
        inverse, n = self.inverse[rows], self.n_updates[rows]
        sy, yy = (s * y).sum(-1), y.square().sum(-1)
        curved = moved & (sy > 1e-10 * (s.norm(dim=-1) * y.norm(dim=-1))) & (yy > 0)
        scale = torch.where(curved & (n == 0), sy / yy.clamp(min=1e-300), 1.0)
        eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
        # the first curvature that is seen sets the scale of all directions
        fresh = (curved & (n == 0))[:, None, None]
        inverse = torch.where(fresh, scale[:, None, None] * eye, inverse)
        r = torch.where(curved, 1 / torch.where(curved, sy, 1.0), 0.0)[:, None, None]
        hy = inverse @ y[..., None]
        yhy = (y[..., None] * hy).sum(1, keepdim=True)
        ss = s[:, :, None] * s[:, None, :]
        cross = hy * s[:, None, :]
        updated = inverse + (1 + yhy * r) * r * ss - r * (cross + cross.transpose(1, 2))
        bent_up = (moved & ~curved)[:, None, None]
        stuck = (~moved)[:, None, None]
        inverse = torch.where(curved[:, None, None], updated, inverse)
        inverse = torch.where(bent_up, _GROWTH * inverse, inverse)
        self.inverse[rows] = torch.where(stuck, _first_inverse(self.grad[rows]), inverse)
        self.n_updates[rows] = torch.where(curved, n + 1, n)

    def _judge(self, rows: Tensor, gain: Tensor, moved: Tensor) -> None:
        """Say which of the rows have arrived, and which can go no further."""
        g, n = self.grad[rows], self.n_updates[rows]
        decrement = 0.5 * (g * (self.inverse[rows] @ g[..., None])[..., 0]).sum(-1)
        flat = g.norm(dim=-1) <= _ROUNDING
        known = (n >= 1) & moved & (gain < 10 * _DECREMENT)
        self.settled[rows] = flat | (known & (decrement < _DECREMENT))
        # a row that does not move begins anew, once
        self.stopped[rows] = (~moved & (n == 0) & ~flat) | (self.n_short[rows] >= _ENOUGH)
        self.n_updates[rows] = torch.where(moved, n, 0)


def _first_inverse(grad: Tensor) -> Tensor:
    """Return balls (n, D, D) that make the first step short."""
    slope = grad.norm(dim=-1).clamp(min=_FIRST_STEP)
    size = (_FIRST_GAIN / slope).clamp(max=_FIRST_STEP) / slope
    eye = torch.eye(grad.shape[1], dtype=grad.dtype, device=grad.device)
    return size[:, None, None] * eye
