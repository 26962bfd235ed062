"""Laws of Pareto smoothing: the reference, known shapes, tails too short or too flat to judge."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nbi_plus.infer.weights.psis import k_hat_moment, psis, sample_size_needed, threshold
from nbi_plus.infer.weights.summary import normalise

INF = math.inf
REFERENCE = Path(__file__).parent / "fixtures" / "psis_reference.npz"


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniforms(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psis_equals_reference():
    # Made once with arviz-stats 0.8: smoothed, k = base.array_stats.psislw(-log_weights) for twenty
    # vectors (lognormal, Pareto, bounded and Student-t weights, offsets, zero weights). Their sizes
    # above 225 are squares, where its tail is as long as ours: it rounds 3 sqrt(S) down, we up.
    with np.load(REFERENCE) as file:
        stored = dict(file)
    ends = np.cumsum(stored["sizes"])
    assert len(ends) == 20
    for end, size, k_expected in zip(ends, stored["sizes"], stored["k_hat"], strict=True):
        smoothed, k_hat = psis(stored["log_weights"][end - size : end])
        smoothed -= np.logaddexp.reduce(smoothed)  # the reference is normalised
        np.testing.assert_allclose(k_hat, k_expected, rtol=0, atol=1e-10)
        expected = stored["smoothed"][end - size : end]
        np.testing.assert_allclose(smoothed, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("k", [-0.3, 0.3, 0.7])
def test_k_hat_recovers_the_shape_of_pareto_weights(k):
    log_weights = (1.0 + torch.expm1(-k * torch.log1p(-uniforms(1, 200, 10_000))) / k).log()
    _, k_hat = psis(log_weights)
    shrunk = (300 * k + 10 * 0.5) / 310
    assert abs(k_hat.mean() - shrunk) < 4 * k_hat.std() / math.sqrt(200) + 0.01


def test_k_hat_of_a_narrow_gaussian_proposal():
    # N(0, I) against N(0, sd^2 I) in five dimensions: the asymptotic shape is 1 - sd^2
    square = normals(2, 200, 4096, 5).square().sum(-1)
    _, k_hat = psis(0.5 * (1.0 - 0.85**2) * square)
    assert k_hat.median() == pytest.approx(0.30, abs=0.06)


def test_psis_keeps_the_order_and_the_maximum():
    log_weights = 2.0 * normals(3, 5, 1000)
    smoothed, k_hat = psis(log_weights)
    assert (smoothed.gather(1, log_weights.argsort(1)).diff(dim=1) >= 0).all()
    assert (smoothed.amax(1) <= log_weights.amax(1)).all()
    assert k_hat.isfinite().all()


TAILS = [(100, 20), (225, 45), (226, 46), (1000, 95), (4096, 192)]


@pytest.mark.parametrize(("n_draws", "n_tail"), TAILS)
def test_psis_changes_the_tail_alone(n_draws, n_tail):
    log_weights = normals(4, n_draws).sort().values
    smoothed, _ = psis(log_weights)
    changed = (smoothed != log_weights).nonzero()[:, 0]
    assert changed.min() == n_draws - n_tail
    dropped = torch.nn.functional.pad(log_weights, (0, 500), value=-INF)
    kept_alone, _ = psis(dropped, torch.tensor(n_draws))
    torch.testing.assert_close(kept_alone[:n_draws], smoothed)


@pytest.mark.parametrize(
    ("n_draws", "expected"), [(100, 0.5), (1000, 2 / 3), (2154, 0.7), (1, -INF)]
)
def test_threshold_formula(n_draws, expected):
    assert threshold(n_draws) == pytest.approx(expected, abs=1e-4)
    assert float(threshold(torch.tensor(n_draws))) == pytest.approx(expected, abs=1e-4)


def test_sample_size_needed_inverts_the_threshold():
    assert sample_size_needed(threshold(500)) == pytest.approx(500)
    assert sample_size_needed(np.array([-1.0, 1.0, INF])).tolist() == [10.0, INF, INF]


@pytest.mark.parametrize("n_finite", [1, 4, 5])
def test_too_few_tail_values_have_infinite_k_hat(n_finite):
    log_weights = torch.full((1, 1000), -INF, dtype=torch.float64)
    log_weights[0, :n_finite] = torch.arange(n_finite)
    smoothed, k_hat = psis(log_weights)
    assert k_hat.item() == INF
    assert torch.equal(smoothed, log_weights)


@pytest.mark.parametrize("n_draws", [1, 2, 9, 24])
def test_too_few_draws_have_infinite_k_hat(n_draws):
    assert psis(normals(0, 1, n_draws))[1].item() == INF


def test_k_hat_moment_is_the_worst_parameter():
    log_weights, z = normals(17, 4, 1000), normals(18, 4, 1000, 3)
    z[..., 1] = z[..., 1].sinh() ** 3  # one heavy tail
    weights = normalise(log_weights)
    result = k_hat_moment(log_weights, z, weights)
    mean = (weights[..., None] * z).sum(1)
    each = [psis(log_weights + 2 * (z[..., j] - mean[:, j, None]).abs().log())[1] for j in range(3)]
    torch.testing.assert_close(result, torch.stack(each).amax(0))
    assert (result == each[1]).all()
    assert (result > 1).all()
