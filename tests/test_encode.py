"""Laws of the encoder: padding, units and odd data change nothing that they should not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from nbi_plus import Batch, FlowConfig, Observations, launch
from nbi_plus.learn.encode import Encoder, EncoderConfig
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.problem.random import preserved_random_state, reseed_global_generators

laws = settings(max_examples=60, deadline=None, derandomize=True, database=None)


class Pooled(nn.Module):
    """A featurizer that averages over real points."""

    n_features = 8

    def __init__(self, n_channels):
        super().__init__()
        self.each = nn.Linear(n_channels, 8)

    def forward(self, channels):
        mask = channels[:, -1:]
        return (torch.tanh(self.each(channels.mT)).mT * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def observe(n=6, c=2, length=9, *, unit=1.0, shift=0.0, seed=0, masked=0.2, origin=0.0):
    rng = np.random.default_rng(seed)
    x = unit * (5 + rng.normal(size=(n, c, length))) + shift
    err = unit * rng.uniform(0.1, 1, x.shape)
    t = np.sort(rng.uniform(0, 30, (n, length)), 1) + origin
    return Observations.from_arrays(
        x, err, mask=rng.random(x.shape) >= masked, t=t, scalars={"z": rng.uniform(0, 1, n)}
    ).batch()


def fitted(batch):
    encoder = Encoder(EncoderConfig.of(batch))
    encoder.fit(batch)
    return encoder


def padded(batch, extra, seed=3):
    """Return a batch with more masked points, that hold anything."""
    rng = np.random.default_rng(seed)
    n, c, _ = batch.mask.shape

    def longer(v, low, high):
        more = rng.uniform(low, high, (*v.shape[:-1], extra))
        return torch.cat([v, torch.from_numpy(more).to(v.dtype)], -1)

    return Batch(
        x=longer(batch.x, -1e3, 1e3),
        x_err=longer(batch.x_err, 0.1, 1e3),
        mask=torch.cat([batch.mask, torch.zeros(n, c, extra, dtype=torch.bool)], -1),
        coords={k: longer(v, -1e5, 1e5) for k, v in batch.coords.items()},
        scalars=batch.scalars,
    )


def networks(batch):
    with preserved_random_state():
        reseed_global_generators(0)
        config = EncoderConfig.of(batch)
        net = PosteriorNetwork(config, Pooled(config.n_inputs), 2, FlowConfig(n_blocks=1)).eval()
    net.encoder.fit(batch)
    return net


def test_padding_changes_no_feature():
    batch = observe()
    net = networks(batch)
    features = net.features(batch)
    for extra in (1, 20):
        torch.testing.assert_close(net.features(padded(batch, extra)), features, rtol=0, atol=1e-5)
        channels, context = net.encoder(padded(batch, extra))
        before, context_before = net.encoder(batch)
        assert torch.equal(channels[..., : before.shape[-1]], before)
        assert not channels[..., before.shape[-1] :].any()
        assert torch.equal(context, context_before)
    again = networks(padded(batch, 20))
    torch.testing.assert_close(again.features(batch), features, rtol=0, atol=1e-5)


def test_masked_values_change_no_feature():
    batch = observe()
    encoder = fitted(batch)
    hidden = replace(
        batch,
        x=torch.where(batch.mask, batch.x, 1e9),
        x_err=torch.where(batch.mask, batch.x_err, 1e-9),
    )
    for one, other in zip(encoder(batch), encoder(hidden), strict=True):
        assert torch.equal(one, other)


def test_batches_of_any_size_give_the_same_features():
    batch = observe(9)
    net = networks(batch)
    each = torch.cat([net.features(batch.select(slice(i, i + 1))) for i in range(9)])
    torch.testing.assert_close(each, net.features(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bound", [1, 60, 10**6])
def test_objects_of_like_lengths_are_encoded_together_with_the_same_features(bound, monkeypatch):
    rng, own = np.random.default_rng(0), (9, 3, 40, 17, 3, 9)
    many = Observations.from_arrays(
        [rng.normal(size=(2, k)) for k in own], [rng.uniform(0.1, 1, (2, k)) for k in own],
        t=[np.sort(rng.uniform(0, 30, k)) for k in own],
    )  # fmt: skip
    net, seen = networks(many.batch()), []
    each = torch.cat([net.features(one.batch()) for one in many])
    monkeypatch.setitem(launch.KINDS, "cpu", replace(launch.KINDS["cpu"], encoded_points=bound))
    net.featurizer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    found = net.features(many.batch(), many.lengths)
    torch.testing.assert_close(found, each, rtol=0, atol=1e-5)
    assert all(2 * n * width <= bound or n == 1 for n, _, width in seen)
    if bound == 1:
        assert sorted(width for *_, width in seen) == sorted(own)


@pytest.mark.parametrize(("unit", "shift"), [(1e6, 0.0), (1e-20, 0.0), (1.0, 1e4)])
def test_units_and_zero_points_reach_the_context_alone(unit, shift):
    plain = observe()
    other = replace(plain, x=unit * plain.x + shift, x_err=abs(unit) * plain.x_err)
    encoder = fitted(plain)
    channels, context = encoder(plain)
    moved, moved_context = encoder(other)
    torch.testing.assert_close(moved, channels, rtol=0, atol=1e-5)
    same = slice(8, None)  # after four numbers of each of two channels
    assert torch.equal(moved_context[:, same], context[:, same])
    assert moved_context.isfinite().all()
    # an encoder that was fitted to the other unit takes its objects as this one took these
    # but for the logarithms of the location, which a zero point changes
    kept = [0, 1, 4, 5, 8, 9] if shift else list(range(10))
    refitted = fitted(other)(other)[1]
    torch.testing.assert_close(refitted[:, kept], context[:, kept], rtol=0, atol=1e-4)


def test_error_channel_has_no_unit_even_where_another_channel_is_masked():
    batch = observe(masked=0.5)
    assert (batch.mask[:, 0] != batch.mask[:, 1]).any()
    channels = fitted(batch)(batch)[0]
    scaled = replace(batch, x=1e6 * batch.x, x_err=torch.where(batch.mask, 1e6 * batch.x_err, 1.0))
    torch.testing.assert_close(fitted(batch)(scaled)[0], channels, rtol=0, atol=1e-5)
    assert not channels[:, 2:4][~batch.mask].any()


def test_coordinates_keep_their_digits():
    early, late = observe(), observe(origin=2.46e6)
    channels, context = fitted(early)(early)
    moved, moved_context = fitted(late)(late)
    torch.testing.assert_close(moved, channels, rtol=0, atol=1e-5)  # float32 days step by 0.25
    torch.testing.assert_close(moved_context, context, rtol=0, atol=1e-5)


def test_config_counts_what_the_encoder_returns():
    grid = Observations.from_arrays(np.random.default_rng(0).normal(size=(4, 7)), t=np.arange(7.0))
    for batch in (observe(), observe(c=1), grid.batch(), replace(observe(), scalars={}, coords={})):
        encoder = fitted(batch)
        channels, context = encoder(batch)
        assert channels.shape == (len(batch), encoder.config.n_inputs, batch.mask.shape[-1])
        assert context.shape == (len(batch), encoder.config.n_context)
        assert channels.dtype == context.dtype == torch.float32
        assert torch.equal(channels[:, -1], batch.mask.any(1).float())


def test_context_of_ordinary_objects_is_of_order_one():
    batch = observe(200, unit=1e-15, origin=2.46e6)
    context = fitted(batch)(batch)[1]
    assert context.median(0).values.abs().max() < 0.1
    assert ((context.std(0) > 0.3) & (context.std(0) < 3)).all()


def test_context_tells_location_and_scale_apart():
    batch = observe(50)
    encoder = fitted(batch)
    context = encoder(batch)[1]
    louder = replace(batch, x=3 * (batch.x - 5) + 5)
    higher = replace(batch, x=batch.x + 2)
    assert (encoder(louder)[1][:, 4:6] > context[:, 4:6]).all()
    assert (encoder(higher)[1][:, :2] > context[:, :2]).all()
    torch.testing.assert_close(encoder(higher)[1][:, 4:6], context[:, 4:6])


def odd_objects():
    """Return constant, all-masked, one-point, two-valued and peaked objects in a batch."""
    x = np.random.default_rng(0).normal(size=(6, 1, 12))
    mask = np.ones_like(x, bool)
    x[0], mask[1], mask[2, 0, 1:] = 3.0, False, False
    x[3, 0, 1:] = 0.0
    x[4, 0, 5] = 1e12
    return Observations.from_arrays(x, 0.1, mask=mask, t=np.arange(12.0)).batch()


def test_odd_objects_stay_finite_and_of_moderate_size():
    batch = odd_objects()
    for part in fitted(batch)(batch):
        assert part.isfinite().all()
        assert part.abs().max() < 40
    peaked = fitted(batch)(batch)[0][4, 0]
    assert peaked.argmax() == 5
    assert peaked[5] > 20


@laws
@given(
    arrays(
        np.float64, (3, 2, 4), elements=st.just(0.0) | st.floats(1e-60, 1e60) | st.floats(-9, 9)
    ),
    arrays(np.float64, (3, 2, 4), elements=st.floats(1e-30, 1e30)),
    arrays(np.bool_, (3, 2, 4)),
)
def test_any_data_give_finite_channels(x, err, mask):
    batch = Observations.from_arrays(x, err, mask=mask, t=np.arange(4.0)).batch()
    for part in fitted(batch)(batch):
        assert part.isfinite().all()


def test_hardly_different_points_beside_a_huge_one_stay_finite():
    x = np.array([[[0.0, 2.8e-266, 7e42, 7e42]]])
    batch = Observations.from_arrays(x, 1.0, t=np.arange(4.0)).batch()
    for part in fitted(batch)(batch):
        assert part.isfinite().all()


def test_single_point_grids_are_no_division_by_zero():
    single = Observations.from_arrays([[1.0], [2.0]], 0.1, t=[5.0]).batch()
    own = Observations.from_arrays([[1.0], [2.0]], 0.1, t=[[5.0], [6.0]]).batch()
    for batch in (single, own):
        assert all(part.isfinite().all() for part in fitted(batch)(batch))
    longer = Observations.from_arrays([[1.0, 2.0]], 0.1, t=[[5.0, 9.0]]).batch()
    assert fitted(own)(longer)[0].abs().max() < 100


def test_gradient_of_features_in_the_data_is_finite():
    batch = odd_objects()
    net = networks(batch)
    x = batch.x.clone().requires_grad_()
    slope = torch.autograd.grad(net(replace(batch, x=x)).sum(), x)[0]
    assert slope.isfinite().all()
