"""Steps: what every sequential fit does with its simulations, its budget and its table."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nbi_plus.infer.posterior.certificate import evidence_of
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.base import Blend, Conditioned, FlowProposal, LatentProposal
from nbi_plus.infer.proposals.cross_fit import Pair
from nbi_plus.infer.proposals.mixture import temper
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.sequential.config import RoundsConfig
from nbi_plus.infer.sequential.journal import Journal, Step
from nbi_plus.infer.sequential.ledger import Ledger, OutOfTime
from nbi_plus.infer.sequential.locator import Locator
from nbi_plus.infer.sequential.rounds import Round, Stop, describe
from nbi_plus.infer.weights.summary import summarise
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.learn.sources import TrainingRows
from nbi_plus.problem.target import Evaluation
from nbi_plus.progress import step

_LOG = logging.getLogger("nbi_plus")
_LEAST_DRAWS = 100  # a round of fewer teaches nothing
_NO_ROUNDS = ("peaks", "ends", "audit")  # searches, whose draws are the next round


class Halt(Exception):  # noqa: N818 - not an error
    """The fit must end here, with what it has."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.value)
        self.stop = stop


@dataclass
class Workspace:
    """What one sequential fit works with.

    Attributes
    ----------
    ledger : Ledger
        Evaluates draws.
    locator : Locator
        Trains networks.
    journal : Journal
        Remembers proposals and draws.
    config : RoundsConfig
    key : Tensor of int64, shape (1,)
        What the object's randomness is keyed by.
    seed : int
    reserve : int
        Draws that rounds must leave for the certificate.
    rows : list of Round
        The table so far.
    began : float
        Of `time.perf_counter`.
    """

    ledger: Ledger
    locator: Locator
    journal: Journal
    config: RoundsConfig
    key: Tensor
    seed: int
    reserve: int = 0
    rows: list[Round] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.config.max_seconds is not None:
            self.ledger.deadline = self.began + self.config.max_seconds

    # --- simulations -----------------------------------------------------------------------------

    def evaluate(self, z: Tensor, *, keep: bool = False) -> Evaluation:
        """Return the target at draws z (1, n, D), or halt when the time is over."""
        try:
            return self.ledger.evaluate(z, keep=keep)
        except OutOfTime:
            raise Halt(Stop.TIME) from None

    def simulations(self) -> tuple[TrainingRows, Tensor]:
        """Return everything kept, ready to train on, and which rows are finite, bool (S,)."""
        z, models = self.ledger.pool()
        usable = torch.isfinite(models).flatten(1).all(1)
        if not usable.any():
            raise Halt(Stop.NO_SUPPORT)
        prior = self.ledger.target.prior
        theta = prior.complete(prior.from_latent(z))
        owner = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        dtype = self.locator.recipe.dtype(float(models[usable].abs().max()))
        return TrainingRows(z, theta, models.to(dtype), owner), usable

    def search(self, make: Callable[[], Step]) -> Callable[[], Step]:
        """Return what makes a step by calls of the target, and halts when the time is over."""

        def watched() -> Step:
            try:
                return make()
            except OutOfTime:
                raise Halt(Stop.TIME) from None

        return watched

    def goes_uphill(self) -> bool:
        """Say whether ways uphill locate: as it was said at first, whatever the clock says now."""
        target = self.ledger.target
        nowhere = torch.zeros(1, 0, target.prior.n_dim, dtype=torch.float64, device=self.key.device)

        def way() -> Step:
            return Step((), nowhere, {"uphill": torch.tensor([self.config.goes_uphill(target)])})

        return bool(self.journal.step("way", way).state["uphill"])

    # --- proposals -------------------------------------------------------------------------------

    def proposal(self, network: PosteriorNetwork, share: float = 0.2) -> Conditioned:
        """Return a network's posterior of the object, a ``share`` of it from a wider base."""
        exact = network.exact_flow()
        features = network.features(self.ledger.target.data)
        return Conditioned(FlowProposal(exact, exact, share), features)

    def drawn(
        self, proposals: tuple[LatentProposal, ...], n: int, stage: str,
        network: PosteriorNetwork | None = None,
    ) -> Step:  # fmt: skip
        """Return a step of ``n`` draws, as many of each proposal, and the network's state."""
        shares = (1.0 / len(proposals),) * len(proposals)
        z = Blend(proposals, shares).draw(self.key, n, self.seed, stage)
        return Step(proposals, z, {} if network is None else network.state_dict())

    def located(self, pair: Pair, network: PosteriorNetwork | None, n: int, name: str) -> Step:
        """Return a step of a network, trained on simulations drawn by tempered weight from all."""
        c, (rows, usable) = self.config, self.simulations()
        tempered, _ = temper(pair.in_turns()[None], c.bootstrap_ess * c.n_per_round)
        weights = torch.where(usable, tempered[0], 0.0)
        if not weights.sum() > 0:
            weights = usable.double()  # nothing is more likely than anything else, yet
        n_rows = int(c.bootstrap * c.n_per_round)
        trained = self.locator.train(rows, weights, n_rows, network, name)
        return self.drawn((self.proposal(trained),), n, name, trained)

    # --- budget ----------------------------------------------------------------------------------

    def left(self, reserve: int = 0) -> int:
        """Return how many draws the budget still allows, some of them kept back."""
        return self.config.budget - self.ledger.n_calls - reserve

    def end_of_rounds(self) -> Stop | None:
        """Say why no further round can be afforded: the certificate's draws are kept back."""
        if sum(row.phase not in _NO_ROUNDS for row in self.rows) >= self.config.n_rounds:
            return Stop.ROUNDS
        return Stop.BUDGET if self.left(self.reserve) < _LEAST_DRAWS else None

    def affordable(self, wanted: int) -> int:
        """Return how many of the draws wanted for a round the budget allows."""
        return min(wanted, self.left(self.reserve))

    def last(self, wanted: int) -> int:
        """Return how many of the draws that are wanted whatever follows can be had, or halt."""
        n = min(wanted, self.left()) // 2 * 2
        if n < 2:
            raise Halt(Stop.BUDGET)
        return n

    # --- table -----------------------------------------------------------------------------------

    def note(
        self, phase: str, *, ess: float = math.nan, efficiency: float = math.nan,
        k_hat: float = math.nan, log_evidence: float = math.nan, log_evidence_err: float = math.nan,
        reason: str = "",
    ) -> None:  # fmt: skip
        """Add a row about what was asked for since the last; NaN: a figure does not exist."""
        n_total = self.ledger.n_calls
        n_sims = n_total - (self.rows[-1].n_total if self.rows else 0)
        seconds = time.perf_counter() - self.began
        n_gradients = self.ledger.n_gradients - sum(row.n_gradients for row in self.rows)
        row = Round(
            phase, n_sims, n_total, ess, efficiency, k_hat, log_evidence, log_evidence_err, seconds,
            reason, n_gradients,
        )  # fmt: skip
        self.rows.append(row)
        _LOG.info("%s", describe(row))
        step(n_sims, f"{phase}, ESS {ess:.0f}")

    def note_outcome(self, phase: str, outcome: Outcome) -> None:
        """Add a row about draws that are judged by themselves."""
        s = outcome.summary
        self.note(
            phase, ess=float(s.ess), efficiency=float(s.efficiency), k_hat=float(s.k_hat),
            log_evidence=float(s.log_evidence), log_evidence_err=float(s.log_evidence_err),
        )  # fmt: skip

    def note_pair(self, phase: str, pair: Pair, fresh: Stream | None, reason: str = "") -> None:
        """Add a row about pooled draws, and the evidence of what nothing was fitted to."""
        pooled, evidence = summarise(pair.log_weights), evidence_of(pair, fresh)
        found = {} if evidence is None else {
            "log_evidence": float(evidence.log_evidence),
            "log_evidence_err": float(evidence.log_evidence_err),
        }  # fmt: skip
        self.note(
            phase, ess=float(pooled.ess), efficiency=float(pair.efficiency()),
            k_hat=float(pooled.k_hat), reason=reason, **found,
        )  # fmt: skip
