"""Auditor: looks for places that the draws of one object miss, in full once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.infer.ladder.audit import is_cheap
from nbi_plus.infer.ladder.earlier import Earlier
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior.certificate import AMORTIZED
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.posterior.status import RungReport
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.samplers.peaks import PLACES, Peaks
from nbi_plus.infer.sequential.journal import Step
from nbi_plus.infer.sequential.summits import Summits
from nbi_plus.infer.weights.summary import Grade
from nbi_plus.problem.target import Target


@dataclass
class Auditor:
    """Audits of one object: the first one in full, later ones also from what it found.

    Attributes
    ----------
    target : Target
    ladder : Ladder
        Of its audit and its gate.
    key : Tensor of int64, shape (1,)
    seed : int
    known : Peaks or None
        What the last audit found.
    told : str
        What there is to say of that.
    n_spent : int
        Simulations of all audits, which no other figure counts.
    """

    target: Target
    ladder: Ladder
    key: Tensor
    seed: int
    known: Peaks | None = None
    told: str = ""
    n_spent: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether to look: of a black box only if it is cheap, or that costs more than the fit."""
        possible = self.target.differentiable or is_cheap(self.target)
        return self.ladder.audit is not None and possible

    def __call__(
        self, outcome: Outcome, proposal: LatentProposal
    ) -> tuple[Outcome, RungReport | None]:
        """Return an outcome that passed, or not as it misses something, and what was found."""
        if not self.is_wanted or outcome.rung == AMORTIZED:
            return outcome, None
        gate, audit = self.ladder.gate, self.ladder.audit
        accounts = Earlier.nothing(1, self.key.device).accounts(gate)
        context = RungContext(self.target, *accounts, gate, self.ladder.budget, self.seed)
        context.report.note(outcome)
        if self.known is None:
            audit = audit.of_one(self.target)
        looked = audit(replace(outcome, peaks=self.known), self.key, context, proposal=proposal)
        line = context.report.lines[0][-1]
        if bool(outcome.passed):
            self.known, self.told = looked.peaks, line.audit
            self.n_spent += line.n_apart
        return looked, replace(line, audit=self.told, n_apart=self.n_spent)

    def step(self, outcome: Outcome, proposal: LatentProposal) -> Step:
        """Return what an audit of the draws, if they passed, finds: a step without draws."""
        passed = replace(outcome, grade=torch.full_like(outcome.grade, Grade.A))
        looked, _ = self(passed, proposal)
        nothing = Step((), outcome.pool.z[:, :0], {}, "mixture")
        if looked.missed is None:
            return nothing
        found, there = looked.peaks, looked.peaks.found[0]
        state = {name: getattr(found, name)[:, there] for name in PLACES}
        state |= {"n_gradients": found.n_gradients, "missing": looked.missed}
        return nothing._replace(state=state, n_looked=self.n_spent)

    def recall(self, step: Step) -> Summits | None:
        """Go on from a step, made now or recorded; return the peaks if draws miss some of them."""
        if not step.state:
            return None
        found = dict(step.state)
        missing = bool(found.pop("missing").any())
        self.known, self.n_spent, self.told = Peaks(**found), step.n_looked, ""
        return Summits.of(self.known) if missing else None
