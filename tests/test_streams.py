"""Laws of streams: weights of a deterministic mixture, and what may and may not change them."""

import math
from dataclasses import replace

import pytest
import torch
from densities import Normal, evaluation, normals, uniforms, weigh

from nbi_plus.infer.proposals.cross_fit import Pair, take
from nbi_plus.infer.proposals.streams import Stream
from nbi_plus.infer.weights.summary import log_evidence

N_DIM = 2
SHAPE = (1, 1, N_DIM)
WIDE = Normal(torch.zeros(SHAPE).double(), torch.full(SHAPE, 1.5).double())
ASIDE = Normal(torch.full(SHAPE, 0.6).double(), torch.full(SHAPE, 0.6).double())
TARGET = Normal.standard(1, N_DIM)
KEYS = torch.arange(300)


def batch(proposal, n):
    return Normal(*(v.expand(n, 1, N_DIM) for v in (proposal.mean, proposal.sd)))


def drawn(proposal, n, stage, keys=KEYS):
    z = batch(proposal, len(keys)).draw(keys, n, 0, stage)
    return z, evaluation(TARGET, z)


def log_z(log_weights):
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def two_proposals(n=(300, 900), keys=KEYS):
    wide, aside = batch(WIDE, len(keys)), batch(ASIDE, len(keys))
    return Stream.start(wide, *drawn(WIDE, n[0], "a", keys)).add(
        aside, *drawn(ASIDE, n[1], "b", keys)
    )


def assert_same_stream(a, b, tol=0.0):
    assert a.counts == b.counts
    for name in ("z", "log_prior", "log_likelihood", "failed", "log_q"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tol, atol=tol)


# --- deterministic mixtures ---------------------------------------------------------------------


def test_the_evidence_of_fixed_proposals_is_right():
    stream = two_proposals()
    found = log_evidence(stream.log_weights, torch.zeros(300).double())
    pulls = found.log_evidence / found.log_evidence_err
    assert pulls.mean().abs() < 4 / 300**0.5
    assert 0.9 < (pulls.abs() < 1.96).double().mean() <= 1.0
    z, weights = stream.z, stream.log_weights.softmax(1)[..., None]
    mean = (weights * z).sum(1)
    assert (mean.mean(0).abs() < 4 * mean.std(0) / 300**0.5).all()


def test_one_mixture_is_better_than_own_weights():
    stream = two_proposals()
    target = stream.log_prior + stream.log_likelihood
    own = target - torch.cat([stream.log_q[0, :, :300], stream.log_q[1, :, 300:]], 1)
    pooled, separate = log_z(stream.log_weights), log_z(own)
    assert pooled.square().mean().sqrt() < 0.7 * separate.square().mean().sqrt()


def test_weights_are_those_of_owen_and_zhou():
    stream = two_proposals(n=(3, 5), keys=KEYS[:2])
    q = 3 / 8 * WIDE.log_prob(stream.z).exp() + 5 / 8 * ASIDE.log_prob(stream.z).exp()
    torch.testing.assert_close(stream.log_weights, TARGET.log_prob(stream.z) - q.log())


# --- adding, taking away ------------------------------------------------------------------------


def test_more_draws_of_the_last_proposal_are_as_if_drawn_at_once():
    (z, found), aside = drawn(ASIDE, 50, "b"), batch(ASIDE, 300)
    first = Stream.start(batch(WIDE, 300), *drawn(WIDE, 30, "a"))
    at_once = first.add(aside, z, found)
    parts = (slice(0, 20), slice(20, None))
    one, two = ((z[:, part], take(found, part)) for part in parts)
    in_two = first.add(aside, *one).more(*two)
    assert_same_stream(at_once, in_two)
    assert len(in_two.proposals) == 2
    assert Stream.start(aside, *one).more(*two).counts == (50,)


def test_since_leaves_the_later_draws_as_if_alone():
    stream = two_proposals(n=(30, 50))
    alone = Stream.start(batch(ASIDE, 300), *drawn(ASIDE, 50, "b"))
    assert_same_stream(stream.since(1), alone)
    assert_same_stream(stream.since(0), stream)


def test_select_equals_the_objects_alone():
    stream, rows = two_proposals(n=(30, 50)), torch.tensor([7, 2])
    assert_same_stream(stream.select(rows), two_proposals((30, 50), KEYS[rows]), 1e-12)


# --- special values -----------------------------------------------------------------------------


def test_failed_draws_do_not_count_and_nan_has_weight_zero():
    z, found = drawn(WIDE, 1000, "a")
    failed, is_nan = uniforms(1, 300, 1000) < 0.3, uniforms(2, 300, 1000) < 0.1
    likelihood = found.log_likelihood.masked_fill(is_nan, math.nan).masked_fill(failed, -math.inf)
    stream = Stream.start(
        batch(WIDE, 300), z, replace(found, log_likelihood=likelihood, failed=failed)
    )
    gone = failed | is_nan
    assert (stream.log_weights[gone] == -math.inf).all()
    whole = Stream.start(batch(WIDE, 300), z, found).log_weights
    assert torch.equal(stream.log_weights[~gone], whole[~gone])
    cleaned = weigh(stream)
    assert torch.equal(cleaned.n_draws, (~failed).sum(1))
    assert torch.equal(cleaned.n_nan, (is_nan & ~failed).sum(1))
    assert torch.equal(cleaned.log_weights, stream.log_weights)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_special_likelihood_never_becomes_a_weight_to_learn_from(value):
    z, found = drawn(WIDE, 50, "a")
    likelihood = found.log_likelihood.index_fill(1, torch.tensor([3]), value)
    stream = Stream.start(batch(WIDE, 300), z, replace(found, log_likelihood=likelihood))
    assert (stream.log_weights[:, 3] == -math.inf).all()
    assert stream.log_weights[:, 4:].isfinite().all()
    assert (weigh(stream).failure != 0).all() == (value == math.inf)


# --- pairs --------------------------------------------------------------------------------------


def some_pair(n=11):
    return Pair.start(batch(WIDE, 300), *drawn(WIDE, n, "a"))


def test_the_streams_take_turns_in_the_draws():
    z, found = drawn(WIDE, 11, "a")
    pair = some_pair()
    assert torch.equal(pair.a.z, z[:, 0::2])
    assert torch.equal(pair.b.z, z[:, 1::2])
    assert torch.equal(pair.b.log_likelihood, found.log_likelihood[:, 1::2])
    assert pair.n_draws == 11
    z, found = drawn(ASIDE, 6, "b")
    pair = pair.share(batch(ASIDE, 300), z, found)
    assert torch.equal(pair.a.z[:, 6:], z[:, 0::2])
    assert torch.equal(pair.b.z[:, 5:], z[:, 1::2])
    assert pair.n_shared == 2


def test_extended_streams_get_half_of_the_draws_each():
    (z, found), proposals = drawn(ASIDE, 8, "b"), (batch(ASIDE, 300), batch(WIDE, 300))
    pair = some_pair(10).extend(proposals, z, found)
    assert torch.equal(pair.a.z[:, 5:], z[:, :4])
    assert torch.equal(pair.b.z[:, 5:], z[:, 4:])
    assert pair.proposals == proposals
    assert pair.n_shared == 1


@pytest.mark.parametrize("sizes", [(10, 6), (11, 5), (1, 4)])
def test_in_turns_is_the_order_in_which_draws_were_made(sizes):
    (z1, f1), (z2, f2) = drawn(WIDE, sizes[0], "a"), drawn(ASIDE, sizes[1], "b")
    pair = Pair.start(batch(WIDE, 300), z1, f1).share(batch(ASIDE, 300), z2, f2)
    z, turns = torch.cat([z1, z2], 1)[0], pair.in_turns()
    assert turns.shape == (sum(sizes),)
    for stream in (pair.a, pair.b):
        for own, value in zip(stream.z[0], stream.log_weights[0], strict=True):
            assert turns[(z == own).all(1)] == value


def test_the_evidence_sees_no_shared_proposal():
    pair = some_pair(10)
    pair = pair.share(batch(ASIDE, 300), *drawn(ASIDE, 6, "b"))
    z, found = drawn(WIDE, 8, "c")
    pair = pair.extend((batch(WIDE, 300), batch(ASIDE, 300)), z, found).unbiased()
    assert pair.n_shared == 0
    assert pair.a.counts == pair.b.counts == (4,)
    assert torch.equal(torch.cat([pair.a.z, pair.b.z], 1), z)
    torch.testing.assert_close(
        pair.a.log_weights, TARGET.log_prob(z[:, :4]) - WIDE.log_prob(z[:, :4])
    )


def test_a_selected_pair_is_the_pair_of_the_selected():
    rows = torch.tensor([5, 3])
    pair = some_pair().select(rows)
    alone = Pair.start(batch(WIDE, 2), *drawn(WIDE, 11, "a", KEYS[rows]))
    assert_same_stream(pair.a, alone.a, 1e-12)
    assert_same_stream(pair.b, alone.b, 1e-12)


@pytest.mark.parametrize("crossed", [False, True])
def test_fresh_draws_of_some_objects_are_those_of_the_last_proposals(crossed):
    """Streams that are selected hold copies of their proposals, each its own."""
    rows, pair = torch.tensor([5, 3]), some_pair(10)
    if crossed:
        z, found = drawn(ASIDE, 6, "b")
        pair = pair.extend((batch(ASIDE, 300), batch(ASIDE, 300)), z, found)
    else:
        pair = pair.share(batch(ASIDE, 300), *drawn(ASIDE, 6, "b"))
    fresh = pair.latest
    for n, stage in ((4, "c"), (8, "d")):
        pair, fresh = pair.select(rows), fresh.select(rows)
        rows = torch.tensor([1, 0])
        keys = KEYS[torch.tensor([5, 3] if stage == "c" else [3, 5])]
        pair, fresh = pair.judged(*drawn(ASIDE, n, stage, keys), fresh)
    assert pair.a.counts == pair.b.counts == (5, 9)
    assert fresh.z.shape[1] == 18
    torch.testing.assert_close(pair.latest.z.sort(1).values, fresh.z.sort(1).values)
    z, found = drawn(WIDE, 20, "e", keys)
    after = pair.extend((batch(WIDE, 2), batch(WIDE, 2)), z, found)
    torch.testing.assert_close(after.latest.z, z)


def test_the_frozen_proposal_is_both_last_ones_in_equal_shares():
    z, found = drawn(ASIDE, 8, "b")
    pair = some_pair(10).extend((batch(ASIDE, 300), batch(WIDE, 300)), z, found)
    at = normals(0, 300, 5, N_DIM)
    expected = 0.5 * ASIDE.log_prob(at).exp() + 0.5 * WIDE.log_prob(at).exp()
    torch.testing.assert_close(pair.frozen.log_prob(at).exp(), expected)
    draws = pair.frozen.draw(KEYS, 400, 0, "frozen")
    assert (draws[:, :200].mean() - 0.6).abs() < 4 * 0.6 / 120_000**0.5
    assert draws[:, 200:].mean().abs() < 4 * 1.5 / 120_000**0.5
