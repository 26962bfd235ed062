"""Truths: whether a network misses places of a problem, by simulated objects of known truth.

The truth of a simulated object is an exact draw of its posterior. Among the n effective draws of a
right answer it has the largest weight once in n times, not more.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.stats import poisson
from torch import Tensor

from nbi_plus import launch
from nbi_plus.infer.posterior.certificate import weigh
from nbi_plus.infer.posterior.outcome import Pool
from nbi_plus.infer.proposals.base import FlowProposal
from nbi_plus.infer.proposals.circles import circular_columns
from nbi_plus.infer.weights.summary import Gate, Grade, gate_of
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.problem.random import generator, keyed_normal, keyed_uniform
from nbi_plus.problem.setup import Problem
from nbi_plus.problem.target import Target

_LOG = logging.getLogger("nbi_plus")

N_OBJECTS = 200
_N_DRAWS = 2048
_N_FIRST = 8  # objects whose answers are timed
_SHARE = 0.1  # of the time of the training that the test may take
_FAILED = 0.01
_ENOUGH = 30
_STAGE = "truth test"


@dataclass(frozen=True)
class TruthTest:
    """What the truths of simulated objects say of certified answers.

    Attributes
    ----------
    n_certified : int
        Objects that the network's draws alone certify.
    n_above : int
        Those whose truth has a larger weight than every draw.
    expected : float
        How many these are on average where answers are right: the sum of 1 / ess.
    p_value : float
        Probability of so many or more, by Poisson's law.
    """

    n_certified: int
    n_above: int
    expected: float
    p_value: float

    @property
    def failed(self) -> bool:
        """Whether this problem has places that the network does not propose."""
        return self.p_value < _FAILED

    @property
    def doubts(self) -> bool | None:
        """Whether answers must be doubted; None where too few were asked for silence to count."""
        return True if self.failed else None if self.n_certified < _ENOUGH else False

    def __str__(self) -> str:
        said = {True: "failed", False: "passed", None: "of too few"}[self.doubts]
        return (
            f"truth test {said}: {self.n_above} of {self.n_certified} truths outweigh every draw "
            f"of their certified answers, {self.expected:.2g} expected (p = {self.p_value:.2g})"
        )


@dataclass(frozen=True)
class TruthTrial:
    """How a network is tried.

    Attributes
    ----------
    problem : Problem
        With a simulator.
    network : PosteriorNetwork
    share, width : float
        Of the defensive part of its proposal.
    gate : Gate
    device : torch.device
    seed : int
    """

    problem: Problem
    network: PosteriorNetwork
    share: float
    width: float
    gate: Gate
    device: torch.device
    seed: int

    def run(self, n: int, seconds: float = math.inf) -> TruthTest | None:
        """Return the test of n objects, or None where it would take more than ``seconds``."""
        rows = torch.arange(n, device=self.device)
        at_once = max(1, launch.of(self.device).batch_draws // _N_DRAWS)
        began = time.perf_counter()
        found = [self._answers(rows[:_N_FIRST])]
        if (time.perf_counter() - began) / _N_FIRST * n > seconds:
            return None
        found += [self._answers(part) for part in rows[_N_FIRST:].split(at_once) if len(part)]
        passed, above, ess = (torch.cat(column) for column in zip(*found, strict=True))
        expected = float((1 / ess[passed]).sum())
        n_above = int((above & passed).sum())
        p_value = float(poisson.sf(n_above - 1, expected)) if n_above else 1.0
        return TruthTest(int(passed.sum()), n_above, expected, p_value)

    @cached_property
    def _flow(self) -> FlowProposal:
        network = self.network
        return FlowProposal(network.flow, network.exact_flow(), self.share, self.width)

    @torch.no_grad()
    def _answers(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return who is certified, whose truth outweighs every draw, and effective draws, (b,)."""
        problem, prior, every = self.problem, self.problem.prior, torch.arange(len(rows))
        index = every.to(self.device)
        truth = keyed_normal(self.seed, f"{_STAGE} theta", rows, (prior.n_dim,))[:, None]
        bank = problem.conditions
        owner = keyed_uniform(self.seed, f"{_STAGE} owner", rows, ()) * len(bank)
        blank = bank.select(owner.long().cpu()).to(self.device)
        curves = Target(prior, problem.simulator, problem.noise, blank).simulate(truth, index)
        theta = prior.complete(prior.from_latent(truth))[:, 0]
        rng = generator(self.seed, f"{_STAGE} noise {int(rows[0])}", self.device)
        data = problem.noise.observe(curves[:, 0], blank, theta, rng)
        target = Target(prior, problem.simulator, problem.noise, data)
        features = self.network.features(data)
        draws = self._flow.draw(features, rows, _N_DRAWS, self.seed, _STAGE)
        found = target.evaluate(draws.z, index)
        pool = Pool(index, draws.z, draws.log_q, found.log_prior, found.log_likelihood,
                    found.failed)  # fmt: skip
        cleaned, summary = weigh(pool, circular_columns(prior.periods), self.seed)
        passed = gate_of("network", self.gate).grade(summary) > Grade.F
        own = target.log_prob(truth, index) - self._flow.log_prob(truth, features).to(torch.float64)
        above = own[:, 0] > cleaned.log_weights.amax(1)
        return passed, above, summary.ess.clamp(min=1.0)


def truth_test(
    trial: TruthTrial, wanted: bool | int | None, has_likelihood: bool, seconds: float
) -> TruthTest | None:
    """Return the truth test of a fit, or None where there was none.

    Parameters
    ----------
    trial : TruthTrial
    wanted : bool or int, optional
        Whether, or with how many objects. None: where it costs at most a tenth of the training.
    has_likelihood : bool
        Without one nothing can be tested.
    seconds : float
        That the training took.
    """
    simulator = trial.problem.simulator
    can = has_likelihood and simulator is not None and not simulator.stochastic
    if wanted is False or (wanted is None and not can):
        return None
    if not can:
        raise ValueError(
            "truth_test must have a likelihood and a simulator that gives one answer, but one of "
            "them is missing. Fit with truth_test=None."
        )
    n = N_OBJECTS if wanted is None or wanted is True else int(wanted)
    if n < 1:
        raise ValueError(f"truth_test must be at least 1 object, but is {wanted!r}.")
    result = trial.run(n, _SHARE * seconds if wanted is None else math.inf)
    if result is not None and result.failed:
        _LOG.warning(
            "%s. This problem has places that the network does not propose. Train longer, give "
            "modes= to look at, or a PeakAudit with more starts; answers whose audit does not "
            "pass are flagged UNCALIBRATED.",
            result,
        )
    return result
