"""Laws of raw log-weights: special values are judged, never lost; mixtures are mean densities."""

import math

import pytest
import torch

from nbi_plus.infer.weights.clean import Failure, clean, defensive_log_prob, log_mixture

INF = math.inf


def normals(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniforms(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cleaned_row(**changes):
    """Return 200 good draws of one object, whose first ones were changed, cleaned."""
    parts = {n: 0.1 * normals(i, 1, 200) for i, n in enumerate(("likelihood", "prior", "q"))}
    for name, values in changes.items():
        parts[name][0, : len(values)] = torch.tensor(values, dtype=torch.float64)
    return clean(parts["likelihood"], parts["prior"], parts["q"])


def test_clean_outside_the_prior_is_a_zero_weight_that_counts():
    result = cleaned_row(prior=[-INF, -INF, -INF], likelihood=[math.nan, INF, 3.0])
    assert result.failure.item() == Failure.NONE
    assert (result.log_weights[0, :3] == -INF).all()
    assert result.log_weights[0, 3:].isfinite().all()
    assert (result.n_draws.item(), result.n_nan.item()) == (200, 0)


@pytest.mark.parametrize(
    ("n_nan", "many", "failure"),
    [(2, False, Failure.NONE), (3, True, Failure.NONE), (101, True, Failure.SIMULATOR)],
)
def test_clean_counts_nan_likelihoods(n_nan, many, failure):
    result = cleaned_row(likelihood=[math.nan] * n_nan)
    assert result.n_nan.item() == n_nan
    assert result.many_nan.item() is many
    assert result.failure.item() == failure
    assert (result.log_weights[0, :n_nan] == -INF).all()
    assert result.n_draws.item() == 200


def test_clean_zero_likelihood_is_legal_and_infinite_is_not():
    assert cleaned_row(likelihood=[-INF]).failure.item() == Failure.NONE
    result = cleaned_row(likelihood=[INF])
    assert result.failure.item() == Failure.SIMULATOR
    assert result.infinite_likelihood.all()
    assert (result.log_weights == -INF).all()


@pytest.mark.parametrize(
    "changes", [{"q": [-INF]}, {"q": [INF]}, {"q": [math.nan]}, {"prior": [INF]}]
)
def test_clean_never_drops_a_draw_whose_weight_is_infinite(changes):
    result = cleaned_row(**changes)
    assert result.failure.item() == Failure.NUMERIC
    assert result.bad_density.nonzero().tolist() == [[0, 0]]
    assert (result.log_weights == -INF).all()
    harmless = cleaned_row(likelihood=[-INF], **changes)  # nothing is lost where the target is zero
    assert harmless.failure.item() == Failure.NONE


def test_clean_ignores_draws_that_are_not_kept():
    likelihood = torch.tensor([[math.nan, INF, 0.0, 1.0]] * 2)
    keep = torch.tensor([[False, False, True, True], [False] * 4])
    result = clean(likelihood, torch.zeros(2, 4), torch.zeros(2, 4), keep)
    assert result.failure.tolist() == [Failure.NONE, Failure.SIMULATOR]
    assert result.n_draws.tolist() == [2, 0]
    assert result.log_weights[0].tolist() == [-INF, -INF, 0.0, 1.0]


def test_failures_have_different_sentences():
    assert len({failure.sentence for failure in Failure}) == len(Failure)


def test_log_mixture_is_the_log_of_the_mean_density():
    density = uniforms(19, 3, 2, 50)
    counts = torch.tensor([100, 300, 0])
    expected = (0.25 * density[0] + 0.75 * density[1]).log()
    torch.testing.assert_close(log_mixture(density.log(), counts), expected)
    per_object = torch.tensor([[1, 0], [1, 0], [0, 5]])
    result = log_mixture(density.log(), per_object)
    torch.testing.assert_close(result[0], density[:2, 0].mean(0).log())
    torch.testing.assert_close(result[1], density[2, 1].log())


def test_defensive_density_is_a_two_part_mixture():
    narrow, wide = normals(20, 2, 30), normals(21, 2, 30)
    expected = torch.logaddexp(math.log(0.8) + narrow, math.log(0.2) + wide)
    torch.testing.assert_close(defensive_log_prob(narrow, wide), expected)
    assert torch.equal(defensive_log_prob(narrow, wide, alpha=0.0), narrow)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], but is 1.5"):
        defensive_log_prob(narrow, wide, alpha=1.5)
