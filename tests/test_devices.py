"""Devices: what runs on one stays there, waits for it seldom, and ends where the CPU does."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import torch
from pretend_device import DEVICE, NAME, OnDevice, host_of, pretended
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.infer.ladder.audit import PeakAudit
from nbi_plus.infer.ladder.rung_hmc import HmcRung
from nbi_plus.infer.samplers import hmc
from nbi_plus.infer.samplers.compiling import differentiate
from nbi_plus.infer.samplers.peaks import PeaksConfig
from nbi_plus.infer.weights.summary import summarise
from nbi_plus.learn import fitting
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.simulator.simulator import SimulationError
from nbi_plus.problem.target import Target

TIMES = np.linspace(0, 1, 12)
SIGMA = 0.3
PRIOR = {"a": norm(0, 1), "b": uniform(-1, 2), "phase": nbi.Circular(2 * math.pi)}


def curve(theta, t):
    """Return a wave, by functions of torch alone."""
    return theta[:, :1] * t + theta[:, 1:2] * torch.sin(3 * t) + torch.cos(t + theta[:, 2:])


def observed(n, seed=1):
    """Return objects at all times but some of their own."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-1, 1, (n, 3))
    x = curve(torch.as_tensor(theta), torch.as_tensor(TIMES)).numpy()
    x += SIGMA * rng.normal(size=x.shape)
    errors = np.full(x.shape, SIGMA)
    return nbi.Observations.from_arrays(x, errors, mask=rng.random(x.shape) < 0.9, t=TIMES)


def fitted(device, simulator=curve, ladder=None, noise=SIGMA, **options):
    engine = nbi.Engine(
        simulator, PRIOR, noise=noise, featurizer="mlp", flow={"n_blocks": 2, "hidden": 16},
        device=device, ladder=ladder,
    )  # fmt: skip
    chosen = {"n_sims": 200, "n_epochs": 2, "batch_size": 64, "truth_test": False, "t": TIMES}
    return engine.fit(**chosen | options)


def losses(engine):
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in engine.history_]


@functools.cache
def traffic_of_fit(**options):
    with pretended() as traffic:
        fitted(NAME, **options)
    return traffic


# --- the pretence -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "meet",
    [
        lambda own, cpu: own + cpu,
        lambda own, cpu: cpu * own,
        lambda own, cpu: torch.cat([own, cpu]),
        lambda own, cpu: own @ cpu,
        lambda own, cpu: cpu[own > 0],
        lambda own, cpu: cpu.sum().add_(own.sum()),
        lambda own, cpu: own.index_put_((torch.arange(3),), cpu),
        lambda own, cpu: torch.rand(3, device=DEVICE, generator=torch.Generator()),
        lambda own, cpu: torch.rand(3, generator=torch.Generator(NAME)),
        lambda own, cpu: np.asarray(own),
    ],
)
def test_tensors_of_the_device_and_of_the_cpu_do_not_meet(meet):
    with pretended(), pytest.raises(RuntimeError):
        meet(torch.ones(3, device=NAME), torch.ones(3))


def test_numbers_and_indices_of_the_cpu_may_meet_those_of_the_device():
    with pretended() as traffic:
        own = torch.arange(3.0, device=NAME)
        assert host_of(own + torch.tensor(1.0)).tolist() == [1, 2, 3]
        assert traffic.n_transfers == 0
        assert host_of(own[torch.tensor([2, 0])]).tolist() == [2, 0]
        assert host_of(own[[2, 0]]).tolist() == [2, 0]
    assert [kind for kind, _ in traffic.transfers.elements()] == ["in"] * 2


def test_every_transfer_and_every_wait_is_counted():
    with pretended() as traffic:
        own = torch.as_tensor(np.ones(3), device=NAME)
        own[own > 2] = 0.0  # a number: torch need not know where
        assert (traffic.n_transfers, traffic.n_waits) == (1, 0)
        own.cpu()
        assert (traffic.n_transfers, traffic.n_waits) == (2, 0)
        waits = (lambda: float(own[0]), own.tolist, own.nonzero, lambda: own[own > 0],
                 lambda: torch.linalg.cholesky(own.diag()))  # fmt: skip
        for n, wait in enumerate(waits, start=1):
            wait()
            assert traffic.n_waits == n


def test_waits_are_counted_by_the_line_that_waits():
    with pretended() as traffic:
        summarise(torch.zeros(2, 50, dtype=torch.float64, device=NAME))
    assert traffic.n_waits
    assert all(line.startswith("nbi_plus/infer/weights/") for _, line in traffic.waits)


def test_weights_stay_on_the_device_when_their_type_or_their_place_changes():
    with pretended():
        layer = torch.nn.Linear(3, 2).to(NAME)
        exact = copy.deepcopy(layer).to(torch.float64)
        buffer = torch.zeros(6, device=NAME)
        layer.weight.data = buffer.view(2, 3)
        buffer += 1
        seen = [layer(torch.ones(1, 3, device=NAME)) - layer.bias, exact.weight]
    assert all(isinstance(value, OnDevice) for value in seen)
    assert host_of(seen[0]).tolist() == [[3.0, 3.0]]
    assert host_of(exact.weight).dtype == exact.weight.dtype == torch.float64


# --- fits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("online", [False, True])
def test_a_fit_on_the_device_is_that_of_the_cpu(online):
    with pretended():
        own = fitted(NAME, online=online)
    assert losses(own) == losses(fitted("cpu", online=online))
    assert all(isinstance(weight, OnDevice) for weight in own.model_.network.parameters())


def noisy_trial(theta):
    """Return one number for each row, and which of two it was called."""
    x = theta[:, :1] + 0.5 * torch.randn_like(theta[:, :1])
    return torch.cat([x, (torch.rand_like(x) < torch.sigmoid(theta[:, 1:])).to(x.dtype)], 1)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("kind", [nbi.RatioEngine, nbi.LikelihoodEngine])
def test_what_trials_say_on_the_device_is_what_they_say_on_the_cpu(monkeypatch, kind, online):
    monkeypatch.setattr(fitting, "_FEWEST", 600)  # ratios are normalised
    own = {"discrete": {1: (0, 1)}} if kind is nbi.LikelihoodEngine else {}
    prior, x = {"a": norm(0, 1), "b": uniform(-1, 2)}, [[0.3, 1.0], [-0.2, 0.0], [0.5, 1.0]]
    theta = [[0.1, 0.2], [1.5, -0.4]]

    def learned(device):
        engine = kind(noisy_trial, prior, device=device, **own)
        engine.fit(n_sims=700, n_epochs=1, batch_size=128, online=online)
        return engine, losses(engine), engine.summed(theta, x), engine.simulate(theta)

    _, *wanted = learned("cpu")
    with pretended():
        engine, *found = learned(NAME)
    assert all(isinstance(weight, OnDevice) for weight in engine.model_.network.parameters())
    assert found[0] == wanted[0]
    for came, expected in zip(found[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(came, expected)


EACH_POINT = nbi.GaussianNoise(np.linspace(0.2, 0.4, len(TIMES)))


@pytest.mark.parametrize(
    "options", [{"online": False}, {"online": True}, {"online": True, "noise": EACH_POINT}]
)
def test_a_training_step_sends_nothing_and_waits_for_nothing(options):
    # of two epochs of 180 or 200 rows: 4 or 6 steps, and 10 or 12
    few, many = (traffic_of_fit(**options, batch_size=size, n_epochs=2) for size in (64, 32))
    assert many == few


@pytest.mark.parametrize(("online", "waits"), [(False, 4), (True, 5)])
def test_an_epoch_waits_for_its_figures_alone(online, waits):
    """Was any loss finite, three figures for the history, and are all simulations finite."""
    two, three = (traffic_of_fit(online=online, batch_size=64, n_epochs=n) for n in (2, 3))
    more = three.since(two)
    assert more.n_transfers == 0
    assert more.n_waits == waits


def patchy(theta, t):
    """Return `curve`, but no number for one row in six."""
    return torch.where(theta[:, :1] > -1, curve(theta, t), math.nan)


def touchy(theta, t):
    """Return `curve`, but raise for one row in six."""
    if bool((theta[:, 0] < -1).any()):
        raise ValueError("a is below -1")
    return curve(theta, t)


@pytest.mark.parametrize("simulator", [patchy, touchy])
def test_online_rows_that_fail_are_left_out_on_the_device_as_on_the_cpu(simulator):
    options = {"simulator": simulator, "online": True, "max_failed": 0.4}
    with pretended():
        own = fitted(NAME, **options)
    assert losses(own) == losses(fitted("cpu", **options))


def test_too_many_online_rows_that_fail_are_an_error_that_names_them():
    told = []
    for device in ("cpu", NAME):
        with pretended(), pytest.raises(SimulationError) as error:
            fitted(device, simulator=patchy, online=True, max_failed=0.01)
        told.append((str(error.value), error.value.failed))
    assert told[0] == told[1]
    assert told[0][1]


# --- answers ------------------------------------------------------------------------------------


AUDIT = PeakAudit(n_starts=8, n_tried=64, n_scouts=512, n_local=32, n_beyond=1,
                  search=PeaksConfig(max_steps=15))  # fmt: skip
CHAINED = HmcRung(
    n_super=4, n_each=4, sampler=hmc.HmcConfig(windows=(10, 10), max_steps=25, max_laps=1)
)


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (nbi.Status.REFINED, {"audit": AUDIT}),
        (nbi.Status.HMC, {"audit": None, "rungs": (CHAINED,)}),
    ],
)
def test_answers_on_the_device_are_those_of_the_cpu(status, options):
    ladder = nbi.Ladder(n_draws=512, top_up_draws=512, **options)
    own = fitted("cpu", ladder=ladder).predict_many(observed(1), n_samples=500)[0]
    with pretended():
        other = fitted(NAME, ladder=ladder).predict_many(observed(1), n_samples=500)[0]
    assert own.status is other.status is status
    assert np.array_equal(own.samples, other.samples)
    assert np.array_equal(own.weights, other.weights)


def test_a_batch_of_answers_costs_the_same_however_many_objects_it_has():
    ladder = nbi.Ladder(n_draws=512, escalate="never", audit=None, top_up_draws=512)
    with pretended():
        engine = fitted(NAME, ladder=ladder)

    def traffic_of(n, n_batches):
        with pretended(batch_draws=512 * n // n_batches) as traffic:
            engine.predict_many(observed(n), n_samples=500)
        return traffic

    few, many, one_more = traffic_of(6, 2), traffic_of(12, 2), traffic_of(18, 3)
    assert many == few
    # data, keys, accounts and what decides who is settled; their weights, and what is said of them
    assert one_more.n_transfers - many.n_transfers <= 16
    assert one_more.n_waits - many.n_waits <= 22


# --- chains, and what they are of ---------------------------------------------------------------

CHAINS = {"windows": (10, 10), "block": 10, "max_steps": 20, "max_laps": 1, "climbs": False}


def sampled(device, **options):
    def log_prob(z, index):
        return -0.5 * (z / (1 + index[:, None, None])).square().sum(-1)

    z0 = torch.randn(3, 16, 2, generator=torch.Generator().manual_seed(0)).double()
    config = hmc.HmcConfig(**CHAINS | options)  # so much wanted that nobody leaves early
    return hmc.sample(log_prob, z0.to(device), 4, seed=1, ess_target=1e9, config=config)


def traffic_of_chains(**options):
    with pretended() as traffic:
        sampled(NAME, **options)
    return traffic


@pytest.mark.parametrize("climbs", [False, True])
def test_chains_on_the_device_are_those_of_the_cpu(climbs):
    with pretended():
        own = sampled(NAME, climbs=climbs)
    other = sampled("cpu", climbs=climbs)
    assert torch.equal(host_of(own.samples), other.samples)
    assert torch.equal(host_of(own.n_gradients), other.n_gradients)


def test_a_step_of_sampling_waits_for_nothing():
    """The lengths of all trajectories of a block are known before it."""
    short, long = traffic_of_chains(), traffic_of_chains(block=20, max_steps=40)
    assert long.n_waits == short.n_waits
    assert long.n_transfers == short.n_transfers == 1  # the starts


def test_a_step_of_warming_up_waits_once_and_its_stretch_of_ten_five_times():
    """Each step changes the lengths of the next trajectories; after a stretch objects part."""
    short, long = traffic_of_chains(), traffic_of_chains(windows=(20, 20))
    more = long.since(short)
    assert more.n_transfers == 0
    assert more.n_waits == 20 + 2 * 5


def test_a_gradient_of_a_target_sends_nothing_and_waits_for_nothing():
    prior = nbi.Prior(PRIOR)
    batch = observed(3).batch()
    simulator = bind_simulator(curve, prior, batch)
    noise = nbi.GaussianNoise().bind(True, prior.full_names)
    z = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[0, 0, 0] = 9.0  # beyond what is simulated
    index = torch.arange(3)
    values, grads = differentiate(Target(prior, simulator, noise, batch).log_prob, z, index)
    with pretended() as traffic:
        target = Target(prior, simulator, noise, batch.to(NAME))
        before = traffic.copy()
        own = differentiate(target.log_prob, z.to(NAME), index.to(NAME))
    assert traffic.since(before).n_waits == 0
    assert traffic.since(before).n_transfers == 2
    assert torch.equal(host_of(own[0]), values)
    inside = torch.isfinite(values)
    assert torch.equal(host_of(own[1])[inside], grads[inside])


# --- one object in rounds -----------------------------------------------------------------------


@pytest.mark.parametrize("locate", ["peaks", "network"])
def test_a_fit_in_rounds_on_the_device_is_that_of_the_cpu(locate):
    x = observed(1).batch().x[0, 0].numpy()
    options = {"n_sims": 200, "n_rounds": 3, "x_obs": x, "locate": locate, "ess_target": 100}
    with pretended():
        own = fitted(NAME, **options).posterior_
    other = fitted("cpu", **options).posterior_
    assert own.status is other.status
    assert np.array_equal(own.samples, other.samples)
    assert np.array_equal(own.weights, other.weights)
