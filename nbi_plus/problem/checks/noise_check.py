"""Noise checks: whether a noise model keeps its contract, tried before anything rests on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nbi_plus.arguments import seed_of
from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.data.tables.tables import astropy_table
from nbi_plus.problem.binding import bind_simulator, check_observations
from nbi_plus.problem.checks.agreement import NoiseRows, disagreements, unflagged
from nbi_plus.problem.checks.trial import N_DRAWS, NoiseTrial, RemarkError
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.noise.custom import as_noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.simulator.cadence import trimmed
from nbi_plus.problem.simulator.simulator import BoundSimulator, Simulator
from nbi_plus.problem.target import Target
from nbi_plus.torch_state import door

if TYPE_CHECKING:
    from astropy.table import QTable

_LOG = logging.getLogger("nbi_plus")
_SLOW = 0.1  # seconds: of a slower simulator one row has to do
_N_SEEN = 64  # objects, among which two are looked for
_N_SMOOTH = 32  # prior draws at which jumps are looked for
_STEP, _N_STEPS = 1e-8, 8  # in z, to either side
_JUMP = 1e-6  # less hurts no sampler


@dataclass(frozen=True)
class Check:
    """What came of one check.

    Attributes
    ----------
    name : str
    passed : bool
    detail : str
        What is wrong, or why nothing was checked.
    grave : bool
        Whether answers would be wrong, and not only hard to get.
    """

    name: str
    passed: bool
    detail: str = ""
    grave: bool = True


@door
def check_noise(
    noise: Noise | ArrayLike | Callable | None,
    simulator: Simulator | Callable | None,
    prior: Prior | Mapping | list | Callable,
    observations: Observations | None,
    *,
    seed: int = 0,
) -> QTable:
    """Try whether a noise model keeps its contract, as `Engine.fit` does.

    ``shapes``, ``dtypes``: of draws and likelihoods, of one or many draws for each object.
    ``objects``: many objects and draws together give what they give one by one.
    ``mask``: what stands at masked points does not matter, and no points have no likelihood.
    ``location``, ``width``: ``augment`` draws what ``log_likelihood`` is the density of: its score
    has mean zero, and the Fisher information as its variance. ``parameters``: the same, for changes
    of what the noise takes from theta. ``smooth``: no jumps under steps of 1e-8 in z.

    Parameters
    ----------
    noise : Noise, float, array_like or callable
        As for `Engine`.
    simulator : callable or Simulator, or None
        None takes data for models.
    prior : Prior, mapping, sequence or callable
    observations : Observations or None
        Whose errors, masks and coordinates are tried, of two objects; None for data without.
    seed : int
        Of the draws.

    Returns
    -------
    QTable
        One row for each check: ``check``, ``passed``, ``detail``.

    Examples
    --------
    >>> from scipy.stats import norm
    >>> import nbi_plus as nbi
    >>> data = nbi.Observations.from_arrays(np.zeros((2, 5)), 0.3)
    >>> line = lambda theta: theta @ np.ones((1, 5))
    >>> table = check_noise(nbi.GaussianNoise(), line, {"a": norm()}, data)
    >>> bool(table["passed"].all())
    True
    """
    prior, noise, seed = Prior.coerce(prior), as_noise(noise), seed_of("seed", seed)
    if observations is not None:
        check_observations(observations)
    with preserved_random_state():
        rows = _rows_for(simulator, prior, observations, seed)
        unit = None if observations is None else observations.units.get("x")
        bound = noise.in_unit(unit).bind(rows.obs.x_err is not None, prior.full_names)
        checks = checks_of(bound, prior, rows, seed)
    columns = {"check": "name", "passed": "passed", "detail": "detail"}
    return astropy_table({k: [getattr(c, v) for c in checks] for k, v in columns.items()})


def require(checks: Sequence[Check]) -> None:
    """Raise a ValueError where a check failed, and log what is not as grave."""
    for check in checks:
        if not check.passed and check.grave:
            raise ValueError(
                f"noise must pass its checks before a fit, but fails {check.name!r}: "
                f"{check.detail} See nbi_plus.check_noise."
            )
        if check.detail and (not check.passed or check.name == "mask"):
            _LOG.warning("noise, check of %r: %s", check.name, check.detail)


@torch.no_grad()
def checks_of(noise: Noise, prior: Prior, rows: NoiseRows, seed: int = 0) -> list[Check]:
    """Return what came of all checks of a bound noise, up to the first that leaves others no sense.

    Parameters
    ----------
    noise : Noise
        Bound.
    prior : Prior
    rows : NoiseRows
        Simulations; those that are not finite are left out.
    seed : int
    """
    finite = torch.isfinite(torch.where(rows.obs.mask, rows.model, 0.0)).all(2).all(1)
    finite &= torch.isfinite(rows.theta).all(1) & rows.obs.mask.any(2).any(1)
    if not bool(finite.any()):
        return [Check("shapes", True, "Nothing could be tried: no simulation was finite.")]
    rows = rows.pick(finite.nonzero()[:, 0])
    weighs = noise.has_likelihood(rows.obs.x_err is not None)
    many = NoiseTrial.of(prior, rows, seed)
    tried = {"shapes": many.shapes, "dtypes": many.dtypes}
    if weighs:
        tried |= {"objects": many.objects, "mask": many.mask}
    checks = []
    for name, work in tried.items():
        checks.append(_tried(name, lambda work=work: work(noise, weighs)))
        if not checks[-1].passed:
            return checks
    if not weighs:
        return checks
    if noise.draws_as_weighted:
        checks += _agreement(noise, prior, rows, seed)
    if all(check.passed for check in checks):
        smooth = _tried("smooth", lambda: _smooth(noise, prior, rows, seed))
        checks.append(replace(smooth, grave=False))
    return checks


def _tried(name: str, work: Callable[[], str]) -> Check:
    """Return a check that passes where ``work`` returns ``""``."""
    try:
        detail = work()
    except RemarkError as passed:
        return Check(name, True, str(passed))
    except Exception as error:  # noqa: BLE001 - user code; what it raises is what is wrong
        told = str(error) if isinstance(error, ValueError) else f"the noise raised {error!r}"
        return Check(name, False, told.rstrip(".") + ".")
    return Check(name, not detail, detail)


def _agreement(noise: Noise, prior: Prior, rows: NoiseRows, seed: int) -> list[Check]:
    try:
        possible = noise.log_likelihood(
            rows.theta,
            rows.model,
            noise.observe(rows.model, unflagged(rows.obs), rows.theta, _generator(rows, seed)),
        )
        good = torch.isfinite(possible).nonzero()[:, 0]
        if not len(good):
            return [Check("location", False, "augment must draw data that are possible, but "
                          "log_likelihood is finite for none of its draws.")]  # fmt: skip
        found = disagreements(noise, prior, rows.pick(good), seed)
    except Exception as error:  # noqa: BLE001 - user code
        return [Check("location", False, f"the noise raised {error!r} for other models.")]
    return [Check(name, not detail, detail) for name, detail in found.items()]


def _smooth(noise: Noise, prior: Prior, rows: NoiseRows, seed: int) -> str:
    """Under tiny steps the log-likelihood is a parabola, but for rounding."""
    rng = np.random.default_rng(seed)
    z, along = torch.from_numpy(rng.standard_normal((2, _N_SMOOTH, 1, prior.n_dim))).to(rows.z)
    steps = torch.arange(-_N_STEPS, _N_STEPS + 1, device=z.device).to(z)
    index = torch.arange(_N_SMOOTH, device=z.device) % len(rows)
    model = rows.model[index, None]
    # about what a step in z does to a model, without simulating again
    change = rows.model[(index + 1) % len(rows), None] - model
    change = change if len(rows) > 1 else 0.1 * model
    theta = prior.complete(prior.from_latent(z + _STEP * steps[:, None] * along))
    models = model + _STEP * steps[:, None, None] * change
    middle = len(steps) // 2
    obs = unflagged(rows.obs.select(index))
    data = noise.observe(model[:, 0], obs, theta[:, middle], _generator(rows, seed))
    value = noise.log_likelihood(theta, models, data)
    value = value[torch.isfinite(value).all(1)]
    basis, _ = torch.linalg.qr(torch.stack([steps**k for k in range(3)], 1))
    centred = value - value[:, middle : middle + 1]
    jump = (centred - centred @ basis @ basis.mT).abs()
    allowed = _JUMP + 256 * torch.finfo(value.dtype).eps * value.abs()
    if not bool((jump > allowed).any()):
        return ""
    return (
        f"log_likelihood jumps by up to {float(jump.max()):.1g} under steps of 1e-8 in z, where a "
        "smooth function is a straight line. Digits are lost, as in differences of large "
        "numbers (lgamma of large arguments) or in float32: weights are as right as before, but "
        "HMC and optimisers may not converge. Write it in a form without cancellation."
    )


def _generator(rows: NoiseRows, seed: int) -> torch.Generator:
    return torch.Generator(rows.model.device).manual_seed(seed)


def _rows_for(
    simulator: Simulator | Callable | None,
    prior: Prior,
    observations: Observations | None,
    seed: int,
) -> NoiseRows:
    """Return rows of whatever there is."""
    bound, unit = None, None
    if observations is not None:
        observations, unit = observations[:_N_SEEN], observations.units.get("x")
    elif simulator is None:
        raise ValueError("check_noise must have a simulator or observations, but has neither.")
    if simulator is not None:
        start = _nothing((1, 1)) if observations is None else observations.batch()
        bound = bind_simulator(simulator, prior, start, unit)
    batch = _nothing(bound.shape) if observations is None else observations.batch()
    return simulated_rows(bound, prior, batch, seed)


def _nothing(shape: tuple[int, int]) -> Batch:
    return Observations.from_arrays(np.zeros((1, *shape))).batch()


def simulated_rows(
    bound: BoundSimulator | None, prior: Prior, objects: Batch, seed: int = 0
) -> NoiseRows:
    """Return a few simulations for two objects; their data, where there is no simulator.

    Parameters
    ----------
    bound : BoundSimulator or None
    prior : Prior
    objects : Batch
        Float64, on the CPU.
    seed : int
    """
    data = objects.select(_two(objects))
    n_draws = N_DRAWS
    if bound is not None and bound.seconds_per_row > _SLOW:
        data, n_draws = data.select(slice(0, 1)), 1
    z = np.random.default_rng(seed).standard_normal((len(data), n_draws, prior.n_dim))
    z = torch.from_numpy(z)
    owner = torch.arange(len(data)).repeat_interleave(n_draws)
    if bound is None:
        model = data.x[owner]
    else:
        target = Target(prior, bound, _NO_NOISE, data, bound.n_jobs)
        with torch.no_grad():
            model = target.simulate(z, torch.arange(len(data))).flatten(0, 1)
    z = z.flatten(0, 1)
    theta = prior.complete(prior.from_latent(z))
    return rows_of(z, theta, model, data.select(owner))


def rows_of(z: Tensor, theta: Tensor, model: Tensor, obs: Batch) -> NoiseRows:
    """Return rows without the steps at the end that no object has."""
    if any(v.ndim == 2 for v in obs.coords.values()):
        obs, model = trimmed(obs, model)
    return NoiseRows(z, theta, model.to(torch.float64), obs)


def _two(objects: Batch) -> Tensor:
    """Return the first object that has points, and one that has gaps, or the next."""
    n_valid = objects.mask.sum((1, 2))
    have = (n_valid > 0).nonzero()[:, 0]
    if not len(have):
        return torch.zeros(1, dtype=torch.int64)
    gaps = have[(n_valid[have] < objects.mask[0].numel())]
    second = next((i for i in [*gaps.tolist(), *have.tolist()] if i != have[0]), None)
    return have[:1] if second is None else torch.tensor([int(have[0]), second])


_NO_NOISE = as_noise(1.0)  # of a target that only simulates
