"""Three tasks of sbibm (Lueckmann et al. 2021) and its C2ST, shared by the tests.

Each simulator there draws its own noise. Here a deterministic model and a noise of exact likelihood
are told apart, as an `Engine` wants them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm, uniform
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import nbi_plus as nbi


@dataclass(frozen=True)
class Task:
    """Theta uniform in a cube of half side ``bound``, a model and a noise.

    ``log_evidence(x)`` is exact: the share of the noise's mass that lies inside the prior.
    """

    name: str
    n_dim: int
    bound: float
    simulator: Callable
    noise: nbi.CustomNoise | nbi.GaussianNoise
    log_evidence: Callable

    @property
    def prior(self):
        side = uniform(-self.bound, 2 * self.bound)
        return nbi.Prior({f"p{i}": side for i in range(self.n_dim)})


@dataclass(frozen=True)
class Observation:
    """One published observation of a task."""

    task: Task
    number: int
    folder: Path

    @property
    def label(self):
        return f"{self.task.name} {self.number}"

    @cached_property
    def x(self):
        """The data, shape (L,)."""
        return self._read("observation.csv")

    @cached_property
    def draws(self):
        """The reference posterior's draws, shape (10000, D)."""
        return self._read("reference_posterior_samples.csv.bz2")

    def _read(self, name):
        inside = self.folder / "sbibm" / self.task.name / f"num_observation_{self.number}"
        return np.loadtxt(inside / name, delimiter=",", skiprows=1)


# --- two moons -----------------------------------------------------------------------------------

_RADIUS, _WIDTH, _CENTRE = 0.1, 0.01, 0.25  # of the crescent: x is a point of it, moved by theta


def moved(theta):
    """Return where theta (n, 2) moves the origin of the crescent, shape (n, 2)."""
    total, difference = theta.sum(-1), theta[:, 1] - theta[:, 0]
    return torch.stack([-total.abs(), difference], -1) / math.sqrt(2)


def crescent(model, obs, theta, rng):
    """Return points at an angle U(-pi/2, pi/2) and a radius N(0.1, 0.01)."""
    angle = math.pi * (torch.rand(model.shape[:-1], generator=rng, dtype=model.dtype) - 0.5)
    radius = torch.randn(model.shape[:-1], generator=rng, dtype=model.dtype) * _WIDTH + _RADIUS
    return model + torch.stack([_CENTRE + radius * angle.cos(), radius * angle.sin()], -1)


def crescent_log_density(theta, model, obs):
    """Return log N(r; 0.1, 0.01) - log(pi r) on the right of the crescent's centre, else -inf.

    1 / r is what the angle's density becomes in the plane.
    """
    point = (obs.x - model)[..., 0, :]
    right, up = point[..., 0] - _CENTRE, point[..., 1]
    radius = torch.hypot(right, up)
    pull = (radius - _RADIUS) / _WIDTH
    density = -0.5 * pull.square() - math.log(_WIDTH * math.sqrt(2 * math.pi) * math.pi)
    return torch.where(right >= 0, density - radius.log(), -math.inf)


def two_moons_log_evidence(x):
    """Return log Z: the crescent's points, each taken back to the two theta that move it to x."""
    angle = math.pi * ((np.arange(2000) + 0.5) / 2000 - 0.5)[:, None]
    radius = norm.ppf((np.arange(500) + 0.5) / 500, _RADIUS, _WIDTH)
    moved_by = [x[0] - _CENTRE - radius * np.cos(angle), x[1] - radius * np.sin(angle)]
    total, difference = (math.sqrt(2) * v for v in moved_by)  # total is negative, or impossible
    inside = [
        (total <= 0) & (np.abs(s * total - difference) < 2) & (np.abs(s * total + difference) < 2)
        for s in (-1, 1)
    ]
    return math.log(np.mean(inside) * 2 / 4)


# --- gaussian mixture ----------------------------------------------------------------------------

_SCALES = (1.0, 0.1)  # one of them for both coordinates, by the toss of a coin


def one_of_two(model, obs, theta, rng):
    """Return points about the model, half of them ten times closer."""
    heads = torch.rand((len(model), 1, 1), generator=rng, dtype=model.dtype) < 0.5
    noise = torch.randn(model.shape, generator=rng, dtype=model.dtype)
    return model + noise * torch.where(heads, *_SCALES)


def one_of_two_log_density(theta, model, obs):
    """Return the log-density of both halves of `one_of_two` together."""
    square, n = (obs.x - model).square().sum((-2, -1)), model.shape[-1]
    halves = [-0.5 * square / s**2 - n * math.log(s * math.sqrt(2 * math.pi)) for s in _SCALES]
    return torch.logaddexp(*halves) - math.log(2)


def itself(theta):
    """Return the parameters: the mean of the data."""
    return theta


def log_mass(x, scale, bound):
    """Return the log-density of x (L,) when its mean is uniform in a cube."""
    mass = norm.cdf((bound - x) / scale) - norm.cdf((-bound - x) / scale)
    return np.log(mass / (2 * bound)).sum()


TWO_MOONS = Task(
    "two_moons",
    n_dim=2,
    bound=1.0,
    simulator=moved,
    noise=nbi.CustomNoise(crescent, crescent_log_density),
    log_evidence=two_moons_log_evidence,
)
GAUSSIAN_MIXTURE = Task(
    "gaussian_mixture",
    n_dim=2,
    bound=10.0,
    simulator=itself,
    noise=nbi.CustomNoise(one_of_two, one_of_two_log_density),
    log_evidence=lambda x: np.log(np.mean([np.exp(log_mass(x, s, 10.0)) for s in _SCALES])),
)
GAUSSIAN_LINEAR_UNIFORM = Task(
    "gaussian_linear_uniform",
    n_dim=10,
    bound=1.0,
    simulator=itself,
    noise=nbi.GaussianNoise(math.sqrt(0.1)),
    log_evidence=lambda x: log_mass(x, math.sqrt(0.1), 1.0),
)


# --- comparison ----------------------------------------------------------------------------------

HIDDEN = 0.01  # of a posterior may be hidden by `unrepeated`: half of that is what C2ST may miss


def unrepeated(posterior, seed=0):
    """Return draws (n, D) of equal weight and none of them twice, by rejection.

    Drawn again with replacement, the same posterior would be told from another set of its draws by
    its duplicates. The few heaviest draws count no more than the rest, which hides `HIDDEN` of the
    posterior at most: without that, one draw of 50 times the mean weight would leave 200 of 10000.
    """
    weights = np.sort(posterior.weights)[::-1]
    above = weights.cumsum() - weights * np.arange(1, len(weights) + 1)  # what each would cut off
    largest = weights[np.searchsorted(above, HIDDEN, side="right") - 1]
    chance = posterior.weights / largest
    return posterior.samples[np.random.default_rng(seed).random(len(chance)) < chance]


def c2st(draws, reference, seed=0):
    """Return how often a classifier tells draws (n, D) from as many of a reference (m, D).

    0.5 where they are alike, 1 where they are apart: the network of sbibm (two layers of 10 D
    units, in units of the reference's spread), and its accuracy on the fifths that it has not seen.
    Unlike there its training is stopped early: in ten dimensions it would learn draws by heart,
    slowly. Folds of equal halves keep what has learnt nothing at 0.5; others put it lower.
    """
    n = min(len(draws), len(reference))
    rng = np.random.default_rng(seed)
    parts = [rng.permutation(rows)[:n] for rows in (reference, draws)]
    both = (np.concatenate(parts) - reference.mean(0)) / reference.std(0)
    truth = np.repeat([0, 1], n)
    hidden = (10 * both.shape[1],) * 2
    network = MLPClassifier(hidden, max_iter=10_000, early_stopping=True, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(network, both, truth, cv=folds).mean())


def posterior_c2st(posterior, reference, n_repeats=5):
    """Return the mean C2ST of several subsets of equal weight, and the mean size of a subset.

    A subset has a few thousand draws: alone, its C2ST would scatter by 0.01.
    """
    subsets = [unrepeated(posterior, seed) for seed in range(n_repeats)]
    scores = [c2st(draws, reference, seed) for seed, draws in enumerate(subsets)]
    return float(np.mean(scores)), int(np.mean([len(draws) for draws in subsets]))
