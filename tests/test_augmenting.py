"""Laws of augmentation: training batches alone, reproducible, named errors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import Observations
from nbi_plus.data.batch import Batch
from nbi_plus.learn.augmenting import Augmentation

T = np.linspace(0, 1, 6)
QUICK = {"n_epochs": 2, "truth_test": False, "progress": False}


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


def make(**changes):
    given = {"noise": 0.3, "featurizer": "mlp", "flow": {"n_blocks": 2, "hidden": 16}}
    return nbi.Engine(line, {"a": norm(0, 1), "b": norm(0, 1)}, **{**given, **changes})


def jitter(x, rng):
    return x + torch.randn(x.shape, generator=rng, dtype=x.dtype)


def losses(engine, name):
    return [epoch[name] for epoch in engine.history_]


def weights(engine):
    return torch.cat([v.flatten().double() for v in engine.model_.network.state_dict().values()])


def test_the_same_seed_gives_the_same_fit_and_another_augmentation_another():
    one, two = (make().fit(200, t=T, augment=jitter, **QUICK) for _ in range(2))
    plain = make().fit(200, t=T, **QUICK)
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(plain))


def test_nothing_but_training_batches_is_augmented():
    seen = []

    def hidden(x, rng):
        seen.append(len(x))
        return torch.zeros_like(x)

    engine = make().fit(200, t=T, augment=hidden, batch_size=60, **QUICK)
    assert seen == [64] + 2 * [60, 60, 60]  # tried once; 20 of 200 rows are held out
    same = make().fit(200, t=T, augment=lambda x, rng: x, batch_size=60, **QUICK)
    plain = make().fit(200, t=T, batch_size=60, **QUICK)
    assert torch.equal(weights(same), weights(plain))
    scales = [e.model_.network.encoder.centre for e in (engine, plain)]
    assert torch.equal(*scales)
    assert losses(engine, "train_nll")[0] > losses(plain, "train_nll")[0]


@pytest.mark.statistics
def test_a_network_that_was_shown_offsets_heeds_them_no_more_and_weights_stay_exact():
    def moved(x, rng):
        return x + 5 * torch.randn((len(x), 1, 1), generator=rng, dtype=x.dtype)

    x = line(np.array([[0.5, 1.0]]), T)[0]
    engine = make().fit(4000, t=T, augment=moved, n_epochs=40, progress=False)
    shifts = [engine.sample(x + step, n_samples=4000).mean(0)[0] for step in (-2.0, 2.0)]
    plain = make().fit(4000, t=T, n_epochs=40, progress=False)
    free = [plain.sample(x + step, n_samples=4000).mean(0)[0] for step in (-2.0, 2.0)]
    assert abs(np.ptp(shifts)) < 0.3 * np.ptp(free)
    posterior = engine.predict(x)
    design = np.stack([np.ones(6), T], 1)
    cov = np.linalg.inv(np.eye(2) + design.T @ design / 0.3**2)
    mean = cov @ design.T @ x / 0.3**2
    error = np.sqrt(cov.diagonal() / posterior.ess)
    assert (np.abs(posterior.mean() - mean) < 5 * error).all()


def test_arguments_come_by_name():
    came = {}

    def all_of_it(x, rng, theta, x_err, mask, t, redshift, unused=3):
        came.update(x=x, theta=theta, x_err=x_err, mask=mask, t=t, redshift=redshift)
        assert unused == 3
        return x

    objects = Observations.from_arrays(np.zeros((2, 6)), 0.3, t=T,
                                       scalars={"redshift": np.array([0.1, 0.2])})  # fmt: skip
    fit = {"observations": objects, "batch_size": 50, "perturb": False}
    make(noise=None).fit(100, augment=all_of_it, **fit, **QUICK)
    assert [came[k].shape for k in ("x", "x_err", "mask")] == 3 * [(50, 1, 6)]
    assert came["theta"].shape == (50, 2)
    np.testing.assert_allclose(came["t"], T)
    np.testing.assert_allclose(came["redshift"].unique(), [0.1, 0.2], rtol=1e-6)


def test_masked_points_stay_masked():
    batch = Batch(torch.zeros(2, 1, 3), None, torch.tensor([[[True, True, False]]] * 2))
    found = Augmentation.of(lambda x: x + 1, batch)(batch, torch.zeros(2, 1), torch.Generator())
    assert found.x.tolist() == [[[1.0, 1.0, 0.0]]] * 2
    assert not batch.x.any()  # what is given is nobody else's


def test_the_data_may_be_changed_in_place():
    x = torch.ones(2, 1, 3)
    batch = Batch(x, None, torch.ones(2, 1, 3, dtype=torch.bool))
    found = Augmentation.of(lambda x: x.mul_(2), batch)(batch, torch.zeros(2, 1), None)
    assert bool((found.x == 2).all() and (x == 1).all())


WRONG = {
    "not callable": ("yes", "augment must be a function, but is a str"),
    "no argument": (lambda: 0, "augment must take the data as its first argument"),
    "unknown name": (lambda x, flux: x, r"by name, some of \['rng', .*'t'\], but asks for 'flux'"),
    "many names": (lambda x, *others: x, "asks for 'others'"),
    "numpy": (lambda x: x.numpy(), "must return a tensor of shape .* but gave a ndarray"),
    "another shape": (lambda x: x[:, 0], r"of shape \(64, 1, 6\) on cpu, .* gave \(64, 6\)"),
    "whole numbers": (lambda x: x.round().int(), "must return floats.* but gave torch.int32"),
    "NaN": (lambda x: x.log(), r"must keep finite data finite, but \d+ of 64 tried rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_augmentation_is_refused_before_training(case):
    augment, message = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=message):
        make().fit(200, t=T, augment=augment, **QUICK)


def test_fits_of_one_object_and_of_densities_of_data_refuse_it():
    with pytest.raises(ValueError, match="augment must be None for a sequential fit"):
        make().fit(200, x_obs=T, t=T, n_rounds=2, augment=jitter)
    one = nbi.LikelihoodEngine(lambda theta: theta + np.random.normal(size=(len(theta), 1)),  # noqa: NPY002
                               {"a": norm(0, 1)})  # fmt: skip
    with pytest.raises(ValueError, match="take RatioEngine"):
        one.fit(100, augment=jitter)


@pytest.mark.parametrize("kind", ["point", "ensemble"])
def test_other_estimators_take_it(kind):
    calls = []

    def counted(x, rng):
        calls.append(len(x))
        return x

    engine = make()
    other = nbi.Ensemble(engine, 2) if kind == "ensemble" else nbi.PointEngine(
        line, {"a": norm(0, 1), "b": norm(0, 1)}, 0.3, featurizer="mlp")  # fmt: skip
    other.fit(100, t=T, n_epochs=1, augment=counted, progress=False)
    assert len(calls) >= (4 if kind == "ensemble" else 2)


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor


def test_fingerprints_tell_functions_apart():
    batch = Batch(torch.zeros(1, 1, 1), None, torch.ones(1, 1, 1, dtype=torch.bool))
    functions = [
        lambda x: torch.sin(x), lambda x: torch.cos(x), lambda x: x * 2, lambda x: x * 3,
        lambda x: (lambda y: y + 1)(x), lambda x: (lambda y: y + 2)(x),
        lambda x, *, by=1: x * by, lambda x, *, by=2: x * by,
        Scaled(1), Scaled(2), partial(torch.add, other=1), jitter,
    ]  # fmt: skip
    names = [replace(Augmentation(f, ()), names=()).fingerprint() for f in functions]
    assert len(set(names)) == len(names)
    assert Augmentation.of(Scaled(2), batch).fingerprint() == names[9]
