"""Laws of the feature distance: how many ordinary and how many odd objects it flags."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nbi_plus import Observations
from nbi_plus.learn.reference import FeatureReference

N_FEATURES = 6


def features(n, seed):
    """Return correlated features, far from zero, of very different scales."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(N_FEATURES, N_FEATURES, generator=torch.Generator().manual_seed(99))
    raw = torch.randn(n, N_FEATURES, generator=rng) @ mix
    return raw * torch.logspace(-2, 2, N_FEATURES) + 100.0


def objects(n, scale=1.0, seed=0, length=20, masked=0.3, channels=1):
    """Return objects whose errors differ by a factor of two about ``scale``, with gaps."""
    rng = np.random.default_rng(seed)
    shape = (n, channels, length)
    err = scale * rng.uniform(0.7, 1.4, (n, 1, 1)) * np.ones(shape)
    keep = rng.random(shape) >= masked
    return Observations.from_arrays(np.zeros(shape), err, mask=keep).batch()


@pytest.fixture(scope="module")
def reference():
    return FeatureReference.fit(features(4000, 0), features(4000, 1), objects(500))


def test_ordinary_objects_are_flagged_as_often_as_promised(reference):
    n, conditions = 20_000, objects(500)
    fresh = features(n, 2)
    seen = conditions.select(torch.arange(n) % 500)
    share = reference.flag(fresh, seen.coverage).double().mean().item()
    error = math.sqrt(0.01 * 0.99 * (1 / n + 1 / 4000))  # the cut-off is estimated too
    assert abs(share - 0.01) < 4 * error


def test_p_values_of_ordinary_objects_are_uniform(reference):
    p = reference.p_value(features(4000, 3)).numpy()
    assert ((p > 0) & (p <= 1)).all()
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert reference.p_value(features(10, 3) + 1e6).max() == pytest.approx(1 / 4001)


def test_distance_is_that_of_mahalanobis(reference):
    f = features(50, 4).double()
    sample = features(4000, 0).double()
    cov = torch.cov(sample.T)
    exact = torch.einsum(
        "ni,ij,nj->n", f - sample.mean(0), torch.linalg.inv(cov), f - sample.mean(0)
    )
    # nothing but the small shrinkage, which hardly matters for features of one scale
    white = (sample - sample.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(cov)).T
    again = FeatureReference.fit(white, white, objects(5))
    moved = (f - sample.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(cov)).T
    torch.testing.assert_close(again.distance(moved), exact.sqrt(), rtol=2e-3, atol=0)


def test_features_unlike_the_training_set_are_flagged(reference):
    batch = objects(200, seed=0)
    odd = features(200, 5) + 30 * features(4000, 0).std(0)
    assert reference.flag(odd, batch.coverage).all()
    assert (reference.p_value(odd) < 0.001).all()


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_other_error_scale_is_flagged_by_its_range(reference, factor):
    ordinary = reference.mean.expand(500, -1)  # no distance at all
    assert not reference.flag(ordinary, objects(500).coverage).any()
    assert reference.flag(ordinary, objects(500, factor).coverage).all()


@pytest.mark.parametrize("channel", [0, 1])
def test_error_scale_of_each_channel_counts(channel):
    batch = objects(100, channels=2)
    reference = FeatureReference.fit(features(500, 0), features(500, 1), batch)
    ordinary = reference.mean.expand(100, -1)
    assert not reference.flag(ordinary, batch.coverage).any()
    batch.x_err[:, channel] *= 2.5
    assert reference.flag(ordinary, batch.coverage).all()


def test_number_of_points_outside_training_is_flagged(reference):
    ordinary = reference.mean.expand(40, -1)
    counts = objects(500).mask.sum((1, 2))
    for batch in (objects(40, masked=0.95), objects(40, masked=0.3, length=60)):
        n = batch.mask.sum((1, 2))
        outside = (n < counts.min()) | (n > counts.max())
        assert outside.any()
        assert torch.equal(reference.flag(ordinary, batch.coverage), outside)


def test_masked_channel_and_masked_object_are_no_numerical_accident(reference):
    batch = objects(3, channels=2, masked=0.0)
    batch.mask[0, 1], batch.mask[1] = False, False
    two = FeatureReference.fit(features(50, 0), features(50, 1), batch)
    assert two.ranges.isfinite().all()
    assert not two.flag(two.mean.expand(3, -1), batch.coverage).any()
    nothing = objects(3, masked=1.0)
    assert reference.flag(reference.mean.expand(3, -1), nothing.coverage).all()


def test_padding_changes_no_verdict(reference):
    batch = objects(30, masked=0.3)
    longer = Observations.from_arrays(
        np.zeros((30, 45)),
        np.pad(batch.x_err[:, 0].numpy(), ((0, 0), (0, 25)), constant_values=9.0),
        mask=np.pad(batch.mask[:, 0].numpy(), ((0, 0), (0, 25))),
    ).batch()
    ordinary = reference.mean.expand(30, -1)
    assert torch.equal(
        reference.flag(ordinary, longer.coverage), reference.flag(ordinary, batch.coverage)
    )


def test_unknown_errors_have_no_range():
    bare = Observations.from_arrays(np.zeros((5, 8))).batch()
    reference = FeatureReference.fit(features(200, 0), features(200, 1), bare)
    assert not reference.flag(reference.mean.expand(5, -1), bare.coverage).any()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_or_constant_features_are_no_error(n):
    for few in (features(n, 0), torch.ones(n, N_FEATURES)):
        reference = FeatureReference.fit(few, few, objects(5))
        assert reference.distance(features(10, 1)).isfinite().all()
        assert (reference.p_value(features(10, 1)) > 0).all()


def test_state_survives_its_arrays(reference):
    again = FeatureReference(**reference.arrays())
    fresh, batch = features(100, 6), objects(100)
    assert torch.equal(again.flag(fresh, batch.coverage), reference.flag(fresh, batch.coverage))
    assert torch.equal(again.p_value(fresh), reference.p_value(fresh))
