"""Verdicts: from graded draws to Posteriors with statuses, flags and moments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.infer.posterior.accounts import ReportLog
from nbi_plus.infer.posterior.columns import ALL_NUMBERS, BY_NAME, NUMBERS, WEIGHT_NUMBERS
from nbi_plus.infer.posterior.flags import raised, weight_rules
from nbi_plus.infer.posterior.outcome import Outcome, Pool, bounded
from nbi_plus.infer.posterior.posterior import Parameters, Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Flag, RungReport, Status
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.weights.clean import Failure
from nbi_plus.infer.weights.moments import moments
from nbi_plus.infer.weights.resample import systematic_resample
from nbi_plus.infer.weights.summary import Gate, gate_of
from nbi_plus.problem.prior.learned_range import LearnedRange
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import keyed_uniform

_OF_DATA = ("ood_p_value", "n_points", "n_masked")  # known of an object before it is answered
BAD_INPUT, BAD_NETWORK, BROKEN = "FAIL_INPUT", "FAIL_NETWORK", "FAIL_SIMULATOR"
_BEYOND = 0.05  # mass of an answer beyond the parameters that a likelihood was learned at
_REASONS = {
    Failure.SIMULATOR: BROKEN,
    Failure.NUMERIC: "FAIL_NUMERIC",
    Failure.NO_SUPPORT: "FAIL_NO_SUPPORT",
}


@dataclass(frozen=True)
class Objects:
    """What is known of N objects besides their draws.

    Attributes
    ----------
    ids : ndarray, shape (N,)
    keys : Tensor of int64, shape (N,)
    ood, p_value : Tensor, shape (N,)
        Flag and p-value of the feature distance.
    n_points, n_masked, n_duplicates : ndarray of int, shape (N,)
    refusals : ndarray of str, shape (N,)
        Why they cannot be answered, because of data or network; "" where they can.
    hashes : ndarray of str, shape (N,)
        Of their data.
    strange : Tensor of bool, shape (N,), or None
        Whose data are unlike those that a likelihood was learned of.
    apart : Tensor of bool, shape (N,), optional
        Where the members of an ensemble disagree.
    """

    ids: NDArray
    keys: Tensor
    ood: Tensor
    p_value: Tensor
    n_points: NDArray[np.int64]
    n_masked: NDArray[np.int64]
    n_duplicates: NDArray[np.int64]
    refusals: NDArray[np.str_]
    hashes: NDArray[np.str_]
    strange: Tensor | None = None
    apart: Tensor | None = None

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Who can be answered, shape (N,)."""
        return self.refusals == ""

    @property
    def bad_input(self) -> Tensor:
        """Whose data cannot be used, bool (N,)."""
        return torch.as_tensor(
            np.char.startswith(self.refusals, BAD_INPUT), device=self.keys.device
        )


class Doubt(Enum):
    """Which certified answers are doubted: none, those that no audit looked at, or all."""

    NONE = 0
    UNAUDITED = 1
    ALL = 2

    @classmethod
    def of(cls, doubted: bool, blind: bool) -> Doubt:
        """Return the doubt where answers missed places, and where audits did not find these."""
        return cls.NONE if not doubted else cls.ALL if blind else cls.UNAUDITED

    def falls_on(self, *, audited: bool) -> bool:
        """Say whether it falls on an answer."""
        return self is Doubt.ALL or (self is Doubt.UNAUDITED and not audited)


@dataclass(frozen=True)
class Request:
    """How the answers are wanted: the prior to translate with, draws to keep, gate and seed.

    ``doubt`` says which certified answers are not to be trusted, because others of this problem
    missed places; ``keep_unfinished`` how many draws of objects that nothing certified are kept
    beside the answers, to try them again; ``learned`` where a likelihood was learned that weights
    are of, which certifies nothing.
    """

    prior: Prior
    keep: int | None
    gate: Gate
    seed: int
    doubt: Doubt = Doubt.NONE
    keep_unfinished: int = 0
    learned: LearnedRange | None = None


def corrected(
    outcomes: Iterable[Outcome], objects: Objects, request: Request, report: ReportLog | None = None
) -> Posteriors:
    """Return weighted posteriors in the order of the outcomes.

    Without a log the report has one line, that of the outcome.
    """
    return Posteriors.concatenate([_weighted(o, objects, request, report) for o in outcomes])


def amortized(pool: Pool, z: Tensor, objects: Objects, request: Request, reason: str) -> Posteriors:
    """Return the network's own posteriors, status AMORTIZED, with the reason in the report.

    Parameters
    ----------
    pool : Pool
        The draws that are kept.
    z : Tensor, shape (B, S, D)
        Those that are summed up: the density of what is not kept is nobody's business.
    objects : Objects
    request : Request
    reason : str
        Why nothing weighs them.
    """
    n, n_draws, _ = z.shape
    valid = objects.usable
    status = tuple(Status.AMORTIZED if v else Status.FAILED for v in valid)
    flags = raised(_of_data(objects, torch.arange(n, device=objects.ood.device)))
    numbers = {k: np.full(n, BY_NAME[k].unknown) for k in ALL_NUMBERS if k not in _OF_DATA}
    numbers["ess"] = np.full(n, float(n_draws))
    line = RungReport("amortized", n_draws, float(n_draws), np.nan, np.nan, False, reason)
    refusals = objects.refusals.tolist()
    # one for all of one reason: a line each would be half of what the answers of a survey weigh
    lines = {own: (replace(line, reason=own or reason),) for own in set(refusals)}
    rungs = tuple(lines[own] for own in refusals)
    theta = request.prior.from_latent(bounded(z))
    weights = torch.full_like(z[..., 0], 1.0 / n_draws)
    verdicts = status, flags, rungs
    result = _collect(pool.index, theta, weights, numbers, verdicts, objects, request)
    if request.keep == 0:
        return result
    theta = theta[:, : pool.log_q.shape[1]]
    equal = torch.full_like(pool.log_q, 1.0 / pool.log_q.shape[1])
    columns = _columns(pool, theta, torch.zeros_like(equal), equal, request.prior)
    return replace(result, draws=_draws(result, columns, [None] * n, "network", request))


def _weighted(
    outcome: Outcome, objects: Objects, request: Request, report: ReportLog | None
) -> Posteriors:
    rows = outcome.pool.index.cpu().numpy()
    s, cleaned = outcome.summary, outcome.cleaned
    numbers = {k: _numpy(getattr(s, k)) for k in WEIGHT_NUMBERS}
    unknown = torch.full_like(s.ess, torch.nan)
    p_value = unknown if outcome.fit_p_value is None else outcome.fit_p_value
    numbers["fit_p_value"] = _numpy(p_value)
    chi2 = unknown if outcome.chi2_best is None else outcome.chi2_best
    numbers["chi2_best"] = _numpy(chi2)
    numbers["n_failed"] = _numpy(outcome.pool.failed.sum(1) + cleaned.n_nan)
    failure = [_REASONS.get(f, "") for f in _numpy(cleaned.failure).tolist()]
    refusals = objects.refusals[rows].tolist()
    failure = [own or other for own, other in zip(refusals, failure, strict=True)]
    settled = outcome.status if request.learned is None else Status.LEARNED
    status = tuple(
        Status.FAILED if reason else settled if good else Status.UNCERTIFIED
        for reason, good in zip(failure, outcome.passed.tolist(), strict=True)
    )
    numbers = _without_answer(numbers, np.array([s is Status.FAILED for s in status]))
    if report is None:
        numbers["n_simulated"] = _numpy(torch.isfinite(outcome.pool.log_prior).sum(1))
        numbers["n_gradients"] = np.zeros(len(rows), np.int64)
        rungs = _one_line(outcome, numbers, status, failure)
    else:
        cost = report.meter.read(outcome.pool.index)
        numbers["n_simulated"] = _numpy(cost.calls + cost.gradients)
        numbers["n_gradients"] = _numpy(cost.gradients)
        rungs = report.reports(rows, failure)
    numbers["seconds"] = np.array([sum(line.seconds for line in own) for own in rungs])
    flags = _flags(outcome, objects, request)
    valid = torch.as_tensor(objects.usable[rows], device=s.weights.device)[:, None]
    weights = torch.where(valid, s.weights, 0.0)
    log_weights = torch.where(valid, cleaned.log_weights, -torch.inf)
    pool, chains = outcome.pool, [None] * len(rows)
    theta = request.prior.from_latent(pool.bounded)
    verdicts = status, flags, rungs
    result = _collect(pool.index, theta, weights, numbers, verdicts, objects, request)
    if request.keep == 0:
        return result
    columns = _columns(pool, theta, log_weights, weights, request.prior)
    if request.keep is not None:
        columns = _resampled(columns, objects.keys[pool.index], request)
    elif outcome.chains is not None:
        chains = _numpy(request.prior.from_latent(outcome.chains.z))
    return replace(result, draws=_draws(result, columns, chains, outcome.family, request))


def _one_line(
    outcome: Outcome, numbers: dict[str, NDArray], status: tuple[Status, ...], failure: list[str]
) -> tuple[tuple[RungReport, ...], ...]:
    columns = (numbers["ess"], numbers["efficiency"], numbers["k_hat"], status, failure)
    return tuple(
        (RungReport(outcome.rung, int(n), float(e), float(f), float(k), st.certified, reason),)
        for n, e, f, k, st, reason in zip(outcome.summary.n_draws.tolist(), *columns, strict=True)
    )


def _without_answer(numbers: dict[str, NDArray], failed: NDArray[np.bool_]) -> dict[str, NDArray]:
    """Return the figures with a failed object's ess 0, k_hat inf and evidence unreliable."""
    null = {k: value for k in numbers if (value := BY_NAME[k].failed) is not None}
    return {k: np.where(failed, null[k], v) if k in null else v for k, v in numbers.items()}


def _of_data(objects: Objects, index: Tensor) -> dict[Flag, Tensor]:
    """Return the rules of what is known of some objects besides their draws."""
    duplicates = torch.as_tensor(objects.n_duplicates > 0, device=index.device)
    rules = {Flag.OOD: objects.ood, Flag.BAD_INPUT: objects.bad_input, Flag.DUPLICATES: duplicates}
    if objects.apart is not None:
        rules[Flag.DISAGREE] = objects.apart
    return {flag: values[index] for flag, values in rules.items()}


def _flags(outcome: Outcome, objects: Objects, request: Request) -> tuple[frozenset[Flag], ...]:
    """Return the flags of each object: every rule is evaluated for all objects at once."""
    pool = outcome.pool
    circles = circular_columns(request.prior.periods)
    rules = weight_rules(
        outcome.summary, pool.z, outcome.cleaned.log_weights, request.gate, circles
    ) | {
        **_of_data(objects, pool.index),
        Flag.SIM_ERRORS: outcome.cleaned.many_nan
        | pool.failed.any(1)
        | (outcome.cleaned.failure == Failure.SIMULATOR),
    }
    if outcome.misfit is not None:
        rules[Flag.MISFIT] = outcome.misfit
    if outcome.beyond is not None:
        rules[Flag.SUPPORT] = outcome.beyond
    if request.doubt.falls_on(audited=outcome.missed is not None):
        rules[Flag.UNCALIBRATED] = outcome.passed
    if request.learned is not None:
        rules[Flag.EXTRAPOLATED] = _extrapolated(outcome, objects, request)
    if outcome.missed is not None:
        rules[Flag.MODE_MISSED] = outcome.missed
    if outcome.chains is not None:
        rules[Flag.SOURCES_DISAGREE] = outcome.chains.disagree
        rules[Flag.DIVERGENCES] = outcome.chains.divergent
    return raised(rules)


def _extrapolated(outcome: Outcome, objects: Objects, request: Request) -> Tensor:
    """Say whose data, or answers, are not those that a likelihood was learned of, bool (b,)."""
    pool = outcome.pool
    theta = request.prior.complete(request.prior.from_latent(pool.bounded))
    share = (outcome.summary.weights * request.learned.beyond(theta)).sum(1)
    return (share > _BEYOND) | objects.strange[pool.index]


def _collect(
    index: Tensor,
    theta: Tensor,
    weights: Tensor,
    numbers: dict[str, NDArray],
    verdicts: tuple[
        tuple[Status, ...], tuple[frozenset[Flag], ...], tuple[tuple[RungReport, ...], ...]
    ],
    objects: Objects,
    request: Request,
) -> Posteriors:
    """Return posteriors without draws: verdicts, figures, and moments of theta (b, S, D)."""
    rows = index.cpu().numpy()
    status, flags, rungs = verdicts
    mean, std, quantiles = (_numpy(v) for v in moments(theta, weights))
    # a failed object has no moments, not those of whatever draws came last
    failed = np.array([s is Status.FAILED for s in status])[:, None]
    return Posteriors(
        parameters=Parameters.of(request.prior), ids=objects.ids[rows],
        data_hash=objects.hashes[rows], status=status, flags=flags, rungs=rungs,
        **numbers, ood_p_value=_numpy(objects.p_value[index]), n_masked=objects.n_masked[rows],
        n_points=objects.n_points[rows],
        mean=np.where(failed, np.nan, mean), std=np.where(failed, np.nan, std),
        quantiles=np.where(failed[..., None], np.nan, quantiles),
    )  # fmt: skip


def _columns(
    pool: Pool, theta: Tensor, log_weights: Tensor, weights: Tensor, prior: Prior
) -> list[Tensor]:
    """Return what a Posterior holds of each draw."""
    log_prior, log_q = _in_theta(pool, theta, prior)
    return [theta, log_weights, weights, log_q, log_prior, pool.log_likelihood]


def _draws(
    result: Posteriors, columns: list[Tensor], chains: Sequence, family: str, request: Request
) -> tuple[Posterior, ...]:
    """Return one Posterior for each object, of its `_columns` and chains."""
    samples, log_w, w, log_q, log_prior, log_like = (_numpy(c) for c in columns)
    return tuple(  # results are one object each: the only loop over objects
        Posterior(
            result.parameters, samples[i], log_w[i], w[i], log_q[i], log_prior[i], log_like[i],
            result.status[i], result.flags[i], rungs=result.rungs[i], id=str(result.ids[i]),
            # one object at a time: a derived curve for every draw of all would fill the memory
            derived=request.prior.derive(samples[i]), chains=chains[i],
            support=request.prior.support, gate=gate_of(family, request.gate),
            data_hash=str(result.data_hash[i]),
            **{k: getattr(result, k)[i].item() for k in NUMBERS},
        )
        for i in range(len(samples))
    )  # fmt: skip


def _resampled(columns: list[Tensor], keys: Tensor, request: Request) -> list[Tensor]:
    """Return ``keep`` draws of equal weight (an object without weights keeps its first draws)."""
    weights = columns[2]
    usable = torch.where(weights.sum(1, keepdim=True) > 0, weights, torch.ones_like(weights))
    comb = keyed_uniform(request.seed, "resample", keys, (1,))[:, 0]
    pick = systematic_resample(usable, request.keep, comb)
    picked = [
        c.gather(1, pick)
        if c.ndim == 2
        else c.gather(1, pick[..., None].expand(-1, -1, c.shape[2]))
        for c in columns
    ]
    alive = weights.sum(1, keepdim=True) > 0
    picked[1] = torch.where(alive, torch.zeros_like(picked[1]), -torch.inf)
    picked[2] = torch.where(alive, torch.full_like(picked[2], 1.0 / request.keep), 0.0)
    return picked


def _in_theta(pool: Pool, theta: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
    """Return log prior and log q as densities of theta, where theta has a density."""
    if not prior.has_inverse:
        return pool.log_prior, pool.log_q
    log_prior = torch.as_tensor(prior.log_prob(theta), device=theta.device)
    inside = torch.isfinite(pool.log_prior)
    latent = prior.log_prob_latent(pool.z)
    return torch.where(inside, log_prior, -torch.inf), pool.log_q + log_prior - latent


def _numpy(tensor: Tensor) -> NDArray:
    return tensor.detach().cpu().numpy()
