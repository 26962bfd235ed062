"""Ensembles: emcee's walkers, for log-densities that have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import emcee
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.arguments import of_kind, seed_of
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.torch_state import door

_INDEPENDENT = 0.1  # share of the moves that are independence steps
_FAR = 0.1  # share of the others that move by a whole difference: from one mode to another
_LOOK_EVERY = 500  # steps
_FEWEST = 20  # steps of which anything can be said
_BURN_IN, _STEADY = 2.0, 0.05  # times tau that are left out; change of tau that is none


@dataclass(frozen=True)
class EnsembleConfig:
    """Chosen state of the sampler.

    Attributes
    ----------
    n_walkers : int
        At least; four for each parameter, if that is more.
    max_steps : int
    n_tau, ess_min : float
        Steps that are wanted, in autocorrelation times, and effective draws of all walkers.
    n_kept : int
        Draws of each walker that a result holds at most.
    """

    n_walkers: int = 64
    max_steps: int = 20_000
    n_tau: float = 50.0
    ess_min: float = 400.0
    n_kept: int = 100


@dataclass(frozen=True)
class EnsembleResult:
    """Walkers of one object.

    Attributes
    ----------
    samples : Tensor, shape (W, N, D)
        Thinned, without what was needed to settle.
    ess : Tensor, shape (D,)
        Effective draws of all that were made since.
    n_steps : int
    converged : bool
        Whether the chain is long enough to believe its autocorrelation time, and that is steady.
    """

    samples: Tensor
    ess: Tensor
    n_steps: int
    converged: bool


@door
def sample(
    log_prob: Callable[[Tensor], Tensor], z0: Tensor, *, seed: int = 0,
    jumps: LatentProposal | None = None, max_calls: float = np.inf,
    over: Callable[[], bool] = lambda: False, config: EnsembleConfig | None = None,
) -> EnsembleResult:  # fmt: skip
    """Sample one density with emcee (Foreman-Mackey et al. 2013).

    Moves by differential evolution (ter Braak 2006), and by independence steps where there is a
    proposal. The snooker is left out: that of emcee 3.1 draws normals with 0.66 of their variance.

    Parameters
    ----------
    log_prob : callable
        ``log_prob(z)``: z (m, D) -> (m,); -inf or NaN is impossible.
    z0 : Tensor, shape (W, D)
        Different places of positive density, W even and at least 2 D.
    seed : int
    jumps : LatentProposal, optional
        Of one object.
    max_calls : float
        Where to stop.
    over : callable
        ``over()`` says, after every step, whether to stop.
    config : EnsembleConfig, optional

    Returns
    -------
    EnsembleResult

    Examples
    --------
    >>> z0 = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()
    >>> result = sample(lambda z: -0.5 * z.square().sum(-1), z0, seed=1)
    >>> result.converged, result.samples.shape
    (True, torch.Size([64, 100, 2]))
    """
    config = EnsembleConfig() if config is None else config
    seed = seed_of("seed", seed)
    of_kind("z0", z0, Tensor, "Give a torch tensor.")
    if z0.ndim != 2 or not z0.dtype.is_floating_point or len(z0) < 2 * z0.shape[1] or len(z0) % 2:
        raise ValueError(
            f"z0 must have shape (W, D), W even and at least 2 D, and be of floating point, but is "
            f"{z0.dtype} of shape {tuple(z0.shape)}."
        )
    n_walkers, n_dim = z0.shape

    def density(z: NDArray[np.float64]) -> NDArray[np.float64]:
        value = log_prob(torch.as_tensor(z, device=z0.device)).detach().cpu().numpy()
        return np.where(np.isfinite(value), value, -np.inf)

    moves = _moves(jumps, z0.device)
    sampler = emcee.EnsembleSampler(n_walkers, n_dim, density, moves=moves, vectorize=True)
    rng = np.random.RandomState(seed % 2**32)  # noqa: NPY002 - the kind that emcee takes
    start = emcee.State(z0.cpu().numpy(), random_state=rng.get_state())
    most = int(min(config.max_steps, max_calls / n_walkers - 1))
    tau, converged, n = np.full(n_dim, np.inf), False, 0
    while n < most and not converged and not over():
        n_more = min(_LOOK_EVERY, most - n)
        # step by step, for with a slow simulator a single one may take minutes
        steps = sampler.sample(start, iterations=n_more, skip_initial_state_check=True)
        for state in steps:
            start = state
            if over():
                break
        n = sampler.iteration
        if n < _FEWEST:
            break
        before, tau = tau, _autocorrelation_time(sampler)
        known = np.isfinite(before) & np.isfinite(tau)
        steady = known.all() and bool((np.abs(before - tau) < _STEADY * tau).all())
        if steady and n > config.n_tau * tau.max():
            arrived = sampler.get_chain(discard=int(_BURN_IN * tau.max()))
            converged = bool(_collective_ess(arrived).min() >= config.ess_min)
    return _result(sampler, tau, converged, z0, config)


def _result(
    sampler: emcee.EnsembleSampler, tau: NDArray, converged: bool, z0: Tensor,
    config: EnsembleConfig,
) -> EnsembleResult:  # fmt: skip
    n = sampler.iteration
    if n < _FEWEST:
        return EnsembleResult(z0[:, None], torch.zeros(z0.shape[1]).to(z0), 0, False)
    arrived = tau.max() if np.isfinite(tau).all() else np.inf
    first = int(min(_BURN_IN * arrived, n // 2))
    kept = np.linspace(first, n - 1, min(config.n_kept, n - first)).round().astype(int)
    chain = sampler.get_chain()[kept].transpose(1, 0, 2).copy()
    ess = _collective_ess(sampler.get_chain(discard=first))
    return EnsembleResult(
        torch.as_tensor(chain, device=z0.device), torch.as_tensor(ess, device=z0.device), n,
        converged,
    )  # fmt: skip


def _collective_ess(chain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the effective draws (D,) of means and variances, of walkers (N, W, D).

    From the scatter of the mean of all walkers in time: they learn from each other, and what they
    share, as their spread, changes more slowly than any of them.
    """
    centred = chain - chain.mean((0, 1))
    worst = np.full(chain.shape[2], np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        for values in (centred, centred**2):
            mean = values.mean(1)
            tau = emcee.autocorr.integrated_time(mean[:, None], tol=0)
            worst = np.fmin(worst, values.var((0, 1)) * len(mean) / (mean.var(0) * tau))
    return np.nan_to_num(worst, nan=0.0, posinf=0.0)


def _moves(jumps: LatentProposal | None, device: torch.device) -> list[tuple[object, float]]:
    """Return emcee's moves and their shares."""
    local = [(emcee.moves.DEMove(), 1 - _FAR), (emcee.moves.DEMove(gamma0=1.0), _FAR)]
    if jumps is None:
        return local

    def propose(
        z: NDArray[np.float64], rng: np.random.RandomState
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return independent places, and log q(z) - log q(z') as emcee adds it."""
        key = torch.tensor([rng.randint(2**62)], device=device)
        # draws come in the order of their components: each walker must have a chance of each
        order = torch.as_tensor(rng.permutation(len(z)), device=device)
        other = jumps.draw(key, len(z), 0, "ensemble jump")[:, order]
        here = jumps.log_prob(torch.as_tensor(z, device=device)[None])
        factors = (here - jumps.log_prob(other))[0]
        return other[0].cpu().numpy(), factors.cpu().numpy()

    scaled = [(move, share * (1 - _INDEPENDENT)) for move, share in local]
    return [*scaled, (emcee.moves.MHMove(propose), _INDEPENDENT)]


def _autocorrelation_time(sampler: emcee.EnsembleSampler) -> NDArray[np.float64]:
    """Return tau (D,), infinite where the chain is stuck."""
    with np.errstate(invalid="ignore", divide="ignore"):
        tau = sampler.get_autocorr_time(tol=0, discard=sampler.iteration // 10)
    return np.where(np.isfinite(tau) & (tau > 0), tau, np.inf)
