"""Laws of training: resumed runs, bad data, sources, early stopping, random states."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import nbi_plus as nbi
from nbi_plus import (
    ArchiveError,
    CustomNoise,
    FlowConfig,
    GaussianNoise,
    Observations,
    Perturbation,
    TrainConfig,
    TrainingError,
)
from nbi_plus.io.store import SimulationStore
from nbi_plus.learn import fitting, sources, training
from nbi_plus.learn.augmenting import Augmentation
from nbi_plus.learn.encode import EncoderConfig
from nbi_plus.learn.model import FeaturizerSpec, without_global_rng
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.learn.optimizer import FlatOptimizer
from nbi_plus.learn.sources import NoisyBank, Online, Resident, Streamed, TrainingRows
from nbi_plus.learn.training import TrainingTask, train
from nbi_plus.problem.noise.custom import CallableNoise
from nbi_plus.problem.random import generator
from nbi_plus.problem.simulator.cadence import Cadences

DESIGN = torch.tensor([[1.0, 0.5, -0.3, 0.8, 0.1], [0.2, -1.0, 0.7, 0.4, 0.9]]).double()
SIGMA = 0.5
SMALL = FlowConfig(n_blocks=2, hidden=16, n_layers=1, n_mog=1)
PRIOR = nbi.Prior({"a": stats.norm(0, 1), "b": stats.norm(0, 1)})  # z is theta
POSTERIOR = torch.linalg.inv(torch.eye(2).double() + DESIGN @ DESIGN.T / SIGMA**2)
ENTROPY = 0.5 * torch.linalg.slogdet(2 * math.pi * math.e * POSTERIOR)[1].item()


class Flat(nn.Module):
    """A featurizer with all that can make runs differ: dropout and running statistics."""

    n_features = 12

    def __init__(self, n_channels, length=5, dropout=0.0, norm=False):
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(n_channels * length, 12)]
        layers += [nn.BatchNorm1d(12)] if norm else []
        self.net = nn.Sequential(*layers, nn.Dropout(dropout))

    def forward(self, channels):
        return self.net(channels)


def simulate(n, seed=0):
    """Return Rows of a linear model with a known posterior."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=rng, dtype=torch.float64)
    return TrainingRows(z, z, (z @ DESIGN)[:, None].float(), torch.zeros(n, dtype=torch.long))


def conditions():
    return Observations.from_arrays(np.zeros((1, 5)), SIGMA).batch().to(dtype=torch.float32)


def make_problem(n=640, n_held_out=200, **changes):
    rows = simulate(n + n_held_out)
    source = Resident(rows.pick(slice(0, n)))
    problem = TrainingTask(
        source, rows.pick(slice(n, None)), GaussianNoise(), Cadences(conditions())
    )
    return replace(problem, **changes)


def make_network(problem, seed=0, **options):
    config = EncoderConfig.of(problem.cadences.bank)
    network = without_global_rng(seed, lambda: PosteriorNetwork(
        config, Flat(config.n_inputs, **options), 2, SMALL
    ))  # fmt: skip
    with torch.no_grad():
        rows = problem.validation
        network.encoder.fit(problem.observe(rows, generator(0, "encoder")))
    network.flow.whiten(simulate(500).z)
    return network


def run(config, problem=None, network=None, seed=3, **options):
    problem = problem or make_problem()
    network = network or make_network(problem)
    return train(network, problem, config, seed, progress=False, **options), network


def figures(history):
    return [{k: v for k, v in h.items() if k != "seconds"} for h in history]


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)


SHORT = TrainConfig(n_epochs=6, batch_size=64, lr=5e-3)


def test_training_reaches_the_entropy_of_the_posterior():
    problem = make_problem(3000, 2000)
    history, network = run(TrainConfig(n_epochs=10, batch_size=64, lr=5e-3), problem)
    losses = [h["val_nll"] for h in history]
    error = 1.0 / math.sqrt(2000)  # -log q of a normal in 2 dimensions has a variance of 1
    assert ENTROPY - 4 * error < min(losses) < ENTROPY + 4 * error + 0.05
    held_out = training.validation_data(problem, 3)
    assert training.evaluate(network, *held_out) == pytest.approx(min(losses), abs=1e-6)
    assert not network.training


@pytest.mark.parametrize("options", [{}, {"dropout": 0.2, "norm": True}])
def test_resumed_run_equals_an_unbroken_one(options, tmp_path):
    problem = make_problem()
    whole, unbroken = run(SHORT, problem, make_network(problem, **options))

    def interrupt(history):
        if len(history) in (2, 3):
            raise KeyboardInterrupt

    for _ in range(2):
        torch.rand(3)  # the state of the global generator is nobody's business
        with pytest.raises(KeyboardInterrupt):
            run(SHORT, problem, make_network(problem, **options), callback=interrupt,
                checkpoint=tmp_path / "c.h5")  # fmt: skip
    resumed, network = run(
        SHORT, problem, make_network(problem, **options), checkpoint=tmp_path / "c.h5"
    )
    assert figures(resumed) == figures(whole)
    assert same_weights(network, unbroken)


def test_interruption_within_an_epoch_repeats_that_epoch(tmp_path):
    problem = make_problem()
    whole, unbroken = run(SHORT, problem)

    class Failing(Resident):
        def batches(self, epoch, batch_size, rng):
            for i, rows in enumerate(super().batches(epoch, batch_size, rng)):
                if (epoch, i) == (3, 4):
                    raise OSError("the disk is gone")
                yield rows

    broken = replace(problem, source=Failing(problem.source.rows))
    with pytest.raises(OSError, match="the disk is gone"):
        run(SHORT, broken, checkpoint=tmp_path / "c.h5")
    resumed, network = run(SHORT, problem, checkpoint=tmp_path / "c.h5")
    assert len(resumed) == 6
    assert figures(resumed) == figures(whole)
    assert same_weights(network, unbroken)


def test_another_seed_gives_another_network():
    problem = make_problem()
    assert same_weights(run(SHORT, problem)[1], run(SHORT, problem)[1])
    assert not same_weights(run(SHORT, problem)[1], run(SHORT, problem, seed=4)[1])


def train_in_child(folder, name, n_epochs):
    """Train in a forked process, which leaves its weights and history under a name."""
    child = os.fork()
    if child:
        return child
    problem, config = make_problem(), replace(SHORT, n_epochs=n_epochs)
    network = make_network(problem, dropout=0.1)
    history, network = run(config, problem, network, checkpoint=folder / f"{name}.h5")
    torch.save(network.state_dict(), folder / f"{name}.pt")
    (folder / f"{name}.json").write_text(json.dumps(figures(history)))
    os._exit(0)


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def train_killed(folder, n_kills):
    """Kill the same training at random moments, then let it end; run by a process of its own."""
    folder, rng, n_epochs = Path(folder), random.Random(0), 8 + 6 * n_kills
    checkpoint = folder / "killed.h5"
    assert os.waitpid(train_in_child(folder, "unbroken", n_epochs), 0)[1] == 0
    for _ in range(n_kills):
        before, child = stamp(checkpoint), train_in_child(folder, "killed", n_epochs)
        while stamp(checkpoint) == before:
            time.sleep(1e-3)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it must be killed before it ends"
    assert os.waitpid(train_in_child(folder, "killed", n_epochs), 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is forked")
@pytest.mark.parametrize("n_kills", [2, pytest.param(10, marks=pytest.mark.statistics)])
def test_killed_run_equals_an_unbroken_one(n_kills, tmp_path):
    code = f"import test_training as t; t.train_killed({str(tmp_path)!r}, {n_kills})"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
    whole, broken = (torch.load(tmp_path / f"{k}.pt") for k in ("unbroken", "killed"))
    assert all(torch.equal(whole[k], broken[k]) for k in whole)
    whole, broken = (
        json.loads((tmp_path / f"{k}.json").read_text()) for k in ("unbroken", "killed")
    )
    assert whole == broken


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "another file"])
def test_damaged_checkpoint_is_refused(damage, tmp_path):
    path = tmp_path / "c.h5"
    run(replace(SHORT, n_epochs=1), checkpoint=path)
    content = path.read_bytes()
    other = content.replace(b"training", b"traininG")
    damaged = {"empty": b"", "cut": content[:9999], "garbage": b"x" * 4096, "another file": other}
    path.write_bytes(damaged[damage])
    with pytest.raises(ArchiveError, match=r"c\.h5"):
        run(SHORT, checkpoint=path)


def nan_rows(share):
    """Return noise that spoils a share of the rows."""

    def augment(model, obs, theta, rng):
        x = GaussianNoise().augment(model, obs, theta, rng)
        bad = torch.rand(len(x), generator=rng) < share
        return x.masked_fill(bad[:, None, None], math.nan)

    return CustomNoise(augment)


def test_nan_data_are_survived_and_counted():
    problem = make_problem(noise=nan_rows(0.05))
    history, network = run(SHORT, problem)
    n_bad = sum(h["n_bad"] for h in history)
    expected = 0.05 * 6 * 640
    assert abs(n_bad - expected) < 4 * math.sqrt(expected)
    assert all(math.isfinite(h["train_nll"]) and math.isfinite(h["val_nll"]) for h in history)
    assert all(p.isfinite().all() for p in network.parameters())
    clean = run(SHORT, make_problem())[0]
    assert abs(history[-1]["val_nll"] - clean[-1]["val_nll"]) < 0.15


def test_nan_simulations_are_survived():
    problem = make_problem()
    rows = problem.source.rows
    model, z = rows.model.clone(), rows.z.clone()
    model[5], z[7] = math.nan, math.inf
    # all rows have their turn in each epoch, as 64 divides 640
    history, network = run(
        SHORT, replace(problem, source=Resident(rows._replace(model=model, z=z)))
    )
    assert [h["n_bad"] for h in history] == [2] * 6
    assert all(p.isfinite().all() for p in network.parameters())


def test_nothing_but_nan_is_an_error_that_says_so():
    with pytest.raises(TrainingError, match="validation data must be finite, but all 200"):
        run(SHORT, make_problem(noise=nan_rows(2.0)))
    problem = make_problem()
    spoilt = problem.source.rows._replace(
        model=torch.full_like(problem.source.rows.model, math.nan)
    )
    with pytest.raises(TrainingError, match="all 10 batches of epoch 0 gave NaN") as caught:
        run(SHORT, replace(problem, source=Resident(spoilt)))
    assert caught.value.history == []


class Spoiling(Resident):
    """Rows whose parameters belong to other data, from the fourth epoch on."""

    def batches(self, epoch, batch_size, rng):
        for rows in super().batches(epoch, batch_size, rng):
            yield rows if epoch < 4 else rows._replace(z=rows.z.flip(0) * 3)


def test_early_stopping_keeps_the_best_epoch():
    problem = make_problem()
    problem = replace(problem, source=Spoiling(problem.source.rows))
    config = TrainConfig(n_epochs=30, batch_size=64, lr=1e-2, ema=0.5, patience=3)
    history, network = run(config, problem)
    losses = [h["val_nll"] for h in history]
    best = int(np.argmin(losses))
    assert len(history) == best + 1 + 3 < 30
    held_out = training.validation_data(problem, 3)
    assert training.evaluate(network, *held_out) == pytest.approx(losses[best], abs=1e-6)
    assert losses[-1] > losses[best] + 0.1


def test_stopped_run_stays_stopped_when_resumed(tmp_path):
    problem = make_problem()
    problem = replace(problem, source=Spoiling(problem.source.rows))
    config = TrainConfig(n_epochs=30, batch_size=64, lr=1e-2, ema=0.5, patience=3)
    history, network = run(config, problem, checkpoint=tmp_path / "c.h5")
    again, other = run(config, problem, checkpoint=tmp_path / "c.h5")
    assert figures(again) == figures(history)
    assert same_weights(network, other)


@pytest.mark.parametrize("n", [1, 2, 63, 65])
def test_any_number_of_simulations_trains(n):
    history, _ = run(replace(SHORT, n_epochs=2), make_problem(n, 1))
    assert len(history) == 2


def test_average_follows_running_statistics():
    """Else a network with batch normalisation is validated, and kept, with those of its birth."""
    problem = make_problem(1200, 500)
    config = TrainConfig(n_epochs=8, batch_size=64, lr=5e-3)
    history, network = run(config, problem, make_network(problem, norm=True))
    plain, _ = run(config, problem)
    assert network.featurizer.net[2].running_mean.abs().max() > 0.05
    assert history[-1]["val_nll"] < plain[-1]["val_nll"] + 0.2


class Recorder:
    """Noise that remembers what it added."""

    def __init__(self):
        self.added = []
        self.noise = CustomNoise(self._augment)

    def _augment(self, model, obs, theta, rng):
        x = GaussianNoise().augment(model, obs, theta, rng)
        self.added.append(x - model)
        return x


def test_noise_is_fresh_in_training_and_fixed_in_validation():
    recorder = Recorder()
    problem = make_problem(128, 64, noise=recorder.noise)
    network = make_network(problem)
    recorder.added.clear()
    run(replace(SHORT, n_epochs=3), problem, network)
    validation, *batches = recorder.added
    assert len(validation) == 64
    assert len(batches) == 3 * 2  # the validation noise was drawn once, for all epochs
    every = torch.cat([validation, *batches]).flatten()
    assert len(every.unique()) > 0.99 * len(every)
    one, two = (training.validation_data(problem, 3)[1].x for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, training.validation_data(problem, 4)[1].x)


def test_conditions_are_those_of_random_objects_unless_made_on_their_grid():
    errors = np.array([[0.1] * 5, [1.0] * 5, [10.0] * 5])
    three = Observations.from_arrays(np.zeros((3, 5)), errors).batch().to(dtype=torch.float32)
    rows = simulate(3000)._replace(owner=torch.arange(3000) % 3)
    problem = TrainingTask(Resident(rows), rows, GaussianNoise(), Cadences(three))
    seen = problem.observe(rows, generator(0, "test")).x_err[:, 0, 0]
    shares = torch.stack([(seen == e).double().mean() for e in (0.1, 1.0, 10.0)])
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 3), rtol=0, atol=0.035)
    fixed = replace(problem, cadences=Cadences(three, fixed=True))
    own = fixed.observe(rows, generator(0, "test"))
    torch.testing.assert_close(own.x_err[:, 0, 0], three.x_err[rows.owner, 0, 0])
    spread = (own.x - rows.model)[rows.owner == 1].std().item()
    assert spread == pytest.approx(1.0, rel=4 / math.sqrt(2 * 5000))


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def test_global_generators_are_left_alone():
    problem = make_problem()
    before = global_states()
    run(SHORT, problem, make_network(problem, dropout=0.5))
    make_network(problem)
    assert global_states() == before
    assert torch.is_grad_enabled()


def test_training_works_where_gradients_are_off():
    with torch.no_grad():
        history, _ = run(SHORT)
    assert history[-1]["val_nll"] < history[0]["val_nll"]


def test_callback_gets_a_copy():
    problem = make_problem()
    seen = []

    def spoil(history):
        seen.append(len(history))
        history[-1]["val_nll"] = -1e9
        history.clear()

    history, network = run(SHORT, problem, callback=spoil)
    expected, other = run(SHORT, problem)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert figures(history) == figures(expected)
    assert same_weights(network, other)


def test_learning_rate_rises_then_falls_as_a_cosine():
    config = TrainConfig(lr=2e-3, warmup=0.1)
    rates = [training._rate(config, done) for done in np.linspace(0, 1, 101)]
    assert 0 < rates[0] < 1e-5
    assert np.argmax(rates) == 10
    assert max(rates) == pytest.approx(2e-3)
    assert rates[55] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert training._rate(replace(config, warmup=0.0), 0.0) == pytest.approx(2e-3)


@pytest.mark.parametrize("bad", [
    {"n_epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"lr": 0}, {"lr": -1e-3},
    {"lr": math.nan}, {"clip": 0}, {"warmup": 1.0}, {"ema": 1.0}, {"val_fraction": 0},
    {"val_fraction": 1.0}, {"weight_decay": -1}, {"muon": "yes"}, {"muon": 1},
])  # fmt: skip
def test_bad_training_options_are_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.*must|must.*{next(iter(bad))}"):
        TrainConfig(**bad)


# ------------------------------------------------------------------ sources


def stored(folder, n=640):
    rows = simulate(n)
    columns = {"z": (2,), "theta": (2,), "x": (1, 5), "owner": (), "shift": ()}
    store = SimulationStore.open(folder / "sims.h5", {}, columns, n)
    store.write(0, np.zeros(n, np.uint8), z=rows.z.numpy(), theta=rows.z.numpy(),
                x=rows.model.double().numpy(), owner=np.arange(n), shift=np.zeros(n))  # fmt: skip
    return store


def streamed(store, buffer_rows=100):
    row_bytes = 8 * (2 + 2 + 5 + 1)
    rows = np.arange(store.capacity)
    return Streamed(
        store, rows, PRIOR, torch.device("cpu"), torch.float32, 2 * buffer_rows * row_bytes
    )


def epoch_of(source, epoch=0, size=64, seed=0):
    return list(source.batches(epoch, size, generator(seed, f"epoch {epoch}")))


@pytest.mark.parametrize("buffer_rows", [4, 10, 100, 1000])
def test_streamed_rows_come_once_an_epoch_in_whole_batches(buffer_rows, tmp_path):
    with stored(tmp_path, 330) as store:
        source = streamed(store, buffer_rows)
        batches = epoch_of(source)
        seen = torch.cat([b.owner for b in batches])
        assert [len(b.z) for b in batches] == [64] * 5
        assert len(seen.unique()) == len(seen) == 320
        assert torch.equal(torch.cat([b.owner for b in epoch_of(source)]), seen)
        assert not torch.equal(torch.cat([b.owner for b in epoch_of(source, 1)]), seen)
        assert (seen.diff() != 1).double().mean() > 0.9
        rows = simulate(330)
        for b in batches[:1]:
            assert torch.equal(b.z, rows.z[b.owner])
            assert torch.equal(b.model, rows.model[b.owner])
            assert b.model.dtype == torch.float32


def test_resident_rows_come_once_an_epoch():
    source = Resident(simulate(330)._replace(owner=torch.arange(330)))
    seen = torch.cat([b.owner for b in epoch_of(source)])
    assert len(seen.unique()) == len(seen) == 320
    assert not torch.equal(torch.cat([b.owner for b in epoch_of(source, 1)]), seen)


def test_streamed_training_is_as_good_as_resident(tmp_path):
    problem = make_problem()
    with stored(tmp_path) as store:
        losses = [
            run(SHORT, replace(problem, source=source), make_network(problem))[0][-1]["val_nll"]
            for source in (problem.source, streamed(store))
        ]
    other = run(SHORT, problem, make_network(problem, seed=1), seed=9)[0][-1]["val_nll"]
    assert max(losses) - min(losses) < 0.1 + 2 * abs(other - losses[0])


def test_online_rows_are_never_seen_twice():
    asked = []

    def fresh(rows):
        asked.append(rows)
        z = np.random.default_rng(rows[0]).normal(size=(len(rows), 2))
        x = (z @ DESIGN.numpy())[:, None]
        return {"z": z, "theta": z, "x": x, "owner": rows, "shift": np.zeros(len(rows))}

    source = Online(fresh, 128, 50, PRIOR, torch.device("cpu"), torch.float32)
    history, _ = run(replace(SHORT, n_epochs=4), make_problem(source=source))
    assert len(history) == 4
    assert np.array_equal(np.concatenate(asked), 50 + np.arange(4 * 128))


def jump(x, y):
    """Nbi's noise, which may change y: here a shift that is known, and so belongs to y."""
    shift = 0.5 * np.random.normal()  # noqa: NPY002
    noisy = x + SIGMA * np.random.normal(size=x.shape) + shift * DESIGN[0].numpy()  # noqa: NPY002
    return noisy, y + np.array([shift, 0.0])


def test_noisy_bank_is_drawn_anew_and_follows_changed_parameters():
    clean = simulate(200)
    bank = NoisyBank(Resident(clean), CallableNoise(jump), PRIOR)
    one, again, two = epoch_of(bank), epoch_of(bank), epoch_of(bank, 1)
    assert torch.equal(one[0].model, again[0].model)
    assert not torch.equal(one[0].model, two[0].model)
    noisy = sources.noisy_copy(clean, CallableNoise(jump), PRIOR, 5)
    assert noisy.model.dtype == clean.model.dtype
    shift = noisy.z - clean.z
    assert shift[:, 0].std().item() == pytest.approx(0.5, rel=4 / math.sqrt(2 * 200))
    assert shift[:, 1].abs().max() < 1e-12
    torch.testing.assert_close(noisy.theta, noisy.z)
    residual = noisy.model[:, 0] - noisy.z @ DESIGN  # of the changed parameters: noise alone
    assert residual.std().item() == pytest.approx(SIGMA, rel=4 / math.sqrt(2 * 1000))


# ------------------------------------------------------------------ precision


def test_bfloat16_is_refused_where_a_processor_has_no_units_for_it(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, bool, raising=False)
    with pytest.raises(ValueError, match="mixed_precision must be False on a processor without"):
        run(replace(SHORT, mixed_precision=True))


def test_bfloat16_features_train_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    history, network = run(replace(SHORT, mixed_precision=True))
    plain, _ = run(SHORT)
    assert abs(history[-1]["val_nll"] - plain[-1]["val_nll"]) < 0.1
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_compile_is_asked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module: asked.append(module) or module)
    _, network = run(replace(SHORT, n_epochs=3, compile=True))
    assert asked == [network]


@pytest.mark.statistics
def test_compiled_training_is_the_same_training():
    compiled, _ = run(replace(SHORT, compile=True))
    plain, _ = run(SHORT)
    for one, other in zip(compiled, plain, strict=True):
        assert one["val_nll"] == pytest.approx(other["val_nll"], abs=1e-2)


# ------------------------------------------------------------------ fitting


def recipe(**changes):
    batch = Observations.from_arrays(np.zeros((2, 5)), SIGMA).batch()
    n_channels = EncoderConfig.of(batch).n_inputs
    parts = fitting.Recipe(
        prior=PRIOR, noise=GaussianNoise(), cadences=Cadences(batch), units={},
        featurizer=FeaturizerSpec("custom", n_channels, 5, 2, {}),
        custom=without_global_rng(0, lambda: Flat(n_channels)),
        flow=SMALL, train=replace(SHORT, n_epochs=2),
        device=torch.device("cpu"), seed=0, memory=10**9,
    )  # fmt: skip
    return replace(parts, **changes)


def columns(n=300):
    rows = simulate(n)
    return {"z": rows.z.numpy(), "theta": rows.z.numpy(), "x": rows.model.double().numpy(),
            "owner": np.zeros(n, int), "shift": np.zeros(n)}  # fmt: skip


def test_split_is_keyed_by_the_row_and_complete():
    rows = np.arange(1000)
    training_rows, held_out = fitting.split(rows, recipe())
    assert len(held_out) == 100
    assert np.array_equal(np.sort(np.concatenate([training_rows, held_out])), rows)
    shuffled = np.random.default_rng(0).permutation(rows)
    assert np.array_equal(fitting.split(shuffled, recipe())[1], held_out)
    assert not np.array_equal(fitting.split(rows, recipe(seed=1))[1], held_out)
    assert [len(part) for part in fitting.split(np.arange(2), recipe())] == [1, 1]


def test_store_too_large_for_memory_is_streamed(tmp_path):
    with stored(tmp_path) as store:
        small = fitting.from_store(store, 640, recipe(memory=20_000))
        large = fitting.from_store(store, 640, recipe())
        assert isinstance(small.source, Streamed)
        assert isinstance(large.source, Resident)
        assert small.n_sims == large.n_sims == 640
        assert torch.equal(small.validation.z, large.validation.z)
        assert set(small.source.rows) == set(large.source.rows.owner.tolist())
        assert not set(small.source.rows) & set(small.validation.owner.tolist())
        for material in (small, large):
            model = fitting.fit(material, recipe(), progress=False)
            assert math.isfinite(model.history[-1]["val_nll"])


def test_large_values_with_small_errors_are_kept_in_float64():
    def dtype(scale, sigma, x_err):
        batch = Observations.from_arrays(np.zeros((1, 5)), x_err).batch()
        return recipe(cadences=Cadences(batch), noise=GaussianNoise(sigma)).dtype(scale)

    assert dtype(1.0, 1e-3, None) == torch.float32
    assert dtype(1e6, 1.0, None) == torch.float64
    assert dtype(1e6, 1.0, 100.0) == torch.float32  # the observations' own errors win
    assert dtype(1e6, None, 1.0) == torch.float64
    masked = Observations.from_arrays(np.zeros((1, 5)), 1.0, mask=np.zeros((1, 5))).batch()
    assert recipe(cadences=Cadences(masked)).dtype(1e6) == torch.float32


def test_per_item_noise_reaches_encoder_training_and_reference():
    constant = columns() | {"x": np.ones((300, 1, 5))}  # noise-free data have no spread at all
    parts = recipe(noise=CallableNoise(lambda x, y: (x + np.random.normal(size=5), y)))  # noqa: NPY002
    model = fitting.fit(fitting.from_arrays(constant, parts), parts, progress=False)
    encoder = model.network.encoder
    assert 0.1 < encoder.width[0] < 1  # the medians of five unit normals spread by 0.5
    assert abs(encoder.centre[0] - 1) < 0.3


def test_reference_of_a_fit_flags_one_ordinary_object_in_a_hundred():
    parts = recipe(train=replace(SHORT, n_epochs=1, val_fraction=0.5))
    model = fitting.fit(fitting.from_arrays(columns(3000), parts), parts, progress=False)
    fresh = simulate(5000, seed=77)
    problem = make_problem()
    batch = problem.observe(fresh, generator(0, "fresh"))
    features = model.network.features(batch)
    share = model.reference.flag(features, batch.coverage).double().mean().item()
    assert abs(share - 0.01) < 4 * math.sqrt(0.01 * (1 / 5000 + 1 / 750))  # 750 set the cut-off
    p = model.reference.p_value(features)
    assert stats.kstest(p, "uniform").statistic < 2 * math.sqrt(1 / 5000 + 1 / 750)
    for factor in (0.2, 5.0):
        other = replace(batch, x_err=factor * batch.x_err)
        assert model.reference.flag(model.network.features(other), other.coverage).all()


def test_streamed_simulations_refuse_per_item_noise(tmp_path):
    parts = recipe(noise=CallableNoise(jump), memory=20_000)
    with stored(tmp_path) as store:
        material = fitting.from_store(store, 640, parts)
        with pytest.raises(ValueError, match="Use CustomNoise"):
            fitting.fit(material, parts, progress=False)


def mirrored(x, rng):
    sign = torch.randint(0, 2, (len(x), 1, 1), generator=rng, device=x.device) * 2 - 1
    return x * sign


def jittered(x, rng):
    return x.add_(0.1 * torch.randn(x.shape, generator=rng, dtype=x.dtype))  # in place


@pytest.mark.parametrize("augment", [None, jittered])
def test_fit_resumes_its_own_run_alone(augment, tmp_path):
    parts = recipe().augmented(augment)
    material = fitting.from_arrays(columns(), parts)
    whole = fitting.fit(material, parts, progress=False)

    def interrupt(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitting.fit(material, parts, folder=tmp_path, callback=interrupt, progress=False)
    assert len(list(tmp_path.iterdir())) == 1
    other = fitting.fit(material, replace(parts, seed=1), folder=tmp_path, progress=False)
    resumed = fitting.fit(material, parts, folder=tmp_path, progress=False)
    assert same_weights(resumed.network, whole.network)
    assert not same_weights(resumed.network, other.network)
    assert not list(tmp_path.iterdir())  # a finished run leaves nothing to resume


def test_fingerprint_names_all_that_a_run_depends_on():
    parts = recipe()
    material = fitting.from_arrays(columns(), parts)
    other = Observations.from_arrays(np.zeros((2, 5)), 2 * SIGMA).batch()
    timed = Observations.from_arrays(np.zeros((2, 5)), SIGMA, t=np.arange(5)).batch()
    later = Observations.from_arrays(np.zeros((2, 5)), SIGMA, t=np.arange(5) + 1).batch()
    changes = [
        {}, {"noise": GaussianNoise(fractional=0.1)}, {"cadences": Cadences(other)},
        {"cadences": Cadences(timed)},
        {"cadences": Cadences(later)}, {"cadences": Cadences(parts.conditions, fixed=True)},
        {"cadences": Cadences(parts.conditions, perturbation=Perturbation())}, {"seed": 1},
        {"flow": FlowConfig()},
        {"train": TrainConfig()}, {"custom": without_global_rng(1, lambda: Flat(3))},
        {"custom": nn.Flatten()}, {"augment": Augmentation.of(mirrored, parts.conditions)},
        {"augment": Augmentation.of(jittered, parts.conditions)},
        {"prior": nbi.Prior({"a": stats.norm(), "c": stats.norm()})},
    ]  # fmt: skip
    names = [fitting._fingerprint(replace(parts, **change), material) for change in changes]
    assert len(set(names)) == len(names)
    rows = fitting.from_arrays(columns(301), parts)
    assert fitting._fingerprint(parts, rows) not in names
    assert fitting._fingerprint(copy.deepcopy(parts), copy.deepcopy(material)) == names[0]


class TwoTypes(nn.Module):
    """A small network; one of its layers may be in single precision."""

    def __init__(self, *, single=False):
        super().__init__()
        self.first = nn.Linear(7, 33, dtype=torch.float32 if single else torch.float64)
        self.rest = nn.Sequential(nn.LayerNorm(33), nn.GELU(), nn.Linear(33, 3)).double()
        rng = torch.Generator().manual_seed(0)
        self.x = torch.randn(20, 7, generator=rng).to(self.first.weight.dtype)

    def loss(self):
        y = self.rest(self.first(self.x).double())
        return (y - self.x[:, :3].sin()).square().mean()


def test_steps_on_one_buffer_are_those_of_torch():
    network = TwoTypes()
    average, other = copy.deepcopy(network), copy.deepcopy(network)
    optimizer = FlatOptimizer(network, average, weight_decay=0.1, clip=0.5)
    groups = [{"params": [p for p in other.parameters() if (p.ndim > 1) == many],
               "weight_decay": 0.1 * many} for many in (True, False)]  # fmt: skip
    reference = torch.optim.AdamW(groups)
    follower = [p.detach().clone() for p in other.parameters()]
    for step in range(30):
        lr = 0.01 * (1 - step / 40)
        loss = network.loss()
        optimizer.backward(loss)
        assert bool(optimizer.step(lr, loss))
        optimizer.follow(0.2)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.zero_grad()
        other.loss().backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        reference.step()
        pairs = zip(follower, other.parameters(), strict=True)
        follower = [old.lerp(own.detach(), 0.2) for old, own in pairs]
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    for mine, theirs in zip(average.parameters(), follower, strict=True):
        torch.testing.assert_close(mine.detach(), theirs, rtol=0, atol=1e-12)


class Matrices(nn.Module):
    """Tall and wide ones, two of one shape, a convolution, and what is none."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(3, 12, 5)
        self.layers = nn.ModuleList(nn.Linear(*n) for n in ((12, 40), (40, 40), (40, 40), (40, 9)))
        self.last = nn.Linear(9, 3)
        self.x = torch.randn(20, 3, 7, generator=torch.Generator().manual_seed(0))

    def loss(self):
        y = self.convolution(self.x).mean(-1)
        for layer in self.layers:
            y = torch.tanh(layer(y))
        return (self.last(y) - self.x[..., 0].sin()).square().mean()


@pytest.mark.parametrize(
    ("epochs", "asked", "turned"),
    [(1, None, False), (1, True, True), (500, None, True), (500, False, False)],
)
def test_long_trainings_turn_matrices(turning, epochs, asked, turned):
    with pytest.raises(KeyboardInterrupt):
        run(TrainConfig(n_epochs=epochs, batch_size=320, muon=asked))
    assert turning == [turned]


def test_matrices_are_turned_towards_their_gradient():
    """The first step has singular vectors of the gradient, and values of about one (numpy)."""
    network = Matrices()
    start = copy.deepcopy(network)
    optimizer = FlatOptimizer(network, copy.deepcopy(network), weight_decay=0.1, clip=1e9)
    loss = network.loss()
    optimizer.backward(loss)
    optimizer.step(0.01, loss)
    n_turned = 0
    for own, before in zip(network.parameters(), start.parameters(), strict=True):
        if own.ndim == 1 or min(own.flatten(1).shape) < 8:
            continue
        n_turned += 1
        shape = own.flatten(1).shape
        left, values, right = np.linalg.svd(
            own.grad.flatten(1).double().numpy(), full_matrices=False
        )
        step = (0.999 * before - own).detach().flatten(1).double().numpy()
        turned = left.T @ step @ right.T / (0.01 * 0.2 * max(shape) ** 0.5)
        values /= np.sqrt((values**2).sum())
        for _ in range(5):  # of Jordan et al. (2024)
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        np.testing.assert_allclose(turned, np.diag(values), atol=2e-3)
        assert (abs(values[:2] - 1) < 0.35).all()
    assert n_turned == 5
    plain = copy.deepcopy(start)
    adamw = FlatOptimizer(plain, copy.deepcopy(plain), 0.1, 1e9, muon=False)
    loss = plain.loss()
    adamw.backward(loss)
    adamw.step(0.01, loss)
    pairs = zip(network.parameters(), plain.parameters(), strict=True)
    assert [torch.equal(own, other) for own, other in pairs].count(False) == n_turned


@pytest.mark.parametrize("made", [lambda: TwoTypes(single=True), Matrices], ids=["plain", "turned"])
def test_a_step_whose_gradient_is_not_finite_is_void(made):
    network = made()
    optimizer = FlatOptimizer(network, copy.deepcopy(network), weight_decay=0.1, clip=0.5)
    for broken in (False, True, False, True):
        before = [p.detach().clone() for p in network.parameters()]
        before += [v.clone() for own in optimizer.state().values() for v in own.values()]
        loss = network.loss() * (torch.nan if broken else 1.0)
        optimizer.backward(loss)
        assert bool(optimizer.step(0.01, loss)) != broken
        after = list(network.parameters())
        after += [v for own in optimizer.state().values() for v in own.values()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == broken


@pytest.mark.parametrize("made", [lambda: TwoTypes(single=True), Matrices], ids=["plain", "turned"])
def test_an_optimizer_goes_on_from_its_state(made):
    straight = made()
    first = FlatOptimizer(straight, copy.deepcopy(straight), 0.1, 0.5)
    for _ in range(3):
        loss = straight.loss()
        first.backward(loss)
        first.step(0.01, loss)
    again = copy.deepcopy(straight)
    second = FlatOptimizer(again, copy.deepcopy(again), 0.1, 0.5)
    second.restore(copy.deepcopy(first.state()))
    for network, optimizer in ((straight, first), (again, second)):
        loss = network.loss()
        optimizer.backward(loss)
        optimizer.step(0.01, loss)
    assert all(map(torch.equal, straight.parameters(), again.parameters()))
