"""Answers of every kind that the package gives, made in milliseconds: nothing is trained."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.infer.posterior import verdict
from nbi_plus.infer.posterior.accounts import Cost, Meter, ReportLog
from nbi_plus.infer.posterior.certificate import unweighted_pool, weigh
from nbi_plus.infer.posterior.outcome import Chains, Outcome, Pool
from nbi_plus.infer.proposals.base import PriorProposal
from nbi_plus.infer.weights.clean import CleanWeights
from nbi_plus.infer.weights.summary import Gate, Grade, gate_of, summarise

PRIOR = nbi.Prior({"a": norm(1.0, 2.0), "b": uniform(-4.0, 8.0)}, units={"a": "day"})
OTHER = nbi.Prior({"a": norm(1.1, 1.9), "b": uniform(-4.0, 8.0)}, units={"a": "day"})
MEAN, SD = torch.tensor([0.4, -0.3]).double(), torch.tensor([0.2, 0.3]).double()


def _gaussian(z, mean, sd):
    each = -0.5 * ((z - mean) / sd).square() - sd.log() - 0.5 * math.log(2 * math.pi)
    return each.sum(-1)


def pool(width=1.1, n=1500, n_failed=0, seed=0):
    """Return draws of one object, from a proposal so much wider than a Gaussian likelihood."""
    noise = torch.randn(1, n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z = MEAN + width * SD * noise
    failed = torch.arange(n)[None] >= n - n_failed
    log_likelihood = _gaussian(z, MEAN, SD).masked_fill(failed, torch.nan)
    log_prior = _gaussian(z, 0 * MEAN, 0 * SD + 1.0)
    log_q = _gaussian(z, MEAN, width * SD)
    return Pool(torch.tensor([0]), z, log_q, log_prior, log_likelihood, failed)


def weighed(draws, family, status, rung):
    """Return the outcome of draws of a family, judged by its gate."""
    cleaned, summary = weigh(draws, (), 0)
    grade = gate_of(family, Gate()).grade(summary)
    return Outcome(rung, family, draws, cleaned, summary, grade, status)


def of_chains(status, n_chains=8):
    """Return converged chains as an outcome of equal weights, without evidence."""
    draws = pool(1.0)
    draws = replace(draws, log_q=torch.full_like(draws.log_q, torch.nan))
    equal, none = torch.zeros_like(draws.log_q), torch.zeros_like(draws.index)
    no = torch.zeros(1, dtype=torch.bool)
    cleaned = CleanWeights(equal, none + equal.shape[1], none, no, draws.failed, none.byte())
    unknown, ess = torch.full((1,), torch.nan).double(), torch.tensor([900.0]).double()
    s = replace(
        summarise(equal), ess=ess, ess_low=ess, efficiency=ess / equal.shape[1], k_hat=unknown,
        k_hat_moment=unknown, log_evidence=unknown, log_evidence_err=unknown,
        log_evidence_psis=unknown, evidence_reliable=no, evidence_soft=no,
    )  # fmt: skip
    z = draws.z.unflatten(1, (n_chains, -1)) if draws.z.shape[1] % n_chains == 0 else draws.z[None]
    chains = Chains(z, unknown[:, None], ess[:, None], torch.tensor([200]), no, ~no, no)
    grade = torch.full((1,), int(Grade.A), dtype=torch.uint8)
    return Outcome(status.name.lower(), "chains", draws, cleaned, s, grade, status, chains)


def _objects(refusal=""):
    return verdict.Objects(
        ids=np.array(["star 1"]), keys=torch.tensor([7]), ood=torch.tensor([False]),
        p_value=torch.tensor([0.25]).double(), n_points=np.array([9]), n_masked=np.array([1]),
        n_duplicates=np.array([0]),
        refusals=np.array([refusal]), hashes=np.array(["abc"]),
    )  # fmt: skip


def answer(outcome, keep=None, refusal=""):
    """Return the answer that an outcome comes to, with its line in a report."""
    zero = torch.zeros(1, dtype=torch.int64)
    cost = Cost(zero, zero, zero.double())
    log = ReportLog.of(Meter.of(cost, cost), Gate())
    if outcome.family == "chains":
        log.note_chains(outcome.rung, outcome.pool.index, outcome.chains, [""])
    else:
        log.note(outcome)
    request = verdict.Request(PRIOR, keep, Gate(), 3)
    return verdict.corrected([outcome], _objects(refusal), request, log)[0]


def unweighted(n=600, keep=None, refusal=""):
    """Return draws of a network that nothing weighs."""
    z = pool(1.0, n).z
    draws = unweighted_pool(PriorProposal(2), z[:, :keep])
    request = verdict.Request(PRIOR, keep, Gate(), 3)
    return verdict.amortized(draws, z, _objects(refusal), request, "no simulator was given")[0]


def answers():
    """Return one answer of every kind, by name."""
    network = weighed(pool(), "network", nbi.Status.REWEIGHTED, "reweight")
    mixture = weighed(pool(1.2, 1200), "mixture", nbi.Status.REFINED, "refine")
    failing = weighed(pool(1.2, n_failed=100), "network", nbi.Status.REWEIGHTED, "reweight")
    poor = weighed(pool(5.0), "network", nbi.Status.REWEIGHTED, "reweight")
    nothing = pool()
    nothing = replace(nothing, log_likelihood=torch.full_like(nothing.log_q, -torch.inf))
    nowhere = weighed(nothing, "network", nbi.Status.REWEIGHTED, "reweight")
    hmc = of_chains(nbi.Status.HMC)
    found = {
        "reweighted": answer(network),
        "refined": answer(mixture),
        "with failures": answer(failing),
        "kept": answer(network, keep=300),
        "refined and kept": answer(mixture, keep=3000),
        "hmc": answer(hmc),
        "hmc and kept": answer(hmc, keep=200),
        "ensemble": answer(of_chains(nbi.Status.ENSEMBLE)),
        "uncertified": answer(poor),
        "uncertified and kept": answer(poor, keep=100),
        "amortized": unweighted(),
        "amortized and kept": unweighted(keep=50),
        "failed": answer(nowhere),
        "failed and kept": answer(nowhere, keep=20),
        "bad input": answer(network, refusal="FAIL_INPUT: no valid point."),
        "bad input, unweighted": unweighted(refusal="FAIL_INPUT: no valid point."),
    }
    can_move = (nbi.Status.REWEIGHTED, nbi.Status.REFINED, nbi.Status.HMC, nbi.Status.AMORTIZED)
    moved = {k: p.reweight(OTHER) for k, p in found.items() if p.status in can_move}
    return found | {f"{name}, new prior": p for name, p in moved.items()}
