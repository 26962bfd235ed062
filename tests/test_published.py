"""Laws of the published sequential methods, kept to compare with and to do without a likelihood."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from problems import LinearGaussian
from scipy import stats

import nbi_plus as nbi
from nbi_plus import FlowConfig
from nbi_plus.infer.proposals.base import Conditioned, FlowProposal, PriorProposal
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.proposals.truncated import TruncatedPrior
from nbi_plus.infer.sequential.snpe_is import pooled
from nbi_plus.learn.flows import Flow
from nbi_plus.learn.losses import AtomicLoss, nll
from nbi_plus.learn.model import without_global_rng
from nbi_plus.problem.target import Evaluation

PROBLEM = LinearGaussian(n_dim=2, n_points=8)
X = PROBLEM.observe(1)[1][0]
TINY = FlowConfig(n_blocks=3, hidden=32, n_layers=1, n_mog=1)
KEY = torch.zeros(1, dtype=torch.int64)


def fitted(method, n_rounds, *, noise=PROBLEM.sigma, path=None, simulator=None, **options):
    simulator = simulator or PROBLEM.simulator
    engine = nbi.Engine(
        simulator, PROBLEM.prior, noise=noise, featurizer="resnet", flow=TINY, path=path
    )
    settings = {"n_sims": 1000, "n_epochs": 8, "batch_size": 64, "ess_target": 2000} | options
    return engine.fit(n_rounds=n_rounds, x_obs=X, method=method, **settings)


def without_likelihood():
    def augment(model, obs, theta, rng):
        return model + PROBLEM.sigma * torch.randn(
            model.shape, generator=rng, dtype=model.dtype, device=model.device
        )

    return nbi.CustomNoise(augment)


def offsets(posterior):
    """Return the distance of means from the truth, and the sd, both in true sd."""
    mean, cov = PROBLEM.posterior(X[None])
    sd = np.sqrt(np.diag(cov))
    return (posterior.mean() - mean[0]) / sd, posterior.std() / sd


def check_certified(posterior):
    off, ratio = offsets(posterior)
    assert posterior.status is nbi.Status.REFINED
    assert np.abs(off).max() < 5 / math.sqrt(posterior.ess)
    assert np.abs(ratio - 1).max() < 5 / math.sqrt(2 * posterior.ess)
    z = (posterior.log_evidence - PROBLEM.log_evidence(X[None])[0]) / posterior.log_evidence_err
    assert abs(z) < 5


# --- snpe-is --------------------------------------------------------------------------------------


def test_snpe_is_degrades_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, "nbi_plus"):
        engine = fitted("snpe-is", 6, ess_target=1e6)
    assert "narrows the posterior" in caplog.text
    efficiency = [row.efficiency for row in engine.rounds_]
    assert engine.rounds_.stop_reason == "degraded"
    assert efficiency[-1] < 0.7 * efficiency[-2]
    posterior = engine.posterior_
    assert posterior.status is nbi.Status.UNCERTIFIED
    for text in (posterior.report, repr(engine.rounds_)):
        assert "likelihood^r" in text
        assert "degraded: " in text
    assert not posterior.evidence_reliable
    # the network before is kept; fresh draws of it can be judged, for they have a defensive part
    fresh = engine.predict(X)
    assert fresh.certified
    assert fresh.efficiency > 0.7 * efficiency[-2]
    assert engine.sequential_.frozen.proposal.share > 0


def test_snpe_is_stops_at_the_sum_and_at_the_budget():
    engine = fitted("snpe-is", 6, ess_target=150, n_epochs=2)
    assert engine.rounds_.stop_reason == "ess_summed"
    assert engine.rounds_[-1].ess >= 150
    engine = fitted("snpe-is", 6, ess_target=1e6, max_sims=1600, n_epochs=2)
    assert engine.rounds_.stop_reason == "budget"
    assert engine.rounds_[-1].n_total == 1600


def test_snpe_is_pools_rounds_by_their_effective_sample_size():
    rng = torch.Generator().manual_seed(0)
    rounds = []
    for n, slope in ((50, 0.0), (200, 2.0), (30, 9.0)):
        z = torch.randn(1, n, 1, generator=rng, dtype=torch.float64)
        likelihood = slope * z[..., 0] + 100 * slope  # another scale in each round
        log_prior = PriorProposal(1).log_prob(z)
        found = Evaluation(log_prior, likelihood, torch.zeros(1, n, dtype=torch.bool))
        rounds.append(Stream.start(PriorProposal(1), z, found))
    each = [torch.softmax(s.log_weights[0], 0) for s in rounds]
    ess = torch.stack([1 / w.square().sum() for w in each])
    outcome = pooled(rounds, (), seed=0)
    mass = torch.stack([w.sum() for w in outcome.summary.weights[0].split([50, 200, 30])])
    assert torch.allclose(mass, ess / ess.sum())
    assert torch.allclose(outcome.summary.ess, ess.sum())
    nothing = Evaluation(log_prior, torch.full_like(log_prior, -torch.inf), found.failed)
    more = pooled([*rounds, Stream.start(PriorProposal(1), z, nothing)], (), seed=0)
    assert torch.allclose(more.summary.weights[0, :280], outcome.summary.weights[0])


# --- the atomic loss ------------------------------------------------------------------------------


class Line(torch.nn.Module):
    """q(z | x) = N(a x + b, s^2), with the interface of a flow."""

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor([0.1, 0.1, 0.0], dtype=torch.float64))

    def log_prob(self, z, features):
        a, b, log_s = self.p
        u = (z[..., 0] - a * features - b) * torch.exp(-log_s)
        return -0.5 * u**2 - log_s - 0.5 * math.log(2 * math.pi)


def optimum(loss, z, x):
    line = Line()
    good = torch.ones(len(z), dtype=torch.bool)
    solver = torch.optim.LBFGS(line.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        value = loss(line, z, x, good).mean()
        value.backward()
        return value

    solver.step(closure)
    a, b, log_s = line.p.tolist()
    return a, b, math.exp(2 * log_s)


def test_atomic_loss_gives_the_posterior_whatever_the_proposal():
    rng = torch.Generator().manual_seed(1)
    z = 1.0 + 0.5 * torch.randn(20_000, 1, generator=rng, dtype=torch.float64)  # not the prior
    x = z + torch.randn(20_000, 1, generator=rng, dtype=torch.float64)
    # prior N(0, 1) and x = z + N(0, 1): posterior N(x / 2, 1 / 2)
    assert optimum(AtomicLoss(), z, x) == pytest.approx((0.5, 0.0, 0.5), abs=0.05)
    # proposal N(1, 1/4) in the place of the prior: N((4 + x) / 5, 1 / 5)
    assert optimum(nll, z, x) == pytest.approx((0.2, 0.8, 0.2), abs=0.02)


def test_atomic_loss_ignores_rows_that_do_not_count():
    rng = torch.Generator().manual_seed(2)
    z = torch.randn(32, 1, generator=rng, dtype=torch.float64)
    x = torch.randn(32, 1, generator=rng, dtype=torch.float64)
    good = torch.arange(32) % 4 != 0
    changed = torch.where(good[:, None], z, 50.0)
    one, two = (AtomicLoss()(Line(), v, x, good)[good] for v in (z, changed))
    assert torch.isfinite(one).all()
    assert torch.allclose(one, two)
    alone = torch.zeros(32, dtype=torch.bool)
    assert torch.allclose(AtomicLoss()(Line(), z, x, alone), torch.zeros(32).double())
    with pytest.raises(ValueError, match="at least 2"):
        AtomicLoss(1)


# --- apt ------------------------------------------------------------------------------------------


def test_apt_is_certified_and_right():
    engine = fitted("apt", 4, ess_target=2000)
    check_certified(engine.posterior_)
    assert engine.rounds_[-1].efficiency > 0.8  # plain NLL would be too narrow by now
    assert engine.rounds_.stop_reason == "ess_reached"
    assert engine.posterior_.ess >= 2000
    assert [row.phase for row in engine.rounds_][:2] == ["prior", "apt"]
    check_certified(engine.predict(X))


def test_apt_certifies_with_draws_of_its_final_network():
    engine = fitted("apt", 2, n_sims=500, max_sims=2600, ess_target=1800)
    phases = [row.phase for row in engine.rounds_]
    assert phases[:3] == ["prior", "apt", "certify"]
    assert engine.rounds_[-1].n_total <= 2600
    check_certified(engine.posterior_)


# --- tsnpe ----------------------------------------------------------------------------------------


def truncated(scale=0.5):
    """Return the prior truncated by an untrained flow whose mass is a Gaussian of that scale."""
    flow = without_global_rng(3, lambda: Flow(2, 1, TINY)).requires_grad_(False)
    flow.chol.mul_(scale)
    flow.mean.add_(0.4)
    exact = flow.exact()
    plain = Conditioned(FlowProposal(exact, exact, 0.0), torch.zeros(1, 1))
    return TruncatedPrior.of(plain, KEY, 0, "test")


def brute_force(inside, n):
    rng, kept = np.random.default_rng(5), []
    while sum(map(len, kept)) < n:
        z = torch.as_tensor(rng.standard_normal((1, 100_000, 2)))
        kept.append(z[0, inside.contains(z)[0]].numpy())
    return np.concatenate(kept)[:n]


def test_truncated_draws_are_the_prior_where_the_network_has_mass():
    inside = truncated()
    own = inside.network.draw(KEY, 20_000, 7, "other")
    assert float(inside.contains(own).double().mean()) == pytest.approx(0.999, abs=1e-3)
    drawn = inside.draw(KEY, 4000, 0, "test")
    assert bool(inside.contains(drawn.z).all())
    reference = brute_force(inside, 4000)
    for one, two in zip(drawn.z[0].numpy().T, reference.T, strict=True):
        assert stats.ks_2samp(one, two).pvalue > 1e-3
    assert torch.equal(drawn.z, inside.draw(KEY, 4000, 0, "test").z)
    # the same acceptance as of independent draws of the prior
    z = torch.as_tensor(np.random.default_rng(8).standard_normal((1, 50_000, 2)))
    share = float(inside.contains(z).double().mean())
    assert drawn.acceptance == pytest.approx(share, rel=0.1)


def test_truncated_draws_that_are_rare_come_from_the_network():
    inside = truncated(scale=0.004)  # accepts one prior draw in a thousand
    drawn = inside.draw(KEY, 2000, 0, "test")
    assert drawn.acceptance is None
    assert bool(inside.contains(drawn.z).all())
    assert len(torch.unique(drawn.z[0], dim=0)) == 2000
    for one, two in zip(drawn.z[0].numpy().T, brute_force(inside, 1000).T, strict=True):
        assert stats.ks_2samp(one, two).pvalue > 1e-3


def test_tsnpe_with_a_likelihood_is_certified():
    engine = fitted("tsnpe", 4, ess_target=800)
    check_certified(engine.posterior_)
    phases = [row.phase for row in engine.rounds_]
    assert phases[0] == "prior"
    assert set(phases[1:-1]) == {"tsnpe"}
    assert phases[-1] == "certify"
    assert engine.rounds_[-1].n_total == 4000
    assert np.isnan([row.ess for row in engine.rounds_][:-1]).all()


def check_amortized(engine):
    assert engine.posterior_.status is nbi.Status.AMORTIZED
    off, ratio = offsets(engine.posterior_)
    assert np.abs(off).max() < 0.3  # of a posterior's sd: nothing corrects the network
    assert np.abs(ratio - 1).max() < 0.2
    assert np.isnan(engine.posterior_.log_likelihood).all()
    with pytest.warns(nbi.UncertifiedWarning, match="AMORTIZED"):
        again = engine.predict(X, n_samples=2500)
    assert len(again) == 2500  # a draw more makes no answer better that nothing weighs
    with pytest.warns(nbi.UncertifiedWarning, match="AMORTIZED"):
        assert len(engine.predict(X, n_samples=50)) == 50
    assert again.status is nbi.Status.AMORTIZED
    assert np.abs(again.mean() - engine.posterior_.mean()).max() < 0.2 * again.std().min()


def test_tsnpe_without_a_likelihood_is_amortized(tmp_path):
    engine = fitted(None, 4, noise=without_likelihood(), n_epochs=12)
    assert [row.phase for row in engine.rounds_] == ["prior", "tsnpe", "tsnpe", "tsnpe"]
    assert engine.rounds_.stop_reason == "rounds"
    assert engine.rounds_[-1].n_total == 4000  # none are kept back for weights
    check_amortized(engine)
    engine.save(tmp_path / "engine.h5")
    loaded = nbi.Engine.load(tmp_path / "engine.h5", noise=without_likelihood())
    check_amortized(loaded)  # it needs no simulator


def test_tsnpe_takes_a_simulator_that_makes_its_own_noise():
    def simulator(theta):
        clean = theta @ PROBLEM.design
        return clean + PROBLEM.sigma * np.random.standard_normal(clean.shape)

    silent = nbi.CustomNoise(lambda model, obs, theta, rng: model)
    check_amortized(fitted("tsnpe", 3, noise=silent, simulator=simulator, n_epochs=15))


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["snpe-is", "apt", "tsnpe"])
def test_fit_that_was_killed_goes_on(method, tmp_path):
    calls = []

    def simulator(theta):
        calls.append(len(theta))
        return theta @ PROBLEM.design

    options = {"simulator": simulator, "n_sims": 300, "n_epochs": 2, "ess_target": 1e6}
    whole = fitted(method, 3, path=tmp_path, **options).posterior_
    steps = sorted(tmp_path.glob("sequential-*/round-*.h5"))
    assert len(steps) >= 2
    steps[-1].unlink()
    n_before = sum(calls)
    again = fitted(method, 3, path=tmp_path, **options).posterior_
    # a step is made again, as it was, and finds its simulations; some calls try the simulator out
    assert sum(calls) - n_before < n_before - 600
    assert np.array_equal(whole.samples, again.samples)
    assert np.array_equal(whole.log_weights, again.log_weights)


def test_fits_leave_the_global_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fitted("tsnpe", 2, n_sims=300, n_epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_warm_start_takes_the_place_of_the_prior():
    engine = nbi.Engine(
        PROBLEM.simulator, PROBLEM.prior, noise=PROBLEM.sigma, featurizer="resnet", flow=TINY
    )
    engine.fit(n_sims=2000, n_epochs=8, batch_size=64)
    options = {"n_sims": 500, "n_rounds": 3, "n_epochs": 4, "batch_size": 64, "ess_target": 600}
    for method in ("snpe-is", "apt", "tsnpe"):
        engine.fit(x_obs=X, warm_start=True, method=method, **options)
        assert engine.rounds_[0].phase == "start"
        if method != "snpe-is":
            check_certified(engine.posterior_)
    assert engine.rounds_[0].efficiency > 0.2  # the truncated prior beats the prior


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="method must be one of .*'apt'.*but is 'snpe'"):
        fitted("snpe", 3)
    with pytest.raises(ValueError, match="'snpe-is' must have a likelihood.*tsnpe"):
        fitted("snpe-is", 3, noise=without_likelihood())
    with pytest.raises(ValueError, match="modes must be None for method 'apt'"):
        fitted("apt", 3, modes=[[0.0, 0.0]], n_epochs=1)
    with pytest.raises(ValueError, match="must have a simulator for more than one round"):
        nbi.Engine(None, PROBLEM.prior, noise=1.0).fit(
            100, n_rounds=3, x_obs=X, theta=np.zeros((9, 2)), x=np.ones((9, 8))
        )
    with pytest.raises(TimeoutError, match="one round|final network"):
        fitted("tsnpe", 3, max_seconds=1e-9, n_epochs=1)
