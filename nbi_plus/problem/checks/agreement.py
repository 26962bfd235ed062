r"""Whether what a noise model draws has the density that it claims, tried on data it makes.

Data are made about one of two models, chosen by the toss of a coin. Whatever the density, given the
data the coin showed the second with probability :math:`\pi = 1 / (1 + e^{-D})`, where :math:`D` is
the difference of the two log-likelihoods. So the sum of :math:`g (y - \pi)` over tosses :math:`y`
has mean zero for every function :math:`g` of the data, and its terms are independent, bounded and
of variance :math:`g^2 \pi (1 - \pi)`. Discrete, censored and heavy-tailed data, marginalised terms,
kinks and edges of a density make no exception, and Bernstein's inequality bounds the chance of a
false alarm without any limit of large numbers. For models that are close, :math:`g = 1` asks
whether the mean score is zero, and :math:`g = D` whether its variance is the Fisher information.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.noise.upper_limits import FLAG
from nbi_plus.problem.prior.prior import Prior

_FALSE_ALARM = 5e-7  # at most, of one sum
_APART = 2.0  # standard deviations between two models: where a toss says most about the scatter
_N_TOSSES = 12_000  # a scatter 10 % off is then seen with a probability of 99 %
_FEWEST = 1024
_NUMBERS = 2**21  # of simulations, in one series of tosses; long data are tossed less often
_CHUNK = 2**19
_N_PATTERNS = 4  # ways to change a model: one shifts all points, the others change their signs
_LARGEST = 3.0  # change of a model, in the scatter of its data
_HUGE = 100.0  # change of a model, in its own size, that may leave no digits
_N_PILOT = 16
_G_MAX = 4.0  # less would lose power, more would widen the bound


@dataclass(frozen=True)
class NoiseRows:
    """Simulations of some objects, float64, on one device.

    Attributes
    ----------
    z, theta : Tensor, shapes (R, D), (R, P)
        What they were made of; the noise sees theta.
    model : Tensor, shape (R, C, L)
    obs : Batch
        The object of each row.
    """

    z: Tensor
    theta: Tensor
    model: Tensor
    obs: Batch

    def __len__(self) -> int:
        return len(self.model)

    def to(self, device: torch.device) -> NoiseRows:
        """Return the same rows on another device."""
        moved = (v.to(device) for v in (self.z, self.theta, self.model))
        return NoiseRows(*moved, self.obs.to(device))

    def pick(self, index: Tensor) -> NoiseRows:
        """Return the rows at ``index``."""
        return NoiseRows(
            self.z[index], self.theta[index], self.model[index], self.obs.select(index)
        )


@dataclass(frozen=True)
class Line:
    """Two models for each row, on either side of it.

    Attributes
    ----------
    rows : NoiseRows
    prior : Prior
    model : Tensor, shape (R, C, L)
        How the model changes along the line.
    z : Tensor or None, shape (R, D)
        How the parameters do, the model being the same.
    """

    rows: NoiseRows
    prior: Prior
    model: Tensor
    z: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, index: Tensor) -> Line:
        """Return the lines at ``index``."""
        z = None if self.z is None else self.z[index]
        return replace(self, rows=self.rows.pick(index), model=self.model[index], z=z)

    def at(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return theta (R, 2, P) and models (R, 2, C, L) at minus and plus ``size`` (R,)."""
        steps = torch.stack([-size, size], 1)
        model = self.rows.model.unsqueeze(1) + steps[..., None, None] * self.model.unsqueeze(1)
        if self.z is None:
            return self.rows.theta.unsqueeze(1).expand(-1, 2, -1), model
        z = self.rows.z.unsqueeze(1) + steps[..., None] * self.z.unsqueeze(1)
        return self.prior.complete(self.prior.from_latent(z)), model


@dataclass(frozen=True)
class Tosses:
    """What became of some tosses.

    Attributes
    ----------
    ratio : Tensor, shape (n,)
        Log-likelihood of the second model less that of the first.
    own : Tensor, shape (n,)
        Log-likelihood of the one that made the data.
    second : Tensor of bool, shape (n,)
        Which it was.
    """

    ratio: Tensor
    own: Tensor
    second: Tensor


def unflagged(obs: Batch) -> Batch:
    """Return the data without limits: of points that are limits whatever is drawn nothing is known.

    Noise that makes limits sets their flags itself.
    """
    if FLAG not in obs.coords:
        return obs
    return replace(obs, coords=obs.coords | {FLAG: torch.zeros_like(obs.coords[FLAG])})


def disagreements(noise: Noise, prior: Prior, rows: NoiseRows, seed: int) -> dict[str, str]:
    """Return what is wrong about location, width and parameters, by these names; ``""`` if nothing.

    Nothing is said of the first two where no other models are possible, or nothing reads them.

    Parameters
    ----------
    noise : Noise
        Bound, with a likelihood.
    prior : Prior
        Whose parameters are changed, one by one.
    rows : NoiseRows
    seed : int
    """
    rows = replace(rows, obs=unflagged(rows.obs))
    rng = torch.Generator(rows.model.device).manual_seed(seed)
    shifted = _shifted_tosses(noise, prior, rows, rng) if noise.reads_model else []
    found = {"location": _location(shifted), "width": _width(shifted)} if shifted else {}
    found["parameters"] = ""
    for name, tosses in _changed_tosses(noise, prior, rows, rng).items():
        if not found["parameters"] and (_alarm(tosses, width=False) or _alarm(tosses, width=True)):
            found["parameters"] = (
                f"log_likelihood changes with {name!r} otherwise than the draws of augment do, the "
                "model being the same. A density is normalised at every value: is the logarithm of "
                "the scale left out?"
            )
    return found


def _location(patterns: list[Tosses]) -> str:
    whole = _together(patterns)
    lost = int((~torch.isfinite(whole.own)).sum())
    if 100 * lost > len(whole.own):
        return (
            f"augment must draw data that are possible, but log_likelihood is not finite for {lost}"
            f" of {len(whole.own)} draws of it."
        )
    if not bool(whole.ratio.any()):
        return "log_likelihood must depend on the model, but does not."
    if any(_alarm(tosses, width=False) for tosses in patterns):
        return (
            "augment draws data to one side of where log_likelihood expects them: its mean score "
            "is not zero. Does either shift the model, or leave out a factor that depends on it?"
        )
    return ""


def _width(patterns: list[Tosses]) -> str:
    whole = _together(patterns)
    if not any(_alarm(tosses, width=True) for tosses in (whole, *patterns)):
        return ""
    tested, g, _ = _terms(whole, width=True)
    _, spread = _sums(whole, width=True)
    slope = 1 + float((g * tested).sum()) / spread if spread > 0 else 0.0
    how = f" about {slope**-0.5:.2g} times" if slope > 0.05 else ""
    return (
        f"augment scatters data{how} as far as log_likelihood says: the variance of its score is "
        "not the Fisher information. Use one sigma, and the same correlations, in both."
    )


def _alarm(tosses: Tosses, *, width: bool) -> bool:
    """Say whether such a sum is too unlikely for a noise model that agrees with itself."""
    total, variance = _sums(tosses, width=width)
    bound = variance + (_G_MAX if width else 1.0) * total / 3
    return total > 1e-6 and total**2 > 2 * math.log(2 / _FALSE_ALARM) * bound


def _sums(tosses: Tosses, *, width: bool) -> tuple[float, float]:
    """Return the size of the sum, and the variance that it has."""
    residual, g, variance = _terms(tosses, width=width)
    return abs(float((g * residual).sum())), float((g.square() * variance).sum())


def _terms(tosses: Tosses, *, width: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what each toss is off by, its weight g, and the variance of the former."""
    good = torch.isfinite(tosses.own) & ~torch.isnan(tosses.ratio)
    ratio, second = tosses.ratio[good], tosses.second[good]
    expected = torch.sigmoid(ratio)
    g = ratio.clamp(-_G_MAX, _G_MAX) if width else torch.ones_like(ratio)
    return second.to(ratio.dtype) - expected, g, expected * torch.sigmoid(-ratio)


def _together(parts: list[Tosses]) -> Tosses:
    return Tosses(*(torch.cat([getattr(p, k) for p in parts]) for k in ("ratio", "own", "second")))


def _toss(noise: Noise, line: Line, size: Tensor, rng: torch.Generator) -> Tosses:
    """Toss once for each row, whose models are ``size`` (R,) to either side."""
    n, device = len(line), size.device
    step = max(1, _CHUNK // line.model[0].numel())
    second = torch.rand(n, generator=rng, dtype=torch.float32, device=device) < 0.5
    parts = []
    for index in torch.arange(n, device=device).split(step):
        part, which = line.pick(index), second[index].long()
        theta, model = part.at(size[index])
        each = torch.arange(len(index), device=device)
        data = noise.observe(model[each, which], part.rows.obs, theta[each, which], rng)
        value = noise.log_likelihood(theta, model, data)
        parts.append(Tosses(value[:, 1] - value[:, 0], value[each, which], second[index]))
    return _together(parts)


def _repeated(noise: Noise, line: Line, size: Tensor, n_each: int, rng: torch.Generator) -> Tosses:
    """Toss ``n_each`` times for each row, one after the other."""
    index = torch.arange(len(line), device=size.device).repeat(n_each)
    return _toss(noise, line.pick(index), size[index], rng)


def _apart(tosses: Tosses, kind: Tensor, n_kinds: int) -> list[Tosses]:
    """Return the tosses of each kind (R,) of rows by themselves."""
    kind = kind.repeat(len(tosses.ratio) // len(kind))
    each = (kind == k for k in range(n_kinds))
    return [Tosses(tosses.ratio[i], tosses.own[i], tosses.second[i]) for i in each]


def _n_tosses(noise: Noise, rows: NoiseRows) -> int:
    numbers = rows.model[0].numel() * (1 + noise.n_copies // 4)
    return min(_N_TOSSES, max(_FEWEST, _NUMBERS // numbers))


def _shifted_tosses(
    noise: Noise, prior: Prior, rows: NoiseRows, rng: torch.Generator
) -> list[Tosses]:
    """Return tosses between models of which all points differ, for several patterns of signs."""
    scatter = _scatter(noise, rows, rng)
    like = {"dtype": torch.float32, "device": scatter.device}
    tossed = torch.rand((_N_PATTERNS, *rows.model.shape[1:]), generator=rng, **like)
    signs = torch.where(tossed < 0.5, -1.0, torch.ones_like(scatter[:1]))
    signs[0] = 1.0
    every = torch.arange(len(rows), device=scatter.device).repeat(_N_PATTERNS)
    signs, many = signs.repeat_interleave(len(rows), 0), rows.pick(every)
    start = many.obs.mask.sum((1, 2)).clamp(min=1).to(scatter.dtype).rsqrt()
    line = Line(many, prior, signs * scatter[every])
    size, apart = _placed(noise, line, start, rng, largest=_LARGEST)
    if not bool((apart > 0.3).all()):
        # a model plus some scatter may be impossible, as a negative rate: it is scaled instead
        scaled = Line(many, prior, signs * many.model.abs())
        other, apart_scaled = _placed(noise, scaled, start.clamp(max=0.1), rng, largest=0.9)
        better = apart_scaled > apart.clamp(max=_APART)
        size = torch.where(better, other, size)
        line = replace(line, model=torch.where(better[:, None, None], scaled.model, line.model))
        apart = torch.maximum(apart, apart_scaled)
    some = (apart >= 0).nonzero()[:, 0]
    if not len(some):
        return []
    n_each = _n_tosses(noise, rows) // len(many) + 1
    tosses = _repeated(noise, line.pick(some), size[some], n_each, rng)
    return _apart(tosses, some // len(rows), _N_PATTERNS)


def _changed_tosses(
    noise: Noise, prior: Prior, rows: NoiseRows, rng: torch.Generator
) -> dict[str, Tosses]:
    """Return tosses between values of each parameter that the noise depends on, by its name."""
    every = torch.arange(len(rows), device=rows.z.device).repeat(prior.n_dim)
    kind = torch.arange(prior.n_dim, device=rows.z.device).repeat_interleave(len(rows))
    units = torch.nn.functional.one_hot(kind, prior.n_dim).to(rows.z)
    line = Line(rows.pick(every), prior, torch.zeros_like(rows.model[every]), units)
    start = torch.full_like(units[:, 0], 0.1)
    tried = _apart(_repeated(noise, line, start, 2, rng), kind, prior.n_dim)
    used = torch.tensor([bool(tosses.ratio.any()) for tosses in tried], device=kind.device)
    some = used[kind].nonzero()[:, 0]
    if not len(some):
        return {}
    line, kind = line.pick(some), kind[some]
    size, _ = _placed(noise, line, start[some], rng, largest=1.0)
    tosses = _repeated(noise, line, size, _n_tosses(noise, rows) // (2 * len(line)) + 1, rng)
    found = _apart(tosses, kind, prior.n_dim)
    return {name: found[d] for d, name in enumerate(prior.names) if used[d]}


def _scatter(noise: Noise, rows: NoiseRows, rng: torch.Generator) -> Tensor:
    """Return about how far the data of each row scatter, shape (R, C, L)."""
    many = rows.pick(torch.arange(len(rows), device=rows.model.device).repeat(_N_PILOT))
    x = noise.observe(many.model, many.obs, many.theta, rng).x
    x = x.unflatten(0, (_N_PILOT, len(rows)))
    low, high = torch.quantile(x, torch.tensor([0.16, 0.84], dtype=x.dtype, device=x.device), dim=0)
    size = (high - low) / 2
    size = torch.where(size > 0, size, x.std(0))  # of few counts most are the same
    size = torch.where(torch.isfinite(size) & rows.obs.mask, size, 0.0)
    typical = size.sum((1, 2)) / (size > 0).sum((1, 2)).clamp(min=1)
    size = torch.where(rows.obs.mask & (size == 0), typical[:, None, None], size)
    own = torch.where(rows.obs.mask, rows.model, 0.0).abs().amax((1, 2))
    limit = torch.where(own > 0, _HUGE * own, math.inf)  # broad priors of offsets scatter more
    return torch.minimum(size, limit[:, None, None])


def _placed(
    noise: Noise, line: Line, start: Tensor, rng: torch.Generator, *, largest: float
) -> tuple[Tensor, Tensor]:
    """Return sizes (R,) for models to be about `_APART` standard deviations apart, and how far.

    Both models must be possible: -1 apart where none were found.
    """
    size, cap = start.clone(), torch.full_like(start, largest)
    best, apart = start.clone(), torch.full_like(start, -1.0)
    for _ in range(5):
        ratio, own = _pilot(noise, line, size, rng)
        possible = torch.isfinite(own).all(0)
        square = torch.where(torch.isfinite(ratio), ratio, 0.0).clamp(-1e6, 1e6).square().mean(0)
        # the ratio has mean +-d^2 / 2 and variance d^2, for models d apart
        reached = (2 * ((1 + square).sqrt() - 1)).sqrt()
        best, apart = torch.where(possible, size, best), torch.where(possible, reached, apart)
        cap = torch.where(possible, cap, torch.minimum(cap, size / 2))
        factor = (_APART / reached.clamp(min=1e-9)).clamp(1e-3, 1e3)
        size = torch.minimum(torch.where(possible, size * factor, size / 4), cap)
    return best, apart


def _pilot(noise: Noise, line: Line, size: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ratios and own likelihoods (n, R) of some tosses, NaN where models are impossible."""
    try:
        tosses = _repeated(noise, line, size, _N_PILOT, rng)
    except Exception:  # noqa: BLE001 - user code that refuses a negative rate; smaller steps follow
        return (size.new_full((_N_PILOT, len(line)), math.nan),) * 2
    return tosses.ratio.unflatten(0, (_N_PILOT, -1)), tosses.own.unflatten(0, (_N_PILOT, -1))
