"""Mixtures of Student-t distributions, fitted to weighted draws of many objects at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.batched import pick
from nbi_plus.infer.proposals.em import FeaturedDraws, NormalMixtures, maximise, n_features
from nbi_plus.infer.weights.summary import normalise
from nbi_plus.problem.random import keyed_normal, keyed_uniform

_RIDGE = 1e-6  # of the mean variance, when the draws are whitened
_BISECTIONS = 40
_SIZES = (1, 2, 4, 8, 16)
MANY_DIMS = 10  # above, a second full covariance costs more draws than it saves
MANY_DIMS_DOF = 15  # heavy tails in every direction leave little in the middle
_FEW_DIMS = 6  # of more, hardly any draw of what is stretched counts
_FOLDS = 5
_RACE = 6  # steps after which the likeliest of several starts goes on alone
_MODE_SCALES = (1e-5, 0.003, 0.03, 0.3)  # latent widths around a place whose width nobody knows


@dataclass(frozen=True)
class StudentMixture:
    """One mixture of multivariate t for each of B objects.

    Attributes
    ----------
    log_shares : Tensor, shape (B, K)
    means : Tensor, shape (B, K, D)
    factors : Tensor, shape (B, K, D, D)
        Lower Cholesky factors of the scale matrices.
    dof : float
        Degrees of freedom nu of all components.
    """

    log_shares: Tensor
    means: Tensor
    factors: Tensor
    dof: float = 5.0

    def draw(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return draws (B, n, D); those of an object depend on its key alone."""
        n_dim = self.means.shape[-1]
        teeth = torch.arange(n, device=keys.device, dtype=torch.float64)
        comb = keyed_uniform(seed, stage + " component", keys, (1,))
        # stratified: each component gets its share of the draws, give or take one
        edges = self.log_shares.exp().cumsum(-1)
        pick = torch.searchsorted(edges / edges[:, -1:], (teeth + comb) / n, right=True)
        pick = pick.clamp(max=edges.shape[1] - 1)
        noise = keyed_normal(seed, stage, keys, (n, n_dim))
        noise = noise * self._stretch(keys, n, seed, stage)[..., None]
        own = pick + edges.shape[1] * torch.arange(len(keys), device=keys.device)[:, None]
        return self._moved(own.flatten(), noise.flatten(0, 1)).view_as(noise)

    def _moved(self, components: Tensor, noise: Tensor) -> Tensor:
        """Return noise (m, D) with place and shape of components (m,), counted over all objects."""
        means, factors = self.means.flatten(0, 1), self.factors.flatten(0, 1)
        # each draw takes a copy of its factor: in many dimensions far more than a cache holds
        step = max(1, launch.of(noise.device).factor_numbers // noise.shape[1] ** 2)
        pieces = zip(components.split(step), noise.split(step), strict=True)
        moved = [means[i] + (factors[i] @ u[..., None])[..., 0] for i, u in pieces]
        return torch.cat(moved)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density (B, S) of draws z (B, S, D)."""
        n_dim = z.shape[-1]
        centred = (z[:, None] - self.means[:, :, None]).transpose(2, 3)
        white = torch.linalg.solve_triangular(self.factors, centred, upper=False)
        tails = (self.dof + n_dim) / 2 * torch.log1p(white.square().sum(2) / self.dof)
        volume = self.factors.diagonal(dim1=2, dim2=3).log().sum(-1)
        height = _log_height(self.dof, n_dim) + self.log_shares - volume
        return torch.logsumexp(height[..., None] - tails, 1)

    def select(self, rows: Tensor) -> StudentMixture:
        """Return the mixtures of some of the objects."""
        return StudentMixture(self.log_shares[rows], self.means[rows], self.factors[rows], self.dof)

    def wider(self, by: float) -> StudentMixture:
        """Return mixtures whose components are wider by a factor."""
        return replace(self, factors=by * self.factors)

    def _stretch(self, keys: Tensor, n: int, seed: int, stage: str) -> Tensor:
        """Return sqrt(nu / chi^2_nu) (B, n): what makes a t of a normal."""
        whole = round(self.dof)
        normals = keyed_normal(seed, stage + " stretch", keys, (n, whole))
        return (whole / normals.square().sum(-1)).sqrt()


@dataclass(frozen=True)
class Wide:
    """The part of a proposal that is fitted to the square root of the target.

    Attributes
    ----------
    share : float
        Of all draws.
    stretch : float
        How much wider it is than what was fitted, along each direction.
    """

    share: float = 0.1
    stretch: float = 1.0

    def factor(self, n_dim: int) -> float:
        """Return the stretch, which is none in many dimensions."""
        return self.stretch if n_dim <= _FEW_DIMS else 1.0


@dataclass(frozen=True)
class MixtureConfig:
    """Chosen state of a mixture fit.

    Attributes
    ----------
    n_components : int, tuple of int or None
        The wide one not counted. Of several, each object takes its own, in ascending order while
        they get better; None offers (1, 2, 4, 8, 16), up to ten parameters, else 1.
    n_points : int
        Resampled draws that a fit sees.
    n_starts, n_steps : int
        Starts, of which the likeliest is kept after some steps, and steps of expectation and
        maximisation at most.
    dof : int
        Degrees of freedom of every component.
    wide_share, wide_scale : float
        A last component, over everything, and how many times wider it is.
    """

    n_components: int | tuple[int, ...] | None = None
    n_points: int = 2000
    n_starts: int = 2
    n_steps: int = 30
    dof: int = 7
    wide_share: float = 0.05
    wide_scale: float = 2.0

    def __post_init__(self) -> None:
        sizes = () if self.n_components is None else self.sizes(1)
        numbers = {f.name: getattr(self, f.name) for f in fields(self)[1:]}
        if not (all(k >= 1 for k in sizes) and all(v > 0 for v in numbers.values())):
            raise ValueError(f"every option must be positive, but they are {self}.")
        if not self.wide_share < 1:
            raise ValueError(f"wide_share must be below 1, but is {self.wide_share!r}.")

    def in_dims(self, n_dim: int) -> MixtureConfig:
        """Return the same for so many parameters: in many, one component, with lighter tails."""
        return self if n_dim <= MANY_DIMS else replace(self, n_components=1, dof=MANY_DIMS_DOF)

    def sizes(self, n_dim: int) -> tuple[int, ...]:
        """Return the numbers of components to choose from."""
        if self.n_components is None:
            return _SIZES if n_dim <= MANY_DIMS else (1,)
        return (self.n_components,) if isinstance(self.n_components, int) else self.n_components


# of the wide part of a proposal, which needs no detail
COARSE = MixtureConfig(n_components=2, n_points=500, n_steps=10, n_starts=1, dof=5, wide_share=0.1)


def temper(log_weights: Tensor, target: float) -> tuple[Tensor, Tensor]:
    r"""Flatten weights until their effective sample size is large enough to learn from.

    Finds the largest :math:`\beta \le 1` for which the weights :math:`w^\beta` have a Kish number
    of at least ``target``; a zero weight stays zero.

    Parameters
    ----------
    log_weights : Tensor, shape (B, S)
    target : float

    Returns
    -------
    weights : Tensor, shape (B, S)
        Normalised.
    beta : Tensor, shape (B,)

    Examples
    --------
    >>> weights, beta = temper(torch.tensor([[0.0, -100.0]], dtype=torch.float64), 1.9)
    >>> round(float(1 / weights.square().sum()), 2), bool(0 < beta < 1)
    (1.9, True)
    """

    def flattened(beta: Tensor) -> Tensor:
        scaled = torch.where(log_weights > -math.inf, beta * log_weights, -math.inf)
        return normalise(scaled)

    def enough(beta: Tensor) -> Tensor:
        return flattened(beta).square().sum(-1, keepdim=True) * target <= 1.0

    low = torch.zeros_like(log_weights[:, :1])
    high = torch.ones_like(low)
    whole = enough(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fine = enough(middle)
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    beta = torch.where(whole, torch.ones_like(low), low)
    return flattened(beta), beta[:, 0]


def fit_mixture(
    z: Tensor, weights: Tensor, keys: Tensor, config: MixtureConfig, seed: int, stage: str
) -> StudentMixture:
    """Fit a mixture to the weighted draws of each object, by weighted EM in whitened coordinates.

    Where the number of components is open, they are tried in ascending order until a held-out
    fifth of an object's draws gets a lower weighted log-density than before.

    Parameters
    ----------
    z : Tensor, shape (B, S, D)
    weights : Tensor, shape (B, S)
        Normalised.
    keys : Tensor of int64, shape (B,)
        What the randomness of each object is keyed by.
    config : MixtureConfig
    seed, stage
        Of the randomness.
    """
    n_dim = z.shape[-1]
    widest = max(config.n_starts * max(config.sizes(n_dim)), n_features(n_dim))
    each = widest * min(config.n_points, z.shape[1])
    at_once = max(1, launch.of(z.device).mixture_numbers // each)
    pieces = zip(*(v.split(at_once) for v in (z, weights, keys)), strict=True)
    return _stack([_fit(*piece, config, seed, stage) for piece in pieces])


def _fit(
    z: Tensor, weights: Tensor, keys: Tensor, config: MixtureConfig, seed: int, stage: str
) -> StudentMixture:
    """Return the mixtures of objects that are fitted at once."""
    mean = (weights[..., None] * z).sum(1, keepdim=True)
    centred = z - mean
    factor = _cholesky((weights[..., None] * centred).transpose(1, 2) @ centred)
    white = torch.linalg.solve_triangular(factor, centred.transpose(1, 2), upper=False)
    draws = _Draws(white.transpose(1, 2), weights, keys)
    sizes = sorted(config.sizes(z.shape[-1]))
    if len(sizes) == 1:
        found = draws.fit(sizes[0], config, config.n_steps, seed, stage)
        fitted = [(torch.arange(len(keys), device=keys.device), found)]
    else:
        fitted = _of_best_size(draws, sizes, config, seed, stage)
    order = torch.cat([rows for rows, _ in fitted]).argsort()
    found = _stack([_with_wide(found, config) for _, found in fitted]).select(order)
    return StudentMixture(
        log_shares=found.log_shares,
        means=mean + found.means @ factor.transpose(1, 2),
        factors=factor[:, None] @ found.factors,
        dof=found.dof,
    )


@dataclass(frozen=True)
class _Draws:
    """Whitened draws (B, S, D), their weights (B, S), and the keys (B,) of their objects."""

    white: Tensor
    weights: Tensor
    keys: Tensor

    def equal(self, config: MixtureConfig, seed: int, stage: str) -> FeaturedDraws:
        """Return as many draws of equal weight as a fit may see."""
        comb = keyed_uniform(seed, stage + " comb", self.keys, (1,))[:, 0]
        n = min(config.n_points, self.weights.shape[1])
        return FeaturedDraws.resampled(self.white, self.weights, n, comb)

    def fit(
        self, k: int, config: MixtureConfig, n_steps: int, seed: int, stage: str
    ) -> NormalMixtures:
        """Return mixtures of ``k`` normals, the likeliest of several starts."""
        draws = self.equal(config, seed, f"{stage} {k}")
        # one start in five loses a mode, two rarely do
        n_starts = 1 if k == 1 else config.n_starts
        uniform = [keyed_uniform(seed, f"{stage} {k} {i} starts", self.keys, (k,))
                   for i in range(n_starts)]  # fmt: skip
        found = NormalMixtures.around(draws.far_apart(k, torch.stack(uniform, 1)))
        n_race = min(_RACE, n_steps) if n_starts > 1 else 0
        raced, height = maximise(draws, found, n_race)
        return maximise(draws, raced.best(height), n_steps - n_race)[0]

    def refit(
        self, found: NormalMixtures, config: MixtureConfig, n_steps: int, seed: int, stage: str
    ) -> NormalMixtures:
        """Return mixtures that start where those of other weights ended."""
        draws = self.equal(config, seed, f"{stage} {found.shares.shape[-1]}")
        return maximise(draws, found, n_steps)[0]


def _of_best_size(
    draws: _Draws, sizes: list[int], config: MixtureConfig, seed: int, stage: str
) -> list[tuple[Tensor, NormalMixtures]]:
    """Return rows (b,) and their mixtures, of the size that is best on a held-out fifth.

    Half of the steps judge a size, the other half go on from there with all draws.
    """
    held_out = torch.arange(draws.white.shape[1], device=draws.white.device) % _FOLDS == 0
    judged = draws.weights * held_out
    usable = (judged.sum(1) > 0) & (judged.sum(1) < draws.weights.sum(1))
    learned = torch.where(usable[:, None], draws.weights - judged, draws.weights)
    n_trial = (config.n_steps + 1) // 2
    rows = torch.arange(len(usable), device=usable.device)
    best, high, ended = None, None, []
    for k in sizes:
        own = pick(replace(draws, weights=learned), rows)
        trial = own.fit(k, config, n_trial, seed, stage)
        density = _with_wide(trial, config).log_prob(own.white[:, held_out])
        score = (judged[rows][:, held_out] * density).sum(1)
        better = torch.ones_like(usable[rows]) if best is None else score > high
        ended.append((rows[~better], pick(best, ~better)))
        rows, best, high = rows[better], pick(trial, better), score[better]
        if not len(rows):
            break
    ended.append((rows, best))
    n_last = config.n_steps - n_trial
    return [(rows, pick(draws, rows).refit(found, config, n_last, seed, stage))
            for rows, found in ended if len(rows)]  # fmt: skip


def _with_wide(found: NormalMixtures, config: MixtureConfig) -> StudentMixture:
    """Return mixtures with one more component, over everything."""
    shares, means = found.shares[:, 0], found.means[:, 0]
    factors = torch.linalg.cholesky(found.cov[:, 0])
    d = means.shape[-1]
    eye = torch.eye(d, dtype=factors.dtype, device=factors.device)
    wide = config.wide_scale * eye.expand(len(means), 1, d, d)
    narrow = shares * (1 - config.wide_share)
    return StudentMixture(
        torch.cat([narrow, torch.full_like(narrow[:, :1], config.wide_share)], 1).log(),
        torch.cat([means, torch.zeros_like(means[:, :1])], 1),
        torch.cat([factors, wide], 1),
        float(config.dof),
    )


def _stack(parts: list[StudentMixture]) -> StudentMixture:
    """Return the mixtures of all objects; short ones get components without a share."""
    longest = max(part.log_shares.shape[1] for part in parts)

    def padded(part: StudentMixture) -> StudentMixture:
        n_more = longest - part.log_shares.shape[1]
        copies = (part.means[:, -1:], part.factors[:, -1:])
        means, factors = (v.expand(-1, n_more, *v.shape[2:]) for v in copies)
        nothing = torch.full_like(part.log_shares[:, :1], -math.inf).expand(-1, n_more)
        return StudentMixture(
            torch.cat([part.log_shares, nothing], 1),
            torch.cat([part.means, means], 1),
            torch.cat([part.factors, factors], 1),
            part.dof,
        )

    full = [padded(part) for part in parts]
    names = ("log_shares", "means", "factors")
    return StudentMixture(*(torch.cat([getattr(p, k) for p in full]) for k in names), full[0].dof)


def _cholesky(cov: Tensor) -> Tensor:
    """Return Cholesky factors of covariances (B, D, D), some of which may be singular."""
    size = cov.diagonal(dim1=1, dim2=2)
    ridge = _RIDGE * size.clamp(min=1e-20)
    return torch.linalg.cholesky(cov + ridge.diag_embed())


def _log_height(dof: float, n_dim: int) -> float:
    """Return the log-density of a standard t at its centre."""
    top = math.lgamma((dof + n_dim) / 2) - math.lgamma(dof / 2)
    return top - n_dim / 2 * math.log(dof * math.pi)


def around(modes: Tensor) -> StudentMixture:
    """Return proposals around given places z (B, M, D), where NaN is a coordinate nobody knows.

    Each place gets several widths; an unknown coordinate is as wide as the prior.
    """
    known = torch.isfinite(modes)
    centre = torch.where(known, modes, 0.0).repeat(1, len(_MODE_SCALES), 1).to(torch.float64)
    widths = [torch.where(known, scale, 1.0) for scale in _MODE_SCALES]
    factors = torch.cat(widths, 1).to(torch.float64).diag_embed()
    shares = torch.full(centre.shape[:2], 1.0 / centre.shape[1]).to(centre)
    return StudentMixture(shares.log(), centre, factors)
