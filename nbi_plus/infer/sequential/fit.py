"""Sequential fits: from the data of one object to its posterior, and what can be drawn again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.data.ingest import numbers
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.hints import Hints, Look
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.certificate import AMORTIZED, fresh_outcome, unweighted_outcome
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.predictive import averaged, checked, with_tails
from nbi_plus.infer.posterior.status import RungReport
from nbi_plus.infer.posterior.translated import Change, Translated
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.sequential.auditor import Auditor
from nbi_plus.infer.sequential.config import RoundsConfig, RoundZero
from nbi_plus.infer.sequential.journal import Journal
from nbi_plus.infer.sequential.ledger import Ledger
from nbi_plus.infer.sequential.locator import Locator
from nbi_plus.infer.sequential.published import Classic
from nbi_plus.infer.sequential.rounds import Rounds
from nbi_plus.infer.sequential.search import Search
from nbi_plus.infer.weights.summary import Gate, gate_of
from nbi_plus.io.fingerprint import content, fingerprint
from nbi_plus.io.store import SimulationStore
from nbi_plus.learn.fitting import Recipe
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.run import Run
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.setup import Problem
from nbi_plus.problem.simulator.simulator import FAILED, BoundSimulator
from nbi_plus.problem.target import Target
from nbi_plus.progress import progress as shown

_REPAIRS = 2  # of what audits find missing; each may show the next
METHODS = ("amis", "snpe-is", "apt", "tsnpe")


@dataclass(frozen=True)
class SequentialFit:
    """What a sequential fit leaves behind.

    Attributes
    ----------
    observations : Observations
        The one object that it is for.
    posterior : Posterior
        The pooled answer.
    rounds : Rounds
    frozen : LatentProposal
        What `Engine.predict` draws from afresh.
    family : str
        Of that proposal: whose gate those draws must pass.
    prior, noise, simulator : Prior, Noise, BoundSimulator or None
        Of the problem; the noise is bound.
    device : torch.device
        Where the proposal draws.
    """

    observations: Observations
    posterior: Posterior
    rounds: Rounds
    frozen: LatentProposal
    family: str
    prior: Prior
    noise: Noise
    simulator: BoundSimulator | None
    device: torch.device

    def is_for(self, data_hash: str) -> bool:
        """Say whether an object of this hash has the same data, errors and coordinates."""
        return data_hash == self.observations.hashes[0]

    def draws(self, n: int, seed: int) -> NDArray[np.float64]:
        """Return draws theta (n, D) of the frozen proposal, not corrected."""
        z = self.frozen.draw(self._key, n, seed, "sample")[0]
        return self.prior.from_latent(z).cpu().numpy()

    def log_prob(self, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return log q(theta) of the frozen proposal, shape (n,), of theta (n, D)."""
        z = torch.as_tensor(self.prior.to_latent(theta), device=self.device)
        latent = self.frozen.log_prob(z[None])[0] - self.prior.log_prob_latent(z)
        return latent.cpu().numpy() + self.prior.log_prob(theta)

    @property
    def _key(self) -> Tensor:
        return _key(self.observations).to(self.device)

    def predict(
        self, n_samples: int, ladder: Ladder, seed: int, n_jobs: int | None, client: object | None,
        change: Change | None = None,
    ) -> Posterior:  # fmt: skip
        """Return the posterior of fresh draws of the frozen proposal.

        As of a network these are at least those of the ladder where they are weighed, and as many
        as were asked for where nothing weighs them. ``change`` leads to another prior.
        """
        gate, n = ladder.gate, max(n_samples, ladder.n_draws)
        key, data = self._key, self.observations.batch().to(self.device)
        if not self.noise.has_likelihood(data.x_err is not None):
            if change is not None:
                raise ValueError(
                    "predict with another prior must weigh its draws, but no likelihood was "
                    "given. Use posterior.reweight(prior)."
                )
            z = self.frozen.draw(key, n_samples, seed, "predict")
            outcome = unweighted_outcome(self.frozen, z)
            return _posterior(outcome, self.observations, self.prior, gate, seed)
        if self.simulator is None:
            raise ValueError(
                "predict must have the simulator to weigh fresh draws with, but the engine was "
                "loaded without. Call Engine.load(path, simulator=...), or use posterior_."
            )
        prior = self.prior if change is None else change.new
        frozen = self.frozen if change is None else Translated(self.frozen, change)
        target = Target(prior, self.simulator, self.noise, data, n_jobs, client)
        z = frozen.draw(key, n, seed, "predict")
        found = target.evaluate(z, torch.zeros_like(key))
        outcome = fresh_outcome(
            frozen, z, found, gate_of(self.family, gate),
            circles=circular_columns(prior.periods), seed=seed,
        )  # fmt: skip
        if change is not None:
            s = outcome.summary
            outcome = outcome.unless(change.ends_inside(z, s.weights, s.ess))
        outcome = checked(target, outcome, key, seed)
        return _posterior(outcome, self.observations, target.prior, gate, seed)


@dataclass(frozen=True)
class SequentialRun:
    """How a sequential fit is run.

    Attributes
    ----------
    config : RoundsConfig
    method : str
        One of `METHODS`.
    ladder : Ladder
        Its gate judges, and its audit looks at the answer where there are gradients.
    run : Run
        Where and how the simulator is run.
    modes : array_like, shape (M, D), dict or callable, optional
        Places in theta to look at from the start, or ``modes(x_obs)`` that returns them: see
        `nbi_plus.infer.ladder.hints.Look`.
    """

    config: RoundsConfig
    method: str
    ladder: Ladder
    run: Run
    modes: Hints | None = None

    def __call__(
        self,
        problem: Problem,
        observations: Observations,
        recipe: Recipe,
        start: TrainedModel | None = None,
    ) -> SequentialFit:
        """Return the fit of one object."""
        if self.method == "apt" and recipe.flow.kind == "fm":
            raise ValueError("flow must not be 'fm' for method 'apt', which trains by densities.")
        run = self.run
        target = problem.target(run.n_jobs, run.client, recipe.device)
        first = self._first(problem, recipe, start, self._n_first(target))
        folder = self._own_folder(problem, recipe, first)
        with contextlib.ExitStack() as stack:
            store = None
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                columns = Ledger.columns(target)
                path = folder / "simulations.h5"
                store = stack.enter_context(
                    SimulationStore.open(path, {}, columns, self.config.n_per_round)
                )
            budget = self.config.budget
            stack.enter_context(shown("rounds", budget, run.progress, unit="simulations"))
            ledger = Ledger(target, store, run.progress)
            ledger.check_reuse()
            key = _key(observations).to(recipe.device)
            auditor = Auditor(target, self.ladder, key, recipe.seed)
            fit = self._search(auditor)(
                ledger, Locator(recipe, run.callback), Journal(folder, recipe.device), self.config,
                self.ladder.gate, key, recipe.seed,
            )  # fmt: skip
            answer = fit(first)
            for left in range(_REPAIRS, -1, -1):
                outcome = _checked(answer.outcome, ledger, observations, recipe.seed)
                outcome, told = auditor(outcome, answer.frozen)
                # of certified answers alone, which published methods never give
                missing = outcome.missed is not None and bool(outcome.missed.any())
                affordable = budget - ledger.n_calls > self.config.certify_draws
                if not (missing and affordable and left):
                    break
                answer = fit.again(outcome.peaks)
        posterior = _posterior(outcome, observations, problem.prior, self.ladder.gate, recipe.seed)
        return SequentialFit(
            observations=observations,
            posterior=replace(posterior, rungs=_rungs(answer.rounds, posterior, told)),
            rounds=answer.rounds,
            frozen=answer.frozen,
            family=answer.outcome.family,
            prior=problem.prior,
            noise=problem.noise,
            simulator=problem.simulator,
            device=recipe.device,
        )

    def _search(self, auditor: Auditor) -> Callable[..., Search | Classic]:
        if self.method == "amis":
            return partial(Search, auditor=auditor)
        return partial(Classic, self.method)

    def _n_first(self, target: Target) -> int:
        """Return how many draws of the prior round 0 has: gradients lead on from few."""
        c = self.config
        scouts = self.method == "amis" and target.differentiable and c.goes_uphill(target)
        return c.n_scouts if scouts else c.n_per_round

    def _first(
        self, problem: Problem, recipe: Recipe, start: TrainedModel | None, n: int
    ) -> RoundZero:
        """Return round 0: what is simulated already, prior draws, or an amortized network."""
        look = self._look(problem, recipe.device)
        if start is not None:
            return RoundZero(network=start.network, look=look)
        made = problem.made()
        if made is not None:
            z, x = made["z"], made["x"]
            failed = np.zeros(len(z), bool)
        else:
            z, x, failed = self._prior_draws(problem, recipe, n if look is None else max(n // 2, 2))
        tensors = (torch.as_tensor(v, device=recipe.device) for v in (z, x, failed))
        return RoundZero(simulations=tuple(tensors), look=look)

    def _prior_draws(self, problem: Problem, recipe: Recipe, n: int) -> tuple:
        run = self.run
        campaign = run.campaign(problem, recipe.seed)
        with campaign.open(run.folder, n) as store:
            campaign.fill(store, n, run.max_failed)
            found = store.read(np.arange(n), ["z", "x", "state"])
        failed = found["state"] == FAILED
        return found["z"], np.where(failed[:, None, None], np.nan, found["x"]), failed

    def _look(self, problem: Problem, device: torch.device) -> Look | None:
        if self.modes is None:
            return None
        given = self.modes
        if callable(given):
            x = problem.conditions.x[0].numpy()
            given = given(x[0] if len(x) == 1 else x)
        if not isinstance(given, Mapping):
            given = np.atleast_2d(numbers("modes", given))
        look = Look.of(given, problem.prior, device)
        if len(look.points) != 1:
            raise ValueError(
                f"modes must hold places of one object, shape (M, {problem.prior.n_dim}), but are "
                f"of {len(look.points)}."
            )
        return look

    def _own_folder(self, problem: Problem, recipe: Recipe, first: RoundZero) -> Path | None:
        """Return a folder for this very fit: another object, or other options, get another."""
        if self.run.folder is None:
            return None
        options = {k: v for k, v in asdict(self.config).items() if k != "max_seconds"}
        described = {
            "prior": problem.prior.manifest(),
            "noise": problem.noise.fingerprint(),
            "method": self.method,
            "rounds": options,
            "train": asdict(recipe.train),
            "flow": asdict(recipe.flow),
            "featurizer": asdict(recipe.featurizer),
            "custom": repr(recipe.custom),
            "seed": recipe.seed,
        }
        c = problem.conditions
        tensors = [c.x, c.x_err, c.mask, *c.arguments().values()]
        tensors += () if first.look is None else (first.look.points, first.look.sketch)
        tensors += first.simulations or ()
        network = {} if first.network is None else first.network.state_dict()
        custom = {} if recipe.custom is None else recipe.custom.state_dict()
        contents = map(content, [*tensors, *network.values(), *custom.values()])
        return self.run.folder / f"sequential-{fingerprint(described, contents)}"


def _checked(outcome: Outcome, ledger: Ledger, observations: Observations, seed: int) -> Outcome:
    """Return the outcome with p-values of the data from the simulations of the fit."""
    if outcome.rung == AMORTIZED:
        return outcome
    if outcome.status.from_chains:  # the ledger saw none of their simulations
        return checked(ledger.target, outcome, _key(observations).to(outcome.pool.z.device), seed)
    exact = ledger.target.noise.exact_p_value
    tails = ledger.tails(outcome.pool.z[0])[None]
    return with_tails(outcome, averaged(tails, outcome.summary.weights, exact=exact))


def _posterior(
    outcome: Outcome, observations: Observations, prior: Prior, gate: Gate, seed: int
) -> Posterior:
    device = outcome.pool.z.device
    objects = verdict.Objects(
        ids=observations.ids,
        keys=_key(observations).to(device),
        ood=torch.zeros(1, dtype=torch.bool, device=device),
        p_value=torch.full((1,), torch.nan, dtype=torch.float64, device=device),
        n_points=observations.n_points,
        n_masked=observations.n_masked,
        n_duplicates=observations.n_duplicates,
        refusals=np.where(observations.n_points > 0, "", f"{verdict.BAD_INPUT}: no valid point."),
        hashes=observations.hashes,
    )
    request = verdict.Request(prior, None, gate, seed)
    if outcome.rung == AMORTIZED:
        pool = outcome.pool
        return verdict.amortized(pool, pool.z, objects, request, "no likelihood was given")[0]
    return verdict.corrected([outcome], objects, request)[0]


def _rungs(
    rounds: Rounds, posterior: Posterior, audit: RungReport | None
) -> tuple[RungReport, ...]:
    """Return one rung for each round; the last one carries the verdict and why there is no more."""
    rungs = [
        RungReport(
            r.phase, r.n_sims, r.ess, r.efficiency, r.k_hat, False, r.reason, n_calls=r.n_sims,
            n_gradients=r.n_gradients,
        )
        for r in rounds.rows
    ]  # fmt: skip
    told = [posterior.rungs[-1].reason, rungs[-1].reason, rounds.reason]
    last = replace(rungs[-1], passed=posterior.certified)
    if audit is not None:
        last = replace(last, audit=audit.audit, n_apart=audit.n_apart)
        told.insert(0, audit.reason if not posterior.certified else "")
    reason = " ".join(words for words in told if words)
    return (*rungs[:-1], replace(last, reason=reason))


def _key(observations: Observations) -> Tensor:
    return torch.as_tensor(observations.keys[:1])
