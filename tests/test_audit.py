"""Laws of the audit: places that certified answers miss are found, right answers pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from densities import LOG_2PI, LatentTarget, context_of, normals, standard_log_prob
from problems import (
    DECAY_PRIOR,
    decay,
    decay_data,
    decay_in_torch,
    identity,
    needle_noise,
)
from problems import (
    NEEDLE_BROAD as BROAD,
)
from problems import (
    NEEDLE_NARROW as NARROW,
)
from problems import (
    NEEDLE_SHARE as SHARE,
)
from problems import (
    NEEDLE_SHIFT as SHIFT,
)
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.infer.ladder import HmcRung, PeakAudit, RefineRung, audit
from nbi_plus.infer.posterior.certificate import fresh_outcome
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.weights.summary import Gate
from nbi_plus.problem.random import keyed_normal, keyed_uniform

N_DIM = 3


def needles(n, seed):
    """Return data (n, 3), and the mass and place of the narrow mode of their exact posteriors."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(n, N_DIM))
    lot = rng.random((n, 1)) < SHARE
    noise = rng.normal(size=theta.shape)
    x = theta + np.where(lot, SHIFT + NARROW * noise, BROAD * noise)
    logs = [np.log(p) + norm.logpdf(x - at, 0, np.hypot(1, sd)).sum(1)
            for p, at, sd in ((1 - SHARE, 0.0, BROAD), (SHARE, SHIFT, NARROW))]  # fmt: skip
    return x, 1 / (1 + np.exp(logs[0] - logs[1])), (x - SHIFT) / (1 + NARROW**2)


PRIOR = {f"p{i}": norm(0, 1) for i in range(N_DIM)}


@pytest.fixture(scope="module")
def engine():
    engine = nbi.Engine(identity, PRIOR, noise=needle_noise(), featurizer="gru", seed=1)
    objects = nbi.Observations.from_arrays(np.zeros((4, N_DIM)))
    return engine.fit(
        n_sims=1000, n_epochs=4, observations=objects, perturb=False, truth_test=False
    )


def off(posteriors, mass, place):
    """Return how much the narrow mode's weight in each answer is off."""
    own = []
    for posterior, at in zip(posteriors, place, strict=True):
        near = ((posterior.samples - at) ** 2).sum(1) < (8 * NARROW) ** 2
        own.append(posterior.weights[near].sum())
    return np.array(own) - mass


def test_places_that_certified_answers_miss_are_found_and_repaired(engine):
    x, mass, place = needles(40, seed=3)
    objects = nbi.Observations.from_arrays(x)
    engine.ladder = nbi.Ladder(audit=None)
    alone = engine.predict_many(objects)
    engine.ladder = None
    looked = engine.predict_many(objects)
    wrong = [np.abs(off(found, mass, place)) > 0.1 for found in (alone, looked)]
    assert (wrong[0] & alone.certified).sum() >= 6  # or this law has no subject
    assert (wrong[1] & looked.certified).sum() <= 1
    trusted = np.array([p.trusted for p in looked])
    assert trusted.mean() > 0.9
    assert any("Audit" in str(rung) for rung in looked[0].rungs)


def test_what_no_rung_repairs_is_mode_missed(engine):
    x, mass, place = needles(40, seed=3)
    engine.ladder = nbi.Ladder(rungs=())
    found = engine.predict_many(nbi.Observations.from_arrays(x))
    engine.ladder = None
    missed = np.array([nbi.Flag.MODE_MISSED in p.flags for p in found])
    wrong = np.abs(off(found, mass, place)) > 0.03
    assert missed.sum() >= 4
    assert not (missed & ~wrong).any()
    assert not (missed & found.certified).any()
    for p in (p for p in found if nbi.Flag.MODE_MISSED in p.flags):
        assert p.status is nbi.Status.UNCERTIFIED
        assert "audit" in p.rungs[-1].reason
        assert "mass" in p.rungs[-1].audit


def test_costs_of_the_audit_stand_apart(engine):
    x, _, _ = needles(6, seed=4)
    for found in engine.predict_many(nbi.Observations.from_arrays(x)):
        assert sum(rung.n_apart for rung in found.rungs) > 2048
    many = engine.predict_many(nbi.Observations.from_arrays(x))
    told = [sum(r.n_calls for r in rungs) for rungs in many.rungs]
    assert told == many.n_simulated.tolist()


def wave(theta, t):
    return theta[:, :1] * torch.sin(6 * t + theta[:, 1:2]) + theta[:, 2:]


@pytest.fixture(scope="module")
def honest():
    prior = nbi.Prior({"a": uniform(0.5, 2), "phase": nbi.Circular(2 * np.pi), "c": norm(0, 1)})
    engine = nbi.Engine(wave, prior, noise=0.4, featurizer="gru", seed=0)
    t = np.linspace(0, 1, 25)
    return engine.fit(n_sims=1500, n_epochs=6, x_err=np.full(25, 0.4), t=t, truth_test=False)


def test_right_answers_raise_no_alarm(honest):
    rng = np.random.default_rng(5)
    theta = honest.prior_.sample(60, rng)
    t = np.linspace(0, 1, 25)
    x = wave(torch.as_tensor(theta), torch.as_tensor(t)).numpy() + 0.4 * rng.normal(size=(60, 25))
    found = honest.predict_many(nbi.Observations.from_arrays(x, 0.4, t=t))
    assert found.certified.mean() > 0.95
    assert not any(nbi.Flag.MODE_MISSED in p.flags for p in found)
    missed = [r for rungs in found.rungs for r in rungs if "audit" in r.reason]
    assert len(missed) <= 2


def test_quick_audit_looks_further_only_where_it_is_steep(honest, engine):
    x, mass, place = needles(40, seed=3)
    engine.ladder = nbi.Ladder(rungs=())
    engine.fitted_ = replace(engine.fitted_, truth=passed())
    quick = engine.predict_many(nbi.Observations.from_arrays(x))
    engine.fitted_, engine.ladder = replace(engine.fitted_, truth=None), None
    apart = np.array([sum(r.n_apart for r in rungs) for rungs in quick.rungs])
    asked = np.array([rungs[0].n_draws > 0 and rungs[0].n_apart > 0 for rungs in quick.rungs])
    # most have the cost of the gradients that say there is nothing to see
    assert np.median(apart[asked]) < 200
    wrong = np.abs(off(quick, mass, place)) > 0.03
    missed = np.array([nbi.Flag.MODE_MISSED in p.flags for p in quick])
    assert not (missed & ~wrong).any()


def passed():
    from nbi_plus.trust.truths import TruthTest

    return TruthTest(100, 0, 0.1, 1.0)


def test_chains_and_black_boxes_are_looked_at_too(engine):
    x, mass, place = needles(10, seed=3)
    engine.ladder = nbi.Ladder(rungs=(RefineRung(n_rounds=2), HmcRung()), audit=PeakAudit())
    found = engine.predict_many(nbi.Observations.from_arrays(x))
    engine.ladder = None
    wrong = np.abs(off(found, mass, place)) > 0.1
    assert not (wrong & np.array([p.trusted for p in found])).any()

    def black_box(theta):
        return np.asarray(theta, float) * 1.0

    other = nbi.Engine(black_box, engine.prior_, noise=engine.noise_, featurizer="gru", seed=1)
    other.fit(n_sims=600, n_epochs=2, observations=nbi.Observations.from_arrays(x[:4]),
              perturb=False)  # fmt: skip
    seen = other.predict_many(nbi.Observations.from_arrays(x[:4]))
    told = [r.audit for rungs in seen.rungs for r in rungs if r.n_apart]
    assert told
    assert all("mass" in text for text in told)


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 16), (1e-4, 16), (1e-3, 1)])
def test_one_object_is_worth_more_starts_where_these_are_cheap(seconds, times):
    audit = PeakAudit()
    target = SimpleNamespace(seconds_per_row=seconds, differentiable=True)
    assert audit.of_one(target).n_starts == times * audit.n_starts
    target.differentiable = False
    own = audit.of_one(target)
    assert own.n_starts == 2 * audit.n_starts
    assert own.n_scouts < audit.n_scouts


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="n_starts"):
        PeakAudit(n_starts=2)


@dataclass(frozen=True)
class Needles:
    """Equal narrow normals at ``centre`` (K, D)."""

    centre: torch.Tensor
    sd: float = 0.012

    def log_prob(self, z):
        u = (z[..., None, :] - self.centre) / self.sd
        log_n = -0.5 * (u.square() + LOG_2PI).sum(-1) - z.shape[-1] * np.log(self.sd)
        return log_n.logsumexp(-1) - np.log(len(self.centre))


class Uphill(LatentTarget):
    differentiable = True

    def log_prob(self, z, index):
        found = self.evaluate(z, index)
        return found.log_prior + found.log_likelihood


class BlackBox(Uphill):
    differentiable = False


def test_where_there_are_many_peaks_more_are_looked_for(monkeypatch):
    """The answer of each object lacks one of twelve modes, in two parameters."""
    density, n = Needles(0.8 * normals(5, 12, 2)), 12
    factor = density.sd * torch.eye(2).double().expand(n, n, 2, 2)
    shares = torch.full((n, n), 1 / (n - 1)).double().fill_diagonal_(0.0).log()
    proposal = StudentMixture(shares, density.centre.expand(n, n, 2), factor, 20.0)
    keys = torch.arange(n)
    z = proposal.draw(keys, 3000, 0, "answer")
    context = replace(context_of(density, 2, n), target=Uphill(density, n, 2))
    found = context.evaluate(z, keys)
    outcome = fresh_outcome(proposal, z, found, Gate(), circles=(), seed=0)
    assert outcome.passed.all()

    def missed():
        context.report.note(outcome)
        return float(PeakAudit()(outcome, keys, context).missed.double().mean())

    assert missed() > 0.9
    monkeypatch.setattr(audit, "_MANY", 99)
    assert missed() < 0.75  # or this law has no subject


@dataclass(frozen=True)
class Ridge:
    """Two parameters along a bend: normals (share, mean, sd) of the first, the second hangs on it.

    A part ``open`` of it is as wide as the prior, and so hardly ever on the ridge.
    """

    along: tuple[tuple[float, float, float], ...]
    open: float = 0.0

    def log_prob(self, z):
        first, second = z.unbind(-1)
        each = torch.stack([np.log(share / sd) - 0.5 * (((first - mean) / sd) ** 2 + LOG_2PI)
                            for share, mean, sd in self.along])  # fmt: skip
        across = -0.5 * (((second - 1.5 * first**2) / 0.05) ** 2 + LOG_2PI) - np.log(0.05)
        whole = np.log1p(-self.open) + each.logsumexp(0) + across
        if not self.open:
            return whole
        return torch.logaddexp(whole, np.log(self.open) + standard_log_prob(z))

    def draw(self, keys, n, seed, stage):
        lot = keyed_uniform(seed, stage + " part", keys, (n, 2))
        noise = keyed_normal(seed, stage, keys, (n, 2))
        first, edge = torch.empty_like(noise[..., 0]), 0.0
        for share, mean, sd in self.along:
            own = (lot[..., 0] >= edge) & (lot[..., 0] < edge + share + 1e-9)
            first, edge = torch.where(own, mean + sd * noise[..., 0], first), edge + share
        bent = torch.stack([first, 1.5 * first**2 + 0.05 * noise[..., 1]], -1)
        return torch.where(lot[..., 1:] < self.open, noise, bent)

    def select(self, rows):  # noqa: ARG002 - objects are alike
        return self


RIDGE = Ridge(((0.95, -0.2, 0.2), (0.05, 0.4, 0.4)))  # the second is a shoulder, without a peak


def answered(proposal, kind, n=16):
    """Return an audit of ``n`` answers for the ridge, and which of these pass without it."""
    keys = torch.arange(n)
    z = proposal.draw(keys, 1000, 0, "answer")
    context = replace(context_of(RIDGE, 2, n), target=kind(RIDGE, n, 2))
    outcome = fresh_outcome(proposal, z, context.evaluate(z, keys), Gate(), circles=(), seed=0)
    context.report.note(outcome)
    return lambda **more: PeakAudit()(outcome, keys, context, **more), outcome.passed


@pytest.mark.parametrize("kind", [Uphill, BlackBox])
def test_the_far_end_of_a_ridge_is_missed_where_the_proposal_ends(kind):
    proposal = Ridge(((1.0, -0.2, 0.22),), open=0.02)
    look, passed = answered(proposal, kind)
    assert passed.sum() >= 5  # or this law has no subject
    assert not look().missed[passed].any()  # it has no peak that ascents could find
    seen = look(proposal=proposal)
    assert seen.missed[passed].all()
    assert not seen.passed.any()
    far = seen.peaks.select(passed.nonzero()[:, 0])
    assert (far.z[..., 0].nan_to_num(nan=0.0).amax(1) > 0.4).all()


@pytest.mark.parametrize("kind", [Uphill, BlackBox])
def test_a_proposal_that_reaches_the_end_of_the_ridge_raises_no_alarm(kind):
    wider = tuple((share, mean, 1.1 * sd) for share, mean, sd in RIDGE.along)
    proposal = Ridge(wider, open=0.1)
    look, passed = answered(proposal, kind)
    assert passed.all()
    assert not look(proposal=proposal).missed.any()


@pytest.mark.parametrize("simulator", [decay, decay_in_torch])
def test_a_fit_read_back_is_audited_as_it_was(simulator, tmp_path):
    """Where the early audit finds nothing missing, too: the last one goes on from its peaks."""
    first, again = (
        nbi.Engine(simulator, DECAY_PRIOR, noise=0.1, path=tmp_path).fit(
            x_obs=decay_data(), n_sims=1000, n_rounds=20
        )
        for _ in range(2)
    )
    last = first.posterior_.rungs[-1]
    assert last.n_apart > 0
    assert replace(again.posterior_.rungs[-1], seconds=last.seconds) == last


@pytest.mark.parametrize("i", [0, 9])
def test_a_fit_in_rounds_goes_on_with_what_its_audit_found(i, tmp_path):
    x, mass, place = needles(12, 7)
    fits = [
        nbi.Engine(identity, PRIOR, noise=needle_noise(), seed=i, path=tmp_path).fit(
            x_obs=x[i], n_sims=500, n_rounds=10, ess_target=1000, max_sims=8000
        )
        for _ in range(2)
    ]
    rounds, posterior = fits[0].rounds_, fits[0].posterior_
    assert [row.phase for row in rounds].count("audit") == 1
    assert posterior.certified
    assert rounds.stop_reason == "ess_reached"
    near = np.linalg.norm(posterior.samples - place[i], axis=1) < 10 * NARROW
    held, error = posterior.weights[near].sum(), np.sqrt(mass[i] * (1 - mass[i]) / posterior.ess)
    assert abs(held - mass[i]) < 4.5 * error
    log_z = np.logaddexp(*(
        np.log(p) + norm.logpdf(x[i], at, np.hypot(1, sd)).sum()
        for p, at, sd in ((1 - SHARE, 0.0, BROAD), (SHARE, SHIFT, NARROW))
    ))  # fmt: skip
    assert abs(posterior.log_evidence - log_z) < 4.5 * posterior.log_evidence_err
    # the second fit finds all simulations of the first one, and the audit says the same of them
    again = fits[1].posterior_
    np.testing.assert_allclose(again.weights, posterior.weights, rtol=1e-6)
    assert again.rungs[-1].n_apart == posterior.rungs[-1].n_apart > 0
    assert again.rungs[-1].audit == posterior.rungs[-1].audit
