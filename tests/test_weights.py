"""Laws of importance weights: closed forms, invariances, special values, and measured honesty."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nbi_plus import Gate, launch
from nbi_plus.infer.weights.clean import Failure, clean, defensive_log_prob, log_mixture
from nbi_plus.infer.weights.psis import psis, threshold
from nbi_plus.infer.weights.resample import systematic_resample
from nbi_plus.infer.weights.summary import (
    Grade,
    effective_sample_size,
    log_evidence,
    nbi_effective_sample_size,
    normalise,
    summarise,
)

INF = math.inf
laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniforms(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_log_prob(x, sd=1.0):
    """Return log N(x; 0, sd^2 I) over the last axis."""
    return -0.5 * (x / sd).square().sum(-1) - x.shape[-1] * math.log(sd * math.sqrt(2 * math.pi))


def gaussian_log_weights(seed, n_objects, n_draws, n_dim, sd):
    """Return weights of N(0, I) against N(0, sd^2 I): log Z is 0, the asymptotic k is 1 - sd^2."""
    z = sd * normals(seed, n_objects, n_draws, n_dim)
    return gaussian_log_prob(z) - gaussian_log_prob(z, sd)


def assert_same_summary(a, b, tol=1e-12, skip=()):
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name not in skip and left is not None:
            torch.testing.assert_close(
                left, right, rtol=tol, atol=tol, equal_nan=True, msg=field.name
            )


# Exact sums: multiples of 1/1024 stay exact when shifted by integers, so ties stay ties.
log_weight_rows = st.integers(1, 3).flatmap(
    lambda n: st.integers(1, 300).flatmap(
        lambda s: st.tuples(
            arrays(np.int64, (n, s), elements=st.integers(-9000, 9000)),
            arrays(np.bool_, (n, s)),
        )
    )
)


def as_rows(drawn):
    """Return log-weights, some of them -inf, from what hypothesis drew."""
    numbers, is_zero = (torch.from_numpy(part) for part in drawn)
    return torch.where(is_zero, -INF, numbers.double() / 1024.0)


# --- special values -----------------------------------------------------------------------------


def test_no_support_is_a_value_and_never_a_success():
    likelihood = torch.full((2, 4096), -INF)
    likelihood[1] = 0.0  # a good neighbour in the batch
    result = clean(likelihood, torch.zeros(2, 4096), torch.zeros(2, 4096))
    assert result.failure.tolist() == [Failure.NO_SUPPORT, Failure.NONE]
    summary = summarise(result.log_weights, z=normals(0, 2, 4096, 2))
    for name in ("ess", "ess_low", "ess_nbi", "efficiency", "max_share", "perplexity"):
        assert getattr(summary, name)[0] == 0.0, name
    assert (summary.weights[0] == 0).all()
    assert summary.k_hat[0] == summary.k_hat_moment[0] == INF
    assert summary.log_evidence[0] == summary.log_evidence_psis[0] == -INF
    assert summary.log_evidence_err[0].isnan()
    assert not summary.evidence_reliable[0]
    assert Gate().grade(summary).tolist() == [Grade.F, Grade.A]


@pytest.mark.parametrize("n_draws", [5, 100, 4096])
def test_perfect_proposal_is_left_alone(n_draws):
    log_weights = torch.full((2, n_draws), -1234.5, dtype=torch.float64)
    log_weights[1] += 1e-14 * normals(0, n_draws)  # equal to rounding
    smoothed, k_hat = psis(log_weights)
    summary = summarise(log_weights)
    assert torch.equal(smoothed, log_weights)
    assert k_hat.tolist() == [0.0, 0.0]
    assert summary.ess[0] == n_draws
    torch.testing.assert_close(summary.ess_low[0], summary.ess[0])
    if n_draws > 400:
        assert summary.log_evidence_err[0] == 0.0
        assert Gate().grade(summary).tolist() == [Grade.A, Grade.A]


def test_dominated_row_is_not_certified():
    log_weights = torch.zeros(1, 4096, dtype=torch.float64)
    log_weights[0, 7] = 800.0  # all others underflow
    summary = summarise(log_weights)
    assert summary.ess.item() == pytest.approx(1.0)
    assert summary.max_share.item() == pytest.approx(1.0)
    assert summary.k_hat.item() == INF
    assert Gate().grade(summary).item() == Grade.F


def test_weights_that_underflow_give_numbers_and_no_certificate():
    summary = summarise(400.0 * normals(33, 20, 1000), normals(34, 20, 1000, 2))
    assert not (summary.k_hat.isnan() | summary.k_hat_moment.isnan()).any()
    assert (summary.k_hat > 1).all()
    torch.testing.assert_close(summary.weights.sum(1), torch.ones(20, dtype=torch.float64))
    assert (Gate().grade(summary) == Grade.F).all()


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_unclean_log_weights_are_refused(bad):
    for function in (psis, effective_sample_size, summarise):
        with pytest.raises(ValueError, match=r"1 of 3 are NaN or \+inf"):
            function(np.array([[0.0, bad, -INF]]))


def test_effective_sample_size_closed_forms():
    frozen = np.array([[0.0, 0.0, -INF], [5.0, -INF, -INF], [-INF] * 3, [math.log(3.0), 0.0, -INF]])
    frozen.flags.writeable = False
    ess = effective_sample_size(frozen)
    assert isinstance(ess, np.ndarray)
    np.testing.assert_allclose(ess, [2.0, 1.0, 0.0, 16 / 10], rtol=1e-15)
    np.testing.assert_allclose(nbi_effective_sample_size(frozen), [1.0, 0.0, 0.0, 0.6], rtol=1e-12)
    assert isinstance(effective_sample_size(torch.zeros(2, 3)), torch.Tensor)


# --- invariances --------------------------------------------------------------------------------


@laws
@given(log_weight_rows)
def test_summary_stays_within_its_bounds(drawn):
    rows = as_rows(drawn)
    summary = summarise(rows)
    supported = rows.isfinite().any(1)
    n_positive = rows.isfinite().sum(1)
    torch.testing.assert_close(summary.weights.sum(1), supported.double())
    assert (summary.weights >= 0).all()
    assert ((summary.ess >= 0) & (summary.ess <= n_positive)).all()
    assert ((summary.ess_low >= 0) & (summary.ess_low <= summary.ess)).all()
    assert torch.equal(summary.ess > 0, supported)
    assert ((summary.efficiency >= 0) & (summary.efficiency <= 1)).all()
    assert (summary.perplexity * rows.shape[1] <= n_positive.double() * (1 + 1e-12)).all()
    assert not summary.k_hat.isnan().any()


@laws
@given(log_weight_rows, st.integers(-5000, 5000))
def test_shift_changes_log_evidence_alone(drawn, shift):
    rows = as_rows(drawn)
    summary, shifted = summarise(rows), summarise(rows + shift)
    evidences = ("log_evidence", "log_evidence_psis")
    assert_same_summary(summary, shifted, tol=1e-9, skip=evidences)
    for name in evidences:
        torch.testing.assert_close(getattr(shifted, name), getattr(summary, name) + shift)


@laws
@given(log_weight_rows, st.integers(0, 1000))
def test_order_of_the_draws_does_not_matter(drawn, seed):
    rows = as_rows(drawn)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(rows.shape[1]))
    summary, permuted = summarise(rows), summarise(rows[:, order])
    skip = ("weights", "ess_low")  # equal draws may swap; the bootstrap draws anew
    assert_same_summary(summary, permuted, tol=1e-9, skip=skip)
    torch.testing.assert_close(summary.weights.sort(1).values, permuted.weights.sort(1).values)


@laws
@given(log_weight_rows, st.integers(1, 200))
def test_zero_weights_dilute_log_evidence_and_nothing_else(drawn, n_zeros):
    rows = as_rows(drawn)
    diluted = torch.nn.functional.pad(rows, (0, n_zeros), value=-INF)
    torch.testing.assert_close(effective_sample_size(diluted), effective_sample_size(rows))
    n_draws = rows.shape[1]
    k_hat = torch.zeros(len(rows), dtype=torch.float64)
    before, after = log_evidence(rows, k_hat), log_evidence(diluted, k_hat)
    same = ~(before.evidence_corrected | after.evidence_corrected)
    expected = before.log_evidence - math.log((n_draws + n_zeros) / n_draws)
    torch.testing.assert_close(after.log_evidence[same], expected[same])


@laws
@given(log_weight_rows, st.integers(0, 1000))
def test_dropped_draws_leave_no_trace(drawn, seed):
    rows = as_rows(drawn)
    keep = torch.from_numpy(np.random.default_rng(seed).uniform(size=rows.shape) < 0.7)
    keep[:, 0] = True
    z = torch.where(keep[..., None], normals(seed, *rows.shape, 2), math.nan)
    summary = summarise(torch.where(keep, rows, 3.0), z, keep)
    assert (summary.weights[~keep] == 0).all()
    for i, mask in enumerate(keep):
        alone = summarise(rows[i : i + 1, mask], z[i : i + 1, mask])
        full = torch.zeros_like(rows[i : i + 1])
        full[:, mask] = alone.weights
        one = replace(
            summary, **{f.name: getattr(summary, f.name)[i : i + 1] for f in fields(summary)}
        )
        assert_same_summary(one, replace(alone, weights=full), tol=1e-9, skip=("ess_low",))


@pytest.mark.parametrize("n_draws", [60, 400, 3000])
def test_equal_draws_are_smoothed_in_their_order(n_draws):
    rows = (4.0 * uniforms(1, 20, n_draws)).floor()
    keep = uniforms(2, 20, n_draws) < 0.7
    weights = summarise(rows, torch.zeros(*rows.shape, 1), keep).weights
    for own, mask, weight in zip(rows, keep, weights, strict=True):
        alone = summarise(own[None, mask]).weights[0]
        torch.testing.assert_close(weight[mask], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_draws", [30, 200, 1000])
def test_batch_equals_loop(n_draws):
    log_weights = 3.0 * uniforms(4, 12, 1) * normals(5, 12, n_draws)
    log_weights[3, ::3] = -INF
    log_weights[4] = -INF
    log_weights[5] = 2.0
    z = normals(6, 12, n_draws, 3)
    batch = summarise(log_weights, z, seed=1)
    for i in range(12):
        one = summarise(log_weights[i : i + 1], z[i : i + 1], seed=1)
        row = {f.name: getattr(batch, f.name)[i : i + 1] for f in fields(batch)}
        assert_same_summary(replace(batch, **row), one, tol=1e-12)


def test_memory_limit_does_not_change_the_answer(monkeypatch):
    log_weights, z = 2.0 * normals(7, 9, 500), normals(8, 9, 500, 2)
    whole = summarise(log_weights, z)
    tight = replace(launch.KINDS["cpu"], weighing_bytes=1)
    monkeypatch.setitem(launch.KINDS, "cpu", tight)  # one row at a time
    assert_same_summary(whole, summarise(log_weights, z), tol=1e-12)


def test_no_objects_have_an_empty_summary():
    summary = summarise(torch.empty(0, 100, dtype=torch.float64), torch.empty(0, 100, 2))
    assert all(len(getattr(summary, f.name)) == 0 for f in fields(summary))


def test_summarise_is_reproducible_and_leaves_global_state_alone():
    log_weights = normals(9, 2, 500)
    before = torch.random.get_rng_state()
    first = summarise(log_weights, seed=3)
    assert torch.equal(first.ess_low, summarise(log_weights, seed=3).ess_low)
    assert not torch.equal(first.ess_low, summarise(log_weights, seed=4).ess_low)
    assert torch.equal(before, torch.random.get_rng_state())


# --- effective sample size and evidence ---------------------------------------------------------


def test_moments_use_smoothed_weights_and_evidence_raw_ones():
    raw = 2.0 * normals(32, 3, 1000)
    smoothed, k_hat = psis(raw)
    summary = summarise(raw)
    torch.testing.assert_close(summary.weights, normalise(smoothed))
    torch.testing.assert_close(summary.ess, 1.0 / summary.weights.square().sum(1))
    torch.testing.assert_close(summary.max_share, summary.weights.amax(1))
    torch.testing.assert_close(summary.log_evidence, raw.logsumexp(1) - math.log(1000))
    torch.testing.assert_close(summary.log_evidence_psis, smoothed.logsumexp(1) - math.log(1000))
    torch.testing.assert_close(summary.ess_nbi, 1.0 / normalise(raw).square().sum(1) - 1.0)
    assert ((summary.log_evidence - summary.log_evidence_psis).abs() > 1e-4).all()
    assert torch.equal(summary.k_hat, k_hat)


def test_ess_low_is_seldom_above_the_truth():
    # lognormal weights: the efficiency of infinitely many draws is exp(-sigma^2)
    summary = summarise(0.5 * normals(10, 600, 4096))
    truth = 4096 * math.exp(-0.25)
    assert (summary.ess > truth).double().mean() > 0.3
    assert (summary.ess_low > truth).double().mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert (summary.ess_low / summary.ess).median() > 0.9  # a bound, but not an empty one


def conjugate_gaussian(n_draws, n_dim=3, sd=0.5):
    """Return z-draws from the exact posterior, its densities, and the true log Z."""
    x = normals(11, n_dim)
    shrink = 1.0 / (1.0 + sd**2)
    post_sd = sd * math.sqrt(shrink)
    z = shrink * x + post_sd * normals(12, 1, n_draws, n_dim)
    log_evidence_true = gaussian_log_prob(x, math.sqrt(1.0 + sd**2))
    log_target = gaussian_log_prob(x - z, sd) + gaussian_log_prob(z)
    return log_target, gaussian_log_prob(z - shrink * x, post_sd), log_evidence_true


def test_log_evidence_of_the_exact_posterior_is_exact():
    log_target, log_q, truth = conjugate_gaussian(1000)
    summary = summarise(log_target - log_q)
    assert summary.log_evidence.item() == pytest.approx(truth.item(), abs=1e-12)
    assert summary.log_evidence_err.item() == pytest.approx(0.0, abs=1e-6)
    assert Gate().grade(summary).item() == Grade.A


@pytest.mark.parametrize("sd", [1.3, 0.85])
def test_log_evidence_error_covers_the_truth(sd):
    summary = summarise(gaussian_log_weights(13, 400, 4096, 5, sd))
    honest = summary.evidence_reliable & ~summary.evidence_soft
    assert honest.double().mean() > 0.95
    error = summary.log_evidence[honest]
    assert abs(error.mean()) < 0.005
    covered = (error.abs() < 1.96 * summary.log_evidence_err[honest]).double().mean()
    assert 0.88 < covered < 0.99


def test_log_evidence_needs_no_leakage_correction():
    # quadrant of N(0, I); the proposal N(0.2, 1.1) loses two thirds of its draws outside
    z = 0.2 + 1.1 * normals(14, 400, 4000, 2)
    log_prior = torch.where((z > 0).all(-1), gaussian_log_prob(z), -INF)
    result = clean(torch.zeros(400, 4000), log_prior, gaussian_log_prob(z - 0.2, 1.1))
    summary = summarise(result.log_weights)
    assert abs(summary.log_evidence.mean() - math.log(0.25)) < 0.01
    assert (summary.n_draws == 4000).all()


def test_log_evidence_error_follows_k_hat():
    log_weights = normals(15, 1, 1000).expand(4, -1)
    result = log_evidence(log_weights, torch.tensor([0.3, 0.6, 0.68, INF], dtype=torch.float64))
    ess = effective_sample_size(log_weights[0])
    error = math.sqrt((1000 - ess) / (1000 * ess))
    expected = torch.tensor([error, 1.5 * error, math.nan, math.nan], dtype=torch.float64)
    torch.testing.assert_close(result.log_evidence_err, expected, equal_nan=True)
    assert result.evidence_reliable.tolist() == [True, True, False, False]
    assert result.evidence_soft.tolist() == [False, True, False, False]
    assert not result.evidence_corrected.any()
    assert len(set(result.log_evidence.tolist())) == 1


def test_log_evidence_bias_of_few_draws_is_removed():
    # the mean of 6 exponentials: E log = digamma(6) - log 6
    log_weights = (-uniforms(16, 20_000, 6).log()).log()
    result = log_evidence(log_weights, torch.zeros(20_000, dtype=torch.float64))
    bias = torch.special.digamma(torch.tensor(6.0)).item() - math.log(6.0)
    assert result.evidence_corrected.double().mean() > 0.5
    assert abs(result.log_evidence.mean()) < 0.5 * abs(bias)


# --- gate, mixtures, resampling -----------------------------------------------------------------

GRADES = [
    # k_hat, ess, n_draws, k_hat_moment -> grade, grade of a fitted mixture
    (0.69, 900, 4096, 0.6, Grade.A, Grade.F),  # efficiency 0.22
    (0.69, 1300, 4096, 0.69, Grade.A, Grade.A),
    (0.69, 1300, 4096, 0.71, Grade.A, Grade.F),  # efficiency 0.32, where less is allowed
    (0.69, 2300, 4096, 0.99, Grade.A, Grade.A),
    (0.69, 2300, 4096, 1.01, Grade.A, Grade.F),
    (0.71, 1300, 4096, 0.6, Grade.F, Grade.F),
    (0.69, 900, 1000, 0.6, Grade.F, Grade.F),  # the threshold of 1000 draws is 2/3
    (0.50, 399, 1000, 0.6, Grade.F, Grade.F),
    (0.50, 400, 1000, 0.6, Grade.A, Grade.A),
    (0.50, 800, 4096, 0.6, Grade.F, Grade.F),  # efficiency 0.195
    (0.50, 2000, 16384, 0.6, Grade.B, Grade.F),
    (0.50, 2000, 16000, 0.6, Grade.F, Grade.F),
    (0.50, 1600, 16384, 0.6, Grade.F, Grade.F),  # efficiency 0.098
]


@pytest.mark.parametrize(("k_hat", "ess", "n_draws", "moment", "plain", "mixture"), GRADES)
def test_gate_table(k_hat, ess, n_draws, moment, plain, mixture):
    def column(value):
        return torch.tensor([value], dtype=torch.float64)

    summary = replace(
        summarise(torch.zeros(1, 10)),
        k_hat=column(k_hat),
        k_hat_threshold=threshold(column(n_draws)),
        ess=column(ess),
        efficiency=column(ess / n_draws),
        n_draws=torch.tensor([n_draws]),
        k_hat_moment=column(moment),
    )
    assert Gate().grade(summary).tolist() == [plain]
    assert Gate(family="mixture").grade(summary).tolist() == [mixture]


def test_gate_of_a_mixture_needs_the_draws():
    with pytest.raises(ValueError, match="Call summarise"):
        Gate(family="mixture").grade(summarise(torch.zeros(1, 10)))


def test_mixture_weights_beat_pooled_rounds():
    # D = 4, four rounds: too wide, off centre, good, too narrow; nbi weights each by its own ESS
    rounds = [(0.0, 4.0), (1.2, 0.6), (0.4, 1.2), (0.1, 0.8)]
    n_objects, n_draws = 200, 1000
    z = [m + s * normals(22 + i, n_objects, n_draws, 4) for i, (m, s) in enumerate(rounds)]
    own = [
        gaussian_log_prob(x) - gaussian_log_prob(x - m, s)
        for x, (m, s) in zip(z, rounds, strict=True)
    ]
    pooled = torch.cat([normalise(w) * nbi_effective_sample_size(w)[:, None] for w in own], 1)
    z = torch.cat(z, 1)
    log_q = torch.stack([gaussian_log_prob(z - m, s) for m, s in rounds])
    mixed = summarise(gaussian_log_prob(z) - log_mixture(log_q, torch.full((4,), n_draws)))

    def rmse(weights):
        mean = (weights[..., None] * z).sum(1) / weights.sum(1)[:, None]
        return mean.square().mean().sqrt()

    assert rmse(mixed.weights) < 0.8 * rmse(pooled)
    assert mixed.log_evidence.square().mean().sqrt() < 0.03


def test_systematic_resample_counts_are_expected_counts_rounded():
    weights = uniforms(30, 3, 40) ** 3
    weights[:, ::4] = 0.0
    start = torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    index = systematic_resample(weights, 500, start)
    expected = 500 * weights / weights.sum(1, keepdim=True)
    for i in range(3):
        counts = torch.bincount(index[i], minlength=40)
        assert ((counts - expected[i]).abs() < 1 + 1e-9).all()
        assert (counts[::4] == 0).all()
        assert torch.equal(index[i], systematic_resample(weights[i], 500, start[i]))


def test_systematic_resample_is_unbiased():
    weights = uniforms(31, 20)
    starts = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    index = systematic_resample(weights.expand(1000, -1), 7, starts)
    frequency = torch.bincount(index.flatten(), minlength=20) / 1000
    torch.testing.assert_close(frequency.double(), 7 * weights / weights.sum(), rtol=0, atol=2.1e-3)


def test_systematic_resample_refuses_an_object_without_support():
    with pytest.raises(ValueError, match="1 of 2 objects have none"):
        systematic_resample(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), 3, torch.zeros(2))


# --- what the gate is worth ---------------------------------------------------------------------


def mismatched(n_dim, n_objects, alpha, seed, n_draws=4096):
    """Weigh N(0, I) with shifted, mostly narrower Gaussians, and say whose answer is wrong."""
    shift = normals(seed, n_objects, 1, n_dim) * uniforms(seed + 1, n_objects, 1, 1) * 0.8
    spread = 0.5 * uniforms(seed + 2, n_objects, 1, 1)
    sd = (normals(seed + 3, n_objects, 1, n_dim) * spread - 0.15).exp()
    n_wide = int(alpha * n_draws)
    base = normals(seed + 4, n_objects, n_draws, n_dim)
    base[:, n_draws - n_wide :] *= 2.0
    log_base = defensive_log_prob(
        gaussian_log_prob(base), gaussian_log_prob(base, 2.0), n_wide / n_draws
    )
    z = shift + sd * base
    summary = summarise(gaussian_log_prob(z) - (log_base - sd.log().sum(-1)))
    weights = summary.weights[..., None]
    mean = (weights * z).sum(1)
    std = (weights * (z - mean[:, None]).square()).sum(1).sqrt()
    return summary, (mean.abs() > 0.2).any(1) | ((std - 1).abs() > 0.15).any(1)


def passes(summary):
    return (summary.k_hat <= summary.k_hat_threshold) & (summary.ess >= Gate().ess_min)


def test_defensive_mixture_rescues_a_mismatched_proposal():
    pure, _ = mismatched(3, 200, 0.0, 40)
    defended, wrong = mismatched(3, 200, 0.2, 40)
    assert passes(defended).double().mean() > passes(pure).double().mean() + 0.1
    assert wrong[passes(defended)].double().mean() <= 0.01


@pytest.mark.statistics
@pytest.mark.parametrize("seed", [100, 200, 300])
def test_defensive_mixture_on_the_hard_set(seed):
    pure, wrong_pure = mismatched(6, 600, 0.0, seed)
    defended, wrong = mismatched(6, 600, 0.2, seed)
    assert passes(defended).double().mean() >= 0.6
    assert passes(pure).double().mean() < 0.6
    assert wrong[passes(defended)].double().mean() <= 0.01
    assert wrong_pure[passes(pure)].double().mean() > 0.01
    assert wrong[Gate().grade(defended) == Grade.A].double().mean() <= 0.01
    certified = passes(defended)
    error = defended.log_evidence.abs() / defended.log_evidence_err
    assert 0.92 < (error < 1.96)[certified].double().mean() < 0.99


@pytest.mark.statistics
def test_k_hat_alone_is_no_gate():
    pure, wrong = mismatched(10, 600, 0.0, 400)
    by_k_hat = wrong[pure.k_hat <= pure.k_hat_threshold].double().mean()
    certified = Gate().grade(pure) != Grade.F
    assert by_k_hat > 0.1
    assert wrong[certified].double().mean() < 0.4 * by_k_hat


@pytest.mark.statistics
def test_log_evidence_error_is_widened_and_withdrawn():
    summary = summarise(gaussian_log_weights(50, 1000, 4096, 5, 0.7))
    reliable = summary.evidence_reliable
    covered = (summary.log_evidence.abs() < 1.96 * summary.log_evidence_err)[reliable]
    assert summary.log_evidence_err[~reliable].isnan().all()
    assert 0 < (~reliable).sum() < 300
    assert covered.double().mean() > 0.88
    narrower = summarise(gaussian_log_weights(51, 1000, 4096, 5, 0.6))  # here k-hat alone would lie
    assert (Gate().grade(narrower) != Grade.F).double().mean() < 0.01
