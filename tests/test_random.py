"""Laws of random numbers: a seed fixes them, and each use of a seed has numbers of its own."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from nbi_plus import launch
from nbi_plus.problem.random import (
    generator,
    keyed_normal,
    keyed_uniform,
    preserved_random_state,
    reseed_global_generators,
    stage_key,
)


def test_every_stage_and_seed_has_a_stream_of_its_own():
    streams = {
        (seed, stage): torch.rand(3, generator=generator(seed, stage)).tolist()
        for seed in (0, 1, 2, 10**6)
        for stage in [f"epoch {i}" for i in range(60)] + ["validation", "encoder"]
    }
    assert len({tuple(v) for v in streams.values()}) == len(streams)
    again = torch.rand(3, generator=generator(1, "epoch 7")).tolist()
    assert streams[1, "epoch 7"] == again


def test_lowest_bits_of_a_key_depend_on_seed_and_stage():
    """Numpy and torch's CPU generator look at 32 bits of a seed."""
    keys = [stage_key(seed, f"epoch {i}") for seed in range(50) for i in range(50)]
    assert len({key % 2**31 for key in keys}) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)
    assert all(np.random.default_rng(key) for key in keys[:3])
    assert stage_key(np.int64(3), "a") == stage_key(3, "a")


def test_streams_of_two_stages_are_not_correlated():
    one, two = (torch.randn(20_000, generator=generator(0, s)) for s in ("epoch 0", "epoch 1"))
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 4 / np.sqrt(20_000)


def test_keyed_numbers_depend_on_their_row_alone():
    rows = torch.tensor([5, 3, 2**40, 0])
    whole = keyed_uniform(1, "a", rows, (3, 2))
    assert whole.shape == (4, 3, 2)
    for i in range(4):
        assert torch.equal(keyed_uniform(1, "a", rows[i : i + 1], (3, 2))[0], whole[i])
    assert torch.equal(keyed_uniform(1, "a", rows, (1,))[:, 0], whole[:, 0, 0])
    for other in (keyed_uniform(2, "a", rows, (3, 2)), keyed_uniform(1, "b", rows, (3, 2))):
        assert (other != whole).all()


@pytest.mark.parametrize("shape", [(3, 5), (40, 2), (400,)])
def test_keyed_numbers_are_the_same_however_many_are_made_at_once(monkeypatch, shape):
    rows = torch.arange(7) * 977
    whole = keyed_normal(1, "a", rows, shape)
    small = replace(launch.KINDS["cpu"], random_numbers=64)
    monkeypatch.setitem(launch.KINDS, "cpu", small)
    assert torch.equal(keyed_normal(1, "a", rows, shape), whole)
    assert keyed_uniform(1, "a", rows, (0,)).shape == (7, 0)
    assert keyed_uniform(1, "a", rows[:0], shape).shape == (0, *shape)


@pytest.mark.parametrize("rows", [torch.arange(20_000), torch.arange(20_000) * 2**31])
def test_keyed_numbers_are_uniform_and_independent(rows):
    u = keyed_uniform(0, "law", rows, (2,))
    assert ((u > 0) & (u < 1)).all()
    assert stats.kstest(u.flatten(), "uniform").pvalue > 1e-3
    bound = 4 / np.sqrt(len(rows))
    for a, b in ((u[:, 0], u[:, 1]), (u[1:, 0], u[:-1, 0])):
        assert abs(np.corrcoef(a, b)[0, 1]) < bound
    assert stats.kstest(keyed_normal(0, "law", rows, (2,)).flatten(), "norm").pvalue > 1e-3


def test_global_generators_come_back_as_they_were():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    before = state()
    with preserved_random_state():
        reseed_global_generators(stage_key(0, "a"))
        first = draw()
        with preserved_random_state():
            reseed_global_generators(5)
            assert draw() != first
        reseed_global_generators(stage_key(0, "a"))
        assert draw() == first
    assert state() == before
    with pytest.raises(KeyError), preserved_random_state():
        {}[draw()]
    assert state() == before
