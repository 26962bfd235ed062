"""Amortized answers: the way from observations to posteriors, for a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.batched import join
from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.earlier import Earlier, can_be_tried_again, places_of
from nbi_plus.infer.ladder.escalation import (
    Answered,
    Group,
    escalate,
    in_order,
    joined_accounts,
    settled,
)
from nbi_plus.infer.ladder.hints import Hints, hints_for
from nbi_plus.infer.ladder.ladder import Ladder, NetworkProposal, reweight
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.accounts import Meter, ReportLog
from nbi_plus.infer.posterior.certificate import unweighted_pool
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.translated import Change, TranslatedFlow
from nbi_plus.infer.proposals.base import Conditioned, FlowProposal
from nbi_plus.learn.model import TrainedModel
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.simulator.simulator import BoundSimulator
from nbi_plus.problem.target import Target
from nbi_plus.problem.window import strangers

_SAME_GRID = 1e-6  # of its span: relative to its values, Julian dates would differ by weeks


@dataclass(frozen=True)
class Amortized:
    """A trained model, the problem it was trained for, and how to compute.

    Attributes
    ----------
    prior, noise : Prior, Noise
        The noise is bound.
    simulator : BoundSimulator or None
        None, or a stochastic one: answers stay uncorrected.
    model : TrainedModel
    ladder : Ladder
    device : torch.device
    n_jobs, client
        How a numpy simulator is run.
    earlier : Earlier or None
        What is known of the objects that are asked for: places to look at, earlier attempts.
    change : Change or None
        From the prior of the training, where ``prior`` is another one.
    doubted : bool or None
        Whether a test of the network failed: its answers are looked at twice as hard. Where it
        passed they are looked at quickly; None where there was none.
    blind : bool
        Whether looking was tried on truths that the network missed, and did not find them either.
    """

    prior: Prior
    noise: Noise
    simulator: BoundSimulator | None
    model: TrainedModel
    ladder: Ladder
    device: torch.device
    n_jobs: int | None = None
    client: object | None = None
    earlier: Earlier | None = None
    change: Change | None = None
    doubted: bool | None = None
    blind: bool = False

    def looking_at(self, modes: Hints | None, objects: Observations) -> Amortized:
        """Return the same with places to look at for these objects."""
        if modes is None:
            return self
        weighs = not self._why_not(objects)
        with preserved_random_state():
            target_of = (lambda rows: self._target(self._batch(objects[rows]))) if weighs else None
            earlier = hints_for(modes, objects, self.prior, self.device, target_of)
        return replace(self, earlier=earlier)

    def posteriors(
        self, observations: Observations, n_samples: int, keep: int | None, seed: int
    ) -> Posteriors:
        """Return posteriors of many objects, in batches of bounded memory."""
        if not n_samples >= 1:
            raise ValueError(f"n_samples must be at least 1, but is {n_samples}.")
        if not len(observations):
            raise ValueError("observations must hold at least one object, but hold none.")
        if keep is not None and not keep >= 0:
            raise ValueError(f"keep must be None or at least 0, but is {keep}.")
        self.check_grid(observations)
        ladder = replace(self.ladder, n_draws=max(n_samples, self.ladder.n_draws))
        if ladder.audit is not None and self.doubted:
            ladder = replace(ladder, audit=ladder.audit.doubled())
        doubt = verdict.Doubt.of(bool(self.doubted), self.blind)
        request = verdict.Request(self.prior, keep, ladder.gate, seed, doubt)
        reason = self._why_not(observations)
        weighted = not reason
        if not weighted and self.change is not None:
            raise ValueError(
                f"predict with another prior must weigh its draws, but {reason}. Use "
                "posterior.reweight(prior)."
            )
        proposal = self.proposal(ladder.defensive_share if weighted else 0.0)
        # without weights a draw more makes no answer better than was asked for
        n_draws = ladder.n_draws if weighted else max(n_samples, keep or 0)
        step = max(1, launch.of(self.device).batch_draws // n_draws)
        by_length = np.argsort(observations.lengths, kind="stable")  # so that little is padded
        pieces = (by_length[i : i + step] for i in range(0, len(by_length), step))
        with preserved_random_state():
            if weighted:
                found = self._weighted(observations, pieces, proposal, ladder, request)
                return in_order(list(found))
            parts = []
            for rows in pieces:
                objects, _, features = self._see(observations[rows])
                own = Conditioned(proposal, features)
                z = own.draw(objects.keys, n_draws, seed, "predict")
                pool = unweighted_pool(own, z[:, :keep])
                answer = verdict.amortized(pool, z, objects, request, reason)
                parts.append(Answered(answer, rows))
            return in_order(parts)

    def retry(self, posteriors: Posteriors, observations: Observations, seed: int) -> Posteriors:
        """Return the posteriors with those that no rung certified tried once more."""
        if posteriors.draws is None:
            raise ValueError(
                "posteriors must have kept draws to be tried again, but kept summaries only "
                "(keep=0). Predict with keep=None."
            )
        waiting = np.flatnonzero(can_be_tried_again(posteriors))
        if not len(waiting):
            return posteriors
        old = posteriors[waiting]
        objects = observations[places_of(old, observations)]
        keys = torch.as_tensor(objects.keys, device=self.device)
        family = self.ladder.refine.family(self.prior.n_dim)
        with preserved_random_state():
            earlier = Earlier.of(old, self.prior, family, keys, seed)
        again = replace(self, earlier=earlier).posteriors(objects, self.ladder.n_draws, None, seed)
        settled_before = np.setdiff1d(np.arange(len(posteriors)), waiting)
        kept = Answered(posteriors[settled_before], settled_before)
        return in_order([kept, Answered(again, waiting)])

    def _weighted(
        self, observations: Observations, pieces: Iterable[NDArray[np.int64]],
        proposal: NetworkProposal, ladder: Ladder, request: verdict.Request,
    ) -> Iterator[Answered]:  # fmt: skip
        """Yield answers; those objects that escalate wait until enough are there to go together."""
        at_once = launch.of(self.device).escalated_objects
        waiting: list[tuple[Group, Outcome]] = []
        for rows, earlier in self._apart(pieces):
            objects, batch, features = self._see(observations[rows])
            context = self._context(batch, earlier.accounts(ladder.gate), ladder, request)
            group = Group(objects, rows, features, context)
            first = reweight(proposal, features, objects.keys, context, ladder, earlier.look)
            for outcome in first:
                if ladder.audit is not None:
                    index = outcome.pool.index
                    quick = self.doubted is not None and not self.doubted
                    outcome = ladder.audit(outcome, objects.keys[index], context, quick=quick)
                # no rung can make up for data that cannot be used
                usable = torch.as_tensor(objects.usable, device=self.device)
                goes_on = ladder.goes_on(outcome) & usable[outcome.pool.index]
                if not goes_on.all():
                    yield settled(outcome.select((~goes_on).nonzero()[:, 0]), group, request)
                if goes_on.any():
                    waiting.append((group, outcome.select(goes_on.nonzero()[:, 0])))
            if sum(len(o.grade) for _, o in waiting) >= at_once:
                yield from self._escalated(observations, waiting, proposal, ladder, request)
                waiting = []
        if waiting:
            yield from self._escalated(observations, waiting, proposal, ladder, request)

    def _apart(
        self, pieces: Iterable[NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int64], Earlier]]:
        """Yield the pieces and what is known of them; who has a place to look at goes apart."""
        for rows in pieces:
            if self.earlier is None:
                yield rows, Earlier.nothing(len(rows), self.device)
                continue
            has = self.earlier.has_look[torch.as_tensor(rows, device=self.device)].cpu().numpy()
            for some in (rows[has], rows[~has]):
                if len(some):
                    yield some, self.earlier.select(some)

    def _escalated(
        self, observations: Observations, waiting: list[tuple[Group, Outcome]],
        proposal: NetworkProposal, ladder: Ladder, request: verdict.Request,
    ) -> Iterator[Answered]:  # fmt: skip
        """Yield answers for objects that waited, as one group; those of one rung as one batch."""
        waiting = sorted(waiting, key=lambda own: own[1].rung)
        indices = [outcome.pool.index for _, outcome in waiting]
        rows = np.concatenate([p.positions[i.cpu().numpy()]
                               for (p, _), i in zip(waiting, indices, strict=True)])  # fmt: skip
        features = torch.cat([p.features[i] for (p, _), i in zip(waiting, indices, strict=True)])
        objects, batch, _ = self._see(observations[rows], features)
        context = self._context(batch, joined_accounts(waiting), ladder, request)
        group = Group(objects, rows, features, context)
        outcomes, first = [], 0
        for _, same in groupby((outcome for _, outcome in waiting), key=lambda o: o.rung):
            outcome = join(list(same))
            n = len(outcome.grade)
            index = torch.arange(first, first + n, device=features.device)
            outcomes.append(replace(outcome, pool=replace(outcome.pool, index=index)))
            first += n
        look = None if self.earlier is None else self.earlier.look_of(rows)
        yield from escalate(group, outcomes, proposal, look, ladder, request)

    def _batch(self, objects: Observations) -> Batch:
        return objects.batch().to(self.device)

    def _target(self, batch: Batch) -> Target:
        return Target(self.prior, self.simulator, self.noise, batch, self.n_jobs, self.client)

    def _context(
        self, batch: Batch, accounts: tuple[Meter, ReportLog], ladder: Ladder,
        request: verdict.Request,
    ) -> RungContext:  # fmt: skip
        attempt = 0 if self.earlier is None else self.earlier.attempt
        return RungContext(
            self._target(batch),
            *accounts,
            ladder.gate,
            ladder.budget,
            request.seed,
            attempt,
            ladder.n_draws,
        )

    def posterior(self, one: Observations, n_samples: int, seed: int) -> Posterior:
        """Return the posterior of one object, which is refused where it is of another season."""
        for reason in self._strangers(one):
            if reason:
                raise ValueError(reason)
        return self.posteriors(one, n_samples, None, seed)[0]

    def sample(self, one: Observations, n_samples: int, seed: int) -> NDArray[np.float64]:
        """Return draws (n, D) of the network alone, for one object."""
        self.check_grid(one)
        _, features = self.features(one)
        keys = torch.as_tensor(one.keys, device=features.device)
        z = self.proposal(0.0).draw(features, keys, n_samples, seed, "sample").z
        return self.prior.from_latent(z)[0].cpu().numpy()

    def log_prob(
        self, theta: NDArray[np.float64], observations: Observations
    ) -> NDArray[np.float64]:
        """Return log q(theta | x), shape (n,), of theta (n, D) and one object, or n objects."""
        self.check_grid(observations)
        if len(observations) not in (1, len(theta)):
            raise ValueError(
                f"x must hold one object, or one for each of {len(theta)} theta, but holds "
                f"{len(observations)}."
            )
        features = self.features(observations)[1].expand(len(theta), -1)
        z = torch.as_tensor(self.prior.to_latent(theta), device=features.device)
        latent = self.proposal(0.0).log_prob(z[:, None], features)[:, 0]
        change = self.prior.log_prob(theta) - self.prior.log_prob_latent(z).cpu().numpy()
        return latent.cpu().numpy() + change

    def proposal(self, defensive_share: float) -> NetworkProposal:
        """Return the network's flow as a proposal."""
        network = self.model.network
        own = FlowProposal(
            network.flow, network.exact_flow(), defensive_share, self.ladder.defensive_width
        )
        return own if self.change is None else TranslatedFlow(own, self.change)

    def features(self, observations: Observations) -> tuple[Batch, Tensor]:
        """Return a batch on the device, and its features (n, F)."""
        batch = self._batch(observations)
        return batch, self.model.network.features(batch)

    def check_grid(self, observations: Observations) -> None:
        """Refuse data of another shape or grid than the network was trained for."""
        shape = (observations.n_channels, int(observations.lengths.max(initial=0)))
        trained = self.model.conditions
        own_points = any(v.ndim == 2 for v in trained.coords.values())
        if shape[0] != self.model.shape[0] or not (own_points or shape == self.model.shape):
            raise ValueError(
                f"x must have shape {self.model.shape} (C, L) as in training, but has {shape}. "
                "Fit again for these data."
            )
        if trained.x_err is not None and observations.errors is None:
            raise ValueError(
                "x_err must be given, for the network was trained with errors, but is missing."
            )
        missing = sorted(set(trained.scalars) - set(observations.scalars))
        if missing:
            raise ValueError(
                f"{missing[0]} must be given for each object, as in training, but the observations "
                f"have the scalars {tuple(observations.scalars)}."
            )
        for name, values in trained.coords.items():
            if name not in observations.points:
                raise ValueError(
                    f"{name} must be given, as in training, but the observations have "
                    f"{tuple(observations.points)}."
                )
            if values.ndim != 1:
                continue
            if not observations.shared_grid:
                raise ValueError(
                    f"{name} must be given as one grid of shape ({shape[1]},), as in training."
                )
            came, grid = observations.points[name], values.numpy()
            if not np.allclose(came, grid, rtol=0.0, atol=_SAME_GRID * np.ptp(grid)):
                raise ValueError(
                    f"{name} must be the grid of the training, {grid.min():.10g} to "
                    f"{grid.max():.10g}, but differs from it: {came.min():.10g} to "
                    f"{came.max():.10g}. Fit again for these data."
                )

    def _why_not(self, observations: Observations) -> str:
        """Return why draws cannot be weighed; nothing where they can."""
        if self.simulator is None:
            return "no simulator was given"
        if self.simulator.stochastic:
            return "the simulator gives another answer each time"
        known = self.noise.has_likelihood(observations.errors is not None)
        return "" if known else "no likelihood was given"

    def _strangers(self, observations: Observations) -> NDArray[np.str_]:
        model = self.model
        if model.window is None:
            return np.full(len(observations), "")
        return strangers(observations, model.window, self.simulator, self.prior, model.conditions)

    def _refusals(self, observations: Observations) -> NDArray[np.str_]:
        """Return why the data of each object (N,) cannot be used, "" where they can."""
        away = self._strangers(observations)
        reasons = np.where(away == "", "", np.char.add(f"{verdict.BAD_INPUT}: ", away))
        return np.where(observations.n_points > 0, reasons, f"{verdict.BAD_INPUT}: no valid point.")

    def _see(
        self, observations: Observations, features: Tensor | None = None
    ) -> tuple[verdict.Objects, Batch, Tensor]:
        """Return what is known of some objects, their data, and their features if not given."""
        batch = self._batch(observations)
        features = self.model.network.features(batch) if features is None else features
        reference = self.model.reference
        objects = verdict.Objects(
            ids=observations.ids,
            keys=torch.as_tensor(observations.keys, device=features.device),
            ood=reference.flag(features, batch.coverage),
            p_value=reference.p_value(features),
            n_masked=observations.n_masked,
            n_duplicates=observations.n_duplicates,
            refusals=self._refusals(observations),
            hashes=observations.hashes,
        )
        return objects, batch, features
