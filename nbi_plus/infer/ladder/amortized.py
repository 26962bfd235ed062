"""Amortized answers: the way from observations to posteriors, for a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.arguments import of_kind, whole
from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.infer.ladder.audit import AUDIT_TIMES
from nbi_plus.infer.ladder.earlier import Earlier, Tried, can_be_tried_again, places_of
from nbi_plus.infer.ladder.escalation import (
    Answered,
    Group,
    counted,
    escalate,
    in_order,
    settled,
)
from nbi_plus.infer.ladder.hints import Hints, hints_for
from nbi_plus.infer.ladder.ladder import Ladder, NetworkProposal, reweight
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.ladder.waiting import MOST_BYTES, Begun, Gathered, Waiting
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.accounts import Meter, ReportLog
from nbi_plus.infer.posterior.certificate import unweighted_pool
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.translated import Change, TranslatedFlow
from nbi_plus.infer.proposals.base import Conditioned
from nbi_plus.infer.proposals.several import disagreeing, proposal_of
from nbi_plus.learn.model import Trained
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.simulator.simulator import BoundSimulator
from nbi_plus.problem.target import Target
from nbi_plus.problem.window import strangers
from nbi_plus.progress import progress as shown


@dataclass(frozen=True)
class Asked:
    """How answers are wanted: the ladder with as many draws, and what is asked of verdicts.

    ``n_unweighted`` draws are made where nothing weighs them.
    """

    ladder: Ladder
    request: verdict.Request
    n_unweighted: int


@dataclass(frozen=True)
class Amortized:
    """A trained model, the problem it was trained for, and how to compute.

    Attributes
    ----------
    prior, noise : Prior, Noise
        The noise is bound.
    simulator : BoundSimulator or None
        None, or a stochastic one: answers stay uncorrected, unless a likelihood was learned.
    model : Trained
    ladder : Ladder
    device : torch.device
    n_jobs, client, progress
        How a numpy simulator is run; what is told meanwhile.
    earlier : Earlier or None
        What is known of the objects that are asked for: places to look at, earlier attempts.
    change : Change or None
        From the prior of the training, where ``prior`` is another one.
    doubted : bool or None
        Whether a test of the network failed. Where it passed answers are looked at quickly; None
        where there was none.
    blind : bool
        Whether looking was tried on truths that the network missed, and did not find them either.
    """

    prior: Prior
    noise: Noise
    simulator: BoundSimulator | None
    model: Trained
    ladder: Ladder
    device: torch.device
    n_jobs: int | None = None
    client: object | None = None
    earlier: Earlier | None = None
    change: Change | None = None
    doubted: bool | None = None
    blind: bool = False
    progress: bool | None = None

    def looking_at(self, modes: Hints | None, objects: Observations) -> Amortized:
        """Return the same with places to look at for these objects."""
        if modes is None:
            return self
        weighs = not self.why_not(objects)
        with preserved_random_state():
            uphill = (lambda rows: self.target_of(self._batch(objects[rows]))) if weighs else None
            earlier = hints_for(modes, objects, self.prior, self.device, uphill)
        return replace(self, earlier=earlier)

    def posteriors(
        self, observations: Observations, n_samples: int, keep: int | None, seed: int
    ) -> Posteriors:
        """Return posteriors of many objects, in batches of bounded memory."""
        asked, n = self.asked(n_samples, keep, seed), len(observations)
        with preserved_random_state(), shown("answering", n, self.progress, unit="objects") as work:
            return in_order(counted(self._answers(observations, asked), work), n)

    def begin(self, observations: Observations, asked: Asked) -> Begun:
        """Return the answers that the network's draws settle, and the objects that climb later.

        Where places are known to look at, and where more wait than the memory should hold, objects
        climb at once.
        """
        with preserved_random_state():
            if self.earlier is not None or self.why_not(observations):
                return Begun(tuple(self._answers(observations, asked)))
            waiting: list[Waiting] = []
            answered = tuple(self._first(observations, asked, waiting, MOST_BYTES))
            return Begun(answered, tuple(waiting))

    def climb(self, waiting: Sequence[Waiting], asked: Asked) -> list[Answered]:
        """Return the answers for objects that waited, after the whole ladder."""
        with preserved_random_state():
            return list(self._escalated(waiting, asked))

    def asked(self, n_samples: int, keep: int | None, seed: int, keep_unfinished: int = 0) -> Asked:
        """Return how answers are wanted, for `begin` and `climb`."""
        whole("n_samples", n_samples)
        whole("keep", 0 if keep is None else keep, 0)
        ladder = replace(self.ladder, n_draws=max(n_samples, self.ladder.n_draws))
        doubt = verdict.Doubt.of(bool(self.doubted), self.blind)
        learned = self.noise.learned_at
        request = verdict.Request(
            self.prior, keep, ladder.gate, seed, doubt, keep_unfinished, learned
        )
        return Asked(ladder, request, max(n_samples, keep or 0))

    def retry(self, posteriors: Posteriors, observations: Observations, seed: int) -> Posteriors:
        """Return the posteriors with those that no rung certified tried once more."""
        of_kind("posteriors", posteriors, Posteriors, "Give what predict_many returned.")
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
        costs = np.stack([old.n_simulated, old.n_gradients])
        again = self.after(list(old), costs, objects, seed)
        again = again.posteriors(objects, self.ladder.n_draws, None, seed)
        settled_before = np.setdiff1d(np.arange(len(posteriors)), waiting)
        kept = Answered(posteriors[settled_before], settled_before)
        return in_order([kept, Answered(again, waiting)], len(posteriors))

    def after(
        self, tried: Sequence[Tried], costs: NDArray[np.int64], objects: Observations, seed: int
    ) -> Amortized:
        """Return the same, knowing what was tried with these objects, as `Earlier.of` takes it."""
        keys = torch.as_tensor(objects.keys, device=self.device)
        family = self.ladder.refine.family(self.prior.n_dim)
        with preserved_random_state():
            earlier = Earlier.of(tried, costs, self.prior, family, keys, seed)
        return replace(self, earlier=earlier)

    def _answers(self, observations: Observations, asked: Asked) -> Iterator[Answered]:
        """Yield the answers for all objects."""
        reason = self.why_not(observations)
        if not reason:
            waiting: list[Waiting] = []
            yield from self._first(observations, asked, waiting, 0)
            if waiting:
                yield from self._escalated(waiting, asked)
            return
        if self.change is not None:
            raise ValueError(
                f"predict with another prior must weigh its draws, but {reason}. Use "
                "posterior.reweight(prior)."
            )
        # without weights a draw more makes no answer better than was asked for
        for rows in self._pieces(observations, asked.n_unweighted):
            yield self._unweighted(observations[rows], rows, asked, reason)

    def _pieces(self, observations: Observations, n_draws: int) -> Iterator[NDArray[np.int64]]:
        """Yield which objects go together, all once; those of like lengths, so little is padded."""
        if not len(observations):
            raise ValueError("observations must hold at least one object, but hold none.")
        self.model.check_grid(observations)
        step = max(1, launch.of(self.device).batch_draws // n_draws)
        by_length = np.argsort(observations.lengths, kind="stable")
        for i in range(0, len(by_length), step):
            yield by_length[i : i + step]

    def _unweighted(
        self, observations: Observations, rows: NDArray[np.int64], asked: Asked, reason: str
    ) -> Answered:
        """Return answers of the network alone, with the reason why nothing weighs its draws."""
        request = asked.request
        objects, _, features = self.see(observations)
        own = Conditioned(self.proposal(0.0), features)
        z = own.draw(objects.keys, asked.n_unweighted, request.seed, "predict")
        pool = unweighted_pool(own, z[:, : request.keep])
        return Answered(verdict.amortized(pool, z, objects, request, reason), rows)

    def _first(
        self, observations: Observations, asked: Asked, waiting: list[Waiting], most_bytes: int
    ) -> Iterator[Answered]:
        """Yield the answers that the network's draws settle; the others are left waiting.

        Once these are enough to go together, and take more memory than ``most_bytes``, they climb.
        """
        ladder, request = asked.ladder, asked.request
        at_once = launch.of(self.device).escalated_objects
        proposal = self.proposal(ladder.defensive_share)
        for rows, earlier in self._apart(self._pieces(observations, ladder.n_draws)):
            objects, batch, features = self.see(observations[rows])
            context = self._context(batch, earlier.accounts(ladder.gate), asked)
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
                    left = outcome.select(goes_on.nonzero()[:, 0])
                    waiting.append(Waiting.of(group, left, observations))
            enough = sum(map(len, waiting)) >= at_once
            if enough and sum(own.n_bytes for own in waiting) > most_bytes:
                yield from self._escalated(waiting, asked)
                waiting.clear()

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

    def _escalated(self, waiting: Sequence[Waiting], asked: Asked) -> Iterator[Answered]:
        """Yield answers for objects that waited, as one group; those of one rung as one batch."""
        some = Gathered.of(waiting, asked.ladder.gate)
        objects, batch, _ = self.see(some.observations, some.features)
        context = self._context(batch, some.accounts, asked)
        group = Group(objects, some.positions, some.features, context)
        look = None if self.earlier is None else self.earlier.look_of(some.positions)
        proposal = self.proposal(asked.ladder.defensive_share)
        yield from escalate(group, some.outcomes, proposal, look, asked.ladder, asked.request)

    def _batch(self, objects: Observations) -> Batch:
        return objects.batch().to(self.device)

    def target_of(self, batch: Batch) -> Target:
        """Return what is believed of some objects."""
        return Target(self.prior, self.simulator, self.noise, batch, self.n_jobs, self.client)

    def _context(
        self, batch: Batch, accounts: tuple[Meter, ReportLog], asked: Asked
    ) -> RungContext:
        ladder = asked.ladder
        attempt = 0 if self.earlier is None else self.earlier.attempt
        return RungContext(
            self.target_of(batch),
            *accounts,
            ladder.gate,
            ladder.budget,
            asked.request.seed,
            attempt,
            ladder.n_draws,
            kept_back=0.0 if ladder.audit is None else AUDIT_TIMES,
        )

    def posterior(self, one: Observations, n_samples: int, seed: int) -> Posterior:
        """Return the posterior of one object, which is refused where it is of another season."""
        for reason in self._strangers(one):
            if reason:
                raise ValueError(reason)
        return self.posteriors(one, n_samples, None, seed)[0]

    def sample(self, one: Observations, n_samples: int, seed: int) -> NDArray[np.float64]:
        """Return draws (n, D) of the network alone, for one object."""
        whole("n_samples", n_samples)
        self.model.check_grid(one)
        features = self.sound_features(self._batch(one), one.lengths)
        keys = torch.as_tensor(one.keys, device=features.device)
        z = self.proposal(0.0).draw(features, keys, n_samples, seed, "sample").z
        return self.prior.from_latent(z)[0].cpu().numpy()

    def log_prob(
        self, theta: NDArray[np.float64], observations: Observations
    ) -> NDArray[np.float64]:
        """Return log q(theta | x), shape (n,), of theta (n, D) and one object, or n objects."""
        self.model.check_grid(observations)
        if len(observations) not in (1, len(theta)):
            raise ValueError(
                f"x must hold one object, or one for each of {len(theta)} theta, but holds "
                f"{len(observations)}."
            )
        batch = self._batch(observations)
        features = self.sound_features(batch, observations.lengths).expand(len(theta), -1)
        z = torch.as_tensor(self.prior.to_latent(theta), device=features.device)
        latent = self.proposal(0.0).log_prob(z[:, None], features)[:, 0]
        change = self.prior.log_prob(theta) - self.prior.log_prob_latent(z).cpu().numpy()
        return latent.cpu().numpy() + change

    def proposal(self, defensive_share: float) -> NetworkProposal:
        """Return the network's flow as a proposal, or the mixture of those of all networks."""
        own = proposal_of(self.model, defensive_share, self.ladder.defensive_width)
        return own if self.change is None else TranslatedFlow(own, self.change)

    def features(self, observations: Observations) -> tuple[Batch, Tensor]:
        """Return a batch on the device, and its features (n, F)."""
        batch = self._batch(observations)
        return batch, self.model.features(batch, observations.lengths)

    def sound_features(self, batch: Batch, lengths: NDArray[np.int64]) -> Tensor:
        """Return the features (n, F) of a network that can be believed without weights."""
        if self._broken:
            raise ValueError(f"The network must be finite, but {self._broken}")
        return self.model.features(batch, lengths)

    def why_not(self, observations: Observations) -> str:
        """Return why draws cannot be weighed; nothing where they can."""
        if self.simulator is None and self.noise.reads_model:
            return "no simulator was given"
        if self.noise.reads_model and self.simulator.stochastic:
            return "the simulator gives another answer each time"
        known = self.noise.has_likelihood(observations.errors is not None)
        return "" if known else "no likelihood was given"

    def _strangers(self, observations: Observations) -> NDArray[np.str_]:
        model = self.model
        if model.window is None:
            return np.full(len(observations), "")
        return strangers(observations, model.window, self.simulator, self.prior, model.conditions)

    @cached_property
    def _broken(self) -> str:
        """What is wrong with the network's numbers; nothing where nothing is."""
        n_bad = sum(network.n_not_finite for network in self.model.networks)
        told = f"{n_bad} of the network's numbers are NaN or infinite. Fit it again."
        return told if n_bad else ""

    def _refusals(self, observations: Observations, features: Tensor) -> NDArray[np.str_]:
        """Return why each object (N,) cannot be answered, "" where it can."""
        away = self._strangers(observations)
        reasons = np.where(away == "", "", np.char.add(f"{verdict.BAD_INPUT}: ", away))
        good = torch.isfinite(features).all(1).cpu().numpy() & (not self._broken)
        told = f"{verdict.BAD_NETWORK}: {self._broken or 'its features of the data overflow.'}"
        reasons = np.where((reasons != "") | good, reasons, told)
        return np.where(observations.n_points > 0, reasons, f"{verdict.BAD_INPUT}: no valid point.")

    def see(
        self, observations: Observations, features: Tensor | None = None
    ) -> tuple[verdict.Objects, Batch, Tensor]:
        """Return what is known of some objects, their data, and their features if not given."""
        batch = self._batch(observations)
        if features is None:
            features = self.model.features(batch, observations.lengths)
        keys = torch.as_tensor(observations.keys, device=features.device)
        ood, p_value = self.model.unlike(features, batch.coverage)
        objects = verdict.Objects(
            ids=observations.ids,
            keys=keys,
            ood=ood,
            p_value=p_value,
            n_points=observations.n_points,
            n_masked=observations.n_masked,
            n_duplicates=observations.n_duplicates,
            refusals=self._refusals(observations, features),
            hashes=observations.hashes,
            strange=None if self.noise.learned_at is None else self.noise.strange(batch),
            apart=disagreeing(self.model, features, keys),
        )
        return objects, batch, features
